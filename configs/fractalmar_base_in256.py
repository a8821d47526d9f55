"""FractalMAR-B on ImageNet 256x256, the published model.

fractal-jax train --config=configs/fractalmar_base_in256.py --workdir=runs/b256

Hardware: a pod or several hosts; 1024 images per step over all devices.
Hours: not run here. 800 epochs are 1.2e21 FLOPs (cost.py).
Cost: 186,300,224 parameters, 378 GFLOPs per image forward, as the paper
counts.
Expected (the paper's numbers; not run here):
FID-50K 11.80, IS 274.3, precision 0.78 and recall 0.29 with the settings of
`sample`.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; there are no options."""
  if arg:
    raise ValueError(
      f"fractalmar_base_in256 has no options: leave out ':{arg}'"
    )
  c = config.default()
  m = c.model
  m.sizes = (256, 16, 4, 1)
  m.kinds = ('mar', 'mar', 'mar', 'pixel')
  m.widths = (768, 384, 192, 64)
  m.depths = (24, 6, 3, 1)
  m.heads = (12, 6, 3, 4)
  m.num_conds = 5
  m.guide = True
  m.dtype = 'bfloat16'

  c.data.name = 'imagenet2012'

  c.optim.batch = 1024
  c.optim.epochs = 800.0
  c.optim.warmup = 40 / 800  # 40 epochs

  c.sample.guidance = 29.0
  c.sample.temperature = 1 / 1.1  # the published flag multiplies: 1.1
  c.sample.iterations = (64, 16, 16)
  return c
