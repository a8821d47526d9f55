"""Data sets of TFDS, built once from small fake archives."""

import io
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from fractal_jax import paths
from fractal_jax.data import pipeline
from tests.data import (
  color_config,
  join,
  jpeg,
  literal_adm,
  noise,
  same,
  take,
  tar_bytes,
)

SYNSETS = ('n01440764', 'n01443537')  # labels 0 and 1


PREPARED_SIZES = ((40, 50), (64, 33), (20, 12))  # the last one is small


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory):
  """A prepared fake ImageNet: its config and its JPEG files by name."""
  root = tmp_path_factory.mktemp('imagenet')
  rng = np.random.default_rng(0)
  train = {
    synset: {
      f'{synset}_{i}.JPEG': jpeg(noise(rng, h, w))
      for i, (h, w) in enumerate(PREPARED_SIZES)
    }
    for synset in SYNSETS
  }
  val = {
    f'ILSVRC2012_val_{i:08}.JPEG': jpeg(noise(rng, 30, 30)) for i in (1, 2)
  }
  nested = {f'{s}.tar': tar_bytes(files) for s, files in train.items()}
  (root / 'manual').mkdir()
  for name, files in (('train', nested), ('val', val)):
    path = root / 'manual' / f'ILSVRC2012_img_{name}.tar'
    path.write_bytes(tar_bytes(files))
  c = color_config(
    'imagenet2012', root / 'tfds', manual_dir=str(root / 'manual')
  )
  pipeline.info(c)  # prepares it
  return c, train, val


def test_imagenet_from_fake_archives(imagenet):
  c, train, val = imagenet
  info = pipeline.info(c)
  assert (info.classes, info.num_train, info.num_val) == (1000, 6, 2)
  assert info.class_names[:2] == SYNSETS
  got = join(pipeline.eval_batches(c, 'train', 6))
  want = {
    (label, literal_adm(Image.open(io.BytesIO(content)), 16).tobytes())
    for label, synset in enumerate(SYNSETS)
    for content in train[synset].values()
  }
  rows = zip(got['label'], got['image'], strict=True)
  assert {(int(y), x.tobytes()) for y, x in rows} == want
  got = join(pipeline.eval_batches(c, 'validation', 2))
  rows = zip(got['image'], got['label'], strict=True)
  assert {x.tobytes(): y for x, y in rows} == {
    literal_adm(Image.open(io.BytesIO(x)), 16).tobytes(): y
    for x, y in zip(val.values(), (65, 970), strict=True)  # a snake, an alp
  }


@pytest.fixture(scope='module')
def in_bucket(imagenet, bucket):
  """The prepared data set, copied to a bucket: its config there."""
  c = imagenet[0].copy_and_resolve_references()
  root, url = pathlib.Path(c.data.dir), paths.path(f'{bucket.url}/tfds')
  for file in root.rglob('*'):
    if file.is_file():
      (url / str(file.relative_to(root))).write_bytes(file.read_bytes())
  c.data.dir = str(url)
  return c


