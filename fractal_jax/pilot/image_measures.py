"""What pilots measure of images: bits, copies, distances, errors."""

import numpy as np
from PIL import Image
from scipy import stats

from fractal_jax.data import listing
from fractal_jax.metrics import scores
from fractal_jax.pilot import gates
from fractal_jax.pilot.gates import Interval

JUDGED = 300  # images of each kind by which models are judged, at most
GROUPS = 5  # into which images are cut, for intervals of distances
FEATURES = 32  # principal components


def bits(model, images: np.ndarray) -> np.ndarray:
  """Bits a value [n] of images under a model, which takes them as class 0."""
  values = images[0].size
  return -model.log_prob(images, 0) / values / np.log(2)


def patches(images: np.ndarray, side: int) -> np.ndarray:
  """The squares of a side that images [n, S, S, C] are cut into, in order."""
  n, whole, _, channels = images.shape
  k = whole // side
  cut = images.reshape(n, k, side, k, side, channels).transpose(
    0, 1, 3, 2, 4, 5
  )
  return cut.reshape(-1, side, side, channels)


def thumbs(images: np.ndarray, values: int) -> np.ndarray:
  """What `listing.near_copies` compares of images."""
  shown = np.round(images * (255 / (values - 1))).astype(np.uint8)
  if shown.shape[-1] == 1:
    shown = shown.repeat(3, -1)
  return np.stack([listing.thumbnail(Image.fromarray(x)) for x in shown])


def copies(learnt: np.ndarray, images: np.ndarray, values: int) -> np.ndarray:
  """Which of images [n] are near copies of one that was learnt from."""
  groups = listing.near_copies(thumbs(np.concatenate([learnt, images]), values))
  return groups[len(learnt) :] < len(learnt)


def components(train: np.ndarray):
  """A function of images: principal components [n, D] of those learnt from.

  Features that need no download, where the Inception net would see too few
  pixels.
  """
  flat = train.reshape(len(train), -1).astype(float)
  mean, number = flat.mean(0), min(FEATURES, len(flat) // 2, flat.shape[1])
  _, vectors = np.linalg.eigh(np.cov(flat.T))
  kept = vectors[:, ::-1][:, :number]
  return lambda x: (x.reshape(len(x), -1) - mean) @ kept


def against(drawn, held, train) -> tuple[np.ndarray, np.ndarray]:
  """Drawn images against real ones, by features, for each of some groups.

  Both have groups of one size, since distances of fewer images are larger.

  Args:
    drawn, held, train: features [n, D].

  Returns:
    [groups] Frechet distance to `train` of drawn images, over the mean of that
    of images held out; [groups] variance over that of `train`.
  """
  size = min(len(drawn), len(held)) // GROUPS
  mean, cov = train.mean(0), np.cov(train.T)

  def distances(x):
    cut = x[: size * GROUPS].reshape(GROUPS, size, -1)
    return np.array([
      scores.frechet_distance(g.mean(0), np.cov(g.T), mean, cov) for g in cut
    ])  # fmt: skip

  cut = drawn[: size * GROUPS].reshape(GROUPS, size, -1)
  spread = cut.var(1, ddof=1).sum(1) / np.trace(cov)
  return distances(drawn) / distances(held).mean(), spread


def saved(train, real, made) -> np.ndarray:
  """The error that completed images save [n], as a share of the neighbours'.

  A neighbour is the image that was learnt from whose upper half is the nearest
  to that of the real one.

  Args:
    train: [m, S, S, C], what was learnt from.
    real, made: [n, S, S, C], whose lower halves are compared.
  """
  half = real.shape[1] // 2
  flat = lambda x: x.reshape(len(x), -1).astype(float)
  upper, known = flat(train[:, :half]), flat(real[:, :half])
  nearest = [np.square(upper - x).sum(1).argmin() for x in known]
  truth = flat(real[:, half:])
  error = lambda x: np.sqrt(np.square(flat(x[:, half:]) - truth).mean(1))
  theirs = error(train[nearest])
  return (theirs - error(made)) / max(theirs.mean(), 1e-9)


def difference(a: np.ndarray, b: np.ndarray) -> Interval | None:
  """The mean of a less that of b, by Welch's interval; None of too few."""
  if min(len(a), len(b)) < 2:
    return None
  found = stats.ttest_ind(a, b, equal_var=False)
  span = found.confidence_interval(gates.LEVEL)
  value = float(a.mean() - b.mean())
  return Interval(value, float(span.low), float(span.high))
