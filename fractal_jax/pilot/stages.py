"""The stages about what can be learnt: data, module, composition.

A stage is a job: it takes a Pilot and returns a Found.
"""

import dataclasses

import numpy as np

from fractal_jax.inference.progress import Job
from fractal_jax.pilot import gates, simple, work
from fractal_jax.pilot.gates import Gate
from fractal_jax.pilot.settings import parts
from fractal_jax.pilot.work import Pilot
from fractal_jax.planning import cost
from fractal_jax.series.detector import alarms
from fractal_jax.series.scores import mean_over

LEAK = 16  # rows that are the same, number by number, in two places
CURVE = (0.25, 0.5, 1.0)  # shares of the rows to learn from
WORTH = 0.01  # bits a value: less than that is no gain


@dataclasses.dataclass(frozen=True)
class Found:
  """What a stage found.

  Attributes:
    gates: judged.
    facts: numbers by name; the texts of each language explain them.
    curves: arrays by name, for pictures.
  """

  gates: tuple[Gate, ...]
  facts: dict[str, float]
  curves: dict[str, np.ndarray]


def gate(pilot: Pilot, name: str, found, **how) -> Gate:
  """A gate with the threshold that pilot.toml has now."""
  return Gate(name, float(pilot.settings.gates[name]), found, **how)


# Data.


