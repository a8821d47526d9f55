"""The crop of images of any size, and what is transparent."""

import numpy as np
from PIL import Image
import pytest

from fractal_jax.data import common
from tests.data import literal_adm, noise


@pytest.mark.parametrize(
  'height, width', [(16, 16), (17, 40), (31, 33), (32, 32), (150, 77), (9, 12)]
)
def test_crop_is_adms(height, width):
  image = Image.fromarray(noise(np.random.default_rng(0), height, width))
  got = common.to_array(image, 16, 3)
  assert got.shape == (16, 16, 3)
  np.testing.assert_array_equal(got, literal_adm(image, 16))


def test_crop_halves_by_averaging():
  blocks = noise(np.random.default_rng(0), 16, 16, 1)
  image = Image.fromarray(blocks.repeat(4, 0).repeat(4, 1))
  np.testing.assert_array_equal(common.to_array(image, 16, 1)[..., 0], blocks)


def test_transparent_pixels_become_white():
  rgba = np.zeros((16, 16, 4), np.uint8)
  rgba[:8, :, 3] = 255  # the upper half is black, the rest transparent
  got = common.to_array(Image.fromarray(rgba), 16, 3)
  assert (got[:8] == 0).all() and (got[8:] == 255).all()
