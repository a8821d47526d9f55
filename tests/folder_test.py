"""Folders of images: layouts, and every error."""

import os
import socket

import numpy as np
from PIL import Image
import pytest

from fractal_jax.data import folder as folder_lib
from fractal_jax.data import listing, pipeline
from tests.data import color_config, join, literal_adm, make_config, noise, png


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
    pipeline.DataError, match='apple/3.png is not an image.*remov'
  ):
    pipeline.info(c)
  monkeypatch.setattr(folder_lib, 'MAX_CHECKED', 5)  # a huge folder
  pipeline.info(c)
  for content in (b'<html>404', whole[: len(whole) // 2]):
    bad.write_bytes(content)
    with pytest.raises(
      pipeline.DataError, match='apple/3.png is not an image.*'
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
  c.data.dir = str(tree / 'plum')
  with pytest.raises(pipeline.DataError, match='plum holds neither images'):
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


def test_a_flat_folder_is_one_class(tree):
  info = pipeline.info(color_config('folder', tree / 'pear'))
  assert info.class_names == ('pear',)
  assert (info.num_train, info.num_val) == (9, 1)
  assert 'notes.txt' in info.skipped


def test_a_flat_folder_may_hold_splits(tree, tmp_path_factory):
  root = tmp_path_factory.mktemp('flat')
  (root / 'train').symlink_to(tree / 'pear')
  (root / 'val').symlink_to(tree / 'apple')
  info = pipeline.info(color_config('folder', root))
  assert (info.num_train, info.num_val) == (10, 10)
  assert info.class_names == (root.name,)


def test_images_are_decoded_once(tree, monkeypatch):
  source = pipeline.open_split(color_config('folder', tree), 'train')
  first, label = source.read(3)
  monkeypatch.setattr(folder_lib.common, 'decode', None)
  again, same = source.read(3)
  assert again is first and label == same and not first.flags.writeable


def test_a_listing_says_which_images_there_are(tree, tmp_path):
  path = tmp_path / 'list' / 'images.csv'
  rows = [
    listing.Row('pear/1.png', 'pear', 'train'),
    listing.Row('apple/2.png', 'apple', 'validation'),
    listing.Row('apple/3.png', 'apple', '', 'broken'),
  ]
  listing.write(str(path), rows)
  assert listing.read(str(path)) == rows
  c = color_config('folder', tree, list=str(path))
  info = pipeline.info(c)
  assert (info.num_train, info.num_val) == (1, 1)
  assert info.class_names == ('apple', 'pear')
  want = literal_adm(Image.open(tree / 'apple' / '2.png'), 16)
  got, label = pipeline.open_split(c, 'validation').read(0)
  np.testing.assert_array_equal(got, want)
  assert label == 0
  c.data.val_split = 'test'
  with pytest.raises(pipeline.DataError, match="no split 'test'"):
    pipeline.info(c)
  for text in (
    *('a,b\n', 'example,class,split,note\nx,y,trian,\n', '', '\0\xff'),
    '"' + 'x' * 200_000,
  ):
    path.write_text(text, newline='')
    with pytest.raises(pipeline.DataError, match='images.csv'):
      pipeline.info(c)


def test_odd_names_and_what_is_no_file(tmp_path):
  """Circles end; pipes, sockets and links to nowhere are left out."""
  root = tmp_path / 'photos'
  odd = (b'not \xff.png', b'new\nline.png', b'return\r.png', b'"q",.png')
  for folder in ('a', 'a/deep', 'b'):
    (root / folder).mkdir(parents=True)
    (root / folder / 'x.png').write_bytes(png(np.zeros((16, 16, 3), np.uint8)))
  names = [os.path.join(os.fsencode(root), b'a', name) for name in odd]
  for name in names:
    os.link(root / 'b' / 'x.png', name)
  os.symlink('..', root / 'a' / 'up')
  os.symlink('nowhere', root / 'b' / 'nowhere.png')
  os.symlink('circle.png', root / 'b' / 'circle.png')
  os.mkfifo(root / 'b' / 'pipe.png')
  with socket.socket(socket.AF_UNIX) as heard:
    heard.bind(os.path.relpath(root / 'b' / 's.png'))
  found, own, others = folder_lib.images(root)
  assert not own and {label for _, label, _ in found} == {'a', 'b'}
  assert {os.path.basename(x) for x in others} == {
    *('nowhere.png', 'circle.png', 'pipe.png', 's.png')
  }
  # `up` leads to everything, each folder once.
  of_a = [file for file, label, _ in found if label == 'a']
  assert len(of_a) == len(set(of_a)) == 7
  rows = [listing.Row(os.path.relpath(f, root), 'a', 'train') for f in of_a]
  listing.write(str(tmp_path / 'list.csv'), rows)
  assert listing.read(str(tmp_path / 'list.csv')) == rows
  config = color_config('folder', root, list=str(tmp_path / 'list.csv'))
  source = pipeline.open_split(config, 'train')
  assert all(source.read(i)[0].shape == (16, 16, 3) for i in range(7))
  config.data.list = ''
  skipped = pipeline.open_split(config, 'train').skipped
  assert '6 file(s)' in skipped  # the folders below a class, too


def test_a_listing_may_come_from_a_spreadsheet(tmp_path):
  text = '\ufeffexample,class,split,note\r\na.png,a,train,\r\n\r\n'
  (tmp_path / 'x.csv').write_bytes(text.encode())
  rows = [listing.Row('a.png', 'a', 'train')]
  assert listing.read(str(tmp_path / 'x.csv')) == rows
