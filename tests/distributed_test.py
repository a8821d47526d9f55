"""Runs as users have them: processes that are killed, stopped, hung, resumed.

Two processes of four fake devices each, on localhost, or one of eight. All
train the same model on the same mesh, and share the compiled step.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest

from fractal_jax import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 20
QUICK = (
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false'
)
CONFIG = """
from fractal_jax import config

def get_config():
  c = config.default()
  c.model.update(
    sizes=(8, 1), kinds=('ar', 'pixel'), widths=(16, 16), depths=(1, 1),
    heads=(2, 2), num_conds=1, num_values=17, channels=1, mean=(0.5,),
    std=(0.4,), channel_weights=(1.0,), classes=10, remat='none')
  c.data.update(threads=1, flip=False)
  c.optim.update(
    batch=16, steps=20, lr=0.01, warmup=0.0, eps=1e-3, log_every=1,
    save_every=5)
  c.mesh.update(fsdp=2)
  c.eval.update(every=20, batch=40, num=33)
  c.sample.update(every=20, num=4, batch=8)
  return c
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'tiny.py'
  path.write_text(CONFIG)
  return path


@pytest.fixture
def start(config):
  """Starts processes of `train`; ends those that a test leaves."""
  started = []

  def start(workdir, processes, *flags, slow=False):
    """The processes; `slow` makes a step take a while."""
    with socket.socket() as s:
      s.bind(('localhost', 0))
      port = s.getsockname()[1]
    devices = 8 // processes
    env = dict(
      os.environ,
      XLA_FLAGS=f'--xla_force_host_platform_device_count={devices} {QUICK}',
      PYTHONPATH=str(ROOT),
    )
    command = [sys.executable, '-m', 'fractal_jax.main', 'train']
    if slow:
      command = [sys.executable, '-c', SLOWLY, 'train']
    command += [f'--config={config}', f'--workdir={workdir}']
    new = []
    for i in range(processes):
      several = [
        '--distributed',
        f'--coordinator=localhost:{port}',
        f'--processes={processes}',
        f'--process={i}',
        '--heartbeat=40',
      ]
      log = open(f'{workdir}.{len(started)}.log', 'w+')
      job = subprocess.Popen(
        command + (several if processes > 1 else []) + list(flags),
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=log,
        text=True,
      )
      job.log = log
      new.append(job)
      started.append(job)
    return new

  yield start
  for job in started:
    if job.poll() is None:
      job.kill()
      job.wait()
    job.log.close()


# A run whose steps take 0.2 s, so that a test can meet it in the middle.
SLOWLY = """
import time
from fractal_jax import main, sharding
place = sharding.place
sharding.place = lambda *args: (time.sleep(0.2), place(*args))[1]
main.run()
"""


def output(job):
  job.log.flush()
  return pathlib.Path(job.log.name).read_text()


def finish(jobs, *codes, within=90):
  """Waits for processes; they must end with these codes. Their outputs."""
  until = time.monotonic() + within
  for job in jobs:
    job.wait(max(0.1, until - time.monotonic()))
  texts = [output(job) for job in jobs]
  assert [job.returncode for job in jobs] == list(codes), '\n'.join(texts)
  return texts


def wait_for(condition, jobs, within=90):
  until = time.monotonic() + within
  while not condition():
    text = '\n'.join(map(output, jobs))
    assert time.monotonic() < until, text
    assert all(job.poll() is None for job in jobs), text
    time.sleep(0.005)


def metrics(workdir):
  path = pathlib.Path(workdir, 'metrics.jsonl')
  if not path.exists():
    return {}
  out = {}
  for line in path.read_text().splitlines():
    line = json.loads(line)
    out.setdefault(line['step'], {}).update(line)
  return out


def logged(workdir, step):
  return lambda: step in metrics(workdir)


def params(workdir):
  return jax.device_get(checkpoint.restore_params(workdir))


@pytest.fixture
def straight(config, start, tmp_path_factory):
  """A run of 20 steps in one process: made once."""
  workdir = config.parent / 'straight'
  if not workdir.exists():
    finish(start(workdir, 1), 0)
  return workdir


