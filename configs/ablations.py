"""The ablations: STUDY/VARIANT, a question and one of its answers.

fractal-jax train --config=configs/ablations.py:order/GRB --workdir=runs/grb
python benchmarks/ablations.py --study=order --seeds=3

The second command runs a whole study, and writes its table and plot; see there
and docs/ablations.md. Small models of 8x8 digits and 16x16 emoji, for a CPU.
The paper's own ablations are of models of 64x64 ImageNet: the same switches
work in every config.

Data: digits come with scikit-learn; the other studies read emoji64.npz (set
data.dir), 1906 emoji of 64x64, which are halved twice by averaging. A fixed
tenth is held out.
Hardware: a CPU.
Hours: 0.02 per run (a minute of one core).
Expected: see docs/ablations.md.
"""

from collections.abc import Callable
import dataclasses

from fractal_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Study:
  """A question, and the runs that answer it.

  Attributes:
    question: in words.
    base: makes the config that all variants share; its name is that of the
      folder of the runs.
    variants: changes {'section.key': value} to the base, by name. The first
      is what the others are compared with.
    peaks: learning rates, the lowest first; each variant has its own of them.
    equal: whether training FLOPs per image must agree within MATCH.
  """

  question: str
  base: Callable
  variants: dict[str, dict]
  peaks: tuple[float, ...]
  equal: bool = False


def levels():
  """8x8 digits, ar levels: exact likelihoods."""
  c = config_lib.default()
  m = c.model
  m.channels, m.num_values, m.classes = 1, 17, 10
  m.mean, m.std = (0.3057,), (0.3761,)  # of the training split
  m.channel_weights = (1.0,)
  m.label_dropout = 0.3  # scored without labels
  c.data.name = 'digits'
  c.data.flip, c.data.shift = False, 1
  c.eval.batch = 152
  return running(c, batch=32, steps=400, evals=10)


def emoji_ar():
  """16x16 RGB emoji, ar levels of equal width: exact likelihoods."""
  c = config_lib.default()
  m = c.model
  m.update(hierarchy((16, 4, 1), (32, 32, 16), (1, 1, 1), (4, 4, 2)))
  m.mean, m.std = (0.824, 0.772, 0.711), (0.261, 0.261, 0.328)
  m.channel_weights = (1.0, 1.0, 1.0)
  m.classes, m.label_dropout = 9, 0.3
  c.data.name, c.data.dir = 'npz', 'emoji64.npz'
  c.eval.batch = 95  # 190 in two
  return running(c, batch=8, steps=250, evals=2)


def emoji_mar():
  """The same with masked levels: likelihoods are estimates."""
  c = emoji_ar()
  c.model.kinds = ('mar', 'mar', 'pixel')
  c.model.widths = (48, 48, 16)
  c.eval.passes, c.eval.every = 8, c.optim.steps
  return c


def running(c, batch: int, steps: int, evals: int):
  """What all studies have in common."""
  c.model.remat, c.model.unroll = 'none', 1
  c.optim.batch, c.optim.steps = batch, steps
  c.optim.log_every, c.eval.every = steps // 10, steps // evals
  c.optim.save_every = steps
  c.optim.hang_after = 0.0  # the machine may be busy
  c.sample.every = 0
  c.data.threads = 1
  return c


def hierarchy(sizes, widths, depths, heads) -> dict:
  """Keys of section `model`: ar levels, and the pixel level."""
  kinds = ('ar',) * (len(sizes) - 1) + ('pixel',)
  return dict(
    sizes=sizes, kinds=kinds, widths=widths, depths=depths, heads=heads
  )


def of_model(**changes) -> dict:
  """Changes of keys of section `model`, as a study's variant has them."""
  return {f'model.{name}': value for name, value in changes.items()}


