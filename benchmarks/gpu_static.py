"""What a training step moves on a GPU that is not there: bytes, by operation.

  pip install --no-deps --target=/tmp/cuda \\
    jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12
  python benchmarks/gpu_static.py --cuda=/tmp/cuda \\
    --config=configs/fractalmar_in64.py --images=64

For those who work on the model and have no GPU at hand: XLA and NVIDIA's
compiler need none, and the program says what runs one after another. A step of
this model waits for memory longer than for products, so that of two forms of a
computation the one that moves fewer bytes is the better one. It is no
prediction: caches and launches are not counted, nor how slowly a GPU makes
small products, and kernels are not chosen by timing them, as on a GPU.
"""

import collections
import os

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS

# What XLA is told of an H100 in place of asking one.
BANDWIDTH = 3352320000000  # bytes per second
H100 = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: {BANDWIDTH}
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""

# What a program lists beside what runs.
NOTHING = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')


def define_flags():
  """On running it: the tests, which import this file, have flags of others."""
  config_flags.DEFINE_config_file('config', None, 'The model.')
  flags.DEFINE_string('cuda', None, 'Where the compilers were installed to.')
  flags.DEFINE_integer('images', 64, 'Of a step.')
  flags.DEFINE_integer('top', 20, 'How many operations to list.')
  flags.mark_flags_as_required(['config', 'cuda'])


def device(folder: str):
  """The H100 to compile for; call it before JAX starts.

  Args:
    folder: with the packages of the compilers.
  """
  compiler = os.path.join(folder, 'nvidia', 'cuda_nvcc')
  plugin = os.path.join(folder, 'jax_plugins/xla_cuda12/xla_cuda_plugin.so')
  os.environ['PATH'] = f'{compiler}/bin:{os.environ["PATH"]}'
  os.environ['PJRT_NAMES_AND_LIBRARY_PATHS'] = f'cuda:{plugin}'
  os.environ['JAX_PLATFORMS'] = 'cpu'  # where constants are computed
  os.environ['XLA_FLAGS'] = (
    f'--xla_gpu_cuda_data_dir={compiler} --xla_gpu_autotune_level=0 '
    '--xla_gpu_enable_triton_gemm=false'
  )
  import jax
  from jax.experimental import topologies

  jax.config.update('jax_enable_compilation_cache', False)
  return topologies.get_topology_desc(
    platform='cuda', topology='1x1x1', target_config=H100
  ).devices[0]


def moved(text: str) -> list[tuple[float, str, str, int]]:
  """(bytes, level, operation, times) of a compiled program, most bytes first.

  The operation's name is that which the model's code gives it.
  """
  from fractal_jax.planning import estimate

  found = collections.defaultdict(lambda: [0.0, 0])
  for op in estimate.operations(text):
    if op.kind not in NOTHING:
      entry = found[op.level, f'{op.kind} {place(op.line)}']
      entry[0] += op.times * estimate.moved_bytes(op)
      entry[1] += round(op.times)
  rows = [(b, *key, n) for key, (b, n) in found.items()]
  return sorted(rows, reverse=True)


def place(line: str) -> str:
  """Where in the model an operation is, the last names of it."""
  from fractal_jax.planning import estimate

  names = [x for x in estimate.name_of(line).split('/') if x not in INNER]
  return '/'.join(names[-3:])


INNER = ('while', 'body', 'closed_call', 'checkpoint', 'rematted_computation')


def main(argv):
  del argv
  gpu = device(FLAGS.cuda)
  from fractal_jax import sharding
  from fractal_jax.planning import aot

  config = FLAGS.config
  config.model.kernels = 'xla'
  config.optim.batch = FLAGS.images
  config.mesh.update(data=1, fsdp=1, tensor=1)
  mesh = sharding.make_mesh(config, [gpu])
  program = aot.compiled(aot.training_step(config, mesh))
  rows = moved(program.as_text())
  total = sum(x[0] for x in rows)
  for number, level, operation, times in rows[: FLAGS.top]:
    print(f'{number / 1e9:8.2f} GB  {level:9} {times:4} x {operation}')
  by_level = collections.Counter()
  for number, level, operation, _ in rows:
    by_level[level, operation.partition(' ')[0] == 'product'] += number
  for (level, product), number in by_level.most_common():
    kind = 'products' if product else 'all else'
    print(f'{number / 1e9:8.2f} GB  {level}, {kind}')
  print(
    f'{total / 1e9:8.2f} GB in all: {total / BANDWIDTH:.3f} s at the speed of '
    f'HBM; {program.memory_analysis().temp_size_in_bytes / 2**30:.2f} GiB of '
    'temporaries'
  )


if __name__ == '__main__':
  define_flags()
  app.run(main)
