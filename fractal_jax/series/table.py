"""Tables of sensors: CSV, Parquet and .npz files to rows of numbers.

What is empty or NaN is not known, and stays NaN. Where a time column shows
that rows are missing, rows of NaN take their place, so that windows of
equally many rows are equally long in time.
"""

from collections.abc import Sequence
import dataclasses
import os
import re

import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import paths
from fractal_jax.data.common import DataError

ENDINGS = ('.csv', '.npz', '.parquet')
TIMES = re.compile(r'(date)?_?time_?(stamp)?|date|ds|timestamps?', re.I)
DATE = r'\d{4}|\d[-/.:]\w'  # what is in any date or time of day
SLASHED = re.compile(r'\d{1,2}[-/.]\d{1,2}[-/.]\d')
LABELS = re.compile(r'labels?|is_?anomaly|anomaly', re.I)
EXTRA = "pip install 'fractal_jax[series]'"
HOW = {'.csv': '; write UTF-8, and as many cells in each row as in the header'}
TRUTHS = {
  **dict.fromkeys(('False', 'false', 'FALSE'), '0'),
  **dict.fromkeys(('True', 'true', 'TRUE'), '1'),
}
NO_NUMBER = (
  'leave the cell empty if it is not known, or leave the column out with '
  '--columns'
)
NO_LABEL = 'write 0 and 1 in it, or give the column another name'
UNNAMED = 'a column has no name, and is left out as an index'
FILLED = 10  # missing rows are filled in up to 10 times the rows there are


@dataclasses.dataclass(frozen=True)
class Table:
  """One series.

  Attributes:
    name: of the file, without its ending.
    values: float64 [T, C], NaN where not known.
    channels: [C] names.
    times: datetime64 or float64 [T], or None where there is no time column.
    row: [rows of the file] where each of them lies in `values`.
    labels: bool [T], True where anomalous, or None.
    train: how many of the T rows, the first, are normal; None if not said.
    notes: what was found and done, a sentence each.
  """

  name: str
  values: np.ndarray
  channels: tuple[str, ...]
  times: np.ndarray | None = None
  row: np.ndarray | None = None
  labels: np.ndarray | None = None
  train: int | None = None
  notes: tuple[str, ...] = ()

  @property
  def per_week(self) -> float | None:
    """Rows in a week; None without a time column of dates."""
    if (
      self.times is None or self.times.dtype.kind != 'M' or len(self.times) < 2
    ):
      return None
    step = np.median(
      np.diff(self.times).astype('timedelta64[ns]').astype(float)
    )
    return 7 * 86400e9 / step


def files(name: str) -> list[paths.Path]:
  """The files that data.dir means: a file, a folder, or FOLDER/*.npz.

  Raises:
    DataError: there are none, or a folder mixes kinds of files.
  """
  if not name:
    raise DataError(
      "data.dir='' names no series: set it to a .csv, .parquet or .npz file, "
      'or to a folder of them'
    )
  found = paths.path(name)
  if '*' in found.name:
    some = sorted(found.parent.glob(found.name))
  elif found.is_dir():
    some = [
      paths.path(path) for path, is_file in paths.entries(found) if is_file
    ]
    some = [path for path in some if path.suffix.lower() in ENDINGS]
    kinds = sorted({path.suffix.lower() for path in some})
    if len(kinds) > 1:
      raise DataError(
        f'{name} has files of several kinds ({", ".join(kinds)}): name one '
        f'kind, as in {name}/*{kinds[0]}'
      )
  else:
    some = [found] if found.is_file() else []
  if not some:
    raise DataError(
      f'{name}: there is no such file, or no {", ".join(ENDINGS)} in it'
    )
  return some


def read(path: str | os.PathLike, columns: Sequence[str] = ()) -> Table:
  """Reads one file; see the top of this file.

  Args:
    path: a .csv with a header, a .parquet, or an .npz of `values` [T, C] and
      perhaps `labels` [T], `train` and `timestamps` [T].
    columns: names of the channels; all columns of numbers where empty.

  Raises:
    DataError: names the row (as the file counts them: the header is row 1)
      and the column that can't be used, and why.
  """
  path = paths.path(path)
  if not path.is_file():
    raise DataError(f'{path}: there is no such file')
  ending = path.suffix.lower()
  if ending not in ENDINGS:
    raise DataError(f'{path} must be one of {", ".join(ENDINGS)}')
  found = (
    _npz(path, columns) if ending == '.npz' else _frame(path, ending, columns)
  )
  if len(found.values) < 2 or not found.values.shape[1]:
    raise DataError(
      f'{path}: {len(found.values)} rows of {found.values.shape[1]} channels: '
      'a series has two rows or more, and a column of numbers'
    )
  return _spaced(found)


