"""What pilots measure of images: bits, copies, distances, errors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import stats

from fractal_jax.data import listing
from fractal_jax.metrics import neighbours, scores
from fractal_jax.pilot import gates
from fractal_jax.pilot.gates import Interval

if TYPE_CHECKING:
  from fractal_jax import api

JUDGED = 300  # images of each kind by which models are judged, at most
FEATURES = 32  # principal components
GROUPS = 10  # of which each is left out in turn, for the interval of a distance
SETS = 8  # of images learnt from, each as many as are drawn


def bits(model: 'api.Model', images: np.ndarray) -> np.ndarray:
  """Bits per value [n] of images under a model, which takes them as class 0."""
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


def components(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """A function of images: principal components [n, D] of those learnt from.

  Features that need no download, where the Inception net would see too few
  pixels.
  """
  flat = train.reshape(len(train), -1).astype(float)
  mean, number = flat.mean(0), min(FEATURES, len(flat) // 2, flat.shape[1])
  _, vectors = np.linalg.eigh(np.cov(flat.T))
  kept = vectors[:, ::-1][:, :number]
  return lambda x: (x.reshape(len(x), -1) - mean) @ kept


def distance(
  drawn: np.ndarray, held: np.ndarray, train: np.ndarray
) -> np.ndarray:
  """How far drawn images are from those learnt from, over images held out.

  Frechet distances are larger the fewer images they are of, so as many are
  taken of both. 1 is as far as real images are.

  Args:
    drawn, held, train: features [n, D].

  Returns:
    [GROUPS] pseudo-values of the jackknife, moved so that their mean is the
    ratio of all images: a tenth of the images is left out of each in turn.
  """
  size = min(len(drawn), len(held))
  mean, cov = train.mean(0), np.cov(train.T)
  group = np.arange(size) * GROUPS // size

  def ratio(kept):
    ours, real = (
      scores.frechet_distance(g.mean(0), np.cov(g.T), mean, cov)
      for g in (drawn[:size][kept], held[:size][kept])
    )
    return ours / real

  left = np.array([ratio(group != i) for i in range(GROUPS)])
  return ratio(group >= 0) + (GROUPS - 1) * (left.mean() - left)


def strange(
  drawn: np.ndarray, held: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Which drawn images, and which held out, are like none learnt from: bool.

  Arguments are features [n, D]. 1 less the share of either is its precision.
  """
  return tuple(_unlike(x, train) for x in (drawn, held))


def missed(
  drawn: np.ndarray, held: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """How often images held out are like none drawn, and like none learnt from.

  Arguments are features [n, D]. Of those learnt from, SETS of as many as were
  drawn are taken. 1 less the mean of either is a recall.

  Returns:
    [held] 0 or 1; [held] shares of the sets.
  """
  rng, size = np.random.default_rng(0), min(len(drawn), len(train))
  sets = [train[rng.permutation(len(train))[:size]] for _ in range(SETS)]
  theirs = np.mean([_unlike(held, some) for some in sets], 0)
  return _unlike(held, drawn[:size]) * 1.0, theirs


def _unlike(images: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Which of images [n, D] are like no real one [m, D]: bool."""
  return ~neighbours.inside(images, real, neighbours.radii(real))


def saved(train: np.ndarray, real: np.ndarray, made: np.ndarray) -> np.ndarray:
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
