"""`anomaly`: from a table of sensors to alarms and a report.

fractal-jax anomaly --data=line.csv --train=5000 --out=line
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from fractal_jax import checks, cpu, paths
from fractal_jax.commands import common

if TYPE_CHECKING:
  from fractal_jax.series.detector import FractalDetector
  from fractal_jax.series.scores import PointScores
  from fractal_jax.series.table import Table

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  series_flags()
  flags.DEFINE_string('out', 'anomaly', 'A folder for scores.csv, report.html.')
  common.number_flag('smooth', 200, 'Rows that scores are averaged over.')
  flags.DEFINE_enum(
    'score',
    'z2',
    ['z2', 'bits', 'excess', 'tail'],
    'Squared standardised residuals, bits, bits less those expected, or tail '
    'probabilities.',
  )
  flags.DEFINE_bool(
    'causal', False, 'Scores look at earlier rows alone, as in a stream.'
  )
  common.number_flag(
    'false_alarms',
    0.01,
    'The share of normal rows, of those held out, that may be above the '
    'threshold.',
    checks.SHARE,
  )
  common.number_flag(
    'threshold',
    None,
    'Rows with a larger score are alarms; chosen if unset.',
    checks.Number(),
  )


def series_flags() -> None:
  """The data, and the model: fitted here, or of a run."""
  from fractal_jax.models.kinds import KINDS

  flags.DEFINE_string('data', None, 'A .csv with a header, .parquet or .npz.')
  flags.mark_flag_as_required('data')
  flags.DEFINE_list(
    'columns', [], 'The channels; all columns of numbers if unset.'
  )
  common.number_flag(
    'train',
    None,
    'Number of rows, the first, that are normal, and fitted to. If unset, what '
    'the file says, or all rows.',
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'A run on series, in place of one that is fitted to the data.',
  )
  flags.DEFINE_string(
    'label', None, 'Which class of --workdir the data is, if it has several.'
  )
  common.number_flag(
    'window',
    64,
    'Rows that the model sees at a time, a multiple of 8.',
    checks.integer(least=16),
  )
  flags.DEFINE_enum(
    'kind',
    'ar',
    sorted(KINDS),
    'Of the levels: mar sees both sides of a gap.',
  )
  flags.DEFINE_enum(
    'range',
    'uniform',
    ['uniform', 'scaled'],
    'What the bins cover: the range of normal rows and half of it at either '
    'end, or 10 mean deviations around the median, for data with spikes.',
  )
  common.number_flag(
    'steps', None, 'Of training; by the size of the data if unset.'
  )
  common.number_flag(
    'seed', 0, 'The same seed gives the same results.', checks.SEED
  )


def check_flags(*files: str) -> None:
  """Refuses what --out can't take, and flags that don't go together.

  Args:
    *files: that will be written to the folder --out.
  """
  for name in files:
    common.check_output(paths.path(FLAGS.out) / name, '--out')
  if not FLAGS.workdir:
    paths.check_folder(str(paths.path(FLAGS.out) / 'run'), '--out')
    if FLAGS.label is not None:
      raise common.UsageError('--label is of a class of --workdir: give both')
    return
  for name in ('window', 'kind', 'range', 'steps'):
    if FLAGS[name].present:
      raise common.UsageError(
        f'--{name} is for fitting a model: leave it out with --workdir'
      )


def the_table() -> 'tuple[Table, int]':
  """--data, and how many of its rows, the first, are normal."""
  from fractal_jax.series import table

  one = table.read(FLAGS.data, [c.strip() for c in FLAGS.columns])
  for note in one.notes:
    common.say(f'{one.name}: {note}')
  if not FLAGS.train:
    return one, one.train or len(one.values)
  if FLAGS.train > len(one.row):
    raise common.UsageError(
      f'--train={FLAGS.train}: {FLAGS.data} has {len(one.row)} rows'
    )
  return one, int(one.row[FLAGS.train - 1]) + 1  # with those filled in between


def the_detector(
  one: 'Table', train: int, **parameters: Any
) -> 'FractalDetector':
  """The detector of --workdir, or one fitted to the first `train` rows.

  `parameters` are the FractalDetector's.
  """
  from fractal_jax.series import runs
  from fractal_jax.series.detector import FractalDetector
  from fractal_jax.training import restore

  cpu.use_cores(32)
  if FLAGS.workdir:
    given = {k: v for k, v in parameters.items() if FLAGS[k].present}
    found = runs.load(common.workdir(), FLAGS.label, **given)
    names = found.quantiser_.channels
    if names != one.channels and sorted(names) == sorted(one.channels):
      raise common.UsageError(
        f'--data={FLAGS.data} has the columns {", ".join(one.channels)} in '
        f'another order than {FLAGS.workdir}: --columns={",".join(names)}'
      )
    return found
  workdir = str(paths.path(FLAGS.out) / 'run')
  if restore.steps(workdir):
    raise common.UsageError(
      f'{workdir} holds a model already: use it by --workdir={workdir}, or '
      'choose another --out'
    )
  own = common.arguments('window', 'kind', 'range', 'steps', 'seed')
  detector = FractalDetector(**own, **parameters)
  common.follow(detector.fitting(one.values[:train]))
  detector.quantiser_ = dataclasses.replace(
    detector.quantiser_, channels=one.channels
  )
  runs.save(workdir, detector, one.name)
  common.say(f'model: {paths.absolute(workdir)}')
  return detector


def run() -> None:
  """Fits, scores and reports."""
  from fractal_jax.series import analysis, report

  check_flags('scores.csv', 'report.html')
  one, train = the_table()
  parameters = common.arguments('smooth', 'score', 'causal', 'false_alarms')
  detector = the_detector(one, train, **parameters)
  points = common.follow(detector.scoring(one.values))
  threshold = FLAGS.threshold
  if threshold is None and not hasattr(detector, 'threshold_'):
    threshold = from_normal(detector, points, train)
  found = analysis.analyse(
    one, detector, points, 0 if FLAGS.workdir else train, threshold
  )
  path = report.write(found, FLAGS.out)
  common.say(report.summary(found))
  common.say(f'report: {paths.absolute(path)}')


def from_normal(
  detector: 'FractalDetector', points: 'PointScores', train: int
) -> float:
  """A threshold for a run that keeps none: from the rows said to be normal."""
  import numpy as np

  if not FLAGS.train:
    raise common.UsageError(
      f'{FLAGS.workdir} has no threshold for such scores: give --threshold, or '
      '--train: how many rows of the data, the first, are normal'
    )
  rows = points.of_rows(detector.score, detector.smooth, detector.causal)
  return float(np.nanquantile(rows[:train], 1 - detector.false_alarms))
