"""The pixel level: one pixel's channels, one after another.

Sequence [E c_0 ; codebook_0[v_0] ; ... ; codebook_{C-2}[v_{C-2}]] without
positions; output k times the transposed codebook of channel k gives the logits
of channel k (section 4.1 of the paper). The same network predicts the guiding
pixel of a masked level. Axis letters: types.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax import sharding
from fractal_jax.models import layers, published
from fractal_jax.models.chunked import chunked
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.kernels import pixel_draw, pixel_nats
from fractal_jax.models.types import (
  Array,
  Drawn,
  Request,
  Sampling,
  Spec,
  Steps,
)


class PixelLevel(nn.Module):
  """p(v_0 | c_0) p(v_1 | v_0, c_0) ... over channels."""

  spec: Spec

  BLOCK = layers.ViTBlock

  @staticmethod
  def published(spec: Spec) -> published.Table:
    """As in level.Level."""
    return {
      **published.linear('cond_embed', 'cond_proj'),
      **published.norm('norm_in', 'ln'),
      **published.blocks(spec.depth, published.VIT),
      **published.norm('norm_out', 'norm'),
      ('codebooks',): ([f'{c}_codebook.weight' for c in 'rgb'], published.SAME),
      ('logit_bias',): ([f'{c}_mlm.bias' for c in 'rgb'], published.ROWS),
    }

  def setup(self):
    s = self.spec
    self.cond_embed = layers.dense(s.width, ('embed', 'width'), s.dtype)
    self.split_codebooks = self.param(
      'codebooks',
      layers.logical(layers.TABLE, None, 'values', 'embed'),
      (s.channels, s.values, s.width),
    )
    self.logit_bias = self.param(
      'logit_bias',
      layers.logical(layers.ZEROS, None, 'values'),
      (s.channels, s.values),
    )
    self.norm_in = layers.layer_norm(s.dtype)
    if s.depth:
      self.blocks = layers.stack(
        layers.ViTBlock, self.block_fields(), s.depth, s.remat, s.unroll
      )
    self.norm_out = layers.layer_norm(s.dtype)

  @property
  def codebooks(self) -> Array:
    return sharding.gathered(self.split_codebooks, None, 'values', 'embed')

  @nn.nowrap
  def block_fields(self):
    s = self.spec
    return dict(
      width=s.width, heads=s.heads, causal=True, dropout=0.0, dtype=s.dtype
    )

  def outputs(self, conds: Array, values: Array, *, train: bool) -> Array:
    """Conditions [N, n, Dc], values [N, C] to outputs [N, C, D]."""
    x = self.cond_embed(conds[:, :1])  # [N, 1, D]
    for k in range(self.spec.channels - 1):
      token = self.codebooks[k].astype(x.dtype)[values[:, k]]
      x = jnp.concatenate([x, token[:, None]], 1)  # [N, k + 2, D]
    x = self.norm_in(x)
    if self.spec.depth:
      x, _ = self.blocks(x, None, train)
    return self.norm_out(x)  # [N, C, D]

  def logits(self, conds: Array, values: Array, *, train=False) -> Array:
    """Conditions [N, n, Dc], values [N, C] to logits [N, C, V], float32."""
    outputs = self.outputs(conds, values, train=train)
    outputs = outputs.swapaxes(0, 1)  # [C, N, D]
    logits = channel_logits(outputs, self.codebooks, self.logit_bias)
    return logits.swapaxes(0, 1)

  def __call__(self, conds: Array, values: Array, *, train: bool) -> Array:
    """Conditions [N, n, Dc], values [N, C] to their nats [N, C], float32."""
    nats = lambda level, *rows: level.nats(*rows, train=train)
    return chunked(nats, self, conds, values)

  def nats(self, conds: Array, values: Array, *, train: bool) -> Array:
    if kernels.usable(self.spec) and not self.is_initializing():
      params = nn.meta.unbox(self.variables['params'])
      conds = conds[:, 0].astype(self.spec.dtype)
      return pixel_nats.pixel_nats(
        kernel_sizes(self.spec), params, conds, values
      )
    outputs = self.outputs(conds, values, train=train)
    # The logits are V / D times larger than what they are computed from.
    nats = jax.checkpoint(cross_entropy)
    by_channel = outputs.swapaxes(0, 1), self.codebooks, self.logit_bias
    return nats(*by_channel, values.T).T

  def first(self, conds: Array) -> Array:
    """Token 0: conditions [N, n, Dc] to [N, 1, D]."""
    return self.norm_in(self.cond_embed(conds[:, :1]))

  def next(self, channel: Array, values: Array) -> Array:
    """The token after a channel: values [N] to [N, 1, D]."""
    token = self.codebooks[channel].astype(self.spec.dtype)[values]
    return self.norm_in(token[:, None])

  def head(self, x: Array, channel: Array) -> Array:
    """Output [N, 1, D] to the channel's logits [N, V], float32."""
    codebook, bias = self.codebooks[channel], self.logit_bias[channel]
    outputs = self.norm_out(x).swapaxes(0, 1)  # [1, N, D]
    return channel_logits(outputs, codebook[None], bias[None])[0]

  @nn.nowrap  # pure: it calls `apply` itself, inside loops
  def generate(
    self,
    params,
    request: Request,
    sampling: Sampling,
    draw_patch=None,
    order=None,
    *,
    bounds: tuple[Array, Array] | None = None,
  ) -> Steps:
    """Draws pixels, channel by channel, with cached keys and values.

    Args:
      params: this level's parameters; call it on the unbound module.
      request: the pixels that are wanted: squares of side 1.
      sampling: temperature, filter threshold.
      draw_patch: not used: no level is below.
      order: not used: channels come in their order.
      bounds: the least and the largest value that may be drawn, [N, C] each.

    Returns:
      The steps whose result are the squares, values [N, 1, (1,) C].
    """
    del draw_patch, order
    s = self.spec
    if kernels.usable(s):
      return draw_by_kernel(s, params, request, sampling, bounds)
    streams, n = request.conds.shape[:2]
    conds = request.conds.reshape((streams * n,) + request.conds.shape[2:])

    def call(method, *args):
      return self.apply({'params': params}, *args, method=method)

    uniforms = draw_uniforms(request.keys, s).T  # [C, N]
    given, bounds = jax.tree.map(
      lambda x: x.reshape(n, s.channels).T, (request.given, bounds)
    )  # [C, N]
    block = layers.ViTBlock(**self.block_fields())

    def step(k, state):
      x, cache, drawn = state
      if s.depth:
        x, cache = layers.step_stack(block, params['blocks'], x, cache, k, None)
      logits = call('head', x, k).reshape(streams, n, s.values)
      limits = jax.tree.map(lambda x: x[k], bounds)
      values = draw(logits, uniforms[k], request.guidance, sampling, limits)
      if given is not None:
        values = jnp.where(given.known[k], given.values[k], values)
      x = jnp.tile(call('next', k, values), (streams, 1, 1))
      return x, cache, drawn.at[k].set(values)

    cache = layers.empty_cache(
      s.depth, streams * n, s.channels, s.heads, s.width // s.heads, s.dtype
    )
    start = call('first', conds), cache, jnp.zeros((s.channels, n), jnp.int32)
    return Steps(
      count=s.channels,
      start=start,
      step=step,
      drawn=lambda state: squares(state[-1].T, s, sampling),
    )

  @nn.nowrap
  def flops(self) -> float:
    """Of scoring one pixel: C tokens through the blocks, and the logits.

    Generating one with the cache takes as many.
    """
    s = self.spec
    d, t = s.width, s.channels
    blocks = s.depth * (24 * d * d * t + 4 * t * t * d)
    return blocks + 2 * s.cond_width * d + 2 * d * s.values * t


