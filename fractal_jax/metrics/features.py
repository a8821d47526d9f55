"""Features of images, on any mesh and number of hosts."""

import functools
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import sharding
from fractal_jax.metrics import MetricsError, inception

if TYPE_CHECKING:
  from fractal_jax.metrics.weights import Weights

BATCH = 64  # images at a time, over all devices


class Extractor:
  """Pictures to Inception features, a fixed number at a time."""

  def __init__(
    self, weights: 'Weights', *, mesh: Mesh | None = None, batch: int = BATCH
  ):
    """Places the weights.

    Args:
      weights: of weights.load.
      mesh: its batch axes split the images; the first device where None.
      batch: images at a time, rounded up to what the mesh divides.
    """
    self.fingerprint = weights.fingerprint
    self.mesh = sharding.single_device_mesh() if mesh is None else mesh
    self.batch = sharding.padded_batch(batch, self.mesh)
    self.host, self.hosts = sharding.host_rows(self.mesh)
    where = sharding.replicated(self.mesh)
    self._params = jax.tree.map(
      lambda x: jax.make_array_from_callback(x.shape, where, lambda i: x[i]),
      weights.params,
    )

  def rows(self, batch: dict) -> dict:
    """Features of one batch, of which this host has its rows.

    Args:
      batch: `pictures` uint8 [batch / hosts, H, W, 3]; what else it holds goes
        through.

    Returns:
      All hosts' rows, on every host: `features` [batch, 2048] of the last
      pooling and `logits` [batch, 1008] without bias, float32, and the rest.
    """
    with jax.set_mesh(self.mesh):
      placed = sharding.place(batch, self.mesh)
      return jax.device_get(_features(self.mesh, self._params, placed))

  def __call__(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of any number of pictures, whole on every host."""
    check_pictures(pictures)
    size = self.batch // self.hosts
    out = []
    for start in range(0, len(pictures), self.batch):
      index = np.arange(start, start + self.batch)
      mine = index[self.host * size : (self.host + 1) * size]
      rows = pictures[np.minimum(mine, len(pictures) - 1)]
      found = self.rows({'pictures': rows})
      out.append((found['features'], found['logits']))
    return tuple(np.concatenate(x)[: len(pictures)] for x in zip(*out))


@functools.partial(jax.jit, static_argnums=0)
def _features(mesh, params, batch):

  def on_device(params, batch):
    found = inception.Inception().apply({'params': params}, batch['pictures'])
    return {k: v for k, v in batch.items() if k != 'pictures'} | {
      'features': found[str(inception.FEATURES)],
      'logits': found['logits_unbiased'],
    }

  # Each device has its own images; every host sees the result whole.
  run = sharding.by_device(on_device, mesh, jax.P(), jax.P(sharding.BATCH))
  return jax.lax.with_sharding_constraint(run(params, batch), jax.P())


def check_pictures(pictures: ArrayLike, where: str = 'pictures') -> None:
  """Raises MetricsError unless these are uint8 [n, H, W, 3]."""
  shape, dtype = np.shape(pictures), getattr(pictures, 'dtype', None)
  if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
    raise MetricsError(
      f'{where}: {dtype} of shape {tuple(shape)}; the Inception net sees RGB '
      'images, uint8 [n, H, W, 3].'
    )


def check_model(model: ConfigDict) -> None:
  """Raises MetricsError where a model's images can't be shown to Inception.

  Grey images are repeated to RGB, and values scaled to 0 .. 255. A series is no
  image, and a drawing of it says nothing of its values.
  """
  if model.rank != 2 or model.channels not in (1, 3):
    raise MetricsError(
      f'FID, Inception Score, precision and recall are of grey or RGB images, '
      f'not of model.rank={model.rank} with model.channels={model.channels}: '
      'use `fractal-jax likelihood`.'
    )
