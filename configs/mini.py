"""A small FractalAR (:ar, the default) or FractalMAR (:mar) on 32x32 RGB.

fractal-jax train --config=configs/mini.py:mar --workdir=runs/mini

Data: CIFAR-10 by TFDS; any set of ten classes and 32x32 RGB will do.
Hardware: one GPU.
Hours: not run here.
Cost: 6.2 (ar) or 5.6 (mar) million parameters; 9.1 or 7.5 GFLOPs per image and
training step.
Expected: unknown; the paper has no such model.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; `arg` is what stands after a colon: ar or mar."""
  arg = arg or 'ar'
  if arg not in ('ar', 'mar'):
    raise ValueError(f"mini has no option '{arg}': choose ar or mar")
  c = config.default()
  m = c.model
  m.sizes = (32, 4, 1)
  m.kinds = (arg, arg, 'pixel')
  m.widths = (256, 128, 64)
  m.depths = (6, 3, 2)
  m.heads = (8, 4, 4)
  m.num_conds = 5 if arg == 'mar' else 1
  m.classes = 10
  m.dtype = 'float32'
  m.remat = 'none'
  m.unroll = 6

  c.data.name = 'cifar10'
  c.data.val_split = 'test'

  c.optim.batch = 256
  c.optim.epochs = 200.0
  c.optim.lr = 5e-4

  if arg == 'mar':
    c.sample.iterations = (32, 8)
  return c
