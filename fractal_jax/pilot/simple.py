"""Simple models that a fractal one has to beat, in bits of the same bins."""

import numpy as np
from scipy import ndimage

from fractal_jax.series import linear
from fractal_jax.series.quantiser import Quantiser, filled

DEGREE = 2  # of the polynomial that is drawn through the last rows


def histogram(values: np.ndarray, train: int, bins: Quantiser) -> np.ndarray:
  """Bits [T, C] by how often each bin occurs in the first `train` rows.

  A model without memory. Counts are smoothed over two bins, as training noise
  does for the others, and every bin has a little.
  """
  read = bins.read(values)
  out = np.full(values.shape, np.nan)
  for c in range(values.shape[1]):
    known = read[:train, c][read[:train, c] >= 0]
    counts = np.bincount(known, minlength=bins.bins).astype(float)
    p = ndimage.gaussian_filter1d(counts, 2.0, mode='nearest')
    p = 0.999 * p / p.sum() + 0.001 / bins.bins
    ok = read[:, c] >= 0
    out[ok, c] = -np.log2(p[read[ok, c]])
  return out


def last_value(values: np.ndarray, train: int, bins: Quantiser) -> np.ndarray:
  """Bits [T, C]: each row is as the one before, with Gaussian noise."""
  return _filtered(values, train, bins, np.array([1.0]))


def autoregression(
  values: np.ndarray, train: int, bins: Quantiser, order: int
) -> np.ndarray:
  """Bits [T, C] of a linear autoregression on `order` rows."""
  low, width = bins.of(0)
  return linear.predict(values, train, order).bits(low, width, values)


def polynomial(
  values: np.ndarray, train: int, bins: Quantiser, order: int
) -> np.ndarray:
  """Bits [T, C]: a parabola through the last `order` rows, drawn on (POLY)."""
  t = np.arange(-order, 0, dtype=float)
  powers = np.stack([t**k for k in range(DEGREE + 1)], 1)
  return _filtered(values, train, bins, np.linalg.pinv(powers)[0])


def _filtered(values, train: int, bins: Quantiser, weights: np.ndarray):
  """Bits where rows are predicted by a weighted sum of those before."""
  n = len(weights)
  mean = linear.rows_before(filled(values), n) @ weights  # [T, C]
  residual = (values - mean)[n:train]
  deviation = np.maximum(np.nanstd(residual, 0), 1e-6)
  low, width = bins.of(0)
  return linear.Prediction(mean, deviation).bits(low, width, values)
