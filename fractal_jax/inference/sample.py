"""Generation: labels and a seed to images.

One compiled program (programs.py) runs on a fixed number of images at a
time. Image i of a request is a function of the seed and of i alone, whatever
the batch size and the mesh.
"""

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import config as config_lib
from fractal_jax import pictures, sharding
from fractal_jax.data.common import image_dtype
from fractal_jax.inference import inputs, programs, progress, reject
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import fractal
from fractal_jax.models.fractal import Guide
from fractal_jax.models.types import NEVER, Drawn, Given, Sampling

if TYPE_CHECKING:
  from fractal_jax import api

SETTINGS = tuple(
  f.name for f in dataclasses.fields(Sampling) if f.name in config_lib.SAMPLE
)
OF_MASKED = {'order', 'step_sizes'}  # of no use to other levels
OF_GUIDANCE = ('guide', 'schedule', 'interval', 'resample', 'filter_threshold')
MOVIE = 8  # images in the movie of a grid


def settings(
  config: ConfigDict, *, record: bool = False, **changes: Any
) -> tuple[Sampling, bool]:
  """How the values of a run are drawn: config.sample with changes.

  Args:
    record: whether to note when each value is drawn, for movies.
    **changes: values for any of SETTINGS, or of reject.SETTINGS.

  Returns:
    The Sampling, and whether it is guided. Guidance 1 needs no second stream,
    which halves the work.

  Raises:
    InputError: an unknown setting, or a value that breaks a rule.
  """
  chosen = section(config, changes)
  found = {name: chosen[name] for name in SETTINGS}
  found = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
  for name in ('guidance', 'temperature'):
    if isinstance(found[name], tuple):
      found[name] = np.array(found[name], np.float32)
  if isinstance(found['order'], str):
    found['order'] = (found['order'],) * (len(config.model.sizes) - 1)
  guided = bool(np.any(found['guidance'] != np.float32(1)))
  return Sampling(**found, record=record), guided


def section(config: ConfigDict, changes: dict) -> ConfigDict:
  """config.sample with changes of SETTINGS and reject.SETTINGS, checked."""
  names = (*SETTINGS, *reject.SETTINGS)
  if unknown := changes.keys() - set(names):
    raise inputs.InputError(
      f'no setting {", ".join(sorted(unknown))}: there are {", ".join(names)}'
    )
  chosen = {name: changes.get(name, config.sample[name]) for name in names}
  chosen = ConfigDict(chosen)
  found = config_lib.sample_problems(chosen, config.model)
  if found:
    raise inputs.InputError('\n'.join(found))
  for name in sorted(OF_MASKED & changes.keys()):
    same = changes[name] == config.sample[name]
    if not (same or fractal.from_config(config.model).masks):
      raise inputs.InputError(
        f'{name}={changes[name]} is for masked levels, and this model has '
        f'none: its kinds are {tuple(config.model.kinds)}. Leave it out'
      )
  return chosen


def check_use(
  config: ConfigDict, ways: Sequence[dict], guide: str | None = None
) -> None:
  """Refuses what was asked for and would change no image.

  A key of config.sample may be of no use, and so may what a caller repeats of
  it: what is drawn otherwise than the config says should be.

  Args:
    ways: for each way in which images are drawn, the changes that `settings`
      takes. What is of use in one of them is kept.
    guide: the name of what guides, if anything does.

  Raises:
    InputError: that, or what `settings` refuses.
  """
  guided = [settings(config, **changes)[1] for changes in ways]
  rejects = [section(config, changes).candidates > 1 for changes in ways]
  asked = {} if guide is None else {'guide': guide}
  for changes in ways:
    for name, value in changes.items():
      if not np.array_equal(value, config.sample[name]):
        asked[name] = value
  for names, of_use, where, needed in (
    (OF_GUIDANCE, guided, 'at guidance 1', 'guidance above 1'),
    (('keep_by',), rejects, 'with one candidate', 'candidates above 1'),
  ):
    for name in names:
      if name in asked and not any(of_use):
        raise inputs.InputError(
          f'{name}={asked[name]} does nothing {where}: set {needed}, or leave '
          f'{name} out'
        )


