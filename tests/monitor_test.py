"""Averages over applied updates, and causes of skipped ones."""

import collections
import types

import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import averages
from fractal_jax import config as config_lib
from fractal_jax.training import monitor


def metrics(loss, applied=True, level_1=1.0, spike=False):
  values = dict(
    loss=loss,
    grad_norm=2.0,
    applied=applied,
    spike=spike,
    in_a_row=0,
    skipped=0,
  )
  return {
    k: np.asarray(v)
    for k, v in values.items() | {('grad_norm/level_1', level_1)}
  }


def test_averages_are_of_what_was_added_since_they_were_taken():
  found = averages.Averages()
  assert found.take() == {}
  found.add(monitor.averaged(metrics(1.0, level_1=3.0)))
  found.add(monitor.averaged(metrics(2.0, level_1=5.0)))
  assert found.take() == {
    'loss': 1.5,
    'grad_norm': 2.0,
    'grad_norm/level_1': 4.0,
  }
  assert found.take() == {}
  found.add(monitor.averaged(metrics(7.0)))
  assert found.take()['loss'] == 7.0


def test_causes_name_levels_or_the_spike():
  assert monitor.skip_causes(metrics(1.0, level_1=np.nan)) == [
    'steps',
    'level_1',
  ]
  assert monitor.skip_causes(metrics(np.nan)) == ['steps', 'the total']
  spike = monitor.skip_causes(metrics(9.0, spike=True))
  assert spike == ['steps', monitor.SPIKE]
  counts = collections.Counter({'level_1': 1, 'level_0': 2, monitor.SPIKE: 3})
  assert monitor.described(counts) == (
    'not finite: level_0 2, level_1 1; a loss above optim.spike 3'
  )


class Fails:
  """What a closed pipe and a full disk do to a monitor's output."""

  workdir = ''

  def write_scalars(self, step, scalars):
    raise OSError(28, 'No space left on device')

  def update(self, *args):
    return 1.0

  def check(self):
    pass

  def latest(self):
    return None


def test_a_step_is_read_though_the_line_of_the_one_before_fails():
  config = config_lib.default()
  config.optim.update(log_every=1, max_bad_steps=1)
  watch = monitor.Monitor(config, 9, Fails(), Fails(), Fails())
  watch.add(1, {k: jnp.asarray(v) for k, v in metrics(1.0).items()})
  bad = metrics(np.nan, applied=False, level_1=np.nan) | {'in_a_row': 1}
  with pytest.raises(OSError):
    watch.add(2, {k: jnp.asarray(v) for k, v in bad.items()})
  with pytest.raises(monitor.TrainingError, match='level_1 1'):
    watch.catch_up()


class Keeps:
  """Progress, writer and checkpoints that keep what is written."""

  def __init__(self):
    self.lines = []

  def update(self, *args):
    return 1.0

  def check(self):
    pass

  def flush(self):
    pass

  def write_scalars(self, step, scalars):
    self.lines.append((step, scalars))


def test_ratios_of_updates_are_those_of_the_logged_step():
  config, keeps = config_lib.default(), Keeps()
  config.optim.update(log_every=2)
  watch = monitor.Monitor(config, 3, keeps, keeps, keeps)
  for step, ratio in enumerate([np.nan, 0.25, np.nan], 1):
    given = metrics(float(step)) | {'update_ratio/level_1': ratio}
    watch.add(step, {k: jnp.asarray(v) for k, v in given.items()})
  watch.catch_up()
  (_, first), (_, last) = keeps.lines
  assert first['train/update_ratio/level_1'] == 0.25
  assert first['train/loss'] == 1.5 and last['train/loss'] == 3.0
  assert 'train/update_ratio/level_1' not in last  # step 3 has none


def test_validation_that_rises_for_long_is_warned_of():
  found = monitor.Validation()
  score = lambda bits: types.SimpleNamespace(bits_per_dim=bits, stderr=0.01)
  bits = [3.0, 2.5, 2.6, 2.505, 2.6, 2.6]  # once within the error of the best
  assert [found.add(i, score(x)) for i, x in enumerate(bits)] == [None] * 6
  text = found.add(6, score(2.7))
  assert 'best at step 1 (2.500 bits/dim) and is 2.700 now' in text
  assert found.add(7, score(2.8)) is None  # not every time
  assert found.add(8, score(2.4)) is None
  assert [found.add(i, score(2.5)) for i in range(9, 12)] == [None] * 3
  assert 'best at step 8' in found.add(12, score(2.5))
