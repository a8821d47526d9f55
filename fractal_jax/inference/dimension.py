"""Box-counting dimensions of images: how rough they are at all scales.

An image is a surface over its plane. A grid of boxes of side s, and as high as
s is of the image's side, covers it with N boxes; N grows as s^-d, and d is its
dimension: 2 of a flat image, up to 3 of noise; 1 to 2 of a series. (The
differential box-counting of Sarkar and Chaudhuri 1994.)
"""

from ml_collections import ConfigDict
import numpy as np

MOST = 5000  # images of a split that are looked at
SHARE = 0.05  # of a class's images that may lie below its range, and above


def box_dimension(images: np.ndarray, values: int) -> np.ndarray:
  """The dimension of each image, a mean over its channels: [n].

  Args:
    images: [n, S, (S,) C], values 0 .. values - 1.
    values: that a channel can take.
  """
  n, side, channels = len(images), images.shape[1], images.shape[-1]
  rank = images.ndim - 2
  heights = np.asarray(images, np.float64) / values * side  # as the plane's
  scales = [s for s in range(1, side + 1) if side % s == 0]
  if len(scales) > 3:  # the ends say little: one value, and the whole image
    scales = scales[1:-1]
  counts = []
  for s in scales:
    boxes = heights.reshape((n,) + (side // s, s) * rank + (channels,))
    inside = tuple(range(2, 2 * rank + 1, 2))
    high, low = boxes.max(inside), boxes.min(inside)  # [n, (.., ..) C]
    covered = np.floor(high / s) - np.floor(low / s) + 1
    counts.append(covered.sum(tuple(range(1, rank + 1))))  # [n, C]
  x = -np.log(scales)
  x -= x.mean()
  slope = np.tensordot(x, np.log(counts), 1) / (x @ x)  # [n, C]
  return slope.mean(-1)


def ranges(
  images: np.ndarray, labels: np.ndarray, classes: int, values: int
) -> np.ndarray:
  """The range of each class's dimensions, and of all of them: [K + 1, 2].

  It leaves out SHARE of the images at either end. A class with fewer than two
  images has the range of all.
  """
  found = box_dimension(images, values)
  ends = lambda x: np.quantile(x, [SHARE, 1 - SHARE])
  out = np.tile(ends(found), (classes + 1, 1))
  for k in range(classes):
    if (labels == k).sum() > 1:
      out[k] = ends(found[labels == k])
  return out


def ranges_of_run(config: ConfigDict) -> np.ndarray:
  """`ranges` of a run's training split; of MOST images where it has more."""
  from fractal_jax.data import pipeline  # other choices need no data set

  m = config.model
  images, labels = pipeline.examples(config, config.data.train_split, MOST)
  return ranges(images, labels, m.classes, m.num_values)
