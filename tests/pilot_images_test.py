"""Pilots on images: verdicts, leaks, tasks, and what is measured of images."""

import collections
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import re
import signal

import numpy as np
from PIL import Image
import pytest

from fractal_jax.inference.progress import Progress, result_of
from fractal_jax.pilot import (
  gates,
  image_measures,
  image_settings,
  image_simple,
  images,
  report,
  run,
  settings,
  texts,
  work,
)
from tests import commandline

SIDE, VALUES = 8, 17


# A model that is fitted at once: each pixel is near those above it.


@dataclasses.dataclass
class Above:
  """Learns how a pixel differs from the least above; draws real images anew."""

  train: np.ndarray
  noise: float = 0.0

  def __post_init__(self):
    steps = self._steps(self.train)
    self.bits = np.stack([self._of(x) for x in (steps[:, :1], steps[:, 1:])])

  def _of(self, steps):
    counts = np.bincount(steps.ravel(), minlength=2 * VALUES) + 0.1
    return -np.log2(counts / counts.sum())

  def _steps(self, x):
    x = x.astype(int)
    least = np.minimum.accumulate(x, 1)[:, :-1]
    return x - np.concatenate([x[:, :1] * 0 + 8, least], 1) + VALUES

  def log_prob(self, x, label):
    assert label == 0
    row = np.minimum(np.arange(x.shape[1]), 1)[:, None, None]
    return -self.bits[row, self._steps(x)].sum((1, 2, 3)) * np.log(2)

  def sample(self, labels, *, num, seed, guidance):
    return waves(num, seed=1000 + seed)

  def edit(self, x, mask, labels, *, seed, guidance):
    half = x.shape[1] // 2
    out = x.copy()
    out[:, half:] = x[:, half - 1 : half]  # the last row that is known
    return out[:, None]


@dataclasses.dataclass
class Fakes(images.Models):
  """Notes what is fitted in a file, which outlives a process."""

  notes: pathlib.Path

  def fits(self):
    return collections.Counter(self.notes.read_text().splitlines())

  def fitting(self, config, x):
    yield Progress('fitting', 1, 2)
    c = config
    with open(self.notes, 'a') as file:
      m, rest = c.model, (len(x), c.optim.steps, c.seed)
      print(*zip(m.kinds, m.sizes), '|', *rest, file=file)
    yield Progress('fitting', 2, 2)
    return Above(x), {'level_0': np.array([2.0, 1.0])}

  def save(self, folder, model):
    def write(part):
      pathlib.Path(part).mkdir()
      with open(pathlib.Path(part) / 'model.npz', 'wb') as file:
        np.savez(file, train=model.train)

    work.keep_folder(folder, write)

  def load(self, folder):
    path = pathlib.Path(folder) / 'model.npz'
    return Above(np.load(path)['train']) if path.exists() else None

  def worth(self, model, x):
    return np.array([0.2, 0.4])


def waves(n, seed=0):
  """Columns of any shade, whose rows hardly differ: uint8 [n, 8, 8, 1]."""
  rng = np.random.default_rng(seed)
  x = rng.integers(2, VALUES - 2, (n, 1, SIDE, 1)).repeat(SIDE, 1)
  return (x + rng.integers(0, 2, x.shape)).astype(np.uint8)


def noise(n, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, VALUES, (n, SIDE, SIDE, 1)).astype(np.uint8)


def make(folder, x, labels=None, names=('a', 'b'), split=None, **changes):
  """A pilot of an .npz file; changes are of any section."""
  labels = np.arange(len(x)) % 2 if labels is None else labels
  extra = {} if split is None else {'split': split}
  np.savez(
    folder / 'x.npz', images=x, labels=labels, label_names=names, **extra
  )
  found = image_settings.propose(str(folder / 'x.npz'), str(folder), None)
  found['task'] |= dict(small_steps=2, steps=2, seeds=2, samples=80)
  found['data']['images_per_week'] = 300.0
  found['gates']['least_judged'] = 20.0
  for key, value in changes.items():
    section = next(s for s in ('task', 'data', 'gates') if key in found[s])
    found[section][key] = value
  text = settings.text(found, image_settings.SECTIONS)
  (folder / settings.FILE).write_text(text)
  return opened(folder)


