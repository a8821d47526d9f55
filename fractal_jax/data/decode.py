"""The one decoder of images: a file to 8-bit RGB or grey, as a viewer shows it.

Training, editing, explaining, metrics, the demo and masks read images here, by
the same rules:

- The formats are those of FORMATS, whatever the file is called; of an
  animation the first picture is read.
- An image is turned as its EXIF orientation says. The one exception is
  `imagenet2012`, whose published crop leaves images as they are stored.
- Transparent pixels are composited on white. So the transparent pixels of a
  mask are white, too: they are generated.
- Images of more than 8 bits per value are refused, also where Pillow would cut
  them to 8 bits without a word. (AVIF is the exception: its decoder scales 10
  and 12 bits to 8.) CMYK, palettes and black-and-white are converted.
- Images of too many pixels, or of an extreme shape, are refused by their
  header, before any pixel is decoded.
"""

from collections.abc import Iterator
import contextlib
import os
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from fractal_jax.errors import UserError

FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
EXTENSIONS = (  # by which a folder's images are found, in any case
  '.avif .bmp .gif .jfif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp'.split()
)
MAX_PIXELS = 178_956_970  # beyond which Pillow, too, refuses an image
MAX_RATIO = 100  # of the longer side to the shorter


class ImageError(UserError, ValueError):
  """A file that can't be read as an image; the message names it and why."""


def load(
  file: str | os.PathLike | BinaryIO,
  name: str,
  mode: str = 'RGB',
  *,
  upright: bool = True,
  formats: tuple[str, ...] = FORMATS,
  max_pixels: int = MAX_PIXELS,
  least: int | None = None,
) -> Image.Image:
  """Decodes an image by the rules above.

  Args:
    file: a path, or a binary file object.
    name: of the image, for errors.
    mode: 'RGB' or 'L', of the result.
    upright: turn the image as its EXIF orientation says.
    formats: which of FORMATS are read.
    max_pixels: the most that are decoded.
    least: a JPEG may come out smaller, with sides of at least this many pixels,
      in a fraction of the time; None: in full.

  Raises:
    ImageError: it can't be opened, is damaged, or breaks a rule.
  """
  with _opened(file, name, formats, max_pixels) as image:
    if least is not None:
      image.draft(None, (least, least))
    if upright:
      ImageOps.exif_transpose(image, in_place=True)
    return on_white(image).convert(mode)


def size(file: str | os.PathLike | BinaryIO, name: str) -> tuple[int, int]:
  """Width and height by the header alone; raises ImageError as `load` does."""
  with _opened(file, name, FORMATS, MAX_PIXELS) as image:
    return image.size


def on_white(image: Image.Image) -> Image.Image:
  """The image without transparency, composited on white."""
  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


@contextlib.contextmanager
def _opened(file, name, formats, max_pixels) -> Iterator[Image.Image]:
  """An image whose header is read; what PIL raises becomes an ImageError."""
  try:
    with Image.open(file, formats=formats) as image:
      _check_header(image, name, max_pixels)
      yield image
  except ImageError:
    raise
  except Image.DecompressionBombError as e:
    raise ImageError(
      f'{name} has too many pixels: the limit is {max_pixels:,} in all'
    ) from e
  except Exception as e:  # a broken file makes PIL raise nearly anything
    if isinstance(e, OSError) and e.errno is not None:  # the system's
      raise ImageError(f'{name} cannot be opened ({e.strerror})') from e
    unknown = isinstance(e, UnidentifiedImageError)  # names an object
    raise ImageError(
      f'{name} is not an image that can be read, one of {", ".join(formats)} '
      f'({"it is none of them, or cut off" if unknown else e})'
    ) from e


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
  width, height = image.size
  if width * height > max_pixels:
    raise ImageError(
      f'{name} has {width}x{height} pixels: the limit is {max_pixels:,} in all'
    )
  if not 0 < max(image.size) <= MAX_RATIO * min(image.size):
    raise ImageError(
      f'{name} has {width}x{height} pixels: the longer side may be at most '
      f'{MAX_RATIO} times the shorter'
    )
  if _is_deep(image):
    raise ImageError(
      f'{name} has more than 8 bits per value (mode {image.mode}): convert it '
      'to 8 bits'
    )


def _is_deep(image: Image.Image) -> bool:
  """Whether values have more than 8 bits, by what is to be decoded.

  Pillow gives 16-bit colour, and grey with transparency, as 8-bit modes.
  """
  if image.mode[0] in 'IF':
    return True
  for tile in image.tile:
    if image.format in ('PNG', 'TIFF') and ';16' in str(tile[3]):
      return True
    if image.format == 'PPM' and tile[0] == 'ppm' and tile[3][-1] > 255:
      return True
  return False
