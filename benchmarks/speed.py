"""How fast a config trains, scores and generates on this machine.

  python benchmarks/speed.py --config=configs/mini.py:ar --what=all --batch=16

Times the programs that `fractal-jax train`, `likelihood` and `sample` run, on
random images, over the mesh of the config: one call to warm up, then the
median of several, each waited for. Compilation is timed without JAX's
persistent cache. The sample job has guidance 4 (linear schedule, both
streams), temperature 1, and 16 iterations at level 0 and 8 below for masked
levels; flags change that. MFU is model FLOPs (cost.py: nothing for what remat
computes again or padding) per second, as a share of the chips' bfloat16 peak.

  python benchmarks/speed.py --config=configs/mini.py:ar --published=fractalgen

also times the published PyTorch code (published.py), in the same run and with
the same sizes, batch and job: ours, theirs, ours, theirs. A turn is two calls,
of which the second is timed, since a virtual machine may take back the memory
of one that waits. The ratio is the median of those of neighbouring turns, with
the least and the largest.
"""

import functools
import json
import platform
import time

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import cpu, sharding
from fractal_jax.inference import likelihood, programs, sample
from fractal_jax.models import fractal
from fractal_jax.planning import cost
from fractal_jax.training import optimizer, train, train_state

CONFIG = config_flags.DEFINE_config_file('config', None, 'A config file.')
WHAT = flags.DEFINE_enum(
  'what', 'all', ['all', 'train', 'likelihood', 'sample'], 'What to time.'
)
BATCH = flags.DEFINE_integer('batch', 16, 'Images at a time, all devices.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls, after one more.')
GUIDANCE = flags.DEFINE_float('guidance', 4.0, 'Of sampling; 1: one stream.')
TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'Of sampling.')
ITERATIONS = flags.DEFINE_list(
  'iterations', None, 'Of masked levels; 16,8,8,... if unset.'
)
PUBLISHED = flags.DEFINE_string(
  'published', None, 'A checkout of the published code, to be timed in turn.'
)
JSON = flags.DEFINE_bool('json', False, 'One line of JSON per job, no table.')
flags.mark_flag_as_required('config')


def training(config, net, mesh):
  """The training step; it gives its state back to be used again."""
  tx = optimizer.create(config, 1000)
  state = train_state.create(net, tx, config, mesh=mesh)
  batch = random_batch(config, mesh)
  step = train.jitted_step(net, tx, state, config, mesh=mesh)
  flops = cost.cost(config).total('training')
  return step, (state, batch), lambda out: (out[0], batch), flops


def scoring(config, net, mesh):
  """One Monte-Carlo pass of likelihood over a batch."""
  params = initial_params(config, net, mesh)
  batch = random_batch(config, mesh)
  batch['label'] = -jnp.ones_like(batch['label'])
  masks = likelihood.Masks(jax.random.key(0), first=0, number=0, offset=0.0)
  args = net, params, batch, masks, sharding.batch_devices(mesh)
  flops = cost.cost(config).total('scoring')
  return likelihood.scorer(), args, lambda _: args, flops


def sampling(config, net, mesh):
  """A batch of images."""
  params = initial_params(config, net, mesh)
  settings, guided = sample.settings(config)
  index = jnp.arange(config.optim.batch)
  labels = index % config.model.classes
  key = jax.random.key(0)
  batch = programs.Batch(key, index, labels, None, settings, guided)
  flops = cost.sample_flops_per_image(config, guided, settings.iterations)
  generate = jax.jit(functools.partial(programs.generate_batch, net, mesh=mesh))
  args = params, batch
  return generate, args, lambda _: args, flops


JOBS = {'train': training, 'likelihood': scoring, 'sample': sampling}


def initial_params(config, net, mesh):
  tx = optimizer.create(config, 1000)
  return train_state.create(net, tx, config, mesh=mesh).params


def random_batch(config, mesh):
  m, b = config.model, config.optim.batch
  rng = np.random.default_rng(0)
  shape = (b,) + (m.sizes[0],) * m.rank + (m.channels,)
  batch = {
    'image': rng.integers(0, m.num_values, shape).astype(np.int32),
    'label': np.arange(b, dtype=np.int32) % m.classes,
    'index': np.arange(b, dtype=np.int32),
    'valid': np.ones(b, np.int32),
  }
  return sharding.place(batch, mesh)


