"""Devices: the mesh, where parameters and batches lie. All of it is here.

The mesh has three axes. `data` and `fsdp` split the batch; `fsdp` also splits
the parameters at rest, each gathered where it is used; `tensor` splits heads
and MLP columns. The positions that each level folds into the batch stay on
the device of their image, so no level sends activations over `data` or `fsdp`.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from ml_collections import ConfigDict
import numpy as np

from fractal_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # what splits the images of a batch
AUTO = (AxisType.Auto,) * 3  # the compiler splits what is not constrained


class ShardingError(UserError, ValueError):
  """Devices, batch or parameters that the mesh can't split as asked."""


@dataclasses.dataclass(frozen=True)
class Rules:
  """The mesh axis that splits each logical axis of the parameters.

  A parameter is declared with a name for each of its dimensions, which says
  what the dimension is and nothing of devices: the first matrix of an MLP is
  ('embed', 'mlp') wherever it is used. These rules say over which axis of the
  mesh each name is split; None: it is whole on every device. So a model is laid
  out otherwise by other rules, with no change to its code. Two dimensions of
  one parameter can't be split over the same mesh axis, and a name without a
  rule is an error rather than a silent copy on every device.

  With the rules below, a matrix ('embed', 'mlp') of 512 x 2048 on a mesh of
  fsdp=4 and tensor=2 lies in blocks of 128 x 1024. `gathered` makes it whole
  over `fsdp` where it is used, so that activations never cross that axis.
  """

  # The residual width, in every matrix of every level: splitting it spreads
  # parameters and optimizer state, whatever the number of levels.
  embed: str | None = 'fsdp'
  # Megatron's split: heads and MLP columns are computed apart, and summed
  # once after each projection back to `embed`.
  heads: str | None = 'tensor'
  mlp: str | None = 'tensor'
  # Outputs of the embedding layers join the residual stream, which each
  # tensor device holds whole; split, every block would have to gather them.
  # Biases of what joins it, too: a vector each, whose split the compiler would
  # pass on to the activations that it is added to.
  width: str | None = None
  # A patch's values: as few as 3, and a few hundred at the most.
  patch: str | None = None
  # Codebook entries: logits are split by pixel, so a softmax stays local.
  values: str | None = None
  # Scales and biases of norms: a vector each.
  norm: str | None = None
  # The scanned depth: each step of the scan needs one layer on all devices.
  layers: str | None = None


