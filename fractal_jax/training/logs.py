"""What a run says: metrics to files, and a progress line. Process 0 only.

The writers have the methods of clu's metric writers, which are not used since
they import TensorFlow.
"""

import contextlib
import json
import time

import jax
import numpy as np

from fractal_jax import paths
from fractal_jax.training import events


def say(text: str) -> None:
  """Prints on process 0."""
  if jax.process_index() == 0:
    print(text, flush=True)


class JSONLines:
  """One line `{"step": ..., name: value, ...}` a call to write_scalars."""

  def __init__(self, path: str, start: int):
    """Continues a file after step `start`: later lines are removed.

    They were written by a run that died after its last checkpoint, and will
    be written again.
    """

    def keep(line: bytes) -> bool:
      try:
        return json.loads(line)['step'] <= start
      except ValueError:
        return False  # torn by the death of its writer

    self._file = paths.growing(path, keep)

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    line = {'step': step} | {k: float(v) for k, v in scalars.items()}
    self._file.write(json.dumps(line).encode() + b'\n')

  def write_images(self, step: int, images) -> None:
    del step, images

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class Writers:
  """Several writers as one: none but on process 0."""

  def __init__(self, workdir: str, start: int):
    """metrics.jsonl and tensorboard/ in a work directory, after `start`."""
    self._writers = []
    if jax.process_index() == 0:
      folder = paths.path(workdir)
      self._writers = [
        JSONLines(folder / 'metrics.jsonl', start),
        events.TensorBoard(folder / 'tensorboard', start),
      ]

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
    for writer in self._writers:
      writer.write_images(step, images)

  def flush(self) -> None:
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


class Progress:
  """Speed of training, and a line about it every few seconds at the most."""

  def __init__(self, start: int, total: int, batch: int, every: float = 5.0):
    self._total, self._batch, self._every = total, batch, every
    self._step, self._since = start, time.monotonic()
    self._paused = 0.0
    self._last_line = -np.inf

  @contextlib.contextmanager
  def pause(self):
    """Time in here is not training."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  def update(self, step: int, loss: float, bits: float) -> float:
    """Prints a line if it is time for one.

    Returns:
      Images a second since the last update.
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


def parameter_table(params, depth: int = 2) -> str:
  """Arrays and parameters by name, joined below `depth` parts of it.

  Args:
    params: arrays, or anything with a shape.
    depth: how many parts of a name make a row.
  """
  rows, total = {}, 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = '/'.join(k.key for k in path[:depth])
    arrays, count = rows.get(name, (0, 0))
    size = int(np.prod(leaf.shape, dtype=np.int64))
    rows[name] = (arrays + 1, count + size)
    total += size
  arrays = sum(a for a, _ in rows.values())
  lines = [('parameters of', 'arrays', 'count')]
  lines += [(k, str(a), f'{n:,}') for k, (a, n) in rows.items()]
  lines += [('total', str(arrays), f'{total:,}')]
  widths = [max(map(len, column)) for column in zip(*lines)]
  return '\n'.join(
    f'  {name:{widths[0]}}  {arrays:>{widths[1]}}  {count:>{widths[2]}}'
    for name, arrays, count in lines
  )
