"""The draws of dropout: their share, their independence, their gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models import dropout


def test_keeps_its_share_and_the_mean():
  x = jnp.ones((64, 50, 40))
  words = jnp.asarray([1, 2], jnp.uint32)
  out = np.asarray(dropout.drop_out(x, words, 0.1))
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.9], rtol=1e-6)
  # 128,000 draws: the share's standard deviation is 0.0008.
  assert abs((out == 0).mean() - 0.1) < 0.004
  for axes in ((0, 1), (0, 2), (1, 2)):  # no row or column is special
    share = (out == 0).mean(axes)
    spread = np.sqrt(0.09 * len(share) / out.size)
    assert abs(share - 0.1).max() < 5 * spread


def test_draws_are_independent():
  """Of neighbours in every direction, and of other seeds'."""
  x = jnp.ones((64, 50, 40))
  draw = lambda *w: np.asarray(
    dropout.drop_out(x, jnp.asarray(np.array(w, np.uint32)), 0.5) == 0
  )
  one = draw(1, 2)
  others = [np.roll(one, step, axis) for axis in range(3) for step in (1, 2, 8)]
  # Seeds are random words, not counters: Dropout draws them by threefry.
  seeds = np.random.default_rng(0).integers(0, 1 << 32, (20, 2))
  others += [draw(*seed) for seed in seeds]
  for other in others:
    # 128,000 fair coins agree half the time, give or take 0.0014.
    assert abs((one == other).mean() - 0.5) < 0.007
  np.testing.assert_array_equal(one, draw(1, 2))


class Gradients(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_backward_drops_what_forward_dropped(self):
    drop = dropout.Dropout(0.3)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((7, 90)))

    @self.variant
    def both(x):
      key = {'dropout': jax.random.key(3)}
      apply = lambda x: drop.apply({}, x, deterministic=False, rngs=key)
      out, back = jax.vjp(apply, x)
      return out, *back(jnp.ones_like(x))

    out, gradient = both(x)
    chex.assert_trees_all_close(gradient * x, out, rtol=1e-6)
    assert (np.asarray(out) == 0).any()
    chex.assert_trees_all_equal(drop.apply({}, x, deterministic=True), x)
