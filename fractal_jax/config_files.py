"""Config files: found by name, shown in full, written by the program.

The package holds the files of `configs/` (by a link to them, which a wheel
replaces by copies), so that `--config=digits` works wherever it is installed.
"""

import pathlib

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
