"""The one decoder of images, by each of its rules, and who reads by it."""

import io
import re
import struct
import sys
import zlib

import numpy as np
from PIL import Image
import pytest

from fractal_jax import config as config_lib
from fractal_jax.data import classes, common, decode, pipeline, prepared
from fractal_jax.demo import uploads
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs
from fractal_jax.metrics import files
from tests import tiny

SIDE = 8
ORIENTATION = 0x0112
MODEL = tiny.model(('ar', 'pixel'), (SIDE, 1), channels=3, num_values=256)


def color_config(name, path, side=SIDE):
  c = config_lib.default()
  c.model.update(sizes=(side, 1), channels=3, num_values=256, classes=1000)
  c.data.update(name=name, dir=str(path), flip=False, threads=2)
  return c


def noise(height=SIDE, width=SIDE, channels=3) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image, kind='png', **how) -> io.BytesIO:
  out = io.BytesIO()
  image.save(out, kind, **how)
  out.seek(0)
  return out


def turned(array: np.ndarray) -> io.BytesIO:
  """A PNG that is to be shown turned by 180 degrees."""
  exif = Image.Exif()
  exif[ORIENTATION] = 3
  return encoded(Image.fromarray(array), exif=exif)


def raw_png(colour: int, channels: int, bits=16, width=SIDE, height=SIDE):
  """A PNG that Pillow can't write: of colour type `colour`, `bits` a value."""

  def chunk(name, data):
    crc = struct.pack('>I', zlib.crc32(name + data))
    return struct.pack('>I', len(data)) + name + data + crc

  header = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
  row = b'\0' + b'\x12\x34' * (width * channels * bits // 16)
  return io.BytesIO(
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(row * min(height, 64)))
    + chunk(b'IEND', b'')
  )


# What each reader makes of a file: a function of (path, a folder that holds it
# as the one image of the class `a`, its config).


def by_training(path, root):
  config = color_config('folder', root, side=SIDE)
  return common.decode(str(path), 'x', config)


def by_editing(path, root):
  return inputs.read_image(str(path), MODEL)[0]


def by_metrics(path, root):
  return files.Samples(str(root))[0:1][0]


def by_the_demo(path, root):
  return uploads.read_image(str(path), MODEL)[0]


READERS = (by_training, by_editing, by_metrics, by_the_demo)
ERRORS = (
  pipeline.DataError,
  inputs.InputError,
  files.MetricsError,
  uploads.DemoError,
)


@pytest.fixture
def place(tmp_path):
  """Writes an encoded image into a folder of classes: (its path, the root)."""

  def write(content: io.BytesIO, name='x.png'):
    path = tmp_path / 'a' / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.getvalue())
    return path, tmp_path

  return write


@pytest.mark.parametrize('read', READERS)
def test_every_reader_turns_images_upright(read, place):
  array = noise()
  got = read(*place(turned(array)))
  np.testing.assert_array_equal(got, array[::-1, ::-1])


@pytest.mark.parametrize('read', READERS)
def test_every_reader_composites_on_white(read, place):
  rgba = noise(channels=4)
  rgba[:4, :, 3], rgba[4:, :, 3] = 0, 255
  got = read(*place(encoded(Image.fromarray(rgba))))
  assert (got[:4] == 255).all()
  np.testing.assert_array_equal(got[4:], rgba[4:, :, :3])


def deep_tiff() -> io.BytesIO:
  return encoded(Image.fromarray(np.zeros((8, 8), np.float32)), 'tiff')


def half(file: io.BytesIO) -> io.BytesIO:
  return io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2])


