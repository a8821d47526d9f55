"""FractalMAR-H on ImageNet 256x256, the published model: 600 epochs, not 800.

fractal-jax train --config=configs/fractalmar_huge_in256.py --workdir=runs/h256

Hardware: a pod or several hosts; 1024 images per step over all devices.
Hours: not run here. 600 epochs are 3.8e21 FLOPs (cost.py).
Cost: 849,586,240 parameters, 1,658 GFLOPs per image forward, as the paper
counts.
Expected (the paper's numbers; not run here):
FID-50K 6.15, IS 348.9, precision 0.81 and recall 0.46 with the settings of
`sample`.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; there are no options."""
  if arg:
    raise ValueError(
      f"fractalmar_huge_in256 has no options: leave out ':{arg}'"
    )
  c = config.default()
  m = c.model
  m.sizes = (256, 16, 4, 1)
  m.kinds = ('mar', 'mar', 'mar', 'pixel')
  m.widths = (1280, 640, 320, 64)
  m.depths = (40, 10, 5, 1)
  m.heads = (16, 8, 4, 4)
  m.num_conds = 5
  m.guide = True
  m.dtype = 'bfloat16'

  c.data.name = 'imagenet2012'

  c.optim.batch = 1024
  c.optim.epochs = 600.0
  c.optim.warmup = 40 / 600  # 40 epochs

  c.sample.guidance = 19.0
  c.sample.temperature = 1 / 1.1  # the published flag multiplies: 1.1
  c.sample.iterations = (64, 16, 16)
  return c
