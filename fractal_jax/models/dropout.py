"""Dropout whose draws cost a few operations per value."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax.models.types import Array


class Dropout(nn.Module):
  """Dropout whose draws are a hash of the value's place and two random words.

  jax.random spends some hundred operations on a draw, twice where the backward
  pass draws again: a third of a training step on a CPU. Whether a value is kept
  needs no such quality. A value's draw depends on its place alone, so that any
  split over devices draws the same.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, deterministic: bool) -> Array:
    if deterministic or not self.rate:
      return x
    # The backward pass draws again rather than read what was drawn.
    drop = jax.checkpoint(drop_out, static_argnums=2)
    return drop(x, self.words(), self.rate)

  def words(self) -> Array:
    """The random words [2], uint32, of the module's next draw."""
    return jax.random.bits(self.make_rng('dropout'), (2,), jnp.uint32)


def drop_out(x: Array, words: Array, rate: float) -> Array:
  """Zeros a share `rate` of x, and scales the rest by 1 / (1 - rate)."""
  # The place in memory, counted from words[0]. Not from 0: that would be the
  # same in each layer, and XLA would keep it, as large as x, for all of them.
  place, stride = words[0], x.size
  for size in x.shape:
    stride //= size
    here = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(stride % 2**32)
    place = place[..., None] + here
  keep = hash_bits(place, words[1]) >= jnp.uint32(round(rate * 2**32))
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def hash_bits(x: Array, word: Array) -> Array:
  """uint32 bits of counters that start at a random word, and of another word.

  Each multiplication by an odd constant carries low bits up, each shifted
  exclusive or brings high bits down; both are one to one, so that a seed's
  2^32 counters have different bits.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) + word
  x = (x ^ (x >> 16)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