def opened(folder):
  return run.open_pilot(str(folder), Fakes(pathlib.Path(folder) / 'fits'))


def run_all(pilot, anyway=False):
  done = {}
  for name in run.STAGES:
    done[name] = run.run_stage(pilot, name, follow=result_of, anyway=anyway)
    if done[name].verdict != gates.GO and not anyway:
      break
  return done


FEW = 5  # trees of a forest


@pytest.fixture(scope='module', autouse=True)
def small_forests():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(image_simple, 'TREES', FEW)
    yield


EASY = dict(split=['train'] * 400 + ['test'] * 200, steps=3)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  """A pilot that must be GO, all of it run."""
  pilot = make(tmp_path_factory.mktemp('images'), waves(600), **EASY)
  return pilot, run_all(pilot)


# Verdicts.


def test_images_that_a_model_can_learn(good):
  pilot, done = good
  verdicts = {name: stage.verdict for name, stage in done.items()}
  assert verdicts == dict.fromkeys(run.STAGES, gates.GO), done
  assert run.verdict(done) == gates.GO
  found = {g.name: g.found for g in done['full'].gates}
  assert found['distance'].low < 1 and found['drawn_copies'].value == 0
  facts = done['composition'].facts
  assert facts['together'] < facts['forest'] < facts['histogram']
  assert done['composition'].facts['worth_1'] == pytest.approx(0.4)
  kinds = {line.split(' | ')[0] for line in pilot.models.fits()}
  assert kinds == {
    "('ar', 8) ('independent', 4) ('pixel', 1)",  # level 0 alone
    "('ar', 4) ('pixel', 1)",  # level 1 alone
    "('ar', 8) ('ar', 4) ('pixel', 1)",
    "('ar', 8) ('pixel', 1)",  # flat
  }
  assert {g.about for g in done['module'].gates} == {0, 1}


def test_noise_is_no_go(tmp_path):
  done = run_all(make(tmp_path, noise(600)))
  assert list(done) == ['data', 'module']
  assert done['module'].verdict == gates.NO_GO


def test_few_are_more_data(tmp_path):
  done = run_all(make(tmp_path, waves(40), least_judged=2.0))
  assert list(done) == ['data'] and done['data'].verdict == gates.MORE_DATA


def test_a_leak_between_the_splits_of_a_file_is_found(tmp_path):
  x = waves(600)
  split = np.array(['train'] * 500 + ['test'] * 100)
  x[500:520] = x[100:120]
  pilot = make(tmp_path, x, split=split)
  done = run_all(pilot)
  by_name = {g.name: g for g in done['data'].gates}
  assert by_name['most_copies'].found.value == pytest.approx(0.2)
  assert run.verdict(done) == gates.NO_GO
  # A split at random keeps near copies on one side.
  (tmp_path / 'random').mkdir()
  again = run_all(make(tmp_path / 'random', x))
  assert again['data'].verdict == gates.GO


def test_anomalies_are_found_and_not_learnt_from(tmp_path):
  x = np.concatenate([waves(600), noise(40)])
  labels = np.array([0] * 600 + [1] * 40)
  pilot = make(tmp_path, x, labels, names=('good', 'defect'))
  assert pilot.settings.data['anomalous'] == ['defect']
  assert pilot.settings.task['kind'] == 'anomalies'
  assert len(pilot.data.anomalies) == 40 and pilot.learnt < 600
  done = run_all(pilot, anyway=True)
  for name, prefix in (('full', ''), ('shadow', 'shadow_')):
    found = {g.name: g for g in done[name].gates}
    assert found[f'{prefix}found'].found.value == 1
    assert found[f'{prefix}found'].verdict == gates.GO
  assert done['full'].facts['incidents'] == 20
  words = texts.texts('en', pilot.KIND)
  page = report.page(report.Content(pilot, done), words, 'en')
  assert 'share of the anomalies found' in page


