"""The data: splits, streams, crops, and every error message.

TFDS sets are built from small fake archives, once for all the tests.
"""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest

from fractal_jax import config as config_lib
from fractal_jax.data import common, pipeline, prepared
from fractal_jax.data import folder as folder_lib


def make_config(name='digits', side=8, channels=1, values=17, classes=10, **d):
  c = config_lib.default()
  c.model.update(
    sizes=(side, 1), channels=channels, num_values=values, classes=classes
  )
  c.data.update(name=name, flip=False, threads=4, **d)
  c.optim.batch = 64
  return c


def color_config(name, path, side=16, **d):
  return make_config(name, side, 3, 256, 1000, dir=str(path), **d)


def noise(rng, height, width, channels=3):
  shape = (height, width, channels) if channels > 1 else (height, width)
  return rng.integers(0, 256, shape, np.uint8)


def png(array) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, 'png')
  return out.getvalue()


def jpeg(array) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, 'jpeg')
  return out.getvalue()


def tar_bytes(files: dict[str, bytes], mode='w') -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as tar:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return out.getvalue()


def join(batches) -> dict:
  batches = list(batches)
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def take(iterator, n) -> list:
  return [next(iterator) for _ in range(n)]


def same(a, b) -> None:
  assert a.keys() == b.keys()
  for k in a:
    np.testing.assert_array_equal(a[k], b[k], strict=True)


# The stream


def test_info_of_digits():
  assert pipeline.info(make_config()) == pipeline.Info(
    shape=(8, 8, 1),
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


def test_a_batch_has_the_promised_types():
  batch = next(pipeline.train_batches(make_config()))
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    'image': ('uint8', (64, 8, 8, 1)),
    'label': ('int32', (64,)),
    'index': ('int64', (64,)),
  }


