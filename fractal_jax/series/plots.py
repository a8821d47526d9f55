"""Pictures of series, as PNGs: curves, heat maps, calibration, forecasts."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fractal_jax.charts import new_axes, png
from fractal_jax.series.analysis import Analysis
from fractal_jax.series.scores import mean_over

if TYPE_CHECKING:
  from matplotlib.axes import Axes

  from fractal_jax.series.forecast import Drawn

COLUMNS = 1500  # of a picture: longer series are drawn by their extremes
MOST = 12  # channels that are drawn
INK, ALARM, BLUE, GREY = '#222222', '#d62728', '#1f77b4', '#999999'


def extremes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows and values of a curve [T] with at most 2 * COLUMNS points.

  Of each stretch of rows the least and the largest value stay, so that no spike
  is lost; NaN where all of a stretch is.
  """
  n = len(x)
  if n <= 2 * COLUMNS:
    return np.arange(n), x
  edges = np.linspace(0, n, COLUMNS + 1).astype(int)
  at = []
  for a, b in zip(edges[:-1], edges[1:]):
    part = x[a:b]
    if np.isnan(part).all():
      at.append([a, a])
    else:
      at.append(sorted((a + np.nanargmin(part), a + np.nanargmax(part))))
  at = np.array(at).ravel()
  return at, x[at]


def _time_axis(axis, found: Analysis) -> None:
  """Times, in place of rows, below an axis."""
  if found.table.times is not None:
    named_rows(axis, len(found.rows), found.when)
  else:
    axis.set_xlabel('row', fontsize=8)


def named_rows(axis: 'Axes', rows: int, name: Callable[[int], str]) -> None:
  """Names of rows below an axis, in place of numbers; a date and its hour."""
  axis.xaxis.set_major_formatter(
    lambda x, _: name(int(np.clip(x, 0, rows - 1))).replace('T', '\n')
  )


def threshold_line(axis: 'Axes', limit: float, top: float) -> None:
  """A dashed line at the limit; the scale is logarithmic where `top` is far."""
  axis.axhline(limit, color=ALARM, linewidth=0.8, linestyle='--')
  if top > 50 * max(limit, 1e-9):
    axis.set_yscale('symlog', linthresh=max(limit, 1e-9))


def series(found: Analysis) -> bytes:
  """The channels, the scores of rows, and the alarms behind them."""
  values, names = found.table.values, found.table.channels
  shown = _ranked_channels(found)[:MOST]
  figure, axes = new_axes(len(shown) + 1, 1.1 * len(shown) + 1.8, sharex=True)
  for axis, c in zip(axes, shown):
    axis.plot(*extremes(values[:, c]), color=INK, linewidth=0.7)
    axis.set_ylabel(names[c], fontsize=8)
  axis = axes[-1]
  axis.plot(*extremes(found.rows), color=BLUE, linewidth=0.8)
  threshold_line(axis, found.threshold, np.nanmax(found.rows))
  axis.set_ylabel(f'score ({found.detector.score})', fontsize=8)
  for axis in axes:
    for alarm in found.alarms:
      axis.axvspan(alarm.first, alarm.last + 1, color=ALARM, alpha=0.15, lw=0)
    if found.learnt is not None:
      axis.axvspan(*found.learnt.rows, color=GREY, alpha=0.15, lw=0)
    if found.table.labels is not None:
      _mark(axis, found.table.labels)
  axes[-1].set_xlim(0, len(values))
  _time_axis(axes[-1], found)
  return png(figure)


def _mark(axis, labels: np.ndarray) -> None:
  """A green line below rows that the file says are anomalous."""
  rows = np.flatnonzero(labels)
  place = axis.get_xaxis_transform()
  axis.scatter(
    rows, np.zeros(len(rows)), 4, color='#2ca02c', marker='s', transform=place
  )


def _ranked_channels(found: Analysis) -> list[int]:
  """Channels in their order; where they are many, those with most bits."""
  number = len(found.table.channels)
  if number <= MOST:
    return list(range(number))
  excess = np.nanmax(found.points.by_channel(found.detector.score), 0)
  return sorted(np.argsort(-np.nan_to_num(excess))[:MOST].tolist())