def test_completion_beats_the_nearest_image(tmp_path):
  pilot = make(tmp_path, waves(600), kind='completion')
  done = run_all(pilot, anyway=True)
  for name, gate in (('full', 'completion'), ('shadow', 'shadow_completion')):
    found = {g.name: g for g in done[name].gates}[gate]
    assert found.verdict == gates.GO and 0.5 < found.found.value <= 1


# Killed, and gone on.


def run_until(folder, name, events):
  """Runs a stage in a process that is killed at the event of that number.

  An event is a step of progress, or a file that is half written.
  """
  left, savez = [events], np.savez
  image_simple.TREES = FEW

  def event():
    left[0] -= 1
    if not left[0]:
      os.kill(os.getpid(), signal.SIGKILL)

  def write(file, **arrays):
    file.write(b'PK')
    file.flush()
    event()
    file.seek(0)
    savez(file, **arrays)

  def follow(job):
    while True:
      try:
        next(job)
      except StopIteration as end:
        return end.value
      event()

  np.savez = write
  run.run_stage(opened(folder), name, follow=follow)


def test_killed_in_every_stage_it_goes_on(tmp_path, good):
  make(tmp_path, waves(600), **EASY)
  # Of a process that has imported this file, and has no threads.
  server = multiprocessing.get_context('forkserver')
  server.set_forkserver_preload([__name__])
  kills = {}
  for name in run.STAGES:
    for events in itertools.count(1):
      one = server.Process(target=run_until, args=(tmp_path, name, events))
      one.start()
      one.join()
      if not one.exitcode:
        break
      assert one.exitcode == -signal.SIGKILL
      assert not (tmp_path / 'stages' / f'{name}.json').exists()
    kills[name] = events - 1
  assert min(kills.values()) > 0, kills
  pilot, whole = good
  done = run.load(opened(tmp_path))
  drop = lambda found: [g for g in found if g.name != 'most_milliseconds']
  for name in run.STAGES:
    assert drop(done[name].gates) == drop(whole[name].gates)
  # What was kept is not fitted again: a model is begun three times at most,
  # once for each of its events.
  mine, other = opened(tmp_path).models.fits(), pilot.models.fits()
  assert mine.keys() == other.keys() and max(other.values()) == 1
  assert 1 < max(mine.values()) <= 3


# Reports.


def test_reports_of_images(good):
  pilot, _ = good
  for language, word in (
    ('en', 'Images that the model made up.'),
    ('ja', '画像'),
  ):
    page = (pilot.path('') / report.write(pilot, language)).read_text()
    assert word in page and '@images' not in page
  read = re.sub(r'<style>.*?</style>|<[^>]*>', '\n', page, flags=re.S)
  found = re.findall(r'[A-Za-z]{2,}(?:[ ,.:]+[A-Za-z]{2,}){1,}', read)
  assert set(found) <= {'MORE DATA'}


def test_a_folder_by_the_command(tmp_path):
  folder = tmp_path / 'photos'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(20):
    x = rng.integers(0, 256, (12, 9, 3)).astype(np.uint8)
    Image.fromarray(x).save(folder / f'{i}.png')
  (folder / 'bad.png').write_bytes(b'no image')
  out = tmp_path / 'pilot'
  flags = ('pilot', f'--data={folder}', f'--out={out}', '--size=8')
  with commandline.flags_of(*flags) as job:
    job.run('init')
  with commandline.flags_of('pilot') as job:
    job.run('check', str(out))
  pilot = run.open_pilot(str(out))
  assert pilot.data.train.shape == (18, 8, 8, 3)
  assert len(pilot.data.held) + len(pilot.data.shadow) == 2
  assert pilot.data.left_out == pytest.approx(1 / 21)
  assert pilot.settings.data['source'] == 'folder'


