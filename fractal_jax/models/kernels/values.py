"""What the kernels compute with: functions of arrays that lie in VMEM.

Products take both sides in the model's dtype and give float32; everything else
is float32. Each function has its gradient beside it, in the form that a kernel
wants: `jax.vjp` works inside a kernel, and what it would make by itself would
transpose weights or add up padded arrays. Outside a kernel they are plain jnp.
"""

from collections.abc import Callable, Sequence
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models.types import Array

if TYPE_CHECKING:
  from jax.experimental import pallas as pl

  from fractal_jax.models.kernels import geometry

F32 = jnp.float32
LANES = 128  # of a vector register


def dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
  """The product of two matrices over one axis of each, float32.

  float32 sides are multiplied in full precision, by six passes of a TPU.
  """
  full = a.dtype == F32
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if full else None,
    preferred_element_type=F32,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Array, w: Array, axis: int = 0) -> Array:
  """x [R, D] float32 times w [D, F]: [R, F] float32, as is the gradient.

  With axis 1 w is transposed, [F, D].
  """
  return dot(x.astype(w.dtype), w, 1, axis)


def _linear_fwd(x, w, axis):
  x = x.astype(w.dtype)
  return dot(x, w, 1, axis), (x, w)


def _linear_bwd(axis, saved, g):
  x, w = saved
  g = g.astype(w.dtype)
  by_w = dot(g, x, 0, 0) if axis else dot(x, g, 0, 0)
  return dot(g, w, 1, 1 - axis), by_w


linear.defvjp(_linear_fwd, _linear_bwd)


@jax.custom_vjp
def add_row(x: Array, b: Array) -> Array:
  """x [R, D] + b [1, D]."""
  return x + b


add_row.defvjp(
  lambda x, b: (x + b, None), lambda _, g: (g, jnp.sum(g, 0, keepdims=True))
)


def split(x: Array, n: int, axis: int) -> tuple:
  """x in n equal parts; their gradients are joined."""
  size = x.shape[axis] // n

  def parts(x):
    return tuple(
      jax.lax.slice_in_dim(x, i * size, (i + 1) * size, axis=axis)
      for i in range(n)
    )

  f = jax.custom_vjp(parts)
  f.defvjp(lambda x: (parts(x), None), lambda _, g: (jnp.concatenate(g, axis),))
  return f(x)


def norm(x: Array, p: dict) -> Array:
  """LayerNorm, or RMSNorm where p has no bias: layers.py's, of rows [R, D]."""
  if 'bias' in p:
    return layer_norm(x, p['scale'], p['bias'])
  return rms_norm(x, p['scale'])


def _mean(x):
  return jnp.mean(x, -1, keepdims=True)


@jax.custom_vjp
def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
  """LayerNorm of x [R, D], eps 1e-6; scale and bias [1, D]."""
  return _layer_norm_fwd(x, scale, bias)[0]


def _layer_norm_fwd(x, scale, bias):
  h = x - _mean(x)
  r = jax.lax.rsqrt(_mean(h * h) + 1e-6)
  return h * r * scale + bias, (h * r, r, scale)


def _layer_norm_bwd(saved, g):
  h, r, scale = saved
  gs = g * scale
  by_x = r * (gs - _mean(gs) - h * _mean(gs * h))
  return by_x, jnp.sum(g * h, 0, keepdims=True), jnp.sum(g, 0, keepdims=True)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@jax.custom_vjp
def rms_norm(x: Array, scale: Array) -> Array:
  """RMSNorm of x [R, D], eps 1e-5; scale [1, D]."""
  return _rms_norm_fwd(x, scale)[0]


def _rms_norm_fwd(x, scale):
  r = jax.lax.rsqrt(_mean(x * x) + 1e-5)
  return x * r * scale, (x * r, r, scale)


def _rms_norm_bwd(saved, g):
  h, r, scale = saved
  gs = g * scale
  return r * (gs - h * _mean(gs * h)), jnp.sum(g * h, 0, keepdims=True)


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def gelu(z: Array, dtype: jnp.dtype) -> Array:
  """GELU of float32 z: exact where the model computes in float32.

  Below that, erf is the tanh of a polynomial, 2.6e-5 off at the most: a
  hundredth of bfloat16's rounding, and a third of erf's time on a TPU.
  """
  if dtype == F32:
    return z * (0.5 + 0.5 * jax.lax.erf(z * np.float32(np.sqrt(0.5))))
  return quick_gelu(z)


# erf(z / sqrt(2)) as tanh(z (a + b y + c y^2)), y = min(z^2, 36): fitted to
# the largest error of GELU.
ERF = (0.797505275, 0.03700802, -0.000351902394)


def _erf(z):
  y = jnp.minimum(z * z, 36.0)
  return y, jnp.tanh(z * (ERF[0] + y * (ERF[1] + y * ERF[2])))


