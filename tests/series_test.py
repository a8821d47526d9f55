"""A model of series: its windows, scores, forecasts, gaps and report."""

import csv
import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest

from fractal_jax import api, sharding
from fractal_jax.data import pipeline, series
from fractal_jax.data.common import DataError
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs, likelihood
from fractal_jax.inference.progress import result_of
from fractal_jax.models.types import Draws
from fractal_jax.series import (
  analysis,
  fit,
  forecast,
  linear,
  quantiser,
  report,
  runs,
  scores,
  settings,
  table,
)
from fractal_jax.series.detector import FractalDetector
from tests import commandline, tiny

PERIOD = 20


def sine(rows, seed=0, first=0):
  """A noisy sine [rows, 1]."""
  t = first + np.arange(rows)
  noise = np.random.default_rng(seed).normal(0, 0.1, rows)
  return (np.sin(2 * np.pi * t / PERIOD) + noise)[:, None] * 5 + 20


def small_config(rows, channels=1, **how):
  c = settings.settings(rows, channels, window=32, bins=64, **how)
  c.model.widths = (32,) * len(c.model.sizes)
  c.model.depths = (1,) * len(c.model.sizes)
  c.model.heads = (2,) * len(c.model.sizes)
  c.data.noise = 0.25
  c.optim.lr = 6e-2  # a peak of 7.5e-3: the model is small
  return c


@pytest.fixture(scope='module')
def model():
  """An api.Model fitted to a sine."""
  config = small_config(1500, steps=500)
  source = series.source(config, [table.from_array(sine(1500))], 'train')
  q = series.fit(config, [table.from_array(sine(1500))])
  one = sharding.single_device_mesh()
  net, params, mesh = result_of(fit.fit(config, source, one))
  return api.Model(config, net, params, mesh, quantiser=q)


def scored(model, values, **how):
  job = scores.score(
    model.net, model.params, model.quantiser, values, mesh=model.mesh, **how
  )
  return result_of(job)


# Data.


def test_windows_splits_and_classes(tmp_path):
  for i, rows in enumerate((100, 80)):
    np.savez(tmp_path / f's{i}.npz', values=sine(rows, i) * (i + 1), train=70)
  c = small_config(70, classes=2)
  c.data.dir, c.data.stride = str(tmp_path), 2
  c.data.held_out = 0.5
  info = pipeline.info(c)
  assert info.class_names == ('s0', 's1')
  assert (info.num_train, info.num_val) == (4, 4)  # 35 rows, 35 rows of each
  assert quantiser.FILE in info.files
  source = pipeline.open_split(c, 'train')
  q = series.fit(c, [table.read(p) for p in table.files(c.data.dir)])
  window, label = source.read(3)
  assert label == 1
  np.testing.assert_array_equal(window, q.encode(2 * sine(80, 1)[2:34], 1))
  c.data.one_class = True
  assert pipeline.open_split(c, 'train').class_names == ('series',)


def test_classes_count_alike_however_short(tmp_path):
  for i, rows in enumerate((100, 50)):
    np.savez(tmp_path / f's{i}.npz', values=sine(rows, i))
  c = small_config(100, classes=2)
  c.data.dir, c.data.held_out = str(tmp_path), 0.0
  shown = lambda split: [
    (int(label), window.tobytes())
    for source in [pipeline.open_split(c, split)]
    for window, label in map(source.read, range(source.size))
  ]
  longest, shortest = 100 - 32 + 1, 50 - 32 + 1
  train = shown('train')
  assert [label for label, _ in train].count(1) == len(train) / 2 == longest
  assert len(set(train)) == longest + shortest == len(shown('validation'))
  for change in ({'one_class': True}, {'balanced': False, 'one_class': False}):
    c.data.update(change)
    assert len(shown('train')) == longest + shortest