@pytest.mark.parametrize('hosts', [2, 4])
@pytest.mark.parametrize('batch', [64, 12])  # 12: chunks of single rows
def test_hosts_share_one_global_stream(hosts, batch):
  c = make_config()
  c.data.update(flip=True, shift=2)
  c.optim.batch = batch
  one = pipeline.train_batches(c)
  many = [
    pipeline.train_batches(c, process_index=h, process_count=hosts)
    for h in range(hosts)
  ]
  for _ in range(3):
    parts = [next(it) for it in many]
    assert all(len(p['index']) == batch // hosts for p in parts)
    same(next(one), join(parts))


def test_each_image_comes_once_an_epoch_in_a_new_order():
  n, c = 1500, make_config()
  c.optim.batch = 100
  batches = take(pipeline.train_batches(c), 2 * n // 100)
  np.testing.assert_array_equal(join(batches)['index'], np.arange(2 * n))
  images = join(batches)['image'].reshape(2 * n, -1)
  whole = join(pipeline.eval_batches(c, 'train', 100))['image'].reshape(n, -1)
  first, second = images[:n].tolist(), images[n:].tolist()
  assert sorted(first) == sorted(second) == sorted(whole.tolist())
  assert first != second
  assert first != whole.tolist()


def test_the_seed_decides_the_stream():
  a, b, c = make_config(), make_config(), make_config()
  c.seed = 1
  a, b, c = (next(pipeline.train_batches(x))['image'] for x in (a, b, c))
  assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize('hosts', [1, 2])
def test_resumes_exactly_by_state_and_by_start(hosts):
  c = make_config()
  c.data.shift = 1
  c.optim.batch = 700  # epochs end in the middle of a batch
  options = dict(process_index=hosts - 1, process_count=hosts)
  straight = pipeline.train_batches(c, **options)
  take(straight, 3)
  state = json.loads(json.dumps(straight.get_state()))
  want = take(straight, 3)

  started = pipeline.train_batches(c, **options, start=3)
  assert started.get_state() == state
  restored = pipeline.train_batches(c, **options)
  next(restored)
  restored.set_state(state)
  for it in (started, restored):
    for a, b in zip(want, take(it, 3), strict=True):
      same(a, b)
  assert started.get_state() == restored.get_state() == straight.get_state()


def test_a_state_is_the_same_on_any_number_of_hosts():
  c = make_config()
  one = pipeline.train_batches(c)
  two = pipeline.train_batches(c, process_index=1, process_count=2)
  take(one, 2), take(two, 2)
  assert one.get_state() == two.get_state()


def test_a_batch_larger_than_the_data_set_repeats_it(tmp_path):
  c = write_npz(tmp_path, np.arange(40, dtype=np.uint8).reshape(10, 2, 2))
  batch = next(pipeline.train_batches(c))  # 64 of 9 training images
  counts = np.unique(batch['image'][:, 0, 0, 0], return_counts=True)[1]
  assert sorted(counts) == [7] * 8 + [8]


def write_npz(path, images, labels=None, rank=2, **more):
  key = 'images' if rank == 2 else 'series'
  labels = np.zeros(len(images), np.int64) if labels is None else labels
  np.savez(path / 'x.npz', **{key: images, 'labels': labels}, **more)
  channels = images.shape[-1] if images.ndim == rank + 2 else 1
  c = make_config('npz', images.shape[1], channels, 256, 10)
  c.data.dir = str(path / 'x.npz')
  c.model.rank = rank
  return c


# Augmentation


def augmented(tmp_path, rank=2, flip=False, shift=0, n=512):
  """Random pictures of one image, [n, ...], and the image."""
  shape = (5, 5, 1) if rank == 2 else (5, 2)
  image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
  c = write_npz(tmp_path, np.stack([image] * 4), rank=rank)
  c.data.update(flip=flip, shift=shift)
  c.optim.batch = n
  return next(pipeline.train_batches(c))['image'], image


def unique(images):
  return {x.tobytes() for x in images}


def test_flip_mirrors_half_of_the_images(tmp_path):
  got, image = augmented(tmp_path, flip=True)
  assert unique(got) == unique([image, image[:, ::-1]])
  share = np.mean([(x == image).all() for x in got])
  assert 0.4 < share < 0.6


def test_series_are_never_flipped(tmp_path):
  got, image = augmented(tmp_path, rank=1, flip=True)
  assert unique(got) == unique([image])


def test_shift_moves_each_axis_and_repeats_edges(tmp_path):
  got, image = augmented(tmp_path, shift=2)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode='edge')
  want = [padded[i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
  assert unique(got) == unique(want)
  assert len(unique(want)) == 25


def test_series_shift_along_time(tmp_path):
  got, image = augmented(tmp_path, rank=1, shift=1)
  padded = np.pad(image, ((1, 1), (0, 0)), mode='edge')
  assert unique(got) == unique([padded[i : i + 5] for i in range(3)])


# Evaluation


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_evaluation_pads_and_gives_hosts_equal_batches(hosts):
  c = make_config()
  c.data.update(flip=True, shift=2)  # must not matter
  loaders = [
    pipeline.eval_batches(
      c, 'validation', 64, process_index=h, process_count=hosts
    )
    for h in range(hosts)
  ]
  assert [len(x) for x in loaders] == [5] * hosts
  parts = [list(x) for x in loaders]
  assert [len(p) for p in parts] == [5] * hosts
  got = join(join(step) for step in zip(*parts, strict=True))
  assert got['valid'].dtype == bool and got['valid'].sum() == 297
  np.testing.assert_array_equal(got['valid'], np.arange(320) < 297)
  np.testing.assert_array_equal(got['index'], np.arange(320).clip(0, 297))
  assert not got['image'][297:].any()
  source = pipeline.open_split(c, 'validation')
  for i in (0, 100, 296):
    image, label = source.read(i)
    np.testing.assert_array_equal(got['image'][i], image)
    assert got['label'][i] == label


def test_evaluation_can_be_iterated_again():
  loader = pipeline.eval_batches(make_config(), 'validation', 64)
  same(join(loader), join(loader))


def test_a_subset_is_fixed_nested_and_representative(tmp_path):
  labels = np.repeat(np.arange(10), 100)  # sorted by class
  images = np.arange(1000, dtype=np.int32).reshape(1000, 1, 1)
  c = write_npz(tmp_path, images, labels, split=np.array(['test'] * 1000))
  c.model.num_values = 1000
  small = join(pipeline.eval_batches(c, 'test', 50, num=100))
  large = join(pipeline.eval_batches(c, 'test', 50, num=200))
  assert small['valid'].all() and len(small['index']) == 100
  assert len(set(large['index'])) == 200
  np.testing.assert_array_equal(small['index'], large['index'][:100])
  np.testing.assert_array_equal(small['image'][:, 0, 0, 0], small['index'])
  assert np.bincount(large['label'], minlength=10).min() >= 8
  everything = join(pipeline.eval_batches(c, 'test', 50, num=5000))
  np.testing.assert_array_equal(everything['index'], np.arange(1000))


# The crop


def literal_adm(image: Image.Image, side: int) -> np.ndarray:
  """ADM's centre crop, step by step on (width, height)."""
  width, height = image.size
  while min(width, height) >= 2 * side:
    width, height = width // 2, height // 2
    image = image.resize((width, height), resample=Image.BOX)
  scale = side / min(width, height)
  width, height = round(width * scale), round(height * scale)
  array = np.array(image.resize((width, height), resample=Image.BICUBIC))
  top, left = (height - side) // 2, (width - side) // 2
  return array[top : top + side, left : left + side]


@pytest.mark.parametrize(
  'height, width', [(16, 16), (17, 40), (31, 33), (32, 32), (150, 77), (9, 12)]
)
def test_crop_is_adms(height, width):
  image = Image.fromarray(noise(np.random.default_rng(0), height, width))
  got = common.to_array(image, 16, 3)
  assert got.shape == (16, 16, 3)
  np.testing.assert_array_equal(got, literal_adm(image, 16))


def test_crop_halves_by_averaging():
  blocks = noise(np.random.default_rng(0), 16, 16, 1)
  image = Image.fromarray(blocks.repeat(4, 0).repeat(4, 1))
  np.testing.assert_array_equal(common.to_array(image, 16, 1)[..., 0], blocks)


def test_transparent_pixels_become_white():
  rgba = np.zeros((16, 16, 4), np.uint8)
  rgba[:8, :, 3] = 255  # the upper half is black, the rest transparent
  got = common.to_array(Image.fromarray(rgba), 16, 3)
  assert (got[:8] == 0).all() and (got[8:] == 255).all()


# .npz files


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


# Folders of images


@pytest.fixture
def tree(tmp_path):
  """DIR/CLASS/*.png: two classes of ten images, 20x30 RGB."""
  rng = np.random.default_rng(0)
  for name in ('apple', 'pear'):
    (tmp_path / name).mkdir()
    for i in range(10):
      (tmp_path / name / f'{i}.png').write_bytes(png(noise(rng, 20, 30)))
  (tmp_path / 'pear' / 'notes.txt').write_text('not an image')
  (tmp_path / '.cache').mkdir()
  return tmp_path


def test_folder_of_classes(tree):
  c = color_config('folder', tree)
  info = pipeline.info(c)
  assert info.class_names == ('apple', 'pear')
  assert (info.num_train, info.num_val) == (18, 2)
  got = set()
  for split in ('train', 'validation'):
    b = join(pipeline.eval_batches(c, split, 2))
    got |= {
      (int(y), x.tobytes()) for x, y in zip(b['image'], b['label'], strict=True)
    }
  want = {
    (y, literal_adm(Image.open(p), 16).tobytes())
    for y, name in enumerate(('apple', 'pear'))
    for p in (tree / name).glob('*.png')
  }
  assert got == want


def test_folder_reads_grey(tree):
  c = make_config('folder', 16, 1, 256, 2, dir=str(tree))
  batch = join(pipeline.eval_batches(c, 'validation', 2))
  assert batch['image'].shape == (2, 16, 16, 1)


@pytest.mark.parametrize('val', ['validation', 'val'])
def test_folder_with_splits(tree, val, tmp_path_factory):
  root = tmp_path_factory.mktemp('splits')
  (root / 'train').symlink_to(tree)
  (root / val / 'pear').mkdir(parents=True)
  (root / val / 'pear' / 'x.PNG').write_bytes(
    (tree / 'pear' / '0.png').read_bytes()
  )
  c = color_config('folder', root)
  info = pipeline.info(c)
  assert info.class_names == ('apple', 'pear')
  assert (info.num_train, info.num_val) == (20, 1)
  assert join(pipeline.eval_batches(c, 'validation', 1))['label'].tolist() == [
    1
  ]


def test_a_class_may_be_called_train(tree):
  (tree / 'pear').rename(tree / 'train')
  assert pipeline.info(color_config('folder', tree)).class_names == (
    'apple',
    'train',
  )


def test_folder_unreadable_image(tree, monkeypatch):
  c = color_config('folder', tree)
  bad = tree / 'apple' / '3.png'
  whole = bad.read_bytes()
  bad.write_bytes(b'<html>404')  # found by its header
  with pytest.raises(
    pipeline.DataError, match='apple/3.png cannot be read.*remov'
  ):
    pipeline.info(c)
  monkeypatch.setattr(folder_lib, 'MAX_CHECKED', 5)  # a huge folder
  pipeline.info(c)
  for content in (b'<html>404', whole[: len(whole) // 2]):
    bad.write_bytes(content)
    with pytest.raises(
      pipeline.DataError, match='apple/3.png cannot be read.*'
    ):
      for split in ('train', 'validation'):
        list(pipeline.eval_batches(c, split, 4))


def test_folder_too_small_image(tree, monkeypatch):
  c = color_config('folder', tree)
  small = noise(np.random.default_rng(0), 40, 12)
  (tree / 'pear' / '0.png').write_bytes(png(small))
  match = r'pear/0.png has 12x40 pixels, fewer than the 16x16.*sizes\[0\] to 12'
  with pytest.raises(pipeline.DataError, match=match):
    pipeline.info(c)
  monkeypatch.setattr(folder_lib, 'MAX_CHECKED', 5)
  with pytest.raises(pipeline.DataError, match=match):
    for split in ('train', 'validation'):
      list(pipeline.eval_batches(c, split, 4))


def test_folder_sixteen_bit_image(tree):
  deep = np.full((20, 20), 1000, np.uint16)
  for i in range(10):
    (tree / 'pear' / f'{i}.png').write_bytes(png(deep))
  with pytest.raises(pipeline.DataError, match='pear/.*more than 8 bits'):
    list(pipeline.eval_batches(color_config('folder', tree), 'train', 4))


def test_folder_layout_errors(tree, tmp_path_factory):
  c = color_config('folder', tree)
  (tree / 'plum').mkdir()
  with pytest.raises(pipeline.DataError, match='plum holds no images.*remove'):
    pipeline.info(c)
  c.data.dir = str(tree / 'pear')
  with pytest.raises(pipeline.DataError, match='pear holds no folders'):
    pipeline.info(c)
  for missing in ('', '/nowhere/x'):
    c.data.dir = missing
    with pytest.raises(
      pipeline.DataError, match=f"dir='{missing}' is no folder"
    ):
      pipeline.info(c)
  (tree / 'plum').rmdir()
  root = tmp_path_factory.mktemp('splits')
  c.data.dir = str(root)
  (root / 'train').symlink_to(tree)
  with pytest.raises(pipeline.DataError, match="no split 'validation'.*train"):
    pipeline.info(c)
  (root / 'val' / 'paer').mkdir(parents=True)
  with pytest.raises(
    pipeline.DataError, match="val/paer is a .*Did you mean 'pea"
  ):
    pipeline.info(c)


# Errors in common


def test_unknown_names_are_listed_with_the_nearest():
  with pytest.raises(
    pipeline.DataError, match="'digit'.*mean 'digits'.*npz, or"
  ):
    pipeline.info(make_config('digit'))
  with pytest.raises(pipeline.DataError, match="'cifra10'.*mean 'cifar10'"):
    pipeline.info(make_config('cifra10'))
  for name in ('', 'qqqqqq'):
    with pytest.raises(pipeline.DataError, match=f"no data set '{name}'. Set "):
      pipeline.info(make_config(name))


def test_model_that_does_not_fit():
  def raises(match, **kwargs):
    with pytest.raises(pipeline.DataError, match=match):
      pipeline.info(make_config(**kwargs))

  raises(r'grey images of 8x8.*sizes\[0\]=8', side=16)
  raises('grey images of 8x8.*channels=1', channels=3)
  raises(r'values up to 16.*num_values=16 allows.*num_values=17', values=16)
  raises('labels up to 9.*model.classes=9.*model.classes=10', classes=9)
  raises("'digits' has no split 'test'.*train, validat", val_split='test')
  raises('model.channels=2', name='folder', channels=2)
  c = make_config('folder')
  c.model.rank = 1
  with pytest.raises(pipeline.DataError, match='model.rank=1'):
    pipeline.info(c)


def test_batches_must_divide_by_the_hosts():
  c = make_config()
  with pytest.raises(
    pipeline.DataError, match='optim.batch=64 .* over 3 hosts'
  ):
    pipeline.train_batches(c, process_count=3)
  with pytest.raises(pipeline.DataError, match='batch=10 .* over 4 hosts'):
    pipeline.eval_batches(c, 'train', 10, process_count=4)


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


# TFDS


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


@pytest.fixture(scope='session')
def emoji_archive(tmp_path_factory):
  """manual_dir with a fake npm package, and its images in chart order."""
  root = tmp_path_factory.mktemp('emoji')
  rng = np.random.default_rng(0)
  images = [noise(rng, 64, 64, 4) for _ in range(22)]
  entries = [
    dict(image=f'{99 - i}.png', category=category, sort_order=i)
    for i, category in enumerate(
      ['Symbols'] * 10 + ['Flags'] * 10 + ['Component', 'Flags']
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


def test_without_tfds_installed(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(
    pipeline.DataError, match='pip install tensorflow-datasets'
  ):
    pipeline.info(color_config('imagenet2012', '/x'))
  with pytest.raises(
    pipeline.DataError, match="no data set 'cifar10'.*pip inst"
  ):
    pipeline.info(color_config('cifar10', '/x'))


def test_array_records_in_a_bucket_are_refused_with_the_way_out(bucket):
  config = color_config('imagenet2012', f'{bucket.url}/tfds')
  with pytest.raises(common.DataError, match='gcloud storage cp -r'):
    pipeline.info(config)
