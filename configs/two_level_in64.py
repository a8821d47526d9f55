"""AR (:ar, the default) or MAR (:mar) of two levels on ImageNet 64x64.

fractal-jax train --config=configs/two_level_in64.py:mar --workdir=runs/two

The paper's baseline: one sequence of 4096 pixels, of 3 values each.

Hardware: a pod or several hosts; 2048 images per step over all devices. Plain
attention over 4096 tokens wants much memory: few images per device.
Hours: not run here.
Cost: 5,513 GFLOPs per image forward, as the paper counts: 12.6 times
FractalMAR's.
Expected (the paper's numbers; not run here): 3.34 (ar) and 3.36 (mar)
bits/dim, unconditional.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; `arg` is what stands after a colon: ar or mar."""
  arg = arg or 'ar'
  if arg not in ('ar', 'mar'):
    raise ValueError(f"two_level_in64 has no option '{arg}': choose ar or mar")
  c = config.default()
  m = c.model
  m.sizes = (64, 1)
  m.kinds = (arg, 'pixel')
  m.widths = (1024, 128)
  m.depths = (32, 3)
  m.heads = (16, 4)
  m.dtype = 'bfloat16'

  c.data.name = 'imagenet2012'

  c.optim.batch = 2048
  c.optim.epochs = 800.0
  c.optim.warmup = 40 / 800  # 40 epochs

  # Each step runs over all 4096 tokens (mar) or their cache (ar): slow, so
  # a few images, seldom.
  c.sample.every = 50_000
  c.sample.num = 8
  c.sample.batch = 8
  if arg == 'mar':
    c.sample.iterations = (256,)
  return c
