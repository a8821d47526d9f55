"""Log-likelihoods of images at hand."""

import numpy as np

from fractal_jax.inference import inputs, likelihood
from fractal_jax.inference.progress import Job
from fractal_jax.models import fractal


def log_prob(
  net: fractal.Fractal,
  params,
  config,
  images: np.ndarray,
  labels=None,
  *,
  mesh=None,
  passes: int | None = None,
  seed: int = 0,
  batch: int | None = None,
  first: int = 0,
) -> Job:
  """The job of `api.Model.log_prob`, whose arguments and errors these are."""
  inputs.check_counts(passes=passes, batch=batch)
  inputs.check_seed(seed)
  images = inputs.check_images(images, config.model)
  nats = yield from likelihood.image_nats(
    net,
    params,
    images,
    inputs.labels_of(labels, len(images), config.model),
    mesh=mesh,
    batch=batch or config.eval.batch,
    passes=config.eval.passes if passes is None else passes,
    seed=seed,
    first=first,
  )
  return -nats.mean(1)
