"""Drawing pixels in one kernel: what PixelLevel.generate does.

Keys and values of earlier channels stay in VMEM, and the channels follow each
other inside one grid step: there is no loop outside, and no cache in HBM.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from fractal_jax.models.kernels import calls, pixel_nats, values
from fractal_jax.models.kernels.pixel_nats import How, dense, outer, read
from fractal_jax.models.kernels.values import F32, iota, linear
from fractal_jax.models.types import Array, Sampling


def offers(sampling: Sampling, one_network: bool) -> bool:
  """Whether the kernel draws like this; otherwise XLA does.

  Args:
    sampling: a Sampling.
    one_network: whether all streams are of one network.
  """
  return one_network and not sampling.resample and not sampling.confident


def pixel_draw(
  how: How,
  params: dict,
  conds: Array,
  uniforms: Array,
  limits: tuple[Array, Array] | None,
  given: Array | None,
  sampling: Sampling,
) -> Array:
  """Draws pixels by the kernel.

  Args:
    how: sizes.
    params: of a PixelLevel, as flax has them.
    conds: [G, N, Dc] in how.dtype.
    uniforms: [N, C] in [0, 1).
    limits: the least and the largest value that may be drawn, [N, C] int32
      each; or None.
    given: values [N, C] int32 to take in place of drawn ones, where they are
      not negative; or None.
    sampling: a Sampling, whose guidance and temperature are one number each.

  Returns:
    [N, C] int32.
  """
  scalars = (sampling.guidance, sampling.temperature, sampling.filter_threshold)
  streams, n, _ = conds.shape
  within = allowed(params, uniforms.shape, limits, given)
  rows = (tuple(conds), uniforms, *within)
  step = pixel_nats.step_of(n)
  pad = lambda x: jnp.pad(x, ((0, -n % step), (0, 0)))
  rows = jax.tree.map(pad, rows)
  return calls.blocks(
    functools.partial(_kernel, how, sampling.greedy),
    'pixel_draw',
    jnp.stack([jnp.asarray(x, F32) for x in scalars]),
    rows,
    calls.laid_out(params, how.dtype),
    step=step,
    outs=jax.ShapeDtypeStruct(rows[1].shape, jnp.int32),
  )[:n]


def allowed(
  params: dict,
  shape: tuple[int, ...],
  limits: tuple[Array, Array] | None,
  given: Array | None,
) -> tuple[Array, Array, Array]:
  """Limits and what is given, [N, C] each; all values and none where None."""
  none = jnp.zeros(shape, jnp.int32)
  least, most = limits or (none, none + params['codebooks'].shape[1] - 1)
  return least, most, none - 1 if given is None else given


def _kernel(how, greedy, scalars, rows, p, out, *_):
  conds, uniforms, least, most, given = rows
  conds = jnp.concatenate([x[...] for x in conds], 0).astype(F32)
  columns = lambda ref, k: ref[:, k : k + 1]
  sampling = Sampling(
    guidance=scalars[0],
    temperature=scalars[1],
    filter_threshold=scalars[2],
    greedy=greedy,
  )

  def values_of(k, logits):
    found = draw(
      logits,
      columns(uniforms, k),
      (columns(least, k), columns(most, k)),
      sampling,
    )
    known = columns(given, k)
    out[:, k : k + 1] = value = jnp.where(known >= 0, known, found)
    return value

  blocks = [read(p['blocks'], i) for i in range(how.depth)]
  generate(how, read(outer(p)), blocks, conds, out.shape[1], values_of)


def generate(
  how: How,
  p: dict,
  blocks: list[dict],
  conds: Array,
  channels: int,
  values_of: Callable[[int, Array], Array],
) -> None:
  """Draws channel after channel.

  Args:
    how: sizes.
    p, blocks: parameters, outside layers and of each.
    conds: [G R, Dc] float32, the streams one after another.
    channels: how many.
    values_of: (channel, logits [G R, V]) to its values [R, 1], int32.
  """
  x = values.norm(dense(p['cond_embed'], conds), p['norm_in'])
  ones = pixel_nats.head_ones(how, x.shape[1])
  cache = [([], []) for _ in blocks]
  for t in range(channels):
    for block, (keys, vals) in zip(blocks, cache):
      q, k, v = pixel_nats.qkv_of(how, block, x)
      keys.append(k)
      vals.append(v)
      mixed = pixel_nats.attend(how, q, keys, vals, ones)
      x = pixel_nats.after_attention(how, block, x, mixed)
    y = values.norm(x, p['norm_out'])
    value = values_of(t, pixel_nats.logits_of(p, y, t))  # [R, 1]
    if t + 1 < channels:
      n, v = value.shape[0], p['codebooks'][t].shape[0]
      hot = (value == iota((n, v), 1)).astype(F32)
      token = values.norm(linear(hot, p['codebooks'][t]), p['norm_in'])
      x = jnp.concatenate([token] * (x.shape[0] // n), 0)


def draw(
  logits: Array, uniform: Array, limits: tuple[Array, Array], sampling: Sampling
) -> Array:
  """guidance.draw of logits [G R, V], the streams in a row: [R, 1] int32."""
  logits = logits / sampling.temperature
  n, v = uniform.shape[0], logits.shape[1]
  top = lambda x: jnp.max(x, -1, keepdims=True)
  total = lambda x: jnp.sum(x, -1, keepdims=True)
  if logits.shape[0] > n:
    cond, uncond = logits[:n], logits[n:]
    raised = jnp.maximum(uncond, cond + (top(uncond) - top(cond)))
    e = jnp.exp(cond - top(cond))
    uncond = jnp.where(e / total(e) < sampling.filter_threshold, raised, uncond)
    logits = uncond + sampling.guidance * (cond - uncond)
  value = iota((n, v), 1)
  least, most = limits
  inside = (value >= least) & (value <= most)
  logits = jnp.where(inside, logits, -jnp.inf)
  if sampling.greedy:
    best = jnp.where(logits == top(logits), value, v)
    return jnp.min(best, -1, keepdims=True)
  e = jnp.exp(logits - top(logits))
  upper = (iota((v, v), 0) <= iota((v, v), 1)).astype(F32)
  cumulative = values.dot(e / total(e), upper, 1, 0)
  level = uniform * cumulative[:, v - 1 : v]
  found = total((cumulative <= level).astype(F32)).astype(jnp.int32)
  return jnp.minimum(found, v - 1)


def xla(
  how: How,
  params: dict,
  conds: Array,
  uniforms: Array,
  limits: tuple[Array, Array] | None,
  given: Array | None,
  sampling: Sampling,
) -> Array:
  """`pixel_draw` without the kernel: what this must agree with."""
  p, out = calls.laid_out(params, how.dtype), []
  least, most, given = allowed(params, uniforms.shape, limits, given)

  def values_of(k, logits):
    of = lambda x: x[:, k : k + 1]
    found = draw(logits, of(uniforms), (of(least), of(most)), sampling)
    out.append(jnp.where(of(given) >= 0, of(given), found))
    return out[-1]

  blocks = [read(p['blocks'], i) for i in range(how.depth)]
  conds = conds.reshape(-1, conds.shape[-1]).astype(F32)
  generate(how, read(outer(p)), blocks, conds, len(uniforms[0]), values_of)
  return jnp.concatenate(out, 1)
