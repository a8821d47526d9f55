"""The Inception v3 of FID, as TensorFlow's graph of 2015-12-05 computes it.

It is not the Inception v3 of model zoos: a head of 1008 outputs, averages that
leave out padding, a maximum in the last block's pooling branch, and images
enlarged as TensorFlow 1 did. Parameters have the names of torch-fidelity's
state dict: flattened with dots between, the tree is that dict, transposed.

B images, H, W height and width, C channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models.types import Array

SIDE = 299  # of the images that the net sees
FEATURES = 2048  # of the last pooling: what FID is computed from
CLASSES = 1008
EPS = 1e-3  # of the batch norms

# TPUs and GPUs would round the factors of a product to 8 or 11 bits, which
# moves FIDs.
PRECISION = jax.lax.Precision.HIGHEST


class Conv(nn.Module):
  """Convolution without bias, batch norm with stored statistics, ReLU."""

  features: int
  height: int = 1
  width: int = 1
  stride: int = 1
  padding: str = 'SAME'

  @nn.compact
  def __call__(self, x: Array) -> Array:  # [B, H, W, C]
    def param(name, *shape):
      return self.param(name, nn.initializers.zeros, shape)

    kernel = param(
      'conv.weight', self.height, self.width, x.shape[-1], self.features
    )
    scale, bias = (param(f'bn.{n}', self.features) for n in ('weight', 'bias'))
    mean, var = (
      param(f'bn.running_{n}', self.features) for n in ('mean', 'var')
    )
    scale = scale * jax.lax.rsqrt(var + EPS)
    x = jax.lax.conv_general_dilated(
      x,
      kernel * scale,
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=PRECISION,
    )
    return nn.relu(x + (bias - mean * scale))


def chain(block: str, x: Array, *convs: tuple) -> Array:
  """Convolutions of a block in a row: (name, features, height, width, ...)."""
  for name, *how in convs:
    x = Conv(*how, name=block + name)(x)
  return x


def join(*branches: Array) -> Array:
  """The channels of all branches [B, H, W, .] side by side."""
  return jnp.concatenate(branches, -1)


def mean_pool(x: Array) -> Array:
  """Means over 3x3, without the padding at the edges."""
  return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)


def shrink(x: Array) -> Array:
  """Maxima over 3x3, at half the height and width."""
  return nn.max_pool(x, (3, 3), (2, 2))


HALVE = 2, 'VALID'


def mixed_a(block: str, x: Array, pool: int) -> Array:
  """35x35: 1x1, 5x5, two 3x3."""
  run = functools.partial(chain, block)
  return join(
    run(x, ('branch1x1', 64)),
    run(x, ('branch5x5_1', 48), ('branch5x5_2', 64, 5, 5)),
    run(
      x,
      ('branch3x3dbl_1', 64),
      ('branch3x3dbl_2', 96, 3, 3),
      ('branch3x3dbl_3', 96, 3, 3),
    ),
    run(mean_pool(x), ('branch_pool', pool)),
  )


def mixed_b(block: str, x: Array) -> Array:
  """35x35 to 17x17."""
  run = functools.partial(chain, block)
  return join(
    run(x, ('branch3x3', 384, 3, 3, *HALVE)),
    run(
      x,
      ('branch3x3dbl_1', 64),
      ('branch3x3dbl_2', 96, 3, 3),
      ('branch3x3dbl_3', 96, 3, 3, *HALVE),
    ),
    shrink(x),
  )


def mixed_c(block: str, x: Array, n: int) -> Array:
  """17x17: 1x1, 7x7 as 1x7 and 7x1, two of these."""
  run = functools.partial(chain, block)
  return join(
    run(x, ('branch1x1', 192)),
    run(
      x,
      ('branch7x7_1', n),
      ('branch7x7_2', n, 1, 7),
      ('branch7x7_3', 192, 7, 1),
    ),
    run(
      x,
      ('branch7x7dbl_1', n),
      ('branch7x7dbl_2', n, 7, 1),
      ('branch7x7dbl_3', n, 1, 7),
      ('branch7x7dbl_4', n, 7, 1),
      ('branch7x7dbl_5', 192, 1, 7),
    ),
    run(mean_pool(x), ('branch_pool', 192)),
  )


def mixed_d(block: str, x: Array) -> Array:
  """17x17 to 8x8."""
  run = functools.partial(chain, block)
  return join(
    run(x, ('branch3x3_1', 192), ('branch3x3_2', 320, 3, 3, *HALVE)),
    run(
      x,
      ('branch7x7x3_1', 192),
      ('branch7x7x3_2', 192, 1, 7),
      ('branch7x7x3_3', 192, 7, 1),
      ('branch7x7x3_4', 192, 3, 3, *HALVE),
    ),
    shrink(x),
  )


def mixed_e(block: str, x: Array, maximum: bool) -> Array:
  """8x8: branches that fork. The net's two differ in how they pool."""
  run = functools.partial(chain, block)
  three = run(x, ('branch3x3_1', 384))
  double = run(x, ('branch3x3dbl_1', 448), ('branch3x3dbl_2', 384, 3, 3))
  if maximum:
    pooled = nn.max_pool(x, (3, 3), (1, 1), 'SAME')
  else:
    pooled = mean_pool(x)
  return join(
    run(x, ('branch1x1', 320)),
    run(three, ('branch3x3_2a', 384, 1, 3)),
    run(three, ('branch3x3_2b', 384, 3, 1)),
    run(double, ('branch3x3dbl_3a', 384, 1, 3)),
    run(double, ('branch3x3dbl_3b', 384, 3, 1)),
    run(pooled, ('branch_pool', 192)),
  )


