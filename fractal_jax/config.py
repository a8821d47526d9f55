"""The configuration of a run: every key with its default, and its checks.

A config file in `configs/` calls `default()`, changes what differs, and
returns the result: a plain ml_collections.ConfigDict of six flat sections. It
is locked, so a misspelt key is an error that names the nearest one.

`SECTIONS` is the one table of the keys. Each says what it is and its unit, what
its value must be, and why its default is what it is. `check` reports every
value that breaks its rule, and then every rule that joins several keys.
"""

from collections.abc import Sequence
import re

import ml_collections
from ml_collections import config_dict

from fractal_jax import checks
from fractal_jax.checks import (
  Choice,
  Each,
  Either,
  Flag,
  Key,
  Number,
  Text,
  integer,
)
from fractal_jax.errors import UserError
from fractal_jax.models import (
  colour,
  fractal,
  layers,
  masking,
  orders,
  rules,
  shared,
)
from fractal_jax.series import quantiser

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INFINITY = float('inf')


class ConfigError(UserError, ValueError):
  """A config that breaks a rule; the message lists every broken rule."""


SEED = Key(
  0,
  checks.SEED,
  'seed of the initial parameters, the order of the data and every draw',
)

# Lists have an entry per level, outermost first, unless they say otherwise.
MODEL = {
  'sizes': Key(
    (64, 4, 1),
    Each(integer(least=1)),
    'side, in values, of the squares that each level sees; the last is 1',
    'the published 64x64 models: 16x16 patches of 4x4 pixels',
  ),
  'kinds': Key(
    ('mar', 'mar', 'pixel'),
    Each(Text(empty=False)),
    "kind of each level, a name in models/kinds.py; the last is 'pixel'",
    'the better of the published 64x64 models by FID',
  ),
  'widths': Key(
    (1024, 512, 128),
    Each(integer(least=1)),
    'width of the transformer of each level',
    'published',
  ),
  'depths': Key(
    (32, 8, 3),
    Each(integer(least=0)),
    'transformer blocks of each level; the pixel level may have none',
    'published',
  ),
  'heads': Key(
    (16, 8, 4),
    Each(integer(least=1)),
    'attention heads of each level, which divide its width',
    'published',
  ),
  'num_conds': Key(
    5,
    Either(integer(least=1), Each(integer(least=1))),
    'conditions that a level takes from the one above: one number for all, of '
    'which levels take fewer where fewer are given, or one for each level '
    'above pixels',
    'a patch and its four neighbours, as published for mar',
  ),
  'guide': Key(
    False,
    Flag(),
    'whether mar levels below the first predict the mean colour of their '
    'square first',
    'published for 256x256 alone',
  ),
  'share': Key(
    (),
    Each(integer(least=0)),
    'for each level, the level whose blocks it uses: its own, or an earlier '
    'one of equal blocks, width, depth and heads; (): all have their own; '
    '(0, 0, 2): level 1 uses those of level 0',
    'published',
  ),
  'rank': Key(
    2, Choice((1, 2)), '1: series [S, C]; 2: images [S, S, C]', 'images'
  ),
  'channels': Key(3, integer(least=1), 'values per pixel or time step', 'RGB'),
  'num_values': Key(
    256,
    integer(least=2),
    'values that a channel can take: 0 to num_values - 1',
    '8 bits',
  ),
  'unknown': Key(
    False,
    Flag(),
    'whether series may have values that are not known: ~v is read as v, and '
    'costs no bits (rank 1 alone)',
    'images have none',
  ),
  'mean': Key(
    IMAGENET_MEAN,
    Each(Number()),
    'mean of value / (num_values - 1) over the data, per channel',
    "ImageNet's",
  ),
  'std': Key(
    IMAGENET_STD,
    Each(Number(above=0)),
    'standard deviation of value / (num_values - 1), per channel',
    "ImageNet's",
  ),
  'colour': Key(
    '',
    Choice(tuple(colour.NAMES)),
    "what the levels see of an RGB image: '' its values, 'ycbcr' (rounded, see "
    "models/colour.py) or 'ycocg' (one to one); mean, std and channel_weights "
    'are then of these channels',
    'published',
  ),
  'channel_order': Key(
    (),
    Each(integer(least=0)),
    'order in which channels are predicted, by number; (): as they are; '
    '(1, 0, 2): green, red, blue. All else that is per channel stays in the '
    'order of the data',
    'published',
  ),
  'classes': Key(1000, integer(least=1), 'classes of the data', "ImageNet's"),
  'channel_weights': Key(
    (5.0, 1.0, 1.0),
    Each(Number(least=0)),
    'weight of each channel in the training loss; the likelihood weighs all 1',
    'published: the first channel sees no other, and sets the pixel',
  ),
  'dropout': Key(
    0.1,
    Number(least=0, below=1),
    'share of activations that training drops in the blocks above pixels',
    'published',
  ),
  'label_dropout': Key(
    0.1,
    Number(least=0, below=1),
    'share of images that training shows without their class, for guidance',
    'published',
  ),
  'mask_law': Key(
    'normal',
    Choice(masking.LAWS),
    'law of the share of patches that mar levels mask in training: a normal '
    'law truncated to [0, 1], or a uniform one',
    'published',
  ),
  'mask_mean': Key(1.0, Number(), 'mean of that normal law', 'published'),
  'mask_std': Key(
    0.25,
    Number(above=0),
    'standard deviation of that normal law, before it is truncated',
    'published',
  ),
  'dtype': Key(
    'float32',
    Choice(('float32', 'bfloat16', 'float16')),
    'type of activations; parameters are float32',
    'exact; set bfloat16 on TPUs and recent GPUs',
  ),
  'remat': Key(
    'full',
    Choice(tuple(layers.REMAT)),
    'what the backward pass computes again instead of keeping (layers.py)',
    'the least memory',
  ),
  'kernels': Key(
    'auto',
    Choice(('auto', 'pallas', 'xla')),
    "whether blocks run on this project's TPU kernels (models/kernels/): "
    "'auto' on TPUs, where each one first passes a trial; 'pallas' untried; "
    "'xla' never",
    'several times faster, with the same random draws',
  ),
  'unroll': Key(
    0,
    integer(least=0),
    'stacks of at most this many layers are unrolled, not looped over',
    'loops compile faster; unrolling a few layers runs faster',
  ),
  'chunks': Key(
    (),
    Each(integer(least=1)),
    'parts in which each level goes through its rows, to save memory; (): all '
    'at once. `fractal-jax cost --mesh` says how many it takes',
    'the fastest',
  ),
  'init_from': Key(
    '',
    Text(),
    'run, by its work directory, or release, by its folder or its name on the '
    'Hugging Face Hub, that gives some levels',
  ),
  'init_levels': Key(
    (), Each(integer(least=0)), 'numbers of the levels that init_from gives'
  ),
}

