"""Programs for devices that are not there. No libtpu is needed here."""

import importlib.util
import re

import jax
import numpy as np
import pytest

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.planning import aot
from tests import tiny


def small(**model):
  from fractal_jax import config

  c = config.default()
  c.model.update(tiny.model(('mar', 'pixel'), (4, 1), **model).to_dict())
  c.optim.batch = 8
  c.sample.iterations = (9,)
  return c


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(aot.TopologyError, match='tpu-aot') as found:
    aot.devices('v5e:2x2')
  assert '\n' not in str(found.value)


def fails_with(text):
  class Lowered:
    def compile(self, options):
      raise jax.errors.JaxRuntimeError(text)

  return Lowered()


def test_what_does_not_fit_is_said_in_a_line():
  lowered = fails_with(
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.30G of '
    '15.75G hbm.\n\nTotal hbm usage >= 17.55G:\n ...'
  )
  with pytest.raises(aot.TopologyError, match='model.chunks') as found:
    aot.compiled(lowered)
  assert 'Used 17.30G of 15.75G' in str(found.value)
  assert '\n' not in str(found.value)
  with pytest.raises(jax.errors.JaxRuntimeError):
    aot.compiled(fails_with('INTERNAL: something else'))


def test_sampling_is_traced_with_its_batch():
  c = small()
  mesh = sharding.make_mesh(c, jax.devices()[:1])
  text = aot.sampling(c, mesh, 6).as_text()
  assert 'tensor<6x4x4x1xi32>' in text


def test_steps_are_shared_out_by_size():
  """9 steps over 16 patches: each of a size, and how often that is taken."""
  c = small()
  found = aot.branch_shares(c)
  (spec, _), (shares,) = fractal.from_config(c.model).specs, found.values()
  assert shares.sum() == pytest.approx(1) and found.keys() == {'level 0'}
  assert np.all(shares * 9 == np.round(shares * 9))
  for c.sample.iterations in ((16,), ()):  # one patch a step
    np.testing.assert_array_equal(aot.branch_shares(c)['level 0'], [1])
  assert spec.length == 16
  c.model.kinds = ('ar', 'pixel')
  assert not aot.branch_shares(c)


def test_a_profile_names_levels_and_halves():
  """The compiler joins the names of a loop and of what is in it."""
  c = small(dropout=0.1)
  mesh = sharding.make_mesh(c, jax.devices()[:1])
  text = aot.training_step(c, mesh).as_text(debug_info=True)
  for name in ('/level_0/', '/level_1/', 'blocks/attention/', 'blocks.mlp/'):
    assert re.search(rf'loc\("[^"]*{name}', text), name