def test_reading_never_imports_tensorflow(imagenet, in_bucket):
  dirs = [c.data.dir for c in (imagenet[0], in_bucket)]
  code = (
    'import sys; from fractal_jax import config; '
    'from fractal_jax.data import pipeline; '
    "lazy = ('grain', 'tensorflow_datasets', 'sklearn'); "
    'assert not any(x in sys.modules for x in lazy)\n'
    f'for place in {dirs}:\n'
    "  c = config.default(); c.data.update(name='imagenet2012', "
    'dir=place, threads=2); c.model.sizes = (16, 1); '
    'c.optim.batch = 4; pipeline.info(c); next(pipeline.train_batches(c)); '
    "list(pipeline.eval_batches(c, 'validation', 2))\n"
    "print('tensorflow' in sys.modules, 'grain' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stdout.split() == ['False', 'True'], done.stderr


def test_any_tfds_name_with_slices_and_its_errors(imagenet):
  c = imagenet[0].copy_and_resolve_references()
  c.data.name = 'imagenet2012:5.1.0'  # not built in: the way of all the others
  c.data.train_split = 'train[:50%]'
  assert pipeline.info(c).num_train == 3
  match = r'n\d+_2.JPEG \(record \d .*12x20 pixels, fewer than the 16x16'
  with pytest.raises(pipeline.DataError, match=match):
    list(pipeline.eval_batches(c, 'train', 2))
  c.data.val_split = 'dev'
  with pytest.raises(
    pipeline.DataError, match="no split 'dev'.*train, validation"
  ):
    pipeline.info(c)
  c.data.name = 'ag_news_subset'
  with pytest.raises(
    pipeline.DataError, match='features description, label, titl'
  ):
    pipeline.info(c)


def test_imagenet_missing_archives(tmp_path):
  c = color_config('imagenet2012', tmp_path)
  both = 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar'
  with pytest.raises(
    pipeline.DataError, match=f"''.* lacks {both}.*image-net.org"
  ):
    pipeline.info(c)
  c.data.manual_dir = str(tmp_path)
  (tmp_path / 'ILSVRC2012_img_train.tar').touch()
  match = f'lacks ILSVRC2012_img_val.tar: place there {both}'
  with pytest.raises(pipeline.DataError, match=match):
    pipeline.info(c)


def test_without_tfds_installed(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(pipeline.DataError, match=r'fractal_jax\[tfds\]'):
    pipeline.info(color_config('imagenet2012', '/x'))
  with pytest.raises(
    pipeline.DataError, match="no data set 'cifar10'.*pip inst"
  ):
    pipeline.info(color_config('cifar10', '/x'))


def test_a_data_set_in_a_bucket_is_read_there(
  in_bucket, imagenet, tmp_path, monkeypatch
):
  """With the same batches, and nothing local is left behind."""
  monkeypatch.chdir(tmp_path)
  here, there = imagenet[0], in_bucket
  assert pipeline.info(there) == pipeline.info(here)
  a, b = (take(pipeline.train_batches(c), 2) for c in (here, there))
  for x, y in zip(a, b):
    same(x, y)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'file, cut, match',
  [
    ('*-validation.*', 10, r'record 0 of .* cannot be read: .* 64KB'),
    ('*-validation.*', 1 << 16, 'record 0 of .* cannot be read: it is empty'),
    ('*-train.*', None, r'record \d of .* cannot be read: .*No such file'),
    ('dataset_info.json', 0, 'imagenet2012 cannot be opened: .*JSON'),
    ('dataset_info.json', 500, 'imagenet2012 cannot be opened: .*JSON'),
  ],
)
def test_damaged_files_are_told(imagenet, tmp_path, file, cut, match):
  """Cut off after so many bytes, or gone."""
  c = imagenet[0].copy_and_resolve_references()
  shutil.copytree(c.data.dir, tmp_path / 'tfds')
  c.data.dir = str(tmp_path / 'tfds')
  (path,) = (tmp_path / 'tfds').rglob(file)
  if cut is None:
    path.unlink()
  else:
    os.truncate(path, cut)
  with pytest.raises(pipeline.DataError, match=match):
    pipeline.info(c)
    for split in ('train', 'validation'):
      list(pipeline.eval_batches(c, split, 2))


def test_what_a_bucket_does_not_hold(bucket, monkeypatch):
  """Neither prepared there nor here: the way is told."""
  c = color_config('imagenet2012', f'{bucket.url}/empty')
  with pytest.raises(pipeline.DataError, match='gcloud storage rsync -r'):
    pipeline.info(c)
  monkeypatch.delenv('CLOUD_STORAGE_EMULATOR_ENDPOINT')
  monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', '/none.json')
  with pytest.raises(pipeline.DataError, match='none are found: `gcloud auth'):
    pipeline.info(c)
  c.data.dir = 'hf://datasets/x'
  with pytest.raises(pipeline.DataError, match='from local or mounted files'):
    pipeline.info(c)
