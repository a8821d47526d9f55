"""How sequences lie in the rows that kernels work on.

A level's tokens [N, T, D] become rows [M, D], sequence after sequence: an axis
of 21 tokens would be padded to 32 in a TPU's memory, and each change of layout
would be a copy. A grid step of a kernel holds whole sequences.
"""

import dataclasses
import math

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models.kernels.values import LANES

TILE = 16  # rows of a bfloat16 tile
PACKED = 64  # tokens: shorter sequences share tiles
STEP = 528  # rows of a grid step, about
MOST = 1056  # rows of a grid step of a kernel that can take more
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Rows:
  """The geometry of N sequences of `tokens` tokens in rows."""

  tokens: int  # T
  most: int = STEP  # rows of a grid step, about; fewer where VMEM is small

  @property
  def padded(self) -> int:
    """Rows that a sequence takes."""
    t = self.tokens
    return t if t <= PACKED else -(-t // 8) * 8

  @property
  def sequences(self) -> int:
    """Sequences of a grid step: whole tiles together, about `most` rows."""
    t = self.padded
    unit = TILE // math.gcd(t, TILE) if t <= PACKED else 1
    return unit * max(1, self.most // (unit * t))

  @property
  def step(self) -> int:
    """Rows of a grid step."""
    return self.sequences * self.padded

  def pack(self, x: jax.Array) -> jax.Array:
    """[N, T, D] to rows [M, D], with zeros up to whole grid steps."""
    n, t, d = x.shape
    # Many come in groups of steps, which kernels can then take at once.
    steps = max(1, MOST // self.step)
    steps = steps if n >= 16 * steps * self.sequences else 1
    fill = (0, -n % (steps * self.sequences))
    fill = (fill, (0, self.padded - t), (0, 0))
    return jnp.pad(x, fill).reshape(-1, d)

  def unpack(self, rows: jax.Array, n: int) -> jax.Array:
    """Rows [M, D] to [N, T, D]."""
    x = rows.reshape(-1, self.padded, rows.shape[-1])
    return x[:n, : self.tokens]

  def tiles(self, causal: bool) -> list[tuple[int, int, int, int]]:
    """Tiles (q0, q1, k0, k1): queries q0 .. q1 - 1 see keys k0 .. k1 - 1.

    They are those of a grid step. A tile has at most 128 queries, whose weights
    then lie in the lanes of a register; as many of short sequences as have
    their keys among 128 rows.
    """
    t = self.padded
    out = []
    if t > PACKED:
      for s in range(0, self.step, t):
        for a in range(0, t, LANES):
          b = min(a + LANES, t)
          out.append((s + a, s + b, s, s + (b if causal else t)))
      return out
    q0 = 0
    while q0 < self.step:
      k0 = q0 // t * t // TILE * TILE
      for q1 in range(min(q0 + LANES, self.step), q0, -TILE):
        last = -(-q1 // t) * t
        k1 = min(-(-last // TILE) * TILE, self.step)
        if k1 - k0 <= LANES:
          break
      out.append((q0, q1, k0, k1))
      q0 = q1
    return out

  def masks(self, heads: int, causal: bool) -> tuple[jax.Array, jax.Array]:
    """What each tile adds to its logits, and its weights' places.

    Returns:
      Two arrays [tiles, keys, 128], transposed as the kernels have weights:
      0 or MASKED, float32; and the place of a weight of head 0 in the step's
      [N, H, T, T], int32.
    """
    tiles, t, real = self.tiles(causal), self.padded, self.tokens
    keys = max(k1 - k0 for _, _, k0, k1 in tiles)
    bias = np.full((len(tiles), keys, LANES), MASKED, np.float32)
    place = np.zeros(bias.shape, np.int32)
    for i, (q0, q1, k0, k1) in enumerate(tiles):
      k, q = np.meshgrid(np.arange(k0, k1), np.arange(q0, q1), indexing='ij')
      seen = (q // t == k // t) & (k % t < real)
      if causal:
        seen &= k <= q
      at = (i, slice(k1 - k0), slice(q1 - q0))
      bias[at] = np.where(seen, 0, MASKED)
      place[at] = (q // t * heads * real + q % t) * real + k % t
    return jnp.asarray(bias), jnp.asarray(place)

  def turns(self, turns: jax.Array, lanes: int) -> jax.Array:
    """Rotary angles [2, T, K/2] for the rows of a grid step, [2, R, lanes].

    The cosine and the signed sine of each lane: x turns to
    x cos + partner sin, where pairs of neighbouring lanes are partners.
    """
    cos, sin = jnp.repeat(turns.astype(jnp.float32), 2, -1)  # [T, K]
    sin = sin * jnp.where(jnp.arange(sin.shape[-1]) % 2, 1.0, -1.0)
    out = jnp.stack([cos, sin])
    fill = ((0, 0), (0, self.padded - self.tokens), (0, 0))
    out = jnp.pad(out, fill)
    return jnp.tile(out, (1, self.sequences, lanes // out.shape[-1]))


@struct.dataclass
class Packed:
  """Tokens in rows, as a stack of blocks passes them on."""

  values: jax.Array  # [M, D]
  rows: Rows = struct.field(pytree_node=False)


def head_lanes(width: int, head: int) -> tuple[int, list[tuple[int, int, int]]]:
  """How heads of this size lie in lanes.

  Returns:
    The lanes of a unit that holds whole heads and divides the width; and of
    each of its heads (a, b, first): the whole tiles a .. b - 1 around it, and
    its own first lane among them.
  """
  unit = math.lcm(LANES, head)
  unit = unit if width % unit == 0 else width
  out = []
  for first in range(0, unit, head):
    a = first // LANES * LANES
    b = min(-(-(first + head) // LANES) * LANES, unit)
    out.append((a, b, first - a))
  return unit, out
