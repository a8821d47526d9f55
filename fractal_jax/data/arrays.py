"""Data sets that fit in memory: scikit-learn's digits, and .npz files."""

import os

from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from fractal_jax import paths
from fractal_jax.data import common, listing
from fractal_jax.data.common import DataError, Source

MAX_CLASSES = 1_000_000
KEYS = {1: 'series', 2: 'images'}  # of the arrays, by model.rank


def digits(config: ConfigDict, split: str) -> Source:
  """1797 handwritten digits of 8x8 pixels with values 0 .. 16.

  The split is fixed: 1500 for training, 297 for validation. No network.
  """
  m = config.model
  if (m.rank, m.sizes[0], m.channels) != (2, 8, 1):
    raise DataError(
      "data set 'digits' holds grey images of 8x8 pixels: set model.rank=2, "
      f'model.sizes[0]=8 and model.channels=1 (not {m.rank}, {m.sizes[0]} '
      f'and {m.channels}).'
    )
  from sklearn import datasets  # a second to import

  data = datasets.load_digits()
  common.check_split(config, split, common.SPLITS)
  keep = common.split_of(split, len(data.images), num_val=297)
  images = data.images[keep][..., None].astype(np.uint8)  # [n, 8, 8, 1]
  names = tuple(str(name) for name in data.target_names)
  return _source(images, data.target[keep], names, values=17)


def npz(config: ConfigDict, split: str) -> Source:
  """The .npz file data.dir.

  It holds `images` ([n, H, W, C] or [n, H, W]; larger uint8 images are
  cropped to the side of the model) or, for model.rank=1, `series` ([n, S,
  C]); `labels` [n]; and, if wanted, `label_names` and `split`, a name such as
  'train' or 'validation' for each example. Without `split` a fixed tenth is
  held out.
  """
  m = config.model
  path = config.data.dir and paths.path(config.data.dir)
  if not path or not path.is_file():
    raise DataError(
      f"data.dir='{config.data.dir}' is no file: set data.dir to an .npz file "
      f'with `{KEYS[m.rank]}` and `labels`.'
    )
  images, labels, names, of = read_npz(path, m.rank)
  values = int(images.max()) + 1
  if config.data.list:
    keep = _listed(config.data.list, split, len(images))
  elif of is not None:
    common.check_split(config, split, sorted(set(of)))
    keep = np.flatnonzero(np.array(of) == split)
  else:
    common.check_split(config, split, (*common.SPLITS, common.ALL))
    keep = common.split_of(split, len(images))
  images = _fit(path, KEYS[m.rank], images[keep], m)
  return _source(images, labels[keep], names, values)


def _listed(path: str, split: str, examples: int) -> list[int]:
  """The examples of a split by a listing."""
  rows = listing.of_split(listing.read(path), split, path)
  texts = [row.example for row in rows]
  for text in texts:
    if not (text.isascii() and text.isdecimal() and int(text[:12]) < examples):
      raise DataError(
        f"data.list='{path}' has the example '{text}': write a number from 0 "
        f'to {examples - 1}'
      )
  return [int(text) for text in texts]


def read_npz(path: str | os.PathLike, rank: int) -> tuple:
  """An .npz file as `npz` takes it.

  Args:
    path: of the file.
    rank: 2 for `images`, 1 for `series`.

  Returns:
    Integers [n, H, W, C] or [n, S, C], labels [n], the names of all classes,
    and the name of each example's split, or None.

  Raises:
    DataError: it can't be read, or breaks a rule.
  """
  key = KEYS[rank]
  try:
    data = paths.read_npz(path)
  except Exception as e:  # zipfile, numpy and the system each have their own
    raise DataError(
      f'{path} cannot be read as an .npz file of plain arrays ({e}): write it '
      'again with np.savez.'
    ) from e
  for name in (key, 'labels'):
    if name not in data:
      raise DataError(
        f'{path} holds {", ".join(data) or "nothing"} but no `{name}`, which '
        f'model.rank={rank} needs.'
      )
  images, labels = data[key], data['labels']
  if rank == 2 and images.ndim == 3:
    images = images[..., None]
  _check_arrays(path, key, images, labels, rank)
  labels = labels.astype(np.int64)  # uint8 labels up to 255 would wrap below
  if 'label_names' in data:
    names = _texts(path, 'label_names', data['label_names'])
  else:
    names = tuple(str(i) for i in range(labels.max() + 1))
  if labels.max() >= len(names):
    raise DataError(
      f'{path}: label {labels.max()} has no name, `label_names` holds only '
      f'{len(names)}.'
    )
  split = None
  if 'split' in data:
    split = _texts(path, 'split', data['split'], len(images))
  return images, labels, names, split


def _source(images, labels, names, values) -> Source:
  return Source(
    size=len(images),
    read=lambda i: (images[i], int(labels[i])),
    class_names=names,
    values=values,
  )


def _check_arrays(path, key, images, labels, rank) -> None:
  want = '[n, H, W] or [n, H, W, C]' if rank == 2 else '[n, S, C]'
  if images.ndim != rank + 2 or images.dtype.kind not in 'ui':
    raise DataError(
      f'{path}: `{key}` is {images.dtype} of shape {images.shape}, not '
      f'integers of shape {want}.'
    )
  if not images.size:
    raise DataError(f'{path}: `{key}` of shape {images.shape} is empty.')
  if labels.shape != images.shape[:1] or labels.dtype.kind not in 'ui':
    raise DataError(
      f'{path}: `labels` is {labels.dtype} of shape {labels.shape}, not '
      f'integers of shape {images.shape[:1]}.'
    )
  if len(images) < 2:
    raise DataError(
      f'{path}: `{key}` holds {len(images)} example(s): 2 or more are needed, '
      'for training and validation.'
    )
  for name, array in ((key, images), ('labels', labels)):
    if array.min() < 0:
      raise DataError(f'{path}: `{name}` holds {array.min()}, below 0.')
  if labels.max() >= MAX_CLASSES:
    raise DataError(
      f'{path}: `labels` holds {labels.max()}: number the classes from 0, of '
      f'which there may be {MAX_CLASSES:,}.'
    )


def _texts(path, name, array, length: int | None = None) -> tuple[str, ...]:
  """An array of an .npz file that must hold texts, `length` of them."""
  fits = array.ndim == 1 and length in (None, len(array))
  fits = fits and array.dtype.kind in 'USui'
  try:
    texts = array.astype(str) if fits else array
  except UnicodeDecodeError:  # bytes must be ASCII
    fits = False
  if not fits:
    want = '[classes]' if length is None else f'[{length}]'
    raise DataError(
      f'{path}: `{name}` is {array.dtype} of shape {list(array.shape)}, not '
      f'texts of shape {want}.'
    )
  return tuple(texts.tolist())


def _fit(path, key, images, m) -> np.ndarray:
  """The arrays in the shape of the model, cropped if need be."""
  side, shape = m.sizes[0], common.image_shape(m)
  if images.shape[1:] == shape:
    return images
  *sides, channels = images.shape[1:]
  if m.rank == 2 and images.dtype == np.uint8 and channels in (1, 3):
    if min(sides) >= side and m.channels in (1, 3):
      pil = (Image.fromarray(x[..., 0] if channels == 1 else x) for x in images)
      return np.stack([common.to_array(x, side, m.channels) for x in pil])
  raise DataError(
    f'{path}: `{key}` has examples of shape {images.shape[1:]} but the model '
    f'takes {shape}: change model.sizes[0] and model.channels, or the file '
    '(only uint8 images with 1 or 3 channels are cropped, never enlarged).'
  )
