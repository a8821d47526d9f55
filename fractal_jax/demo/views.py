"""HTML that the page shows: pictures and progress."""

import base64
import html

from fractal_jax.report import data_url


def tiles(pictures, captions: list[str] | None = None, size: int = 120) -> str:
  """Pictures [H, W, 3] side by side, at least `size` CSS pixels wide each."""
  captions = [''] * len(pictures) if captions is None else captions
  figures = ''.join(
    f'<figure><img alt="{html.escape(text)}" src="{data_url(picture)}">'
    f'<figcaption>{html.escape(text)}</figcaption></figure>'
    for picture, text in zip(pictures, captions)
  )
  return f'<div class="tiles" style="--tile: {size}px">{figures}</div>'


def movie(gif: bytes) -> str:
  """A GIF that plays."""
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
  """One line that says what went wrong."""
  return (
    f'<div class="status"><div class="error">{html.escape(text)}</div></div>'
  )
