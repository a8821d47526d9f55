"""What every test runs on: eight fake CPU devices, and a compilation cache.

Set before JAX is imported. Most of the tests' time is compilation: the cache
makes every run but the first quick, and code for the CPU is left unoptimised.
"""

import os
import pathlib

import pytest

DEVICES = '--xla_force_host_platform_device_count'
QUICK = (
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false'
)
flags = os.environ.get('XLA_FLAGS', '')
if DEVICES not in flags:
  flags += f' {DEVICES}=8'
os.environ['XLA_FLAGS'] = f'{QUICK} {flags}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path.home() / '.cache' / 'fractal_jax' / 'tests'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')


@pytest.fixture(scope='session')
def bucket():
  """A bucket of Google Cloud Storage; see emulator.Emulator."""
  from tests import emulator

  with emulator.serve() as found:
    yield found
