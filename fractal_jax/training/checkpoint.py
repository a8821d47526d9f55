"""The work directory: its config, and the checkpoints that a run writes.

    config.json        the config of the last run
    checkpoints/STEP/  params, opt_state, position and sums (see checksums.py)

Checkpoints are written by Orbax in the background, and restored onto any mesh
and number of hosts. A local or mounted path, with several hosts a shared one;
or gs://BUCKET/NAME. Parameters alone are read by restore.py, and lease.py says
whose work directory it is.
"""

from collections.abc import Callable
import contextlib
import json
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from fractal_jax import checks, paths
from fractal_jax import config as config_lib
from fractal_jax.errors import short
from fractal_jax.release import weights
from fractal_jax.training import (
  CheckpointError,
  checksums,
  lease,
  logs,
  optimizer,
  processes,
  restore,
)
from fractal_jax.training.train_state import TrainState

# Keys of config.model that may change between runs on one work directory:
# they change how the model is computed, or where it began.
MAY_CHANGE = (
  'dtype', 'remat', 'kernels', 'unroll', 'chunks', 'init_from', 'init_levels',
)  # fmt: skip

RETRY_AFTER = (1, 10, 60)  # seconds between attempts to save the last one
MOST_STEPS = np.iinfo(np.int32).max  # TrainState.step
# Of config.json. 1, or none: sample.temperature multiplied the logits.
VERSION = 2


# The config.


