"""A trained model, for use from Python.

Images are arrays [n, S, (S,) C] of whole numbers 0 .. V - 1, as the data sets
give them: S the side, C the channels, V the values per channel (256 for
pixels).
"""

from collections.abc import Iterator
import dataclasses
import functools

import jax
import ml_collections
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.inference import edit, explain, inputs, sample, score
from fractal_jax.inference.progress import Progress, result_of, stream
from fractal_jax.models import fractal
from fractal_jax.models.kernels import proof
from fractal_jax.training import checkpoint, restore, train_state

# What `Model.stream` runs, by the name of the method that it watches.
JOBS = {
  'sample': functools.partial(sample.images, stepwise=True),
  'edit': functools.partial(edit.edit, stepwise=True),
  'log_prob': score.log_prob,
  'explain': explain.explain,
}


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A model with its parameters. `load` makes one."""

  config: ml_collections.ConfigDict  # the run's
  net: fractal.Fractal
  params: dict
  mesh: jax.sharding.Mesh

  def __repr__(self) -> str:
    m = self.config.model
    by = lambda side: 'x'.join([str(side)] * m.rank)
    levels = ' → '.join(
      f'{kind} {by(side)}' if side > 1 else kind
      for kind, side in zip(m.kinds, m.sizes)
    )
    number = sum(x.size for x in jax.tree.leaves(self.params))
    mesh = ', '.join(f'{axis}={n}' for axis, n in self.mesh.shape.items())
    return (
      f'fractal_jax Model: {number:,} parameters\n'
      f'  levels: {levels}\n'
      f'  images: {by(m.sizes[0])}, {m.channels} channels of {m.num_values} '
      f'values, {m.classes} classes\n'
      f'  mesh: {mesh}'
    )

  def sample(
    self,
    labels=None,
    *,
    num: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    movie: str | None = None,
    guide: 'Model | None' = None,
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
      guide: a weaker model, such as an earlier checkpoint, away from which
        images are guided; this one without classes where None.
      **settings: in place of those of config.sample: guidance, temperature,
        schedule, interval, filter_threshold, resample, iterations, order,
        step_sizes, candidates, keep, keep_by; see docs/sampling.md.

    Returns:
      Images [num, S, (S,) C].

    Raises:
      inputs.InputError: labels or settings that the model can't serve.
      pictures.PictureError: a movie that can't be written.
    """
    job = sample.images(
      self.net,
      self.params,
      self.config,
      labels,
      mesh=self.mesh,
      num=num,
      seed=seed,
      batch=batch,
      movie=movie,
      guide=guide,
      **settings,
    )
    return result_of(job)

  def log_prob(
    self,
    images,
    labels=None,
    *,
    passes: int | None = None,
    seed: int = 0,
    batch: int | None = None,
  ) -> np.ndarray:
    """Log-likelihoods in nats.

    Exact for models of ar levels alone. With masked levels it is an unbiased
    estimate of the mean over orders; with guiding pixels, a lower bound. With
    model.colour='ycbcr' it is that of the rounded colours, not of the images.

    Args:
      images: [n, S, (S,) C].
      labels: [n] or one class; "no class" where None.
      passes: random masks per image, for masked levels; config.eval.passes
        where None.
      seed: of the masks.
      batch: images at a time; config.eval.batch where None.

    Returns:
      [n] float64. Bits per dimension are -log_prob / (S^2 C ln 2).

    Raises:
      inputs.InputError: images or labels that the model can't take.
    """
    job = score.log_prob(
      self.net,
      self.params,
      self.config,
      images,
      labels,
      mesh=self.mesh,
      passes=passes,
      seed=seed,
      batch=batch,
    )
    return result_of(job)

  def edit(
    self,
    images,
    mask,
    labels=None,
    *,
    num: int = 1,
    candidates: int = 1,
    seed: int = 0,
    batch: int | None = None,
    guide: 'Model | None' = None,
    **settings,
  ) -> np.ndarray:
    """Generates what is under a mask, given the rest.

    Known values come back bit-identical. A masked level starts its order from
    the known patches, so it sees all of them; an ar level sees, of the known
    patches, the earlier ones only: prefer mar models for holes.

    Args:
      images: [n, S, (S,) C].
      mask: True where to generate: [S, (S,)], [S, (S,) C], or n of these.
      labels: [n] or one class; "no class" where None. Another class than the
        image's own edits it by class.
      num: completions per image.
      candidates: draws of which each completion is the likeliest, by
        `log_prob` under the same class.
      seed, batch, guide, **settings: as in `sample`; the candidates that are
        kept are those above.

    Returns:
      [n, num, S, (S,) C].

    Raises:
      inputs.InputError: an image, mask, label or setting that the model can't
        take.
    """
    job = edit.edit(
      self.net,
      self.params,
      self.config,
      images,
      mask,
      labels,
      mesh=self.mesh,
      num=num,
      candidates=candidates,
      seed=seed,
      batch=batch,
      guide=guide,
      **settings,
    )
    return result_of(job)

  def explain(
    self,
    image,
    label: int | None = None,
    *,
    passes: int = 64,
    seed: int = 0,
    batch: int | None = None,
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

    Returns:
      An `explain.Explanation`: `bits` of each value [S, (S,) C], their sums by
      patch, what each condition is worth in bits, shares by level.
      `report.write` makes pictures and a page of it.

    Raises:
      inputs.InputError: an image or label that the model can't take.
    """
    job = explain.explain(
      self.net,
      self.params,
      self.config,
      image,
      label,
      mesh=self.mesh,
      passes=passes,
      seed=seed,
      batch=batch,
    )
    return result_of(job)

  def stream(self, job: str, *args, **how) -> Iterator[Progress]:
    """Runs one of the methods above step by step, so that it can be watched.

      for progress in model.stream('sample', [3, 7], num=16):
        print(f'{progress.doing}: {progress.done} of {progress.total} steps')
      images = progress.result

    Leaving the loop ends the job: what is not done by then is never done.

    Args:
      job: the method: 'sample', 'log_prob', 'edit' or 'explain'.
      *args, **how: its arguments.

    Yields:
      A Progress after each step; several times a second while images are drawn,
      with the images so far in `drawn` (`pictures.so_far` shows them; of edits,
      all candidates, [n num candidates, S, (S,) C]). The last one's `result`
      is what the method returns.

    Raises:
      inputs.InputError: no such job. Other errors of the method are raised
        when the loop begins.
    """
    if job not in JOBS:
      raise inputs.InputError(f"no job '{job}': there are {', '.join(JOBS)}")
    start = JOBS[job]
    return stream(
      start(self.net, self.params, self.config, *args, mesh=self.mesh, **how)
    )


def load(workdir: str, step: int | None = None, config=None) -> Model:
  """The model of a run.

  Args:
    workdir: the run's directory.
    step: of the checkpoint; the latest where None.
    config: in place of the run's own.

  Raises:
    CheckpointError: there is no such run or checkpoint.
    ConfigError: the config breaks a rule.
  """
  config = checkpoint.load_config(workdir) if config is None else config
  config_lib.check(config)
  net = fractal.from_config(config.model)
  net = proof.tried(net, config.model.kernels)
  mesh = sharding.any_mesh(config)
  shardings = train_state.param_shardings(net, mesh)
  params = restore.restore_params(workdir, step, shardings)
  return Model(config, net, params, mesh)
