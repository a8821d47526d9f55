"""Box-counting dimensions of surfaces whose dimension is known."""

import numpy as np
import pytest

from fractal_jax import config as config_lib
from fractal_jax.inference import dimension


def test_planes_have_two_and_noise_has_more():
  rng = np.random.default_rng(0)
  flat = np.full((1, 32, 32, 1), 100)
  ramp = np.tile(np.arange(32)[:, None, None] * 4, (1, 1, 32, 1))
  noise = rng.integers(0, 256, (1, 32, 32, 1))
  found = dimension.box_dimension(np.concatenate([flat, ramp, noise]), 256)
  np.testing.assert_allclose(found[0], 2, atol=1e-9)
  assert 1.99 < found[1] < 2.2 and 2.5 < found[2] < 3
  three = np.concatenate([flat, ramp, noise], -1)
  mean = dimension.box_dimension(three, 256)
  np.testing.assert_allclose(mean, found.mean(), rtol=1e-9)


def test_series_have_one_to_two():
  rng = np.random.default_rng(0)
  flat, noise = np.zeros((1, 64, 1), int), rng.integers(0, 256, (1, 64, 1))
  found = dimension.box_dimension(np.concatenate([flat, noise]), 256)
  np.testing.assert_allclose(found[0], 1, atol=1e-9)
  assert 1.4 < found[1] < 2


def test_ranges_are_of_classes_and_where_these_are_small_of_all(tmp_path):
  rng = np.random.default_rng(0)
  rough = rng.integers(0, 17, (30, 8, 8, 1))
  images = np.concatenate([rough, rough // 8, rough[:1]]).astype(np.uint8)
  labels = np.repeat([0, 1, 2], [30, 30, 1])
  found = dimension.ranges(images, labels, 4, 17)
  assert found.shape == (5, 2) and (found[:, 0] <= found[:, 1]).all()
  assert found[0, 0] > found[1, 1]
  np.testing.assert_array_equal(found[2:], [found[-1]] * 3)
  path = tmp_path / 'data.npz'
  np.savez(path, images=images, labels=labels)
  c = config_lib.default()
  c.data.update(name='npz', dir=str(path))
  c.model.update(
    sizes=(8, 1), channels=1, num_values=17, classes=3, mean=(0.5,), std=(0.5,)
  )
  of_run = dimension.ranges_of_run(c)
  assert of_run.shape == (4, 2)
  assert of_run[0] == pytest.approx(found[0], abs=0.05)
