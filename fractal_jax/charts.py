"""Charts as PNGs: figures without a window, drawn by matplotlib."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from matplotlib.figure import Figure
  import numpy as np


def new_axes(
  rows: int, height: float, width: float = 11, **how: Any
) -> 'tuple[Figure, np.ndarray]':
  """A figure of a size in inches, and its axes [rows], one above another."""
  from matplotlib import figure

  shown = figure.Figure(figsize=(width, height), layout='constrained')
  axes = shown.subplots(rows, 1, squeeze=False, **how)[:, 0]
  for one in axes:
    one.spines[['top', 'right']].set_visible(False)
    one.tick_params(labelsize=8)
  return shown, axes


def png(figure: 'Figure') -> bytes:
  """A figure as the bytes of a PNG."""
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=90)
  return file.getvalue()
