"""Transformer blocks: scanned when teacher-forced, cached when generating.

Two blocks, as in the published model: `ViTBlock` (LayerNorm, biases, GELU MLP)
for masked levels and the pixel level, `LlamaBlock` (RMSNorm, SwiGLU, rotary
positions, no biases) for autoregressive ones. Axis letters: types.py.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax import cpu
from fractal_jax.models import products
from fractal_jax.models.attention import attend, rotate
from fractal_jax.models.dropout import Dropout
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.types import Array, Spec

XAVIER = nn.initializers.xavier_uniform()
# A fused qkv counts as one [3D, D] matrix.
XAVIER_QKV = nn.initializers.variance_scaling(
  1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=(1, 2)
)
ZEROS = nn.initializers.zeros_init()
ONES = nn.initializers.ones_init()
TABLE = nn.initializers.normal(0.02)  # tables, tokens, codebooks

# What the backward pass keeps of a block; the rest is computed again.
REMAT = {
  'none': None,  # keep everything
  # Keep the block's input only.
  'full': jax.checkpoint_policies.nothing_saveable,
  # Keep the linear layers' outputs, too.
  'dots': jax.checkpoint_policies.save_only_these_names('linear'),
}


def logical(init: Callable, *axes: str | None) -> Callable:
  """An initialiser of parameters with these logical axes (sharding.Rules)."""
  return nn.with_logical_partitioning(init, axes)


def dense(
  features: int, axes: tuple[str, str], dtype: jnp.dtype, *, bias: bool = True
) -> nn.Dense:
  """A linear layer with Xavier weights; `axes` are its logical (in, out)."""
  joins = 'width' if axes[1] == 'embed' else axes[1]  # see sharding.Rules
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=dtype,
    dot_general=products.dot_general(axes),
    kernel_init=logical(XAVIER, *axes),
    bias_init=logical(ZEROS, joins),
  )


def layer_norm(dtype: jnp.dtype) -> nn.LayerNorm:
  """LayerNorm, eps 1e-6; flax computes its statistics in float32."""
  return nn.LayerNorm(
    epsilon=1e-6,
    dtype=dtype,
    use_fast_variance=False,
    scale_init=logical(ONES, 'norm'),
    bias_init=logical(ZEROS, 'norm'),
  )


def rms_norm(dtype: jnp.dtype) -> nn.RMSNorm:
  """RMSNorm, eps 1e-5, statistics in float32."""
  return nn.RMSNorm(epsilon=1e-5, dtype=dtype, scale_init=logical(ONES, 'norm'))


# Activations are computed again in the backward pass rather than kept with what
# they are made of, each as large: less memory, and no slower.
@jax.checkpoint
def gelu(x: Array) -> Array:
  """Exact GELU."""
  return cpu.gelu(x) if cpu.is_target() else nn.gelu(x, approximate=False)


@jax.checkpoint
def swiglu(x: Array, gate: Array) -> Array:
  """silu(gate) x."""
  return nn.silu(gate) * x


class Attention(nn.Module):
  """Self-attention with a fused qkv projection."""

  width: int
  heads: int
  causal: bool
  bias: bool
  dropout: float  # after the projection
  weight_dropout: float  # on the attention weights
  dtype: Any

  def setup(self) -> None:
    shape = (self.width, 3, self.width)
    self.qkv = self.param(
      'qkv', logical(XAVIER_QKV, 'embed', None, 'heads'), shape
    )
    if self.bias:
      self.qkv_bias = self.param(
        'qkv_bias', logical(ZEROS, None, 'heads'), shape[1:]
      )
    self.proj = dense(
      self.width, ('heads', 'embed'), self.dtype, bias=self.bias
    )
    self.drop_weights = Dropout(self.weight_dropout)
    self.drop = Dropout(self.dropout)

  def heads_of(self, x: Array, parts: slice = slice(3)) -> list[Array]:
    """x [N, T, D] to those of q, k and v, [N, T, H, K] each."""
    x = x.astype(self.dtype)
    n, t, d = x.shape
    # One matrix product: three would read x three times.
    weights = self.qkv.astype(self.dtype)[:, parts]
    out = products.product(x, weights, ('embed', None, 'heads'))  # [N, T, 3, D]
    if self.bias:
      out += self.qkv_bias.astype(self.dtype)[parts]
    out = out.reshape(n, t, -1, self.heads, d // self.heads)
    return [out[:, :, i] for i in range(out.shape[2])]

  def turned(self, x: Array, turns: Array | None) -> tuple[Array, Array, Array]:
    """q, k and v of x, with queries and keys turned by their positions."""
    q, k, v = self.heads_of(x)
    if turns is not None:
      q, k = rotate(q, turns), rotate(k, turns)
    return q, k, v

  def __call__(self, x: Array, turns: Array | None, *, train: bool) -> Array:
    q, k, v = self.turned(x, turns)
    t = x.shape[1]
    mask = jnp.tri(t, dtype=bool) if self.causal else None
    drop = None
    if train and self.weight_dropout:
      drop = lambda w: self.drop_weights(w, deterministic=False)
    out = attend(q, k, v, mask, drop).reshape(x.shape)
    return self.drop(self.proj(out), deterministic=not train)

  def step(
    self, x: Array, cache: Array, layer: Array, t: Array, turns: Array | None
  ) -> tuple[Array, Array]:
    """Token t alone: x [N, 1, D], cache [layers, 2, N, T, H, K], in place."""
    q, k, v = self.turned(x, turns)
    new = jnp.stack([k, v])[None].astype(cache.dtype)  # [1, 2, N, 1, H, K]
    cache = jax.lax.dynamic_update_slice(cache, new, (layer, 0, 0, t, 0, 0))
    k, v = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
    mask = (jnp.arange(k.shape[1]) <= t)[None]
    return self.proj(attend(q, k, v, mask).reshape(x.shape)), cache

  def fill(self, x: Array, turns: Array | None) -> tuple[Array, Array]:
    """Tokens x [N, T, D] and, for a cache, their k, v: [2, N, T, H, K]."""
    q, k, v = self.turned(x, turns)
    out = attend(q, k, v, jnp.tri(x.shape[1], dtype=bool)).reshape(x.shape)
    return self.proj(out), jnp.stack([k, v])

  def at(self, x: Array, here: Array) -> Array:
    """x [N, T, D] read by tokens here [N, W, D] alone: [N, W, D]."""
    (q,) = self.heads_of(here, slice(1))
    k, v = self.heads_of(x, slice(1, 3))
    return self.proj(attend(q, k, v).reshape(here.shape))


class Block(nn.Module):
  """Attention, then an MLP, each after a norm and added to what it reads.

  A block has `norm1`, `attention`, `norm2` and a method `mlp(x, train)`.
  """

  width: int
  heads: int
  causal: bool
  dropout: float
  dtype: Any

  def __call__(
    self, x: Array | kernels.Packed, turns: Array | None, train: bool
  ) -> tuple[Array | kernels.Packed, None]:
    """x [N, T, D] to the same, and None: what a scan collects."""
    if isinstance(x, kernels.Packed):
      return kernels.block(self, x, turns, train=train), None
    x = x + self.attention(self.norm1(x), turns, train=train)
    return x + self.mlp(self.norm2(x), train), None

  def step(
    self, x: Array, cache: Array, layer: Array, t: Array, turns: Array | None
  ) -> tuple[Array, Array]:
    """Token t alone, as in `Attention.step`."""
    y, cache = self.attention.step(self.norm1(x), cache, layer, t, turns)
    x = x + y
    return x + self.mlp(self.norm2(x), False), cache

  def fill(self, x: Array, turns: Array | None) -> tuple[Array, Array]:
    """The first tokens at once, as in `Attention.fill`."""
    y, cached = self.attention.fill(self.norm1(x), turns)
    x = x + y
    return x + self.mlp(self.norm2(x), False), cached

  def at(self, x: Array, places: Array) -> Array:
    """The output at places [N, W] of x [N, T, D] alone: [N, W, D]."""
    y = self.norm1(x)
    x, here = (
      jnp.take_along_axis(a, places[..., None], 1, mode='clip') for a in (x, y)
    )
    x = x + self.attention.at(y, here)
    return x + self.mlp(self.norm2(x), False)


def fields(spec: Spec, *, causal: bool) -> dict:
  """The fields of a level's block."""
  return dict(
    width=spec.width,
    heads=spec.heads,
    causal=causal,
    dropout=spec.dropout,
    dtype=spec.dtype,
  )


