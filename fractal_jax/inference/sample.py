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
from fractal_jax.inference import inputs, progress
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import fractal
from fractal_jax.models.types import NEVER, Array, Drawn, Given, Sampling

SETTINGS = (
  'guidance',
  'temperature',
  'filter_threshold',
  'schedule',
  'iterations',
)
MOVIE = 8  # images in the movie of a grid
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
    **changes: values for any of SETTINGS.

  Returns:
    (the Sampling, whether it is guided). Guidance 1 needs no unconditional
    stream, which halves the work.

  Raises:
    InputError: an unknown setting, or a value that breaks a rule.
  """
  unknown = changes.keys() - set(SETTINGS)
  if unknown:
    raise inputs.InputError(
      f'no setting {", ".join(sorted(unknown))}: there are '
      f'{", ".join(SETTINGS)}'
    )
  chosen = {name: changes.get(name, config.sample[name]) for name in SETTINGS}
  chosen['iterations'] = tuple(chosen['iterations'])
  found = config_lib.sample_problems(
    ml_collections.ConfigDict(chosen), len(config.model.sizes) - 1
  )
  if found:
    raise inputs.InputError('\n'.join(found))
  return Sampling(**chosen, record=record), chosen['guidance'] != 1


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
  drawn = yield from draw(
    net,
    params,
    config,
    round_robin(num, inputs.check_labels(labels, model)),
    mesh=mesh,
    seed=seed,
    batch=batch,
    record=movie is not None,
    stepwise=stepwise,
    **changes,
  )
  if movie is not None and jax.process_index() == 0:
    pictures.save_movie(drawn, model, movie)
  return drawn.values


def draw(
  net: fractal.Fractal,
  params,
  config,
  labels: np.ndarray,
  *,
  mesh=None,
  given: Given | None = None,
  seed: int = 0,
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
    given: values that are known, [num, S, (S,) C] each.
    seed: of the request.
    batch: images at a time.
    record: whether to note when each value is drawn.
    stepwise: as in `steps`.
    **changes: values for any of SETTINGS.

  Returns:
    Drawn, with values of the integer type of images.
  """
  inputs.check_seed(seed)
  sampling, guided = settings(config, record=record, **changes)
  drawn = yield from steps(
    net,
    params,
    labels,
    sampling,
    guided=guided,
    mesh=mesh,
    given=given,
    seed=seed,
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
    guided: whether the unconditional stream runs.
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
  out = []
  for past in range(batches):
    index = past * batch + np.arange(batch)
    at = np.minimum(index, len(labels) - 1)
    rows = jax.tree.map(lambda x, at=at: x[at], (labels, given))
    some = Batch(jax.random.key(seed), first + index, *rows, sampling)
    if stepwise:
      for drawn, done, total in _in_parts(net, params, some, guided, mesh):
        shot = _filled([*out, drawn], len(labels))
        done, total = past * total + done, batches * total
        yield Progress('drawing', done, total, shot)
    else:
      with jax.set_mesh(mesh):
        drawn = jax.device_get(
          generate_batch(net, params, some, guided=guided, mesh=mesh)
        )
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
  net, params, batch: Batch, guided: bool, mesh
) -> Iterator[tuple[Drawn, int, int]]:
  """`generate_batch` in parts: (what is drawn so far, steps done, steps)."""
  how = dict(guided=guided, mesh=mesh)
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
  net: fractal.Fractal, params, batch: Batch, *, guided: bool, mesh
) -> Drawn:
  """A batch of images at once, whole on every host."""

  def run(loop):
    return loop.run()

  drawn = _on_devices(run, net, params, batch, guided=guided, mesh=mesh)
  return jax.lax.with_sharding_constraint(drawn, jax.P())


@functools.partial(jax.jit, static_argnames=('net', 'guided', 'mesh'))
def begin(net: fractal.Fractal, params, batch: Batch, *, guided: bool, mesh):
  """Before level 0's first step.

  Returns:
    (the state, what is drawn by then, [devices] how many steps there are).
  """

  def run(loop):
    steps = jnp.full((1,), loop.count)
    return _with_axis(loop.start), loop.drawn(loop.start), steps

  state, *shown = _on_devices(run, net, params, batch, guided=guided, mesh=mesh)
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
):
  """Level 0's steps first .. last - 1: (the state, what is drawn by then)."""

  def run(loop, state):
    state = jax.tree.map(lambda x: x[0], state)
    state = jax.lax.fori_loop(first, last, loop.step, state)
    return _with_axis(state), loop.drawn(state)

  state, drawn = _on_devices(
    run, net, params, batch, state, guided=guided, mesh=mesh
  )
  return state, jax.lax.with_sharding_constraint(drawn, jax.P())


def _with_axis(state):
  """A leading axis for the devices: a state has its own axes on each."""
  return jax.tree.map(lambda x: x[None], state)


def _on_devices(
  run: Callable, net, params, batch: Batch, *state, guided: bool, mesh
):
  """run(loop, *state), where each device has the loop of its own images."""
  keys = jax.vmap(lambda i: jax.random.fold_in(batch.key, i))(batch.index)

  def on_device(params, labels, given, keys, sampling, state):
    loop = net.steps(params, labels, keys, sampling, guided=guided, given=given)
    return run(loop, *state)

  # Each device generates its own images; nothing crosses devices in the loop.
  over = jax.P(sharding.BATCH)
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(jax.P(), over, over, over, jax.P(), over),
    out_specs=over,
    check_vma=False,
  )(params, batch.labels, batch.given, keys, batch.sampling, state)


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
  names: tuple[str, ...] = (),
  movie: str | None = None,
) -> np.ndarray:
  """A grid of samples with the config's settings, one class per column.

  Args:
    net: the model.
    params: its parameters.
    config: the run's config.
    mesh: the mesh; one of the first device where None.
    num: images; config.sample.num where None.
    path: a PNG to write, too.
    names: of the classes, to write above their columns.
    movie: a .gif to write, too, of the first MOVIE images as they grow.

  Returns:
    The grid, uint8 [H, W, 3].
  """
  classes = config.model.classes
  labels = round_robin(num or config.sample.num, np.arange(classes))
  # When each value is drawn is always noted: so it is one program to compile.
  job = draw(
    net, params, config, labels, mesh=mesh, seed=config.seed, record=True
  )
  drawn = progress.result_of(job)
  written = [names[i] for i in labels] if len(names) > 1 else None
  image = pictures.grid(
    pictures.from_values(drawn.values, config.model),
    classes if classes <= 16 else None,
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
