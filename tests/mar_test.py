"""Masked levels: what is seen, what goes down, and the distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fractal_jax.models import guidance, mar, masking, pixel
from fractal_jax.models.patches import patchify
from fractal_jax.models.types import Draws, Rows, Sampling
from tests import tiny

NO_DRAWS = Draws(None, None)


def masked(net, images, labels, params, masks):
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  return net.score(params, images, labels, NO_DRAWS, masks, train=False)


def level_outputs(net, params, i=0):
  """A level's (patches, mask, conds) to its outputs [N, L, D]."""
  level = mar.MARLevel(net.specs[i])
  return tiny.jit(
    lambda patches, mask, conds: level.apply(
      {'params': params[f'level_{i}']},
      patches,
      mask,
      conds,
      None,
      train=False,
      method='outputs',
    )
  )


@pytest.mark.parametrize('rank, sizes', [(2, (3, 1)), (1, (5, 1))])
def test_masked_values_are_not_seen(rank, sizes):
  """Unmasked ones are, by every patch."""
  net, params = tiny.build(('mar', 'pixel'), sizes, rank=rank, channels=2)
  s = net.specs[0]
  image = tiny.images(net, 1)
  patches = np.asarray(patchify(jnp.asarray(image), s))
  many = np.repeat(patches, s.length + 1, 0)
  at = np.arange(s.length)
  many[at, at] = (many[at, at] + 1) % 5
  mask = np.zeros((1, s.length), bool)
  mask[0, [0, 3]] = True
  conds = jnp.ones((s.length + 1, s.num_conds, 16))
  outputs = level_outputs(net, params)
  out = np.asarray(outputs(many, mask.repeat(s.length + 1, 0), conds))
  change = abs(out[:-1] - out[-1:]).max(-1)  # [patch changed, output]
  assert change[mask[0]].max() < 1e-6
  assert change[~mask[0]].min() > 1e-5


@pytest.mark.parametrize('rank', [1, 2])
def test_neighbours_conditions(rank):
  """Itself, top, right, bottom, left; or before and after; zeros outside."""
  kinds = ('mar', 'mar', 'pixel')
  net, params = tiny.build(kinds, (6, 2, 1), rank=rank)
  s = net.specs[0]
  level = mar.MARLevel(s)
  count = {1: 3, 2: 5}[rank]
  assert s.out_conds == net.specs[1].num_conds == count
  offsets = {
    1: [(0,), (-1,), (1,)],
    2: [(0, 0), (-1, 0), (0, 1), (1, 0), (0, -1)],
  }[rank]
  out = np.random.default_rng(0).standard_normal((2, s.length, 16))
  row, place = jnp.indices((2, s.length))
  found = tiny.jit(level.conds_at)(out, row, place)
  assert found.shape == (2, s.length, count, 16)
  grid = out.reshape((2,) + s.grid + (16,))
  for i, cell in enumerate(np.ndindex(s.grid)):
    for k, offset in enumerate(offsets):
      to = np.add(cell, offset)
      inside = ((to >= 0) & (to < 3)).all()
      want = grid[(slice(None), *to)] if inside else np.zeros((2, 16))
      np.testing.assert_allclose(found[:, i, k], want, rtol=1e-6)


@pytest.mark.parametrize('rank, guided', [(1, False), (2, True)])
@pytest.mark.parametrize('depths', [(1, 1, 1, 1), (1, 3, 1, 1), (1, 10, 1, 1)])
def test_conditions_of_a_few_patches(rank, guided, depths):
  """Computed for them alone, they are those picked from all outputs."""
  kinds, sizes = ('mar',) * 3 + ('pixel',), (12, 6, 2, 1)
  changes = dict(rank=rank, depths=depths, guide=guided)
  net, params = tiny.build(kinds, sizes, **changes)
  s = net.specs[1]
  level, params = mar.MARLevel(s, parent=None), params['level_1']
  rng = np.random.default_rng(0)
  shape = (2, s.length) + (s.patch,) * rank + (1,)
  args = (
    rng.integers(0, 5, shape),
    rng.random((2, s.length)) < 0.5,
    rng.standard_normal((4, s.num_conds, s.cond_width), np.float32),
    rng.random((2, 1), np.float32) * 4 if guided else None,
  )
  out = level.apply({'params': params}, *args, train=False, method='outputs')
  for few in (1, s.length):
    place = np.argsort(rng.random((4, s.length)))[:, :few]
    found = tiny.jit(level.conds_of)(params, *args, place)
    expected = level.conds_at(out, np.arange(4)[:, None], place)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_order_of_the_tokens():
  """Last condition first; every one counts, in its own position."""
  kinds = ('mar', 'mar', 'pixel')
  net, params = tiny.build(kinds, (4, 2, 1), depths=(1, 1, 1))
  s = net.specs[1]
  rng = np.random.default_rng(0)
  conds = rng.standard_normal((1, 5, 16)).astype(np.float32)
  patches, mask = jnp.zeros((1, 4, 1, 1, 1), jnp.int32), np.ones((1, 4), bool)
  # Exchanging two conditions and their rows of the position table is as if
  # nothing happened, if condition k has row n - 1 - k.
  swapped = conds[:, [1, 0, 2, 3, 4]]
  table = np.array(params['level_1']['positions'])
  assert table.shape == (5 + 4, 16)
  table[[4, 3]] = table[[3, 4]]
  other = {**params, 'level_1': {**params['level_1'], 'positions': table}}
  want = level_outputs(net, params, 1)(patches, mask, conds)
  moved = level_outputs(net, params, 1)(patches, mask, swapped)
  found = level_outputs(net, other, 1)(patches, mask, swapped)
  np.testing.assert_allclose(found, want, atol=1e-5)
  assert abs(np.asarray(moved - want)).max() > 1e-3
  assert s.num_conds == 5


