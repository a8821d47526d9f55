"""Config files: found by name, shown in full, written by the program.

The package holds the files of `configs/` (by a link to them, which a wheel
replaces by copies), so that `--config=digits` works wherever it is installed.
"""

from collections.abc import Mapping
import pathlib
import re
import runpy
import textwrap
import traceback

import ml_collections

from fractal_jax import paths
from fractal_jax.errors import UserError, nearest

FOLDER = pathlib.Path(__file__).parent / 'configs'


class ConfigFileError(UserError, ValueError):
  """There is no such config file; the message names those that there are."""


def names() -> list[str]:
  """The configs that come with the package, by name."""
  return sorted(path.stem for path in FOLDER.glob('*.py'))


def find(name: str) -> tuple[paths.Path, str | None]:
  """The path of a config file, and its option, None if there is none.

  Args:
    name: a path ending in .py, or the name of a config of the package, which
      may stand as `configs/NAME.py`; each with `:OPTION`, if wanted.

  Raises:
    ConfigFileError: there is no such file.
  """
  text, option = re.fullmatch(
    '((?:.+://)?[^:]*)(?::(.*))?', name, re.S
  ).groups()
  bare = text.removeprefix('configs/').removesuffix('.py')
  if text.endswith('.py') and paths.path(text).is_file():
    return paths.path(text), option
  if bare in names():
    return FOLDER / f'{bare}.py', option
  raise ConfigFileError(
    f"there is no config '{text}'.{nearest(bare, names())} Give the path of "
    f'a .py file, or one of {", ".join(names())}.'
  )


def load(name: str) -> ml_collections.ConfigDict:
  """The config of a file, a ConfigDict of all keys and of no others.

  Args:
    name: as `find` takes it.

  Raises:
    ConfigFileError: there is no such file, it raises an error of whatever
      kind, or gives something else.
  """
  path, option = find(name)
  try:
    with paths.local(path) as file:
      get = runpy.run_path(str(file)).get('get_config')
    if not callable(get):
      raise ConfigFileError(f'{path} has no get_config()')
    config = get() if option is None else get(option)
  except UserError:
    raise
  except (Exception, SystemExit) as e:  # a file may do anything
    text = ' '.join(str(e).split())
    raise ConfigFileError(
      f'{path}{_line(e, path)}: {type(e).__name__}: {text}'
    ) from e
  _check_keys(config, path)
  return config


def _line(error: BaseException, path) -> str:
  """', line N' of the file that an error is about, '' if it is not known."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename.endswith(path.name)]
  number = lines[-1] if lines else getattr(error, 'lineno', None)
  return f', line {number}' if number else ''


def _check_keys(config, path) -> None:
  """Raises ConfigFileError where sections or keys are missing, or unknown."""
  from fractal_jax import config as config_lib  # imports JAX

  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigFileError(
      f'{path}: get_config() gives {type(config).__name__}, and not a '
      'ConfigDict: begin with fractal_jax.config.default(), and return it'
    )
  known, found = (
    config_lib.flat(c).keys() for c in (config_lib.default(), config)
  )
  for text, some in (('lacks', known - found), ('has the key', found - known)):
    if some:
      raise ConfigFileError(
        f'{path}: the config {text} {", ".join(sorted(some)[:5])}: begin with '
        'fractal_jax.config.default(), and change its keys'
      )


def text(
  config: ml_collections.ConfigDict,
  doc: str,
  reasons: Mapping[str, str] | None = None,
) -> str:
  """A config as a file that `--config` takes, a comment above each key.

  Args:
    doc: what to write at the top, one or more paragraphs.
    reasons: for each key to write, 'section.key', why it has its value; all
      others are the defaults. None: every key, with what it is.
  """
  from fractal_jax import config as config_lib  # imports JAX

  keys = config_lib.flat({'seed': config_lib.SEED, **config_lib.SECTIONS})
  if reasons is None:
    reasons = {
      name: key.doc + (f'. Default: {key.default!r}, {key.why}' * bool(key.why))
      for name, key in keys.items()
    }
  top = '\n'.join(textwrap.fill(x, 80) for x in doc.strip().splitlines())
  top += '\n' * ('\n' in top)
  # Names of folders may hold what would end a text.
  top = top.replace('\\', '\\\\').replace('"""', '\\"""')
  lines, section, values = [], '', config_lib.flat(config)
  for name in keys:
    if name not in reasons:
      continue
    if name.partition('.')[0] != section:
      section = name.partition('.')[0]
      lines.append('')
    lines += textwrap.wrap(
      reasons[name], 80, initial_indent='  # ', subsequent_indent='  # '
    )
    lines.append(f'  c.{name} = {_literal(values[name])}')
  code = '\n'.join(
    [
      f'"""{top}"""',
      '',
      'from fractal_jax import config',
      '',
      '',
      'def get_config():',
      '  c = config.default()',
      *lines,
      '  return c',
      '',
    ]
  )
  return code.encode(errors='backslashreplace').decode()  # names, not UTF-8


def _literal(value) -> str:
  """A value of a config as Python reads it."""
  if isinstance(value, float) and value == float('inf'):
    return "float('inf')"
  return repr(tuple(value) if isinstance(value, list) else value)