def draw_uniforms(keys: Array, spec: Spec) -> Array:
  """What each pixel's channels are drawn with, [N, C] in [0, 1)."""
  draw = lambda key: jax.random.uniform(key, (spec.channels,))
  return jax.vmap(draw)(keys)


def squares(values: Array, spec: Spec, sampling: Sampling) -> Drawn:
  """Values [N, C] as squares of side 1."""
  shape = (len(values),) + (1,) * spec.rank + (spec.channels,)
  when = jnp.broadcast_to(jnp.arange(spec.channels), shape)
  return Drawn(values.reshape(shape), when if sampling.record else None)


def kernel_sizes(spec: Spec) -> pixel_nats.How:
  return pixel_nats.How(spec.depth, spec.heads, spec.dtype)


def draw_by_kernel(
  spec: Spec, params, request: Request, sampling: Sampling, bounds
) -> Steps:
  """`PixelLevel.generate` in a single step."""
  shape = (-1, spec.channels)
  given = request.given
  if given is not None:
    given = jnp.where(given.known, given.values, -1).reshape(shape)
  if bounds is not None:
    bounds = tuple(x.reshape(shape) for x in bounds)
  how = (
    request.guidance,
    sampling.temperature,
    sampling.filter_threshold,
    sampling.greedy,
  )

  def step(_, __):
    return pixel_draw.pixel_draw(
      kernel_sizes(spec),
      params,
      request.conds[:, :, 0].astype(spec.dtype),
      draw_uniforms(request.keys, spec),
      bounds,
      given,
      how,
    )

  n = request.conds.shape[1]
  return Steps(
    count=1,
    start=jnp.zeros((n, spec.channels), jnp.int32),
    step=step,
    drawn=lambda values: squares(values, spec, sampling),
  )


