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
from fractal_jax.models.keys import Salt, fold_in
from fractal_jax.models.types import (
  Array,
  Drawn,
  Network,
  Request,
  Sampling,
  Spec,
  Steps,
  of_level,
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
    return layers.fields(self.spec, causal=True) | {'dropout': 0.0}

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

  @staticmethod
  def generate(
    networks: list[Network],
    request: Request,
    sampling: Sampling,
    draw_patch=None,
    order=None,
    *,
    bounds: tuple[Array, Array] | None = None,
  ) -> Steps:
    """Draws pixels, channel by channel, with cached keys and values.

    Args:
      networks: as in level.Level.
      request: the pixels that are wanted: squares of side 1.
      sampling: temperature, filter threshold, resampling.
      draw_patch: not used: no level is below.
      order: not used: channels come in their order.
      bounds: the least and the largest value that may be drawn, [N, C] each.

    Returns:
      The steps whose result are the squares, values [N, 1, (1,) C].
    """
    del draw_patch, order
    s, n = networks[0].spec, len(request.keys)
    sampling = sampling.replace(
      temperature=of_level(sampling.temperature, s),
      resample=sampling.resample if is_guided(request) else 0,
    )
    request = request.replace(guidance=of_level(request.guidance, s))
    if kernels.usable(s) and pixel_draw.offers(sampling, len(networks) == 1):
      return draw_by_kernel(networks[0], request, sampling, bounds)
    rows = [c.reshape((-1,) + c.shape[2:]) for c in request.conds]
    uniforms = draw_uniforms(request.keys, s, sampling.resample)
    uniforms = uniforms.swapaxes(0, 1)  # [C, N, ...]
    given, bounds = jax.tree.map(
      lambda x: x.reshape(n, s.channels).T, (request.given, bounds)
    )  # [C, N]

    def step(k, state):
      tokens, caches, drawn, nats = state
      found = [channel_step(*x, k) for x in zip(networks, tokens, caches)]
      logits, caches = zip(*found)
      logits = jnp.concatenate(logits).reshape(-1, n, s.values)  # [G, N, V]
      limits = jax.tree.map(lambda x: x[k], bounds)
      values = draw(logits, uniforms[k], request.guidance, sampling, limits)
      if given is not None:
        values = jnp.where(given.known[k], given.values[k], values)
      tokens = tuple(
        jnp.tile(network('next', k, values), (len(x) // n, 1, 1))
        for network, x in zip(networks, rows)
      )
      if nats is not None:
        now = nats_of(logits, values, request.guidance, sampling)
        if given is not None:
          now = jnp.where(given.known[k], 0, now)
        nats = nats.at[k].set(now)
      return tokens, caches, drawn.at[k].set(values), nats

    caches = tuple(
      layers.empty_cache(
        x.depth, len(c), x.channels, x.heads, x.width // x.heads, x.dtype
      )
      for x, c in zip([network.spec for network in networks], rows)
    )
    start = (
      tuple(network('first', c) for network, c in zip(networks, rows)),
      caches,
      jnp.zeros((s.channels, n), jnp.int32),
      jnp.zeros((s.channels, n)) if sampling.confident else None,
    )

    def drawn(state) -> Drawn:
      *_, values, nats = state
      found = squares(values.T, s, sampling)
      if nats is not None:
        found = found.replace(nats=nats.T.reshape(found.values.shape))
      return found

    return Steps(count=s.channels, start=start, step=step, drawn=drawn)

  @nn.nowrap
  def flops(self) -> float:
    """Of scoring one pixel: C tokens through the blocks, and the logits.

    Generating one with the cache takes as many.
    """
    s = self.spec
    d, t = s.width, s.channels
    blocks = s.depth * (24 * d * d * t + 4 * t * t * d)
    return blocks + 2 * s.cond_width * d + 2 * d * s.values * t


def channel_step(network: Network, x: Array, cache: Array, k: Array):
  """Token k [M, 1, D] to the logits [M, V] of channel k, and the cache."""
  level = network.level
  if level.spec.depth:
    block = layers.ViTBlock(**level.block_fields(), parent=None)
    blocks = network.params['blocks']
    x, cache = layers.step_stack(block, blocks, x, cache, k, None)
  return network('head', x, k), cache


def is_guided(request: Request) -> bool:
  """Whether there is a second stream, of whichever network."""
  return sum(len(c) for c in request.conds) > 1


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


def squares(values: Array, spec: Spec, sampling: Sampling) -> Drawn:
  """Values [N, C] as squares of side 1."""
  shape = (len(values),) + (1,) * spec.rank + (spec.channels,)
  when = jnp.broadcast_to(jnp.arange(spec.channels), shape)
  return Drawn(values.reshape(shape), when if sampling.record else None)


def kernel_sizes(spec: Spec) -> pixel_nats.How:
  return pixel_nats.How(spec.depth, spec.heads, spec.dtype)


def draw_by_kernel(
  network: Network, request: Request, sampling: Sampling, bounds
) -> Steps:
  """`PixelLevel.generate` in a single step."""
  spec = network.spec
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
      network.params,
      request.conds[0][:, :, 0].astype(spec.dtype),
      draw_uniforms(request.keys, spec),
      bounds,
      given,
      how,
    )

  n = len(request.keys)
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


def draw(logits, uniform, guidance, sampling: Sampling, bounds=None) -> Array:
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


def nats_of(logits, values, guidance, sampling: Sampling) -> Array:
  """-log p of values [N] under what `draw` draws from without resampling."""
  log_p = jax.nn.log_softmax(guided_logits(logits, guidance, sampling))
  return -jnp.take_along_axis(log_p, values[:, None], 1)[:, 0]
