"""Differences between two models on the same images: interval, sign test."""

import dataclasses

import numpy as np
from scipy import stats

from fractal_jax.pilot.gates import LEVEL

ALPHA = 0.05  # of the sign test


@dataclasses.dataclass(frozen=True)
class Paired:
  """Bits per image that b costs more than a; below 0 where b is better."""

  mean: float
  low: float  # of the 95% interval of the mean
  high: float
  wins: int  # images that b takes fewer bits for
  losses: int  # images that it takes more for; the rest are equal
  images: int
  p: float  # of the sign test: that wins and losses are equally likely

  @property
  def better(self) -> str | None:
    """'a' or 'b', where the interval leaves 0 out; None: no difference."""
    if self.low <= 0 <= self.high:
      return None
    return 'a' if self.mean > 0 else 'b'

  @property
  def agree(self) -> bool:
    """Whether the sign test shows the difference that the interval shows."""
    side = 'a' if self.losses > self.wins else 'b'
    return self.better == (side if self.p < ALPHA else None)


def paired(difference: np.ndarray) -> Paired:
  """The summary of differences [n], two or more, of b less a.

  The interval is Student's, of differences that do not depend on each other.
  """
  n = len(difference)
  mean = float(difference.mean())
  reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * difference.std(ddof=1)
  reach = float(reach / np.sqrt(n))
  wins, losses = int((difference < 0).sum()), int((difference > 0).sum())
  p = 1.0
  if wins + losses:
    p = float(stats.binomtest(wins, wins + losses).pvalue)
  return Paired(mean, mean - reach, mean + reach, wins, losses, n, p)