STUDIES = {
  'levels': Study(
    question='Does depth help at equal training compute?',
    base=levels,
    variants={
      # The last level of `flat` has no blocks: it only gives logits.
      name: of_model(**hierarchy(*shape))
      for name, shape in {
        'flat': ((8, 1), (64, 64), (2, 0), (4, 4)),
        '2_levels': ((8, 1), (64, 24), (2, 1), (4, 2)),
        '3_levels': ((8, 2, 1), (96, 48, 32), (3, 1, 1), (4, 4, 2)),
        '4_levels': (
          (8, 4, 2, 1),
          (96, 96, 48, 32),
          (5, 2, 1, 1),
          (4, 4, 4, 2),
        ),
      }.items()
    }
    | {
      # What does autoregression at the inner level buy?
      '3_levels_independent': of_model(
        **hierarchy((8, 2, 1), (96, 56, 32), (3, 1, 1), (4, 4, 2))
        | dict(kinds=('ar', 'independent', 'pixel'))
      )
    },
    peaks=(1.5e-3, 3e-3, 6e-3, 1.2e-2),
    equal=True,
  ),
  'levels_emoji': Study(
    question='Does depth help at equal training compute, on colour images?',
    base=emoji_ar,
    variants={
      name: of_model(**hierarchy(*shape))
      for name, shape in {
        '2_levels': ((16, 1), (32, 16), (1, 1), (4, 2)),
        '3_levels': ((16, 4, 1), (64, 32, 16), (4, 1, 1), (4, 4, 2)),
        '4_levels': (
          (16, 4, 2, 1),
          (64, 48, 32, 16),
          (2, 1, 1, 1),
          (4, 4, 4, 2),
        ),
      }.items()
    },
    peaks=(3e-3,),
    equal=True,
  ),
  'order': Study(
    question='In which order, and as what, are the channels predicted?',
    base=emoji_ar,
    variants={
      'RGB': {},
      'GRB': of_model(channel_order=(1, 0, 2)),
      'BRG': of_model(channel_order=(2, 0, 1)),
      'YCbCr': of_model(
        colour='ycbcr', mean=(0.781, 0.463, 0.533), std=(0.240, 0.123, 0.112)
      ),
      'YCoCg-R': of_model(
        colour='ycocg', mean=(0.783, 0.488, 0.478), std=(0.273, 0.195, 0.167)
      ),
    },
    peaks=(3e-3,),
  ),
  'red': Study(
    question='Should the loss weigh red, the first channel, five times?',
    base=emoji_ar,
    variants={
      'red_1': {},
      'red_5': of_model(channel_weights=(5.0, 1.0, 1.0)),
    },
    peaks=(3e-3,),
  ),
  'share': Study(
    question='Can two levels use the same blocks?',
    base=emoji_ar,
    variants={'own_blocks': {}, 'shared_blocks': of_model(share=(0, 0, 2))},
    peaks=(3e-3,),
  ),
  'conds': Study(
    question='Do the conditions of neighbouring patches help?',
    base=emoji_mar,
    variants={'5_conditions': {}, '1_condition': of_model(num_conds=1)},
    peaks=(3e-3,),
  ),
  'guide': Study(
    question='Does predicting the mean colour first help?',
    base=emoji_mar,
    variants={'no_guide': {}, 'guiding_pixel': of_model(guide=True)},
    peaks=(3e-3,),
  ),
  'mask': Study(
    question='From which law should the share of masked patches come?',
    base=emoji_mar,
    variants={
      'normal_1': {},
      'normal_0.7': of_model(mask_mean=0.7),
      'uniform': of_model(mask_law='uniform'),
    },
    peaks=(3e-3,),
  ),
}


def config_of(study: str, variant: str, seed: int = 0, peak: float = 0.0):
  """The config of one run: its peak learning rate is the study's first."""
  chosen = STUDIES[study]
  c = chosen.base()
  for key, value in chosen.variants[variant].items():
    section, name = key.split('.')
    c[section][name] = value
  c.seed = seed
  c.optim.lr = (peak or chosen.peaks[0]) * 256 / c.optim.batch
  return c


def get_config(arg=None):
  """The config of `STUDY/VARIANT`."""
  study, _, variant = (arg or 'levels/3_levels').partition('/')
  variants = STUDIES[study].variants if study in STUDIES else {}
  if variant not in variants:
    known = [f'{s}/{v}' for s in STUDIES for v in STUDIES[s].variants]
    raise ValueError(
      f"ablations has no option '{arg}': choose one of {', '.join(known)}"
    )
  return config_of(study, variant)
