"""Parameters read from runs."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from fractal_jax.training import CheckpointError, restore
from tests.checkpoint_test import like, make_state, write


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('run'))
  write(workdir, 5, 10)
  return workdir


def test_parameters_alone(run):
  params = restore.restore_params(run)
  jax.tree.map(np.testing.assert_array_equal, params, make_state(10).params)
  assert params['level_0']['a'].sharding.device_set == {jax.devices()[0]}
  five = restore.restore_params(run, 5)
  assert float(five['labels']['b'][0]) == 5
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, P('x'))
  params = restore.restore_params(run, shardings=split)
  assert params['level_1']['a'].sharding == split
  with pytest.raises(CheckpointError, match=r'no checkpoint of step 7.*5, 10'):
    restore.restore_params(run, 7)
  with pytest.raises(CheckpointError, match='other parameters'):
    restore.restore_params(run, shardings={'level_0': split})


def test_some_levels(run):
  wanted = {'level_1': like(make_state()).params['level_1']}
  found = restore.restore_subtrees(run, wanted)
  assert list(found) == ['level_1']
  assert float(found['level_1']['b'][0]) == 10
  with pytest.raises(CheckpointError, match='missing: level_7/b'):
    restore.restore_subtrees(run, {'level_7': wanted['level_1']})