def test_a_run_goes_on_with_its_own_bins_alone(tmp_path):
  np.savez(tmp_path / 's.npz', values=sine(400))
  c = small_config(400)
  c.data.dir = str(tmp_path)
  files = pipeline.info(c).files
  pipeline.check_files(tmp_path, files)  # a new run
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  pipeline.check_files(tmp_path, files)
  c.data.margin = 0.1
  with pytest.raises(DataError, match='quantiser.json'):
    pipeline.check_files(tmp_path, pipeline.info(c).files)


def test_noise_moves_what_is_known(tmp_path):
  values = sine(200)
  values[::3] = np.nan
  np.savez(tmp_path / 's.npz', values=values)
  c = small_config(200)
  c.data.dir, c.data.noise, c.optim.batch = str(tmp_path), 2.0, 8
  source = pipeline.open_split(c, 'train')
  batch = next(pipeline.train_batches(c))['image']
  assert batch.dtype == np.int32 and batch.max() < c.model.num_values
  all_windows = np.stack([source.read(i)[0] for i in range(source.size)])
  for image in batch:  # the window is that whose unknown values are the same
    known = image >= 0
    fits = ((all_windows >= 0) == known).all((1, 2))
    fits &= (
      np.where(known, 0, all_windows == image).sum((1, 2)) == (~known).sum()
    )
    off = [image[known] - x[known] for x in all_windows[fits]]
    assert 0.5 < min(x.std() for x in off) < 4


def test_windows_of_unknown_values_are_left_out():
  values = sine(200)
  values[50:150] = np.nan
  found = series.source(small_config(200), [table.from_array(values)], 'train')
  assert found.size < 200 - 20 - 32 and 'left out' in found.skipped


@pytest.mark.parametrize(
  'change, word',
  [
    (lambda c: c.model.update(unknown=False), 'model.unknown=True'),
    (lambda c: c.data.update(rows=20), 'fewer out|more rows'),
    (lambda c: c.model.update(channels=2), 'model.channels'),
  ],
)
def test_what_does_not_fit_the_model(change, word):
  c = small_config(200)
  change(c)
  with pytest.raises(DataError, match=word):
    series.source(c, [table.from_array(sine(200))], 'train')


# Scores.


def random_model(kinds=('ar', 'ar', 'pixel'), channels=2):
  sizes = (8, 4, 1)
  c = tiny.model(
    kinds, sizes, rank=1, channels=channels, unknown=True, num_values=16
  )
  net, params = tiny.build(
    kinds, sizes, rank=1, channels=channels, unknown=True, num_values=16
  )
  q = quantiser.fit([np.linspace(0, 1, 9)[:, None].repeat(channels, 1)], 16)
  return c, net, params, q


def test_bits_of_a_window_sum_to_its_log_prob():
  c, net, params, q = random_model()
  images = tiny.images(net, 2)
  labels = np.array([0, 2], np.int32)
  config = settings.settings(100)
  wanted = result_of(
    likelihood.log_prob(net, params, _with(config, c), images, labels)
  )
  windows = scores.Windows(images, labels, np.arange(2))
  mesh = sharding.single_device_mesh()
  with jax.set_mesh(mesh):
    found = scores.statistics()(net, params, windows, 1, 0, mesh)
  np.testing.assert_allclose(-found[..., 0].sum((1, 2)), wanted, rtol=1e-5)


def _with(config, model):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model = model
  return config


def test_what_is_not_known_is_read_and_costs_nothing():
  _, net, params, _ = random_model()
  images = tiny.images(net, 3)
  draws = Draws(tiny.keys(3), None)
  nats = lambda x: (
    net.score(params, x, np.zeros(3, np.int32), draws, train=False).pixels.nats
  ).reshape(images.shape)
  marked = images.copy()
  marked[:, 2:5, 1] = ~marked[:, 2:5, 1]
  whole, part = nats(images), nats(marked)
  assert (part[:, 2:5, 1] == 0).all()
  np.testing.assert_array_equal(
    np.where(marked < 0, 0, whole), np.asarray(part)
  )


