"""The FID Inception net: goldens of torch-fidelity, its weights, the mesh.

The weights are drawn by NumPy from a seed, so the goldens hold only outputs
(`python benchmarks/fidelity.py --golden=...` wrote them).
"""

from concurrent import futures
import hashlib
import importlib.util
import multiprocessing
import pathlib

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fidelity
from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.metrics import MetricsError, features, inception, weights
from tests import tiny

FOLDER = pathlib.Path(__file__).parent / 'goldens' / 'inception'
GOLDEN = FOLDER / 'fidelity.npz'


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """random.npz and random.pth hold the weights of the goldens."""
  path = tmp_path_factory.mktemp('weights')
  np.savez(path / 'random.npz', **weights.random_state(0))
  return path


@pytest.fixture(scope='module')
def loaded(folder):
  return weights.load(str(folder / 'random.npz'))


@tiny.jit
def all_layers(params, images):
  return inception.Inception().apply({'params': params}, images)


def test_features_and_logits_are_those_of_torch_fidelity(loaded, golden):
  ours = jax.device_get(all_layers(loaded.params, fidelity.golden_images()))
  for name in fidelity.LAYERS:
    assert golden[name].std() > 0.3, name
    np.testing.assert_allclose(ours[name], golden[name], atol=2e-5)


def test_metrics_are_those_of_torch_fidelity(golden):
  a, b, logits = fidelity.golden_sets()
  ours = fidelity.ours_of_sets(a, b, logits)
  for name in ('inception_score', 'inception_score_std'):
    np.testing.assert_allclose(ours[name], golden[name], rtol=1e-9)
  for name in ('precision', 'recall'):
    np.testing.assert_allclose(ours[name], golden[name], atol=1e-6)
  # torch-fidelity takes roots of rounding errors: 60 images have rank 59.
  np.testing.assert_allclose(ours['fid'], golden['fid'], rtol=1e-6)
  np.testing.assert_allclose(ours['fid'], fidelity.exact_fid(a, b), rtol=1e-9)


def test_torch_fidelity_itself_agrees(folder, loaded):
  """Run anew, on other pictures than the goldens'.

  In a process of its own: compiled parts of torchvision have crashed beside
  those of TensorFlow, which other tests import.
  """
  if not importlib.util.find_spec('torch_fidelity'):
    pytest.skip("needs pip install 'fractal_jax[fidelity]'")
  fidelity.write_pth(folder / 'random.pth', weights.random_state(0))
  images = np.random.default_rng(3).integers(0, 256, (2, 20, 24, 3), np.uint8)
  spawn = multiprocessing.get_context('spawn')
  alone = futures.ProcessPoolExecutor(1, mp_context=spawn)
  call = lambda function, *args: alone.submit(function, *args).result()
  theirs = call(fidelity.theirs_of_images, folder / 'random.pth', images)
  found = weights.load(str(folder / 'random.pth'))
  assert found.published is False
  assert found.fingerprint == loaded.fingerprint
  ours = jax.device_get(all_layers(found.params, images))
  for name in fidelity.LAYERS:
    np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5)
  rng = np.random.default_rng(4)
  a, b = (np.abs(rng.standard_normal((n, 24))) for n in (200, 180))
  logits = rng.standard_normal((100, 30)).astype(np.float32)
  theirs = call(fidelity.theirs_of_sets, a, 1.2 * b, logits)
  alone.shutdown()
  ours = fidelity.ours_of_sets(a, 1.2 * b, logits)
  for name in theirs:
    np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)


def test_two_devices_see_what_one_does(loaded, golden):
  c = config_lib.default()
  c.mesh.update(data=2)
  mesh = sharding.make_mesh(c, jax.devices()[:2])
  extractor = features.Extractor(loaded, mesh=mesh, batch=1)
  assert extractor.batch == 2
  pool, logits = extractor(fidelity.golden_images())
  np.testing.assert_allclose(pool, golden['2048'], atol=2e-5)
  np.testing.assert_allclose(logits, golden['logits_unbiased'], atol=2e-5)


def test_the_tree_is_the_state_dict(loaded):
  flat = traverse_util.flatten_dict(loaded.params, sep='.')
  state = weights.random_state(0)
  assert flat.keys() == state.keys()
  count = sum(x.size for k, x in state.items() if 'running' not in k)
  assert count == 23_850_960
  kernel = flat['Mixed_6b.branch7x7_2.conv.weight']
  wanted = state['Mixed_6b.branch7x7_2.conv.weight']
  assert kernel.shape == (1, 7, 128, 128) and wanted.shape == (128, 128, 1, 7)
  assert kernel[0, 6, 5, 4] == wanted[4, 5, 0, 6]


