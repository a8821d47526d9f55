"""Memory of a training step on each device of a mesh, and hours of a run.

Parameters, gradients and optimizer state follow from the shardings. What the
forward pass keeps for the backward pass is what JAX says: the residuals of the
traced loss. On top comes what one block needs while its backward pass runs.
Nothing is compiled, so the compiler's own choices are left out:
`python benchmarks/memory.py` compiles and compares, and docs/mesh.md says how
far off the sum is. For TPUs `fractal-jax cost --topology` asks the compiler.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from fractal_jax import sharding
from fractal_jax.data.common import image_shape
from fractal_jax.models import fractal
from fractal_jax.planning import cost
from fractal_jax.training import optimizer, train, train_state

GIB = 2**30
# A block in its backward pass: all that it would keep without remat, and the
# gradients that pass through it, of which the widest are alive together.
WORKING = 1.25
# On TPUs: a block of the pixel level, over what is counted. Attention over a
# few channels lies there in tiles of 8 by 128, mostly empty. From what libtpu
# says of fractalmar_huge_in256 with two and with four parts of that level.
PADDED_PIXELS = 2.25
# The share of a block's activations between its projections into and out of
# heads or MLP columns, which `tensor` splits (12 of 16 widths of a ViTBlock).
BETWEEN = 0.75


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device while a step runs."""

  params: float
  optimizer: float
  gradients: float
  batch: float  # images and labels
  activations: float  # all else at the fullest moment

  @property
  def total(self) -> float:
    """Bytes, all together."""
    state = self.params + self.optimizer + self.gradients
    return state + self.batch + self.activations


@dataclasses.dataclass(frozen=True)
class Step:
  """What a training step with one choice of `remat` takes, in bytes.

  Attributes:
    rest: the Memory without activations.
    kept: activations kept for the backward pass if no level is chunked.
    working: for each level, the most that its backward pass needs beside.
    chunked: of a level's number, how much less is kept if it is.
  """

  rest: Memory
  kept: float
  working: tuple[float, ...]
  chunked: Callable[[int], float]

  def memory(self, chunks: Sequence[int] = ()) -> Memory:
    """The Memory with model.chunks."""
    chunks = chunks or (1,) * len(self.working)
    kept, during = self.kept, []
    # A part of a chunked level keeps what the whole would, while it is on.
    for i, (working, n) in enumerate(zip(self.working, chunks)):
      less = self.chunked(i) if n > 1 else 0
      kept -= less
      during.append((working + less) / n)
    # In the end, updates lie beside the gradients.
    fullest = max(kept + max(during), self.rest.gradients)
    return dataclasses.replace(self.rest, activations=fullest)


def memory(
  config: ConfigDict, mesh: Mesh | AbstractMesh, *, tpu: bool = False
) -> Memory:
  """The memory of a training step on one device.

  Args:
    config: reads `model`, `optim` and `mesh.groups`.
    mesh: the mesh, of devices or abstract.
    tpu: whether the devices are TPUs.
  """
  working = working_bytes(config, mesh, tpu=tpu)
  return step(config, mesh, working).memory(config.model.chunks)


def step(
  config: ConfigDict, mesh: Mesh | AbstractMesh, working: tuple[float, ...]
) -> Step:
  """What a training step takes on one device, whatever model.chunks are.

  Args:
    config: as for `memory`.
    mesh: the mesh, of devices or abstract.
    working: what `working_bytes` gives, which does not depend on `remat`.
  """
  boxed = fractal.boxed_params(fractal.from_config(config.model))

  def local(leaf):  # float32 bytes of a parameter on a device
    where = sharding.spec(leaf.names, leaf.value.shape, mesh)
    ways = math.prod(mesh.shape[axis] for axis in where if axis)
    return 4 * math.prod(leaf.value.shape) / ways

  sizes = jax.tree.map(local, boxed, is_leaf=sharding.is_boxed)
  trained, _ = optimizer.split(sizes, config)
  gradients = sum(jax.tree.leaves(trained))
  moments = jax.tree.map(
    operator.mul, trained, optimizer.moments(trained, config)
  )
  own = of_a_device(config, mesh)
  params, share = shapes(own), share_of_tensor(mesh)
  kept = kept_bytes(own, params)

  @functools.cache  # each level's takes a trace of the loss, where it is asked
  def chunked(level):
    own.model.chunks = changed((1,) * len(own.model.sizes), level, 2)
    return share * (kept - kept_bytes(own, params))

  rest = Memory(
    params=sum(jax.tree.leaves(sizes)),
    optimizer=sum(jax.tree.leaves(moments)),
    gradients=gradients,
    batch=sum(map(bytes_of, jax.tree.leaves(batch_of(own)))),
    activations=0.0,
  )
  return Step(rest, kept * share, working, chunked)


