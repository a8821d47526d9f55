"""pilot.toml: the question, the data, the gates and the prices of a pilot.

Tables of keys, as in fractal_jax/config.py: what all kinds of data have in
common is here, the rest in table_settings.py and image_settings.py. `text`
writes the file with a comment for each key, `load` reads it.
"""

from collections.abc import Mapping
import dataclasses
import json
import textwrap
import tomllib

from fractal_jax import checks, paths
from fractal_jax.checks import Flag, Key, Number, Text, integer
from fractal_jax.errors import UserError
from fractal_jax.metrics import files

FILE = 'pilot.toml'
MONEY = Number(least=0, most=1e12)  # products of a few can be counted with
UNSET = -1.0  # of a number that only the owner knows

QUESTION = {
  'question': Key('', Text(), 'what is to be decided, in a sentence'),
  'owner': Key('', Text(), 'who decides'),
  'currency': Key('EUR', Text(empty=False), 'of all amounts below'),
}
# Of the task and the gates, what stages have in common; see stages.py.
SEEDS = {
  'seeds': Key(
    3, integer(2, 100), 'models that are trained of each kind, by chance'
  )
}
LEARNING = {
  'module_bits': Key(
    0.02, Number(),
    'module: bits per value that each level saves against a model without '
    'memory',
  ),
  'composition_bits': Key(
    0.0, Number(),
    'composition: bits per value that the levels together save against the '
    'best simple model (last value, linear, polynomial; of images, random '
    'forest)',
  ),
  'flat_bits': Key(
    -0.1, Number(),
    'composition: the same against one flat model of equal compute. Below 0: '
    'levels may cost a little, they are faster',
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
  'upkeep_hours': Key(80.0, MONEY, 'of work per year after that'),
  'hour_of_hardware': Key(UNSET, MONEY, 'of a machine such as this one'),
  'hardware_hours': Key(8760.0, MONEY, 'of it per year; 8760: it never stops'),
}  # fmt: skip
BUDGET = {
  'minutes': Key(60.0, Number(above=0), 'of this machine, for all stages'),
  'memory_gb': Key(8.0, Number(above=0), 'that a stage may take'),
  'anyway': Key(False, Flag(), 'go on where a stage costs more than that'),
}


def sections_of(data: dict, task: dict, gates: dict) -> dict[str, dict]:
  """The tables of keys of a kind of data, by section."""
  return {
    'question': QUESTION,
    'data': data,
    'task': task,
    'gates': gates,
    'costs': COSTS,
    'budget': BUDGET,
  }


class PilotError(UserError, ValueError):
  """A pilot that can't be run as its pilot.toml says."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What pilot.toml says, a dict per section."""

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
    return files.digest(kept)


def defaults(tables: Mapping[str, Mapping[str, Key]]) -> dict[str, dict]:
  """Sections with the defaults of their tables of keys."""
  return {s: {k: v.default for k, v in t.items()} for s, t in tables.items()}


def text(
  sections: dict[str, dict], tables: Mapping[str, Mapping[str, Key]]
) -> str:
  """pilot.toml: each key under a comment that says what it is."""
  lines = [
    '# What is decided, and by which criteria: fixed before anything is run.',
    '# -1 stands for what only you know; `fractal-jax pilot check` names it.',
  ]
  for section, keys in tables.items():
    lines += ['', f'[{section}]']
    for name, key in keys.items():
      lines += [f'# {line}' for line in textwrap.wrap(key.doc + '.', 76)]
      # JSON's texts, numbers and lists are TOML's.
      value = json.dumps(sections[section][name], ensure_ascii=False)
      lines.append(f'{name} = {value}')
  return '\n'.join(lines) + '\n'


def load(folder: str, kinds: Mapping[str, Mapping]) -> Settings:
  """The settings of a pilot.

  Args:
    folder: of the pilot.
    kinds: tables of keys, by data.kind.

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
  for name in ('question', 'data', 'task', 'gates', 'costs', 'budget'):
    if not isinstance(found.get(name, {}), dict):
      raise PilotError(f'{path}: {name} must be a section, [{name}]')
  kind = found.get('data', {}).get('kind', next(iter(kinds)))
  if not isinstance(kind, str) or kind not in kinds:
    raise PilotError(
      f'{path}: data.kind={kind!r} must be one of {", ".join(kinds)}'
    )
  tables = kinds[kind]
  strangers = [name for name in found if name not in tables]
  strangers += [
    f'{section}.{name}'
    for section, keys in tables.items()
    for name in found.get(section, {})
    if name not in keys
  ]
  lines = [f'there is no section or key {name}' for name in strangers]
  lines += [
    f'{section}.{name} is missing: {key.doc}'
    for section, keys in tables.items()
    for name, key in keys.items()
    if name not in found.get(section, {})
  ]
  for section, keys in tables.items():
    given = found.get(section, {})
    known = {
      k: v
      for k, v in given.items()
      if not (v == UNSET and k in keys and keys[k].default == UNSET)
    }
    lines += checks.problems(section, known, keys)
  if lines:
    raise broken(path, lines)
  return Settings(
    **{name: found[name] for name in tables},
    hash=files.digest(words),
  )


def broken(path: paths.Path, lines: list[str]) -> PilotError:
  """The error about what keeps a pilot.toml from being run."""
  return PilotError(f'{path}:\n' + '\n'.join(f'  - {x}' for x in lines))


def common_wishes(settings: Settings) -> list[str]:
  """What every kind of pilot needs to know, a sentence each."""
  return [
    f'question.{name} is empty: {QUESTION[name].doc}.'
    for name in ('question', 'owner')
    if not settings.question[name]
  ] + [
    f'costs.{name} is not filled in ({COSTS[name].doc}): the return is not '
    'computed.'
    for name, value in settings.costs.items()
    if value == UNSET
  ]
