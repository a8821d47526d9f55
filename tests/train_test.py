"""The training step on meshes, and whole runs: resumed, refused, stopped."""

import functools
import json
import pathlib
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.data import pipeline
from fractal_jax.models import fractal
from fractal_jax.training import (
  CheckpointError,
  checkpoint,
  lease,
  logs,
  monitor,
  optimizer,
  processes,
  restore,
  resume,
  train,
  train_state,
)
from fractal_jax.training.resume import ResumeError
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')
LEVELS = ['labels', 'level_0', 'level_1']


def configure(axes=(-1, 1, 1), **optimizer):
  c = tiny.config(
    ('mar', 'pixel'),
    (8, 1),
    num_values=17,
    classes=10,
    dropout=0.1,
    label_dropout=0.1,
    remat='none',
    depths=(1, 1),
  )
  c.mesh.update(dict(zip(sharding.AXES, axes)), groups=8)
  # A large eps: Adam's first steps would else blow rounding up to +-lr.
  c.optim.update(batch=16, steps=10, lr=0.01, warmup=0.0, eps=1e-3)
  c.optim.update(log_every=2, save_every=5, **optimizer)
  c.data.update(threads=1, flip=False)
  c.eval.every = c.sample.every = 0
  return c


def build(config, devices=None):
  mesh = sharding.make_mesh(config, devices)
  net = fractal.from_config(config.model)
  return net, optimizer.create(config, config.optim.steps), mesh


@functools.cache
def batches(n=2):
  stream = pipeline.train_batches(configure())
  return [next(stream) for _ in range(n)]


def run_steps(config, start, devices=None):
  """State and metrics after a few steps, on the host."""
  net, tx, mesh = build(config, devices)
  like = train_state.abstract(net, tx, config, mesh=mesh)
  # What train_state.create gives on any mesh, see train_state_test.
  state = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), start, like)
  step = jax.jit(train.make_step(net, tx, config, mesh=mesh))
  with jax.set_mesh(mesh):
    for i, batch in enumerate(batches(), 1):
      state, metrics = step(state, sharding.place(batch, mesh))
      known = np.isfinite(metrics['update_ratio/level_1'])
      assert known == (i % config.optim.log_every == 0)
  return jax.device_get((state, metrics))


@pytest.fixture(scope='module')
def start(quick_compilation):
  """A new state, on the host."""
  config = configure()
  net, tx, mesh = build(config)
  return jax.device_get(train_state.create(net, tx, config, mesh=mesh))


@pytest.fixture(scope='module')
def one_device(start):
  return run_steps(configure((1, 1, 1)), start, jax.devices()[:1])


