"""The pictures of a report, PNGs without words: captions are in its texts."""

from typing import TYPE_CHECKING

import numpy as np

from fractal_jax.series import plots
from fractal_jax.series.detector import alarms
from fractal_jax.series.plots import ALARM, BLUE, GREY, INK, extremes, png
from fractal_jax.series.ranking import runs_of

if TYPE_CHECKING:
  from matplotlib.axes import Axes

  from fractal_jax.pilot.tables import TablePilot

MOST = 6  # channels that are drawn


def of_table(pilot: 'TablePilot', name: str, curves: dict) -> dict[str, bytes]:
  """Pictures of a stage of a table, by the key of their caption."""
  times = pilot.data.times
  if times is not None and times.dtype.kind != 'M':
    times = None
  if name == 'data':
    share = pilot.train / len(pilot.data.values)
    return {'data': data(curves, share, times)}
  if name in ('module', 'composition'):
    real = pilot.held[: 4 * pilot.window]
    return learning(curves) | (
      {'drawn': drawn(curves, real)} if 'drawn' in curves else {}
    )
  rows = dict(zip(('full', 'shadow'), pilot.later))[name]
  out = {'alarms': score(curves, None if times is None else times[rows])}
  if name == 'full':
    out['pit'] = pit(curves)
    if len(curves['worst']):
      out['worst'] = worst(curves, pilot.data.values, pilot.window, times)
  return out


def learning(curves: dict) -> dict[str, bytes]:
  """Pictures of the stage `module`, of any data; none of another stage."""
  if 'curve' not in curves:
    return {}
  return {'module': curve(curves), 'gradients': gradients(curves)}


def gradients(curves: dict) -> bytes:
  """Norms of gradients against steps: a picture per level, a line per seed."""
  norms = [v for k, v in sorted(curves.items()) if k.startswith('gradient_')]
  figure, axes = plots.new_axes(len(norms), 1.5 * len(norms) + 0.5)
  for axis, seeds in zip(axes, norms):
    for line in seeds:
      axis.plot(np.arange(len(line)) + 1, line, linewidth=0.7)
    axis.set_yscale('log')
  return png(figure)


def dated(axis: 'Axes', times: np.ndarray | None) -> None:
  """Dates [T] below an axis, in place of rows; rows where there are none."""
  if times is not None:
    plots.named_rows(axis, len(times), lambda row: str(times[row])[:16])


def data(curves: dict, share: float, times: np.ndarray | None = None) -> bytes:
  """The series; the share of it that is learnt from is grey."""
  values = curves['values'][:, :MOST]
  figure, axes = plots.new_axes(values.shape[1], 1.1 * values.shape[1] + 0.5)
  for axis, line in zip(axes, values.T):
    axis.plot(*extremes(line), color=INK, linewidth=0.7)
    axis.axvspan(0, share * len(values), color=GREY, alpha=0.2, lw=0)
    axis.set_xlim(0, len(values))
    axis.set_xticks([])
  if times is not None:
    ticks = np.linspace(0, len(values) - 1, 8).astype(int)
    at = ticks * (len(times) - 1) // max(len(values) - 1, 1)
    axes[-1].set_xticks(ticks, [str(t)[:10] for t in times[at]])
  return png(figure)


def curve(curves: dict) -> bytes:
  """Bits against rows."""
  figure, (axis,) = plots.new_axes(1, 2.2)
  rows, bits = curves['curve']
  axis.plot(rows, bits, 'o-', color=BLUE)
  axis.set_xlim(0, 1.05 * rows.max())
  return png(figure)


def drawn(curves: dict, real: np.ndarray) -> bytes:
  """Windows of the data above, those that the model drew below."""
  made = curves['drawn'][..., 0]
  side = made.shape[1]
  real = real[: side * len(made), 0]
  figure, axes = plots.new_axes(2, 2.6, sharey=True)
  axes[0].plot(real, color=INK, linewidth=0.8)
  for i, line in enumerate(made):
    axes[1].plot(np.arange(side) + i * side, line, color=BLUE, linewidth=0.8)
  return png(figure)


def score(curves: dict, times: np.ndarray | None = None) -> bytes:
  """The first channels, and the score with its threshold, alarms, incidents."""
  values, line = curves['values'][:, : MOST - 1], curves['line']
  limit = float(curves['threshold'])
  n = values.shape[1]
  figure, axes = plots.new_axes(n + 1, 1.1 * n + 1.6, sharex=True)
  for axis, one in zip(axes, values.T):
    axis.plot(*extremes(one), color=INK, linewidth=0.7)
  axes[-1].plot(*extremes(line), color=BLUE, linewidth=0.8)
  plots.threshold_line(axes[-1], limit, line.max())
  for axis in axes:
    for one in alarms(line, limit):
      axis.axvspan(one.first, one.last + 1, color=ALARM, alpha=0.15, lw=0)
    for first, last in runs_of(curves['labels']):
      axis.axvspan(first, last + 1, 0, 0.05, color='#2ca02c', lw=0)
  axes[-1].set_xlim(0, len(line))
  axes[-1].set_ylim(bottom=min(line.min(), 0))
  dated(axes[-1], times)
  return png(figure)


def pit(curves: dict) -> bytes:
  """The histogram of the PIT."""
  figure, (axis,) = plots.new_axes(1, 2)
  plots.pit_bars(axis, curves['pit'])
  return png(figure)


def worst(
  curves: dict, values: np.ndarray, window: int, times: np.ndarray | None = None
) -> bytes:
  """The most surprising stretches of the first channel."""
  rows = curves['worst']
  figure, axes = plots.new_axes(len(rows), 1.3 * len(rows))
  for axis, row in zip(axes, rows):
    part = np.arange(max(row - window, 0), min(row + window, len(values)))
    axis.plot(part, values[part, 0], color=INK, linewidth=0.8)
    axis.axvline(row, color=ALARM, linewidth=0.8)
    dated(axis, times)
  return png(figure)
