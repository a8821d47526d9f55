"""The pixel level: its distribution, and draws from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from fractal_jax.models import guidance, pixel
from fractal_jax.models.types import Network, Request, Sampling
from tests import tiny


def level(channels=1, **changes):
  net, params = tiny.build(channels=channels, **changes)
  return pixel.PixelLevel(net.specs[-1]), params['level_1']


def conditions(n, count=1, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((n, count, 16)), jnp.float32)


@pytest.mark.parametrize('channels, values', [(1, 17), (3, 4), (4, 2)])
def test_probabilities_sum_to_one(channels, values):
  net, params = level(channels, num_values=values)
  every = jnp.array(list(itertools.product(range(values), repeat=channels)))
  conds = jnp.tile(conditions(1), (len(every), 1, 1))
  score = tiny.jit(
    lambda c, v: net.apply({'params': params}, c, v, train=False)
  )
  nats = score(conds, every)
  assert nats.shape == (len(every), channels) and nats.dtype == jnp.float32
  np.testing.assert_allclose(np.exp(-nats.sum(1)).sum(), 1, rtol=1e-5)
  assert np.ptp(nats.sum(1)) > 0.1


def test_channels_are_causal_and_see_one_condition():
  """The logits of channel k depend on c_0 and on channels before k."""
  net, params = level(3)
  logits = tiny.jit(
    lambda c, v: net.apply({'params': params}, c, v, method='logits')
  )
  conds, values = conditions(4, 2), np.ones((4, 3), np.int32)
  values[[1, 2, 3], [0, 1, 2]] = 2
  out = np.asarray(logits(conds[:1].repeat(4, 0), values))
  moved = abs(out[1:] - out[:1]).max(-1) > 1e-5
  np.testing.assert_array_equal(moved, ~np.tri(3, dtype=bool))
  other = conds.at[:, 1].add(1)
  np.testing.assert_array_equal(logits(conds, values), logits(other, values))
  other = conds.at[:, 0].add(1)
  assert (logits(conds, values) != logits(other, values)).any()


@pytest.mark.parametrize('changes', [{}, {'depths': (1, 0)}])
def test_cached_channels_equal_teacher_forced_ones(changes):
  """Greedy values are the best of the logits, guidance and all."""
  net, params = level(4, num_values=17, **changes)
  conds = jnp.stack([conditions(32), conditions(32, seed=1)])
  sampling = Sampling(temperature=0.9, greedy=True)
  generate = tiny.jit(
    lambda conds: net.generate(
      [Network(net, params)], Request((conds,), tiny.keys(32), 2.5), sampling
    ).run()
  )
  score = tiny.jit(
    lambda c, v: net.apply({'params': params}, c, v, method='logits')
  )
  for streams in (1, 2):
    values = generate(conds[:streams]).values.reshape(32, 4)
    logits = jnp.stack([score(c, values) for c in conds[:streams]])
    mixed = guidance.guided_logits(logits, 2.5, sampling)
    np.testing.assert_array_equal(mixed.argmax(-1), values)
    assert len(np.unique(values)) > 4


def literal_guided_logits(cond, uncond, guidance, temperature, threshold):
  """model.md: "Generation", one pixel and channel, in float64."""
  cond, uncond = cond / temperature, uncond / temperature
  p = scipy.special.softmax(cond)
  for v in range(len(cond)):
    if p[v] < threshold:
      raised = cond[v] - cond.max() + uncond.max()
      uncond = np.where(
        np.arange(len(cond)) == v, max(uncond[v], raised), uncond
      )
  return uncond + guidance * (cond - uncond)


@pytest.mark.parametrize('threshold', [0.0, 1e-4, 0.05])
@pytest.mark.parametrize('scale', [0.0, 1.0, 3.0])
def test_guided_logits(scale, threshold):
  rng = np.random.default_rng(0)
  logits = 4 * rng.standard_normal((2, 20, 17))
  sampling = Sampling(temperature=0.9, filter_threshold=threshold)
  ours = guidance.guided_logits(
    jnp.asarray(logits, jnp.float32), scale, sampling
  )
  want = [
    literal_guided_logits(c, u, scale, 0.9, threshold) for c, u in zip(*logits)
  ]
  np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-4)
  alone = guidance.guided_logits(jnp.asarray(logits[:1]), scale, sampling)
  np.testing.assert_allclose(alone, logits[0] / 0.9, rtol=1e-5)


def test_a_temperature_below_1_is_sharper():
  logits = jnp.asarray([[[0.0, 1.0, 2.0]]])
  p = [
    jax.nn.softmax(guidance.guided_logits(logits, 1, Sampling(temperature=t)))
    for t in (0.5, 1.0, 2.0)
  ]
  best = [float(x[0, 2]) for x in p]
  np.testing.assert_allclose(best[0], np.exp(4) / (1 + np.exp(2) + np.exp(4)))
  assert best[0] > best[1] > best[2] > 1 / 3


def test_draws_follow_the_softmax():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal(9)
  n = 50_000
  u = jax.random.uniform(jax.random.key(0), (n,))
  sampling = Sampling(temperature=0.5)
  values = guidance.draw(
    jnp.tile(jnp.asarray(logits), (1, n, 1)), u, 1, sampling
  )
  found = np.bincount(values, minlength=9)
  want = n * scipy.special.softmax(logits / 0.5)
  assert scipy.stats.chisquare(found, want, sum_check=False).pvalue > 1e-3


def test_values_of_no_probability_are_not_drawn():
  """At the ends of the uniform's range too."""
  logits = np.full(7, -np.inf, np.float32)
  logits[[2, 4]] = 0.0
  u = jnp.array([0, 1e-7, 0.49, 0.51, 0.9, 1 - 2**-24, 1 - 2**-23])
  n = len(u)
  tiled = jnp.tile(jnp.asarray(logits), (1, n, 1))
  values = guidance.draw(tiled, u, 1, Sampling())
  assert values.tolist() == [2, 2, 2, 4, 4, 4, 4]
  # Many values, whose sum in float32 is not 1.
  many = jnp.where(jnp.arange(256) < 200, 0.01 * jnp.arange(256), -jnp.inf)
  values = guidance.draw(jnp.tile(many, (1, n, 1)), u, 1, Sampling())
  assert values.max() < 200


def test_loss_is_the_cross_entropy():
  rng = np.random.default_rng(0)
  outputs, books = (
    rng.standard_normal((2, 5, 8)),
    rng.standard_normal((2, 6, 8)),
  )
  bias, values = rng.standard_normal((2, 6)), rng.integers(0, 6, (2, 5))
  nats = pixel.cross_entropy(*map(jnp.asarray, (outputs, books, bias, values)))
  for c, n in np.ndindex(2, 5):
    p = scipy.special.softmax(books[c] @ outputs[c, n] + bias[c])
    np.testing.assert_allclose(nats[c, n], -np.log(p[values[c, n]]), rtol=1e-4)
