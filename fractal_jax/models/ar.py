"""Level kind "ar": patches one after another, in raster order.

Sequence [E_c c_0 ; E_x p_1 ; ... ; E_x p_L] through causal blocks; output j is
the condition of patch j + 1, and the last one is not used (section 4.1 of the
paper, FractalAR). Axis letters: types.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    self.blocks = layers.stack(self.BLOCK, self.block_fields(), s.depth, *scan)
    self.norm_out = layers.layer_norm(s.dtype)

  @nn.nowrap
  def block_fields(self):
    s = self.spec
    return dict(
      width=s.width,
      heads=s.heads,
      causal=True,
      dropout=s.dropout,
      dtype=s.dtype,
    )

  def table(self) -> Array:
    return sharding.gathered(self.positions, None, 'embed')  # [1 + L, D]

  @nn.nowrap
  def turns(self) -> Array:
    s = self.spec
    return layers.rotary_angles(s.grid, s.width // s.heads)  # [2, 1 + L, K/2]

  # Teacher-forced.

  def outputs(self, patches: Array, conds: Array, *, train: bool) -> Array:
    """Patches [N, L, p, (p,) C], conditions to the patches' own [N, L, D]."""
    s = self.spec
    first = self.cond_embed(conds[:, :1])  # [N, 1, D]
    # Patch L is never a condition: nothing follows it.
    x = self.patch_embed(flatten_patches(patches[:, :-1], s))
    x = jnp.concatenate([first, x], 1)  # [N, L, D]
    positions = self.table()[: s.length]
    x = self.norm_in(x + positions.astype(x.dtype))
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

  @nn.nowrap  # pure: it calls `apply` itself, inside loops
  def generate(
    self,
    params,
    request: Request,
    sampling: Sampling,
    draw_patch,
    order=None,
  ) -> Steps:
    """One patch after another, in raster order, with a key-value cache.

    See level.Level. At level 0 a linear schedule raises the guidance from
    almost 1 to its full scale at the last patch.
    """
    del order
    s = self.spec
    level = self.clone(spec=dataclasses.replace(s, remat='none'))
    streams, n = request.conds.shape[:2]
    conds = request.conds.reshape((streams * n,) + request.conds.shape[2:])
    turns = self.turns()
    block = layers.LlamaBlock(**self.block_fields())
    linear = s.index == 0 and sampling.schedule == 'linear'

    def call(method, *args):
      return level.apply({'params': params}, *args, method=method)

    given = jax.tree.map(
      lambda x: patchify(x, s).swapaxes(0, 1), request.given
    )  # [L, N, p, (p,) C]

    def step(t, state):
      patch, cache, drawn = state
      x = call('token', patch, conds, t)
      turn = jax.lax.dynamic_slice_in_dim(turns, t, 1, 1)
      x, cache = layers.step_stack(block, params['blocks'], x, cache, t, turn)
      scale = request.guidance
      if linear:
        scale = 1 + (scale - 1) * (t + 1) / s.length
      wanted = Request(
        conds=call('output', x).reshape(streams, n, 1, s.width),
        keys=fold_in(request.keys, t),
        guidance=scale,
        given=jax.tree.map(lambda x: x[t], given),
      )
      new = draw_patch(wanted)
      if sampling.record:  # counted in values: of earlier patches, all
        new = new.replace(when=new.when + t * s.patch_values)
      drawn = jax.tree.map(lambda all, x: all.at[t].set(x), drawn, new)
      return new.values, cache, drawn

    shape = (n,) + (s.patch,) * s.rank + (s.channels,)
    cache = layers.empty_cache(
      s.depth, streams * n, s.length, s.heads, s.width // s.heads, s.dtype
    )
    drawn = undrawn((s.length,) + shape, sampling, given)
    return Steps(
      count=s.length,
      start=(jnp.zeros(shape, jnp.int32), cache, drawn),
      step=step,
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
