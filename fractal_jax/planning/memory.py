"""Memory of a training step on each device of a mesh, and hours of a run.

Counted from the config: the step is traced (a few seconds), not compiled.
Parameters, gradients and optimizer state follow from the shardings; what the
activations take, from a walk over the traced loss and its gradient, see
liveness.py. `benchmarks/memory.py` compares with what XLA says.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.planning import cost, liveness
from fractal_jax.training import optimizer, train, train_state

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device while a step runs."""

  params: float
  optimizer: float
  gradients: float
  batch: float  # images and labels
  activations: float  # all else at the fullest moment
  level: str  # in which that is

  @property
  def total(self) -> float:
    return (
      self.params
      + self.optimizer
      + self.gradients
      + self.batch
      + self.activations
    )


def memory(config, mesh, tiles=False) -> Memory:
  """The memory of a training step.

  Args:
    config: reads `model`, `optim` and `mesh.groups`.
    mesh: the mesh, of devices or abstract.
    tiles: whether arrays lie in tiles of 8 by 128, as on TPUs.

  Returns:
    A Memory, of one device.
  """
  parts = sharding.batch_devices(mesh)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.mesh.groups = (config.mesh.groups or parts) // parts
    config.optim.batch //= parts
  net = fractal.from_config(config.model)
  one = sharding.single_device_mesh()
  boxed = train_state.boxed_params(net)
  params = sharding.unbox(boxed)
  specs = jax.tree.map(
    lambda x: sharding.spec(x.names, x.value.shape, mesh),
    boxed,
    is_leaf=sharding.is_boxed,
  )
  trained, frozen = optimizer.split(config, params)
  split, kept = optimizer.split(config, specs)
  batch = batch_of(config)

  def gradient(trained, frozen, batch):
    def loss(trained):
      key = jax.random.key(0)
      return train.loss_fn(
        net, trained | frozen, config, batch, key, mesh=one
      )

    return jax.value_and_grad(loss, has_aux=True)(trained)

  with jax.set_mesh(one):
    traced, shapes = jax.make_jaxpr(gradient, return_shape=True)(
      trained, frozen, batch
    )
  ways = lambda spec: math.prod(mesh.shape[axis] for axis in spec if axis)
  whole = lambda tree: jax.tree.map(lambda _: None, tree)
  out = (whole(shapes[0]), jax.tree.map(ways, split))
  over_tensor = lambda spec: 'tensor' in spec and mesh.shape['tensor'] > 1
  found = liveness.peak(
    traced,
    jax.tree.leaves(jax.tree.map(over_tensor, (split, kept)))
    + [False] * len(jax.tree.leaves(batch)),
    jax.tree.leaves(out, is_leaf=lambda x: x is None),
    mesh.shape['tensor'],
    mesh.shape['fsdp'] > 1,
    tiles,
  )
  bytes_of = lambda tree, specs: sum(
    jax.tree.leaves(
      jax.tree.map(lambda x, s: 4 * math.prod(x.shape) / ways(s), tree, specs)
    )
  )
  grads = bytes_of(trained, split)
  return Memory(
    params=bytes_of(params, specs),
    optimizer=2 * grads,
    gradients=grads,
    batch=sum(liveness.bytes_of(x) for x in jax.tree.leaves(batch)),
    # In the end, updates lie beside the gradients.
    activations=max(found.size - grads, grads),
    level=found.level,
  )


def batch_of(config):
  """Shapes of what data/pipeline.py gives for a step, the index left out."""
  m, b = config.model, config.optim.batch
  shape = (b,) + (m.sizes[0],) * m.rank + (m.channels,)
  return {
    'image': jax.ShapeDtypeStruct(shape, jnp.uint8),
    'label': jax.ShapeDtypeStruct((b,), jnp.int32),
  }


# What `fractal-jax cost --mesh` says.

# What the makers call them: as JAX does, and GiB of memory.
DEVICES = {
  'v4': ('TPU v4', 32),
  'v5e': ('TPU v5e', 16),
  'v5p': ('TPU v5', 95),
  'v6e': ('TPU v6', 32),
  'A100': ('A100', 80),
  'H100': ('H100', 80),
  'H200': ('H200', 140),
}
# Of the memory. The count is good to 15%, for TPUs to 20%.
FITS = 0.75
MOST_CHUNKS = 4096


