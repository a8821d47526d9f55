"""Kernels, interpreted on a CPU, beside the model without them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import config, sharding
from fractal_jax.models import fractal, layers, pixel
from fractal_jax.models.attention import rotary_angles
from fractal_jax.models.dropout import hash_bits
from fractal_jax.models.kernels import (
  attention,
  blocks,
  calls,
  mlp,
  pixel_draw,
  proof,
  values,
)
from fractal_jax.models.kernels.geometry import Packed, Rows
from fractal_jax.models.types import Given, Network, Request, Sampling
from fractal_jax.training import train, train_state
from tests import golden_test, tiny


def distance(a, b):
  """||a - b|| / ||b||, the largest of two trees' leaves."""
  far = lambda a, b: proof.distance(np.asarray(a, np.float32), np.asarray(b))
  return max(jax.tree.leaves(jax.tree.map(far, a, b)))


def block_and_gradients(block, params, x, turns, g, rows=None):
  """The output of a block with dropout, and its gradients; rows: by kernels."""

  def call(params, x):
    given = x if rows is None else Packed(rows.pack(x), rows)
    rngs = {'dropout': jax.random.key(7)}
    y, _ = block.apply({'params': params}, given, turns, True, rngs=rngs)
    return y if rows is None else rows.unpack(y.values, len(x))

  @tiny.jit
  def both(params, x):
    y, vjp = jax.vjp(call, params, x)
    return y, vjp(g.astype(y.dtype))

  return both(params, x)


