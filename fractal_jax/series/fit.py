"""A model fitted to a series at hand, in seconds to minutes on a CPU."""

from collections.abc import Callable, Iterable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.data import pipeline
from fractal_jax.data.common import Source
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import fractal
from fractal_jax.training import optimizer, train, train_state


def fit(
  config: ConfigDict,
  source: Source,
  mesh: Mesh | None = None,
  *,
  watch: Callable[[dict], None] = lambda metrics: None,
) -> Job:
  """Trains a model on windows at hand: `train.train` without a work directory.

  Args:
    config: see settings.settings.
    source: of windows.
    mesh: the mesh; that of the config where None.
    watch: is given the metrics of each step, one step late.

  Yields:
    Progress after each step.

  Returns:
    (the Fractal, its parameters, the mesh).
  """
  config_lib.check(config)
  mesh = sharding.make_mesh(config) if mesh is None else mesh
  net = fractal.from_config(config.model)
  total = optimizer.steps(config, source.size)
  tx = optimizer.create(config, total)
  state = train_state.create(net, tx, config, mesh=mesh)
  batches = pipeline.train_batches(config, source=source)
  step, metrics = train.jitted_step(net, tx, state, config, mesh=mesh), {}
  for number in range(total):
    batch = sharding.place(next(batches), mesh)
    before = metrics
    with jax.set_mesh(mesh):
      state, metrics = step(state, batch)
    jax.block_until_ready(before)  # devices are one step ahead, no more
    if before:
      watch(before)
    yield Progress('fitting', number + 1, total)
  watch(metrics)
  return net, state.params, mesh


def gradients(seen: list[dict], names: Iterable[str]) -> dict[str, np.ndarray]:
  """Norms [steps] of the gradients of subtrees, from what `watch` was given."""
  seen = jax.device_get(seen)
  return {
    name: np.array([metrics[f'grad_norm/{name}'] for metrics in seen])
    for name in names
  }
