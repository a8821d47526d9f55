"""What a report of a pilot says, from results made by hand."""

import re
import types

import numpy as np
import pytest

from fractal_jax.pilot import gates, report, settings, table_settings, texts
from fractal_jax.pilot.gates import Gate, Interval
from fractal_jax.pilot.run import Done

COSTS = dict(
  incident=1000, incidents_per_year=10, preventable=0.5, false_alarm=10,
  hour_of_work=50, setup_hours=20, upkeep_hours=4, hour_of_hardware=0,
  hardware_hours=0,
)  # fmt: skip
FOUND = Interval(0.6, 0.4, 0.8)
WEEKLY = Interval(1.0, 0.5, 2.0)


def gate(name, found, least=True, threshold=0.5, **how):
  return Gate(name, threshold, found, least, **how)


@pytest.fixture
def make(tmp_path):
  """A function of the gates of stages by name: the Content."""
  (tmp_path / 'stages').mkdir()

  def of(**stages):
    sections = settings.defaults(table_settings.SECTIONS)
    sections['question']['owner'] = '工場長'
    sections['data']['file'] = 'folder/line.csv'
    sections['costs'] = COSTS
    found = settings.Settings(**sections, hash='now')
    pilot = types.SimpleNamespace(
      settings=found,
      SECTIONS=table_settings.SECTIONS,
      path=lambda *parts: tmp_path.joinpath(*parts),
      pictures=lambda name, curves: {},
    )
    for name in stages:
      np.savez(tmp_path / 'stages' / f'{name}.npz')
    done = {
      name: Done(name, tuple(each), {}, 60.0, 'then', found.key())
      for name, each in stages.items()
    }
    return report.Content(pilot, done)

  return of


@pytest.mark.parametrize(
  'found, threshold, least, mends, times',
  [
    (Interval(0.6, 0.4, 0.8), 0.5, True, False, 4),  # half of 0.2 leaves 0.5
    (Interval(0.4, 0.1, 0.7), 0.5, True, False, 9),
    (Interval(8.0, 5.0, 9.0), 7.0, False, False, 9),  # 5 to 8 is the good side
    (gates.exact(5), 20, True, True, 4),
    (gates.exact(3), 2, False, True, None),  # more of it does not mend a drift
    (gates.exact(0), 5, True, True, None),
    (Interval(0.5, 0.4, 0.6), 0.5, True, False, None),
    (Interval(0.7, 0.6, 0.8), 0.5, True, False, None),  # GO
    (None, 0.5, True, False, None),
  ],
)
def test_how_much_data_would_decide(found, threshold, least, mends, times):
  got = Gate('found', threshold, found, least, mends).times
  assert got == (times and pytest.approx(times))


def test_reasons_in_words(make):
  words = texts.texts('en')
  say = lambda **stages: report.reason(make(**stages), words)
  assert say(full=[gate('found', FOUND)]) == (
    'Stage “Full size” can not be decided yet: share of the incidents found. '
    'Found was 60%, and at least 50% is required. With what is known this may '
    'be chance. If this stays as it is, about 4 times as much data would '
    'decide it.'
  )
  assert say(full=[gate('found', None)]) == (
    'Stage “Full size” can not be decided: share of the incidents found. This '
    'is not known, and at least 50% is required.'
  )
  bad = gate('module_bits', Interval(-0.1, -0.2, 0.0), threshold=0.02, about=1)
  assert say(data=[], module=[bad]) == (
    'Stage “Modules” shows that it does not work: bits per value saved against '
    'a model without memory, level 1. Found was -0.1, and at least 0.02 is '
    'required.'
  )
  assert '“Modules” has not run yet' in say(data=[])


def test_the_first_page(make):
  full = [
    gate('found', FOUND),
    gate('weekly_false_alarms', WEEKLY, least=False, threshold=7),
  ]
  page = report.page(make(data=[], full=full), texts.texts('en'), 'en')
  first = page[: page.index('class="rest"')]
  row = (
    '<td>share of the incidents found</td><td>at least 50%</td><td>60%</td>'
    '<td>40% to 80%</td><td>MORE DATA</td>'
  )
  assert f'<tr class="MORE first"><td>Full size</td>{row}' in first
  # 10 * 0.6 * 0.5 * 1000 - 1 * 52 * 10 - 4 * 50; low: 0.4 found, 2 alarms.
  assert 'a year brings 2,280 EUR net, between 760 and 3,540' in first
  assert 'Decided by: 工場長. Data: line. Report of 20' in first
  assert first.count('not run') == 3 and 'ran with then' in first


def test_no_page_in_japanese_has_english(make):
  words = texts.texts('ja')
  for page in (
    make(full=[gate('found', FOUND, threshold=0.55)]),
    make(full=[gate('found', None)]),
    make(module=[gate('module_bits', Interval(-0.1, -0.2, 0.0), about=0)]),
    make(data=[gate('least_windows', gates.exact(5), mends=True)]),
    make(),
  ):
    page = report.page(page, words, 'ja')
    read = re.sub('<style>.*?</style>|<[^>]*>', '\n', page, flags=re.S)
    found = re.findall(r'[A-Za-z]{2,}(?:[ ,.:]+[A-Za-z]{2,})+', read)
    assert set(found) <= {'MORE DATA'}
  # Nor has a text that none of these pages shows.
  japanese = re.compile('[\u3040-\u30ff\u4e00-\u9fff]')
  others = {k for k, text in words.items() if not japanese.search(text)}
  assert others == {'span', 'of stage'}
