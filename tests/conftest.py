"""What every test runs on: eight fake CPU devices, and a compilation cache.

Set before JAX is imported. The cache makes every run but the first quick:
most of the tests' time is compilation.
"""

import os
import pathlib

DEVICES = '--xla_force_host_platform_device_count'
flags = os.environ.get('XLA_FLAGS', '')
if DEVICES not in flags:
  os.environ['XLA_FLAGS'] = f'{flags} {DEVICES}=8'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path.home() / '.cache' / 'fractal_jax' / 'tests'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
