"""The MLP half of a block: x + drop(mlp(norm(x))), GELU or SwiGLU.

On rows [M, D] (see geometry.py), in one kernel forward and one backward, which
computes everything again from x. The hidden layer is taken some columns at a
time, and its [M, 4 D] values never leave VMEM.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fractal_jax.models.dropout import drop_out
from fractal_jax.models.kernels import calls, geometry, values
from fractal_jax.models.kernels.attention import add_norm_gradients, read
from fractal_jax.models.kernels.values import F32, at, chunk
from fractal_jax.models.types import Array


@dataclasses.dataclass(frozen=True)
class How:
  """What is static of an MLP half."""

  rows: geometry.Rows
  hidden_dropout: float
  dropout: float  # of the output
  dtype: Any


def mlp_half(how: How, params: dict, x: Array, words: Array) -> Array:
  """The half block by its kernels.

  Args:
    how: sizes and structure.
    params: a block's `norm2`, and its `fc1` and `fc2` (GELU, biases) or `w1`,
      `w2` and `w3` (SwiGLU), as flax has them.
    x: [M, D] rows in how.dtype, whole grid steps of how.rows.
    words: [4] int32, the random words of the dropout of the hidden layer, and
      of that of the output.

  Returns:
    [M, D].
  """
  return _half(how, params, x, words)


def vmem(how: How, weights: int, width: int, rows: int) -> int:
  """About how many bytes of VMEM the backward kernel needs.

  Args:
    how: sizes and structure.
    weights: how many numbers the matrices have.
    width: D.
    rows: of a grid step.
  """
  size = jnp.dtype(how.dtype).itemsize
  # x, the gradients by it and by the output, two buffers each; values, also of
  # some hidden columns.
  return weights * (size + calls.sum_bytes()) + rows * (
    width * (6 * size + 24) + 640 * 20
  )


def _sequences(how, p, x):
  """Sequences per grid step: as many of attention's steps as fit in one.

  What a step reads and adds of the weights' gradients is shared by its rows.
  """
  steps = len(x) // how.rows.step
  weights = sum(z.size for z in jax.tree.leaves(p))

  def fits(n):
    rows = n * how.rows.step
    need = vmem(how, weights, x.shape[1], rows)
    return rows <= geometry.MOST and calls.fits(need)

  sizes = [n for n in range(1, steps + 1) if steps % n == 0 and fits(n)]
  return how.rows.sequences * max(sizes, default=1)


def _forward(how, p, x, words):
  n = _sequences(how, p, x)
  return calls.blocks(
    functools.partial(_forward_kernel, how, n),
    'mlp_forward',
    words,
    x,
    p,
    step=n * how.rows.padded,
    outs=jax.ShapeDtypeStruct(x.shape, x.dtype),
  )


def _backward(how, p, x, words, g):
  n = _sequences(how, p, x)
  by_x, by_p = calls.blocks(
    functools.partial(_backward_kernel, how, n),
    'mlp_backward',
    words,
    (x, g),
    p,
    step=n * how.rows.padded,
    outs=jax.ShapeDtypeStruct(x.shape, x.dtype),
    sums=p,
  )
  return by_p, by_x


_half = calls.with_gradient(_forward, _backward)


def columns(p: dict, j: int | Array, size: int) -> dict:
  """The part of the matrices that makes hidden columns j size .. ."""
  at_j = at(j, size)
  if 'w3' in p:
    inner = {k: {'kernel': p[k]['kernel'][:, at_j]} for k in ('w1', 'w3')}
    return {**inner, 'w2': {'kernel': p['w2']['kernel'][at_j, :]}}
  fc1 = {k: p['fc1'][k][:, at_j] for k in ('kernel', 'bias')}
  return {'fc1': fc1, 'fc2': {'kernel': p['fc2']['kernel'][at_j, :]}}


def hidden_width(p: dict) -> int:
  """How many hidden units the block's MLP has."""
  return (p['w1'] if 'w3' in p else p['fc1'])['kernel'].shape[1]


