"""AR (:ar, the default) or MAR (:mar) of one level on ImageNet 64x64.

fractal-jax cost --config=configs/one_level_in64.py:mar

The paper's baseline without any fractal: a flat transformer over all 12288
values of an image, written as a series of 12288 values of one channel whose
pixel level has no blocks: it only turns an output into 256 logits. For its
cost; no data set here holds such series.

Hardware: none; the paper calls it infeasible.
Hours: not run here.
Cost: 29,713 GFLOPs per image forward, as the paper counts (the paper: 29,845).
Expected: nothing; the paper did not train it.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; `arg` is what stands after a colon: ar or mar."""
  arg = arg or 'ar'
  if arg not in ('ar', 'mar'):
    raise ValueError(f"one_level_in64 has no option '{arg}': choose ar or mar")
  c = config.default()
  m = c.model
  m.sizes = (64 * 64 * 3, 1)
  m.kinds = (arg, 'pixel')
  m.widths = (1024, 1024)
  m.depths = (32, 0)
  m.heads = (16, 16)
  m.num_conds = 1
  m.rank = 1
  m.channels = 1
  m.mean = (0.449,)  # ImageNet's, over channels
  m.std = (0.226,)
  m.channel_weights = (1.0,)
  m.dtype = 'bfloat16'

  c.data.name = 'npz'
  c.data.flip = False
  return c
