"""Level kind "ar": patches one after another, in raster order.

Sequence [E_c c_0 ; E_x p_1 ; ... ; E_x p_L] through causal blocks; output j is
the condition of patch j + 1, and the last one is not used (section 4.1 of the
paper, FractalAR). Axis letters: types.py.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import sharding
from fractal_jax.models import layers, published
from fractal_jax.models.chunked import chunked
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.keys import fold_in
from fractal_jax.models.level import all_down, check_rows
from fractal_jax.models.patches import flatten_patches, patchify, unpatchify
from fractal_jax.models.types import (
  Array,
  Draws,
  Network,
  Request,
  Rows,
  Sampling,
  Spec,
  Steps,
  undrawn,
)


class ARLevel(nn.Module):
  """An autoregressive level."""

  spec: Spec

  BLOCK = layers.LlamaBlock
  MASKS = False
  EXACT = True
  GUIDES = False

  @staticmethod
  def conditions(rank: int) -> tuple[str, ...]:
    del rank
    return ('itself',)

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

  def setup(self):
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
    return sharding.gathered(self.positions, None, 'embed')  # [1 + L, D]

  @nn.nowrap
  def turns(self) -> Array:
    s = self.spec
    return layers.rotary_angles(s.grid, s.width // s.heads)  # [2, 1 + L, K/2]

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

  def __call__(self, rows: Rows, draws: Draws, mask=None, *, train: bool):
    """All patches go down; see level.Level."""
    del draws, mask
    check_rows(rows, self.spec)
    patches = patchify(rows.squares, self.spec)
    outputs = lambda level, *rows: level.outputs(*rows, train=train)
    conds = chunked(outputs, self, patches, rows.conds)  # [N, L, D]
    return all_down(rows, conds, self.spec), None, jnp.zeros((), jnp.int32)

  # Generating.

  def token(self, patch: Array, conds: Array, t: Array) -> Array:
    """Token t [G N, 1, D]: the condition at t = 0, else patch t."""
    s = self.spec
    x = self.patch_embed(flatten_patches(patch[:, None], s))
    x = jnp.tile(x, (len(conds) // len(x), 1, 1))
    x = jnp.where(t == 0, self.cond_embed(conds[:, :1]), x)
    return self.norm_in(x + self.table()[t].astype(x.dtype))

  def output(self, x: Array) -> Array:
    return self.norm_out(x)

  @staticmethod
  def generate(
    networks: list[Network],
    request: Request,
    sampling: Sampling,
    draw_patch,
    order=None,
  ) -> Steps:
    """One patch after another, in raster order, with a key-value cache.

    See level.Level. At level 0 a linear schedule raises the guidance from
    almost 1 to its full scale at the last patch, and the guide runs in the
    interval of guidance alone: there it first reads what was drawn before.
    """
    del order
    s = networks[0].spec
    streams = [
      Stream(net.generating(), c) for net, c in zip(networks, request.conds)
    ]
    linear = s.index == 0 and sampling.schedule == 'linear'
    given = jax.tree.map(
      lambda x: patchify(x, s).swapaxes(0, 1), request.given
    )  # [L, N, p, (p,) C]

    def step(count, t, state):
      """Draws patch t with the first `count` streams."""
      patch, caches, drawn = state
      used = zip(streams[:count], caches)
      conds, new = zip(*(x.step(patch, cache, t) for x, cache in used))
      scale = request.guidance
      if linear:
        scale = 1 + (scale - 1) * (t + 1) / s.length
      wanted = Request(
        conds=conds,
        keys=fold_in(request.keys, t),
        guidance=scale,
        given=jax.tree.map(lambda x: x[t], given),
      )
      found = draw_patch(wanted)
      if sampling.record:  # counted in values: of earlier patches, all
        found = found.replace(when=found.when + t * s.patch_values)
      drawn = jax.tree.map(lambda all, x: all.at[t].set(x), drawn, found)
      return found.values, (*new, *caches[count:]), drawn

    on = np.array(
      [s.index > 0 or sampling.guides(t / s.length) for t in range(s.length)]
    )
    counts = np.where(on, len(streams), 1)
    begin = int(on.argmax())  # when the guide does, if it runs at all

    def guided_step(t, state):
      patch, (first, *others), drawn = state
      catch_up = lambda caches: [
        x.filled(cache, drawn.values[: begin - 1])
        for x, cache in zip(streams[1:], caches)
      ]
      if begin:
        others = jax.lax.cond(t == begin, catch_up, lambda x: x, others)
      return step(len(streams), t, (patch, (first, *others), drawn))

    n = len(request.keys)
    shape = (n,) + (s.patch,) * s.rank + (s.channels,)
    drawn = undrawn((s.length,) + shape, sampling, given)
    branches = {1: functools.partial(step, 1), len(streams): guided_step}
    branches = [branches[count] for count in np.unique(counts)]
    branch = jnp.asarray(np.searchsorted(np.unique(counts), counts))
    return Steps(
      count=s.length,
      start=(
        jnp.zeros(shape, jnp.int32),
        tuple(x.empty_cache() for x in streams),
        drawn,
      ),
      step=lambda t, state: jax.lax.switch(branch[t], branches, t, state),
      drawn=lambda state: jax.tree.map(
        lambda x: unpatchify(x.swapaxes(0, 1), s), state[-1]
      ),
    )

  # Counting FLOPs, for planning/cost.py.

  @nn.nowrap
  def flops(self) -> float:
    """Of one sequence."""
    s = self.spec
    d, t = s.width, s.length  # the condition takes the last patch's place
    layer = 2 * t * (4 * d * d + 3 * d * layers.swiglu_width(d)) + 4 * t * t * d
    embed = 2 * d * (s.cond_width + (t - 1) * s.patch_values)
    return s.depth * layer + embed

  @nn.nowrap
  def sample_flops(self, iterations: int) -> float:
    """With the cache, those of one pass."""
    del iterations
    return self.flops()

  @nn.nowrap
  def share(self, law: str) -> float:
    del law
    return 1.0


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
  def blocks(self):
    """The block, and the parameters of the stack."""
    fields = layers.fields(self.network.spec, causal=True)
    block = layers.LlamaBlock(**fields, parent=None)
    return block, self.network.params['blocks']

  def empty_cache(self) -> Array:
    s = self.network.spec
    return layers.empty_cache(
      s.depth, len(self.rows), s.length, s.heads, s.width // s.heads, s.dtype
    )

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
    x = self.network('output', x)
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