class ViTBlock(Block):
  """LayerNorm, and an exact-GELU MLP of 4 D; with biases."""

  def setup(self) -> None:
    rate = self.dropout
    self.norm1, self.norm2 = layer_norm(self.dtype), layer_norm(self.dtype)
    self.attention = Attention(
      self.width, self.heads, self.causal, True, rate, rate, self.dtype
    )
    self.fc1 = dense(4 * self.width, ('embed', 'mlp'), self.dtype)
    self.fc2 = dense(self.width, ('mlp', 'embed'), self.dtype)
    self.drop1, self.drop2 = Dropout(rate), Dropout(rate)

  def mlp(self, x: Array, train: bool) -> Array:
    """x [N, T, D] to the same, dropout included."""
    x = gelu(self.fc1(x))
    x = self.fc2(self.drop1(x, deterministic=not train))
    return self.drop2(x, deterministic=not train)

  @property
  def dropouts(self) -> tuple[tuple[Dropout, Dropout], tuple[Dropout, Dropout]]:
    """Dropouts per half: (of the weights, of the output), (hidden, output)."""
    attention = self.attention.drop_weights, self.attention.drop
    return attention, (self.drop1, self.drop2)


class LlamaBlock(Block):
  """RMSNorm and SwiGLU, without biases; rotary positions."""

  def setup(self) -> None:
    hidden = swiglu_width(self.width)
    self.norm1, self.norm2 = rms_norm(self.dtype), rms_norm(self.dtype)
    self.attention = Attention(
      self.width, self.heads, self.causal, False, self.dropout, 0.0, self.dtype
    )
    axes = ('embed', 'mlp')
    self.w1 = dense(hidden, axes, self.dtype, bias=False)
    self.w3 = dense(hidden, axes, self.dtype, bias=False)
    self.w2 = dense(self.width, axes[::-1], self.dtype, bias=False)
    self.drop = Dropout(self.dropout)

  def mlp(self, x: Array, train: bool) -> Array:
    """x [N, T, D] to the same, dropout included."""
    x = self.w2(swiglu(self.w3(x), self.w1(x)))
    return self.drop(x, deterministic=not train)

  @property
  def dropouts(self) -> tuple[tuple[Dropout, Dropout], tuple[None, Dropout]]:
    """Dropouts as of ViTBlock; the hidden layer has none."""
    attention = self.attention.drop_weights, self.attention.drop
    return attention, (None, self.drop)


