"""Runs as users have them: processes that are killed, stopped, hung, resumed.

Two processes of four fake devices each, on localhost, or one of eight. All
train the same model on the same mesh, and share the compiled step. What runs
from its beginning to its end, alone, does so in the process of the tests.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors

from fractal_jax import api
from fractal_jax.metrics import weights
from fractal_jax.release import weights as release
from fractal_jax.training import restore
from fractal_jax.training import train as training
from tests import commandline, ports, xla

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 20
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
  c.eval.update(every=2, batch=24, num=33)
  c.sample.update(every=2, num=4, batch=8)
  return c
"""


BARE = ['--config.eval.every=0', '--config.sample.every=0']


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'tiny.py'
  path.write_text(CONFIG)
  return path


@pytest.fixture
def start(config):
  """Starts processes of a command; ends those that a test leaves."""
  started = []

  def start(workdir, processes, *flags, slow=False, devices=8, command='train'):
    """The processes, with so many devices; `slow` makes a step take a while."""
    port = ports.free()
    devices //= processes
    env = dict(
      os.environ,
      XLA_FLAGS=xla.flags(devices),
      PYTHONPATH=str(ROOT),
    )
    program = ['-c', SLOWLY] if slow else ['-m', 'fractal_jax.main']
    run = [sys.executable, *program, command, f'--workdir={workdir}']
    if command == 'train':
      run.append(f'--config={config}')
    new = []
    for i in range(processes):
      several = [
        '--distributed',
        f'--coordinator=localhost:{port}',
        f'--processes={processes}',
        f'--process={i}',
        '--heartbeat=24',
      ]
      log = open(f'{workdir}.{len(started)}.log', 'w+')
      job = subprocess.Popen(
        run + (several if processes > 1 else []) + list(flags),
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


# A run whose steps take 0.1 s, so that a test can meet it in the middle.
SLOWLY = """
import time
from fractal_jax import main, sharding
place = sharding.place
sharding.place = lambda *args: (time.sleep(0.1), place(*args))[1]
main.run()
"""


@pytest.fixture
def start_program(tmp_path):
  """Starts two processes of a program, of four devices each; ends them."""
  started = []

  def start_program(code, *arguments):
    """The processes; the program's arguments are a port, 0 or 1, and these."""
    port = ports.free()
    for i in range(2):
      log = open(tmp_path / f'program.{i}.log', 'w+')
      command = [sys.executable, '-c', code, str(port), str(i)]
      job = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=dict(os.environ, XLA_FLAGS=xla.flags(4), PYTHONPATH=str(ROOT)),
        stdout=log,
        stderr=log,
        text=True,
      )
      job.log = log
      started.append(job)
    return list(started)

  yield start_program
  for job in started:
    job.kill()
    job.wait()
    job.log.close()


def output(job):
  job.log.flush()
  return pathlib.Path(job.log.name).read_text()


def finish(jobs, *codes, within=600):
  """Waits for processes; they must end with these codes. Their outputs."""
  until = time.monotonic() + within
  for job in jobs:
    job.wait(max(0.1, until - time.monotonic()))
  texts = [output(job) for job in jobs]
  assert [job.returncode for job in jobs] == list(codes), '\n'.join(texts)
  return texts


def wait_for(condition, jobs, within=600):
  until = time.monotonic() + within
  while not condition():
    text = '\n'.join(map(output, jobs))
    assert time.monotonic() < until, text
    assert all(job.poll() is None for job in jobs), text
    time.sleep(0.005)


def told(text) -> int:
  """The step after which a run that was told to stop was saved."""
  return int(re.search('told to stop: saved after step (\\d+)', text)[1])


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
  return jax.device_get(restore.restore_params(workdir))


@pytest.fixture(scope='module')
def train(config):
  """Trains in this process, which has eight devices; gives what is printed."""

  def train(workdir, *flags):
    how = f'--config={config}', f'--workdir={workdir}', *flags
    return commandline.call('train', *how)

  return train


@pytest.fixture(scope='module')
def straight(config, train):
  """A run of 20 steps in one process."""
  workdir = config.parent / 'straight'
  train(workdir)
  return workdir


def test_killed_and_stopped_a_run_ends_with_the_same_bits(
  straight, start, train, tmp_path
):
  """By kill -9 while a checkpoint is being written, then by SIGTERM."""
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
  kept = restore.steps(workdir)
  assert kept == [5] and torn or kept == [5, 10]  # it may just have made it
  jobs = start(workdir, 1, slow=True)
  wait_for(logged(workdir, 12), jobs)
  jobs[0].terminate()
  (text,) = finish(jobs, 75)
  assert f'resuming after step {kept[-1]}\n' in text
  step = told(text)
  assert step >= 12 and restore.steps(workdir)[-1] == step
  text = train(workdir, *BARE)
  assert f'resuming after step {step}\n' in text
  assert all(p.name.isdigit() for p in folder.iterdir())
  chex.assert_trees_all_equal(params(workdir), params(straight))
  again, wanted = metrics(workdir), metrics(straight)
  assert again.keys() == wanted.keys()
  for step in wanted:
    for name in wanted[step]:
      if name.startswith('train/') and name != 'train/images_per_second':
        assert again[step][name] == wanted[step][name]