DATA = {
  'name': Key(
    'digits',
    Text(empty=False),
    'data set: digits, emoji, emoji_subgroups, folder, npz, series, '
    'imagenet2012, or any name of TFDS',
    'comes with scikit-learn, nothing to download',
  ),
  'dir': Key('', Text(), 'TFDS data_dir, or the folder or file to read'),
  'list': Key(
    '',
    Text(),
    'a file that says which examples of a folder or .npz are in which split: '
    'see data/listing.py',
  ),
  'manual_dir': Key(
    '', Text(), 'where archives lie that you downloaded (TFDS manual_dir)'
  ),
  'train_split': Key('train', Text(empty=False), 'split to train on'),
  'val_split': Key(
    'validation', Text(empty=False), 'split whose likelihood is reported'
  ),
  'flip': Key(
    True,
    Flag(),
    'whether training flips half of the images left to right',
    'published',
  ),
  'shift': Key(
    0,
    integer(least=0),
    'pixels by which training shifts images at most, edges repeated',
    'published',
  ),
  'stride': Key(
    1, integer(least=1), 'rows between two windows of a series', 'every window'
  ),
  'rows': Key(
    0,
    integer(least=0),
    'rows of each series, its first, that training and validation may use; 0: '
    'as the file says (`train` of an .npz), or all',
  ),
  'held_out': Key(
    0.1,
    Number(least=0, below=1),
    'share of these rows, the last ones, that is the validation split; 0: it '
    'is the training split',
    'a tenth, as with other data sets',
  ),
  'one_class': Key(
    False,
    Flag(),
    'whether all files of series are one class with bins in common, not a '
    'class each',
    'sensors have ranges of their own',
  ),
  'balanced': Key(
    False,
    Flag(),
    'whether training shows as many windows of each class of series, however '
    'short it is',
    'all windows count alike, as in the likelihood; configs/series.py has it',
  ),
  'bins': Key(
    'uniform',
    Choice(quantiser.RANGES),
    "what the bins of series cover: the range of the training part ('uniform') "
    "or 10 mean deviations around its median ('scaled', for data with spikes)",
    'most sensors have no spikes in normal operation',
  ),
  'margin': Key(
    0.5,
    Number(least=0),
    'share of that range that is added at each end',
    'what is new often lies outside of what was seen',
  ),
  'noise': Key(
    0.0,
    Number(least=0),
    'standard deviation, in bins, of noise that training adds to the values '
    'of series: a model knows no order of values that it has seldom seen',
    'none; configs/series.py has two bins',
  ),
  'threads': Key(
    16,
    integer(least=1),
    'threads per host that decode images',
    'enough for the models here on hosts of many cores',
  ),
}

