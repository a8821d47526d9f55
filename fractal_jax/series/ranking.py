"""How well scores rank labelled rows: the volume under the PR surface.

VUS-PR (Paparrizos et al., "Volume under the surface", VLDB 2022) averages the
area under a precision-recall curve over labels widened by 0 to W rows, in
which a row near an anomaly counts in part. It is computed as TSB-AD (NeurIPS
2024) publishes it: at 250 thresholds, W the period of the series.
"""

import numpy as np
from scipy import signal

THRESHOLDS = 250


def vus_pr(scores: np.ndarray, labels: np.ndarray, window: int) -> float:
  """VUS-PR of scores [T] against labels [T].

  Args:
    scores: larger where more anomalous.
    labels: True where anomalous, at least once.
    window: W, rows; see `period`.
  """
  labels = np.asarray(labels, bool)
  at = np.linspace(0, len(scores) - 1, THRESHOLDS).astype(int)
  order = np.argsort(-scores, kind='stable')
  thresholds = scores[order][at]
  number = np.searchsorted(-scores[order], -thresholds, 'right')  # flagged
  flagged = lambda weight: weight[order].cumsum()[number - 1]  # sums of these
  runs = runs_of(labels)
  positives, hits = labels.sum(), flagged(labels)
  areas = []
  for w in range(window + 1):
    true = flagged(widened(labels, runs, w))
    # As many as are found or labelled: the mean of that with the labelled.
    wanted = (positives + (true - hits + positives)) / 2
    tops = [scores[a : b + 1].max() for a, b in _joined(runs, w, len(scores))]
    found = (np.array(tops) >= thresholds[:, None]).mean(1)  # of the anomalies
    recall = np.minimum(true / wanted, 1) * found
    areas.append(np.diff(recall, prepend=0) @ (true / number))
  return float(np.mean(areas))


def widened(
  labels: np.ndarray, runs: list[tuple[int, int]], width: int
) -> np.ndarray:
  """Labels [T] that fade out over width / 2 rows on either side of each run."""
  out = labels.astype(np.float64)
  reach = np.arange(1, width // 2 + 1)
  fade = np.sqrt(1 - reach / max(width, 1))
  for first, last in runs:
    for at in (first - reach, last + reach):
      inside = (at >= 0) & (at < len(out))
      out[at[inside]] += fade[inside]
  return np.minimum(out, 1)


def runs_of(labels: np.ndarray) -> list[tuple[int, int]]:
  """(first, last) of each run of True among labels [T]."""
  edges = np.diff(np.concatenate([[0], labels, [0]]).astype(int))
  firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
  return list(zip(firsts.tolist(), (ends - 1).tolist()))


def _joined(runs, width: int, rows: int) -> list[tuple[int, int]]:
  """Runs with width / 2 rows on either side, joined where these meet."""
  half = width // 2
  out = []
  for first, last in runs:
    first, last = max(first - half, 0), min(last + half, rows - 1)
    if out and first <= out[-1][1]:
      first, _ = out.pop()
    out.append((first, last))
  return out


def period(values: np.ndarray) -> int:
  """The period of a series [T] in rows, by its autocorrelation; else 125.

  The highest local maximum at lags 3 to 400, of the first 20,000 rows.
  """
  x = np.asarray(values, np.float64)[:20000]
  x = x - x.mean()
  n = 1 << (2 * len(x) - 1).bit_length()
  power = np.abs(np.fft.rfft(x, n)) ** 2
  lags = min(400, len(x) - 1)
  correlation = np.fft.irfft(power, n)[: lags + 1]
  correlation = correlation[3:] / max(correlation[0], 1e-300)
  (peaks,) = signal.argrelextrema(correlation, np.greater)
  if not len(peaks):
    return 125
  best = int(peaks[np.argsort(correlation[peaks])[::-1][0]])
  return best + 3 if 3 <= best <= 300 else 125
