"""What each way of sampling does to fidelity and to variety.

  python benchmarks/diversity.py --workdir=runs/digits --guide=runs/digits@250

Draws images from a run with every setting of METHODS and every seed, and
compares them with what the run was trained on, the training split as it is
moved and mirrored: the Frechet distance and precision (fidelity), recall and
recall within classes (variety; metrics/neighbours.py). No Inception weights are
needed: the features are the hidden layer of a small multilayer perceptron that
has learned to tell the classes of these images apart, and its distances are not
FIDs.

Writes OUT.csv, a row for each setting and seed; OUT.md, a table of the best
setting of each method beside plain classifier-free guidance of equal fidelity;
and OUT.png, the trade. Rows that OUT.csv has are not drawn again, so that the
same command goes on where it was stopped.
"""

import csv
import itertools
import pathlib
import sys

from absl import app, flags
import numpy as np

import fractal_jax
from fractal_jax.data import pipeline
from fractal_jax.inference import sample
from fractal_jax.metrics import neighbours, scores, sweep

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', None, 'A run.')
flags.DEFINE_string('guide', None, 'DIR or DIR@STEP of a weaker one.')
flags.DEFINE_integer('num', 1000, 'Images a setting and seed.')
flags.DEFINE_integer('seeds', 3, 'Seeds a setting.')
flags.DEFINE_integer('batch', 250, 'Images at a time.')
flags.DEFINE_list('methods', None, 'Some of METHODS; all that fit if unset.')
flags.DEFINE_string('out', 'diversity', 'Where to write, without an ending.')
flags.mark_flag_as_required('workdir')

PLAIN = 'class guidance'
SEEN, REFERENCE = 6000, 1500  # images that teach, and that are compared with
EQUAL = 1.05  # Frechet distances up to so many times as large count as equal


def each(name, values, **others):
  return [{name: value, **others} for value in values]


# By name: the settings of a method that are tried.
METHODS = {
  PLAIN: each('guidance', (1.0, 1.5, 2.0, 3.0, 4.0)),
  'early interval': each('guidance', (2.0, 4.0), interval=(0.0, 0.6)),
  'late interval': each('guidance', (2.0, 4.0), interval=(0.3, 1.0)),
  'autoguidance': each('guidance', (1.5, 2.0)),
  'resampling of 4': each('guidance', (2.0, 4.0), resample=4),
  'temperature 1.1': each('guidance', (2.0, 3.0), temperature=1.1),
  'best of 2 by class': each('guidance', (1.0,), candidates=2),
  '3 of 4 by class': each('guidance', (1.0,), candidates=4, keep=3),
  'best of 2 by dimension': each(
    'guidance', (1.0,), candidates=2, keep_by='dimension'
  ),
  'Halton order': each('guidance', (1.0, 2.0, 3.0), order='halton'),
  'raster order': each('guidance', (1.0, 2.0), order='raster'),
  'spiral order': each('guidance', (1.0, 2.0), order='spiral'),
  'order by confidence': each(
    'guidance', (1.0, 2.0), order=('confidence', 'random')
  ),
  'fewer steps': each('guidance', (1.0,), iterations=(5, 2)),
  'fewer steps in Halton order': each(
    'guidance', (1.0,), iterations=(5, 2), order='halton'
  ),
  'fewer steps in two stages': each(
    'guidance', (1.0,), iterations=(5, 2), step_sizes='two-stage'
  ),
}
MASKED = ('order', 'iterations', 'step_sizes')  # for masked levels alone


