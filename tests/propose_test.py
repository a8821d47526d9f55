"""Configs that are chosen: they keep the rules, for any data and machine."""

import dataclasses
import types

import numpy as np
import pytest

from fractal_jax import config as config_lib
from fractal_jax import config_files
from fractal_jax.data import look
from fractal_jax.data.common import DataError
from fractal_jax.planning import propose

CPU = propose._cpu(2)
GPU = propose.Machine('gpu', '1 x H100', 1, 80, 1.5e14, 2.0, 64)
POD = propose.Machine('tpu', '32 x v5e', 32, 16, 32 * 3e13, 2.0, 64)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A Look at 200 arrays of 40x40, and a stand-in for larger sets."""
  path = str(tmp_path_factory.mktemp('data') / 'x.npz')
  rng = np.random.default_rng(0)
  images = rng.integers(100, 200, (200, 40, 40, 3), np.uint8)
  np.savez(path, images=images, labels=np.arange(200) % 4)
  return look.at(path)


def chosen(data, on, size, tmp_path):
  def write(found):
    from fractal_jax.data import listing

    listing.write(str(tmp_path / 'list.csv'), found.rows)
    return str(tmp_path / 'list.csv')

  return propose.propose(data, on, size, write)


@pytest.mark.parametrize(
  'on, size, side', [(CPU, None, 16), (CPU, 32, 32), (GPU, None, 32)]
)
def test_a_config_keeps_the_rules_and_fits_the_data(
  data, on, size, side, tmp_path, monkeypatch
):
  # What memory a step takes is tested elsewhere, and takes long to count.
  room = 0.75 * 80 * 2**30
  taken = lambda c, mesh, tpu: types.SimpleNamespace(
    total=room * c.optim.batch / 70
  )
  monkeypatch.setattr(propose.memory, 'memory', taken)
  found = chosen(data, on, size, tmp_path)
  c = found.config
  config_lib.check(c)
  assert c.model.sizes[0] == side and c.model.channels == 3
  assert c.model.classes == 4 and (found.train, found.held) == (180, 20)
  assert c.model.mean[0] == pytest.approx(149.5 / 255, abs=0.01)
  # Interpolation to a smaller side averages noise.
  assert 0 < c.model.std[0] < 29 / 255
  assert c.optim.steps % c.sample.every == 0
  assert c.optim.batch <= 180 and all(found.reasons.values())
  if on is CPU:
    assert c.model.kinds[0] == 'ar' and c.model.dtype == 'float32'
  else:
    assert c.model.kinds[0] == 'mar' and c.model.dtype == 'bfloat16'
    assert c.optim.batch == 64  # not 128, which would not fit
    assert len(c.sample.iterations) == len(c.model.sizes) - 1


@pytest.mark.parametrize(
  'cores, train, batch',
  [
    (1, 999, 16), (2, 999, 16), (3, 999, 16), (4, 999, 32), (96, 999, 64),
    (2, 5, 4), (2, 1, 2), (8, 5, 8),
  ],
)  # fmt: skip
def test_few_images_per_step_that_keep_the_cores_of_a_cpu_busy(
  cores, train, batch
):
  assert propose.cpu_batch(cores, train) == batch


def test_the_file_gives_the_same_config(data, tmp_path):
  found = chosen(data, CPU, 8, tmp_path)
  text = config_files.text(found.config, 'Chosen.', found.reasons)
  names = {}
  exec(compile(text, 'chosen.py', 'exec'), names)
  assert names['get_config']().to_dict() == found.config.to_dict()
  assert max(map(len, text.splitlines())) <= 200  # paths are not broken


def test_more_images_and_devices_make_larger_models(data, tmp_path):
  found = chosen(data, CPU, 16, tmp_path)
  widths = []
  for on, train in ((CPU, 180), (GPU, 3000), (POD, 1_200_000)):
    c = found.config.copy_and_resolve_references()
    c.model.sizes = (64, 4, 1)

    def choose(why, c=c, **values):
      for name, value in values.items():
        section, _, key = name.partition('_')
        c[section][key] = value

    propose._model(c, choose, on, train)
    config_lib.check(c)
    widths.append(c.model.widths[0])
  assert widths == sorted(widths) and widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize(
  'side, sizes',
  [
    (4, (4, 1)),
    (8, (8, 4, 1)),
    (28, (28, 4, 1)),
    (64, (64, 4, 1)),
    (96, (96, 6, 1)),
    (256, (256, 16, 4, 1)),
  ],
)
def test_sides_are_cut_into_short_sequences(side, sizes):
  assert propose.levels(side) == sizes


def test_sides_that_cannot_be_cut_are_refused(data, tmp_path):
  with pytest.raises(DataError, match='--size=37 .* such as 36 or 40'):
    propose.levels(37)
  with pytest.raises(DataError, match='--size=2 must be 4 to 1024'):
    chosen(data, CPU, 2, tmp_path)
  with pytest.raises(DataError, match='200 of 200 images are smaller than 48'):
    chosen(data, CPU, 48, tmp_path)
  one = dataclasses.replace(data, sides=np.ones(200, int))
  with pytest.raises(DataError, match='at most 1x1 pixels: at least 4x4'):
    chosen(one, CPU, None, tmp_path)


def test_this_machine_is_seen():
  found = propose.machine()
  assert found.kind == 'cpu' and found.devices >= 1 and found.flops > 0
