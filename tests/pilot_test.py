"""Pilots: what can't work, what must, what is too little; and reports."""

import collections
import dataclasses
import json
import re
import string

import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import KNeighborsRegressor

from fractal_jax.inference.progress import Progress, result_of
from fractal_jax.pilot import (
  gates,
  report,
  roi,
  run,
  settings,
  simple,
  stages,
  table_data,
  table_settings,
  tables,
  texts,
  work,
)
from fractal_jax.pilot.gates import Gate, Interval
from fractal_jax.series import linear, quantiser, scores
from fractal_jax.series.detector import FractalDetector
from tests import commandline

BACK = 8  # rows that the stand-in for a model looks at
PERIOD = 20
COSTS = dict(
  incident=10000, incidents_per_year=12, preventable=0.5, false_alarm=50,
  hour_of_work=80, setup_hours=100, upkeep_hours=40, hour_of_hardware=0.1,
  hardware_hours=8760,
)  # fmt: skip


# A model that is fitted at once: the mean of what followed similar rows.


class Neighbours(FractalDetector):
  def fitting(self, X):
    yield Progress('fitting', 1, 2)
    first = len(X) - int(len(X) * self.held_out)
    self.quantiser_ = quantiser.fit([X[:first]], 256)
    past, now = self._split(X[:first])
    self.model = KNeighborsRegressor(20 + self.seed).fit(past, now)
    self.deviation = (now - self.model.predict(past)).std(0)
    self.gradients_ = {'level_0': np.array([3.0, 1.0, 1.0, 2.0])}
    yield Progress('fitting', 2, 2)
    return self

  def scoring(self, X):
    yield Progress('scoring', 1, 1)
    padded = np.concatenate([X[:1].repeat(BACK, 0), X])
    mean = self.model.predict(self._split(padded)[0]).reshape(X.shape)
    found = linear.Prediction(mean, self.deviation)
    bits = found.bits(*self.quantiser_.of(0), X)
    z = (X - mean) / self.deviation
    rest = [bits, stats.norm.cdf(z), mean, mean]
    return scores.PointScores(bits, z**2, *rest, np.zeros(1))

  def _split(self, X):
    past = np.lib.stride_tricks.sliding_window_view(X[:, 0], BACK)[:-1]
    return past, X[BACK:]


class Fakes(tables.Models):
  """Counts what is fitted; keeps detectors in memory."""

  def __init__(self):
    self.fits, self.kept = collections.Counter(), {}

  def new(self, **how):
    self.fits[tuple(sorted(how.items()))] += 1
    return Neighbours(**how)

  def save(self, folder, detector, name):
    self.kept[folder] = detector

  def load(self, folder):
    return self.kept.get(folder)

  def draw(self, detector, number):
    return np.zeros((number, detector.window, 1))

  def worth(self, detector, rows):
    return np.array([0.5, 1.0])


def line(rows, seed=0, noise=0.05):
  """A clean line of period 20 that no few rows determine linearly."""
  t = np.arange(rows) % PERIOD
  shape = np.where(t < 4, 1.0, np.where(t < 13, -0.3 * t / 13, 0.4))
  return shape + np.random.default_rng(seed).normal(0, noise, rows)


FAULTS = [*range(2450, 3150, 90), *range(3250, 3950, 90)]  # 8 and 8


def planted(values):
  """The same with faults of ten rows, and their labels."""
  values, labels = values.copy(), np.zeros(len(values), int)
  for row in FAULTS:
    values[row : row + 10] += np.linspace(1, 2, 10)
    labels[row : row + 10] = 1
  return values, labels


def make(folder, values, labels=None, train=2400, shadow=800, **changes):
  """A pilot of a file; changes are of any section."""
  data = folder / 'line.npz'
  extra = {} if labels is None else {'labels': labels}
  np.savez(data, values=values, **extra)
  found = table_settings.propose(str(data))
  found['data'] |= dict(train_rows=train, shadow_rows=shadow, rows_per_week=400)
  found['task'] |= dict(window=16, smooth=8, small_steps=2, seeds=2, samples=2)
  found['costs'] |= COSTS
  for key, value in changes.items():
    (section,) = (
      s for s, keys in table_settings.SECTIONS.items() if key in keys
    )
    found[section][key] = value
  (folder / settings.FILE).write_text(
    settings.text(found, table_settings.SECTIONS)
  )
  return run.open_pilot(str(folder), Fakes())


