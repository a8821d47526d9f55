"""Config files: found by name, shown in full, written by the program.

The package holds the files of `configs/` (by a link to them, which a wheel
replaces by copies), so that `--config=digits` works wherever it is installed.
"""

from collections.abc import Mapping
import pathlib
import textwrap

from fractal_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent / 'configs'


class ConfigFileError(UserError, ValueError):
  """There is no such config file; the message names those that there are."""


def names() -> list[str]:
  """The configs that come with the package, by name."""
  return sorted(path.stem for path in FOLDER.glob('*.py'))


def find(name: str) -> str:
  """The path of a config file, with its option after a colon.

  Args:
    name: a path ending in .py, or the name of a config of the package, which
      may stand as `configs/NAME.py`; each with `:OPTION`, if wanted.

  Raises:
    ConfigFileError: there is no such file.
  """
  path, colon, option = name.partition(':')
  bare = path.removeprefix('configs/').removesuffix('.py')
  if path.endswith('.py') and pathlib.Path(path).is_file():
    found = path
  elif bare in names():
    found = str(FOLDER / f'{bare}.py')
  else:
    from fractal_jax.data.common import nearest  # not for `fractal-jax` alone

    raise ConfigFileError(
      f"there is no config '{path}'.{nearest(bare, names())} Give the path of "
      f'a .py file, or one of {", ".join(names())}.'
    )
  return found + colon + option


def text(config, doc: str, reasons: Mapping[str, str] | None = None) -> str:
  """A config as a file that `--config` takes, a comment above each key.

  Args:
    config: the config.
    doc: what to write at the top, one or more paragraphs.
    reasons: for each key to write, 'section.key', why it has its value; all
      others are the defaults. None: every key, with what it is.
  """
  from fractal_jax import config as config_lib  # imports JAX

  keys = {'seed': config_lib.SEED} | {
    f'{section}.{name}': key
    for section, names in config_lib.SECTIONS.items()
    for name, key in names.items()
  }
  if reasons is None:
    reasons = {
      name: key.doc + (f'. Default: {key.default!r}, {key.why}' * bool(key.why))
      for name, key in keys.items()
    }
  top = '\n'.join(textwrap.fill(x, 80) for x in doc.strip().splitlines())
  top += '\n' * ('\n' in top)
  lines, section = [], ''
  for name in keys:
    if name not in reasons:
      continue
    if name.partition('.')[0] != section:
      section = name.partition('.')[0]
      lines.append('')
    value = config
    for part in name.split('.'):
      value = value[part]
    lines += textwrap.wrap(
      reasons[name], 80, initial_indent='  # ', subsequent_indent='  # '
    )
    lines.append(f'  c.{name} = {_literal(value)}')
  return '\n'.join(
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


def _literal(value) -> str:
  """A value of a config as Python reads it."""
  if isinstance(value, float) and value == float('inf'):
    return "float('inf')"
  return repr(tuple(value) if isinstance(value, list) else value)