@pytest.mark.parametrize(
  'content, words',
  [
    (lambda: raw_png(0, 1), 'more than 8 bits'),
    (lambda: raw_png(2, 3), 'more than 8 bits'),
    (lambda: raw_png(4, 2), 'more than 8 bits'),
    (lambda: raw_png(6, 4), 'more than 8 bits'),
    (
      lambda: io.BytesIO(b'P6 8 8 65535\n' + b'\x12\x34' * 192),
      'more than 8 bits|not an image',  # the demo reads no PPM
    ),
    (deep_tiff, 'more than 8 bits|not an image'),
    (lambda: raw_png(2, 3, 8, width=1, height=100_000), '1x100000 pixels: the'),
    (
      lambda: raw_png(0, 1, 8, width=90_000, height=90_000),
      'pixels: the limit',
    ),
    (
      lambda: raw_png(0, 1, 8, width=12_000, height=15_000),
      'pixels: the limit',
    ),
    (lambda: half(encoded(Image.fromarray(noise(64, 64)))), 'not an image'),
    (lambda: io.BytesIO(b'\x89PNG\r\n\x1a\n1234'), 'not an image'),
    (lambda: io.BytesIO(b'%!PS-Adobe-3.0 EPSF-3.0\n'), 'not an image'),
    (lambda: io.BytesIO(b''), 'not an image'),
  ],
)
@pytest.mark.parametrize('read', READERS)
def test_every_reader_refuses_alike(read, content, words, place):
  with pytest.raises(ERRORS, match=words) as e:
    read(*place(content()))
  assert '\n' not in str(e.value)


def test_extreme_files_are_refused_before_they_are_decoded(monkeypatch):
  """Else a header of some bytes could ask for gigabytes."""

  def decoded(self):
    raise AssertionError('decoded')

  monkeypatch.setattr(Image.Image, 'load', decoded)
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', decoded)
  for width, height in ((1, 100_000), (12_000, 15_000), (99_999, 99_999)):
    file = raw_png(0, 1, 8, width, height)
    with pytest.raises(decode.ImageError, match='pixels: the'):
      decode.load(file, 'x')


def test_an_unreadable_file_is_not_called_damaged(tmp_path):
  with pytest.raises(decode.ImageError, match=r'opened \(No such file'):
    decode.load(tmp_path / 'x.png', 'x')
  with pytest.raises(decode.ImageError, match=r'opened \(Is a directory'):
    decode.load(tmp_path, 'x')


@pytest.mark.parametrize('kind', ['avif', 'gif', 'jpeg', 'ppm', 'tiff', 'webp'])
def test_formats(kind):
  grey = Image.new('RGB', (SIDE, SIDE), (90, 90, 90))
  got = np.asarray(decode.load(encoded(grey, kind), 'x'))
  assert np.abs(got.astype(int) - 90).max() <= 3
  assert decode.size(encoded(grey, kind), 'x') == (SIDE, SIDE)


@pytest.mark.parametrize(
  'mode, kind', [('CMYK', 'jpeg'), ('P', 'png'), ('1', 'png'), ('L', 'png')]
)
def test_other_modes_are_converted_as_pillow_does(mode, kind):
  image = Image.fromarray(noise()).convert(mode)
  stored = Image.open(encoded(image, kind))
  for to in ('RGB', 'L'):
    got = decode.load(encoded(image, kind), 'x', to)
    np.testing.assert_array_equal(got, stored.convert(to))


def test_a_palette_may_be_transparent():
  image = Image.fromarray(noise()).convert('P')
  hidden = np.asarray(image) == np.asarray(image)[0, 0]
  got = decode.load(
    encoded(image, transparency=int(image.getpixel((0, 0)))), 'x'
  )
  assert (np.asarray(got)[hidden] == 255).all()
  np.testing.assert_array_equal(
    np.asarray(got)[~hidden], np.asarray(image.convert('RGB'))[~hidden]
  )


def test_a_broken_exif_block_turns_nothing():
  array = noise()
  exif = b'Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0'
  file = encoded(Image.fromarray(array), 'png', exif=exif)
  with pytest.warns(UserWarning, match='Corrupt EXIF'):
    got = decode.load(file, 'x')
  np.testing.assert_array_equal(got, array)


