"""The work directory: config, checkpoints, lock."""

import json
import pathlib
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import optax
import pytest

from fractal_jax import config as config_lib
from fractal_jax.training import (
  CheckpointError,
  checkpoint,
  checksums,
  lease,
  restore,
)
from fractal_jax.training.train_state import TrainState

TX = optax.adamw(1e-3)


def make_state(value=1.0, sharding=None, **shapes):
  shapes = {'a': (8, 4), 'b': (8,)} | shapes
  params = {
    level: {k: jnp.full(s, value) for k, s in shapes.items()}
    for level in ('labels', 'level_0', 'level_1')
  }
  state = TrainState(jnp.int32(0), params, TX.init(params))
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.device_put(state, sharding)


def like(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def write(workdir, *steps, config=None, bits=None):
  """A run with checkpoints; the value of parameters is their step."""
  config = config or config_lib.default()
  checkpoint.save_config(config, workdir)
  checkpoints = checkpoint.Checkpoints(workdir, config)
  for step in steps:
    position = {'step': step}
    one = None if bits is None else bits[step]
    checkpoints.save(step, make_state(step), position, one)
  checkpoints.close()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('run'))
  write(workdir, 5, 10)
  return workdir


# The config.


def test_config_comes_back_equal_and_locked(tmp_path):
  c = config_lib.default()
  c.optim.update(clip=float('inf'), frozen=(0, 1))
  with c.ignore_type():
    c.model.num_conds = (1, 5)
  checkpoint.save_config(c, tmp_path)
  found = checkpoint.load_config(tmp_path)
  assert found.to_dict() == c.to_dict()
  assert isinstance(found.model.sizes, tuple)
  with pytest.raises(AttributeError):
    found.optim.btach = 3


def test_config_of_an_older_version_gets_defaults(tmp_path):
  checkpoint.save_config(config_lib.default(), tmp_path)
  path = tmp_path / 'config.json'
  stored = json.loads(path.read_text())
  del stored['eval']['passes']
  path.write_text(json.dumps(stored))
  assert checkpoint.load_config(tmp_path).eval.passes == 1


def test_temperatures_of_older_versions_are_inverted(tmp_path):
  """config.json of the published 64x64 run, written when it multiplied."""
  old = pathlib.Path(__file__).parent / 'stored' / 'config_1.json'
  path = tmp_path / 'config.json'
  path.write_text(old.read_text())
  assert json.loads(old.read_text())['sample']['temperature'] == 1.02
  c = checkpoint.load_config(tmp_path)
  assert c.sample.temperature == 1 / 1.02 and c.sample.guidance == 6.5
  checkpoint.save_config(c, tmp_path)  # as a run that goes on does
  assert json.loads(path.read_text())['version'] == 2
  assert checkpoint.load_config(tmp_path).to_dict() == c.to_dict()
  path.write_text(json.dumps({'version': 3}))
  with pytest.raises(CheckpointError, match='format 3, .* reads 1 to 2'):
    checkpoint.load_config(tmp_path)


def test_another_model_is_refused_by_the_keys_that_differ(tmp_path):
  write(tmp_path, 1)
  c = config_lib.default()
  c.optim.lr = 0.5
  c.model.dtype = 'bfloat16'
  checkpoint.save_config(c, tmp_path)  # these may change
  assert checkpoint.load_config(tmp_path).optim.lr == 0.5
  before = (tmp_path / 'config.json').read_text()
  c.model.depths = (32, 8, 4)
  c.model.classes = 7
  with pytest.raises(CheckpointError) as e:
    checkpoint.save_config(c, tmp_path)
  assert 'model.classes: 1000 there, 7 now' in str(e.value)
  assert 'model.depths: (32, 8, 3) there, (32, 8, 4) now' in str(e.value)
  assert 'dtype' not in str(e.value)
  assert (tmp_path / 'config.json').read_text() == before


def test_config_without_checkpoints_may_be_replaced(tmp_path):
  c = config_lib.default()
  checkpoint.save_config(c, tmp_path)
  c.model.classes = 7
  checkpoint.save_config(c, tmp_path)
  assert checkpoint.load_config(tmp_path).model.classes == 7


def test_no_work_directory(tmp_path):
  with pytest.raises(CheckpointError, match='no config.json'):
    checkpoint.load_config(tmp_path / 'none')
  with pytest.raises(CheckpointError, match='does not exist'):
    restore.restore_params(tmp_path / 'none')
  with pytest.raises(CheckpointError, match='has no checkpoint yet'):
    restore.restore_params(tmp_path)


# Checkpoints.


def test_latest_every_and_best_are_kept(tmp_path):
  c = config_lib.default()
  c.optim.update(keep=1, keep_every=4)
  bits = {1: 3.0, 2: 1.5, 3: 2.0, 4: 2.5, 5: None, 6: 2.2}
  write(tmp_path, *bits, config=c, bits=bits)
  assert restore.steps(tmp_path) == [2, 4, 6]