def test_two_processes_killed_stopped_and_resumed_as_one(
  straight, start, train, tmp_path
):
  """The loss of each step to 1e-4, parameters to 1e-4, bits/dim to 1e-4."""
  workdir = tmp_path / 'run'
  # One is killed: the other names it, and ends too.
  often = '--config.optim.save_every=2'
  jobs = start(workdir, 2, often, slow=True)
  wait_for(lambda: 2 in restore.steps(workdir), jobs)
  kept = restore.steps(workdir)[-1]
  jobs[1].kill()
  began = time.monotonic()
  first, _ = finish(jobs, 70, -signal.SIGKILL)
  assert time.monotonic() - began < 60
  assert 'process 1 does not answer (last in step' in first

  # One is told to stop: both save the same step.
  jobs = start(workdir, 2, slow=True)
  wait_for(logged(workdir, kept + 2), jobs)
  jobs[1].terminate()
  first, second = finish(jobs, 75, 75)
  assert int(re.search('resuming after step (\\d+)', first)[1]) >= kept
  step = told(first)
  assert step >= kept + 2 and restore.steps(workdir)[-1] == step

  # One process goes on, as if nothing had been.
  text = train(workdir)
  assert f'resuming after step {step}\n' in text
  found, wanted = metrics(workdir), metrics(straight)
  assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
  for step in wanted:
    np.testing.assert_allclose(
      found[step]['train/loss'], wanted[step]['train/loss'], rtol=1e-4
    )
    name = 'val/bits_per_dim'  # of 33 images: 24, and 9 and padding
    assert (name in wanted[step]) == (step % 2 == 0)
    if name in wanted[step]:
      np.testing.assert_allclose(
        found[step][name], wanted[step][name], rtol=1e-4
      )
  chex.assert_trees_all_close(params(workdir), params(straight), atol=1e-4)
  # The first of these were generated by two processes.
  for step in (kept + 2, STEPS):
    drawn, alone = (
      np.asarray(Image.open(run / 'samples' / f'step_{step:07d}.png'))
      for run in (workdir, straight)
    )
    assert drawn.shape == alone.shape and drawn.shape[1] > 50
    assert (drawn != alone).mean() < 0.02


def test_two_processes_evaluate_as_one_does(straight, start, tmp_path):
  """Images are drawn, scored and compared alike: numbers to 1e-3."""
  net, ref = tmp_path / 'random.npz', tmp_path / 'ref.npz'
  np.savez(net, **weights.random_state(0))
  noise = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
  np.savez(ref, arr_0=noise, arr_1=np.arange(8) % 4)
  found = []
  for processes in (2, 1):
    out, save = (tmp_path / f'{processes}.{kind}' for kind in ('json', 'npz'))
    flags = f'--num=10 --batch=8 --inception={net} --ref={ref}'.split()
    flags += [f'--out={out}', f'--save={save}']
    if processes == 1:
      commandline.call('evaluate', f'--workdir={straight}', *flags)
    else:
      jobs = start(straight, processes, *flags, command='evaluate')
      first, second = finish(jobs, 0, 0)
      assert 'FID  ' in first and 'FID  ' not in second
    with np.load(save) as images:
      found.append((json.loads(out.read_text()), images['arr_0']))
  (several, drawn), (one, alone) = found
  assert drawn.shape == (10, 8, 8, 3)
  assert (drawn != alone).mean() < 0.02
  assert several['num'] == one['num'] == 10
  assert several['fid'] == pytest.approx(one['fid'], rel=1e-3)
  assert several['inception_score'] == pytest.approx(
    one['inception_score'], rel=1e-3
  )
  for name in ('precision', 'recall'):
    assert several[name] == one[name]


# Saves a model whose parameters are split over both processes, each of which
# names a folder of its own.
SAVING = """
import pathlib, sys
import jax
from fractal_jax import api
from fractal_jax.errors import UserError
from fractal_jax.training import checkpoint, processes
port, me, run, out = sys.argv[1:]
processes.start(f'localhost:{port}', 2, int(me), 60)
config = checkpoint.load_config(run)
config.mesh.fsdp = 8
model = api.load(run, config=config)
split = [x for x in jax.tree.leaves(model.params)
         if not x.is_fully_replicated and not x.is_fully_addressable]
assert split
model.save_pretrained(f'{out}/{me}', name='mine', dtype='bfloat16')
assert pathlib.Path(out, '0', 'config.json').exists()
pathlib.Path(out, 'file').touch()
try:
  model.save_pretrained(f'{out}/{"file" if me == "0" else me}')
except UserError as e:
  print(e)
"""


