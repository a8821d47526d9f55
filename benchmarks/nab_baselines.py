"""Detectors that benchmarks/nab.py compares with: [T] scores of a series [T].

POLY and Sub-PCA see the whole series and no labels, as TSB-AD runs them; they
were written anew from their description there, and reproduce its published
numbers. The linear model is fitted to the normal rows at the beginning.
"""

import warnings

import numpy as np
from scipy.spatial import distance
from sklearn import decomposition

from fractal_jax.series import linear as linear_lib
from fractal_jax.series import ranking


def poly(values: np.ndarray, train: int) -> np.ndarray:
  """Distance from a polynomial of degree 4 fitted to the neighbourhood.

  The series is cut into windows of one period. Each is predicted by a
  polynomial of the rows around it, 10 periods in all, without its own, and has
  one score: the norm of the difference of their spectra. The first tenth (at
  most 500 rows) is not scored.
  """
  del train
  x = (values - values.min()) / (values.max() - values.min())
  n, window = len(x), ranking.period(values)
  around = min(max(10 * window, 100), n)
  scores = np.zeros(n)
  for first in range(
    -(-min(500, n // 10) // window) * window, n // window * window + 1, window
  ):
    chunk = slice(first, min(first + window, n))
    if chunk.start >= n:
      continue
    begin, end = _neighbourhood(first, window, around, n)
    rows = np.concatenate(
      [np.arange(begin, first), np.arange(first + window, end)]
    )
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # that the fit is poorly conditioned
      fitted = np.poly1d(np.polyfit(rows, x[rows], 4))
    whole = first + window <= n // window * window
    # Whole windows are predicted at places that stretch over both their ends.
    at = (
      np.linspace(first, first + window, window)
      if whole
      else np.arange(first, n)
    )
    spectrum = np.fft.fft(x[chunk]) - np.fft.fft(fitted(at))
    scores[chunk] = np.linalg.norm(spectrum) / len(at)
  return scores


def _neighbourhood(first: int, window: int, around: int, n: int):
  """The rows that a window is predicted from: first, end."""
  half = around // 2
  if first + half < n and first - half > 0:
    return first - half, first + half
  if first + half >= n:
    return n - around, n
  return (
    (0, around) if first + window < around else (first - half, first + half)
  )


def sub_pca(values: np.ndarray, train: int) -> np.ndarray:
  """Weighted distances of windows of one period from principal components."""
  del train
  window = ranking.period(values)
  x = np.lib.stride_tricks.sliding_window_view(values, window).astype(float)
  for _ in range(2):  # standardised twice
    spread = x.std(0)
    x = np.nan_to_num((x - x.mean(0)) / np.where(spread > 0, spread, 1))
  fitted = decomposition.PCA(random_state=0).fit(x)
  far = distance.cdist(x, fitted.components_)
  scores = (far / fitted.explained_variance_ratio_).sum(1)
  return np.pad(scores, (window // 2, (window - 1) // 2), 'edge')


def linear(values: np.ndarray, train: int) -> np.ndarray:
  """Nats of a linear autoregression on 128 rows, fitted to the normal rows."""
  found = linear_lib.predict(values[:, None], train, 128)
  return found.nats(values[:, None])[:, 0]


DETECTORS = {'POLY': poly, 'Sub-PCA': sub_pca, 'linear AR(128)': linear}
