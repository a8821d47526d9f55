"""Which patches of a masked level are masked, and in which order they come.

Training and likelihood draw, for each sequence, how many patches are masked
and which; only these go down to the next level. Their number must be known
when the program is compiled, so they are gathered into buffers of a fixed
capacity. The counts are therefore drawn from strata: a sequence of points
that fill [0, 1) evenly, moved by one random shift. Each count alone follows
its law exactly, and their sum hardly varies, so the buffers can be small.
Axis letters: types.py.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
import scipy.special

from fractal_jax.models.keys import fold_in
from fractal_jax.models.types import Array, Draws, Rows, Spec

# 2^32 divided by the golden ratio: i times this, modulo 2^32, fills the
# circle evenly for every i, and so does every run of consecutive i.
GOLDEN = 2654435769
LAWS = ('normal', 'uniform')  # of model.mask_law
STEP_SIZES = ('cosine', 'two-stage')  # of sample.step_sizes


def strata(shift: Array, index: Array) -> Array:
  """Point `index` of the even sequence moved by `shift`, both uint32."""
  bits = shift + index.astype(jnp.uint32) * jnp.uint32(GOLDEN)
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def uniform_draws(key: Array, index: Array) -> Draws:
  """The draws of images [B] by their numbers, for unbiased likelihoods.

  Images in a row fill the strata evenly.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
  ratio = strata(jax.random.bits(key, (), jnp.uint32), index)
  return Draws(keys, ratio, law='uniform')


def counts(u: ArrayLike, spec: Spec, law: str, xp: ModuleType = jnp) -> Array:
  """Masked patches of sequences whose strata are u in [0, 1).

  law 'train': ceil(ratio L) with ratio from the normal distribution
  (mask_mean, mask_std) truncated to [0, 1], or as mask_law says. law 'uniform':
  uniform on 1 .. L, which makes likelihoods unbiased.
  """
  special = scipy.special if xp is np else jax.scipy.special
  if 'uniform' in (law, spec.mask_law):
    return 1 + xp.floor(u * spec.length).astype(xp.int32)
  mean, std = spec.mask_mean, spec.mask_std
  low, high = scipy.special.ndtr([-mean / std, (1 - mean) / std])
  ratio = mean + std * special.ndtri(low + u * (high - low))
  n = xp.ceil(ratio * spec.length)
  return xp.clip(n, 1, spec.length).astype(xp.int32)


@functools.lru_cache(maxsize=256)
def capacity(spec: Spec, law: str, rows: int, images: int) -> int:
  """Masked patches of `rows` sequences from `images` images, at the most.

  The largest total that the strata allow over all shifts: exact where each
  image has rows / images sequences (always so at level 0, which has one
  shift for the whole batch).
  """
  run = rows if spec.index == 0 else -(-rows // images)
  points = np.arange(min(run, 4096), dtype=np.uint32) * np.uint32(GOLDEN)
  shifts = (np.arange(1024) / 1024)[:, None]
  u = (points / 2.0**32 + shifts) % 1
  worst = counts(u, spec, law, np).sum(1).max() + 1
  total = int(np.ceil(worst * rows / len(points)))
  total += -total % 8  # GPUs copy a matrix of other numbers of rows to pad it
  return min(total, rows * spec.length)


def draw_mask(rows: Rows, draws: Draws, spec: Spec) -> Array:
  """Random masks [N, L] of rows, True where a patch is masked."""
  own = fold_in(draws.keys, jnp.asarray(spec.index))  # [B]
  if spec.index == 0:
    u = draws.ratio
  else:
    shift = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32))(own)
    # Which of its image's rows each row is: rows of an image are neighbours.
    start = jnp.searchsorted(rows.image, rows.image, side='left')
    u = strata(shift[rows.image], jnp.arange(len(rows.image)) - start)
  n = counts(u, spec, draws.law)  # [N]
  keys = fold_in(own[rows.image], rows.site)
  scores = jax.vmap(lambda k: jax.random.uniform(k, (spec.length,)))(keys)
  rank = scores.argsort(-1).argsort(-1)
  return rank < n[:, None]


def compact(
  mask: Array, capacity: int, key: Array | None
) -> tuple[Array, Array, Array]:
  """The flat indices of the True entries of a mask, in order.

  Args:
    mask: bool [M].
    capacity: length of the result.
    key: draws which entries are dropped where there are more than that. (None:
      there never are.)

  Returns:
    Indices [capacity]; which of them are filled [capacity]; how many were
    dropped. Dropped entries are evenly spaced with a random start, so that
    each is as likely.
  """
  total = mask.sum()
  rank = jnp.cumsum(mask) - mask  # of each True entry
  excess = jnp.maximum(total - capacity, 0)
  start = jax.random.uniform(key) if key is not None else 0.5
  share = excess / jnp.maximum(total, 1)

  def dropped_before(r):
    return jnp.clip(jnp.ceil(r * share - start), 0, excess).astype(jnp.int32)

  before = dropped_before(rank)
  keep = mask & (dropped_before(rank + 1) == before)
  slot = jnp.where(keep, rank - before, capacity)
  index = jnp.zeros(capacity, jnp.int32)
  index = index.at[slot].set(jnp.arange(len(mask)), mode='drop')
  filled = jnp.arange(capacity) < jnp.minimum(total, capacity)
  return index, filled, excess


def unmask_counts(
  length: int, iterations: int, step_sizes: str = 'cosine'
) -> list[int]:
  """Patches still masked after each generation step.

  Args:
    length: patches.
    iterations: steps, no more than patches.
    step_sizes: 'cosine', as published: each step draws more. 'two-stage':
      the first quarter of the patches, which set the structure, in the first
      three quarters of the steps, and all others in the rest.
  """
  steps = min(iterations, length)
  left, out = length, []
  for t in range(steps - 1):
    if step_sizes == 'cosine':
      share = np.cos(np.pi / 2 * (t + 1) / steps)
    else:
      done = (t + 1) / steps
      share = min(1 - done / 3, 3 * (1 - done))
    left = int(max(1, min(left - 1, np.floor(length * share))))
    out.append(left)
  return out + [0]


def padded_sizes(sizes: list[int], *, outermost: bool) -> list[int]:
  """The sizes to which a level's steps are padded.

  As many as it takes for padding to be under 5% of what the steps draw: what a
  step costs below its level grows with its size. Programs multiply from level
  to level, so only the outermost can afford more than two.

  Args:
    sizes: patches that each step draws.
    outermost: whether it is level 0.
  """
  for most in range(1, 7 if outermost else 3):
    found = static_sizes(sizes, most)
    padded = np.array(found)[np.searchsorted(found, sizes)].sum()
    if padded <= 1.05 * sum(sizes):
      break
  return found


def static_sizes(sizes: list[int], most: int) -> list[int]:
  """At most `most` sizes to which steps are padded, with the least padding.

  Each size is a program of its own; a step of n patches runs in the smallest
  size that holds it. Exact, by dynamic programming over the sorted sizes.
  """
  unique, uses = np.unique(sizes, return_counts=True)
  total = np.concatenate([[0], np.cumsum(uses)])
  # best[i]: (slots, sizes) that hold the i smallest with few enough sizes.
  best = [(0, [])] + [(np.inf, [])] * len(unique)
  for _ in range(most):
    new = list(best)
    for i in range(1, len(unique) + 1):
      for j in range(i):
        slots = best[j][0] + (total[i] - total[j]) * unique[i - 1]
        if slots < new[i][0]:
          new[i] = (slots, best[j][1] + [int(unique[i - 1])])
    best = new
  return best[-1][1]