@pytest.mark.parametrize(
  'kinds', [('ar', 'ar', 'pixel'), ('mar', 'mar', 'pixel')]
)
def test_nan_anywhere(kinds):
  _, net, params, q = random_model(kinds)
  values = np.random.default_rng(0).random((37, 2))
  values[[0, 5, 36], [0, 1, 1]] = np.nan
  values[10:20] = np.nan
  found = result_of(scores.score(net, params, q, values, passes=3))
  masked = 'mar' in kinds  # few passes: some values have bits, and no more
  for kind in ['bits'] if masked else scores.NAMES:
    by_channel = found.by_channel(kind)
    np.testing.assert_array_equal(np.isnan(by_channel), np.isnan(values))
    rows = found.of_rows(kind, 3)
    assert np.isnan(rows[11:19]).all() and not np.isnan(rows[:9]).any()


def test_causal_scores_do_not_see_the_future():
  _, net, params, q = random_model()
  values = np.random.default_rng(0).random((40, 2))
  changed = values.copy()
  changed[23:] = 1 - changed[23:]
  changed[30:] = np.nan
  run = lambda x: result_of(scores.score(net, params, q, x, causal=True))
  for kind in scores.NAMES:
    one, other = (run(x).of_rows(kind, 5, True) for x in (values, changed))
    np.testing.assert_array_equal(one[:23], other[:23])
    assert (one[23:30] != other[23:30]).all()
  _, masked, params, q = random_model(('mar', 'mar', 'pixel'))
  with pytest.raises(scores.ScoreError, match='of ar or independent'):
    result_of(scores.score(masked, params, q, values, causal=True))


def test_each_value_is_predicted_from_three_quarters_of_a_window():
  """A score depends on the rows that it should, however the rows lie."""
  _, net, params, q = random_model(channels=1)
  values = np.random.default_rng(0).random((40, 1))
  run = lambda x: result_of(scores.score(net, params, q, x)).bits[:, 0]
  base = run(values)
  for t in (20, 21, 22, 23):
    seen = []
    for back in range(1, 8):
      moved = values.copy()
      moved[t - back] = 1 - moved[t - back]
      seen.append(run(moved)[t] != base[t])
    assert all(seen[:6]), (t, seen)


@pytest.mark.parametrize('rows', [3, 32, 33, 100, 129])
@pytest.mark.parametrize('both', [False, True])
def test_cover(rows, both):
  starts, which = scores.cover(rows, 32, both=both)
  place = np.arange(rows) - starts[which]
  assert which.max() == len(starts) - 1
  assert (place >= 0).all() and (place < 32).all()
  inside = np.arange(rows) if both else np.arange(32, rows)
  if both:
    inside = inside[16 : rows - 16]
    assert (np.abs(place[inside] - 16) <= 4).all()
  else:
    assert (place[inside] >= 24).all()


def test_smoothed():
  x = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
  np.testing.assert_allclose(scores.smoothed(x, 1), x)
  np.testing.assert_allclose(scores.smoothed(x, 3), [1, 2, 4, 5, 6])
  np.testing.assert_allclose(scores.smoothed(x, 1, True), x)
  np.testing.assert_allclose(
    scores.smoothed(x, 3, True), [1, 1, 13 / 5, 53 / 13, 165 / 29]
  )
  long = scores.smoothed(np.r_[x, np.full(10_000, np.nan)], 20, True)
  np.testing.assert_allclose(long[:40], [*long[:5], *[long[4]] * 35])
  assert np.isnan(long[-1])


@pytest.mark.parametrize('kind', ['spike', 'shift', 'frequency'])
def test_planted_anomalies_rank_first(model, kind):
  values = sine(600, seed=5)
  part = slice(300, 301 if kind == 'spike' else 340)
  if kind == 'frequency':
    t = np.arange(40)
    values[part, 0] = 20 + 5 * np.sin(2 * np.pi * t / 9)
  else:
    values[part] += 8 if kind == 'spike' else 3
  found = scored(model, values)
  for score_kind in ('z2', 'bits'):
    rows = found.of_rows(score_kind, 1 if kind == 'spike' else 16)
    assert part.start - 4 <= rows.argmax() <= part.stop + 4, score_kind
  # What is clipped is scored where it lies.
  values[300] = 1000
  assert scored(model, values).z2[300] > 1e4
  assert scored(model, values).clipped == 1


