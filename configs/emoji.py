"""FractalMAR on 1906 emoji of 64x64 pixels, in 98 classes; small: of 32x32.

fractal-jax train --config=configs/emoji.py --workdir=runs/emoji
fractal-jax train --config=configs/emoji.py:small --workdir=runs/emoji_small

Options: small (ar levels) and small_mar, of 32x32 pixels. `python
benchmarks/emoji.py` trains both and makes the pictures.
Hardware: one GPU, planned for about an hour; small: two CPU cores.
Hours: not run here; small: 21 images/s on both cores, 100 minutes; small_mar:
22 images/s on one core, 82 minutes.
Cost: 35.8 million parameters, 158 GFLOPs per image and training step, so 2.0e17
FLOPs in 10,000 steps of 128 images: an hour at 56 TFLOP/s, less than a fifth
of the bfloat16 peak of an A100 (312) and a tenth of an H100's.
Expected: small 2.01 bits/dim, small_mar 2.41, a mean over random orders
(benchmarks/emoji.py); the paper has no emoji.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; `arg` is what stands after a colon: small or small_mar."""
  if arg not in (None, '', 'small', 'small_mar'):
    raise ValueError(f"emoji has no option '{arg}': choose small or small_mar")
  c = config.default()
  m = c.model
  m.mean = (0.822, 0.770, 0.710)  # of the emoji, on white
  m.std = (0.287, 0.287, 0.353)
  m.classes = 98  # with nine, in as many bits, faces are drawn less often
  m.channel_weights = (1.0, 1.0, 1.0)
  m.dropout = 0.2  # few images, many epochs
  c.data.name = 'emoji_subgroups'
  c.eval.batch = 96  # 190 in two
  c.sample.num = 98
  c.sample.batch = 98
  c.sample.guidance = 2.0
  if arg:
    small(c, 'mar' if arg == 'small_mar' else 'ar')
  else:
    large(c)
  return c


def large(c):
  """64x64 for a GPU."""
  m = c.model
  m.sizes = (64, 4, 1)
  m.kinds = ('mar', 'mar', 'pixel')
  m.widths = (512, 256, 128)
  m.depths = (10, 4, 2)
  m.heads = (8, 8, 4)
  m.num_conds = 5
  m.dtype = 'bfloat16'
  m.remat = 'dots'

  c.data.shift = 4

  c.optim.batch = 128
  c.optim.steps = 10_000
  c.optim.lr = 1.4e-3  # a peak of 7e-4 at this batch, as `train --data` takes
  c.optim.save_every = 2000

  c.eval.every = 1000

  c.sample.every = 2000
  c.sample.iterations = (64, 16)


def small(c, kind):
  """32x32 for two CPU cores; what learns most in little time, see
  docs/own_images.md."""
  m = c.model
  m.sizes = (32, 4, 1)
  m.kinds = (kind, kind, 'pixel')
  m.widths = (192, 64, 64)  # a narrower pixel level learns less
  m.depths = (4, 2, 1)
  m.heads = (6, 4, 4)
  m.num_conds = 5 if kind == 'mar' else 1
  m.dropout = 0.15
  m.label_dropout = 0.2
  m.remat = 'none'
  m.unroll = 4

  # Few images per step and a high peak of the learning rate, 2e-3.
  c.optim.batch = 8
  c.optim.lr = 6.4e-2
  c.optim.save_every = 1000

  c.eval.every = 1000
  c.sample.every = 3000
  c.sample.temperature = 0.9
  c.sample.guidance = 3.0
  if kind == 'ar':
    c.optim.name = 'muon'
    c.optim.steps = 15_000
    c.mesh.groups = 1  # one device: each would compute all updates of Muon
  else:
    m.mask_law = 'uniform'  # as the likelihood masks
    c.data.shift = 2
    c.optim.steps = 12_000
    c.eval.passes = 4
