"""Generation: labels and a seed to images.

One compiled program (`Fractal.generate`) runs on a fixed number of images at a
time. Image i of a request is a function of the seed and of i alone, whatever
the batch size and the mesh.
"""

from collections.abc import Callable, Iterator
import functools
import time

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import pictures, sharding
from fractal_jax.data.common import image_dtype
from fractal_jax.inference import inputs, progress, reject
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import fractal
from fractal_jax.models.fractal import Guide
from fractal_jax.models.types import NEVER, Array, Drawn, Given, Sampling

SETTINGS = (
  'guidance',
  'temperature',
  'filter_threshold',
  'schedule',
  'iterations',
  'interval',
  'resample',
  'order',
  'step_sizes',
)
PART = 0.25  # seconds between two reports of a watched generation, about


@struct.dataclass
class Batch:
  """The images of a request that are generated at a time."""

  key: Array  # the request's
  index: Array  # [b] which images of the request they are
  labels: Array  # [b] classes, -1 for "no class"
  given: Given | None  # values that are known, [b, S, (S,) C] each
  sampling: Sampling


def settings(config, *, record: bool = False, **changes):
  """How the values of a run are drawn: config.sample with changes.

  Args:
    config: the run's config.
    record: whether to note when each value is drawn, for movies.
    **changes: values for any of SETTINGS, or of reject.SETTINGS.

  Returns:
    (the Sampling, whether it is guided). Guidance 1 needs no second stream,
    which halves the work.

  Raises:
    InputError: an unknown setting, or a value that breaks a rule.
  """
  chosen = section(config, changes)
  found = {name: _tuples(chosen[name]) for name in SETTINGS}
  if isinstance(found['order'], str):
    found['order'] = (found['order'],) * (len(config.model.sizes) - 1)
  guided = np.any(np.asarray(found['guidance']) != 1)
  return Sampling(**found, record=record), bool(guided)


def section(config, changes: dict) -> ml_collections.ConfigDict:
  """config.sample with changes of SETTINGS and reject.SETTINGS, checked."""
  names = (*SETTINGS, *reject.SETTINGS)
  if unknown := changes.keys() - set(names):
    raise inputs.InputError(
      f'no setting {", ".join(sorted(unknown))}: there are {", ".join(names)}'
    )
  chosen = {name: changes.get(name, config.sample[name]) for name in names}
  chosen = ml_collections.ConfigDict(chosen)
  found = config_lib.sample_problems(chosen, config.model)
  if found:
    raise inputs.InputError('\n'.join(found))
  return chosen


def _tuples(x):
  return tuple(x) if isinstance(x, (tuple, list)) else x


