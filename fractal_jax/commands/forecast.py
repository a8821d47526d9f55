"""`forecast`: what comes after the last row of a table.

fractal-jax forecast --data=line.csv --workdir=line/run --horizon=48
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import anomaly, common

if TYPE_CHECKING:
  import numpy as np

  from fractal_jax.series.forecast import Drawn
  from fractal_jax.series.table import Table

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  anomaly.series_flags()
  common.number_flag('horizon', 32, 'Rows to forecast.')
  drawing_flags(100)
  flags.DEFINE_string(
    'out', 'forecast', 'A folder for forecast.csv and forecast.png.'
  )


def drawing_flags(num: int) -> None:
  """How many draws, and what is said of them."""
  flags.DEFINE_list(
    'quantiles', ['0.1', '0.5', '0.9'], 'Which quantiles of the draws to write.'
  )
  common.number_flag('num', num, 'How many draws.')
  common.batch_flag()


def quantiles() -> tuple[float, ...]:
  """--quantiles, ascending, each once."""
  found = tuple(sorted(set(common.numbers('quantiles', FLAGS.quantiles))))
  if not found or not all(0 < x < 1 for x in found):
    raise common.UsageError(
      f'--quantiles={",".join(FLAGS.quantiles)} must be numbers above 0 and '
      'below 1 with commas between'
    )
  return found


def run() -> None:
  """Fits where it must, draws, and writes."""
  from fractal_jax.series import forecast, plots

  anomaly.check_flags('forecast.csv', 'forecast.png')
  levels = quantiles()
  one, train = anomaly.the_table()
  detector = anomaly.the_detector(one, train)
  how = common.arguments('horizon', 'num', 'seed', 'batch')
  how |= dict(quantiles=levels, label=detector.label_)
  job = forecast.forecast(detector.model_, one.values, **how)
  found = common.follow(job)
  times = following(one, FLAGS.horizon)
  write(found, one.channels, times, len(one.values), 'forecast.csv')
  shown = one.values[-4 * detector.config_.model.sizes[0] :]
  shot = plots.drawn(
    shown, len(shown), found, one.channels, len(one.values) - len(shown)
  )
  paths.write_bytes(paths.path(FLAGS.out) / 'forecast.png', shot)
  common.say(f'{FLAGS.horizon} rows: {paths.absolute(FLAGS.out)}/forecast.csv')


def following(one: 'Table', rows: int) -> 'np.ndarray | None':
  """The times of the rows after a table's; None where it has none."""
  import numpy as np

  if one.times is None:
    return None
  step = np.median(np.diff(one.times).astype(np.float64))
  kind = 'timedelta64[ns]' if one.times.dtype.kind == 'M' else np.float64
  return one.times[-1] + (np.arange(1, rows + 1) * step).astype(kind)


def write(
  found: 'Drawn',
  channels: Sequence[str],
  times: 'np.ndarray | None',
  first: int,
  name: str,
) -> None:
  """Writes a line per row, its quantiles in columns CHANNEL_q0.1 and so on.

  Args:
    times: of the rows of `found`, or None.
    first: the number of its first row in the table, from 0.
    name: of the file in --out.
  """
  head = ['row'] if times is None else ['row', 'time']
  columns = [f'{c}_q{q:g}' for c in channels for q in found.levels]
  rows = [[*head, *columns]]
  for t in range(found.quantiles.shape[1]):
    line = [first + t + 2] + ([] if times is None else [str(times[t])])
    rows.append(line + [f'{x:.8g}' for x in found.quantiles[:, t].T.ravel()])
  paths.write_text(paths.path(FLAGS.out) / name, paths.csv_text(rows))
