"""Runs in a bucket: trained, killed, resumed, read, evaluated, converted."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from fractal_jax import api, convert, paths
from fractal_jax.data import pipeline
from fractal_jax.inference import inputs
from fractal_jax.metrics import files, images, sweep
from fractal_jax.training import (
  CheckpointError,
  checkpoint,
  lease,
  restore,
  train,
)
from tests import commandline, ports, release_test

ROOT = pathlib.Path(__file__).parent.parent
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
    batch=8, steps=6, lr=0.01, warmup=0.0, eps=1e-3, log_every=1, save_every=2)
  c.eval.update(every=0, batch=64, num=64)
  c.sample.update(every=0, num=4, batch=8)
  return c
"""
# Leases of a second, so that tests need not wait for a minute.
QUICK = """
from fractal_jax import main
from fractal_jax.training import lease
lease.HEARTBEAT, lease.EXPIRY = 0.2, 1.0
main.run()
"""


def configure():
  names = {}
  exec(CONFIG, names)
  return names['get_config']()


@pytest.fixture(scope='module', autouse=True)
def nothing_local(tmp_path_factory):
  """Tests run in an empty folder: no path of a bucket becomes a local one."""
  here = tmp_path_factory.mktemp('here')
  before = os.getcwd()
  os.chdir(here)
  yield here
  os.chdir(before)
  assert os.listdir(here) == []
  assert not list(ROOT.glob('gs:*'))


@pytest.fixture(scope='module', autouse=True)
def quick_leases():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lease, 'HEARTBEAT', 0.2)
    patch.setattr(lease, 'EXPIRY', 1.0)
    yield


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """Starts a `train` of CONFIG in another process."""
  folder = tmp_path_factory.mktemp('config')
  (folder / 'tiny.py').write_text(CONFIG)
  jobs = []

  def start(workdir, *flags, devices=8):
    xla = os.environ['XLA_FLAGS'].replace('count=8', f'count={devices}')
    flags = [f'--config={folder}/tiny.py', f'--workdir={workdir}', *flags]
    job = subprocess.Popen(
      [sys.executable, '-c', QUICK, 'train', *flags],
      env=os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': xla},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    jobs.append(job)
    return job

  yield start
  for job in jobs:
    if job.poll() is None:
      job.kill()
    job.communicate()


@pytest.fixture(scope='module')
def run(bucket, start):
  """A run that was killed in its second save, and resumed."""
  workdir = f'{bucket.url}/runs/one'
  job = start(workdir)

  def kill(name):
    if 'checkpoints/4/params/' in name:
      job.kill()

  bucket.watch = kill
  try:
    text, _ = job.communicate(timeout=600)
  finally:
    bucket.watch = lambda name: None
  assert job.returncode == -9, text
  # What was being saved has its final name, and does not count.
  found = paths.path(workdir) / 'checkpoints'
  assert '4' in [p.name for p in found.iterdir()]
  assert restore.steps(workdir) == [2], text
  lines = paths.read_grown(f'{workdir}/metrics.jsonl')
  assert b'"step": 2' in lines  # written before the checkpoint was

  config = configure()
  config.sample.every = 6
  state = train.train(config, workdir)
  return workdir, jax.device_get(state)


def test_a_killed_run_goes_on(run):
  workdir, state = run
  assert state.step == 6
  assert restore.steps(workdir) == [4, 6]
  lines = paths.read_grown(f'{workdir}/metrics.jsonl').splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
  names = {p.name for p in paths.path(workdir).iterdir()}
  assert names == {
    'checkpoints', 'classes.json', 'config.json', 'metrics.jsonl',
    'report.html', 'samples', 'tensorboard',
  }  # fmt: skip
  grid, movie = sorted(
    (paths.path(workdir) / 'samples').iterdir(),
    key=lambda p: p.suffix == '.gif',
  )
  assert movie.read_bytes().startswith(b'GIF')
  with grid.open('rb') as file, Image.open(file) as image:
    assert image.size[0] > 8
  events = list((paths.path(workdir) / 'tensorboard').iterdir())
  assert len(events) == 2 and all(len(p.read_bytes()) > 100 for p in events)


def test_a_run_is_as_one_that_was_not_killed(run, tmp_path):
  state = train.train(configure(), str(tmp_path))
  for a, b in zip(*map(jax.tree.leaves, (run[1].params, state.params))):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_used_work_directory_is_refused(run):
  with lease.hold(run[0]):
    with pytest.raises(CheckpointError, match='in use by another run'):
      train.train(configure(), run[0])


def test_it_is_read_scored_and_drawn_from(run, bucket, nothing_local):
  workdir, state = run
  model = api.load(workdir)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(model.params), state.params
  )
  one = restore.restore_like(workdir, 4, model.params)
  assert jax.tree.structure(one) == jax.tree.structure(state.params)
  (batch,) = [next(iter(pipeline.eval_batches(model.config, 'validation', 8)))]
  found = model.log_prob(batch['image'], batch['label'])
  assert np.isfinite(np.asarray(jax.tree.leaves(found)[0])).all()


