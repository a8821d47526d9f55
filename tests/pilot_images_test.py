"""Pilots on images: verdicts, leaks, tasks, and what is measured of images."""

import dataclasses
import re

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
)
from tests import commandline

SIDE, VALUES = 8, 17


# A model that is fitted at once: each pixel is near the one above it.


@dataclasses.dataclass
class Above:
  """Learns how a pixel differs from the one above; draws real images anew."""

  train: np.ndarray
  noise: float = 0.0

  def __post_init__(self):
    counts = np.bincount(self._steps(self.train).ravel(), minlength=2 * VALUES)
    self.bits = -np.log2((counts + 0.1) / (counts + 0.1).sum())

  def _steps(self, x):
    x = x.astype(int)
    return np.diff(x, axis=1, prepend=x[:, :1] * 0 + 8) + VALUES

  def log_prob(self, x, label):
    assert label == 0
    return -self.bits[self._steps(x)].sum((1, 2, 3)) * np.log(2)

  def sample(self, labels, *, num, seed, guidance):
    return waves(num, seed=1000 + seed)

  def edit(self, x, mask, labels, *, seed, guidance):
    half = x.shape[1] // 2
    out = x.copy()
    out[:, half:] = x[:, half - 1 : half]  # the last row that is known
    return out[:, None]


class Fakes(images.Models):
  def __init__(self):
    self.fits, self.kept = [], {}

  def fitting(self, config, x):
    yield Progress('fitting', 1, 2)
    self.fits.append((config.model.sizes, len(x), config.seed))
    yield Progress('fitting', 2, 2)
    return Above(x), {'level_0': np.array([2.0, 1.0])}

  def save(self, folder, model):
    self.kept[folder] = model

  def load(self, folder):
    return self.kept.get(folder)

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
  found['data']['images_per_week'] = 1000.0
  found['gates']['least_judged'] = 20.0
  for key, value in changes.items():
    section = next(s for s in ('task', 'data', 'gates') if key in found[s])
    found[section][key] = value
  text = settings.text(found, image_settings.SECTIONS)
  (folder / settings.FILE).write_text(text)
  return run.open_pilot(str(folder), Fakes())


def run_all(pilot, anyway=False):
  done = {}
  for name in run.STAGES:
    done[name] = run.run_stage(pilot, name, follow=result_of, anyway=anyway)
    if done[name].verdict != gates.GO and not anyway:
      break
  return done


@pytest.fixture(scope='module', autouse=True)
def small_forests():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(image_simple, 'TREES', 5)
    yield


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  pilot = make(tmp_path_factory.mktemp('images'), waves(600))
  return pilot, run_all(pilot, anyway=True)


# Verdicts.


def test_images_that_a_model_can_learn(good):
  pilot, done = good
  verdicts = {name: stage.verdict for name, stage in done.items()}
  # The stand-in sees no more in levels than flat, and equals it.
  assert verdicts['data'] == verdicts['module'] == gates.GO
  assert verdicts['full'] == gates.GO, done['full']
  found = {g.name: g.found for g in done['full'].gates}
  assert found['distance'].low < 1.2 and 0.7 < found['diversity'].value < 1.3
  assert found['drawn_copies'].value == 0
  assert (
    done['composition'].facts['forest']
    < (done['composition'].facts['histogram'])
  )
  assert done['composition'].facts['worth_1'] == pytest.approx(0.4)
  sizes = {fit[0] for fit in pilot.models.fits}
  assert sizes == {(8, 1), (4, 1), (8, 4, 1)}
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
  page = report.page(report.Report(pilot, done), words, 'en')
  assert 'share of the anomalies found' in page


def test_completion_beats_the_nearest_image(tmp_path):
  pilot = make(tmp_path, waves(600), kind='completion')
  done = run_all(pilot, anyway=True)
  for name, gate in (('full', 'completion'), ('shadow', 'shadow_completion')):
    found = {g.name: g for g in done[name].gates}[gate]
    assert found.verdict == gates.GO and 0.5 < found.found.value <= 1


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


def test_distance_and_diversity_of_features():
  rng = np.random.default_rng(0)
  train, held, same = (rng.normal(size=(500, 4)) for _ in range(3))
  distance, spread = image_measures.against(same, held, train)
  assert distance.mean() < 2 and spread.mean() == pytest.approx(1, abs=0.15)
  distance, spread = image_measures.against(0.2 * same + 3, held, train)
  assert distance.mean() > 20 and spread.mean() < 0.1


def test_difference_by_welch():
  found = image_measures.difference(np.array([1.0, 2, 3]), np.array([1.0, 1.1]))
  assert found.value == pytest.approx(0.95) and found.low < 0 < found.high
  assert image_measures.difference(np.array([1.0]), np.array([1.0])) is None


def test_a_real_model_is_fitted_kept_and_draws(tmp_path):
  pilot = make(tmp_path, waves(60), least_judged=2.0)
  pilot = dataclasses.replace(pilot, models=images.Models())
  one = result_of(pilot.fitted(4, 2, 2, 0, 1.0, 2))
  assert one['bits'].shape == (len(pilot.data.held),)
  assert one['drawn'].shape == (2, 4, 4, 1)
  assert one['gradient_0'].shape == (2,) and (one['gradient_0'] > 0).all()
  config = pilot.config(4, 2, 2)
  model, _ = result_of(
    pilot.models.fitting(config, pilot.data.train[:, :4, :4])
  )
  pilot.models.save(str(tmp_path / 'run'), model)
  again = pilot.models.load(str(tmp_path / 'run'))
  x = pilot.data.held[:, :4, :4]
  a, b = (image_measures.bits(m, x) for m in (model, again))
  np.testing.assert_allclose(a, b, rtol=1e-4)
  assert pilot.models.load(str(tmp_path / 'none')) is None
