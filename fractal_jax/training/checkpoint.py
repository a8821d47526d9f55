"""The work directory: the config, checkpoints, and the lock of its run.

    config.json        the config of the last run
    checkpoints/STEP/  params, opt_state, position and sums (see checksums.py)

Checkpoints are written by Orbax in the background, and restored onto any mesh
and number of hosts. A local or mounted path; with several hosts, a shared one.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import time

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from fractal_jax import checks
from fractal_jax import config as config_lib
from fractal_jax.errors import UserError
from fractal_jax.training import checksums, optimizer, processes
from fractal_jax.training.train_state import TrainState

# Keys of config.model that may change between runs on one work directory:
# they change how the model is computed, or where it began.
MAY_CHANGE = (
  'dtype', 'remat', 'kernels', 'unroll', 'chunks', 'init_from', 'init_levels',
)  # fmt: skip

SHARED_WITHIN = 30.0  # seconds until all hosts see a new file


# Of config.json. 1, or none: sample.temperature multiplied the logits.
VERSION = 2


class CheckpointError(UserError, RuntimeError):
  """A work directory or checkpoint that can't be used as asked."""


# The config.


def check_config(config, workdir: str) -> None:
  """Whether a run with this config may go on in a work directory.

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


def save_config(config, workdir: str) -> None:
  """Writes config.json; done by process 0 only.

  Raises:
    CheckpointError: see `check_config`; or it can't be written.
  """
  check_config(config, workdir)
  if jax.process_index() != 0:
    return
  path = pathlib.Path(workdir, 'config.json')
  with _writing(workdir):
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.with_suffix('.tmp')
    stored = {'version': VERSION, **json.loads(config.to_json())}
    torn.write_text(json.dumps(stored, indent=2) + '\n')
    torn.replace(path)


def load_config(workdir: str) -> ml_collections.ConfigDict:
  """The config of a work directory, locked; keys it lacks have defaults.

  What older versions of this package wrote is converted.

  Raises:
    CheckpointError: there is no such work directory, no config in it, or one
      of a newer version.
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
  stored = _converted(stored, path)
  config = config_lib.default()
  with config.unlocked(), config.ignore_type():
    for name, value in stored.items():
      if isinstance(value, dict):
        for key, v in value.items():
          config[name][key] = _tuples(v)
      else:
        config[name] = _tuples(value)
  return config


def _converted(stored: dict, path) -> dict:
  """What `path` holds, in the format of this version."""
  stored = dict(stored)
  version = stored.pop('version', 1)
  if version not in range(1, VERSION + 1):
    raise CheckpointError(
      f'{path} has format {version!r}, this version of fractal_jax reads 1 to '
      f'{VERSION}: install a newer one.'
    )
  temperature = stored.get('sample', {}).get('temperature')
  if version == 1 and temperature:
    stored['sample'] = {**stored['sample'], 'temperature': 1 / temperature}
  return stored


def _tuples(x):
  return tuple(map(_tuples, x)) if isinstance(x, list) else x


@contextlib.contextmanager
def lock(workdir: str):
  """Holds the work directory for this run; the system frees it at any exit.

  Raises:
    CheckpointError: another run holds it, it can't be written to, or the
      processes do not all see the same one.
  """
  with contextlib.ExitStack() as stack:

    def hold() -> str:
      if jax.process_index() == 0:
        return stack.enter_context(_hold(workdir))
      return ''

    holder = processes.broadcast(processes.together(hold, CheckpointError))
    processes.together(lambda: _check_shared(workdir, holder), CheckpointError)
    yield


@contextlib.contextmanager
def _writing(workdir: str):
  """Turns the system's errors into one that says what to do."""
  try:
    yield
  except OSError as e:
    raise CheckpointError(
      f'the work directory {workdir} cannot be written to ({e}): make space '
      'or get the right to, or choose another --workdir.'
    ) from e


