"""The work directory: the config, checkpoints, and the lock of its run.

    config.json        the config of the last run
    checkpoints/STEP/  params, opt_state and position, apart from each other

Checkpoints are written by Orbax in the background, and restored onto any mesh
and number of hosts. A local or mounted path; with several hosts, a shared one.
"""

import contextlib
import fcntl
import json
import os
import pathlib

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from fractal_jax import config as config_lib
from fractal_jax import optim
from fractal_jax.train_state import TrainState

# Keys of config.model that may change between runs on one work directory:
# they change how the model is computed, or where it began.
MAY_CHANGE = ('dtype', 'remat', 'init_from', 'init_levels')


class CheckpointError(RuntimeError):
  """A work directory or checkpoint that can't be used as asked."""


# The config.


def save_config(config, workdir: str) -> None:
  """Writes config.json; done by process 0 only.

  Raises:
    CheckpointError: the work directory has checkpoints of another model; the
      message names the keys that differ.
  """
  path = pathlib.Path(workdir, 'config.json')
  if path.exists() and steps(workdir):
    old, new = load_config(workdir).model, config.model
    lines = [
      f'  model.{k}: {old.get(k)!r} there, {new.get(k)!r} now'
      for k in sorted({*old, *new})
      if k not in MAY_CHANGE and old.get(k) != new.get(k)
    ]
    if lines:
      raise CheckpointError(
        f'{workdir} holds checkpoints of another model:\n'
        + '\n'.join(lines)
        + '\nSet these keys as they were, or choose another --workdir.'
      )
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.with_suffix('.tmp')
    torn.write_text(json.dumps(json.loads(config.to_json()), indent=2) + '\n')
    torn.replace(path)


def load_config(workdir: str) -> ml_collections.ConfigDict:
  """The config of a work directory, locked; keys it lacks have defaults.

  Raises:
    CheckpointError: there is no such work directory, or no config in it.
  """
  path = pathlib.Path(workdir, 'config.json')
  try:
    stored = json.loads(path.read_text())
  except FileNotFoundError as e:
    raise CheckpointError(
      f'{workdir} is no work directory of a training run: it has no '
      'config.json. Give the --workdir of `train`.'
    ) from e
  except ValueError as e:
    raise CheckpointError(f'{path} is not valid JSON: {e}') from e
  config = config_lib.default()
  with config.unlocked(), config.ignore_type():
    for name, value in stored.items():
      if isinstance(value, dict):
        for key, v in value.items():
          config[name][key] = _tuples(v)
      else:
        config[name] = _tuples(value)
  return config


def _tuples(x):
  return tuple(map(_tuples, x)) if isinstance(x, list) else x


@contextlib.contextmanager
def lock(workdir: str):
  """Holds the work directory for this run; the system frees it at any exit.

  Raises:
    CheckpointError: another run holds it.
  """
  if jax.process_index() != 0:
    yield
    return
  path = pathlib.Path(workdir, '.lock')
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise CheckpointError(
        f'{workdir} is in use by another run ({file.read().strip()}): stop '
        'it, or choose another --workdir.'
      ) from e
    except OSError:
      pass  # a file system without locks
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    yield


# Checkpoints.


