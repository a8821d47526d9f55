"""Maps of bits: their sums, and their places."""

import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import config as config_lib
from fractal_jax import report, sharding
from fractal_jax.inference import explain
from fractal_jax.models.types import Draws
from tests import tiny
from tests.edit_test import build


def test_the_map_of_an_ar_model_is_exact():
  m = build(('ar', 'ar', 'pixel'))
  image = tiny.images(m.net, 1)[0]
  found = m.explain(image, 1)
  assert found.exact and found.passes == 1 and found.stderr == 0
  assert found.bits.shape == (4, 4, 2)
  wanted = -m.log_prob(image[None], 1)[0] / np.log(2)
  np.testing.assert_allclose(found.bits.sum(), wanted, rtol=1e-5)
  assert found.total == found.bits.sum() and not found.errors(0).any()
  # A value's bits are its own: they depend on it and on values before it.
  other = image.copy()
  other[2, 1, 0] = (other[2, 1, 0] + 1) % 5
  changed = m.explain(other, 1).bits != found.bits
  assert changed[2, 1].all() and not changed[:2].any()
  assert changed[3:, 2:].any()
  for level in range(2):
    np.testing.assert_allclose(found.patches(level).sum(), found.total)
  np.testing.assert_allclose(
    found.patches(0)[1, 0], found.bits[2:, :2].sum(), rtol=1e-12
  )
  (place, bits), *_ = found.ranked(0)
  assert bits == found.patches(0).max() == found.patches(0)[place]
  np.testing.assert_allclose(sum(found.shares), 1)
  np.testing.assert_allclose(sum(found.flops), 1)


@pytest.mark.parametrize('guide', [False, True])
def test_the_map_of_a_masked_model_is_its_likelihood(guide):
  """Within 4 standard errors of the likelihood's own estimate."""
  m = build(('mar', 'mar', 'pixel'), guide=guide)
  image = tiny.images(m.net, 1)[0]
  found = m.explain(image, passes=128)
  nats = np.stack([-m.log_prob(image[None], passes=128, seed=1)])
  assert not found.exact and found.stderr > 0
  error = np.sqrt(2) * found.stderr
  assert abs(found.total - nats.mean() / np.log(2)) < 4 * error
  assert (found.bits > 0).all()
  assert [g.shape for g in found.guide_bits] == [
    (0,),
    (2, 2) if guide else (0,),
  ]
  assert (found.shares[1] > 0) == guide
  assert ('upper bound' in report.summary(found)) == guide


def test_the_map_is_the_mean_over_all_orders():
  """Two patches, so two orders: each is drawn first, or after the other."""
  m = build(('mar', 'pixel'), (2, 1), rank=1, channels=1, spread=0.5)
  image = tiny.images(m.net, 1)[0]

  def bits(*mask):
    draws, label = Draws(None, None), -np.ones(1, np.int32)
    score = lambda: m.net.apply(
      {'params': m.params},
      jnp.asarray(image[None]),
      label,
      draws,
      [np.array([mask])],
      train=False,
    )
    return np.asarray(tiny.jit(score)().pixels.nats)[:, 0] / np.log(2)

  first, second = bits(True, True)
  wanted = [
    (first + bits(True, False)[0]) / 2,
    (second + bits(False, True)[0]) / 2,
  ]
  found = m.explain(image, passes=128)
  assert found.dropped == 0 and (found.errors(0) > 0).all()
  assert (abs(found.bits[:, 0] - wanted) < 4 * found.errors(0)).all()


def test_the_map_is_the_same_on_any_mesh_and_in_any_batches():
  c = config_lib.default()
  c.mesh.update(data=4, fsdp=2)
  one = build(('mar', 'mar', 'pixel'))
  eight = build(('mar', 'mar', 'pixel'), mesh=sharding.make_mesh(c))
  image = tiny.images(one.net, 1)[0]
  found = one.explain(image, 1, passes=10, batch=4)
  again = eight.explain(image, 1, passes=10)
  np.testing.assert_allclose(found.each, again.each, rtol=1e-5, atol=1e-6)
  worth = lambda x: [c.worth for c in x.conditions]
  np.testing.assert_allclose(worth(found), worth(again), atol=1e-4)


def test_conditions_are_dropped_one_at_a_time():
  m = build(('mar', 'ar', 'pixel'), spread=0.5)
  image = tiny.images(m.net, 1)[0]
  found = m.explain(image, 2, passes=16)
  names = [(c.level, c.name) for c in found.conditions]
  assert names == [(0, 'class'), (1, 'itself'), (2, 'itself')]
  m = build(('mar', 'mar', 'pixel'), spread=0.5)
  found = m.explain(image, passes=16)
  names = [c.name for c in found.conditions if c.level == 1]
  assert names == ['itself', 'top', 'right', 'bottom', 'left']
  assert all(abs(c.worth) > 1e-3 and c.stderr > 0 for c in found.conditions)


def test_places_of_a_series():
  m = build(('ar', 'ar', 'pixel'), (6, 3, 1), rank=1, channels=1)
  raster = explain.raster_of_site(m.net.specs, 2)
  np.testing.assert_array_equal(raster, np.arange(6))
  square = build(('ar', 'ar', 'pixel'), (4, 2, 1)).net.specs
  np.testing.assert_array_equal(
    explain.raster_of_site(square, 2)[:8], [0, 1, 4, 5, 2, 3, 6, 7]
  )
  np.testing.assert_array_equal(explain.raster_of_site(square, 1), range(4))
  found = m.explain(tiny.images(m.net, 1)[0])
  assert found.patches(0).shape == (2,)
