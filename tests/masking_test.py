"""The laws of masks, and what is kept where there is too little room."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fractal_jax.models import fractal, masking
from fractal_jax.models.types import Draws, Rows
from tests import tiny


def spec(level=0, **changes):
  kinds = ('mar', 'mar', 'pixel')
  return fractal.specs(tiny.model(kinds, (16, 4, 1), **changes))[level]


def middle(n):
  """n even strata, each represented by its middle."""
  return (np.arange(n) + 0.5) / n


# How many.


@pytest.mark.parametrize('mean, std', [(1.0, 0.25), (0.6, 0.3)])
def test_training_counts_follow_the_truncated_normal(mean, std):
  s = spec(mask_mean=mean, mask_std=std)
  u = middle(100_000)
  law = scipy.stats.truncnorm(-mean / std, (1 - mean) / std, mean, std)
  want = np.diff(law.cdf(np.arange(17) / 16))  # of ceil(16 ratio) = 1 .. 16
  for xp in (np, jnp):
    n = np.asarray(masking.counts(xp.asarray(u, xp.float32), s, 'train', xp))
    share = np.bincount(n, minlength=17)[1:] / len(u)
    np.testing.assert_allclose(share, want, atol=2e-4)
    # The mean ratio that the truncated normal has, rounded up to patches.
    assert 0 < n.mean() / 16 - law.mean() < 1 / 16


def test_training_counts_can_be_uniform():
  s, u = spec(mask_law='uniform'), middle(1600)
  n = masking.counts(u, s, 'train', np)
  np.testing.assert_array_equal(np.bincount(n), [0] + 16 * [100])
  assert masking.capacity(s, 'train', 64, 64) < masking.capacity(
    spec(), 'train', 64, 64
  )


def test_likelihood_counts_are_uniform():
  n = masking.counts(jnp.asarray(middle(1600)), spec(), 'uniform')
  np.testing.assert_array_equal(np.bincount(n), [0] + 16 * [100])
  assert masking.counts(jnp.array([0.0, 1 - 2**-24]), spec(), 'uniform').tolist(
  ) == [1, 16]  # fmt: skip


@pytest.mark.parametrize('shift', [0, 1, 123456789, 2**32 - 1])
def test_strata_fill_the_interval_evenly(shift):
  """No gap is wider than a few times the mean, wherever a run starts."""
  for n, start in itertools.product((1, 2, 8, 100, 1000), (0, 77)):
    index = jnp.arange(start, start + n)
    u = np.asarray(masking.strata(jnp.uint32(shift), index))
    assert (u >= 0).all() and (u < 1).all()
    gaps = np.diff(np.sort(np.concatenate([u, [u.min() + 1]])))
    assert gaps.max() < 2.7 / n
  first = masking.strata(jnp.uint32(2**31), jnp.arange(1))
  np.testing.assert_allclose(first, 0.5)  # the shift is the first point


def test_each_stratum_alone_is_uniform():
  shifts = jax.random.bits(jax.random.key(0), (20_000,), jnp.uint32)
  for i in (0, 5):
    u = masking.strata(shifts, jnp.asarray(i))
    assert scipy.stats.kstest(np.asarray(u), 'uniform').pvalue > 1e-3


# Which.


def rows_of(images, each):
  n = images * each
  return Rows(
    squares=None,
    conds=None,
    weight=jnp.ones(n),
    image=jnp.repeat(jnp.arange(images), each),
    site=jnp.tile(jnp.arange(each), images),
  )


def shifts(n, seed=5):
  return jax.random.bits(jax.random.key(seed), (n,), jnp.uint32)


@pytest.mark.parametrize('level', [0, 1])
def test_masks_are_uniform_subsets(level):
  s = spec(level, mask_mean=0.5)
  rows = rows_of(2000, 1 if level == 0 else 2)
  ratio = masking.strata(shifts(1)[0], jnp.arange(2000))
  draws = Draws(tiny.keys(2000), ratio)
  draw = tiny.jit(lambda: masking.draw_mask(rows, draws, s))
  mask = np.asarray(draw())
  n = mask.sum(1)
  want = masking.counts(jnp.asarray(middle(4096)), s, 'train').mean()
  np.testing.assert_allclose(n.mean(), want, rtol=0.02)
  np.testing.assert_allclose(mask.mean(0), n.mean() / 16, atol=0.06)
  # Given how many, pairs of patches are masked as often as for any subset.
  pairs = np.einsum('ni,nj->ij', mask * 1.0, mask * 1.0) / len(mask)
  want = (n * (n - 1)).mean() / (16 * 15)
  np.testing.assert_allclose(pairs[~np.eye(16, dtype=bool)], want, atol=0.06)
  if level == 0:
    np.testing.assert_array_equal(n, masking.counts(ratio, s, 'train'))


def test_masks_do_not_depend_on_other_images():
  """Below level 0, an image's masks follow from its key and its sites."""
  s = spec(1)
  keys = tiny.keys(3)
  many = masking.draw_mask(rows_of(3, 4), Draws(keys, None), s)
  one = masking.draw_mask(rows_of(1, 4), Draws(keys[2:], None), s)
  np.testing.assert_array_equal(many[8:], one)
  assert (np.asarray(many[:4]) != np.asarray(many[4:8])).any()


# Compaction.


def test_compact_keeps_order():
  mask = jnp.array([0, 1, 1, 0, 0, 1, 0], bool)
  index, filled, dropped = masking.compact(mask, 4, None)
  assert index[:3].tolist() == [1, 2, 5] and dropped == 0
  assert filled.tolist() == [True, True, True, False]
  index, filled, dropped = masking.compact(mask, 3, None)
  assert index.tolist() == [1, 2, 5] and filled.all() and dropped == 0