class Features:
  """A perceptron's hidden layer, and the training split seen by it."""

  def __init__(self, config):
    """Trains it, and prints what it gets right of the validation split."""
    from sklearn.neural_network import MLPClassifier

    self.values = config.model.num_values
    train, labels = seen(config, config.data.train_split, SEEN)
    val, val_labels = seen(config, config.data.val_split, FLAGS.num)
    self.net = MLPClassifier((64,), random_state=0, early_stopping=True)
    self.net.fit(self.flat(train), labels)
    right = self.net.score(self.flat(val), val_labels)
    print(f'features: a perceptron, right on {right:.1%} of held-out images')
    self.real, self.labels = self(train[:REFERENCE]), labels[:REFERENCE]
    self.held_out = val, val_labels

  def flat(self, images):
    return images.reshape(len(images), -1) / (self.values - 1)

  def __call__(self, images):
    """Images [n, S, S, C] to features [n, 64]."""
    hidden = self.flat(images) @ self.net.coefs_[0] + self.net.intercepts_[0]
    return np.maximum(hidden, 0)

  def measure(self, images, labels) -> dict:
    """What `metrics.sweep.row` takes."""
    mine, real = self(images), self.real
    moments = []
    for x in (mine, real):
      total = scores.Statistics()
      total.add(x)
      moments += total.result()
    within, reference = scores.ClassVariance(), scores.ClassVariance()
    within.add(mine, labels)
    reference.add(real, self.labels)
    diverse = scores.diversity(within.result(), reference.result())
    precision, recall = neighbours.precision_recall(mine, real)
    by_class = neighbours.class_recall(mine, labels, real, self.labels)
    by_class = by_class[np.isfinite(by_class)]  # of classes of enough images
    return dict(
      num=len(images),
      fid=scores.frechet_distance(*moments),
      precision=precision,
      recall=recall,
      class_recall=float(by_class.mean()) if by_class.size else np.nan,
      intra_class_diversity=float(diverse[-1]),
    )