def images(
  net: fractal.Fractal,
  params,
  config,
  labels=None,
  *,
  mesh=None,
  num: int | None = None,
  seed: int = 0,
  batch: int | None = None,
  movie: str | None = None,
  stepwise: bool = False,
  guide=None,
  **changes,
) -> Job:
  """The job of `api.Model.sample`, whose arguments and errors these are."""
  inputs.check_counts(num=num, batch=batch)
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
  params,
  config,
  labels: np.ndarray,
  *,
  mesh=None,
  seed: int = 0,
  first: int = 0,
  **how,
) -> Job:
  """`draw`, where config.sample or changes of it say so with rejection.

  Args:
    net, params, config, labels, mesh, seed, **how: as in `draw`.
    first: the number of the first image, a multiple of sample.keep.

  Returns:
    (Drawn, a reject.Report; None where each image has one candidate).
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
  params,
  config,
  labels: np.ndarray,
  *,
  mesh=None,
  guide=None,
  given: Given | None = None,
  seed: int = 0,
  first: int = 0,
  batch: int | None = None,
  record: bool = False,
  stepwise: bool = False,
  **changes,
) -> Job:
  """`steps` with the settings of a config, and changes of them.

  Args:
    net: the model.
    params: its parameters.
    config: the run's config; `sample` has the defaults of what is not given.
    labels: [num] classes, -1 for "no class".
    mesh: the mesh; one of the first device where None.
    guide: an api.Model that guides, in place of this one without classes.
    given: values that are known, [num, S, (S,) C] each.
    seed: of the request.
    first: the number of the first image in the request.
    batch: images at a time.
    record: whether to note when each value is drawn.
    stepwise: as in `steps`.
    **changes: values for any of SETTINGS; those for reject.SETTINGS are the
      concern of `kept`.

  Returns:
    Drawn, with values of the integer type of images.
  """
  inputs.check_seed(seed)
  sampling, guided = settings(config, record=record, **changes)
  if guide is not None:
    inputs.check_guide(guide.config.model, config.model)
    guide = Guide(guide.net, guide.params)
  drawn = yield from steps(
    net,
    params,
    labels,
    sampling,
    guided=guided,
    guide=guide,
    mesh=mesh,
    given=given,
    seed=seed,
    first=first,
    batch=batch or config.sample.batch,
    stepwise=stepwise,
  )
  return drawn.replace(values=drawn.values.astype(image_dtype(config.model)))


def generate(
  net: fractal.Fractal, params, labels: np.ndarray, sampling: Sampling, **how
) -> Drawn:
  """All of the job `steps`, whose other arguments it takes, at once."""
  return progress.result_of(steps(net, params, labels, sampling, **how))


def steps(
  net: fractal.Fractal,
  params,
  labels: np.ndarray,
  sampling: Sampling,
  *,
  guided: bool,
  guide: Guide | None = None,
  mesh=None,
  given: Given | None = None,
  seed: int = 0,
  first: int = 0,
  batch: int = 64,
  stepwise: bool = False,
) -> Job:
  """Generates images, `batch` at a time.

  Args:
    net: the model.
    params: its parameters.
    labels: [num] classes, -1 for "no class".
    sampling: how values are drawn.
    guided: whether a second stream runs.
    guide: the network of the second stream; None: `net` without classes.
    mesh: the mesh; one of the first device where None.
    given: values that are known, [num, S, (S,) C] each.
    seed: of the request.
    first: the number of the first image, where these are a part of a request.
    batch: images at a time, rounded up to what the mesh divides; the last
      batch is filled up, so that one program serves any number of images.
    stepwise: whether to stop several times a second, between two steps of
      level 0, and show what is drawn so far: then `when` is recorded, and
      NEVER where nothing is drawn yet.

  Yields:
    Progress after each batch, or part of one.

  Returns:
    Drawn, as NumPy arrays [num, S, (S,) C].
  """
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  labels = np.asarray(labels, np.int32)
  if stepwise:
    sampling = sampling.replace(record=True)
  batch = sharding.padded_batch(min(batch, len(labels)), mesh)
  batches = -(-len(labels) // batch)
  how = dict(guided=guided, guide=guide if guided else None, mesh=mesh)
  out = []
  for past in range(batches):
    index = past * batch + np.arange(batch)
    at = np.minimum(index, len(labels) - 1)
    rows = jax.tree.map(lambda x, at=at: x[at], (labels, given))
    some = Batch(jax.random.key(seed), first + index, *rows, sampling)
    if stepwise:
      for drawn, done, total in _in_parts(net, params, some, how):
        shot = _filled([*out, drawn], len(labels))
        done, total = past * total + done, batches * total
        yield Progress('drawing', done, total, shot)
    else:
      with jax.set_mesh(mesh):
        drawn = jax.device_get(generate_batch(net, params, some, **how))
      yield Progress('drawing', past + 1, batches)
    out.append(drawn)
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(labels)], *out)


def _filled(parts: list[Drawn], num: int) -> Drawn:
  """Batches as Drawn of `num` images, the last of them not drawn yet."""
  drawn = jax.tree.map(lambda *x: np.concatenate(x)[:num], *parts)
  rest = ((0, num - len(drawn.values)),) + ((0, 0),) * (drawn.values.ndim - 1)
  return Drawn(
    np.pad(drawn.values, rest),
    np.pad(drawn.when, rest, constant_values=NEVER),
  )


def _in_parts(
  net, params, batch: Batch, how: dict
) -> Iterator[tuple[Drawn, int, int]]:
  """`generate_batch` in parts: (what is drawn so far, steps done, steps)."""
  mesh = how['mesh']
  with jax.set_mesh(mesh):
    state, *shown = begin(net, params, batch, **how)
    drawn, total = jax.device_get(shown)
  done, size, total = 0, 1, int(total[0])
  while True:
    yield drawn, done, total
    if done == total:
      return
    began, first = time.monotonic(), done
    done = min(done + size, total)
    with jax.set_mesh(mesh):
      state, drawn = advance(net, params, batch, state, first, done, **how)
      drawn = jax.device_get(drawn)
    took = time.monotonic() - began
    if took > PART:
      size = max(size // 2, 1)
    elif took < PART / 2:  # at least 16 parts, so that there is much to see
      size = max(min(2 * size, total // 16), 1)


@functools.partial(jax.jit, static_argnames=('net', 'guided', 'mesh'))
def generate_batch(
  net: fractal.Fractal,
  params,
  batch: Batch,
  *,
  guided: bool,
  mesh,
  guide: Guide | None = None,
) -> Drawn:
  """A batch of images at once, whole on every host."""
  how = dict(guided=guided, mesh=mesh, guide=guide)

  def run(loop):
    return loop.run()

  drawn = _on_devices(run, net, params, batch, **how)
  return jax.lax.with_sharding_constraint(drawn, jax.P())


@functools.partial(jax.jit, static_argnames=('net', 'guided', 'mesh'))
def begin(
  net: fractal.Fractal,
  params,
  batch: Batch,
  *,
  guided: bool,
  mesh,
  guide: Guide | None = None,
):
  """Before level 0's first step.

  Returns:
    (the state, what is drawn by then, [devices] how many steps there are).
  """

  def run(loop):
    steps = jnp.full((1,), loop.count)
    return _with_axis(loop.start), loop.drawn(loop.start), steps

  how = dict(guided=guided, mesh=mesh, guide=guide)
  state, *shown = _on_devices(run, net, params, batch, **how)
  return state, *jax.lax.with_sharding_constraint(shown, jax.P())


@functools.partial(
  jax.jit,
  static_argnames=('net', 'guided', 'mesh'),
  donate_argnames=('state',),
)
def advance(
  net: fractal.Fractal,
  params,
  batch: Batch,
  state,
  first: int,
  last: int,
  *,
  guided: bool,
  mesh,
  guide: Guide | None = None,
):
  """Level 0's steps first .. last - 1: (the state, what is drawn by then)."""

  def run(loop, state):
    state = jax.tree.map(lambda x: x[0], state)
    state = jax.lax.fori_loop(first, last, loop.step, state)
    return _with_axis(state), loop.drawn(state)

  how = dict(guided=guided, mesh=mesh, guide=guide)
  state, drawn = _on_devices(run, net, params, batch, state, **how)
  return state, jax.lax.with_sharding_constraint(drawn, jax.P())


