"""What jobs are given: masks that are made, files, refusals in words."""

import numpy as np
from PIL import Image
import pytest

from fractal_jax import pictures
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs
from tests import tiny
from tests.data import literal_adm, noise
from tests.edit_test import build


def test_masks_made_for_you():
  model = tiny.model(('ar', 'pixel'), (8, 1))
  lower = inputs.make_mask('lower', model)
  assert not lower[:4].any() and lower[4:].all()
  box = inputs.make_mask('inpaint', model, box=(1, 2, 3, 4))
  assert box[1:4, 2:6].all() and box.sum() == 12
  assert inputs.make_mask('inpaint', model).sum() == 16
  np.testing.assert_array_equal(
    inputs.make_mask('class', model), inputs.make_mask('inpaint', model)
  )
  out = inputs.make_mask('outpaint', model, margin=3)
  assert not out[3:5, 3:5].any() and out.sum() == 60
  np.testing.assert_array_equal(
    out, inputs.make_mask('uncrop', model, margin=3)
  )
  series = tiny.model(('ar', 'pixel'), (8, 1), rank=1)
  assert inputs.make_mask('inpaint', series, box=(1, 3)).sum() == 3
  for how in ({'box': (1, 2, 3, 7)}, {'box': (1, 2)}):
    with pytest.raises(inputs.InputError, match='top,left,height,width'):
      inputs.make_mask('inpaint', model, **how)
  with pytest.raises(inputs.InputError, match='--margin=4 must be 1 to 3'):
    inputs.make_mask('outpaint', model, margin=4)


def test_files_are_read_as_they_were_written(tmp_path):
  model = tiny.model(('ar', 'pixel'), (8, 1), num_values=17)
  values = np.arange(64).reshape(8, 8, 1) % 17
  path = str(tmp_path / 'a.png')
  pictures.save(pictures.from_values(values[None], model)[0], path)
  read, note = inputs.read_image(path, model)
  np.testing.assert_array_equal(read, values)
  assert not note
  np.save(tmp_path / 'a.npy', values)
  again, _ = inputs.read_image(str(tmp_path / 'a.npy'), model)
  np.testing.assert_array_equal(again, values)
  mask = values[..., 0] > 8
  Image.fromarray(mask).save(tmp_path / 'm.png')
  read = inputs.read_mask(str(tmp_path / 'm.png'), model)
  np.testing.assert_array_equal(read, mask)
  # One plane a channel: green known, red and blue drawn.
  planes = np.zeros((8, 8, 3), np.uint8)
  planes[..., [0, 2]] = 255
  Image.fromarray(planes).save(tmp_path / 'rgb.png')
  rgb = tiny.model(('ar', 'pixel'), (8, 1), channels=3)
  read = inputs.read_mask(str(tmp_path / 'rgb.png'), rgb)
  np.testing.assert_array_equal(read, planes > 0)
  with pytest.raises(inputs.InputError, match='coloured, .* has 1 channels'):
    inputs.read_mask(str(tmp_path / 'rgb.png'), model)
  (tmp_path / 'bad.png').write_text('no image')
  with pytest.raises(inputs.InputError, match='bad.png is not an image'):
    inputs.read_image(str(tmp_path / 'bad.png'), model)
  np.savez(tmp_path / 'x.npz', a=1)
  (tmp_path / 'x.npz').rename(tmp_path / 'several.npy')
  (tmp_path / 'empty.npy').write_bytes(b'')
  np.save(tmp_path / 'flat.npy', values[..., 0])
  np.save(tmp_path / 'shares.npy', values / 16)
  for name, words in (
    ('flat', r'flat.npy has the shape \(8, 8\): this model takes \(8, 8, 1\)'),
    ('shares', 'shares.npy: images of type float64'),
    ('empty', 'is not a .npy file'),
    ('several', 'holds several arrays'),
    ('none', 'cannot be opened'),
  ):
    with pytest.raises(inputs.InputError, match=words):
      inputs.read_image(str(tmp_path / f'{name}.npy'), model)


@pytest.mark.parametrize('size', [(40, 24), (6, 9)])
def test_images_of_another_size_are_cropped_as_in_training(size, tmp_path):
  model = tiny.model(('ar', 'pixel'), (8, 1), channels=3, num_values=256)
  image = Image.fromarray(noise(np.random.default_rng(0), *size[::-1]))
  image.save(tmp_path / 'a.png')
  read, note = inputs.read_image(str(tmp_path / 'a.png'), model)
  np.testing.assert_array_equal(read, literal_adm(image, 8))
  how = 'resized' if min(size) > 8 else 'enlarged'
  assert f'a.png has {size[0]}x{size[1]} pixels' in note
  assert note.endswith(f'{how} to 8x8')


@pytest.mark.parametrize(
  'change, words',
  [
    ({'images': np.zeros((1, 4, 5, 1), int)}, r'this model takes \(4, 4, 1\)'),
    ({'images': np.full((1, 4, 4, 1), 5)}, '5 to 5: this model takes 0 to 4'),
    ({'images': np.zeros((1, 4, 4, 1))}, 'float64: give whole numbers'),
    ({'mask': np.ones((4, 3), bool)}, r'mask of shape \(4, 3\): give \(4, 4\)'),
    ({'mask': np.full((4, 4), 7)}, 'must be bool'),
    ({'mask': np.full((4, 4), 'x')}, 'must be bool'),
    ({'mask': [[1], [1, 0]]}, 'masks are no array'),
    (
      {'images': np.ma.masked_equal(np.eye(4, dtype=int)[None, ..., None], 1)},
      'masked in part',
    ),
    ({'labels': [[0]]}, r'labels \[\[0\]\]: classes are'),
    ({'labels': [2**70]}, 'classes are 0 to 2'),
    ({'num': 1.5}, 'num=1.5 must be a whole number'),
    ({'labels': 3}, r'labels \[3\]: classes are 0 to 2'),
    ({'labels': [0, 1]}, '2 labels for 1 images'),
    ({'num': None}, 'num=None must be a whole number at least 1'),
    ({'candidates': None}, 'candidates=None must be a whole number'),
    ({'num': 0}, 'num=0 must be a whole number at least 1'),
    ({'candidates': -1}, 'candidates=-1 must be a whole number at least 1'),
  ],
)
def test_bad_requests_are_refused_in_words(change, words):
  m = build(('ar', 'pixel'), (4, 1), channels=1)
  how = {
    'images': np.zeros((1, 4, 4, 1), int),
    'mask': np.ones((4, 4), bool),
    'labels': None,
  } | change
  with pytest.raises(inputs.InputError, match=words) as found:
    m.edit(**how)
  assert isinstance(found.value, UserError)
