"""FractalAR (:ar, the default) or FractalMAR (:mar) on tables of sensors.

fractal-jax train --config=configs/series.py --workdir=runs/series \
  --config.data.dir=line.csv --config.data.rows=5000

Data: a CSV with a header, a Parquet or .npz file, or a folder of them; see
docs/series.md. For more channels than one set model.channels, and model.mean,
std and channel_weights with an entry each; pixel levels of several channels
need a block: --config.model.depths=3,2,1.
Hardware: two CPU cores.
Hours: 0.1.
Expected: fewer bits than a linear autoregression, which the report of
`fractal-jax anomaly` compares with. The paper has no series.
"""

from fractal_jax.series import settings


def get_config(arg=None):
  """The config; `arg` is what stands after a colon: ar or mar."""
  arg = arg or 'ar'
  if arg not in ('ar', 'mar'):
    raise ValueError(f"series has no option '{arg}': choose ar or mar")
  c = settings.settings(20_000, kind=arg)
  if arg == 'mar':
    c.eval.passes = 8
  return c