def data(pilot: Pilot) -> Job:
  """Size, gaps, leaks, drift, incidents, and what a linear model explains."""
  yield from ()
  values, train = pilot.table.values, pilot.train
  known = ~np.isnan(values)
  labels = pilot.table.labels
  incidents = [] if labels is None else alarms(labels[train:] * 1.0, 0.5)
  normal = np.ones(len(values), bool) if labels is None else ~labels
  later = values[train:][normal[train:]]
  drift = _drift(values[:train], later)
  constant = [
    np.ptp(x[~np.isnan(x)]) == 0 if (~np.isnan(x)).any() else True
    for x in values[:train].T
  ]
  windows = train // pilot.window
  found = (
    gate(pilot, 'least_windows', gates.exact(windows), least=True, mends=True),
    gate(pilot, 'most_missing', gates.exact(1 - known.mean()), least=False),
    gate(
      pilot, 'most_leak', gates.exact(leak(values, train)), least=False
    ),
    gate(
      pilot, 'most_drift', gates.exact(drift), least=False, mends=True
    ),
    gate(
      pilot, 'least_incidents', gates.exact(len(incidents)), least=True,
      mends=True,
    ),
  )  # fmt: skip
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
  return Found(found, facts, {'values': _few(values)})


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
  from fractal_jax.series import linear

  order = min(pilot.window, pilot.first // 4)
  values = pilot.table.values[: pilot.train]
  mean = linear.predict(values, pilot.first, order).mean
  left = np.nanmean((values - mean)[pilot.first :] ** 2, 0)
  of = np.nanvar(pilot.held, 0)
  ratio = np.divide(left, of, out=np.ones_like(left), where=of > 0)
  return float(1 - ratio.mean())


def _few(x: np.ndarray, most: int = 3000) -> np.ndarray:
  """Every so many rows, for a picture."""
  return x[:: max(len(x) // most, 1)]


# Module.


def modules(pilot: Pilot) -> list[tuple[int, int]]:
  """(level, rows that it sees) of each level that can stand alone."""
  return [(0, pilot.window), (1, work.PATCH)]


def module_fits(pilot: Pilot) -> list[tuple[int, int, int]]:
  """(window, levels, steps) of the stage's models."""
  t = pilot.settings.task
  each = [(side, 2, t['small_steps']) for _, side in modules(pilot)]
  return each * t['seeds'] + each[:1] * (len(CURVE) - 1)


def module(pilot: Pilot) -> Job:
  """Each level alone: a model of the squares that it sees, and of values."""
  t = pilot.settings.task
  plain = by_rows(simple.histogram(*_learnt(pilot)), pilot)
  found, facts = [], {'histogram': float(np.nanmean(plain))}
  for level, side in modules(pilot):
    rows = yield from seeds(pilot, window=side, levels=2)
    gain = gates.mean(gates.blocks(plain - rows, pilot.window))
    found.append(gate(pilot, 'module_bits', gain, least=True, about=level))
    facts[f'bits_{level}'] = float(np.nanmean(rows))
    facts[f'spread_{level}'] = float(np.nanmean(rows, 1).std(ddof=1))
  curve = []
  for part in CURVE:
    one = yield from work.fitted_bits(
      pilot, window=pilot.window, levels=2, steps=t['small_steps'], seed=0,
      share=part,
    )  # fmt: skip
    curve.append(float(np.nanmean(one['bits'])))
  enough = rows_enough(pilot.first, curve)
  if enough is not None:
    facts['enough'] = enough
  sizes = np.array(CURVE) * pilot.first
  return Found(
    tuple(found), facts, {'curve': np.stack([sizes, np.array(curve)])}
  )


def rows_enough(rows: int, curve: list[float]) -> int | None:
  """Rows from which doubling them gains less than WORTH bits a value.

  From the last two doublings: each gains less than the one before by the same
  factor. None where gains do not shrink, and more data is worth having.
  """
  before, last = curve[0] - curve[1], curve[1] - curve[2]
  if last < WORTH:
    return rows
  if before <= last:
    return None
  doublings = np.log(WORTH / last) / np.log(last / before)
  doublings = np.ceil(round(doublings, 6))  # 3.0000001 is 3
  return int(rows * 2**doublings)


# Composition.


def flat_steps(pilot: Pilot) -> int:
  """Steps of a flat model that take as many FLOPs as the levels together."""
  flops = [
    cost.train_flops_per_image(pilot.config(levels, pilot.window, None))
    for levels in (3, 2)
  ]
  return max(round(pilot.settings.task['small_steps'] * flops[0] / flops[1]), 1)


def composition_fits(pilot: Pilot) -> list[tuple[int, int, int]]:
  """(window, levels, steps) of the stage's models."""
  t = pilot.settings.task
  one = [
    (pilot.window, 3, t['small_steps']),
    (pilot.window, 2, flat_steps(pilot)),
  ]
  return one * t['seeds']


def composition(pilot: Pilot) -> Job:
  """The levels together, a flat model of equal compute, and simple models."""
  t = pilot.settings.task
  together = yield from seeds(
    pilot, window=pilot.window, levels=3, draw=t['samples']
  )
  flat = yield from seeds(
    pilot, window=pilot.window, levels=2, steps=flat_steps(pilot)
  )
  learnt = _learnt(pilot)
  order = min(pilot.window, pilot.first // 4)
  others = {
    'histogram': simple.histogram(*learnt),
    'last_value': simple.last_value(*learnt),
    'linear': simple.autoregression(*learnt, order),
    'polynomial': simple.polynomial(*learnt, order),
  }
  others = {name: by_rows(x, pilot) for name, x in others.items()}
  best = min(others, key=lambda name: np.nanmean(others[name]))
  block = lambda x: gates.mean(gates.blocks(x, pilot.window))
  found = (
    gate(pilot, 'composition_bits', block(others[best] - together), least=True),
    gate(pilot, 'flat_bits', block(flat - together), least=True),
  )
  facts = {
    'together': float(np.nanmean(together)),
    'flat': float(np.nanmean(flat)),
    **{name: float(np.nanmean(x)) for name, x in others.items()},
    'spread': float(np.nanmean(together, 1).std(ddof=1)),
  }
  curves = {'real': pilot.held[: 4 * pilot.window]}
  if t['samples']:
    first = yield from work.fitted_bits(
      pilot, window=pilot.window, levels=3, steps=t['small_steps'], seed=0,
      draw=t['samples'],
    )  # fmt: skip
    curves['drawn'] = first['drawn']
  return Found(found, facts, curves)


# What both have in common.


def seeds(pilot: Pilot, *, window, levels, steps=None, draw=0) -> Job:
  """Bits of the rows held out, [seeds, t]: means over their values."""
  t = pilot.settings.task
  out = []
  for seed in range(t['seeds']):
    one = yield from work.fitted_bits(
      pilot,
      window=window,
      levels=levels,
      steps=steps or t['small_steps'],
      seed=seed,
      draw=draw if seed == 0 else 0,
    )
    out.append(mean_over(one['bits']))
  return np.stack(out)


def by_rows(bits: np.ndarray, pilot: Pilot) -> np.ndarray:
  """Mean bits a value [t] of the rows held out, from those of all rows."""
  return mean_over(bits[pilot.first :])


def _learnt(pilot: Pilot):
  """The arguments of simple models: values, rows that they learn from, bins."""
  return pilot.table.values[: pilot.train], pilot.first, pilot.bins()


def later_parts(pilot: Pilot) -> tuple[slice, slice]:
  """The rows of `full`, and those of `shadow`."""
  return parts(pilot.settings, len(pilot.table.values))[1:]
