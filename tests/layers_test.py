"""The stack of blocks against literal transcriptions, and its parts."""

import functools

import chex
from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax.models import layers
from fractal_jax.models.attention import rotary_angles
from tests import tiny

FIELDS = dict(
  width=16, heads=2, causal=True, dropout=0.0, dtype=jnp.dtype('float32')
)


def test_norms():
  """With statistics in float32 and the published epsilons."""
  x = 1e-3 * np.random.default_rng(0).standard_normal((3, 64), np.float32)
  centred = x - x.mean(-1, keepdims=True)
  for norm, y, eps in (
    (layers.layer_norm, centred, 1e-6),
    (layers.rms_norm, x, 1e-5),
  ):
    want = y / np.sqrt((y**2).mean(-1, keepdims=True) + eps)
    for dtype, tolerance in (('float32', 1e-5), ('bfloat16', 2e-2)):
      module = norm(jnp.dtype(dtype))
      params = nn.meta.unbox(module.init(jax.random.key(0), x))
      np.testing.assert_allclose(
        module.apply(params, x).astype(jnp.float32), want, atol=tolerance
      )
  # A mean that bfloat16 would lose: 256 and the values around it.
  module = layers.layer_norm(jnp.dtype('bfloat16'))
  x = 256 + np.arange(4, dtype=np.float32)
  params = nn.meta.unbox(module.init(jax.random.key(0), x))
  want = (x - x.mean()) / x.std()
  np.testing.assert_allclose(
    module.apply(params, x).astype(jnp.float32), want, atol=1e-2
  )


@pytest.mark.parametrize(
  'width, hidden', [(64, 256), (128, 512), (384, 1024), (512, 1536), (96, 256)]
)
def test_swiglu_width(width, hidden):
  assert layers.swiglu_width(width) == hidden


# The stack.


def stack(kind, remat='none', unroll=False, depth=3, **changes):
  fields = {**FIELDS, **changes}
  return layers.stack(kind, fields, depth, remat, unroll)


class Stack(nn.Module):
  kind: type
  remat: str = 'none'
  unroll: bool = False

  def setup(self):
    self.blocks = stack(self.kind, self.remat, self.unroll)

  def __call__(self, x, turns):
    return self.blocks(x, turns, False)[0]


@pytest.mark.parametrize(
  'kind, linears', [(layers.LlamaBlock, 5), (layers.ViTBlock, 4)]
)
def test_what_the_backward_pass_computes_again(kind, linears):
  """Counted in matrix products, of which attention itself has two."""
  x = jnp.zeros((2, 5, 16))
  turns = rotary_angles((2, 2), 8)
  turns = turns if kind is layers.LlamaBlock else None

  def products(remat):
    net = Stack(kind, remat)
    params = nn.meta.unbox(
      jax.eval_shape(lambda: net.init(jax.random.key(0), x, turns))
    )
    loss = lambda p, x: (net.apply(p, x, turns) ** 2).mean()
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, x))
    return text.count('dot_general[')

  assert products('none') == 3 * (linears + 2)
  # The block's output is not needed, so neither are the products after w2's or
  # fc2's input.
  assert products('dots') == products('none') + 2
  assert products('full') == products('none') + linears - 1 + 2


