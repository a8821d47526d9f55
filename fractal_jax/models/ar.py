"""Level kind "ar": patches one after another, in raster order.

Sequence [E_c c_0 ; E_x p_1 ; ... ; E_x p_L] through causal blocks; output j is
the condition of patch j + 1, and the last one is not used (section 4.1 of the
paper, FractalAR). Axis letters: types.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import sharding
from fractal_jax.models import layers, published
from fractal_jax.models.attention import rotary_angles
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.keys import fold_in
from fractal_jax.models.level import AllDown
from fractal_jax.models.patches import flatten_patches, patchify, unpatchify
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
  undrawn,
)


class ARLevel(AllDown):
  """An autoregressive level."""

  WORD = 'autoregressive'
  BLOCK = layers.LlamaBlock

  @staticmethod
  def takes(num_conds: int) -> int:
    return min(num_conds, 1)

  @staticmethod
  def published(spec: Spec) -> published.Table:
    return published.level(spec.depth, published.LLAMA)

  @staticmethod
  def sequence_length(spec: Spec) -> int:
    return spec.length  # the condition takes the last patch's place

  @staticmethod
  def problems(spec: Spec) -> list[str]:
    head = spec.width // spec.heads
    if head % (2 * spec.rank):
      return [
        f'model.heads[{spec.index}]={spec.heads} makes heads of size {head}; '
        f'rotary positions of rank {spec.rank} need a multiple of '
        f'{2 * spec.rank}: change heads or widths[{spec.index}]'
      ]
    return []

  def setup(self) -> None:
    s = self.spec
    self.patch_embed = layers.dense(s.width, ('patch', 'width'), s.dtype)
    self.cond_embed = layers.dense(s.width, ('embed', 'width'), s.dtype)
    self.positions = self.param(
      'positions',
      layers.logical(layers.TABLE, None, 'embed'),
      (s.length + 1, s.width),
    )
    self.norm_in = layers.layer_norm(s.dtype)
    scan = kernels.scan_of(s, self.sequence_length(s))
    fields = layers.fields(s, causal=True)
    self.blocks = layers.stack(self.BLOCK, fields, s.depth, *scan)
    self.norm_out = layers.layer_norm(s.dtype)

  def table(self) -> Array:
    """The embeddings of positions, [1 + L, D]."""
    return sharding.gathered(self.positions, None, 'embed')  # [1 + L, D]

  @nn.nowrap
  def turns(self) -> Array:
    """Rotary angles [2, 1 + L, K/2] of heads of size K (layers.py)."""
    s = self.spec
    return rotary_angles(s.grid, s.width // s.heads)  # [2, 1 + L, K/2]

  def tokens(self, patches: Array, conds: Array) -> Array:
    """Patches [N, t, p, (p,) C] and conditions to tokens [N, 1 + t, D]."""
    first = self.cond_embed(conds[:, :1])  # [N, 1, D]
    x = self.patch_embed(flatten_patches(patches, self.spec))
    x = jnp.concatenate([first, x], 1)  # [N, 1 + t, D]
    return self.norm_in(x + self.table()[: x.shape[1]].astype(x.dtype))

  # Teacher-forced.

  def outputs(self, patches: Array, conds: Array, *, train: bool) -> Array:
    """Patches [N, L, p, (p,) C], conditions to the patches' own [N, L, D]."""
    s = self.spec
    # Patch L is never a condition: nothing follows it.
    x = self.tokens(patches[:, :-1], conds)
    turns = self.turns()[:, : s.length]
    x = kernels.through(self.blocks, s, x, turns, train=train)
    return self.norm_out(x)  # [N, L, D]

  # Generating.

  def token(self, patch: Array, conds: Array, t: Array) -> Array:
    """Token t [G N, 1, D]: the condition at t = 0, else patch t."""
    s = self.spec
    x = self.patch_embed(flatten_patches(patch[:, None], s))
    x = jnp.tile(x, (len(conds) // len(x), 1, 1))
    x = jnp.where(t == 0, self.cond_embed(conds[:, :1]), x)
    return self.norm_in(x + self.table()[t].astype(x.dtype))

  @staticmethod
  def generate(
    networks: list[Network],
    request: Request,
    sampling: Sampling,
    draw_patch: DrawPatch,
    order: Array | None = None,
  ) -> Steps:
    """One patch after another, in raster order, with a key-value cache.

    See level.Level, and RasterSquares.
    """
    del order
    streams = [
      Stream(net.generating(), c) for net, c in zip(networks, request.conds)
    ]
    return RasterSquares(streams, request, sampling, draw_patch).steps()

  # Counting FLOPs, for planning/cost.py.

  @nn.nowrap
  def flops(self) -> float:
    """FLOPs of scoring one square: one pass over its sequence."""
    s = self.spec
    d, t = s.width, s.length  # the condition takes the last patch's place
    layer = 2 * t * (4 * d * d + 3 * d * layers.swiglu_width(d)) + 4 * t * t * d
    embed = 2 * d * (s.cond_width + (t - 1) * s.patch_values)
    return s.depth * layer + embed


@dataclasses.dataclass(frozen=True)
class Stream:
  """One network's part in generating a level's squares, patch by patch."""

  network: Network
  conds: Array  # [G, N, 1, D of the level above]

  @property
  def rows(self) -> Array:
    """The conditions [G N, 1, .]."""
    return self.conds.reshape((-1,) + self.conds.shape[2:])

  @property
  def blocks(self) -> tuple[nn.Module, dict]:
    """The block, and the parameters of the stack."""
    fields = layers.fields(self.network.spec, causal=True)
    block = layers.LlamaBlock(**fields, parent=None)
    return block, self.network.params['blocks']

  def step(self, patch: Array, cache: Array, t: Array) -> tuple[Array, Array]:
    """Patch t - 1 [N, p, (p,) C] to the conditions [G, N, 1, D] of patch t.

    Args:
      patch: the patch drawn last; not read at t = 0.
      cache: of the tokens before.
      t: a scalar.

    Returns:
      The conditions, and the cache with token t.
    """
    s = self.network.spec
    x = self.network('token', patch, self.rows, t)
    turn = jax.lax.dynamic_slice_in_dim(self.network.level.turns(), t, 1, 1)
    x, cache = layers.step_stack(*self.blocks, x, cache, t, turn)
    x = self.network(lambda level, x: level.norm_out(x), x)
    return x.reshape(*self.conds.shape[:2], 1, s.width), cache

  def filled(self, cache: Array, patches: Array) -> Array:
    """The cache after patches [t, N, p, (p,) C], the first ones, all drawn."""
    patches = patches.swapaxes(0, 1)
    patches = jnp.tile(
      patches, (self.conds.shape[0],) + (1,) * (patches.ndim - 1)
    )
    x = self.network('tokens', patches, self.rows)
    turns = self.network.level.turns()[:, : x.shape[1]]
    return layers.fill_cache(*self.blocks, x, cache, turns)


class State(NamedTuple):
  """Squares between two steps."""

  patch: Array  # [N, p, (p,) C], the one drawn last
  caches: tuple[Array, ...]  # of each stream
  drawn: Drawn  # [L, N, p, (p,) C]


@dataclasses.dataclass(frozen=True)
class RasterSquares:
  """N squares of an autoregressive level that are generated.

  At level 0 a linear schedule raises the guidance from almost 1 to its full
  scale at the last patch, and the guide runs in the interval of guidance alone:
  where that begins, it first reads what was drawn before.
  """

  streams: list[Stream]
  request: Request
  sampling: Sampling
  draw_patch: DrawPatch  # the next level

  @property
  def spec(self) -> Spec:
    """The level; that of a guide has the same sizes."""
    return self.streams[0].network.spec

  @functools.cached_property
  def given(self) -> Given | None:
    """What is known, by patches: [L, N, p, (p,) C]."""
    return jax.tree.map(
      lambda x: patchify(x, self.spec).swapaxes(0, 1), self.request.given
    )

  @functools.cached_property
  def guided(self) -> np.ndarray:
    """[L] whether all streams run for a patch, or the first one alone."""
    s = self.spec
    there = np.arange(s.length) / s.length
    return np.array([s.index > 0 or self.sampling.guides(x) for x in there])

  def steps(self) -> Steps:
    """All steps, whose result are the squares."""
    s, n = self.spec, len(self.request.keys)
    used = np.where(self.guided, len(self.streams), 1)
    sizes, branch = np.unique(used, return_inverse=True)
    branches = [functools.partial(self.step, size) for size in sizes.tolist()]
    branch = jnp.asarray(branch)
    shape = (n,) + (s.patch,) * s.rank + (s.channels,)
    return Steps(
      count=s.length,
      start=State(
        jnp.zeros(shape, jnp.int32),
        tuple(
          layers.empty_cache(x.network.spec, len(x.rows), s.length)
          for x in self.streams
        ),
        undrawn((s.length,) + shape, self.sampling, self.given),
      ),
      step=lambda t, state: jax.lax.switch(branch[t], branches, t, state),
      drawn=lambda state: jax.tree.map(
        lambda x: unpatchify(x.swapaxes(0, 1), s), state.drawn
      ),
    )

  def step(self, size: int, t: Array, state: State) -> State:
    """Draws patch t with the first `size` streams."""
    s, request = self.spec, self.request
    caches = self.caught_up(t, state) if size > 1 else state.caches
    used = zip(self.streams[:size], caches)
    conds, new = zip(*(x.step(state.patch, cache, t) for x, cache in used))
    scale = request.guidance
    if s.index == 0 and self.sampling.schedule == 'linear':
      scale = 1 + (scale - 1) * (t + 1) / s.length
    wanted = Request(
      conds=conds,
      keys=fold_in(request.keys, t),
      guidance=scale,
      given=jax.tree.map(lambda x: x[t], self.given),
    )
    found = self.draw_patch(wanted)
    if self.sampling.record:  # counted in values: of earlier patches, all
      found = found.replace(when=found.when + t * s.patch_values)
    drawn = jax.tree.map(lambda all, x: all.at[t].set(x), state.drawn, found)
    return State(found.values, (*new, *caches[size:]), drawn)

  def caught_up(self, t: Array, state: State) -> tuple[Array, ...]:
    """The caches, where step t is the guide's first with all it missed."""
    first = int(self.guided.argmax())
    if not first:
      return state.caches
    missed = state.drawn.values[: first - 1]
    own, *others = state.caches
    fill = lambda caches: [
      x.filled(cache, missed) for x, cache in zip(self.streams[1:], caches)
    ]
    others = jax.lax.cond(t == first, fill, lambda x: x, others)
    return (own, *others)