def guide_name(guide: 'api.Model | None', config: ConfigDict) -> str | None:
  """What messages call a guide; an InputError says why one does not fit."""
  if guide is None:
    return None
  _checked_guide(guide, config)
  return guide.origin or 'Model'


def images(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  labels: ArrayLike | None = None,
  *,
  mesh: Mesh | None = None,
  num: int | None = None,
  seed: int = 0,
  batch: int | None = None,
  movie: str | None = None,
  stepwise: bool = False,
  guide: 'api.Model | None' = None,
  **changes: Any,
) -> Job:
  """The job of `api.Model.sample`, whose arguments and errors these are."""
  inputs.check_counts(num=num, batch=batch)
  check_use(config, [changes], guide_name(guide, config))
  if movie is not None:
    pictures.check_movie(movie)
  model = config.model
  if num is None:
    num = config.sample.num if labels is None else np.size(labels)
  if labels is None:
    labels = np.arange(model.classes)
  drawn, _ = yield from kept(
    net,
    params,
    config,
    round_robin(num, inputs.check_labels(labels, model)),
    mesh=mesh,
    seed=seed,
    batch=batch,
    record=movie is not None,
    stepwise=stepwise,
    guide=guide,
    **changes,
  )
  if movie is not None and jax.process_index() == 0:
    pictures.save_movie(drawn, model, movie)
  return drawn.values


def kept(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  labels: np.ndarray,
  *,
  mesh: Mesh | None = None,
  seed: int = 0,
  first: int = 0,
  **how: Any,
) -> Job:
  """`draw`, where config.sample or changes of it say so with rejection.

  Args:
    net, params, config, labels, mesh, seed, **how: as in `draw`.
    first: the number of the first image, a multiple of sample.keep.

  Returns:
    Drawn, and a reject.Report; None where each image has one candidate.
  """
  changes = {k: v for k, v in how.items() if k in (*SETTINGS, *reject.SETTINGS)}
  chosen = section(config, changes)
  how = dict(mesh=mesh, seed=seed, **how)
  n, keep, by = (chosen[name] for name in reject.SETTINGS)
  if n == 1:
    drawn = yield from draw(net, params, config, labels, first=first, **how)
    return drawn, None
  reject.check(by, labels)
  group, place = reject.groups(labels, keep)
  _, heads = np.unique(group, return_index=True)
  repeated = np.repeat(labels[heads], n)
  first = first // keep * n
  drawn = yield from draw(net, params, config, repeated, first=first, **how)
  found = yield from reject.scores(
    net, params, config, drawn.values, repeated, by, first=first, mesh=mesh,
    seed=seed,
  )  # fmt: skip
  found = found.reshape(-1, n)
  best = np.argsort(-found, 1, kind='stable')[:, :keep]
  picked = group * n + best[group, place]
  report = reject.Report(by, found, np.take_along_axis(found, best, 1))
  return jax.tree.map(lambda x: x[picked], drawn), report


