"""Values as pictures: shades, curves of series, heat maps, grids, movies.

A picture is uint8 RGB, [H, W, 3]. Shades run from 0 (value 0) to 255 (value
V - 1). `model` is always a config's section `model`.
"""

from collections.abc import Iterator, Sequence
import functools
import importlib.util
import io
import math
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from fractal_jax import paths
from fractal_jax.data.common import image_dtype
from fractal_jax.errors import UserError
from fractal_jax.models.types import NEVER, Drawn

SMALLEST = 64  # side, in pixels, of an image in a grid
LETTERS = 28  # height, in pixels, of what is written in a grid
GREY = 128  # the shade of a value that is not known
FRAME = 40  # milliseconds that a frame of a movie stays
SLOW = 8000  # milliseconds of all frames in slow motion, at most
LAST = 2520  # milliseconds of the last frame
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))


class PictureError(UserError, ValueError):
  """A file format that pictures or movies can't be written in."""


# Values and shades.


def from_values(values: np.ndarray, model: ConfigDict) -> np.ndarray:
  """Pictures [n, H, W, 3] of values [n, S, (S,) C].

  Images of one channel are grey; of any other number but three, the channels
  lie side by side. A series is drawn as curves, one per channel.
  """
  return _from_shades(_shades(values, model), model)


def to_values(shades: np.ndarray, model: ConfigDict) -> np.ndarray:
  """Values of shades [...]; the inverse of `from_values` for grey and RGB."""
  scale = (model.num_values - 1) / 255
  return np.round(shades * scale).astype(image_dtype(model))


def hidden(
  values: np.ndarray, mask: np.ndarray, model: ConfigDict
) -> np.ndarray:
  """Values [..., S, (S,) C] with grey where the mask is True.

  Of a series, -1, which leaves a gap in its curve.
  """
  if model.rank == 1:
    return np.where(mask, -1, np.asarray(values).astype(int))
  return np.where(mask, round(GREY * (model.num_values - 1) / 255), values)


def _shades(values: np.ndarray, model) -> np.ndarray:
  return np.round(np.asarray(values) * (255 / (model.num_values - 1)))


def _from_shades(shades: np.ndarray, model) -> np.ndarray:
  if model.rank == 1:
    return np.stack([_curves(x) for x in shades])
  shades = shades.astype(np.uint8)
  if model.channels == 3:
    return shades
  side_by_side = np.concatenate(np.moveaxis(shades, -1, 0), 2)  # [n, S, C S]
  return np.repeat(side_by_side[..., None], 3, -1)


