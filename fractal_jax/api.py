"""A trained model, for use from Python.

Images are arrays [n, S, (S,) C] of whole numbers 0 .. V - 1, as the data sets
give them: S the side, C the channels, V the values per channel (256 for
pixels).
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.errors import UserError
from fractal_jax.inference import edit, explain, inputs, likelihood, sample
from fractal_jax.inference.progress import Job, Progress, result_of, stream
from fractal_jax.models import fractal
from fractal_jax.models.kernels import proof
from fractal_jax.release import folder, hub
from fractal_jax.series import forecast as series_forecast
from fractal_jax.series import quantiser as series_quantiser
from fractal_jax.training import checkpoint, processes, restore, train_state

# What `Model.stream` runs, by the name of the method that it watches.
JOBS = {
  'sample': functools.partial(sample.images, stepwise=True),
  'edit': functools.partial(edit.edit, stepwise=True),
  'log_prob': likelihood.log_prob,
  'explain': explain.explain,
}


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A model with its parameters. `load` and `from_pretrained` make one."""

  config: ml_collections.ConfigDict  # the run's
  net: fractal.Fractal
  params: dict
  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  origin: str | None = None  # the run or release that it was loaded from
  step: int | None = None  # steps that it was trained for
  quantiser: series_quantiser.Quantiser | None = None  # of models of series

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

  @classmethod
  def from_pretrained(
    cls,
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
  ) -> 'Model':
    """A model of the Hugging Face Hub, or of a release or run.

    Nothing of what is downloaded is executed. Each device is given its own
    part of the parameters.

    Args:
      name: a repository, 'user/name'; a folder, './dir'; a model that comes
        with this package, such as 'digits_ar'.
      revision: of the repository: a branch, tag or commit.
      cache_dir: for downloads, in place of huggingface_hub's.
      local_files_only: whether to use what was downloaded, without asking.
      token: of the Hub, for private repositories; the one of `hf auth login`
        or $HF_TOKEN where None.
      mesh: devices to use; as the config says, or all, where None.
      dtype: of the computation, 'float32' or 'bfloat16'; the config's where
        None. Parameters are float32.

    Raises:
      ReleaseError: it can't be downloaded, or its files are damaged.
      CheckpointError: its config is of a newer format, or of something else;
        or the parameters don't fit it.
      ConfigError: the config breaks a rule.
    """
    found = hub.folder(
      name,
      revision=revision,
      cache_dir=cache_dir,
      local_files_only=local_files_only,
      token=token,
    )
    return _load(found, mesh=mesh, dtype=dtype)

  def save_pretrained(
    self, directory: str, *, dtype: str = 'float32', **card: Any
  ) -> None:
    """Writes the model as a release: a folder that can be copied.

    Args:
      directory: the folder; made if it isn't there. An older release in it is
        replaced.
      dtype: of the parameters in it: 'float32'; or 'bfloat16' for half the
        size, 'int8' for a quarter.
      **card: what its card says besides: `name`, the folder's where it isn't
        given; `license`, an identifier of the Hub, such as 'mit'; `numbers`,
        files that `likelihood --out` and `evaluate --out` wrote; `samples`, an
        image file; `made_by`, a command.

    Raises:
      ReleaseError: no such dtype, numbers or samples; or the folder holds a
        run, or is what this model was loaded from.
      PathError: it can't be written to.
    """
    check = lambda: folder.check_target(directory, 'directory', self.origin)
    processes.together(check, UserError)  # or one would wait for another
    name = card.pop('name', None) or os.path.basename(
      os.path.abspath(directory)
    )
    about = folder.about(
      self.origin,
      self.step,
      self.config,
      name=name,
      quantiser=self.quantiser,
      **card,
    )
    folder.write(directory, self.config, self.params, about, dtype)

  def push_to_hub(
    self,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = hub.MESSAGE,
    **release: Any,
  ) -> str:
    """Uploads the model to the Hugging Face Hub.

    Args:
      repo_id: 'user/name'; made if it isn't there.
      private: of a new repository: whether others can't see it.
      revision: a branch, made if it isn't there; main where None.
      token: of the Hub, with the right to write; the one of `hf auth login`
        or $HF_TOKEN where None.
      message: of the commit.
      **release: as `save_pretrained` takes it.

    Returns:
      The address of the commit; '' on processes but 0.

    Raises:
      ReleaseError: it can't be uploaded; or see `save_pretrained`.
    """
    hub.check_repository(repo_id)
    with tempfile.TemporaryDirectory() as directory:
      self.save_pretrained(directory, name=repo_id, **release)
      if jax.process_index():  # process 0 has written it, and uploads it
        return ''
      return hub.push(
        directory,
        repo_id,
        private=private,
        revision=revision,
        token=token,
        message=message,
      )

  def sample(
    self,
    labels: ArrayLike | None = None,
    *,
    num: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    movie: str | None = None,
    guide: 'Model | None' = None,
    **settings: Any,
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
      inputs.InputError: labels or settings that the model can't serve, or
        settings that would do nothing, such as a guide at guidance 1.
      pictures.PictureError: a movie that can't be written.
    """
    return self._result(
      sample.images,
      labels,
      num=num,
      seed=seed,
      batch=batch,
      movie=movie,
      guide=guide,
      **settings,
    )

  def log_prob(
    self,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    passes: int | None = None,
    seed: int = 0,
    batch: int | None = None,
  ) -> np.ndarray:
    """Log-likelihoods in nats.

    Exact where no level masks. With masked levels it is an unbiased estimate of
    the mean over orders; with guiding pixels, a lower bound. With
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
    return self._result(
      likelihood.log_prob, images, labels, passes=passes, seed=seed, batch=batch
    )

  def edit(
    self,
    images: ArrayLike,
    mask: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    num: int = 1,
    candidates: int = 1,
    seed: int = 0,
    batch: int | None = None,
    guide: 'Model | None' = None,
    **settings: Any,
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
    return self._result(
      edit.edit,
      images,
      mask,
      labels,
      num=num,
      candidates=candidates,
      seed=seed,
      batch=batch,
      guide=guide,
      **settings,
    )

  def explain(
    self,
    image: ArrayLike,
    label: int | None = None,
    *,
    passes: int = 64,
    seed: int = 0,
    batch: int | None = None,
  ) -> explain.Explanation:
    """Where the bits of an image are: see `inference/explain.py`.

    Exact where no level masks. With masked levels, means over random orders,
    with a standard error.

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
    return self._result(
      explain.explain, image, label, passes=passes, seed=seed, batch=batch
    )

  def forecast(
    self,
    context: ArrayLike,
    horizon: int,
    *,
    quantiles: Sequence[float] = series_forecast.QUANTILES,
    num: int = 100,
    label: int = 0,
    seed: int = 0,
    **settings: Any,
  ) -> series_forecast.Drawn:
    """What comes after a series, as samples and quantiles.

    Args:
      context: [T, C], in the unit of the data; the model sees its last rows,
        no more than a window. NaN is not known, and drawn as well.
      horizon: rows.
      quantiles: of each value.
      num: continuations that are drawn.
      label: the class, where the model was trained on several series.
      seed: of the draws.
      **settings: batch, and those of `sample`.

    Returns:
      A `forecast.Drawn`: samples [num, horizon, C], quantiles [quantiles,
      horizon, C].

    Raises:
      forecast.ForecastError: no model of series, or values it can't take.
    """
    job = series_forecast.forecast(
      self,
      context,
      horizon,
      quantiles=quantiles,
      num=num,
      label=label,
      seed=seed,
      **settings,
    )
    return result_of(job)

  def impute(
    self,
    x: ArrayLike,
    *,
    quantiles: Sequence[float] = series_forecast.QUANTILES,
    num: int = 20,
    label: int = 0,
    seed: int = 0,
    **settings: Any,
  ) -> series_forecast.Drawn:
    """What may stand where a series is NaN, as samples and quantiles.

    Masked levels see both sides of a gap, autoregressive ones the earlier one.

    Args:
      x: [T, C], in the unit of the data. What is known comes back unchanged.
      quantiles, num, label, seed, **settings: as in `forecast`.

    Returns:
      A `forecast.Drawn`: samples [num, T, C], quantiles [quantiles, T, C].

    Raises:
      forecast.ForecastError: no model of series, or values it can't take.
    """
    job = series_forecast.impute(
      self, x, quantiles=quantiles, num=num, label=label, seed=seed, **settings
    )
    return result_of(job)

  def stream(self, job: str, *args: Any, **how: Any) -> Iterator[Progress]:
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
    return stream(self.start(JOBS[job], *args, **how))

  def start(self, job: Callable[..., Job], *args: Any, **how: Any) -> Job:
    """A job of `inference` with this model, and its other arguments."""
    return job(self.net, self.params, self.config, *args, mesh=self.mesh, **how)

  def _result(self, job: Callable[..., Job], *args: Any, **how: Any) -> Any:
    """What a job returns."""
    return result_of(self.start(job, *args, **how))


def load(
  workdir: str,
  step: int | None = None,
  config: ml_collections.ConfigDict | None = None,
) -> Model:
  """The model of a run.

  Args:
    workdir: the run's directory; or a release or its name, as
      `Model.from_pretrained` takes it.
    step: of the checkpoint; the latest where None.
    config: in place of the run's own.

  Raises:
    CheckpointError: there is no such run or checkpoint, or it does not fit the
      config.
    ReleaseError: see `Model.from_pretrained`.
    ConfigError: the config breaks a rule.
  """
  return _load(hub.folder(workdir), step, config)


def _load(found: str, step=None, config=None, mesh=None, dtype=None) -> Model:
  """The model in a folder."""
  config = checkpoint.load_config(found) if config is None else config
  if dtype is not None:
    known = isinstance(dtype, str)
    config.model.dtype = dtype if known else jnp.dtype(dtype).name
  config_lib.check(config)
  net = fractal.from_config(config.model)
  net = proof.tried(net, config.model.kernels)
  mesh = sharding.any_mesh(config) if mesh is None else mesh
  params = restore.restore_like(
    found, step, train_state.abstract_params(net, mesh=mesh)
  )
  step = restore.steps(found)[-1] if step is None else step
  quantiser = series_quantiser.load(found)
  m = config.model
  shape = m.classes, m.channels, m.num_values
  if quantiser and (kept := (len(quantiser.low), *quantiser.shape)) != shape:
    raise series_quantiser.QuantiserError(
      f'{found}/{series_quantiser.FILE} has (classes, channels, values) = '
      f'{kept}, config.json has {shape}: they are not of one run'
    )
  return Model(
    config, net, params, mesh, origin=found, step=step, quantiser=quantiser
  )
