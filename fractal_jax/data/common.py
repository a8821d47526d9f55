"""What every source of images shares: the interface, splits, the crop.

A source is one split of one data set, read at random:
`source[i] -> (image, label)`. The functions that open one are listed in
`fractal_jax.data.pipeline.SOURCES`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import BinaryIO

from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from fractal_jax.data import decode as decoder
from fractal_jax.errors import UserError

SPLITS = ('train', 'validation')
FROM_DIR = ('folder', 'npz', 'series')  # data.name of what data.dir holds
ALL = 'all'  # of data without splits, to be scored


class DataError(UserError, ValueError):
  """Data that is missing or unfit; the message names it and the way out."""


def image_dtype(model: ConfigDict) -> type:
  """The integer type of images: the smallest that holds a model's values."""
  small = model.num_values <= 256 and not model.unknown
  return np.uint8 if small else np.int32


def image_shape(model: ConfigDict) -> tuple[int, ...]:
  """The shape of one image, (S, (S,) C)."""
  return (model.sizes[0],) * model.rank + (model.channels,)


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of a data set.

  Attributes:
    size: number of examples.
    read: i -> (image [S, S, C] or series [S, C] of integers, label). Called
      from many threads; raises DataError naming the file that is unfit.
    class_names: name of each label, in order.
    values: the values are 0 .. values - 1.
    check: raises DataError for whatever can be found without decoding.
    skipped: which files are left out and why, a sentence; '' if none are.
    files: texts by name that a run keeps in its work directory.
  """

  size: int
  read: Callable[[int], tuple[np.ndarray, int]]
  class_names: tuple[str, ...]
  values: int
  check: Callable[[], None] = lambda: None
  skipped: str = ''
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check_split(config: ConfigDict, split: str, splits: Sequence[str]) -> None:
  """Raises DataError if the data set has no such split."""
  if split not in splits:
    raise DataError(
      f"data set '{config.data.name}' has no split '{split}': set "
      f'data.train_split and data.val_split to two of {", ".join(splits)}, or '
      '--split to one.'
    )


def split_of(split: str, n: int, num_val: int | None = None) -> np.ndarray:
  """Records [m] of a split drawn once and for all from n records.

  Args:
    split: 'train', 'validation', or 'all'.
    n: number of records.
    num_val: validation records, by default a tenth.

  Returns:
    The numbers of the records of the split, sorted.
  """
  if split == ALL:
    return np.arange(n)
  num_train = n - (max(1, n // 10) if num_val is None else num_val)
  order = np.random.default_rng(0).permutation(n)
  return np.sort(order[:num_train] if split == 'train' else order[num_train:])


def check_images(config: ConfigDict) -> None:
  """Raises DataError if the model cannot take images of 256 colours."""
  name, m = config.data.name, config.model
  if m.rank != 2:
    raise DataError(
      f"data set '{name}' holds images but model.rank={m.rank}: set "
      "model.rank=2, or read series with data.name='npz'."
    )
  if m.channels not in (1, 3):
    raise DataError(
      f"data set '{name}' is read as grey (model.channels=1) or RGB (3), "
      f'not with model.channels={m.channels}.'
    )


def remedy(config: ConfigDict) -> str:
  """What to do with an image that can't be used."""
  if config.data.list:  # which goes on to name what is removed
    return (
      'put back the image that was there, or, for a new run, leave it out: '
      f"empty its split in data.list='{config.data.list}'"
    )
  return 'mend it or remove it'


def check_size(name: str, size: tuple[int, int], config: ConfigDict) -> None:
  """Raises DataError if an image (width, height) must be enlarged to fit."""
  side = config.model.sizes[0]
  if min(size) < side:
    raise DataError(
      f'{name} has {size[0]}x{size[1]} pixels, fewer than the {side}x{side} '
      f'of the model: {remedy(config)}, or set model.sizes[0] to {min(size)} '
      'or less.'
    )


def decode(
  file: str | os.PathLike | BinaryIO,
  name: str,
  config: ConfigDict,
  published: bool = False,
) -> np.ndarray:
  """Reads an encoded image as uint8 [S, S, C] for the model of the config.

  Args:
    file: path or binary file object.
    name: of the image, for errors.
    config: reads model.sizes[0] and model.channels.
    published: as the published code reads ImageNet: images smaller than the
      model's are enlarged, and none is turned as its EXIF orientation says.

  Raises:
    DataError: the image is refused by `decode.load`, or too small.
  """
  m = config.model
  mode = 'RGB' if m.channels == 3 else 'L'
  try:
    image = decoder.load(file, name, mode, upright=not published)
  except decoder.ImageError as e:
    raise DataError(f'{e}; {remedy(config)}.') from e
  if not published:
    check_size(name, image.size, config)
  return to_array(image, m.sizes[0], m.channels)


def to_array(image: Image.Image, side: int, channels: int) -> np.ndarray:
  """A PIL image as uint8 [side, side, channels], by ADM's centre crop.

  Transparent pixels are composited on white.
  """
  mode = 'RGB' if channels == 3 else 'L'
  image = center_crop(decoder.on_white(image).convert(mode), side)
  return np.asarray(image).reshape(side, side, channels)


def center_crop(image: Image.Image, side: int) -> Image.Image:
  """The square of `side` pixels in the middle, as ADM and the paper cut it.

  The image is halved by averaging while its short side is at least twice
  `side`, brought to `side` by bicubic interpolation, then cropped. Smaller
  images are enlarged.
  """
  while min(image.size) >= 2 * side:
    image = image.resize(
      tuple(x // 2 for x in image.size), Image.Resampling.BOX
    )
  scale = side / min(image.size)
  image = image.resize(
    tuple(round(x * scale) for x in image.size), Image.Resampling.BICUBIC
  )
  left, top = ((x - side) // 2 for x in image.size)
  return image.crop((left, top, left + side, top + side))
