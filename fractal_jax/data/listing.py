"""Which example is in which split: a file that people can read and edit.

`fractal-jax train --data` writes one into the run, images.csv, and the config
names it as data.list. Its columns:

  example   a path below data.dir, or a number in an .npz file
  class     the class's name
  split     train, validation, or nothing for what is left out
  note      why it is left out, or which example it is nearly a copy of

A tenth is held out by content: the same images, under any names and in any
order, are split alike. Near copies fall on one side, else what is held out
would have been trained on.
"""

import collections
from collections.abc import Sequence
import csv
import dataclasses
import io

import numpy as np
from PIL import Image

from fractal_jax import paths
from fractal_jax.data import common
from fractal_jax.data.common import DataError

COLUMNS = ('example', 'class', 'split', 'note')
THUMB = 8  # side of the thumbnails that are compared
# Root of the mean square difference of two thumbnails, in shades, up to which
# images are near copies: another size, format or quality of one picture. Half
# the size moves a thumbnail by less than 1, JPEG of quality 50 by about 2; of
# the 1906 emoji 1 in 50 is as near as 3.9 to another.
NEAR = 3.0


@dataclasses.dataclass(frozen=True)
class Row:
  """An example; see the columns above."""

  example: str
  label: str
  split: str
  note: str = ''


def write(path: str, rows: Sequence[Row]) -> None:
  """Writes a listing."""
  out = io.StringIO()
  writer = csv.writer(out)  # its line ends are the ones that names have quoted
  writer.writerow(COLUMNS)
  writer.writerows(dataclasses.astuple(row) for row in rows)
  paths.write_text(path, out.getvalue())


def read(path: str) -> list[Row]:
  """The rows of a listing.

  Raises:
    DataError: there is no such file, or it is no listing.
  """
  try:
    # Names need not be UTF-8, and '\r' in them is no end of a line.
    text = paths.path(path).read_bytes().decode(errors='surrogateescape')
  except OSError as e:
    raise DataError(
      f"data.list='{path}' cannot be read ({e}): name the images.csv of a run, "
      "or set data.list=''."
    ) from e
  try:
    lines = csv.reader(io.StringIO(text.removeprefix('\ufeff'), newline=''))
    head, *rows = [line for line in lines if line] or [[]]
  except csv.Error:  # a file of bytes
    head, rows = [], []
  if tuple(head) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
    raise DataError(
      f"data.list='{path}' is no list of examples: its columns must be "
      f'{",".join(COLUMNS)}.'
    )
  wrong = sorted({row[2] for row in rows} - {*common.SPLITS, ''})
  if wrong:
    raise DataError(
      f"{path} has the split '{wrong[0]}': write train or validation, or "
      'nothing to leave an example out.'
    )
  twice = collections.Counter(row[0] for row in rows).most_common(1)
  if twice and twice[0][1] > 1:
    raise DataError(
      f"{path} has the example '{twice[0][0]}' {twice[0][1]} times: leave one "
      'of these lines.'
    )
  return [Row(*row) for row in rows]


def of_split(rows: Sequence[Row], split: str, path: str) -> list[Row]:
  """The rows of a split; raises DataError where the listing has none."""
  some = [row for row in rows if row.split == split]
  if not some:
    raise DataError(
      f"data.list='{path}' has no split '{split}': set data.train_split and "
      f'data.val_split to {" and ".join(common.SPLITS)}.'
    )
  return some


def thumbnail(image: Image.Image) -> np.ndarray:
  """What `near_copies` compares of an RGB image: uint8 [THUMB, THUMB, 3]."""
  return np.asarray(image.resize((THUMB,) * 2, Image.Resampling.HAMMING))


def near_copies(thumbs: np.ndarray) -> np.ndarray:
  """Groups of near copies.

  Args:
    thumbs: [n, THUMB, THUMB, 3] shades.

  Returns:
    [n] int64: for each image the number of the first of its group.
  """
  from scipy import sparse, spatial

  n = len(thumbs)
  x = thumbs.reshape(n, -1).astype(np.float32)
  # Means over 2x2 are no further apart than what they are means of: pairs that
  # are near enough are looked for in these fewer numbers, by a tree.
  half = THUMB // 2
  few = thumbs.reshape(n, half, 2, half, 2, 3).mean((2, 4)).reshape(n, -1)
  tree = spatial.cKDTree(few)
  pairs = tree.query_pairs(NEAR * np.sqrt(few.shape[1]), output_type='ndarray')
  squares = np.concatenate(
    [
      np.square(x[a] - x[b]).mean(-1)
      for a, b in (
        some.T for some in np.array_split(pairs, len(pairs) // 2**16 + 1)
      )
    ]
  )
  a, b = pairs[squares <= NEAR**2].T
  links = sparse.coo_matrix((np.ones(len(a), bool), (a, b)), (n, n))
  _, group = sparse.csgraph.connected_components(links, directed=False)
  first = np.full(group.max(initial=-1) + 1, n)
  np.minimum.at(first, group, np.arange(n))
  return first[group]


def held_out(groups: np.ndarray, digests: Sequence[str]) -> np.ndarray:
  """Which examples to hold out: a tenth, at least one, in whole groups.

  Args:
    groups: [n] what falls on one side, by number.
    digests: of each example's content; the smallest of a group places it.

  Returns:
    [n] bool. All False where there is but one group.
  """
  members = collections.defaultdict(list)
  for i, group in enumerate(groups.tolist()):
    members[group].append(i)
  order = sorted(members.values(), key=lambda m: min(digests[i] for i in m))
  out, wanted = np.zeros(len(groups), bool), max(1, len(groups) // 10)
  for some in order:
    # A group of more than is wanted is trained on, unless nothing else is left.
    if len(order) > 1 and len(some) <= wanted - out.sum():
      out[some] = True
  if not out.any() and len(order) > 1:
    out[min(order, key=len)] = True
  return out
