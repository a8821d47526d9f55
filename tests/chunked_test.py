"""Rows in parts: the same loss and gradients, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax.models.types import Draws
from tests import tiny

SIZES = (8, 4, 1)


def gradient(kinds, chunks):
  """Loss, gradients, and XLA's memory analysis."""
  net, params = tiny.build(
    kinds, SIZES, chunks=chunks, guide=True, remat='none'
  )
  images, labels = jnp.asarray(tiny.images(net, 7)), jnp.arange(7) % 3
  draws = Draws(tiny.keys(7), jnp.linspace(0.05, 0.95, 7))

  def loss(params):
    out = net.apply(
      {'params': params},
      images,
      labels,
      draws,
      train=True,
    )
    nats = out.pixels.weight @ out.pixels.nats.sum(-1)
    return nats + sum(guide.nats.sum() for guide in out.guides)

  f = tiny.jit(jax.value_and_grad(loss)).lower(params).compile()
  return *f(params), f.memory_analysis()


# 7 images and their patches, in parts of any size; 1000: more than rows.
@pytest.mark.parametrize(
  'kinds, chunks',
  [(('mar', 'mar', 'pixel'), (2, 3, 5)), (('ar', 'ar', 'pixel'), (1, 4, 1000))],
)
def test_the_same_loss_and_gradients_in_less_memory(kinds, chunks):
  loss, grads, memory = gradient(kinds, ())
  in_parts, grads_in_parts, less = gradient(kinds, chunks)
  np.testing.assert_allclose(in_parts, loss, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
    grads_in_parts,
    grads,
  )
  # So small a masked level holds mostly masks and indices.
  assert (
    kinds[0] == 'mar'
    or less.temp_size_in_bytes < 0.7 * memory.temp_size_in_bytes
  )


def test_each_part_draws_its_own_dropout():
  net, params = tiny.build(('ar', 'pixel'), (2, 1), dropout=0.5, chunks=(3, 2))
  images = jnp.asarray(tiny.images(net, 1)).repeat(9, 0)
  draws, labels = Draws(None, None), jnp.zeros(9, int)

  def nats(key, train):
    out = net.apply(
      {'params': params},
      images,
      labels,
      draws,
      train=train,
      rngs={'dropout': key},
    )
    return out.pixels.nats.reshape(9, -1)

  run = tiny.jit(nats, static_argnums=1)
  first = np.asarray(run(jax.random.key(0), True))
  assert len(np.unique(first[:, -1])) == 9
  np.testing.assert_array_equal(first, run(jax.random.key(0), True))
  assert np.ptp(np.asarray(run(jax.random.key(0), False)), 0).max() < 1e-5
