"""What is found in data: kinds of folders and files, and everything wrong."""

import numpy as np
from PIL import Image
import pytest

from fractal_jax.data import listing, look, pipeline
from fractal_jax.data.common import DataError
from tests.data import color_config
from tests.listing_test import as_jpeg, picture


def save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)


@pytest.fixture
def photos(tmp_path):
  """Two classes of ten images of 16 to 34 pixels; a broken one, a copy."""
  root = tmp_path / 'photos'
  for i in range(20):
    name = ('cat', 'dog')[i % 2]
    save(root / name / f'{i}.png', picture(i, 16 + i))
  (root / 'cat' / 'broken.jpg').write_bytes(b'\xff\xd8 no more')
  save(root / 'dog' / 'deep' / 'copy.jpg', as_jpeg(picture(3, 64)))
  (root / 'notes.txt').write_text('not an image')
  (root / '.hidden').mkdir()
  return root


def test_a_folder_of_classes(photos):
  found = look.at(str(photos))
  assert found.class_names == ('cat', 'dog') and found.colour
  rows = {row.example: row for row in found.rows}
  assert len(rows) == 22
  splits = [row.split for row in found.rows]
  assert (splits.count('train'), splits.count('validation')) == (19, 2)
  broken = rows['cat/broken.jpg']
  assert broken.split == '' and 'not an image' in broken.note
  copy = rows['dog/deep/copy.jpg']
  assert copy.note == 'near copy of dog/3.png'
  assert copy.split == rows['dog/3.png'].split
  notes = ' '.join(found.notes)
  assert 'notes.txt' in notes and 'cat/broken.jpg' in notes
  assert '1 image(s) are near copies of others' in notes
  assert sorted(found.sides)[:2] == [0, 16] and found.sides.max() == 64
  # The same images in another folder, in another order, are split alike.
  other = photos.with_name('other')
  for row in found.rows:
    if row.split:
      name = f'{"dog" if row.label == "cat" else "a"}/{row.example}'
      save(other / name, Image.open(photos / row.example))
      (other / name).write_bytes((photos / row.example).read_bytes())
  again = {row.example[4:]: row for row in look.at(str(other)).rows}
  again |= {row.example[2:]: row for row in look.at(str(other)).rows}
  for row in found.rows:
    assert row.split == '' or again[row.example].split == row.split


def test_images_that_are_too_small_are_left_out_and_noted(photos):
  found = look.fitting(look.at(str(photos)), 24)
  notes = {row.example: row.note for row in found.rows}
  assert notes['cat/0.png'] == 'smaller than 24x24'
  assert sum(row.split != '' for row in found.rows) == 13
  assert '8 of 21 images are smaller than 24x24' in found.notes[-1]
  with pytest.raises(DataError, match='--size=25 or less'):
    look.fitting(look.at(str(photos)), 65)


def test_the_listing_is_what_is_trained_on(photos, tmp_path):
  found = look.fitting(look.at(str(photos)), 16)
  path = str(tmp_path / 'images.csv')
  listing.write(path, found.rows)
  info = pipeline.info(color_config('folder', photos, list=path))
  assert (info.num_train, info.num_val) == (19, 2)
  assert info.class_names == found.class_names


def test_a_flat_folder_and_one_of_splits(photos, tmp_path):
  flat = look.at(str(photos / 'cat'))
  assert flat.class_names == ('cat',) and len(flat.rows) == 11
  root = tmp_path / 'splits'
  root.mkdir()
  (root / 'train').symlink_to(photos)
  save(root / 'val' / 'cat' / 'x.png', picture(2, 18))
  found = look.at(str(root))
  rows = {row.example: row for row in found.rows}
  assert rows['val/cat/x.png'].split == 'validation'
  assert rows['train/dog/3.png'].split == 'train'
  assert '1 of them of one in the other split' in ' '.join(found.notes)
  assert (
    pipeline.open_split(color_config('folder', root), 'validation').size == 1
  )