def check_config(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Whether a run with this config may go on in a work directory.

  Raises:
    CheckpointError: it is a release, which holds no training.
    CheckpointError: the work directory has checkpoints of another model; the
      message names the keys that differ.
  """
  path = paths.path(workdir) / 'config.json'
  with lease.writing(workdir):
    there = path.exists()
    released = weights.found(workdir)
  if released:
    raise CheckpointError(
      f'{workdir} is a release, and no training to go on with: start in '
      f'another --workdir with model.init_from={workdir} and model.init_levels '
      'of all levels.'
    )
  if there and restore.steps(workdir):
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


def save_config(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes config.json; done by process 0 only.

  Raises:
    CheckpointError: see `check_config`; or it can't be written.
  """
  check_config(config, workdir)
  if jax.process_index() != 0:
    return
  with lease.writing(workdir):
    paths.write_text(paths.path(workdir) / 'config.json', config_text(config))


def config_text(config: ml_collections.ConfigDict, **more: Any) -> str:
  """What config.json holds: the version, `more` of a release, the config."""
  stored = {'version': VERSION, **more, **json.loads(config.to_json())}
  return json.dumps(stored, indent=2) + '\n'


def load_config(workdir: str) -> ml_collections.ConfigDict:
  """The config of a run or release, locked; keys it lacks have defaults.

  What older versions of this package wrote is converted.

  Raises:
    CheckpointError: there is no such folder, no config in it, or one that
      breaks rules, is of a newer version, or of something else.
  """
  path = paths.path(workdir) / 'config.json'
  try:
    with restore.reaching(workdir):
      stored = json.loads(path.read_text())
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
    raise CheckpointError(
      f'{workdir} is no work directory of a training run: it has no '
      'config.json. Give the --workdir of `train`, or a release.'
    ) from e
  except (ValueError, RecursionError) as e:
    raise CheckpointError(f'{path} is not valid JSON: {e}') from e
  stored = _converted(stored, path)
  config = config_lib.default()
  try:
    with config.unlocked(), config.ignore_type():
      config.seed = stored.pop('seed', config.seed)
      for section, keys in stored.items():
        for key, value in keys.items():
          config[section][key] = _tuples(value)
  except (KeyError, ValueError) as e:  # of names that no key can have
    raise CheckpointError(f'{path} holds no config: {e}') from e
  found = config_lib.problems(config)
  if found:
    lines = '\n'.join(f'  - {line}' for line in found)
    raise CheckpointError(f'{path} breaks these rules:\n{lines}')
  return config


def _converted(stored, path) -> dict:
  """What `path` holds, a seed and sections, in the format of this version."""
  stored = dict(stored) if isinstance(stored, dict) else {}
  version = stored.pop('version', 1)
  if version not in range(1, VERSION + 1):
    raise CheckpointError(
      f'{path} has format {version!r}, this version of fractal_jax reads 1 to '
      f'{VERSION}: install a newer one.'
    )
  stored.pop('step', None)  # of a release
  model = stored.get('model')
  if not isinstance(model, dict) or not {'kinds', 'sizes'} <= model.keys():
    raise CheckpointError(
      f'{path} is no config of fractal_jax: it has no section model with kinds '
      'and sizes. Is it the config of another library?'
    )
  for name in config_lib.SECTIONS:
    if not isinstance(stored.get(name, {}), dict):
      raise CheckpointError(f'{path}: {name} is no section of keys and values.')
  if others := stored.keys() - config_lib.SECTIONS - {'seed'}:
    raise CheckpointError(
      f'{path}: {min(others)!r} is no section of a config, which are '
      f'{", ".join(config_lib.SECTIONS)}.'
    )
  temperature = stored.get('sample', {}).get('temperature')
  if version == 1 and checks.Number(above=0).holds(temperature):
    stored['sample'] = {**stored['sample'], 'temperature': 1 / temperature}
  return stored


def _tuples(x):
  return tuple(map(_tuples, x)) if isinstance(x, list) else x


# Checkpoints.


class Checkpoints:
  """The checkpoints of a training run."""

  def __init__(
    self,
    workdir: str,
    config: ml_collections.ConfigDict,
    held: lease.Held | None = None,
  ):
    """Keeps the latest optim.keep, every optim.keep_every-th and the best.

    Args:
      config: its section `optim` is read.
      held: the lock of the work directory; nothing is written where it is
        lost.
    """
    self.workdir = paths.absolute(workdir)
    self._held = held or lease.Held()
    self._last = None  # (what starts to save, the state) of the last one
    self._error = None  # why that failed, if it did
    self._open = lambda: ocp.CheckpointManager(
      restore.directory(workdir), options=_options(config)
    )
    with lease.writing(workdir):
      self._manager = self._open()

  def latest(self) -> int | None:
    """The step of the latest checkpoint.

    Raises:
      CheckpointError: no run can have come so far.
    """
    step = self._manager.latest_step()
    if step is not None and step > MOST_STEPS:
      raise CheckpointError(
        f'{restore.directory(self.workdir) / str(step)} is of no run: there '
        f'are at most {MOST_STEPS} steps. Move it away.'
      )
    return step

  def save(
    self,
    step: int,
    state: TrainState,
    position: dict,
    bits: float | None = None,
  ) -> None:
    """Starts to save the state, and the data's position, after `step` updates.

    Where that fails it is said, and the run goes on: the next one may succeed.

    Args:
      step: updates done.
      state: after them.
      position: of the data.
      bits: validation bits per dimension of this state, if they are known.

    Raises:
      CheckpointError: another run has taken the work directory over.
    """
    self._held.check()
    self._settle()
    position = {'step': step, 'data': position, 'guard': _numbers(state.guard)}
    sums = {
      'params': checksums.sums(state.params),
      'opt_state': checksums.sums(state.opt_state),
      'position': checksums.text_sum(position),
    }

    def start() -> None:
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

    self._last = start, state
    self._try(start)

  def _try(self, job: Callable[[], None]) -> None:
    """Does a part of saving; where it fails on a process, it has on all."""

    def guarded() -> None:
      try:
        job()
      except Exception as e:  # Orbax and its storage raise nearly anything
        raise CheckpointError(short(e)) from e

    self._error = None
    try:
      processes.together(guarded, CheckpointError)
    except CheckpointError as e:
      self._error = e
      logs.say(f'a checkpoint could not be saved in {self.workdir}: {e}')
      # What it knows of steps is wrong now, and what was written is torn.
      with contextlib.suppress(Exception):
        self._manager.close()
      with contextlib.suppress(Exception):
        self._manager = self._open()

  def _settle(self) -> None:
    """Waits for what is being saved."""

    def finish() -> None:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

    if self._error is None:
      self._try(finish)

  def check(self) -> None:
    """Raises CheckpointError if another run has the work directory now."""
    self._held.check()

  def wait(self) -> None:
    """Waits until all is saved; the last one is tried several times.

    Raises:
      CheckpointError: it can't be.
    """
    self._settle()
    for seconds in RETRY_AFTER:
      # A state that was trained on from is gone.
      if self._error is None or self._last is None or _gone(self._last[1]):
        break
      time.sleep(seconds)
      self._try(self._last[0])
      self._settle()
    if self._error is not None:
      found = []
      with contextlib.suppress(CheckpointError):
        found = restore.steps(self.workdir)
      kept = f' Checkpoints {found} are whole.' if found else ''
      raise CheckpointError(
        f'a checkpoint could not be saved in {self.workdir}: {self._error}.'
        f'{kept} Make space there, or see whether it can be reached; then the '
        'same command goes on.'
      )

  def restore(self, like: TrainState) -> tuple[TrainState, dict]:
    """The latest state, with the shardings of `like`, and the data's position.

    Raises:
      CheckpointError: it has another structure than `like`, or is damaged.
    """
    step = self.latest()
    folder = restore.directory(self.workdir) / str(step)
    like_stored = self._as_stored(folder, like)
    sums = restore.read_sums(folder)
    with restore.reading(folder):
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          position=ocp.args.JsonRestore(),
          **{k: ocp.args.StandardRestore(v) for k, v in like_stored.items()},
        ),
      )
      position, guard = _checked(found['position'])
      if sums is not None:
        checksums.check(found['params'], sums['params'])
        checksums.check(found['opt_state'], sums['opt_state'])
        if checksums.text_sum(found['position']) != sums['position']:
          raise ValueError('position does not have its checksum')
    numbers = {'step': step, 'guard': guard}
    numbers = jax.tree.map(
      _everywhere, numbers, {'step': like.step, 'guard': like.guard}
    )
    state = TrainState(
      params=restore.cast(found['params'], like.params),
      opt_state=restore.cast(found['opt_state'], like.opt_state),
      **numbers,
    )
    return state, position

  def _as_stored(self, folder: paths.Path, like: TrainState) -> dict:
    """`params` and `opt_state` like these, with the types that are stored.

    Raises:
      CheckpointError: a checkpoint does not hold them.
    """
    params = restore.metadata(folder / 'params')
    restore.check_fit(params, like.params, folder)
    with restore.reading(folder):
      trained = (folder / 'opt_state').is_dir()
    if not trained:
      raise CheckpointError(
        f'{folder} holds parameters alone, and no training to go on with: '
        f'start in another --workdir with model.init_from={self.workdir} and '
        'model.init_levels of all levels.'
      )
    try:
      moments = restore.metadata(folder / 'opt_state')
      restore.check_fit(moments, like.opt_state, folder / 'opt_state')
    except restore.Misfit as e:
      raise CheckpointError(
        f'{folder} does not hold the optimizer state that the config needs: '
        'set optim.name and optim.frozen as they were, or start in another '
        f'--workdir with model.init_from={self.workdir}. ({e})'
      ) from e
    return {
      'params': restore.typed(like.params, params),
      'opt_state': restore.typed(like.opt_state, moments),
    }

  def close(self) -> None:
    """Waits until all is saved; see `wait`."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # `wait` has said what is wrong
        self._manager.close()


def _gone(state: TrainState) -> bool:
  return any(x.is_deleted() for x in jax.tree.leaves(state))


def _options(config) -> ocp.CheckpointManagerOptions:
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
  return ocp.CheckpointManagerOptions(
    preservation_policy=keep.preservation_policy.AnyPreservationPolicy(
      policies
    ),
    cleanup_tmp_directories=True,  # of runs killed while saving
  )


def _numbers(guard: optimizer.Guard) -> dict:
  return {k: np.asarray(v).item() for k, v in vars(guard).items()}


def _checked(position) -> tuple[dict, optimizer.Guard]:
  """The place in the data, and the guard, of a checkpoint's `position`.

  Raises:
    ValueError: it is something else.
  """
  kept = position if isinstance(position, dict) else {}
  none = _numbers(optimizer.Guard.new())
  # Older checkpoints know of no skipped updates.
  data, guard = kept.get('data'), kept.get('guard', none)
  fits = isinstance(data, dict) and isinstance(guard, dict)
  if (
    not fits
    or not checks.integer(least=0).holds(data.get('step'))
    or guard.keys() != none.keys()
    or not all(isinstance(x, int | float) for x in guard.values())
  ):
    raise ValueError(f'{short(position)} is no place in the data')
  return data, optimizer.Guard(**guard)


def _everywhere(number, like) -> jax.Array:
  """A number of the host, on every device."""
  value = np.asarray(number, like.dtype)
  return jax.make_array_from_callback((), like.sharding, lambda _: value)


def save_params(
  workdir: str, config: ml_collections.ConfigDict, params: dict
) -> None:
  """Makes a work directory of given parameters: a checkpoint of step 0.

  Raises:
    CheckpointError: the work directory has checkpoints already.
  """
  if restore.steps(workdir):
    raise CheckpointError(
      f'{workdir} has checkpoints already: choose another --workdir.'
    )
  with lease.hold(workdir):
    save_config(config, workdir)
    with (
      lease.writing(workdir),
      ocp.CheckpointManager(restore.directory(workdir)) as manager,
    ):
      args = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        sums=ocp.args.JsonSave({'params': checksums.sums(params)}),
      )
      manager.save(0, args=args)
