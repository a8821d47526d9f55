"""Small data sets for the tests, and what is done with batches."""

import io
import tarfile

import numpy as np
from PIL import Image

from fractal_jax import config as config_lib


def make_config(name='digits', side=8, channels=1, values=17, classes=10, **d):
  c = config_lib.default()
  c.model.update(
    sizes=(side, 1), channels=channels, num_values=values, classes=classes
  )
  c.data.update(name=name, flip=False, threads=4, **d)
  c.optim.batch = 64
  return c


def color_config(name, path, side=16, **d):
  return make_config(name, side, 3, 256, 1000, dir=str(path), **d)


def noise(rng, height, width, channels=3):
  shape = (height, width, channels) if channels > 1 else (height, width)
  return rng.integers(0, 256, shape, np.uint8)


def png(array) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, 'png')
  return out.getvalue()


def jpeg(array) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, 'jpeg')
  return out.getvalue()


def tar_bytes(files: dict[str, bytes], mode='w') -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as tar:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return out.getvalue()


def join(batches) -> dict:
  batches = list(batches)
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def take(iterator, n) -> list:
  return [next(iterator) for _ in range(n)]


def same(a, b) -> None:
  assert a.keys() == b.keys()
  for k in a:
    np.testing.assert_array_equal(a[k], b[k], strict=True)


def write_npz(path, images, labels=None, rank=2, **more):
  key = 'images' if rank == 2 else 'series'
  labels = np.zeros(len(images), np.int64) if labels is None else labels
  np.savez(path / 'x.npz', **{key: images, 'labels': labels}, **more)
  channels = images.shape[-1] if images.ndim == rank + 2 else 1
  c = make_config('npz', images.shape[1], channels, 256, 10)
  c.data.dir = str(path / 'x.npz')
  c.model.rank = rank
  return c


def literal_adm(image: Image.Image, side: int) -> np.ndarray:
  """ADM's centre crop, step by step on (width, height)."""
  width, height = image.size
  while min(width, height) >= 2 * side:
    width, height = width // 2, height // 2
    image = image.resize((width, height), resample=Image.BOX)
  scale = side / min(width, height)
  width, height = round(width * scale), round(height * scale)
  array = np.array(image.resize((width, height), resample=Image.BICUBIC))
  top, left = (height - side) // 2, (width - side) // 2
  return array[top : top + side, left : left + side]
