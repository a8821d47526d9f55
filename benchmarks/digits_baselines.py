"""Simple density models of the digits, to compare bits/dim with.

  python benchmarks/digits_baselines.py

Each is fitted to the 1500 training images of fractal_jax.data and scored on
the 297 validation images, without labels: the uniform distribution over the
17 values; a histogram of each position; and a random forest for each pixel
given all earlier ones in raster order (an autoregressive model). Half a
minute on two cores; `--fast` leaves the forests out.
"""

from absl import app, flags
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax.data import pipeline
from fractal_jax.pilot import image_simple

VALUES = 17
FAST = flags.DEFINE_bool('fast', False, 'Leave the random forests out.')


def forest(train, val):
  """Bits/dim of a random forest a pixel, mixed with 3% of uniform."""
  from sklearn.ensemble import RandomForestClassifier

  bits = []
  for i in range(train.shape[1]):
    earlier = np.pad(train[:, :i], ((0, 0), (1, 0)))  # pixel 0 has none
    model = RandomForestClassifier(
      100, min_samples_leaf=5, random_state=0, n_jobs=-1
    ).fit(earlier, train[:, i])
    p = np.zeros((len(val), VALUES))
    p[:, model.classes_] = model.predict_proba(
      np.pad(val[:, :i], ((0, 0), (1, 0)))
    )
    p = 0.97 * p + 0.03 / VALUES
    bits.append(-np.log2(p[np.arange(len(val)), val[:, i]]))
  return np.mean(bits)


def main(_):
  config = config_lib.default()
  with config.unlocked():
    config.model.sizes, config.model.channels = (8, 2, 1), 1
    config.model.num_values, config.model.classes = VALUES, 10
  train, val = (
    pipeline.examples(config, split)[0].reshape(-1, 64)
    for split in ('train', 'validation')
  )
  print(f'uniform                            {np.log2(VALUES):.2f} bits/dim')
  histogram = image_simple.histogram(train, val, VALUES).mean()
  print(f'histogram of each position         {histogram:.2f}')
  if not FAST.value:
    print(f'random forests, autoregressive     {forest(train, val):.2f}')


if __name__ == '__main__':
  app.run(main)
