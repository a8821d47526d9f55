"""A linear autoregression with Gaussian noise: what a model has to beat."""

import dataclasses

import numpy as np
from scipy import special
from sklearn import linear_model

from fractal_jax.series.quantiser import filled

MOST = 1024  # numbers that a row is predicted from


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Means and standard deviations of rows, [T, C] and [C]."""

  mean: np.ndarray
  deviation: np.ndarray

  def nats(self, values: np.ndarray) -> np.ndarray:
    """-log of the density of values [T, C]."""
    z = (values - self.mean) / self.deviation
    return z**2 / 2 + np.log(self.deviation * np.sqrt(2 * np.pi))

  def bits(
    self, low: np.ndarray, width: np.ndarray, values: np.ndarray
  ) -> np.ndarray:
    """-log2 of the probability of the bins of `width` that values lie in.

    The bins begin at `low` [C]. Comparable with the bits of a model of them.
    """
    begin = low + np.floor((values - low) / width) * width
    a = (begin - self.mean) / self.deviation
    b = a + width / self.deviation
    # On the side of the nearer tail, where differences are exact.
    a, b = np.where(a > 0, -b, a), np.where(a > 0, -a, b)
    log_b, log_a = special.log_ndtr(b), special.log_ndtr(a)
    return -(
      log_b + np.log1p(-np.exp(np.minimum(log_a - log_b, -1e-12)))
    ) / np.log(2)


def rows_before(values: np.ndarray, n: int) -> np.ndarray:
  """The n rows before each row of [T, C], the first one repeated: [T, C, n]."""
  padded = np.concatenate([np.repeat(values[:1], n, 0), values[:-1]])
  return np.lib.stride_tricks.sliding_window_view(padded, n, axis=0)


def predict(values: np.ndarray, train: int, order: int) -> Prediction:
  """Predicts every row [T, C] from the `order` rows before it.

  Ridge regression on the first `train` rows, standardised; each channel from
  all channels, or, where that are too many numbers, from itself alone. What is
  not known is read as the last number before it.
  """
  known, x = ~np.isnan(values), filled(values)
  centre, spread = x[:train].mean(0), x[:train].std(0)
  spread = np.where(spread > 0, spread, 1.0)
  x = (x - centre) / spread
  channels = x.shape[1]
  if channels * order <= MOST:
    groups = [list(range(channels))]
  else:
    groups = [[c] for c in range(channels)]
  mean, deviation = np.zeros_like(x), np.zeros(channels)
  for group in groups:
    own = x[:, group]
    past = rows_before(own, order).reshape(len(x), -1)  # [T, group * order]
    first = min(order, train // 2)
    model = linear_model.Ridge(alpha=1.0).fit(
      past[first:train], own[first:train]
    )
    mean[:, group] = model.predict(past).reshape(own.shape)
    residual = np.where(known[:, group], own - mean[:, group], np.nan)
    deviation[group] = np.nanstd(residual[first:train], 0)
  deviation = np.maximum(deviation, 1e-6)
  return Prediction(mean * spread + centre, deviation * spread)