def test_imagenets_published_crop_leaves_images_as_they_are_stored():
  array, config = noise(), color_config('imagenet2012', '', side=SIDE)
  for published in (True, False):
    got = common.decode(turned(array), 'x', config, published)
    want = array if published else array[::-1, ::-1]
    np.testing.assert_array_equal(got, want)


def test_masks_are_white_where_they_are_transparent(tmp_path):
  rgba = np.zeros((SIDE, SIDE, 4), np.uint8)
  rgba[:, 2:, 3] = 255
  rgba[:2, 2:, :3] = 255
  want = np.zeros((SIDE, SIDE), bool)
  want[:, :2] = want[:2] = True
  path = tmp_path / 'mask.png'
  Image.fromarray(rgba).save(path)
  np.testing.assert_array_equal(inputs.read_mask(str(path), MODEL), want)
  got = uploads.read_mask(str(path), MODEL)
  np.testing.assert_array_equal(got, np.repeat(want[..., None], 3, -1))


# Folders


def write(path, content: io.BytesIO) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content.getvalue())


def test_what_a_folder_leaves_out_is_counted_and_named(tmp_path):
  image = Image.fromarray(noise())
  for name, kind in (('x.avif', 'avif'), ('y.JFIF', 'jpeg'), ('z.png', 'png')):
    write(tmp_path / 'a' / name, encoded(image, kind))
  config = color_config('folder', tmp_path, side=SIDE)
  info = pipeline.info(config)
  assert info.num_train + info.num_val == 3 and not info.skipped
  for name in ('a/b.heic', 'a/.hidden', 'a/inner/w.png', 'loose.png', 'c.heic'):
    write(tmp_path / name, encoded(image))
  said = pipeline.info(config).skipped
  assert said.startswith(f'4 file(s) in {tmp_path} are left out')
  assert '.heic: 2' in said and '.png: 1' in said and 'none: 1' in said
  assert '\n' not in said


def one_line(config) -> str:
  with pytest.raises(pipeline.DataError) as e:
    pipeline.info(config)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_folders_that_hold_too_little(tmp_path):
  config = color_config('folder', tmp_path, side=SIDE)
  assert 'holds neither images' in one_line(config)
  write(tmp_path / 'loose.png', encoded(Image.fromarray(noise())))
  assert 'holds one image, ' in one_line(config)
  (tmp_path / 'a').mkdir()
  assert 'a holds no images' in one_line(config)
  write(tmp_path / 'a' / 'x.png', encoded(Image.fromarray(noise())))
  assert 'holds one image, ' in one_line(config)
  for i in range(5):
    write(tmp_path / 'a' / f'{i}.png', encoded(Image.new('RGB', (1, 1))))
  (tmp_path / 'a' / 'x.png').unlink()
  said = one_line(config)
  assert '1x1 pixels, fewer than the 8x8' in said
  assert '3 more of the 4 images are unfit' in said  # of the training split
  for i in range(5):
    (tmp_path / 'a' / f'{i}.png').write_bytes(b'broken')
  said = one_line(config)
  assert 'a/' in said and 'is not an image' in said
  assert '3 more of the 4 images are unfit' in said


def test_the_extra_that_tfds_needs_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  said = one_line(color_config('imagenet2012', '/x'))
  assert "pip install 'fractal_jax[tfds]'" in said and 'EXTRAS=tfds' in said
  assert prepared.EXTRA in one_line(color_config('cifar10', '/x'))


# Requests larger than the data


