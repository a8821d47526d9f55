"""An explanation in words, as pictures, and as one HTML page."""

import html

from ml_collections import ConfigDict
import numpy as np

from fractal_jax import pages, paths, pictures
from fractal_jax.inference.explain import Explanation
from fractal_jax.models import colour
from fractal_jax.pages import table

STYLE = """
figcaption { max-width: 256px }
img { image-rendering: pixelated; width: 256px }
"""


def write(
  found: Explanation,
  image: np.ndarray,
  model: ConfigDict,
  folder: str,
  label: str = '',
) -> str:
  """Writes the maps as PNGs, bits.npy [S, (S,) C], and report.html.

  Args:
    found: what `explain` found.
    image: the image that was explained, [S, (S,) C].
    model: the config's section `model`.
    folder: where to; made where it is missing.
    label: the class that the model was told, in words; '' for none.

  Returns:
    The path of report.html, a page that needs no other file.
  """
  path = paths.path(folder)
  shots = maps(found, image, model)
  for name, shot in shots.items():
    pictures.save(shot, str(path / f'{name}.png'))
  with paths.atomic_write(path / 'bits.npy') as file:
    np.save(file, found.bits)
  paths.write_text(path / 'report.html', page(found, shots, label))
  return str(path / 'report.html')


def maps(
  found: Explanation, image: np.ndarray, model: ConfigDict
) -> dict[str, np.ndarray]:
  """The image and its maps of bits, as pictures [H, W, 3] by name.

  The names: image, bits, bits_channel_0 ... (of several channels),
  bits_level_0 ... (summed to patches), guides_level_0 ... (guiding pixels).
  """
  (shot,) = pictures.from_values(np.asarray(image)[None], model)
  heats = {name: pictures.heat(bits) for name, bits in numbers(found).items()}
  return {'image': pictures.enlarged(shot, 256), **heats}


def numbers(found: Explanation) -> dict[str, np.ndarray]:
  """The bits that each of `maps` but the image shows, [w] or [h, w]."""
  out = {'bits': found.bits.sum(-1)}
  if found.bits.shape[-1] > 1:
    for c in range(found.bits.shape[-1]):
      out[f'bits_channel_{c}'] = found.bits[..., c]
  for level, side in enumerate(found.sides):
    if side > 1:
      out[f'bits_level_{level}'] = found.patches(level)
  for level, guides in enumerate(found.guide_bits):
    if guides.size:
      out[f'guides_level_{level}'] = guides
  return out


def captions(found: Explanation) -> dict[str, str]:
  """What to say below each of `maps`, by name."""
  top = found.bits.sum(-1).max()
  thing, one, most = 'image', 'pixel', 'brightest'
  if found.bits.ndim == 2:  # [S, C], drawn as bars
    thing, one, most = 'series', 'step', 'highest'
  out = {
    'image': f'the {thing}',
    'bits': f'bits of each {one}; the {most} has {top:.2f}',
  }
  names = colour.NAMES[found.colour.space]
  if names is None and found.bits.shape[1:] == (found.bits.shape[0], 3):
    names = ('red', 'green', 'blue')
  for c in range(found.bits.shape[-1]):
    x = found.bits[..., c]
    name = f'channel {c}' + (f', {names[c]}' if names else '')
    out[f'bits_channel_{c}'] = (
      f'{name}: {x.sum():.2f} bits; the {most} has {x.max():.2f}'
    )
  for level in range(len(found.sides)):
    top = found.patches(level).max()
    out[f'bits_level_{level}'] = (
      f'patches of level {level}; the {most} has {top:.2f}'
    )
  for level, guides in enumerate(found.guide_bits):
    if guides.size:
      out[f'guides_level_{level}'] = (
        f'guiding pixels of level {level}: {guides.sum():.2f} bits; the '
        f'{most} has {guides.max():.2f}'
      )
  return out


