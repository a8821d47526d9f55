"""Metrics over sampling settings, as a table and as curves."""

import csv
import io

from fractal_jax import paths

SETTINGS = ('guidance', 'temperature')
CURVES = {
  'fid': 'FID',
  'inception_score': 'Inception Score',
  'precision': 'precision',
  'recall': 'recall',
  'class_recall': 'recall within classes',
  'intra_class_diversity': 'intra-class diversity',
}


def row(found: dict) -> dict:
  """A row of what `results.measure` found."""
  out = {name: float(found['settings'][name]) for name in SETTINGS}
  return out | {'num': found['num']} | {name: found[name] for name in CURVES}


def line(row: dict) -> str:
  """A row as a line of text; - is what is not known."""
  shown = lambda x: '-' if x is None else f'{x:.6g}'
  return '  '.join(f'{k} {shown(v)}' for k, v in row.items())


def write_csv(rows: list[dict], path: str) -> None:
  """Writes rows of `row`; what is not known is empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  with paths.whole(path) as file:
    file.write(text.getvalue().encode())


def plot(rows: list[dict], path: str) -> None:
  """Curves over guidance, one per temperature; over temperature if that varies.

  Args:
    rows: of `row`.
    path: where to write; its ending says in what format.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  over, lines = SETTINGS
  if len({r[over] for r in rows}) == 1:
    over, lines = lines, over
  curves = [k for k in CURVES if any(r[k] is not None for r in rows)]
  columns = min(3, len(curves))
  depth = -(-len(curves) // columns)
  figure, axes = plt.subplots(
    depth, columns, figsize=(4 * columns, 3 * depth), squeeze=False
  )
  for name, axis in zip(curves, axes.flat):
    for value in sorted({r[lines] for r in rows}):
      some = sorted(
        (r for r in rows if r[lines] == value), key=lambda r: r[over]
      )
      axis.plot(
        [r[over] for r in some],
        [float('nan') if r[name] is None else r[name] for r in some],
        'o-',
        label=f'{lines} {value:g}',
      )
    axis.set_title(CURVES[name])
    axis.set_xlabel(over)
    axis.grid(alpha=0.3)
  for axis in axes.flat[len(curves) :]:
    axis.axis('off')
  axes[0, 0].legend()
  figure.suptitle(f'{rows[0]["num"]} images per setting')
  figure.tight_layout()
  with paths.whole(path) as file:
    figure.savefig(file.name, dpi=120)
  plt.close(figure)