@jax.custom_vjp
def quick_gelu(z: Array) -> Array:
  """GELU by a rational function and tanh: as `gelu`, to rounding."""
  return z * (0.5 + 0.5 * _erf(z)[1])


def _quick_gelu_bwd(z, g):
  y, t = _erf(z)
  # In powers of two, which is what the chip has.
  density = jnp.exp2(y * np.float32(-0.5 * np.log2(np.e)))
  density *= np.float32(1 / np.sqrt(2 * np.pi))
  return (g * (0.5 + 0.5 * t + z * density),)


quick_gelu.defvjp(lambda z: (quick_gelu(z), z), _quick_gelu_bwd)


# Dropout: dropout.py's hash on signed integers, which wrap as unsigned ones do.


def iota(shape: tuple[int, ...], axis: int) -> Array:
  """Indices along an axis, int32."""
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def signed(word: int) -> np.int32:
  """An unsigned 32-bit constant as int32."""
  return np.array(word, np.uint32).view(np.int32)[()]


def kept(
  place: Array, start: int | Array, words: Sequence[Array], rate: float
) -> Array:
  """Which values stay: dropout.py's draw at places start + place, int32."""
  shift = jax.lax.shift_right_logical
  x = place + (start + words[0])  # scalars first: an operation less
  x = (x ^ shift(x, 16)) * signed(0x7FEB352D)
  x = (x ^ shift(x, 15)) + words[1]
  x = (x ^ shift(x, 16)) * signed(0x846CA68B)
  # Then x ^= x >> 16, and whether x >= least, unsigned. That leaves the upper
  # half as it is; the lower one matters where the upper halves are equal, and
  # there the shift's result is that of `least`.
  least = round(rate * 2**32)
  flip = 1 << 31  # of both sides: a signed comparison is then as unsigned
  return (x ^ signed(flip | least >> 16)) >= signed(flip ^ least)


def scale_of(rate: float) -> np.float32:
  """What dropout multiplies the values by that stay: 1, if there is none."""
  return np.float32(1 / (1 - rate))


def mask(
  x: Array,
  words: Sequence[Array],
  rate: float,
  shape: 'geometry.Rows',
  first: int | Array,
  col: int | Array = 0,
  width: int | None = None,
) -> Array:
  """Dropout's zeros in rows of many sequences, as dropout.py has them.

  Those that stay are to be multiplied by `scale_of`, where that is cheapest.

  Args:
    x: [R, F], whole sequences: their columns col .. col + F - 1.
    words: two int32 scalars.
    rate: share that becomes 0.
    shape: geometry.Rows, the sequences' lengths without and with padding.
    first: the number of x's first sequence.
    col, width: which columns x has, of how many.
  """
  if not rate:
    return x
  width = width or x.shape[1]

  def rows(x, start):
    place = iota(x.shape, 0) * width + iota(x.shape, 1)
    keep = kept(place, start * width + col, words, rate)
    return jnp.where(keep, x, 0.0)

  real, padded = shape.tokens, shape.padded
  if real == padded:
    return rows(x, first * real)
  return jnp.concatenate(
    [
      rows(x[i * padded : (i + 1) * padded], (first + i) * real)
      for i in range(x.shape[0] // padded)
    ]
  )


def drop(x: Array, words: Sequence[Array], rate: float, *where: Any) -> Array:
  """Dropout: `mask`, with the values that stay scaled."""
  return mask(x, words, rate, *where) * scale_of(rate) if rate else x


def pieces(
  parts: Sequence[tuple[int, int, Array]], size: int, axis: int
) -> Array:
  """The sum of float32 parts (start, end, values) of an axis of this size.

  They may overlap, and leave nothing out; joined without padding any.
  """
  if len(parts) == 1:
    return parts[0][2]
  cuts = sorted({0, size}.union(*(part[:2] for part in parts)))
  out = []
  for a, b in zip(cuts, cuts[1:]):
    found = [
      jax.lax.slice_in_dim(x, a - start, b - start, axis=axis)
      for start, end, x in parts
      if start <= a and b <= end
    ]
    out.append(functools.reduce(jnp.add, found))
  return jnp.concatenate(out, axis) if len(out) > 1 else out[0]


def over(n: int, body: Callable[[int | Array], None]) -> None:
  """body(i) for i = 0 .. n - 1, in a loop unless there is one."""
  if n == 1:
    body(0)
  else:
    jax.lax.fori_loop(0, n, lambda i, _: body(i), None)


def at(i: int | Array, size: int) -> 'slice | pl.Slice':
  """The i-th slice of this size."""
  from jax.experimental import pallas as pl

  if isinstance(i, int):
    return slice(i * size, (i + 1) * size)
  return pl.ds(pl.multiple_of(i * size, size), size)


def chunk(width: int, most: int = 640) -> int:
  """Columns at a time: whole lane tiles that divide the width, or all."""
  sizes = [c for c in range(LANES, most + 1, LANES) if width % c == 0]
  return max(sizes, default=width)
