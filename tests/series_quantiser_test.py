"""Bins: the round trip, what lies outside, what is not known."""

import json

import numpy as np
import pytest

from fractal_jax.series import quantiser


@pytest.fixture
def values():
  return np.random.default_rng(0).normal(5, 3, (500, 2)) * [1, 1e-6]


@pytest.mark.parametrize('kind', quantiser.RANGES)
@pytest.mark.parametrize('bins', [256, 1024])
def test_round_trip(values, bins, kind):
  q = quantiser.fit([values], bins, kind=kind)
  back = q.decode(q.encode(values))
  _, width = q.of(0)
  inside = ~q.outside(values)
  assert inside.mean() > 0.99
  assert (np.abs(back - values) <= width / 2 * (1 + 1e-9))[inside].all()
  np.testing.assert_allclose(q.decode(q.place(values)), values)


def test_the_margin_is_half_of_the_range_at_either_end(values):
  q = quantiser.fit([values], 100, margin=0.5)
  low, width = q.of(0)
  np.testing.assert_allclose(low + 25 * width, values.min(0))
  np.testing.assert_allclose(low + 75 * width, values.max(0))


def test_outside_is_clipped_counted_and_keeps_its_place(values):
  q = quantiser.fit([values], 256)
  low, width = q.of(0)
  far = np.stack([low - 10 * width, low + 300 * width])
  assert q.encode(far).tolist() == [[0, 0], [255, 255]]
  assert q.outside(far).all()
  np.testing.assert_allclose(q.place(far)[1], 299.5)


def test_unknown_is_read_as_the_last_before_and_marked():
  values = np.array([[np.nan], [1.0], [np.nan], [np.nan], [2.0]])
  q = quantiser.fit([values], 256)
  read = q.read(values)[:, 0]
  bins = q.encode(np.array([[1.5], [1.0], [1.0], [1.0], [2.0]]))[:, 0]
  assert (read < 0).tolist() == [True, False, True, True, False]
  np.testing.assert_array_equal(np.where(read < 0, ~read, read), bins)


def test_constant_channels_and_classes():
  q = quantiser.fit([np.full((9, 1), 7.0), np.zeros((9, 1))], 256)
  for label, value in ((0, 7.0), (1, 0.0)):
    x = np.array([[value]])
    assert not q.outside(x, label).any()
    assert abs(q.decode(q.encode(x, label), label) - value) < 0.1
  assert q.encode(np.array([[7.1]]), 0) > q.encode(np.array([[7.0]]), 0)


def test_a_channel_without_numbers_is_an_error():
  with pytest.raises(quantiser.QuantiserError, match="'pressure'"):
    quantiser.fit([np.full((5, 1), np.nan)], 256, channels=['pressure'])


@pytest.mark.parametrize('kind', quantiser.RANGES)
@pytest.mark.parametrize('values', [(-1.7e308, 1.7e308), (0.0, 5e-324, 5e-324)])
def test_numbers_too_large_or_small_for_bins_are_an_error(values, kind):
  with pytest.raises(quantiser.QuantiserError, match="'0' has numbers from"):
    quantiser.fit([np.array(values)[:, None]], 256, kind=kind)


def test_a_work_directory_keeps_it(values, tmp_path):
  q = quantiser.fit([values, values * 2], 256, channels=['a', 'b'])
  assert quantiser.load(tmp_path) is None
  quantiser.save(tmp_path, q)
  assert quantiser.load(tmp_path) == q
  kept = json.loads(q.text())
  changes = (
    *({'bins': 1}, {'bins': '256'}, {'low': 'ab'}, {'low': [[0, 1]]}),
    *({'width': [[0, 1], [1, 1]]}, {'median': [[1, None], [1, 1]]}),
    *({'channels': ['a']}, {'channels': [1, 2]}, {'low': [], 'channels': []}),
  )
  texts = [json.dumps(kept | change).encode() for change in changes]
  for text in (b'{}', b'[]', b'\xff', b'[' * 100_000, *texts):
    (tmp_path / quantiser.FILE).write_bytes(text)
    with pytest.raises(quantiser.QuantiserError, match='no quantiser'):
      quantiser.load(tmp_path)
  (tmp_path / quantiser.FILE).unlink()
  (tmp_path / quantiser.FILE).mkdir()
  with pytest.raises(quantiser.QuantiserError, match='no quantiser'):
    quantiser.load(tmp_path)
