"""Forecasts and gaps, by editing: what is not known is drawn, given the rest.

A window is an image of S rows, what is wanted is its mask, and `edit` draws it.
A horizon longer than a quarter of a window is drawn in parts, each given the
rows drawn before it; a gap is drawn in windows that begin before it.
"""

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from fractal_jax import checks
from fractal_jax.errors import UserError
from fractal_jax.inference import edit, inputs
from fractal_jax.inference.progress import Job, Progress, result_of

if TYPE_CHECKING:
  from fractal_jax import api

QUANTILES = (0.1, 0.5, 0.9)


class ForecastError(UserError, ValueError):
  """What can't be forecast or imputed."""


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What was drawn of a series, in the unit of the data.

  Attributes:
    samples: [num, T, C].
    quantiles: [quantiles, T, C] of the samples, value by value.
    levels: [quantiles] which ones.
  """

  samples: np.ndarray
  quantiles: np.ndarray
  levels: tuple[float, ...]


def _drawn(samples: np.ndarray, levels: Sequence[float]) -> Drawn:
  return Drawn(samples, np.quantile(samples, levels, axis=0), tuple(levels))


def forecast(
  model: 'api.Model',
  context: np.ndarray,
  horizon: int,
  *,
  quantiles: Sequence[float] = QUANTILES,
  num: int = 100,
  label: int = 0,
  seed: int = 0,
  **settings: Any,
) -> Job:
  """The job of `api.Model.forecast`, whose arguments and errors these are."""
  context = _checked(model, context, quantiles, num, label, seed, settings)
  inputs.check_number('horizon', horizon, checks.FROM_1)
  side = model.config.model.sizes[0]
  step = min(horizon, max(side // 4, 1))
  context = context[-side:]
  bins, known = _front(model, context, label, side)
  bins = np.repeat(bins[None], num, 0)  # [num, side, C]
  known = np.repeat(known[None], num, 0)
  drawn = []
  for first in range(0, horizon, step):
    new = min(step, horizon - first)
    empty = np.zeros((num, new) + bins.shape[2:], bins.dtype)
    bins = np.concatenate([bins, empty], 1)[:, -side:]
    known = np.concatenate([known, empty.astype(bool)], 1)[:, -side:]
    bins = _edit(model, bins, ~known, label, seed + first, settings)
    known[:] = True  # the gaps of the context, too, are drawn by now
    drawn.append(bins[:, -new:])
    yield Progress('drawing', first + new, horizon)
  samples = model.quantiser.decode(np.concatenate(drawn, 1), label)
  return _drawn(samples, quantiles)


def impute(
  model: 'api.Model',
  values: np.ndarray,
  *,
  quantiles: Sequence[float] = QUANTILES,
  num: int = 20,
  label: int = 0,
  seed: int = 0,
  **settings: Any,
) -> Job:
  """The job of `api.Model.impute`, whose arguments and errors these are.

  In each round every window that holds the first values not known of its
  neighbourhood is drawn, all of them at once; they do not overlap. Of what is
  drawn, the last quarter is drawn again in the next round, unless the gap ends
  there, so that masked levels see what comes after a gap.
  """
  values = _checked(model, values, quantiles, num, label, seed, settings)
  side, rows = model.config.model.sizes[0], len(values)
  bins, known = _front(model, values, label, max(side, rows))
  offset = len(bins) - rows  # rows put before a series shorter than a window
  bins = np.repeat(bins[None], num, 0)
  given = known[offset:].copy()
  total, number = int((~known).sum()), 0
  while not known.all():
    starts = _gap_windows(known, side)
    at = np.array(starts)[:, None] + np.arange(side)
    windows = bins[:, at].reshape((-1, side) + bins.shape[2:])
    masks = np.repeat((~known)[at][None], num, 0).reshape(windows.shape)
    new = _edit(model, windows, masks, label, seed + number, settings)
    new = new.reshape((num, len(starts), side) + bins.shape[2:])
    for i, s in enumerate(starts):
      # Where the gap goes on, its end is drawn with what follows.
      ends = s + side == len(known) or known[s + side - 1].all()
      until = s + side - (0 if ends else side // 4)
      part = ~known[s:until]
      where = slice(s, until)
      bins[:, where] = np.where(part, new[:, i, : until - s], bins[:, where])
      known[where] = True
    number += 1
    yield Progress('drawing', total - int((~known).sum()), max(total, 1))
  samples = model.quantiser.decode(bins[:, offset:], label)
  samples = np.where(given, values, samples)
  return _drawn(samples, quantiles)


def _gap_windows(known: np.ndarray, side: int) -> list[int]:
  """First rows of windows without overlap, each around a first unknown row."""
  rows = np.flatnonzero(~known.all(1))
  starts, after = [], 0
  for row in rows:
    start = int(np.clip(row - side // 2, 0, len(known) - side))
    if start >= after:
      starts.append(start)
      after = start + side
  return starts or [int(np.clip(rows[0] - side // 2, 0, len(known) - side))]


def _front(model, values: np.ndarray, label: int, rows: int):
  """Bins and what is known [rows, C] of the last rows, with copies before."""
  read = model.quantiser.read(values, label)
  known = read >= 0
  bins = np.where(known, read, ~read)
  lacking = rows - len(bins)
  bins = np.pad(bins, ((max(lacking, 0), 0), (0, 0)), 'edge')
  known = np.pad(known, ((max(lacking, 0), 0), (0, 0)), constant_values=True)
  return bins[-rows:], known[-rows:]


def _edit(model, bins, mask, label: int, seed: int, settings: dict):
  """What is under a mask of windows, drawn once each: bins [n, S, C].

  Filled up to whole batches, so that one program serves any number.
  """
  if not mask.any():
    return bins
  batch = settings.get('batch') or model.config.sample.batch
  whole = np.arange(-(-len(bins) // batch) * batch) % len(bins)
  seed %= 2**32  # of a later part
  job = model.start(
    edit.edit, bins[whole], mask[whole], label, seed=seed, **settings
  )
  return result_of(job)[: len(bins), 0].astype(np.int32)


def _checked(
  model, values, quantiles, num, label, seed, settings: dict
) -> np.ndarray:
  """The values as float64 [T, C], after a look at all arguments."""
  inputs.check_number('num', num, checks.FROM_1)
  inputs.check_number('label', label, checks.FROM_0)
  inputs.check_seed(seed)
  inputs.check_counts(batch=settings.get('batch'))
  m = model.config.model
  if model.quantiser is None:
    raise ForecastError(
      'this run has no quantiser.json: forecasts and imputation are for runs '
      "of data.name='series'"
    )
  if label >= m.classes:
    raise ForecastError(f'label={label}: classes are 0 to {m.classes - 1}')
  found = inputs.array(values, 'values')
  if found.ndim != 2 or found.shape[1] != m.channels or not len(found):
    raise ForecastError(
      f'values of shape {found.shape}: this model takes [T, {m.channels}], '
      f'channels {", ".join(model.quantiser.channels)}'
    )
  try:
    if found.dtype.kind not in 'biufO':
      raise TypeError('they are no numbers')
    found = found.astype(np.float64)
  except (TypeError, ValueError) as e:
    raise ForecastError(f'values of type {found.dtype}: {e}') from e
  if np.isinf(found).any():
    raise ForecastError('values hold infinity: what is not known is NaN')
  levels = inputs.array(quantiles, 'quantiles')
  if (
    levels.dtype.kind != 'f'
    or levels.ndim != 1
    or not len(levels)
    or not ((levels > 0) & (levels < 1)).all()
  ):
    raise ForecastError(
      f'quantiles={quantiles} must be numbers above 0 and below 1'
    )
  return found
