"""Files that are there whole or not at all, and images of any origin."""

from collections.abc import Callable, Iterable
import hashlib
import os
import zipfile

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fractal_jax import paths
from fractal_jax.data import common, decode, folder
from fractal_jax.metrics import MetricsError
from fractal_jax.metrics.features import check_pictures


def load_npz(path: str | os.PathLike, what: str) -> dict[str, np.ndarray]:
  """The arrays of an .npz file.

  Raises:
    MetricsError: there is none, or it is no .npz file. `what` was expected.
  """
  path = paths.path(path)
  if not path.is_file():
    raise MetricsError(f'there is no file {path}; expected {what}.')
  try:
    return paths.read_npz(path)
  except Exception as e:  # zipfile, numpy and the system each have their own
    raise MetricsError(
      f'{path} cannot be read as an .npz file of plain arrays ({e}); expected '
      f'{what}.'
    ) from e


def listing(arrays: dict) -> str:
  """'`mu` float64 [2048], `x` ...': what a file holds, for errors."""
  return (
    ', '.join(
      f'`{k}` {v.dtype} {list(v.shape)}' for k, v in list(arrays.items())[:8]
    )
    or 'nothing'
  )


# Kinds of arrays, by NumPy's letters.
DTYPES = {'f': 'floats', 'iu': 'integers', 'fiu': 'numbers', 'U': 'texts'}
# Class numbers are below this: every class has an entry in what is computed.
CLASSES = 1_000_000


def check_array(
  path: str | os.PathLike,
  name: str,
  x: np.ndarray | None,
  kinds: str,
  shape: tuple,
  what: str = '',
) -> None:
  """Raises MetricsError unless an array is of a kind and shape.

  Args:
    path: of the file that holds it, for the message.
    name: of the array.
    x: the array; None where the file has none.
    kinds: a key of DTYPES.
    shape: its shape, where None stands for any length.
    what: the file should be, and what to do, for the message.
  """
  fits = (
    x is not None
    and x.dtype.kind in kinds
    and len(x.shape) == len(shape)
    and all(n in (None, found) for n, found in zip(shape, x.shape))
  )
  if not fits:
    found = 'missing' if x is None else f'{x.dtype} {list(x.shape)}'
    wanted = ', '.join('any' if n is None else str(n) for n in shape)
    raise MetricsError(
      f'{path}: `{name}` is {found}; expected {DTYPES[kinds]} [{wanted}]'
      + (f', in {what}.' if what else '.')
    )
  if 'f' in kinds and not np.isfinite(x).all():
    raise MetricsError(f'{path}: `{name}` holds nan or infinity.')


def checked_labels(
  path: str | os.PathLike, name: str, x: np.ndarray, num: int
) -> np.ndarray:
  """Class numbers as int64 [num], in which sums of them can't wrap.

  Raises:
    MetricsError: they are no class numbers of `num` images.
  """
  check_array(path, name, x, 'iu', (num,))
  if num and not 0 <= x.min() <= x.max() < CLASSES:
    raise MetricsError(
      f'{path}: `{name}` holds {x.min()} to {x.max()}; expected class numbers, '
      f'0 to {CLASSES - 1}.'
    )
  return x.astype(np.int64)


def digest(*parts: str | bytes | np.ndarray, length: int = 12) -> str:
  """The first characters of the SHA-256 of texts, bytes and arrays' bytes."""
  found = hashlib.sha256()
  for part in parts:
    if isinstance(part, str):
      part = part.encode()
    elif isinstance(part, np.ndarray):
      part = np.ascontiguousarray(part).data
    found.update(part)
  return found.hexdigest()[:length]


# Samples.


def save_samples(
  path: str | os.PathLike,
  num: int,
  shape: tuple,
  chunks: Iterable[np.ndarray],
  labels: ArrayLike | None = None,
) -> None:
  """Writes samples as ADM's suite reads them, without holding them all.

  Args:
    path: an .npz file, of `arr_0` uint8 [num, H, W, 3] and, if there are
      labels, `arr_1` int64 [num].
    num: images.
    shape: of an image, (H, W, 3).
    chunks: their pictures, in order, some at a time.
    labels: [num] or None.
  """
  with paths.atomic_write(path) as file, zipfile.ZipFile(file, 'w') as archive:
    with archive.open('arr_0.npy', 'w', force_zip64=True) as member:
      header = np.lib.format.header_data_from_array_1_0(np.zeros(0, np.uint8))
      header['shape'] = (num, *shape)
      np.lib.format.write_array_header_1_0(member, header)
      for pictures in chunks:
        member.write(np.ascontiguousarray(pictures, np.uint8).data)
    if labels is not None:
      with archive.open('arr_1.npy', 'w') as member:
        np.lib.format.write_array(member, np.asarray(labels, np.int64))


