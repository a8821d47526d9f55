"""What the metrics of a step say: log lines, skipped updates, when to stop."""

import collections

import jax
import numpy as np

from fractal_jax.errors import UserError
from fractal_jax.training import logs, optimizer


class TrainingError(UserError, RuntimeError):
  """Training can't go on; the message says where it went wrong."""


class Watch:
  """Looks at each step's metrics, one step late, and logs them.

  Looking at a step's metrics waits for it; meanwhile the devices have the next
  step to do.
  """

  def __init__(self, config, total, progress, writers, checkpoints):
    self._config, self._total = config, total
    self._schedule = optimizer.schedule(config, total)
    self._progress, self._writers = progress, writers
    self._checkpoints = checkpoints
    self._pending = None
    self._window = []  # metrics of the steps applied since the last line
    self._skipped = collections.Counter()  # the others, by cause
    self._streak = collections.Counter()  # those since one was applied

  def add(self, step: int, metrics) -> None:
    """Takes the metrics of a step just started, and looks at the one before.

    Raises:
      TrainingError: optim.max_bad_steps updates in a row were skipped.
    """
    jax.tree.map(lambda x: x.copy_to_host_async(), metrics)
    self.flush()
    self._pending = step, metrics

  def flush(self) -> None:
    """Looks at the last step."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    metrics = {k: np.asarray(v) for k, v in metrics.items()}
    o = self._config.optim
    if metrics.pop('applied'):
      self._streak.clear()
      self._window.append(metrics)
    else:
      causes = causes_of(metrics)
      self._skipped.update(causes)
      self._streak.update(causes)
      if metrics['in_a_row'] >= o.max_bad_steps:
        self._stop(step, metrics)
    if step % o.log_every == 0 or step == self._total:
      self._checkpoints.check()
      self._log(step, metrics)

  def _log(self, step: int, last) -> None:
    counts, self._skipped = self._skipped, collections.Counter()
    window, self._window = self._window, []
    names = last.keys() - {'spike', 'in_a_row', 'skipped'}
    means = {k: np.mean([m[k] for m in window]) for k in names if window}
    means['images_per_second'] = self._progress.update(
      step, means.get('loss', np.nan), means.get('bits_per_dim', np.nan)
    )
    # The schedule counts the updates applied.
    means['lr'] = self._schedule(max(0, step - 1 - last['skipped']))
    means['skipped'] = counts['steps']
    for name in names:
      if name.startswith('grad_norm/'):
        level = name.removeprefix('grad_norm/')
        means[f'skipped/{level}'] = counts[level]
    if self._config.optim.spike:
      means['skipped/spike'] = counts[SPIKE]
    if counts:
      logs.say(
        f'step {step}: skipped {counts.pop("steps")} update(s) since the last '
        f'line ({listed(counts)}), {last["skipped"]} in all'
      )
    means = {f'train/{k}': v for k, v in sorted(means.items())}
    self._writers.write_scalars(step, means)
    self._writers.flush()

  def _stop(self, step: int, metrics) -> None:
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
    counts = self._streak
    counts.pop('steps')
    raise TrainingError(
      f'step {step} is the {metrics["in_a_row"]}. in a row whose update was '
      f'not applied (optim.max_bad_steps={o.max_bad_steps}): '
      f'{listed(counts)}. Its loss is {metrics["loss"]}, its gradient norm '
      f'{metrics["grad_norm"]}. {kept} Lower optim.lr or optim.clip, or warm '
      'up for longer.'
    )


SPIKE = 'a loss above optim.spike'


def causes_of(metrics) -> list[str]:
  """What was wrong with a skipped step: levels, or its loss."""
  if metrics['spike']:
    return ['steps', SPIKE]
  prefix = 'grad_norm/'
  levels = [
    k.removeprefix(prefix)
    for k, v in metrics.items()
    if k.startswith(prefix) and not np.isfinite(v)
  ]
  return ['steps', *(levels or ['the total'])]


def listed(causes) -> str:
  """'not finite: level_0 2, level_1 1; a loss above optim.spike 1'."""
  levels = [f'{k} {n}' for k, n in sorted(causes.items()) if k != SPIKE]
  parts = [f'not finite: {", ".join(levels)}'] if levels else []
  if causes[SPIKE]:
    parts.append(f'{SPIKE} {causes[SPIKE]}')
  return '; '.join(parts)
