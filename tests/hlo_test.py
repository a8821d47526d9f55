"""What crosses devices: the huge model's parameters, the step's collectives."""

import json
import pathlib
import re

import jax
import pytest

from configs import fractalmar_huge_in256
from fractal_jax import sharding
from fractal_jax.data import pipeline
from fractal_jax.models import fractal
from fractal_jax.training import optimizer, train, train_state
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')
SPECS = pathlib.Path(__file__).parent / 'goldens' / 'huge_specs.json'


def specs_of_huge() -> dict:
  """Shape and PartitionSpec of every parameter, on a mesh of 2 x 2 x 2."""
  c = fractalmar_huge_in256.get_config()
  c.mesh.update(data=2, fsdp=2, tensor=2)
  mesh = sharding.make_mesh(c)
  net = fractal.from_config(c.model)
  boxed = fractal.boxed_params(net)
  shapes = sharding.unbox(boxed)
  where = sharding.param_shardings(boxed, mesh)
  out = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    out[name] = list(leaf.shape)
  for path, s in jax.tree_util.tree_leaves_with_path(where):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    out[name] = [*map(str, out[name]), '->', *map(str, s.spec)]
  return {name: ' '.join(words) for name, words in out.items()}


def test_every_parameter_of_the_huge_model_lies_where_it_did():
  """After a wanted change: `python -m tests.hlo_test` writes the file."""
  assert specs_of_huge() == json.loads(SPECS.read_text())


def compiled_step(kinds, axes, **changes):
  """HLO of the step, and the shapes that parameters have, whole or a layer."""
  c = tiny.config(
    kinds,
    (8, 1),
    widths=(32, 16),
    num_values=17,
    num_conds=1,
    classes=16,
    **changes,
  )
  c.optim.update(batch=5 * 8, steps=4)
  c.mesh.update(dict(zip(sharding.AXES, axes)))
  mesh = sharding.make_mesh(c)
  net = fractal.from_config(c.model)
  tx = optimizer.create(c, 4)
  state = train_state.abstract(net, tx, c, mesh=mesh)
  batch = next(pipeline.train_batches(c))
  placed = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.over_batch(mesh)
    ),
    batch,
  )
  step = train.compile_step(net, tx, state, c, placed, mesh=mesh)
  shapes = set()
  for leaf in jax.tree.leaves(state.params):
    where = [axis if axis == 'tensor' else None for axis in leaf.sharding.spec]
    used = jax.NamedSharding(mesh, jax.P(*where)).shard_shape(leaf.shape)
    shapes |= {used, used[1:]}
  shapes.add((64, 32))  # of an ar level's positions [65, 32], those in use
  return step.as_text(), {sizes(shape) for shape in shapes}


def sizes(shape) -> tuple[int, ...]:
  """Sizes above 1, whatever their order."""
  return tuple(sorted(n for n in shape if n > 1))


OPERATION = re.compile(
  r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|'
  r'collective-permute)(?:-start)?\('
)


def collectives(text: str) -> dict[str, set]:
  """Sizes of the results of each kind of collective operation in an HLO."""
  found = {}
  for results, operation in OPERATION.findall(text):
    for dims in re.findall(r'\w+\[([\d,]*)\]', results):
      shape = sizes(int(n) for n in dims.split(',') if n)
      found.setdefault(operation, set()).add(shape)
  return found


@pytest.mark.parametrize('kind', ['ar', 'mar'])
def test_data_parallel_steps_sum_gradients_and_nothing_else(kind):
  text, params = compiled_step((kind, 'pixel'), (8, 1, 1))
  found = collectives(text)
  assert set(found) == {'all-reduce'}
  assert found['all-reduce'] <= params


@pytest.mark.parametrize('kind, chunks', [('ar', ()), ('mar', (2, 3))])
def test_fsdp_gathers_parameters_and_never_activations(kind, chunks):
  text, params = compiled_step((kind, 'pixel'), (2, 4, 1), chunks=chunks)
  found = collectives(text)
  assert {'all-gather', 'all-reduce'} <= set(found)
  assert set(found) <= {'all-gather', 'all-reduce', 'reduce-scatter'}
  assert found['all-gather'] <= params
  assert found['all-reduce'] <= params


def test_tensor_parallel_blocks_sum_their_outputs_and_gather_none():
  """Megatron's: one sum after each projection, forward and backward."""
  text, params = compiled_step(('mar', 'pixel'), (2, 2, 2))
  found = collectives(text)
  assert set(found) <= {'all-gather', 'all-reduce', 'reduce-scatter'}
  assert found['all-gather'] <= params
  # 10 images, 64 patches and a condition, width 32: the residual stream.
  assert (10, 32, 65) in found['all-reduce']
  # Nothing of heads (3, 2 x 16), of the MLP (128), nor these halved.
  activations = {shape for shape in found['all-reduce'] if {10, 65} <= {*shape}}
  assert activations == {(10, 32, 65)}


if __name__ == '__main__':
  SPECS.write_text(json.dumps(specs_of_huge(), indent=1) + '\n')
