"""What the metrics of a step say: log lines, skipped updates, when to stop."""

import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clu import metrics as clu_metrics
import jax
from ml_collections import ConfigDict
import numpy as np

from fractal_jax.averages import Averages
from fractal_jax.errors import UserError
from fractal_jax.training import logs, optimizer

if TYPE_CHECKING:
  from fractal_jax.inference import likelihood
  from fractal_jax.training import checkpoint

# Metrics of the guard, which are counted rather than averaged.
COUNTS = ('applied', 'spike', 'in_a_row', 'skipped')
RATIO = 'update_ratio/'  # of the step that is logged: see train.make_step
SPIKE = 'a loss above optim.spike'


class TrainingError(UserError, RuntimeError):
  """Training can't go on; the message says where it went wrong."""


class Monitor:
  """Reads each step's metrics, one step late: averages, logs, or stops the run.

  Reading a step's metrics waits for the step; meanwhile the devices have the
  next one to do.
  """

  def __init__(
    self,
    config: ConfigDict,
    total: int,
    speed: logs.Speed,
    writer: logs.NullWriter,
    checkpoints: 'checkpoint.Checkpoints',
  ):
    """A monitor of one run.

    Args:
      config: reads `optim`.
      total: the run's last step.
      speed: is told of the steps done.
      writer: a clu MetricWriter of the averages over applied updates.
      checkpoints: asked whether saving in the background still works.
    """
    self._config, self._total = config, total
    self._schedule = optimizer.schedule(config, total)
    self._speed, self._writer = speed, writer
    self._checkpoints = checkpoints
    self._unread = None  # step and metrics
    self._averages = Averages()  # of the updates applied since the last line
    self._skipped = collections.Counter()  # of the others, by cause
    self._in_a_row = collections.Counter()  # of those since one was applied

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step just started, and reads those before it.

    Raises:
      TrainingError: optim.max_bad_steps updates in a row were skipped.
      CheckpointError: a checkpoint could not be saved.
      OSError: the metrics can't be written.
    """
    jax.tree.map(lambda x: x.copy_to_host_async(), metrics)
    unread, self._unread = self._unread, (step, metrics)
    self._read(unread)

  def catch_up(self) -> None:
    """Reads the metrics of the last step, too; raises as `add` does."""
    unread, self._unread = self._unread, None
    self._read(unread)

  def _read(self, unread) -> None:
    if unread is None:
      return
    step, metrics = unread
    metrics = {k: np.asarray(v) for k, v in metrics.items()}
    o = self._config.optim
    if metrics['applied']:
      self._in_a_row.clear()
      self._averages.add(averaged(metrics))
    else:
      causes = skip_causes(metrics)
      self._skipped.update(causes)
      self._in_a_row.update(causes)
      if metrics['in_a_row'] >= o.max_bad_steps:
        self._stop(step, metrics)
    if step % o.log_every == 0 or step == self._total:
      self._checkpoints.check()
      self._log(step, metrics)

  def _log(self, step: int, last: dict[str, np.ndarray]) -> None:
    counts, self._skipped = self._skipped, collections.Counter()
    means = self._averages.take()
    ratios = {k: float(v) for k, v in last.items() if k.startswith(RATIO)}
    means |= {k: v for k, v in ratios.items() if np.isfinite(v)}
    means['images_per_second'] = self._speed.update(
      step, means.get('loss', np.nan), means.get('bits_per_dim', np.nan)
    )
    # The schedule counts the updates applied.
    means['lr'] = self._schedule(max(0, step - 1 - last['skipped']))
    means['skipped'] = counts['steps']
    for level in levels(last):
      means[f'skipped/{level}'] = counts[level]
    if self._config.optim.spike:
      means['skipped/spike'] = counts[SPIKE]
    if counts:
      logs.say(
        f'step {step}: skipped {counts.pop("steps")} update(s) since the last '
        f'line ({described(counts)}), {last["skipped"]} in all'
      )
    means = {f'train/{k}': v for k, v in sorted(means.items())}
    self._writer.write_scalars(step, means)
    self._writer.flush()

  def _stop(self, step: int, metrics: dict[str, np.ndarray]) -> None:
    # The state is not saved: what made it so bad may well be in it.
    saved = self._checkpoints.latest()
    if saved is None:
      kept = 'No checkpoint was saved before.'
    else:
      kept = (
        f'The last checkpoint is {self._checkpoints.workdir}/checkpoints/'
        f'{saved}; the same command resumes there.'
      )
    o = self._config.optim
    counts = self._in_a_row
    counts.pop('steps')
    raise TrainingError(
      f'step {step} is the {metrics["in_a_row"]}. in a row whose update was '
      f'not applied (optim.max_bad_steps={o.max_bad_steps}): '
      f'{described(counts)}. Its loss is {metrics["loss"]}, its gradient norm '
      f'{metrics["grad_norm"]}. {kept} Lower optim.lr or optim.clip, or warm '
      'up for longer.'
    )


class Validation:
  """Tells when the validation loss has risen for long: of images by heart."""

  PATIENCE = 4  # evaluations after the best one

  def __init__(self):
    self._best, self._step, self._after = None, 0, 0

  def add(self, step: int, found: 'likelihood.Likelihood') -> str | None:
    """Takes a Likelihood; gives a warning every PATIENCE rises.

    A rise is an evaluation above the best one by more than its standard error.
    """
    bits = found.bits_per_dim
    if self._best is None or bits < self._best:
      self._best, self._step, self._after = bits, step, 0
    elif bits > self._best + found.stderr:
      self._after += 1
      if self._after % self.PATIENCE == 0:
        return (
          f'validation was best at step {self._step} ({self._best:.3f} '
          f'bits/dim) and is {bits:.3f} now, in {self._after} evaluations '
          'above it: the model learns its images by heart. That checkpoint is '
          'kept. Raise model.dropout or data.shift, narrow model.widths, or '
          'add images'
        )
    return None


def averaged(metrics: Mapping) -> dict[str, clu_metrics.Average]:
  """What is averaged of an update's metrics."""
  return {
    name: clu_metrics.Average(np.float64(value), 1)
    for name, value in metrics.items()
    if name not in COUNTS and not name.startswith(RATIO)
  }


def levels(metrics: Mapping) -> list[str]:
  """The trained subtrees of the parameters that the metrics tell of."""
  prefix = 'grad_norm/'
  return [k.removeprefix(prefix) for k in metrics if k.startswith(prefix)]


def skip_causes(metrics: Mapping) -> list[str]:
  """What was wrong with a skipped update: levels, or its loss."""
  if metrics['spike']:
    return ['steps', SPIKE]
  bad = [
    x for x in levels(metrics) if not np.isfinite(metrics[f'grad_norm/{x}'])
  ]
  return ['steps', *(bad or ['the total'])]


def described(causes: collections.Counter) -> str:
  """'not finite: level_0 2, level_1 1; a loss above optim.spike 1'."""
  bad = [f'{k} {n}' for k, n in sorted(causes.items()) if k != SPIKE]
  parts = [f'not finite: {", ".join(bad)}'] if bad else []
  if causes[SPIKE]:
    parts.append(f'{SPIKE} {causes[SPIKE]}')
  return '; '.join(parts)
