"""Pictures of values, grids of them, and movies."""

import numpy as np
from PIL import Image
import pytest

from fractal_jax import pictures
from fractal_jax.inference import sample
from fractal_jax.inference.progress import result_of
from fractal_jax.models.types import Drawn
from tests import tiny

MODEL = dict(kinds=('mar', 'pixel'), sizes=(4, 1), channels=2)


@pytest.fixture(scope='module')
def draw():
  net, params = tiny.build(**MODEL)

  def draw(labels, **how):
    config = tiny.config(**MODEL)
    job = sample.draw(net, params, config, np.array(labels), **how)
    return result_of(job)

  return draw


def test_movies_know_when_each_value_was_drawn(draw, tmp_path):
  drawn = draw([-1, 2], iterations=(3,), record=True)
  plain = draw([-1, 2], iterations=(3,))
  np.testing.assert_array_equal(drawn.values, plain.values)
  assert drawn.when.min() == 0 and drawn.when.max() < 32
  # A pixel's second channel is drawn after its first.
  assert (drawn.when[..., 1] > drawn.when[..., 0]).all()
  model = tiny.model(**MODEL)
  path = tmp_path / 'gen.gif'
  pictures.save_movie(drawn, model, str(path), frames=12)
  with Image.open(path) as movie:
    assert movie.n_frames > 5
    first = np.asarray(movie.convert('RGB'))
    movie.seek(movie.n_frames - 1)
    last = np.asarray(movie.convert('RGB'))
  full = pictures.grid(pictures.from_values(drawn.values, model))
  assert last.shape == full.shape
  assert np.abs(last.astype(int) - full).max() <= 8  # GIF's palette
  assert (first != last).any()
  with pytest.raises(pictures.PictureError, match=r'\.gif'):
    pictures.save_movie(drawn, model, str(tmp_path / 'gen.avi'))


def test_movies_show_the_recursion():
  """Two patches value by value and slowly, then faster; lighter where begun."""
  model = tiny.model(('ar', 'ar', 'pixel'), (8, 2, 1))
  order = np.arange(64).reshape(4, 4, 2, 2).swapaxes(1, 2).reshape(1, 8, 8, 1)
  drawn = Drawn(np.full((1, 8, 8, 1), 4), order)
  shots = list(pictures.movie(drawn, model, frames=30))
  seen = np.stack([x[2:-2:8, 2:-2:8, 0] for x, _ in shots])
  known = (seen == 255).sum((1, 2))
  assert known[0] == 0 and known[-1] == 64 and len(shots) <= 31
  np.testing.assert_array_equal(known[:9], range(9))
  steps = np.diff(known[8:])
  assert steps[0] <= 2 and steps[-1] > 4 and (np.diff(steps) >= -1).all()
  stays = [ms for _, ms in shots]
  assert stays[0] > stays[-2] == pictures.FRAME < stays[-1]
  # After five values: the second patch has begun, the third has not.
  shades = seen[5][:2, :6]
  assert (shades == 255).tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
  assert shades[1, 2] == shades[1, 3] == shades[0, 3] > shades[0, 4]


@pytest.mark.parametrize('sides', [(51, 53)])
def test_movies_as_mp4(sides, draw, tmp_path, monkeypatch):
  imageio = pytest.importorskip('imageio.v3')
  pytest.importorskip('imageio_ffmpeg')
  drawn = draw([0], record=True)
  monkeypatch.setattr(pictures, 'grid', lambda *_: np.zeros(sides + (3,), 'u1'))
  model = tiny.model(**MODEL)
  path = str(tmp_path / 'gen.mp4')
  pictures.save_movie(drawn, model, path, frames=8)
  film = imageio.imread(path, plugin='FFMPEG')
  assert film.shape[1:] == (52, 54, 3)  # even sides
  shown = sum(ms for _, ms in pictures.movie(drawn, model, frames=8))
  assert len(film) == shown / pictures.FRAME
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(pictures.PictureError, match=r'fractal_jax\[movie\]'):
    pictures.check_movie(path)