OPTIM = {
  'name': Key(
    'adamw',
    Choice(('adamw', 'muon')),
    'the optimizer: muon learns more in a step, and computes more for it',
    'published',
  ),
  'batch': Key(
    2048, integer(least=1), 'images per step, over all devices', 'published'
  ),
  'epochs': Key(
    800.0,
    Number(least=0),
    'passes over the data, where steps is 0',
    'published',
  ),
  'steps': Key(0, integer(least=0), 'steps of training; 0: as epochs says'),
  'lr': Key(
    5e-5,
    Number(above=0),
    'learning rate for a batch of 256; scaled linearly with the batch',
    'published',
  ),
  'warmup': Key(
    0.05,
    Number(least=0, below=1),
    'share of the steps in which the learning rate rises from 0',
    'published: 40 of 800 epochs',
  ),
  'b1': Key(
    0.9,
    Number(least=0, below=1),
    'decay per step of the mean of the gradients in AdamW',
    'published',
  ),
  'b2': Key(
    0.95,
    Number(least=0, below=1),
    'decay per step of the mean of their squares',
    'published',
  ),
  'eps': Key(
    1e-8,
    Number(above=0),
    'added to the root of the mean square in AdamW',
    "AdamW's own",
  ),
  'weight_decay': Key(
    0.05,
    Number(least=0),
    'weight decay of AdamW, times the learning rate per step',
    'published',
  ),
  'clip': Key(
    3.0,
    Number(above=0, also=(INFINITY,)),
    'global norm to which gradients are clipped; inf: not clipped',
    'published',
  ),
  'spike': Key(
    0.0,
    Number(above=1, also=(0,)),
    'an update is skipped if its loss is above this multiple of the running '
    'mean; 0: off. One that is not finite always is',
    'the published runs had no such guard',
  ),
  'max_bad_steps': Key(
    10,
    integer(least=1),
    'updates skipped one after another that stop the run',
    'a few bad batches pass, a broken run does not go on',
  ),
  'hang_after': Key(
    120.0,
    Number(least=0),
    'seconds without progress after which the run ends; 0: never',
    'far longer than a step takes',
  ),
  'frozen': Key(
    (), Each(integer(least=0)), 'numbers of the levels that are not trained'
  ),
  'log_every': Key(
    100,
    integer(least=1),
    'steps between lines of the log',
    'six per epoch of the published recipe',
  ),
  'save_every': Key(
    5000,
    integer(least=1),
    'steps between checkpoints',
    'eight epochs of the published recipe',
  ),
  'keep': Key(
    2,
    integer(least=1),
    'latest checkpoints that are kept; the best one is, too',
    'one to go on from, and one before it',
  ),
  'keep_every': Key(
    0,
    integer(least=0),
    'steps: checkpoints of multiples of it are kept for good; 0: none',
    'they take space',
  ),
}

