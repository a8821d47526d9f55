"""Huge pages: the program starts again once, as it was, and only on a CPU."""

import os
import subprocess
import sys

import pytest

from fractal_jax import malloc

PROGRAM = """
import os, sys
print('started', os.getpid(), flush=True)
from fractal_jax import malloc
malloc.use_huge_pages()
print('ran', os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""


def run(**env):
  here = {k: v for k, v in os.environ.items() if k != malloc.TUNABLES}
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
  'env', [{malloc.TUNABLES: 'x=1'}, {'JAX_PLATFORMS': 'cuda,cpu'}]
)
def test_it_leaves_alone_what_is_set_and_accelerators(env):
  started, ran = run(**{'JAX_PLATFORMS': 'cpu'} | env)
  assert ran[2].endswith(env.get(malloc.TUNABLES, 'None'))


def test_accelerators_are_known_by_their_plugins(monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(
    'importlib.util.find_spec', lambda name: name == 'libtpu' or None
  )
  assert not malloc.on_cpu()