def test_the_model_is_calibrated_and_better_than_no_model(model):
  values = sine(800, seed=9)
  found = scored(model, values)
  assert 0.5 < found.z2.mean() < 1.4
  counts, _ = np.histogram(found.pit, 4, (0, 1))
  assert (counts > 800 / 4 * 0.6).all()
  spread = values.std() / model.quantiser.of(0)[1][0]
  gaussian = np.log2(spread * np.sqrt(2 * np.pi * np.e))
  assert found.bits.mean() < gaussian - 0.8


# Forecasts and gaps.


def test_forecast_quantiles_cover_what_they_claim(model):
  inside = []
  for seed in range(6):
    values = sine(100, seed=20 + seed, first=7 * seed)
    found = model.forecast(values[:64], 20, num=64, seed=seed)
    assert found.quantiles.shape == (3, 20, 1)
    assert found.samples.shape == (64, 20, 1)
    low, _, high = found.quantiles
    inside.append((low <= values[64:84]) & (values[64:84] <= high))
  assert 0.7 <= np.mean(inside) <= 0.9


def test_forecasts_follow_the_sine_and_their_seed(model):
  values = sine(120, seed=3)
  found = model.forecast(values[:50], 48, num=16)  # in six parts
  off = found.quantiles[1] - values[50:98]
  assert np.sqrt((off**2).mean()) < 2.5  # the sine's own is 3.5
  again = model.forecast(values[:50], 48, num=16)
  np.testing.assert_array_equal(found.samples, again.samples)
  short = model.forecast(values[:3], 2, num=2)
  assert short.samples.shape == (2, 2, 1)


def test_gaps_are_filled_and_the_rest_is_kept(model):
  values = sine(150, seed=4)
  holed = values.copy()
  holed[[0, 149]] = np.nan
  holed[40:46] = np.nan
  holed[70:112] = np.nan  # longer than a window
  found = model.impute(holed, num=8)
  known = ~np.isnan(holed)
  for sample in found.samples:
    np.testing.assert_array_equal(sample[known], values[known])
  assert not np.isnan(found.samples).any()
  off = found.quantiles[1] - values
  assert np.sqrt((off[~known] ** 2).mean()) < 2.5
  assert found.samples[:, 41].std() > 0


def test_edits_draw_what_is_marked_as_not_known(model):
  window = model.quantiser.read(sine(32, seed=11))
  marked = window.copy()
  marked[10:14] = ~marked[10:14]
  nothing = np.zeros((32, 1), bool)
  (drawn,) = model.edit(marked[None], nothing, num=64)
  known = marked >= 0
  assert (drawn[:, known] == marked[known]).all()
  assert drawn.min() >= 0 and (drawn[:, ~known].std(0) > 0).all()
  with pytest.raises(inputs.InputError, match='0 to 63'):
    inputs.check_images(
      marked[None], tiny.model(sizes=(32, 1), rank=1, num_values=64)
    )


ROWS = np.zeros((5, 1))


