"""Data sets of TFDS, built once from small fake archives."""

import io
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from fractal_jax.data import pipeline
from tests.data import color_config, join, jpeg, literal_adm, noise, tar_bytes

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


def test_reading_never_imports_tensorflow(imagenet):
  c, _, _ = imagenet
  code = (
    'import sys; from fractal_jax import config; '
    'from fractal_jax.data import pipeline; '
    "lazy = ('grain', 'tensorflow_datasets', 'sklearn'); "
    'assert not any(x in sys.modules for x in lazy); '
    f"c = config.default(); c.data.update(name='imagenet2012', "
    f'dir={c.data.dir!r}, threads=2); c.model.sizes = (16, 1); '
    'c.optim.batch = 4; pipeline.info(c); next(pipeline.train_batches(c)); '
    "list(pipeline.eval_batches(c, 'validation', 2)); "
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


def test_array_records_in_a_bucket_are_refused_with_the_way_out(bucket):
  config = color_config('imagenet2012', f'{bucket.url}/tfds')
  with pytest.raises(pipeline.DataError, match='gcloud storage cp -r'):
    pipeline.info(config)
