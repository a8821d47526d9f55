"""How squares become patches and numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax.models import fractal
from fractal_jax.models.keys import fold_in
from fractal_jax.models.patches import (
  flatten_patches,
  normalise,
  patchify,
  unpatchify,
)
from tests import tiny


def spec(**changes):
  return fractal.specs(tiny.model(**changes))[0]


@pytest.mark.parametrize('channels', [1, 4])
def test_patches_of_images(channels):
  s = spec(kinds=('ar', 'ar', 'pixel'), sizes=(6, 2, 1), channels=channels)
  x = np.random.default_rng(0).integers(0, 5, (2, 6, 6, channels))
  patches = patchify(jnp.asarray(x), s)
  assert patches.shape == (2, 9, 2, 2, channels)
  for row, col in np.ndindex(3, 3):
    np.testing.assert_array_equal(
      patches[:, 3 * row + col],
      x[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2],
    )
  np.testing.assert_array_equal(unpatchify(patches, s), x)


def test_patches_of_series():
  s = spec(kinds=('ar', 'ar', 'pixel'), sizes=(6, 2, 1), rank=1, channels=3)
  x = np.random.default_rng(0).integers(0, 5, (2, 6, 3))
  patches = patchify(jnp.asarray(x), s)
  assert patches.shape == (2, 3, 2, 3)
  for i in range(3):
    np.testing.assert_array_equal(patches[:, i], x[:, 2 * i : 2 * i + 2])
  np.testing.assert_array_equal(unpatchify(patches, s), x)


def test_patches_are_flattened_channel_first_and_normalised():
  s = spec(
    kinds=('ar', 'ar', 'pixel'),
    sizes=(4, 2, 1),
    channels=3,
    num_values=256,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  )
  x = np.random.default_rng(0).integers(0, 256, (2, 4, 2, 2, 3))
  flat = np.asarray(flatten_patches(jnp.asarray(x), s))
  assert flat.shape == (2, 4, 12)
  for c, row, col in np.ndindex(3, 2, 2):
    want = (x[:, :, row, col, c] / 255 - s.mean[c]) / s.std[c]
    np.testing.assert_allclose(flat[..., 4 * c + 2 * row + col], want, 1e-4)


def test_values_are_scaled_by_their_number():
  s = spec(num_values=17, mean=(0.0,), std=(1.0,))
  x = normalise(jnp.array([[0], [8], [16]]), s)
  np.testing.assert_allclose(x[:, 0], [0, 0.5, 1])


def test_fold_is_elementwise():
  keys = tiny.keys(3)
  data = jnp.arange(6).reshape(3, 2)
  folded = fold_in(keys[:, None], data)
  assert folded.shape == (3, 2)
  for i, j in np.ndindex(3, 2):
    want = jax.random.fold_in(keys[i], data[i, j])
    assert (
      jax.random.key_data(folded[i, j]) == jax.random.key_data(want)
    ).all()
