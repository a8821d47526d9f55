"""What a run says: metrics to files, and a progress line. Process 0 only.

Writers have the interface of clu's. `JSONLines` writes metrics.jsonl, and
`events.TensorBoard` what TensorBoard shows. clu's periodic actions import
TensorFlow, which takes seconds, so they are imported only once a run begins to
train, and only by the process that writes.
"""

from collections.abc import Iterator
import contextlib
import functools
import json
import os
import time
from types import ModuleType

import jax
import numpy as np

from fractal_jax import paths
from fractal_jax.errors import UserError


class ProfileError(UserError, ValueError):
  """A profile that can't be taken."""


def say(text: str) -> None:
  """Prints on process 0."""
  if jax.process_index() == 0:
    print(text, flush=True)


# Writers of metrics.


class NullWriter:
  """A clu MetricWriter that writes nothing: what processes but 0 have."""

  def _nothing(self, *args, **kwargs) -> None:
    pass

  write_summaries = write_scalars = write_images = write_videos = _nothing
  write_audios = write_texts = write_histograms = write_hparams = _nothing
  write_gifs = _nothing
  flush = close = _nothing


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
  """The lines of a run's metrics.jsonl, each a step and numbers by name.

  What is no such line is left out: it was torn by the death of its writer.
  """
  data = paths.read_grown(paths.path(workdir) / 'metrics.jsonl')
  return [x for x in map(_metrics, data.splitlines()) if x is not None]


def _metrics(line: bytes) -> dict[str, float] | None:
  try:
    found = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not isinstance(found, dict) or not isinstance(found.get('step'), int):
    return None
  plain = all(
    isinstance(x, float) or isinstance(x, int) and abs(x) < 2**63
    for x in found.values()
  )
  return found if plain else None


class JSONLines(NullWriter):
  """A clu MetricWriter of a line `{"step": ..., name: value}` per step.

  It writes scalars alone. Those of one step that are written one after another
  share a line.
  """

  def __init__(self, path: str, start: int):
    """Continues a file after step `start`: later lines are removed.

    They were written by a run that died after its last checkpoint, and will
    be written again.
    """

    def keep(line: bytes) -> bool:
      found = _metrics(line)
      return found is not None and found['step'] <= start

    self._file = paths.growing(path, keep)
    self._line = {}

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    if self._line.get('step') != step:
      self._end_line()
    self._line |= {'step': step} | {k: float(v) for k, v in scalars.items()}

  def _end_line(self) -> None:
    line, self._line = self._line, {}
    if line:
      self._file.write(json.dumps(line).encode() + b'\n')

  def flush(self) -> None:
    self._end_line()
    self._file.flush()

  def close(self) -> None:
    self._end_line()
    self._file.close()


class Writers(NullWriter):
  """Several writers as one."""

  def __init__(self, *writers: NullWriter):
    """Args: writers: each with what this calls."""
    self._writers = writers

  def _each(self, method: str, *args, **named) -> None:
    for writer in self._writers:
      getattr(writer, method)(*args, **named)

  write_scalars = functools.partialmethod(_each, 'write_scalars')
  write_images = functools.partialmethod(_each, 'write_images')
  write_gifs = functools.partialmethod(_each, 'write_gifs')
  write_hparams = functools.partialmethod(_each, 'write_hparams')
  flush = functools.partialmethod(_each, 'flush')
  close = functools.partialmethod(_each, 'close')


def metric_writer(workdir: str, start: int) -> NullWriter:
  """Where the metrics of a run go: a writer with clu's interface.

  Args:
    workdir: gets metrics.jsonl and tensorboard/.
    start: the step that the run goes on from; what was written of later steps
      is removed, or hidden.
  """
  if jax.process_index() != 0:
    return NullWriter()
  from fractal_jax.training import events

  root = paths.path(workdir)
  lines = JSONLines(root / 'metrics.jsonl', start)
  return Writers(lines, events.TensorBoard(root / 'tensorboard', start))