def a_block(kind, n, tokens, width, heads, rate, dtype='float32'):
  llama = kind is layers.LlamaBlock
  block = kind(width, heads, llama, rate, jnp.dtype(dtype))
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, g = normal(n, tokens, width), normal(n, tokens, width)
  turns = None
  if llama:
    turns = rotary_angles((tokens - 1,), width // heads)
  init = lambda: block.init(jax.random.key(0), x, turns, False)['params']
  shapes = nn.meta.unbox(jax.eval_shape(init))
  params = jax.tree.map(
    lambda s: normal(*s.shape) * width**-0.5 + (len(s.shape) == 1), shapes
  )
  return block, params, x, turns, g


@pytest.mark.parametrize(
  'kind, n, tokens, width, heads, rate',
  [
    (layers.ViTBlock, 5, 7, 32, 2, 0.0),
    (layers.ViTBlock, 17, 21, 32, 2, 0.1),
    (layers.ViTBlock, 3, 69, 160, 2, 0.1),  # padded; heads across lane tiles
    (layers.LlamaBlock, 5, 17, 32, 2, 0.1),
    (layers.LlamaBlock, 2, 130, 32, 1, 0.0),  # two tiles of queries
    (layers.ViTBlock, 2, 261, 32, 2, 0.1),  # level 0 of a 64x64 image
  ],
)
def test_a_block_is_that_without_kernels(kind, n, tokens, width, heads, rate):
  given = a_block(kind, n, tokens, width, heads, rate)
  expected = block_and_gradients(*given)
  assert distance(block_and_gradients(*given, Rows(tokens)), expected) < 1e-5


def test_cores_share_the_blocks(monkeypatch):
  """Each sums the gradients of its own, attention's four and the MLP's two."""
  given = a_block(layers.ViTBlock, 120, 21, 32, 2, 0.1)
  assert Rows(21).pack(given[2]).shape[0] == 8 * Rows(21).step
  expected = block_and_gradients(*given)
  monkeypatch.setattr(calls, 'cores', lambda: 2)
  assert distance(block_and_gradients(*given, Rows(21)), expected) < 1e-5


@pytest.mark.parametrize('kind', [layers.ViTBlock, layers.LlamaBlock])
@pytest.mark.parametrize('rate', [0.0, 0.1])
def test_bfloat16_is_as_near_to_float32_as_xla_is(kind, rate):
  exact = block_and_gradients(*a_block(kind, 3, 7, 32, 2, rate))
  block, params, x, turns, g = a_block(kind, 3, 7, 32, 2, rate, 'bfloat16')
  given = block, params, x.astype(jnp.bfloat16), turns, g
  usual = distance(block_and_gradients(*given), exact)
  assert distance(block_and_gradients(*given, Rows(7)), exact) < 1.5 * usual


def on(kernels, net):
  """The net with its levels' field `kernels`."""
  specs = [dataclasses.replace(s, kernels=kernels) for s in net.specs]
  return net.clone(specs=tuple(specs))


GUIDED = dict(channels=2, num_conds=3, guide=True, num_values=5)
MODELS = [
  (('mar', 'mar', 'pixel'), (4, 2, 1), GUIDED),
  (('ar', 'independent', 'pixel'), (4, 2, 1), dict(channels=2, num_conds=1)),
]
GOLDENS = ('ar_small', 'mar_guided', 'mar_small')
GOLDENS = [f for f in golden_test.FILES if f.stem in GOLDENS]


@pytest.mark.parametrize('path', GOLDENS, ids=golden_test.name_of)
def test_goldens(path):
  """The published model's losses, gradients and images, without dropout."""
  golden = golden_test.Golden(path, kernels='pallas')
  assert {s.kernels for s in golden.net.specs} == {'pallas'}
  golden_test.test_training_loss(golden)
  golden_test.test_gradients(golden)
  golden_test.test_evaluation_loss(golden)
  if path.stem == 'mar_small':
    name = next(name for file, name in golden_test.samples() if file == path)
    golden_test.test_greedy_images(golden, name)


def test_training_is_that_without_kernels():
  """Loss and gradients with dropout; each device has two groups of images."""
  kinds, sizes = ('ar', 'mar', 'pixel'), (4, 2, 1)
  changes = dict(num_conds=1, depths=(1, 1, 1), dropout=0.1, label_dropout=0.1)
  net, params = tiny.build(kinds, sizes, **changes)
  c = config.default()
  c.model.update(tiny.model(kinds, sizes, **changes).to_dict())
  c.optim.batch = 16
  c.mesh.update(data=4, fsdp=2, groups=16)
  mesh = sharding.make_mesh(c)
  params = jax.device_put(params, train_state.param_shardings(net, mesh=mesh))
  batch = {'image': tiny.images(net, 16), 'label': np.arange(16) % 3}
  batch = sharding.place(batch, mesh)
  key = jax.random.key(5)

  def loss(kernels):
    f = lambda params, batch: train.loss_fn(
      on(kernels, net), params, c, batch, key, mesh=mesh
    )
    with jax.set_mesh(mesh):
      (loss, _), grads = tiny.jit(jax.value_and_grad(f, has_aux=True))(
        params, batch
      )
    return jax.device_get((loss, grads))

  loss_of, grads = loss('pallas')
  expected, gradients = loss('xla')
  assert abs(loss_of - expected) < 1e-5 * expected
  assert distance(grads, gradients) < 1e-4


@pytest.mark.parametrize('kinds, sizes, changes', MODELS)
def test_samples_are_those_without_kernels(kinds, sizes, changes):
  net, params = tiny.build(kinds, sizes, **changes)
  sampling = Sampling(guidance=2.0, temperature=0.9, filter_threshold=0.01)
  images = jnp.asarray(tiny.images(net, 2))
  known = jnp.zeros(images.shape, bool).at[:, :2].set(True)
  known = known.at[1].set(False)

  def draw(kernels):
    f = lambda params, keys: on(kernels, net).generate(
      params,
      jnp.asarray([0, 2]),
      keys,
      sampling,
      guided=True,
      given=Given(images, known),
    )
    return jax.device_get(tiny.jit(f)(params, tiny.keys(2)).values)

  np.testing.assert_array_equal(draw('pallas'), draw('xla'))


def test_greedy_pixels():
  net, params = tiny.build(('ar', 'pixel'), (2, 1), channels=3)
  spec, params = net.specs[-1], params['level_1']
  conds = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 1, 16)))
  request = Request((conds.astype(jnp.float32),), tiny.keys(3), 1.0, None)

  def draw(kernels):
    level = pixel.PixelLevel(dataclasses.replace(spec, kernels=kernels))
    network = Network(level, params)
    drawn = level.generate([network], request, Sampling(greedy=True)).run()
    return drawn.values

  np.testing.assert_array_equal(draw('pallas'), draw('xla'))


