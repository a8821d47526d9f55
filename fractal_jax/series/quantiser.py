"""Numbers to the integers that a model takes, and back.

Axis letters: T rows, C channels, V bins. A number x lies at the place
(x - low) / width - 1/2 on the scale of bins, so that the centre of bin k is at
place k. Bins are uniform; what lies outside of them is clipped in what the
model reads, and keeps its place where it is scored.
"""

from collections.abc import Sequence
import dataclasses
import json
import os

import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import errors, paths
from fractal_jax.errors import UserError

FILE = 'quantiser.json'  # in a work directory
RANGES = ('uniform', 'scaled')
SCALES = 10  # mean deviations from the median that bins of kind 'scaled' reach


class QuantiserError(UserError, ValueError):
  """Numbers that no bins can be made for, or no quantiser where one is due."""


@dataclasses.dataclass(frozen=True)
class Quantiser:
  """Uniform bins for each class and channel.

  Attributes:
    bins: V.
    low: [classes][C], where bin 0 begins.
    width: [classes][C], of a bin, in the unit of the channel.
    median: [classes][C], of the training part; stands for what is not known
      at the beginning of a series.
    channels: [C] names.
  """

  bins: int
  low: tuple[tuple[float, ...], ...]
  width: tuple[tuple[float, ...], ...]
  median: tuple[tuple[float, ...], ...]
  channels: tuple[str, ...]

  @property
  def shape(self) -> tuple[int, int]:
    """How many channels and bins there are."""
    return len(self.channels), self.bins

  def of(self, label: int) -> tuple[np.ndarray, np.ndarray]:
    """low and width [C] of a class."""
    return np.array(self.low[label]), np.array(self.width[label])

  def place(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    """Numbers [..., C] to places on the scale of bins; NaN stays."""
    low, width = self.of(label)
    return (values - low) / width - 0.5

  def encode(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    """Numbers [..., C], none of them NaN, to bins 0 .. V - 1, int32."""
    nearest = np.floor(self.place(values, label) + 0.5)
    return nearest.clip(0, self.bins - 1).astype(np.int32)

  def decode(self, bins: np.ndarray, label: int = 0) -> np.ndarray:
    """Bins, or places between them, [..., C], to numbers: their centres."""
    low, width = self.of(label)
    return low + (np.asarray(bins) + 0.5) * width

  def outside(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    """Which numbers [..., C] lie outside all bins, and are clipped; bool."""
    place = self.place(values, label)
    return (place < -0.5) | (place > self.bins - 0.5)

  def read(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    """Numbers [T, C] to what a model of `model.unknown` reads, int32 [T, C].

    What is not known (NaN) is read as the last number before it, or, where
    there is none, as the median; it is marked: bin b is written ~b.
    """
    bins = self.encode(filled(values, self.median[label]), label)
    return np.where(np.isnan(values), ~bins, bins)

  def text(self) -> str:
    """What `load` reads."""
    return json.dumps(dataclasses.asdict(self), indent=1) + '\n'


def filled(values: np.ndarray, first: ArrayLike = 0.0) -> np.ndarray:
  """Values [T, C], the last number before where one is not known.

  Where none is before, it is `first`, a number or one for each channel.
  """
  rows = np.arange(len(values))[:, None]
  last = np.maximum.accumulate(np.where(np.isnan(values), 0, rows), 0)
  found = np.take_along_axis(values, last, 0)
  return np.where(np.isnan(found), first, found)


def fit(
  series: Sequence[np.ndarray],
  bins: int,
  *,
  kind: str = 'uniform',
  margin: float = 0.5,
  channels: Sequence[str] = (),
) -> Quantiser:
  """Bins for the training part of one or more classes.

  Args:
    series: [T, C] of each class; NaN where not known.
    bins: V.
    kind: 'uniform' covers the range of the numbers; 'scaled' reaches SCALES
      mean deviations from the median, so that spikes do not widen the bins.
    margin: share of that range that is added at each end.
    channels: [C] names; numbers where empty.

  Raises:
    QuantiserError: a channel has no number at all, or too large or small ones.
  """
  names = tuple(channels) or tuple(str(c) for c in range(series[0].shape[1]))
  low, width, median = [], [], []
  for values in series:
    empty = np.isnan(values).all(0)
    if empty.any():
      name = names[int(empty.argmax())]
      raise QuantiserError(
        f"channel '{name}' has no number in the training part: leave the "
        'column out, or let the training part be longer'
      )
    with np.errstate(over='ignore', invalid='ignore'):
      least, wide, middle = _scale(values, bins, kind, margin)
    bad = ~(np.isfinite(least) & np.isfinite(wide) & (wide > 0))
    if bad.any():
      i = int(bad.argmax())
      raise QuantiserError(
        f"channel '{names[i]}' has numbers from {np.nanmin(values[:, i]):g} to "
        f'{np.nanmax(values[:, i]):g}: bins of them are beyond what a computer '
        'can count with; give it in another unit'
      )
    low.append(tuple(least.tolist()))
    width.append(tuple(wide.tolist()))
    median.append(tuple(middle.tolist()))
  return Quantiser(bins, tuple(low), tuple(width), tuple(median), names)


def _scale(values: np.ndarray, bins: int, kind: str, margin: float):
  """The lowest edge, the width of a bin, and the median, [C] each."""
  middle = np.nanmedian(values, 0)
  if kind == 'scaled':
    reach = SCALES * np.nanmean(np.abs(values - middle), 0)
    least, most = middle - reach, middle + reach
  else:
    least, most = np.nanmin(values, 0), np.nanmax(values, 0)
  # A constant channel: bins as wide as its number is large, or 1.
  size = np.where(middle == 0, 1.0, np.abs(middle))
  span = np.where(most - least > 1e-9 * size, most - least, size)
  whole = span * (1 + 2 * margin)
  return (least + most) / 2 - whole / 2, whole / bins, middle


def save(workdir: str | os.PathLike, quantiser: Quantiser) -> None:
  """Keeps it in a work directory."""
  paths.write_text(paths.path(workdir) / FILE, quantiser.text())


def load(workdir: str | os.PathLike) -> Quantiser | None:
  """The quantiser of a run; None where the run has none.

  Raises:
    QuantiserError: the file is damaged.
  """
  path = paths.path(workdir) / FILE
  try:
    return _read(json.loads(path.read_bytes()))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except errors.DAMAGES as e:
    raise QuantiserError(
      f'{path} is no quantiser ({type(e).__name__}: {e}): take it from a copy '
      'of the work directory'
    ) from e


def _read(found: dict) -> Quantiser:
  """A quantiser from what JSON holds; ValueError and the like for others."""
  arrays = {
    name: np.array(found[name], np.float64)
    for name in ('low', 'width', 'median')
  }
  bins, channels = found['bins'], tuple(found['channels'])
  shape = (len(arrays['low']), len(channels))
  if not isinstance(bins, int) or bins < 2:
    raise ValueError(f'bins is {bins!r}')
  if not all(isinstance(name, str) for name in channels):
    raise ValueError(f'channels is {channels!r}')
  for name, x in arrays.items():
    if x.shape != shape or not x.size or not np.isfinite(x).all():
      raise ValueError(f'{name} must hold finite numbers {list(shape)}')
  if not (arrays['width'] > 0).all():
    raise ValueError('width must be above 0')
  nested = {name: tuple(map(tuple, x.tolist())) for name, x in arrays.items()}
  return Quantiser(bins, **nested, channels=channels)
