"""Levels that share blocks: one set of parameters, counted and trained once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import convert, sharding
from fractal_jax.models import fractal, shared
from fractal_jax.models.types import Draws, Sampling
from fractal_jax.planning import cost
from fractal_jax.training import (
  CheckpointError,
  checkpoint,
  optimizer,
  train,
  train_state,
)
from tests import tiny

AR = ('ar', 'ar', 'pixel'), (4, 2, 1), (0, 0, 2)
MAR = ('mar', 'mar', 'pixel'), (4, 2, 1), (0, 0, 0)
SAME = dict(depths=(2, 2, 2), channels=2)


def apart(kinds, sizes, share):
  """The shared model, and one with copies, of the same parameters."""
  net, params = tiny.build(kinds, sizes, share=share, **SAME)
  plain = fractal.from_config(tiny.model(kinds, sizes, **SAME))
  return net, params, plain, shared.expand(params, net.specs)


@pytest.mark.parametrize('kinds, sizes, share', [AR, MAR])
def test_a_model_of_copies_scores_alike_and_gradients_add_up(
  kinds, sizes, share
):
  net, params, plain, copies = apart(kinds, sizes, share)
  users = [i for i, owner in enumerate(share) if owner != i]
  assert all('blocks' not in params[f'level_{i}'] for i in users)
  like = jax.eval_shape(lambda: sharding.unbox(tiny.init(plain)))
  shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
  assert shapes(like) == shapes(copies)
  images, labels = jnp.asarray(tiny.images(net, 2)), jnp.zeros(2, jnp.int32)
  masks = [np.ones((2, 4), bool), np.ones((8, 4), bool)]

  def grad(net):
    loss = lambda p: net.score(
      p, images, labels, Draws(None, None), masks, train=False
    ).pixels.nats.sum()
    return tiny.jit(jax.value_and_grad(loss))

  value, mine = grad(net)(params)
  wanted, theirs = grad(plain)(copies)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  summed = [theirs[f'level_{i}'].pop('blocks') for i in users]
  summed.append(theirs['level_0']['blocks'])
  theirs['level_0']['blocks'] = jax.tree.map(lambda *x: sum(x), *summed)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3),
    mine,
    theirs,
  )
  # Generation, too.
  sampling = Sampling(iterations=(2, 2))
  draw = lambda net, params: tiny.jit(
    lambda p: net.generate(p, labels, tiny.keys(2), sampling, guided=False)
  )(params)
  np.testing.assert_array_equal(
    draw(net, params).values, draw(plain, copies).values
  )


def config(**changes):
  c = tiny.config(
    ('mar', 'pixel'), (4, 1), depths=(1, 1), classes=10, share=(0, 0)
  )
  c.optim.update(batch=8, warmup=0.0, steps=2, eps=1e-3)
  c.model.update(changes)
  return c


def test_blocks_are_counted_saved_and_split_once():
  c = config()
  apart = config(share=())
  blocks = lambda c: sum(
    np.prod(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(
      jax.eval_shape(lambda: tiny.init(fractal.from_config(c.model)))
    )
    if 'level_1' in str(path) and 'blocks' in str(path)
  )
  assert blocks(c) == 0 < blocks(apart)
  assert cost.cost(c).params == cost.cost(apart).params - blocks(apart)
  assert cost.cost(c).total('training') == cost.cost(apart).total('training')
  c.mesh.update(data=2, fsdp=2, tensor=2)
  mesh = sharding.make_mesh(c)
  net = fractal.from_config(c.model)
  tx = optimizer.create(c, 2)
  state = train_state.abstract(net, tx, c, mesh=mesh)
  assert 'blocks' not in state.params['level_1']
  # A frozen owner is out of the optimizer, and in use at both levels.
  c.optim.frozen = (0,)
  trained, frozen = optimizer.split(state.params, c)
  assert 'blocks' in frozen['level_0'] and 'level_1' in trained


def test_levels_that_share_train_alike_on_any_mesh():
  found = {}
  batch = {
    'image': np.random.default_rng(0).integers(0, 5, (8, 4, 4, 1)),
    'label': np.arange(8),
  }
  for axes in ((1, 1, 1), (2, 2, 2)):
    c = config()
    c.mesh.update(dict(zip(sharding.AXES, axes)), groups=4)
    mesh = sharding.make_mesh(c, jax.devices()[: np.prod(axes)])
    net = fractal.from_config(c.model)
    tx = optimizer.create(c, 2)
    state = train_state.create(net, tx, c, mesh=mesh)
    step = tiny.jit(train.make_step(net, tx, c, mesh=mesh))
    with jax.set_mesh(mesh):
      state, metrics = step(state, sharding.place(batch, mesh))
    found[axes] = jax.device_get((state.params, metrics))
  (mine, metrics), (wanted, _) = found[2, 2, 2], found[1, 1, 1]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), mine, wanted
  )
  assert metrics['grad_norm/level_1'] > 0


def test_levels_begin_as_in_another_run_that_shares_them(tmp_path):
  runs = {(0, 0): str(tmp_path / 'shared'), (): str(tmp_path / 'apart')}
  for seed, (share, workdir) in enumerate(runs.items()):
    c = config(share=share)
    net = fractal.from_config(c.model)
    params = sharding.unbox(fractal.init(net, jax.random.key(seed + 5)))
    checkpoint.save_params(workdir, c, params)
    if share:
      wanted = params
  c = config(init_from=runs[0, 0], init_levels=(0, 1))
  mesh = sharding.single_device_mesh()
  net = fractal.from_config(c.model)
  found = train.given_levels(net, c, mesh=mesh)
  wanted = {name: wanted[name] for name in ('labels', 'level_0', 'level_1')}
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  c.model.init_from = runs[()]
  with pytest.raises(CheckpointError, match='extra: level_1/blocks'):
    train.given_levels(net, c, mesh=mesh)


def test_convert():
  """Written to every level; not read, as published levels have their own."""
  kinds, sizes, share = MAR
  changes = dict(channels=3, num_values=256, depths=(2, 2, 2))
  model = tiny.model(kinds, sizes, share=share, **changes)
  _, params = tiny.build(kinds, sizes, share=share, **changes)
  state = convert.to_published(params, model)
  plain = tiny.model(kinds, sizes, **changes)
  back = convert.from_published(state, plain)
  for level in ('level_1', 'level_2'):
    jax.tree.map(
      np.testing.assert_array_equal,
      back[level]['blocks'],
      params['level_0']['blocks'],
    )
  with pytest.raises(convert.ConvertError, match='of their own'):
    convert.from_published(state, model)
  for change in (dict(colour='ycocg'), dict(channel_order=(1, 0, 2))):
    other = tiny.model(kinds, sizes, **changes, **change)
    with pytest.raises(convert.ConvertError, match='in this order'):
      convert.from_published(state, other)
    with pytest.raises(convert.ConvertError, match='in this order'):
      convert.to_published(back, other)