def measure(what, config, theirs=None) -> dict:
  """One job's numbers, by name.

  Args:
    what: one of JOBS.
    config: reads all but its data.
    theirs: gives the seconds of the same job in the published code, by its
      name (published.timer), or None.
  """
  net = fractal.from_config(config.model)
  mesh = sharding.make_mesh(config)
  function, args, again, flops = JOBS[what](config, net, mesh)
  times, ratios = [], []
  with jax.set_mesh(mesh):
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    compile_s = time.perf_counter() - start
    for _ in range(1 + REPEATS.value):
      for _ in range(1 if theirs is None else 2):  # the last one counts
        start = time.perf_counter()
        kept = [a for i, a in enumerate(args) if i not in STATIC[what]]
        out = jax.block_until_ready(compiled(*kept))
        seconds = time.perf_counter() - start
        args = again(out)
      times.append(seconds)
      if theirs is not None:
        ratios.append(theirs(what) / seconds)
  seconds = float(np.median(times[1:]))
  images = config.optim.batch
  devices = list(mesh.devices.flat)
  peak = cost.peak_flops(devices[0].device_kind)
  memory = devices[0].memory_stats() or {}
  program = compiled.memory_analysis()
  return {
    'what': what,
    'batch': images,
    'seconds': seconds,
    'images_per_s': images / seconds,
    'compile_s': compile_s,
    'model_gflops_per_image': flops / 1e9,
    'tflops_per_s': flops * images / seconds / 1e12,
    'mfu': flops * images / seconds / peak / len(devices) if peak else None,
    'peak_memory_gib': gib(memory.get('peak_bytes_in_use')),
    'program_memory_gib': gib(
      program and program.temp_size_in_bytes + program.argument_size_in_bytes
    ),
    'times_as_fast_as_published': sorted(ratios[1:]),
  }


# Arguments that are compiled in.
STATIC = {'train': (), 'likelihood': (0, 4), 'sample': ()}


def gib(size):
  return None if size is None else size / 2**30


def machine() -> str:
  device = jax.devices()[0]
  name = f'{len(jax.devices())} x {device.device_kind}'
  if device.platform == 'cpu':
    name = f'{cpu_name()} as {jax.local_device_count()} device(s)'
  return (
    f'{name}; jax {jax.__version__}, Python '
    f'{platform.python_version()}, {time.strftime("%Y-%m-%d")}'
  )


def cpu_name() -> str:
  import os

  model = platform.processor() or platform.machine()
  try:
    with open('/proc/cpuinfo') as file:
      names = [line for line in file if line.startswith('model name')]
    model = names[0].split(':')[1].strip() if names else model
  except OSError:
    pass
  return f'{model}, {len(os.sched_getaffinity(0))} cores'


def table(rows: list[dict]) -> str:
  head = (
    'job', 'batch', 's', 'images/s', 'compile s', 'GFLOP/image', 'TFLOP/s',
    'MFU', 'memory GiB', 'published / ours',
  )  # fmt: skip
  lines = [head]
  for r in rows:
    memory = r['peak_memory_gib'] or r['program_memory_gib']
    ratios = r['times_as_fast_as_published']
    spread = ratios and f'{ratios[0]:.2f} to {ratios[-1]:.2f}'
    lines.append(
      (
        r['what'],
        str(r['batch']),
        f'{r["seconds"]:.3f}',
        f'{r["images_per_s"]:.4g}',
        f'{r["compile_s"]:.1f}',
        f'{r["model_gflops_per_image"]:.3g}',
        f'{r["tflops_per_s"]:.3g}',
        '-' if r['mfu'] is None else f'{r["mfu"]:.1%}',
        '-' if memory is None else f'{memory:.2f}',
        f'{np.median(ratios):.2f} ({spread})' if ratios else '-',
      )
    )
  return '\n'.join(cost.aligned(lines))


def main(argv):
  del argv
  jax.config.update('jax_enable_compilation_cache', False)
  config = CONFIG.value
  with config.unlocked():
    config.optim.batch = BATCH.value
    config.sample.guidance = GUIDANCE.value
    config.sample.temperature = TEMPERATURE.value
    levels = len(config.model.kinds) - 1
    config.sample.iterations = tuple(
      map(int, ITERATIONS.value or (16,) + (8,) * (levels - 1))
    )
  config_lib.check(config)
  cpu.use_cores(BATCH.value)
  jobs = list(JOBS) if WHAT.value == 'all' else [WHAT.value]
  if not JSON.value:
    print(machine())
  rows, theirs = [], None
  if PUBLISHED.value:
    import published  # beside this script

    theirs = published.timer(PUBLISHED.value, config)
  for what in jobs:
    rows.append(measure(what, config, theirs))
    if JSON.value:
      print(json.dumps(rows[-1] | {'machine': machine()}), flush=True)
  if not JSON.value:
    print(table(rows))


if __name__ == '__main__':
  cpu.use_huge_pages()  # as the command line does
  app.run(main)
