"""Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019).

The manifold of a set of images is the union of balls around their features,
each as large as the distance to the K-th nearest other image of the set.
Precision is the share of generated images in the manifold of the reference;
recall, the share of reference images in the manifold of the generated ones.
Both sets need about equal protocols to be compared: ADM's takes 50,000
generated images and 10,000 reference images.

Distances are computed a block at a time, in float64: memory does not grow
with the number of images. n, m images, D features.
"""

import numpy as np

K = 3
ROWS, COLUMNS = 1024, 8192  # of a block of distances


def precision_recall(
  generated: np.ndarray, reference: np.ndarray
) -> tuple[float, float]:
  """Precision and recall of features [n, D] against [m, D]; n, m > K."""
  return (
    float(inside(generated, reference, radii(reference)).mean()),
    float(inside(reference, generated, radii(generated)).mean()),
  )


def class_recall(
  generated: np.ndarray,
  labels: np.ndarray,
  reference: np.ndarray,
  reference_labels: np.ndarray,
) -> np.ndarray:
  """Recall within each class [classes]: its images against its images.

  nan for classes with K images or fewer on either side.
  """
  out = np.full(1 + max(labels.max(), reference_labels.max()), np.nan)
  for c in np.intersect1d(labels, reference_labels):
    ours, theirs = generated[labels == c], reference[reference_labels == c]
    if min(len(ours), len(theirs)) > K:
      out[c] = inside(theirs, ours, radii(ours)).mean()
  return out


def radii(features: np.ndarray) -> np.ndarray:
  """Squared distance [n] of each image to its K-th nearest other image."""
  out = []
  for rows in _blocks(features, ROWS):
    nearest = np.full((len(rows), 0), np.inf)
    for columns in _blocks(features, COLUMNS):
      nearest = np.concatenate([nearest, _squared(rows, columns)], 1)
      if nearest.shape[1] > K + 1:  # itself is among them
        nearest = np.partition(nearest, K, 1)[:, : K + 1]
    out.append(nearest.max(1))
  return np.concatenate(out)


def inside(
  points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray
) -> np.ndarray:
  """Whether each of points [n, D] lies in a ball around centres [m, D]."""
  out = []
  for rows in _blocks(points, ROWS):
    found = np.zeros(len(rows), bool)
    balls = zip(_blocks(centres, COLUMNS), _blocks(squared_radii, COLUMNS))
    for columns, reach in balls:
      found |= (_squared(rows, columns) <= reach).any(1)
    out.append(found)
  return np.concatenate(out)


def _blocks(features, size: int):
  for start in range(0, len(features), size):
    yield np.asarray(features[start : start + size], np.float64)


def _squared(a, b) -> np.ndarray:
  """Squared distances [n, m] of [n, D] and [m, D]; of equal rows exactly 0."""
  norms = (a**2).sum(1)[:, None] + (b**2).sum(1)
  out = norms - 2 * (a @ b.T)
  out[out < 1e-12 * norms] = 0  # rounding
  return out
