"""Series from files of numbers: windows of `model.sizes[0]` rows, as bins.

config.data.dir names a CSV, Parquet or .npz file, or a folder of them. The
first rows of each file are for training (data.rows, or what the file says),
and of these the last ones are the validation split (data.held_out). The
quantiser is fitted to the training split, and goes into the work directory.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict
import numpy as np

from fractal_jax.data import common
from fractal_jax.data.common import DataError, Source
from fractal_jax.series import quantiser as quantiser_lib
from fractal_jax.series import table
from fractal_jax.series.quantiser import Quantiser
from fractal_jax.series.table import Table

MOST_UNKNOWN = 0.5  # windows with a larger share of unknown values are left out


def series(config: ConfigDict, split: str) -> Source:
  """Windows of the files that data.dir names; see the top of this file."""
  common.check_split(config, split, common.SPLITS)
  tables = [table.read(path) for path in table.files(config.data.dir)]
  return source(config, tables, split)


def source(
  config: ConfigDict,
  tables: Sequence[Table],
  split: str,
  fitted: Quantiser | None = None,
) -> Source:
  """The windows of a split of tables.

  Args:
    config: reads data and model.
    tables: of the same channels.
    split: 'train' or 'validation'.
    fitted: the quantiser; fitted to the training split where None.

  Raises:
    DataError: what does not fit the model, or is too short.
  """
  d, m = config.data, config.model
  _check_model(m, tables)
  names = ('series',) if d.one_class else tuple(t.name for t in tables)
  labels = [0 if d.one_class else i for i in range(len(tables))]
  if fitted is None:
    fitted = fit(config, tables)
  parts = [part(config, one, split) for one in tables]
  read = [fitted.read(x, label) for x, label in zip(parts, labels)]
  starts, left_out = _starts(read, m.sizes[0], d.stride)
  skipped = ''
  if left_out:
    skipped = f'{left_out} windows of {split} are left out: too little is known'
  if not any(map(len, starts)):
    short = min(len(x) for x in parts)
    raise DataError(
      f'no window of {m.sizes[0]} rows is in split {split}, whose shortest '
      f'part has {short}: give more rows (data.rows), hold fewer out '
      '(data.held_out), or set a smaller model.sizes[0]'
    )

  # Where classes count alike they take turns, and the windows of a short series
  # come again until the longest one is through.
  turns = [np.concatenate(starts)]
  if d.balanced and split == 'train' and not d.one_class:
    turns = [x for x in starts if len(x)]

  def window(i: int) -> tuple[np.ndarray, int]:
    round_, turn = divmod(i, len(turns))
    which, start = turns[turn][round_ % len(turns[turn])]
    return read[which][start : start + m.sizes[0]], labels[which]

  return Source(
    size=len(turns) * max(map(len, turns)),
    read=window,
    class_names=names,
    values=fitted.bins,
    skipped=skipped,
    files={quantiser_lib.FILE: fitted.text()},
  )


def _check_model(m, tables: Sequence[Table]) -> None:
  """Raises DataError for a model that can't take such tables."""
  if m.rank != 1:
    raise DataError("data set 'series' needs model.rank=1")
  if not m.unknown:
    raise DataError(
      "data set 'series' marks what is not known: set model.unknown=True"
    )
  for one in tables:
    if one.values.shape[1] != m.channels:
      raise DataError(
        f'{one.name} has {one.values.shape[1]} channels '
        f'({", ".join(one.channels)}): set model.channels to that, and '
        'model.mean, std and channel_weights accordingly'
      )


def fit(config: ConfigDict, tables: Sequence[Table]) -> Quantiser:
  """The quantiser of the training split."""
  d = config.data
  parts = [part(config, one, 'train') for one in tables]
  groups = [np.concatenate(parts)] if d.one_class else parts
  return quantiser_lib.fit(
    groups,
    config.model.num_values,
    kind=d.bins,
    margin=d.margin,
    channels=tables[0].channels,
  )


def part(config: ConfigDict, one: Table, split: str) -> np.ndarray:
  """The rows [t, C] of a split."""
  rows = config.data.rows or one.train or len(one.values)
  rows = min(rows, len(one.values))
  held_out = int(rows * config.data.held_out)
  if split == 'train' or not held_out:
    return one.values[: rows - held_out]
  return one.values[rows - held_out : rows]


def _starts(read: list[np.ndarray], side: int, stride: int):
  """Windows as (series, first row) [n, 2]; how many series are left out."""
  found, left_out = [], 0
  for which, bins in enumerate(read):
    starts = np.arange(0, len(bins) - side + 1, stride)
    unknown = np.concatenate([[0], np.cumsum((bins < 0).mean(1))])
    share = (unknown[starts + side] - unknown[starts]) / side
    keep = share <= MOST_UNKNOWN
    left_out += int((~keep).sum())
    found.append(np.stack([np.full(keep.sum(), which), starts[keep]], 1))
  return found, left_out
