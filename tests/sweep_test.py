"""Rows of a sweep: their means over seeds, and the pictures of them."""

import math

import numpy as np
from PIL import Image
import pytest

from fractal_jax import config as config_lib
from fractal_jax.metrics import sweep


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
