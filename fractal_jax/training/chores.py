"""What a run does between its steps: metrics, checkpoints, samples, its end."""

from collections.abc import Iterator
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fractal_jax import config as config_lib
from fractal_jax import paths
from fractal_jax.data import classes
from fractal_jax.models import fractal
from fractal_jax.training import (
  CheckpointError,
  checkpoint,
  logs,
  monitor,
  processes,
)
from fractal_jax.training.train_state import TrainState

if TYPE_CHECKING:
  from fractal_jax.inference import likelihood

# What spoils the state, or the saving of it: nothing is saved after these.
UNSAVABLE = (monitor.TrainingError, CheckpointError, jax.errors.JaxRuntimeError)


class Chores:
  """What watches the steps of a run, and does what is due after each.

  Attributes:
    stop: asked after each step whether the run is to end early.
    dog: ends a run that stands still.
    likelihood: the latest of the validation split; None before the first.
  """

  def __init__(
    self,
    net: fractal.Fractal,
    config: ConfigDict,
    checkpoints: checkpoint.Checkpoints,
    workdir: str,
    start: int,
    total: int,
    stack: contextlib.ExitStack,
    *,
    profile: tuple[int, int] | None = None,
    mesh: Mesh,
  ):
    """Opens the files of the run's metrics.

    Args:
      net, config, mesh: of the run.
      checkpoints: what its states are saved to.
      workdir: gets metrics.jsonl, tensorboard/ and samples/.
      start, total: the step that the run goes on from, and its last one.
      stack: closes what is opened here.
      profile: the first step to trace, and how many.
    """
    self._net, self._config, self._mesh = net, config, mesh
    self._checkpoints, self._workdir = checkpoints, workdir
    self._total, self._done, self._saved = total, start, start
    self._state = self._position = self.likelihood = None
    self.stop = stack.enter_context(processes.stop_requests())
    self._writer = logs.metric_writer(workdir, start)
    stack.callback(self._writer.close)
    self._writer.write_hparams(config_lib.flat(config))
    self._actions = logs.periodic_actions(
      workdir, start, total, self._writer, profile
    )
    stack.callback(logs.stop_profile)
    self.dog = stack.enter_context(
      processes.watchdog.limit(config.optim.hang_after)
    )
    self._speed = logs.Speed(start, total, config.optim.batch)
    self._monitor = monitor.Monitor(
      config, total, self._speed, self._writer, checkpoints
    )
    self._validation = monitor.Validation()
    for action in self._actions:
      action(start)

  @contextlib.contextmanager
  def pause(self, doing: str) -> Iterator[None]:
    """What happens in here may take long, and is no training."""
    with self._speed.pause(), self.dog.slow(doing):
      yield

  def attend(
    self,
    step: int,
    state: TrainState,
    position: dict,
    metrics: dict[str, jax.Array],
  ) -> None:
    """What is due after a step; after the last one, all of it.

    The order:
    1. Metrics, a step late, so that the devices always have work. Before
       anything else is done with the state, this step's are read, too: a run
       whose updates went bad stops before it saves or shows them.
    2. clu's actions, between two steps: a profile holds whole steps.
    3. Evaluation before the checkpoint, which is kept if it is the best.
    4. The checkpoint before the samples, which may take long: what is saved in
       the background is written meanwhile.

    Args:
      step: the step just started; `state` and `metrics` are what it gives.
      position: where it left the data.
    """
    self._done, self._state, self._position = step, state, position
    with self.stop.on_error():
      self._monitor.add(step, metrics)
    for action in self._actions:
      with self.stop.on_error():
        action(step)
    evaluates = self._due(self._config.eval.every)
    saves = self._due(self._config.optim.save_every)
    samples = self._due(self._config.sample.every)
    if not (evaluates or saves or samples):
      return
    with self.stop.on_error():
      self._monitor.catch_up()
    with self.pause('evaluating, saving or sampling'):
      if evaluates:
        self.evaluate(state)
        with self.stop.on_error():
          self._write_likelihood()
      if saves:
        self._save(self.likelihood.bits_per_dim if evaluates else None)
      if samples:
        with self.stop.on_error():
          self._sample()
      with self.stop.on_error():
        self._writer.flush()

  def _due(self, every: int) -> bool:
    """Whether what is done each `every` steps is due; 0: it never is."""
    return bool(every) and (
      self._done == self._total or self._done % every == 0
    )

  def evaluate(self, state: TrainState) -> None:
    """Finds the likelihood of the validation split."""
    from fractal_jax.inference import likelihood

    self.likelihood = likelihood.evaluate(
      self._net, state.params, self._config, mesh=self._mesh
    )

  def _write_likelihood(self) -> None:
    numbers = dataclasses.asdict(self.likelihood).items()
    scalars = {f'val/{k}': float(v) for k, v in numbers}
    self._writer.write_scalars(self._done, scalars)
    if self._done < self._total:  # that of the last step is the last line
      logs.say(f'step {self._done}  {report(self.likelihood)}')
    if risen := self._validation.add(self._done, self.likelihood):
      logs.say(f'step {self._done}  {risen}')

  def _save(self, bits: float | None = None) -> None:
    self._checkpoints.save(self._done, self._state, self._position, bits)
    self._saved = self._done

  @contextlib.contextmanager
  def saving_on_error(self) -> Iterator[None]:
    """Saves the steps done before what is raised in here ends the run.

    Saving takes all processes: where one of several fails by itself, the
    others are on their way to the next step, and nothing is saved.
    """
    try:
      yield
    except UNSAVABLE:
      raise
    except Exception:
      if jax.process_count() == 1:
        self.save_rest()
      raise

  def save_rest(self) -> None:
    """Before an early end: saves the steps that are not saved yet."""
    if self._done == self._saved:
      return
    with contextlib.suppress(OSError, UnicodeError):  # of log lines
      self._monitor.catch_up()
    with self.dog.slow('saving before the end'):
      self._save()
      self._checkpoints.wait()
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):  # the output may be what failed
        print(f'saved after step {self._done}', file=sys.stderr, flush=True)

  def _sample(self) -> None:
    """A grid of samples, as a PNG file and in TensorBoard; a movie of the last.

    The movie is samples/growing.gif.
    """
    from fractal_jax.inference import sample

    folder = paths.path(self._workdir) / 'samples'
    movie = folder / 'growing.gif' if self._done == self._total else None
    grid = sample.sample_grid(
      self._net,
      self._state.params,
      self._config,
      mesh=self._mesh,
      path=str(folder / f'step_{self._done:07d}.png'),
      names=classes.load(self._workdir),
      movie=movie and str(movie),
    )
    self._writer.write_images(self._done, {'samples/grid': grid})
    if movie and jax.process_index() == 0:
      self._writer.write_gifs(
        self._done, {'samples/growing': movie.read_bytes()}
      )


def report(found: 'likelihood.Likelihood') -> str:
  """Validation bits/dim, of a Likelihood, with its standard error."""
  bound = ' (upper bound)' if found.bound else ''
  bound += ' (of rounded colours)' if found.rounded else ''
  bits, error = found.bits_per_dim, found.stderr
  return f'validation bits/dim: {bits:.3f} ± {error:.3f}{bound}'