def test_overflow_is_dropped_evenly_and_uniformly():
  m, room, runs = 60, 33, 4000
  mask = np.random.default_rng(0).random(m) < 0.7
  total = int(mask.sum())
  assert total - room == 9, 'not the case this test is about'
  compact = tiny.jit(
    jax.vmap(lambda key: masking.compact(jnp.asarray(mask), room, key))
  )
  index, filled, dropped = map(np.asarray, compact(tiny.keys(runs)))
  assert (dropped == total - room).all() and filled.all()
  assert (np.diff(index, axis=1) > 0).all()  # in order, none twice
  assert mask[index].all()
  rank = np.cumsum(mask) - 1
  kept = np.zeros((runs, total), bool)
  np.put_along_axis(kept, rank[index], True, 1)
  assert ((~kept).sum(1) == total - room).all()
  # Each as likely.
  sigma = (room / total * (1 - room / total) / runs) ** 0.5
  np.testing.assert_allclose(kept.mean(0), room / total, atol=5 * sigma)
  # Evenly spaced, to within one.
  lost = np.nonzero(~kept)[1].reshape(runs, -1)
  gaps = np.diff(lost, axis=1)
  spacing = total / (total - room)
  assert set(np.unique(gaps)) <= {int(spacing), int(spacing) + 1}


@pytest.mark.parametrize('law', ['train', 'uniform'])
@pytest.mark.parametrize('images', [1, 2, 8])
def test_nothing_overflows_the_computed_capacity(images, law):
  top, below = spec(0), spec(1)
  room = masking.capacity(top, law, images, images)
  each = 5
  room1 = masking.capacity(below, law, images * each, images)

  @tiny.jit
  @jax.vmap
  def totals(shift, key):
    draws = Draws(
      jax.random.split(key, images),
      masking.strata(shift, jnp.arange(images)),
      law,
    )
    first = masking.draw_mask(rows_of(images, 1), draws, top)
    second = masking.draw_mask(rows_of(images, each), draws, below)
    return first.sum(), second.sum()

  first, second = totals(shifts(3000), tiny.keys(3000))
  assert first.max() <= room <= 16 * images
  assert second.max() <= room1 <= 16 * images * each
  assert room % 8 == room1 % 8 == 0
  # And it is not simply room for everything.
  if images == 8:
    assert room < 0.97 * 16 * images
    assert first.max() >= room - 10


# Generation's steps.


def literal_unmask_counts(length, iterations):
  """model.md: "Generation", mar."""
  out, masked = [], length
  iterations = min(iterations, length)
  for t in range(iterations):
    if t == iterations - 1:
      out.append(0)
      break
    n = int(np.floor(length * np.cos(np.pi / 2 * (t + 1) / iterations)))
    masked = max(1, min(n, masked - 1))
    out.append(masked)
  return out


@pytest.mark.parametrize('length', [1, 2, 3, 4, 16, 49, 256])
def test_unmask_counts(length):
  for iterations in (1, 2, 3, 5, 16, 64, 1000):
    left = masking.unmask_counts(length, iterations)
    assert left == literal_unmask_counts(length, iterations)
    assert left[-1] == 0 and (np.diff([length] + left) <= 0).all()
  assert masking.unmask_counts(16, 4) == [14, 11, 6, 0]  # by hand


def test_two_stages_draw_a_quarter_slowly_and_the_rest_in_large_steps():
  left = masking.unmask_counts(64, 16, 'two-stage')
  assert left[11] == 48 and left[-1] == 0 and len(left) == 16
  steps = -np.diff([64, *left])
  assert steps[:12].max() <= 2 and steps[12:].tolist() == [12] * 4
  for iterations in (1, 2, 3, 64):
    left = masking.unmask_counts(64, iterations, 'two-stage')
    assert (np.diff([64, *left]) < 0).all() and left[-1] == 0


def padded(sizes, chosen):
  return sum(min(c for c in chosen if c >= n) for n in sizes)


@pytest.mark.parametrize('most', [1, 2, 3, 4])
def test_static_sizes_are_the_best(most):
  rng = np.random.default_rng(most)
  for _ in range(30):
    sizes = list(rng.integers(1, 12, rng.integers(1, 9)))
    chosen = masking.static_sizes(sizes, most)
    assert 1 <= len(chosen) <= most and chosen == sorted(set(chosen))
    unique = sorted(set(sizes))
    best = min(
      padded(sizes, (*some, unique[-1]))
      for k in range(most)
      for some in itertools.combinations(unique[:-1], k)
    )
    assert padded(sizes, chosen) == best


def test_steps_have_as_many_sizes_as_pay():
  """256 patches in 64 steps, and 64 in 16: five and four sizes, 5% padding."""

  def found(length, steps, outermost):
    left = masking.unmask_counts(length, steps)
    sizes = list(-np.diff(left, prepend=length))
    chosen = masking.padded_sizes(sizes, outermost=outermost)
    return chosen, padded(sizes, chosen) / length

  assert found(256, 64, True) == ([1, 3, 5, 6, 7], 268 / 256)
  assert found(64, 16, True) == ([1, 3, 5, 6], 67 / 64)
  assert found(64, 16, False) == ([3, 6], 78 / 64)
  assert found(16, 16, True) == ([1], 1)
  assert masking.padded_sizes([5] * 19 + [4], outermost=True) == [5]
