"""Pilots on tables of sensors: the data, and the models."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from fractal_jax.inference.progress import Job
from fractal_jax.pilot import (
  detection,
  gates,
  pictures,
  simple,
  stages,
  table_data,
  table_settings,
  work,
)
from fractal_jax.pilot.settings import Settings
from fractal_jax.pilot.work import Pilot, Stage
from fractal_jax.series import quantiser, runs, settings, table
from fractal_jax.series.detector import FractalDetector
from fractal_jax.series.scores import mean_over
from fractal_jax.training import restore


class Models:
  """How detectors are made and kept; tests put quicker ones in their place."""

  def new(self, **how: Any) -> FractalDetector:
    """A detector that has learnt nothing yet."""
    return FractalDetector(**how)

  def save(self, folder: str, detector: FractalDetector, name: str) -> None:
    """Keeps it, whole or not at all."""
    work.keep_folder(folder, lambda part: runs.save(part, detector, name))

  def load(self, folder: str) -> FractalDetector | None:
    """The detector that `save` kept; None where there is none."""
    return runs.load(folder) if restore.steps(folder) else None

  def draw(self, detector: FractalDetector, number: int) -> np.ndarray:
    """Windows [number, S, C] that the model draws."""
    bins = detector.model_.sample([0] * number, seed=0)
    return detector.quantiser_.decode(bins)

  def worth(self, detector: FractalDetector, rows: np.ndarray) -> np.ndarray:
    """What each level tells the next one in some windows of rows [t, C]."""
    side = detector.window
    bins = detector.quantiser_.read(rows)
    windows = bins[: len(bins) // side * side].reshape(-1, side, bins.shape[1])
    return work.worth(detector.model_, windows)


@dataclasses.dataclass(frozen=True)
class TablePilot(Pilot):
  """A pilot on a table. Units are rows; windows are nearly independent."""

  KIND = 'table'
  SECTIONS = table_settings.SECTIONS
  MODELS = Models
  STAGES = {
    'data': Stage(table_data.data),
    'module': Stage(stages.module, stages.module_fits),
    'composition': Stage(stages.composition, stages.composition_fits),
    'full': Stage(detection.full, detection.full_fits),
    'shadow': Stage(detection.shadow),
  }

  data: table.Table

  @staticmethod
  def open(settings: Settings) -> table.Table:
    return table.read(settings.data['file'], settings.data['columns'])

  def problems(self) -> list[str]:
    return table_settings.problems(self.settings, self.data)

  def wishes(self) -> list[str]:
    return table_settings.wishes(self.settings, self.data)

  @property
  def train(self) -> int:
    """The rows to learn from, those held out included."""
    return self.settings.data['train_rows']

  @property
  def learnt(self) -> int:
    return self.train - int(self.train * table_settings.HELD_OUT)

  @property
  def window(self) -> int:
    """How many rows a model sees at once."""
    return self.settings.task['window']

  @property
  def held(self) -> np.ndarray:
    """The values [t, C] that modules are judged by."""
    return self.data.values[self.learnt : self.train]

  @property
  def later(self) -> tuple[slice, slice]:
    """The rows of `full`, and those of `shadow`."""
    rows = len(self.data.values)
    last = rows - self.settings.data['shadow_rows']
    return slice(self.train, last), slice(last, rows)

  def bins(self) -> quantiser.Quantiser:
    """The bins in which all bits of this pilot are counted."""
    return quantiser.fit(
      [self.data.values[: self.learnt]], 256, channels=self.data.channels
    )

  def modules(self) -> list[tuple[int, int, int]]:
    return [(0, self.window, 2), (1, table_settings.PATCH, 2)]

  def config(self, side: int, levels: int, steps: int | None) -> ConfigDict:
    channels = self.data.values.shape[1]
    return settings.settings(
      self.learnt, channels, window=side, levels=levels, steps=steps or None
    )

  def probing(self, steps: int) -> Job:
    detector = self.models.new(window=self.window, levels=3, steps=steps)
    return detector.fitting(self.data.values[: self.train])

  def blocks(self, bits: np.ndarray) -> np.ndarray:
    return gates.blocks(bits, self.window)

  def histogram(self) -> np.ndarray:
    return self._of_held(simple.histogram(*self._learnt()))

  def simple(self) -> dict[str, np.ndarray]:
    learnt = self._learnt()
    order = min(self.window, self.learnt // 4)
    found = {
      'last_value': simple.last_value(*learnt),
      'linear': simple.autoregression(*learnt, order),
      'polynomial': simple.polynomial(*learnt, order),
    }
    found = {name: self._of_held(x) for name, x in found.items()}
    return {'histogram': self.histogram(), **found}

  def _learnt(self):
    """Values, how many rows simple models learn from, bins."""
    return self.data.values[: self.train], self.learnt, self.bins()

  def _of_held(self, bits: np.ndarray) -> np.ndarray:
    """Mean bits per value [t] of the rows held out, from those of all rows."""
    return mean_over(bits[self.learnt :])

  def fitting(
    self, side: int, levels: int, steps: int, seed: int, share: float
  ) -> Job:
    values = self.data.values
    begin = int(self.learnt * (1 - share))
    detector = self.models.new(
      window=side,
      levels=levels,
      steps=steps,
      seed=seed,
      smooth=1,
      held_out=len(self.held) / (self.train - begin),
    )
    yield from detector.fitting(values[begin : self.train])
    before = max(self.learnt - side, 0)
    points = yield from detector.scoring(values[before : self.train])
    bits = points.bits[self.learnt - before :]
    _, own = detector.quantiser_.of(0)
    _, width = self.bins().of(0)
    bits = mean_over(bits - np.log2(width / own))
    return detector, bits, detector.gradients_

  def worth(self, model: FractalDetector) -> np.ndarray:
    return self.models.worth(model, self.held)

  def drawn(self, model: FractalDetector, number: int) -> np.ndarray:
    return self.models.draw(model, number)

  def pictures(self, name: str, curves: Mapping) -> dict[str, bytes]:
    return pictures.of_table(self, name, curves)
