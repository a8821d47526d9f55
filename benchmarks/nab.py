"""Anomaly detection on 14 labelled series, beside published detectors.

  python benchmarks/nab.py fit --data=DIR --runs=runs/nab --seed=0
  python benchmarks/nab.py table --data=DIR --runs=runs/nab
  python benchmarks/nab.py check --data=DIR

DIR holds series of the Numenta Anomaly Benchmark as TSB-AD cuts and labels them
(.npz of `values`, `labels`, `train`) and published.csv, what TSB-AD reports of
each detector on each series.

fit    trains one model on the normal beginnings of all series (the series is
       the class), scores every point of them, and writes the scores. VARIANTS
       has what else can be fitted.
table  VUS-PR and AUC-PR, mean over series: of what was fitted, of POLY and
       Sub-PCA (which see the whole series), and of a linear autoregression;
       each as it is, averaged over 200 rows around each, weighted
       exponentially over the rows up to each (as `anomaly --causal` does), and
       averaged over the last 200.
check  whether VUS-PR of POLY and Sub-PCA is what is published.

The settings are one for all. Levels, widths, bins, noise, steps, batch and the
200 rows are those of a prototype, which was looked at on these same series with
two seeds. That each series counts alike in training was set after labelled
scores of these series had been looked at, and so was the exponential mean.
"""

import argparse
import csv
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import nab_baselines  # noqa: E402
from fractal_jax import cpu  # noqa: E402
from fractal_jax.series import ranking, scores, table  # noqa: E402

SMOOTH = 200
VARIANTS = {
  'ar': {},
  'batch32': {'batch': 32},  # a quarter of the windows
  'alike32': {'batch': 32, 'balanced': False},  # all windows count alike
  'alike128': {'balanced': False, 'peak': 1e-3},
  'flat': {'levels': 2},  # one level of 64 values, no patches
  'deep': {  # patches of patches
    'model': {
      'sizes': (64, 16, 4, 1),
      'kinds': ('ar', 'ar', 'ar', 'pixel'),
      'widths': (96, 64, 64, 48),
      'depths': (3, 2, 2, 0),
      'heads': (4, 4, 4, 4),
    }
  },
  'mar': {'kind': 'mar'},
  'window128': {'window': 128},
  'digits': {'digits': True},  # a coarse and a fine channel of 16 values each
}
SCORES = ('bits', 'z2', 'excess', 'tail')
WAYS = ('raw', 'mean', 'stream', 'trailing')


def read(data: str) -> list[table.Table]:
  """The series, by name."""
  return [table.read(path) for path in table.files(f'{data}/*.npz')]


# Fitting.


def fit(arguments) -> None:
  """Trains one variant with one seed, and writes scores of every point.

  A run that is stopped by SIGTERM goes on when it is called again.
  """
  from fractal_jax.inference.progress import result_of

  cpu.use_cores(32)
  tables = read(arguments.data)
  runs = pathlib.Path(arguments.runs)
  runs.mkdir(parents=True, exist_ok=True)
  workdir = runs / f'{arguments.variant}_{arguments.seed}'
  begun = time.monotonic()
  digits = arguments.variant == 'digits'
  fitted = (fit_digits if digits else fit_run)(arguments, tables, workdir)
  seconds = time.monotonic() - begun
  out = {'steps': config_of(arguments, tables).optim.steps}
  for label, one in enumerate(tables):
    values = one.values
    if digits:
      values = digits_of(fitted.quantiser, values, label)
    found = result_of(
      scores.score(
        fitted.net,
        fitted.params,
        fitted.quantiser,
        values,
        label,
        mesh=fitted.mesh,
      )
    )
    for kind in SCORES:
      x = found.by_channel(kind)
      out[f'{one.name}/{kind}'] = x.sum(1) if kind == 'bits' else x.mean(1)
  np.savez_compressed(f'{workdir}.npz', **out)
  print(
    f'{workdir}.npz: fitted in {seconds:.0f} s (since the last stop), scored '
    f'in {time.monotonic() - begun - seconds:.0f} s'
  )


def config_of(arguments, tables):
  """The config of a variant."""
  from fractal_jax.series import settings

  changes = dict(VARIANTS[arguments.variant])
  digits, batch = changes.pop('digits', False), changes.pop('batch', None)
  balanced, peak = changes.pop('balanced', True), changes.pop('peak', 3e-3)
  model = changes.pop('model', {})
  config = settings.settings(
    sum(one.train for one in tables),
    2 if digits else 1,
    classes=len(tables),
    bins=16 if digits else 256,
    steps=arguments.steps,
    seed=arguments.seed,
    **changes,
  )
  config.model.update(model)
  config.optim.batch = batch or config.optim.batch
  config.optim.lr = peak * 256 / config.optim.batch
  config.optim.save_every = 10_000  # at the end, and where it is stopped
  config.eval.every = 0
  config.data.dir = f'{arguments.data}/*.npz'
  config.data.held_out, config.data.balanced = 0.0, balanced
  return config


