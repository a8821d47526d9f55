"""Checksums of arrays, to tell whether a checkpoint came back as it was saved.

Orbax does not notice a flipped bit of an array. A sum here is of the values,
not of the files: computed where the arrays lie, it is the same on any mesh.
"""

import json
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np


def by_name(tree: Any) -> dict:
  """Arrays by names like 'level_0/blocks/fc1/kernel', as they are flattened.

  Orbax gives dicts for tuples with names: both have the same names here.
  """

  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {name(path): leaf for path, leaf in leaves}


def sums(tree: Any) -> dict[str, int]:
  """The checksum of every array, by name. All processes call it together."""
  arrays = by_name(tree)
  # One program: many small ones in flight, each with a sum over the devices,
  # can wait for each other for ever on fake devices.
  found = np.asarray(_sums(tuple(arrays.values())))
  return {name: int(x) for name, x in zip(arrays, found)}


def check(tree: Any, wanted: dict[str, int]) -> None:
  """Raises ValueError naming the arrays that have another sum than wanted."""
  found = sums(tree)
  bad = [name for name in found if found[name] != wanted.get(name)]
  if bad:
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    raise ValueError(
      f'{", ".join(bad[:3])}{more}: not the values that were saved'
    )


def text_sum(json_tree: Any) -> int:
  """The checksum of what JSON can hold."""
  return zlib.crc32(json.dumps(json_tree, sort_keys=True).encode())


@jax.jit
def _sums(arrays) -> jax.Array:
  return jnp.stack([_sum(x) for x in arrays])


def _sum(x) -> jax.Array:
  """Sum modulo 2^32 of a hash of each value and its place.

  The hash is one-to-one in the value, so one changed value always shows.
  """
  x = jnp.asarray(x)
  size = x.dtype.itemsize
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * size}'))
  bits = bits.astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, n in enumerate(x.shape):
    place = place * np.uint32(n) + jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, axis
    )
  h = bits ^ (place * np.uint32(0x9E3779B1))
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