def seen(config, split: str, n: int):
  """Images [n, S, S, C] and labels [n] of a split, as training sees them."""
  c = config.copy_and_resolve_references()
  c.data.train_split, c.optim.batch = split, 100
  batches = itertools.islice(pipeline.train_batches(c), -(-n // 100))
  found = [(b['image'], b['label']) for b in batches]
  return [np.concatenate(x)[:n] for x in zip(*found)]


def fits(method: str, settings: dict, model) -> bool:
  """Whether a run can be sampled like this."""
  if method == 'autoguidance' and not FLAGS.guide:
    return False
  return model.net.masks or not any(k in MASKED for k in settings)


def load_guide():
  if not FLAGS.guide:
    return None
  folder, at, step = FLAGS.guide.rpartition('@')
  return fractal_jax.load(folder or step, int(step) if at else None)


def draw_all(model, guide, features, path: pathlib.Path) -> list[dict]:
  """The rows of all methods; those that `path` has are not drawn again."""
  rows = []
  if path.exists():
    with open(path) as file:
      rows = [numbers(row) for row in csv.DictReader(file)]
  done = {(r['method'], r['setting'], r['seed']) for r in rows}
  labels = np.arange(FLAGS.num) % model.config.model.classes
  for method in FLAGS.methods or METHODS:
    for settings in METHODS[method]:
      for seed in range(FLAGS.seeds):
        name = ' '.join(f'{k}={sweep.shown(v)}' for k, v in settings.items())
        if (method, name, seed) in done or not fits(method, settings, model):
          continue
        auto = method == 'autoguidance'
        images = model.sample(
          labels,
          seed=seed,
          batch=FLAGS.batch,
          guide=guide if auto else None,
          **settings,
        )
        section = sample.section(model.config, settings)
        found = features.measure(images, labels)
        row = {'method': method, 'setting': name}
        by = FLAGS.guide if auto else 'none'
        rows.append(row | sweep.row(section, seed, found, by))
        sweep.write_csv(rows, str(path))
        print(method, name, seed, *(f'{k}={found[k]:.4g}' for k in found))
  return rows


def numbers(row: dict) -> dict:
  """A row of a CSV file, as it was written."""
  out = {}
  for key, text in row.items():
    try:
      out[key] = float(text) if '.' in text else int(text)
    except ValueError:
      out[key] = text or None
  return out


def settings_of(rows) -> list[dict]:
  """Means over seeds: of each metric (mean, standard error, values)."""
  out = []
  for key in dict.fromkeys((r['method'], r['setting']) for r in rows):
    some = [r for r in rows if (r['method'], r['setting']) == key]
    mean = dict(zip(('method', 'setting'), key))
    for name in sweep.CURVES:
      if some[0][name] is not None:
        values = [float(r[name]) for r in some]
        error = np.std(values, ddof=1) / len(values) ** 0.5
        mean[name] = np.mean(values), error
    out.append(mean)
  return out


def variety(means: list[dict]) -> str:
  """Recall within classes, or where classes have too few images, recall."""
  known = all(np.isfinite(m['class_recall'][0]) for m in means)
  return 'class_recall' if known else 'recall'


def plain_of_equal(found: dict, plain: list[dict]) -> dict | None:
  """The most varied plain setting whose distance is not much larger."""
  by = variety(plain)
  near = [p for p in plain if p['fid'][0] <= EQUAL * found['fid'][0]]
  return max(near, key=lambda p: p[by][0], default=None)


def table(means: list[dict], held_out: dict) -> str:
  """Each setting, and what it gains beside a plain one of equal fidelity."""
  plain = [m for m in means if m['method'] == PLAIN]
  head = (
    'method', 'settings', 'distance', 'precision', 'recall',
    'recall within classes', 'diversity within classes',
    'gain beside plain guidance of equal distance',
  )  # fmt: skip
  lines, by = [head, ('---',) * len(head)], variety(plain)
  names = ('fid', 'precision', 'recall', 'class_recall')
  names += ('intra_class_diversity',)
  for m in means:
    other = plain_of_equal(m, plain)
    gain = ''
    if m['method'] != PLAIN and other is not None:
      (a, ea), (b, eb) = m[by], other[by]
      error = np.hypot(ea / b, eb * a / b**2)
      gain = f'{a / b - 1:+.1%} ± {error:.1%} ({other["setting"]})'
    shown = [
      f'{m[k][0]:.3f} ± {m[k][1]:.3f}' if np.isfinite(m[k][0]) else '-'
      for k in names
    ]
    lines.append((m['method'], m['setting'], *shown, gain))
  shown = [f'{held_out[k]:.3f}' for k in names]
  lines.append(('held-out images', f'{held_out["num"]} of them', *shown, ''))
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def plot(means: list[dict], path: str):
  """Distance against variety, a curve for each method."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axis = plt.subplots(figsize=(8, 5))
  by = variety(means)
  for i, method in enumerate(dict.fromkeys(m['method'] for m in means)):
    some = [m for m in means if m['method'] == method]
    x, y = (np.array([m[k] for m in some]).T for k in ('fid', by))
    style = dict(color='black', lw=2.5) if method == PLAIN else {}
    marker = 'os^vDPX'[i % 7]
    axis.errorbar(
      x[0], y[0], y[1], x[1], marker=marker, label=method, ms=5, **style
    )
  axis.set_xlabel(
    "Frechet distance of the perceptron's features (fidelity: left)"
  )
  where = ' within classes' if by == 'class_recall' else ''
  axis.set_ylabel(f'recall{where} (variety: up)')
  axis.set_xscale('log')
  axis.xaxis.set_major_formatter('{x:g}')
  axis.xaxis.set_minor_formatter('{x:g}')
  axis.grid(alpha=0.3)
  axis.legend(fontsize=7, ncols=2)
  figure.tight_layout()
  figure.savefig(path, dpi=120)


def main(_):
  model, guide = fractal_jax.load(FLAGS.workdir), load_guide()
  features = Features(model.config)
  out = pathlib.Path(FLAGS.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  rows = draw_all(model, guide, features, out.with_suffix('.csv'))
  means = settings_of(rows)
  held_out = features.measure(*features.held_out)
  text = table(means, held_out)
  out.with_suffix('.md').write_text(text)
  plot(means, str(out.with_suffix('.png')))
  print(text)


if __name__ == '__main__':
  sys.exit(app.run(main))
