"""What a report says of a series: alarms, what was learnt, what to distrust."""

from collections.abc import Iterator
import dataclasses

import numpy as np

from fractal_jax.series import linear, scores
from fractal_jax.series.detector import Alarm, FractalDetector, alarms
from fractal_jax.series.table import Table

SEGMENT = 16  # rows over which segments are ranked
SEGMENTS = 10  # how many are found, at most


@dataclasses.dataclass(frozen=True)
class Segment:
  """Surprising rows, first to last."""

  first: int
  last: int
  score: float  # the mean of its rows'
  bits: float  # more than were expected, of all its values
  channel: str  # the most surprising one


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What the model knows of normal rows that it was not trained on."""

  rows: tuple[int, int]  # first and end of the rows that this is about
  bits: float  # per value
  linear_bits: float  # the same, of a linear autoregression in the same bins
  pit: np.ndarray  # of all values
  z2: float  # mean; 1 where variances are right


@dataclasses.dataclass(frozen=True)
class Analysis:
  """A scored series."""

  table: Table
  detector: FractalDetector
  points: scores.PointScores
  rows: np.ndarray  # [T] scores, smoothed
  threshold: float
  alarms: tuple[Alarm, ...]
  segments: tuple[Segment, ...]
  weekly: tuple[float, float, float] | None  # false alarms, and 95% interval
  learnt: Learnt | None
  doubts: tuple[str, ...]

  def when(self, row: int) -> str:
    """The time of a row, or its number in the file (the header is row 1)."""
    if self.table.times is not None:
      time = self.table.times[row]
      return str(time).split('.')[0] if time.dtype.kind == 'M' else f'{time:g}'
    return f'row {row + 2}'


def analyse(
  table: Table,
  detector: FractalDetector,
  points: scores.PointScores,
  train: int,
  threshold: float | None = None,
) -> Analysis:
  """Everything that the report says.

  Args:
    table: the series.
    detector: fitted.
    points: its scores of the whole table.
    train: how many rows, the first, were given to `fit`; 0: none of them.
    threshold: in place of the detector's.
  """
  rows = detector._of_rows(points)
  threshold = detector.threshold_ if threshold is None else threshold
  learnt = _learnt(table, detector, points, train) if train else None
  weekly = _weekly(table, detector, threshold)
  return Analysis(
    table=table,
    detector=detector,
    points=points,
    rows=rows,
    threshold=threshold,
    alarms=tuple(alarms(rows, threshold)),
    segments=tuple(segments(table, detector, points)),
    weekly=weekly,
    learnt=learnt,
    doubts=tuple(_doubts(table, detector, points, learnt, weekly)),
  )


def segments(
  table: Table, detector: FractalDetector, points: scores.PointScores
) -> list[Segment]:
  """The most surprising segments, none of which overlap."""
  kind = detector.score
  left = points.of_rows(kind, SEGMENT)
  found = []
  while len(found) < SEGMENTS and not np.isnan(left).all():
    peak = int(np.nanargmax(left))
    first = max(peak - SEGMENT // 2, 0)
    last = min(peak + SEGMENT // 2, len(left)) - 1
    part = slice(first, last + 1)
    by_channel = scores.mean_over(points.by_channel(kind)[part].T)
    excess = points.bits[part] - points.entropy[part]
    found.append(
      Segment(
        first,
        last,
        float(left[peak]),
        float(np.nansum(excess)),
        table.channels[int(np.nanargmax(by_channel))],
      )
    )
    left[max(first - SEGMENT, 0) : last + 1 + SEGMENT] = np.nan
  return found


def _learnt(table: Table, detector, points, train: int) -> Learnt:
  first = train - int(train * detector.held_out)
  part = slice(first, train)
  order = detector.window
  predicted = linear.predict(table.values[:train], first, order)
  low, width = detector.quantiser_.of(detector.label_)
  bits = predicted.bits(low, width, table.values[:train])[part]
  pit = points.pit[part]
  return Learnt(
    rows=(first, train),
    bits=float(np.nanmean(points.bits[part])),
    linear_bits=float(np.nanmean(bits)),
    pit=pit[~np.isnan(pit)],
    z2=float(np.nanmean(points.z2[part])),
  )


def _weekly(table: Table, detector, threshold: float):
  """Alarms a week on the rows held out, with a 95% Poisson interval."""
  held_out = getattr(detector, 'held_out_scores_', None)
  if held_out is None or table.per_week is None:
    return None
  weeks = len(held_out) / table.per_week
  return scores.weekly(len(alarms(held_out, threshold)), weeks)


def _doubts(table, detector, points, learnt, weekly) -> Iterator[str]:
  """What to distrust, a sentence each."""
  yield from (note[0].upper() + note[1:] + '.' for note in table.notes)
  yield from _doubts_of_channels(table, detector, points)
  if learnt is not None:
    yield from _doubts_of_fit(learnt)
  yield from _doubts_of_alarms(detector, weekly)


def _doubts_of_channels(table, detector, points) -> Iterator[str]:
  """Values out of range or not known, constants, and bins too coarse."""
  values, names = table.values, table.channels
  known = ~np.isnan(values)
  for c, name in enumerate(names):
    if points.clipped[c]:
      yield (
        f"{points.clipped[c]} values of '{name}' lie outside of the range that "
        'the bins cover: their bits are too few, z2 counts them in full.'
      )
    if known[:, c].mean() < 0.9:
      yield (
        f"{1 - known[:, c].mean():.0%} of '{name}' is not known: the model "
        'reads the last number before.'
      )
    some = values[known[:, c], c]
    if some.size and np.ptp(some) == 0:
      yield f"'{name}' is constant: any change of it is an alarm."
    elif some.size:
      _, width = detector.quantiser_.of(detector.label_)
      fine = np.subtract(*np.quantile(some, [0.95, 0.05])) / width[c]
      if fine < 16:
        yield (
          f"nine tenths of '{name}' lie in {fine:.0f} bins, since a few values "
          'are far away: fit with --range=scaled to see more of it.'
        )


def _doubts_of_fit(learnt) -> Iterator[str]:
  """Overconfidence, and a linear model that is better."""
  if learnt.z2 > 2:
    yield (
      f'On rows held out the residuals are {learnt.z2:.1f} times as large as '
      'the model expects (in squares): it is overconfident, or the normal '
      'state has moved.'
    )
  if learnt.linear_bits < learnt.bits:
    yield (
      'A linear autoregression predicts the rows held out better than the '
      'model: take its residuals as the alarm, or train longer.'
    )


def _doubts_of_alarms(detector, weekly) -> Iterator[str]:
  """The estimate of false alarms, and where an alarm begins."""
  if weekly is None:
    yield (
      'False alarms per week are not estimated: this takes a time column of '
      'dates, and a detector with rows held out.'
    )
  elif weekly[2] > 4 * max(weekly[0], 1e-9):
    yield (
      'The rows held out are few for an estimate of false alarms per week: the '
      'interval is wide.'
    )
  if detector.smooth > 1:
    yield (
      f'Scores are means over {detector.smooth} rows: an alarm begins up to '
      f'{detector.smooth // (1 if detector.causal else 2)} rows '
      f'{"after" if detector.causal else "before or after"} what caused it.'
    )
  if not detector.causal:
    yield (
      'The mean of a row looks at later rows, too: a stream has other scores '
      '(--causal).'
    )
