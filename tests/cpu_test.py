"""Huge pages, for which the program starts again; devices of cores; options."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from fractal_jax import cpu

PROGRAM = """
import os, sys
print('started', os.getpid(), flush=True)
from fractal_jax import cpu
cpu.use_huge_pages()
print('ran', os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""


def run(**env):
  here = {k: v for k, v in os.environ.items() if k != cpu.TUNABLES}
  command = [sys.executable, '-c', PROGRAM, '--flag=a b', '']
  out = subprocess.check_output(command, env=here | env, text=True)
  return [line.split(maxsplit=2) for line in out.splitlines()]


@pytest.mark.skipif(sys.platform != 'linux', reason='of glibc')
def test_the_program_starts_again_once_as_it_was():
  first, second, last = run(JAX_PLATFORMS='cpu')
  assert first[0] == second[0] == 'started' and last[0] == 'ran'
  assert first[1] == second[1] == last[1]  # one process
  assert last[2] == "['--flag=a b', ''] glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
  'env', [{cpu.TUNABLES: 'x=1'}, {'JAX_PLATFORMS': 'cuda,cpu'}]
)
def test_it_leaves_alone_what_is_set_and_accelerators(env):
  started, ran = run(**{'JAX_PLATFORMS': 'cpu'} | env)
  assert ran[2].endswith(env.get(cpu.TUNABLES, 'None'))


@pytest.mark.parametrize(
  'plugin, device, system, on_cpu',
  [
    ('none', 'accel0', 'linux', True),  # a TPU that JAX knows nothing of
    ('libtpu', 'accel0', 'linux', False),
    ('libtpu', 'null', 'linux', True),  # there to compile for TPUs elsewhere
    ('jax_plugins', 'nvidia0', 'linux', False),
    ('jax_plugins', 'null', 'darwin', False),  # no such files to look at
  ],
)
def test_accelerators_are_known_by_plugin_and_device(
  plugin, device, system, on_cpu, monkeypatch, tmp_path
):
  (tmp_path / device).touch()
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(
    'importlib.util.find_spec', lambda name: name == plugin or None
  )
  monkeypatch.setattr('sys.platform', system)
  here = [kind.replace('/dev', str(tmp_path)) for kind in cpu.DEVICES]
  monkeypatch.setattr(cpu, 'DEVICES', here)
  assert cpu.on_cpu() == on_cpu


@pytest.mark.parametrize('images, found', [(16, 4), (6, 2), (1, 1), (2, 2)])
def test_images_divide_over_a_power_of_two(monkeypatch, images, found):
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setattr(cpu, 'cores', lambda: 6)
  set_to = {}
  monkeypatch.setattr('jax.config.update', set_to.__setitem__)
  cpu.use_cores(images)
  assert set_to == {'jax_num_cpu_devices': found}


def test_the_number_of_devices_that_is_set_stays(monkeypatch):
  assert jax.device_count() == 8  # conftest's XLA_FLAGS
  before = jax.config.jax_num_cpu_devices
  cpu.use_cores(16)
  assert jax.config.jax_num_cpu_devices == before
  monkeypatch.setenv('XLA_FLAGS', '')
  cpu.use_cores(16)  # they are there
  assert jax.config.jax_num_cpu_devices == before
  monkeypatch.setattr('jax.config.update', pytest.fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  cpu.use_cores(16)


def test_forward_options_are_of_cpus_and_known_to_xla(monkeypatch):
  options = cpu.forward_options()
  assert options
  x = jnp.linspace(-1, 1, 12).reshape(3, 4)
  scores = jax.jit(jax.nn.softmax, compiler_options=options)(x)
  assert jnp.allclose(scores, jax.nn.softmax(x), atol=1e-6)
  with pytest.raises(
    jax.errors.JaxRuntimeError, match='No such compile option'
  ):
    unknown = {'xla_cpu_no_such_option': 'x'}
    jax.jit(jax.nn.softmax, compiler_options=unknown)(x)
  monkeypatch.setattr('jax.default_backend', lambda: 'gpu')
  assert cpu.forward_options() is None
