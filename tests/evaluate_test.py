"""Evaluations: resumed, on any mesh, never mixed; the commands around them.

The Inception net is replaced by a few random projections of the pictures;
tests/inception_test.py has the real one, and tests/paper_test.py both.
"""

import csv
import dataclasses
import json
import os
import shutil
import types

from absl import flags
import jax
import numpy as np
from PIL import Image
import pytest

from fractal_jax import api, sharding
from fractal_jax import config as config_lib
from fractal_jax.commands import common
from fractal_jax.data import classes
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs, sample
from fractal_jax.metrics import (
  MetricsError,
  features,
  inception,
  reference,
  results,
  weights,
)
from fractal_jax.metrics import images as images_lib
from fractal_jax.training import checkpoint, train_state
from tests import commandline, tiny

D = 6


class Fake:
  """An extractor of random projections, in place of the Inception net."""

  fingerprint = 'fake'
  host, hosts = 0, 1

  def __init__(self, *_, **__):
    self.batch = 10

  def __call__(self, pictures):
    flat = pictures.reshape(len(pictures), -1) / 255
    matrix = np.random.default_rng(0).standard_normal((flat.shape[1], D))
    found = np.abs(flat @ matrix)
    return found, found

  @property
  def mesh(self):
    return sharding.single_device_mesh()

  def rows(self, batch):
    found = self(batch['pictures'])[0]
    return {k: v for k, v in batch.items()} | {'features': found}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  c = tiny.config()  # 2x2, one channel, five values, three classes
  path = tmp_path_factory.mktemp('data') / 'data.npz'
  images = np.random.default_rng(0).integers(0, 5, (60, 2, 2, 1), np.uint8)
  np.savez(path, images=images, labels=np.arange(60) % 3)
  c.data.update(name='npz', dir=str(path))
  c.sample.update(batch=4)
  return c


@pytest.fixture(scope='module')
def model(config):
  net, params = tiny.build()
  return api.Model(config, net, params, sharding.single_device_mesh(), step=1)


@pytest.fixture
def real(config, monkeypatch):
  monkeypatch.setattr(inception, 'FEATURES', D)
  return reference.make(config, 'train', Fake())


@pytest.fixture
def drawn(monkeypatch):
  """The first image of each batch that is generated."""
  found = []
  kept = sample.kept

  def counted(*args, first, **kwargs):
    found.append(first)
    return kept(*args, first=first, **kwargs)

  monkeypatch.setattr(sample, 'kept', counted)
  return found


def run(model, workdir, real, extractor=None, **how):
  images = images_lib.of_run(model, workdir, 12, guidance=2.0, **how)
  return images, results.measure(images, real, extractor or Fake())


def saved(images, path):
  images_lib.save(images, path)
  with np.load(path) as file:
    return file['arr_0'], file['arr_1']


def on_eight_devices(model):
  c = config_lib.default()
  c.mesh.update(data=4, fsdp=2)
  mesh = sharding.make_mesh(c)
  where = train_state.param_shardings(model.net, mesh=mesh)
  return api.Model(
    model.config,
    model.net,
    jax.device_put(model.params, where),
    mesh,
    step=model.step,
  )


def test_interrupted_is_uninterrupted(
  model, real, drawn, tmp_path, monkeypatch
):
  images, wanted = run(model, tmp_path / 'straight', real)
  assert drawn == [0, 4, 8]
  all_of_it = saved(images, tmp_path / 'straight.npz')
  assert drawn == [0, 4, 8]  # they were kept
  np.testing.assert_array_equal(all_of_it[1], np.arange(12) % 3)
  assert len(np.unique(all_of_it[0], axis=0)) > 4
  drawn.clear()

  # Killed between chunks, when the features of the second are not there yet.
  workdir = tmp_path / 'killed'

  class Killed(Fake):
    def __call__(self, pictures):
      if len(drawn) == 2:
        raise KeyboardInterrupt
      return super().__call__(pictures)

  with pytest.raises(KeyboardInterrupt):
    run(model, workdir, real, Killed())
  assert drawn == [0, 4]

  # Killed in the middle of a write: a part of the file has been written.
  def torn(handle):
    if len(drawn) == 3:
      os.ftruncate(handle, 10)
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', torn)
    with pytest.raises(KeyboardInterrupt):
      run(model, workdir, real)
  assert drawn == [0, 4, 8]
  left = [p.name for p in workdir.rglob('*.npz*') if p.parent.name == 'images']
  assert sorted(left) == ['0000000-0000004.npz', '0000004-0000008.npz']
  # A process that is killed outright leaves the part behind.
  for folder in {p.parent for p in workdir.rglob('*.npz')}:
    (folder / '.1a2b3c4d.npz').write_bytes(b'PK')

  # It goes on with other chunks, on eight devices.
  images, found = run(on_eight_devices(model), workdir, real, batch=5)
  assert drawn == [0, 4, 8, 8]
  for ours, theirs in zip(saved(images, tmp_path / 'x.npz'), all_of_it):
    np.testing.assert_array_equal(ours, theirs)
  assert found == wanted


