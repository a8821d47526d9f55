"""What an edit is given: images and masks, from arrays and files, checked."""

import pathlib

import numpy as np

from fractal_jax import paths
from fractal_jax.errors import UserError

MODES = ('inpaint', 'outpaint', 'uncrop', 'lower', 'class')


class EditError(UserError, ValueError):
  """An image, mask or label that the model can't take."""


def dtype(model):
  """Of images: the smallest that holds the values."""
  return np.uint8 if model.num_values <= 256 else np.int32


def shape(model) -> tuple[int, ...]:
  """Of one image, (S, (S,) C)."""
  return (model.sizes[0],) * model.rank + (model.channels,)


def check_images(images, model) -> np.ndarray:
  """Images [n, S, (S,) C], whole numbers 0 .. V - 1, or an EditError."""
  images = np.asarray(images)
  if images.shape[1:] != shape(model):
    raise EditError(
      f'images of shape {images.shape[1:]}: this model takes {shape(model)}, '
      'so an array [n, ' + ', '.join(map(str, shape(model))) + ']'
    )
  if images.dtype.kind not in 'iu':
    raise EditError(
      f'images of type {images.dtype}: give whole numbers 0 to '
      f'{model.num_values - 1}'
    )
  if images.size and not (
    0 <= images.min() and images.max() < model.num_values
  ):
    raise EditError(
      f'images with values {images.min()} to {images.max()}: this model takes '
      f'0 to {model.num_values - 1}'
    )
  return images


def check_mask(mask, images: np.ndarray) -> np.ndarray:
  """A mask, True where to generate, as bool [n, S, (S,) C]."""
  mask = np.asarray(mask)
  if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
    raise EditError('a mask must be bool, or hold 0 and 1 only')
  mask = mask.astype(bool)
  one = images.shape[1:]
  if mask.shape in (one[:-1], images.shape[:-1]):
    mask = mask[..., None]
  if mask.shape[-len(one) : -1] == one[:-1] and mask.ndim <= images.ndim:
    if mask.shape[-1] in (1, one[-1]) and (
      mask.ndim == len(one) or len(mask) == len(images)
    ):
      return np.broadcast_to(mask, images.shape)
  raise EditError(
    f'a mask of shape {mask.shape}: give {one[:-1]}, or {one} with one plane '
    'a channel, or one of these for each image'
  )


def check_planes(mask: np.ndarray, model) -> None:
  """Refuses masks of single channels where colours mix them."""
  if model.colour and (mask != mask[..., :1]).any():
    raise EditError(
      'a mask with planes that differ by channel: this model draws '
      f"model.colour='{model.colour}', whose channels mix those of the image; "
      'give a mask of whole pixels'
    )


def check_labels(labels, model) -> np.ndarray:
  """Classes, -1 for "no class", as int32 [k]."""
  labels = np.atleast_1d(np.asarray(labels))
  if (
    labels.dtype.kind not in 'iu'
    or not labels.size
    or (labels.min() < -1 or labels.max() >= model.classes)
  ):
    raise EditError(
      f'labels {labels.tolist()}: classes are 0 to {model.classes - 1}, and '
      '-1 is "no class"'
    )
  return labels.astype(np.int32)


def labels_of(labels, n: int, model) -> np.ndarray:
  """A class an image, [n]: from one for all, one each, or None (no class)."""
  labels = check_labels(-1 if labels is None else labels, model)
  if len(labels) not in (1, n):
    raise EditError(f'{len(labels)} labels for {n} images: give 1 or {n}')
  return np.broadcast_to(labels, (n,)).copy()


def check_counts(**counts) -> None:
  """Raises EditError for a number of something that is below 1."""
  for name, value in counts.items():
    if value is not None and value < 1:
      raise EditError(f'{name}={value} must be at least 1')


# Files.


