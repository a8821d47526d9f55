"""Stop requests of one process, and processes that don't find each other."""

import os
import signal
import subprocess
import sys

import pytest

from fractal_jax.training import processes

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize('number', SIGNALS)
def test_signals_ask_to_stop_and_are_given_back(number):
  before = signal.getsignal(number)
  with processes.stop_requests() as stop:
    assert not stop(1)
    signal.raise_signal(number)
    assert stop(2)
    reason = stop.reason(2)
  assert isinstance(reason, processes.Preempted) and 'step 2' in str(reason)
  assert reason.code == (130 if number == signal.SIGINT else 75)
  assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once():
  code = (
    'import signal; from fractal_jax.training import processes\n'
    'with processes.stop_requests():\n'
    '  signal.raise_signal(signal.SIGINT); print("saving", flush=True)\n'
    '  signal.raise_signal(signal.SIGINT); print("still here")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == -signal.SIGINT and done.stdout == 'saving\n'
  assert 'Ctrl-C again ends at once' in done.stderr
  assert 'Traceback' not in done.stderr


def test_ignored_signals_stay_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with processes.stop_requests() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert not stop(1)
  finally:
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
  'error',
  [
    BrokenPipeError(),
    OSError(28, 'No space left on device'),
    UnicodeEncodeError('ascii', '±', 0, 1, 'not in range'),
  ],
)
def test_failing_output_asks_to_stop(error):
  with processes.stop_requests() as stop:
    with stop.on_error():
      raise error
    assert stop(1) and stop.reason(1) is error
    with pytest.raises(KeyError), stop.on_error():
      raise KeyError  # is none of the output


def test_what_processes_need_to_find_each_other_is_named(monkeypatch):
  def initialize(*args, **kwargs):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(processes.jax.distributed, 'initialize', initialize)
  with pytest.raises(processes.ProcessesError) as e:
    processes.start(processes=2)
  assert '--coordinator=HOST:PORT, --process=INDEX missing' in str(e.value)


@pytest.mark.parametrize(
  'given, words',
  [
    (('host', 2, 0), '--coordinator=host must be HOST:PORT'),
    (('host:1', 0, 0), '--processes=0 must be a whole number at least 1'),
    (('host:1', 2, 2), '--process=2 must be .* at most 1'),
    (('host:1', 2, -1), '--process=-1 must be'),
    (('host:1', 2, 0, 0), '--heartbeat=0 must be'),
  ],
)
def test_processes_that_cannot_be_are_refused(given, words):
  with pytest.raises(processes.ProcessesError, match=words):
    processes.start(*given)


@pytest.mark.parametrize('present, count', [(False, 4), (True, 1), (True, 4)])
def test_a_pod_is_several_hosts(monkeypatch, present, count):
  gce = processes.cloud_tpu_cluster.GceTpuCluster
  monkeypatch.setattr(gce, 'is_env_present', lambda: present)
  monkeypatch.setattr(gce, 'get_process_count', lambda: count)
  assert processes.on_tpu_pod() == (present and count > 1)
