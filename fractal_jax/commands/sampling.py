"""The flags of commands that generate, and what they change.

Where one is unset, the section `sample` of the config says.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fractal_jax.commands import common

if TYPE_CHECKING:
  from fractal_jax import api

FLAGS = flags.FLAGS

# What --guidance and --temperature are, in `sweep` each of several values.
SWEPT = {
  'guidance': 'Strength of guidance: above 1 images are more like their class; '
  '1 is none, and half the work; ',
  'temperature': 'Divides the logits of what is drawn: below 1 is sharper, '
  'less varied; ',
}
GUIDE = (
  'DIR or DIR@STEP: a weaker model, say an earlier checkpoint, that guides in '
  'place of the model without classes.'
)


def define_flags() -> None:
  """How values are drawn; where unset, as `sample` in the config says."""
  from fractal_jax.models import masking, orders

  for name, what in SWEPT.items():
    what += 'one number, or one for each level that draws values.'
    flags.DEFINE_list(name, None, what)
  flags.DEFINE_list(
    'interval',
    None,
    "The shares of level 0's patches that are drawn when guidance begins and "
    'when it ends, such as 0.1,0.8.',
  )
  flags.DEFINE_integer(
    'resample',
    None,
    'Number of values to draw without guidance, of which guidance chooses one.',
  )
  flags.DEFINE_list(
    'order',
    None,
    'In which order masked levels draw their patches: '
    f'{", ".join(orders.NAMES)}; one for all, or one for each level above '
    'pixels.',
  )
  flags.DEFINE_enum(
    'step_sizes',
    None,
    masking.STEP_SIZES,
    'How masked levels divide their patches over their steps.',
  )
  flags.DEFINE_string('guide', None, GUIDE)
  drawing_flags()


def drawing_flags() -> None:
  """The flags of define_flags that `sweep` does not sweep."""
  flags.DEFINE_enum(
    'schedule',
    None,
    ['linear', 'constant'],
    'Whether guidance grows from 1 over the patches of level 0, or is the same '
    'for all.',
  )
  flags.DEFINE_float(
    'filter_threshold',
    None,
    'Guidance does not favour values that are less likely than this, given the '
    'class.',
  )
  flags.DEFINE_list(
    'iterations',
    None,
    'In how many steps masked levels draw their patches, one number per level '
    'above pixels: 64,16.',
  )


def rejection_flags() -> None:
  """Whether several images are drawn of which the best are kept."""
  flags.DEFINE_integer(
    'candidates', None, 'Images to draw of each that is wanted.'
  )
  keep_flags()


def keep_flags() -> None:
  """The flags of rejection_flags that `sweep` does not sweep."""
  flags.DEFINE_integer(
    'keep', None, 'How many of --candidates images to keep, the best ones; 1.'
  )
  flags.DEFINE_enum(
    'keep_by',
    None,
    ['class', 'dimension'],
    'What is best: a high likelihood under the class beside that under none, '
    'or a box-counting dimension as in the class.',
  )


def changes(swept: Sequence[str] = ()) -> dict:
  """What the sampling flags that a command has change, for `sample.settings`.

  Args:
    swept: flags that take several values to try, which are not looked at.
  """
  as_it_is = lambda name, value: value
  single = ('schedule', 'filter_threshold', 'resample', 'step_sizes')
  kinds = dict.fromkeys(single, as_it_is)
  kinds |= dict(
    guidance=common.numbers,
    temperature=common.numbers,
    interval=common.numbers,
    iterations=common.integers,
    order=lambda name, values: tuple(values),
  )
  if 'keep' in FLAGS:  # the candidates of `edit` are others
    kinds |= dict.fromkeys(('candidates', 'keep', 'keep_by'), as_it_is)
  found = {
    name: read(name, FLAGS[name].value)
    for name, read in kinds.items()
    if name in FLAGS and name not in swept and FLAGS[name].value is not None
  }
  # These are one for all levels, or one per level.
  for name in ('guidance', 'temperature', 'order'):
    if len(found.get(name, ())) == 1:
      found[name] = found[name][0]
  return found


def load_guide(config: ConfigDict, name: str | None) -> 'api.Model | None':
  """The model that a --guide names, an api.Model on a config's mesh, or None.

  Args:
    config: of the run that is guided.
    name: DIR or DIR@STEP; None: nothing guides.
  """
  from fractal_jax import api
  from fractal_jax.inference import inputs
  from fractal_jax.training import checkpoint

  if name is None:
    return None
  folder, at, step = name.rpartition('@')
  if not (at and step.isdecimal()):
    folder, step = name, None
  folder = common.folder_of(folder)
  other = checkpoint.load_config(folder)
  inputs.check_guide(other.model, config.model)
  other.mesh = config.mesh
  return api.load(folder, step and int(step), other)
