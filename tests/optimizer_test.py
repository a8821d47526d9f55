"""Schedule, weight-decay mask, frozen levels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.training import optimizer
from tests import tiny


def configure(**changes):
  c = config_lib.default()
  c.optim.update(changes)
  return c


def test_steps_come_from_epochs_unless_given():
  assert optimizer.steps(configure(batch=100, epochs=3.0), 1000) == 30
  assert optimizer.steps(configure(batch=100, epochs=0.01), 1000) == 1
  assert optimizer.steps(configure(steps=7), 1000) == 7


def test_schedule_ramps_from_zero_then_follows_a_half_cosine_to_zero():
  rate = optimizer.schedule(configure(lr=1e-3, batch=512, warmup=0.2), 100)
  peak = 2e-3  # scaled by batch / 256
  np.testing.assert_allclose(rate(0), 0)
  np.testing.assert_allclose(rate(5), peak / 4, rtol=1e-6)
  np.testing.assert_allclose(rate(20), peak, rtol=1e-6)
  np.testing.assert_allclose(rate(60), peak / 2, rtol=1e-6)
  quarter = peak * (1 + np.cos(np.pi / 4)) / 2
  np.testing.assert_allclose(rate(40), quarter, rtol=1e-6)
  np.testing.assert_allclose(rate(100), 0, atol=1e-9)


@pytest.mark.parametrize('total', [1, 2, 10])
def test_schedule_without_warmup_starts_at_its_peak(total):
  rate = optimizer.schedule(configure(lr=1.0, batch=256, warmup=0.0), total)
  np.testing.assert_allclose(rate(0), 1)


def test_schedule_of_one_step_with_warmup_is_defined():
  rate = optimizer.schedule(configure(lr=1.0, batch=256, warmup=0.9), 1)
  np.testing.assert_allclose(rate(0), 1)


def params_of(**changes):
  net = fractal.from_config(
    tiny.model(('mar', 'mar', 'pixel'), (4, 2, 1), guide=True, **changes)
  )
  return sharding.unbox(jax.eval_shape(lambda: tiny.init(net)))


def test_published_weights_of_two_dimensions_decay_and_nothing_else():
  mask = jax.tree_util.tree_leaves_with_path(optimizer.decay_mask(params_of()))
  decays = {
    jax.tree_util.keystr(p, simple=True, separator='/') for p, d in mask if d
  }
  stays = {
    jax.tree_util.keystr(p, simple=True, separator='/')
    for p, d in mask
    if not d
  }
  assert {
    'labels/table',
    'labels/none',
    'level_0/positions',
    'level_0/mask_token',
    'level_0/patch_embed/kernel',
    'level_0/blocks/attention/qkv',
    'level_1/guide/codebooks',
    'level_2/codebooks',
    'level_2/blocks/fc1/kernel',
  } <= decays
  assert {name.rsplit('/')[-1] for name in stays} == {
    'bias',
    'scale',
    'qkv_bias',
    'logit_bias',
  }


def test_decay_acts_through_the_mask():
  c = configure(lr=1.0, batch=256, warmup=0.0, weight_decay=0.5)
  tx = optimizer.create(c, 10)
  params = {'level_0': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}}
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates['level_0']['kernel'], -0.5)
  np.testing.assert_allclose(updates['level_0']['bias'], 0)


def test_muon_makes_updates_of_block_matrices_orthogonal_and_no_others():
  """Singular values are near to 1, but for the least of the gradients'."""
  params = jax.tree.map(lambda x: jnp.ones(x.shape), params_of())
  keys = iter(jax.random.split(jax.random.key(0), 1000))
  grads = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), params)

  def updates(name):
    c = configure(name=name, lr=1.0, batch=256, warmup=0.0, weight_decay=0.5)
    tx = optimizer.create(c, 10)
    found = jax.jit(tx.update)(grads, tx.init(params), params)[0]
    return dict(jax.tree_util.tree_leaves_with_path(found))

  muon, adamw = updates('muon'), updates('adamw')
  matrices = 0
  for path, update in muon.items():
    names = [k.key for k in path]
    if 'blocks' not in names or names[-1] not in ('qkv', 'kernel'):
      np.testing.assert_array_equal(update, adamw[path], str(names))
      continue
    update = np.moveaxis(update + 0.5, 1, -2)  # without decay; batches first
    scale = 0.2 * np.sqrt(max(update.shape[-2:]))
    values = np.linalg.svd(update / scale, compute_uv=False)
    assert 0.6 < np.quantile(values, 0.1) and values.max() < 1.3, names
    matrices += values.size
  assert matrices > 100


def test_the_gradient_norm_is_clipped():
  tx = optimizer.create(configure(clip=3.0), 10)
  params = {'level_0': {'kernel': jnp.zeros(100)}}
  state = tx.update(
    {'level_0': {'kernel': jnp.full(100, 9.0)}}, tx.init(params), params
  )[1]
  moment = optax.tree.get(state, 'mu')['level_0']['kernel']
  np.testing.assert_allclose(optax.tree.norm(moment), 3 * (1 - 0.9), rtol=1e-5)


def test_frozen_level_0_takes_the_class_embedding_with_it():
  params = {k: k for k in ('labels', 'level_0', 'level_1', 'level_2')}
  trained, frozen = optimizer.split(params, configure(frozen=(0, 2)))
  assert sorted(trained) == ['level_1']
  assert sorted(frozen) == ['labels', 'level_0', 'level_2']
  trained, frozen = optimizer.split(params, configure(frozen=()))
  assert trained == params and not frozen
