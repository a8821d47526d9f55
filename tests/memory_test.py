"""Memory as counted, against what XLA says of the compiled step."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import memory as benchmark
from configs import digits
from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.planning import cost, liveness, memory
from fractal_jax.training import optimizer, train_state

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
  [
    ('ar', (1, 1, 1), 'none'),
    ('ar', (1, 1, 1), 'full'),
    ('mar', (1, 8, 1), 'full'),
  ],
)
def test_counted_is_what_xla_says(kind, axes, remat):
  """Within 15%; benchmarks/memory.py has more, and larger, configs."""
  c = configure(kind, axes, 128 * math.prod(axes), remat=remat)
  mesh = sharding.make_mesh(c, jax.devices()[: math.prod(axes)])
  analysis, _ = benchmark.compiled(c, mesh, NORMAL)
  counted = memory.memory(c, mesh)
  assert counted.total == pytest.approx(benchmark.total(analysis), rel=0.15)


def test_parts_are_the_bytes_that_lie_on_a_device():
  c = configure('ar', (2, 2, 2), 64)
  mesh = sharding.make_mesh(c)
  net = fractal.from_config(c.model)
  state = train_state.abstract(
    net, optimizer.create(c, 4), c, mesh=mesh
  )

  def local(tree):
    return sum(
      x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
      for x in jax.tree.leaves(tree)
      if x.ndim
    )

  found = memory.memory(c, mesh)
  assert found.params == found.gradients == local(state.params)
  assert found.optimizer == local(state.opt_state)
  c.optim.frozen = (0,)
  less = memory.memory(c, mesh)
  assert less.params == found.params
  assert less.optimizer < found.optimizer
  assert less.activations < found.activations


def test_chunks_are_found_that_fit():
  c = configure('mar')
  mesh = sharding.abstract_mesh(c, 1)
  whole = memory.memory(c, mesh)
  chunks, found = memory.fitting_chunks(c, mesh, 0.7 * whole.total)
  assert found.total <= 0.7 * whole.total and max(chunks) <= 16
  assert found.params == whole.params
  assert memory.fitting_chunks(c, mesh, 2 * whole.params) is None
  assert c.model.chunks == ()


def test_chunks_of_a_level_within_where_those_of_the_fullest_do_not_help(
  monkeypatch,
):
  c = configure('ar')
  c.model.chunks = (1, 1)

  def counted(config, mesh, tiles):
    outer, inner = config.model.chunks
    return memory.Memory(0, 0, 0, 0, max(32 / outer, 16 / inner), '0')

  monkeypatch.setattr(memory, 'memory', counted)
  assert memory.fitting_chunks(c, None, 8.0)[0] == (4, 2)
  assert memory.fitting_chunks(c, None, 17.0)[0] == (2, 1)
  monkeypatch.setattr(
    memory, 'memory', lambda *_: memory.Memory(0, 0, 0, 0, 32, '0')
  )
  assert memory.fitting_chunks(c, None, 8.0) is None


def test_chunks_that_are_not_needed_are_taken_back(monkeypatch):
  """The fullest moment is in a level that has the lesser part in it."""
  c = configure('ar')
  c.model.chunks = (1, 1)

  def counted(config, mesh, tiles):
    outer, inner = config.model.chunks
    return memory.Memory(0, 0, 0, 0, 8 / outer + 24 / inner, '0')

  monkeypatch.setattr(memory, 'memory', counted)
  assert memory.fitting_chunks(c, None, 17.0)[0] == (2, 2)
  c.model.chunks = (8, 1)  # the config's own stay
  assert memory.fitting_chunks(c, None, 17.0)[0] == (8, 2)


def test_tpus_pad_attention_to_tiles():
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)
  assert liveness.tiled(shape(7, 4, 3, 16)) == 2 * 7 * 4 * 4 * 128
  assert liveness.tiled(shape(5, 21, 130)) == 2 * 5 * 24 * 256
  assert liveness.tiled(shape(9)) == 2 * 128
  c = configure('ar')
  mesh = sharding.abstract_mesh(c, 1)
  plain, padded = (memory.memory(c, mesh, tiles) for tiles in (False, True))
  assert padded.activations > 1.5 * plain.activations
  assert padded.params == plain.params

  def activations(device):
    row = next(
      line
      for line in memory.table(c, 1, device, 0.4, 1_500).splitlines()
      if line.startswith('none')
    )
    return float(row.split()[5])

  assert activations('H100') == pytest.approx(
    plain.activations / memory.GIB, abs=0.006
  )
  assert activations('v5p') == pytest.approx(
    padded.activations / memory.GIB, abs=0.006
  )


def test_table():
  c = configure('ar', (2, 4, 1), 64)
  text = memory.table(c, 8, 'v5e', 0.4, 1_500)
  assert '8 x v5e (16 GiB, 197 TFLOP/s), mesh data=2 fsdp=4 tensor=1.' in text
  flops = 64 * cost.train_flops_per_image(c)
  second = flops / (8 * 197e12 * 0.4)
  assert f'a step takes {second:.3g} s' in text
  assert f'all {1000 * 64 / 1500:.4g} epochs' in text
  assert max(map(len, text.splitlines())) <= 80