@pytest.mark.parametrize(
  'call, word',
  [
    (lambda m: m.forecast(np.zeros((5, 2)), 3), r'\[T, 1\]'),
    (lambda m: m.forecast(np.zeros((5, 1)), 0), 'horizon=0'),
    (lambda m: m.forecast(np.zeros((5, 1)), 3, quantiles=[1.5]), 'quantiles'),
    (lambda m: m.forecast(ROWS, 3, quantiles=0.5), 'quantiles=0.5'),
    (lambda m: m.forecast(ROWS, None), 'horizon=None'),
    (lambda m: m.forecast(ROWS, 3, num=None), 'num=None'),
    (lambda m: m.forecast(ROWS, 3, seed='a'), 'seed='),
    (lambda m: m.forecast(ROWS, 3, batch=1.5), 'batch=1.5'),
    (lambda m: m.forecast(ROWS, 3, label=-1), 'label=-1'),
    (lambda m: m.forecast(ROWS, 3, label='a'), "label='a'"),
    (lambda m: m.impute(ROWS, label=9), 'label=9: classes are 0 to 0'),
    (lambda m: m.impute([['a']]), 'values of type <U1'),
    (lambda m: m.impute([[1], [2, 3]]), 'values are no array'),
    (lambda m: m.impute(ROWS + 1j), 'values of type complex'),
    (lambda m: m.sample(guide='digits_ar'), "guide='digits_ar' must be a"),
    (lambda m: m.impute(np.full((5, 1), np.inf)), 'infinity'),
    (
      lambda m: dataclasses.replace(m, quantiser=None).impute(np.zeros((5, 1))),
      'quantiser.json',
    ),
  ],
)
def test_what_is_refused(model, call, word):
  with pytest.raises((forecast.ForecastError, ValueError), match=word):
    call(model)


def test_the_largest_seed_serves_all_parts_of_a_forecast(model):
  levels = np.array([0.1, 0.9])  # an array, too
  found = model.forecast(ROWS, 9, num=1, seed=2**32 - 1, quantiles=levels)
  assert found.samples.shape == (1, 9, 1) and found.levels == (0.1, 0.9)


# The commands.


@pytest.fixture(scope='module')
def run_of(model, tmp_path_factory):
  """A work directory of the model, and a CSV with a gap and a jump."""
  folder = tmp_path_factory.mktemp('run')
  detector = FractalDetector(window=32, smooth=4, bins=64)
  detector.config_, detector.quantiser_ = model.config, model.quantiser
  detector.params_, detector.label_ = model.params, 0
  detector.labels_ = np.zeros(100)
  detector.held_out_scores_ = np.linspace(0, 3, 20)
  runs.save(str(folder / 'run'), detector, 'sine')
  values = sine(100, seed=7)
  values[50:60] += 6
  values[20:26] = np.nan
  lines = [f'{i},{"" if np.isnan(x) else x}' for i, (x,) in enumerate(values)]
  (folder / 'line.csv').write_text('\n'.join(['time,flow', *lines]) + '\n')
  return folder


@pytest.fixture
def command(run_of, tmp_path, monkeypatch):
  """Runs a command on the run and the CSV; returns its folder of results."""
  one = sharding.single_device_mesh()
  monkeypatch.setattr(sharding, 'any_mesh', lambda config: one)

  def call(name, *flags, workdir=True):
    given = [f'--data={run_of}/line.csv', f'--out={tmp_path}/out', *flags]
    given += [f'--workdir={run_of}/run'] if workdir else []
    with commandline.flags_of(name, *given) as job:
      job.run()
    return tmp_path / 'out'

  return call


def test_a_run_keeps_its_detector(run_of, model):
  found = runs.load(str(run_of / 'run'))
  assert (found.window, found.smooth) == (32, 4)
  assert found.quantiser_ == model.quantiser
  assert found.threshold_ == pytest.approx(3 * 0.99)
  half = runs.load(str(run_of / 'run'), false_alarms=0.5)
  assert half.threshold_ == pytest.approx(1.5)
  assert not hasattr(runs.load(str(run_of / 'run'), smooth=9), 'threshold_')


@pytest.mark.parametrize(
  'text',
  ['{', '[]', '{}', '\0', '[' * 100_000]
  + [
    json.dumps({'parameters': parameters, 'held_out_scores': scores})
    for parameters, scores in (
      ({}, []),
      ({}, 'x'),
      ({}, [1.0, None]),
      ({}, [1.0, float('inf')]),
      ({}, [[1.0]]),
      ({'windows': 32}, [1.0]),
      ({'smooth': 'a'}, [1.0]),
      ({'false_alarms': 7}, [1.0]),
      ({'score': 'nats'}, [1.0]),
    )
  ],
)
def test_a_damaged_detector_is_named(text, tmp_path):
  (tmp_path / runs.FILE).write_text(text)
  with pytest.raises(runs.RunError, match='detector.json does not hold what'):
    runs._kept(str(tmp_path))


