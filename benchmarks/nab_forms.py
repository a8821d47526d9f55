"""Other ways to average squared residuals, on the models of benchmarks/nab.py.

  python benchmarks/nab_forms.py --data=DIR --runs=runs/nab [--rows=5000]

Scores the series of at most so many rows with a fitted run (its folder must be
there, not its scores alone), and prints VUS-PR of each form, a mean over 200
rows, around each and up to each. r is a residual and v its predicted variance,
both in bins. It is to find out what a mean of z2 lacks; no form was chosen by
it, since it reads the labels.
"""

import argparse
import functools
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import nab  # noqa: E402
from fractal_jax import api, cpu  # noqa: E402
from fractal_jax.inference.progress import result_of  # noqa: E402
from fractal_jax.series import ranking, scores  # noqa: E402

# form: (r2, v, mean, fitted) -> scores. `mean` averages over 200 rows, `fitted`
# is True for the rows that the model was fitted to, said to be normal.
FORMS = {
  'mean of r2 / v (z2)': lambda r2, v, mean, fitted: mean(r2 / v),
  'of min(r2 / v, 100)': lambda r2, v, mean, fitted: mean(
    np.minimum(r2 / v, 100)
  ),
  'of min(r2 / v, 25)': lambda r2, v, mean, fitted: mean(
    np.minimum(r2 / v, 25)
  ),
  'of min(r2 / v, 5) in rows fitted to': lambda r2, v, mean, fitted: mean(
    np.minimum(r2 / v, np.where(fitted, 5, np.inf))
  ),
  'of |r| / sqrt(v)': lambda r2, v, mean, fitted: mean(np.sqrt(r2 / v)),
  'of log(1 + r2 / v)': lambda r2, v, mean, fitted: mean(np.log1p(r2 / v)),
  'of r2 / (v + normal r2)': lambda r2, v, mean, fitted: mean(
    r2 / (v + r2[fitted].mean())
  ),
  'of r2': lambda r2, v, mean, fitted: mean(r2),
  'mean of r2 / mean of v': lambda r2, v, mean, fitted: mean(r2) / mean(v),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--data', required=True, help='folder of the series')
  parser.add_argument('--runs', default='runs/nab', help='of nab.py fit')
  parser.add_argument('--run', default='ar_0', help='variant and seed')
  parser.add_argument('--rows', type=int, default=10**9, help='at most')
  arguments = parser.parse_args()
  cpu.use_cores(32)
  model = api.load(f'{arguments.runs}/{arguments.run}')
  found = {name: [] for name in FORMS}
  for label, one in enumerate(nab.read(arguments.data)):
    if len(one.values) > arguments.rows:
      continue
    job = scores.score(
      model.net,
      model.params,
      model.quantiser,
      one.values,
      label,
      mesh=model.mesh,
    )
    points = result_of(job)
    _, width = model.quantiser.of(label)
    v = (points.deviation / width)[:, 0] ** 2
    r2 = points.z2[:, 0] * v
    fitted = np.arange(len(r2)) < one.train
    window = ranking.period(one.values[:, 0])
    for name, form in FORMS.items():
      of = []
      around = functools.partial(scores.smoothed, rows=nab.SMOOTH)
      for mean in (around, nab.trailing):
        x = form(r2, v, mean, fitted)
        of.append(ranking.vus_pr(x, one.labels, window))
      found[name].append(of)
  number = len(next(iter(found.values())))
  print(f'{arguments.run}, {number} series\n')
  print('| form | mean of 200 | trailing 200 |\n|---|---|---|')
  for name, of in found.items():
    around, trailing = np.mean(of, 0)
    print(f'| {name} | {around:.3f} | {trailing:.3f} |')


if __name__ == '__main__':
  main()
