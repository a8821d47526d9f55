"""FractalMAR on 1906 emoji of 64x64 pixels, in nine classes.

fractal-jax train --config=configs/emoji.py --workdir=runs/emoji

Hardware: one GPU, planned for about an hour.
Hours: not run here.
Cost: 35.8 million parameters, 158 GFLOPs per image and training step, so 2.0e17
FLOPs in 10,000 steps of 128 images: an hour at 56 TFLOP/s, less than a fifth
of the bfloat16 peak of an A100 (312) and a tenth of an H100's.
Expected: unknown; the paper has no emoji.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; there are no options."""
  if arg:
    raise ValueError(f"emoji has no options: leave out ':{arg}'")
  c = config.default()
  m = c.model
  m.sizes = (64, 4, 1)
  m.kinds = ('mar', 'mar', 'pixel')
  m.widths = (512, 256, 128)
  m.depths = (10, 4, 2)
  m.heads = (8, 8, 4)
  m.num_conds = 5
  m.mean = (0.822, 0.770, 0.710)  # of the emoji, on white
  m.std = (0.287, 0.287, 0.353)
  m.classes = 9
  m.channel_weights = (1.0, 1.0, 1.0)
  m.dropout = 0.2  # few images, many epochs
  m.dtype = 'bfloat16'
  m.remat = 'dots'

  c.data.name = 'emoji'
  c.data.shift = 4

  c.optim.batch = 128
  c.optim.steps = 10_000
  c.optim.lr = 4e-4  # a peak of 2e-4 at this batch
  c.optim.save_every = 2000

  c.eval.every = 1000
  c.eval.batch = 96  # 190 in two

  c.sample.every = 2000
  c.sample.num = 72
  c.sample.batch = 72
  c.sample.guidance = 2.0
  c.sample.iterations = (64, 16)
  return c