def guide_spec(spec: Spec) -> Spec:
  """The network that predicts the mean colour of a level's square."""
  return dataclasses.replace(
    spec, kind='pixel', width=128, depth=3, heads=4, num_conds=1, guide=False
  )


def channel_logits(outputs: Array, codebooks: Array, bias: Array) -> Array:
  """[C, N, D] with [C, V, D] and [C, V] to [C, N, V], in float32.

  Channels first, since a batched product puts them there: logits are the
  largest array there is, and moving its axes cost as much as computing it.
  """
  logits = jnp.einsum(
    'cnd,cvd->cnv',
    outputs,
    codebooks.astype(outputs.dtype),
    preferred_element_type=jnp.float32,
  )
  return logits + bias[:, None].astype(jnp.float32)


def cross_entropy(outputs, codebooks, bias, values) -> Array:
  """-log p of values [C, N] under outputs [C, N, D], [C, N]."""
  logits = channel_logits(outputs, codebooks, bias)
  picked = jnp.take_along_axis(logits, values[..., None].astype(jnp.int32), -1)
  return jax.nn.logsumexp(logits, -1) - picked[..., 0]


def guided_logits(logits: Array, guidance, sampling: Sampling) -> Array:
  """Logits [G, N, V] of the streams to the logits [N, V] that are drawn from.

  With two streams, the unconditional logit of a value that is unlikely under
  the condition is first raised, so that guidance can't push the draw there.
  """
  logits = logits / sampling.temperature
  if len(logits) == 1:
    return logits[0]
  cond, uncond = logits
  top = lambda x: x.max(-1, keepdims=True)
  raised = jnp.maximum(uncond, cond - top(cond) + top(uncond))
  unlikely = jax.nn.softmax(cond) < sampling.filter_threshold
  uncond = jnp.where(unlikely, raised, uncond)
  return uncond + guidance * (cond - uncond)


def draw(logits, uniform, guidance, sampling: Sampling, bounds=None) -> Array:
  """Values [N], int32, from logits [G, N, V] by inverting the distribution.

  With bounds, the least and the largest value [N], from what the distribution
  is given that the value lies between.
  """
  logits = guided_logits(logits, guidance, sampling)
  if bounds is not None:
    least, most = (x[:, None] for x in bounds)
    value = jnp.arange(logits.shape[-1])
    logits = jnp.where((value >= least) & (value <= most), logits, -jnp.inf)
  if sampling.greedy:
    return logits.argmax(-1).astype(jnp.int32)
  cumulative = jnp.cumsum(jax.nn.softmax(logits), -1)
  # Scaled by the last entry, since rounding leaves that just off 1.
  level = uniform[:, None] * cumulative[:, -1:]
  return (cumulative <= level).sum(-1).clip(max=logits.shape[-1] - 1)