@pytest.mark.parametrize(
  'axes', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str
)
def test_every_mesh_trains_as_one_device_does(axes, start, one_device):
  """Loss to 1e-5 and parameters to 1e-5 of 1, after two steps of 0.6e-3."""
  state, metrics = run_steps(configure(axes), start)
  wanted, wanted_metrics = one_device
  chex.assert_trees_all_close(metrics, wanted_metrics, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(metrics['loss'], wanted_metrics['loss'], rtol=1e-5)
  chex.assert_trees_all_close(state.params, wanted.params, rtol=0, atol=1e-5)


def test_metrics_are_per_level(one_device):
  _, metrics = one_device
  for kind in ('grad_norm', 'param_norm', 'update_ratio'):
    assert all(metrics[f'{kind}/{level}'] > 0 for level in LEVELS)
  total = np.sqrt(sum(metrics[f'grad_norm/{x}'] ** 2 for x in LEVELS))
  np.testing.assert_allclose(metrics['grad_norm'], total, rtol=1e-5)
  # One channel: bits are nats / ln 2.
  bits = metrics['loss'] / np.log(2)
  np.testing.assert_allclose(metrics['bits_per_dim'], bits, rtol=1e-5)
  assert 3 < bits < 6  # log2(17) = 4.09
  assert metrics['dropped'] == 0


def test_what_is_logged_changes_no_bit_of_the_state(start, one_device):
  """`update_ratio` runs on the second step of two, and here on neither."""
  config = configure((1, 1, 1))
  config.optim.log_every = 3
  state, _ = run_steps(config, start, jax.devices()[:1])
  chex.assert_trees_all_equal(state, one_device[0])


def test_frozen_levels_stay_and_the_others_move(start):
  config = configure((1, 1, 1), frozen=(0,))
  net, tx, mesh = build(config, jax.devices()[:1])
  trained, frozen = optimizer.split(start.params, config)
  assert sorted(frozen) == ['labels', 'level_0']
  first = start.replace(opt_state=tx.init(trained))
  state, metrics = run_steps(config, first, jax.devices()[:1])
  for level in LEVELS:
    kept = jax.tree.map(
      np.array_equal, start.params[level], state.params[level]
    )
    assert all(jax.tree.leaves(kept)) == (level in frozen), level
    assert (f'grad_norm/{level}' in metrics) == (level in trained)


def test_guides_add_to_the_loss():
  config = configure((1, 1, 1))
  config.model = tiny.model(
    ('mar', 'mar', 'pixel'), (8, 2, 1), num_values=17, guide=True, classes=10
  )
  net, _, mesh = build(config, jax.devices()[:1])
  params = sharding.unbox(jax.jit(lambda: tiny.init(net))())
  loss = lambda p, b: train.loss_fn(
    net, p, config, b, jax.random.key(0), mesh=mesh
  )
  total, metrics = jax.jit(loss)(params, batches()[0])
  assert set(metrics) == {'loss', 'bits_per_dim', 'guide_loss', 'dropped'}
  # One channel: the pixels' part of the loss is their bits in nats.
  pixels, guides = metrics['bits_per_dim'] * np.log(2), metrics['guide_loss']
  assert guides > 1
  np.testing.assert_allclose(total, pixels + guides, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], total)


# Whole runs.


class Killed(BaseException):
  pass


def kill_at(monkeypatch, step):
  """The run dies when it places the batch of a step."""
  count, place = [0], sharding.place

  def dying(*args):
    count[0] += 1
    if count[0] == step:
      raise Killed
    return place(*args)

  monkeypatch.setattr(sharding, 'place', dying)


@pytest.fixture(scope='module')
def straight(quick_compilation, tmp_path_factory):
  """A run of 10 steps: work directory, final state."""
  workdir = str(tmp_path_factory.mktemp('straight'))
  return workdir, jax.device_get(train.train(configure(), workdir))


