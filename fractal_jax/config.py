"""The configuration of a run: every key with its default, and its checks.

A config file in `configs/` calls `default()`, changes what differs, and
returns the result. Six flat sections; the config is locked, so a misspelt
key is an error that names the nearest one.
"""

import ml_collections
from ml_collections import config_dict

from fractal_jax.errors import UserError
from fractal_jax.models import rules, shared

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConfigError(UserError, ValueError):
  """A config that breaks a rule; the message lists every broken rule."""


def default() -> ml_collections.ConfigDict:
  """The published recipe (section 5 of the paper) with no model chosen."""
  c = ml_collections.ConfigDict()
  c.seed = 0

  c.model = m = ml_collections.ConfigDict()
  # One entry a level, outermost first; the last level is the pixel level.
  m.sizes = (64, 4, 1)  # side of the squares that each level sees
  m.kinds = ('mar', 'mar', 'pixel')
  m.widths = (1024, 512, 128)
  m.depths = (32, 8, 3)
  m.heads = (16, 8, 4)
  # Conditions that a level takes: one number for all (levels take fewer
  # where the level above gives fewer), or one for each level above pixels.
  m.num_conds = config_dict.FieldReference(5, field_type=object)
  m.guide = False  # predict the mean colour first (mar levels >= 1)
  # For each level, the level whose blocks (its transformer's parameters) it
  # uses: its own, or an earlier one's of the same kind of block, width, depth
  # and heads. (): all their own. (0, 0, 2): level 1 uses those of level 0.
  m.share = ()
  # What the values are.
  m.rank = 2  # 1: series [S, C]; 2: images [S, S, C]
  m.channels = 3
  m.num_values = 256  # per channel: 0 .. num_values - 1
  m.mean = IMAGENET_MEAN  # of v / (num_values - 1), one per channel
  m.std = IMAGENET_STD
  # What the levels see of an RGB image: '' its values, 'ycbcr' (rounded: see
  # models/colour.py), 'ycocg' (one to one). mean, std and channel_weights are
  # then of these channels.
  m.colour = ''
  # The order in which channels are predicted, by number; (): as they are, and
  # (1, 0, 2): green, red, blue. All else that is per channel, here and in what
  # comes out, is in the order of the data.
  m.channel_order = ()
  m.classes = 1000
  # Regularisation and the training loss.
  m.channel_weights = (5.0, 1.0, 1.0)  # training only; likelihood weighs all 1
  m.dropout = 0.1
  m.label_dropout = 0.1
  m.mask_law = 'normal'  # mar: ratio ~ normal truncated to [0, 1]; 'uniform'
  m.mask_mean = 1.0
  m.mask_std = 0.25
  # How it is computed.
  m.dtype = 'float32'  # 'bfloat16' on TPUs and recent GPUs
  m.remat = 'full'  # what to recompute in the backward pass: see layers.py
  m.unroll = 0  # layers: stacks of so many or fewer are not looped over
  # Parts in which each level goes through its rows in training and likelihood,
  # one number a level; (): all at once. `cost --mesh` says how many it takes.
  m.chunks = ()
  # Other checkpoints to start from: a work directory, and which levels.
  m.init_from = ''
  m.init_levels = ()

  c.data = d = ml_collections.ConfigDict()
  d.name = 'digits'  # digits, emoji, folder, npz, imagenet2012, any TFDS name
  d.dir = ''  # TFDS data_dir, or the folder or file to read
  d.manual_dir = ''  # where downloaded archives lie (TFDS manual_dir)
  d.train_split = 'train'
  d.val_split = 'validation'
  d.flip = True  # random horizontal flip
  d.shift = 0  # random shift by up to so many pixels, edges repeated
  d.threads = 16  # decoding threads a host

  c.optim = o = ml_collections.ConfigDict()
  o.batch = 2048  # images a step, over all devices
  o.epochs = 800.0
  o.steps = 0  # 0: from epochs
  o.lr = 5e-5  # for a batch of 256; scaled linearly with the batch
  o.warmup = 0.05  # share of the steps with a linear ramp from 0
  o.b1 = 0.9
  o.b2 = 0.95
  o.eps = 1e-8
  o.weight_decay = 0.05
  o.clip = 3.0  # global gradient norm
  # Updates whose loss or gradient is not finite are skipped, and with spike > 0
  # those whose loss is above spike times its running mean.
  o.spike = 0.0
  o.max_bad_steps = 10  # skipped one after another, before the run stops
  o.hang_after = 120.0  # seconds without progress end the run (0: never)
  o.frozen = ()  # levels that are not trained, say (0, 1)
  o.log_every = 100  # steps
  o.save_every = 5000  # steps
  o.keep = 2  # latest checkpoints kept
  o.keep_every = 0  # steps; these checkpoints are kept for good (0: none)

  c.mesh = h = ml_collections.ConfigDict()
  h.data = -1  # -1: all the devices that the others leave
  h.fsdp = 1  # batch and parameters split over these devices
  h.tensor = 1  # heads and MLP columns split over these devices
  h.slices = 1  # TPU slices or hosts joined by a slow network
  # Images are compacted in groups that never cross devices. 0: one group per
  # device of the batch; a fixed number makes runs equal on any mesh.
  h.groups = 0

  c.eval = e = ml_collections.ConfigDict()
  e.every = 5000  # steps; 0: never
  e.batch = 256
  e.num = 0  # images; 0: the whole split
  e.passes = 1  # Monte-Carlo passes of mar levels

  c.sample = s = ml_collections.ConfigDict()
  s.every = 5000  # steps; 0: never
  s.num = 64
  s.batch = 64
  s.guidance = 1.0
  s.schedule = 'linear'  # or 'constant'
  s.temperature = 1.0
  s.filter_threshold = 1e-4
  s.iterations = ()  # steps of each level above pixels; (): one per patch
  return c.lock()


