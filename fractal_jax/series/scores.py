"""How surprising each point of a series is, to a model of windows.

A window of S rows goes through the model once, and each of its values gets its
own predictive distribution over V bins, given the rows before it and the
channels before it in the same row (causal levels), or given a random part of
the window (masked levels; a mean over masks). Axis letters: T rows, C channels,
S rows of a window, B windows, N rows of all windows.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from scipy import signal, stats

from fractal_jax import cpu, sharding
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import fractal, kinds, masking
from fractal_jax.models.types import Array
from fractal_jax.series.quantiser import Quantiser

NAMES = ('z2', 'bits', 'excess', 'tail')


class ScoreError(UserError, ValueError):
  """Scores that a model can't give."""


@dataclasses.dataclass(frozen=True)
class PointScores:
  """What the model says of every value; [T, C] each, NaN where not known.

  Attributes:
    bits: -log2 of the probability of the value's bin. Where no level masks,
      their sum over a window is its exact -log2 p.
    z2: the squared distance of the value, unclipped, from the predictive mean,
      over the predictive variance; 1 on average where the model is right.
    entropy: bits that the model expected.
    pit: the share of the predictive distribution below the value, its own bin
      counted by half: uniform on [0, 1] where the model is calibrated.
    mean, deviation: predictive mean and standard deviation, in the unit of the
      data.
    clipped: values outside of all bins, by channel [C].
  """

  bits: np.ndarray
  z2: np.ndarray
  entropy: np.ndarray
  pit: np.ndarray
  mean: np.ndarray
  deviation: np.ndarray
  clipped: np.ndarray

  def by_channel(self, kind: str) -> np.ndarray:
    """[T, C]: one of NAMES, larger where more surprising.

    'excess' is bits less the bits that were expected; 'tail' is -log2 of the
    two-sided tail probability of the PIT.
    """
    if kind == 'excess':
      return self.bits - self.entropy
    if kind == 'tail':
      pit = np.clip(self.pit, 1e-9, 1 - 1e-9)
      return -np.log2(2 * np.minimum(pit, 1 - pit))
    return getattr(self, kind)

  def of_rows(
    self, kind: str, smooth: int = 1, causal: bool = False
  ) -> np.ndarray:
    """[T]: the mean over the channels known, then over `smooth` rows."""
    return smoothed(mean_over(self.by_channel(kind)), smooth, causal)

  def by_level(self, sizes: Sequence[int]) -> list[np.ndarray]:
    """Bits of the patches that each level cuts, [T] each, outermost first.

    Each row has the mean bits per value of the patch that it lies in, so that
    levels compare: a burst shows at level 0, a spike at the last one.
    """
    rows = mean_over(self.bits)
    return [_blocks(rows, size) for size in sizes[1:]]