def swiglu_width(width: int) -> int:
  """int(8 D / 3), rounded up to a multiple of 256."""
  return -(-int(8 * width / 3) // 256) * 256


def vit_flops(width: int, tokens: int) -> float:
  """FLOPs of a ViTBlock on a sequence, 2 per multiply-add."""
  return 24 * width * width * tokens + 4 * tokens * tokens * width


def stack(
  block: type, fields: dict, depth: int, remat: str, unroll: bool
) -> nn.Module:
  """`depth` blocks, scanned; call it with (x, turns, train).

  Its parameters carry a leading axis `layers`. `unroll` writes the layers one
  after another: a few small ones run faster so, and compile longer.
  """
  if REMAT[remat] is not None:
    block = nn.remat(
      block, policy=REMAT[remat], prevent_cse=unroll, static_argnums=(3,)
    )
  scanned = nn.scan(
    block,
    length=depth,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=(nn.broadcast, nn.broadcast),
    metadata_params={nn.PARTITION_NAME: 'layers'},
    unroll=depth if unroll else 1,
  )
  return scanned(**fields)


def step_stack(
  block: nn.Module,
  params: dict,
  x: Array,
  cache: Array,
  t: Array,
  turns: Array | None,
) -> tuple[Array, Array]:
  """One token through all layers of a `stack`, with its cache.

  Args:
    block: the stack's block, unbound.
    params: the stack's parameters, each with a leading axis `layers`.
    x: [N, 1, D], token t.
    cache: [layers, 2, N, T, H, K] keys and values of tokens 0 .. t - 1.
    t: position.
    turns: [2, 1, K/2] rotary angles of token t, or None.

  Returns:
    The output [N, 1, D] and the new cache.
  """
  depth = cache.shape[0]

  def body(carry, layer):
    p, i = layer
    out = block.apply({'params': p}, *carry, i, t, turns, method='step')
    return out, None

  carry, _ = jax.lax.scan(
    body,
    (x, cache),
    (params, jnp.arange(depth)),
    unroll=depth if unrolls(depth) else 1,
  )
  return carry


def fill_cache(
  block: nn.Module, params: dict, x: Array, cache: Array, turns: Array | None
) -> Array:
  """The first tokens through all layers of a causal `stack` at once.

  Args:
    block: the stack's block, unbound; it has a method `fill`.
    params: the stack's parameters, each with a leading axis `layers`.
    x: [N, t, D], tokens 0 .. t - 1.
    cache: [layers, 2, N, T, H, K].
    turns: [2, t, K/2] rotary angles of these tokens, or None.

  Returns:
    The cache as `step_stack` leaves it after token t - 1.
  """
  depth = cache.shape[0]
  call = lambda x, p: block.apply({'params': p}, x, turns, method='fill')
  _, new = jax.lax.scan(call, x, params, unroll=depth if unrolls(depth) else 1)
  return cache.at[:, :, :, : x.shape[1]].set(new.astype(cache.dtype))


def narrow_stack(
  block: nn.Module, params: dict, x: Array, places: Array
) -> Array:
  """A `stack` whose output is wanted at a few places.

  The last layer works for these alone: of all other tokens it needs keys and
  values only.

  Args:
    block: the stack's block, unbound; it has a method `at`.
    params: the stack's parameters, each with a leading axis `layers`.
    x: [N, T, D].
    places: [N, W] tokens.

  Returns:
    [N, W, D].
  """
  depth = len(jax.tree.leaves(params)[0])

  def layer(i):
    return {'params': jax.tree.map(lambda p: p[i], params)}

  def body(x, i):
    return block.apply(layer(i), x, None, False)

  # Layers are picked from the whole stack: a slice of it would be a copy.
  unroll = depth if unrolls(depth) else 1
  x, _ = jax.lax.scan(body, x, jnp.arange(depth - 1), unroll=unroll)
  return block.apply(layer(depth - 1), x, places, method='at')


def unrolls(depth: int) -> bool:
  """Whether a generating stack is written out rather than looped over."""
  return depth <= 8


def empty_cache(spec: Spec, sequences: int, tokens: int) -> Array:
  """Keys and values [layers, 2, N, T, H, K] of a level, of no token yet."""
  heads = spec.heads, spec.width // spec.heads
  return jnp.zeros((spec.depth, 2, sequences, tokens, *heads), spec.dtype)
