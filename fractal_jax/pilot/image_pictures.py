"""The pictures of a report on images, PNGs without words."""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict
import numpy as np

from fractal_jax import pictures as shots
from fractal_jax.pilot.pictures import learning
from fractal_jax.series import plots
from fractal_jax.series.plots import ALARM, BLUE, GREY, INK, png

if TYPE_CHECKING:
  from fractal_jax.pilot.images import ImagePilot

COLUMNS = 12
SHOWN = 2 * COLUMNS  # images in a picture


def of(pilot: 'ImagePilot', name: str, curves: dict) -> dict[str, bytes]:
  """Pictures of a stage, by the key of their caption."""
  model = pilot.config(pilot.side, 3, None).model
  out = learning(curves)
  if name == 'data':
    out['train'] = grid(curves['train'], model)
    if len(curves['counts']) > 1:
      out['classes'] = bars(curves['counts'])
  if 'drawn' in curves:
    task = pilot.settings.task['kind']
    halves = name == 'full' and task == 'completion'
    out['completed' if halves else 'images'] = grid(curves['drawn'], model)
  if name == 'full':
    out['bits'] = histograms(curves)
    out['worst_images'] = grid(curves['worst'], model)
  if name == 'shadow':
    out['replay'] = replay(curves)
  return out


def grid(images: np.ndarray, model: ConfigDict) -> bytes:
  """Images in rows."""
  return shots.png(shots.grid(shots.from_values(images, model), COLUMNS))


def bars(counts: np.ndarray) -> bytes:
  """How many images each class has."""
  figure, (axis,) = plots.new_axes(1, 1.6)
  axis.bar(np.arange(len(counts)), counts, color=BLUE)
  axis.set_xticks([])
  return png(figure)


def histograms(curves: dict) -> bytes:
  """Bits per value: of images learnt from, held out, drawn or anomalous."""
  parts = [
    ('bits_train', GREY), ('bits_held', BLUE), ('bits_drawn', INK),
    ('bits_anomalies', ALARM),
  ]  # fmt: skip
  some = [(curves[k], c) for k, c in parts if k in curves and len(curves[k])]
  edges = np.histogram_bin_edges(np.concatenate([x for x, _ in some]), 40)
  figure, axes = plots.new_axes(len(some), 0.9 * len(some) + 0.4, sharex=True)
  for axis, (x, colour) in zip(axes, some):
    axis.hist(x, edges, color=colour)
    axis.axvline(x.mean(), color=INK, linewidth=1)
  return png(figure)


def replay(curves: dict) -> bytes:
  """Bits per value of the images in order, and the threshold, if any."""
  figure, (axis,) = plots.new_axes(1, 1.8)
  line = curves['line']
  axis.plot(np.arange(len(line)) + 1, line, '.-', color=BLUE, linewidth=0.6)
  if 'threshold' in curves:
    axis.axhline(float(curves['threshold']), color=ALARM, linestyle='--')
  return png(figure)
