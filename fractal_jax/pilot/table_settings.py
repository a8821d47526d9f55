"""pilot.toml of tables of sensors: what is proposed, and what it breaks.

`propose` fills in what can be seen in the data, and `problems` says in words
what is missing or contradicts itself.
"""

from collections.abc import Sequence

from fractal_jax import paths
from fractal_jax.checks import SHARE, Choice, Each, Key, Number, Text, integer
from fractal_jax.pilot.settings import (
  LEARNING,
  SEEDS,
  UNSET,
  Settings,
  common_wishes,
  defaults,
  sections_of,
)
from fractal_jax.series import scores
from fractal_jax.series.table import Table, read

HELD_OUT = 0.2  # of the rows to learn from, the last ones
PATCH = 8  # rows of a patch of level 0, see series/settings.py

DATA = {
  'kind': Key('table', Choice(('table',)), 'a table of sensors'),
  'file': Key(
    '', Text(empty=False),
    'a .csv with a header, .parquet or .npz; a column `label` marks incidents',
  ),
  'columns': Key([], Each(Text(empty=False)), 'the channels; []: all'),
  'train_rows': Key(
    0, integer(least=1),
    'how many rows, the first, are normal operation, and learnt from. The last '
    'fifth of them is held out: it judges modules, and sets the threshold',
  ),
  'shadow_rows': Key(
    0, integer(least=1),
    'how many rows, the last, only the last stage sees. The rows between '
    'are those of the stage `full`',
  ),
  'rows_per_week': Key(
    UNSET, Number(above=0, most=1e12),
    'how many rows a week has; false alarms are counted by the week',
  ),
}  # fmt: skip
TASK = {
  'kind': Key('anomalies', Choice(('anomalies',)), 'what is asked of models'),
  'window': Key(
    64, integer(least=16),
    'rows that the model sees at a time, a multiple of 8: longer than what '
    'tells a fault from normal operation',
  ),
  'smooth': Key(
    32, integer(least=1),
    'rows that scores are averaged over. More: fewer false alarms, later ones',
  ),
  'score': Key('z2', Choice(scores.NAMES), 'how surprise is measured'),
  'false_alarms': Key(
    0.002, SHARE,
    'share of the rows held out that may lie above the threshold',
  ),
  'steps': Key(
    0, integer(least=0),
    'steps of training at full size; 0: by the number of rows',
  ),
  'small_steps': Key(
    300, integer(least=1),
    'steps of training of the stages `module` and `composition`',
  ),
  **SEEDS,
  'samples': Key(
    4, integer(least=0), 'windows that the model draws, to look at; 0: none'
  ),
}  # fmt: skip
GATES = {
  'least_windows': Key(
    20.0, Number(least=1),
    'data: windows that do not overlap in the rows to learn from. With fewer '
    'a good result would be luck',
  ),
  'most_missing': Key(
    0.2, SHARE, 'data: share of the values that are missing'
  ),
  'most_leak': Key(
    0.01, SHARE,
    'data: share of the later windows that stand in the rows to learn from, '
    'number by number. What is known by heart proves nothing',
  ),
  'most_drift': Key(
    2.0, Number(above=0),
    'data: how far the mean of any channel moves after the rows to learn from, '
    'in standard deviations. What has moved is an alarm for ever',
  ),
  'least_incidents': Key(
    5.0, Number(least=1),
    'data: incidents after the rows to learn from. Fewer prove nothing',
  ),
  **LEARNING,
  'found': Key(
    0.5, SHARE, 'full: share of the incidents that are found'
  ),
  'weekly_false_alarms': Key(
    7.0, Number(above=0), 'full: false alarms per week that people accept'
  ),
  'most_z2': Key(
    2.0, Number(above=1),
    'full: mean squared error on normal rows over what the model expects; 1 is '
    'right, above 2 it is overconfident',
  ),
  'shadow_found': Key(
    0.5, SHARE, 'shadow: share of the incidents that are found'
  ),
  'shadow_weekly_false_alarms': Key(
    7.0, Number(above=0), 'shadow: false alarms per week'
  ),
  'most_delay': Key(
    100.0, Number(least=0),
    'shadow: rows from the beginning of an incident to its alarm, on average',
  ),
  'most_milliseconds': Key(
    1000.0, Number(above=0), 'shadow: milliseconds to score a row'
  ),
}  # fmt: skip

SECTIONS = sections_of(DATA, TASK, GATES)


def propose(file: str, columns: Sequence[str] = ()) -> dict[str, dict]:
  """Sections for a table: three fifths to learn from, a fifth for shadow.

  The rows to learn from end before the first incident where the file labels
  any.

  Raises:
    DataError: a file that can't be read.
  """
  one = read(file, columns)
  out = defaults(SECTIONS)
  rows = len(one.values)
  train = one.train or rows * 3 // 5
  if one.labels is not None and one.labels.any():
    train = min(train, int(one.labels.argmax()))
  train = max(train, 1)
  out['data'] |= {
    'file': paths.absolute(file),
    'columns': list(columns),
    'train_rows': train,
    'shadow_rows': max((rows - train) // 2, 1),
    'rows_per_week': round(one.per_week or UNSET, 3),
  }
  return out


def problems(settings: Settings, one: Table) -> list[str]:
  """What keeps the pilot from being run, a sentence each."""
  d, t = settings.data, settings.task
  rows, window = len(one.values), t['window']
  out = []
  if d['rows_per_week'] == UNSET:
    out.append(
      'data.rows_per_week is not filled in, and the file has no column of '
      'dates: say how many rows a week has.'
    )
  if window % 8:
    out.append(f'task.window={window} must be a multiple of 8.')
  between = rows - d['train_rows'] - d['shadow_rows']
  if between < window:
    out.append(
      f'data.train_rows={d["train_rows"]} and data.shadow_rows='
      f'{d["shadow_rows"]} leave {max(between, 0)} of {rows} rows for the '
      f'stage `full`: it needs {window} or more, so lower one of the two.'
    )
  if d['shadow_rows'] < window:
    out.append(
      f'data.shadow_rows={d["shadow_rows"]} is less than a window ({window}).'
    )
  if one.labels is not None and one.labels[: d['train_rows']].any():
    row = int(one.labels.argmax()) + 2
    out.append(
      f'row {row} of the file is an incident, but lies in the rows to learn '
      'from: lower data.train_rows, or the model learns that it is normal.'
    )
  if settings.gates['flat_bits'] > settings.gates['composition_bits']:
    out.append(
      'gates.flat_bits is above gates.composition_bits: a flat model is no '
      'weaker than the simple ones, so ask less against it.'
    )
  return out


def wishes(settings: Settings, one: Table) -> list[str]:
  """What a verdict or the returns will lack, a sentence each."""
  out = common_wishes(settings)
  if one.labels is None or not one.labels.any():
    out.append(
      'The file marks no incidents (a column `label` of 0 and 1): how many are '
      'found stays unknown, so the verdict will be MORE DATA at best.'
    )
  return out
