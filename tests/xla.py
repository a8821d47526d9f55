"""How the tests compile: quickly. XLA's options, for jit and as flags.

Most of the time of a test is compilation, so code for the CPU is left
unoptimised. This module imports nothing, so that a process can read it before
it starts JAX; for other processes it prints its flags:

  XLA_FLAGS=$(python -m tests.xla) python benchmarks/paper.py --tiny --row=all
"""

QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  'xla_cpu_use_fusion_emitters': False,
}
# For what runs so long that it is worth compiling well.
OPTIMISED = {
  'xla_backend_optimization_level': 3,
  'xla_llvm_disable_expensive_passes': False,
  'xla_cpu_use_fusion_emitters': True,
}
DEVICES = 'xla_force_host_platform_device_count'


def flags(devices: int | None = None) -> str:
  """What XLA_FLAGS is set to: QUICK, on so many fake CPU devices if given."""
  options = QUICK if devices is None else QUICK | {DEVICES: devices}
  return ' '.join(f'--{k}={str(v).lower()}' for k, v in options.items())


if __name__ == '__main__':
  print(flags())