AXIS = integer(least=1, also=(-1,))
MESH = {
  'data': Key(
    -1,
    AXIS,
    'devices that the batch is split over, each with all parameters; -1: all '
    'that the other axes leave',
    'the simplest mesh that uses every device',
  ),
  'fsdp': Key(
    1,
    AXIS,
    'devices that the batch and the parameters are split over; -1: the rest',
    'the 64x64 models fit on a device',
  ),
  'tensor': Key(
    1,
    AXIS,
    'devices that heads and MLP columns are split over; -1: the rest',
    'the 64x64 models fit on a device',
  ),
  'slices': Key(
    1,
    integer(least=1),
    'TPU slices, or hosts, that a slow network joins',
    'one',
  ),
  'groups': Key(
    0,
    integer(least=0),
    'groups of images that are compacted by themselves, and never cross '
    'devices; 0: one per device of the batch. A fixed number makes runs equal '
    'on any mesh',
    'the fastest',
  ),
}

EVAL = {
  'every': Key(
    5000,
    integer(least=0),
    'steps between likelihoods of data.val_split; 0: never',
    'with each checkpoint',
  ),
  'batch': Key(
    256,
    integer(least=1),
    'images at a time, over all devices',
    'an eighth of optim.batch: it fits where a training step does',
  ),
  'num': Key(0, integer(least=0), 'images; 0: all of the split'),
  'passes': Key(
    1,
    integer(least=1),
    'Monte-Carlo passes over each image, for mar levels',
    'enough over many images',
  ),
}

SAMPLE = {
  'every': Key(
    5000,
    integer(least=0),
    'steps between grids of samples in training; 0: never',
    'with each checkpoint',
  ),
  'num': Key(64, integer(least=1), 'images of such a grid', '8 rows of 8'),
  'batch': Key(
    64,
    integer(least=1),
    'images at a time, over all devices',
    'such a grid at once',
  ),
  'guidance': Key(
    1.0,
    Either(Number(least=0), Each(Number(least=0))),
    'scale of guidance, one number, or one for each level that draws values: '
    'those with a guiding pixel (model.guide), then the pixel level; 1: none',
    'the plain model',
  ),
  'schedule': Key(
    'linear',
    Choice(('linear', 'constant')),
    'how guidance goes from 1 to its scale over the steps of level 0',
    'published',
  ),
  'interval': Key(
    (0.0, 1.0),
    Each(Number(least=0, most=1)),
    "the shares of level 0's patches that are drawn when guidance begins and "
    'when it ends; (0, 1): it is always on. Outside, no second stream is '
    'computed',
    'published',
  ),
  'resample': Key(
    0,
    integer(least=0),
    'values that are drawn without guidance, for guidance to choose one of '
    'them; 0: values are drawn from the guided distribution itself',
    'published',
  ),
  'temperature': Key(
    1.0,
    Either(Number(above=0), Each(Number(above=0))),
    'what logits are divided by: below 1 is sharper; one number, or one for '
    'each level that draws values, as of guidance. The published flag '
    'multiplies them, and is 1 over this',
    'the plain model',
  ),
  'filter_threshold': Key(
    1e-4,
    Number(least=0, below=1),
    'probability below which a value is not made likelier by guidance',
    'published',
  ),
  'iterations': Key(
    (),
    Each(integer(least=1)),
    'generation steps of each level above pixels; (): one per patch',
    'the slowest, and the best for any kind of level',
  ),
  'order': Key(
    'random',
    Either(Choice(orders.NAMES), Each(Choice(orders.NAMES))),
    'order in which mar levels draw their patches (docs/sampling.md), one for '
    'all, or one for each level above pixels',
    'published',
  ),
  'step_sizes': Key(
    'cosine',
    Choice(masking.STEP_SIZES),
    "how mar levels divide their patches over the steps: 'cosine', ever more "
    "per step, or 'two-stage', a quarter of them in three quarters of the "
    'steps',
    'published',
  ),
  'candidates': Key(
    1,
    integer(least=1),
    'images that are drawn of each that is wanted, or of each sample.keep',
    'no image is rejected',
  ),
  'keep': Key(
    1, integer(least=1), 'how many candidates are kept, the best ones'
  ),
  'keep_by': Key(
    'class',
    Choice(('class', 'dimension')),
    "what makes a candidate the better one: 'class', its log-likelihood under "
    "its class minus that under none; 'dimension', a box-counting dimension "
    'in the range of those of its class in the training split',
    'asks the model alone, and reads no images',
  ),
}

