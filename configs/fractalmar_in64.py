"""FractalMAR on ImageNet 64x64, the published model.

fractal-jax train --config=configs/fractalmar_in64.py --workdir=runs/mar64

Hardware: a pod or several hosts; 2048 images per step over all devices.
Hours: not run here. 800 epochs are 1.4e21 FLOPs (cost.py).
Cost: 431,995,648 parameters, 437 GFLOPs per image forward, as the paper
counts.
Expected (the paper's numbers; not run here):
FID-50K 2.72 and IS 87.9 with the settings of `sample`; 3.15 bits/dim
(unconditional model, validation split).
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; there are no options."""
  if arg:
    raise ValueError(f"fractalmar_in64 has no options: leave out ':{arg}'")
  c = config.default()
  m = c.model
  m.sizes = (64, 4, 1)
  m.kinds = ('mar', 'mar', 'pixel')
  m.widths = (1024, 512, 128)
  m.depths = (32, 8, 3)
  m.heads = (16, 8, 4)
  m.num_conds = 5
  m.dtype = 'bfloat16'

  c.data.name = 'imagenet2012'

  c.optim.batch = 2048
  c.optim.epochs = 800.0
  c.optim.warmup = 40 / 800  # 40 epochs

  c.sample.guidance = 6.5
  c.sample.temperature = 1 / 1.02  # the published flag multiplies: 1.02
  c.sample.iterations = (64, 16)
  return c
