"""How long one image takes: warm, in a new process, and with a cache.

  python benchmarks/latency.py --workdir=runs/digits
  python benchmarks/latency.py --config=configs/mini.py:mar

Of a run, or of a config with random weights:

  a process    `fractal-jax sample --num=1` as a user calls it, from an empty
               compilation cache, and then from the cache that this left
  in Python    what such a process does: importing, loading, the first image
  warm         `Model.sample` of one image again and again

p50 and p95 in seconds; the largest, where there are few.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging
from ml_collections import config_flags
import numpy as np

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', None, 'A run.')
config_flags.DEFINE_config_file('config', None, 'Or a config: random weights.')
flags.DEFINE_integer('colds', 2, 'Processes that compile.')
flags.DEFINE_integer('processes', 5, 'Processes with the cache.')
flags.DEFINE_integer('images', 40, 'Images drawn one by one.')

CODE = """
import json, time
start = time.monotonic()
marks = {}
def mark(name):
  global start
  now = time.monotonic()
  marks[name], start = now - start, now
from fractal_jax import cpu
cpu.use_cores(1)
import jax, os
jax.config.update('jax_compilation_cache_dir', os.environ['CACHE'])
import fractal_jax
mark('importing')
model = fractal_jax.load(WORKDIR)
mark('loading')
model.sample([0])
mark('the first image')
warm = []
for seed in range(IMAGES):
  model.sample([0], seed=seed)
  mark('warm')
  warm.append(marks.pop('warm'))
print(json.dumps([marks, warm]))
"""


@contextlib.contextmanager
def the_run():
  """--workdir, or a folder with random weights of --config."""
  if FLAGS.workdir:
    yield FLAGS.workdir
    return
  import jax

  from fractal_jax import sharding
  from fractal_jax.models import fractal
  from fractal_jax.training import checkpoint

  net = fractal.from_config(FLAGS.config.model)
  params = jax.jit(
    lambda: sharding.unbox(fractal.init(net, jax.random.key(0)))
  )()
  with tempfile.TemporaryDirectory() as folder:
    checkpoint.save_params(folder, FLAGS.config, params)
    yield folder


def process(workdir: str, cache: str) -> float:
  """Seconds that `fractal-jax sample --num=1` takes."""
  out = pathlib.Path(cache, 'image.png')
  command = [sys.executable, '-m', 'fractal_jax.main', 'sample']
  command += [f'--workdir={workdir}', '--num=1', f'--out={out}']
  start = time.monotonic()
  subprocess.run(
    command,
    check=True,
    capture_output=True,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache},
  )
  return time.monotonic() - start


def in_python(workdir: str, cache: str, images: int):
  """Seconds of each part of a process: ({part: s}, [s of each warm image])."""
  code = CODE.replace('WORKDIR', repr(workdir)).replace('IMAGES', str(images))
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    capture_output=True,
    text=True,
    env=os.environ | {'CACHE': cache},
  )
  return json.loads(done.stdout.splitlines()[-1])


def report(name: str, seconds: list[float]) -> None:
  p50, p95 = np.quantile(seconds, [0.5, 0.95])
  most = max(seconds) if len(seconds) < 20 else p95
  print(f'{name:44}{p50:8.3f}{most:8.3f}   of {len(seconds)}')


def main(_):
  if bool(FLAGS.workdir) == bool(FLAGS.config):
    sys.exit('latency: give --workdir of a run, or --config: one of them')
  logging.set_verbosity(logging.WARNING)  # orbax tells of each step
  with the_run() as workdir, tempfile.TemporaryDirectory() as folder:
    caches = [str(pathlib.Path(folder, str(i))) for i in range(FLAGS.colds)]
    for cache in caches:
      os.mkdir(cache)
    print(f'{"seconds for one image":44}{"p50":>8}{"p95":>8}')
    report('a process, empty cache', [process(workdir, c) for c in caches])
    last = caches[-1]
    again = [process(workdir, last) for _ in range(FLAGS.processes)]
    report('a process, compiled before', again)
    in_python(workdir, last, 0)  # its programs differ by how they are called
    parts = [in_python(workdir, last, 0)[0] for _ in range(FLAGS.processes)]
    for part in parts[0]:
      report(f'  {part}', [p[part] for p in parts])
    report('warm', in_python(workdir, last, FLAGS.images)[1])


if __name__ == '__main__':
  sys.exit(app.run(main))
