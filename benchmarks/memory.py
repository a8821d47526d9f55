"""What a training step takes on a device: as counted, and as compiled.

  python benchmarks/memory.py

compares what fractal_jax/planning/memory.py counts with XLA's memory_analysis()
over configs, kinds of levels, `remat`, chunks and meshes of fake CPU devices:
or

  python benchmarks/memory.py --config=configs/fractalmar_huge_in256.py \\
    --config.mesh.data=1 --config.mesh.fsdp=64 --devices=64

--topology=v5e:8x8 compiles it for TPUs that are not there, which takes libtpu
(`pip install 'fractal_jax[tpu-aot]'`) and minutes.

Nothing is run, and no array is made: the step is compiled for shapes. On CPUs
the buffers are scheduled for least memory, as accelerators do, and LLVM's
optimisation is off, which leaves them as they are (--normal: as a run does).
XLA's total is arguments + temporaries + outputs that share no argument.
"""

import os
import platform
import time

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS


def define_flags():
  """On running it: the tests, which import this file, have flags of others."""
  config_flags.DEFINE_config_file('config', None, 'Its mesh is used.')
  flags.DEFINE_integer('devices', 8, 'Fake CPU devices.')
  flags.DEFINE_string('topology', None, 'Of --config: v5e:8x8.')
  flags.DEFINE_bool('normal', False, 'Compile as a run does.')
  flags.DEFINE_list('only', None, 'Rows of the table: 0,3.')


QUICK = {
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}

# Config, changes of its model, mesh (data, fsdp, tensor), images per device.
MAR, AR = 'mini:mar', 'mini:ar'
CASES = [
  (AR, dict(remat='none'), (1, 1, 1), 16),
  (AR, dict(remat='dots'), (1, 1, 1), 16),
  (AR, dict(remat='full'), (1, 1, 1), 16),
  (MAR, dict(remat='none'), (1, 1, 1), 16),
  (MAR, dict(remat='dots'), (1, 1, 1), 16),
  (MAR, dict(remat='full'), (1, 1, 1), 16),
  (MAR, dict(remat='full'), (8, 1, 1), 4),
  (AR, dict(remat='none'), (1, 8, 1), 4),
  (MAR, dict(remat='full'), (1, 8, 1), 4),
  (MAR, dict(remat='dots'), (2, 2, 2), 4),
  (MAR, dict(remat='none', chunks=(1, 4, 8)), (1, 1, 1), 16),
]


def compiled(config, mesh, options=None):
  """XLA's memory_analysis of the training step, and seconds to compile."""
  from fractal_jax.planning import aot

  lowered, start = aot.training_step(config, mesh), time.monotonic()
  program = aot.compiled(lowered, options)
  return program.memory_analysis(), time.monotonic() - start


def gib(size) -> str:
  return f'{size / 2**30:.3f}'


def compare(name, config, mesh) -> tuple[str, ...]:
  """A row of the table."""
  from fractal_jax.planning import aot, memory

  counted = memory.memory(config, mesh, tpu=bool(FLAGS.topology))
  default = FLAGS.normal or FLAGS.topology
  analysis, seconds = compiled(config, mesh, None if default else QUICK)
  found = aot.total(analysis)
  if FLAGS.config is not None:
    print(
      f'memory_analysis(): arguments {gib(analysis.argument_size_in_bytes)}, '
      f'updated in place {gib(analysis.alias_size_in_bytes)}, '
      f'temporaries {gib(analysis.temp_size_in_bytes)}, '
      f'outputs {gib(analysis.output_size_in_bytes)}\n'
    )
  m = config.model
  return (
    name,
    m.remat,
    ','.join(map(str, m.chunks)) or '-',
    m.dtype,
    'x'.join(str(n) for n in mesh.shape.values()),
    str(config.optim.batch),
    gib(counted.params),
    gib(counted.optimizer),
    gib(counted.gradients),
    gib(counted.activations),
    gib(counted.total),
    gib(found),
    f'{counted.total / found - 1:+.1%}',
    f'{seconds:.0f}',
  )


HEAD = (
  'config', 'remat', 'chunks', 'dtype', 'mesh', 'images', 'parameters',
  'optimizer', 'gradients', 'activations', 'total', "XLA's total", 'off by',
  'compile s',
)  # fmt: skip


def main(argv):
  del argv
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={FLAGS.devices} '
    + os.environ.get('XLA_FLAGS', '')
  )
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax
  import numpy as np

  from fractal_jax import config_files, sharding
  from fractal_jax.planning import aot

  jax.config.update('jax_enable_compilation_cache', False)
  print(
    f'jax {jax.__version__}, jaxlib {jax.lib.__version__}, Python '
    f'{platform.python_version()}, {time.strftime("%Y-%m-%d")}; GiB a device'
  )

  def show(*rows):
    for row in rows:
      print(f'| {" | ".join(row)} |', flush=True)

  rule = ['---'] * len(HEAD)

  if FLAGS.config is not None:
    devices = aot.devices(FLAGS.topology) if FLAGS.topology else jax.devices()
    mesh = sharding.make_mesh(FLAGS.config, devices)
    name = flags.FLAGS['config'].config_filename
    row = compare(os.path.basename(name), FLAGS.config, mesh)
    show(HEAD, rule, row)
    return
  show(HEAD, rule)
  chosen = map(int, FLAGS.only or range(len(CASES)))
  for i in chosen:
    name, changes, axes, images = CASES[i]
    config = config_files.load(name)
    config.model.update(unroll=0, **changes)
    config.mesh.update(dict(zip(sharding.AXES, axes)))
    config.optim.batch = images * axes[0] * axes[1]
    devices = jax.devices()[: int(np.prod(axes))]
    mesh = sharding.make_mesh(config, devices)
    show(compare(name, config, mesh))


if __name__ == '__main__':
  define_flags()
  app.run(main)
