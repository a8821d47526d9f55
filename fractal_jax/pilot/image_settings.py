"""pilot.toml of images: what is proposed, and what it breaks."""

import dataclasses
import re
import zipfile

from ml_collections import ConfigDict
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import paths
from fractal_jax.checks import (
  FROM_0,
  SHARE,
  Choice,
  Each,
  Key,
  Number,
  Text,
  integer,
)
from fractal_jax.data import arrays, listing, look
from fractal_jax.data.common import DataError
from fractal_jax.pilot.settings import (
  LEARNING,
  SEEDS,
  UNSET,
  Settings,
  common_wishes,
  defaults,
  sections_of,
)
from fractal_jax.planning import propose as planning

PASSES = 25  # over the images at full size, about
DIGITS = 'digits'  # the data set that comes with scikit-learn
LISTING = 'images.csv'  # in the pilot's folder: which image is in which split
SMALLEST, USUAL, LARGEST = 8, 16, 32  # sides; a pilot is small
ANOMALOUS = re.compile(r'anomal|defect|fault|broken|bad|scratch|^ng$', re.I)
TASKS = ('generation', 'completion', 'anomalies')

DATA = {
  'kind': Key('images', Choice(('images',)), 'a folder or file of images'),
  'source': Key(
    'folder', Choice(('folder', 'npz', DIGITS)), 'how they are read'
  ),
  'file': Key('', Text(), 'the folder or .npz file; nothing for digits'),
  'list': Key(
    '', Text(),
    'which image is in which split: to read, and to edit. A tenth is held out '
    'by content, near copies on one side; unless the data has its own splits',
  ),
  'splits': Key(
    ['train', 'validation'], Each(Text(empty=False)),
    'the names of the images to learn from, and of those held out',
  ),
  'side': Key(
    8, integer(SMALLEST, LARGEST),
    'pixels: larger images are scaled down and cropped',
  ),
  'channels': Key(3, Choice((1, 3)), '1: grey, 3: colours'),
  'values': Key(256, integer(2, 256), 'of a channel'),
  'anomalous': Key(
    [], Each(Text(empty=False)),
    'classes that are anomalies: nothing is learnt from them',
  ),
  'images_per_week': Key(
    UNSET, Number(above=0, most=1e12),
    'images that are judged per week; false alarms are counted by the week',
  ),
}  # fmt: skip
TASK = {
  'kind': Key(
    'generation', Choice(TASKS),
    'what is asked of models: new images, lower halves of images, or which '
    'images are anomalies',
  ),
  'false_alarms': Key(
    0.02, SHARE,
    'anomalies: share of the normal images held out that may lie above the '
    'threshold',
  ),
  'steps': Key(
    600, integer(least=1),
    'steps of training at full size. Proposed are about 25 passes over the '
    'images: many more, and few images are learnt by heart (most_gap)',
  ),
  'small_steps': Key(
    400, integer(least=1),
    'steps of training of the stages `module` and `composition`',
  ),
  **SEEDS,
  'samples': Key(100, FROM_0, 'images that a model draws; 0: none'),
}  # fmt: skip
GATES = {
  'least_images': Key(
    200.0, Number(least=1), 'data: images to learn from'
  ),
  'most_unreadable': Key(
    0.05, SHARE, 'data: share of the files that are left out'
  ),
  'most_copies': Key(
    0.01, SHARE,
    'data: share of the images held out that are near copies of one that is '
    'learnt from. What is known by heart proves nothing',
  ),
  'least_class': Key(
    10.0, Number(least=1), 'data: images of the smallest class'
  ),
  'most_shift': Key(
    1.0, Number(above=0),
    'data: how far the mean shade of the images held out lies from that of '
    'the others, in standard deviations of images',
  ),
  'least_judged': Key(
    50.0, Number(least=2), 'data: images that are held out'
  ),
  'least_anomalies': Key(
    10.0, Number(least=1), 'data, anomalies: anomalous images'
  ),
  **LEARNING,
  'most_gap': Key(
    0.2, Number(above=0),
    'full: bits per value that images held out cost more than those learnt '
    'from',
  ),
  'distance': Key(
    2.0, Number(above=1),
    'full, generation: Frechet distance of drawn images over that of as many '
    'images held out: 1 is as good as real ones',
  ),
  'most_strange': Key(
    0.2, SHARE,
    'full, generation: share of drawn images that are like none that was '
    'learnt from, less that of images held out: precision, lost',
  ),
  'most_missed': Key(
    0.2, SHARE,
    'full, generation: share of images held out that are like none that was '
    'drawn, less that where as many learnt from are taken: recall, lost',
  ),
  'drawn_copies': Key(
    0.05, SHARE,
    'full, generation: share of drawn images that are near copies of one that '
    'was learnt from',
  ),
  'completion': Key(
    0.0, Number(),
    'full, completion: share of the error that is saved against the lower half '
    'of the image whose upper half is nearest',
  ),
  'found': Key(
    0.5, SHARE, 'full, anomalies: share of the anomalies that are found'
  ),
  'weekly_false_alarms': Key(
    7.0, Number(above=0), 'full, anomalies: false alarms per week'
  ),
  'shadow_bits': Key(
    0.2, Number(),
    'shadow: bits per value that unseen images cost more than those held out',
  ),
  'shadow_completion': Key(
    0.0, Number(), 'shadow, completion: share of the error that is saved'
  ),
  'shadow_found': Key(
    0.5, SHARE, 'shadow, anomalies: share of the anomalies that are found'
  ),
  'shadow_weekly_false_alarms': Key(
    7.0, Number(above=0), 'shadow, anomalies: false alarms per week'
  ),
  'most_milliseconds': Key(
    10000.0, Number(above=0),
    'shadow: milliseconds of an image, one at a time',
  ),
}  # fmt: skip