SECTIONS = {
  'model': MODEL,
  'data': DATA,
  'optim': OPTIM,
  'mesh': MESH,
  'eval': EVAL,
  'sample': SAMPLE,
}


def default() -> ml_collections.ConfigDict:
  """The published recipe (section 5 of the paper) with no model chosen."""

  def value(key: Key):
    if isinstance(key.rule, Either):  # not held to the type of its default
      return config_dict.FieldReference(key.default, field_type=object)
    return key.default

  config = ml_collections.ConfigDict({'seed': SEED.default})
  for section, keys in SECTIONS.items():
    config[section] = {name: value(key) for name, key in keys.items()}
  return config.lock()


def flat(config: ml_collections.ConfigDict | dict) -> dict:
  """{'seed': 0, 'model.sizes': (8, 2, 1), ...}."""
  found = {}
  for name, value in config.items():
    if hasattr(value, 'items'):
      found |= {f'{name}.{key}': v for key, v in value.items()}
    else:
      found[name] = value
  return found


def split_names(config: ml_collections.ConfigDict) -> None:
  """Cuts names at commas: `--config.model.kinds=mar,ar,pixel`.

  ml_collections reads a list of numbers without quotes, but takes a list of
  names for one name.
  """
  for section, keys in SECTIONS.items():
    for name, key in keys.items():
      value = config[section][name]
      if key.rule == Each(Text(empty=False)) and len(value) == 1:
        names = value[0].strip('()').split(',')
        config[section][name] = tuple(x.strip() for x in names if x.strip())


def check_arguments(arguments: Sequence[str]) -> None:
  """Raises ConfigError where --config, or --config.KEY, is given twice.

  ml_collections would join two tuples, and use the last of other values.
  """
  names = [
    text.partition('=')[0].lstrip('-')
    for text in arguments
    if re.match('--?config([.=]|$)', text)
  ]
  for name in names:
    if names.count(name) > 1:
      raise ConfigError(f'--{name} is given more than once: give it once')


def problems(config: ml_collections.ConfigDict) -> list[str]:
  """Every rule that the config breaks, each naming value, rule and remedy.

  The rules that join several keys of a section are looked at where each of its
  keys keeps its own.
  """
  found = checks.problem('seed', config.seed, SEED.rule, SEED.doc)
  out = [found] if found else []
  broken = {
    section: checks.problems(section, config[section], keys)
    for section, keys in SECTIONS.items()
  }
  if not broken['model']:
    broken['model'] = rules.problems(config.model)
    levels = len(config.model.sizes) - 1
    if not broken['optim']:
      broken['optim'] = _optim_problems(config, levels)
  if not broken['model']:
    broken['sample'] = sample_problems(config.sample, config.model)
  if not broken['model'] + broken['data']:
    broken['data'] = _data_problems(config)
  if not broken['mesh'] + broken['optim']:
    broken['mesh'] = _mesh_problems(config)
  return out + sum(broken.values(), [])


