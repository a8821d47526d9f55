"""Rows of a sweep: their means over seeds, and the pictures of them."""

import csv
import math

import numpy as np
from PIL import Image
import pytest

from fractal_jax import config as config_lib
from fractal_jax.errors import UserError
from fractal_jax.metrics import sweep
from tests import commandline


def row(seed, fid, **settings):
  section = config_lib.default().sample
  with section.ignore_type():
    section.update(settings)
  found = {'num': 10, 'fid': fid, 'class_recall': fid / 10}
  return sweep.row(section, seed, found)


def test_means_have_the_standard_error_over_seeds():
  rows = [row(0, 1.0), row(1, 4.0, guidance=2.0), row(1, 3.0)]
  first, second = sweep.over_seeds(rows)
  assert first['guidance'] == 1.0 and first['recall'] is None
  mean, error = first['fid']
  assert mean == 2.0 and error == pytest.approx(math.sqrt(2) / math.sqrt(2))
  assert second['fid'][0] == 4.0 and math.isnan(second['fid'][1])


def test_settings_are_shown_as_they_are_given():
  found = row(0, 1.0, guidance=(2.0, 1.5), interval=(0.1, 0.8))
  assert (found['guidance'], found['interval']) == ('2,1.5', '0.1,0.8')
  assert 'guidance 2,1.5  temperature 1  interval 0.1,0.8' in sweep.line(found)


def test_what_varies_runs_along_the_curves_numbers_first():
  rows = [
    row(0, 1.0, guidance=g, order=order)
    for g in (1.0, 2.0)
    for order in ('random', 'halton')
  ]
  assert sweep.varied(rows) == ['guidance', 'order']
  assert sweep.varied(rows[:1]) == []


def test_rows_say_all_that_images_were_drawn_with(tmp_path):
  rows = [row(0, 1.0), row(0, 2.0, schedule='constant', iterations=(4, 2))]
  old = {'guidance': 3.0, 'seed': 0}  # of a table that had fewer columns
  sweep.write_csv([old, *rows], str(tmp_path / 'rows.csv'))
  with open(tmp_path / 'rows.csv') as file:
    first, *found = csv.DictReader(file)
  assert (first['guidance'], first['seed'], first['fid']) == ('3.0', '0', '')
  assert [r['schedule'] for r in found] == ['linear', 'constant']
  assert [r['iterations'] for r in found] == ['', '4,2']
  assert 'filter_threshold 0.0001  iterations -' in sweep.line(rows[0])
  assert {r['guide'] for r in found} == {'none'}
  keys = config_lib.SAMPLE.keys() - {'every', 'num', 'batch'}
  assert set(sweep.SETTINGS) == keys | {'guide'}


def test_flags_list_values_and_a_value_may_be_one_per_level():
  given = ('--guidance=4:2:1,4,1', '--order=halton:random,raster')
  with commandline.flags_of('sweep', '--workdir=x', *given) as job:
    found = job.all_settings()
  assert [each['guidance'] for each in found[::2]] == [
    1.0,
    4.0,
    (4.0, 2.0, 1.0),
  ]
  orders = [('halton', 'random'), 'raster']
  assert [each['order'] for each in found] == orders * 3
  with commandline.flags_of('sweep', '--workdir=x', '--guidance=4:x') as job:
    with pytest.raises(UserError, match='--guidance=4:x .* with colons'):
      job.all_settings()


def test_pictures_take_one_number_beside_one_per_level(tmp_path):
  rows = [
    row(0, float(i), guidance=g) for i, g in enumerate(((4.0, 2.0), 1.0, 10.0))
  ]
  assert sweep.varied(rows) == ['guidance']
  sweep.plot(rows, str(tmp_path / 'trade.png'))


@pytest.mark.parametrize('orders', [('random',), ('random', 'halton')])
def test_pictures_are_drawn_of_names_and_of_numbers(orders, tmp_path):
  rows = [
    row(seed, g + seed, guidance=g, order=order)
    for g in ((1.0, 2.0) if len(orders) == 1 else (1.0,))
    for order in orders
    for seed in (0, 1)
  ]
  path = tmp_path / 'trade.png'
  sweep.plot(rows, str(path))
  with Image.open(path) as image:
    assert np.asarray(image.convert('L')).std() > 10
