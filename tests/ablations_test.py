"""The studies' configs, and a study's runs, table and plot without training."""

import csv
import json
import pathlib

import pytest

from benchmarks import ablations
from fractal_jax import config as config_lib
from fractal_jax.planning import cost
from fractal_jax.training import checkpoint

STUDIES = ablations.configs.STUDIES


@pytest.mark.parametrize('name', STUDIES)
def test_studies_keep_the_rules_and_compare_what_they_say(name):
  study = STUDIES[name]
  ablations.check_equal(name)
  made = {}
  for variant in study.variants:
    c = made[variant] = ablations.configs.config_of(name, variant, 3, 2e-3)
    config_lib.check(c)
    peak = c.optim.lr * c.optim.batch / 256
    assert c.seed == 3 and peak == pytest.approx(2e-3)
  steps = {(c.optim.batch, c.optim.steps) for c in made.values()}
  assert len(steps) == 1
  models = [c.model.to_json() for c in made.values()]
  assert len(set(models)) == len(models)


def test_unequal_compute_is_refused(monkeypatch):
  monkeypatch.setattr(ablations, 'MATCH', 0.01)
  with pytest.raises(ablations.AblationError, match='FLOPs'):
    ablations.check_equal('levels')


@pytest.fixture
def trained(monkeypatch):
  """Runs that score what their config says, and a list of them."""
  done = []

  def train(config, workdir):
    m, peak = config.model, config.optim.lr * config.optim.batch / 256
    done.append(pathlib.Path(workdir))
    checkpoint.save_config(config, workdir)
    bits = 3 + 0.1 * len(m.sizes) + 10 * abs(peak - 3e-3) + 0.01 * config.seed
    known = dict(stderr=0.1, mc_stderr=0.0, exact=1.0, bound=0.0, rounded=0.0)
    lines = [
      {'step': 200, 'val/bits_per_dim': bits + 1},
      {'step': 200, 'train/loss': 1.0},
      {'step': 400, 'val/bits_per_dim': bits},
    ]
    for line in lines[::2]:
      line.update({f'val/{k}': v for k, v in known.items()})
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (done[-1] / 'metrics.jsonl').write_text(text)

  monkeypatch.setattr(ablations.train, 'train', train)
  return done


def test_a_study_tunes_goes_on_and_reports(trained, tmp_path, monkeypatch):
  runs = ablations.Runs('levels', tmp_path / 'runs')
  runs.train_all(2)
  # With seed 0 up to the learning rate that is worse; with seed 1 the best.
  assert len(trained) == len(set(trained)) == 5 * 3 + 5
  assert runs.peak('flat') == 3e-3
  runs.train_all(2)
  assert len(trained) == 20
  runs.train_all(3)
  assert {path.name for path in trained[20:]} == {'lr0.003_seed2'}
  monkeypatch.setattr(ablations, 'CLEARLY', 0.02)  # 0.003 is better by 0.015
  assert runs.peak('flat') == 1.5e-3
  monkeypatch.setattr(ablations, 'CLEARLY', 0.005)
  text = ablations.report(runs, 3, tmp_path / 'report')
  # Seeds add 0, 0.01 and 0.02; each level 0.1.
  assert '| flat | 3 | 3.2100 ± 0.0100 |  | exact | 146,257 | 58.7 |' in text
  assert '| 3_levels | 3 | 3.3100 ± 0.0100 | +0.1000 ± 0.0000 |' in text
  assert '| flat | 3.2150 | 3.2000 | 3.2300 |  |' in text
  with open(tmp_path / 'report' / 'levels.csv') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 15 + 5 * 2  # two learning rates were tried and left
  assert len({tuple(r.values()) for r in rows}) == 25
  used = [r for r in rows if r['peak_lr'] == '0.003']
  assert len(used) == 15
  seeds = [r for r in used if r['variant'] == 'flat']
  bits = [r['bits_per_dim'] for r in seeds]
  assert bits == ['3.200000', '3.210000', '3.220000']
  assert seeds[0]['curve'] == '200:4.2000 400:3.2000'
  c = ablations.configs.config_of('levels', 'flat')
  flops = cost.cost(c).total('training') * 32 * 400 / 1e12
  assert seeds[0]['train_tflops'] == f'{flops:.4f}'
  plot = tmp_path / 'report' / 'levels.png'
  assert plot.stat().st_size > 10_000
  plot.unlink()
  # The same report again, from the CSV alone.
  none = ablations.Runs('levels', tmp_path / 'none')
  assert ablations.report(none, 3, tmp_path / 'report') == text
  assert plot.stat().st_size > 10_000


def test_studies_share_the_runs_of_their_base(trained, tmp_path):
  for name in ('order', 'red', 'share'):
    ablations.Runs(name, tmp_path, 'emoji.npz').train_all(1)
  assert len(trained) == 5 + 1 + 1
  other = ablations.Runs('red', tmp_path, 'others.npz')
  with pytest.raises(ablations.AblationError, match='another config'):
    other.train_all(1)
  with pytest.raises(ablations.AblationError, match='no finished run'):
    ablations.report(ablations.Runs('mask', tmp_path), 1, tmp_path)


def test_the_page_shows_the_tables_that_were_written():
  docs = pathlib.Path(ablations.__file__).parent.parent / 'docs'
  page = (docs / 'ablations.md').read_text()
  tables = list((docs / 'ablations').glob('*.md'))
  assert len(tables) >= 7
  for table in tables:
    assert table.read_text() in page, table.name
