"""The C library's memory, kept between the steps of a CPU run.

XLA takes a program's buffers from malloc for each call and gives them back
after it. glibc returns blocks of such a size to the system, which zeroes their
pages when they are touched again: a third of a training step on two cores.
"""

import ctypes
import importlib.util
import os

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep() -> bool:
  """Keeps freed memory for the next step; call it before JAX starts threads.

  The process then stays as large as it has ever been. Threads share one pool:
  the pools of their own are too small for such blocks.

  Returns:
    Whether it does: on glibc, where JAX will run on the CPU.
  """
  if not on_cpu():
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
    return False
  never = mallopt(TRIM_THRESHOLD, -1), mallopt(MMAP_MAX, 0)
  return all(never) and bool(mallopt(ARENA_MAX, 1))


def on_cpu() -> bool:
  """Whether JAX, which has not started yet, can run on the CPU alone."""
  chosen = os.environ.get('JAX_PLATFORMS')
  if chosen:
    return chosen == 'cpu'
  return not any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