@pytest.mark.parametrize('name', ['scores.csv', 'report.html'])
def test_places_of_results_are_looked_at_first(name, command, tmp_path):
  (tmp_path / 'out' / name).mkdir(parents=True)
  with pytest.raises(UserError, match=f'{name} is a folder'):
    command('anomaly', '--data=none.csv')


def test_a_release_serves_as_its_run_does(command, run_of, model, tmp_path):
  """Bins and threshold go along; a release without them is another model's."""
  release = str(tmp_path / 'release')
  api.load(str(run_of / 'run')).save_pretrained(release)
  assert not (tmp_path / 'release' / 'checkpoints').exists()
  assert api.Model.from_pretrained(release).quantiser == model.quantiser
  ours, theirs = runs.load(release), runs.load(str(run_of / 'run'))
  assert ours.threshold_ == theirs.threshold_
  assert ours.get_params() == theirs.get_params()
  text = (tmp_path / 'release' / 'README.md').read_text()
  assert 'fractal-jax anomaly --data=FILE --workdir=release' in text
  written = []
  for workdir in (release, str(run_of / 'run')):
    out = command('anomaly', f'--workdir={workdir}', workdir=False)
    written.append((out / 'scores.csv').read_text())
  assert written[0] == written[1]
  flags = [f'--workdir={release}', '--num=8']
  assert (command('forecast', *flags, workdir=False) / 'forecast.csv').exists()
  assert (command('impute', *flags, workdir=False) / 'imputed.csv').exists()
  # Again from the release; and a model whose origin is gone keeps its bins.
  api.load(release).save_pretrained(str(tmp_path / 'second'))
  assert runs.load(str(tmp_path / 'second')).threshold_ == ours.threshold_
  model.save_pretrained(str(tmp_path / 'second'))
  assert not (tmp_path / 'second' / 'detector.json').exists()
  assert api.load(str(tmp_path / 'second')).quantiser == model.quantiser


def test_anomaly(command, capsys):
  out = command('anomaly')
  with open(out / 'scores.csv') as file:
    rows = list(csv.DictReader(file))
  flagged = [i for i, row in enumerate(rows) if row['alarm'] == '1']
  assert len(rows) == 100 and {*range(51, 54)} <= set(flagged)
  assert (out / 'report.html').stat().st_size > 10_000
  assert 'alarms' in capsys.readouterr().out