@pytest.mark.parametrize('candidates', [1, 2])
def test_eight_devices_draw_what_one_does(
  candidates, model, real, drawn, tmp_path
):
  how = dict(candidates=candidates)
  images, wanted = run(model, tmp_path / 'one', real, **how)
  others, found = run(on_eight_devices(model), tmp_path / 'eight', real, **how)
  one, eight = (x.pop('rejection') for x in (wanted, found))
  if candidates > 1:  # likelihoods are sums of parts
    assert one.pop('by') == eight.pop('by')
  assert eight == (one and pytest.approx(one, rel=1e-4))
  assert drawn == [0, 4, 8, 0, 8]
  assert images.folder.name == others.folder.name and found == wanted
  one, eight = (saved(x, tmp_path / 'x.npz')[0] for x in (images, others))
  np.testing.assert_array_equal(one, eight)


def test_more_images_begin_with_the_same(model, drawn, tmp_path):
  few = images_lib.of_run(model, tmp_path, 6, seed=1)
  first = saved(few, tmp_path / 'a.npz')[0]
  more = images_lib.of_run(model, tmp_path, 12, seed=1)
  np.testing.assert_array_equal(saved(more, tmp_path / 'a.npz')[0][:6], first)
  assert drawn == [0, 4, 8]


def test_settings_never_mix(model, tmp_path):
  key = lambda m=model, **how: (
    images_lib.of_run(m, tmp_path, 3, **how).folder.name
  )
  changed = api.Model(
    model.config,
    model.net,
    jax.tree.map(lambda x: x, model.params) | {},
    model.mesh,
    step=1,
  )
  assert key() == key(changed) == key(guidance=1.0)
  table = dict(changed.params['labels'])
  table['none'] = table['none'].at[0].add(1e-6)
  changed.params['labels'] = table
  ways = [
    key(),
    key(changed),
    key(guidance=2.0),
    key(temperature=1.1),
    key(iterations=(2,)),
    key(schedule='constant'),
    key(filter_threshold=0.0),
    key(interval=(0.0, 0.5)),
    key(guidance=(2.0,)),
    key(seed=1),
    key(unconditional=True),
    key(dataclasses.replace(model, step=2)),
  ]
  assert len(set(ways)) == len(ways)
  assert 'guidance2-temperature1-' in key(guidance=2.0)
  swapped = {'a': np.float32([1, 2, 3, 4]).reshape(2, 2)}
  other = {'a': swapped['a'].T}
  assert images_lib.fingerprint(swapped) != images_lib.fingerprint(other)


def test_what_can_not_be_evaluated_is_said_first(model, real, tmp_path):
  with pytest.raises(MetricsError, match='--num=10 .* 3 classes: .* 9 or 12'):
    images_lib.of_run(model, tmp_path, 10)
  with pytest.raises(MetricsError, match='set it to 3.$'):
    images_lib.of_run(model, tmp_path, 1)
  assert not list(tmp_path.iterdir())
  images = images_lib.of_run(model, tmp_path, 9)
  with pytest.raises(MetricsError, match='9 images: at least 10'):
    results.measure(images, real, Fake())
  big = reference.Reference('ref.npz', real.mu, real.sigma, side=64)
  images = images_lib.of_run(model, tmp_path, 12)
  with pytest.raises(
    MetricsError, match='2 pixels per side, .* ref.npz have 64'
  ):
    results.measure(images, big, Fake())
  results.measure(images, real, Fake())
  with pytest.raises(MetricsError, match='seed=4294967296 must be a whole'):
    images_lib.of_run(model, tmp_path, 12, seed=2**32)


