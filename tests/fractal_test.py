"""The recursion as a whole: names, laws, precision, and randomness."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax.models import fractal, rules
from fractal_jax.models.types import Draws, Sampling
from tests import tiny

NO_DRAWS = Draws(None, None)
MIXED = dict(
  kinds=('mar', 'ar', 'mar', 'pixel'), sizes=(8, 4, 2, 1), guide=True
)


def score(net, params, images, labels, draws=NO_DRAWS, train=False, rngs=None):
  return net.apply(
    {'params': params},
    jnp.asarray(images),
    jnp.asarray(labels),
    draws,
    train=train,
    rngs=rngs,
  )


# Levels from a config.


@pytest.mark.parametrize(
  'kinds, conds, takes, gives',
  [
    (('mar', 'mar', 'mar'), 5, (5, 5, 5, 1), (5, 5, 1, 0)),
    (('mar', 'mar', 'mar'), (1, 5, 3), (1, 5, 3, 1), (5, 3, 1, 0)),
    (('ar', 'mar', 'ar'), 5, (1, 1, 1, 1), (1, 1, 1, 0)),
    (('mar', 'ar', 'mar'), 5, (5, 1, 1, 1), (1, 1, 1, 0)),
    (('mar', 'mar', 'ar'), 1, (1, 1, 1, 1), (1, 1, 1, 0)),
  ],
)
def test_numbers_of_conditions(kinds, conds, takes, gives):
  model = tiny.model(kinds + ('pixel',), (8, 4, 2, 1), num_conds=conds)
  specs = fractal.specs(model)
  assert tuple(s.num_conds for s in specs) == takes
  assert tuple(s.out_conds for s in specs) == gives


def test_series_pass_three_conditions():
  model = tiny.model(('mar', 'mar', 'pixel'), (4, 2, 1), rank=1, num_conds=5)
  assert [s.num_conds for s in fractal.specs(model)] == [5, 3, 1]
  model.num_conds = (3, 5)
  assert 'gives only 3' in rules.problems(model)[0]


def test_guides():
  specs = fractal.specs(tiny.model(**MIXED))
  assert [s.guide for s in specs] == [False, False, True, False]


# Parameters.

# What sharding.py knows; layers: the axis along a stack.
AXES = {'layers', 'embed', 'width', 'heads', 'mlp', 'patch', 'values', 'norm'}


def test_every_parameter_names_its_axes():
  net = fractal.from_config(tiny.model(**MIXED))
  tree = jax.eval_shape(lambda: tiny.init(net))
  boxed = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  seen = set()
  for path, leaf in boxed:
    name = jax.tree_util.keystr(path)
    assert isinstance(leaf, nn.LogicallyPartitioned), name
    assert len(leaf.names) == leaf.value.ndim, name
    named = [a for a in leaf.names if a is not None]
    assert named and len(set(named)) == len(named), name
    assert ('layers' in named) == ('blocks' in name), name
    seen |= set(named)
  assert seen == AXES


def test_one_subtree_a_level():
  net = fractal.from_config(tiny.model(**MIXED))
  tree = jax.eval_shape(lambda: tiny.init(net))
  levels = {f'level_{i}' for i in range(4)}
  assert tree.keys() == levels | {'labels'}
  assert 'guide' in tree['level_2'] and 'guide' not in tree['level_0']


def test_parameters_start_by_the_published_laws():
  """Xavier weights, tables of 0.02, biases 0, norms 1 (blocks: layers_test)."""
  net = fractal.from_config(tiny.model(num_values=64, classes=50, **MIXED))
  params = tiny.jit(lambda: nn.meta.unbox(tiny.init(net)))()
  tables = {'table', 'none', 'positions', 'mask_token', 'codebooks'}
  seen = set()
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    name, value = jax.tree_util.keystr(path), np.asarray(value)
    last = path[-1].key
    seen.add(last)
    if last in tables:
      assert abs(value.std() - 0.02) < 0.1 / value.size**0.5, name
      assert abs(value).max() < 0.1 and value.any(), name
    elif last == 'scale':
      assert (value == 1).all(), name
    elif 'bias' in last:
      assert (value == 0).all(), name
    elif 'blocks' not in name:
      bound = (6 / sum(value.shape)) ** 0.5
      assert 0.7 * bound < abs(value).max() <= bound, name
      np.testing.assert_allclose(value.std(), bound / 3**0.5, rtol=0.35)
  assert tables | {'logit_bias', 'qkv_bias', 'kernel', 'scale'} <= seen


# Precision.


@pytest.mark.parametrize('kind', ['ar', 'mar'])
def test_bfloat16_keeps_the_loss_in_float32(kind):
  kinds = (kind, kind, 'pixel')
  net, params = tiny.build(kinds, (4, 2, 1), num_values=17, spread=0.2)
  low, _ = tiny.build(kinds, (4, 2, 1), num_values=17, dtype='bfloat16')
  images, labels = jnp.asarray(tiny.images(net, 2)), jnp.array([0, -1])
  masks = None
  if kind == 'mar':
    masks = [np.ones((2, 4)), np.ones((8, 4))]

  def run(net):
    args = (images, labels, NO_DRAWS, masks)
    return tiny.jit(
      lambda p: (
        net.predictive(p, *args)[1],
        net.apply({'params': p}, *args, train=False).pixels.nats,
      )
    )(params)

  want_logits, want_nats = run(net)
  logits, nats = run(low)
  assert logits.dtype == nats.dtype == jnp.float32
  np.testing.assert_allclose(logits, want_logits, atol=0.15)
  np.testing.assert_allclose(nats.mean(), want_nats.mean(), rtol=0.01)
  # Computed in bfloat16, kept in float32: they differ, and are no bfloat16.
  assert (logits != want_logits).mean() > 0.9
  rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
  assert (rounded != logits).mean() > 0.9
  kept = jax.eval_shape(lambda: tiny.init(low))
  assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype('float32')}


# Labels and dropout.


def test_labels_condition_and_minus_one_is_no_class():
  net, params = tiny.build()
  images = tiny.images(net, 1).repeat(4, 0)
  run = tiny.jit(lambda p, y: score(net, p, images, y).pixels.nats)
  nats = run(params, np.array([0, 1, 2, -1])).reshape(4, -1)
  assert len(np.unique(np.asarray(nats)[:, 0])) == 4
  none = {**params['labels'], 'none': params['labels']['table'][1:2]}
  as_one = run({**params, 'labels': none}, np.array([-1] * 4)).reshape(4, -1)
  np.testing.assert_allclose(as_one[0], nats[1], atol=1e-6)


def test_labels_are_dropped_in_training_only():
  net, params = tiny.build(label_dropout=0.1)
  n = 3000
  images = tiny.images(net, 1).repeat(n, 0)
  draws = Draws(tiny.keys(n), None)
  labels = np.ones(n, int)
  run = tiny.jit(
    lambda p, y, train: score(net, p, images, y, draws, train).pixels.nats,
    static_argnums=2,
  )
  first = lambda y, train: np.asarray(run(params, y, train)).reshape(n, -1)[
    :, 0
  ]
  kept, none = first(labels, False), first(-labels, False)
  assert abs(kept - kept[0]).max() < 1e-5 < abs(kept[0] - none[0])
  trained = first(labels, True)
  dropped = abs(trained - none[0]) < 1e-5
  assert (dropped | (abs(trained - kept[0]) < 1e-5)).all()
  np.testing.assert_allclose(dropped.mean(), 0.1, atol=0.022)


@pytest.mark.parametrize('kind', ['ar', 'mar'])
def test_dropout_in_training_only(kind):
  net, params = tiny.build((kind, 'pixel'), dropout=0.5)
  assert net.specs[0].dropout == 0.5
  images, labels = tiny.images(net, 2), np.zeros(2, int)
  draws = Draws(tiny.keys(2), jnp.array([0.9, 0.9]))

  def run(train, key):
    rngs = {'dropout': key} if train else None
    return score(net, params, images, labels, draws, train, rngs).pixels.nats

  run = tiny.jit(run, static_argnums=0)
  a, b = jax.random.key(0), jax.random.key(1)
  assert (run(True, a) == run(True, a)).all()
  assert (run(True, a) != run(True, b)).any()
  assert (run(False, a) == run(False, b)).all()


# Randomness.


@pytest.mark.parametrize('kinds', [('ar', 'pixel'), ('mar', 'mar', 'pixel')])
def test_images_do_not_depend_on_the_batch(kinds):
  """The same key, label: the same image, however many are beside it."""
  sizes = (4, 2, 1)[-len(kinds) :]
  net, params = tiny.build(kinds, sizes, num_values=17, guide=True)
  keys = tiny.keys(5)
  labels = np.array([0, 1, 2, -1, 1])
  sampling = Sampling(guidance=2.0, iterations=(2,) * (len(kinds) - 1))
  generate = tiny.jit(
    lambda p, y, k: net.generate(p, y, k, sampling, guided=True).values
  )
  five = np.asarray(generate(params, labels, keys))
  three = generate(params, labels[1:4], keys[1:4])
  np.testing.assert_array_equal(three, five[1:4])
  one = generate(params, labels[4:], keys[4:])
  np.testing.assert_array_equal(one, five[4:])
  # Another key is another image, even under the same label.
  assert (five[1] != five[4]).any()
  # And the order within the batch does not matter.
  back = generate(params, labels[::-1], keys[::-1])
  np.testing.assert_array_equal(np.asarray(back)[::-1], five)


def test_guidance_of_one_is_no_guidance():
  net, params = tiny.build(('ar', 'pixel'), num_values=17)
  sampling = Sampling(guidance=1.0, filter_threshold=0.0)
  labels, keys = np.array([0, 1, 2]), tiny.keys(3)
  plain, guided = (
    tiny.jit(
      lambda p, g=g: net.generate(p, labels, keys, sampling, guided=g).values
    )(params)
    for g in (False, True)
  )
  np.testing.assert_array_equal(plain, guided)


@pytest.mark.parametrize('rank, channels', [(1, 4), (2, 1)])
def test_any_grid(rank, channels):
  """Scored and generated: series and images, one channel and four, V = 17."""
  net, params = tiny.build(
    ('mar', 'ar', 'pixel'),
    (4, 2, 1),
    rank=rank,
    channels=channels,
    num_values=17,
  )
  shape = (2,) + (4,) * rank + (channels,)
  labels = np.zeros(2, int)
  sampling = Sampling(iterations=(2, 1), record=True)
  drawn = tiny.jit(
    lambda p, k: net.generate(p, labels, k, sampling, guided=False)
  )(params, tiny.keys(2))
  assert drawn.values.shape == drawn.when.shape == shape
  assert drawn.values.min() >= 0 and drawn.values.max() <= 16
  assert len(np.unique(drawn.values)) > 4
  draws = Draws(tiny.keys(2), jnp.array([0.9, 0.9]), 'uniform')
  result = tiny.jit(lambda p: score(net, p, drawn.values, labels, draws))(
    params
  )
  assert result.pixels.nats.shape[1] == channels
  assert (
    np.isfinite(result.pixels.nats).all() and (result.pixels.nats > 0).all()
  )
  # The weights make up for the patches that are not masked.
  values = jax.ops.segment_sum(result.pixels.weight, result.pixels.image, 2)
  np.testing.assert_allclose(values, 4**rank, rtol=1e-5)
