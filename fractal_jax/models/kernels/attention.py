"""The attention half of a block: x + drop(proj(attend(qkv(norm(x))))).

On rows [M, D] (see geometry.py), in one kernel forward and one backward: HBM
sees x and the result alone. Neither an axis of heads nor one of 3 reaches it.

Logits lie transposed, [keys, queries], so that the softmax's maxima and sums
run over sublanes, which is cheap, rather than over lanes. Heads smaller than
128 lanes share them: products take all lanes, of which the other heads' are
zeroed on one side. A mask keeps the sequences of a tile apart.

The backward kernel computes everything again from x.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from fractal_jax.models.dropout import drop_out
from fractal_jax.models.kernels import calls, geometry, values
from fractal_jax.models.kernels.values import F32, at, chunk, dot, over
from fractal_jax.models.types import Array


@dataclasses.dataclass(frozen=True)
class How:
  """What is static of an attention half."""

  rows: geometry.Rows
  heads: int
  causal: bool
  weight_dropout: float
  dropout: float  # after the projection
  dtype: Any


def attention_half(
  how: How, params: dict, x: Array, words: Array, turns: Array | None = None
) -> Array:
  """The half block by its kernels.

  Args:
    how: sizes and structure.
    params: a block's `norm1` and `attention`, as flax has them.
    x: [M, D] rows in how.dtype, whole grid steps of how.rows.
    words: [4] int32, the random words of the dropout of attention weights, and
      of that of the output.
    turns: [2, T, K/2] rotary angles, or None.

  Returns:
    [M, D]. Rows that only pad hold anything finite.
  """
  consts = {}
  consts['bias'], place = how.rows.masks(how.heads, how.causal)
  if how.weight_dropout:
    consts['place'] = place
  if turns is not None:
    unit, _ = _heads(how, x.shape[1])
    consts['turns'] = how.rows.turns(turns, unit)
  return _half(how, params, x, words, consts)


def vmem(how: How, width: int) -> int:
  """About how many bytes of VMEM the backward kernel needs."""
  size = jnp.dtype(how.dtype).itemsize
  weights = 4 * width**2 * (size + calls.sum_bytes())
  # x, the gradients by it and by the output, two buffers each; scratch; values.
  per_row = width * (6 * size + 4 * size + 5 * 4)
  masks = how.rows.step * max(how.rows.padded, values.LANES) * 8
  return weights + how.rows.step * per_row + masks


def _heads(how, width):
  return geometry.head_lanes(width, width // how.heads)


def _forward(how, p, x, words, consts):
  return calls.blocks(
    functools.partial(_forward_kernel, how),
    'attention_forward',
    words,
    x,
    (p, consts),
    step=how.rows.step,
    outs=jax.ShapeDtypeStruct(x.shape, x.dtype),
    scratch=scratch(how, x.shape[1]),
  )


def scratch(
  how: How, d: int
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Memory of a step: queries, keys and values; and what heads give."""
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=how.dtype)
  return shape((3, how.rows.step, d)), shape((how.rows.step, d))


def _backward(how, p, x, words, consts, g):
  by_x, by_p = calls.blocks(
    functools.partial(_backward_kernel, how),
    'attention_backward',
    words,
    (x, g),
    (p, consts),
    step=how.rows.step,
    outs=jax.ShapeDtypeStruct(x.shape, x.dtype),
    sums=p,
    scratch=scratch(how, x.shape[1]),
  )
  return by_p, by_x


_half = calls.with_gradient(_forward, _backward)


def read(tree: dict) -> dict:
  """The small arrays behind references: norms and biases."""
  return jax.tree.map(lambda ref: ref[...], tree)