def read_image(path: str, model) -> np.ndarray:
  """An image file, or values in a .npy, as values [S, (S,) C]."""
  if path.endswith('.npy'):
    return check_images(_load(path)[None], model)[0]
  if model.rank != 2 or model.channels not in (1, 3):
    raise EditError(
      f'{path}: a model of {model.channels} channels and rank {model.rank} '
      'takes a .npy file of its values, shape ' + str(shape(model))
    )
  pixels = _open(path, 'L' if model.channels == 1 else 'RGB')
  side = model.sizes[0]
  if pixels.shape[:2] != (side, side):
    raise EditError(
      f'{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, this model '
      f'{side}x{side}: crop or resize it'
    )
  return to_values(pixels.reshape(shape(model)), model)


def to_values(shades: np.ndarray, model) -> np.ndarray:
  """Shades 0 .. 255 to values; the inverse of `sample.pictures`."""
  scale = (model.num_values - 1) / 255
  return np.round(shades * scale).astype(dtype(model))


def read_mask(path: str, model) -> np.ndarray:
  """A mask from an image (white: generate) or a .npy: bool.

  A coloured image is one plane a channel, for models of three channels.
  """
  if path.endswith('.npy'):
    return _load(path)
  return mask_of(_open(path, 'RGB'), model, path)


def mask_of(pixels: np.ndarray, model, name: str) -> np.ndarray:
  """A mask from pixels [S, S, 3] of the image `name`, as in `read_mask`."""
  planes = pixels >= 128
  if (planes == planes[..., :1]).all():
    return planes[..., 0]
  if model.channels != 3:
    raise EditError(
      f'{name} is coloured, one plane a channel, but this model has '
      f'{model.channels} channels: make it black and white, or a .npy file'
    )
  return planes


def make_mask(mode: str, model, *, box=None, margin=None) -> np.ndarray:
  """A mask [S, (S,)].

  Args:
    mode: 'inpaint' and 'class' (with another label) generate a box, 'outpaint'
      and 'uncrop', which are one, all but the middle, 'lower' the lower half
      (of a series: the later).
    model: the config's section `model`.
    box: (top, left, height, width), of a series (start, length); by default
      the middle half.
    margin: width of what 'outpaint' generates; a quarter by default.
  """
  side, rank = model.sizes[0], model.rank
  mask = np.zeros((side,) * rank, bool)
  if mode == 'lower':
    mask[side // 2 :] = True
  elif mode in ('outpaint', 'uncrop'):
    margin = max(side // 4, 1) if margin is None else margin
    if not 1 <= margin < (side + 1) // 2:
      raise EditError(
        f'--margin={margin} must be 1 to {(side + 1) // 2 - 1}, so that '
        'something is known'
      )
    mask[:] = True
    mask[(slice(margin, side - margin),) * rank] = False
  elif mode in ('inpaint', 'class'):
    if box is None:
      box = (side // 4,) * rank + (side - 2 * (side // 4),) * rank
    names = 'top,left,height,width' if rank == 2 else 'start,length'
    if len(box) != 2 * rank or not all(
      0 <= at and 1 <= size and at + size <= side
      for at, size in zip(box[:rank], box[rank:])
    ):
      raise EditError(
        f'--box={",".join(map(str, box))} must be {names}, inside {side} pixels'
      )
    mask[tuple(slice(a, a + n) for a, n in zip(box[:rank], box[rank:]))] = True
  else:
    raise EditError(f"mode '{mode}' must be one of {', '.join(MODES)}")
  return mask


def _open(path: str, mode: str) -> np.ndarray:
  from PIL import Image

  try:
    with paths.path(path).open('rb') as file, Image.open(file) as image:
      return np.asarray(image.convert(mode))
  except OSError as e:
    raise EditError(f'{path} is not an image that can be read: {e}') from e


def _load(path: str) -> np.ndarray:
  try:
    with paths.path(path).open('rb') as file:
      return np.load(file, allow_pickle=False)
  except (OSError, ValueError) as e:
    raise EditError(f'{path} is not a .npy file: {e}') from e


def check_out(path: str, *endings: str) -> None:
  """Before any work is done for it."""
  if not path.endswith(endings):
    raise EditError(f'--out={path} must end in {" or ".join(endings)}')
  parent = pathlib.Path(path).parent
  if parent.exists() and not parent.is_dir():
    raise EditError(f'--out={path}: {parent} is not a folder')