def tensorflow() -> ModuleType | None:
  """The module, kept off the accelerators that JAX uses; None if missing."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # read by its import
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # else it says so
  try:
    import tensorflow as tf
  except ImportError:
    return None
  with contextlib.suppress(RuntimeError):  # another user has set it up
    tf.config.set_visible_devices([], 'GPU')
    tf.config.set_visible_devices([], 'TPU')
  return tf


# Periodic actions.


def periodic_actions(
  workdir: str,
  start: int,
  total: int,
  writer: NullWriter,
  profile: tuple[int, int] | None = None,
) -> list:
  """clu's actions, each to be called with `start`, then with every step done.

  Args:
    workdir: gets the profile, as part of tensorboard/.
    start: the step that the run goes on from.
    total: its last step.
    writer: gets steps_per_sec, pauses included, and uptime in seconds: once a
      minute, and at the end.
    profile: the first step to trace, and how many.

  Raises:
    ProfileError: the step is not one of the run, or TensorFlow is missing.
  """
  if jax.process_index() != 0:
    return []
  if not tensorflow():
    if profile:
      raise ProfileError(
        '--profile needs TensorFlow: pip install tensorflow-cpu'
      )
    say(
      'TensorFlow is not installed (pip install tensorflow-cpu): no '
      'steps_per_sec and no --profile'
    )
    return []
  from clu import metric_writers, periodic_actions

  metric_writers.MetricWriter.register(NullWriter)
  actions = [
    periodic_actions.ReportProgress(num_train_steps=total, writer=writer)
  ]
  if profile:
    first, count = profile
    if first > total:
      raise ProfileError(f'--profile={first} is after the last step, {total}')
    if first <= start:  # a run that was started again by the same command
      say(f'--profile={first} is before this run, which begins after {start}')
    actions.append(
      periodic_actions.Profile(
        logdir=str(paths.path(workdir) / 'tensorboard'),
        first_profile=first - 1,  # the steps that are done when it begins
        num_profile_steps=count,
        profile_duration_ms=None,
        every_secs=None,
      )
    )
  return actions


def stop_profile() -> None:
  """Ends a profile that the run's end cut short."""
  with contextlib.suppress(RuntimeError):  # none is being taken
    jax.profiler.stop_trace()


class Speed:
  """The speed of training, and a line about it every few seconds at most."""

  def __init__(self, start: int, total: int, batch: int, every: float = 5.0):
    """Args: steps done and in all, images per step, seconds between lines."""
    self._total, self._batch, self._every = total, batch, every
    self._step, self._since = start, time.monotonic()
    self._paused = 0.0
    self._last_line = -np.inf

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Time in here is not training."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  def update(self, step: int, loss: float, bits: float) -> float:
    """Prints a line if it is time for one.

    Returns:
      Images per second since the last update.
    """
    now = time.monotonic()
    seconds = max(now - self._since - self._paused, 1e-9)
    speed = (step - self._step) / seconds
    self._step, self._since, self._paused = step, now, 0.0
    if step == self._total or now - self._last_line >= self._every:
      self._last_line = now
      left = (self._total - step) / speed if speed else np.inf
      width = len(str(self._total))
      say(
        f'step {step:{width}d}/{self._total}  loss {loss:.4f}  '
        f'bits/dim {bits:.4f}  {speed * self._batch:.4g} images/s  '
        f'ETA {duration(left)}'
      )
    return speed * self._batch


def duration(seconds: float) -> str:
  """90 -> '1m30s'; at most two units."""
  if not np.isfinite(seconds):
    return '?'
  seconds = round(seconds)
  units = [(86400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')]
  for (size, name), (small, below) in zip(units, units[1:]):
    if seconds >= size:
      return f'{seconds // size}{name}{seconds % size // small:02d}{below}'
  return f'{seconds}s'