def _curves(series: np.ndarray, height: int = 64) -> np.ndarray:
  """A picture [height, S, 3] of shades [S, C]; a gap where they are below 0.

  Short series are drawn wide, so that each step can be seen.
  """
  wide = max(1, 4 * height // len(series))
  out = np.full((height, len(series) * wide, 3), 255, np.uint8)
  rows = ((255 - series) * ((height - 1) / 255)).round().astype(int)
  rows = np.where(series < 0, height, rows)  # below the picture
  for c in range(series.shape[1]):
    for t, row in enumerate(rows[:, c]):
      before = rows[max(t - 1, 0), c]
      if row < height:
        low, high = sorted((before if before < height else row, row))
        at = t * wide
        out[low : high + 1, at] = COLOURS[c % len(COLOURS)]
        out[row, at : at + wide] = COLOURS[c % len(COLOURS)]
  return out


def heat(values: np.ndarray, size: int = 256) -> np.ndarray:
  """A map [w] or [h, w] of numbers >= 0 as a picture: 0 is black.

  The largest number is the brightest colour. Each number becomes a square of
  whole pixels, so that the picture is about `size` wide. A map [w], of a
  series, is drawn as bars: the largest number is the highest one.
  """
  x = np.asarray(values)
  if x.ndim == 1:
    return _bars(x, size)
  return enlarged(heat_colours(x / max(float(x.max()), 1e-9)), size)


def heat_colours(shares: np.ndarray) -> np.ndarray:
  """The colours [..., 3] of numbers [...] from 0, black, to 1, bright."""
  import matplotlib

  shades = matplotlib.colormaps['magma'](np.clip(shares, 0, 1))[..., :3]
  return np.round(shades * 255).astype(np.uint8)


def _bars(values: np.ndarray, size: int, height: int = 64) -> np.ndarray:
  """A picture [height, about size, 3] of bars as high as numbers [w] >= 0."""
  top = max(float(values.max()), 1e-9)
  high = np.round(np.clip(values / top, 0, 1) * height)
  filled = np.arange(height, 0, -1)[:, None] <= high  # [height, w]
  picture = np.where(filled[..., None], COLOURS[0], 255).astype(np.uint8)
  return picture.repeat(max(1, size // len(values)), 1)


def enlarged(picture: np.ndarray, size: int) -> np.ndarray:
  """A picture with each pixel repeated, until it is about `size` wide."""
  scale = max(1, size // picture.shape[1])
  return picture.repeat(scale, 0).repeat(scale, 1)


def most_classes(model: ConfigDict) -> int:
  """Up to how many classes have a column of their own: series are wide."""
  return 4 if model.rank == 1 else 16


def grid(
  images: np.ndarray,
  columns: int | None = None,
  names: Sequence[str] | None = None,
) -> np.ndarray:
  """One picture of pictures [n, H, W, 3], row by row, small ones enlarged.

  Args:
    images: the pictures.
    columns: pictures per row; as many as rows where None.
    names: what to write for each of them: above a column that has one name, or
      else below each picture.
  """
  n, h, w, _ = images.shape
  scale = math.ceil(SMALLEST / h)
  images = images.repeat(scale, 1).repeat(scale, 2)
  columns = int(np.ceil(np.sqrt(n))) if columns is None else min(columns, n)
  rows = -(-n // columns)
  above = below = 0
  if names is not None:
    by_column = all(name == names[i % columns] for i, name in enumerate(names))
    above, below = (LETTERS, 0) if by_column else (0, LETTERS)
  gap = 2
  h, w = h * scale + gap + below, w * scale + gap
  out = np.full((above + rows * h + gap, columns * w + gap, 3), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = above + i // columns * h + gap, i % columns * w + gap
    out[y : y + h - gap - below, x : x + w - gap] = image
    if below or (above and i < columns):
      top = y + h - gap - below if below else gap
      out[top : top + LETTERS, x : x + w - gap] = _written(names[i], w - gap)
  return out


@functools.lru_cache(1024)
def _written(text: str, width: int) -> np.ndarray:
  """A text as a picture [LETTERS, width, 3], in two lines at the most."""
  from PIL import Image, ImageDraw, ImageFont

  font = ImageFont.load_default(11)
  fits = lambda line: font.getlength(line) <= width
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if fits(longer) or not lines[-1]:
      lines[-1] = longer
    else:
      lines.append(word)
  if len(lines) > 2:
    lines = [lines[0], ' '.join(lines[1:])]
  for i, line in enumerate(lines):
    while not fits(lines[i]):
      line = line[:-1]
      lines[i] = f'{line.rstrip()}…'
  image = Image.new('RGB', (width, LETTERS), 'white')
  draw = ImageDraw.Draw(image)
  for i, line in enumerate(lines):
    middle = LETTERS / 2 + (i - (len(lines) - 1) / 2) * 12
    draw.text((width / 2, middle), line, 'black', font, anchor='mm')
  return np.asarray(image)


def png(picture: np.ndarray) -> bytes:
  """A picture as the bytes of a PNG."""
  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'png')
  return file.getvalue()


def save(picture: np.ndarray, path: str) -> None:
  """Writes a picture; the ending of the path says in what format."""
  from PIL import Image

  ending = os.path.splitext(path)[1].lower()
  with paths.atomic_write(path) as file:
    Image.fromarray(picture).save(file, Image.registered_extensions()[ending])


# Movies of images that are being generated.


def movie(
  drawn: Drawn,
  model: ConfigDict,
  *,
  columns: int | None = None,
  frames: int = 150,
  names: Sequence[str] | None = None,
) -> Iterator[tuple[np.ndarray, int]]:
  """Shows images being generated, value by value.

  The first two patches of level 0 grow in slow motion; the rest follows faster
  and faster. What is not drawn yet is grey: the lighter, the more levels have
  begun on the patch that it lies in.

  Args:
    drawn: what `sample.draw` gave with `record`.
    model: the config's section `model`.
    columns: of the grid.
    frames: at most.
    names: what to write for each image, see `grid`.

  Yields:
    (a picture, the milliseconds that it stays).
  """
  total = int(np.prod(drawn.values.shape[1:]))
  patch = model.sizes[1] ** model.rank * model.channels
  slow = min(2 * patch, total, max(frames // 3, 1))
  pace = np.linspace(0, 1, max(frames - slow, 2)) ** 2
  fast = np.unique((slow + pace * (total - slow)).astype(int))[1:]
  begun = _begun(drawn.when, model)
  for t in [*range(slow + 1), *fast]:
    stays = FRAME
    if t <= slow:
      stays = int(np.clip(SLOW // slow, FRAME, FRAME * 6)) // 10 * 10
    shot = _before(t, drawn, model, begun)
    yield grid(shot, columns, names), stays if t < total else LAST


def so_far(drawn: Drawn, model: ConfigDict) -> np.ndarray:
  """Pictures [n, H, W, 3] of images that are being generated, see `movie`."""
  return _before(NEVER, drawn, model, _begun(drawn.when, model))


def _before(t: int, drawn: Drawn, model, begun: list) -> np.ndarray:
  """Pictures [n, H, W, 3] of what was drawn before time t."""
  shades = _shades(drawn.values, model)
  if model.rank == 1:  # a curve has gaps where nothing is drawn yet
    grey = -1
  else:  # channels of a pixel not drawn yet are grey in that channel alone
    grey = GREY // 2 + GREY * sum(x < t for x in begun) / (2 * len(begun))
  return _from_shades(np.where(drawn.when < t, shades, grey), model)


def _begun(when: np.ndarray, model) -> list[np.ndarray]:
  """When the patch around each value was begun, for levels above pixels.

  Args:
    when: [n, S, (S,) C] when each value was drawn.
    model: the config's section `model`.

  Returns:
    An array [n, S, (S,) C] per level, outermost first.
  """
  out = []
  for side in model.sizes[1:]:
    n = when.shape[1] // side
    patches = when.reshape((len(when),) + (n, side) * model.rank + (-1,))
    inside = tuple(range(2, 2 * model.rank + 1, 2)) + (-1,)
    known = np.where(patches < 0, np.iinfo(when.dtype).max, patches)
    first = known.min(inside, keepdims=True)
    out.append(np.broadcast_to(first, patches.shape).reshape(when.shape))
  return out


def save_movie(drawn: Drawn, model: ConfigDict, path: str, **how: Any) -> None:
  """Writes `movie`, whose arguments it takes, as a .gif or an .mp4.

  Raises:
    PictureError: another ending, or no encoder for .mp4.
  """
  check_movie(path)
  shots = movie(drawn, model, **how)
  save_shots = _save_mp4 if path.endswith('.mp4') else _save_gif
  with paths.atomic_write(path) as file:
    save_shots(shots, file)


def _save_gif(shots: Iterator[tuple[np.ndarray, int]], file) -> None:
  from PIL import Image

  images, stays = zip(*((Image.fromarray(x), ms) for x, ms in shots))
  images[0].save(
    file,
    'GIF',
    save_all=True,
    append_images=images[1:],
    duration=list(stays),
    loop=0,
  )


def _save_mp4(shots: Iterator[tuple[np.ndarray, int]], file) -> None:
  from imageio import v2 as imageio

  how = {'fps': 1000 / FRAME, 'codec': 'libx264', 'macro_block_size': 2}
  with imageio.get_writer(file.name, format='FFMPEG', quality=8, **how) as out:
    for picture, stays in shots:
      h, w, _ = picture.shape  # H.264 takes even sides
      picture = np.pad(picture, ((0, h % 2), (0, w % 2), (0, 0)), 'edge')
      for _ in range(round(stays / FRAME)):
        out.append_data(picture)


def check_movie(path: str) -> None:
  """Raises PictureError for a movie that `save_movie` could not write."""
  if not path.endswith(('.gif', '.mp4')):
    raise PictureError(f'--movie={path} must end in .gif or .mp4')
  if path.endswith('.mp4') and not importlib.util.find_spec('imageio_ffmpeg'):
    raise PictureError(
      f"--movie={path} needs pip install 'fractal_jax[movie]'; a .gif does not"
    )
