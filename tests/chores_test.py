"""What is due between steps, of a run without a model."""

import contextlib
import types
from unittest import mock

import jax.numpy as jnp
import pytest

from fractal_jax import config as config_lib
from fractal_jax.training import logs
from fractal_jax.training.chores import Chores, report

GOOD = dict(applied=1, spike=0, in_a_row=0, skipped=0, loss=2, bits_per_dim=3)


@pytest.fixture
def checkpoints():
  return mock.Mock()


@pytest.fixture
def chores(checkpoints, monkeypatch, tmp_path):
  """Those of a run of 7 steps that saves each third one."""
  monkeypatch.setattr(logs, 'metric_writer', lambda *_: logs.NullWriter())
  monkeypatch.setattr(logs, 'periodic_actions', lambda *_: [])
  config = config_lib.default()
  config.optim.update(steps=7, save_every=3, hang_after=0.0)
  config.eval.every = config.sample.every = 0
  with contextlib.ExitStack() as stack:
    yield Chores(
      None, config, checkpoints, str(tmp_path), 0, 7, stack, mesh=None
    )


def attend(chores, step):
  metrics = {name: jnp.asarray(value) for name, value in GOOD.items()}
  chores.attend(step, f'state {step}', {'next_index': step}, metrics)


def saved(checkpoints):
  return [call.args for call in checkpoints.save.call_args_list]


def test_every_third_and_the_last_step_is_saved(chores, checkpoints):
  for step in range(1, 8):
    attend(chores, step)
  assert saved(checkpoints) == [
    (step, f'state {step}', {'next_index': step}, None) for step in (3, 6, 7)
  ]


def test_an_early_end_saves_what_is_not_saved(chores, checkpoints, capsys):
  chores.save_rest()
  assert not checkpoints.save.called  # no step is done
  for step in range(1, 6):
    attend(chores, step)
  chores.save_rest()
  assert [step for step, *_ in saved(checkpoints)] == [3, 5]
  assert checkpoints.wait.called
  assert 'saved after step 5' in capsys.readouterr().err
  chores.save_rest()
  assert len(saved(checkpoints)) == 2


def test_output_that_fails_asks_the_run_to_stop(chores, monkeypatch):
  full = OSError(28, 'No space left on device')
  monkeypatch.setattr(chores._writer, 'flush', mock.Mock(side_effect=full))
  attend(chores, 2)
  assert not chores.stop(2)
  attend(chores, 3)  # due: what is written is flushed
  assert chores.stop(3) and chores.stop.reason(3) is full


@pytest.mark.parametrize(
  'bound, rounded, end',
  [
    (False, False, '± 0.050'),
    (True, False, '± 0.050 (upper bound)'),
    (False, True, '± 0.050 (of rounded colours)'),
  ],
)
def test_a_report_says_what_its_number_is(bound, rounded, end):
  found = types.SimpleNamespace(
    bits_per_dim=1.23456, stderr=0.05, bound=bound, rounded=rounded
  )
  assert report(found) == f'validation bits/dim: 1.235 {end}'