def test_state_and_position_come_back_onto_another_mesh_and_type(run):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, P('x'))
  state = make_state()
  wanted = like(state).replace(
    step=like(jax.device_put(state.step, NamedSharding(mesh, P())))
  )
  wanted = wanted.replace(
    params=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=split),
      wanted.params,
    )
  )
  checkpoints = checkpoint.Checkpoints(run, config_lib.default())
  found, position = checkpoints.restore(wanted)
  checkpoints.close()
  assert position == {'step': 10}
  assert found.step == 10 and found.step.dtype == jnp.int32
  chex.assert_trees_all_equal(
    (found.params, found.opt_state),
    (make_state(10).params, state.opt_state),
  )
  a = found.params['level_0']['a']
  assert a.sharding == split and a.dtype == jnp.bfloat16
  assert jax.tree.structure(found) == jax.tree.structure(state)


@pytest.mark.parametrize(
  'change, line',
  [
    (dict(a=(8, 5)), 'misshapen: level_0/a is (8, 4), expected (8, 5)'),
    (dict(c=(2,)), 'missing: level_1/c (2,)'),
  ],
)
def test_parameters_that_do_not_fit(run, change, line):
  checkpoints = checkpoint.Checkpoints(run, config_lib.default())
  with pytest.raises(CheckpointError) as e:
    checkpoints.restore(like(make_state(**change)))
  checkpoints.close()
  assert line in str(e.value)
  with pytest.raises(CheckpointError) as e:
    restore.restore_subtrees(run, like(make_state(**change)).params)
  assert line in str(e.value)


def test_other_optimizer_state_names_the_way_out(run):
  wanted = like(make_state())
  params = {'level_0': wanted.params['level_0']}
  wanted = wanted.replace(opt_state=jax.eval_shape(TX.init, params))
  wanted = wanted.replace(
    opt_state=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=wanted.step.sharding
      ),
      wanted.opt_state,
    )
  )
  checkpoints = checkpoint.Checkpoints(run, config_lib.default())
  with pytest.raises(CheckpointError, match='optim.frozen'):
    checkpoints.restore(wanted)
  checkpoints.close()


def test_given_parameters_become_a_run_without_training(tmp_path):
  config, state = config_lib.default(), make_state(3)
  checkpoint.save_params(tmp_path, config, state.params)
  found = restore.restore_params(tmp_path)
  chex.assert_trees_all_equal(found, state.params)
  checkpoints = checkpoint.Checkpoints(tmp_path, config)
  with pytest.raises(CheckpointError, match='parameters alone'):
    checkpoints.restore(like(state))
  checkpoints.close()
  with pytest.raises(CheckpointError, match='has checkpoints already'):
    checkpoint.save_params(tmp_path, config, state.params)


# What can happen to a disk.


# Its threads complain when what they read or write fails.
ORBAX_IS_NOISY = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def files_of(folder):
  """Contents by name, of what is not Orbax's own logs."""
  return {
    p.relative_to(folder): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file() and p.name != '.lock'
  }


def random_state():
  state = make_state(a=(64, 16))
  keys = iter(jax.random.split(jax.random.key(0), 6))
  draw = lambda x: jax.random.normal(next(keys), x.shape)
  return state.replace(params=jax.tree.map(draw, state.params))


@pytest.fixture(scope='module')
def random_run(tmp_path_factory):
  """A work directory with checkpoints 1 and 2 of random_state()."""
  workdir = tmp_path_factory.mktemp('random')
  config = config_lib.default()
  checkpoint.save_config(config, workdir)
  checkpoints = checkpoint.Checkpoints(workdir, config)
  for step in (1, 2):
    checkpoints.save(step, random_state(), {'step': step})
  checkpoints.close()
  return workdir


def resume(workdir):
  checkpoints = checkpoint.Checkpoints(workdir, config_lib.default())
  try:
    return checkpoints.restore(like(random_state()))
  finally:
    checkpoints.close()


