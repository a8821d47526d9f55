"""Level kind "mar": masked patches, any order, several at a time.

Sequence [guide? ; c_{n-1} ; ... ; c_0 ; patches] in which every token sees
every token (section 4.1 of the paper, FractalMAR). A masked patch's condition
is its own output and those of its neighbours; only masked patches go down.
Axis letters: types.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import sharding
from fractal_jax.models import layers, masking, pixel, published, unmasking
from fractal_jax.models.chunked import chunked
from fractal_jax.models.kernels import blocks as kernels
from fractal_jax.models.keys import Salt, fold_in
from fractal_jax.models.level import check_rows
from fractal_jax.models.patches import flatten_patches, normalise, patchify
from fractal_jax.models.types import (
  Array,
  DrawPatch,
  Draws,
  Given,
  Network,
  Request,
  Rows,
  Sampling,
  Scores,
  Spec,
  Steps,
)

# By rank: whose outputs are a patch's conditions, and how far these are away.
OFFSETS = {
  1: {'itself': (0,), 'before': (-1,), 'after': (1,)},
  2: {
    'itself': (0, 0),
    'top': (-1, 0),
    'right': (0, 1),
    'bottom': (1, 0),
    'left': (0, -1),
  },
}


def mean_colour(squares: Array, spec: Spec) -> Array:
  """The mean of squares [N, s, (s,) C] over their pixels, [N, C]."""
  return squares.astype(jnp.float32).mean(tuple(range(1, spec.rank + 1)))


def possible_means(given: Given, spec: Spec) -> tuple[Array, Array]:
  """The least and the largest guide, [N, C] int32, of partly known squares."""
  ends = (
    mean_colour(jnp.where(given.known, given.values, unknown), spec)
    for unknown in (0, spec.values - 1)
  )
  return tuple(jnp.round(x).astype(jnp.int32) for x in ends)


class MARLevel(nn.Module):
  """A masked level."""

  spec: Spec

  WORD = 'masked'
  BLOCK = layers.ViTBlock
  MASKS = True
  EXACT = False
  CAUSAL = False
  GUIDES = True

  @staticmethod
  def conditions(rank: int) -> tuple[str, ...]:
    return tuple(OFFSETS[rank])

  @staticmethod
  def takes(num_conds: int) -> int:
    return num_conds

  @staticmethod
  def sequence_length(spec: Spec) -> int:
    return spec.guide + spec.num_conds + spec.length

  @staticmethod
  def problems(spec: Spec) -> list[str]:
    del spec
    return []

  @staticmethod
  def published(spec: Spec) -> published.Table:
    table = published.level(spec.depth, published.VIT)
    table['mask_token',] = ['mask_token'], published.ROWS
    if spec.guide:
      table |= published.linear('guide_embed', 'pix_proj')
      guide = pixel.PixelLevel.published(pixel.guide_spec(spec))
      table |= published.within(('guide',), 'guiding_pixel_loss.', guide)
    return table

  def setup(self) -> None:
    s = self.spec
    self.patch_embed = layers.dense(s.width, ('patch', 'width'), s.dtype)
    self.cond_embed = layers.dense(s.width, ('embed', 'width'), s.dtype)
    table = layers.logical(layers.TABLE, None, 'embed')
    self.mask_token = self.param('mask_token', table, (1, s.width))
    tokens = self.sequence_length(s)
    self.positions = self.param('positions', table, (tokens, s.width))
    self.norm_in = layers.layer_norm(s.dtype)
    fields = layers.fields(s, causal=False)
    scan = kernels.scan_of(s, tokens)
    self.blocks = layers.stack(self.BLOCK, fields, s.depth, *scan)
    self.norm_out = layers.layer_norm(s.dtype)
    if s.guide:
      self.guide_embed = layers.dense(s.width, ('patch', 'width'), s.dtype)
      self.guide = pixel.PixelLevel(pixel.guide_spec(s))

  def outputs(
    self,
    patches: Array,
    mask: Array,
    conds: Array,
    guide: Array | None,
    *,
    train: bool,
  ) -> Array:
    """The outputs of all patches, [M, L, D]. Arguments: see `tokens`."""
    s = self.spec
    x = self.tokens(patches, mask, conds, guide)
    x = kernels.through(self.blocks, s, x, None, train=train)
    return self.norm_out(x[:, s.guide + s.num_conds :])

  def tokens(
    self, patches: Array, mask: Array, conds: Array, guide: Array | None
  ) -> Array:
    """The sequence that the transformer reads.

    Args:
      patches: [N, L, p, (p,) C] values; those under the mask are not seen.
      mask: [N, L], True where masked.
      conds: [M, n, Dc]; M is N, or 2 N for two guidance streams.
      guide: [N, C] mean colour in grey levels, or None.

    Returns:
      [M, T, D] with T = guide + n + L.
    """
    s = self.spec
    x = self.patch_embed(flatten_patches(patches, s))  # [N, L, D]
    hidden = sharding.gathered(self.mask_token, None, 'embed')  # [1, D]
    # Not jnp.where: its gradient by `hidden` crosses devices before it is
    # summed over patches, as large as x.
    masked = mask[..., None].astype(x.dtype)
    x = x * (1 - masked) + hidden.astype(x.dtype) * masked
    if guide is not None:  # always the first token: see `front` below
      token = self.guide_embed(normalise(guide, s))[:, None]
      x = jnp.concatenate([token, x], 1)  # [N, 1 + L, D]
    x = jnp.tile(x, (len(conds) // len(x), 1, 1))  # [M, ., D]
    front = self.cond_embed(conds[:, s.num_conds - 1 :: -1])  # last one first
    x = jnp.concatenate([x[:, : s.guide], front, x[:, s.guide :]], 1)
    positions = sharding.gathered(self.positions, None, 'embed')  # [T, D]
    return self.norm_in(x + positions.astype(x.dtype))

  # Teacher-forced.

  def __call__(
    self,
    rows: Rows,
    draws: Draws,
    mask: ArrayLike | None = None,
    *,
    train: bool,
  ) -> tuple[Rows, Scores | None, Array]:
    """Masks patches at random, and sends the masked ones down.

    See level.Level; a given mask must be a concrete array, since the number of
    rows of the next level follows from it.
    """
    s = self.spec
    check_rows(rows, s)
    patches = patchify(rows.squares, s)
    weight = rows.weight
    mask, room, overflow = self.masked(rows, draws, mask)
    if draws.law == 'uniform':
      # L / n: a mean over the n masked patches stands for all L.
      weight = weight * s.length / jnp.maximum(mask.sum(1), 1)

    guide = scores = None
    if s.guide:
      guide, target = self.guide_target(rows, draws, train)
      nats = self.guide(rows.conds, target, train=train)
      scores = Scores(nats, rows.weight, rows.image, rows.site)
    outputs = lambda level, *rows: level.outputs(*rows, train=train)
    outputs = chunked(outputs, self, patches, mask, rows.conds, guide)

    index, filled, dropped = masking.compact(
      (mask & (rows.weight > 0)[:, None]).reshape(-1), room, overflow
    )
    row, place = index // s.length, index % s.length
    flat = patches.reshape((-1,) + patches.shape[2:])
    below = Rows(
      squares=flat[index],
      conds=self.conds_at(outputs, row, place),
      weight=jnp.where(filled, weight[row], 0),
      # Empty slots come last; their image keeps the order ascending.
      image=jnp.where(filled, rows.image[row], rows.image[-1]),
      site=rows.site[row] * s.length + place,
    )
    return below, scores, dropped

  def masked(
    self, rows: Rows, draws: Draws, mask: ArrayLike | None
  ) -> tuple[Array, int, Array | None]:
    """Which patches are masked, [N, L].

    Returns:
      Those given, or drawn; how many there can be; and the key that chooses
      which are dropped where there are more, None where there never are.
    """
    s = self.spec
    if mask is not None:
      return jnp.asarray(mask, bool), int(np.sum(mask)), None
    room = masking.capacity(s, draws.law, len(rows.weight), len(draws.keys))
    overflow = jax.random.fold_in(draws.keys[0], Salt.OVERFLOW.value + s.index)
    return masking.draw_mask(rows, draws, s), room, overflow

  def guide_target(
    self, rows: Rows, draws: Draws, train: bool
  ) -> tuple[Array, Array]:
    """What the guide is told, and what it predicts: [N, C], [N, C] int."""
    s = self.spec
    mean = noisy = mean_colour(rows.squares, s)
    if train and draws.keys is not None:
      # So that means of exactly n + 1/2 go either way.
      keys = fold_in(draws.keys[rows.image], rows.site + Salt.GUIDE_NOISE.value)
      noise = jax.vmap(lambda k: jax.random.normal(k, (s.channels,)))(keys)
      noisy = mean + 0.01 * noise
    target = jnp.round(noisy).clip(0, s.values - 1).astype(jnp.int32)
    # The bound on the likelihood holds for what generation is told: integers.
    return (target if draws.law == 'uniform' else mean), target

  def conds_at(self, outputs: Array, row: Array, place: Array) -> Array:
    """The conditions of patches: outputs [M, L, D], indices [...].

    Returns [..., n, D]: the patch's own output, then its neighbours', zeros
    outside the grid.
    """
    at, inside = self.neighbours(place)
    # One flat gather: its transpose is one scatter-add.
    flat = outputs.reshape(-1, self.spec.width)
    at = row[..., None] * self.spec.length + at
    return flat[at] * inside[..., None]

  @nn.nowrap
  def neighbours(self, place: Array) -> tuple[Array, Array]:
    """The patches whose outputs are a patch's conditions.

    Args:
      place: [...] indices of patches.

    Returns:
      Their indices [..., n], and whether they lie inside the grid (where not,
      the index is some other patch's).
    """
    s = self.spec
    cell = jnp.stack(jnp.unravel_index(place, s.grid), -1)  # [..., rank]
    offsets = list(OFFSETS[s.rank].values())[: s.out_conds]
    cell = cell[..., None, :] + jnp.asarray(offsets)  # [..., n, rank]
    inside = ((cell >= 0) & (cell < jnp.asarray(s.grid))).all(-1)
    at = jnp.ravel_multi_index(
      tuple(jnp.moveaxis(cell, -1, 0)), s.grid, mode='clip'
    )
    return at, inside

  # Generating.

  @staticmethod
  def generate(
    networks: list[Network],
    request: Request,
    sampling: Sampling,
    draw_patch: DrawPatch,
    order: Array | None = None,
  ) -> Steps:
    """Several patches per step, in an order for each square.

    See level.Level, and unmasking.py.
    """
    colour = None
    if networks[0].spec.guide:
      colour = draw_guide(networks, request, sampling)
    return unmasking.MaskedSquares(
      networks=[
        net.generating(unroll=layers.unrolls(net.spec.depth))
        for net in networks
      ],
      request=request,
      sampling=sampling,
      draw_patch=draw_patch,
      guide=colour,
      order=order,
    ).steps()

  @staticmethod
  def branches(spec: Spec, sampling: Sampling, networks: int) -> np.ndarray:
    order = sampling.order[spec.index]
    steps = unmasking.plan(spec, sampling, order, networks)
    taken = np.bincount(steps.program, minlength=len(steps.programs))
    return taken / taken.sum()

  @nn.nowrap
  def conds_of(
    self,
    params: dict,
    patches: Array,
    mask: Array,
    conds: Array,
    guide: Array | None,
    place: Array,
  ) -> Array:
    """The conditions of some patches, [M, m, n, D], of place [M, m].

    The other arguments are those of `outputs`.
    """
    s = self.spec

    def run(method, *args, **how):
      return self.apply({'params': params}, *args, method=method, **how)

    at, inside = self.neighbours(place)  # [M, m, n]
    tokens = self.sequence_length(s)
    # Most outputs are wanted, some of them twice; or kernels compute them all.
    if at[0].size >= s.length or kernels.rows_of(s, tokens) is not None:
      outputs = run('outputs', patches, mask, conds, guide, train=False)
      return self.conds_at(outputs, jnp.arange(len(place))[:, None], place)
    x = run('tokens', patches, mask, conds, guide)
    places = at.reshape(len(at), -1) + s.guide + s.num_conds
    block = layers.ViTBlock(**layers.fields(s, causal=False), parent=None)
    x = layers.narrow_stack(block, params['blocks'], x, places)
    x = run(lambda level, x: level.norm_out(x), x)
    return x.reshape(at.shape + (s.width,)) * inside[..., None]

  # Counting FLOPs, for planning/cost.py.

  @nn.nowrap
  def flops(self) -> float:
    """FLOPs of scoring one square, its guide's prediction included."""
    return self.outputs_flops() + self.guide_flops()

  @nn.nowrap
  def outputs_flops(self) -> float:
    """FLOPs of one pass over the sequence, without the guide's prediction."""
    s = self.spec
    d, t = s.width, self.sequence_length(s)
    embed = s.length * s.patch_values + s.num_conds * s.cond_width
    embed += s.guide * s.channels
    return 2 * d * embed + s.depth * layers.vit_flops(d, t)

  @nn.nowrap
  def guide_flops(self) -> float:
    """FLOPs of predicting the guiding pixel of one square; 0 without."""
    s = self.spec
    return pixel.PixelLevel(pixel.guide_spec(s)).flops() if s.guide else 0.0

  @nn.nowrap
  def sample_flops(self, iterations: int) -> float:
    """FLOPs of generating one square: a pass per iteration, and one guide.

    The last layer computes the outputs that are conditions, and no others.
    """
    s = self.spec
    d, t = s.width, self.sequence_length(s)
    left = np.array([s.length] + masking.unmask_counts(s.length, iterations))
    wanted = np.minimum((left[:-1] - left[1:]) * s.out_conds, s.length)
    idle = float((t - wanted).sum()) * (20 * d * d + 4 * t * d)
    passes = len(wanted) * self.outputs_flops()
    return passes - (idle if s.depth else 0) + self.guide_flops()

  @nn.nowrap
  def share(self, law: str) -> float:
    """E[n] / L, of the number n of masked patches."""
    strata = (np.arange(1 << 16) + 0.5) / (1 << 16)
    counts = masking.counts(strata, self.spec, law, np)
    return counts.mean() / self.spec.length


def draw_guide(
  networks: list[Network], request: Request, sampling: Sampling
) -> Array:
  """The mean colour of each square, drawn first: [N, C].

  It is one that the known values allow, so the true one where all are known.
  """
  s = networks[0].spec
  keys = fold_in(request.keys, jnp.asarray(Salt.GUIDE_NOISE.value))
  guides = [
    Network(
      pixel.PixelLevel(pixel.guide_spec(net.spec), parent=None),
      net.params['guide'],
    )
    for net in networks
  ]
  given = request.given
  drawn = pixel.PixelLevel.generate(
    guides,
    request.replace(keys=keys, given=None),
    sampling.replace(record=False, order=()),
    bounds=None if given is None else possible_means(given, s),
  )
  return drawn.run().values.reshape(-1, s.channels)
