"""Numbers from features: Frechet distance, Inception Score, diversity.

n images, D features, K classes. Everything is float64.
"""

import numpy as np

SPLITS = 10
SHUFFLE = 2020  # torch-fidelity's seed


class Statistics:
  """Mean and covariance of rows that come in batches."""

  def __init__(self):
    self.num = 0
    self._shift = None  # near the mean, so that nothing cancels

  def add(self, rows: np.ndarray) -> None:
    """Takes rows [n, D]."""
    rows = np.asarray(rows, np.float64)
    if not len(rows):
      return
    if self._shift is None:
      self._shift = rows.mean(0)
      self._sum = np.zeros_like(self._shift)
      self._products = np.zeros((len(self._shift),) * 2)
    rows = rows - self._shift
    self.num += len(rows)
    self._sum += rows.sum(0)
    self._products += rows.T @ rows

  def result(self) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D] and the unbiased covariance [D, D] of at least 2 rows."""
    mean = self._sum / self.num
    products = self._products - self.num * np.outer(mean, mean)
    return self._shift + mean, products / (self.num - 1)


def frechet_distance(
  mu1: np.ndarray,
  sigma1: np.ndarray,
  mu2: np.ndarray,
  sigma2: np.ndarray,
  root: np.ndarray | None = None,
) -> float:
  """Frechet distance of two Gaussians, squared as in FID (Heusel et al. 2017).

  |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), with the last
  trace from the eigenvalues of root sigma2 root^T: that is symmetric, so
  nothing becomes complex where a covariance has not full rank.

  Args:
    mu1, mu2: [D].
    sigma1, sigma2: [D, D], symmetric.
    root: [n, D] with root^T root = sigma1, where it is at hand; see `root_of`.
  """
  if root is None:
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(_positive(values))).T
  product = root @ sigma2 @ root.T
  values = np.linalg.eigvalsh((product + product.T) / 2)
  cross = np.sqrt(_positive(values)).sum()
  gap = np.asarray(mu1, np.float64) - mu2
  return float(gap @ gap + np.trace(sigma1) + np.trace(sigma2) - 2 * cross)


def root_of(rows: np.ndarray) -> np.ndarray | None:
  """A root [n, D] of the covariance of rows [n, D], if they are fewer than D.

  It makes the distance of few images exact, and quick.
  """
  n, d = rows.shape
  if n >= d:
    return None
  rows = np.asarray(rows, np.float64)
  return (rows - rows.mean(0)) / np.sqrt(n - 1)


def _positive(values: np.ndarray) -> np.ndarray:
  """Eigenvalues without the rounding errors of those that are 0."""
  noise = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
  return np.where(values > noise, values, 0)


def inception_score(logits: np.ndarray) -> tuple[float, float]:
  """Inception Score (Salimans et al. 2016), as torch-fidelity computes it.

  The images are shuffled by a fixed seed and cut into ten parts; each part's
  score is exp of its mean KL divergence from its own mean distribution. (ADM's
  suite takes parts of 5000 images in their own order: for 50,000 images the
  same up to the shuffle.)

  Args:
    logits: [n, 1008], n at least 10; without the bias of the head.

  Returns:
    Mean and standard deviation of the parts' scores.
  """
  n = len(logits)
  order = np.random.RandomState(SHUFFLE).permutation(n)
  logits = np.asarray(logits, np.float64)[order]
  logits = logits - logits.max(1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  scores = []
  for i in range(SPLITS):
    part = log_p[i * n // SPLITS : (i + 1) * n // SPLITS]
    p = np.exp(part)
    # A class without probability adds 0 log 0 = 0.
    log_mean = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
    scores.append(np.exp((p * (part - log_mean)).sum(1).mean()))
  return float(np.mean(scores)), float(np.std(scores))


class ClassVariance:
  """Variance of features within each class, of rows that come in batches."""

  def __init__(self):
    self._shift = None
    self._count = np.zeros(0)
    self._sum = None
    self._squares = np.zeros(0)

  def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
    """Takes rows [n, D] with their classes [n]."""
    rows = np.asarray(rows, np.float64)
    if not len(rows):
      return
    if self._shift is None:
      self._shift = rows.mean(0)
      self._sum = np.zeros((0, rows.shape[1]))
    more = max(0, labels.max() + 1 - len(self._count))
    self._count = np.pad(self._count, (0, more))
    self._squares = np.pad(self._squares, (0, more))
    self._sum = np.pad(self._sum, ((0, more), (0, 0)))
    rows = rows - self._shift
    np.add.at(self._count, labels, 1)
    np.add.at(self._squares, labels, (rows**2).sum(1))
    np.add.at(self._sum, labels, rows)

  def result(self) -> np.ndarray:
    """[K] the sum over features of the unbiased variance; nan below 2 rows."""
    n = self._count
    with np.errstate(divide='ignore', invalid='ignore'):
      spread = self._squares - (self._sum**2).sum(1) / n
      return np.where(n > 1, spread / (n - 1), np.nan)


def diversity(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Variances within classes [K] as shares of the reference's, [K + 1].

  The last entry is of all classes together: the sum of ours over the sum of the
  reference's. 1 is as diverse as the reference; classes that either lacks are
  nan, and left out of the last.
  """
  k = max(len(ours), len(reference))
  ours, reference = (
    np.pad(x, (0, k - len(x)), constant_values=np.nan)
    for x in (ours, reference)
  )
  both = np.isfinite(ours) & (reference > 0)
  out = np.full(k + 1, np.nan)
  out[:k][both] = ours[both] / reference[both]
  if both.any():
    out[k] = ours[both].sum() / reference[both].sum()
  return out
