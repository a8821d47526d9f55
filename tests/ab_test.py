"""`ab`: levels compared image by image; what does not fit says why."""

import json

import jax
import numpy as np
import pytest

from fractal_jax.pilot import modules
from fractal_jax.pilot.paired import paired
from fractal_jax.training import checkpoint
from tests import commandline, tiny

SMALL = dict(num_values=17, classes=10, widths=(16, 8), depths=(1, 1))


def configure(**changes):
  c = tiny.config(('ar', 'pixel'), (8, 1), **(SMALL | changes))
  c.data.flip = False
  c.eval.batch = 32
  return c


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """a; the same with a broken pixel level, or all of it; wide, of another."""
  folder = tmp_path_factory.mktemp('ab')
  c = configure()
  _, params = tiny.build(('ar', 'pixel'), (8, 1), **SMALL)
  broken = dict(params)
  broken['level_1'] = jax.tree.map(lambda x: 4 * x, params['level_1'])
  both = jax.tree.map(lambda x: 4 * x, params)
  _, wide = tiny.build(
    ('ar', 'pixel'), (8, 1), **(SMALL | dict(widths=(32, 8)))
  )
  checkpoint.save_params(str(folder / 'a'), c, params)
  checkpoint.save_params(str(folder / 'broken'), c, broken)
  checkpoint.save_params(str(folder / 'both'), c, both)
  checkpoint.save_params(str(folder / 'wide'), configure(widths=(32, 8)), wide)
  return folder


def compared(capsys, *arguments) -> str:
  with commandline.flags_of('ab', *arguments) as job:
    job.run()
  return capsys.readouterr().out


def test_a_level_with_itself_is_no_difference(runs, tmp_path, capsys):
  a = runs / 'a'
  shown = compared(
    capsys, '--level=1', f'--a={a}', f'--b={a}', '--num=40',
    f'--out={tmp_path}',
  )  # fmt: skip
  assert 'No difference is shown: keep a.' in shown
  found = json.loads((tmp_path / 'ab.json').read_text())
  d = found['difference']
  assert (d['mean'], d['low'], d['high'], d['p']) == (0, 0, 0, 1)
  assert d['images'] == 40 and d['wins'] == d['losses'] == 0
  assert found['a']['bits'] == found['b']['bits']


def test_a_broken_level_is_significant(runs, capsys):
  a, broken = runs / 'a', runs / 'broken'
  shown = compared(capsys, '--level=1', f'--a={a}', f'--b={broken}', '--num=40')
  assert 'Keep a: level 1 of b is worse.' in shown
  shown = compared(capsys, '--level=1', f'--a={broken}', f'--b={a}', '--num=40')
  assert 'Take level 1 of b.' in shown and 'also differ' not in shown
  # What differs lies in level 1: level 0 of the broken run is as good.
  shown = compared(capsys, '--level=0', f'--a={a}', f'--b={broken}', '--num=40')
  assert 'No difference is shown' in shown
  assert 'also differ in level 1' in shown
  both = runs / 'both'
  shown = compared(capsys, '--level=1', f'--a={a}', f'--b={both}', '--num=40')
  assert 'also differ in level 0' in shown
  assert 'level 1 of b is worse under the other levels of a' in shown


@pytest.mark.parametrize(
  'level, change, words',
  [
    (0, dict(widths=(32, 8)), 'level 0 is 16 wide in a, 32 in b: level 1 of a'),
    (1, dict(widths=(32, 8)), 'level 0 is 16 wide in a, 32 in b: level 1 of b'),
    (1, dict(num_values=18), 'model.num_values is 17 in a, 18 in b'),
    (2, {}, 'has levels 0 to 1'),
  ],
)
def test_what_does_not_fit_says_why(level, change, words):
  with pytest.raises(modules.ModuleError, match=words):
    modules.mixed_config(configure(), configure(**change), level)


def test_a_level_that_was_told_more_does_not_fit():
  a, b = configure(), configure()
  for c, kind in ((a, 'ar'), (b, 'mar')):
    c.model = tiny.model(
      (kind, 'mar', 'pixel'), (8, 2, 1),
      **(SMALL | dict(widths=(16, 16, 8), depths=(1, 1, 1))),
    )  # fmt: skip
  modules.check_conditions(modules.mixed_config(a, b, 2), b, 2)
  words = 'level 1 takes 5 conditions in b, 1 in a.*model.kinds'
  with pytest.raises(modules.ModuleError, match=words):
    modules.check_conditions(modules.mixed_config(a, b, 1), b, 1)


def test_a_deeper_level_fits():
  mixed = modules.mixed_config(configure(), configure(depths=(3, 2)), 1)
  assert tuple(mixed.model.depths) == (1, 2)


def test_a_level_is_trained_anew_from_a_config(runs, tmp_path, capsys):
  (tmp_path / 'new.py').write_text(
    'from tests import ab_test\n'
    'def get_config():\n'
    '  c = ab_test.configure()\n'
    '  c.optim.update(batch=8, steps=2, save_every=2)\n'
    '  c.eval.every = c.sample.every = 0\n'
    '  return c\n'
  )
  shown = compared(
    capsys, '--level=1', f'--a={runs / "a"}', f'--b={tmp_path / "new.py"}',
    '--num=16', f'--out={tmp_path / "out"}',
  )  # fmt: skip
  assert 'also differ' not in shown
  found = json.loads((tmp_path / 'out' / 'ab.json').read_text())
  assert found['others'] == [] and found['difference']['mean'] != 0


def test_paired():
  rng = np.random.default_rng(0)
  one = paired(rng.normal(-1, 1, 100))
  assert one.better == 'b' and one.agree and one.high < 0
  assert one.wins + one.losses == 100 and one.p < 1e-6
  # A few images that are far off move the mean, not the signs.
  few = np.r_[np.full(6, 50.0), np.tile([0.5, -0.5], 47)]
  assert paired(few).better == 'a' and not paired(few).agree
  none = paired(rng.normal(0, 1, 100))
  assert none.better is None and none.low < 0 < none.high
