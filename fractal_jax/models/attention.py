"""What attention and rotary positions compute, of arrays.

Axis letters: types.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fractal_jax import cpu
from fractal_jax.models.types import Array

# Accelerators pad products of matrices of so few entries, and are faster with
# elementwise operations, which XLA fuses (docs/performance.md).
FEW = 16


def rotary_angles(grid: tuple[int, ...], head_size: int) -> Array:
  """Cosines and sines [2, 1 + L, K/2] of the tokens (condition, patches).

  Each of the grid's axes turns an equal share of the K/2 pairs. Token 0, the
  condition, has cos = sin = 0, as the published weights were trained: its
  query and key vanish, so it is attended with logit 0.
  """
  share = head_size // 2 // len(grid)
  freqs = 10000.0 ** (-jnp.arange(share) / share)
  cells = jnp.stack(
    jnp.meshgrid(*map(jnp.arange, grid), indexing='ij'), -1
  ).reshape(-1, len(grid))  # [L, rank]
  angles = (cells[:, :, None] * freqs).reshape(len(cells), head_size // 2)
  turns = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
  return jnp.pad(turns, ((0, 0), (1, 0), (0, 0)))


def rotate(x: Array, turns: Array) -> Array:
  """Turns the neighbouring pairs of x [N, T, H, K] by turns [2, T, K/2]."""
  cos, sin = turns[0][:, None], turns[1][:, None]  # [T, 1, K/2]
  a, b = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
  out = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
  return out.reshape(x.shape).astype(x.dtype)


def attend(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None = None,
  drop: Callable[[Array], Array] | None = None,
) -> Array:
  """softmax(q k / sqrt(K)) v: [N, T, H, K], [N, S, H, K] to [N, T, H, K].

  Logits and softmax in float32. mask [T, S] is True where q may see k; `drop`
  is applied to the weights. Sequences are at most a few hundred tokens, where
  plain attention is a few percent of the FLOPs and no kernel pays.
  """
  few = q.shape[1] * k.shape[1] <= FEW and not cpu.is_target()
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [N, H, ., K]
  logits = (few_by_few if few else logits_of)(q, k) * q.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits).astype(q.dtype)
  if drop is not None:
    weights = drop(weights)
  if few:
    out = few_by_few(weights, jnp.swapaxes(v, 2, 3)).astype(v.dtype)
  else:
    out = jnp.einsum('nhts,nhsk->nhtk', weights, v)
  return jnp.swapaxes(out, 1, 2)


def few_by_few(a: Array, b: Array) -> Array:
  """a [N, H, T, K] times b [N, H, S, K] transposed: [N, H, T, S], float32."""
  a, b = a[..., :, None, :], b[..., None, :, :]
  return (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(-1)


@jax.custom_vjp
def logits_of(q: Array, k: Array) -> Array:
  """q [N, H, T, K] times k [N, H, S, K] transposed: [N, H, T, S], float32.

  Its gradient is rounded to q's dtype before it is multiplied on: TPUs round
  it there anyway, and a GPU moves half as much.
  """
  f32 = jnp.float32
  return jnp.einsum('nhtk,nhsk->nhts', q, k, preferred_element_type=f32)


def _logits_backward(saved: tuple[Array, Array], g: Array):
  q, k = saved
  g = g.astype(q.dtype)
  by_q = jnp.einsum('nhts,nhsk->nhtk', g, k)
  return by_q, jnp.einsum('nhts,nhtk->nhsk', g, q)


logits_of.defvjp(lambda q, k: (logits_of(q, k), (q, k)), _logits_backward)