def mean_over(x: np.ndarray) -> np.ndarray:
  """The mean over what is known of the last axis; NaN where nothing is."""
  known = ~np.isnan(x)
  count = known.sum(-1)
  total = np.where(known, x, 0).sum(-1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def weekly(
  number: int, weeks: float, level: float = 0.95
) -> tuple[float, float, float]:
  """Events per week, and the exact Poisson interval of that, low and high."""
  tail = (1 - level) / 2
  low = stats.chi2.ppf(tail, 2 * number) / 2 if number else 0.0
  high = stats.chi2.ppf(1 - tail, 2 * number + 2) / 2
  return number / weeks, float(low) / weeks, float(high) / weeks


def _blocks(x: np.ndarray, size: int) -> np.ndarray:
  padded = np.pad(x, (0, -len(x) % size), constant_values=np.nan)
  means = mean_over(padded.reshape(-1, size))
  return means.repeat(size)[: len(x)]


def smoothed(x: np.ndarray, rows: int, causal: bool = False) -> np.ndarray:
  """A running mean of scores [T]; NaN are left out.

  It is of `rows` rows around each; at the ends of those that there are. With
  `causal` it is of all rows up to each, weighted by (1 - a)^age, a =
  2/(rows + 1): as old on average as a mean over the last `rows`, but what is
  new counts most (Roberts 1959, Control Chart Tests Based on Geometric Moving
  Averages).
  """
  known = ~np.isnan(x)
  held = np.where(known, x, 0.0)
  first = np.arange(len(x)) - rows // 2
  first, last = np.maximum(first, 0), np.minimum(first + rows, len(x))

  def total(v):
    if causal:
      return signal.lfilter([1.0], [1.0, 2 / (rows + 1) - 1], v)
    sums = np.r_[0.0, np.cumsum(v)]
    return sums[last] - sums[first]

  sums, counts = total(held), total(known.astype(float))
  found = counts > 1e-9  # else all that are known are long past
  return np.where(found, sums / np.where(found, counts, 1), np.nan)


# The model's part.


@struct.dataclass
class Windows:
  """Windows of a series that are scored at a time."""

  bins: Array  # [B, S, C] int32, ~v where not known
  label: Array  # [B] class, -1 for "no class"
  index: Array  # [B] number of the window


def score(
  net: fractal.Fractal,
  params: dict,
  quantiser: Quantiser,
  values: np.ndarray,
  label: int = 0,
  *,
  causal: bool = False,
  passes: int = 16,
  seed: int = 0,
  batch: int = 64,
  mesh: Mesh | None = None,
) -> Job:
  """Scores every value of a series.

  Args:
    net, params: a model of rank 1 with `unknown`.
    quantiser: of the data that it was trained on.
    values: [T, C]; NaN is not known: it is read as the last number before it,
      and not scored.
    label: the class.
    causal: refuse a model whose scores depend on later rows.
    passes: random masks per window, for masked levels.
    seed: of the masks.
    batch: windows at a time.
    mesh: the mesh; one of the first device where None.

  Yields:
    Progress after each batch.

  Returns:
    PointScores. Each value is predicted from at least 3/4 of a window: with
    causal levels from the rows before, with masked ones from both sides. The
    rows of the first window are predicted from those that there are.

  Raises:
    ScoreError: the model is of no series, not causal where `causal`, or of
      other channels.
  """
  check(net, quantiser, values, causal)
  side = net.specs[0].side
  inputs.check_counts(passes=passes, batch=batch)
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  passes = 1 if net.exact else passes
  starts, which = cover(len(values), side, both=not net.causal)
  bins = _padded(quantiser.read(values, label), starts[-1] + side)
  batch = sharding.padded_batch(min(batch, len(starts)), mesh)
  found = np.zeros(values.shape + (STATISTICS,))
  for first in range(0, len(starts), batch):
    index = np.arange(first, first + batch)
    at = starts[np.minimum(index, len(starts) - 1)]
    rows = {
      'bins': bins[at[:, None] + np.arange(side)],
      'label': np.full(batch, label, np.int32),
      'index': index.astype(np.int32),
    }
    with jax.set_mesh(mesh):
      rows = Windows(**sharding.place(rows, mesh))
      some = jax.device_get(statistics()(net, params, rows, passes, seed, mesh))
    here = np.flatnonzero((which >= first) & (which < first + batch))
    found[here] = some[which[here] - first, here - starts[which[here]]]
    yield Progress('scoring', min(first + batch, len(starts)), len(starts))
  found[np.isnan(values)] = np.nan
  return _point_scores(found, quantiser, values, label)


def _padded(bins: np.ndarray, rows: int) -> np.ndarray:
  """Bins of `rows` rows: the last one is repeated, marked as not known."""
  unknown = np.minimum(bins[-1:], ~bins[-1:])
  return np.concatenate([bins, unknown.repeat(rows - len(bins), 0)])


def _point_scores(
  found: np.ndarray, quantiser: Quantiser, values: np.ndarray, label: int
) -> PointScores:
  """Scores in bits and the data's unit, from statistics in nats and bins."""
  nats, mean, variance, entropy, pit = np.moveaxis(found, -1, 0)
  _, width = quantiser.of(label)
  distance = quantiser.place(values, label) - mean
  return PointScores(
    bits=nats / np.log(2),
    z2=distance**2 / variance,
    entropy=entropy / np.log(2),
    pit=pit,
    mean=quantiser.decode(mean, label),
    deviation=np.sqrt(variance) * width,
    clipped=quantiser.outside(values, label).sum(0),
  )


def check(
  net: fractal.Fractal, quantiser: Quantiser, values: np.ndarray, causal: bool
) -> None:
  """Raises ScoreError for what `score` can't score."""
  if net.specs[0].rank != 1 or not net.unknown:
    raise ScoreError(
      'this model was not trained on series: it needs model.rank=1 and '
      'model.unknown=True'
    )
  if causal and not net.causal:
    raise ScoreError(
      'causal scores look at the past alone, but some levels of '
      f'model.kinds={tuple(s.kind for s in net.specs)} look at both sides: '
      f'train one of levels that do not, of {" or ".join(kinds.causal())}'
    )
  channels = net.specs[0].channels
  if values.ndim != 2 or values.shape[1] != channels:
    raise ScoreError(
      f'values of shape {values.shape}: this model takes [T, {channels}], '
      f'channels {", ".join(quantiser.channels)}'
    )


STATISTICS = 5  # nats, mean, variance, entropy, pit


def cover(rows: int, side: int, *, both: bool) -> tuple[np.ndarray, np.ndarray]:
  """Windows that overlap, and in which of them each row is scored.

  Args:
    rows: T.
    side: S.
    both: whether rows are predicted from both sides. Then a row is scored where
      it is nearest to the middle; else where it is among the last quarter, and
      the windows do not depend on how many rows follow.

  Returns:
    First rows of the windows, ascending; the number of a window for each row
    [T]. The last window may reach over the end.
  """
  step = max(side // 4, 1)
  t = np.arange(rows)
  if both:
    last = max(rows - side, 0)
    starts = np.unique(np.append(np.arange(0, last, step), last))
    middles = starts + side / 2
    which = np.searchsorted((middles[1:] + middles[:-1]) / 2, t)
  else:
    which = np.maximum(-(-(t - side + 1) // step), 0)
    starts = step * np.arange(which[-1] + 1)
  return starts, which


@functools.cache
def statistics() -> Callable:
  """`_statistics`, compiled; made when first used, see likelihood.scorer."""
  return jax.jit(
    _statistics,
    static_argnums=(0, 3, 5),
    compiler_options=cpu.forward_options(),
  )


def _statistics(
  net, params, windows: Windows, passes: int, seed, mesh
) -> Array:
  """Statistics of the predictions of all values, [B, S, C, STATISTICS].

  Every device scores its own windows. Masked models: means over the passes in
  which a value was masked, weighted as in the likelihood.
  """

  def on_device(params, windows, seed):
    def add(number, totals):
      key = jax.random.fold_in(jax.random.key(seed), number)
      return totals + _one_pass(net, params, windows, key)

    totals = jnp.zeros(windows.bins.shape + (STATISTICS + 1,))
    totals = jax.lax.fori_loop(0, passes, add, totals)
    weight = totals[..., -1:]
    # Of a value that no pass masked, all but the nats is not known.
    nats = totals[..., :1] / passes
    rest = jnp.where(weight > 0, totals[..., 1:-1] / weight, jnp.nan)
    return jnp.concatenate([nats, rest], -1)

  over = jax.P(sharding.BATCH)
  run = sharding.by_device(on_device, mesh, jax.P(), over, jax.P())
  return run(params, windows, seed)


def _one_pass(net, params, windows: Windows, key) -> Array:
  """Weighted statistics and their weights, [B, S, C, STATISTICS + 1]."""
  draws = masking.uniform_draws(key, windows.index)
  rows, logits = net.predictive(params, windows.bins, windows.label, draws)
  log_p = jax.nn.log_softmax(logits)  # [N, C, V]
  p = jnp.exp(log_p)
  bins = jnp.where(windows.bins < 0, ~windows.bins, windows.bins)
  at = bins[rows.image, rows.site][..., None]  # [N, C, 1]
  value = jnp.arange(logits.shape[-1], dtype=jnp.float32)
  mean = (p * value).sum(-1)
  variance = (p * (value - mean[..., None]) ** 2).sum(-1) + 1 / 12
  own = jnp.take_along_axis(p, at, -1)[..., 0]
  below = jnp.where(value < at, p, 0).sum(-1)
  found = [
    -jnp.take_along_axis(log_p, at, -1)[..., 0],
    mean,
    variance,
    -(p * log_p).sum(-1),
    below + own / 2,
    jnp.ones_like(mean),
  ]
  found = jnp.stack(found, -1) * rows.weight[:, None, None]
  out = jnp.zeros(bins.shape + found.shape[-1:])
  return out.at[rows.image, rows.site].add(found)