def test_broken_chunks_are_named(model, real, tmp_path):
  images = images_lib.of_run(model, tmp_path, 12)
  results.measure(images, real, Fake())
  chunk = next(images.folder.rglob('images/*4.npz'))
  (chunk.parent / 'notes.npz').write_bytes(b'')  # none of ours
  values = np.zeros((4, 2, 2, 1), np.uint8)
  for arrays, words in (
    (None, 'cannot be read.*remove it'),
    ({'images': values}, '`values` is missing; expected integers.*remove it'),
    ({'values': values[:3]}, r'\[3, 2, 2, 1\]; expected integers \[4, 2, 2, 1'),
    ({'values': values / 2}, '`values` is float64'),
  ):
    if arrays is None:
      chunk.write_bytes(b'')
    else:
      np.savez(chunk, **arrays)
    again = images_lib.of_run(model, tmp_path, 12)
    with pytest.raises(MetricsError, match=words):
      images_lib.save(again, tmp_path / 'x.npz')
  chunk.unlink()
  chunk = next(images.folder.rglob('inception-fake/*4.npz'))
  np.savez(chunk, features=np.zeros((4, D)), logits=np.full((4, D), np.nan))
  with pytest.raises(MetricsError, match='`logits` holds nan'):
    results.measure(images_lib.of_run(model, tmp_path, 12), real, Fake())


def test_a_replaced_data_set_gets_statistics_of_its_own(config, real, tmp_path):
  c = config.copy_and_resolve_references().unlock()
  c.data.dir = str(tmp_path / 'data.npz')
  images = np.random.default_rng(1).integers(0, 5, (60, 2, 2, 1), np.uint8)
  np.savez(c.data.dir, images=images, labels=np.arange(60) % 3)
  first, path = reference.of_run(c, tmp_path, Fake())
  again, same = reference.of_run(c, tmp_path, Fake())
  assert path == same and path.is_file()
  np.testing.assert_array_equal(again.mu, first.mu)
  np.savez(c.data.dir, images=4 - images, labels=np.arange(60) % 3)
  found, other = reference.of_run(c, tmp_path, Fake())
  assert other != path and (found.mu != first.mu).any()


def test_without_labels_or_images_less_is_said(model, real, tmp_path):
  images = images_lib.of_run(model, tmp_path, 10, unconditional=True)
  found = results.measure(images, real, Fake())
  assert found['recall'] is not None and found['class_recall'] is None
  assert 'needs labels' in results.summary(found)
  bare = reference.Reference('ref.npz', real.mu, real.sigma)
  found = results.measure(images, bare, Fake())
  assert found['fid'] > 0 and found['precision'] is None
  assert 'statistics alone' in results.summary(found)


# The commands.


@pytest.fixture
def call(monkeypatch):
  monkeypatch.setattr(inception, 'FEATURES', D)
  monkeypatch.setattr(features, 'Extractor', Fake)
  loaded = types.SimpleNamespace(published=False)
  monkeypatch.setattr(weights, 'load', lambda path: loaded)

  def one(command, *args):
    with commandline.flags_of(command, *map(str, args)) as job:
      job.run()

  return one


@pytest.fixture(scope='module')
def workdir(model, tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('run'))
  checkpoint.save_params(folder, model.config, model.params)
  return folder