def test_an_evaluation_is_resumed(run):
  model = api.load(run[0])
  first = images.of_run(model, run[0], 10)
  drawn = first.pictures(0)
  kept = list(paths.path(first.folder / 'images').iterdir())
  assert kept
  again = images.of_run(model, run[0], 10)
  assert again.folder == first.folder
  np.testing.assert_array_equal(again.pictures(0), drawn)
  name = f'{run[0]}/images.npz'
  files.save_samples(name, 2, drawn.shape[1:], [drawn[:2]], np.zeros(2, int))
  np.testing.assert_array_equal(files.Samples(name)[0:2], drawn[:2])


def test_commands_write_there(run, bucket):
  workdir, _ = run
  folder = f'{bucket.url}/results'
  draw = ('--num=2', '--labels=1,2')
  for command, *flags in (
    ('sample', *draw, f'--out={folder}/x.npz', f'--movie={folder}/x.gif'),
    ('sample', *draw, f'--out={folder}/x.png'),
    ('edit', '--index=0', '--mode=lower', '--num=1', f'--out={folder}/x.npy'),
    ('explain', '--index=0', f'--out={folder}/explained'),
    ('likelihood', '--num=8'),
  ):
    with commandline.flags_of(command, f'--workdir={workdir}', *flags) as job:
      job.run()
  rows = [dict.fromkeys(sweep.CURVES, x) for x in (1.0, 2.0)]
  same = dict.fromkeys(sweep.SETTINGS, 1.0) | {'seed': 0, 'num': 2}
  rows = [same | {'guidance': r['fid']} | r for r in rows]
  sweep.write_csv(rows, f'{folder}/x.csv')
  sweep.plot(rows, f'{folder}/x.pdf')

  read = lambda name: io.BytesIO(paths.path(f'{folder}/{name}').read_bytes())
  assert np.load(read('x.npz'))['images'].shape == (2, 8, 8, 1)
  assert np.load(read('x.npy')).shape == (1, 8, 8, 1)
  assert np.load(read('explained/bits.npy')).shape == (8, 8, 1)
  assert Image.open(read('x.gif')).n_frames > 10
  assert Image.open(read('x.png')).size[0] > 8
  assert b'<html' in read('explained/report.html').getvalue()
  assert read('x.csv').getvalue().startswith(b'guidance,temperature,interval,')
  assert read('x.pdf').getvalue().startswith(b'%PDF')


def test_the_demo_reads_it(run):
  pytest.importorskip('gradio')
  from fractal_jax.demo import page

  assert len(page.Page(api.load(run[0]), 'one').classes) == 10


def test_it_is_converted(run, bucket):
  workdir, state = run
  config = checkpoint.load_config(workdir)
  name = f'{bucket.url}/published.pth'
  convert.write_pth(name, {'x': np.arange(3.0)})
  np.testing.assert_array_equal(convert.read_pth(name)['x'], np.arange(3.0))
  params = restore.restore_params(workdir)
  checkpoint.save_params(f'{bucket.url}/runs/two', config, params)
  assert restore.steps(f'{bucket.url}/runs/two') == [0]
  some = {k: params[k] for k in ('labels',)}
  like = jax.tree.map(jax.device_put, some)
  found = restore.restore_subtrees(workdir, like)
  jax.tree.map(np.testing.assert_array_equal, found, some)


