"""Freed memory stays with the process, where JAX runs on a CPU with glibc."""

import os
import subprocess
import sys

import pytest

from fractal_jax import malloc

# Page faults of ten calls of a program whose buffers are 64 MB, once warm.
FAULTS = """
import resource, sys
from fractal_jax import malloc
if sys.argv[1] == 'keep':
  assert malloc.keep()
import jax, jax.numpy as jnp
def f(x):
  return jnp.sort(jnp.broadcast_to(x, (1 << 10, 1 << 14)) + x.sum(), 0)
f = jax.jit(f)
x = jnp.ones(1 << 14)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(15):
  if i == 5:
    start = faults()
  jax.block_until_ready(f(x))
print(faults() - start)
"""


def faults(how: str) -> int:
  command = [sys.executable, '-c', FAULTS, how]
  env = dict(os.environ, XLA_FLAGS='', JAX_PLATFORMS='cpu')
  return int(subprocess.check_output(command, env=env, text=True))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc')
def test_a_steps_buffers_are_not_faulted_in_again():
  assert faults('keep') < faults('leave') / 2


def test_not_where_an_accelerator_may_be_used(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda,cpu')
  assert not malloc.keep()
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert malloc.on_cpu()
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(
    'importlib.util.find_spec', lambda name: name == 'libtpu' or None
  )
  assert not malloc.on_cpu()
