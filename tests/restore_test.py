"""Parameters read from runs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from fractal_jax import api
from fractal_jax.training import CheckpointError, checkpoint, restore
from tests import tiny
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
  wanted = like(make_state()).params
  five = restore.restore_like(run, 5, wanted)
  assert float(five['labels']['b'][0]) == 5
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, P('x'))
  wanted = like(jax.device_put(make_state().params, split))
  params = restore.restore_like(run, None, wanted)
  assert params['level_1']['a'].sharding == split
  with pytest.raises(CheckpointError, match=r'no checkpoint of step 7.*5, 10'):
    restore.restore_like(run, 7, wanted)
  with pytest.raises(CheckpointError, match='extra: labels/a'):
    restore.restore_like(run, None, {'level_0': wanted['level_0']})


def test_some_levels(run):
  wanted = {'level_1': like(make_state()).params['level_1']}
  found = restore.restore_subtrees(run, wanted)
  assert list(found) == ['level_1']
  assert float(found['level_1']['b'][0]) == 10
  with pytest.raises(CheckpointError, match='missing: level_7/b'):
    restore.restore_subtrees(run, {'level_7': wanted['level_1']})


@pytest.mark.skipif(os.getuid() != 0, reason='needs another user to be')
@pytest.mark.parametrize(
  'hidden', ['config.json', 'checkpoints', 'checkpoints/10/params']
)
def test_what_may_not_be_read_is_not_called_damaged(run, tmp_path, hidden):
  for parent in [tmp_path, *tmp_path.parents][:-2]:
    os.chmod(parent, 0o755)
  shutil.copytree(run, tmp_path / 'run')
  os.chmod(tmp_path / 'run' / hidden, 0)
  code = (
    'import os, sys\n'
    'from fractal_jax.training import CheckpointError, checkpoint, restore\n'
    'os.setgid(65534); os.setuid(65534)\n'
    'try:\n'
    '  checkpoint.load_config(sys.argv[1])\n'
    '  restore.restore_params(sys.argv[1])\n'
    'except CheckpointError as e: print(e)\n'
  )
  root = pathlib.Path(__file__).parent.parent
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'run')],
    env=os.environ | {'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
  )
  assert 'cannot be read' in done.stdout, done.stderr
  assert 'damaged' not in done.stdout


def test_a_run_whose_config_is_of_another_model_is_named(tmp_path):
  config = tiny.config()
  checkpoint.save_params(tmp_path, config, tiny.build()[1])
  file = tmp_path / 'config.json'
  stored = json.loads(file.read_text())
  stored['model']['widths'] = [2 * x for x in stored['model']['widths']]
  file.write_text(json.dumps(stored))
  with pytest.raises(CheckpointError, match='not fit the config:\n  misshapen'):
    api.load(tmp_path)
  (tmp_path / 'checkpoints' / '²').mkdir()  # a digit, but no number
  assert restore.steps(tmp_path) == [0]
  with pytest.raises(CheckpointError, match='is not UTF-8'):
    restore.steps('x\udcff')


MODEL = '"model": {"kinds": ["mar", "ar", "pixel"], "sizes": [64, 4, 1]}'


@pytest.mark.parametrize(
  'text, words',
  [
    ('', 'not valid JSON'),
    ('[' * 100_000, 'not valid JSON'),
    ('[]', 'no config of fractal_jax'),
    ('{"model": 3}', 'no config of fractal_jax'),
    ('{"model": {"a.b": 1}}', 'no config of fractal_jax'),
    ('{"modle": {}}', 'no config of fractal_jax'),
    (f'{{{MODEL}, "modle": {{}}}}', "'modle' is no section of a config"),
    (f'{{{MODEL}, "eval": 3}}', 'eval is no section of keys'),
    (f'{{{MODEL}, "seed": "x"}}', "breaks these rules:\n  - seed='x' must be"),
    (f'{{{MODEL}, "optim": {{"lr": NaN}}}}', 'optim.lr=nan must be'),
  ],
)
def test_what_is_no_config_of_a_run_is_named(tmp_path, text, words):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(CheckpointError, match=words):
    checkpoint.load_config(tmp_path)