def fitting_chunks(config, mesh, room: float, tiles=False) -> tuple | None:
  """Few model.chunks with which a step fits; None if none are found.

  In powers of two. Doubled at the level in which the fullest moment is, or
  where that does not help at another, until it fits; then those that are not
  needed are taken back.

  Args:
    config: the config; its own chunks are the least.
    mesh: the mesh, of devices or abstract.
    room: bytes.
    tiles: as `memory` takes it.

  Returns:
    model.chunks and the Memory with them.
  """
  config = config.copy_and_resolve_references().unlock()
  least = config.model.chunks or (1,) * len(config.model.sizes)

  def count(chunks):
    config.model.chunks = tuple(chunks)
    return memory(config, mesh, tiles)

  chunks, found = list(least), count(least)
  while found.total > room:
    left = room - (found.total - found.activations)
    if left <= 0 or max(chunks) >= MOST_CHUNKS:
      return None
    factor = 2 ** max(1, int(math.log2(found.activations / left)))
    levels = range(len(chunks))
    for level in sorted(levels, key=lambda i: str(i) != found.level):
      more = chunks.copy()
      more[level] *= factor
      less = count(more)
      if less.activations <= 0.98 * found.activations:
        break
    else:
      return None
    chunks, found = more, less
  for level in sorted(range(len(chunks)), key=lambda i: -chunks[i]):
    while chunks[level] >= 2 * least[level]:
      fewer = chunks.copy()
      fewer[level] //= 2
      less = count(fewer)
      if less.total > room:
        break
      chunks, found = fewer, less
  return tuple(chunks), found


def table(config, devices: int, device: str, mfu: float, images: int) -> str:
  """Memory by `remat`, and time, as text; see the command `cost`.

  Args:
    config: its mesh is the mesh.
    devices: how many there are.
    device: a key of DEVICES.
    mfu: model FLOPs utilisation, a share of the peak.
    images: of the training split: an epoch.
  """
  mesh = sharding.abstract_mesh(config, devices)
  kind, size = DEVICES[device]
  tiles = kind.startswith('TPU')
  peak = cost.peak_flops(kind)
  axes = ' '.join(f'{axis}={n}' for axis, n in mesh.shape.items())
  batch, parts = config.optim.batch, sharding.batch_devices(mesh)
  head = (
    'remat', 'chunks', 'parameters', 'optimizer', 'gradients', 'activations',
    'total', f'of {size}',
  )  # fmt: skip
  rows = [head]

  def row(remat, chunks, m):
    sizes = (m.params, m.optimizer, m.gradients, m.activations, m.total)
    rows.append(
      (
        remat,
        ','.join(map(str, chunks)) or '-',
        *(f'{x / GIB:,.2f}' for x in sizes),
        f'{m.total / GIB / size:.0%}',
      )
    )

  room, notes = FITS * size * GIB, []
  changed = config.copy_and_resolve_references().unlock()
  for remat in ('none', 'dots', 'full'):
    changed.model.remat = remat
    found = memory(changed, mesh, tiles)
    row(remat, config.model.chunks, found)
    if found.total > room and remat == config.model.remat:
      fits = fitting_chunks(changed, mesh, room, tiles)
      if fits:
        row(remat, *fits)
        notes.append(
          f'It fits with --config.model.chunks={",".join(map(str, fits[0]))}.'
        )
      else:
        notes.append(
          f"remat='{remat}' does not fit with any chunks: take more devices, "
          'or a larger mesh.fsdp or mesh.tensor.'
        )
  flops = cost.train_flops_per_image(config)
  steps = optimizer.steps(config, images)
  second = flops * batch / (devices * peak * mfu)
  epoch = second * images / batch
  hours = steps * second / 3600
  lines = [
    f'{devices} x {device} ({size} GiB, {peak / 1e12:.0f} TFLOP/s), '
    f'mesh {axes}.',
    f'{batch} images a step, {batch // parts} a device. GiB on each device:',
    *cost.aligned(rows),
    'activations: all that a step holds at its fullest moment beside the rest.',
    *notes,
    f'At {mfu:.0%} MFU a step takes {second:.3g} s; an epoch of {images:,} '
    'images',
    f'{epoch:,.0f} s, {epoch * devices / 3600:,.3g} device-hours; all '
    f'{steps * batch / images:.4g} epochs {hours:,.3g} hours,',
    f'{hours * devices:,.0f} device-hours.',
  ]
  return '\n'.join(lines)