def from_array(values: ArrayLike) -> Table:
  """The Table of an array or DataFrame [T, C] or [T]."""
  names = getattr(values, 'columns', ())
  if isinstance(values, np.ma.MaskedArray):  # what is masked is not known
    values = values.astype(np.float64).filled(np.nan)
  values = np.asarray(values, np.float64)
  values = values[:, None] if values.ndim == 1 else values
  names = tuple(map(str, names)) or tuple(map(str, range(values.shape[1])))
  return Table('series', values, names, row=np.arange(len(values)))


def _check_columns(path, names: list[str], columns: list[str]) -> None:
  """Raises DataError unless there are such columns, each once."""
  lacking = [name for name in columns if name not in names]
  if lacking:
    raise DataError(
      f"{path} has no column '{lacking[0]}': it has {', '.join(names)}"
    )
  for found in (names, columns):
    twice = [name for name in found if found.count(name) > 1]
    if twice:
      raise DataError(
        f"{path}: column '{twice[0]}' is there, or asked for, more than once"
      )


def _npz(path, columns: Sequence[str]) -> Table:
  """An .npz file."""
  data = _arrays(path)
  values, labels, times, train = map(
    data.get, ('values', 'labels', 'timestamps', 'train')
  )
  rows, channels = values.shape
  names = data.get('channels', np.arange(channels)).astype(str).tolist()
  infinite = np.argwhere(np.isinf(values))
  if len(infinite):
    row, column = infinite[0]
    raise _infinite(path, row + 1, names[column])
  if columns:
    _check_columns(path, names, list(columns))
    values = values[:, [names.index(name) for name in columns]]
    names = columns
  if train is not None and not 1 <= train <= rows:
    raise DataError(
      f'{path}: `train` is {train}, of {rows} rows: write how many of them, '
      'the first, are normal'
    )
  if times is not None:
    times = times.astype('M8[ns]' if times.dtype.kind == 'M' else np.float64)
    wrong = np.flatnonzero(~np.isfinite(times))
    if len(wrong):
      raise DataError(
        f'{path}, row {wrong[0] + 1}: `timestamps` is {times[wrong[0]]}: every '
        'row needs a time'
      )
    _check_ascending(times, lambda i: f'{path}, row {i + 1}, `timestamps`')
  return Table(
    path.stem,
    values,
    tuple(names),
    times,
    np.arange(rows),
    None if labels is None else labels > 0,
    None if train is None else int(train),
  )


def _arrays(path) -> dict[str, np.ndarray]:
  """The arrays of an .npz file, of the kinds and shapes that `read` takes.

  `values` comes as float64 [T, C].
  """
  try:
    data = paths.read_npz(path)
  except Exception as e:  # zipfile, numpy and the system each have their own
    raise DataError(f'{path} is no .npz file of plain arrays: {e}') from e
  values = data.get('values')
  if (
    values is None
    or values.ndim not in (1, 2)
    or values.dtype.kind not in 'fiu'
  ):
    raise DataError(
      f'{path} has {_shown("values", values)}: write numbers `values` [T, C]'
    )
  values = (values[:, None] if values.ndim == 1 else values).astype(np.float64)
  rows, channels = values.shape
  for name, kinds, shape in (
    ('labels', 'fiub', (rows,)),
    ('timestamps', 'fiuM', (rows,)),
    ('train', 'iu', ()),
    ('channels', 'U', (channels,)),
  ):
    x = data.get(name)
    if x is not None and (x.dtype.kind not in kinds or x.shape != shape):
      kind = ' or '.join(ARRAYS[k] for k in kinds if k in ARRAYS)
      raise DataError(
        f'{path} has {_shown(name, x)}: it must be {kind} of shape '
        f'{list(shape)}, as `values` has {rows} rows of {channels} channels'
      )
  return data | {'values': values}


# Kinds of arrays, by NumPy's letters.
ARRAYS = {'f': 'numbers', 'M': 'dates', 'i': 'whole numbers', 'U': 'texts'}


def _shown(name: str, x: np.ndarray | None) -> str:
  return f'no `{name}`' if x is None else f'`{name}` {x.dtype} {list(x.shape)}'


