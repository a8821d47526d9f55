"""Simple models of images, in bits per value, for a fractal one to beat."""

import numpy as np
from scipy import ndimage

REACH = 2  # rows and columns of neighbours that the forest sees
TREES, LEAF = 50, 10
ROWS = 40_000  # values that the forest learns from, drawn by chance
UNIFORM = 0.03  # share of it that is mixed in: nothing is impossible
CHUNK = 20_000  # values that are predicted at a time


def histogram(train: np.ndarray, images: np.ndarray, values: int) -> np.ndarray:
  """Bits per value [m] by how often each value occurs at its position.

  Args:
    train: [n, S, S, C], what is learnt from.
    images: [m, S, S, C].
    values: V.
  """
  flat = train.reshape(len(train), -1)
  counts = np.ones((flat.shape[1], values))
  np.add.at(counts, (np.arange(flat.shape[1])[None], flat), 1)
  if values > 32:  # few images see few of many values
    counts = ndimage.gaussian_filter1d(counts, values / 64, 1, mode='nearest')
  bits = -np.log2(counts / counts.sum(1, keepdims=True))
  seen = images.reshape(len(images), -1)
  return bits[np.arange(seen.shape[1])[None], seen].mean(1)


def forest(train: np.ndarray, images: np.ndarray, values: int) -> np.ndarray:
  """Bits per value [m] of a random forest of each value given earlier ones.

  One forest for all positions: it is told the position, the channel, the
  earlier channels, and the neighbours above and to the left, in reach.
  Arguments as in `histogram`.
  """
  from sklearn.ensemble import RandomForestClassifier

  told, value = _told(train)
  some = np.random.default_rng(0).permutation(len(value))[:ROWS]
  model = RandomForestClassifier(
    TREES, min_samples_leaf=LEAF, random_state=0, n_jobs=-1
  ).fit(told[some], value[some])
  told, value = _told(images)
  bits = np.empty(len(value))
  for start in range(0, len(value), CHUNK):
    part = slice(start, start + CHUNK)
    p = np.zeros((len(told[part]), values))
    p[:, model.classes_] = model.predict_proba(told[part])
    if values > 32:
      p = ndimage.gaussian_filter1d(p, values / 128, 1, mode='nearest')
    p = (1 - UNIFORM) * p / p.sum(1, keepdims=True) + UNIFORM / values
    bits[part] = -np.log2(p[np.arange(len(p)), value[part]])
  return bits.reshape(len(images), -1).mean(1)


def _told(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """What the forest is told of each value [n S S C, features]; the values.

  -1 stands for what is outside, or not known yet.
  """
  n, side, _, channels = images.shape
  r, x = REACH, images.astype(np.int16)
  padded = np.pad(x, ((0, 0), (r, 0), (r, r), (0, 0)), constant_values=-1)
  near = [
    padded[:, r + dy : r + dy + side, r + dx : r + dx + side]
    for dy in range(-r, 1)
    for dx in range(-r, r + 1)
    if (dy, dx) < (0, 0)
  ]
  near = np.concatenate(near, -1)  # [n, S, S, neighbours * C]
  rows, columns = np.indices((side, side), np.int16)
  place = np.broadcast_to(np.stack([rows, columns], -1), (n, side, side, 2))
  out = []
  for c in range(channels):
    before = np.where(np.arange(channels) < c, x, -1)
    number = np.full((n, side, side, 1), c, np.int16)
    out.append(np.concatenate([near, place, before, number], -1))
  out = np.stack(out, 3)  # [n, S, S, C, features]
  return out.reshape(-1, out.shape[-1]), images.reshape(-1)