@ORBAX_IS_NOISY
@pytest.mark.parametrize('item', ['params', 'opt_state', 'position', 'sums'])
def test_a_flipped_byte_is_an_error_or_does_no_harm(random_run, tmp_path, item):
  """In every file, at its largest: the middle byte, and one at a third."""
  shutil.copytree(random_run, tmp_path, dirs_exist_ok=True)
  wanted = random_state()
  caught = 0
  for path in (tmp_path / 'checkpoints' / '2' / item).rglob('*'):
    if not path.is_file() or not path.stat().st_size:
      continue
    whole = path.read_bytes()
    for place in {len(whole) // 2, len(whole) // 3}:
      broken = bytearray(whole)
      broken[place] ^= 4
      path.write_bytes(broken)
      before = files_of(tmp_path)
      try:
        found, position = resume(tmp_path)
      except CheckpointError as e:
        caught += 1
        assert f'{tmp_path}/checkpoints/2' in str(e)
        assert files_of(tmp_path) == before
      else:
        assert position == {'step': 2}
        chex.assert_trees_all_equal(
          (found.params, found.opt_state),
          (wanted.params, wanted.opt_state),
        )
    path.write_bytes(whole)
  assert caught
  resume(tmp_path)


def test_damaged_values_are_named_with_the_way_out(random_run, tmp_path):
  shutil.copytree(random_run, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / 'checkpoints' / '2' / 'params' / 'ocdbt.process_0' / 'd'
  # The values lie in the largest file.
  path = max(folder.iterdir(), key=lambda p: p.stat().st_size)
  broken = bytearray(path.read_bytes())
  broken[len(broken) // 2] ^= 1
  path.write_bytes(broken)
  for job in (resume, restore.restore_params):
    with pytest.raises(CheckpointError) as e:
      job(tmp_path)
    assert 'not the values that were saved' in str(e.value)
    assert 'level_' in str(e.value) or 'labels' in str(e.value)
    assert 'Move it away to go on from checkpoint 1' in str(e.value)
  # The way out.
  (tmp_path / 'checkpoints' / '2').rename(tmp_path / 'damaged')
  _, position = resume(tmp_path)
  assert position == {'step': 1}


def test_a_step_that_no_run_can_reach(run, tmp_path):
  shutil.copytree(run, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / 'checkpoints'
  (folder / '10').rename(folder / '99999999999')
  checkpoints = checkpoint.Checkpoints(tmp_path, config_lib.default())
  with pytest.raises(CheckpointError, match='99999999999 is of no run'):
    checkpoints.latest()
  checkpoints.close()


def test_sums_are_of_values_and_places_on_any_mesh():
  x = jax.random.normal(jax.random.key(0), (8, 6))
  one = checksums.sums({'x': x})
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  for spec in (P('a', 'b'), P('b'), P(None, 'b'), P()):
    assert checksums.sums(
      {'x': jax.device_put(x, NamedSharding(mesh, spec))}
    ) == (one)
  negated = x.at[0, 0].multiply(-1).at[3, 3].multiply(-1)
  swapped = x.at[0, 0].set(x[1, 1]).at[1, 1].set(x[0, 0])
  for other in (negated, swapped, x.T, x.at[7, 5].add(1e-6)):
    assert checksums.sums({'x': other}) != one
  for scalar in (jnp.int32(3), jnp.float32(3), jnp.bfloat16(3)):
    checksums.check({'x': scalar}, checksums.sums({'x': scalar}))


def test_checkpoints_of_older_versions_have_no_sums(random_run, tmp_path):
  shutil.copytree(random_run, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'sums')
  found, _ = resume(tmp_path)
  chex.assert_trees_all_equal(found.params, random_state().params)
  restore.restore_params(tmp_path)


def test_a_file_in_place_of_the_work_directory(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run', '/proc/run'):
    with pytest.raises(CheckpointError, match='cannot be written to'):
      with lease.hold(workdir):
        pass
    with pytest.raises(CheckpointError, match='cannot be written to'):
      checkpoint.save_config(config_lib.default(), workdir)
  assert (tmp_path / 'file').read_text() == 'mine'


@ORBAX_IS_NOISY
def test_a_full_disk_keeps_the_checkpoints_before(
  tmp_path, monkeypatch, capsys
):
  """A limit on the size of files stands for it."""
  monkeypatch.setattr(checkpoint, 'RETRY_AFTER', (0.1, 0.1))
  write(tmp_path, 1)
  big = {'a': (256, 256)}
  state = make_state(1.0, **big)
  draw = lambda x: jax.random.normal(jax.random.key(0), x.shape)
  state = state.replace(params=jax.tree.map(draw, state.params))
  before = files_of(tmp_path / 'checkpoints' / '1')
  checkpoints = checkpoint.Checkpoints(tmp_path, config_lib.default())
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
  try:
    checkpoints.save(2, state, {'step': 2})
    with pytest.raises(CheckpointError) as e:
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
  assert 'could not be saved' in str(e.value)
  assert 'Checkpoints [1] are whole' in str(e.value)
  assert restore.steps(tmp_path) == [1]
  assert files_of(tmp_path / 'checkpoints' / '1') == before
  assert capsys.readouterr().out.count('could not be saved') == 3
  # With space again, the same run goes on, and nothing torn is left.
  checkpoints.save(3, state, {'step': 3})
  checkpoints.close()
  names = [p.name for p in (tmp_path / 'checkpoints').iterdir()]
  assert sorted(names) == ['1', '3']
