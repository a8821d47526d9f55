"""What jobs are given: images, masks and labels, from arrays or files, checked.

`model` is always a config's section `model`. What it can't take is an
InputError.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fractal_jax import checks, paths, pictures
from fractal_jax.data import common, decode
from fractal_jax.data.common import image_shape
from fractal_jax.errors import UserError

MODES = ('inpaint', 'outpaint', 'uncrop', 'lower', 'class')


class InputError(UserError, ValueError):
  """An image, mask, label or setting that the model can't take."""


def array(x: ArrayLike, name: str) -> np.ndarray:
  """What was given as an array; an InputError says what is none."""
  if np.ma.is_masked(x):
    raise InputError(f'{name} are masked in part: give all of their values')
  try:
    return np.asarray(x)
  except (TypeError, ValueError, OverflowError) as e:  # rows of unequal length
    raise InputError(f'{name} are no array: {e}') from e


def check_images(images: ArrayLike, model: ConfigDict) -> np.ndarray:
  """Images [n, S, (S,) C], if they are whole numbers 0 .. V - 1.

  Of series with values that are not known (model.unknown) also ~v, below 0.
  """
  images = array(images, 'images')
  shape = image_shape(model)
  if images.shape[1:] != shape:
    raise InputError(
      f'images of shape {images.shape[1:]}: this model takes {shape}, so an '
      f'array [n, {", ".join(map(str, shape))}]'
    )
  if images.dtype.kind not in 'iu':
    raise InputError(
      f'images of type {images.dtype}: give whole numbers 0 to '
      f'{model.num_values - 1}'
    )
  least = -model.num_values if model.unknown else 0
  if images.size and not (
    least <= images.min() and images.max() < model.num_values
  ):
    raise InputError(
      f'images with values {images.min()} to {images.max()}: this model takes '
      f'0 to {model.num_values - 1}'
    )
  return images


def check_mask(mask: ArrayLike, images: np.ndarray) -> np.ndarray:
  """A mask, True where to generate, as bool [n, S, (S,) C].

  Args:
    mask: [S, (S,)], [S, (S,) 1] or [S, (S,) C], or n of one of these; bool,
      or 0 and 1.
    images: [n, S, (S,) C].
  """
  mask = array(mask, 'masks')
  if mask.dtype.kind not in 'biuf' or not np.isin(mask, (0, 1)).all():
    raise InputError('a mask must be bool, or hold 0 and 1 only')
  mask = mask.astype(bool)
  one = images.shape[1:]
  if mask.shape in (one[:-1], images.shape[:-1]):
    mask = mask[..., None]
  if mask.shape[-len(one) : -1] == one[:-1] and mask.ndim <= images.ndim:
    if mask.shape[-1] in (1, one[-1]) and (
      mask.ndim == len(one) or len(mask) == len(images)
    ):
      return np.broadcast_to(mask, images.shape)
  raise InputError(
    f'a mask of shape {mask.shape}: give {one[:-1]}, or {one} with one plane '
    'per channel, or one of these for each image'
  )


def check_planes(mask: np.ndarray, model: ConfigDict) -> None:
  """Refuses masks of single channels where colours mix them."""
  if model.colour and (mask != mask[..., :1]).any():
    raise InputError(
      'a mask with planes that differ by channel: this model draws '
      f"model.colour='{model.colour}', whose channels mix those of the image; "
      'give a mask of whole pixels'
    )


def check_labels(labels: ArrayLike, model: ConfigDict) -> np.ndarray:
  """Classes, -1 for "no class", as int32 [k]."""
  labels = np.atleast_1d(array(labels, 'labels'))
  if (
    labels.dtype.kind not in 'iu'
    or labels.ndim != 1
    or not labels.size
    or (labels.min() < -1 or labels.max() >= model.classes)
  ):
    raise InputError(
      f'labels {labels.tolist()}: classes are 0 to {model.classes - 1}, and '
      '-1 is "no class"'
    )
  return labels.astype(np.int32)


def labels_of(
  labels: ArrayLike | None, n: int, model: ConfigDict
) -> np.ndarray:
  """The class of each image, [n]: from one for all, n, or None (no class)."""
  labels = check_labels(-1 if labels is None else labels, model)
  if len(labels) not in (1, n):
    raise InputError(f'{len(labels)} labels for {n} images: give 1 or {n}')
  return np.broadcast_to(labels, (n,)).copy()


# What a guide and the model that it guides must have in common.
GUIDED = (
  'sizes', 'kinds', 'rank', 'channels', 'num_values', 'colour',
  'channel_order', 'classes', 'guide',
)  # fmt: skip


def check_guide(guide: ConfigDict, model: ConfigDict) -> None:
  """Refuses a guide that sees other patches, values or classes.

  Args:
    guide: the section `model` of the guide's config.
    model: that of the model that is to be guided.
  """
  lines = [
    f'model.{k} is {guide[k]!r} of the guide, {model[k]!r} of the model'
    for k in GUIDED
    if guide[k] != model[k]
  ]
  if lines:
    raise InputError(
      f'this guide does not fit: {"; ".join(lines)}. Give an earlier '
      'checkpoint, or a run with other widths and depths alone'
    )


def check_counts(**counts: int | None) -> None:
  """Refuses a number of something that is below 1; None passes."""
  for name, value in counts.items():
    if value is not None:
      check_number(name, value, checks.FROM_1)


def check_seed(seed: int) -> None:
  """Refuses a seed of more than 32 bits, which would repeat a smaller one."""
  check_number('seed', seed, checks.SEED)


