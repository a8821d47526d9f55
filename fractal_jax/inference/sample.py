"""Generation: labels and keys to images, grids and movies.

The whole of it is one compiled program (`Fractal.generate`) that runs on a
fixed number of images at a time. Image i of a request is a function of the
seed and of i alone, whatever the batch size and the mesh.
"""

from collections.abc import Iterator
import functools
import importlib.util
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import paths, sharding
from fractal_jax.errors import UserError
from fractal_jax.models import fractal
from fractal_jax.models.types import NEVER, Drawn, Given, Sampling

SETTINGS = (
  'guidance',
  'temperature',
  'filter_threshold',
  'schedule',
  'iterations',
)
GREY = 128  # a value that is not known
# Milliseconds of a movie: a frame, all of slow motion at most, the last frame.
FRAME, SLOW, LAST = 40, 8000, 2520
PART = 0.25  # seconds of a part of a watched generation, about


class SampleError(UserError, ValueError):
  """A request that the model or the file format can't serve."""


def settings(config, **changes) -> tuple[Sampling, bool]:
  """The Sampling of config.sample with changes, and whether it is guided.

  Guidance 1 needs no unconditional stream: that halves the work. `record` also
  notes when each value is drawn. A change that breaks a rule is a SampleError.
  """
  record = changes.pop('record', False)
  unknown = changes.keys() - set(SETTINGS)
  if unknown:
    raise SampleError(
      f'no setting {", ".join(sorted(unknown))}: there are '
      f'{", ".join(SETTINGS)}'
    )
  chosen = {name: changes.get(name, config.sample[name]) for name in SETTINGS}
  chosen['iterations'] = tuple(chosen['iterations'])
  found = config_lib.sample_problems(
    ml_collections.ConfigDict(chosen), len(config.model.sizes) - 1
  )
  if found:
    raise SampleError('\n'.join(found))
  return Sampling(**chosen, record=record), chosen['guidance'] != 1


