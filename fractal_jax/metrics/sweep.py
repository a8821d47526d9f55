"""Metrics over settings of sampling: a table, and the trade that they draw."""

from collections.abc import Sequence
import itertools
import statistics

from ml_collections import ConfigDict
import numpy as np

from fractal_jax import paths

SETTINGS = (
  'guidance', 'temperature', 'interval', 'resample', 'guide', 'schedule',
  'filter_threshold', 'iterations', 'order', 'step_sizes', 'candidates', 'keep',
  'keep_by',
)  # fmt: skip
CURVES = {
  'fid': 'FID',
  'inception_score': 'Inception Score',
  'precision': 'precision',
  'recall': 'recall',
  'class_recall': 'recall within classes',
  'intra_class_diversity': 'intra-class diversity',
}
# Of reject.Report, for the table alone.
REJECTION = ('acceptance', 'kept_score', 'score')
# What is drawn against what: fidelity, variety.
TRADES = (('fid', 'class_recall'), ('precision', 'recall'))


def row(
  section: ConfigDict, seed: int, found: dict, guide: str = 'none'
) -> dict:
  """A row of what was found with one setting and seed.

  Args:
    section: config.sample, as the images were drawn.
    seed: of the images.
    found: by `results.measure`, or at least `num` and some of CURVES.
    guide: the name of the model that guides.
  """
  settings = {**section, 'guide': guide}
  out = {name: shown(settings[name]) for name in SETTINGS}
  out |= {'seed': seed, 'num': found['num']}
  out |= {name: found.get(name) for name in CURVES}
  rejection = found.get('rejection') or {}
  return out | {name: rejection.get(name) for name in REJECTION}


def shown(value: float | str | Sequence) -> float | str:
  """A setting as it stands in a table: a number, or a text."""
  if isinstance(value, (tuple, list)):
    return ','.join(f'{x:g}' if isinstance(x, float) else str(x) for x in value)
  return value


def varied(rows: list[dict]) -> list[str]:
  """The settings that the rows differ in, those first that are numbers."""
  found = [k for k in SETTINGS if len({r[k] for r in rows}) > 1]
  return sorted(found, key=lambda k: not numeric(rows, k))


def numeric(rows: list[dict], name: str) -> bool:
  """Whether a setting is a number in all rows: else each value is a name."""
  return all(isinstance(r[name], (int, float)) for r in rows)


def line(row: dict) -> str:
  """A row as a line of text; - is what is not known, or not set."""

  def text(x):
    if x in (None, ''):
      return '-'
    return x if isinstance(x, str) else f'{x:.6g}'

  return '  '.join(f'{k} {text(v)}' for k, v in row.items())


def write_csv(rows: list[dict], path: str) -> None:
  """Writes rows of `row`; what is not known is empty."""
  # Rows of an older table may lack settings that there are today.
  names = list(dict.fromkeys(name for row in rows for name in row))
  lines = [names, *([row.get(name) for name in names] for row in rows)]
  paths.write_text(path, paths.csv_text(lines))


def over_seeds(rows: list[dict]) -> list[dict]:
  """A row for each setting: of each metric (mean, standard error).

  The standard error is nan of one seed; a metric that is not known is None.
  """
  key = lambda r: tuple(str(r[k]) for k in SETTINGS)
  out = []
  for _, some in itertools.groupby(sorted(rows, key=key), key):
    some = list(some)
    mean = {k: some[0][k] for k in SETTINGS}
    for name in CURVES:
      found = [r[name] for r in some]
      mean[name] = None
      if None not in found:
        error = float('nan')
        if len(found) > 1:
          error = statistics.stdev(found) / len(found) ** 0.5
        mean[name] = statistics.mean(found), error
    out.append(mean)
  return out


def plot(rows: list[dict], path: str) -> None:
  """Fidelity against variety, and each metric over the setting that varies.

  The first setting that varies runs along each curve, and the others make
  curves; bars are standard errors over seeds.

  Args:
    rows: of `row`.
    path: where to write; its ending says in what format.
  """
  from matplotlib import figure as figures

  over, *lines = varied(rows) or ['guidance']
  means, numbers = over_seeds(rows), numeric(rows, over)
  known = [k for k in CURVES if any(m[k] is not None for m in means)]
  panels = [t for t in TRADES if set(t) <= set(known)] + [(k,) for k in known]
  columns = min(3, len(panels))
  depth = -(-len(panels) // columns)
  figure = figures.Figure(figsize=(4.4 * columns, 3.4 * depth))
  axes = figure.subplots(depth, columns, squeeze=False)
  for panel, axis in zip(panels, axes.flat):
    for curve in dict.fromkeys(tuple(m[k] for k in lines) for m in means):
      some = [m for m in means if tuple(m[k] for k in lines) == curve]
      label = ', '.join(f'{k} {v}' for k, v in zip(lines, curve))
      _draw(axis, panel, over, some, label, float if numbers else str)
    axis.grid(alpha=0.3)
  for axis in axes.flat[len(panels) :]:
    axis.axis('off')
  if lines:
    axes[0, 0].legend(fontsize=7)
  seeds = len({r['seed'] for r in rows})
  figure.suptitle(
    f'{rows[0]["num"]} images per setting, {seeds} seed(s): bars are standard '
    'errors'
  )
  figure.tight_layout()
  with paths.atomic_write(path) as file:
    figure.savefig(file.name, dpi=120)


def _draw(
  axis, panel: tuple, over: str, means: list[dict], label: str, kind: type
) -> None:
  """One curve of a panel: a metric over a setting, or one over another.

  The setting runs as a number, or as a name: `kind` is float or str.
  """
  some = [m for m in means if all(m[k] is not None for k in panel)]
  some.sort(key=lambda m: kind(m[over]))
  along = [kind(m[over]) for m in some]
  y, y_error = np.array([m[panel[-1]] for m in some]).reshape(-1, 2).T
  if len(panel) == 1:
    axis.errorbar(along, y, y_error, fmt='o-', label=label)
    axis.set_title(CURVES[panel[0]])
    axis.set_xlabel(over)
    return
  x, x_error = np.array([m[panel[0]] for m in some]).reshape(-1, 2).T
  axis.errorbar(x, y, y_error, x_error, fmt='o-', label=label)
  for m, *at in zip(some, x, y):
    axis.annotate(str(m[over]), at, fontsize=7)
  axis.set_title(f'fidelity and variety, by {over}', fontsize=10)
  axis.set_xlabel(CURVES[panel[0]])
  axis.set_ylabel(CURVES[panel[1]])
