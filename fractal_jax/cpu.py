"""What only a CPU needs: huge pages, one device per core, forms of operations.

No other file knows how XLA compiles for a CPU. The model asks `is_target` and
calls the forms at the end of this file; they compute the same numbers.

XLA takes a program's buffers from malloc for each call and gives them back
after it. glibc returns blocks of such a size to the system, which hands out
and zeroes their pages anew, 4 KiB at a time: a third of a training step on two
cores. With pages of 2 MiB it is a tenth. glibc asks for these if told so by an
environment variable, which it reads before Python runs.

XLA spreads large operations over the cores, and leaves one core busy in small
ones. Images need nothing of each other, so one device per core keeps all busy.
"""

import contextlib
import glob
import importlib.util
import math
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jax import Array

TUNABLES = 'GLIBC_TUNABLES'
# TPUs; GPUs of NVIDIA, of AMD, and of either under Windows.
DEVICES = (
  *('/dev/accel*', '/dev/vfio/[0-9]*'),
  *('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/dxg'),
)


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


def use_cores(images: int) -> None:
  """Makes a device of each core, as far as images divide over a power of two.

  Call it before JAX starts its devices. Does nothing where the user has set
  their number (JAX_NUM_CPU_DEVICES, or in XLA_FLAGS), where an accelerator may
  be used, and where JAX has started them.

  Args:
    images: how many there are at a time.
  """
  import jax

  chosen = jax.config.jax_num_cpu_devices > 0
  chosen |= 'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if chosen or not on_cpu():
    return
  n = 1
  while 2 * n <= cores() and images % (2 * n) == 0:
    n *= 2
  # JAX may have its devices: an earlier job's in this process.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', n)


def forward_options() -> dict | None:
  """Compiler options of programs without a backward pass; None: no others.

  XLA's kernels of matrix products take in the normalisation before them, and
  are slower so. With gradients its default is the faster one.
  """
  import jax

  if jax.default_backend() != 'cpu':
    return None
  kind = 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'
  return {'xla_cpu_experimental_ynn_fusion_type': kind}


def cores() -> int:
  """The number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def on_cpu() -> bool:
  """Whether JAX, which has not started yet, can run on the CPU alone."""
  chosen = os.environ.get('JAX_PLATFORMS')
  if chosen:
    return chosen == 'cpu'
  plugin = any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
  return not plugin or (sys.platform == 'linux' and not accelerators())


def accelerators() -> list[str]:
  """The device files of TPUs and GPUs; Linux has them.

  A plugin alone says little: libtpu compiles for TPUs that are not there
  (fractal-jax cost --topology), and one environment may serve many machines.
  """
  return [path for kind in DEVICES for path in glob.glob(kind)]


# Forms of operations. JAX is imported late: a process that starts itself again
# for huge pages should not wait for it.


def is_target() -> bool:
  """Whether what is being traced will run on a CPU: see sharding.platform."""
  from fractal_jax import sharding

  return sharding.platform() == 'cpu'


def weight_gradient(x: 'Array', g: 'Array') -> 'Array':
  """The gradient by w of the product of x [..., D] and w [D, F ...].

  XLA on a CPU transposes one of the two, with all that it has fused into it:
  here the narrower one. JAX's own rule always transposes g, and training the
  digits took 1.5 times as long.

  Args:
    x: [..., D].
    g: [..., F ...], the gradient by the product.

  Returns:
    [D, F ...].
  """
  import jax.numpy as jnp

  rows = tuple(range(x.ndim - 1))
  columns = math.prod(g.shape[len(rows) :])
  if x.shape[-1] <= columns or not is_target():
    return jnp.tensordot(x, g, (rows, rows))
  return jnp.moveaxis(jnp.tensordot(g, x, (rows, rows)), -1, 0)


def gelu(x: 'Array') -> 'Array':
  """Exact GELU by erf, which costs a CPU half of the erfc of `nn.gelu`."""
  import jax
  import numpy as np

  return x * (0.5 + 0.5 * jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