def run_all(pilot, follow=result_of, anyway=False):
  done = {}
  for name in run.STAGES:
    done[name] = run.run_stage(pilot, name, follow=follow, anyway=anyway)
    if done[name].verdict != gates.GO and not anyway:
      break
  return done


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  """A pilot that must be GO, all of it run."""
  pilot = make(
    tmp_path_factory.mktemp('good'), *planted(line(4000)), question='配管'
  )
  run_all(pilot)
  return pilot


# Verdicts.


def test_a_clean_periodic_line_with_planted_faults_is_go(good):
  done = run.load(good)
  verdicts = {name: stage.verdict for name, stage in done.items()}
  assert verdicts == dict.fromkeys(run.STAGES, gates.GO), done
  assert run.verdict(done) == gates.GO
  assert done['full'].facts['incidents_found'] == 8
  found = {g.name: g for g in done['shadow'].gates}
  assert found['shadow_found'].found.value == 1
  assert 0 <= found['most_delay'].found.value < 10


def test_white_noise_is_no_go(tmp_path):
  noise = np.random.default_rng(0).normal(0, 1, 4000)
  done = run_all(make(tmp_path, *planted(noise)))
  assert list(done) == ['data', 'module']
  assert done['data'].verdict == gates.GO
  assert run.verdict(done) == gates.NO_GO


def test_too_small_is_more_data(tmp_path):
  pilot = make(tmp_path, line(300), train=180, shadow=60)
  done = run_all(pilot)
  assert list(done) == ['data'] and run.verdict(done) == gates.MORE_DATA
  with pytest.raises(settings.PilotError, match='data is MORE DATA.*--anyway'):
    run.run_stage(pilot, 'module', follow=result_of)


def test_a_leak_is_found(tmp_path):
  values, labels = planted(line(4000))
  assert table_data.leak(values[:, None], 2400) == 0
  values[3200:3600] = values[100:500]
  assert table_data.leak(values[:, None], 2400) == pytest.approx(0.25, abs=0.05)
  done = run_all(make(tmp_path, values, labels))
  assert list(done) == ['data'] and run.verdict(done) == gates.NO_GO


def test_without_labels_incidents_are_not_known(tmp_path):
  done = run_all(make(tmp_path, line(4000)), anyway=True)
  by_name = {g.name: g for s in done.values() for g in s.gates}
  assert by_name['found'].found is None
  assert by_name['weekly_false_alarms'].verdict == gates.GO
  assert run.verdict(done) == gates.MORE_DATA


# Killed, and gone on.


class Killed(BaseException):
  pass


def test_killed_in_every_stage_it_goes_on(tmp_path, good):
  pilot = make(tmp_path, *planted(line(4000)), question='配管')
  for name in run.STAGES:
    left = [1]

    def until(job, left=left):
      while True:
        try:
          next(job)
        except StopIteration as end:
          return end.value
        left[0] -= 1
        if left[0] < 0:
          raise Killed

    number = 0
    while True:  # killed after one step more each time
      number += 3
      left[0] = number
      try:
        run.run_stage(pilot, name, follow=until)
        break
      except Killed:
        assert name not in run.load(pilot)
  done, whole = run.load(pilot), run.load(good)
  for name in run.STAGES:
    mine, other = done[name].gates, whole[name].gates
    drop = lambda found: [g for g in found if g.name != 'most_milliseconds']
    assert drop(mine) == drop(other)
  # What was kept is not fitted again: a model is begun twice at most.
  assert set(pilot.models.fits.values()) == {1, 2}
  assert set(good.models.fits.values()) == {1}


def test_a_stage_that_ran_is_not_run_again(good):
  before = sum(good.models.fits.values())
  run_all(good)
  assert sum(good.models.fits.values()) == before
  assert run.known_price(good, 'module') is None  # no speed was measured
  seconds = run.price(good, 'composition')
  assert seconds > 0 and run.known_price(good, 'composition') == seconds


# Gates.


@pytest.mark.parametrize(
  'found, least, mends, verdict',
  [
    (Interval(0.7, 0.6, 0.8), True, False, gates.GO),
    (Interval(0.5, 0.4, 0.6), True, False, gates.MORE_DATA),
    (Interval(0.3, 0.2, 0.4), True, False, gates.NO_GO),
    (Interval(0.3, 0.2, 0.4), True, True, gates.MORE_DATA),
    (Interval(0.3, 0.2, 0.4), False, False, gates.GO),
    (Interval(0.7, 0.4, 0.8), False, False, gates.MORE_DATA),
    (Interval(float('nan'), float('nan'), 1.0), False, False, gates.MORE_DATA),
    (None, True, False, gates.MORE_DATA),
  ],
)
def test_gates(found, least, mends, verdict):
  assert Gate('found', 0.5, found, least, mends).verdict == verdict


