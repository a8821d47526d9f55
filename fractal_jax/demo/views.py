"""HTML that the page shows: pictures and progress."""

import html
import json
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from fractal_jax.pages import data_url
from fractal_jax.report import colour_bar


class Numbers(NamedTuple):
  """What a picture is drawn of; the pointer shows it.

  Attributes:
    values: [h, w] or [h, w, C], whatever the picture's own size; [1, w, (C)]
      where it is a curve.
    unit: 'bits' of a map of bits, which has a colour bar; what is written
      behind a value.
  """

  values: np.ndarray
  unit: str


def tiles(
  pictures: np.ndarray | list[np.ndarray],
  captions: list[str] | None = None,
  size: int = 120,
  *,
  values: int | None = None,
  numbers: list[Numbers | None] | None = None,
) -> str:
  """Pictures [H, W, 3] side by side, each with a button that saves it.

  Args:
    pictures: what to show.
    captions: below each.
    size: CSS pixels that each is wide, at least.
    values: shades stand for 0 to values - 1, which the pointer shows; None: it
      shows `numbers` alone.
    numbers: of each picture, or None for one that has none.
  """
  captions = [''] * len(pictures) if captions is None else captions
  numbers = [None] * len(pictures) if numbers is None else numbers
  shown = ''.join(
    _figure(*one, size) for one in zip(pictures, captions, numbers)
  )
  data = '' if values is None else f' data-values="{values}"'
  shown = shown.replace('<img ', f'<img{data} ')
  return f'<div class="tiles" style="--tile: {size}px">{shown}</div>'


SAVE = '<button class="save" title="Save this picture">save</button>'


def _figure(picture, text: str, numbers: Numbers | None, size: int) -> str:
  caption = html.escape(text)
  data, bar = '', ''
  if numbers is not None:
    four_digits = np.vectorize(lambda x: float(f'{x:.4g}'))(numbers.values)
    rows = json.dumps(four_digits.tolist(), separators=(',', ':'))
    data = f' data-numbers="{rows}" data-unit="{html.escape(numbers.unit)}"'
    if numbers.unit == 'bits' and len(numbers.values) > 1:
      bar = colour_bar(numbers.values)
  if picture.shape[1] > size:  # lines would be lost where it is shrunk
    data += ' style="image-rendering: auto"'
  return (
    f'<figure><img alt="{caption}"{data} src="{data_url(picture)}">'
    f'{bar}<figcaption>{caption} {SAVE}</figcaption></figure>'
  )


def movie(gif: bytes) -> str:
  """A GIF that plays."""
  return (
    '<div class="tiles" style="--tile: 320px"><figure><img alt="movie" '
    f'src="{data_url(gif, "gif")}"><figcaption>{SAVE}</figcaption>'
    '</figure></div>'
  )


def links(names: list[str], here: str) -> str:
  """The runs that can be chosen, by name; where this page's own is."""
  each = ''.join(
    f'<b>{html.escape(name)}</b>'
    if name == here
    else f'<a href="/{quote(name)}/">{html.escape(name)}</a>'
    for name in names
  )
  return f'<nav class="runs">Runs: {each}</nav>'


def status(text: str, share: float | None = None) -> str:
  """One line, with a bar where a share of the work is done."""
  bar = ''
  if share is not None:
    bar = f'<div class="bar"><div style="width: {share:.1%}"></div></div>'
  return f'<div class="status">{html.escape(text)}{bar}</div>'


def error(text: str) -> str:
  """One line that says what went wrong."""
  return (
    f'<div class="status"><div class="error">{html.escape(text)}</div></div>'
  )