def _forward_kernel(how, words, x, resident, out, _, scratch):
  p, consts = resident
  qkv, mixed = scratch
  d = x.shape[1]
  unit, heads = _heads(how, d)
  first = calls.block_number() * how.rows.sequences
  w = [words[i] for i in range(4)]
  y = values.norm(x[...].astype(F32), read(p['norm1'])).astype(how.dtype)
  _project(how, p['attention'], y, qkv, consts)

  def mix(c):
    q, k, v = (qkv[i, :, at(c, unit)] for i in range(3))
    drop = _weight_drop(how, consts, w, first, c * len(heads))
    got = _attend(how, q, k, v, heads, consts['bias'], drop)
    mixed[:, at(c, unit)] = got.astype(how.dtype)

  over(d // unit, mix)
  a = mixed[...]
  proj = p['attention']['proj']
  size = chunk(d)

  def project(j):
    y = dot(a, proj['kernel'][:, at(j, size)], 1, 0)
    if 'bias' in proj:
      y += proj['bias'][:, at(j, size)]
    y = values.drop(y, w[2:], how.dropout, how.rows, first, j * size, d)
    y += x[:, at(j, size)].astype(F32)
    out[:, at(j, size)] = y.astype(out.dtype)

  over(d // size, project)


def _backward_kernel(how, words, rows, resident, by_x, grads, scratch):
  (x, g), (p, consts) = rows, resident
  qkv, mixed = scratch  # then their gradients
  d = x.shape[1]
  unit, heads = _heads(how, d)
  first = calls.block_number() * how.rows.sequences
  w = [words[i] for i in range(4)]
  attention, by = p['attention'], grads['attention']
  size = chunk(d)

  y, norm_vjp = jax.vjp(values.norm, x[...].astype(F32), read(p['norm1']))
  y = y.astype(how.dtype)
  _project(how, attention, y, qkv, consts)
  by_out = values.drop(g[...].astype(F32), w[2:], how.dropout, how.rows, first)
  if 'bias' in attention['proj']:
    by['proj']['bias'][...] += jnp.sum(by_out, 0, keepdims=True)
  by_out = by_out.astype(how.dtype)

  def project(j):  # the gradient by what is projected
    kernel = attention['proj']['kernel'][at(j, size), :]
    mixed[:, at(j, size)] = dot(by_out, kernel, 1, 1).astype(how.dtype)

  over(d // size, project)

  def mix(c):
    q, k, v = (qkv[i, :, at(c, unit)] for i in range(3))
    drop = _weight_drop(how, consts, w, first, c * len(heads))
    by_mixed = mixed[:, at(c, unit)]
    got = _attend(how, q, k, v, heads, consts['bias'], drop, by_mixed)
    *by_qkv, out = got
    for i, z in enumerate(by_qkv):
      if 'turns' in consts and i < 2:
        z = _rotate(z, consts['turns'][0], -consts['turns'][1])
      qkv[i, :, at(c, unit)] = z.astype(how.dtype)
    mixed[:, at(c, unit)] = out.astype(how.dtype)

  over(d // unit, mix)

  def by_kernel(j):
    a = mixed[:, at(j, size)]
    by['proj']['kernel'][at(j, size), :] += dot(a, by_out, 0, 0)

  over(d // size, by_kernel)

  by_y = _projected_back(attention, by, y, qkv, size)
  add_norm_gradients(norm_vjp, by_y, g, by_x, grads['norm1'])


def add_norm_gradients(
  norm_vjp: Callable[[Array], tuple[Array, dict]],
  by_y: Array,
  g: jax.Ref,
  by_x: jax.Ref,
  grads: dict,
) -> None:
  """What passes back through a half block's norm, and past it."""
  by_input, by_norm = norm_vjp(by_y)
  by_x[...] = (g[...].astype(F32) + by_input).astype(by_x.dtype)
  for name, value in by_norm.items():
    grads[name][...] += value


def _project(how, p, y, qkv, consts):
  """Fills qkv [3, R, D] with queries, keys and values of y [R, D]."""
  d = y.shape[1]
  unit, _ = _heads(how, d)
  size = chunk(d)
  size = size if size % unit == 0 else d
  for i in range(3):

    def one(j, i=i):
      z = dot(y, p['qkv'][i, :, at(j, size)], 1, 0)
      if 'qkv_bias' in p:
        z += p['qkv_bias'][i, :, at(j, size)]
      if 'turns' in consts and i < 2:
        cos, sin = consts['turns'][0], consts['turns'][1]
        units = [z[:, at(k, unit)] for k in range(size // unit)]
        z = jnp.concatenate([_rotate(u, cos, sin) for u in units], 1)
      qkv[i, :, at(j, size)] = z.astype(how.dtype)

    over(d // size, one)


def _projected_back(p, by, y, by_qkv, size):
  """The gradient by y [R, D] of `_project`; adds those by its weights."""

  def one(j, by_y, i):
    z = by_qkv[i, :, at(j, size)]
    by['qkv'][i, :, at(j, size)] += dot(y, z, 0, 0)
    if 'qkv_bias' in by:
      total = jnp.sum(z.astype(F32), 0, keepdims=True)
      by['qkv_bias'][i, :, at(j, size)] += total
    return by_y + dot(z, p['qkv'][i, :, at(j, size)], 1, 1)

  by_y, steps = jnp.zeros(y.shape, F32), y.shape[1] // size
  for i in range(3):
    by_y = jax.lax.fori_loop(0, steps, functools.partial(one, i=i), by_y)
  return by_y


def _rotate(x, cos, sin):
  """Turns the neighbouring pairs of lanes of x [R, U] float32."""
  n = x.shape[1]
  even = jax.lax.rem(values.iota(x.shape, 1), 2) == 0
  partner = jnp.where(even, pltpu.roll(x, n - 1, 1), pltpu.roll(x, 1, 1))
  return x * cos + partner * sin


def _weight_drop(how, consts, words, first, head):
  """(tile, h, shape) to which weights stay, of heads counted from `head`."""
  rate = how.weight_dropout
  if not rate:
    return None
  real = how.rows.tokens

  def drop(i, h, shape):
    place = consts['place'][i, : shape[0], : shape[1]]
    start = (first * how.heads + head + h) * (real * real)
    return values.kept(place, start, words, rate)

  return drop


def _only(x, first, size):
  """x [R, lanes] with the lanes of one head alone."""
  if size == x.shape[1]:
    return x
  lane = values.iota(x.shape, 1)
  mine = (lane >= first) & (lane < first + size)
  return jnp.where(mine, x, jnp.zeros_like(x))


def _attend(how, q, k, v, heads, bias, drop, by_out=None):
  """Attention of the heads of one unit of lanes.

  Args:
    how: sizes and structure.
    q, k, v: [R, U] in how.dtype.
    heads: as head_lanes has them.
    bias: reference to the tiles' masks.
    drop: see `_weight_drop`.
    by_out: the gradient by the output, [R, U], if gradients are wanted.

  Returns:
    The output [R, U] float32; or, with by_out, the gradients by q, k and v,
    and the output.
  """
  rows, unit = q.shape
  size = unit // len(heads)
  scale = size**-0.5
  rescale = values.scale_of(how.weight_dropout)
  lanes = functools.partial(values.pieces, size=unit, axis=1)
  by_tile = []
  for i, (q0, q1, k0, k1) in enumerate(how.rows.tiles(how.causal)):
    mask = bias[i, : k1 - k0, : q1 - q0]
    found = []
    for h, (a, b, first) in enumerate(heads):
      only = functools.partial(_only, first=first, size=size)
      qt, kt, vt = q[q0:q1, a:b], k[k0:k1, a:b], v[k0:k1, a:b]
      weights = _softmax(qt, only(kt), mask, scale)  # [keys, queries]
      dropped = weights
      if drop is not None:
        keep = drop(i, h, weights.shape)
        dropped = jnp.where(keep, weights * rescale, 0.0)
      dropped = dropped.astype(how.dtype)
      out = dot(dropped, only(vt), 0, 0)  # [queries, lanes]
      if by_out is None:
        found.append([(a, b, out)])
        continue
      by_o = only(by_out[q0:q1, a:b])
      by_w = dot(vt, by_o, 1, 1)
      if drop is not None:
        by_w = jnp.where(keep, by_w * rescale, 0.0)
      by_w -= jnp.sum(weights * by_w, 0, keepdims=True)
      by_logits = (weights * by_w * scale).astype(how.dtype)
      by_q = dot(by_logits, only(kt), 0, 0)
      by_k = dot(by_logits, only(qt), 1, 0)
      by_v = dot(dropped, by_o, 1, 0)
      found.append([(a, b, z) for z in (by_q, by_k, by_v, out)])
    by_tile.append([lanes(parts) for parts in zip(*found)])
  spans = [
    ((q0, q1), (k0, k1)) for q0, q1, k0, k1 in how.rows.tiles(how.causal)
  ]

  def join(i, side):
    parts = [(*span[side], z[i]) for span, z in zip(spans, by_tile)]
    return values.pieces(parts, rows, 0)

  if by_out is None:
    return join(0, 0)
  return join(0, 0), join(1, 1), join(2, 1), join(3, 0)


def _softmax(q, k, mask, scale):
  """Weights [keys, queries], float32, of queries and keys [., lanes]."""
  # In powers of two, which is what the chip has.
  logits = dot(k, q, 1, 1) * np.float32(scale * np.log2(np.e)) + mask
  e = jnp.exp2(logits - jnp.max(logits, 0, keepdims=True))
  return e * (1 / jnp.sum(e, 0, keepdims=True))


def xla(
  how: How, params: dict, x: Array, words: Array, turns: Array | None = None
) -> Array:
  """`attention_half` without kernels: what these must agree with."""
  rows, d = how.rows, x.shape[1]
  n, t = len(x) // rows.padded, rows.tokens
  p = calls.laid_out(params, how.dtype)
  attention, proj = p['attention'], p['attention']['proj']
  x = rows.unpack(x, n).reshape(-1, d)
  y = values.norm(x.astype(F32), p['norm1'])
  q, k, v = (values.linear(y, w) for w in attention['qkv'])
  if 'qkv_bias' in attention:
    q, k, v = (z + b for z, b in zip((q, k, v), attention['qkv_bias']))
  q, k, v = (z.reshape(n, t, how.heads, -1) for z in (q, k, v))
  if turns is not None:
    cos, sin = (jnp.repeat(z, 2, -1)[:t, None] for z in turns)
    sin *= jnp.where(jnp.arange(sin.shape[-1]) % 2, 1, -1)
    partner = lambda z: z.reshape(*z.shape[:-1], -1, 2)[..., ::-1]
    q, k = (z * cos + partner(z).reshape(z.shape) * sin for z in (q, k))
  q, k, v = (z.astype(how.dtype) for z in (q, k, v))
  logits = jnp.einsum('nthk,nshk->nhts', q, k, preferred_element_type=F32)
  logits *= q.shape[-1] ** -0.5
  if how.causal:
    logits = jnp.where(jnp.tri(t, dtype=bool), logits, geometry.MASKED)
  weights = jax.nn.softmax(logits)
  words = words.astype(jnp.uint32)
  if how.weight_dropout:
    weights = drop_out(weights, words[:2], how.weight_dropout)
  out = jnp.einsum('nhts,nshk->nthk', weights.astype(how.dtype), v)
  out = values.linear(out.reshape(-1, d).astype(F32), proj['kernel'])
  if 'bias' in proj:
    out += proj['bias']
  if how.dropout:
    out = drop_out(out, words[2:], how.dropout)
  out = (x.astype(F32) + out).astype(x.dtype)
  return rows.pack(out.reshape(n, t, d))
