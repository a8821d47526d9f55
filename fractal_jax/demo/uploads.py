"""What visitors upload: images and masks, within limits, as values."""

import os
import pathlib

from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from fractal_jax.data import common, decode
from fractal_jax.demo import DemoError
from fractal_jax.inference import inputs

MAX_BYTES = 5 * 2**20
MAX_PIXELS = 16_000_000  # 48 MB of RGB
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp')


def open_image(path: str) -> Image.Image:
  """An image file as RGB; deleted from the disk, whatever becomes of it.

  Its size in bytes, its format and its size in pixels are checked before any of
  its pixels is decoded: see `data/decode.py`.

  Raises:
    DemoError: naming what is wrong, and the rule.
  """
  try:
    name, size = pathlib.Path(path).name, os.path.getsize(path)
    if size > MAX_BYTES:
      raise DemoError(
        f'{name} has {size / 2**20:.1f} MB: the limit is '
        f'{MAX_BYTES / 2**20:.0f} MB'
      )
    return decode.load(path, name, formats=FORMATS, max_pixels=MAX_PIXELS)
  except decode.ImageError as e:
    raise DemoError(str(e)) from e
  finally:
    pathlib.Path(path).unlink(missing_ok=True)


def read_image(path: str, model: ConfigDict) -> tuple[np.ndarray, str]:
  """An upload as values [S, S, C], and a note on what was done to it.

  Images of another size are cropped and resized as in training.
  """
  return inputs.fitted(open_image(path), 'The upload', model)


def read_mask(path: str, model: ConfigDict) -> np.ndarray:
  """An upload as a mask [S, S, C], True (white) where to generate.

  A coloured image has one plane per channel, for models of three channels.
  """
  name = pathlib.Path(path).name
  shades = common.to_array(open_image(path), model.sizes[0], 3)
  mask = inputs.mask_of(shades, model, name)
  mask = mask if mask.ndim == 3 else mask[..., None]
  return np.broadcast_to(mask, common.image_shape(model)).copy()