def test_only_masked_patches_go_down():
  net, params = tiny.build(('mar', 'mar', 'pixel'), (4, 2, 1), channels=3)
  images = tiny.images(net, 2)
  level = mar.MARLevel(net.specs[0])
  mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
  rows = Rows(
    squares=jnp.asarray(images),
    conds=jnp.ones((2, 5, 16)),
    weight=jnp.ones(2),
    image=jnp.arange(2),
    site=jnp.zeros(2, jnp.int32),
  )
  run = lambda p, draws, mask=None: level.apply(
    {'params': p}, rows, draws, mask, train=False
  )
  given = tiny.jit(lambda p: run(p, NO_DRAWS, mask))
  below, guide, dropped = given(params['level_0'])
  assert guide is None and dropped == 0
  want = [images[0, :2, :2], images[0, 2:, 2:], images[1, :2, 2:]]
  np.testing.assert_array_equal(below.squares, want)
  assert below.image.tolist() == [0, 0, 1]
  assert below.site.tolist() == [0, 3, 1]
  assert below.weight.tolist() == [1, 1, 1]
  # Random masks: filled slots first, each a patch of its image.
  draws = Draws(tiny.keys(2), jnp.array([0.1, 0.9]))
  below, _, dropped = tiny.jit(run)(params['level_0'], draws)
  filled = np.asarray(below.weight > 0)
  n = masking.counts(draws.ratio, net.specs[0], 'train')
  assert filled.sum() == n.sum() and dropped == 0
  assert (np.diff(filled.astype(int)) <= 0).all()
  for i in np.flatnonzero(filled):
    r, c = divmod(int(below.site[i]), 2)
    patch = images[int(below.image[i])][2 * r :, 2 * c :][:2, :2]
    np.testing.assert_array_equal(below.squares[i], patch)


# The distribution that a fixed order gives, step by step.


def log_p(net, images, label, params, order):
  """Log probability of images, one patch a step in the order of generation.

  Two levels; the last entries of the order are generated first.
  """
  out, labels = 0, np.full(len(images), label)
  length = net.specs[0].length
  for still in range(length, 0, -1):
    mask = np.zeros((len(images), length), bool)
    mask[:, order[:still]] = True
    nats = masked(net, images, labels, params, [mask]).pixels.nats
    rank = sorted(order[:still]).index(order[still - 1])
    out -= nats.reshape(len(images), still, -1)[:, rank].sum(-1)
  return out


@pytest.mark.parametrize('rank, sizes, order', [
  (2, (2, 1), (2, 0, 3, 1)),
  (1, (4, 1), (1, 3, 0, 2)),
])  # fmt: skip
def test_a_distribution_and_draws_from_it(rank, sizes, order):
  """Probabilities of all 16 images sum to 1; samples come as often."""
  net, params = tiny.build(
    ('mar', 'pixel'), sizes, rank=rank, num_values=2, spread=0.4
  )
  every = tiny.all_images(net)
  score = tiny.jit(lambda p: log_p(net, every, 1, p, order))
  p = np.exp(score(params))
  assert len(p) == 16
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
  assert p.max() > 2 * p.min()
  n = 4000
  generate = tiny.jit(
    lambda p, k: (
      net.generate(
        p,
        jnp.ones(n, jnp.int32),
        k,
        Sampling(iterations=(4,)),
        guided=False,
        orders=[np.array(order)],
      ).values
    )
  )
  drawn = np.asarray(generate(params, tiny.keys(n))).reshape(n, -1)
  found = np.bincount(drawn @ 2 ** np.arange(4), minlength=16)
  assert scipy.stats.chisquare(found, n * p, sum_check=False).pvalue > 1e-3


