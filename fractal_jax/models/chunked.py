"""Rows of a level, a part at a time: less memory, the same result.

The positions folded into the batch make many short sequences that do not see
each other. A level whose activations don't fit goes through them in parts, and
keeps of each its input alone: the backward pass computes the part again.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax.models.types import Array


def chunked(method: Callable, level: nn.Module, *rows: Any) -> Array:
  """method(level, *rows), in level.spec.chunks parts one after another.

  Args:
    method: (level, *rows) to an array whose row i is a function of row i alone.
      Dropout draws anew in each part.
    level: the module.
    *rows: trees of arrays [N, ...].

  Returns:
    What `method` returns, [N, ...].
  """
  n = len(jax.tree.leaves(rows)[0])
  size = -(-n // level.spec.chunks)
  if size == n or level.is_initializing():
    return method(level, *rows)
  parts = -(-n // size)

  def split(x):
    x = jnp.pad(x, ((0, parts * size - n),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape((parts, size) + x.shape[1:])

  def one(level, carry, part):
    return carry, method(level, *part)

  scan = nn.scan(
    nn.remat(one, prevent_cse=False),
    variable_broadcast='params',
    split_rngs={'params': False, 'dropout': True},
    length=parts,
  )
  _, out = scan(level, (), jax.tree.map(split, rows))
  return out.reshape((parts * size,) + out.shape[2:])[:n]
