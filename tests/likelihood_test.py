"""Bits per dimension: against direct sums, on any mesh, with guides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.data import pipeline
from fractal_jax.inference import likelihood
from fractal_jax.models import fractal
from fractal_jax.models.types import Draws
from tests import tiny


def configure(kinds, sizes, **changes):
  c = config_lib.default()
  widths = (16,) * (len(sizes) - 1) + (8,)
  c.model = tiny.model(
    kinds, sizes, num_values=17, classes=10, widths=widths, **changes
  )
  c.eval.update(batch=16, num=20)
  return c


def net_and_params(config):
  model = {k: config.model[k] for k in config.model}
  kinds, sizes = model.pop('kinds'), model.pop('sizes')
  return tiny.build(kinds, sizes, **model)


def test_exact_likelihood_is_the_mean_over_images_of_their_own_nats():
  c = configure(('ar', 'ar', 'pixel'), (8, 4, 1))
  net, params = net_and_params(c)
  found = likelihood.evaluate(
    net, params, c, mesh=sharding.single_device_mesh()
  )
  batches = list(pipeline.eval_batches(c, 'validation', 20, num=20))
  images = jnp.asarray(batches[0]['image'], jnp.int32)
  labels = -jnp.ones(20, jnp.int32)
  result = tiny.jit(
    lambda p: net.apply(
      {'params': p}, images, labels, Draws(None, None), train=False
    )
  )(params)
  each = np.asarray(result.pixels.nats).reshape(20, 64).mean(1) / np.log(2)
  assert found.images == 20 and found.exact and not found.bound
  np.testing.assert_allclose(found.bits_per_dim, each.mean(), rtol=1e-5)
  stderr = each.std(ddof=1) / np.sqrt(20)
  np.testing.assert_allclose(found.stderr, stderr, rtol=1e-4)
  np.testing.assert_allclose(
    found.published_bits_per_dim, each.mean(), rtol=1e-5
  )
  assert found.mc_stderr == 0


def test_masked_likelihood_is_the_same_on_any_mesh():
  """20 images in batches of 16: the last one is padded."""
  c = configure(('mar', 'pixel'), (8, 1))
  net, params = net_and_params(c)
  one = likelihood.evaluate(
    net, params, c, mesh=sharding.single_device_mesh(), passes=2
  )
  assert not one.exact and one.passes == 2 and one.images == 20
  for axes in tiny.MESHES:
    mesh, split = tiny.on_mesh(net, params, axes)
    qkv = split['level_0']['blocks']['attention']['qkv']
    assert qkv.sharding.spec == tiny.QKV
    eight = likelihood.evaluate(net, split, c, mesh=mesh, passes=2)
    assert one.dropped == eight.dropped == 0 and eight.images == 20
    np.testing.assert_allclose(one.bits_per_dim, eight.bits_per_dim, rtol=1e-5)
    np.testing.assert_allclose(one.mc_stderr, eight.mc_stderr, rtol=1e-3)
    np.testing.assert_allclose(
      one.published_bits_per_dim, eight.published_bits_per_dim, rtol=1e-5
    )


@dataclasses.dataclass(frozen=True)
class PixelsAlone:
  """A model with guides, which are told but not scored."""

  net: fractal.Fractal

  def __getattr__(self, name):
    return getattr(self.net, name)

  def score(self, *args, **how):
    return self.net.score(*args, **how).replace(guides=())


def test_guides_make_it_a_bound_above_the_pixels_alone():
  c = configure(('mar', 'mar', 'pixel'), (8, 4, 1), guide=True)
  net, params = net_and_params(c)
  both, pixels = (
    likelihood.evaluate(
      model, params, c, mesh=sharding.single_device_mesh(), num=8
    )
    for model in (net, PixelsAlone(net))
  )
  assert both.bound and both.dropped == pixels.dropped == 0
  guides = both.bits_per_dim - pixels.bits_per_dim
  # The published sum of means counts each of the 4 guides as if it were a
  # value of every pixel; the bound counts 4 guides for 64 values.
  published = both.published_bits_per_dim - pixels.published_bits_per_dim
  assert published > 1
  assert guides == pytest.approx(published * 4 / 64, rel=0.3)


def test_labels_matter_only_where_they_are_given():
  c = configure(('ar', 'pixel'), (8, 1))
  net, params = net_and_params(c)
  mesh = sharding.single_device_mesh()
  free = likelihood.evaluate(net, params, c, mesh=mesh)
  given = likelihood.evaluate(net, params, c, mesh=mesh, conditional=True)
  assert free.bits_per_dim != given.bits_per_dim
  with jax.default_matmul_precision('float32'):
    none = jax.tree.map(lambda x: x, params)
    table = none['labels']['table']
    none['labels']['table'] = jnp.broadcast_to(
      none['labels']['none'], table.shape
    )
    same = likelihood.evaluate(net, none, c, mesh=mesh, conditional=True)
  assert same.bits_per_dim == pytest.approx(free.bits_per_dim, rel=1e-6)