def _check_shared(workdir: str, holder: str) -> None:
  """Raises CheckpointError unless this process can use process 0's files."""
  if jax.process_count() == 1:
    return
  me = jax.process_index()
  path = pathlib.Path(workdir, '.lock')
  until = time.monotonic() + SHARED_WITHIN
  while True:
    with contextlib.suppress(OSError):
      if path.read_text() == holder:
        break
    if time.monotonic() > until:
      raise CheckpointError(
        f'process {me} on {os.uname().nodename} does not see what process 0 '
        f'wrote into {workdir} ({holder}): give a --workdir on a file system '
        'that all hosts share.'
      )
    time.sleep(0.2)
  with _writing(workdir):
    probe = path.with_name(f'.probe_{me}')
    probe.write_text('x')
    probe.unlink()


@contextlib.contextmanager
def _hold(workdir: str):
  path = pathlib.Path(workdir, '.lock')
  with _writing(workdir):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'a+')
  with file:
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
    now = time.strftime('%Y-%m-%d %H:%M:%S')
    holder = f'process {os.getpid()} on {os.uname().nodename} since {now}'
    with _writing(workdir):
      file.truncate(0)
      file.write(holder)
      file.flush()
    yield holder


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
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keep.preservation_policy.AnyPreservationPolicy(
        policies
      ),
      cleanup_tmp_directories=True,  # of runs killed while saving
    )
    with _writing(workdir):
      self._manager = ocp.CheckpointManager(
        _directory(workdir), options=options
      )

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, position: dict, bits=None):
    """Starts to save the state, and the data's position, after `step` updates.

    `bits`: validation bits per dimension of this state, if they are known.

    Raises:
      CheckpointError: this checkpoint, or the one before, can't be saved.
    """
    position = {
      'step': step,
      'data': position,
      'guard': _numbers(state.guard),
    }
    sums = {
      'params': checksums.sums(state.params),
      'opt_state': checksums.sums(state.opt_state),
      'position': checksums.text_sum(position),
    }
    with self._saving():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          opt_state=ocp.args.StandardSave(state.opt_state),
          position=ocp.args.JsonSave(position),
          sums=ocp.args.JsonSave(sums),
        ),
        metrics=None if bits is None else {'bits_per_dim': float(bits)},
        force=True,
      )

  @contextlib.contextmanager
  def _saving(self):
    try:
      yield
    except Exception as e:  # Orbax and its storage raise nearly anything
      found = steps(self.workdir)
      kept = f'Checkpoints {found} are whole.' if found else ''
      raise CheckpointError(
        f'a checkpoint could not be saved in {self.workdir}: '
        f'{_short(e)}. {kept} Make space there, then the same command goes on.'
      ) from e

  def check(self) -> None:
    """Raises CheckpointError if saving in the background has failed."""
    with self._saving():
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits until all is saved.

    Raises:
      CheckpointError: it can't be.
    """
    with self._saving():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(self, like: TrainState) -> tuple[TrainState, dict]:
    """The latest state, with the shardings of `like`, and the data's position.

    Raises:
      CheckpointError: it has another structure than `like`, or is damaged.
    """
    step = self.latest()
    folder = f'{_directory(self.workdir)}/{step}'
    stored = {'params': _metadata(f'{folder}/params')}
    _check_fit(stored['params'], like.params, folder)
    if not os.path.isdir(f'{folder}/opt_state'):
      raise CheckpointError(
        f'{folder} holds parameters alone, and no training to go on with: '
        f'start in another --workdir with model.init_from={self.workdir} and '
        'model.init_levels of all levels.'
      )
    try:
      stored['opt_state'] = _metadata(f'{folder}/opt_state')
      _check_fit(stored['opt_state'], like.opt_state, f'{folder}/opt_state')
    except Misfit as e:
      raise CheckpointError(
        f'{folder} does not hold the optimizer state that the config needs: '
        'set optim.frozen as it was, or start in another --workdir with '
        f'model.init_from={self.workdir}. ({e})'
      ) from e
    sums = _read_sums(folder)
    with _reading(folder):
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(
            _typed(like.params, stored['params'])
          ),
          opt_state=ocp.args.StandardRestore(
            _typed(like.opt_state, stored['opt_state'])
          ),
          position=ocp.args.JsonRestore(),
        ),
      )
      position = found['position']
      if sums is not None:
        checksums.check(found['params'], sums['params'])
        checksums.check(found['opt_state'], sums['opt_state'])
        if checksums.text_sum(position) != sums['position']:
          raise ValueError('position does not have its checksum')
    # Older checkpoints know of no skipped updates.
    guard = position.get('guard') or _numbers(optimizer.Guard.new())
    numbers = {'step': step, 'guard': optimizer.Guard(**guard)}
    numbers = jax.tree.map(
      _everywhere, numbers, {'step': like.step, 'guard': like.guard}
    )
    state = TrainState(
      params=_cast(found['params'], like.params),
      opt_state=_cast(found['opt_state'], like.opt_state),
      **numbers,
    )
    return state, position['data']

  def close(self):
    """Waits until all is saved; see `wait`."""
    try:
      self.wait()
    finally:
      with self._saving():
        self._manager.close()


def _numbers(guard: optimizer.Guard) -> dict:
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
    with (
      _writing(workdir),
      ocp.CheckpointManager(_directory(workdir)) as manager,
    ):
      args = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        sums=ocp.args.JsonSave({'params': checksums.sums(params)}),
      )
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
    CheckpointError: no such checkpoint, a damaged one, or other parameters
      than `shardings`.
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
  with _reading(os.path.dirname(folder)):
    with ocp.StandardCheckpointer() as reader:
      found = reader.metadata(folder).item_metadata
    if found is None:
      raise ValueError(f'{folder} cannot be read')
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found.tree
    )


def _read(folder: str, like):
  """Some of the parameters in a folder, checked."""
  step = os.path.dirname(folder)
  stored, sums = _metadata(folder), _read_sums(step)
  wanted, like = like, _typed(like, stored)
  with _reading(step):
    with ocp.PyTreeCheckpointer() as reader:
      found = reader.restore(
        folder,
        args=ocp.args.PyTreeRestore(
          item=like,
          restore_args=ocp.checkpoint_utils.construct_restore_args(like),
          partial_restore=True,
        ),
      )
    if sums is not None:
      checksums.check(found, sums['params'])
    return _cast(found, wanted)


def _typed(like, stored):
  """`like`, with the types of what is stored: checked as it was saved."""
  types = {k: x.dtype for k, x in checksums.by_name(stored).items()}
  leaves = [
    jax.ShapeDtypeStruct(x.shape, types[name], sharding=x.sharding)
    for name, x in checksums.by_name(like).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _cast(found, like):
  """Arrays with the types that are asked for."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), found, like
  )