def test_pictures_span_black_to_white():
  model = tiny.model(('ar', 'pixel'), (2, 1), num_values=17)
  values = np.array([0, 16, 8, 4]).reshape(1, 2, 2, 1)
  shades = pictures.from_values(values, model)[0, :, :, 0]
  np.testing.assert_array_equal(shades, [[0, 255], [128, 64]])
  rgb = tiny.model(('ar', 'pixel'), (2, 1), channels=3, num_values=256)
  values = np.arange(12).reshape(1, 2, 2, 3)
  np.testing.assert_array_equal(pictures.from_values(values, rgb), values)
  series = tiny.model(('ar', 'pixel'), (4, 1), rank=1, channels=2)
  lines = pictures.from_values(np.zeros((3, 4, 2), int), series)
  assert lines.shape == (3, 64, 256, 3)  # four steps, drawn wide
  assert (lines[:, -1] != 255).any(-1).all() and (lines[:, 0] == 255).all()
  mask = np.array([False, True, False, False])[:, None]
  gap = pictures.hidden(np.zeros((3, 4, 2), int), mask, series)
  drawn = (pictures.from_values(gap, series) != 255).any((1, 3))
  np.testing.assert_array_equal(drawn[0], np.repeat(~mask[:, 0], 64))
  assert (pictures.most_classes(series), pictures.most_classes(rgb)) == (4, 16)
  fine = tiny.model(('ar', 'pixel'), (4, 1), rank=1, num_values=256)
  gap = pictures.hidden(np.zeros((1, 4, 1), int), mask, fine)
  drawn = (pictures.from_values(gap, fine) != 255).any((1, 3))
  np.testing.assert_array_equal(drawn[0], np.repeat(~mask[:, 0], 64))


def test_grid_keeps_every_picture_whole():
  images = np.arange(3 * 64 * 64 * 3).reshape(3, 64, 64, 3) % 251
  out = pictures.grid(images.astype(np.uint8), columns=2)
  assert out.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
  np.testing.assert_array_equal(out[2:66, 68:132], images[1])
  np.testing.assert_array_equal(out[68:132, 2:66], images[2])
  assert (out[68:, 68:] == 255).all()


@pytest.mark.parametrize('side, shown', [(8, 64), (28, 84), (64, 64), (96, 96)])
def test_no_image_of_a_grid_is_smaller_than_64_pixels(side, shown):
  out = pictures.grid(np.zeros((1, side, side, 3), np.uint8))
  assert out.shape == (shown + 4, shown + 4, 3)


def test_names_stand_above_columns_or_below_images():
  images = np.zeros((4, 64, 64, 3), np.uint8)
  plain, high = pictures.grid(images), pictures.LETTERS
  above = pictures.grid(images, 2, ['cat', 'dog', 'cat', 'dog'])
  assert above.shape[0] == plain.shape[0] + high
  np.testing.assert_array_equal(above[high:], plain)
  for x in (slice(2, 66), slice(68, 132)):  # letters over each
    assert (above[2:high, x] < 128).any()
  below = pictures.grid(images, 2, ['cat', 'a very long name', 'x', 'dog'])
  assert below.shape[0] == plain.shape[0] + 2 * high
  assert (below[2:66, 2:66] == 0).all()
  assert (below[66 : 66 + high, 68:132] < 128).any()


def test_shades_become_the_values_that_they_show():
  model = tiny.model(('ar', 'pixel'), (4, 1), num_values=17)
  values = np.arange(16).reshape(1, 4, 4, 1)
  shades = pictures.from_values(values, model)[..., :1]
  np.testing.assert_array_equal(pictures.to_values(shades, model), values)
  mask = np.eye(4, dtype=bool)[..., None]
  hidden = pictures.hidden(values[0], mask, model)
  np.testing.assert_array_equal(hidden == values[0], ~mask)
  grey = pictures.from_values(hidden[None], model)[0][mask[..., 0]]
  assert (grey == grey[0]).all() and abs(int(grey[0, 0]) - 128) <= 8


def test_heat_maps_are_dark_where_cheap():
  picture = pictures.heat(np.array([[0.0, 1.0], [2.0, 4.0]]), 64)
  assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
  light = picture[16::32, 16::32].astype(int).sum(-1).ravel()
  assert light[0] < 12 and (np.diff(light) > 0).all()
  assert (pictures.heat(np.zeros((2, 2))) == picture[0, 0]).all()


def test_maps_of_series_are_bars():
  picture = pictures.heat(np.array([0.0, 1.0, 2.0, 4.0]), 64)
  assert picture.shape == (64, 64, 3)
  heights = (picture != 255).any(-1).sum(0)[::16]
  np.testing.assert_array_equal(heights, [0, 16, 32, 64])