def _optim_problems(config, levels: int) -> list[str]:
  """Rules that keys of section `optim` break together, or with the levels."""
  o, m = config.optim, config.model
  out = [
    f'optim.frozen names level {level}: levels are 0 to {levels}'
    for level in o.frozen
    if level > levels
  ]
  if not (o.steps or o.epochs):
    out.append(
      f'optim.epochs={o.epochs} must be above 0 where optim.steps is 0'
    )
  if len(set(o.frozen)) > levels:
    out.append('optim.frozen freezes every level: nothing is left to train')
  out += shared.named_with_owners(m, 'optim.frozen', o.frozen)
  return out + shared.named_with_owners(m, 'model.init_levels', m.init_levels)


def _data_problems(config) -> list[str]:
  """Rules that keys of section `data` break together, or with the model."""
  d, side = config.data, config.model.sizes[0]
  out = []
  if d.shift >= side:
    out.append(
      f'data.shift={d.shift} must be below model.sizes[0]={side}, else nothing '
      'of an image may be left'
    )
  if d.list and d.name not in ('folder', 'npz'):
    out.append(
      f"data.list='{d.list}' is for data.name='folder' or 'npz', not for "
      f"'{d.name}': set it to ''"
    )
  return out


def _mesh_problems(config) -> list[str]:
  """Rules that keys of section `mesh` break together, or with the batch."""
  h, batch = config.mesh, config.optim.batch
  out = []
  axes = {axis: h[axis] for axis in ('data', 'fsdp', 'tensor')}
  if list(axes.values()).count(-1) > 1:
    out.append(f'mesh {axes}: only one axis can be -1 (the rest)')
  if h.groups and batch % h.groups:
    out.append(f'mesh.groups={h.groups} must divide optim.batch={batch}')
  return out


def sample_problems(
  sample: ml_collections.ConfigDict, model: ml_collections.ConfigDict
) -> list[str]:
  """Rules that the keys of section `sample` break.

  Args:
    sample: the section.
    model: the section `model`, which keeps its rules.
  """
  out = checks.problems('sample', sample, SAMPLE)
  if out:
    return out
  levels = len(model.sizes) - 1
  if len(sample.iterations) not in (0, levels):
    out.append(
      f'sample.iterations={tuple(sample.iterations)} must hold one number of '
      f'steps for each of the {levels} levels above pixels (or nothing)'
    )
  if not isinstance(sample.order, str) and len(sample.order) != levels:
    out.append(
      f'sample.order={tuple(sample.order)} must be one name, or one for each '
      f'of the {levels} levels above pixels'
    )
  drawing = fractal.drawing(fractal.specs(model))
  for name in ('guidance', 'temperature'):
    value = sample[name]
    if isinstance(value, (tuple, list)) and len(value) != len(drawing):
      out.append(
        f'sample.{name}={tuple(value)} must be one number, or one for each '
        f'level that draws values: levels {", ".join(map(str, drawing))}'
      )
  interval = tuple(sample.interval)
  if len(interval) != 2 or interval[0] >= interval[1]:
    out.append(
      f'sample.interval={interval} must be two numbers, the second above the '
      'first'
    )
  if sample.keep > sample.candidates:
    out.append(
      f'sample.keep={sample.keep} must be at most '
      f'sample.candidates={sample.candidates}'
    )
  return out


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError listing every broken rule, before any compilation."""
  found = problems(config)
  if found:
    raise ConfigError(
      'The config breaks these rules:\n' + '\n'.join(f'  - {p}' for p in found)
    )