def make_mesh(
  config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of config.mesh: one axis may be -1, the devices that remain.

  With mesh.slices > 1 the data axis spans the slices, so that only gradients
  pass over the slow network between them.

  Raises:
    ShardingError: the axes don't multiply to the number of devices, or the
      batch or its groups don't divide over the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_shape(config, len(devices))
  if config.mesh.slices > 1:
    mesh = _hybrid_mesh(shape, config.mesh.slices, devices)
  else:
    mesh = _mesh(shape, devices)
  check_batch(config, mesh)
  return mesh


def abstract_mesh(config: ConfigDict, devices: int) -> AbstractMesh:
  """The mesh of config.mesh over a number of devices that need not be here."""
  mesh = AbstractMesh(mesh_shape(config, devices), AXES)
  check_batch(config, mesh)
  return mesh


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, ...]:
  """How many devices each axis of config.mesh has, given the number of all."""
  shape = [config.mesh[axis] for axis in AXES]
  asked = ' x '.join(f'{axis}={n}' for axis, n in zip(AXES, shape))
  known = int(np.prod([n for n in shape if n != -1]))
  if devices % known or (-1 not in shape and known != devices):
    raise ShardingError(
      f'mesh {asked} does not fit {devices} devices: make the axes multiply to '
      f'{devices}, or set one of them to -1 (the rest).'
    )
  return tuple(devices // known if n == -1 else n for n in shape)


def _mesh(shape: tuple[int, ...], devices) -> Mesh:
  return jax.make_mesh(shape, AXES, axis_types=AUTO, devices=devices)


def _hybrid_mesh(shape, slices: int, devices) -> Mesh:
  data, *rest = shape
  if data % slices:
    raise ShardingError(
      f'mesh.slices={slices} does not divide mesh.data={data}: slices are '
      'joined by data parallelism; set mesh.data to a multiple.'
    )
  try:
    array = mesh_utils.create_hybrid_device_mesh(
      (data // slices, *rest),
      (slices, 1, 1),
      devices,
      # Devices of one host are a slice where no TPU says which slice it is in.
      process_is_granule=not hasattr(devices[0], 'slice_index'),
    )
  except ValueError as e:
    raise ShardingError(
      f'mesh.slices={slices} does not fit these devices: set it to the number '
      f'of TPU slices, or of hosts. ({e})'
    ) from e
  return Mesh(array, AXES, axis_types=AUTO)


def single_device_mesh() -> Mesh:
  """A mesh of this process's first device alone."""
  return _mesh((1, 1, 1), jax.local_devices()[:1])


def any_mesh(config: ConfigDict) -> Mesh:
  """The config's mesh where it fits the devices at hand, else all as `data`.

  For likelihood and generation, which may run on other devices than training.
  """
  try:
    return make_mesh(config)
  except ShardingError:
    return _mesh((len(jax.devices()), 1, 1), jax.devices())


def platform() -> str:
  """The platform that the code being traced is for: 'cpu', 'tpu' or another.

  The devices of the mesh decide, which need not be those at hand (a program
  may be compiled for TPUs that are elsewhere); without a mesh, JAX's default.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend()
  kind = device.device_kind
  return 'tpu' if kind.startswith('TPU') else kind


def num_groups(config: ConfigDict, mesh: Mesh | AbstractMesh) -> int:
  """Groups of images that are compacted together (see config.mesh.groups)."""
  return config.mesh.groups or batch_devices(mesh)


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
  """Into how many parts the mesh splits a batch."""
  return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def padded_batch(images: int, mesh: Mesh) -> int:
  """A number of images, rounded up to what the mesh divides."""
  parts = batch_devices(mesh)
  return -(-images // parts) * parts


def check_batch(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
  """Raises ShardingError where optim.batch doesn't divide over the mesh."""
  batch, parts = config.optim.batch, batch_devices(mesh)
  if batch % parts:
    raise ShardingError(
      f'optim.batch={batch} does not divide over the {parts} devices of mesh '
      f'axes {" x ".join(BATCH)}: set it to a multiple of {parts}.'
    )
  if num_groups(config, mesh) % parts:
    raise ShardingError(
      f'mesh.groups={config.mesh.groups} must be a multiple of the {parts} '
      f'devices of mesh axes {" x ".join(BATCH)}: groups never cross devices.'
    )


# Parameters.


def spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: Mesh | AbstractMesh,
  rules: Rules = Rules(),
  *,
  path: str = '',
) -> PartitionSpec:
  """The PartitionSpec of a parameter with logical axes `names`.

  A dimension that its mesh axis does not divide is left whole: replicating
  it costs memory, never correctness. `unsplit` lists such dimensions.

  Raises:
    ShardingError: an unknown logical axis, or two that claim one mesh axis.
  """
  known = dataclasses.asdict(rules)
  claimed = {}
  out = []
  for name, size in zip(names, shape, strict=True):
    if name is not None and name not in known:
      raise ShardingError(
        f"parameter {path} has the unknown logical axis '{name}': give it a "
        f'rule in sharding.Rules, beside {", ".join(known)}.'
      )
    axis = None if name is None else known[name]
    if axis in claimed:
      raise ShardingError(
        f"parameter {path}: its axes '{claimed[axis]}' and '{name}' both claim "
        f"mesh axis '{axis}': change one of the two in sharding.Rules."
      )
    if axis is not None:
      claimed[axis] = name
      axis = axis if size % mesh.shape[axis] == 0 else None
    out.append(axis)
  while out and out[-1] is None:
    out.pop()
  return PartitionSpec(*out)


def param_shardings(boxed: dict, mesh: Mesh) -> dict:
  """Shardings of parameters, from their shapes with logical axes.

  Args:
    boxed: jax.eval_shape of the initialisation, leaves in flax's boxes.

  Returns:
    The tree of NamedSharding of the unboxed parameters.
  """

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not is_boxed(leaf):
      return NamedSharding(mesh, PartitionSpec())
    where = spec(leaf.names, leaf.value.shape, mesh, path=name)
    return NamedSharding(mesh, where)

  return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_boxed)