def test_published_weights_are_converted(bucket, tmp_path):
  """From a file there to a run, a release, and files there."""
  state, params = release_test.published_weights(tmp_path)
  config, root = f'--config={tmp_path}/c.py', f'{bucket.url}/published'
  convert.write(f'{root}/w.pth', state)
  call = release_test.call
  call('convert', config, f'--pth={root}/w.pth', f'--workdir={root}/run')
  call('convert', f'--workdir={root}/run', f'--out={root}/release')
  back = f'{root}/back.safetensors'
  call('convert', f'--workdir={root}/release', f'--out={back}')
  found = api.load(f'{root}/release').params
  jax.tree.map(np.testing.assert_array_equal, found, params)
  found = convert.read(back)
  assert found.keys() == state.keys()
  for name in state:
    np.testing.assert_array_equal(found[name], state[name])


def test_data_is_read(bucket, tmp_path):
  c = configure()
  c.model.num_values = 256
  root = paths.path(f'{bucket.url}/images')
  for i in range(20):
    with paths.atomic_write(root / f'{i % 2}' / f'{i}.png') as file:
      Image.fromarray(np.full((8, 8), i, np.uint8)).save(file)
  c.data.update(name='folder', dir=str(root))
  assert pipeline.info(c).num_train == 18
  batch = next(pipeline.train_batches(c))
  assert batch['image'].shape == (8, 8, 8, 1)
  with paths.atomic_write(f'{bucket.url}/data.npz') as file:
    np.savez(
      file, images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 2
    )
  c.data.update(name='npz', dir=f'{bucket.url}/data.npz')
  assert pipeline.info(c).num_train == 18


def test_two_processes(bucket, start):
  workdir = f'{bucket.url}/runs/several'
  port = ports.free()
  jobs = [
    start(
      workdir,
      '--config.optim.steps=2',
      '--distributed',
      f'--coordinator=localhost:{port}',
      '--processes=2',
      f'--process={i}',
      devices=4,
    )
    for i in range(2)
  ]
  texts = [job.communicate(timeout=600)[0] for job in jobs]
  assert [job.returncode for job in jobs] == [0, 0], texts
  assert restore.steps(workdir) == [2]
  assert not (paths.path(workdir) / '.lock').exists()
  restore.restore_params(workdir)


def test_a_save_that_fails_is_tried_again(bucket, capsys, monkeypatch):
  """The bucket refuses step 2 whole; training goes on, step 4 is saved."""
  workdir = f'{bucket.url}/runs/refused'

  def refuse(name):
    if 'checkpoints/2/' in name:
      bucket.faults.append(403)

  bucket.watch = refuse
  config = configure()
  config.optim.steps = 4
  try:
    train.train(config, workdir)
  finally:
    bucket.watch = lambda name: None
    bucket.faults.clear()
  assert 'could not be saved' in capsys.readouterr().out
  assert restore.steps(workdir) == [4]


def test_a_bucket_that_is_gone_is_no_damage(run, monkeypatch):
  def gone(*_, **__):
    raise ConnectionRefusedError('nobody listens')

  monkeypatch.setattr(restore.ocp, 'StandardCheckpointer', gone)
  with pytest.raises(CheckpointError, match='cannot be read') as e:
    restore.restore_params(run[0])
  assert 'damaged' not in str(e.value)


def test_a_scheme_without_its_package_stops_a_run(monkeypatch):
  monkeypatch.setattr(paths.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(paths.PathError, match=r"'fractal_jax\[gcs\]'"):
    train.train(configure(), 'gs://bucket/run')


def test_images_and_values_are_read(bucket):
  name = f'{bucket.url}/inputs/image'
  with paths.atomic_write(f'{name}.png') as file:
    Image.fromarray(np.full((8, 8), 3, np.uint8)).save(file)
  with paths.atomic_write(f'{name}.npy') as file:
    np.save(file, np.full((8, 8, 1), 3))
  model = configure().model
  model.num_values = 256
  for ending in ('png', 'npy'):
    found, _ = inputs.read_image(f'{name}.{ending}', model)
    np.testing.assert_array_equal(found, np.full((8, 8, 1), 3))