# Where kernels lie in rows, and where there are none.


@pytest.mark.parametrize('tokens', [3, 21, 64, 69, 261])
@pytest.mark.parametrize('causal', [False, True])
def test_tiles_meet_every_key_of_every_query(tokens, causal):
  rows = Rows(tokens)
  seen = np.zeros((rows.step, rows.step), bool)
  bias, _ = rows.masks(1, causal)
  for i, (q0, q1, k0, k1) in enumerate(rows.tiles(causal)):
    seen[q0:q1, k0:k1] = np.asarray(bias)[i, : k1 - k0, : q1 - q0].T == 0
  at = np.arange(rows.step)
  where, sequence = at % rows.padded, at // rows.padded
  expected = (sequence[:, None] == sequence) & (where < tokens)
  if causal:
    expected &= at <= at[:, None]
  np.testing.assert_array_equal(seen, expected)


def test_rows_hold_the_sequences():
  x = jnp.arange(3 * 69 * 2.0).reshape(3, 69, 2)
  rows = Rows(69)
  packed = rows.pack(x)
  assert len(packed) % rows.step == 0
  np.testing.assert_array_equal(rows.unpack(packed, 3), x)


def lines(monkeypatch):
  found = []
  monkeypatch.setattr(blocks, 'say', found.append)
  return found


def test_a_mesh_that_splits_heads_has_no_kernels(monkeypatch):
  found = lines(monkeypatch)
  net, _ = tiny.build()
  spec = on('pallas', net).specs[0]
  with jax.set_mesh(jax.make_mesh((4, 1, 2), sharding.AXES)):
    assert blocks.rows_of(spec, 4) is None
  assert 'mesh.tensor=1' in found[0]
  assert blocks.rows_of(spec, 4) is not None


def wide():
  """Level 0 of the 64x64 models."""
  net, _ = tiny.build()
  (spec, *_) = on('pallas', net).specs
  return dataclasses.replace(spec, width=1024, heads=16, dtype=jnp.bfloat16)


def test_a_small_chip_takes_fewer_rows_at_a_time(monkeypatch):
  found = lines(monkeypatch)
  spec = wide()
  assert blocks.rows_of(spec, 261).sequences == 2
  monkeypatch.setattr(calls, 'vmem_bytes', lambda: 64 << 20)
  assert blocks.rows_of(spec, 261).sequences == 1
  assert not found
  given = a_block(layers.ViTBlock, 9, 21, 32, 2, 0.1)
  few = Rows(21, most=1)  # sequences share tiles: 16 of them at least
  assert few.step == 16 * 21
  expected = block_and_gradients(*given)
  assert distance(block_and_gradients(*given, few), expected) < 1e-5


def test_an_mlp_that_does_not_fit_has_no_kernel(monkeypatch):
  """As in level 0 of 64x64 images on a v5p: sums of two cores in 64 MiB."""
  found = lines(monkeypatch)
  spec = wide()
  monkeypatch.setattr(calls, 'vmem_bytes', lambda: 64 << 20)
  monkeypatch.setattr(calls, 'cores', lambda: 2)
  rows = blocks.rows_of(spec, 261)
  assert rows.sequences == 1
  assert "level 0's MLP runs without a kernel: 261 tokens" in found[0]
  assert blocks.mlp_of(rows, 1024, jnp.bfloat16) is not mlp.mlp_half
  given = a_block(layers.ViTBlock, 60, 21, 32, 2, 0.1)
  expected = block_and_gradients(*given)
  monkeypatch.setattr(blocks, 'vmem', lambda *_: (0, 1 << 40))
  assert distance(block_and_gradients(*given, Rows(21)), expected) < 1e-5


