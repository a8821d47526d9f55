"""Digits and .npz files."""

import numpy as np
from PIL import Image
import pytest

from fractal_jax.data import listing, pipeline
from tests.data import join, literal_adm, make_config, noise, write_npz


def test_info_of_digits():
  assert pipeline.info(make_config()) == pipeline.Info(
    classes=10,
    class_names=tuple('0123456789'),
    num_train=1500,
    num_val=297,
  )


def test_digits_are_the_originals_and_the_splits_disjoint():
  from sklearn import datasets

  got = []
  for split in ('train', 'validation'):
    b = join(pipeline.eval_batches(make_config(), split, 100))
    got += [
      (x.tobytes(), int(y))
      for x, y, v in zip(b['image'], b['label'], b['valid'], strict=True)
      if v
    ]
  digits = datasets.load_digits()
  want = [
    (x.astype(np.uint8).tobytes(), int(y))
    for x, y in zip(digits.images, digits.target, strict=True)
  ]
  assert sorted(got) == sorted(want)


def test_npz_labels_names_and_splits(tmp_path):
  images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
  c = write_npz(
    tmp_path,
    images,
    np.array([0, 1, 1, 0]),
    label_names=np.array(['cat', 'dog']),
    split=np.array(['train', 'validation', 'train', 'train']),
  )
  info = pipeline.info(c)
  assert info.class_names == ('cat', 'dog')
  assert (info.num_train, info.num_val) == (3, 1)
  batch = join(pipeline.eval_batches(c, 'train', 3))
  np.testing.assert_array_equal(batch['image'][..., 0], images[[0, 2, 3]])
  np.testing.assert_array_equal(batch['label'], [0, 1, 0])


def test_npz_series_keep_wide_values(tmp_path):
  series = np.arange(60, dtype=np.int32).reshape(5, 4, 3) * 10
  c = write_npz(tmp_path, series, rank=1, split=np.array(['train'] * 5))
  c.model.num_values = 600
  batch = join(pipeline.eval_batches(c, 'train', 5))
  assert batch['image'].dtype == np.int32
  np.testing.assert_array_equal(batch['image'], series)


def test_npz_larger_images_are_cropped(tmp_path):
  images = noise(np.random.default_rng(0), 40, 60)[None].repeat(4, 0)
  c = write_npz(tmp_path, images)
  c.model.sizes = (16, 1)
  batch = next(iter(pipeline.eval_batches(c, 'train', 1)))
  want = literal_adm(Image.fromarray(images[0]), 16)
  np.testing.assert_array_equal(batch['image'][0], want)


@pytest.mark.parametrize(
  'change, match',
  [
    (dict(images=np.zeros((4, 2, 2))), 'images. is float64 of shape'),
    (dict(images=np.zeros((4, 2), int)), r'\(4, 2\), not integers of shape'),
    (dict(images=np.full((4, 2, 2), -1)), 'images. holds -1, below 0'),
    (dict(images=np.zeros((1, 2, 2), int)), 'labels. is int64 of shape'),
    (dict(images=np.zeros((4, 3, 3), int)), r'shape \(3, 3, 1\) but the'),
    (dict(labels=np.zeros(3, int)), r'labels. is int64 of shape \(3,\)'),
    (dict(labels=np.array([0, 1, 2, -3])), 'labels. holds -3'),
    (dict(label_names=np.array(['a'])), 'label 1 has no name'),
    (dict(split=np.array(['train'] * 4)), "no split 'validation'.*of train"),
    (dict(images=np.full((4, 2, 2), 256)), 'values up to 256.*num_values=256'),
  ],
)
def test_npz_errors_name_the_array(tmp_path, change, match):
  good = dict(images=np.zeros((4, 2, 2), int), labels=np.array([0, 1, 0, 1]))
  path = tmp_path / 'x.npz'
  c = make_config('npz', 2, 1, 256, 10, dir=str(path))
  np.savez(path, **good)
  pipeline.info(c)
  np.savez(path, **(good | change))
  with pytest.raises(pipeline.DataError, match=match):
    pipeline.info(c)


def test_npz_file_errors(tmp_path):
  path = tmp_path / 'x.npz'
  c = make_config('npz', dir=str(path))
  with pytest.raises(
    pipeline.DataError, match='x.npz.* is no file: set data.dir'
  ):
    pipeline.info(c)
  path.write_bytes(b'nothing')
  with pytest.raises(pipeline.DataError, match='x.npz cannot be read'):
    pipeline.info(c)
  np.savez(path, images=np.zeros((4, 8, 8), int))
  with pytest.raises(pipeline.DataError, match='holds images but no `labels`'):
    pipeline.info(c)
  c.model.rank = 1
  with pytest.raises(pipeline.DataError, match='no `series`.*rank=1'):
    pipeline.info(c)


@pytest.mark.parametrize('example', ['x', '-1', '4', '9' * 5000, ''])
def test_a_listing_of_other_examples_is_refused(example, tmp_path):
  c = write_npz(tmp_path, np.zeros((4, 8, 8, 1), np.uint8))
  c.data.list = str(tmp_path / 'list.csv')
  rows = [listing.Row('3', '0', 'train'), listing.Row(example, '0', 'train')]
  listing.write(c.data.list, rows[:1])
  assert pipeline.open_split(c, 'train').size == 1
  with pytest.raises(pipeline.DataError, match="no split 'validation'"):
    pipeline.open_split(c, 'validation')
  listing.write(c.data.list, rows)
  with pytest.raises(pipeline.DataError, match='write a number from 0 to 3'):
    pipeline.open_split(c, 'train')