class Checkpoints:
  """The checkpoints of a training run."""

  def __init__(self, workdir: str, config):
    """Keeps the latest optim.keep, every optim.keep_every-th and the best."""
    self.workdir = os.path.abspath(workdir)
    keep = ocp.checkpoint_managers
    policies = [
      keep.LatestN(config.optim.keep),
      keep.BestN(
        get_metric_fn=lambda metrics: metrics['bits_per_dim'],
        reverse=True,  # the last in order is kept: the smallest
        n=1,
        keep_checkpoints_without_metrics=False,
      ),
    ]
    if config.optim.keep_every:
      policies.append(keep.EveryNSteps(config.optim.keep_every))
    self._manager = ocp.CheckpointManager(
      _directory(workdir),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep.preservation_policy.AnyPreservationPolicy(
          policies
        ),
        cleanup_tmp_directories=True,  # of runs killed while saving
      ),
    )

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, position: dict, bits=None):
    """Starts to save the state, and the data's position, after `step` updates.

    `bits`: validation bits per dimension of this state, if they are known.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        opt_state=ocp.args.StandardSave(state.opt_state),
        position=ocp.args.JsonSave(
          {'step': step, 'data': position, 'guard': _numbers(state.guard)}
        ),
      ),
      metrics=None if bits is None else {'bits_per_dim': float(bits)},
      force=True,
    )

  def restore(self, like: TrainState) -> tuple[TrainState, dict]:
    """The latest state, with the shardings of `like`, and the data's position.

    Raises:
      CheckpointError: it has another structure than `like`.
    """
    step = self.latest()
    folder = f'{_directory(self.workdir)}/{step}'
    _check_fit(_metadata(f'{folder}/params'), like.params, folder)
    if not os.path.isdir(f'{folder}/opt_state'):
      raise CheckpointError(
        f'{folder} holds parameters alone, and no training to go on with: '
        f'start in another --workdir with model.init_from={self.workdir} and '
        'model.init_levels of all levels.'
      )
    try:
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(like.params),
          opt_state=ocp.args.StandardRestore(like.opt_state),
          position=ocp.args.JsonRestore(),
        ),
      )
    except (ValueError, KeyError) as e:
      raise CheckpointError(
        f'{folder} does not hold the optimizer state that the config needs: '
        'set optim.frozen as it was, or start in another --workdir with '
        f'model.init_from={self.workdir}. ({e})'
      ) from e
    position = found['position']
    # Older checkpoints know of no skipped updates.
    guard = position.get('guard') or _numbers(optim.Guard.new())
    numbers = {'step': step, 'guard': optim.Guard(**guard)}
    numbers = jax.tree.map(
      _everywhere, numbers, {'step': like.step, 'guard': like.guard}
    )
    state = TrainState(
      params=found['params'], opt_state=found['opt_state'], **numbers
    )
    return state, position['data']

  def close(self):
    """Waits until all is saved."""
    self._manager.wait_until_finished()
    self._manager.close()


def _numbers(guard: optim.Guard) -> dict:
  return {k: np.asarray(v).item() for k, v in vars(guard).items()}


def _everywhere(number, like) -> jax.Array:
  """A number of the host, on every device."""
  value = np.asarray(number, like.dtype)
  return jax.make_array_from_callback((), like.sharding, lambda _: value)


def save_params(workdir: str, config, params) -> None:
  """Makes a work directory of given parameters: a checkpoint of step 0.

  Raises:
    CheckpointError: the work directory has checkpoints already.
  """
  if steps(workdir):
    raise CheckpointError(
      f'{workdir} has checkpoints already: choose another --workdir.'
    )
  with lock(workdir):
    save_config(config, workdir)
    with ocp.CheckpointManager(_directory(workdir)) as manager:
      args = ocp.args.Composite(params=ocp.args.StandardSave(params))
      manager.save(0, args=args)


def steps(workdir: str) -> list[int]:
  """Steps of the complete checkpoints of a work directory, in order."""
  folder = pathlib.Path(_directory(workdir))
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def restore_params(workdir: str, step: int | None = None, shardings=None):
  """Parameters alone; knows nothing of the optimizer.

  Args:
    workdir: the work directory.
    step: None for the latest.
    shardings: a tree of them (see train_state.param_shardings), or one for
      all parameters, or None for the first device.

  Returns:
    Parameters by level.

  Raises:
    CheckpointError: no such checkpoint, or other parameters than `shardings`.
  """
  folder = _params_folder(workdir, step)
  like = _metadata(folder)
  if shardings is None:
    shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, like)
  if jax.tree.structure(shardings) != jax.tree.structure(like):
    raise CheckpointError(
      f'{folder} holds other parameters than the model asks for: is '
      f'{workdir}/config.json the config that it was trained with?'
    )
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    like,
    shardings,
  )
  return _read(folder, like)


def restore_subtrees(workdir: str, like: dict) -> dict:
  """Some levels' parameters, as `like`, from a run's latest checkpoint.

  Raises:
    CheckpointError: naming each parameter that is missing or misshapen.
  """
  folder = _params_folder(workdir, None)
  stored = _metadata(folder)
  _check_fit({k: stored[k] for k in like if k in stored}, like, folder)
  return _read(folder, like)


def _params_folder(workdir: str, step: int | None) -> str:
  found = steps(workdir)
  if not found:
    why = (
      'has no checkpoint yet' if os.path.isdir(workdir) else 'does not exist'
    )
    raise CheckpointError(f'work directory {workdir} {why}.')
  if step is not None and step not in found:
    raise CheckpointError(
      f'{workdir} has no checkpoint of step {step}: it has {found}.'
    )
  step = found[-1] if step is None else step
  return f'{_directory(workdir)}/{step}/params'


def _directory(workdir: str) -> str:
  return os.path.join(os.path.abspath(workdir), 'checkpoints')


def _metadata(folder: str) -> dict:
  """Shapes and types of a stored tree."""
  with ocp.StandardCheckpointer() as reader:
    tree = reader.metadata(folder).item_metadata.tree
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _read(folder: str, like):
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(
      folder,
      args=ocp.args.PyTreeRestore(
        item=like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
      ),
    )


def _check_fit(stored, wanted, where: str) -> None:
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  stored, wanted = (
    {name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(t)}
    for t in (stored, wanted)
  )
  lines = [f'missing: {k} {wanted[k]}' for k in wanted if k not in stored]
  lines += [f'extra: {k} {stored[k]}' for k in stored if k not in wanted]
  lines += [
    f'misshapen: {k} is {stored[k]}, the config needs {wanted[k]}'
    for k in wanted
    if k in stored and stored[k] != wanted[k]
  ]
  if lines:
    raise CheckpointError(
      f'{where} does not fit the config:\n'
      + '\n'.join(f'  {line}' for line in lines)
    )
