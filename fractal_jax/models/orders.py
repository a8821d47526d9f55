"""The orders in which a masked level draws the patches of a square.

An order is a row of L places: **the last ones are drawn first**, as in the
published code, so that the first `still` places are those still masked. N
squares, L patches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models.types import Array

# 'confidence' begins as 'random'; see unmasking.py for how it goes on.
NAMES = ('random', 'raster', 'halton', 'spiral', 'confidence')


def of_squares(name: str, keys: Array, grid: tuple[int, ...]) -> Array:
  """The order of each square, [N, L].

  Args:
    name: one of NAMES.
    keys: [N] typed keys. Random orders are drawn with them, and Halton's
      sequence begins at a place of the grid that is.
    grid: patches along each axis of a square.
  """
  n, length = len(keys), int(np.prod(grid))
  if name in ('random', 'confidence'):
    scores = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(keys)
    return scores.argsort(-1)
  cells = {'raster': raster, 'halton': halton, 'spiral': spiral}[name](grid)
  cells = jnp.asarray(cells[::-1])  # [L, rank]
  cells = jnp.broadcast_to(cells, (n, *cells.shape))
  if name == 'halton':  # each square's begins elsewhere
    draw = lambda k: jax.random.randint(k, (len(grid),), 0, jnp.asarray(grid))
    cells = (cells + jax.vmap(draw)(keys)[:, None]) % jnp.asarray(grid)
  return jnp.ravel_multi_index(
    tuple(jnp.moveaxis(cells, -1, 0)), grid, mode='clip'
  )


def raster(grid: tuple[int, ...]) -> np.ndarray:
  """Row by row: cells [L, rank], the first one first."""
  return np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), -1)


@functools.lru_cache(maxsize=64)
def halton(grid: tuple[int, ...]) -> np.ndarray:
  """Cells [L, rank] as Halton's points fall into them, each once.

  Points of a low-discrepancy sequence are far apart, so that patches drawn
  together hardly depend on each other (Besnier et al. 2025, arXiv 2503.17076).
  """
  from scipy.stats import qmc  # slow to import: not before it is used

  length = int(np.prod(grid))
  points = qmc.Halton(len(grid), scramble=False)
  found = np.zeros(0, int)
  while len(found) < length:
    cells = np.floor(points.random(4 * length) * grid).astype(int)
    found = np.concatenate([found, np.ravel_multi_index(cells.T, grid)])
    _, first = np.unique(found, return_index=True)
    found = found[np.sort(first)]
  return np.stack(np.unravel_index(found, grid), -1)


def spiral(grid: tuple[int, ...]) -> np.ndarray:
  """Ring by ring around the middle, each in the sense of the clock."""
  cells = raster(grid)
  away = cells - (np.array(grid) - 1) / 2  # [L, rank]
  ring = np.ceil(np.abs(away).max(-1))
  turn = np.arctan2(away[:, -1], -away[:, 0]) % (2 * np.pi)
  return cells[np.lexsort((turn, ring))]