def gathered(x: jax.Array, *names: str | None) -> jax.Array:
  """A parameter where it is used: whole over `fsdp`, split over `tensor`.

  Left alone, the compiler takes a split parameter for a wish to split the
  activations by width, which sends these over the network in place of the
  parameters. No-op where no mesh is set (jax.set_mesh), and within shard_map.

  Args:
    x: the parameter, or one layer of it.
    *names: its logical axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not all(t == AxisType.Auto for t in mesh.axis_types):
    return x
  used = {
    name: None if axis == 'fsdp' else axis
    for name, axis in dataclasses.asdict(Rules()).items()
  }
  where = spec(names, x.shape, mesh, Rules(**used))
  return jax.lax.with_sharding_constraint(x, where)


def unsplit(boxed: dict, mesh: Mesh) -> list[str]:
  """Dimensions that stay whole since their mesh axis does not divide them."""
  axes = dataclasses.asdict(Rules())
  out = []
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_boxed)
  for path, leaf in leaves:
    if is_boxed(leaf):
      for name, size in zip(leaf.names, leaf.value.shape):
        axis = axes.get(name)
        if axis and size % mesh.shape[axis]:
          where = jax.tree_util.keystr(path, simple=True, separator='/')
          out.append(f'{where}: {name}={size} over {axis}={mesh.shape[axis]}')
  return out


def is_boxed(x: object) -> bool:
  """Whether a leaf is one of flax's boxes with logical axes."""
  return isinstance(x, nn.meta.AxisMetadata)


def unbox(boxed: dict) -> dict:
  """Parameters without their boxes; adds no sharding constraints."""
  return jax.tree.map(
    lambda x: x.unbox(apply_constraint=False) if is_boxed(x) else x,
    boxed,
    is_leaf=is_boxed,
  )


def shaped(like: Any, where: Any) -> Any:
  """ShapeDtypeStructs of arrays or their shapes, with the shardings `where`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, where
  )


# Batches.


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """Splits the first axis, images or groups of images, over the devices."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def host_rows(mesh: Mesh) -> tuple[int, int]:
  """Which part of every batch this host reads: (index, of how many).

  Hosts whose devices hold the same images, because `tensor` spans hosts,
  read the same part.

  Raises:
    ShardingError: hosts' parts overlap in some other way.
  """
  parts = batch_devices(mesh)
  held = {}
  index_map = over_batch(mesh).devices_indices_map((parts,))
  for device, (part,) in index_map.items():
    held.setdefault(device.process_index, set()).add(part.start or 0)
  sets = sorted({tuple(sorted(s)) for s in held.values()})
  if sum(map(len, sets)) != parts or len(set(map(len, sets))) != 1:
    raise ShardingError(
      f'mesh {dict(mesh.shape)} splits the batch unevenly over the hosts: '
      'make mesh.tensor divide, or be a multiple of, the devices of a host.'
    )
  return sets.index(tuple(sorted(held[jax.process_index()]))), len(sets)


def by_device(run: Callable, mesh: Mesh, *specs: PartitionSpec) -> Callable:
  """A function of arrays that lie as `specs` say, run by each device alone.

  What it gives is of the device's own images: the results are joined.
  """
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=specs,
    out_specs=PartitionSpec(BATCH),
    check_vma=False,
  )


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows of a batch [b, ...] to global arrays [B, ...]."""
  _, hosts = host_rows(mesh)
  sharding = over_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(
      sharding, rows, (len(rows) * hosts,) + rows.shape[1:]
    )
    for name, rows in batch.items()
  }