def problems(config) -> list[str]:
  """Every rule that the config breaks, each naming value, rule and remedy."""
  out = rules.problems(config.model)
  d, o, h, e, s = (
    config.data,
    config.optim,
    config.mesh,
    config.eval,
    config.sample,
  )

  def rule(ok, text):
    if not ok:
      out.append(text)

  levels = len(config.model.sizes) - 1
  rule(d.name, 'data.name is empty: name a data set, e.g. digits')
  rule(d.shift >= 0, f'data.shift={d.shift} must be 0 or more pixels')
  rule(d.threads >= 1, f'data.threads={d.threads} must be at least 1')
  rule(o.batch >= 1, f'optim.batch={o.batch} must be at least 1')
  rule(o.steps >= 0, f'optim.steps={o.steps} must be 0 (from epochs) or more')
  rule(
    o.steps or o.epochs > 0,
    f'optim.epochs={o.epochs} must be above 0 where optim.steps is 0',
  )
  rule(o.lr > 0, f'optim.lr={o.lr} must be above 0')
  rule(0 <= o.warmup < 1, f'optim.warmup={o.warmup} must be in [0, 1)')
  for name in ('b1', 'b2'):
    rule(0 <= o[name] < 1, f'optim.{name}={o[name]} must be in [0, 1)')
  rule(o.eps > 0, f'optim.eps={o.eps} must be above 0')
  rule(o.weight_decay >= 0, f'optim.weight_decay={o.weight_decay} must be >= 0')
  rule(o.clip > 0, f'optim.clip={o.clip} must be above 0 (inf: no clipping)')
  rule(o.hang_after >= 0, f'optim.hang_after={o.hang_after} must be >= 0')
  rule(
    o.spike == 0 or o.spike > 1,
    f'optim.spike={o.spike} must be 0 (off) or above 1, in running means of '
    'the loss',
  )
  for name in ('log_every', 'save_every', 'keep', 'max_bad_steps'):
    rule(o[name] >= 1, f'optim.{name}={o[name]} must be at least 1')
  rule(o.keep_every >= 0, f'optim.keep_every={o.keep_every} must be >= 0')
  for level in o.frozen:
    rule(
      0 <= level <= levels,
      f'optim.frozen names level {level}: levels are 0 to {levels}',
    )
  rule(
    len(set(o.frozen)) <= levels,
    'optim.frozen freezes every level: nothing is left to train',
  )
  m = config.model
  out += shared.named_with_owners(m, 'optim.frozen', o.frozen)
  out += shared.named_with_owners(m, 'model.init_levels', m.init_levels)
  axes = {a: h[a] for a in ('data', 'fsdp', 'tensor')}
  for axis, n in axes.items():
    rule(n == -1 or n >= 1, f'mesh.{axis}={n} must be -1 (the rest) or >= 1')
  rule(
    list(axes.values()).count(-1) <= 1,
    f'mesh {axes}: only one axis can be -1 (the rest)',
  )
  rule(h.slices >= 1, f'mesh.slices={h.slices} must be at least 1')
  rule(h.groups >= 0, f'mesh.groups={h.groups} must be 0 or more')
  if h.groups >= 1 and o.batch % h.groups:
    rule(False, f'mesh.groups={h.groups} must divide optim.batch={o.batch}')
  rule(e.every >= 0, f'eval.every={e.every} must be 0 (never) or more steps')
  rule(e.batch >= 1, f'eval.batch={e.batch} must be at least 1')
  rule(e.num >= 0, f'eval.num={e.num} must be 0 (all) or more images')
  rule(e.passes >= 1, f'eval.passes={e.passes} must be at least 1')
  rule(s.every >= 0, f'sample.every={s.every} must be 0 (never) or more steps')
  rule(s.num >= 1, f'sample.num={s.num} must be at least 1')
  rule(s.batch >= 1, f'sample.batch={s.batch} must be at least 1')
  return out + sample_problems(s, levels)


def sample_problems(s, levels: int) -> list[str]:
  """Rules that the keys of section `sample` break which say how to draw."""
  out = []

  def rule(ok, text):
    if not ok:
      out.append(text)

  rule(
    0 <= s.guidance < float('inf'),
    f'sample.guidance={s.guidance} must be >= 0, and finite',
  )
  rule(
    s.schedule in ('linear', 'constant'),
    f"sample.schedule='{s.schedule}' must be 'linear' or 'constant'",
  )
  rule(
    0 < s.temperature < float('inf'),
    f'sample.temperature={s.temperature} must be above 0, and finite',
  )
  rule(
    0 <= s.filter_threshold < 1,
    f'sample.filter_threshold={s.filter_threshold} must be in [0, 1)',
  )
  rule(
    len(s.iterations) in (0, levels) and all(i >= 1 for i in s.iterations),
    f'sample.iterations={tuple(s.iterations)} must hold one number of steps, '
    f'at least 1, for each of the {levels} levels above pixels (or nothing)',
  )
  return out


def check(config) -> None:
  """Raises ConfigError listing every broken rule, before any compilation."""
  found = problems(config)
  if found:
    raise ConfigError(
      'The config breaks these rules:\n' + '\n'.join(f'  - {p}' for p in found)
    )
