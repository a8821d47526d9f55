"""HTML pages that need no other file, and can be sent: the frame, its parts."""

import base64
from collections.abc import Iterable, Sequence
import html

import numpy as np

from fractal_jax import pictures

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto }
body { max-width: 62em; padding: 0 1em }
img { max-width: 100% }
td, th { padding: .1em 1.2em .1em 0; text-align: left; vertical-align: top }
figure { display: inline-block; vertical-align: top; margin: 0 1em 1em 0 }
figcaption { font-size: 13px; color: #555 }
"""


def page(
  title: str, body: str, *, style: str = '', language: str = 'en'
) -> str:
  """A whole page.

  Args:
    title: a text; it is escaped.
    body: HTML.
    style: CSS, besides STYLE.
    language: of its texts, as HTML names it.
  """
  return f"""<!doctype html>
<html lang="{language}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{STYLE}{style}</style>
{body}
</html>
"""


def data_url(picture: np.ndarray | bytes, kind: str = 'png') -> str:
  """A picture [H, W, 3], or the bytes of a PNG or GIF, inside a URL."""
  if isinstance(picture, np.ndarray):
    picture = pictures.png(picture)
  return f'data:image/{kind};base64,{base64.b64encode(picture).decode()}'


def figure(
  picture: np.ndarray | bytes,
  caption: str,
  *,
  alt: str | None = None,
  kind: str = 'png',
  below: str = '',
) -> str:
  """A picture, as `data_url` takes it, with its caption.

  Args:
    picture, kind: the picture.
    caption: a text; it is escaped.
    alt: what is said in place of the picture; the caption where None.
    below: HTML between the two.
  """
  caption = html.escape(caption)
  return (
    f'<figure><img alt="{caption if alt is None else alt}" '
    f'src="{data_url(picture, kind)}">{below}'
    f'<figcaption>{caption}</figcaption></figure>'
  )


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
  """A table with a row of heads; texts are escaped."""
  cells = lambda tag, row: ''.join(
    f'<{tag}>{html.escape(str(x))}</{tag}>' for x in row
  )
  body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
  return f'<table class="bits"><tr>{cells("th", head)}</tr>{body}</table>'