def test_problems_in_words(tmp_path):
  with pytest.raises(settings.PilotError) as error:
    make(tmp_path, waves(100), anomalous=['z'], samples=3)
  assert "data.anomalous='z' is no class: these are a, b." in str(error.value)
  assert 'task.samples=3 images say little' in str(error.value)
  with pytest.raises(settings.PilotError, match='names every class'):
    make(tmp_path, waves(100), anomalous=['a', 'b'])
  with pytest.raises(settings.PilotError, match='images_per_week is not'):
    make(tmp_path, waves(100), kind='anomalies', images_per_week=-1.0)
  with pytest.raises(settings.PilotError, match='20 false alarms per week.*7'):
    make(tmp_path, waves(100), kind='anomalies', images_per_week=1000.0)


# Measures.


def test_patches_are_squares_in_raster_order():
  x = np.arange(16).reshape(1, 4, 4, 1)
  found = image_measures.patches(x, 2)
  assert found[1].ravel().tolist() == [2, 3, 6, 7]
  assert found[2].ravel().tolist() == [8, 9, 12, 13]


def test_simple_models_of_images():
  train, held = noise(300), noise(50, seed=1)
  plain = image_simple.histogram(train, held, VALUES).mean()
  assert plain == pytest.approx(np.log2(VALUES), abs=0.1)
  colours = waves(200, seed=2).repeat(3, -1)  # later channels are known
  bits = image_simple.forest(colours[:150], colours[150:], VALUES).mean()
  alone = image_simple.forest(colours[:150, ..., :1], colours[150:, ..., :1],
                              VALUES).mean()  # fmt: skip
  assert bits < 0.7 * alone


def test_distance_precision_and_recall_of_features():
  rng = np.random.default_rng(0)
  train, held, same = (rng.normal(size=(300, 16)) for _ in range(3))
  far = lambda x: gates.mean(image_measures.distance(x, held, train))
  less = lambda pair: pair[0].mean() - pair[1].mean()
  strange = lambda x: less(image_measures.strange(x, held, train))
  missed = lambda x: less(image_measures.missed(x, held, train))
  assert far(held).value == pytest.approx(1) and far(held).high < 1.1
  good = far(same)
  assert good.low < 1 < good.high and good.high < 2
  assert abs(strange(same)) < 0.1 and abs(missed(same)) < 0.1
  # All alike: nothing is strange, and most is missed.
  assert far(0.2 * same).low > 2
  assert strange(0.2 * same) < 0.05 and missed(0.2 * same) > 0.5
  # Too wide: the other way round.
  assert strange(4 * same) > 0.5 and missed(4 * same) < 0.2


def test_precision_sees_what_means_and_covariances_do_not():
  rng = np.random.default_rng(0)
  train, held, one, two = (
    np.concatenate([x, x**2], 1) for x in rng.normal(size=(4, 300, 4))
  )
  mixed = np.concatenate([one[:, :4], two[:, 4:]], 1)  # halves do not fit
  assert gates.mean(image_measures.distance(mixed, held, train)).value < 1.5
  for drawn, fits in ((one, True), (mixed, False)):
    found = gates.more(*image_measures.strange(drawn, held, train))
    assert found.low < 0 < found.high if fits else found.low > 0.3


def test_difference_by_welch():
  found = image_measures.difference(np.array([1.0, 2, 3]), np.array([1.0, 1.1]))
  assert found.value == pytest.approx(0.95) and found.low < 0 < found.high
  assert image_measures.difference(np.array([1.0]), np.array([1.0])) is None


def test_a_real_model_is_fitted_and_kept(tmp_path):
  pilot, models = make(tmp_path, waves(60), least_judged=2.0), images.Models()
  config = pilot.config(4, 2, 2)
  model, norms = result_of(models.fitting(config, pilot.data.train[:, :4, :4]))
  assert norms['level_0'].shape == (2,) and (norms['level_0'] > 0).all()
  models.save(str(tmp_path / 'run'), model)
  again = models.load(str(tmp_path / 'run'))
  x = pilot.data.held[:, :4, :4]
  a, b = (image_measures.bits(m, x) for m in (model, again))
  assert a.shape == (len(x),)
  np.testing.assert_allclose(a, b, rtol=1e-4)
  assert models.load(str(tmp_path / 'none')) is None