def test_sequences_that_do_not_fit_have_no_kernels(monkeypatch):
  found = lines(monkeypatch)
  net, _ = tiny.build()
  spec = dataclasses.replace(on('pallas', net).specs[0], width=1024, heads=16)
  assert blocks.rows_of(spec, 261) is not None
  assert blocks.rows_of(spec, 4096) is None
  assert '4096 tokens' in found[0]


@pytest.mark.parametrize('rate', [0.1, 0.5, 2**-20, 1 - 2**-20])
def test_kernels_keep_what_dropout_keeps(rate):
  """All bits count: of 2^20 places some have the bound's upper half."""
  words = np.array([0x9E3779B9, 0x85EBCA6B], np.uint32)
  place = jnp.arange(2**20, dtype=jnp.int32)
  kept = values.kept(place, 7, jnp.asarray(words.view(np.int32)), rate)
  bits = hash_bits(place.astype(jnp.uint32) + 7 + words[0], words[1])
  np.testing.assert_array_equal(kept, bits >= np.uint32(round(rate * 2**32)))
  if rate == 0.1:
    assert np.any(np.asarray(bits) >> 16 == round(rate * 2**32) >> 16)


# Kernels prove themselves.


@pytest.fixture(autouse=True)
def untried():
  yield
  proof.first_problem.cache_clear()


def on_a_tpu(monkeypatch):
  """There `auto` tries kernels. Here they are interpreted."""
  monkeypatch.setattr(proof, 'on', lambda: 'tpu')
  return lines(monkeypatch)


def tried(kernels, kinds, **changes):
  """The field `kernels` of each level, on the devices of a run."""
  net = fractal.from_config(
    tiny.model(kinds, (4, 1), kernels=kernels, **changes)
  )
  return [s.kernels for s in proof.tried(net, kernels).specs]


def test_auto_takes_kernels_that_are_right(monkeypatch):
  found = on_a_tpu(monkeypatch)
  assert tried('auto', ('ar', 'pixel')) == ['pallas'] * 2
  assert not found


def test_auto_leaves_kernels_that_are_wrong_or_fail(monkeypatch):
  found = on_a_tpu(monkeypatch)
  right = attention.attention_half

  def wrong(how, params, x, words, turns=None):
    """Only its gradient, and only with dropout."""
    y = right(how, params, x, words, turns)
    return y + how.dropout * 0.1 * (x - jax.lax.stop_gradient(x))

  def fails(*args):
    raise NotImplementedError('no such operation\non this chip')

  def fails_silently(*args):
    raise NotImplementedError

  monkeypatch.setattr(attention, 'attention_half', wrong)
  monkeypatch.setattr(pixel_draw, 'pixel_draw', fails)
  assert tried('auto', ('mar', 'pixel'), dropout=0.1) == ['xla'] * 2
  assert 'level 0 runs without kernels: the attention half is wrong' in found[0]
  assert 'drawing pixels fails with NotImplementedError' in found[1]
  assert 'on this chip' not in found[1]  # one line
  proof.first_problem.cache_clear()
  monkeypatch.setattr(pixel_draw, 'pixel_draw', fails_silently)
  assert tried('auto', ('ar', 'pixel'), dropout=0.1)[1] == 'xla'


def test_all_processes_leave_what_fails_in_one(monkeypatch):
  found = on_a_tpu(monkeypatch)
  monkeypatch.setattr(proof, 'first_problem', lambda spec: '')
  assert tried('auto', ('ar', 'pixel')) == ['pallas'] * 2
  monkeypatch.setattr(proof, 'anywhere', lambda failed: [True, *failed[1:]])
  assert tried('auto', ('ar', 'pixel')) == ['xla', 'pallas']
  assert 'another process' in found[0]


def test_without_a_tpu_auto_has_no_kernels():
  assert tried('auto', ('ar', 'pixel')) == ['xla'] * 2
  assert tried('pallas', ('ar', 'pixel')) == ['pallas'] * 2
  assert tried('xla', ('ar', 'pixel')) == ['xla'] * 2