def mix(
  p: dict, y: Array, drop: Callable[[Array], Array], dtype: jnp.dtype
) -> Array:
  """What some hidden columns add to the output, [R, D], without its bias.

  `drop` acts on the hidden values.
  """
  if 'w3' in p:
    gate = values.linear(y, p['w1']['kernel'])
    h = gate * jax.nn.sigmoid(gate) * values.linear(y, p['w3']['kernel'])
    return values.linear(h, p['w2']['kernel'])
  h = values.linear(y, p['fc1']['kernel'])
  h = values.gelu(values.add_row(h, p['fc1']['bias']), dtype)
  return values.linear(drop(h), p['fc2']['kernel'])


def _mix(how, words, first, j, size, width):
  """`mix` of the j-th columns, with dropout: a function of (columns, y).

  To be multiplied by what dropout scales hidden values by.
  """

  def drop(h):
    rate = how.hidden_dropout
    return values.mask(h, words[:2], rate, how.rows, first, j * size, width)

  return lambda p, y: mix(p, y, drop, how.dtype)


def _loop(n, body, start, unroll):
  if not unroll:
    return jax.lax.fori_loop(0, n, body, start)
  for j in range(n):
    start = body(j, start)
  return start


def _forward_kernel(how, sequences, words, x, p, out, *_):
  first = calls.block_number() * sequences
  w = [words[i] for i in range(4)]
  y = values.norm(x[...].astype(F32), read(p['norm2']))
  width = hidden_width(p)
  size = chunk(width)

  def body(j, total):
    f = _mix(how, w, first, j, size, width)
    return total + f(columns(p, j, size), y)

  zero = jnp.zeros(x.shape, F32)
  z = _loop(width // size, body, zero, width // size <= 4)
  if how.hidden_dropout:
    z *= values.scale_of(how.hidden_dropout)
  if 'fc2' in p:
    z += p['fc2']['bias'][...]
  z = values.drop(z, w[2:], how.dropout, how.rows, first)
  out[...] = (x[...].astype(F32) + z).astype(out.dtype)


def _backward_kernel(how, sequences, words, rows, p, by_x, grads, *_):
  x, g = rows
  first = calls.block_number() * sequences
  w = [words[i] for i in range(4)]
  y, norm_vjp = jax.vjp(values.norm, x[...].astype(F32), read(p['norm2']))
  by_out = values.drop(g[...].astype(F32), w[2:], how.dropout, how.rows, first)
  if 'fc2' in p:
    grads['fc2']['bias'][...] += jnp.sum(by_out, 0, keepdims=True)
  if how.hidden_dropout:
    by_out *= values.scale_of(how.hidden_dropout)
  by_out, y = (z.astype(how.dtype).astype(F32) for z in (by_out, y))
  width = hidden_width(p)
  size = chunk(width)

  def body(j, by_y):
    f = _mix(how, w, first, j, size, width)
    _, vjp = jax.vjp(f, columns(p, j, size), y)
    by_columns, by_y_here = vjp(by_out)
    for name, by in by_columns.items():
      for leaf, value in by.items():
        where = at(j, size)
        rows_are_hidden = name in ('fc2', 'w2')
        index = (where, slice(None)) if rows_are_hidden else (..., where)
        grads[name][leaf][index] += value
    return by_y + by_y_here

  by_y = _loop(width // size, body, jnp.zeros(x.shape, F32), False)
  add_norm_gradients(norm_vjp, by_y, g, by_x, grads['norm2'])


def xla(how: How, params: dict, x: Array, words: Array) -> Array:
  """`mlp_half` without kernels: what these must agree with."""
  rows, d = how.rows, x.shape[1]
  n, t = len(x) // rows.padded, rows.tokens
  p = calls.laid_out(params, how.dtype)
  x = rows.unpack(x, n).reshape(-1, d)
  words = words.astype(jnp.uint32)

  def drop(x, words, rate):
    return drop_out(x, words, rate) if rate else x

  z = mix(
    p,
    values.norm(x.astype(F32), p['norm2']),
    lambda h: drop(h, words[:2], how.hidden_dropout),
    how.dtype,
  )
  if 'fc2' in p:
    z += p['fc2']['bias']
  z = x.astype(F32) + drop(z, words[2:], how.dropout)
  return rows.pack(z.astype(x.dtype).reshape(n, t, d))
