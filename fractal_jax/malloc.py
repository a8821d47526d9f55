"""Huge pages for the buffers of a CPU run.

XLA takes a program's buffers from malloc for each call and gives them back
after it. glibc returns blocks of such a size to the system, which hands out
and zeroes their pages anew, 4 KiB at a time: a third of a training step on two
cores. With pages of 2 MiB it is a tenth. glibc asks for these if told so by an
environment variable, which it reads before Python runs.
"""

import importlib.util
import os
import sys

TUNABLES = 'GLIBC_TUNABLES'


def use_huge_pages() -> None:
  """Starts this program again with huge pages, where JAX will use the CPU.

  Call it first. Does nothing where the user has set GLIBC_TUNABLES, where an
  accelerator may be used, and where the system is not Linux. The process, its
  arguments and its files stay the same.
  """
  if sys.platform != 'linux' or TUNABLES in os.environ or not on_cpu():
    return
  os.environ[TUNABLES] = 'glibc.malloc.hugetlb=1'
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_cpu() -> bool:
  """Whether JAX, which has not started yet, can run on the CPU alone."""
  chosen = os.environ.get('JAX_PLATFORMS')
  if chosen:
    return chosen == 'cpu'
  return not any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
