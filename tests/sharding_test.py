"""The mesh, the rules, and where batches lie."""

import dataclasses

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.sharding import ShardingError


def configure(data=-1, fsdp=1, tensor=1, batch=16, **mesh):
  c = config_lib.default()
  c.mesh.update(data=data, fsdp=fsdp, tensor=tensor, **mesh)
  c.optim.batch = batch
  return c


@dataclasses.dataclass(frozen=True)
class Device:
  """A device of a pod, for layouts that these eight can't show."""

  id: int
  process_index: int
  slice_index: int
  platform: str = 'gpu'
  device_kind: str = 'fake'


def test_minus_one_takes_the_devices_that_remain():
  shape = lambda *axes: tuple(
    sharding.make_mesh(configure(*axes)).shape.values()
  )
  assert shape(-1, 1, 1) == (8, 1, 1)
  assert shape(1, -1, 2) == (1, 4, 2)
  assert shape(2, 2, 2) == (2, 2, 2)


@pytest.mark.parametrize('axes', [(3, 1, 1), (-1, 3, 1), (2, 2, 1), (4, 4, 1)])
def test_axes_must_multiply_to_the_devices(axes):
  with pytest.raises(ShardingError, match='does not fit 8 devices'):
    sharding.make_mesh(configure(*axes))


def test_batch_and_groups_must_divide():
  with pytest.raises(ShardingError, match='optim.batch=12 .* multiple of 8'):
    sharding.make_mesh(configure(batch=12))
  with pytest.raises(ShardingError, match='mesh.groups=4 .* multiple of the 8'):
    sharding.make_mesh(configure(groups=4))
  mesh = sharding.make_mesh(configure(1, 2, 4, batch=12))
  assert sharding.num_groups(configure(), mesh) == 2
  assert sharding.num_groups(configure(groups=6), mesh) == 6


def test_slices_are_joined_by_data():
  devices = [Device(i, i // 4, i // 4) for i in range(8)]
  mesh = sharding.make_mesh(configure(-1, 2, 2, slices=2), devices)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert [{d.slice_index for d in row.flat} for row in mesh.devices] == [
    {0},
    {1},
  ]
  with pytest.raises(ShardingError, match='slices=2 does not divide mesh.data'):
    sharding.make_mesh(configure(1, 4, 2, slices=2), devices)
  with pytest.raises(ShardingError, match='slices=4 does not fit'):
    sharding.make_mesh(configure(4, 1, 2, slices=4), devices)


def test_spec_follows_the_rules():
  mesh = sharding.make_mesh(configure(2, 2, 2))
  spec = lambda names, shape: sharding.spec(names, shape, mesh, path='x')
  assert spec(('embed', None, 'heads'), (8, 3, 8)) == P('fsdp', None, 'tensor')
  assert spec(('layers', 'mlp', 'embed'), (5, 8, 8)) == P(
    None, 'tensor', 'fsdp'
  )
  assert spec(('norm',), (8,)) == P()
  # What its axis doesn't divide stays whole.
  assert spec(('embed', 'mlp'), (7, 8)) == P(None, 'tensor')
  boxed = {'x': nn.LogicallyPartitioned(np.zeros((7, 8)), ('embed', 'mlp'))}
  assert sharding.unsplit(boxed, mesh) == ['x: embed=7 over fsdp=2']


def test_spec_errors_name_the_parameter():
  mesh = sharding.make_mesh(configure())
  with pytest.raises(ShardingError, match="a/b has the unknown .* 'embde'"):
    sharding.spec(('embde',), (8,), mesh, path='a/b')
  rules = sharding.Rules(heads='fsdp')
  with pytest.raises(
    ShardingError, match="a/b: its axes 'embed' and 'heads' bo"
  ):
    sharding.spec(('embed', 'heads'), (8, 8), mesh, rules, path='a/b')


def test_hosts_read_the_rows_of_their_devices():
  mesh = sharding.make_mesh(configure(2, 2, 2))
  assert sharding.host_rows(mesh) == (0, 1)
  rows = {'label': np.arange(16), 'image': np.zeros((16, 4, 4, 1), np.uint8)}
  placed = sharding.place(rows, mesh)
  assert placed['image'].sharding.spec == P(('data', 'fsdp'))
  assert placed['label'].addressable_shards[0].data.shape == (4,)
  np.testing.assert_array_equal(placed['label'], rows['label'])


@pytest.mark.parametrize(
  'tensor, parts',
  [
    (1, [(0, 2), (1, 2)]),
    (2, [(0, 2), (1, 2)]),
    (8, [(0, 1), (0, 1)]),  # one replica over both hosts
  ],
)
def test_parts_of_two_hosts(monkeypatch, tensor, parts):
  mesh = sharding.make_mesh(configure(-1, 1, tensor))
  host_of = {d: i // 4 for i, d in enumerate(mesh.devices.flat)}

  class Over:
    def devices_indices_map(self, shape):
      found = jax.NamedSharding(mesh, P(sharding.BATCH)).devices_indices_map(
        shape
      )
      return {Device(d.id, host_of[d], 0): where for d, where in found.items()}

  monkeypatch.setattr(sharding, 'over_batch', lambda mesh: Over())
  for host, part in enumerate(parts):
    monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
    assert sharding.host_rows(mesh) == part