def _infinite(path, row: int, column: str) -> DataError:
  return DataError(
    f"{path}, row {row}, column '{column}': infinite; leave the cell empty"
  )


def _check_ascending(times: np.ndarray, where) -> None:
  """Raises DataError, which begins with where(i), unless times ascend."""
  back = np.flatnonzero(times[1:] <= times[:-1])
  if len(back):
    i = back[0] + 1
    raise DataError(
      f'{where(i)}: {times[i]} does not come after {times[i - 1]}, the row '
      'before; sort the rows, and leave each time once'
    )


def _frame(path, ending: str, columns: Sequence[str]) -> Table:
  """A CSV or Parquet file."""
  try:
    import pandas as pd
  except ImportError as e:
    raise DataError(f'{path} needs pandas: {EXTRA}') from e
  try:
    with paths.local(path) as copy:
      if ending == '.csv':
        frame = _csv(pd, copy)
      else:
        frame = pd.read_parquet(copy).reset_index(drop=True)
        frame.index += 2  # as if there were a line of names
  except ImportError as e:
    raise DataError(f'{path} needs pyarrow: {EXTRA}') from e
  except Exception as e:  # pandas and what it reads with have many
    text = ' '.join(str(e).split())
    raise DataError(
      f'{path} cannot be read as {ending[1:]}: {text}{HOW.get(ending, "")}'
    ) from e
  frame.columns = [str(name).strip() for name in frame.columns]
  if len(frame.columns) == 1 and (
    other := re.search('[;\t|]', frame.columns[0])
  ):
    raise DataError(
      f'{path}: the header has {other[0]!r} between its names: write commas, '
      'and points in numbers'
    )
  _check_columns(path, frame.columns.tolist(), list(columns))
  time = next((c for c in frame if TIMES.fullmatch(c)), None)
  if time is None and _dates(pd, frame.iloc[:, 0]) is not None:
    time = frame.columns[0]
  label = next((c for c in frame if LABELS.fullmatch(c)), None)
  # A column without a name is the index that pandas writes.
  names = list(columns) or [c for c in frame if c and c not in (time, label)]
  values = [_numbers(pd, path, frame[name]) for name in names]
  labels = None
  if label is not None:
    labels = np.nan_to_num(_numbers(pd, path, frame[label], NO_LABEL)) > 0
  times = None if time is None else _times(pd, path, frame[time])
  return Table(
    path.stem,
    np.stack(values, 1) if values else np.zeros((len(frame), 0)),
    tuple(names),
    times,
    np.arange(len(frame)),
    labels,
    notes=(UNNAMED,) if '' in set(frame) - {time, *names} else (),
  )


def _csv(pd, file):
  """A CSV file as texts; what pandas would guess is an error, or as it is."""
  how = dict(dtype=str, skipinitialspace=True, header=None)
  frame = pd.read_csv(file, **how)
  if frame.shape[1] == 1:  # an empty line is an empty cell
    frame = pd.read_csv(file, skip_blank_lines=False, **how)
  # With header=None a row that is too long is an error, and not an index, and
  # names are not changed where two are the same.
  names = pd.read_csv(file, nrows=1, keep_default_na=False, **how)
  frame.columns = names.iloc[0]  # one may be called NA
  frame.index += 1
  with open(file, 'rb') as lines:  # empty ones count, but are no rows
    rows = [i for i, line in enumerate(lines, 1) if line.strip()]
  if len(rows) == len(frame):  # no cell takes several lines
    frame.index = rows
  return frame[1:].replace(TRUTHS)  # as Parquet's


def _numbers(pd, path, column, remedy: str = NO_NUMBER) -> np.ndarray:
  """A column as float64; NaN where it is empty."""
  try:
    found = pd.to_numeric(column, errors='coerce').astype(float)
  except (TypeError, ValueError) as e:  # lists, records, dates
    raise DataError(
      f"{path}, column '{column.name}' holds {column.dtype}, and no numbers: "
      'leave it out with --columns'
    ) from e
  wrong = np.flatnonzero(found.isna() & column.notna())
  if len(wrong):
    cell = str(column.iloc[wrong[0]])
    raise DataError(
      f"{path}, row {column.index[wrong[0]]}, column '{column.name}': {cell!r} "
      f'is no number; {remedy}'
    )
  infinite = np.flatnonzero(np.isinf(found))
  if len(infinite):
    raise _infinite(path, column.index[infinite[0]], column.name)
  return found.to_numpy(np.float64)


