"""Gates: a number, its interval, its threshold, and what follows from them."""

from collections.abc import Iterable
import dataclasses
import math

import numpy as np
from scipy import stats

from fractal_jax.series.scores import mean_over, weekly

GO, NO_GO, MORE_DATA = 'GO', 'NO-GO', 'MORE DATA'
EXIT = {GO: 0, NO_GO: 1, MORE_DATA: 2}
LEVEL = 0.95  # of all intervals


@dataclasses.dataclass(frozen=True)
class Interval:
  """A number with its 95% interval; both ends are it where it is exact."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Gate:
  """A criterion that was fixed before the run, and what was found.

  Attributes:
    name: a key of pilot.toml's [gates]; texts explain it.
    threshold: as it was when the stage ran.
    found: None where nothing is known of it.
    least: whether the number must be at least the threshold, or at most.
    mends: whether more data would mend a miss: then it is MORE DATA.
    about: the number of the level that it is about, where there are several.
  """

  name: str
  threshold: float
  found: Interval | None
  least: bool
  mends: bool = False
  about: int | None = None

  @property
  def verdict(self) -> str:
    """GO only where the whole interval passes, NO-GO where none of it does."""
    if self.found is None:
      return MORE_DATA
    ends = (self.found.low, self.found.high)
    if any(map(math.isnan, ends)):
      return MORE_DATA
    passes = [
      x >= self.threshold if self.least else x <= self.threshold for x in ends
    ]
    if all(passes):
      return GO
    return MORE_DATA if any(passes) or self.mends else NO_GO

  @property
  def times(self) -> float | None:
    """How many times the data would decide it, if what was found stayed so.

    What is counted grows with the data, and intervals shrink with its root.
    None where it is decided, and where more of the same would not decide it.
    """
    if self.verdict != MORE_DATA or self.found is None:
      return None
    x, low, high = dataclasses.astuple(self.found)
    if low == high:
      return self.threshold / x if self.least and x > 0 else None
    gap = abs(x - self.threshold)
    reach = x - low if x > self.threshold else high - x
    return (reach / gap) ** 2 if gap * reach > 0 else None


def verdict(each: Iterable[str]) -> str:
  """The worst of several verdicts: NO-GO before MORE DATA."""
  each = list(each)
  for one in (NO_GO, MORE_DATA):
    if one in each:
      return one
  return GO


# Intervals.


def exact(value: float) -> Interval:
  """The interval of what was counted, not estimated: a point."""
  return Interval(float(value), float(value), float(value))


def share(number: int, of: int) -> Interval | None:
  """A share, by Wilson's interval; None of nothing."""
  if not of:
    return None
  found = stats.binomtest(number, of).proportion_ci(LEVEL, 'wilson')
  return Interval(number / of, float(found.low), float(found.high))


def more(a: np.ndarray, b: np.ndarray) -> Interval | None:
  """The share of a [n], bool, less that of b, by Newcombe's interval.

  It puts Wilson's intervals of both together: its width is never 0. None of
  nothing.
  """
  a, b = (share(int(x.sum()), len(x)) for x in (a, b))
  if a is None or b is None:
    return None
  value = a.value - b.value
  return Interval(
    value,
    value - math.hypot(a.value - a.low, b.high - b.value),
    value + math.hypot(a.high - a.value, b.value - b.low),
  )


def rate(number: int, weeks: float) -> Interval | None:
  """Events per week, by the exact Poisson interval; None of no time."""
  return Interval(*weekly(number, weeks, LEVEL)) if weeks else None


def mean(blocks: np.ndarray) -> Interval | None:
  """The mean of numbers [B] or [seeds, B], by Student's interval.

  The numbers are independent, or blocks: means over stretches of rows that are
  long enough to be nearly so. Where there are several seeds, what differs
  between them is added to what differs between blocks. None of fewer than two.
  """
  blocks = np.atleast_2d(blocks)
  blocks = blocks[:, ~np.isnan(blocks).any(0)]
  seeds, n = blocks.shape
  if n < 2:
    return None
  square = blocks.mean(0).var(ddof=1) / n
  free = n - 1
  if seeds > 1:
    between = blocks.mean(1).var(ddof=1) / seeds
    # Welch and Satterthwaite's degrees of freedom of the sum.
    total = square + between
    parts = square**2 / (n - 1) + between**2 / (seeds - 1)
    free = total**2 / parts if parts else n - 1
    square = total
  value = float(blocks.mean())
  reach = float(stats.t.ppf((1 + LEVEL) / 2, free) * np.sqrt(square))
  return Interval(value, value - reach, value + reach)


def blocks(rows: np.ndarray, size: int) -> np.ndarray:
  """Means of rows [..., T] over stretches of `size`; a rest is left out."""
  n = rows.shape[-1] // size
  return mean_over(rows[..., : n * size].reshape(*rows.shape[:-1], n, size))
