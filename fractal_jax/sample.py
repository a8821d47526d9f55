"""Generation: labels and keys to images, grids and movies.

The whole of it is one compiled program (`Fractal.generate`) that runs on a
fixed number of images at a time. Image i of a request is a function of the
seed and of i alone, whatever the batch size and the mesh.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.models.contract import Drawn, Given, Sampling

GREY = 128  # a value that a movie has not reached yet


class SampleError(ValueError):
  """A request that the model or the file format can't serve."""


def settings(config, **changes) -> tuple[Sampling, bool]:
  """The Sampling of config.sample with changes, and whether it is guided.

  Guidance 1 needs no unconditional stream: that halves the work.
  """
  s = config.sample
  names = ('guidance', 'temperature', 'filter_threshold', 'schedule')
  chosen = {name: s[name] for name in names}
  chosen |= {'iterations': tuple(s.iterations), **changes}
  return Sampling(**chosen), chosen['guidance'] != 1


def generate(
  net: fractal.Fractal,
  params,
  labels,
  sampling: Sampling,
  *,
  guided: bool,
  seed: int = 0,
  given: Given | None = None,
  batch: int = 64,
  mesh=None,
  progress=lambda chunks: chunks,
) -> Drawn:
  """Generates images, `batch` at a time.

  Args:
    net: the model.
    params: its parameters.
    labels: [num] classes, -1 for "no class".
    sampling: how values are drawn.
    guided: whether the unconditional stream runs.
    seed: of the request.
    given: values that are known, [num, S, (S,) C] each.
    batch: images at a time, rounded up to what the mesh divides; the last
      batch is filled up, so that one program serves any number of images.
    mesh: the mesh; one of the first device where None.
    progress: wraps the iterable of batches, say tqdm.

  Returns:
    Drawn, as NumPy arrays [num, S, (S,) C].
  """
  if mesh is None:
    mesh = sharding.single_device_mesh()
  parts = sharding.batch_devices(mesh)
  batch = -(-min(batch, len(labels)) // parts) * parts
  labels = np.asarray(labels, np.int32)
  key = jax.random.key(seed)
  out = []
  with jax.set_mesh(mesh):
    for start in progress(range(0, len(labels), batch)):
      index = np.arange(start, start + batch)
      at = np.minimum(index, len(labels) - 1)
      some = jax.tree.map(lambda x, at=at: x[at], (labels, given))
      drawn = generate_batch(
        net, guided, mesh, params, key, *some, jnp.asarray(index), sampling
      )
      out.append(jax.device_get(drawn))
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(labels)], *out)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate_batch(
  net, guided, mesh, params, key, labels, given, index, sampling
):
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

  def on_device(params, labels, given, keys, sampling):
    return net.generate(
      params, labels, keys, sampling, guided=guided, given=given
    )

  # Each device generates its own images; nothing crosses devices in the loop.
  over = jax.P(sharding.BATCH)
  drawn = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(jax.P(), over, over, over, jax.P()),
    out_specs=over,
    check_vma=False,
  )(params, labels, given, keys, sampling)
  return jax.lax.with_sharding_constraint(drawn, jax.P())


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
  shades = np.round(np.asarray(values) * (255 / (model.num_values - 1)))
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

  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


def save_movie(
  drawn: Drawn, model, path: str, *, columns=None, frames: int = 150
) -> None:
  """Writes a GIF of images being generated, level by level.

  The first patch of level 0 grows value by value, in slow motion; the rest
  follows at an even pace. Values not drawn yet are grey.
  """
  from PIL import Image

  check_movie(path)
  total = int(np.prod(drawn.values.shape[1:]))
  slow = max(1, min(int(drawn.when.max()) + 1, (model.sizes[1] ** model.rank)
                    * model.channels))  # fmt: skip
  times = np.unique(
    np.concatenate(
      [
        np.linspace(0, slow, min(slow, frames // 4) + 1),
        np.linspace(slow, total, frames - frames // 4),
      ]
    ).astype(int)
  )
  full = pictures(drawn.values, model)
  # Channels of a pixel not drawn yet show as grey in that channel alone.
  unknown = np.round(GREY * (model.num_values - 1) / 255)
  shots = []
  for t in times:
    values = np.where(drawn.when < t, drawn.values, unknown)
    shot = full if t == total else pictures(values, model)
    shots.append(Image.fromarray(grid(shot, columns)))
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  durations = [60] * (len(shots) - 1) + [2500]
  shots[0].save(
    path, save_all=True, append_images=shots[1:], duration=durations, loop=0
  )


def check_movie(path: str) -> None:
  if not path.endswith('.gif'):
    raise SampleError(f'--movie={path} must end in .gif')
