"""Where a model meets the kernels: a level asks here whether it runs on them.

A level that does keeps its tokens in rows from its first block to its last
(`through`), and each block is two half blocks (`block`). Where it does not, one
line of the log says why.
"""

from collections.abc import Callable
import functools
import sys
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fractal_jax import sharding
from fractal_jax.models.kernels import attention, calls, mlp
from fractal_jax.models.kernels.geometry import STEP, Packed, Rows
from fractal_jax.models.types import Array, Spec

if TYPE_CHECKING:
  from fractal_jax.models import layers

UNROLLED = 8  # layers: a stack of at most 8 is written out


def rows_of(spec: Spec, tokens: int) -> Rows | None:
  """How a level's sequences lie in rows; None where it runs without kernels.

  Args:
    spec: of a level above the pixels.
    tokens: T, of its sequences.
  """
  if not usable(spec):
    return None
  # The least that a grid step can hold is a sequence, or whole tiles of them.
  sizes = [Rows(tokens, most) for most in (STEP, STEP // 2, 1)]
  needs = [vmem(rows, spec.width, spec.dtype) for rows in sizes]
  for rows, need in zip(sizes, needs):
    if calls.fits(max(need)):
      return rows
  why = (
    f'{tokens} tokens of width {spec.width} need about '
    f'{max(needs[-1]) >> 20} MiB of VMEM, and the chip has '
    f'{calls.vmem_bytes() >> 20} MiB'
  )
  for rows, (attend, _) in zip(sizes, needs):
    if calls.fits(attend):
      say(f"level {spec.index}'s MLP runs without a kernel: {why}")
      return rows
  say(f'level {spec.index} runs without kernels: {why}')
  return None


def usable(spec: Spec) -> bool:
  """Whether a level may run on kernels where it is traced, its size aside."""
  if spec.kernels != 'pallas':
    return False
  if sharding.platform() not in ('tpu', 'cpu'):
    say('the model runs without kernels: there are none for these devices')
    return False
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.shape.get('tensor', 1) > 1:
    say(
      'the model runs without kernels: mesh.tensor splits heads, which they '
      'hold whole; set mesh.tensor=1 and split by mesh.fsdp'
    )
    return False
  return True


@functools.cache
def say(line: str) -> None:
  """Says a line once, on process 0, beside the results."""
  if jax.process_index() == 0:
    print(line, file=sys.stderr, flush=True)


def vmem(rows: Rows, width: int, dtype: DTypeLike) -> tuple[int, int]:
  """About how many bytes of VMEM a block's attention and its MLP need."""
  how = attention.How(rows, 1, False, 0.0, 0.0, dtype)
  other = mlp.How(rows, 0.0, 0.0, dtype)
  weights = 8 * width**2
  return attention.vmem(how, width), mlp.vmem(other, weights, width, rows.step)


def mlp_of(
  rows: Rows, width: int, dtype: DTypeLike
) -> Callable[[mlp.How, dict, Array, Array], Array]:
  """`mlp.mlp_half`, or where that does not fit the same without a kernel.

  That, too, keeps its input alone for the backward pass.
  """
  _, need = vmem(rows, width, dtype)
  if calls.fits(need):
    return mlp.mlp_half
  return jax.checkpoint(mlp.xla, static_argnums=0)


def scan_of(spec: Spec, tokens: int) -> tuple[str, bool]:
  """(remat, unroll) of a level's stack: kernels keep their input alone."""
  if rows_of(spec, tokens) is None:
    return spec.remat, spec.unroll
  return 'none', spec.unroll or spec.depth <= UNROLLED


def through(
  blocks: nn.Module, spec: Spec, x: Array, turns: Array | None, *, train: bool
) -> Array:
  """x [N, T, D] through a stack of blocks, on kernels where that is possible.

  Args:
    blocks: what layers.stack makes.
    spec: of the level.
    x: [N, T, D].
    turns: rotary angles [2, T, K/2], or None.
    train: whether dropout is on.
  """
  rows = rows_of(spec, x.shape[1])
  if rows is None or blocks.is_initializing():
    return blocks(x, turns, train)[0]
  packed = Packed(rows.pack(x.astype(spec.dtype)), rows)
  return rows.unpack(blocks(packed, turns, train)[0].values, len(x))


def block(
  module: 'layers.Block', x: Packed, turns: Array | None, *, train: bool
) -> Packed:
  """A block of layers.py by its two half blocks."""
  params = nn.meta.unbox(module.variables['params'])
  first = {k: params[k] for k in ('norm1', 'attention')}
  second = {k: v for k, v in params.items() if k not in first}
  (weights, joined), (hidden, out) = module.dropouts
  rate = lambda drop: drop.rate if drop is not None and train else 0.0

  def words(*drops):
    zeros = jnp.zeros(2, jnp.uint32)
    found = [drop.words() if rate(drop) else zeros for drop in drops]
    return jax.lax.bitcast_convert_type(jnp.concatenate(found), jnp.int32)

  how = attention.How(
    x.rows,
    module.heads,
    module.causal,
    rate(weights),
    rate(joined),
    jnp.dtype(module.dtype),
  )
  with jax.named_scope('attention'):
    y = attention.attention_half(
      how, first, x.values, words(weights, joined), turns
    )
  how = mlp.How(x.rows, rate(hidden), rate(out), jnp.dtype(module.dtype))
  with jax.named_scope('mlp'):
    half = mlp_of(x.rows, y.shape[1], how.dtype)
    y = half(how, second, y, words(hidden, out))
  return Packed(y, x.rows)