def test_evaluate_and_reference_from_the_command_line(
  call, workdir, config, tmp_path, capsys
):
  out, npz = tmp_path / 'new' / 'm.json', tmp_path / 'samples.npz'
  args = (f'--workdir={workdir}', '--num=12', '--inception=x')
  call('evaluate', *args, f'--out={out}', f'--save={npz}')
  text = capsys.readouterr().out
  assert 'not the published' in text and 'reference-' in text
  assert 'FID  ' in text and 'recall within classes' in text
  found = json.loads(out.read_text())
  assert found['num'] == 12 and len(found['recall_by_class']) == 3
  assert found['reference']['name'].endswith('data.npz train')

  # The same images from the file, against the same reference by hand.
  ref = tmp_path / 'ref.npz'
  data = f'--data={config.data.dir}'
  made = (data, '--size=2', '--channels=1', '--values=5', f'--out={ref}')
  call('reference', *made)
  again = tmp_path / 'again.json'
  call('evaluate', f'--images={npz}', f'--ref={ref}', f'--out={again}')
  again = json.loads(again.read_text())
  for name in ('fid', 'inception_score', 'precision', 'recall_by_class'):
    assert again[name] == found[name]
  assert again['intra_class_diversity'] == found['intra_class_diversity']
  assert again['fid'] > 0

  for args, words in (
    ([], '--workdir of a run, or --images'),
    (['--images=x'], '--images needs --ref'),
    (['--images=x', '--ref=y', '--guidance=2'], '--guidance is for images'),
    ([f'--workdir={workdir}', '--out=m.csv'], 'must end in .json'),
  ):
    with pytest.raises(UserError, match=words):
      call('evaluate', *args)
  for seed in (2**32, -1):
    with pytest.raises(flags.Error, match='at least 0 and at most'):
      call('evaluate', f'--workdir={workdir}', f'--seed={seed}')
  with pytest.raises(common.UsageError, match='--data needs --size'):
    call('reference', data, f'--out={ref}')


def test_folders_of_images_are_numbered_by_the_classes_of_a_run(
  call, workdir, config, tmp_path, capsys
):
  npz, run = tmp_path / 'samples.npz', tmp_path / 'run'
  out = tmp_path / 'm.json'
  num = (f'--workdir={workdir}', '--num=12', f'--cache={tmp_path / "cache"}')
  call('evaluate', *num, '--inception=x', f'--save={npz}', f'--out={out}')
  wanted = json.loads(out.read_text())['recall_by_class']
  names = ['pear', 'fig', 'apple']  # in another order than folders are sorted
  with np.load(npz) as found:
    for i, (picture, label) in enumerate(zip(found['arr_0'], found['arr_1'])):
      (tmp_path / 'images' / names[label]).mkdir(parents=True, exist_ok=True)
      name = tmp_path / 'images' / names[label] / f'{i}.png'
      Image.fromarray(picture).save(name)
  (tmp_path / 'images' / 'pear' / 'notes.txt').write_text('none of them')
  shutil.copytree(workdir, run)
  classes.save(run, names)
  args = (f'--images={tmp_path / "images"}', f'--out={out}')
  call('evaluate', *args, f'--workdir={run}')  # against the data of the run
  assert json.loads(out.read_text())['recall_by_class'] == wanted
  assert '1 file(s)' in capsys.readouterr().out

  # Or by the names that a reference holds.
  ref = tmp_path / 'ref.npz'
  real, _ = reference.of_run(config, run, Fake())
  reference.write(ref, dataclasses.replace(real, class_names=tuple(names)))
  call('evaluate', *args, f'--ref={ref}')
  assert json.loads(out.read_text())['recall_by_class'] == wanted
  (tmp_path / 'images' / 'fig').rename(tmp_path / 'images' / 'kiwi')
  with pytest.raises(MetricsError, match="no class 'kiwi'"):
    call('evaluate', *args, f'--ref={ref}')


def test_what_was_rejected_is_told(call, workdir, drawn, tmp_path, capsys):
  out, npz = tmp_path / 'm.json', tmp_path / 's.npz'
  args = (f'--workdir={workdir}', '--num=12', '--candidates=3', '--keep=2')
  call('evaluate', *args, f'--out={out}')
  text = 'kept 12 of 18 candidates (67%) by log-likelihood under their class'
  assert capsys.readouterr().out.count(text) == 1
  found = json.loads(out.read_text())['rejection']
  assert (found['by'], found['kept'], found['candidates']) == ('class', 12, 18)
  assert found['acceptance'] == 12 / 18 and found['kept_score'] > found['score']
  # As the images are kept, so is the report; and of some of them.
  before = len(drawn)
  call('evaluate', *args, f'--save={npz}', f'--out={out}')
  assert json.loads(out.read_text())['rejection'] == found
  assert len(drawn) == before


