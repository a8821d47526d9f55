"""The pixel level: one pixel's channels, one after another.

Sequence [E c_0 ; codebook_0[v_0] ; ... ; codebook_{C-2}[v_{C-2}]] without
positions; output k times the transposed codebook of channel k gives the logits
of channel k (section 4.1 of the paper). The same network predicts the guiding
pixel of a masked level. Axis letters: types.py.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax import sharding
from fractal_jax.models import layers, published
from fractal_jax.models.chunked import chunked
from fractal_jax.models.guidance import draw, draw_uniforms, nats_of
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.kernels import pixel_draw, pixel_nats
from fractal_jax.models.types import (
  Array,
  Drawn,
  DrawPatch,
  Given,
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
    """Published names of the parameters; see level.Level."""
    return {
      **published.linear('cond_embed', 'cond_proj'),
      **published.norm('norm_in', 'ln'),
      **published.blocks(spec.depth, published.VIT),
      **published.norm('norm_out', 'norm'),
      ('codebooks',): ([f'{c}_codebook.weight' for c in 'rgb'], published.SAME),
      ('logit_bias',): ([f'{c}_mlm.bias' for c in 'rgb'], published.ROWS),
    }

  def setup(self) -> None:
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
    """The vectors of all channel values, [C, V, D], whole on each device."""
    return sharding.gathered(self.split_codebooks, None, 'values', 'embed')

  @nn.nowrap
  def block_fields(self) -> dict:
    """The fields of its ViTBlock, which has no dropout."""
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

  def logits(self, conds: Array, values: Array) -> Array:
    """Conditions [N, n, Dc], values [N, C] to logits [N, C, V], float32."""
    outputs = self.outputs(conds, values, train=False)
    outputs = outputs.swapaxes(0, 1)  # [C, N, D]
    logits = channel_logits(outputs, self.codebooks, self.logit_bias)
    return logits.swapaxes(0, 1)

  def __call__(self, conds: Array, values: Array, *, train: bool) -> Array:
    """Conditions [N, n, Dc], values [N, C] to their nats [N, C], float32."""
    nats = lambda level, *rows: level.nats(*rows, train=train)
    return chunked(nats, self, conds, values)

  def nats(self, conds: Array, values: Array, *, train: bool) -> Array:
    """As `__call__`, of all rows at once."""
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
    draw_patch: DrawPatch | None = None,
    order: Array | None = None,
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
    s = networks[0].spec
    guided = sum(map(len, request.conds)) > 1  # by whichever network
    sampling = sampling.replace(
      temperature=of_level(sampling.temperature, s),
      resample=sampling.resample if guided else 0,
    )
    request = request.replace(guidance=of_level(request.guidance, s))
    if kernels.usable(s) and pixel_draw.offers(sampling, len(networks) == 1):
      return draw_by_kernel(networks[0], request, sampling, bounds)
    uniforms = draw_uniforms(request.keys, s, sampling.resample)
    given, bounds = jax.tree.map(
      lambda x: x.reshape(-1, s.channels).T, (request.given, bounds)
    )
    return Pixels(
      networks=networks,
      conds=[c.reshape((-1,) + c.shape[2:]) for c in request.conds],
      guidance=request.guidance,
      sampling=sampling,
      uniforms=uniforms.swapaxes(0, 1),
      given=given,
      bounds=bounds,
    ).steps()

  @nn.nowrap
  def flops(self) -> float:
    """FLOPs of scoring one pixel: C tokens through the blocks, and the logits.

    Generating one with the cache takes as many.
    """
    s = self.spec
    d, t = s.width, s.channels
    blocks = s.depth * layers.vit_flops(d, t)
    return blocks + 2 * s.cond_width * d + 2 * d * s.values * t


class State(NamedTuple):
  """Pixels between two steps."""

  tokens: tuple[Array, ...]  # of each network: the next one, [G N, 1, D]
  caches: tuple[Array, ...]  # of each network
  values: Array  # [C, N]
  nats: Array | None  # [C, N], where some level asks for them


@dataclasses.dataclass(frozen=True)
class Pixels:
  """N pixels that are generated, channel by channel."""

  networks: list[Network]
  conds: list[Array]  # of each network: [G N, n, D of the level above]
  guidance: Array | float
  sampling: Sampling
  uniforms: Array  # [C, N, ...], see guidance.draw
  given: Given | None  # values that are known, [C, N]
  bounds: tuple[Array, Array] | None  # of the values, [C, N] each

  def steps(self) -> Steps:
    """All steps, whose result are the pixels as squares."""
    s, shape = self.networks[0].spec, self.uniforms.shape[:2]
    each = list(zip(self.networks, self.conds))
    start = State(
      tokens=tuple(net('first', c) for net, c in each),
      caches=tuple(
        layers.empty_cache(net.spec, len(c), s.channels) for net, c in each
      ),
      values=jnp.zeros(shape, jnp.int32),
      nats=jnp.zeros(shape) if self.sampling.confident else None,
    )
    return Steps(s.channels, start, self.step, self.drawn)

  def step(self, k: Array, state: State) -> State:
    """Draws channel k."""
    _, n = state.values.shape
    now = zip(self.networks, state.tokens, state.caches)
    found, caches = zip(*(channel_step(*each, k) for each in now))
    logits = jnp.concatenate(found)  # [G N, V]
    logits = logits.reshape(-1, n, logits.shape[-1])
    given, bounds = jax.tree.map(lambda x: x[k], (self.given, self.bounds))
    scale, how = self.guidance, self.sampling
    values = draw(logits, self.uniforms[k], scale, how, bounds)  # [N]
    if given is not None:
      values = jnp.where(given.known, given.values, values)
    tokens = (
      jnp.tile(net('next', k, values), (len(c) // n, 1, 1))
      for net, c in zip(self.networks, self.conds)
    )
    nats = state.nats
    if nats is not None:
      drawn = nats_of(logits, values, scale, how)
      if given is not None:
        drawn = jnp.where(given.known, 0, drawn)
      nats = nats.at[k].set(drawn)
    return State(tuple(tokens), caches, state.values.at[k].set(values), nats)

  def drawn(self, state: State) -> Drawn:
    """The pixels as squares of side 1."""
    found = squares(state.values.T, self.networks[0].spec, self.sampling)
    if state.nats is None:
      return found
    return found.replace(nats=state.nats.T.reshape(found.values.shape))


def channel_step(
  network: Network, x: Array, cache: Array, k: Array
) -> tuple[Array, Array]:
  """Token k [M, 1, D] to the logits [M, V] of channel k, and the cache."""
  level = network.level
  if level.spec.depth:
    block = layers.ViTBlock(**level.block_fields(), parent=None)
    blocks = network.params['blocks']
    x, cache = layers.step_stack(block, blocks, x, cache, k, None)
  return network('head', x, k), cache


def squares(values: Array, spec: Spec, sampling: Sampling) -> Drawn:
  """Values [N, C] as squares of side 1."""
  shape = (len(values),) + (1,) * spec.rank + (spec.channels,)
  when = jnp.broadcast_to(jnp.arange(spec.channels), shape)
  return Drawn(values.reshape(shape), when if sampling.record else None)


def kernel_sizes(spec: Spec) -> pixel_nats.How:
  """What the kernels need to know of the level."""
  return pixel_nats.How(spec.depth, spec.heads, spec.dtype)


def draw_by_kernel(
  network: Network,
  request: Request,
  sampling: Sampling,
  bounds: tuple[Array, Array] | None,
) -> Steps:
  """`PixelLevel.generate` in a single step."""
  spec = network.spec
  shape = (-1, spec.channels)
  given = request.given
  if given is not None:
    given = jnp.where(given.known, given.values, -1).reshape(shape)
  if bounds is not None:
    bounds = tuple(x.reshape(shape) for x in bounds)
  how = sampling.replace(guidance=request.guidance)

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


def cross_entropy(
  outputs: Array, codebooks: Array, bias: Array, values: Array
) -> Array:
  """-log p of values [C, N] under outputs [C, N, D], [C, N]."""
  logits = channel_logits(outputs, codebooks, bias)
  picked = jnp.take_along_axis(logits, values[..., None].astype(jnp.int32), -1)
  return jax.nn.logsumexp(logits, -1) - picked[..., 0]