class Inception(nn.Module):
  """Images to features."""

  @nn.compact
  def __call__(self, images: Array) -> dict:
    """Features by torch-fidelity's names.

    Args:
      images: [B, H, W, 3] of 0 .. 255, of any size.

    Returns:
      dict, float32: means over the image of the activations of four depths, 64,
      192, 768 and 2048 (each [B, that many]; FID, precision and recall use the
      last); logits [B, 1008], and logits_unbiased, those without the head's
      bias, which the Inception Score uses.
    """
    out = {}
    x = resize(images.astype(jnp.float32), SIDE)
    x = (x - 128) / 128
    x = chain(
      '',
      x,
      ('Conv2d_1a_3x3', 32, 3, 3, *HALVE),
      ('Conv2d_2a_3x3', 32, 3, 3, 1, 'VALID'),
      ('Conv2d_2b_3x3', 64, 3, 3),
    )
    x = shrink(x)  # [B, 73, 73, 64]
    out['64'] = x.mean((1, 2))
    x = chain(
      '', x, ('Conv2d_3b_1x1', 80), ('Conv2d_4a_3x3', 192, 3, 3, 1, 'VALID')
    )
    x = shrink(x)  # [B, 35, 35, 192]
    out['192'] = x.mean((1, 2))
    for name, pool in zip(('5b', '5c', '5d'), (32, 64, 64)):
      x = mixed_a(f'Mixed_{name}.', x, pool)
    x = mixed_b('Mixed_6a.', x)  # [B, 17, 17, 768]
    for name, inner in zip(('6b', '6c', '6d', '6e'), (128, 160, 160, 192)):
      x = mixed_c(f'Mixed_{name}.', x, inner)
    out['768'] = x.mean((1, 2))
    x = mixed_d('Mixed_7a.', x)  # [B, 8, 8, 1280]
    x = mixed_e('Mixed_7b.', x, False)
    x = mixed_e('Mixed_7c.', x, True)  # [B, 8, 8, 2048]
    out['2048'] = x = x.mean((1, 2))
    zeros = nn.initializers.zeros
    kernel = self.param('fc.weight', zeros, (FEATURES, CLASSES))
    bias = self.param('fc.bias', zeros, (CLASSES,))
    out['logits_unbiased'] = jnp.dot(x, kernel, precision=PRECISION)
    out['logits'] = out['logits_unbiased'] + bias
    return out


def resize(images: Array, side: int) -> Array:
  """Images [B, H, W, C] to [B, side, side, C], as TensorFlow 1 resized.

  Bilinear between the two nearest pixels on either side, however much smaller
  the image becomes, with pixel 0 at 0: a product with one matrix for the rows
  and one for the columns. `jax.image.resize` averages, and puts centres on
  centres.
  """
  rows, columns = (interpolation(n, side) for n in images.shape[1:3])
  return jnp.einsum(
    'yh,bhwc,xw->byxc', rows, images, columns, precision=PRECISION
  )


def interpolation(n: int, side: int) -> np.ndarray:
  """The matrix [side, n] that interpolates n values at `side` places."""
  # TensorFlow computes the places in float32; so do we.
  place = np.arange(side, dtype=np.float32) * np.float32(n / side)
  low = place.astype(int)
  high = np.minimum(low + 1, n - 1)
  share = place - low.astype(np.float32)
  out = np.zeros((side, n), np.float32)
  np.add.at(out, (np.arange(side), low), 1 - share)
  np.add.at(out, (np.arange(side), high), share)
  return out