def test_the_format_of_the_file_makes_no_difference(folder, loaded):
  safetensors = pytest.importorskip('safetensors.numpy')
  path = folder / 'random.safetensors'
  safetensors.save_file(weights.random_state(0), path)
  found = weights.load(str(path))
  assert found.fingerprint == loaded.fingerprint and found.published is None
  chex.assert_trees_all_equal(found.params, loaded.params)


def test_the_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
  path = tmp_path / 'x.pth'
  path.write_bytes(b'weights')
  assert not weights._is_published(path)
  name = hashlib.sha256(b'weights').hexdigest()[:8]
  monkeypatch.setattr(weights, 'FILE', f'weights-{name}.pth')
  assert weights._is_published(path)


def test_wrong_weights_are_named(tmp_path, monkeypatch, folder):
  monkeypatch.delenv(weights.VARIABLE, raising=False)
  with pytest.raises(MetricsError, match='--inception=FILE or in.*download'):
    weights.load(None)
  monkeypatch.setenv(weights.VARIABLE, str(tmp_path / 'none.pth'))
  with pytest.raises(MetricsError, match='none.pth is no file; expected'):
    weights.load(None)

  def refused(match, **arrays):
    path = tmp_path / 'wrong.npz'
    np.savez(path, **arrays)
    with pytest.raises(MetricsError, match=match):
      weights.load(str(path))

  refused('holds `mu`, `sigma`; expected the 472', mu=[1], sigma=[1])
  refused("torchvision's", **{'AuxLogits.fc.weight': np.zeros((1000, 768))})
  shapes = dict(weights.shapes())
  state = {
    k: np.zeros(1 if k == 'fc.bias' else shapes[k], 'i1') for k in shapes
  }
  refused(r'misshapen: fc.bias is \(1,\), expected \(1008,\)$', **state)
  zeros = {k: np.zeros(shapes[k], 'i1') for k in shapes}
  refused(
    'fc.bias is <U1; expected fi', **{**zeros, 'fc.bias': np.full(1008, 'a')}
  )
  refused('fc.bias is float64', **{**zeros, 'fc.bias': np.full(1008, np.inf)})
  text = tmp_path / 'text.npz'
  text.write_text('hello')
  with pytest.raises(MetricsError, match='cannot be read as a .npz'):
    weights.load(str(text))
  with pytest.raises(MetricsError, match='must end in .pth, .npz'):
    weights.load(str(pathlib.Path(__file__)))


@pytest.mark.parametrize('size', [(8, 13), (299, 640)])
def test_resize_is_tensorflow_1s(size):
  """Against its definition, a pixel at a time."""
  images = np.random.default_rng(0).uniform(0, 255, (1, *size, 1))
  ours = tiny.jit(lambda x: inception.resize(x, 299))(
    jnp.asarray(images, jnp.float32)
  )
  wanted = np.zeros((299, 299))
  # TensorFlow rounds the places to float32.
  scale = [np.float32(n / 299) for n in size]
  for y in range(299):
    for x in range(299):
      fy, fx = (float(np.float32(i) * s) for i, s in zip((y, x), scale))
      y0, x0 = int(fy), int(fx)
      y1, x1 = min(y0 + 1, size[0] - 1), min(x0 + 1, size[1] - 1)
      dy, dx = fy - y0, fx - x0
      top = images[0, y0, x0, 0] * (1 - dx) + images[0, y0, x1, 0] * dx
      low = images[0, y1, x0, 0] * (1 - dx) + images[0, y1, x1, 0] * dx
      wanted[y, x] = top * (1 - dy) + low * dy
  np.testing.assert_allclose(ours[0, ..., 0], wanted, atol=1e-4)
  other = jax.image.resize(images[0, ..., 0], (299, 299), 'bilinear')
  assert np.abs(other - wanted).max() > 10  # so it can't be used


def test_what_is_no_picture_is_refused():
  features.check_model(tiny.model(channels=3))
  for change in ({'channels': 2}, {'rank': 1}):
    with pytest.raises(MetricsError, match='grey or RGB.*likelihood'):
      features.check_model(tiny.model(**change))
  with pytest.raises(MetricsError, match='float64 of shape'):
    features.check_pictures(np.zeros((2, 4, 4, 3)))
