"""Class names: their order, what a run keeps of them, and what users write."""

from collections.abc import Iterable, Sequence
import json
import os

from ml_collections import ConfigDict

from fractal_jax import errors, paths
from fractal_jax.data.common import DataError
from fractal_jax.errors import nearest

FILE = 'classes.json'  # in a work directory: the names, in the order of labels
SHOWN = 12  # names in a message


def in_order(names: Iterable[str]) -> list[str]:
  """Names sorted: as numbers where all are whole numbers (2 before 10)."""
  names = list(names)
  numeric = all(name.isascii() and name.isdecimal() for name in names)
  return sorted(names, key=lambda n: (int(n), n) if numeric else n)


def listing(names: Sequence[str]) -> str:
  """'0 apple, 1 pear, ...': which class has which number."""
  shown = ', '.join(f'{i} {n}' for i, n in enumerate(names[:SHOWN]))
  more = len(names) - SHOWN
  return shown + (f' and {more} more' if more > 0 else '')


def load(workdir: str | os.PathLike) -> tuple[str, ...]:
  """The class names that a run keeps; () for runs older than they are.

  Raises:
    DataError: the file is no list of names.
  """
  path = paths.path(workdir) / FILE
  try:
    names = json.loads(path.read_text())
  except FileNotFoundError:
    return ()
  except errors.DAMAGES:
    names = None
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise DataError(f'{path} is no list of class names: remove it.')
  return tuple(names)


def check(
  config: ConfigDict,
  workdir: str | os.PathLike,
  names: Sequence[str],
  resumed: bool,
) -> None:
  """Raises DataError if a run's classes would change their numbers.

  Args:
    config: reads data.
    workdir: the run's.
    names: of the data set's classes.
    resumed: whether the run has checkpoints.
  """
  kept = load(workdir) if resumed else ()
  if resumed and not kept and config.data.name == 'folder':
    kept = tuple(sorted(names))  # the order before names were kept
  if kept and kept != tuple(names):
    raise DataError(
      f"the classes of data.dir='{config.data.dir}' are {listing(names)}, but "
      f'{workdir} was trained with {listing(kept)}: give it the data that it '
      'was trained on, or take another work directory.'
    )


def save(workdir: str | os.PathLike, names: Sequence[str]) -> None:
  """Keeps the class names in a work directory; for process 0."""
  paths.write_text(paths.path(workdir) / FILE, json.dumps(list(names)) + '\n')


def numbers(texts: Sequence[str], names: Sequence[str], classes: int) -> list:
  """The classes that a user names.

  Args:
    texts: each a class's name, its number, or how the name of just one class
      begins, in any case. A name comes first: where folders are called 5 and
      7, '5' is the class of this name, number 0.
    names: of the classes; () where they are not known.
    classes: how many there are.

  Raises:
    DataError: there is no such class, or several.
  """
  names = names[:classes]  # a damaged file may hold more
  return [_number(str(text).strip(), names, classes) for text in texts]


def _number(text: str, names: Sequence[str], classes: int) -> int:
  same = [i for i, name in enumerate(names) if name == text]
  if len(same) > 1:
    some = ', '.join(map(str, same[:SHOWN]))
    raise DataError(f"class '{text}' may be any of {some}: write its number.")
  if same:
    return same[0]
  if text.isascii() and text.isdecimal() and len(text) <= 10:
    if int(text) < classes:
      return int(text)
  begin = [
    i
    for i, name in enumerate(names)
    if text and name.lower().startswith(text.lower())
  ]
  if len(begin) == 1:
    return begin[0]
  if begin:
    some = ', '.join(names[i] for i in begin[:SHOWN])
    raise DataError(f"class '{text}' may be any of {some}: write more of it.")
  known = f': {listing(names)}' if names else ''
  raise DataError(
    f"there is no class '{text}'.{nearest(text, names)} Classes are 0 to "
    f'{classes - 1}{known}.'
  )
