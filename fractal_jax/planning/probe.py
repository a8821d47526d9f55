"""A few steps of training, timed, before a run begins."""

import dataclasses
import time

import jax
from ml_collections import ConfigDict

from fractal_jax import sharding
from fractal_jax.data import pipeline
from fractal_jax.models import fractal
from fractal_jax.models.kernels import proof
from fractal_jax.training import optimizer, train, train_state

STEPS = 5


@dataclasses.dataclass(frozen=True)
class Probe:
  """What was measured.

  Attributes:
    step: seconds of a step, the batch read from the data.
    images: per second.
    total: steps of the whole run.
  """

  step: float
  images: float
  total: int


def probe(config: ConfigDict) -> Probe:
  """Trains a few steps of a config, and forgets them."""
  mesh = sharding.make_mesh(config)
  source = pipeline.open_split(config, config.data.train_split)
  net = fractal.from_config(config.model)
  net = proof.tried(net, config.model.kernels)
  total = optimizer.steps(config, source.size)
  tx = optimizer.create(config, total)
  state = train_state.create(net, tx, config, mesh=mesh)
  batches = pipeline.train_batches(config)
  step, took = train.jitted_step(net, tx, state, config, mesh=mesh), []
  for _ in range(STEPS + 1):
    began = time.monotonic()
    batch = sharding.place(next(batches), mesh)
    with jax.set_mesh(mesh):
      state, metrics = step(state, batch)  # the first one compiles
    jax.block_until_ready(metrics)
    took.append(time.monotonic() - began)
  seconds = sorted(took[1:])[STEPS // 2]
  return Probe(seconds, config.optim.batch / seconds, total)