def heat(found: Analysis) -> bytes:
  """Bits by channel and time; of each stretch of rows the mean."""
  bits = found.points.bits
  width = min(len(bits), COLUMNS)
  edges = np.linspace(0, len(bits), width + 1).astype(int)
  stretch = [mean_over(bits[a:b].T) for a, b in zip(edges[:-1], edges[1:])]
  names = found.table.channels
  figure, (axis,) = new_axes(1, 1.2 + 0.25 * min(len(names), 40))
  picture = axis.imshow(
    np.array(stretch).T,
    aspect='auto',
    cmap='magma',
    interpolation='nearest',
    extent=(0, len(bits), len(names) - 0.5, -0.5),
  )
  if len(names) <= 40:
    axis.set_yticks(range(len(names)), names)
  figure.colorbar(picture, ax=axis, label='bits per value')
  _time_axis(axis, found)
  return png(figure)


def levels(found: Analysis) -> bytes:
  """The bits of the patches that each level cuts."""
  sizes = found.detector.config_.model.sizes
  curves = found.points.by_level(sizes)
  figure, axes = new_axes(len(curves), 1.2 * len(curves) + 0.6, sharex=True)
  for level, (axis, curve) in enumerate(zip(axes, curves)):
    axis.plot(*extremes(curve), color=BLUE, linewidth=0.7)
    rows = 'rows' if sizes[level + 1] > 1 else 'row'
    axis.set_ylabel(f'level {level}:\n{sizes[level + 1]} {rows}', fontsize=8)
  axes[-1].set_xlim(0, len(found.rows))
  _time_axis(axes[-1], found)
  return png(figure)


def calibration(found: Analysis) -> bytes:
  """The histogram of the PIT on rows held out: flat where calibrated."""
  figure, (axis,) = new_axes(1, 2.4)
  pit_bars(axis, found.learnt.pit)
  axis.set_xlabel('share of the prediction below the value', fontsize=8)
  axis.set_ylabel('density', fontsize=8)
  return png(figure)


def pit_bars(axis: 'Axes', pit: np.ndarray) -> None:
  """The histogram of PITs [n], and a line at 1."""
  counts, edges = np.histogram(pit, 20, (0, 1))
  height = counts / max(len(pit), 1) * 20
  axis.bar(edges[:-1], height, 0.05, align='edge', color=BLUE)
  axis.axhline(1, color=ALARM, linewidth=1)


def zooms(found: Analysis) -> bytes | None:
  """The surprising segments, with what was predicted around them."""
  if not found.segments:
    return None
  figure, axes = new_axes(len(found.segments), 1.25 * len(found.segments))
  side = found.detector.window
  for axis, segment in zip(axes, found.segments):
    c = found.table.channels.index(segment.channel)
    rows = np.arange(
      max(segment.first - side, 0), min(segment.last + side, len(found.rows))
    )
    mean, spread = found.points.mean[rows, c], found.points.deviation[rows, c]
    axis.fill_between(
      rows, mean - 2 * spread, mean + 2 * spread, color=BLUE, alpha=0.25, lw=0
    )
    axis.plot(rows, found.table.values[rows, c], color=INK, linewidth=0.9)
    axis.axvspan(segment.first, segment.last + 1, color=ALARM, alpha=0.15, lw=0)
    axis.set_ylabel(segment.channel, fontsize=8)
    axis.set_title(found.when(segment.first), fontsize=8, loc='left')
    axis.set_xlim(rows[0], rows[-1])
  return png(figure)


def drawn(
  values: np.ndarray,
  first: int,
  found: 'Drawn',
  channels: Sequence[str],
  offset: int = 0,
) -> bytes:
  """A forecast or filled gaps, as bands of quantiles behind the curves.

  Args:
    values: [T, C] what is known.
    first: the row of `values` where what is drawn begins.
    found: a `forecast.Drawn` whose rows begin there.
    channels: [C] names.
    offset: the row of the table at which `values` begin.
  """
  number = min(len(channels), MOST)
  figure, axes = new_axes(number, 1.7 * number + 0.5, sharex=True)
  rows = offset + first + np.arange(found.quantiles.shape[1])
  known = offset + np.arange(len(values))
  middle = len(found.levels) // 2
  for c, axis in enumerate(axes):
    for i in range(middle):
      low, high = found.quantiles[i, :, c], found.quantiles[-1 - i, :, c]
      axis.fill_between(rows, low, high, color=BLUE, alpha=0.25, lw=0)
    axis.plot(rows, found.quantiles[middle, :, c], color=BLUE, linewidth=1)
    axis.plot(known, values[:, c], color=INK, linewidth=0.8)
    axis.set_ylabel(channels[c], fontsize=8)
  axes[-1].set_xlabel('row', fontsize=8)
  return png(figure)