def draw(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  labels: np.ndarray,
  *,
  mesh: Mesh | None = None,
  guide: 'api.Model | None' = None,
  given: Given | None = None,
  seed: int = 0,
  first: int = 0,
  batch: int | None = None,
  record: bool = False,
  stepwise: bool = False,
  **changes: Any,
) -> Job:
  """Generates images, some at a time.

  Args:
    net, params: the model.
    config: the run's config; `sample` has the defaults of what is not given.
    labels: [num] classes, -1 for "no class".
    mesh: the mesh; one of the first device where None.
    guide: a model that guides, in place of this one without classes.
    given: values that are known, [num, S, (S,) C] each.
    seed: of the request.
    first: the number of the first image, where these are a part of a request.
    batch: images at a time, rounded up to what the mesh divides; the last
      batch is filled up, so that one program serves any number of images.
    record: whether to note when each value is drawn.
    stepwise: whether to stop several times a second, between two steps of
      level 0, and show what is drawn so far: then `when` is recorded, and
      NEVER where nothing is drawn yet.
    **changes: values for any of SETTINGS; those for reject.SETTINGS are the
      concern of `kept`.

  Yields:
    Progress after each batch, or part of one.

  Returns:
    Drawn, as NumPy arrays [num, S, (S,) C], values of the integer type of
    images.
  """
  inputs.check_seed(seed)
  sampling, guided = settings(config, record=record or stepwise, **changes)
  guide = None if guide is None else _checked_guide(guide, config)
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  labels = np.asarray(labels, np.int32)
  batch = min(batch or config.sample.batch, len(labels))
  batch = sharding.padded_batch(batch, mesh)
  batches = -(-len(labels) // batch)
  key, out = jax.random.key(seed), []
  for past in range(batches):
    index = past * batch + np.arange(batch)
    at = np.minimum(index, len(labels) - 1)
    some = programs.Batch(
      key=key,
      index=first + index,
      labels=labels[at],
      given=jax.tree.map(lambda x, at=at: x[at], given),
      sampling=sampling,
      guided=guided,
      guide=guide if guided else None,
    )
    parts = programs.in_parts(net, params, some, mesh=mesh, stepwise=stepwise)
    for drawn, done, total in parts:
      shot = _filled([*out, drawn], len(labels)) if stepwise else None
      yield Progress('drawing', past * total + done, batches * total, shot)
    out.append(drawn)
  drawn = jax.tree.map(lambda *x: np.concatenate(x)[: len(labels)], *out)
  return drawn.replace(values=drawn.values.astype(image_dtype(config.model)))


def _checked_guide(guide: 'api.Model', config: ConfigDict) -> Guide:
  """What guides, of a Model; an InputError says why it does not fit."""
  if not hasattr(guide, 'params'):
    raise inputs.InputError(
      f'guide={guide!r} must be a Model, as fractal_jax.load gives it'
    )
  inputs.check_guide(guide.config.model, config.model)
  return Guide(guide.net, guide.params)


def _filled(parts: list[Drawn], num: int) -> Drawn:
  """Batches as Drawn of `num` images, the last of them not drawn yet."""
  drawn = jax.tree.map(lambda *x: np.concatenate(x)[:num], *parts)
  rest = ((0, num - len(drawn.values)),) + ((0, 0),) * (drawn.values.ndim - 1)
  return Drawn(
    np.pad(drawn.values, rest), np.pad(drawn.when, rest, constant_values=NEVER)
  )


def round_robin(num: int, classes: ArrayLike) -> np.ndarray:
  """`num` labels that go through the classes again and again."""
  return np.resize(np.asarray(classes, np.int32), num)


def sample_grid(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  *,
  mesh: Mesh | None = None,
  path: str | None = None,
  names: tuple[str, ...] = (),
  movie: str | None = None,
) -> np.ndarray:
  """A grid of samples with the config's settings, one class per column.

  Args:
    net, params, config, mesh: as in `draw`.
    path: a PNG to write, too.
    names: of the classes, to write above their columns.
    movie: a .gif to write, too, of the first MOVIE images as they grow.

  Returns:
    The grid, uint8 [H, W, 3].
  """
  classes = config.model.classes
  labels = round_robin(config.sample.num, np.arange(classes))
  # When each value is drawn is always noted: so it is one program to compile.
  job = draw(
    net, params, config, labels, mesh=mesh, seed=config.seed, record=True
  )
  drawn = progress.result_of(job)
  written = [names[i] for i in labels] if len(names) > 1 else None
  image = pictures.grid(
    pictures.from_values(drawn.values, config.model),
    classes if classes <= pictures.most_classes(config.model) else None,
    written,
  )
  if jax.process_index() == 0:
    if path is not None:
      pictures.save(image, path)
    if movie is not None:
      some = jax.tree.map(lambda x: x[:MOVIE], drawn)
      pictures.save_movie(
        some, config.model, movie, frames=60, names=written and written[:MOVIE]
      )
  return image
