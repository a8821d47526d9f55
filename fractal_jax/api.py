"""A trained model, for use from Python.

Images are arrays [n, S, (S,) C] of whole numbers 0 .. V - 1, as the data sets
give them: S the side, C the channels, V the values a channel (256 for pixels).
"""

from collections.abc import Callable
import dataclasses

import jax
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.inference import explain, inputs, likelihood, sample
from fractal_jax.models import fractal
from fractal_jax.models.types import Drawn, Given
from fractal_jax.training import checkpoint, restore, train_state


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a job is, for a `watch`: what that raises ends the job."""

  doing: str  # 'drawing', 'scoring' or 'explaining'
  done: int  # steps
  total: int
  drawn: Drawn | None = None  # while drawing: the images so far

  @property
  def share(self) -> float:
    return self.done / self.total


@dataclasses.dataclass(frozen=True)
class Model:
  """A model with its parameters. `load` makes one."""

  config: object  # the run's ml_collections config
  net: fractal.Fractal
  params: dict
  mesh: object

  def sample(
    self,
    labels=None,
    *,
    num=None,
    seed=0,
    batch=None,
    movie: str | None = None,
    watch: Callable[[Progress], None] | None = None,
    **settings,
  ) -> np.ndarray:
    """Generates images.

    Args:
      labels: a class, or a list of them that is repeated up to `num`; -1 is
        "no class". All classes in turn where None.
      num: how many; as many as labels where None, or config.sample.num.
      seed: image i is a function of the seed and i alone.
      batch: images at a time; config.sample.batch where None.
      movie: a .gif or .mp4 to write, of the images as they grow.
      watch: called several times a second with a Progress.
      **settings: guidance, temperature, schedule, filter_threshold, iterations
        in place of those of config.sample.

    Returns:
      Images [num, S, (S,) C].

    Raises:
      edit.EditError, sample.SampleError: labels, settings or a movie that the
        model can't serve.
    """
    inputs.check_counts(num=num, batch=batch)
    if movie is not None:
      sample.check_movie(movie)
    model = self.config.model
    if num is None:
      num = self.config.sample.num if labels is None else np.size(labels)
    if labels is None:
      labels = np.arange(model.classes)
    labels = sample.round_robin(num, inputs.check_labels(labels, model))
    settings['record'] = movie is not None
    drawn = self._draw(labels, None, seed, batch, watch, settings)
    if movie is not None and jax.process_index() == 0:
      sample.save_movie(drawn, model, movie)
    return drawn.values

  def _draw(self, labels, given, seed, batch, watch, settings) -> Drawn:
    sampling, guided = sample.settings(self.config, **settings)
    tell = watch and (
      lambda drawn, done, total: watch(Progress('drawing', done, total, drawn))
    )
    drawn = sample.generate(
      self.net,
      self.params,
      labels,
      sampling,
      guided=guided,
      seed=seed,
      given=given,
      batch=batch or self.config.sample.batch,
      mesh=self.mesh,
      watch=tell,
    )
    values = drawn.values.astype(inputs.dtype(self.config.model))
    return drawn.replace(values=values)

  def log_prob(
    self,
    images,
    labels=None,
    *,
    passes=None,
    seed=0,
    batch=None,
    watch: Callable[[Progress], None] | None = None,
  ) -> np.ndarray:
    """Log-likelihoods in nats.

    Exact for models of ar levels alone. With masked levels it is an unbiased
    estimate of the mean over orders; with guiding pixels, a lower bound. With
    model.colour='ycbcr' it is that of the rounded colours, not of the images.

    Args:
      images: [n, S, (S,) C].
      labels: [n] or one class; "no class" where None.
      passes: random masks an image, for masked levels; config.eval.passes
        where None.
      seed: of the masks.
      batch: images at a time; config.eval.batch where None.
      watch: called with a Progress after each batch and pass.

    Returns:
      [n] float64. Bits per dimension are -log_prob / (S^2 C ln 2).

    Raises:
      edit.EditError: images or labels that the model can't take.
    """
    inputs.check_counts(passes=passes, batch=batch)
    images = inputs.check_images(images, self.config.model)
    nats = likelihood.image_nats(
      self.net,
      self.params,
      images,
      inputs.labels_of(labels, len(images), self.config.model),
      mesh=self.mesh,
      batch=batch or self.config.eval.batch,
      passes=self.config.eval.passes if passes is None else passes,
      seed=seed,
      progress=_watched(watch, 'scoring'),
    )
    return -nats.mean(1)

  def edit(
    self,
    images,
    mask,
    labels=None,
    *,
    num=1,
    candidates=1,
    seed=0,
    batch=None,
    watch: Callable[[Progress], None] | None = None,
    **settings,
  ) -> np.ndarray:
    """Generates what is under a mask, given the rest.

    Known values come back bit-identical. A masked level starts its order from
    the known patches, so it sees all of them; an ar level sees, of the known
    patches, the earlier ones only: prefer mar models for holes.

    Args:
      images: [n, S, (S,) C].
      mask: True where to generate: [S, (S,)], [S, (S,) C], or one an image.
      labels: [n] or one class; "no class" where None. Another class than the
        image's own edits it by class.
      num: completions an image.
      candidates: draws of which each completion is the likeliest, by
        `log_prob` under the same class.
      seed, batch, watch, **settings: as in `sample`. All candidates are
        watched being drawn, [n num candidates, S, (S,) C].

    Returns:
      [n, num, S, (S,) C].

    Raises:
      edit.EditError, sample.SampleError: an image, mask, label or setting that
        the model can't take.
    """
    inputs.check_counts(num=num, candidates=candidates, batch=batch)
    model = self.config.model
    images = inputs.check_images(images, model)
    mask = inputs.check_mask(mask, images)
    inputs.check_planes(mask, model)
    labels = inputs.labels_of(labels, len(images), model)
    each = num * candidates
    repeat = lambda x: np.repeat(x, each, 0)
    given = Given(repeat(images).astype(np.int32), repeat(~mask))
    drawn = self._draw(repeat(labels), given, seed, batch, watch, settings)
    drawn = drawn.values
    if candidates > 1:
      scores = self.log_prob(
        drawn, repeat(labels), seed=seed, batch=batch, watch=watch
      )
      best = scores.reshape(-1, candidates).argmax(1)
      drawn = drawn.reshape((-1, candidates) + drawn.shape[1:])
      drawn = drawn[np.arange(len(best)), best]
    return drawn.reshape((len(images), num) + drawn.shape[1:])

  def explain(
    self,
    image,
    label=None,
    *,
    passes=64,
    seed=0,
    batch=None,
    watch: Callable[[Progress], None] | None = None,
  ) -> explain.Explanation:
    """Where the bits of an image are: see `inference/explain.py`.

    Exact for models of ar levels alone. With masked levels, means over random
    orders, with a standard error.

    Args:
      image: [S, (S,) C].
      label: its class; "no class" where None.
      passes: random masks, for masked levels.
      seed: of the masks.
      batch: masks at a time; config.eval.batch where None.
      watch: called with a Progress after each batch of masks.

    Returns:
      An `explain.Explanation`: `bits` of each value [S, (S,) C], their sums by
      patch, what each condition is worth in bits, shares by level.
      `explain.write` makes pictures and a report of it.

    Raises:
      edit.EditError: an image or label that the model can't take.
    """
    inputs.check_counts(passes=passes, batch=batch)
    images = inputs.check_images(np.asarray(image)[None], self.config.model)
    labels = inputs.labels_of(label, 1, self.config.model)
    return explain.explain(
      self.config,
      self.net,
      self.params,
      images[0],
      int(labels[0]),
      mesh=self.mesh,
      batch=batch or self.config.eval.batch,
      passes=passes,
      seed=seed,
      progress=_watched(watch, 'explaining'),
    )


def _watched(watch, doing: str):
  """A wrapper of the steps of a job, after each of which `watch` is called."""

  def steps(steps):
    for done, step in enumerate(steps):
      yield step
      if watch is not None:
        watch(Progress(doing, done + 1, len(steps)))

  return steps


def load(workdir: str, step: int | None = None, config=None) -> Model:
  """The model of a run; with `config` in place of the run's own where given."""
  config = checkpoint.load_config(workdir) if config is None else config
  config_lib.check(config)
  net = fractal.from_config(config.model)
  mesh = sharding.any_mesh(config)
  shardings = train_state.param_shardings(net, mesh)
  params = restore.restore_params(workdir, step, shardings)
  return Model(config, net, params, mesh)