def test_killed_anywhere_a_run_ends_with_the_same_bits(
  straight, start, tmp_path
):
  """kill -9 while a checkpoint is being written, and then anywhere."""
  workdir = tmp_path / 'run'
  jobs = start(workdir, 1, slow=True)
  folder = workdir / 'checkpoints'

  def saving():
    """Checkpoint 10 is being written."""
    return folder.exists() and any(
      p.name.startswith('10.') for p in folder.iterdir()
    )

  wait_for(saving, jobs)
  jobs[0].kill()
  finish(jobs, -signal.SIGKILL)
  torn = [p.name for p in folder.iterdir() if not p.name.isdigit()]
  kept = checkpoint.steps(workdir)
  assert kept == [5] and torn or kept == [5, 10]  # it may just have made it
  jobs = start(workdir, 1, slow=True)
  wait_for(logged(workdir, 13), jobs)
  jobs[0].kill()
  (text,) = finish(jobs, -signal.SIGKILL)
  assert f'resuming after step {kept[-1]}\n' in text
  (text,) = finish(start(workdir, 1), 0)
  assert 'resuming after step 10\n' in text
  assert all(p.name.isdigit() for p in folder.iterdir())
  jax.tree.map(np.testing.assert_array_equal, params(workdir), params(straight))
  again, wanted = metrics(workdir), metrics(straight)
  assert again.keys() == wanted.keys()
  for step in wanted:
    again[step].pop('train/images_per_second')
    wanted[step].pop('train/images_per_second')
    assert again[step] == wanted[step]


def test_a_single_process_told_to_stop_saves(start, tmp_path):
  workdir = tmp_path / 'run'
  jobs = start(workdir, 1, slow=True)
  wait_for(logged(workdir, 6), jobs)
  jobs[0].terminate()
  (text,) = finish(jobs, 75)
  step = int(re.search('told to stop: saved after step (\\d+)', text)[1])
  assert step > 6 and checkpoint.steps(workdir)[-1] == step


def test_two_processes_killed_stopped_and_resumed_as_one(
  straight, start, tmp_path
):
  """The loss of each step to 1e-4, parameters to 1e-4, bits/dim to 1e-4."""
  workdir = tmp_path / 'run'
  # One is killed: the other names it, and ends too.
  jobs = start(workdir, 2, slow=True)
  wait_for(lambda: checkpoint.steps(workdir) == [5], jobs)
  jobs[1].kill()
  began = time.monotonic()
  first, _ = finish(jobs, 70, -signal.SIGKILL)
  assert time.monotonic() - began < 60
  assert 'process 1 does not answer (last in step' in first

  # One is told to stop: both save the same step.
  jobs = start(workdir, 2, slow=True)
  wait_for(logged(workdir, 8), jobs)
  jobs[1].terminate()
  first, second = finish(jobs, 75, 75)
  assert 'resuming after step 5' in first
  step = int(re.search('told to stop: saved after step (\\d+)', first)[1])
  assert step >= 8 and checkpoint.steps(workdir)[-1] == step

  # One process goes on, as if nothing had been.
  (text,) = finish(start(workdir, 1), 0)
  assert f'resuming after step {step}\n' in text
  found, wanted = metrics(workdir), metrics(straight)
  assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
  for step in wanted:
    np.testing.assert_allclose(
      found[step]['train/loss'], wanted[step]['train/loss'], rtol=1e-4
    )
  name = 'val/bits_per_dim'
  np.testing.assert_allclose(found[STEPS][name], wanted[STEPS][name], rtol=1e-4)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
    params(workdir),
    params(straight),
  )
  # It has generated.
  with Image.open(workdir / 'samples' / f'step_{STEPS:07d}.png') as grid:
    assert grid.size[0] > 50


def test_a_hung_process_is_named_and_ends_the_run(start, tmp_path):
  """One of two is stopped by the system: its devices never answer."""
  workdir = tmp_path / 'run'
  flags = ['--config.optim.hang_after=4', '--config.optim.save_every=1000']
  flags += ['--heartbeat=100']  # which would also end it
  jobs = start(workdir, 2, *flags, slow=True)
  wait_for(logged(workdir, 6), jobs)
  jobs[1].send_signal(signal.SIGSTOP)
  (text,) = finish(jobs[:1], 70)
  assert 'process 0: no progress for ' in text
  assert 'process 1 does not answer (last in step ' in text
  assert 'in train' in text  # the stack
  jobs[1].kill()


def test_hosts_must_share_the_work_directory(start, tmp_path):
  """Told by what each reads, so here one is given another directory."""
  a, b = tmp_path / 'a', tmp_path / 'b'
  code = (
    'import sys; from fractal_jax import checkpoint, main;'
    'checkpoint.SHARED_WITHIN = 2.0;'
    f"i = sys.argv.index('--workdir={a}');"
    f"sys.argv[i] = '--workdir={b}' if '--process=1' in sys.argv else "
    'sys.argv[i]; main.run()'
  )
  global SLOWLY
  before, SLOWLY = SLOWLY, code
  try:
    jobs = start(a, 2, slow=True)
  finally:
    SLOWLY = before
  for text in finish(jobs, 2, 2):
    assert 'does not see what process 0 wrote' in text
    assert 'file system that all hosts share' in text
    assert 'Traceback' not in text
