"""The stage `data` of a table: is there enough, is it whole, does it leak."""

import numpy as np

from fractal_jax.inference.progress import Job
from fractal_jax.pilot import gates
from fractal_jax.pilot.stages import gate
from fractal_jax.pilot.work import Found, Pilot
from fractal_jax.series import linear
from fractal_jax.series.ranking import runs_of

LEAK = 16  # rows that are the same, number by number, in two places
SHOWN = 3000  # rows that are drawn, about


def data(pilot: Pilot) -> Job:
  """Size, gaps, leaks, drift, incidents, and what a linear model explains."""
  yield from ()
  values, train = pilot.data.values, pilot.train
  known = ~np.isnan(values)
  labels = pilot.data.labels
  incidents = [] if labels is None else runs_of(labels[train:])
  normal = np.ones(len(values), bool) if labels is None else ~labels
  later = values[train:][normal[train:]]
  drift = _drift(values[:train], later)
  constant = [
    np.ptp(x[~np.isnan(x)]) == 0 if (~np.isnan(x)).any() else True
    for x in values[:train].T
  ]
  windows = train // pilot.window
  exact, more = gates.exact, dict(least=True, mends=True)
  found = (
    gate(pilot, 'least_windows', exact(windows), **more),
    gate(pilot, 'most_missing', exact(1 - known.mean()), least=False),
    gate(pilot, 'most_leak', exact(leak(values, train)), least=False),
    gate(pilot, 'most_drift', exact(drift), least=False, mends=True),
    gate(pilot, 'least_incidents', exact(len(incidents)), **more),
  )
  facts = {
    'rows': len(values),
    'channels': values.shape[1],
    'missing': float(1 - known.mean()),
    'constant': int(sum(constant)),
    'incidents': len(incidents),
    'anomalous': 0.0 if labels is None else float(labels.mean()),
  }
  if windows >= 2:
    facts['explained'] = _explained(pilot)
  shown = values[:: max(len(values) // SHOWN, 1)]
  return Found(found, facts, {'values': shown})


def leak(values: np.ndarray, train: int) -> float:
  """The share of later stretches of LEAK rows that stand in the first rows.

  Stretches in which nothing changes, or nothing is known, do not count.
  """
  first = {values[i : i + LEAK].tobytes() for i in range(train - LEAK + 1)}
  found, number = 0, 0
  for i in range(train, len(values) - LEAK + 1, LEAK // 2):
    part = values[i : i + LEAK]
    if np.isnan(part).any() or not np.ptp(part, 0).any():
      continue
    number += 1
    found += part.tobytes() in first
  return found / number if number else 0.0


def _drift(first: np.ndarray, later: np.ndarray) -> float:
  """How far means move, in standard deviations; the most of all channels."""
  if not len(later):
    return 0.0
  spread = np.nanstd(first, 0)
  moved = np.abs(np.nanmean(later, 0) - np.nanmean(first, 0))
  # A constant channel that moves is far away in any unit.
  apart = np.where(moved > 0, np.inf, 0.0)
  moved = np.divide(moved, spread, out=apart, where=spread > 0)
  return float(np.nanmax(np.nan_to_num(moved, posinf=1e6)))


def _explained(pilot: Pilot) -> float:
  """The share of the variance held out that a linear model explains."""
  order = min(pilot.window, pilot.learnt // 4)
  values = pilot.data.values[: pilot.train]
  mean = linear.predict(values, pilot.learnt, order).mean
  left = np.nanmean((values - mean)[pilot.learnt :] ** 2, 0)
  of = np.nanvar(pilot.held, 0)
  ratio = np.divide(left, of, out=np.ones_like(left), where=of > 0)
  return float(1 - ratio.mean())
