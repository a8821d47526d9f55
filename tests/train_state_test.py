"""The state is created sharded, and the same on every mesh."""

import chex
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.training import optimizer, train_state
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Specs of some parameters where all of the mesh's axes are 2.
SPECS = {
  'labels/table': P(None, 'fsdp'),
  'level_0/positions': P(None, 'fsdp'),
  'level_0/patch_embed/kernel': P(),
  'level_0/cond_embed/kernel': P('fsdp'),
  'level_0/blocks/attention/qkv': P(None, 'fsdp', None, 'tensor'),
  'level_0/blocks/attention/qkv_bias': P(None, None, 'tensor'),
  'level_0/blocks/attention/proj/kernel': P(None, 'tensor', 'fsdp'),
  'level_0/blocks/fc1/kernel': P(None, 'fsdp', 'tensor'),
  'level_0/blocks/fc2/kernel': P(None, 'tensor', 'fsdp'),
  'level_0/blocks/norm1/scale': P(),
  'level_1/codebooks': P(None, None, 'fsdp'),
  'level_1/logit_bias': P(),
}


def configure(axes=(-1, 1, 1), **optimizer):
  c = tiny.config(('mar', 'pixel'), (2, 1), depths=(1, 1))
  c.optim.update(batch=16, steps=4, **optimizer)
  c.mesh.update(dict(zip(sharding.AXES, axes)))
  return c


def build(config):
  """The model and what trains it, the config, and the mesh by its name."""
  tx = optimizer.create(config, config.optim.steps)
  mesh = dict(mesh=sharding.make_mesh(config))
  return (fractal.from_config(config.model), tx, config), mesh


def abstract(config):
  args, mesh = build(config)
  return train_state.abstract(*args, **mesh)


def by_name(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name(path): leaf for path, leaf in leaves}


@pytest.fixture(scope='module')
def reference(quick_compilation):
  c = configure()
  args, mesh = build(c)
  return jax.device_get(train_state.create(*args, **mesh))


@pytest.mark.parametrize(
  'axes', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str
)
def test_state_lies_where_the_rules_say(axes, reference):
  c = configure(axes)
  args, mesh = build(c)
  state = train_state.create(*args, **mesh)
  params = by_name(state.params)
  sizes = dict(zip(sharding.AXES, axes))
  for name, where in SPECS.items():
    assert params[name].sharding.spec == where, name
    parts = np.prod([sizes[a] for a in where if a], dtype=int)
    local = params[name].addressable_shards[0].data
    assert local.size * parts == params[name].size
  for moment in ('mu', 'nu'):  # a moment lies where its parameter does
    moments = by_name(optax.tree.get(state.opt_state, moment))
    for name, leaf in moments.items():
      assert leaf.sharding == params[name].sharding, name
  # Every mesh begins with the same bits.
  chex.assert_trees_all_equal(jax.device_get(state), reference)
  like = train_state.abstract(*args, **mesh)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, like)
  same = lambda x, y: np.testing.assert_(x.sharding == y.sharding)
  jax.tree.map(same, state, like)


def test_muon_has_one_moment_of_matrices_where_they_lie():
  state = abstract(configure((2, 2, 2), name='muon'))
  params = by_name(state.params)
  found = {'muon': set(), 'adamw': set()}
  for name, leaf in by_name(state.opt_state).items():
    kind, _, parameter = name.partition('u/level_')
    if not parameter:
      continue
    parameter = f'level_{parameter}'
    assert leaf.sharding == params[parameter].sharding, name
    assert leaf.shape == params[parameter].shape
    found['muon' if '/muon/' in kind else 'adamw'].add(parameter)
  assert not found['muon'] & found['adamw']
  assert found['muon'] == {
    f'level_{level}/blocks/{name}'
    for level in (0, 1)
    for name in (
      'attention/qkv',
      'attention/proj/kernel',
      'fc1/kernel',
      'fc2/kernel',
    )
  }


def test_frozen_levels_have_no_optimizer_state():
  c = configure()
  c.model = tiny.model(('mar', 'ar', 'pixel'), (4, 2, 1))
  c.optim.frozen = (0, 2)
  state = abstract(c)
  assert list(optax.tree.get(state.opt_state, 'mu')) == ['level_1']
  assert sorted(state.params) == ['labels', 'level_0', 'level_1', 'level_2']


def test_autoregressive_levels_are_split_alike():
  c = configure((2, 2, 2))
  c.model = tiny.model(('ar', 'pixel'), (4, 1))
  params = by_name(abstract(c).params)
  for name, where in {
    'attention/qkv': P(None, 'fsdp', None, 'tensor'),
    'w1/kernel': P(None, 'fsdp', 'tensor'),
    'w2/kernel': P(None, 'tensor', 'fsdp'),
    'norm2/scale': P(),
  }.items():
    assert params[f'level_0/blocks/{name}'].sharding.spec == where


def test_most_of_the_huge_model_is_split_over_fsdp():
  from configs import fractalmar_huge_in256

  c = fractalmar_huge_in256.get_config()
  c.mesh.update(data=1, fsdp=8, tensor=1)
  state = abstract(c)
  total = local = 0
  for leaf in jax.tree.leaves(state):
    total += leaf.size
    local += np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)
  assert local < 1.02 * total / 8