def fit_run(arguments, tables, workdir):
  """The model of `fractal-jax train` in a work directory."""
  from fractal_jax import api
  from fractal_jax.training import processes, train

  try:
    train.train(config_of(arguments, tables), str(workdir))
  except processes.Preempted as e:
    sys.exit(f'{e}: call it again to go on')
  return api.load(str(workdir))


# Values of 256 as two digits of 16: a channel for each.


class Digits:
  """A quantiser of 256 bins whose bins are read as two digits."""

  def __init__(self, whole):
    self.whole, self.bins, self.channels = whole, 16, ('coarse', 'fine')

  def read(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    return values.astype(np.int32)

  def place(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    return values

  def decode(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    return values

  def of(self, label: int):
    return np.zeros(2), np.ones(2)

  def outside(self, values: np.ndarray, label: int = 0) -> np.ndarray:
    return np.zeros(values.shape, bool)


def digits_of(quantiser: Digits, values: np.ndarray, label: int) -> np.ndarray:
  """Both digits of values [T, 1], as [T, 2]."""
  bins = quantiser.whole.encode(values, label)
  return np.concatenate(np.divmod(bins, 16), 1).astype(float)


def fit_digits(arguments, tables, workdir):
  """A model of digits; noise of two bins moves both."""
  from fractal_jax import api
  from fractal_jax.data import common
  from fractal_jax.inference.progress import result_of
  from fractal_jax.series import fit as fit_lib
  from fractal_jax.series import quantiser as quantiser_lib

  del workdir
  config = config_of(arguments, tables)
  config.data.noise = 0.0  # it is added to the values, before they are cut
  parts = [one.values[: one.train] for one in tables]
  whole = quantiser_lib.fit(parts, 256)
  bins = [whole.encode(x, label) for label, x in enumerate(parts)]
  side = config.model.sizes[0]
  starts = [
    (label, first)
    for label, x in enumerate(bins)
    for first in range(len(x) - side + 1)
  ]
  rng = np.random.default_rng(arguments.seed)

  def window(i: int):
    label, first = starts[i]
    x = bins[label][first : first + side]
    x = np.rint(x + rng.normal(0, 2, x.shape)).clip(0, 255).astype(np.int32)
    return np.concatenate(np.divmod(x, 16), 1), label

  names = tuple(one.name for one in tables)
  source = common.Source(len(starts), window, names, 16)
  found = result_of(fit_lib.fit(config, source))
  return api.Model(config, *found, quantiser=Digits(whole))


# Tables.


def measured(tables, found: dict) -> dict:
  """{way of averaging: (VUS-PR, AUC-PR) of each series, [14, 2]}."""
  from sklearn import metrics

  out = {way: [] for way in WAYS}
  for one in tables:
    labels, x = one.labels, found[one.name]
    x = np.where(np.isnan(x), np.nanmean(x), x)  # masked in no pass
    window = ranking.period(one.values[:, 0])
    for way, scored in (
      ('raw', x),
      ('mean', scores.smoothed(x, SMOOTH)),
      ('stream', scores.smoothed(x, SMOOTH, causal=True)),
      ('trailing', trailing(x)),
    ):
      out[way].append(
        (
          ranking.vus_pr(scored, labels, window),
          metrics.average_precision_score(labels, scored),
        )
      )
  return {way: np.array(x) for way, x in out.items()}


def trailing(x: np.ndarray) -> np.ndarray:
  """The mean [T] over the last SMOOTH rows, or those that there are."""
  # What lies half a window later is a mean around it of what came before.
  late = np.full(SMOOTH - SMOOTH // 2 - 1, np.nan)
  return scores.smoothed(np.r_[late, x], SMOOTH)[: len(x)]


def baselines(tables) -> dict[str, dict]:
  """What `measured` gives for each detector that we compare with."""
  return {
    name: measured(
      tables, {t.name: detect(t.values[:, 0], t.train) for t in tables}
    )
    for name, detect in nab_baselines.DETECTORS.items()
  }


def ours(tables, runs: str) -> dict[tuple, list[dict]]:
  """{(variant, score): `measured` of each seed}, of what was fitted."""
  out = {}
  for path in sorted(pathlib.Path(runs).glob('*_[0-9]*.npz')):
    variant = path.stem.rsplit('_', 1)[0]
    file = np.load(path)
    print(f'{path.name}: {file["steps"]} steps')
    for kind in SCORES[: 1 if variant == 'digits' else None]:
      found = {t.name: file[f'{t.name}/{kind}'] for t in tables}
      out.setdefault((variant, kind), []).append(measured(tables, found))
  return out


def mean_of_seeds(seeds: list[dict]) -> dict:
  """The mean over seeds of what `measured` gives."""
  return {way: np.mean([s[way] for s in seeds], 0) for way in seeds[0]}


def interval(
  difference: np.ndarray, draws: int = 10_000
) -> tuple[float, float]:
  """95% of the bootstrap distribution of the mean, over series."""
  rng = np.random.default_rng(0)
  at = rng.integers(0, len(difference), (draws, len(difference)))
  return tuple(np.quantile(difference[at].mean(1), [0.025, 0.975]))


def print_table(arguments) -> None:
  """All numbers, as Markdown."""
  tables = read(arguments.data)
  others = baselines(tables)
  found = ours(tables, arguments.runs)
  rows = {(name, ''): [x] for name, x in others.items()} | found
  print(
    '\n| detector | score | seeds | VUS-PR raw | mean of 200 | stream | '
    'trailing | AUC-PR raw | mean of 200 | stream | trailing |'
  )
  print('|---|---|---|' + '---|' * 2 * len(WAYS))
  for (name, kind), seeds in rows.items():
    means = np.array([[s[w].mean(0) for w in WAYS] for s in seeds])
    cells = [
      ' '.join(f'{x:.3f}' for x in means[:, way, measure])
      for measure in (0, 1)
      for way in range(len(WAYS))
    ]
    print(f'| {name} | {kind} | {len(seeds)} | ' + ' | '.join(cells) + ' |')
  print(
    '\nGain in VUS-PR, both averaged over 200 rows alike, 95% over series:\n'
  )
  print('| | ' + ' | '.join(f'over {name}' for name in others) + ' |')
  print('|---|' + '---|' * len(others))
  for (variant, kind), seeds in found.items():
    mine = mean_of_seeds(seeds)['mean'][:, 0]
    cells = []
    for other in others.values():
      gain = mine - other['mean'][:, 0]
      low, high = interval(gain)
      cells.append(f'{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]')
    print(f'| {variant}, {kind} | ' + ' | '.join(cells) + ' |')
  print_series(tables, others, found)


def print_series(tables, others, found) -> None:
  """VUS-PR of each series, averaged over 200 rows."""
  columns = {name: x['mean'][:, 0] for name, x in others.items()}
  columns |= {
    f'{v}, {k}': mean_of_seeds(s)['mean'][:, 0]
    for (v, k), s in found.items()
    if v == 'ar' and k in ('bits', 'z2')
  }
  print('\nVUS-PR of each series, mean of 200 rows:\n')
  print('| series | ' + ' | '.join(columns) + ' |')
  print('|---|' + '---|' * len(columns))
  for i, one in enumerate(tables):
    cells = ' | '.join(f'{x[i]:.3f}' for x in columns.values())
    print(f'| {one.name.split("_tr_")[0]} | {cells} |')


def check(arguments) -> None:
  """Prints VUS-PR of POLY and Sub-PCA beside what is published."""
  with open(f'{arguments.data}/published.csv') as file:
    published = {row['file']: row for row in csv.DictReader(file)}
  worst = {}
  for one in read(arguments.data):
    values, window = one.values[:, 0], ranking.period(one.values[:, 0])
    line = [f'{one.name[:24]:24}']
    for name in ('POLY', 'Sub-PCA'):
      found = nab_baselines.DETECTORS[name](values, one.train)
      ours = ranking.vus_pr(found, one.labels, window)
      theirs = float(published[one.name][name])
      worst[name] = max(worst.get(name, 0), abs(ours - theirs))
      line.append(f'{name} {ours:.4f} (published {theirs:.4f})')
    print('  '.join(line), flush=True)
  print({name: f'{x:.5f} apart at most' for name, x in worst.items()})


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('what', choices=('fit', 'table', 'check'))
  parser.add_argument('--data', required=True, help='folder of the series')
  parser.add_argument(
    '--runs', default='runs/nab', help='where scores are kept'
  )
  parser.add_argument('--variant', default='ar', choices=VARIANTS)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--steps', type=int, help='the default: 1500')
  arguments = parser.parse_args()
  {'fit': fit, 'table': print_table, 'check': check}[arguments.what](arguments)


if __name__ == '__main__':
  main()
