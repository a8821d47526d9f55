"""Squares and their patches: cutting, joining, and what a network reads.

Axis letters: types.py.
"""

import jax.numpy as jnp

from fractal_jax.models.types import Array, Spec


def patchify(squares: Array, spec: Spec) -> Array:
  """Squares [N, s, (s,) C] to patches [N, L, p, (p,) C], raster order."""
  n, c, p, r = squares.shape[0], spec.channels, spec.patch, spec.rank
  g = spec.side // p
  x = squares.reshape((n,) + (g, p) * r + (c,))
  outer, inner = range(1, 2 * r, 2), range(2, 2 * r + 1, 2)
  x = x.transpose(0, *outer, *inner, 2 * r + 1)
  return x.reshape((n, spec.length) + (p,) * r + (c,))


def unpatchify(patches: Array, spec: Spec) -> Array:
  """The inverse of `patchify`."""
  n, c, p, r = patches.shape[0], spec.channels, spec.patch, spec.rank
  x = patches.reshape((n,) + spec.grid + (p,) * r + (c,))
  axes = [a for pair in zip(range(1, r + 1), range(r + 1, 2 * r + 1))
          for a in pair]  # fmt: skip
  x = x.transpose(0, *axes, 2 * r + 1)
  return x.reshape((n,) + (spec.side,) * r + (c,))


def normalise(values: Array, spec: Spec) -> Array:
  """Integer (or mean) values [..., C] to network inputs, float32."""
  mean, std = jnp.asarray(spec.mean), jnp.asarray(spec.std)
  return (values.astype(jnp.float32) / (spec.values - 1) - mean) / std


def flatten_patches(patches: Array, spec: Spec) -> Array:
  """Patches [..., p, (p,) C] to normalised [..., C p^rank], channel first."""
  x = jnp.moveaxis(normalise(patches, spec), -1, -1 - spec.rank)
  return x.reshape(x.shape[: -1 - spec.rank] + (spec.patch_values,))