def _dates(pd, column):
  """A column of texts as dates; None if its first are numbers or no dates."""
  if column.dtype.kind == 'M':
    return pd.to_datetime(column, utc=True)
  first = column.dropna().head(5)
  if not len(first) or pd.to_numeric(first, errors='coerce').notna().any():
    return None
  # pandas takes 'may', 'now' and '1,5' for dates, too.
  if not first.astype(str).str.contains(DATE).all():
    return None
  if _parsed(pd, first).isna().any():
    return None
  return _parsed(pd, column)


def _parsed(pd, column, dayfirst: bool = False):
  """A column of texts as dates; NaT where they are none."""
  how = dict(errors='coerce', utc=True, format='mixed', dayfirst=dayfirst)
  return pd.to_datetime(column, **how)


def _times(pd, path, column) -> np.ndarray:
  """A time column, ascending; DataError names the row that is not."""
  dates = _dates(pd, column)
  if dates is not None and SLASHED.match(str(column.iloc[0])):
    dates = _which_first(pd, path, column, dates)
  found = pd.to_numeric(column, errors='coerce') if dates is None else dates
  wrong = np.flatnonzero(found.isna() | found.isin([np.inf, -np.inf]))
  if len(wrong):
    raise DataError(
      f"{path}, row {column.index[wrong[0]]}, column '{column.name}': "
      f'{column.iloc[wrong[0]]!r} is no time; every row needs one'
    )
  if dates is None:
    found = found.to_numpy(np.float64)
  else:
    try:
      found = found.dt.tz_localize(None).dt.as_unit('ns').to_numpy()
    except pd.errors.OutOfBoundsDatetime as e:
      raise DataError(
        f"{path}, column '{column.name}': {e}: dates must lie in 1678 to 2261"
      ) from e
  _check_ascending(
    found, lambda i: f"{path}, row {column.index[i]}, column '{column.name}'"
  )
  return found


def _which_first(pd, path, column, dates):
  """Dates such as 02/01/2024, which begin with a month or with a day.

  They are read as what ascends; DataError where both do.
  """
  other = _parsed(pd, column, dayfirst=True)
  ascend = lambda x: x.notna().all() and x.is_monotonic_increasing
  if not ascend(other) or other.equals(dates):
    return dates
  if ascend(dates):
    raise DataError(
      f"{path}, column '{column.name}': {column.iloc[0]!r} may begin with the "
      'month or with the day, and times ascend either way: write dates as '
      '2024-01-31'
    )
  return other


def _spaced(found: Table) -> Table:
  """A table with rows of NaN where its times say that rows are missing."""
  if found.times is None or len(found.values) < 3:
    return found
  with np.errstate(over='ignore', invalid='ignore'):  # times of any size
    steps = np.diff(found.times).astype(np.float64)
    step = np.median(steps)
    counts = np.round(steps / step)
  if (
    not np.isfinite(counts).all()
    or (np.abs(steps / step - counts) > 0.1).mean() > 0.05
  ):
    note = 'the time between rows varies: rows are taken as evenly spaced'
    return dataclasses.replace(found, notes=(*found.notes, note))
  counts = np.maximum(counts, 1).astype(np.int64)
  row = np.concatenate([[0], np.cumsum(counts)])
  missing = row[-1] + 1 - len(row)
  if not missing:
    return found
  gaps = int((counts > 1).sum())
  longest = int(counts.max()) - 1
  note = (
    f'{missing} rows are missing in {gaps} gap(s), the longest of {longest}'
  )
  if row[-1] >= FILLED * len(row):
    note += ': too many to fill in, so rows are taken as evenly spaced'
    return dataclasses.replace(found, notes=(*found.notes, note))
  note += ': taken as not known'
  values = np.full((row[-1] + 1, found.values.shape[1]), np.nan)
  values[row] = found.values
  labels = found.labels
  if labels is not None:
    labels = np.zeros(len(values), bool)
    labels[row] = found.labels
  times = found.times[0] + (np.arange(len(values)) * step).astype(
    'timedelta64[ns]' if found.times.dtype.kind == 'M' else np.float64
  )
  times[row] = found.times
  train = None if found.train is None else int(row[found.train - 1]) + 1
  return dataclasses.replace(
    found,
    values=values,
    times=times,
    row=row,
    labels=labels,
    train=train,
    notes=(*found.notes, note),
  )
