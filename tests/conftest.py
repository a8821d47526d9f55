"""What every test runs on: eight fake CPU devices, and a compilation cache.

Set before JAX is imported. The cache makes every run but the first quick.
"""

import os
import pathlib
import signal

import pytest

from tests import xla

given = os.environ.get('XLA_FLAGS', '')
devices = None if xla.DEVICES in given else 8
os.environ['XLA_FLAGS'] = f'{xla.flags(devices)} {given}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path.home() / '.cache' / 'fractal_jax' / 'tests'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')


# A job in the background of a shell, or under nohup, ignores these signals,
# and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope='module')
def quick_compilation():
  """JAX does not optimise either: for tests that compile large steps."""
  import jax

  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
  """CI has all that the tests need: there a test that is skipped fails.

  Except for want of an accelerator, as the reason then says; and goldens of
  others (FRACTAL_GOLDENS) may lack some of the numbers.
  """
  report = yield
  if report.skipped and os.environ.get('CI') == 'true':
    reason = report.longrepr[2]
    if 'accelerator' not in reason and not os.environ.get('FRACTAL_GOLDENS'):
      report.outcome = 'failed'
      report.longrepr = f'skipped, which fails in CI: {reason}'
  return report


@pytest.fixture(scope='session')
def bucket():
  """A bucket of Google Cloud Storage; see emulator.Emulator."""
  from tests import emulator

  with emulator.serve() as found:
    yield found
