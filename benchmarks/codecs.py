"""What lossless codecs and simple densities make of a data set, in bits/dim.

  python benchmarks/codecs.py --config=configs/emoji.py:small

Of the validation images of a config, at the size that its model sees: PNG and
WebP lossless, each image a file of its own, as a newcomer would store it, and
all of them as one picture, where headers weigh nothing; the uniform
distribution; and a histogram of each position and channel over the training
images, each count raised by one half. Means with their standard error over
images.
"""

import io
import sys

from absl import app, flags
from ml_collections import config_flags
import numpy as np
from PIL import Image

from fractal_jax.data import pipeline
from fractal_jax.pictures import from_values

CONFIG = config_flags.DEFINE_config_file('config', None, 'A config file.')
flags.mark_flag_as_required('config')


def encoded(picture: np.ndarray, codec: str) -> int:
  """Bits of the file of a picture [H, W, C]."""
  file = io.BytesIO()
  how = dict(PNG=dict(optimize=True), WEBP=dict(lossless=True, method=6))
  image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1
                          else picture)  # fmt: skip
  image.save(file, codec, **how[codec])
  return 8 * len(file.getvalue())


def histogram(train: np.ndarray, val: np.ndarray, values: int) -> np.ndarray:
  """Bits/dim of each image [n], positions and channels independent."""
  train, val = (x.reshape(len(x), -1) for x in (train, val))
  counts = np.full((train.shape[1], values), 0.5)
  np.add.at(counts, (np.arange(train.shape[1]), train), 1)
  bits = -np.log2(counts / counts.sum(1, keepdims=True))
  return bits[np.arange(val.shape[1]), val].mean(1)


def report(name: str, bits: np.ndarray):
  """Prints a line, of one number or of one for each image."""
  error = ''
  if len(bits) > 1:
    error = f' ± {bits.std(ddof=1) / len(bits) ** 0.5:.3f}'
  print(f'{name:42}{bits.mean():.3f}{error}')


def main(_):
  config = CONFIG.value
  train, _ = pipeline.examples(config, config.data.train_split)
  val, _ = pipeline.examples(config, config.data.val_split)
  values = config.model.num_values
  print(f'{len(val)} validation images of {val.shape[1:]}, bits/dim')
  report('uniform', np.array([np.log2(values)]))
  report(
    'histogram of each position and channel', histogram(train, val, values)
  )
  pictures = from_values(val, config.model)
  if (pictures[..., :1] == pictures).all():
    pictures = pictures[..., :1]
  whole = pictures.reshape(-1, *pictures.shape[2:])
  for codec in ('PNG', 'WEBP'):
    each = np.array([encoded(p, codec) for p in pictures]) / val[0].size
    report(f'{codec}, a file each', each)
    one = encoded(whole, codec) / val.size
    report(f'{codec}, all in one file', np.array([one]))


if __name__ == '__main__':
  sys.exit(app.run(main))