def check_number(name: str, value: object, rule: checks.Rule) -> None:
  """Refuses a number that breaks a rule."""
  if wrong := checks.problem(name, value, rule):
    raise InputError(wrong)


# Files.


def read_image(path: str, model: ConfigDict) -> tuple[np.ndarray, str]:
  """An image file, or values in a .npy, as values [S, (S,) C].

  An image of another size is cropped and resized as in training.

  Returns:
    The values, and a sentence on what was done to the image; '' for nothing.
  """
  if path.endswith('.npy'):
    values = _load(path)
    if values.shape != image_shape(model):
      raise InputError(
        f'{path} has the shape {values.shape}: this model takes '
        f'{image_shape(model)}'
      )
    try:
      return check_images(values[None], model)[0], ''
    except InputError as e:
      raise InputError(f'{path}: {e}') from e
  if model.rank != 2 or model.channels not in (1, 3):
    raise InputError(
      f'{path}: a model of {model.channels} channels and rank {model.rank} '
      'takes a .npy file of its values, shape ' + str(image_shape(model))
    )
  return fitted(_open(path, 'L' if model.channels == 1 else 'RGB'), path, model)


def fitted(
  image: Image.Image, name: str, model: ConfigDict
) -> tuple[np.ndarray, str]:
  """A PIL image as values [S, S, C], and what was done to it; see above."""
  side, note = model.sizes[0], ''
  if image.size != (side, side):
    how = 'resized' if min(image.size) >= side else 'enlarged'
    note = (
      f'{name} has {image.width}x{image.height} pixels: cut to the square in '
      f'the middle, {how} to {side}x{side}'
    )
  shades = common.to_array(image, side, model.channels)
  return pictures.to_values(shades, model), note


def read_mask(path: str, model: ConfigDict) -> np.ndarray:
  """A mask from an image file, or a .npy, for `check_mask`.

  White or transparent is True: generate. A coloured image has one plane per
  channel, for models of three channels.
  """
  if path.endswith('.npy'):
    return _load(path)
  return mask_of(np.asarray(_open(path, 'RGB')), model, path)


def mask_of(pixels: np.ndarray, model: ConfigDict, name: str) -> np.ndarray:
  """A mask [S, S] or [S, S, 3] from shades [S, S, 3] of the image `name`."""
  planes = pixels >= 128
  if (planes == planes[..., :1]).all():
    return planes[..., 0]
  if model.channels != 3:
    raise InputError(
      f'{name} is coloured, one plane per channel, but this model has '
      f'{model.channels} channels: make it black and white, or a .npy file'
    )
  return planes


def make_mask(
  mode: str,
  model: ConfigDict,
  *,
  box: Sequence[int] | None = None,
  margin: int | None = None,
) -> np.ndarray:
  """A mask [S, (S,)].

  Args:
    mode: what is generated. 'inpaint' and 'class' (with another label): a box;
      'outpaint' and 'uncrop', two names of one thing: all but the middle;
      'lower': the lower half, of a series the later.
    model: the config's section `model`.
    box: (top, left, height, width), of a series (start, length); by default
      the middle half.
    margin: width of what 'outpaint' generates, in pixels; a quarter of the
      side by default.
  """
  side, rank = model.sizes[0], model.rank
  mask = np.zeros((side,) * rank, bool)
  if mode == 'lower':
    mask[side // 2 :] = True
  elif mode in ('outpaint', 'uncrop'):
    margin = max(side // 4, 1) if margin is None else margin
    if not 1 <= margin < (side + 1) // 2:
      raise InputError(
        f'--margin={margin} must be 1 to {(side + 1) // 2 - 1}, so that '
        'something is known'
      )
    mask[:] = True
    mask[(slice(margin, side - margin),) * rank] = False
  elif mode in ('inpaint', 'class'):
    mask[_box(box, side, rank)] = True
  else:
    raise InputError(f"mode '{mode}' must be one of {', '.join(MODES)}")
  return mask


def _box(box, side: int, rank: int) -> tuple[slice, ...]:
  """The part of a square that a box covers: by default the middle half."""
  if box is None:
    box = (side // 4,) * rank + (side - 2 * (side // 4),) * rank
  names = 'top,left,height,width' if rank == 2 else 'start,length'
  parts = list(zip(box[:rank], box[rank:]))
  if len(box) != 2 * rank or not all(
    0 <= at and 1 <= size and at + size <= side for at, size in parts
  ):
    raise InputError(
      f'--box={",".join(map(str, box))} must be {names}, inside {side} pixels'
    )
  return tuple(slice(at, at + size) for at, size in parts)


def _open(path: str, mode: str):
  """An image file as a PIL image."""
  try:
    with paths.path(path).open('rb') as file:
      return decode.load(file, path, mode)
  except decode.ImageError as e:
    raise InputError(str(e)) from e
  except OSError as e:
    raise InputError(f'{path} cannot be opened ({e.strerror or e})') from e


def _load(path: str) -> np.ndarray:
  where = paths.path(path)
  try:
    with where.open('rb') as file:
      found = np.load(file, allow_pickle=False)
  except OSError as e:
    raise InputError(f'{path} cannot be opened ({e.strerror or e})') from e
  except Exception as e:  # numpy raises nearly anything for a broken file
    raise InputError(f'{path} is not a .npy file: {e}') from e
  if not isinstance(found, np.ndarray):
    raise InputError(f'{path} is not a .npy file, but holds several arrays')
  return found
