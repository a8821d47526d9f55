"""HTML that the page shows: pictures, progress, tables."""

import base64
import html
import io

import numpy as np
from PIL import Image


def data_url(picture: np.ndarray) -> str:
  """A picture [H, W, 3] as a PNG inside a URL: nothing is left on the disk."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'png')
  return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def tiles(pictures, captions=None, size: int = 120) -> str:
  """Pictures side by side, at least `size` wide, enlarged by the browser."""
  captions = [''] * len(pictures) if captions is None else captions
  figures = ''.join(
    f'<figure><img alt="{html.escape(text)}" src="{data_url(picture)}">'
    f'<figcaption>{html.escape(text)}</figcaption></figure>'
    for picture, text in zip(pictures, captions)
  )
  return f'<div class="tiles" style="--tile: {size}px">{figures}</div>'


def movie(gif: bytes) -> str:
  data = base64.b64encode(gif).decode()
  return (
    '<div class="tiles" style="--tile: 320px"><figure><img alt="movie" '
    f'src="data:image/gif;base64,{data}"></figure></div>'
  )


def status(text: str, share: float | None = None) -> str:
  """One line, with a bar where a share of the work is done."""
  bar = ''
  if share is not None:
    bar = f'<div class="bar"><div style="width: {share:.1%}"></div></div>'
  return f'<div class="status">{html.escape(text)}{bar}</div>'


def error(text: str) -> str:
  return (
    f'<div class="status"><div class="error">{html.escape(text)}</div></div>'
  )


def table(head, rows) -> str:
  cells = lambda tag, row: ''.join(
    f'<{tag}>{html.escape(str(x))}</{tag}>' for x in row
  )
  body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
  return f'<table class="bits"><tr>{cells("th", head)}</tr>{body}</table>'