def test_two_processes_save_one_release(straight, start_program, tmp_path):
  """One writes it, all of it, and both are told where that fails."""
  jobs = start_program(SAVING, straight, tmp_path)
  first, second = finish(jobs, 0, 0)
  assert 'file is no folder' in first
  assert 'on process 0: ' in second and 'file is no folder' in second
  assert not (tmp_path / '1').exists()
  model = api.load(str(straight))
  model.config.mesh.fsdp = 8
  alone = tmp_path / 'alone'
  model.save_pretrained(str(alone), name='mine', dtype='bfloat16')
  saved = tmp_path / '0'
  names = {p.name for p in saved.iterdir()}
  assert names == {p.name for p in alone.iterdir()}
  # The notes in a header have no order, so tensors are compared, not bytes.
  tensors = lambda folder: safetensors.load_file(folder / release.FILE)
  chex.assert_trees_all_equal(tensors(saved), tensors(alone))
  for name in names - {release.FILE}:
    assert (saved / name).read_bytes() == (alone / name).read_bytes()


# Processes that wait for each other in every step, and the second of which
# does something bad in step 4.
TOGETHER = """
import os, signal, sys, threading, time
from fractal_jax import main
from fractal_jax.training import processes
port, me, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
processes.POLL = 0.5
processes.start(f'localhost:{port}', 2, me, 60)
with processes.watchdog.limit(3.0) as dog:
  for step in range(1, 1000):
    dog.at(step, 'waiting for a batch')
    time.sleep(0.3)
    if step == 4 and me == 1:
      if what == 'stops':
        os.kill(os.getpid(), signal.SIGSTOP)
      if what == 'waits':
        threading.Event().wait()
      if what == 'fails':
        main.leave('fractal-jax train: no such image', 2)
      if what == 'raises':
        main.leave_after('train', KeyError('a bug'))
    dog.at(step, 'waiting for the devices')
    processes._client().wait_at_barrier(f'step {step}', 100_000)
"""


@pytest.mark.parametrize(
  'what, codes, words',
  [
    (
      'stops',
      (70, None),
      'process 0: no progress for .* in step 4: waiting for the devices. '
      'process 1 does not answer \\(last in step 4: waiting for a batch\\)',
    ),
    (
      'waits',
      (70, 70),
      'process 1: no progress for .* in step 4: waiting for a batch',
    ),
    ('fails', (2, 2), 'process 1 of 2 failed: .* no such image'),
    ('raises', (70, 70), "process 1 of 2 failed: KeyError: 'a bug'"),
  ],
)
def test_what_one_process_does_ends_both_by_name(
  start_program, what, codes, words
):
  jobs = start_program(TOGETHER, what)
  for job, code in zip(jobs, codes):
    if code is not None:
      job.wait(60)
  text = ''.join(map(output, jobs))
  for job, code in zip(jobs, codes):
    assert code is None or job.returncode == code, text
  assert re.search(words, text), text
  if what in ('stops', 'waits'):
    assert 'most recent call first' in text  # the stacks


def test_processes_meet_before_the_first_step(config, tmp_path, monkeypatch):
  """One of two may be later than Gloo waits when devices first meet, 30 s."""

  class Met(Exception):
    pass

  def meet():
    raise Met

  monkeypatch.setattr(training.processes, 'meet', meet)
  names = {}
  exec(config.read_text(), names)
  with pytest.raises(Met):
    training.train(names['get_config'](), str(tmp_path))
  assert not metrics(tmp_path)


def test_processes_must_share_the_work_directory(start, tmp_path):
  """Told by what each reads, so here one is given another directory."""
  a, b = tmp_path / 'a', tmp_path / 'b'
  code = (
    'import sys; from fractal_jax import main;'
    'from fractal_jax.training import lease;'
    'lease.SHARED_WITHIN = 2.0;'
    f"i = sys.argv.index('--workdir={a}');"
    f"sys.argv[i] = '--workdir={b}' if '--process=1' in sys.argv else "
    'sys.argv[i]; main.run()'
  )
  global SLOWLY
  before, SLOWLY = SLOWLY, code
  try:
    jobs = start(a, 2, slow=True, devices=2)
  finally:
    SLOWLY = before
  for text in finish(jobs, 2, 2):
    assert 'does not see what process 0 wrote' in text
    assert 'file system that all hosts share' in text
    assert 'Traceback' not in text
