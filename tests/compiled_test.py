"""What `cost --topology` says, of programs that need no compiler here."""

import types

import numpy as np
import pytest

from configs import digits, fractalmar_in64
from fractal_jax.planning import aot, compiled, cost, estimate
from tests import estimate_test

GIB = 2**30
ANALYSIS = types.SimpleNamespace(
  argument_size_in_bytes=3 * GIB,
  temp_size_in_bytes=6 * GIB,
  output_size_in_bytes=3 * GIB,
  alias_size_in_bytes=2 * GIB,
)


def program(images, flops, seconds=(2.0, 1.0), network=0.0, unknown=()):
  both = np.array(seconds)
  halves = {('level 0', 'product'): both / 2, ('level 1', 'copy'): both / 2}
  spent = estimate.Estimate(halves, network, unknown)
  return compiled.Compiled('', ANALYSIS, spent, 12.0, flops, images)


class Compiler:
  """Compiles nothing."""

  chip, devices = 'v5e', [None] * 64

  def __init__(self):
    self.configs = []

  def training(self, config):
    self.configs.append(config)
    return program(32, 197e12, network=300e9)

  def sampling(self, config):
    self.configs.append(config)
    return program(config.sample.batch, 197e12, (4.0, 3.5), unknown=('mlp_x',))


def test_report():
  config, compiler = fractalmar_in64.get_config(), Compiler()
  training, sampling = compiled.report(compiler, config, 4096)
  assert training.startswith('Training on 64 x v5e, 32 images on each')
  for text in (
    'arguments 3.00, temporaries 6.00, in all 10.00 of 16 (62%).',
    'In all 2.000 (1.000) s: MFU 50.0% (100.0%), 16 (32) images/s per device.',
    'Not counted: 300 GB that come from other devices, 1.500 s at full speed.',
    # Two steps of 2048 images on 64 devices.
    'An epoch of 4,096 images: 4 (2) s, 0.0711 (0.0356) device-hours.',
    'All 800 epochs: 0.889 (0.444) hours, 56.9 (28.4) device-hours.',
  ):
    assert text in training, text
  assert 'Generating 64 images on one device:' in sampling
  assert '16 (18.3) images/s' in sampling
  assert 'Not counted: mlp_x, no schedule was found.' in sampling
  assert 'other devices' not in sampling
  for text in (training, sampling):
    assert 'estimate' in text
    assert max(map(len, text.splitlines())) <= 80
  # As a run on TPUs has it; what was given stays.
  assert {c.model.kernels for c in compiler.configs} == {'pallas'}
  assert config.model.kernels == 'auto'
  config.model.kernels = 'xla'
  list(compiled.report(compiler, config, 4096))
  assert compiler.configs[-1].model.kernels == 'xla'


def test_numbers_are_whole_or_of_three_digits():
  assert compiled.pair(np.array([17_789.4, 88.974])) == '17,789 (89)'
  assert compiled.pair(np.array([2.0, 0.12345])) == '2 (0.123)'
  assert compiled.pair(np.array([0.525, 1.0]), '.1%') == '52.5% (100.0%)'


def test_operations_are_listed_by_what_they_take():
  spent = estimate.of_program(
    estimate_test.PROGRAM, {}, estimate.CHIPS['v5e'], None
  )
  rows = compiled.rows_of(spent, 3)
  assert [row[:2] for row in rows] == [
    ('level', 'operation'),
    ('level 0', 'all'),
    ('level 1', 'all'),
    ('elsewhere', 'all'),
    ('level 0', 'product'),
    ('level 0', 'copy'),
    ('level 1', 'fusion'),
  ]
  total = sum(float(row[2]) for row in rows[1:4])
  assert total == pytest.approx(spent.total[0], abs=2e-4)


def test_a_chip_that_libtpu_has_no_name_for():
  for name in ('H100:8', 'v5', ''):
    with pytest.raises(aot.TopologyError, match='write one of v4, v5e'):
      compiled.Compiler(name)


def test_flops_are_those_of_a_device(monkeypatch):
  """Training splits its batch; `tensor` splits an image."""
  compiler = compiled.Compiler.__new__(compiled.Compiler)
  compiler.devices = [None] * 8
  monkeypatch.setattr(compiler, 'program', lambda *args: args)
  mesh = types.SimpleNamespace(shape=dict(data=2, fsdp=2, tensor=2))
  monkeypatch.setattr(compiled.sharding, 'make_mesh', lambda c, devices: mesh)
  c = digits.get_config('mar')
  c.optim.batch, c.sample.guidance = 1024, 2.0
  _, shares, flops, images = compiler.training(c)
  assert (shares, images) == ({'elsewhere': [0.99, 0.01]}, 256)
  assert flops == pytest.approx(128 * cost.cost(c).total('training'))
  _, shares, flops, images = compiler.sampling(c)
  assert images == c.sample.batch and shares
  guided = cost.sample_flops_per_image(c, True, c.sample.iterations)
  assert flops == pytest.approx(images * guided)