@pytest.mark.parametrize('kind', [layers.LlamaBlock, layers.ViTBlock])
def test_scan_equals_loop_and_cache(kind):
  """A scan, the same unrolled, recomputed, a loop, and token by token."""
  rng = np.random.default_rng(0)
  turns = rotary_angles((2, 2), 8)
  turns = turns if kind is layers.LlamaBlock else None
  x = jnp.asarray(rng.standard_normal((2, 5, 16), np.float32))
  shapes = jax.eval_shape(Stack(kind).init, jax.random.key(0), x, turns)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape, np.float32)),
    nn.meta.unbox(shapes)['params'],
  )

  def run(remat, unroll):
    net = Stack(kind, remat, unroll)
    loss = lambda p: (net.apply({'params': p}, x, turns) ** 2).mean()
    out = lambda p: net.apply({'params': p}, x, turns)
    return tiny.jit(lambda p: (out(p), jax.grad(loss)(p)))(params)

  want, grad = run('none', False)
  out, other = run('dots' if kind is layers.ViTBlock else 'full', True)
  np.testing.assert_allclose(out, want, atol=1e-5)
  chex.assert_trees_all_close(other, grad, rtol=1e-4, atol=1e-5)

  block = kind(**FIELDS)

  @tiny.jit
  def layer(own, y):
    return block.apply({'params': own}, y, turns, False)[0]

  y = x
  for i in range(3):
    y = layer(jax.tree.map(lambda p, i=i: p[i], params['blocks']), y)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)

  cache = jnp.zeros((3, 2, 2, 5, 2, 8))  # [layers, 2, N, T, H, K]

  @tiny.jit
  def step(token, cache, t):
    turn = None
    if turns is not None:
      turn = jax.lax.dynamic_slice_in_dim(turns, t, 1, 1)
    return layers.step_stack(block, params['blocks'], token, cache, t, turn)

  for t in range(5):
    y, cache = step(x[:, t : t + 1], cache, t)
    np.testing.assert_allclose(y[:, 0], want[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', [layers.LlamaBlock, layers.ViTBlock])
def test_layers_start_differently_by_the_law(kind):
  net = stack(kind, depth=2, width=32)
  turns = rotary_angles((2, 2), 16)
  x = jnp.ones((1, 5, 32))
  args = (x, turns if kind is layers.LlamaBlock else None, False)
  init = tiny.jit(lambda key: nn.meta.unbox(net.init(key, *args))['params'])
  params = init(jax.random.key(0))
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    value = np.asarray(value)
    if 'scale' in name:
      assert (value == 1).all(), name
    elif 'bias' in name:
      assert (value == 0).all(), name
    else:
      # Xavier: +- sqrt(6 / (in + out)), a fused qkv as one [3D, D] matrix.
      columns = int(np.prod(value.shape[2:]))
      bound = (6 / (value.shape[1] + columns)) ** 0.5
      assert 0.98 * bound < abs(value).max() <= bound, name
      np.testing.assert_allclose(value.std(), bound / 3**0.5, rtol=0.05)
      assert (value[0] != value[1]).all(), name


def added_by(kind):
  """(train, key, **parameters) to what a block adds to its input [8, 37, 16].

  And the block's random parameters, by name. All those that are not given
  vanish (scales are 1).
  """
  block = kind(**{**FIELDS, 'dropout': 0.25})
  turns = rotary_angles((6, 6), 8) if kind is layers.LlamaBlock else None
  x = np.random.default_rng(0).standard_normal((8, 37, 16), np.float32)
  shapes = jax.eval_shape(
    lambda key: block.init(key, x, turns, False), jax.random.key(0)
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda p: 0.3 * rng.standard_normal(p.shape).astype(np.float32),
    nn.meta.unbox(shapes),
  )['params']
  params = traverse_util.flatten_dict(params, sep='__')

  @functools.partial(tiny.jit, static_argnums=1)
  def apply(params, train, key):
    rngs = {'dropout': key} if train else {}
    return block.apply({'params': params}, x, turns, train, rngs=rngs)[0]

  def run(train, key, **given):
    assert given.keys() <= params.keys()
    own = {
      k: np.zeros_like(v) + given.get(k, k.endswith('scale'))
      for k, v in params.items()
    }
    own = traverse_util.unflatten_dict(own, sep='__')
    return np.asarray(apply(own, train, jax.random.key(key)) - x)

  return run, params


@pytest.mark.parametrize('kind', [layers.LlamaBlock, layers.ViTBlock])
def test_dropout_in_training_only(kind):
  run, params = added_by(kind)
  plain = run(False, 1, **params)
  assert (run(True, 1, **params) != plain).any()
  assert (run(True, 1, **params) != run(True, 2, **params)).any()
  np.testing.assert_array_equal(run(False, 2, **params), plain)


@pytest.mark.parametrize(
  'half',
  [
    ('attention__qkv', 'attention__proj__kernel'),
    ('w1__kernel', 'w2__kernel', 'w3__kernel'),
  ],
  ids=['attention', 'mlp'],
)
def test_llama_blocks_drop_what_each_half_adds_and_nothing_else(half):
  """A quarter of the entries is 0, the others are scaled by 1 / 0.75."""
  run, params = added_by(layers.LlamaBlock)
  given = {name: params[name] for name in half}
  plain, trained = run(False, 1, **given), run(True, 1, **given)
  kept = abs(trained) > 1e-5
  np.testing.assert_allclose(trained[kept], plain[kept] / 0.75, atol=1e-4)
  seen = abs(plain) > 1e-2
  assert seen.mean() > 0.5
  np.testing.assert_allclose(kept[seen].mean(), 0.75, atol=0.03)


def test_vit_blocks_drop_where_the_published_model_does():
  """One place at a time: everything but that place is made to vanish."""
  run = functools.partial(added_by(layers.ViTBlock)[0], True, 1)

  def check(out):
    """A quarter of the entries is 0, the others are scaled by 1 / 0.75."""
    zero = abs(out) < 1e-5
    np.testing.assert_allclose(zero.mean(), 0.25, atol=0.03)
    np.testing.assert_allclose(out[~zero], 1 / 0.75, atol=1e-4)

  check(run(attention__proj__bias=1.0))
  check(run(fc2__bias=1.0))
  # After the first MLP layer: 64 units of gelu(3), each kept or not.
  out = run(fc1__bias=3.0, fc2__kernel=1.0)
  unit = float(jax.nn.gelu(3.0, approximate=False)) / 0.75
  units = (out * 0.75 / unit)[abs(out) > 1e-5]
  np.testing.assert_allclose(units, np.round(units), atol=1e-2)
  np.testing.assert_allclose(units.mean() / 64, 0.75, atol=0.03)
  assert units.std() > 1
  # On the attention weights: v is 1 everywhere, so that their sums show.
  v = np.stack([np.zeros(16), np.zeros(16), np.ones(16)])
  out = run(attention__qkv_bias=v, attention__proj__kernel=np.eye(16))
  sums = (out * 0.75)[:, -1]  # the last token's, over 37 tokens
  sums = sums[sums > 1e-5] * 37 * 0.75
  np.testing.assert_allclose(sums, np.round(sums), atol=1e-2)
  np.testing.assert_allclose(sums.mean() / 37, 0.75, atol=0.06)
  assert sums.std() > 1


def test_dropout_differs_by_step_not_by_unrolling():
  """Another key, other draws; the same layers written out or looped over."""
  fields = FIELDS | {'dropout': 0.5}
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 16)))
  outs = []
  for unroll in (False, True):
    stack = layers.stack(layers.ViTBlock, fields, 2, 'none', unroll)
    params = nn.unbox(stack.init(jax.random.key(0), x, None, False))

    def seen(key, stack=stack, params=params):
      rngs = {'dropout': jax.random.key(key)}
      return np.asarray(stack.apply(params, x, None, True, rngs=rngs)[0])

    out = seen(1)
    assert (out != seen(2)).any()
    np.testing.assert_array_equal(out, seen(1))
    outs.append(out)
  np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)