def steps(length, iterations):
  """(left, still masked before) of each step that generates something."""
  left = masking.unmask_counts(length, iterations)
  still = [length] + left[:-1]
  return [(a, b) for a, b in zip(left, still) if a < b]


@pytest.mark.parametrize(
  'below, guided', [('pixel', True), ('ar', False), ('mar', True)]
)
def test_cached_generation_equals_teacher_forcing(below, guided):
  """Each step's greedy values are the best under that step's masks."""
  changes = {
    'pixel': dict(kinds=('mar', 'pixel'), sizes=(3, 1), channels=3),
    'ar': dict(kinds=('mar', 'ar', 'pixel'), sizes=(4, 2, 1), rank=1),
    'mar': dict(kinds=('mar', 'mar', 'pixel'), sizes=(4, 2, 1)),
  }[below]
  net, params = tiny.build(num_values=17, **changes)
  iterations = (3,) if below == 'pixel' else (2, 2)
  labels = np.array([0, 2])
  orders = [
    np.random.default_rng(i).permutation(s.length)
    for i, s in enumerate(net.specs[:-1])
  ]
  sampling = Sampling(
    guidance=3.0,
    temperature=1 / 1.2,
    filter_threshold=0.01,
    iterations=iterations,
    greedy=True,
  )
  images = tiny.jit(
    lambda p, k: (
      net.generate(p, labels, k, sampling, guided=guided, orders=orders).values
    )
  )(params, tiny.keys(2))

  top = net.specs[0]
  patches = np.asarray(patchify(images, top))
  for left, still in steps(top.length, iterations[0]):
    mask = np.zeros((2, top.length), bool)
    mask[:, orders[0][:still]] = True
    now = np.isin(np.sort(orders[0][:still]), orders[0][left:still])
    scale = 1 + 2 * (top.length - max(left, 1)) / top.length
    inner = [(0, 1)]
    if below == 'mar':
      inner = steps(net.specs[1].length, iterations[1])
    for left1, still1 in inner:
      masks, seen = [mask, None], slice(None)
      if below == 'mar':
        length = net.specs[1].length
        masks[1] = np.zeros((mask.sum(), length), bool)
        masks[1][:, orders[1][:still1]] = True
        placed = np.sort(orders[1][:still1])
        seen = np.isin(placed, orders[1][left1:still1])
      score = tiny.jit(
        lambda p, y, masks=masks: net.predictive(
          p, jnp.asarray(images), y, NO_DRAWS, masks
        )[1]
      )
      logits = [score(params, labels)]
      if guided:
        logits.append(score(params, np.array([-1, -1])))
      mixed = tiny.jit(guidance.guided_logits)(
        jnp.stack(logits), scale, sampling
      )
      best = np.asarray(mixed.argmax(-1)).reshape(2, still, -1, top.channels)
      best = best[:, now][:, :, seen]
      # The values of those patches, in the order of the level below.
      found = patches[:, np.sort(orders[0][left:still])]
      found = found.reshape(found.shape[:2] + (-1, top.channels))
      if below == 'mar':
        found = found[:, :, placed[seen]]
      np.testing.assert_array_equal(best, found)
  assert len(np.unique(images)) > 1


def test_every_patch_is_generated_once():
  """At its time: the recorded moments are those of the order given."""
  net, params = tiny.build(('mar', 'pixel'), (4, 1), channels=2)
  order = np.random.default_rng(0).permutation(16)
  sampling = Sampling(iterations=(5,), record=True)
  drawn = tiny.jit(
    lambda p, k: net.generate(
      p, np.zeros(2, int), k, sampling, guided=False, orders=[order]
    )
  )(params, tiny.keys(2))
  when = np.asarray(drawn.when).reshape(2, 16, 2)
  last = -1
  for left, still in steps(16, 5):
    now = when[:, order[left:still]]
    assert now.min() > last
    assert len(np.unique(now[..., 0])) == 1  # together
    assert (now[..., 1] > now[..., 0]).all()  # channel after channel
    last = now.max()


# Guiding pixels.


