"""`impute`: what may stand in the empty cells of a table.

fractal-jax impute --data=line.csv --workdir=line/run
"""

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import anomaly, common, forecast

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  anomaly.series_flags()
  forecast.drawing_flags(20)
  flags.DEFINE_string(
    'out', 'impute', 'A folder for imputed.csv and imputed.png.'
  )


def run() -> None:
  """Fits where it must, draws, and writes."""
  import numpy as np

  from fractal_jax.series import forecast as lib
  from fractal_jax.series import plots

  anomaly.check_flags('imputed.csv', 'imputed.png')
  levels = forecast.quantiles()
  one, train = anomaly.the_table()
  gaps = np.isnan(one.values)
  if not gaps.any():
    raise common.UsageError(f'--data={FLAGS.data}: every value is known')
  detector = anomaly.the_detector(one, train)
  how = common.arguments('num', 'seed', 'batch')
  how |= dict(quantiles=levels, label=detector.label_)
  found = common.follow(lib.impute(detector.model_, one.values, **how))
  forecast.write(found, one.channels, one.times, 0, 'imputed.csv')
  first = max(int(gaps.any(1).argmax()) - 128, 0)  # around the first gap
  part = slice(first, first + 512)
  shown = lib.Drawn(found.samples[:, part], found.quantiles[:, part], levels)
  shot = plots.drawn(one.values[part], 0, shown, one.channels, first)
  paths.write_bytes(paths.path(FLAGS.out) / 'imputed.png', shot)
  common.say(f'{gaps.sum()} values: {paths.absolute(FLAGS.out)}/imputed.csv')
