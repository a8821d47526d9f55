"""pilot.toml: the question, the data, the gates and the prices of a pilot.

`SECTIONS` is the one table of the keys, as in fractal_jax/config.py. `propose`
fills in what can be seen in the data, `text` writes the file with a comment for
each key, and `problems` says in words what is missing or contradicts itself.
"""

import dataclasses
import hashlib
import json
import tomllib

from fractal_jax import checks, paths
from fractal_jax.checks import Choice, Each, Flag, Key, Number, Text, integer
from fractal_jax.errors import UserError
from fractal_jax.series import scores
from fractal_jax.series.table import Table, read

FILE = 'pilot.toml'
SHARE = Number(above=0, below=1)
MONEY = Number(least=0)
UNSET = -1.0  # of a number that only the owner knows

QUESTION = {
  'question': Key('', Text(), 'what is to be decided, in a sentence'),
  'owner': Key('', Text(), 'who decides'),
  'currency': Key('EUR', Text(empty=False), 'of all amounts below'),
}
DATA = {
  'file': Key(
    '', Text(empty=False),
    'a .csv with a header, .parquet or .npz; a column `label` marks incidents',
  ),
  'columns': Key([], Each(Text(empty=False)), 'the channels; []: all'),
  'train_rows': Key(
    0, integer(least=1),
    'the first so many rows are normal operation, and learnt from. The last '
    'fifth of them is held out: it judges modules, and sets the threshold',
  ),
  'shadow_rows': Key(
    0, integer(least=1),
    'the last so many rows are seen by the last stage alone. The rows between '
    'are those of the stage `full`',
  ),
  'rows_per_week': Key(
    UNSET, Number(above=0),
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
  'score': Key('z2', Choice(scores.KINDS), 'how surprise is measured'),
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
  'seeds': Key(
    3, integer(least=2), 'models that are trained of each kind, by chance'
  ),
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
  'module_bits': Key(
    0.02, Number(),
    'module: bits a value that each level saves against a model without memory',
  ),
  'composition_bits': Key(
    0.0, Number(),
    'composition: bits a value that the levels together save against the best '
    'simple model (last value, linear, polynomial)',
  ),
  'flat_bits': Key(
    -0.1, Number(),
    'composition: the same against one flat model of equal compute. Below 0: '
    'levels may cost a little, they are faster',
  ),
  'found': Key(
    0.5, SHARE, 'full: share of the incidents that are found'
  ),
  'weekly_false_alarms': Key(
    7.0, Number(above=0), 'full: false alarms a week that people accept'
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
    7.0, Number(above=0), 'shadow: false alarms a week'
  ),
  'most_delay': Key(
    100.0, Number(least=0),
    'shadow: rows from the beginning of an incident to its alarm, on average',
  ),
  'most_milliseconds': Key(
    1000.0, Number(above=0), 'shadow: milliseconds to score a row'
  ),
}  # fmt: skip
COSTS = {
  'incident': Key(UNSET, MONEY, 'what an incident costs that nobody foresaw'),
  'incidents_per_year': Key(UNSET, MONEY, 'how many there are'),
  'preventable': Key(
    0.5, Number(least=0, most=1),
    'share of the cost of an incident that an alarm saves',
  ),
  'false_alarm': Key(UNSET, MONEY, 'what looking into a false alarm costs'),
  'hour_of_work': Key(UNSET, MONEY, 'of an engineer'),
  'setup_hours': Key(160.0, MONEY, 'of work until it is in production'),
  'upkeep_hours': Key(80.0, MONEY, 'of work a year after that'),
  'hour_of_hardware': Key(UNSET, MONEY, 'of a machine such as this one'),
  'hardware_hours': Key(8760.0, MONEY, 'of it a year; 8760: it never stops'),
}  # fmt: skip
BUDGET = {
  'minutes': Key(60.0, Number(above=0), 'of this machine, for all stages'),
  'memory_gb': Key(8.0, Number(above=0), 'that a stage may take'),
  'anyway': Key(False, Flag(), 'go on where a stage costs more than that'),
}

SECTIONS = {
  'question': QUESTION,
  'data': DATA,
  'task': TASK,
  'gates': GATES,
  'costs': COSTS,
  'budget': BUDGET,
}


class PilotError(UserError, ValueError):
  """A pilot that can't be run as its pilot.toml says."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What pilot.toml says, a dict a section."""

  question: dict
  data: dict
  task: dict
  gates: dict
  costs: dict
  budget: dict
  hash: str  # of the file, 12 hexadecimal digits

  def key(self) -> str:
    """A hash of what results depend on: the data and the task."""
    kept = json.dumps([self.data, self.task], sort_keys=True)
    return hashlib.sha256(kept.encode()).hexdigest()[:12]


def propose(file: str, columns=()) -> dict[str, dict]:
  """Sections for a table: three fifths to learn from, a fifth for shadow.

  The rows to learn from end before the first incident where the file labels
  any.

  Raises:
    DataError: a file that can't be read.
  """
  one = read(file, columns)
  out = {s: {k: v.default for k, v in t.items()} for s, t in SECTIONS.items()}
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


def text(sections: dict[str, dict]) -> str:
  """pilot.toml: each key under a comment that says what it is."""
  lines = [
    '# What is decided, and by which criteria: fixed before anything is run.',
    '# -1 stands for what only you know; `fractal-jax pilot check` names it.',
  ]
  for section, keys in SECTIONS.items():
    lines += ['', f'[{section}]']
    for name, key in keys.items():
      lines += [f'# {line}' for line in _wrapped(key.doc)]
      lines.append(f'{name} = {_toml(sections[section][name])}')
  return '\n'.join(lines) + '\n'


def _wrapped(words: str) -> list[str]:
  import textwrap

  return textwrap.wrap(words + '.', 76)


def _toml(value) -> str:
  """A value as TOML writes it: JSON's texts, numbers and lists are TOML's."""
  return json.dumps(value, ensure_ascii=False)


def load(folder: str) -> Settings:
  """The settings of a pilot.

  Raises:
    PilotError: there are none, or they break rules; each is named.
  """
  path = paths.path(folder) / FILE
  try:
    words = path.read_bytes().decode()
    found = tomllib.loads(words)
  except (FileNotFoundError, NotADirectoryError) as e:
    raise PilotError(
      f'{folder} has no {FILE}: make it by `fractal-jax pilot init '
      f'--data=FILE --out={folder}`'
    ) from e
  except (ValueError, RecursionError) as e:  # no TOML, no UTF-8
    raise PilotError(f'{path} is no TOML: {e}') from e
  for name in SECTIONS:
    if not isinstance(found.get(name, {}), dict):
      raise PilotError(f'{path}: {name} must be a section, [{name}]')
  lines = [f'there is no section or key {name}' for name in _strangers(found)]
  lines += [
    f'{section}.{name} is missing: {key.doc}'
    for section, keys in SECTIONS.items()
    for name, key in keys.items()
    if name not in found.get(section, {})
  ]
  for section, keys in SECTIONS.items():
    given = found.get(section, {})
    known = {
      k: v
      for k, v in given.items()
      if not (v == UNSET and k in keys and keys[k].default == UNSET)
    }
    lines += checks.problems(section, known, keys)
  if lines:
    raise PilotError(f'{path}:\n' + '\n'.join(f'  - {x}' for x in lines))
  return Settings(
    **{name: found[name] for name in SECTIONS},
    hash=hashlib.sha256(words.encode()).hexdigest()[:12],
  )


def _strangers(found: dict) -> list[str]:
  out = [name for name in found if name not in SECTIONS]
  for section in SECTIONS:
    out += [
      f'{section}.{name}'
      for name in found.get(section, {})
      if name not in SECTIONS[section]
    ]
  return out


def open_table(settings: Settings) -> Table:
  """The data."""
  return read(settings.data['file'], settings.data['columns'])


def parts(settings: Settings, rows: int) -> tuple[slice, slice, slice]:
  """The rows to learn from, those of `full`, and those of `shadow`."""
  train, shadow = settings.data['train_rows'], settings.data['shadow_rows']
  last = rows - shadow
  return slice(0, train), slice(train, last), slice(last, rows)


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
  out = [
    f'question.{name} is empty: {QUESTION[name].doc}.'
    for name in ('question', 'owner')
    if not settings.question[name]
  ]
  out += [
    f'costs.{name} is not filled in ({COSTS[name].doc}): the return is not '
    'computed.'
    for name, value in settings.costs.items()
    if value == UNSET
  ]
  if one.labels is None or not one.labels.any():
    out.append(
      'The file marks no incidents (a column `label` of 0 and 1): how many are '
      'found stays unknown, so the verdict will be MORE DATA at best.'
    )
  return out