SECTIONS = sections_of(DATA, TASK, GATES)


def are_images(data: str) -> bool:
  """Whether --data names images, rather than a table of sensors."""
  if data == DIGITS or paths.path(data).is_dir():
    return True
  if not data.endswith('.npz') or not paths.path(data).is_file():
    return False
  with paths.local(data) as copy:
    if not zipfile.is_zipfile(copy):
      return False
    with zipfile.ZipFile(copy) as file:
      return f'{arrays.KEYS[2]}.npy' in file.namelist()


def propose(data: str, folder: str, size: int | None) -> dict[str, dict]:
  """Sections for images; writes which is in which split into the folder.

  Args:
    data: a folder, an .npz file, or 'digits'.
    folder: of the pilot.
    size: side of the images; chosen where None.

  Raises:
    DataError: images that can't be read, or are too few or small.
  """
  out = defaults(SECTIONS)
  if data == DIGITS:
    if size not in (None, 8):
      raise DataError(f'--size={size}: the digits have 8x8 pixels')
    out['data'] |= dict(source=DIGITS, side=8, channels=1, values=17)
    return out
  found = look.at(data)
  on = dataclasses.replace(planning.machine(), most=USUAL)
  side, _ = planning.side_of(found, on, size)
  if not SMALLEST <= side <= LARGEST:
    raise DataError(
      f'the images would have a side of {side}: a pilot takes {SMALLEST} to '
      f'{LARGEST}, set by --size'
    )
  found = look.fitting(found, side)
  if found.rows is not None:
    path = paths.path(folder) / LISTING
    listing.write(str(path), found.rows)
    out['data']['list'] = paths.absolute(path)
  anomalous = [x for x in found.class_names if ANOMALOUS.search(x)]
  if len(anomalous) == len(found.class_names):
    anomalous = []
  out['data'] |= dict(
    source=found.name,
    file=found.dir,
    splits=list(found.splits),
    side=side,
    channels=3 if found.colour else 1,
    values=found.values,
    anomalous=anomalous,
  )
  steps = PASSES * len(found.sides) / planning.CPU_BATCH
  out['task']['steps'] = int(np.clip(round(steps, -2), 400, 2000))
  if anomalous:
    out['task']['kind'] = 'anomalies'
  return out


def base_config(settings: Settings) -> ConfigDict:
  """The config by which the images are read."""
  d, c = settings.data, config_lib.default()
  m = c.model
  m.sizes = planning.levels(d['side'])
  m.channels, m.num_values = d['channels'], d['values']
  m.classes = arrays.MAX_CLASSES  # however many the data has
  c.data.name, c.data.dir, c.data.list = d['source'], d['file'], d['list']
  return c


def wishes(settings: Settings) -> list[str]:
  """What a verdict or the returns will lack, a sentence each."""
  d, out = settings.data, common_wishes(settings)
  if settings.task['kind'] != 'anomalies':
    # What an image is worth does not follow from how good it is.
    return [line for line in out if not line.startswith('costs.')]
  if not d['anomalous']:
    out.append(
      'data.anomalous names no class: how many anomalies are found stays '
      'unknown, so the verdict will be MORE DATA at best.'
    )
  return out


def problems(settings: Settings, names: tuple[str, ...]) -> list[str]:
  """What keeps the pilot from being run, a sentence each."""
  d, kind, out = settings.data, settings.task['kind'], []
  strange = sorted(set(d['anomalous']) - set(names))
  if strange:
    out.append(
      f'data.anomalous={strange[0]!r} is no class: these are '
      f'{", ".join(names)}.'
    )
  elif d['anomalous'] and set(names) <= set(d['anomalous']):
    out.append('data.anomalous names every class: none is left to learn from.')
  if kind == 'anomalies' and d['images_per_week'] == UNSET:
    out.append(
      'data.images_per_week is not filled in: say how many images are judged '
      'per week.'
    )
  weekly = d['images_per_week'] * settings.task['false_alarms']
  for name in ('weekly_false_alarms', 'shadow_weekly_false_alarms'):
    most = settings.gates[name]
    if kind == 'anomalies' and weekly > most:
      out.append(
        f'task.false_alarms={settings.task["false_alarms"]:g} of '
        f'data.images_per_week={d["images_per_week"]:g} images are '
        f'{weekly:.3g} false alarms per week, and gates.{name} allows '
        f'{most:g}: lower the first, or raise the last.'
      )
  if kind == 'generation' and 0 < settings.task['samples'] < 50:
    out.append(
      f'task.samples={settings.task["samples"]} images say little of '
      'distances: draw 50 or more.'
    )
  if kind == 'generation' and not settings.task['samples']:
    out.append('task.samples=0: the task generation needs drawn images.')
  return out
