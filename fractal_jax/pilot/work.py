"""What all pilots share: the folder, results that are kept, and prices.

Every model that a stage fits is a unit: what the stage needs of it is kept in
DIR/units as soon as it is there, under a hash of the data's and the task's
settings. A stage that was killed goes on with the first unit that is missing.
"""

import abc
from collections.abc import Callable, Mapping
import dataclasses
import resource
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import paths, sharding
from fractal_jax.inference import explain
from fractal_jax.inference.progress import Job, result_of
from fractal_jax.metrics import files
from fractal_jax.pilot.gates import Gate
from fractal_jax.pilot.settings import PilotError, Settings
from fractal_jax.planning import cost

if TYPE_CHECKING:
  from fractal_jax import api

PROBE = 8  # steps by which the speed of this machine is measured
WORTH = 16  # windows or images by which the worth of levels is measured


@dataclasses.dataclass(frozen=True)
class Found:
  """What a stage found.

  Attributes:
    gates: judged.
    facts: numbers by name; the texts of each language explain them.
    curves: arrays by name, for pictures.
  """

  gates: tuple[Gate, ...]
  facts: dict[str, float]
  curves: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage: its job, and (side, levels, steps) of the models that it fits."""

  job: Callable[['Pilot'], Job]
  fits: Callable[['Pilot'], list[tuple[int, int, int]]] = lambda pilot: []


@dataclasses.dataclass(frozen=True)
class Pilot(abc.ABC):
  """A pilot: its folder, settings, data, and how models are made.

  What differs between kinds of data is here; the stages `module` and
  `composition` are the same for all. A unit is what bits are counted of: a row
  of a table, an image. A side is what a model sees: rows, or pixels.
  """

  KIND: ClassVar[str]  # data.kind in pilot.toml
  SECTIONS: ClassVar[dict]  # of pilot.toml
  STAGES: ClassVar[dict[str, Stage]]
  MODELS: ClassVar[type]  # how models are made; tests give quicker ones

  folder: str
  settings: Settings
  data: Any
  models: Any

  def path(self, *parts: str) -> paths.Path:
    """A path in the folder of the pilot."""
    return paths.path(self.folder).joinpath(*parts)

  @staticmethod
  @abc.abstractmethod
  def open(settings: Settings) -> Any:
    """The data."""

  @abc.abstractmethod
  def problems(self) -> list[str]:
    """What keeps the pilot from being run, a sentence each."""

  @abc.abstractmethod
  def wishes(self) -> list[str]:
    """What a verdict or the returns will lack, a sentence each."""

  @property
  @abc.abstractmethod
  def learnt(self) -> int:
    """How many units models learn from."""

  @abc.abstractmethod
  def modules(self) -> list[tuple[int, int, int]]:
    """(level, side that it sees, `levels`) of each that can stand alone."""

  @abc.abstractmethod
  def config(self, side: int, levels: int, steps: int | None) -> ConfigDict:
    """The config of a model; 2 levels are one above values, 3 are all.

    1 is level 0 alone, above patches whose values do not see each other; of
    images, where one level above values would be as long as the flat model.
    """

  def fitted(
    self, side: int, levels: int, steps: int, seed: int, share: float, draw: int
  ) -> Job:
    """A job: what is kept of a model fitted to a share of what is learnt from.

    Returns:
      `bits` per value [units] of the units held out; `gradient_i`, norms
      [steps] of level i; and where asked for, `drawn`, and `worth`
      [levels - 1], see `worth`.
    """

    def make() -> Job:
      model, bits, norms = yield from self.fitting(
        side, levels, steps, seed, share
      )
      out = {'bits': bits}
      for level, norm in norms.items():
        out[f'gradient_{level.removeprefix("level_")}'] = norm
      if levels > 2 and not seed:
        out['worth'] = self.worth(model)
      if draw:
        out['drawn'] = self.drawn(model, draw)
      return out

    name = f'w{side}-l{levels}-t{steps}-s{seed}-{share:g}'
    return (yield from kept(self, name, make))

  @abc.abstractmethod
  def fitting(
    self, side: int, levels: int, steps: int, seed: int, share: float
  ) -> Job:
    """A job: a model fitted to a share of what is learnt from.

    Returns:
      The model; its bits per value [units] of the units held out; of each level
      by its name, norms [steps] of its gradient.
    """

  @abc.abstractmethod
  def worth(self, model: Any) -> np.ndarray:
    """What each level tells the next one in some of what is held out."""

  @abc.abstractmethod
  def drawn(self, model: Any, number: int) -> np.ndarray:
    """What a model draws, for a picture."""

  @abc.abstractmethod
  def histogram(self) -> np.ndarray:
    """Bits per value [units] of a model without memory."""

  @abc.abstractmethod
  def simple(self) -> dict[str, np.ndarray]:
    """Bits per value [units] of all simple models, by name."""

  @abc.abstractmethod
  def blocks(self, bits: np.ndarray) -> np.ndarray:
    """Means of bits [..., units] over parts that are nearly independent."""

  @abc.abstractmethod
  def probing(self, steps: int) -> Job:
    """The job of fitting a model of all levels, for `steps` steps."""

  @abc.abstractmethod
  def pictures(self, name: str, curves: Mapping) -> dict[str, bytes]:
    """PNGs of a stage by the key of their caption."""


def kept(pilot: Pilot, name: str, make: Callable[[], Job]) -> Job:
  """A job: a unit's arrays by name, from DIR/units, or made and put there."""
  path = _unit(pilot, name)
  if path.exists():
    return arrays(path)
  found = yield from make()
  keep(path, found)
  return found