def _read_sums(folder: str) -> dict | None:
  """The checksums of a checkpoint; those of older versions have none."""
  if not os.path.isdir(f'{folder}/sums'):
    return None
  with _reading(folder):
    return json.loads(pathlib.Path(folder, 'sums', 'metadata').read_text())


@contextlib.contextmanager
def _reading(folder: str):
  """Whatever fails in here, the checkpoint is to blame."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as e:  # Orbax and its storage raise nearly anything
    step = int(os.path.basename(folder))
    workdir = os.path.dirname(os.path.dirname(folder))
    older = [n for n in steps(workdir) if n < step]
    way_out = (
      f'Move it away to go on from checkpoint {older[-1]}.'
      if older
      else 'There is no earlier one.'
    )
    raise CheckpointError(
      f'checkpoint {folder} is damaged: {_short(e)}. Nothing was changed. '
      f'{way_out}'
    ) from e


def _short(error: Exception) -> str:
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) < 300 else f'{text[:300]} ...'


class Misfit(CheckpointError):
  """A checkpoint of another model or optimizer."""


def _check_fit(stored, wanted, where: str) -> None:
  stored, wanted = (
    {k: x.shape for k, x in checksums.by_name(t).items()}
    for t in (stored, wanted)
  )
  lines = checks.misfit(stored, wanted)
  if lines:
    raise Misfit(
      f'{where} does not fit the config:\n'
      + '\n'.join(f'  {line}' for line in lines)
    )