def test_intervals():
  assert gates.share(0, 0) is None
  eight = gates.share(8, 8)
  assert eight.high == 1 and eight.low == pytest.approx(0.6756, abs=1e-4)
  none = gates.rate(0, 2.0)
  assert none.low == 0 and none.high == pytest.approx(3.6889 / 2, abs=1e-4)
  # Student's interval of 1, 2, 3: 2 -+ 4.303 * 1 / sqrt(3).
  three = gates.mean(np.array([1.0, 2, 3]))
  assert three.high - three.value == pytest.approx(2.484, abs=1e-3)
  # Seeds that differ widen it.
  same = gates.mean(np.array([[1.0, 2, 3], [1.0, 2, 3]]))
  apart = gates.mean(np.array([[0.0, 1, 2], [2.0, 3, 4]]))
  assert same == three and apart.value == 2 and apart.high > three.high
  assert gates.mean(np.array([1.0])) is None


def test_simple_models():
  values = np.cumsum(np.random.default_rng(0).normal(0, 1, (900, 1)), 0)
  bins = quantiser.fit([values[:600]], 256, margin=1.0)
  mean = {
    'last': simple.last_value(values, 600, bins)[600:].mean(),
    'polynomial': simple.polynomial(values, 600, bins, 16)[600:].mean(),
    'histogram': simple.histogram(values, 600, bins)[600:].mean(),
  }
  assert mean['last'] < mean['polynomial'] < mean['histogram']
  _, (width,) = bins.of(0)
  best = 0.5 * np.log2(2 * np.pi * np.e) - np.log2(width)
  assert mean['last'] == pytest.approx(best, abs=0.2)


def test_stability_of_gradients():
  norms = np.array([[9.0, 9, 1, 3, 1, 1], [9, 9, 9, 3, 3, 3]])
  assert stages.stability(norms) == {
    'gradient': pytest.approx(2),
    'gradient_spread': pytest.approx(np.sqrt(2) / 2),
    'gradient_peak': pytest.approx(3),
  }


def test_rows_enough():
  assert stages.rows_enough(1000, [3.0, 2.5, 2.495]) == 1000
  assert stages.rows_enough(1000, [3.0, 2.9, 2.7]) is None
  # 0.08, and half as much each time: 0.01 after three doublings.
  assert stages.rows_enough(1000, [3.0, 2.84, 2.76]) == 8000


# Returns.


def test_returns_against_a_table_made_by_hand():
  found = roi.roi(COSTS, Interval(0.75, 0.5, 0.9), Interval(2, 1, 4))
  #         saved   alarms  upkeep  setup   yearly  first
  table = {
    'low': (30000, 10400, 4076, 8000, 15524, 7524),
    'middle': (45000, 5200, 4076, 8000, 35724, 27724),
    'high': (54000, 2600, 4076, 8000, 47324, 39324),
  }
  for name, row in table.items():
    c = getattr(found, name)
    assert (
      c.saved, c.alarms, c.upkeep, c.setup, c.yearly, c.first_year
    ) == pytest.approx(row)  # fmt: skip
  assert found.middle.months == pytest.approx(12 * 8000 / 35724)
  assert found.break_even == pytest.approx(9276 / 60000)
  changes = dict(found.sensitivity)
  assert changes['incident'] == pytest.approx(9000)
  assert changes['weekly'] == pytest.approx(-1040)
  assert 'setup_hours' not in changes  # a year does not depend on it
  unset = COSTS | {'incident': settings.UNSET}
  assert roi.roi(unset, Interval(1, 1, 1), Interval(0, 0, 0)) is None
  poor = COSTS | {'incident': 1.0}
  found = roi.roi(poor, Interval(0.7, 0.5, 0.9), Interval(2, 1, 4))
  assert found.break_even is None and found.middle.months is None


# Reports.


def words_of(page: str) -> str:
  """What a reader of a page reads."""
  page = re.sub(r'<style>.*?</style>', '', page, flags=re.S)
  return re.sub(r'<[^>]*>', '\n', page)


def test_the_japanese_report_has_no_english_sentence(good):
  page = (good.path('') / report.write(good, 'ja')).read_text()
  read = words_of(page)
  assert '採用可' in read and '投資効果' in read and '用語' in read
  found = re.findall(r'[A-Za-z]{2,}(?:[ ,.:]+[A-Za-z]{2,}){1,}', read)
  assert set(found) <= {'MORE DATA'}
  english = words_of((good.path('') / report.write(good, 'en')).read_text())
  assert 'Verdict: GO' in english and 'Every stage passed' in english
  assert len(re.findall('<img', page)) == 8