def summary(found: Explanation) -> str:
  """The bits of the image, and what kind of number that is; one line."""
  kind = 'exact'
  if not found.exact:
    kind = f'± {found.stderr:.2f}, {found.passes} random masks'
  if any(g.size for g in found.guide_bits):
    kind += ', an upper bound'
  if found.colour.lossy:
    kind += ', of its rounded colours'
  if found.dropped:
    kind += f', {found.dropped} masked patches did not fit and were left out'
  return f'{found.total:.2f} bits ({kind}), {found.bits_per_dim:.4f} bits/dim'


def page(
  found: Explanation, shots: dict[str, np.ndarray], label: str = ''
) -> str:
  """The HTML page of `maps`: pictures inside, no other files, no scripts."""
  texts, bits = captions(found), numbers(found)
  figures = ''.join(
    pages.figure(
      shot,
      texts.get(name, name),
      alt=name,
      below=colour_bar(bits[name]) if name in bits else '',
    )
    for name, shot in shots.items()
  )
  told = f'of the class {html.escape(label)}' if label else 'of no class'
  levels = table(('level', 'share of bits', 'share of FLOPs'), _levels(found))
  ranked = table(('level', 'pixels, from 0', 'bits'), _ranked(found))
  body = f"""<h1>{summary(found)}</h1>
<p>The model was told that the image is {told}.</p>
<div>{figures}</div>
<h2>By level</h2>
{levels}
<p>Values cost their bits at the last level; levels above it have bits of their
own only where they draw a guiding pixel.</p>
{conditions(found)}
<h2>The most surprising patches</h2>
{ranked}"""
  return pages.page('Bits of an image', body, style=STYLE)


def _levels(found: Explanation) -> list[tuple]:
  """Rows of a table: each level's share of the bits and of the FLOPs."""
  rank = found.bits.ndim - 1
  names = [
    f'{i}: {found.patches(i).size} patches of {"x".join([str(side)] * rank)}'
    for i, side in enumerate(found.sides)
  ]
  names.append(f'{len(found.sides)}: the values of a pixel')
  return [
    (name, f'{share:.1%}', f'{flops:.1%}')
    for name, share, flops in zip(names, found.shares, found.flops)
  ]


def conditions(found: Explanation) -> str:
  """HTML: what each condition is worth, and what that means."""
  sign = lambda c: '+' if c.worth >= 0 else ''
  rows = [
    (c.level, c.name, sign(c) + _number(found, c.worth, c.stderr))
    for c in found.conditions
  ]
  worth = table(('level told', 'condition', 'bits more without'), rows)
  return f"""<h2>What the conditions are worth</h2>
{worth}
<p>A level is told the class, or what the level above puts out at the patch
itself and at its neighbours. The model was trained with all of them: without
one it sees zeros (without the class, "no class").</p>"""


def _ranked(found: Explanation) -> list[tuple]:
  """Rows of a table: the five most surprising patches of each level."""
  return [
    (level, _place(at, side), _number(found, bits, found.errors(level)[at]))
    for level, side in enumerate(found.sides)
    for at, bits in found.ranked(level, 5)
  ]


def _number(found: Explanation, bits: float, error: float) -> str:
  """Bits, with their standard error where they are estimates."""
  return f'{bits:.2f}' + ('' if found.exact else f' ± {error:.2f}')


def _place(at: tuple[int, ...], side: int) -> str:
  """The pixels of a patch, from its place in the grid."""
  names = ('step',) if len(at) == 1 else ('row', 'column')
  return ', '.join(
    f'{name} {i}'
    if side == 1
    else f'{name}s {i * side} to {(i + 1) * side - 1}'
    for name, i in zip(names, at)
  )


def colour_bar(bits: np.ndarray) -> str:
  """The colours of `pictures.heat` from 0 to its largest number.

  Args:
    bits: the map [h, w]; or [w], which is drawn as bars: '' for these.
  """
  if bits.ndim == 1:
    return ''
  stops = pictures.heat_colours(np.linspace(0, 1, 9))
  colours = ', '.join(f'rgb({r}, {g}, {b})' for r, g, b in stops)
  return (
    '<div style="display: flex; gap: 6px; font-size: 12px; max-width: 256px; '
    'align-items: center">0 <span style="flex: 1; height: 8px; background: '
    f'linear-gradient(to right, {colours})"></span> {bits.max():.2f} bits</div>'
  )