class Arrays(dict):
  """Arrays by name, of a file; a name that is missing is a PilotError."""

  def __init__(self, path: paths.Path, found: Mapping[str, np.ndarray]):
    super().__init__(found)
    self._path = path

  def __missing__(self, name: str):
    raise PilotError(
      f"{self._path} has no array '{name}', and is not of this pilot: remove "
      'it, and what is in it is computed again'
    )


def keep(path: paths.Path, found: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name, and beside them the hash by which to know them."""
  beside = _hash_file(path)
  beside.unlink(missing_ok=True)  # never an old hash beside new arrays
  paths.write_npz(path, **found)
  paths.write_text(beside, _hash(path))


def arrays(path: paths.Path) -> Arrays:
  """The arrays that a pilot kept in a file.

  Raises:
    PilotError: it is damaged, or was replaced by another file. What has no hash
      beside it is of a pilot from before there were hashes, and is believed.
  """
  beside = _hash_file(path)
  try:
    found = Arrays(path, paths.read_npz(path))
    if beside.exists() and beside.read_text() != _hash(path):
      raise ValueError(f'it is not what {beside.name} was made of')
    return found
  except Exception as e:  # zipfile, numpy and the system each have their own
    raise PilotError(
      f'{path} is damaged ({type(e).__name__}: {e}): remove it, and what is '
      'in it is computed again'
    ) from e


def _hash_file(path):
  return path.with_suffix('.sha256')


def _hash(path) -> str:
  """What `sha256sum` says of a file."""
  return f'{files.digest(path.read_bytes(), length=64)}  {path.name}\n'


def _unit(pilot: Pilot, name: str):
  """Where a unit is kept."""
  return pilot.path('units', pilot.settings.key(), f'{name}.npz')


def keep_folder(folder: str, write: Callable[[str], Any]) -> None:
  """Makes a folder by `write`, whole or not at all."""
  part = paths.path(folder + '.part')
  if part.exists():  # of an attempt that was killed
    epath.Path(part).rmtree()
  write(str(part))
  epath.Path(part).rename(folder)


def worth(model: 'api.Model', images: np.ndarray) -> np.ndarray:
  """What each level tells the next one, in bits per value [levels - 1].

  Bits that the images cost more where a level's conditions are zeros: which
  level carries the loss. The model was not trained to do without them.

  Args:
    model: an api.Model of ar levels.
    images: [n, S, (S,) C] of its values; class 0. The first WORTH are used.
  """
  images = images[:WORTH]
  net = model.net
  keep = [np.ones(s.out_conds, np.float32) for s in net.specs[:-1]]
  told = [keep] + [
    [np.zeros_like(x) if i == j else x for j, x in enumerate(keep)]
    for i in range(len(keep))
  ]
  key, parts = jax.random.key(0), sharding.batch_devices(model.mesh)
  index = np.arange(parts)  # one is enough, but each device has its share
  totals = np.zeros(len(told))
  for image in images:
    for i, some in enumerate(told):
      asked = explain.Question(image, np.int32(0), some)
      with jax.set_mesh(model.mesh):
        *maps, _ = explain.value_nats(
          net, model.params, asked, key, index, parts=parts
        )
      totals[i] += sum(float(x[0].sum()) for x in maps)
  return (totals[1:] - totals[0]) / images.size / np.log(2)


def memory() -> float:
  """GB that this process has taken at most."""
  found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return found / (1e9 if sys.platform == 'darwin' else 1e6)


# What a stage will cost.


def probed(pilot: Pilot) -> bool:
  """Whether the speed of this machine was measured for this pilot."""
  return _unit(pilot, 'probe').exists()


def probe(pilot: Pilot) -> dict:
  """Seconds of a step and of compiling, measured once on this machine."""

  def make() -> Job:
    yield from ()  # a job, though nobody is shown its few steps
    begun, at = time.monotonic(), []
    job = pilot.probing(PROBE)
    for progress in job:
      at.append(time.monotonic())
      if progress.doing != 'fitting' or progress.done == PROBE:
        break
    job.close()
    step = (at[-1] - at[0]) / max(len(at) - 1, 1)
    return {'step': np.float64(step), 'compiling': np.float64(at[0] - begun)}

  found = result_of(kept(pilot, 'probe', make))
  return {name: float(found[name]) for name in ('step', 'compiling')}


def price(pilot: Pilot, fits: list[tuple[int, int, int]]) -> float:
  """Seconds that fits will take: the probe's, by FLOPs.

  Args:
    fits: (side, levels, steps) of each model.
  """
  measured = probe(pilot)
  flops = lambda side, levels: cost.cost(
    pilot.config(side, levels, None)
  ).total('training')
  (_, whole, _), *_ = pilot.modules()
  one = flops(whole, 3)
  return sum(
    measured['compiling'] + measured['step'] * steps * flops(side, levels) / one
    for side, levels, steps in fits
  )