def test_images_alone_need_no_weights(
  call, workdir, tmp_path, capsys, monkeypatch
):
  monkeypatch.delenv(weights.VARIABLE, raising=False)
  path = tmp_path / 's.npz'
  call('evaluate', f'--workdir={workdir}', '--num=3', f'--save={path}')
  assert 'No metrics: they need --inception' in capsys.readouterr().out
  with np.load(path) as file:
    assert file['arr_0'].shape == (3, 2, 2, 3)


def test_sweep_draws_curves_from_what_is_kept(
  call, workdir, config, drawn, tmp_path, capsys
):
  out, plot = tmp_path / 'sweep.csv', tmp_path / 'new' / 'sweep.png'
  args = (f'--workdir={workdir}', '--num=12', f'--out={out}', f'--plot={plot}')
  call('sweep', *args, '--guidance=3,1.5', '--temperature=1.2')
  assert '2/2  guidance 3' in capsys.readouterr().out
  with open(out) as file:
    rows = list(csv.DictReader(file))
  assert [r['guidance'] for r in rows] == ['1.5', '3.0']
  assert [r['temperature'] for r in rows] == ['1.2', '1.2']
  assert rows[0]['fid'] != rows[1]['fid'] and float(rows[0]['recall']) <= 1
  with Image.open(plot) as image:
    assert np.asarray(image.convert('L')).std() > 10
  assert len(drawn) == 4
  call('sweep', *args, '--guidance=3', '--temperature=1.2')
  assert len(drawn) == 4  # nothing is generated again
  more = ('--seeds=2', '--interval=0,1', '--interval=0.5,1', '--resample=2')
  call('sweep', *args, '--guidance=3', '--candidates=2', '--keep=2', *more)
  with open(out) as file:
    rows = list(csv.DictReader(file))
  assert [(r['interval'], r['seed']) for r in rows] == [
    *(('0,1', '0'), ('0,1', '1')),
    *(('0.5,1', '0'), ('0.5,1', '1')),
  ]
  assert {(r['resample'], r['keep']) for r in rows} == {('2', '2')}
  assert {r['acceptance'] for r in rows} == {'1.0'}
  for r in rows:
    assert float(r['score']) == pytest.approx(float(r['kept_score']))
  weak = str(tmp_path / 'weak')
  checkpoint.save_params(weak, config, tiny.build(seed=1)[1])
  guides = ('--guide=none', f'--guide={weak}')
  before = len(drawn)
  call('sweep', *args, '--guidance=3,1', '--seed=7', *guides)
  with open(out) as file:
    rows = {(r['guidance'], r['guide']): r for r in csv.DictReader(file)}
  assert [*rows] == [(g, w) for g in ('1.0', '3.0') for w in ('none', weak)]
  one, auto = (rows['3.0', w]['fid'] for w in ('none', weak))
  assert one != auto
  assert rows['1.0', 'none']['fid'] == rows['1.0', weak]['fid'] != one
  assert len(drawn) == before + 3 * 2  # guidance 1 is one with any guide
  for alone in ('--guide=x', '--interval=0,0.5'):
    with pytest.raises(inputs.InputError, match='does nothing at guidance 1'):
      call('sweep', *args, '--guidance=1', alone)
    with pytest.raises(inputs.InputError, match='does nothing at guidance 1'):
      call('evaluate', f'--workdir={workdir}', '--num=12', alone)
  with pytest.raises(common.UsageError, match='must be whole numbers'):
    call('sweep', *args, '--candidates=1.5')
  with pytest.raises(inputs.InputError, match="must be 'random' or"):
    call('sweep', *args, '--order=best')
  with pytest.raises(common.UsageError, match='must be numbers'):
    call('sweep', *args, '--guidance=3,x')
  with pytest.raises(UserError, match='x.bmp must end in .png'):
    call('sweep', *args, '--plot=x.bmp')
  with pytest.raises(inputs.InputError, match='temperature=-1.0 must be'):
    call('sweep', *args, '--temperature=1,-1')