def generate(
  net: fractal.Fractal,
  params,
  labels,
  sampling: Sampling,
  *,
  guided: bool,
  seed: int = 0,
  first: int = 0,
  given: Given | None = None,
  batch: int = 64,
  mesh=None,
  progress=lambda chunks: chunks,
  watch=None,
) -> Drawn:
  """Generates images, `batch` at a time.

  Args:
    net: the model.
    params: its parameters.
    labels: [num] classes, -1 for "no class".
    sampling: how values are drawn.
    guided: whether the unconditional stream runs.
    seed: of the request.
    first: the number of the first image, where these are a part of a request.
    given: values that are known, [num, S, (S,) C] each.
    batch: images at a time, rounded up to what the mesh divides; the last
      batch is filled up, so that one program serves any number of images.
    mesh: the mesh; one of the first device where None.
    progress: wraps the iterable of batches, say tqdm.
    watch: called several times a second with (what is drawn so far, steps done,
      steps there are), between two steps of level 0: what it raises ends the
      work. `when` is recorded, and NEVER where nothing is drawn yet.

  Returns:
    Drawn, as NumPy arrays [num, S, (S,) C].
  """
  if mesh is None:
    mesh = sharding.single_device_mesh()
  parts = sharding.batch_devices(mesh)
  batch = -(-min(batch, len(labels)) // parts) * parts
  labels = np.asarray(labels, np.int32)
  key = jax.random.key(seed)
  if watch is not None:
    sampling = sampling.replace(record=True)
  out = []
  with jax.set_mesh(mesh):
    for start in progress(range(0, len(labels), batch)):
      index = np.arange(start, start + batch)
      at = np.minimum(index, len(labels) - 1)
      some = jax.tree.map(lambda x, at=at: x[at], (labels, given))
      what = (
        *(net, guided, mesh, params, key),
        *(*some, jnp.asarray(first + index), sampling),
      )
      if watch is None:
        drawn = jax.device_get(generate_batch(*what))
      else:
        batches, past = -(-len(labels) // batch), start // batch
        for drawn, done, steps in _in_parts(*what):
          shot = _filled([*out, drawn], len(labels))
          watch(shot, past * steps + done, batches * steps)
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


def _in_parts(*what) -> Iterator[tuple[Drawn, int, int]]:
  """`generate_batch` in parts: (what is drawn so far, steps done, steps)."""
  state, drawn, steps = generate_part(*what, None, None, None)
  done, size, steps = 0, 1, int(steps)
  while True:
    yield jax.device_get(drawn), done, steps
    if done == steps:
      return
    began, first = time.monotonic(), done
    done = min(done + size, steps)
    state, drawn, _ = generate_part(*what, state, first, done)
    jax.block_until_ready(drawn)
    took = time.monotonic() - began
    if took > PART:
      size = max(size // 2, 1)
    elif took < PART / 2:  # at least 16 parts, so that there is much to see
      size = max(min(2 * size, steps // 16), 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate_batch(
  net, guided, mesh, params, key, labels, given, index, sampling
):
  """Drawn, of the images of a request that have these indices."""

  def run(loop, _):
    return loop.run()

  what = (params, key, labels, given, index, sampling)
  drawn = _on_devices(net, guided, mesh, run, *what, None)
  return jax.lax.with_sharding_constraint(drawn, jax.P())


@functools.partial(
  jax.jit, static_argnums=(0, 1, 2), donate_argnames=('state',)
)
def generate_part(
  net,
  guided,
  mesh,
  params,
  key,
  labels,
  given,
  index,
  sampling,
  state,
  first,
  last,
):
  """Steps first .. last - 1 of level 0; without a state, none: the beginning.

  Returns:
    (the state after them, what is drawn by then, how many steps there are).
  """
  steps = None

  def run(loop, state):
    nonlocal steps
    steps = loop.count
    if state is None:
      state = loop.start
    else:
      state = jax.tree.map(lambda x: x[0], state)
      state = jax.lax.fori_loop(first, last, loop.step, state)
    # A leading axis for the devices: a state has its own axes on each.
    return jax.tree.map(lambda x: x[None], state), loop.drawn(state)

  what = (params, key, labels, given, index, sampling)
  state, drawn = _on_devices(net, guided, mesh, run, *what, state)
  return state, jax.lax.with_sharding_constraint(drawn, jax.P()), steps


def _on_devices(
  net, guided, mesh, run, params, key, labels, given, index, sampling, state
):
  """run(loop, state), where each device has the loop of its own images."""
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

  def on_device(params, labels, given, keys, sampling, state):
    loop = net.steps(params, labels, keys, sampling, guided=guided, given=given)
    return run(loop, state)

  # Each device generates its own images; nothing crosses devices in the loop.
  over = jax.P(sharding.BATCH)
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(jax.P(), over, over, over, jax.P(), over),
    out_specs=over,
    check_vma=False,
  )(params, labels, given, keys, sampling, state)


def round_robin(num: int, classes) -> np.ndarray:
  """`num` labels that go through the classes again and again."""
  return np.resize(np.asarray(classes, np.int32), num)


def sample_grid(net, params, config, *, mesh=None, num=None, path=None):
  """A grid of samples with the config's settings, a class a column.

  Returns:
    The grid, uint8 [H, W, 3]; also written to `path`, a PNG, if given.
  """
  num = config.sample.num if num is None else num
  sampling, guided = settings(config)
  drawn = generate(
    net,
    params,
    round_robin(num, np.arange(config.model.classes)),
    sampling,
    guided=guided,
    seed=config.seed,
    batch=config.sample.batch,
    mesh=mesh,
  )
  columns = config.model.classes if config.model.classes <= 16 else None
  image = grid(pictures(drawn.values, config.model), columns)
  if path is not None and jax.process_index() == 0:
    save(image, path)
  return image


# Pictures.


def pictures(values: np.ndarray, model) -> np.ndarray:
  """Values [n, S, (S,) C] to uint8 RGB pictures [n, H, W, 3].

  Images of one channel are grey; of more than three, the channels lie side
  by side. A series is drawn as lines, one a channel.
  """
  return _pictures(_shades(values, model), model)


def _shades(values: np.ndarray, model) -> np.ndarray:
  return np.round(np.asarray(values) * (255 / (model.num_values - 1)))


def _pictures(shades: np.ndarray, model) -> np.ndarray:
  if model.rank == 1:
    return np.stack([_lines(x) for x in shades])
  shades = shades.astype(np.uint8)
  if model.channels == 3:
    return shades
  side_by_side = np.concatenate(np.moveaxis(shades, -1, 0), 2)  # [n, S, C S]
  return np.repeat(side_by_side[..., None], 3, -1)


def _lines(series: np.ndarray, height: int = 64) -> np.ndarray:
  """A series [S, C] of 0 .. 255 to a picture [height, S, 3]."""
  out = np.full((height, len(series), 3), 255, np.uint8)
  colours = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)]
  rows = ((255 - series) * ((height - 1) / 255)).round().astype(int)
  for c in range(series.shape[1]):
    for t, row in enumerate(rows[:, c]):
      low, high = sorted((rows[max(t - 1, 0), c], row))
      out[low : high + 1, t] = colours[c % len(colours)]
  return out


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
  """Pictures [n, H, W, 3] to one [., ., 3], small ones enlarged."""
  n, h, w, _ = images.shape
  scale = max(1, 48 // h)
  images = images.repeat(scale, 1).repeat(scale, 2)
  columns = int(np.ceil(np.sqrt(n))) if columns is None else min(columns, n)
  rows = -(-n // columns)
  gap = 2
  h, w = h * scale + gap, w * scale + gap
  out = np.full((rows * h + gap, columns * w + gap, 3), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = i // columns * h + gap, i % columns * w + gap
    out[y : y + h - gap, x : x + w - gap] = image
  return out


def save(image: np.ndarray, path: str) -> None:
  """Writes a picture [H, W, 3]; the ending of the path says in what format."""
  from PIL import Image

  with paths.whole(path) as file:
    Image.fromarray(image).save(file)


def movie(
  drawn: Drawn, model, *, columns=None, frames: int = 150
) -> Iterator[tuple[np.ndarray, int]]:
  """Shows images being generated, value by value.

  The first two patches of level 0 grow in slow motion; the rest follows faster
  and faster. What is not drawn yet is grey: the lighter, the more levels have
  begun on the patch that it lies in.

  Args:
    drawn: what `generate` gave with `record`.
    model: the config's section `model`.
    columns: of the grid.
    frames: at most.

  Yields:
    (a picture [H, W, 3], the milliseconds that it stays).
  """
  total = int(np.prod(drawn.values.shape[1:]))
  patch = model.sizes[1] ** model.rank * model.channels
  slow = min(2 * patch, total, max(frames // 3, 1))
  pace = np.linspace(0, 1, max(frames - slow, 2)) ** 2
  fast = np.unique((slow + pace * (total - slow)).astype(int))[1:]
  begun = _begun(drawn.when, model)
  for t in [*range(slow + 1), *fast]:
    stays = FRAME
    if t <= slow:
      stays = int(np.clip(SLOW // slow, FRAME, FRAME * 6)) // 10 * 10
    shot = _before(t, drawn, model, begun)
    yield grid(shot, columns), stays if t < total else LAST


def so_far(drawn: Drawn, model) -> np.ndarray:
  """Pictures [n, H, W, 3] of images that are being generated, see `movie`."""
  return _before(NEVER, drawn, model, _begun(drawn.when, model))


def _before(t: int, drawn: Drawn, model, begun) -> np.ndarray:
  """Pictures of what was drawn before time t."""
  shades = _shades(drawn.values, model)
  # Channels of a pixel not drawn yet are grey in that channel alone.
  grey = np.full(shades.shape, GREY)
  if model.rank == 2:  # a series is a line: one height for all
    grey = GREY // 2 + GREY * sum(x < t for x in begun) / (2 * len(begun))
  return _pictures(np.where(drawn.when < t, shades, grey), model)


def _begun(when: np.ndarray, model) -> list[np.ndarray]:
  """For each level above pixels: when the patch around a value was begun."""
  out = []
  for side in model.sizes[1:]:
    n = when.shape[1] // side
    patches = when.reshape((len(when),) + (n, side) * model.rank + (-1,))
    inside = tuple(range(2, 2 * model.rank + 1, 2)) + (-1,)
    known = np.where(patches < 0, np.iinfo(when.dtype).max, patches)
    first = known.min(inside, keepdims=True)
    out.append(np.broadcast_to(first, patches.shape).reshape(when.shape))
  return out


def save_movie(
  drawn: Drawn, model, path: str, *, columns=None, frames: int = 150
) -> None:
  """Writes `movie` as a .gif or an .mp4."""
  from PIL import Image

  check_movie(path)
  shots = movie(drawn, model, columns=columns, frames=frames)
  with paths.whole(path) as file:
    if path.endswith('.mp4'):
      return _save_mp4(shots, file.name)
    pictures, stays = zip(*((Image.fromarray(x), ms) for x, ms in shots))
    pictures[0].save(
      file,
      save_all=True,
      append_images=pictures[1:],
      duration=list(stays),
      loop=0,
    )


def _save_mp4(shots, path: str) -> None:
  from imageio import v2 as imageio

  how = {'fps': 1000 / FRAME, 'codec': 'libx264', 'macro_block_size': 2}
  with imageio.get_writer(path, format='FFMPEG', quality=8, **how) as file:
    for picture, stays in shots:
      h, w, _ = picture.shape  # H.264 takes even sides
      picture = np.pad(picture, ((0, h % 2), (0, w % 2), (0, 0)), 'edge')
      for _ in range(round(stays / FRAME)):
        file.append_data(picture)


def check_movie(path: str) -> None:
  """Before any work is done for it."""
  if not path.endswith(('.gif', '.mp4')):
    raise SampleError(f'--movie={path} must end in .gif or .mp4')
  if path.endswith('.mp4') and not importlib.util.find_spec('imageio_ffmpeg'):
    raise SampleError(
      f"--movie={path} needs pip install 'fractal_jax[movie]'; a .gif does not"
    )