def test_grey_images_are_grey(tmp_path):
  for i in range(4):
    save(tmp_path / f'{i}.jpg', picture(i, 32).convert('L'))
  assert not look.at(str(tmp_path)).colour
  save(tmp_path / '5.jpg', picture(5, 32))
  assert look.at(str(tmp_path)).colour


def empty(root):
  (root / 'notes.txt').write_text('')


def one(root):
  save(root / 'a.png', picture(0))


def many_classes(root):
  for i in range(1000):
    (root / f'{i}').mkdir()
    (root / f'{i}' / 'a.png').touch()


def broken(root):
  for i in range(3):
    (root / f'{i}.png').write_text('no image')


def copies(root):
  for i in range(3):
    save(root / f'{i}.png', picture(0, 20 + i))


@pytest.mark.parametrize(
  'make, words',
  [
    (empty, 'holds no images'),
    (one, 'holds one image, .*a.png: at least 2'),
    (many_classes, 'holds 1,000 folders with 1.0 images each'),
    (broken, 'none of the 3 images .* can be read; the first is .*0.png'),
    (copies, 'the 3 images .* are all copies of one'),
  ],
)
def test_wrong_folders_give_one_clear_line(make, words, tmp_path):
  make(tmp_path)
  with pytest.raises(DataError, match=words) as e:
    look.at(str(tmp_path))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['nowhere', '/no/where', 'a.txt'])
def test_what_is_no_data_is_told(name):
  with pytest.raises(DataError, match=f'--data={name} is no folder'):
    look.at(name)


def test_arrays(tmp_path):
  path = str(tmp_path / 'x.npz')
  images = np.stack([np.asarray(picture(i, 20))[..., 0] for i in range(30)])
  labels = np.arange(30) % 3
  np.savez(path, images=images, labels=labels, label_names=['a', 'b', 'c'])
  found = look.at(path)
  assert (found.name, found.colour, found.values) == ('npz', False, 256)
  assert [row.split for row in found.rows].count('validation') == 3
  listing.write(str(tmp_path / 'list.csv'), found.rows)
  c = color_config('npz', path, list=str(tmp_path / 'list.csv'))
  c.model.channels = 1
  assert pipeline.info(c).num_val == 3
  split = ['train'] * 20 + ['test'] * 10
  np.savez(path, images=images % 17, labels=labels, split=split)
  found = look.at(path)
  assert found.rows is None and found.splits == ('train', 'test')
  assert found.values == 17 and found.class_names == ('0', '1', '2')


def test_splits_by_other_names_are_no_classes(tmp_path):
  for i in range(6):
    save(tmp_path / ('Train', 'valid')[i % 2] / f'{i}.png', picture(i))
  with pytest.raises(DataError, match='the folders Train, valid, .* splits'):
    look.at(str(tmp_path))
  (tmp_path / 'Train').rename(tmp_path / 'train')
  (tmp_path / 'valid').rename(tmp_path / 'val')
  assert look.at(str(tmp_path)).class_names == (tmp_path.name,)


def test_an_empty_split_is_named(tmp_path):
  for i in range(4):
    save(tmp_path / 'train' / 'a' / f'{i}.png', picture(i))
  (tmp_path / 'val').mkdir()
  with pytest.raises(DataError, match='all in train: put some into each'):
    look.at(str(tmp_path))


def test_folders_beside_those_of_splits_are_left_out_and_said(tmp_path):
  for i, name in enumerate(('train/a', 'val/b', 'train/a', 'val/a', 'cats')):
    save(tmp_path / name / f'{i}.png', picture(i))
  found = look.at(str(tmp_path))
  assert len(found.rows) == 4
  notes = ' '.join(found.notes)
  assert '1 file(s)' in notes and 'cats/4.png' in notes
  assert "1 class(es) have held-out images alone, such as 'b'" in notes


def test_arrays_that_are_all_alike_are_refused(tmp_path):
  file = tmp_path / 'x.npz'
  np.savez(file, images=np.zeros((9, 8, 8), np.uint8), labels=np.zeros(9, int))
  with pytest.raises(DataError, match='the 9 images .* are all copies of one'):
    look.at(str(file))