def state_bytes(config: ConfigDict) -> int:
  """Bytes of all parameters, their gradients and the optimizer's moments."""
  params = shapes(config)
  sizes = jax.tree.map(
    lambda p, moments: 4 * (2 + moments) * math.prod(p.shape),
    params,
    optimizer.moments(params, config),
  )
  return sum(jax.tree.leaves(sizes))


def working_bytes(
  config: ConfigDict, mesh: Mesh | AbstractMesh, *, tpu: bool = False
) -> tuple[float, ...]:
  """For each level, the most that its backward pass needs at a time.

  That is a block's own activations, those that one block more would keep
  without remat, or at the pixel level the logits and their gradient.
  """
  own = of_a_device(config, mesh)
  own.model.remat = 'none'
  depths = tuple(own.model.depths)
  kept, blocks = kept_bytes(own, shapes(own)), []
  for i, depth in enumerate(depths):
    own.model.depths = changed(depths, i, depth + 1)
    blocks.append(kept_bytes(own, shapes(own)) - kept)
  own.model.depths = depths
  blocks[-1] *= PADDED_PIXELS if tpu else 1
  out = [WORKING * share_of_tensor(mesh) * x for x in blocks]
  return (*out[:-1], max(out[-1], logits_bytes(own)))


def of_a_device(config: ConfigDict, mesh: Mesh | AbstractMesh) -> ConfigDict:
  """A config of one device's images, in its own groups, without chunks."""
  parts = sharding.batch_devices(mesh)
  own = config.copy_and_resolve_references().unlock()
  own.mesh.groups = (config.mesh.groups or parts) // parts
  own.optim.batch //= parts
  own.model.chunks, own.model.share = (), ()
  return own


def changed(values: tuple, i: int, value: int) -> tuple:
  """`values` with another entry i."""
  return (*values[:i], value, *values[i + 1 :])


def share_of_tensor(mesh: Mesh | AbstractMesh) -> float:
  """The share of a block's activations that each of `tensor` devices holds."""
  return 1 - BETWEEN * (1 - 1 / mesh.shape['tensor'])


def shapes(config: ConfigDict) -> dict:
  """The shapes of the parameters."""
  return train_state.param_shapes(fractal.from_config(config.model))


def kept_bytes(config: ConfigDict, params: dict) -> float:
  """Bytes that the loss keeps for its gradient, beside `params`' shapes."""
  net = fractal.from_config(config.model)
  mesh = sharding.single_device_mesh()
  trained, frozen = optimizer.split(params, config)

  def residuals(trained, frozen, batch):
    def loss(trained):
      key = jax.random.key(0)
      params = trained | frozen
      return train.loss_fn(net, params, config, batch, key, mesh=mesh)[0]

    return jax.vjp(loss, trained)[1]

  with jax.set_mesh(mesh):
    found = jax.eval_shape(residuals, trained, frozen, batch_of(config))
  every = sum(map(bytes_of, jax.tree.leaves(found)))
  return every - sum(map(bytes_of, jax.tree.leaves(params)))


def logits_bytes(config: ConfigDict) -> float:
  """Bytes of the logits of all pixels at once, and of their gradient."""
  net = fractal.from_config(config.model)
  rows = float(config.optim.batch)
  for kind, spec in zip(net.kinds[:-1], net.specs):
    rows *= spec.length * kind(spec, parent=None).share('train')
  return 2 * 4 * rows * config.model.channels * config.model.num_values


def bytes_of(x: jax.Array | jax.ShapeDtypeStruct) -> int:
  """Bytes of an array or of its shape; a random key is two words."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return 8 * math.prod(x.shape)
  return x.dtype.itemsize * math.prod(x.shape)


def batch_of(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of what data/pipeline.py gives for a step, the index left out."""
  m, b = config.model, config.optim.batch
  shape = (b, *image_shape(m))
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
FITS = 0.75  # of the memory: what is counted may be 20% too little
MOST_CHUNKS = 256


