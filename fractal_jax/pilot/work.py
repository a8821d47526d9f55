"""What stages share: the data, the models, and results that are kept.

Every model that a stage fits is a unit: what the stage needs of it is kept in
DIR/units as soon as it is there, under a hash of the data's and the task's
settings. A stage that was killed goes on with the first unit that is missing.
"""

from collections.abc import Callable
import dataclasses
import time

from etils import epath
import numpy as np

from fractal_jax import paths
from fractal_jax.inference.progress import Job, result_of
from fractal_jax.pilot.settings import PilotError, Settings
from fractal_jax.planning import cost
from fractal_jax.series import quantiser, runs, settings
from fractal_jax.series.detector import FractalDetector
from fractal_jax.series.table import Table
from fractal_jax.training import restore

HELD_OUT = 0.2  # of the rows to learn from, the last ones
PATCH = 8  # rows of a patch of level 0, see series/settings.py
PROBE = 8  # steps by which the speed of this machine is measured


class Models:
  """How detectors are made and kept; tests put quicker ones in their place."""

  def new(self, **how) -> FractalDetector:
    return FractalDetector(**how)

  def save(self, folder: str, detector: FractalDetector, name: str) -> None:
    """Keeps it, whole or not at all."""
    part = paths.path(folder + '.part')
    if part.exists():  # of an attempt that was killed
      epath.Path(part).rmtree()
    runs.save(str(part), detector, name)
    epath.Path(part).rename(folder)

  def load(self, folder: str) -> FractalDetector | None:
    """The detector that `save` kept; None where there is none."""
    return runs.load(folder) if restore.steps(folder) else None

  def draw(self, detector: FractalDetector, number: int) -> np.ndarray:
    """Windows [number, S, C] that the model draws."""
    bins = detector.model_.sample([0] * number, seed=0)
    return detector.quantiser_.decode(bins)


@dataclasses.dataclass(frozen=True)
class Pilot:
  """A pilot: its folder, settings, data, and how models are made."""

  folder: str
  settings: Settings
  table: Table
  models: Models

  @property
  def train(self) -> int:
    """The rows to learn from, those held out included."""
    return self.settings.data['train_rows']

  @property
  def first(self) -> int:
    """The first row that is held out."""
    return self.train - int(self.train * HELD_OUT)

  @property
  def window(self) -> int:
    return self.settings.task['window']

  @property
  def held(self) -> np.ndarray:
    """The values [t, C] that modules are judged by."""
    return self.table.values[self.first : self.train]

  def bins(self) -> quantiser.Quantiser:
    """The bins in which all bits of this pilot are counted."""
    return quantiser.fit(
      [self.table.values[: self.first]], 256, channels=self.table.channels
    )

  def path(self, *parts: str):
    out = paths.path(self.folder)
    for part in parts:
      out = out / part
    return out

  def config(self, levels: int, window: int, steps: int | None):
    """The config of a model that is fitted to the rows to learn from."""
    channels = self.table.values.shape[1]
    return settings.settings(
      self.first, channels, window=window, levels=levels, steps=steps or None
    )


def kept(pilot: Pilot, name: str, make: Callable[[], Job]) -> Job:
  """A job: a unit's arrays by name, from DIR/units, or made and put there."""
  path = _unit(pilot, name)
  if path.exists():
    return arrays(path)
  found = yield from make()
  path.parent.mkdir(parents=True, exist_ok=True)
  with paths.whole(path) as file:
    np.savez(file, **found)
  return found


def arrays(path) -> dict[str, np.ndarray]:
  """The arrays that a pilot kept in a file.

  Raises:
    PilotError: it is damaged.
  """
  try:
    with paths.local(path) as copy, np.load(copy, allow_pickle=False) as file:
      return {k: file[k] for k in file.files}
  except Exception as e:  # zipfile, numpy and the system each have their own
    raise PilotError(
      f'{path} is damaged ({type(e).__name__}: {e}): remove it, and what is '
      'in it is computed again'
    ) from e


def _unit(pilot: Pilot, name: str):
  """Where a unit is kept."""
  return pilot.path('units', pilot.settings.key(), f'{name}.npz')


def probed(pilot: Pilot) -> bool:
  """Whether the speed of this machine was measured for this pilot."""
  return _unit(pilot, 'probe').exists()


def fitted_bits(
  pilot: Pilot,
  *,
  window: int,
  levels: int,
  steps: int,
  seed: int,
  share: float = 1.0,
  draw: int = 0,
) -> Job:
  """A job: a model fitted to a share of the rows, by what it says of those held
  out.

  Returns:
    `bits` [t, C] of the rows held out, in the pilot's bins; and where asked
    for `drawn` [n, S, C].
  """
  name = f'w{window}-l{levels}-t{steps}-s{seed}-{share:g}'

  def make() -> Job:
    values = pilot.table.values
    begin = int(pilot.first * (1 - share))
    detector = pilot.models.new(
      window=window,
      levels=levels,
      steps=steps,
      seed=seed,
      smooth=1,
      held_out=len(pilot.held) / (pilot.train - begin),
    )
    yield from detector.fitting(values[begin : pilot.train])
    before = max(pilot.first - window, 0)
    points = yield from detector.scoring(values[before : pilot.train])
    bits = points.bits[pilot.first - before :]
    _, own = detector.quantiser_.of(0)
    _, width = pilot.bins().of(0)
    out = {'bits': bits - np.log2(width / own)}
    if draw:
      out['drawn'] = pilot.models.draw(detector, draw)
    return out

  return (yield from kept(pilot, name, make))


# What a stage will cost.


def probe(pilot: Pilot) -> dict:
  """Seconds of a step and of compiling, measured once on this machine."""

  def make() -> Job:
    detector = pilot.models.new(window=pilot.window, levels=3, steps=PROBE)
    yield from ()  # a job, though nobody is shown its few steps
    begun, at = time.monotonic(), []
    job = detector.fitting(pilot.table.values[: pilot.train])
    for progress in job:
      at.append(time.monotonic())
      if progress.doing != 'fitting' or progress.done == PROBE:
        break
    job.close()
    step = (at[-1] - at[0]) / max(len(at) - 1, 1)
    return {'step': np.float64(step), 'compiling': np.float64(at[0] - begun)}

  return {k: float(v) for k, v in result_of(kept(pilot, 'probe', make)).items()}


def price(pilot: Pilot, fits: list[tuple[int, int, int]]) -> float:
  """Seconds that fits will take: the probe's, by FLOPs.

  Args:
    pilot: the pilot.
    fits: (window, levels, steps) of each model.
  """
  measured = probe(pilot)
  flops = lambda window, levels: cost.train_flops_per_image(
    pilot.config(levels, window, None)
  )
  one = flops(pilot.window, 3)
  return sum(
    measured['compiling'] + measured['step'] * steps * flops(w, l) / one
    for w, l, steps in fits
  )
