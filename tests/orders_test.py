"""Orders of patches: each is one, and runs as its name says."""

import numpy as np
import pytest

from fractal_jax.models import orders
from tests import tiny


@pytest.mark.parametrize('grid', [(1, 1), (3, 3), (8, 8), (5,), (1,)])
@pytest.mark.parametrize('name', orders.NAMES)
def test_every_place_comes_once(name, grid):
  found = np.asarray(orders.of_squares(name, tiny.keys(3), grid))
  np.testing.assert_array_equal(
    np.sort(found, 1), np.tile(np.arange(np.prod(grid)), (3, 1))
  )


def test_the_last_places_are_drawn_first():
  found = orders.of_squares('raster', tiny.keys(2), (2, 2))
  np.testing.assert_array_equal(found, [[3, 2, 1, 0]] * 2)


def test_spirals_begin_in_the_middle():
  cells = orders.spiral((3, 3)).tolist()
  assert cells == [
    [1, 1],
    *([0, 1], [0, 2], [1, 2], [2, 2]),
    *([2, 1], [2, 0], [1, 0], [0, 0]),
  ]
  rings = np.ceil(abs(orders.spiral((4, 4)) - 1.5).max(1))
  assert rings.tolist() == [1] * 4 + [2] * 12
  assert orders.spiral((5,))[:3, 0].tolist()[0] == 2


def imbalance(cells):
  """Of cells of an 8x8 grid: how much fuller one of 2x2 parts is."""
  parts = np.bincount(cells[:, 0] // 4 * 2 + cells[:, 1] // 4, minlength=4)
  return np.ptp(parts)


def test_haltons_first_cells_are_spread_evenly():
  cells = orders.halton((8, 8))
  rng = np.random.default_rng(0)
  for n in (8, 16, 24):
    assert imbalance(cells[:n]) <= 2
    random = [imbalance(rng.permutation(cells)[:n]) for _ in range(50)]
    assert np.mean(random) > 2.5


def test_haltons_order_begins_anywhere_and_is_moved_as_a_whole():
  found = orders.of_squares('halton', tiny.keys(64), (4, 4))
  cells = np.stack(np.divmod(np.asarray(found)[:, ::-1], 4), -1)
  moved = (cells - cells[:, :1]) % 4
  np.testing.assert_array_equal(moved, np.broadcast_to(moved[0], moved.shape))
  assert len(np.unique(cells[:, 0], axis=0)) > 12
