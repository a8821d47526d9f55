"""The stages about what can be learnt, for any data: module, composition.

A stage is a job: it takes a Pilot and returns a Found.
"""

from typing import Any

import numpy as np

from fractal_jax.inference.progress import Job
from fractal_jax.pilot import gates
from fractal_jax.pilot.gates import Gate, Interval
from fractal_jax.pilot.work import Found, Pilot
from fractal_jax.planning import cost

CURVE = (0.25, 0.5, 1.0)  # shares of what is learnt from
WORTH = 0.01  # bits per value: less than that is no gain


def gate(pilot: Pilot, name: str, found: Interval | None, **how: Any) -> Gate:
  """A gate with the threshold that pilot.toml has now."""
  return Gate(name, float(pilot.settings.gates[name]), found, **how)


def alarm_gates(
  pilot: Pilot, prefix: str, found: int, of: int, false: int, weeks: float
) -> tuple[tuple[Gate, ...], dict[str, float]]:
  """Gates and facts of incidents found, and of false alarms per week."""
  share, rate = gates.share(found, of), gates.rate(false, weeks)
  judged = (
    gate(pilot, f'{prefix}found', share, least=True),
    gate(pilot, f'{prefix}weekly_false_alarms', rate, least=False),
  )
  return judged, {
    'incidents': of,
    'incidents_found': found,
    'false_alarms': false,
    'weeks': weeks,
  }


# Module.


def module_fits(pilot: Pilot) -> list[tuple[int, int, int]]:
  """(side, levels, steps) of the stage's models."""
  t = pilot.settings.task
  each = [(side, n, t['small_steps']) for _, side, n in pilot.modules()]
  return each * t['seeds'] + each[:1] * (len(CURVE) - 1)


def module(pilot: Pilot) -> Job:
  """Each level alone: a model of the squares that it sees, and of values."""
  t = pilot.settings.task
  plain = pilot.histogram()
  found, facts, curves = [], {'histogram': float(np.nanmean(plain))}, {}
  for level, side, levels in pilot.modules():
    fits = yield from seeds(pilot, side=side, levels=levels)
    bits = np.stack([one['bits'] for one in fits])
    norms = np.stack([one['gradient_0'] for one in fits])
    gain = gates.mean(pilot.blocks(plain - bits))
    found.append(gate(pilot, 'module_bits', gain, least=True, about=level))
    facts[f'bits_{level}'] = float(np.nanmean(bits))
    facts[f'spread_{level}'] = float(np.nanmean(bits, 1).std(ddof=1))
    facts |= {f'{k}_{level}': v for k, v in stability(norms).items()}
    curves[f'gradient_{level}'] = norms
  curve = []
  for part in CURVE:
    _, side, levels = pilot.modules()[0]
    one = yield from pilot.fitted(side, levels, t['small_steps'], 0, part, 0)
    curve.append(float(np.nanmean(one['bits'])))
  enough = rows_enough(pilot.learnt, curve)
  if enough is not None:
    facts['enough'] = enough
  sizes = np.array(CURVE) * pilot.learnt
  curves['curve'] = np.stack([sizes, np.array(curve)])
  return Found(tuple(found), facts, curves)


def stability(norms: np.ndarray) -> dict[str, float]:
  """How stable gradients are, from norms [seeds, steps].

  Of the second half of training, since norms fall at its beginning.

  Returns:
    gradient: the median norm, mean over seeds; gradient_spread: its deviation
    between seeds, as a share; gradient_peak: the largest norm over the median
    of its seed, the most of all seeds.
  """
  later = norms[:, norms.shape[1] // 2 :]
  middle = np.median(later, 1)
  return {
    'gradient': float(middle.mean()),
    'gradient_spread': float(middle.std(ddof=1) / middle.mean()),
    'gradient_peak': float((later.max(1) / middle).max()),
  }


def rows_enough(rows: int, curve: list[float]) -> int | None:
  """Rows from which doubling them gains less than WORTH bits per value.

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
  (_, side, _), *_ = pilot.modules()
  flops = [
    cost.cost(pilot.config(side, levels, None)).total('training')
    for levels in (3, 2)
  ]
  return max(round(pilot.settings.task['small_steps'] * flops[0] / flops[1]), 1)


def composition_fits(pilot: Pilot) -> list[tuple[int, int, int]]:
  """(side, levels, steps) of the stage's models."""
  t, ((_, side, _), *_) = pilot.settings.task, pilot.modules()
  fits = [(side, 3, t['small_steps']), (side, 2, flat_steps(pilot))]
  return fits * t['seeds']


def composition(pilot: Pilot) -> Job:
  """The levels together, a flat model of equal compute, and simple models."""
  t, ((_, side, _), *_) = pilot.settings.task, pilot.modules()
  whole = yield from seeds(pilot, side=side, levels=3, draw=t['samples'])
  flat = yield from seeds(pilot, side=side, levels=2, steps=flat_steps(pilot))
  together, flat = (
    np.stack([x['bits'] for x in fits]) for fits in (whole, flat)
  )
  others = pilot.simple()
  best = min(others, key=lambda name: np.nanmean(others[name]))
  mean = lambda x: gates.mean(pilot.blocks(x))
  found = (
    gate(pilot, 'composition_bits', mean(others[best] - together), least=True),
    gate(pilot, 'flat_bits', mean(flat - together), least=True),
  )
  facts = {
    'together': float(np.nanmean(together)),
    'flat': float(np.nanmean(flat)),
    **{name: float(np.nanmean(x)) for name, x in others.items()},
    'spread': float(np.nanmean(together, 1).std(ddof=1)),
    **{f'worth_{i}': float(x) for i, x in enumerate(whole[0]['worth'])},
  }
  curves = {'drawn': whole[0]['drawn']} if t['samples'] else {}
  return Found(found, facts, curves)


def seeds(
  pilot: Pilot,
  *,
  side: int,
  levels: int,
  steps: int | None = None,
  draw: int = 0,
) -> Job:
  """A model of each seed, as `Pilot.fitted` gives them; the first one draws."""
  t, out = pilot.settings.task, []
  for seed in range(t['seeds']):
    one = yield from pilot.fitted(
      side, levels, steps or t['small_steps'], seed, 1.0, 0 if seed else draw
    )
    out.append(one)
  return out
