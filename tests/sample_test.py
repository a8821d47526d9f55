"""Generation as users call it: requests, meshes, pictures, movies."""

import jax
from jax.sharding import AxisType
import numpy as np
from PIL import Image
import pytest

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.inference import sample
from fractal_jax.models.types import NEVER, Drawn, Given, Sampling
from tests import tiny


@pytest.fixture(scope='module')
def net_and_params():
  return tiny.build(('mar', 'pixel'), (4, 1), channels=2)


def test_an_image_depends_on_seed_and_index_alone(net_and_params):
  net, params = net_and_params
  labels = sample.round_robin(5, [0, 1, 2])
  sampling = Sampling(guidance=2.0, iterations=(3,))

  def generate(params=params, **how):
    return sample.generate(net, params, labels, sampling, guided=True, **how)

  once = generate(batch=8).values
  assert once.shape == (5, 4, 4, 2) and once.min() >= 0 and once.max() <= 4
  np.testing.assert_array_equal(once, generate(batch=2).values)
  for axes in tiny.MESHES:
    mesh, split = tiny.on_mesh(net, params, axes)
    qkv = split['level_0']['blocks']['attention']['qkv']
    assert qkv.sharding.spec == tiny.QKV
    np.testing.assert_array_equal(once, generate(split, mesh=mesh).values)
  assert (once != generate(batch=8, seed=1).values).any()


