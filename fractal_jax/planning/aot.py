"""Programs compiled for devices that are not there, and nothing run.

`devices` are of a TPU topology, which takes libtpu and no TPU; `training_step`
and `sampling` trace what a run does on a mesh of them, from shapes alone.
"""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import sharding
from fractal_jax.errors import UserError
from fractal_jax.inference import programs, sample
from fractal_jax.models import fractal
from fractal_jax.planning import cost, memory
from fractal_jax.training import optimizer, train, train_state

# What TPU machines tell libtpu; elsewhere it would ask the network for it.
MACHINE = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # beside a run on the same machine
}


class TopologyError(UserError, ValueError):
  """No such devices, no libtpu, or a program that does not fit on them."""


def devices(topology: str, dump: str | None = None) -> list:
  """The devices of a TPU topology, to compile for.

  Call it before JAX starts its devices: it keeps JAX on the CPU.

  Args:
    topology: a chip and how many there are each way: v5e:8x8, v5p:4x4x2.
    dump: a folder that gets the schedules of kernels, as estimate.py reads
      them. libtpu takes the first folder that it is given in a process.
  """
  if not importlib.util.find_spec('libtpu'):
    raise TopologyError(
      f'--topology={topology} needs libtpu, which compiles for TPUs that are '
      "not there: pip install 'fractal_jax[tpu-aot]'. Without it: --mesh and "
      '--device'
    )
  for name, value in MACHINE.items():
    os.environ.setdefault(name, value)
  if dump:
    os.environ['LIBTPU_INIT_ARGS'] = ' '.join(
      [
        f'--xla_jf_dump_to={dump}',
        '--xla_jf_dump_llo_text=true',
        '--xla_jf_dump_llo_pass_label_regex=final',
        os.environ.get('LIBTPU_INIT_ARGS', ''),
      ]
    )
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    return list(topologies.get_topology_desc(topology, 'tpu').devices)
  except Exception as e:  # libtpu raises what it likes
    raise TopologyError(
      f'--topology={topology}: libtpu has no such topology; write v5e:8x8, '
      f'v6e:4x4 or v5p:4x4x2. It says: {first_line(e)}'
    ) from e


def first_line(e: Exception) -> str:
  """The first line of what an exception says."""
  return str(e).strip().partition('\n')[0]


def training_step(config: ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
  """The training step of a config, traced on a mesh."""
  net = fractal.from_config(config.model)
  tx = optimizer.create(config, 1000)
  state = train_state.abstract(net, tx, config, mesh=mesh)
  batch = placed(memory.batch_of(config), sharding.over_batch(mesh))
  step = train.jitted_step(net, tx, state, config, mesh=mesh)
  with jax.set_mesh(mesh):
    return step.lower(state, batch)


def sampling(config: ConfigDict, mesh: Mesh, images: int) -> jax.stages.Lowered:
  """The program that generates a batch of images with config.sample."""
  net = fractal.from_config(config.model)
  how, guided = sample.settings(config)
  numbers = jax.ShapeDtypeStruct((images,), jnp.int32)
  batch = programs.Batch(
    key=jax.eval_shape(lambda: jax.random.key(0)),
    index=numbers,
    labels=numbers,
    given=None,
    sampling=how,
    guided=guided,
  )
  params = train_state.param_shapes(net)
  given = placed((params, batch), sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    return programs.generate_batch.lower(net, *given, mesh=mesh)


def placed(tree: Any, where: jax.sharding.Sharding) -> Any:
  """Shapes of arrays and numbers, with where they lie."""

  def one(x):
    x = x if hasattr(x, 'dtype') else np.asarray(x, np.float32)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  return jax.tree.map(one, tree)


def compiled(
  lowered: jax.stages.Lowered, options: dict | None = None
) -> jax.stages.Compiled:
  """Compiles a traced program.

  Raises:
    TopologyError: it does not fit in the memory of a device.
  """
  try:
    return lowered.compile(options)
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise TopologyError(
      f'it does not fit: {first_line(e)} Set model.chunks or model.remat=full, '
      'or take a larger mesh.fsdp or a smaller batch (docs/mesh.md)'
    ) from e


def branch_shares(config: ConfigDict) -> dict[str, np.ndarray]:
  """How often each level's step takes each branch, by the level's name."""
  net, out = fractal.from_config(config.model), {}
  how, guided = sample.settings(config)
  *iterations, _ = cost.sample_iterations(net.specs, how.iterations)
  how = how.replace(iterations=tuple(iterations))
  networks = 1 + (guided and how.interval != (0.0, 1.0))
  for spec, kind in zip(net.specs[:-1], net.kinds):
    taken = kind.branches(spec, how, networks)
    if taken is not None:
      out[f'level {spec.index}'] = taken
  return out


def total(analysis: Any) -> int:
  """Bytes of a program: outputs that take the place of arguments count once."""
  return (
    analysis.argument_size_in_bytes
    + analysis.temp_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
  )