def test_guide_is_told_and_predicted():
  net, params = tiny.build(
    ('mar', 'mar', 'pixel'), (4, 2, 1), guide=True, channels=2
  )
  assert [s.guide for s in net.specs] == [False, True, False]
  images = tiny.images(net, 1)
  masks = [np.ones((1, 4)), np.ones((4, 4))]
  score = tiny.jit(lambda p, x: masked(net, x, np.zeros(1, int), p, masks))
  result = score(params, images)
  (guide,) = result.guides
  assert guide.nats.shape == (4, 2)
  # Its targets are the mean colours, rounded.
  top = mar.MARLevel(net.specs[0])
  level = pixel.PixelLevel(pixel.guide_spec(net.specs[1]))

  @tiny.jit
  def literal(params):
    rows = Rows(
      squares=jnp.asarray(images),
      conds=jnp.tile(params['labels']['table'][:1, None], (1, 5, 1)),
      weight=jnp.ones(1),
      image=jnp.zeros(1, jnp.int32),
      site=jnp.zeros(1, jnp.int32),
    )
    own = {'params': params['level_0']}
    rows, _, _ = top.apply(own, rows, NO_DRAWS, masks[0], train=False)
    target = jnp.rint(rows.squares.mean((1, 2))).astype(jnp.int32)
    own = {'params': params['level_1']['guide']}
    return level.apply(own, rows.conds, target, train=False)

  want = literal(params)
  np.testing.assert_allclose(guide.nats, want, rtol=1e-4, atol=1e-5)
  # All patches being masked, values reach the outputs through the guide only:
  # exchanging two pixels of a patch changes nothing but what is asked.
  swapped = images.copy()
  swapped[:, 0, 0], swapped[:, 0, 1] = images[:, 0, 1], images[:, 0, 0]
  assert (swapped != images).any()
  other = score(params, swapped)
  np.testing.assert_allclose(other.guides[0].nats, guide.nats, atol=1e-5)
  changed = images.copy()
  changed[:, 0, 0] = (changed[:, 0, 0] + 2) % 5
  other = score(params, changed)
  rest = other.pixels.nats[1:4] - result.pixels.nats[1:4]  # its patch's others
  assert abs(np.asarray(rest)).max() > 1e-4


# The likelihood's estimate.


def conditions(out, grid):
  """Outputs [N, L, D] of a series to conditions [N, L, 3, D]."""
  zero = np.zeros_like(out[:, :1])
  before = np.concatenate([zero, out[:, :-1]], 1)
  after = np.concatenate([out[:, 1:], zero], 1)
  return np.stack([out, before, after], 2)


def order_agnostic(nats):
  """Mean over all orders of the sum of nats[mask][patch], a dict by mask."""
  length = max(map(len, nats))
  orders = list(itertools.permutations(range(length)))
  total = sum(
    nats[tuple(sorted(o[k:]))][o[k]] for o in orders for k in range(length)
  )
  return total / len(orders)


def subsets(length):
  for k in range(1, length + 1):
    yield from itertools.combinations(range(length), k)


def mask_of(subset, length):
  return np.isin(np.arange(length), subset)[None]


def test_likelihood_is_unbiased():
  """law='uniform': mean of many draws against all orders, two masked levels.

  A series of 6 values: 3 patches of 2, so that a count is not its mean.
  """
  net, params = tiny.build(
    ('mar', 'mar', 'pixel'), (6, 2, 1), rank=1, num_values=3, spread=0.5
  )
  image = tiny.images(net, 1)
  top, inner = level_outputs(net, params), level_outputs(net, params, 1)
  bottom = pixel.PixelLevel(net.specs[2])
  score = tiny.jit(
    lambda c, v: bottom.apply({'params': params['level_2']}, c, v, train=False)
  )
  squares = image.reshape(1, 3, 2, 1)
  embedding = np.asarray(params['labels']['table'])[1]
  conds = np.tile(embedding, (1, net.specs[0].num_conds, 1))
  nats = {}
  for outer in subsets(3):
    out = np.asarray(top(squares, mask_of(outer, 3), conds))
    given = conditions(out, 3)[0]  # [3, 3, D]
    nats[outer] = {}
    for i in outer:
      deeper = {}
      patches = squares[:, i].reshape(1, 2, 1, 1)
      for subset in subsets(2):
        last = inner(patches, mask_of(subset, 2), given[i][None])
        values = score(np.asarray(last)[0][:, None], patches.reshape(2, 1))
        deeper[subset] = dict(enumerate(np.asarray(values)[:, 0]))
      nats[outer][i] = order_agnostic(deeper)
  exact = order_agnostic(nats)

  n = 3000
  shifts = jax.random.bits(jax.random.key(3), (n,), jnp.uint32)
  ratio = masking.strata(shifts, jnp.zeros(n, jnp.int32))  # independent

  @tiny.jit
  def estimate(params, keys, ratio):
    draws = Draws(keys, ratio, 'uniform')
    images, labels = jnp.asarray(image.repeat(n, 0)), jnp.ones(n, int)
    result = net.apply({'params': params}, images, labels, draws, train=False)
    s = result.pixels
    each = jax.ops.segment_sum(s.nats.sum(-1) * s.weight, s.image, n)
    return each, result.dropped

  each, dropped = estimate(params, tiny.keys(n), ratio)
  assert dropped == 0
  each = np.asarray(each)
  error = each.std() / n**0.5
  assert 1e-3 < error < 0.1
  np.testing.assert_allclose(each.mean(), exact, atol=4 * error)