@pytest.mark.parametrize('hosts, parts', [(1, None), (1, 4), (2, 4), (3, None)])
def test_a_batch_is_no_larger_than_the_data(hosts, parts):
  config = config_lib.default()
  config.model.update(sizes=(8, 1), channels=1, num_values=17, classes=10)
  loaders = [
    pipeline.eval_batches(
      config,
      'validation',
      120_000,
      process_index=host,
      process_count=hosts,
      parts=parts,
    )
    for host in range(hosts)
  ]
  batches = [list(loader) for loader in loaders]
  assert [len(b) for b in batches] == [1] * hosts
  rows = {len(b[0]['index']) for b in batches}
  assert rows == {{1: 297, 4: 300, 3: 297}[parts or hosts] // hosts}
  valid = np.concatenate([b[0]['valid'] for b in batches])
  index = np.concatenate([b[0]['index'] for b in batches])
  assert sorted(index[valid]) == list(range(297))


# Class names


def test_folders_called_by_numbers_are_in_their_order(tmp_path):
  for name in range(12):
    write(tmp_path / f'{name}' / 'x.png', encoded(Image.fromarray(noise())))
  found = pipeline.info(color_config('folder', tmp_path))
  assert found.class_names == tuple(map(str, range(12)))
  assert classes.in_order(['b10', 'b9', '3']) == ['3', 'b10', 'b9']


def test_classes_by_name_and_number():
  names = ('Activities', 'Animals & Nature', 'Flags', 'Food & Drink', '7')
  texts = ['Flags', 'food', '1', '7', ' Flags']
  assert classes.numbers(texts, names, 5) == [2, 3, 1, 4, 2]
  assert classes.numbers(['0', '2'], (), 3) == [0, 2]
  with pytest.raises(
    pipeline.DataError, match="'crane' may be any of 0, 2: write its"
  ):
    classes.numbers(['crane'], ('crane', 'heron', 'crane'), 3)
  with pytest.raises(UserError, match="no class 'b'"):  # a name too many
    classes.numbers(['b'], ['a', 'b'], 1)
  for text, words in (
    ('A', "'A' may be any of Activities, Animals"),
    ('Flagz', "no class 'Flagz'. Did you mean 'Flags'"),
    ('5', "no class '5'.*0 to 4: 0 Activities, 1 Animals"),
    ('-1', "no class '-1'"),
    ('', "no class ''"),
    (str(2**40), 'no class'),
  ):
    with pytest.raises(pipeline.DataError, match=words):
      classes.numbers([text], names, 5)


def test_a_run_keeps_its_class_names(tmp_path):
  config = color_config('folder', '/data')
  assert classes.load(tmp_path) == ()
  classes.check(config, tmp_path, ('2', '10'), resumed=False)
  with pytest.raises(pipeline.DataError, match='0 10, 1 2: give'):
    # As it was numbered before names were kept.
    classes.check(config, tmp_path, ('2', '10'), resumed=True)
  classes.save(tmp_path, ('2', '10'))
  assert classes.load(tmp_path) == ('2', '10')
  classes.check(config, tmp_path, ('2', '10'), resumed=True)
  with pytest.raises(pipeline.DataError, match='are 0 2, 1 11, but'):
    classes.check(config, tmp_path, ('2', '11'), resumed=True)
  (tmp_path / classes.FILE).write_text('{')
  with pytest.raises(pipeline.DataError, match='no list of class names'):
    classes.load(tmp_path)


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(labels=np.array([0, 1, 2, 2**40])), '1099511627776: number'),
    (dict(labels=np.array([0, 1, 2, 255], np.uint8)), 'model.classes=256'),
    (dict(split=np.array(['train', 'validation'])), r'not texts of shape \[4'),
    (dict(label_names=np.array(5)), r'not texts of shape \[classes'),
    (dict(label_names=np.array([1.5])), 'label_names. is float64'),
    (dict(images=np.zeros((4, 0, 0), np.uint8)), 'is empty'),
    (
      dict(images=np.zeros((1, 8, 8), np.uint8), labels=np.array([0])),
      'holds 1 example',
    ),
  ],
)
def test_arrays_of_an_npz_file_are_checked(change, words, tmp_path):
  good = dict(images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
  np.savez(tmp_path / 'x.npz', **(good | change))
  config = color_config('npz', tmp_path / 'x.npz')
  config.model.update(channels=1, classes=10)
  assert re.search(words, one_line(config))
