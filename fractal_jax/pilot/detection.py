"""The stages that ask whether alarms are worth having: full and shadow."""

import time

import numpy as np

from fractal_jax.inference.progress import Job
from fractal_jax.pilot import gates, table_settings, work
from fractal_jax.pilot.stages import alarm_gates, gate
from fractal_jax.pilot.work import Found, Pilot
from fractal_jax.series import scores
from fractal_jax.series.detector import alarms
from fractal_jax.series.ranking import runs_of

WORST = 5  # surprising stretches that are shown


def full_steps(pilot: Pilot) -> int:
  """Steps of training at full size."""
  return pilot.config(pilot.window, 3, pilot.settings.task['steps']).optim.steps


def full_fits(pilot: Pilot) -> list[tuple[int, int, int]]:
  """(window, levels, steps) of the stage's model."""
  return [(pilot.window, 3, full_steps(pilot))]


def full_model(pilot: Pilot) -> Job:
  """A job: the detector of full size, kept in DIR/run."""
  t = pilot.settings.task
  folder = str(pilot.path('run-' + pilot.settings.key()))
  detector = pilot.models.load(folder)
  if detector is None:
    detector = pilot.models.new(
      window=pilot.window,
      levels=3,
      steps=full_steps(pilot),
      smooth=t['smooth'],
      score=t['score'],
      false_alarms=t['false_alarms'],
      held_out=table_settings.HELD_OUT,
    )
    yield from detector.fitting(pilot.data.values[: pilot.train])
    pilot.models.save(folder, detector, pilot.data.name)
  return detector


def point_scores(pilot: Pilot, name: str, first: int, end: int) -> Job:
  """A job: what the full model says of rows, and how long that took.

  Returns:
    `z2`, `bits`, `pit`, `score` [t, C], and `seconds`.
  """

  def make() -> Job:
    detector = yield from full_model(pilot)
    begun = time.monotonic()
    # With the rows of a window before, which are context.
    before = max(first - pilot.window, 0)
    points = yield from detector.scoring(pilot.data.values[before:end])
    seconds = time.monotonic() - begun
    part = slice(first - before, None)
    score = points.by_channel(pilot.settings.task['score'])
    return {
      'z2': points.z2[part],
      'pit': points.pit[part],
      'score': score[part],
      'seconds': np.float64(seconds),
    }

  return (yield from work.kept(pilot, name, make))


def full(pilot: Pilot) -> Job:
  """The chosen size on rows that it was not trained on: alarms, calibration."""
  rows, _ = pilot.later
  judged, facts, curves, learnt, seen, _ = yield from alarmed(
    pilot, 'full', rows, causal=False
  )
  smooth = pilot.settings.task['smooth']
  z2 = scores.mean_over(seen['z2'])
  z2 = np.where(widened(curves['labels'], smooth, smooth), np.nan, z2)
  z2 = gates.mean(gates.blocks(z2, pilot.window))
  facts |= {'threshold': float(curves['threshold']), 'steps': full_steps(pilot)}
  curves |= {
    'pit': learnt['pit'][~np.isnan(learnt['pit'])],
    'worst': worst(curves['line'], pilot.window) + rows.start,
  }
  judged += (gate(pilot, 'most_z2', z2, least=False),)
  return Found(judged, facts, curves)


def shadow(pilot: Pilot) -> Job:
  """The last rows in order: every score looks at earlier rows alone."""
  _, rows = pilot.later
  judged, facts, curves, _, seen, counted = yield from alarmed(
    pilot, 'shadow', rows, causal=True
  )
  delay = gates.mean(counted['delays'])
  took = gates.exact(1000 * float(seen['seconds']) / len(curves['line']))
  judged += (
    gate(pilot, 'most_delay', delay, least=False),
    gate(pilot, 'most_milliseconds', took, least=False),
  )
  return Found(judged, facts | {'memory_gb': work.memory()}, curves)


# What both have in common.


def alarmed(pilot: Pilot, name: str, rows: slice, *, causal: bool) -> Job:
  """A job: alarms in some rows, by a threshold from the rows held out.

  Args:
    rows: that the stage looks at.
    causal: by the past alone; otherwise an alarm may come before its incident.

  Returns:
    Gates, facts and curves of the stage; `point_scores` of the rows held out
    and of these; and `count`.
  """
  learnt = yield from point_scores(pilot, 'held', pilot.learnt, pilot.train)
  seen = yield from point_scores(pilot, name, rows.start, rows.stop)
  smooth = pilot.settings.task['smooth']
  limit = threshold(pilot, learnt['score'], causal=causal)
  line = by_row(seen['score'], smooth, causal=causal)
  labels = labels_of(pilot, rows)
  counted = count(
    line, limit, labels, slack=smooth, before=0 if causal else smooth
  )
  judged, facts = alarm_gates(
    pilot,
    'shadow_' if causal else '',
    counted['found'],
    counted['incidents'],
    counted['false'],
    counted['normal'] / pilot.settings.data['rows_per_week'],
  )
  curves = {
    'values': pilot.data.values[rows],
    'line': line,
    'labels': labels,
    'threshold': np.float64(limit),
  }
  return judged, facts, curves, learnt, seen, counted


def by_row(score: np.ndarray, smooth: int, *, causal: bool) -> np.ndarray:
  """Smoothed scores [t] from those of values [t, C]; 0 where not known."""
  line = scores.smoothed(scores.mean_over(score), smooth, causal)
  return np.nan_to_num(line)


def threshold(pilot: Pilot, held: np.ndarray, *, causal: bool) -> float:
  """The score that few of the rows held out exceed."""
  t = pilot.settings.task
  line = by_row(held, t['smooth'], causal=causal)
  return float(np.quantile(line, 1 - t['false_alarms']))


def labels_of(pilot: Pilot, rows: slice) -> np.ndarray:
  """Which rows the file says are incidents; none where it says nothing."""
  labels = pilot.data.labels
  if labels is None:
    return np.zeros(rows.stop - rows.start, bool)
  return labels[rows]


def widened(labels: np.ndarray, before: int, after: int) -> np.ndarray:
  """Labels [t] that hold `before` and `after` rows around each incident too."""
  out = labels.copy()
  for first, last in runs_of(labels):
    out[max(first - before, 0) : last + after + 1] = True
  return out


def count(
  line: np.ndarray, limit: float, labels: np.ndarray, *, slack: int, before: int
) -> dict:
  """Alarms against incidents.

  An incident is found where the score is above the limit between `before` rows
  before it and `slack` rows after it. An alarm that touches no such stretch is
  a false one.

  Returns:
    incidents, found, false: numbers; delays [found], rows from an incident's
    beginning to its alarm; normal: rows outside of all such stretches.
  """
  incidents = runs_of(labels)
  near = widened(labels, before, slack)
  delays = []
  for first, last in incidents:
    start = max(first - before, 0)
    above = np.flatnonzero(line[start : last + slack + 1] > limit)
    if len(above):
      delays.append(max(int(above[0]) + start - first, 0))
  raised = alarms(line, limit)
  false = [a for a in raised if not near[a.first : a.last + 1].any()]
  return {
    'incidents': len(incidents),
    'found': len(delays),
    'false': len(false),
    'delays': np.array(delays, float),
    'normal': int((~near).sum()),
  }


def worst(line: np.ndarray, apart: int) -> np.ndarray:
  """The rows of the highest scores, `apart` or more from each other."""
  left, out = line.copy(), []
  while len(out) < WORST and left.max() > 0:
    at = int(left.argmax())
    out.append(at)
    left[max(at - apart, 0) : at + apart + 1] = 0
  return np.array(out, int)
