"""Emoji, from a small fake package."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fractal_jax.data import pipeline, prepared
from tests.data import color_config, join, noise, png, tar_bytes


@pytest.fixture(scope='session')
def emoji_archive(tmp_path_factory):
  """manual_dir with a fake npm package, and its images in chart order."""
  root = tmp_path_factory.mktemp('emoji')
  rng = np.random.default_rng(0)
  images = [noise(rng, 64, 64, 4) for _ in range(22)]
  entries = [
    dict(
      image=f'{99 - i}.png',
      category=category,
      subcategory=subcategory,
      sort_order=i,
    )
    for i, (category, subcategory) in enumerate(
      [('Symbols', 'zodiac')] * 10
      + [('Flags', 'country-flag')] * 10
      + [('Component', 'hair-style'), ('Flags', 'flag')]
    )
  ]
  files = {'package/emoji.json': json.dumps(entries[::-1]).encode()}
  for entry, image in list(zip(entries, images, strict=True))[:-1]:
    files[f'package/img/google/64/{entry["image"]}'] = png(image)
    files[f'package/img/google/sheets/{entry["image"]}'] = b'other'
  name = prepared.ARCHIVES['emoji'][0][0]
  (root / name).write_bytes(tar_bytes(files, 'w:gz'))
  return root, images[:20]


def test_emoji_from_a_fake_package(emoji_archive, tmp_path):
  manual, images = emoji_archive
  c = color_config('emoji', tmp_path, side=64, manual_dir=str(manual))
  info = pipeline.info(c)
  assert (info.classes, info.num_train, info.num_val) == (9, 18, 2)
  assert info.class_names[2] == 'Flags' and info.class_names[7] == 'Symbols'
  got = {}
  for split in ('train', 'validation'):
    b = join(pipeline.eval_batches(c, split, 2))
    rows = zip(b['image'], b['label'], strict=True)
    got |= {x.tobytes(): int(y) for x, y in rows}
  for i, rgba in enumerate(images):
    alpha = rgba[..., 3:] / 255
    white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    near = min(
      got,
      key=lambda x: np.abs(
        np.frombuffer(x, np.uint8).reshape(64, 64, 3) - white
      ).max(),
    )
    close = np.frombuffer(near, np.uint8).reshape(64, 64, 3)
    np.testing.assert_allclose(close, white, atol=1)
    assert got[near] == (7 if i < 10 else 2)
  c.model.sizes = (128, 1)
  with pytest.raises(
    pipeline.DataError, match="'emoji' has 64x64 pixels, fewer"
  ):
    pipeline.info(c)


def test_emoji_in_subgroups(emoji_archive, tmp_path):
  manual, _ = emoji_archive
  c = color_config('emoji_subgroups', tmp_path, side=64, manual_dir=str(manual))
  info = pipeline.info(c)
  assert (info.classes, info.num_train, info.num_val) == (98, 18, 2)
  labels = join(pipeline.eval_batches(c, 'train', 2))['label']
  names = {info.class_names[y] for y in labels}
  assert names == {'zodiac', 'country-flag'}


def test_emoji_missing_or_broken_package(tmp_path):
  c = color_config('emoji', tmp_path / 'a', manual_dir=str(tmp_path))
  name = prepared.ARCHIVES['emoji'][0][0]
  match = f'lacks {name}: place.*npm pack emoji-datasource-google@16.0.0'
  with pytest.raises(pipeline.DataError, match=match):
    pipeline.info(c)
  (tmp_path / name).write_bytes(b'broken')
  match = "(?s)'emoji' could not be prepared in .*ReadError.*Replace"
  with pytest.raises(pipeline.DataError, match=match):
    pipeline.info(c)


def test_tfds_in_another_format(emoji_archive, tmp_path):
  manual, _ = emoji_archive
  code = (
    'import tensorflow_datasets as tfds; '
    'from fractal_jax.data.emoji import Emoji; '
    f"Emoji(data_dir={str(tmp_path)!r}, file_format='tfrecord')"
    '.download_and_prepare(download_config=tfds.download.DownloadConfig('
    f'manual_dir={str(manual)!r}))'
  )
  subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
  with pytest.raises(
    pipeline.DataError, match='was not prepared as array_record'
  ):
    pipeline.info(color_config('emoji', tmp_path, side=64))
