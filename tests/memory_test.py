"""Memory as counted, against what XLA says of the compiled step."""

import math

import jax
import pytest

from benchmarks import memory as benchmark
from configs import digits, fractalmar_huge_in256
from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.planning import aot, cost, memory
from fractal_jax.training import optimizer, train_state

# As by default, and not as conftest.py has it; the schedule for least memory,
# as accelerators have it.
NORMAL = {
  'xla_cpu_use_fusion_emitters': True,
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
}
MANY = 32768  # images of the digits that do not fit on a v5e


def configure(kind, axes=(1, 1, 1), images=128, **model):
  """Digits, with so many images on each device."""
  c = digits.get_config(kind)
  c.model.unroll = 0
  c.model.update(model)
  c.mesh.update(dict(zip(sharding.AXES, axes)))
  c.optim.batch = images * axes[0] * axes[1]
  return c


@pytest.fixture(scope='module', autouse=True)
def traces_are_shared():
  """A config's loss is traced once, for all tests: each takes a second."""
  traced, found = memory.kept_bytes, {}

  def kept_bytes(config, params):
    key = config.to_json()
    if key not in found:
      found[key] = traced(config, params)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(memory, 'kept_bytes', kept_bytes)
    yield


@pytest.mark.parametrize(
  'kind, axes, remat, error',
  [
    ('ar', (1, 1, 1), 'none', 0.15),
    ('ar', (1, 1, 1), 'full', 0.2),  # the smallest, and furthest off
    ('mar', (1, 8, 1), 'full', 0.15),
  ],
)
def test_counted_is_what_xla_says(kind, axes, remat, error):
  """As docs/mesh.md states; benchmarks/memory.py has larger configs."""
  c = configure(kind, axes, remat=remat)
  mesh = sharding.make_mesh(c, jax.devices()[: math.prod(axes)])
  analysis, _ = benchmark.compiled(c, mesh, NORMAL)
  counted = memory.memory(c, mesh)
  assert counted.total == pytest.approx(aot.total(analysis), rel=error)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_parts_are_the_bytes_that_lie_on_a_device(name):
  c = configure('ar', (2, 2, 2))
  c.optim.name = name
  mesh = sharding.make_mesh(c)
  net = fractal.from_config(c.model)
  state = train_state.abstract(net, optimizer.create(c, 4), c, mesh=mesh)

  def local(tree):
    return sum(
      x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
      for x in jax.tree.leaves(tree)
      if x.ndim
    )

  found = memory.memory(c, mesh)
  assert found.params == found.gradients == local(state.params)
  # Muon keeps its three coefficients, too.
  assert found.optimizer == local(state.opt_state) - 12 * (name == 'muon')
  c.optim.frozen = (0,)
  less = memory.memory(c, mesh)
  assert less.params == found.params
  assert less.optimizer < found.optimizer
  assert less.activations < found.activations


def test_what_is_kept_is_by_level():
  """Chunks of a level keep its input alone, and its block works in parts."""
  c = configure('mar', images=MANY, remat='none')
  mesh = sharding.abstract_mesh(c, 1)
  found = memory.step(c, mesh, memory.working_bytes(c, mesh))
  assert found.kept > sum(map(found.chunked, range(3))) > 0.8 * found.kept
  whole, halves = found.memory(), found.memory((1, 2))
  fullest = found.kept + found.working[1]  # at level 1
  assert whole.activations == fullest
  assert whole.params == halves.params
  less = found.chunked(1) - (found.chunked(1) - found.working[1]) / 2
  assert whole.activations - halves.activations == pytest.approx(less)


def test_tpus_pad_the_attention_of_the_pixel_level():
  c = configure('ar')
  mesh = sharding.abstract_mesh(c, 1)
  plain, padded = (memory.working_bytes(c, mesh, tpu=x) for x in (False, True))
  assert padded[:-1] == plain[:-1]
  assert padded[-1] == pytest.approx(memory.PADDED_PIXELS * plain[-1])


def test_chunks_that_did_not_fit_are_not_proposed():
  """Of huge on 64 v5e libtpu says 17.3 GiB of 16 for 1,1,4,2 (docs/mesh.md)."""
  c = fractalmar_huge_in256.get_config()
  c.mesh.update(data=1, fsdp=64)
  mesh = sharding.abstract_mesh(c, 64)
  found = memory.step(c, mesh, memory.working_bytes(c, mesh, tpu=True))
  room = memory.FITS * 16 * memory.GIB
  assert found.memory((1, 1, 4, 2)).total > room
  assert found.memory((1, 1, 4, 4)).total <= room
  assert memory.fitting_chunks(found, (1, 1, 1, 1), room) == (1, 1, 4, 4)


def test_remat_keeps_less():
  c = configure('ar')
  mesh = sharding.abstract_mesh(c, 1)
  totals = []
  for c.model.remat in ('none', 'dots', 'full'):
    totals.append(memory.memory(c, mesh).total)
  assert totals[0] > 1.3 * totals[1] > 1.5 * totals[2]


def step_of(kept, chunked, working):
  rest = memory.Memory(1.0, 2.0, 1.0, 0.0, 0.0)
  return memory.Step(rest, kept, working, chunked.__getitem__)


def test_the_fewest_chunks_that_fit_are_found():
  found = step_of(100.0, (40.0, 50.0), (2.0, 20.0))
  assert found.memory().total == 124  # at level 1
  fits = memory.fitting_chunks(found, (1, 1), 124.0)
  assert fits == (1, 1)
  # Halves of the outer level: 60 are kept, and at most 21 beside them.
  assert memory.fitting_chunks(found, (1, 1), 100.0) == (2, 1)
  assert memory.fitting_chunks(found, (1, 1), 60.0) == (2, 2)
  assert memory.fitting_chunks(found, (1, 8), 100.0) == (1, 8)  # its own stay
  assert memory.fitting_chunks(found, (1, 1), 14.0) is None


def test_gradients_and_updates_are_the_least():
  """Where activations are few, the end of a step is its fullest moment."""
  rest = memory.Memory(8.0, 16.0, 8.0, 0.0, 0.0)
  found = memory.Step(rest, 1.0, (1.0,), lambda level: 1.0)
  assert found.memory().activations == 8 and found.memory().total == 40


def test_the_table_finds_chunks():
  c = configure('mar', images=MANY, remat='none')
  text = memory.table(c, 1, 'v5e', 0.4, 1_500)
  (line,) = [x for x in text.splitlines() if 'It fits with' in x]
  chunks = line.split('chunks=')[1].rstrip('.')
  assert any(row.split()[1] == chunks for row in text.splitlines()[3:8])
  c.model.chunks = tuple(map(int, chunks.split(',')))
  mesh = sharding.abstract_mesh(c, 1)
  assert memory.memory(c, mesh).total <= memory.FITS * 16 * memory.GIB


def test_table():
  c = configure('ar', (2, 4, 1))
  text = memory.table(c, 8, 'v5e', 0.4, 1_500)
  assert '8 x v5e (16 GiB, 197 TFLOP/s), mesh data=2 fsdp=4 tensor=1.' in text
  flops = 1024 * cost.cost(c).total('training')
  second = flops / (8 * 197e12 * 0.4)
  assert f'a step takes {second:.3g} s' in text
  assert f'all {600 * 1024 / 1500:.4g} epochs' in text
  assert max(map(len, text.splitlines())) <= 80
