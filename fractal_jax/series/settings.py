"""The config of a small model, chosen from the size of the data."""

from ml_collections import ConfigDict

from fractal_jax import config as config_lib


def settings(
  rows: int,
  channels: int = 1,
  *,
  window: int = 64,
  classes: int = 1,
  kind: str = 'ar',
  levels: int = 3,
  bins: int = 256,
  steps: int | None = None,
  seed: int = 0,
) -> ConfigDict:
  """The config of a small model, chosen from the size of the data.

  Args:
    rows: of the training part.
    channels: C.
    window, kind, bins, seed: as of a `FractalDetector`.
    classes: of series.
    levels: 3: windows, patches of 8 rows, values; 2: without the patches.
    steps: of training; by default as many as keep 20,000 rows to minutes.

  Raises:
    ConfigError: a window that patches do not fill, and the like.
  """
  c = config_lib.default()
  m = c.model
  patch = min(8, max(window // 2, 1))
  m.sizes = (window, patch, 1) if levels == 3 else (window, 1)
  m.kinds = (kind,) * (levels - 1) + ('pixel',)
  m.widths = (96, 64, 48) if levels == 3 else (96, 48)
  # With several channels the pixel level must look back at its condition.
  m.depths = ((3, 2) if levels == 3 else (3,)) + (0 if channels == 1 else 1,)
  m.heads = (4,) * levels
  m.num_conds = 3
  m.rank, m.channels, m.num_values = 1, channels, bins
  m.unknown = True
  # Bins that cover the range and half of it at either end.
  m.mean, m.std = (0.5,) * channels, (0.15,) * channels
  m.channel_weights = (1.0,) * channels
  m.classes = classes
  m.mask_law = 'uniform'
  m.remat, m.unroll = 'none', 3

  c.data.name = 'series'
  c.data.flip = False
  c.data.noise = 2.0 * bins / 256
  c.data.balanced = True  # each series is scored by itself
  c.data.threads = 2  # windows lie in memory
  c.optim.batch = 32 * min(classes, 4)  # several series take longer to learn
  c.optim.steps = steps or min(max(500, rows // 10), 1500)
  c.optim.lr = 3e-3 * 256 / c.optim.batch  # this peak, as for the digits
  c.optim.save_every = c.optim.steps
  c.eval.every = c.optim.steps
  c.sample.every = 0
  c.seed = seed
  config_lib.check(c)
  return c
