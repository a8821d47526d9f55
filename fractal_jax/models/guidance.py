"""From logits to a value: temperature, guidance and its floor, the draw.

Guidance mixes the logits of two streams, under the class and without it or of
another network (section 4.2 of the paper, and docs/model.md). Axis letters:
types.py.
"""

import jax
import jax.numpy as jnp

from fractal_jax.models.keys import Salt, fold_in
from fractal_jax.models.types import Array, Sampling, Spec


def draw_uniforms(keys: Array, spec: Spec, resample: int = 0) -> Array:
  """What each pixel's channels are drawn with, [N, C] in [0, 1).

  With resampling [N, C, resample + 1]: a number for each candidate, the first
  of which is that without resampling, and one for the choice among them.
  """
  shape = (spec.channels,)
  first = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
  if not resample:
    return first
  keys = fold_in(keys, jnp.asarray(Salt.RESAMPLE.value))
  more = lambda key: jax.random.uniform(key, (*shape, resample))
  return jnp.concatenate([first[..., None], jax.vmap(more)(keys)], -1)


def guided_logits(
  logits: Array, guidance: Array | float, sampling: Sampling
) -> Array:
  """Logits [G, N, V] of the streams to the logits [N, V] that are drawn from.

  With two streams, the logit that guides away from a value that is unlikely
  under the condition is first raised, so that guidance can't push the draw
  there. Two equal streams give exactly either.
  """
  logits = logits / sampling.temperature
  if len(logits) == 1:
    return logits[0]
  cond, other = logits
  top = lambda x: x.max(-1, keepdims=True)
  raised = jnp.maximum(other, cond + (top(other) - top(cond)))
  unlikely = jax.nn.softmax(cond) < sampling.filter_threshold
  other = jnp.where(unlikely, raised, other)
  return other + guidance * (cond - other)


def draw(
  logits: Array,
  uniform: Array,
  guidance: Array | float,
  sampling: Sampling,
  bounds: tuple[Array, Array] | None = None,
) -> Array:
  """Values [N], int32, from logits [G, N, V] by inverting the distribution.

  With bounds, the least and the largest value [N], from what the distribution
  is given that the value lies between. With sampling.resample, `uniform` is
  [N, resample + 1], see `draw_uniforms`.
  """
  guided = guided_logits(logits, guidance, sampling)
  plain = logits[0] / sampling.temperature
  if bounds is not None:
    least, most = (x[:, None] for x in bounds)
    value = jnp.arange(logits.shape[-1])
    inside = (value >= least) & (value <= most)
    guided, plain = (jnp.where(inside, x, -jnp.inf) for x in (guided, plain))
  if sampling.greedy:
    return guided.argmax(-1).astype(jnp.int32)
  if not sampling.resample:
    return inverted(guided, uniform[:, None])[:, 0]
  *candidates, choice = jnp.moveaxis(uniform, -1, 0)
  found = inverted(plain, jnp.stack(candidates, 1))  # [N, candidates]
  ratio = jnp.take_along_axis(guided - plain, found, 1)
  chosen = inverted(ratio, choice[:, None])
  return jnp.take_along_axis(found, chosen, 1)[:, 0]


def inverted(logits: Array, uniforms: Array) -> Array:
  """Draws [N, m], int32, from each of [N, V] logits by numbers [N, m]."""
  cumulative = jnp.cumsum(jax.nn.softmax(logits), -1)
  # Scaled by the last entry, since rounding leaves that just off 1.
  level = uniforms * cumulative[:, -1:]
  found = (cumulative[:, None] <= level[..., None]).sum(-1)
  return found.clip(max=logits.shape[-1] - 1)


def nats_of(
  logits: Array, values: Array, guidance: Array | float, sampling: Sampling
) -> Array:
  """-log p of values [N] under what `draw` draws from without resampling."""
  log_p = jax.nn.log_softmax(guided_logits(logits, guidance, sampling))
  return -jnp.take_along_axis(log_p, values[:, None], 1)[:, 0]
