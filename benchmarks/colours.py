"""What model.colour does to a data set of RGB images.

  python benchmarks/colours.py --data=emoji64.npz --side=16

For each colour space the mean and standard deviation of its channels in the
training split (model.mean and model.std, of values / 255); for YCbCr how many
pixels come back changed; for YCoCg-R how many wrap around modulo 256.
"""

from absl import app, flags
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax.data import pipeline
from fractal_jax.models.colour import NAMES, Colour

DATA = flags.DEFINE_string('data', 'emoji64.npz', 'An .npz of images.')
SIDE = flags.DEFINE_integer('side', 16, 'To which they are cropped.')


def pixels():
  """The training split's, [n, 3]."""
  c = config_lib.default()
  c.model.sizes = (SIDE.value, 1)
  c.data.name, c.data.dir = 'npz', DATA.value
  split = pipeline.open_split(c, 'train')
  images = [split.read(i)[0] for i in range(split.size)]
  print(f'{split.size} training images of {images[0].shape}')
  return np.stack(images).reshape(-1, 3).astype(np.int32)


def main(_):
  rgb = pixels()
  for space in NAMES:
    x = np.asarray(Colour(space).encode(rgb)) / 255
    name = space or 'rgb'
    print(f'{name:6} mean {x.mean(0).round(3)}  std {x.std(0).round(3)}')
  ycbcr = Colour('ycbcr')
  off = np.abs(np.asarray(ycbcr.decode(ycbcr.encode(rgb))) - rgb)
  changed = (off > 0).any(1).mean()
  print(f'ycbcr  {changed:.1%} of pixels come back changed, by {off.max()}')
  every = np.indices((256, 256, 256), np.int32).reshape(3, -1).T
  used = np.zeros(256**3, bool)
  for part in np.array_split(every, 64):
    used[np.asarray(ycbcr.encode(part)) @ [256**2, 256, 1]] = True
  print(f'ycbcr  {used.mean():.1%} of its 256^3 colours are those of RGB')
  r, g, b = rgb.T
  co = r - b
  cg = g - (b + (co >> 1))
  wraps = (np.abs(np.stack([co, cg]) + 0.5) > 128).any(0).mean()
  print(f'ycocg  {wraps:.1%} of pixels wrap around')


if __name__ == '__main__':
  app.run(main)