def _with_axis(state):
  """A leading axis for the devices: a state has its own axes on each."""
  return jax.tree.map(lambda x: x[None], state)


def _on_devices(
  run: Callable, net, params, batch: Batch, *state, guided: bool, mesh, guide
):
  """run(loop, *state), where each device has the loop of its own images."""
  keys = jax.vmap(lambda i: jax.random.fold_in(batch.key, i))(batch.index)

  def on_device(params, guide, labels, given, keys, sampling, state):
    loop = net.steps(
      params,
      labels,
      keys,
      sampling,
      guided=guided,
      guide=guide,
      given=given,
    )
    return run(loop, *state)

  # Each device generates its own images; nothing crosses devices in the loop.
  over = jax.P(sharding.BATCH)
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(jax.P(), jax.P(), over, over, over, jax.P(), over),
    out_specs=over,
    check_vma=False,
  )(params, guide, batch.labels, batch.given, keys, batch.sampling, state)


def round_robin(num: int, classes) -> np.ndarray:
  """`num` labels that go through the classes again and again."""
  return np.resize(np.asarray(classes, np.int32), num)


def sample_grid(
  net: fractal.Fractal,
  params,
  config,
  *,
  mesh=None,
  num: int | None = None,
  path: str | None = None,
) -> np.ndarray:
  """A grid of samples with the config's settings, one class per column.

  Args:
    net: the model.
    params: its parameters.
    config: the run's config.
    mesh: the mesh; one of the first device where None.
    num: images; config.sample.num where None.
    path: a PNG to write, too.

  Returns:
    The grid, uint8 [H, W, 3].
  """
  job = images(net, params, config, mesh=mesh, num=num, seed=config.seed)
  columns = config.model.classes if config.model.classes <= 16 else None
  shown = pictures.from_values(progress.result_of(job), config.model)
  image = pictures.grid(shown, columns)
  if path is not None and jax.process_index() == 0:
    pictures.save(image, path)
  return image