def test_forecast_and_impute(command):
  out = command('forecast', '--horizon=8', '--num=64')
  with open(out / 'forecast.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['time'] for row in rows[:2]] == ['100.0', '101.0']
  low, middle, high = (
    [float(row[f'flow_q{q}']) for row in rows] for q in (0.1, 0.5, 0.9)
  )
  assert low < middle < high
  assert (out / 'forecast.png').exists()
  command('impute', '--num=8')
  with open(out / 'imputed.csv') as file:
    rows = list(csv.DictReader(file))
  spread = [float(r['flow_q0.9']) - float(r['flow_q0.1']) for r in rows]
  assert np.flatnonzero(spread).tolist() == list(range(20, 26))


@pytest.mark.parametrize(
  'name, flags, words',
  [
    ('anomaly', ['--window=16'], '--window'),
    ('anomaly', ['--train=1000'], 'has 100 rows'),
    ('anomaly', ['--smooth=9'], 'no threshold'),
    ('anomaly', ['--columns=x'], "no column 'x'"),
    ('forecast', ['--quantiles=a'], '--quantiles'),
    ('forecast', ['--quantiles=0.5,2'], '--quantiles=0.5,2 must be'),
    ('forecast', ['--quantiles=nan'], '--quantiles=nan must be'),
    ('impute', ['--quantiles='], '--quantiles= must be'),
    ('impute', ['--label=4'], "no class '4'"),
  ],
)
def test_what_commands_refuse(command, name, flags, words):
  with pytest.raises(UserError, match=words):
    command(name, *flags)


def test_normal_rows_are_counted_as_the_file_has_them(tmp_path):
  times = [*range(40), *range(50, 110)]  # ten rows are missing
  file = tmp_path / 'line.csv'
  file.write_text('time,a\n' + ''.join(f'{t},{t % 7}\n' for t in times))
  for given, rows in (('40', 40), ('41', 51), ('100', 110)):
    with commandline.flags_of(
      'anomaly', f'--data={file}', f'--train={given}'
    ) as job:
      one, train = job.the_table()
      assert (train, one.times[train - 1]) == (rows, times[int(given) - 1])
  with commandline.flags_of('anomaly', f'--data={file}', '--train=101') as job:
    with pytest.raises(UserError, match='has 100 rows'):
      job.the_table()


def test_columns_in_another_order_are_refused(command, monkeypatch, tmp_path):
  found = mock.Mock(**{'quantiser_.channels': ('b', 'a')})
  monkeypatch.setattr(runs, 'load', lambda *args, **how: found)
  (tmp_path / 'line.csv').write_text('a,b\n1,2\n3,4\n')
  with pytest.raises(UserError, match='another order.*--columns=b,a'):
    command('anomaly', f'--data={tmp_path}/line.csv')


@pytest.mark.parametrize('threshold', [0, -1])
def test_any_threshold_makes_a_report(threshold, command):
  out = command('anomaly', f'--threshold={threshold}')
  assert (out / 'report.html').exists()


# The linear model and the report.


def test_bits_of_the_linear_model_are_those_of_its_bins():
  values = sine(2000, seed=8)
  found = linear.predict(values, 1500, 40)
  low, width = np.array([0.0]), np.array([0.25])
  bits = found.bits(low, width, values)
  # A density times a width, where bins are narrow.
  density = found.nats(values) / np.log(2) - np.log2(width)
  assert abs(bits.mean() - density.mean()) < 0.05
  assert found.deviation == pytest.approx(0.5, rel=0.15)
  far = values.copy()
  far[1800] = 1e6
  assert found.bits(low, width, far)[1800] > 1e5


@pytest.fixture(scope='module')
def analysed(model):
  values = sine(500, seed=6)
  values[300:330] += 4
  values[100:104] = np.nan
  times = np.datetime64('2024-01-01', 'ns') + np.arange(500) * np.timedelta64(
    600, 's'
  )
  one = table.Table(
    'pump', values, ('flow <1>',), times, np.arange(500), notes=('a note',)
  )
  detector = FractalDetector(window=32, smooth=8)
  detector.config_, detector.quantiser_ = model.config, model.quantiser
  detector.params_, detector.label_ = jax.device_get(model.params), 0
  points = scored(model, values)
  detector.held_out_scores_ = points.of_rows('z2', 8)[200:250]
  detector.threshold_ = float(detector.held_out_scores_.max())
  return analysis.analyse(one, detector, points, 250)


def test_analysis(analysed):
  first = analysed.segments[0]
  assert 290 <= first.first <= 330 and first.channel == 'flow <1>'
  assert any(290 <= a.first <= 330 for a in analysed.alarms)
  number, low, high = analysed.weekly
  assert number == low == 0 < high
  assert analysed.learnt.rows == (200, 250)
  assert 'A note.' in analysed.doubts


def test_report(analysed, tmp_path):
  report.write(analysed, str(tmp_path))
  page = (tmp_path / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 5
  assert 'flow &lt;1&gt;' in page and 'flow <1>' not in page
  assert 'src="' in page and 'src="http' not in page and '<script' not in page
  with open(tmp_path / 'scores.csv') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 500 and rows[0]['row'] == '2'
  assert rows[101]['z2_flow <1>'] == '' and float(rows[101]['score']) > 0
  flagged = [i for i, row in enumerate(rows) if row['alarm'] == '1']
  np.testing.assert_array_equal(
    flagged, np.flatnonzero(analysed.rows > analysed.threshold)
  )
