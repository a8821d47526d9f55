"""FractalAR (:ar, the default) or FractalMAR (:mar) on 8x8 digits.

fractal-jax train --config=configs/digits.py --workdir=runs/digits

Data: scikit-learn's 1797 handwritten digits, 1500 for training; no download.
Hardware: two CPU cores.
Hours: 0.04 (:ar), 0.1 (:mar), on one core that others used, too.
Expected: 1.78 validation bits/dim, where a random forest has 1.94, and 2.10
(:mar, a mean over random orders; launch/release.sh digits_ar digits_mar); a
histogram of each position has 2.43 and the uniform distribution 4.09. The paper
has no digits.
"""

from fractal_jax import config


def get_config(arg=None):
  """The config; `arg` is what stands after a colon: ar or mar."""
  arg = arg or 'ar'
  if arg not in ('ar', 'mar'):
    raise ValueError(f"digits has no option '{arg}': choose ar or mar")
  c = config.default()
  m = c.model
  m.sizes = (8, 2, 1)
  m.kinds = (arg, arg, 'pixel')
  m.widths = (96, 48, 32)
  m.depths = (3, 2, 1)
  m.heads = (4, 4, 2)
  m.channels = 1
  m.num_values = 17
  m.mean = (0.3057,)  # of the training split
  m.std = (0.3761,)
  m.classes = 10
  m.channel_weights = (1.0,)
  m.label_dropout = 0.3  # it is judged without labels, and sampled with
  m.remat = 'none'
  m.unroll = 3

  c.data.name = 'digits'
  c.data.flip = False  # nor moved: a model of moved digits draws moved ones

  c.optim.batch = 64
  c.optim.steps = 600
  c.optim.lr = 1.2e-2  # a peak of 3e-3 at this batch
  c.optim.save_every = 200

  c.eval.every = 200
  c.eval.batch = 152  # 297 in two
  if arg == 'mar':
    m.mask_law = 'uniform'  # as the likelihood masks
    c.optim.steps = 1600  # each sees but half of the values
    c.eval.passes = 8

  c.sample.every = 600
  c.sample.num = 60  # six rows, a column per class
  c.sample.guidance = 3.0
  return c
