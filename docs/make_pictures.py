"""Makes the pictures of the README: samples, a movie, and the drawing.

  python docs/make_pictures.py [--workdir=runs/digits]

Trains configs/digits.py in --workdir first if that run is not finished, which
takes a few minutes on two CPU cores. `fractal-jax sample` draws the samples and
the movie; both are enlarged here, the samples smoothly. The drawing of the
recursion is written twice, for GitHub's light and dark pages.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image, ImageSequence

ROOT = pathlib.Path(__file__).parent.parent
OUT = ROOT / 'docs' / 'pictures'
LEVELS = (  # each: its name, and what it is in two lines
  ('level 0', 'a transformer', 'over 256 patches'),
  ('level 1', 'a smaller one', 'over the 16 pixels of a patch'),
  ('pixel level', 'a tiny one', 'over the 3 channels of a pixel'),
)
COLOURS = {  # line, text, and the three channels
  'light': ('#8c959f', '#1f2328', ('#d1242f', '#1a7f37', '#0969da')),
  'dark': ('#6e7681', '#e6edf3', ('#f85149', '#3fb950', '#58a6ff')),
}


def fractal_jax(*args: str) -> None:
  command = [sys.executable, '-m', 'fractal_jax.main', *args]
  subprocess.run(command, check=True, cwd=ROOT)


def show_samples(values: np.ndarray, columns: int, path: pathlib.Path) -> None:
  """Digits [n, 8, 8, 1] of 0 .. 16 as a smooth picture, 50 pixels a digit."""
  rows = len(values) // columns
  room = np.pad(values[..., 0], ((0, 0), (1, 1), (1, 1)))  # a border each
  side = room.shape[-1]
  sheet = room.reshape(rows, columns, side, side).swapaxes(1, 2)
  sheet = sheet.reshape(rows * side, columns * side)
  picture = Image.fromarray((sheet * (255 / 16)).round().astype(np.uint8))
  size = picture.width * 5, picture.height * 5
  picture.resize(size, Image.Resampling.BICUBIC).save(path, optimize=True)


def enlarge(path: pathlib.Path, times: int) -> None:
  """A movie with every pixel `times` as wide and high."""
  with Image.open(path) as movie:
    frames, stays = [], []
    for frame in ImageSequence.Iterator(movie):
      size = frame.width * times, frame.height * times
      frames.append(frame.convert('L').resize(size, Image.Resampling.NEAREST))
      stays.append(frame.info['duration'])
  frames[0].save(
    path, save_all=True, append_images=frames[1:], duration=stays, loop=0
  )


def drawing(theme: str) -> str:
  """The recursion as an SVG: a square, one of its patches, one of its pixels.

  Each square is the marked cell of the one before it.
  """
  line, ink, channels = COLOURS[theme]
  side, top, gap = 160, 20, 140
  accent = channels[2]
  shapes = []

  def grid(x, cells):
    step = side / cells
    for i in range(cells + 1):
      at = i * step
      shapes.append(
        f'<path d="M{x + at:g} {top}v{side}M{x} {top + at:g}h{side}" '
        f'stroke="{line}" stroke-width="{1 if 0 < i < cells else 2}"/>'
      )

  def zoom(x, cells, row, column):
    """Marks a cell, and leads from it to the next square."""
    step = side / cells
    left, y = x + column * step, top + row * step
    to = x + side + gap
    shapes.append(
      f'<rect x="{left:g}" y="{y:g}" width="{step:g}" height="{step:g}" '
      f'fill="{accent}"/><path d="M{left + step:g} {y:g}L{to} {top}'
      f'M{left + step:g} {y + step:g}L{to} {top + side}" stroke="{accent}" '
      'stroke-width="1.5" stroke-dasharray="5 4"/>'
    )

  grid(0, 16)
  zoom(0, 16, 5, 9)
  grid(side + gap, 4)
  zoom(side + gap, 4, 1, 2)
  x = 2 * (side + gap)
  for i, (name, colour) in enumerate(zip('RGB', channels)):
    width = side / 3
    shapes.append(
      f'<rect x="{x + i * width:g}" y="{top}" width="{width:g}" '
      f'height="{side}" fill="{colour}" fill-opacity="0.85" stroke="{line}" '
      f'stroke-width="2"/><text x="{x + (i + 0.5) * width:g}" '
      f'y="{top + side / 2 + 8}" class="big" fill="#fff">{name}</text>'
    )
  for i, (name, *lines) in enumerate(LEVELS):
    middle, y = i * (side + gap) + side / 2, top + side + 28
    shapes.append(f'<text x="{middle:g}" y="{y}" class="big">{name}</text>')
    for j, words in enumerate(lines):
      shapes.append(
        f'<text x="{middle:g}" y="{y + 22 + 18 * j}">{words}</text>'
      )
  for i, whose in enumerate(('per patch', 'per pixel')):
    middle, y = (i + 0.5) * (side + gap) + side / 2, top + side / 2
    for j, words in enumerate(('one condition', whose)):
      shapes.append(
        f'<text x="{middle:g}" y="{y - 4 + 18 * j}" fill="{accent}">'
        f'{words}</text>'
      )
  margin = 40
  width, height = 3 * side + 2 * gap + 2 * margin, top + side + 80
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
    f'height="{height}" viewBox="{-margin} 0 {width} {height}" fill="none">\n'
    '<title>A square of patches, a patch of pixels, a pixel of channels'
    '</title>\n<style>text { font: 14px sans-serif; text-anchor: middle } '
    f'.big {{ font-size: 18px }}</style>\n<g fill="{ink}">\n'
    + '\n'.join(s.replace('<path', '<path fill="none"') for s in shapes)
    + '\n</g>\n</svg>\n'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='runs/digits')
  workdir = f'--workdir={parser.parse_args().workdir}'
  OUT.mkdir(exist_ok=True)
  for theme in COLOURS:
    (OUT / f'recursion_{theme}.svg').write_text(drawing(theme))
  fractal_jax('train', '--config=configs/digits.py', workdir)
  with tempfile.TemporaryDirectory() as folder:
    values = pathlib.Path(folder) / 'samples.npz'
    how = ('sample', workdir, f'--out={values}', '--guidance=2')
    fractal_jax(*how, '--num=40')
    with np.load(values) as found:
      show_samples(found['images'], 10, OUT / 'samples.png')
    movie = OUT / 'growing.gif'
    fractal_jax(*how, '--num=4', '--labels=2,5', '--seed=4', f'--movie={movie}')
    enlarge(movie, 2)


if __name__ == '__main__':
  main()