@pytest.mark.parametrize('kind', ['ar', 'mar'])
def test_watched_images_grow_are_the_same_and_can_be_stopped(kind):
  net, params = tiny.build((kind, 'pixel'), (4, 1))
  model = tiny.model((kind, 'pixel'), (4, 1))
  labels = sample.round_robin(5, [0, 1, -1])
  known = np.zeros((5, 4, 4, 1), bool)
  known[:, 1, 2:] = True
  given = Given(tiny.images(net, 5), known)
  mesh = jax.make_mesh(
    (2, 1, 1), sharding.AXES, (AxisType.Auto,) * 3, devices=jax.devices()[:2]
  )

  def generate(**how):
    return sample.generate(
      net,
      params,
      labels,
      Sampling(guidance=2.0, iterations=(5,)),
      guided=True,
      given=given,
      batch=4,
      mesh=mesh,
      **how,
    )

  shots = []
  drawn = generate(watch=lambda *shot: shots.append(shot))
  np.testing.assert_array_equal(drawn.values, generate().values)
  steps = {'ar': 16, 'mar': 5}[kind]
  assert [(done, total) for _, done, total in shots] == [
    (batch * steps + i, 2 * steps) for batch in (0, 1) for i in range(steps + 1)
  ]
  for shot, done, _ in shots:
    there = shot.when < NEVER
    assert there[:4].all() == (done >= steps)
    assert (shot.when[:4][known[:4]] == -1).all()
    np.testing.assert_array_equal(shot.values[there], drawn.values[there])
  shot, *_ = shots[steps // 2]
  assert (sample.so_far(shot, model)[4] == sample.GREY // 2).all()
  assert known.mean() < (shot.when[:4] < NEVER).mean() < 0.8

  def stop(shot, done, total):
    if done == 3:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    generate(watch=stop)


def test_movies_know_when_each_value_was_drawn(net_and_params, tmp_path):
  net, params = net_and_params
  sampling = Sampling(iterations=(3,), record=True)
  drawn = sample.generate(
    net, params, np.array([-1, 2]), sampling, guided=False
  )
  plain = sample.generate(
    net,
    params,
    np.array([-1, 2]),
    sampling.replace(record=False),
    guided=False,
  )
  np.testing.assert_array_equal(drawn.values, plain.values)
  assert drawn.when.min() == 0 and drawn.when.max() < 32
  # A pixel's second channel is drawn after its first.
  assert (drawn.when[..., 1] > drawn.when[..., 0]).all()
  model = tiny.model(('mar', 'pixel'), (4, 1), channels=2)
  path = tmp_path / 'gen.gif'
  sample.save_movie(drawn, model, str(path), frames=12)
  with Image.open(path) as movie:
    assert movie.n_frames > 5
    first = np.asarray(movie.convert('RGB'))
    movie.seek(movie.n_frames - 1)
    last = np.asarray(movie.convert('RGB'))
  full = sample.grid(sample.pictures(drawn.values, model))
  assert last.shape == full.shape
  assert np.abs(last.astype(int) - full).max() <= 8  # GIF's palette
  assert (first != last).any()
  with pytest.raises(sample.SampleError, match=r'\.gif'):
    sample.save_movie(drawn, model, str(tmp_path / 'gen.avi'))


def test_movies_show_the_recursion():
  """Two patches value by value and slowly, then faster; lighter where begun."""
  model = tiny.model(('ar', 'ar', 'pixel'), (8, 2, 1))
  order = np.arange(64).reshape(4, 4, 2, 2).swapaxes(1, 2).reshape(1, 8, 8, 1)
  drawn = Drawn(np.full((1, 8, 8, 1), 4), order)
  shots = list(sample.movie(drawn, model, frames=30))
  seen = np.stack([x[2:-2:6, 2:-2:6, 0] for x, _ in shots])
  known = (seen == 255).sum((1, 2))
  assert known[0] == 0 and known[-1] == 64 and len(shots) <= 31
  np.testing.assert_array_equal(known[:9], range(9))
  steps = np.diff(known[8:])
  assert steps[0] <= 2 and steps[-1] > 4 and (np.diff(steps) >= -1).all()
  stays = [ms for _, ms in shots]
  assert stays[0] > stays[-2] == sample.FRAME < stays[-1]
  # After five values: the second patch has begun, the third has not.
  shades = seen[5][:2, :6]
  assert (shades == 255).tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
  assert shades[1, 2] == shades[1, 3] == shades[0, 3] > shades[0, 4]


@pytest.mark.parametrize('sides', [(51, 53)])
def test_movies_as_mp4(sides, net_and_params, tmp_path, monkeypatch):
  imageio = pytest.importorskip('imageio.v3')
  pytest.importorskip('imageio_ffmpeg')
  net, params = net_and_params
  drawn = sample.generate(
    net, params, np.array([0]), Sampling(record=True), guided=False
  )
  monkeypatch.setattr(sample, 'grid', lambda x, _: np.zeros(sides + (3,), 'u1'))
  model = tiny.model(('mar', 'pixel'), (4, 1), channels=2)
  path = str(tmp_path / 'gen.mp4')
  sample.save_movie(drawn, model, path, frames=8)
  film = imageio.imread(path, plugin='FFMPEG')
  assert film.shape[1:] == (52, 54, 3)  # even sides
  shown = sum(ms for _, ms in sample.movie(drawn, model, frames=8))
  assert len(film) == shown / sample.FRAME
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(sample.SampleError, match=r'fractal_jax\[movie\]'):
    sample.check_movie(path)


def test_raster_order_shows_in_the_times_of_ar_levels():
  net, params = tiny.build(('ar', 'ar', 'pixel'), (4, 2, 1))
  drawn = sample.generate(
    net, params, np.array([0]), Sampling(record=True), guided=False
  )
  literal = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
  np.testing.assert_array_equal(drawn.when[0, ..., 0], literal)


def test_settings_take_changes_and_say_if_guided():
  c = config_lib.default()
  sampling, guided = sample.settings(c, guidance=3.0, iterations=(4, 2))
  assert guided and sampling.guidance == 3.0 and sampling.iterations == (4, 2)
  assert sampling.filter_threshold == c.sample.filter_threshold
  assert not sample.settings(c, guidance=1.0)[1]
  assert sample.settings(c, record=True)[0].record


@pytest.mark.parametrize(
  'change, words',
  [
    ({'temperature': 0.0}, r'sample.temperature=0.0 must be .* above 0'),
    ({'guidance': float('nan')}, 'sample.guidance=nan must be a finite'),
    ({'guidance': float('inf')}, 'and finite'),
    ({'iterations': (4,)}, r'sample.iterations=\(4,\) must hold one number'),
    ({'temprature': 1.0}, 'no setting temprature: there are guidance'),
  ],
)
def test_bad_settings_are_refused_in_words(change, words):
  with pytest.raises(sample.SampleError, match=words):
    sample.settings(config_lib.default(), **change)


def test_pictures_span_black_to_white():
  model = tiny.model(('ar', 'pixel'), (2, 1), num_values=17)
  values = np.array([0, 16, 8, 4]).reshape(1, 2, 2, 1)
  shades = sample.pictures(values, model)[0, :, :, 0]
  np.testing.assert_array_equal(shades, [[0, 255], [128, 64]])
  rgb = tiny.model(('ar', 'pixel'), (2, 1), channels=3, num_values=256)
  values = np.arange(12).reshape(1, 2, 2, 3)
  np.testing.assert_array_equal(sample.pictures(values, rgb), values)
  series = tiny.model(('ar', 'pixel'), (4, 1), rank=1, channels=2)
  lines = sample.pictures(np.zeros((3, 4, 2), int), series)
  assert lines.shape == (3, 64, 4, 3)
  assert (lines[:, -1] != 255).any() and (lines[:, 0] == 255).all()


def test_grid_keeps_every_picture_whole():
  images = np.arange(3 * 48 * 48 * 3).reshape(3, 48, 48, 3) % 251
  out = sample.grid(images.astype(np.uint8), columns=2)
  assert out.shape == (2 * 50 + 2, 2 * 50 + 2, 3)
  np.testing.assert_array_equal(out[2:50, 52:100], images[1])
  np.testing.assert_array_equal(out[52:100, 2:50], images[2])
  assert (out[52:, 52:] == 255).all()


def test_grid_of_a_run_is_written_as_png(net_and_params, tmp_path):
  net, params = net_and_params
  c = config_lib.default()
  c.model = tiny.model(('mar', 'pixel'), (4, 1), channels=2)
  c.sample.update(num=6, batch=6, iterations=(3,))
  path = tmp_path / 'new' / 'grid.png'
  image = sample.sample_grid(net, params, c, path=str(path))
  with Image.open(path) as stored:
    np.testing.assert_array_equal(np.asarray(stored), image)