def metric_lines(workdir):
  """Lines of training; clu adds its own once a minute, on a busy machine."""
  text = pathlib.Path(workdir, 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [line for line in lines if 'train/lr' in line]


def test_resumed_run_is_the_straight_run(
  straight, tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    kill_at(patch, 10)
    with pytest.raises(Killed):
      train.train(configure(), str(tmp_path))
  # Steps 6 to 9 are lost, with what was logged of them.
  assert restore.steps(tmp_path) == [5]
  assert [x['step'] for x in metric_lines(tmp_path)] == [2, 4, 6, 8]
  state = train.train(configure(), str(tmp_path))
  out = capsys.readouterr().out
  assert 'resuming after step 5' in out and 'compiled' in out
  chex.assert_trees_all_equal(jax.device_get(state), straight[1])
  assert [x['step'] for x in metric_lines(tmp_path)] == [2, 4, 6, 8, 10]
  again, wanted = metric_lines(tmp_path)[-1], metric_lines(straight[0])[-1]
  clocks = {'train/images_per_second', 'steps_per_sec', 'uptime'}
  assert clocks <= again.keys()
  without = lambda line: {k: v for k, v in line.items() if k not in clocks}
  assert without(again) == without(wanted)


def test_muon_trains_alike_on_any_mesh_and_resumes(tmp_path, capsys):
  """Loss to 1e-5 on eight devices and one; a resumed run to the bit."""
  new = lambda axes: configure(axes, name='muon')
  net, tx, mesh = build(new((2, 2, 2)))
  start = train_state.create(net, tx, new((2, 2, 2)), mesh=mesh)
  start = jax.device_get(start)
  many, many_metrics = run_steps(new((2, 2, 2)), start)
  one, metrics = run_steps(new((1, 1, 1)), start, jax.devices()[:1])
  np.testing.assert_allclose(many_metrics['loss'], metrics['loss'], rtol=1e-5)
  chex.assert_trees_all_close(many.params, one.params, rtol=0, atol=1e-4)
  straight = train.train(new((8, 1, 1)), str(tmp_path))
  shutil.rmtree(tmp_path / 'checkpoints' / '10')
  state = train.train(new((8, 1, 1)), str(tmp_path))
  assert 'resuming after step 5' in capsys.readouterr().out
  chex.assert_trees_all_equal(*jax.device_get((state, straight)))
  with pytest.raises(CheckpointError, match='set optim.name .* as they were'):
    train.train(configure((8, 1, 1), steps=12), str(tmp_path))


def test_a_run_leaves_its_files(straight, capsys):
  workdir, state = straight
  assert state.step == 10
  assert restore.steps(workdir) == [5, 10]
  assert checkpoint.load_config(workdir).to_dict() == configure().to_dict()
  params = restore.restore_params(workdir)
  chex.assert_trees_all_equal(params, state.params)
  last = metric_lines(workdir)[-1]
  assert last['step'] == 10
  assert {
    'train/loss',
    'train/lr',
    'train/images_per_second',
    'train/grad_norm/level_1',
    'train/update_ratio/labels',
  } <= set(last)
  assert metric_lines(workdir)[0]['train/loss'] > last['train/loss']
  # A finished run has nothing to do.
  again = train.train(configure(), workdir)
  chex.assert_trees_all_equal(jax.device_get(again), state)
  assert 'compiled' not in capsys.readouterr().out


def test_another_model_or_a_used_work_directory_is_refused(straight):
  config = configure()
  config.model.depths = (2, 1)
  with pytest.raises(CheckpointError, match='model.depths'):
    train.train(config, straight[0])
  with lease.hold(straight[0]):
    with pytest.raises(CheckpointError, match='in use'):
      train.train(configure(), straight[0])


def test_levels_begin_as_in_another_run(straight):
  config = configure()
  config.seed = 1
  net, tx, mesh = build(config)
  new = train_state.create(net, tx, config, mesh=mesh)
  config.model.update(init_from=straight[0], init_levels=(0,))
  given = train.given_levels(net, config, mesh=mesh)
  assert given.keys() == {'labels', 'level_0'} == {*LEVELS} - {'level_1'}
  for level, params in given.items():
    chex.assert_trees_all_equal(
      jax.device_get(params), jax.device_get(straight[1].params[level])
    )
  same = lambda x, y: np.testing.assert_(x.sharding == y.sharding)
  jax.tree.map(same, new.params | given, new.params)


@pytest.fixture
def bad_steps(monkeypatch):
  """A dict: the loss of these steps is multiplied by these factors.

  It is a loss that compiles quickly: the sum of the parameters' squares.
  """
  factors = {}

  def loss_fn(net, params, config, batch, key, *, mesh):
    del net, mesh, key
    loss = 10 + optax.tree.norm(params, squared=True)
    step = batch['index'][0] // config.optim.batch + 1
    for when, factor in factors.items():
      loss *= jnp.where(step == when, factor, 1.0)
    return loss, {'loss': loss, 'bits_per_dim': loss}

  monkeypatch.setattr(train, 'loss_fn', loss_fn)
  return factors


@pytest.fixture
def every_state(monkeypatch):
  """States after each step of the runs of a test."""
  seen, compile_step = [], train.compile_step

  def recording(*args, **kwargs):
    step = compile_step(*args, **kwargs)

    def recorded(state, batch):
      state, metrics = step(state, batch)
      seen.append(jax.device_get(state))
      return state, metrics

    return recorded

  monkeypatch.setattr(train, 'compile_step', recording)
  return seen


def test_bad_updates_are_skipped_and_counted(
  tmp_path, bad_steps, every_state, capsys
):
  bad_steps |= {3: np.nan, 6: np.inf, 7: np.nan}
  train.train(configure(max_bad_steps=3), str(tmp_path))
  same = lambda x, y: all(jax.tree.leaves(jax.tree.map(np.array_equal, x, y)))
  state_of = lambda s: (s.params, s.opt_state)
  for step in range(2, 11):
    before, after = every_state[step - 2], every_state[step - 1]
    assert after.step == step
    assert same(state_of(before), state_of(after)) == (step in bad_steps)
  assert every_state[6].guard.skipped == 3
  assert every_state[6].guard.in_a_row == 2
  assert every_state[-1].guard.in_a_row == 0
  lines = metric_lines(tmp_path)
  assert [x['train/skipped'] for x in lines] == [0, 1, 1, 1, 0]
  assert [x['train/skipped/level_0'] for x in lines] == [0, 1, 1, 1, 0]
  assert all(np.isfinite(list(x.values())).all() for x in lines)
  assert (
    'step 8: skipped 1 update(s) since the last line (not finite: labels 1, '
    'level_0 1, level_1 1), 3 in all' in capsys.readouterr().out
  )


def test_too_many_bad_updates_in_a_row_stop_the_run(
  straight, tmp_path, bad_steps, every_state, capsys
):
  shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'checkpoints' / '10')
  bad_steps |= {7: np.nan, 8: np.nan}
  with pytest.raises(monitor.TrainingError) as e:
    train.train(configure(max_bad_steps=2), str(tmp_path))
  assert 'step 8 is the 2. in a row' in str(e.value)
  assert 'labels 2, level_0 2, level_1 2' in str(e.value)
  assert f'{tmp_path}/checkpoints/5; the same command' in str(e.value)
  assert len(every_state) <= 4  # noticed one step later at most
  assert restore.steps(tmp_path) == [5]


def test_spikes_are_skipped_alike_after_a_resumption(
  tmp_path, bad_steps, every_state, monkeypatch
):
  monkeypatch.setattr(optimizer, 'JUDGED_AFTER', 4)
  bad_steps |= {2: 20.0, 9: 50.0}
  config = configure(spike=10.0)
  train.train(config, str(tmp_path / 'a'))
  # The second step is too early to be judged.
  assert [int(s.guard.skipped) for s in every_state] == [0] * 8 + [1, 1]
  losses = [x['train/skipped/spike'] for x in metric_lines(tmp_path / 'a')]
  assert losses == [0, 0, 0, 0, 1]
  with monkeypatch.context() as patch:
    kill_at(patch, 8)
    with pytest.raises(Killed):
      train.train(config, str(tmp_path / 'b'))
  resumed = train.train(config, str(tmp_path / 'b'))
  chex.assert_trees_all_equal(jax.device_get(resumed), every_state[9])


# Runs that end early: what is done is saved first.


def wrong_at(monkeypatch, owner, name, call, error):
  """A function raises an error, or sends a signal, when called that often."""
  count, function = [0], getattr(owner, name)

  def wrong(*args, **kwargs):
    count[0] += 1
    if count[0] == call:
      if isinstance(error, signal.Signals):
        signal.raise_signal(error)
      else:
        raise error
    return function(*args, **kwargs)

  monkeypatch.setattr(owner, name, wrong)


@pytest.fixture(scope='module')
def never_stopped(tmp_path_factory):
  """The last state of a run with the loss of bad_steps: trained once."""
  workdir = str(tmp_path_factory.mktemp('never_stopped'))
  return functools.cache(lambda: train.train(configure(), workdir))


def goes_on_as_if_nothing_had_been(workdir, never_stopped, capsys):
  """A run stopped after step 7 ends as one that never was."""
  assert restore.steps(workdir)[-1] == 7
  assert 'saved after step 7' in capsys.readouterr().err
  state = train.train(configure(), str(workdir))
  assert 'resuming after step 7' in capsys.readouterr().out
  chex.assert_trees_all_equal(*jax.device_get((state, never_stopped())))


def test_the_last_checkpoint_is_finished_where_a_run_is_told_to_stop():
  class Checkpoints:
    finished = False

    def close(self):
      signal.raise_signal(signal.SIGTERM)
      self.finished = True

  found = Checkpoints()
  train.closing(found)(None, None, None)
  assert found.finished


@pytest.mark.parametrize(
  'number, code',
  [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_signals_save_first(
  tmp_path, bad_steps, never_stopped, monkeypatch, capsys, number, code
):
  with monkeypatch.context() as patch:
    wrong_at(patch, sharding, 'place', 7, number)
    with pytest.raises(processes.Preempted) as e:
      train.train(configure(), str(tmp_path / 'a'))
  assert e.value.code == code
  goes_on_as_if_nothing_had_been(tmp_path / 'a', never_stopped, capsys)


@pytest.mark.parametrize(
  'error',
  [
    BrokenPipeError(32, 'Broken pipe'),
    OSError(28, 'No space left on device'),
    UnicodeEncodeError('ascii', '±', 0, 1, 'not in range'),
  ],
  ids=str,
)
def test_failing_output_saves_first(
  tmp_path, bad_steps, never_stopped, monkeypatch, capsys, error
):
  with monkeypatch.context() as patch:
    # The third line is of step 6, and written once step 7 has begun.
    wrong_at(patch, logs.Speed, 'update', 3, error)
    with pytest.raises(type(error)):
      train.train(configure(), str(tmp_path / 'a'))
  goes_on_as_if_nothing_had_been(tmp_path / 'a', never_stopped, capsys)


def test_an_unreadable_image_saves_first(
  tmp_path, bad_steps, never_stopped, monkeypatch, capsys
):
  error = pipeline.DataError('cat.png cannot be read')
  with monkeypatch.context() as patch:
    wrong_at(patch, pipeline.TrainBatches, '__next__', 8, error)
    with pytest.raises(pipeline.DataError, match='cat.png'):
      train.train(configure(), str(tmp_path / 'a'))
  goes_on_as_if_nothing_had_been(tmp_path / 'a', never_stopped, capsys)


# Going on under another config.


@pytest.mark.parametrize(
  'key, value, before',
  [
    ('seed', 1, '--config.seed=0'),
    ('optim.batch', 8, '--config.optim.batch=16'),
    ('data.train_split', 'validation', '--config.data.train_split=train'),
  ],
)
def test_another_place_in_the_data_is_refused(straight, key, value, before):
  config = configure()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ResumeError) as e:
    train.train(config, straight[0])
  assert f'{key}: ' in str(e.value) and before in str(e.value)
  assert checkpoint.load_config(straight[0]).to_dict() == configure().to_dict()


def test_other_changes_are_said(straight, tmp_path, capsys):
  workdir = shutil.copytree(straight[0], tmp_path / 'run')
  config = configure()
  config.optim.lr = 0.02
  config.eval.num = 9
  train.train(config, str(workdir))
  out = capsys.readouterr().out
  assert 'optim.lr: 0.01 before, 0.02 now' in out
  assert 'eval.num: 0 before, 9 now' in out
  assert out.count('changed since the run stopped') == 2
  train.train(config, str(workdir))
  assert 'changed since' not in capsys.readouterr().out


def test_a_folder_of_images_is_what_lies_in_it():
  before, now = configure(), configure()
  for config, folder in ((before, './photos'), (now, 'photos/')):
    config.data.update(name='folder', dir=folder)
  changed = lambda: resume.changed_place(*map(config_lib.flat, (before, now)))
  assert changed() == []
  now.data.dir = 'paintings'
  found = changed()
  assert found == ['data.dir']
