"""The whole pixel level: conditions [N, Dc] and values [N, C] to nats [N, C].

One kernel forward, one backward. All parameters lie in VMEM, and a grid step
takes some pixels through all layers: HBM sees conditions, values and nats
alone.

Tokens are channel-major, [C R, D], so that attention over C tokens is
elementwise: the logits of two tokens are the products of their lanes, summed
over each head's lanes by a product with a block-diagonal matrix of ones, which
leaves the sum in all of these lanes.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fractal_jax.models.kernels import calls, mlp, values
from fractal_jax.models.kernels.values import F32, add_row, linear
from fractal_jax.models.types import Array

ROWS = 128  # pixels of a grid step
PARTS = ('qkv', 'qkv_bias', 'codebooks', 'logit_bias')  # read part by part


@dataclasses.dataclass(frozen=True)
class How:
  """What is static of a pixel level."""

  depth: int
  heads: int
  dtype: Any


def pixel_nats(how: How, params: dict, conds: Array, pixels: Array) -> Array:
  """-log p of pixels by the kernels.

  Args:
    how: sizes.
    params: of a PixelLevel, as flax has them.
    conds: [N, Dc] in how.dtype.
    pixels: [N, C] integers.

  Returns:
    [N, C] float32.
  """
  n = len(conds)
  conds, pixels = (
    jnp.pad(x, ((0, -n % step_of(n)), (0, 0))) for x in (conds, pixels)
  )
  return _nats(how, params, conds, pixels.astype(jnp.int32))[:n]


def step_of(n: int) -> int:
  """Pixels of a grid step."""
  return min(ROWS, -(-n // 8) * 8)


NO_SCALARS = functools.partial(jnp.zeros, 1, jnp.int32)


def _forward(how, p, conds, pixels):
  return calls.blocks(
    functools.partial(_forward_kernel, how),
    'pixel_forward',
    NO_SCALARS(),
    (conds, pixels),
    p,
    step=step_of(len(conds)),
    outs=jax.ShapeDtypeStruct(pixels.shape, F32),
  )


def _backward(how, p, conds, pixels, g):
  channels, step = pixels.shape[1], step_of(len(conds))
  width = p['norm_in']['scale'].shape[-1]
  by_conds, by_p = calls.blocks(
    functools.partial(_backward_kernel, how),
    'pixel_backward',
    NO_SCALARS(),
    (conds, pixels, g),
    p,
    step=step,
    outs=jax.ShapeDtypeStruct(conds.shape, conds.dtype),
    sums=p,
    scratch=[
      jax.ShapeDtypeStruct((how.depth + 1, channels * step, width), F32)
    ],
  )
  return by_p, by_conds


_nats = calls.with_gradient(_forward, _backward)


# What the kernels compute, of values in VMEM.


def read(refs: dict, i: int | None = None) -> dict:
  """Parameters behind references; of layer i, where these are stacked."""
  at = () if i is None else (i,)

  def one(path, ref):
    if path[-1].key in PARTS:
      return tuple(ref[(*at, j)] for j in range(ref.shape[len(at)]))
    return ref[at] if at else ref[...]

  return jax.tree_util.tree_map_with_path(one, refs)


def outer(p: dict) -> dict:
  """The parameters that are not of a layer."""
  return {k: v for k, v in p.items() if k != 'blocks'}


def attend(
  how: How, q: Array, k: Sequence[Array], v: Sequence[Array], ones: Array
) -> Array:
  """One token's [R, D] attention to earlier ones and itself, lists k and v."""
  if len(k) == 1:
    return v[0]
  scale = (q.shape[1] // how.heads) ** -0.5
  logits = [linear(q * x, ones) * scale for x in k]
  top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
  weights = [jnp.exp(x - top) for x in logits]
  total = functools.reduce(jnp.add, weights)
  out = functools.reduce(jnp.add, [w * x for w, x in zip(weights, v)])
  return out / total


def head_ones(how: How, width: int) -> Array:
  """[D, D], 1 where two lanes are of one head."""
  size = width // how.heads
  a, b = (jax.lax.div(values.iota((width, width), i), size) for i in (0, 1))
  return (a == b).astype(F32).astype(how.dtype)


def qkv_of(how: How, p: dict, x: Array) -> list[Array]:
  """Queries, keys and values of tokens [R, D]."""
  del how
  y, p = values.norm(x, p['norm1']), p['attention']
  return [add_row(linear(y, w), b) for w, b in zip(p['qkv'], p['qkv_bias'])]


def after_attention(how: How, p: dict, x: Array, mixed: Array) -> Array:
  """The rest of a block."""
  x += dense(p['attention']['proj'], mixed)
  y = mlp.mix(p, values.norm(x, p['norm2']), lambda h: h, how.dtype)
  return x + add_row(y, p['fc2']['bias'])


def dense(p: dict, x: Array) -> Array:
  """A dense layer on rows [R, D]."""
  return add_row(linear(x, p['kernel']), p['bias'])


def layer(how: How, channels: int, ones: Array, p: dict, x: Array) -> Array:
  """A ViTBlock on tokens [C R, D]."""
  q, k, v = (values.split(z, channels, 0) for z in qkv_of(how, p, x))
  mixed = [
    attend(how, q[t], k[: t + 1], v[: t + 1], ones) for t in range(channels)
  ]
  return after_attention(how, p, x, jnp.concatenate(mixed, 0))


def embed(p: dict, conds: Array, hot: list[Array]) -> Array:
  """Tokens [C R, D] of conditions [R, Dc] and one-hot values, C of [R, V]."""
  x = [dense(p['cond_embed'], conds)]
  x += [linear(h, book) for h, book in zip(hot[:-1], p['codebooks'])]
  return values.norm(jnp.concatenate(x, 0), p['norm_in'])


def logits_of(p: dict, x: Array, channel: int) -> Array:
  """An output [R, D] to its channel's logits [R, V]."""
  z = linear(x, p['codebooks'][channel], 1)
  return add_row(z, p['logit_bias'][channel])


def nats_of(p: dict, x: Array, hot: list[Array]) -> list[Array]:
  """Outputs [C R, D] to nats, C of [R, 1]."""
  x = values.split(values.norm(x, p['norm_out']), len(hot), 0)
  out = []
  for k, h in enumerate(hot):
    z = logits_of(p, x[k], k)
    top = jax.lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    total = jnp.sum(jnp.exp(z - top), -1, keepdims=True)
    out.append(top + jnp.log(total) - jnp.sum(z * h, -1, keepdims=True))
  return out


def one_hot(pixels: Array, channel: int, v: int) -> Array:
  """The values [R, C] of one channel as [R, V]."""
  n = pixels.shape[0]
  at = pixels[:, channel : channel + 1]
  return (at == values.iota((n, v), 1)).astype(F32)


def _given(how, rows, p):
  conds, pixels, *g = rows
  n, channels = pixels.shape
  v = p['codebooks'].shape[1]
  hot = [one_hot(pixels[...], k, v) for k in range(channels)]
  ones = head_ones(how, p['norm_in']['scale'].shape[-1])
  run = functools.partial(layer, how, channels, ones)
  return conds[...].astype(F32), hot, run, [g[0][...]] if g else []


def _forward_kernel(how, _, rows, p, out, *__):
  conds, hot, run, _ = _given(how, rows, p)
  x = embed(read(outer(p)), conds, hot)
  for i in range(how.depth):
    x = run(read(p['blocks'], i), x)
  for k, nats in enumerate(nats_of(read(outer(p)), x, hot)):
    out[:, k : k + 1] = nats


def _backward_kernel(how, _, rows, p, by_conds, grads, scratch):
  conds, hot, run, (g,) = _given(how, rows, p)
  (inputs,) = scratch  # of each layer

  def add(refs, by, i=None):
    def one(ref, by):
      for j, value in enumerate(by if isinstance(by, tuple) else [by]):
        at = () if i is None else (i,)
        at += (j,) if isinstance(by, tuple) else ()
        ref[at or ...] += value

    jax.tree.map(one, refs, by)

  start = lambda p, conds: embed(p, conds, hot)
  x, embed_vjp = jax.vjp(start, read(outer(p)), conds)
  for i in range(how.depth):
    inputs[i] = x
    x = run(read(p['blocks'], i), x)
  inputs[how.depth] = x
  end = lambda p, x: nats_of(p, x, hot)
  _, nats_vjp = jax.vjp(end, read(outer(p)), x)
  by_p, by_x = nats_vjp([g[:, k : k + 1] for k in range(len(hot))])
  add(outer(grads), by_p)
  for i in reversed(range(how.depth)):
    _, layer_vjp = jax.vjp(run, read(p['blocks'], i), inputs[i])
    by_p, by_x = layer_vjp(by_x)
    add(grads['blocks'], by_p, i)
  by_p, by = embed_vjp(by_x)
  add(outer(grads), by_p)
  by_conds[...] = by.astype(by_conds.dtype)


def xla(how: How, params: dict, conds: Array, pixels: Array) -> Array:
  """`pixel_nats` without kernels: what these must agree with."""
  p = calls.laid_out(params, how.dtype)
  width, channels = p['norm_in']['scale'].shape[-1], pixels.shape[1]
  hot = [one_hot(pixels, k, p['codebooks'].shape[1]) for k in range(channels)]
  run = functools.partial(layer, how, channels, head_ones(how, width))
  x = embed(read(outer(p)), conds.astype(F32), hot)
  for i in range(how.depth):
    x = run(read(p['blocks'], i), x)
  return jnp.concatenate(nats_of(read(outer(p)), x, hot), 1)
