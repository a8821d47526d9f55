"""Autoregressive levels: causal, cached, and a distribution over images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fractal_jax.models import ar, guidance, rules
from fractal_jax.models.patches import patchify
from fractal_jax.models.types import Draws, Rows, Sampling
from tests import tiny

NO_DRAWS = Draws(None, None)


def order(spec_list):
  """Flat index, into an image, of each value in the order of generation."""
  top = spec_list[0]
  shape = (1,) + (top.side,) * top.rank + (top.channels,)
  x = np.arange(np.prod(shape)).reshape(shape)
  for s in spec_list[:-1]:
    x = np.asarray(patchify(x, s))
    x = x.reshape((-1,) + x.shape[2:])
  return x.reshape(-1)


def logits_of(net):
  """(params, images, labels) to logits [B, values, V], generation's order."""

  def logits(params, images, labels):
    _, out = net.predictive(params, images, labels, NO_DRAWS)
    return out.reshape(len(images), -1, net.specs[-1].values)

  return tiny.jit(logits)


# 2, 3 and 4 levels; images and series; one and several channels.
MODELS = [
  dict(kinds=('ar', 'pixel'), sizes=(3, 1), channels=2, num_values=17),
  dict(kinds=('ar', 'pixel'), sizes=(5, 1), rank=1, seed=4),
  dict(kinds=('ar', 'ar', 'pixel'), sizes=(4, 2, 1)),
  dict(kinds=('ar', 'ar', 'ar', 'pixel'), sizes=(8, 4, 2, 1), rank=1),
]


@pytest.mark.parametrize('changes', MODELS)
def test_causal(changes):
  """A value moves the logits of all later values, and of no others."""
  net, params = tiny.build(**changes)
  image = tiny.images(net, 1)
  n = image.size
  images = np.repeat(image, n + 1, 0)
  flat = images.reshape(n + 1, n)
  places = order(net.specs)
  assert sorted(places) == list(range(n))
  flat[np.arange(n), places] = (flat[np.arange(n), places] + 2) % 5
  labels = np.zeros(n + 1, np.int32)
  out = np.asarray(logits_of(net)(params, images, labels))
  change = abs(out[:n] - out[n:]).max(-1)  # [value changed, logits of value]
  earlier = np.tri(n, dtype=bool)
  assert change[earlier].max() < 1e-5
  assert change[~earlier].min() > 1e-5


@pytest.mark.parametrize(
  'changes, guided', list(zip(MODELS, (True, False, True, False)))
)
def test_cached_generation_equals_teacher_forcing(changes, guided):
  """Greedy values are the best of the logits that the image then gets."""
  net, params = tiny.build(**changes)
  labels = np.array([0, 2])
  sampling = Sampling(
    guidance=3.0, temperature=1 / 1.1, filter_threshold=0.01, greedy=True
  )
  images = tiny.jit(
    lambda p, k: net.generate(p, labels, k, sampling, guided=guided).values
  )(params, tiny.keys(2))
  logits = logits_of(net)
  mixed = logits(params, images, labels)
  if guided:
    # w_t = 1 + (w - 1) (t + 1) / L at level 0; deeper levels use w_t.
    first = net.specs[0].length
    steps = np.repeat(np.arange(first), mixed.shape[1] // first)
    scale = 1 + 2 * (steps + 1)[:, None] / first
    uncond = logits(params, images, np.array([-1, -1]))
    streams = jnp.stack([mixed, uncond])
    mixed = tiny.jit(guidance.guided_logits)(streams, scale, sampling)
  best = np.asarray(mixed.argmax(-1))
  found = np.asarray(images).reshape(2, -1)[:, order(net.specs)]
  np.testing.assert_array_equal(found, best)
  assert len(np.unique(found)) > 1


@pytest.mark.parametrize(
  'changes',
  [
    dict(kinds=('ar', 'pixel'), sizes=(2, 1)),
    dict(kinds=('ar', 'ar', 'pixel'), sizes=(4, 2, 1), rank=1),
  ],
)
def test_a_distribution_and_draws_from_it(changes):
  """Probabilities of all 16 images sum to 1; samples come as often."""
  net, params = tiny.build(num_values=2, spread=0.4, **changes)
  every = tiny.all_images(net)
  assert len(every) == 16
  labels = np.ones(16, np.int32)
  score = tiny.jit(
    lambda p, x: net.apply({'params': p}, x, labels, NO_DRAWS, train=False)
  )
  nats = np.asarray(score(params, every).pixels.nats).reshape(16, -1).sum(1)
  p = np.exp(-nats)
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
  assert p.max() > 2 * p.min()
  n = 4000
  sampling = Sampling()
  generate = tiny.jit(
    lambda p, k: (
      net.generate(p, jnp.ones(n, jnp.int32), k, sampling, guided=False).values
    )
  )
  drawn = np.asarray(generate(params, tiny.keys(n))).reshape(n, -1)
  found = np.bincount(drawn @ 2 ** np.arange(4), minlength=16)
  assert scipy.stats.chisquare(found, n * p, sum_check=False).pvalue > 1e-3


def test_a_level_alone():
  """Its class, its parameters, rows; what it makes feeds the next level."""
  net, params = tiny.build(('ar', 'ar', 'pixel'), (4, 2, 1))
  spec = net.specs[1]
  rng = np.random.default_rng(0)
  rows = Rows(
    squares=jnp.asarray(rng.integers(0, 5, (3, 2, 2, 1))),
    conds=jnp.asarray(rng.standard_normal((3, 1, 16)), jnp.float32),
    weight=jnp.array([1.0, 2.0, 0.5]),
    image=jnp.array([0, 0, 1]),
    site=jnp.array([1, 3, 2]),
  )
  level = ar.ARLevel(spec)
  run = tiny.jit(
    lambda p, rows: level.apply({'params': p}, rows, NO_DRAWS, train=False)
  )
  below, guide, dropped = run(params['level_1'], rows)
  assert guide is None and dropped == 0
  np.testing.assert_array_equal(
    below.squares.reshape(3, 4), rows.squares.reshape(3, 4)
  )
  assert below.conds.shape == (12, 1, 16)
  assert below.image.tolist() == [0] * 8 + [1] * 4
  sites = [*range(4, 8), *range(12, 16), *range(8, 12)]
  assert below.site.tolist() == sites
  np.testing.assert_array_equal(below.weight, np.repeat([1, 2, 0.5], 4))
  # Alone or with others: the same sequence, the same conditions.
  one = jax.tree.map(lambda x: x[1:2], rows)
  alone, _, _ = run(params['level_1'], one)
  np.testing.assert_allclose(alone.conds, below.conds[4:8], atol=1e-5)


def test_heads_that_rotary_positions_do_not_fit():
  model = tiny.model()
  model.widths, model.heads = (12, 16), (2, 2)
  assert 'multiple of 4' in rules.problems(model)[0]
