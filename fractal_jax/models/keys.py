"""Random keys: what each is folded with, so that no two draws share one.

A key is folded with what its draws are for: the step, the image's place, the
level, the square's number. Results then depend neither on the mesh nor on the
number of hosts or the batch size.
"""

import enum

import jax
import jax.numpy as jnp

from fractal_jax.models.types import Array


@enum.unique
class Salt(enum.IntEnum):
  """Numbers for draws that no step, image, level or square counts up to.

  Each is folded into a key that is otherwise folded with a running number:
  those of an image with levels and squares, those of a step with the places of
  images. `enum.unique` rejects a value that is given twice.
  """

  # Folded into an image's key.
  GUIDE_NOISE = 1 << 20  # plus the square: noise on the guide's target
  OVERFLOW = 1 << 21  # plus the level: which masked patches don't fit
  LABEL = 1 << 22  # whether the image's label is dropped
  # Folded into a pixel's key.
  RESAMPLE = 1 << 23  # its candidates, and the choice among them
  # Folded into a step's key.
  RATIO = 1 << 30  # the shift of the mask ratios' strata
  DROPOUT = (1 << 30) + 1  # dropout of all levels


def fold_in(keys: Array, data: Array) -> Array:
  """jax.random.fold_in, elementwise: keys [...], data [...] to keys [...]."""
  shape = jnp.broadcast_shapes(keys.shape, data.shape)
  keys, data = jnp.broadcast_to(keys, shape), jnp.broadcast_to(data, shape)
  flat = jax.vmap(jax.random.fold_in)(keys.reshape(-1), data.reshape(-1))
  return flat.reshape(shape)
