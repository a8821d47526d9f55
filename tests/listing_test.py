"""Which examples are held out: by content, near copies on one side."""

import io

import numpy as np
from PIL import Image
import pytest

from fractal_jax.data import listing
from fractal_jax.data.common import DataError


def picture(seed, side=64):
  """Smooth colours, as photographs have."""
  rng = np.random.default_rng(seed)
  few = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
  return few.resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image):
  out = io.BytesIO()
  image.save(out, 'jpeg', quality=80)
  return Image.open(out)


def test_copies_in_another_size_format_or_quality_are_near():
  a, b = picture(1), picture(2)
  copies = [a, b, as_jpeg(a), a.resize((20, 20)), as_jpeg(b.resize((48, 48)))]
  groups = listing.near_copies(np.stack([listing.thumbnail(x) for x in copies]))
  assert groups.tolist() == [0, 1, 0, 0, 1]


def test_other_images_are_not():
  a = np.asarray(picture(1)).copy()
  moved = np.roll(a, 8, 1)
  spot = a.copy()
  spot[10:26, 10:26] = 255 - spot[10:26, 10:26]
  thumbs = [listing.thumbnail(Image.fromarray(x)) for x in (a, moved, spot)]
  thumbs += [listing.thumbnail(picture(seed)) for seed in range(2, 60)]
  groups = listing.near_copies(np.stack(thumbs))
  assert groups.tolist() == list(range(61))
  assert listing.near_copies(np.stack(thumbs[:1])).tolist() == [0]


@pytest.mark.parametrize('n, held', [(2, 1), (9, 1), (20, 2), (200, 20)])
def test_a_tenth_is_held_out_whatever_the_order(n, held):
  digests = [f'{(i * 7919) % 1009:04x}' for i in range(n)]
  out = listing.held_out(np.arange(n), digests)
  assert out.sum() == held
  order = np.random.default_rng(0).permutation(n)
  again = listing.held_out(np.arange(n), [digests[i] for i in order])
  np.testing.assert_array_equal(again, out[order])


def test_groups_stay_together():
  rng = np.random.default_rng(0)
  groups = rng.integers(0, 60, 100)
  digests = [f'{x:08x}' for x in rng.integers(0, 2**32, 100)]
  out = listing.held_out(groups, digests)
  assert 5 <= out.sum() <= 10
  for group in set(groups.tolist()):
    assert len(set(out[groups == group])) == 1
  assert not listing.held_out(np.zeros(5), list('abcde')).any()  # all are one
  two = listing.held_out(np.array([0, 0, 0, 1, 1]), list('abcde'))
  assert two.tolist() == [False] * 3 + [True] * 2


def test_an_example_has_one_split(tmp_path):
  row = listing.Row('a.png', 'a', 'train')
  rows = [row, listing.Row('b.png', 'a', 'train'), row]
  listing.write(str(tmp_path / 'images.csv'), rows)
  with pytest.raises(DataError, match="the example 'a.png' 2 times"):
    listing.read(str(tmp_path / 'images.csv'))
