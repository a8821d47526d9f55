"""Memory as counted, against what XLA says of the compiled step."""

import math

import jax
import pytest

from benchmarks import memory as benchmark
from configs import digits
from fractal_jax import memory, sharding

# As by default, and not as conftest.py has it; the schedule for least memory,
# as accelerators have it.
NORMAL = {
  'xla_cpu_use_fusion_emitters': True,
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
}


def configure(kind, axes=(1, 1, 1), batch=256, **model):
  c = digits.get_config(kind)
  c.model.unroll = 0
  c.model.update(model)
  c.mesh.update(dict(zip(sharding.AXES, axes)))
  c.optim.batch = batch
  return c


@pytest.mark.parametrize(
  'kind, axes, remat',
  [('ar', (1, 1, 1), 'none'), ('mar', (1, 8, 1), 'full')],
)
def test_counted_is_what_xla_says(kind, axes, remat):
  """Within 15%; benchmarks/memory.py has more, and larger, configs."""
  c = configure(kind, axes, 128 * math.prod(axes), remat=remat)
  mesh = sharding.make_mesh(c, jax.devices()[: math.prod(axes)])
  analysis, _ = benchmark.compiled(c, mesh, NORMAL)
  counted = memory.memory(c, mesh)
  assert counted.total == pytest.approx(benchmark.total(analysis), rel=0.15)
