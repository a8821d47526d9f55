"""Editing: what is under a mask is generated, given the rest."""

from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import checks
from fractal_jax.inference import inputs, likelihood, sample
from fractal_jax.inference.progress import Job
from fractal_jax.models import fractal
from fractal_jax.models.types import Given

if TYPE_CHECKING:
  from fractal_jax import api


def edit(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  images: ArrayLike,
  mask: ArrayLike,
  labels: ArrayLike | None = None,
  *,
  mesh: Mesh | None = None,
  num: int = 1,
  candidates: int = 1,
  seed: int = 0,
  batch: int | None = None,
  stepwise: bool = False,
  guide: 'api.Model | None' = None,
  **changes: Any,
) -> Job:
  """The job of `api.Model.edit`, whose arguments and errors these are."""
  inputs.check_number('num', num, checks.FROM_1)
  inputs.check_number('candidates', candidates, checks.FROM_1)
  inputs.check_counts(batch=batch)
  sample.check_use(config, [changes], sample.guide_name(guide, config))
  images = inputs.check_images(images, config.model)
  mask = inputs.check_mask(mask, images)
  inputs.check_planes(mask, config.model)
  if config.model.unknown:  # what is not known is drawn, too
    mask = mask | (images < 0)
    images = np.where(images < 0, ~images, images)
  labels = inputs.labels_of(labels, len(images), config.model)
  repeat = lambda x: np.repeat(x, num * candidates, 0)
  how = dict(mesh=mesh, seed=seed, batch=batch)
  drawn = yield from sample.draw(
    net,
    params,
    config,
    repeat(labels),
    given=Given(repeat(images).astype(np.int32), repeat(~mask)),
    stepwise=stepwise,
    guide=guide,
    **how,
    **changes,
  )
  found = drawn.values
  if candidates > 1:
    scores = yield from likelihood.log_prob(
      net, params, config, found, repeat(labels), **how
    )
    best = scores.reshape(-1, candidates).argmax(1)
    found = found.reshape((-1, candidates) + found.shape[1:])
    found = found[np.arange(len(best)), best]
  return found.reshape((len(images), num) + found.shape[1:])
