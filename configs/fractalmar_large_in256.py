"""FractalMAR-L on ImageNet 256x256, the published model.

fractal-jax train --config=configs/fractalmar_large_in256.py --workdir=runs/l256

Hardware: a pod or several hosts; 1024 images per step over all devices.
Hours: not run here. 800 epochs are 2.7e21 FLOPs (cost.py).
Cost: 437,000,064 parameters, 862 GFLOPs per image forward, as the paper
counts.
Expected (the paper's numbers; not run here):
FID-50K 7.30, IS 334.9, precision 0.79 and recall 0.44 with the settings of
`sample`.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; there are no options."""
  if arg:
    raise ValueError(
      f"fractalmar_large_in256 has no options: leave out ':{arg}'"
    )
  c = config.default()
  m = c.model
  m.sizes = (256, 16, 4, 1)
  m.kinds = ('mar', 'mar', 'mar', 'pixel')
  m.widths = (1024, 512, 256, 64)
  m.depths = (32, 8, 4, 1)
  m.heads = (16, 8, 4, 4)
  m.num_conds = 5
  m.guide = True
  m.dtype = 'bfloat16'

  c.data.name = 'imagenet2012'

  c.optim.batch = 1024
  c.optim.epochs = 800.0
  c.optim.warmup = 40 / 800  # 40 epochs

  c.sample.guidance = 21.0
  c.sample.temperature = 1 / 1.1  # the published flag multiplies: 1.1
  c.sample.iterations = (64, 16, 16)
  return c