class Samples:
  """Pictures at a path, by slice: uint8 [n, H, W, 3].

  Attributes:
    name: of the path, as it was given.
    labels: int [n], or None.
    folders: names of the folders that the labels number, or None.
    side: the height of the pictures.
    skipped: which files are left out and why, a sentence; '' if none are.
  """

  def __init__(self, path: str | os.PathLike):
    """Looks at what is there.

    Args:
      path: an .npz file as ADM's suite reads, with `arr_0` and perhaps labels
        `arr_1`; a folder of images; or one with a folder of images per class,
        which are numbered as `data.classes.in_order` sorts them.

    Raises:
      MetricsError: it is something else.
    """
    self.name, self._path = str(path), paths.path(path)
    self._files, self._pictures, self.labels = None, None, None
    self.folders, self.skipped, self._fitted = None, '', False
    if self._path.is_dir():
      self._find_files()
    else:
      self._read_npz()
    self.side = self[0:1].shape[1]

  def __len__(self) -> int:
    return len(self._pictures if self._files is None else self._files)

  def __getitem__(self, at: slice) -> np.ndarray:
    if self._files is None:
      out = self._pictures[at]
    else:
      out = [
        np.asarray(_decoded(file, decode.load)) for file in self._files[at]
      ]
    if self._fitted:
      return np.stack([_cropped(x, self.side) for x in out])
    if self._files is None:
      return out
    for file, x in zip(self._files[at], out):
      first = out[0] if at.start == 0 else self[0:1][0]
      if x.shape != first.shape:
        raise MetricsError(
          f'{file} has {x.shape[1]}x{x.shape[0]} pixels, the first image of '
          f'{self._path} has {first.shape[1]}x{first.shape[0]}: all must be '
          'equal.'
        )
    return np.stack(out)

  def fit(self, side: int | None) -> str:
    """Crops and resizes pictures of other sizes from now on, as training does.

    Args:
      side: of the pictures; None: as they are.

    Returns:
      A sentence on it; '' where all have this size already.

    Raises:
      MetricsError: a picture is smaller.
    """
    if side is None:
      return ''
    if self._files is None:
      height, width = self._pictures.shape[1:3]
      sizes = [(str(self._path), (width, height))] * len(self)
    else:
      sizes = [(file, _decoded(file, decode.size)) for file in self._files]
    others = [(name, size) for name, size in sizes if size != (side, side)]
    for name, size in others:
      if min(size) < side:
        raise MetricsError(
          f'{name} has {size[0]}x{size[1]} pixels, those of the reference '
          f'{side}x{side}: larger ones are cropped, none is enlarged.'
        )
    if not others:
      return ''
    self.side, self._fitted = side, True
    return (
      f'{len(others)} of {len(sizes)} images are not {side}x{side} as those of '
      'the reference: each is cut to the square in the middle and resized.'
    )

  def _find_files(self):
    try:
      names = folder.subfolders(self._path)
      self._files, others, _ = folder.inside(self._path)
      found = [folder.inside(self._path / name) for name in names]
    except OSError as e:
      raise MetricsError(f'{self._path} cannot be read: {e}.') from e
    if self._files and names:
      raise MetricsError(
        f'{self._path} holds images and folders: make it one or the other.'
      )
    if names:
      files = [images for images, _, _ in found]
      self._files, self.folders = sum(files, []), names
      self.labels = np.repeat(np.arange(len(files)), [len(x) for x in files])
      for _, rest, deeper in found:
        others += sorted(rest + deeper)
    self.skipped = folder.left_out(self._path, others)
    if not self._files:
      raise MetricsError(
        f'{self._path} holds no images ({" ".join(decode.EXTENSIONS)}), nor '
        'folders of them.'
      )

  def _read_npz(self):
    what = (
      "samples as ADM's suite reads them, `arr_0` uint8 [n, H, W, 3] and "
      'perhaps labels `arr_1` [n] (`fractal-jax evaluate --save` writes '
      'such), or a folder of images'
    )
    arrays = load_npz(self._path, what)
    if 'arr_0' not in arrays:
      raise MetricsError(
        f'{self._path} holds {listing(arrays)}; expected {what}.'
      )
    self._pictures = arrays['arr_0']
    check_pictures(self._pictures, f'{self._path}: arr_0')
    if 'arr_1' in arrays:
      self.labels = checked_labels(
        self._path, 'arr_1', arrays['arr_1'], len(self._pictures)
      )


def _cropped(picture: np.ndarray, side: int) -> np.ndarray:
  if picture.shape[:2] == (side, side):
    return picture
  return common.to_array(Image.fromarray(picture), side, 3)


def _decoded(path: str, of: Callable):
  """What a function of decode.py, `load` or `size`, gives for a file."""
  try:
    with paths.path(path).open('rb') as file:
      return of(file, path)
  except decode.ImageError as e:
    raise MetricsError(f'{e}.') from e
  except OSError as e:
    raise MetricsError(f'{path} cannot be opened ({e.strerror or e}).') from e
