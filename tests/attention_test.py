"""Attention and rotary positions against literal transcriptions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import cpu
from fractal_jax.models import attention


def literal_angles(grid, head):
  """model.md, "2D rotary embedding", one number at a time: [1 + L, K/2]."""
  axes, share = len(grid), head // 2 // len(grid)
  out = []
  for cell in np.ndindex(grid):
    row = []
    for axis in range(axes):
      for i in range(share):
        # For images: 10000^(-2i / (d/2)), d/4 of them for each axis.
        row.append(cell[axis] * 10000.0 ** (-2 * i / (head / axes)))
    out.append(row)
  return np.array(out)


@pytest.mark.parametrize('grid, head', [((3, 3), 8), ((5,), 8), ((2, 2), 16)])
def test_rotary_angles(grid, head):
  turns = np.asarray(attention.rotary_angles(grid, head))
  assert turns.shape == (2, 1 + np.prod(grid), head // 2)
  np.testing.assert_array_equal(turns[:, 0], 0)  # the condition
  angles = literal_angles(grid, head)
  np.testing.assert_allclose(turns[0, 1:], np.cos(angles), atol=1e-6)
  np.testing.assert_allclose(turns[1, 1:], np.sin(angles), atol=1e-6)


def test_rotation_turns_neighbouring_pairs():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 10, 3, 8), np.float32)
  turns = attention.rotary_angles((3, 3), 8)
  out = np.asarray(attention.rotate(jnp.asarray(x), turns))
  pairs = x[..., 0::2] + 1j * x[..., 1::2]
  turned = pairs[:, 1:] * np.exp(1j * literal_angles((3, 3), 8))[:, None]
  np.testing.assert_allclose(out[:, 1:, :, 0::2], turned.real, atol=1e-5)
  np.testing.assert_allclose(out[:, 1:, :, 1::2], turned.imag, atol=1e-5)
  np.testing.assert_array_equal(out[:, 0], 0)


@pytest.mark.parametrize('grid, head', [((4, 4), 8), ((6,), 4)])
def test_rotary_positions_are_relative(grid, head):
  """q k depends on how far apart two cells are, not on where they are."""
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, head)).astype(np.float32)
  turns = attention.rotary_angles(grid, head)
  length = int(np.prod(grid))
  same = lambda x: jnp.broadcast_to(x, (1, 1 + length, 1, head))
  qs, ks = (attention.rotate(same(x), turns)[0, 1:, 0] for x in (q, k))
  products = np.asarray(qs @ ks.T)  # [L, L]
  by_offset = {}
  cells = list(np.ndindex(grid))
  for i, a in enumerate(cells):
    for j, b in enumerate(cells):
      offset = tuple(np.subtract(a, b))
      by_offset.setdefault(offset, []).append(products[i, j])
  for values in by_offset.values():
    np.testing.assert_allclose(values, values[0], atol=1e-4)
  means = [v[0] for v in by_offset.values()]
  assert np.ptp(means) > 0.1  # and it does depend on that


def test_attention_logits_are_float32():
  """In bfloat16 these two logits, 256 and 257, would be one."""
  q = jnp.array([16.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
  k = jnp.array([[16.0, 0.0], [16.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
  v = jnp.array([[1.0, 0.0], [0.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
  out = attention.attend(q, k, v)[0, 0, 0].astype(jnp.float32)
  want = jax.nn.softmax(jnp.array([256.0, 257.0]) / 2**0.5)
  np.testing.assert_allclose(out, want, atol=4e-3)
  assert out.dtype == jnp.float32 and abs(out[0] - out[1]) > 0.3


@pytest.fixture(params=['as on a CPU', 'as on an accelerator'])
def platform(request, monkeypatch):
  on_cpu = request.param == 'as on a CPU'
  monkeypatch.setattr(cpu, 'is_target', lambda: on_cpu)


@pytest.mark.usefixtures('platform')
def test_attention_literally():
  assert 4 * 4 <= attention.FEW
  rng = np.random.default_rng(0)
  q, k, v = rng.standard_normal((3, 2, 4, 3, 5)).astype(np.float32)
  out = attention.attend(q, k, v, np.tri(4, dtype=bool))
  for n, t, h in np.ndindex(2, 4, 3):
    logits = [q[n, t, h] @ k[n, s, h] / 5**0.5 for s in range(t + 1)]
    weights = np.exp(logits) / np.exp(logits).sum()
    want = sum(w * v[n, s, h] for s, w in enumerate(weights))
    np.testing.assert_allclose(out[n, t, h], want, atol=1e-5)


@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 1e-5), ('bfloat16', 0.03)]
)
@pytest.mark.parametrize('queries, keys', [(3, 3), (1, 5), (5, 5)])
@pytest.mark.usefixtures('platform')
def test_gradients_of_attention(queries, keys, dtype, tolerance):
  """As of the formula in float32, whatever the form and the dtype."""
  rng = np.random.default_rng(0)
  shapes = (2, queries, 2, 8), (2, keys, 2, 8), (2, keys, 2, 8)
  arrays = [jnp.asarray(rng.standard_normal(x), dtype) for x in shapes]
  mask = np.tri(queries, keys, keys - queries, dtype=bool)
  kept = rng.random((2, 2, queries, keys)) < 0.8
  drop = lambda w: jnp.where(kept, w / 0.8, 0).astype(w.dtype)
  g = rng.standard_normal(shapes[0])

  def plain(q, k, v):
    logits = jnp.einsum('nthk,nshk->nhts', q, k) / 8**0.5
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30))
    return jnp.einsum('nhts,nshk->nthk', drop(weights), v)

  def gradients(f, arrays):
    sums = lambda *x: (g * f(*x).astype(jnp.float32)).sum()
    return jax.tree.map(
      lambda x: x.astype(jnp.float32), jax.grad(sums, (0, 1, 2))(*arrays)
    )

  ours = gradients(lambda *x: attention.attend(*x, mask, drop), arrays)
  want = gradients(plain, [x.astype(jnp.float32) for x in arrays])
  chex.assert_trees_all_close(ours, want, atol=tolerance)