def test_languages_have_the_same_texts():
  fields = lambda text: {x[1] for x in string.Formatter().parse(text) if x[1]}
  english = texts.texts('en')
  for language in texts.languages():
    other = texts.texts(language)
    assert other.keys() == english.keys()
    for key, text in other.items():
      assert fields(text) == fields(english[key]), (language, key)
  for kind in run.PILOTS.values():
    names = {f'gate {k}' for k in kind.SECTIONS['gates']}
    assert names <= texts.texts('en', kind.KIND).keys()
  with pytest.raises(texts.LanguageError, match='en, ja'):
    texts.texts('tlh')


def test_json_and_gates_that_were_changed(good):
  path = good.path(settings.FILE)
  text = path.read_text()
  try:
    path.write_text(text.replace('\nfound = 0.5', '\nfound = 0.99'))
    later = run.open_pilot(good.folder, good.models)
    done = run.load(later)
    assert run.changed(later, done['full']) == [('found', 0.5, 0.99)]
    assert done['full'].verdict == gates.GO  # by the gate that was fixed before
    page = report.page(report.Content(later, done), texts.texts('en'), 'en')
    assert 'was changed after the stage ran: 50% then, 99% now' in page
    assert good.settings.hash in page and later.settings.hash in page
  finally:
    path.write_text(text)
  report.write(good, 'en')
  found = json.loads(good.path('report.json').read_text())
  assert found['verdict'] == 'GO' and len(found['stages']) == 5
  assert found['stages']['full']['gates'][0]['verdict'] == 'GO'
  assert found['roi']['middle']['saved'] == pytest.approx(60000)


# Settings and the command.


def test_problems_in_words(tmp_path):
  values, labels = planted(line(4000))
  with pytest.raises(settings.PilotError) as error:
    make(
      tmp_path, values, labels, train=2500, shadow=1495, window=20,
      rows_per_week=-1.0,
    )  # fmt: skip
  for words in (
    'rows_per_week is not filled in',
    'window=20 must be a multiple of 8',
    'leave 5 of 4000 rows',
    'row 2452 of the file is an incident',
  ):
    assert words in str(error.value)
  path = tmp_path / settings.FILE
  path.write_text(path.read_text().replace('seeds = 2', 'seedz = 0'))
  with pytest.raises(settings.PilotError) as error:
    run.open_pilot(str(tmp_path))
  assert 'no section or key task.seedz' in str(error.value)
  assert 'task.seeds is missing' in str(error.value)


def test_the_command(tmp_path, capsys):
  file = tmp_path / 'line.csv'
  text = '\n'.join(['a', *(f'{x:.6f}' for x in line(300))])
  file.write_text(text)
  folder = tmp_path / 'pilot'
  with commandline.flags_of(
    'pilot', f'--data={file}', f'--out={folder}'
  ) as job:
    assert job.STAGES == tuple(run.STAGES)
    job.run('init')
    with pytest.raises(ValueError, match='exists'):
      job.run('init')
  with commandline.flags_of('pilot') as job:
    with pytest.raises(settings.PilotError, match='rows_per_week'):
      job.run('check', str(folder))
    path = folder / settings.FILE
    words = path.read_text()
    path.write_text(words.replace('rows_per_week = -1.0', 'rows_per_week = 50'))
    words = path.read_text()
    path.write_text(words.replace('window = 64', 'window = 16'))
    job.run('check', str(folder))
    shown = capsys.readouterr().out
    assert 'costs.incident is not filled in' in shown
    assert 'The pilot can be run.' in shown
    with pytest.raises(SystemExit) as left:
      job.run('run', str(folder))
    assert left.value.code == 2  # MORE DATA
    shown = capsys.readouterr().out
    assert 'data: MORE DATA' in shown and 'report.en.html' in shown
    for words in ((), ('fly',), ('run',), ('init', 'x')):
      with pytest.raises(ValueError, match='say init|takes'):
        job.run(*words)


def test_a_real_model_is_fitted_kept_and_scored(tmp_path):
  pilot = make(tmp_path, *planted(line(4000)), train=200, shadow=60)
  pilot = dataclasses.replace(pilot, models=tables.Models())
  fit = (8, 2, 2, 0, 1.0, 0)
  one = result_of(pilot.fitted(*fit))
  assert one['bits'].shape == (40,) and np.isfinite(one['bits']).all()
  assert one['gradient_0'].shape == (2,) and (one['gradient_0'] > 0).all()
  again = result_of(pilot.fitted(*fit))
  np.testing.assert_array_equal(one['bits'], again['bits'])
  detector = pilot.models.new(window=8, levels=2, steps=2, smooth=1)
  result_of(detector.fitting(pilot.data.values[:200]))
  pilot.models.save(str(tmp_path / 'run'), detector, 'line')
  other = pilot.models.load(str(tmp_path / 'run'))
  values = pilot.data.values[200:240]
  a, b = (result_of(d.scoring(values)).bits for d in (detector, other))
  np.testing.assert_allclose(a, b, rtol=1e-4)
  assert pilot.models.load(str(tmp_path / 'none')) is None


