"""The report of an explanation: one page, with all maps."""

import re

import numpy as np

from fractal_jax import pictures, report
from tests import tiny
from tests.edit_test import build


def test_the_report_is_one_page_with_all_pictures(tmp_path):
  m = build(('mar', 'mar', 'pixel'), guide=True)
  image = tiny.images(m.net, 1)[0]
  found = m.explain(image, 1, passes=4)
  path = report.write(found, image, m.config.model, str(tmp_path / 'a'))
  assert path == str(tmp_path / 'a' / 'report.html')
  page = (tmp_path / 'a' / 'report.html').read_text()
  made = list((tmp_path / 'a').glob('*.png'))
  assert len(re.findall('src="data:image/png;base64,', page)) == len(made)
  assert 'http' not in page and '<script' not in page
  assert report.summary(found) in page
  shots = ('image', 'bits', 'bits_channel_1', 'bits_level_0', 'guides_level_1')
  for name in shots:
    assert (tmp_path / 'a' / f'{name}.png').exists()
  # The maps' sum is what is reported, to the last digit shown.
  total = np.load(tmp_path / 'a' / 'bits.npy').sum() + found.guide_bits[1].sum()
  assert re.findall(r'<h1>(\S+) bits', page) == [f'{total:.2f}']
  (place, bits), *_ = found.ranked(0)
  rows = f'rows {2 * place[0]} to {2 * place[0] + 1}'
  assert f'{rows}, columns' in page and f'{bits:.2f} ± ' in page


def test_a_colour_bar_has_the_colours_of_its_map():
  bits = np.array([[0.0, 1.0], [2.0, 8.0]])
  shades = re.findall(r'rgb\((\d+), (\d+), (\d+)\)', report.colour_bar(bits))
  colours = pictures.heat(bits, 2).reshape(4, 3).tolist()
  found = [list(map(int, x)) for x in shades]
  assert [found[0], found[1], found[2], found[-1]] == colours
  assert '8.00 bits' in report.colour_bar(bits)
  assert report.colour_bar(bits[0]) == ''  # drawn as bars


def test_texts_are_escaped():
  html = report.table(('<a>',), [('1 < 2',)])
  assert '&lt;a&gt;' in html and '1 &lt; 2' in html and '<a>' not in html
