"""Level kind "independent": all patches at once, none seeing another.

Sequence [c_{n-1} ; ... ; c_0 ; p_1 ; ... ; p_L] whose patch tokens are learned
positions alone: the conditions of all patches follow from those of the square
in one pass. Given these, patches are independent, so the likelihood is exact.
What a decoder without autoregression would be; docs/ablations.md compares it
with "ar" and "mar". Axis letters: types.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax import sharding
from fractal_jax.models import layers
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.keys import fold_in
from fractal_jax.models.level import AllDown
from fractal_jax.models.patches import patchify, unpatchify
from fractal_jax.models.types import (
  Array,
  DrawPatch,
  Network,
  Request,
  Sampling,
  Spec,
  Steps,
  undrawn,
)


class IndependentLevel(AllDown):
  """A level whose patches are independent given its conditions."""

  WORD = 'independent'
  BLOCK = layers.ViTBlock

  @staticmethod
  def sequence_length(spec: Spec) -> int:
    return spec.num_conds + spec.length

  @staticmethod
  def published(spec: Spec) -> None:
    del spec

  def setup(self) -> None:
    s = self.spec
    self.cond_embed = layers.dense(s.width, ('embed', 'width'), s.dtype)
    self.positions = self.param(
      'positions',
      layers.logical(layers.TABLE, None, 'embed'),
      (self.sequence_length(s), s.width),
    )
    self.norm_in = layers.layer_norm(s.dtype)
    fields = layers.fields(s, causal=False)
    scan = kernels.scan_of(s, self.sequence_length(s))
    self.blocks = layers.stack(self.BLOCK, fields, s.depth, *scan)
    self.norm_out = layers.layer_norm(s.dtype)

  def outputs(
    self, patches: Array | None, conds: Array, *, train: bool
  ) -> Array:
    """Conditions of the square [N, n, Dc] to those of its patches [N, L, D]."""
    del patches  # no patch sees another
    s = self.spec
    front = self.cond_embed(conds[:, ::-1])  # [N, n, D], the last one first
    x = jnp.pad(front, ((0, 0), (0, s.length), (0, 0)))  # [N, n + L, D]
    positions = sharding.gathered(self.positions, None, 'embed')
    x = self.norm_in(x + positions.astype(x.dtype))
    x = kernels.through(self.blocks, s, x, None, train=train)
    return self.norm_out(x[:, s.num_conds :])  # [N, L, D]

  @staticmethod
  def generate(
    networks: list[Network],
    request: Request,
    sampling: Sampling,
    draw_patch: DrawPatch,
    order: Array | None = None,
  ) -> Steps:
    """All patches in one step; see level.Level. Guidance is at full scale.

    At level 0 the step is guided where the interval of guidance begins at 0.
    """
    del order
    s, n = networks[0].spec, len(request.keys)
    if s.index == 0 and not sampling.guides(0):
      networks = networks[:1]
    given = jax.tree.map(lambda x: patchify(x, s), request.given)

    def conds_below(network, conds):  # [G, N, n, .] to [G, N L, 1, D]
      rows = conds.reshape((-1,) + conds.shape[2:])
      out = network.generating()('outputs', None, rows, train=False)
      return out.reshape(len(conds), n * s.length, 1, network.spec.width)

    def step(t, drawn):
      del t
      wanted = Request(
        conds=tuple(map(conds_below, networks, request.conds)),
        keys=fold_in(request.keys[:, None], jnp.arange(s.length)).reshape(-1),
        guidance=request.guidance,
        given=jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), given),
      )
      new = draw_patch(wanted)  # [N L, p, (p,) C]
      if sampling.record:  # counted in values: all patches take turns
        new = new.replace(when=new.when * s.length)
      return jax.tree.map(lambda old, x: x.reshape(old.shape), drawn, new)

    shape = (n, s.length) + (s.patch,) * s.rank + (s.channels,)
    return Steps(
      count=1,
      start=undrawn(shape, sampling, given),
      step=step,
      drawn=lambda drawn: jax.tree.map(lambda x: unpatchify(x, s), drawn),
    )

  # Counting FLOPs, for planning/cost.py.

  @nn.nowrap
  def flops(self) -> float:
    """FLOPs of scoring one square: one pass over its sequence."""
    s = self.spec
    embed = 2 * s.width * s.num_conds * s.cond_width
    tokens = self.sequence_length(s)
    return embed + s.depth * layers.vit_flops(s.width, tokens)