# What a pilot has kept, damaged.


@pytest.mark.parametrize(
  'text, words',
  [
    (b'\xff\xfe', 'is no TOML'),
    (b'data = 3', r'data must be a section, \[data\]'),
    (b'x = ' + b'[' * 100_000, 'is no TOML'),
    (b'', 'data.file is missing'),
  ],
)
def test_a_damaged_file_of_settings_is_named(text, words, tmp_path):
  (tmp_path / settings.FILE).write_bytes(text)
  with pytest.raises(settings.PilotError, match=words):
    run.open_pilot(str(tmp_path))


@pytest.mark.parametrize('text', ['{', '[]', '{}', 'x', '[' * 100_000])
def test_a_damaged_stage_is_named(text, tmp_path):
  pilot = make(tmp_path, line(4000))
  pilot.path('stages').mkdir()
  for name in ('data.json', 'data.npz'):
    pilot.path('stages', name).write_text(text)
  with pytest.raises(settings.PilotError, match='data.json is damaged'):
    run.load(pilot)
  with pytest.raises(settings.PilotError, match='data.npz is damaged'):
    run.curves(pilot, 'data')


@pytest.mark.parametrize(
  'change',
  [
    lambda x: x['gates'][0].update(name='unknown'),
    lambda x: x['gates'][0].update(threshold='5'),
    lambda x: x['gates'][0]['found'].update(value=None),
    lambda x: x['facts'].update(rows='many'),
    lambda x: x.update(facts=[1]),
    lambda x: x.update(seconds='5'),
    lambda x: x.update(name='module'),
    lambda x: x.update(gates=[]),
  ],
)
def test_a_stage_that_was_edited_is_named(change, tmp_path):
  pilot = make(tmp_path, line(4000))
  run.run_stage(pilot, 'data', follow=result_of)
  path = pilot.path('stages', 'data.json')
  kept = json.loads(path.read_text())
  change(kept)
  path.write_text(json.dumps(kept))
  with pytest.raises(settings.PilotError, match='data.json is damaged'):
    run.load(pilot)


def test_arrays_that_are_gone_are_made_again(tmp_path):
  pilot = make(tmp_path, line(4000))
  run.run_stage(pilot, 'data', follow=result_of)
  path = pilot.path('stages', 'data.npz')
  path.unlink()
  assert not run.load(pilot)
  run.run_stage(pilot, 'data', follow=result_of)
  assert run.load(pilot) and path.exists()
  np.savez(path, other=0)
  with pytest.raises(settings.PilotError, match='not what data.sha256'):
    report.write(pilot, 'en')
  path.with_suffix('.sha256').unlink()  # as in pilots from before
  with pytest.raises(settings.PilotError, match="no array 'values'"):
    report.write(pilot, 'en')


@pytest.mark.parametrize(
  'change',
  [
    lambda x: x[:1],
    lambda x: x[None],
    lambda x: x.astype(str),
    lambda x: x.astype(complex),
    lambda x: x * 2,
  ],
)
def test_arrays_that_were_replaced_are_named(change, tmp_path):
  pilot = make(tmp_path, line(4000))
  path = pilot.path('units', 'one.npz')
  work.keep(path, {'bits': np.arange(5.0)})
  kept = work.arrays(path)
  np.testing.assert_array_equal(kept['bits'], np.arange(5))
  np.savez(path, bits=change(kept['bits']))
  with pytest.raises(settings.PilotError, match='one.npz is damaged'):
    work.arrays(path)
  work.keep(path, {'bits': np.arange(4)})  # made again
  np.testing.assert_array_equal(work.arrays(path)['bits'], np.arange(4))


def test_numbers_that_nothing_can_be_computed_with_are_refused(tmp_path):
  for key in ('incident', 'rows_per_week', 'seeds'):
    with pytest.raises(settings.PilotError, match=f'{key}=1.* at most'):
      make(tmp_path, line(4000), **{key: 10**200 if key == 'seeds' else 1e200})
  assert gates.rate(3, 0.0) is None