def fitting_chunks(
  found: Step, least: Sequence[int], room: float
) -> tuple[int, ...] | None:
  """The fewest model.chunks with which a step fits; None if none are found.

  Args:
    found: the step.
    least: the fewest of each level; they are doubled where that helps.
    room: bytes.
  """

  def doublings(n):
    return [n] + [n << k for k in range(1, 20) if n << k <= MOST_CHUNKS]

  fit = (
    (math.prod(chunks), found.memory(chunks).total, chunks)
    for chunks in itertools.product(*map(doublings, least))
    if found.memory(chunks).total <= room
  )
  return min(fit, default=(None,))[-1]


def by_remat(
  config: ConfigDict, mesh: Mesh | AbstractMesh, device: str
) -> dict[str, Step]:
  """The Step with each `remat`; device: a key of DEVICES."""
  tpu = DEVICES[device][0].startswith('TPU')
  working = working_bytes(config, mesh, tpu=tpu)
  other, out = config.copy_and_resolve_references().unlock(), {}
  for remat in ('none', 'dots', 'full'):
    other.model.remat = remat
    out[remat] = step(other, mesh, working)
  return out


def choices(
  config: ConfigDict, found: dict[str, Step], device: str
) -> list[tuple[str, tuple[int, ...], Memory]]:
  """(remat, chunks, what it takes) of each `remat`, with model.chunks.

  Where that of the config does not fit, the fewest chunks with which it does
  follow, if there are any.

  Args:
    found: what `by_remat` gives.
    device: a key of DEVICES.
  """
  room, out = FITS * DEVICES[device][1] * GIB, []
  chunks = tuple(config.model.chunks)
  for remat, one in found.items():
    out.append((remat, chunks, one.memory(chunks)))
    if remat == config.model.remat and out[-1][-1].total > room:
      least = chunks or (1,) * len(config.model.sizes)
      fits = fitting_chunks(one, least, room)
      out += [(remat, fits, one.memory(fits))] if fits else []
  return out


@dataclasses.dataclass(frozen=True)
class Hours:
  """How long a run takes."""

  step: float  # seconds
  epoch: float  # seconds
  run: float  # seconds
  epochs: float


def hours(
  config: ConfigDict, devices: int, device: str, mfu: float, images: int
) -> Hours:
  """Time at a utilisation; the arguments are those of `table`."""
  peak = cost.peak_flops(DEVICES[device][0])
  second = cost.cost(config).total('training') / (devices * peak * mfu)
  total = optimizer.steps(config, images) * config.optim.batch
  return Hours(
    second * config.optim.batch, second * images, second * total, total / images
  )


def table(
  config: ConfigDict, devices: int, device: str, mfu: float, images: int
) -> str:
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
  axes = ' '.join(f'{axis}={n}' for axis, n in mesh.shape.items())
  batch, parts = config.optim.batch, sharding.batch_devices(mesh)
  found = choices(config, by_remat(config, mesh, device), device)
  listed = lambda chunks: ','.join(map(str, chunks))
  head = (
    'remat', 'chunks', 'parameters', 'optimizer', 'gradients', 'activations',
    'total', f'of {size}',
  )  # fmt: skip
  rows = [head]
  for remat, chunks, m in found:
    sizes = (m.params, m.optimizer, m.gradients, m.activations, m.total)
    sizes = (f'{x / GIB:,.2f}' for x in sizes)
    share = f'{m.total / GIB / size:.0%}'
    rows.append((remat, listed(chunks) or '-', *sizes, share))
  remat, notes = config.model.remat, []
  asked, *fitting = [x for x in found if x[0] == remat]
  if fitting:
    notes = [f'It fits with --config.model.chunks={listed(fitting[0][1])}.']
  elif asked[-1].total > FITS * size * GIB:
    notes = [
      f"remat='{remat}' does not fit with any chunks: take more devices, or a "
      'larger mesh.fsdp or mesh.tensor.'
    ]
  time = hours(config, devices, device, mfu, images)
  lines = [
    f'{devices} x {device} ({size} GiB, {cost.peak_flops(kind) / 1e12:.0f} '
    f'TFLOP/s), mesh {axes}.',
    f'{batch} images per step, {batch // parts} per device. GiB on each:',
    *cost.aligned(rows),
    'activations: all that a step holds at its fullest moment beside the rest.',
    *notes,
    f'At {mfu:.0%} MFU a step takes {time.step:.3g} s; an epoch of {images:,} '
    'images',
    f'{time.epoch:,.0f} s, {time.epoch * devices / 3600:,.3g} device-hours; '
    f'all {time.epochs:.4g} epochs {time.run / 3600:,.3g} hours,',
    f'{time.run * devices / 3600:,.0f} device-hours.',
  ]
  return '\n'.join(lines)
