"""What the levels see in place of an image's values: colours, in an order.

The model's border: `Colour.encode` on the way in, `Colour.decode` on the way
out, so that data, samples and edits are always the user's own values (RGB).
Section 5 of the paper compares RGB, GRB, B first, and YCbCr.
"""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from fractal_jax.models.types import Array, Drawn, Given

# The channels of each colour space; '': those of the data, as they are.
NAMES = {'': None, 'ycbcr': ('Y', 'Cb', 'Cr'), 'ycocg': ('Y', 'Co', 'Cg')}
# JFIF's full-range YCbCr (ITU-R BT.601) in units of 2^-16; each row of the
# first matrix sums to 1 or to 0, so that greys are exact.
HALF = 1 << 15
TO_YCBCR = (
  (19595, 38470, 7471),
  (-11059, -21709, 32768),
  (32768, -27439, -5329),
)
RED_BY_CR, GREEN_BY_CB, GREEN_BY_CR, BLUE_BY_CB = 91881, -22554, -46802, 116130


@dataclasses.dataclass(frozen=True)
class Colour:
  """A colour space, and the order in which its channels are predicted.

  ''       values as they are.
  'ycbcr'  JFIF's YCbCr, rounded to 0 .. 255. Several RGB values share one
           YCbCr value, and some YCbCr values are no RGB value: a probability
           of the former is none of the latter.
  'ycocg'  YCoCg-R (Malvar and Sullivan, 2003), by lifting steps modulo the
           number of values: a one-to-one map of the RGB values onto
           themselves, so that likelihoods remain those of the image.
  """

  space: str = ''
  order: tuple[int, ...] = ()  # (): as they are
  values: int = 256  # per channel

  @property
  def lossy(self) -> bool:
    """Whether several colours of the data share one of the model."""
    return self.space == 'ycbcr'

  @property
  def back(self) -> tuple[int, ...]:
    """The inverse of the order."""
    return tuple(self.order.index(c) for c in range(len(self.order)))

  def encode(self, x: Array) -> Array:
    """Data [..., C] to what the levels see, [..., C] int32."""
    if self.space:
      forward = {'ycbcr': to_ycbcr, 'ycocg': to_ycocg}[self.space]
      x = forward(x.astype(jnp.int32), self.values)
    return self.ordered(x)

  def decode(self, x: Array) -> Array:
    """The inverse of `encode`; the nearest that there is, where it is lossy."""
    x = self.unordered(x)
    if self.space:
      x = {'ycbcr': from_ycbcr, 'ycocg': from_ycocg}[self.space](x, self.values)
    return x

  def encode_given(self, given: Given) -> Given:
    """What is known, as the levels see it."""
    known = given.known
    if self.space:  # a colour is known where all its values are
      known = jnp.broadcast_to(known.all(-1, keepdims=True), known.shape)
    return Given(self.encode(given.values), self.ordered(known))

  def decode_drawn(self, drawn: Drawn, given: Given | None) -> Drawn:
    """What was drawn, as data; what is known stays, and was there first."""
    values, when = self.decode(drawn.values), drawn.when
    if given is not None and self.space:
      values = jnp.where(given.known, given.values, values)
    if when is not None:
      when = self.unordered(when)
      if self.space:  # a value is there when all channels are
        when = jnp.broadcast_to(when.max(-1, keepdims=True), when.shape)
      if given is not None:
        when = jnp.where(given.known, -1, when)
    return Drawn(values, when)

  def ordered(self, x: Array) -> Array:
    """Channels as named to channels as they are predicted."""
    return jnp.take(x, jnp.array(self.order), -1) if self.order else x

  def unordered(self, x: Array, axis: int = -1) -> Array:
    """The inverse of `ordered`."""
    return jnp.take(x, jnp.array(self.back), axis) if self.order else x


def to_ycbcr(x: Array, values: int) -> Array:
  """RGB [..., 3] to YCbCr, as JPEG files have it: Cb, Cr are 128 at greys."""
  del values
  r, g, b = jnp.moveaxis(x, -1, 0)
  # The largest Cb and Cr are 255.5: one unit less than a half rounds them down.
  starts = (HALF, (128 << 16) + HALF - 1, (128 << 16) + HALF - 1)
  rows = zip(TO_YCBCR, starts)
  return jnp.stack(
    [(i * r + j * g + k * b + start) >> 16 for (i, j, k), start in rows], -1
  )


def from_ycbcr(x: Array, values: int) -> Array:
  """YCbCr [..., 3] to the nearest RGB, clipped to 0 .. 255."""
  del values
  y, cb, cr = jnp.moveaxis(x, -1, 0)
  cb, cr = cb - 128, cr - 128
  r = y + ((RED_BY_CR * cr + HALF) >> 16)
  g = y + ((GREEN_BY_CB * cb + GREEN_BY_CR * cr + HALF) >> 16)
  b = y + ((BLUE_BY_CB * cb + HALF) >> 16)
  return jnp.stack([r, g, b], -1).clip(0, 255)


def to_ycocg(x: Array, values: int) -> Array:
  """RGB [..., 3] to Y, Co, Cg; Co and Cg are values // 2 at greys.

  Each step adds to one number what follows from others, modulo `values`:
  whatever that is, it can be taken off again.
  """
  r, g, b = jnp.moveaxis(x, -1, 0)
  half = values // 2
  co = (r - b + half) % values
  t = (b + ((co - half) >> 1)) % values
  cg = (g - t + half) % values
  y = (t + ((cg - half) >> 1)) % values
  return jnp.stack([y, co, cg], -1)


def from_ycocg(x: Array, values: int) -> Array:
  """The inverse of `to_ycocg`."""
  y, co, cg = jnp.moveaxis(x, -1, 0)
  half = values // 2
  t = (y - ((cg - half) >> 1)) % values
  g = (cg - half + t) % values
  b = (t - ((co - half) >> 1)) % values
  r = (co - half + b) % values
  return jnp.stack([r, g, b], -1)


def from_config(model: ConfigDict) -> Colour:
  """The colours of a config's section `model`."""
  return Colour(model.colour, tuple(model.channel_order), model.num_values)


def problems(model: ConfigDict) -> list[str]:
  """Every rule about colour that a config's section `model` breaks."""
  out = []
  order, c = tuple(model.channel_order), model.channels
  if order and sorted(order) != list(range(c)):
    out.append(
      f'model.channel_order={order} must be () or name each of the {c} '
      f'channels, 0 to {c - 1}, once'
    )
  if model.colour and (model.rank, c) != (2, 3):
    out.append(
      f"model.colour='{model.colour}' is for RGB images: it needs model.rank=2 "
      f'and model.channels=3 (not {model.rank} and {c})'
    )
  elif model.colour == 'ycbcr' and model.num_values != 256:
    out.append(
      f"model.colour='ycbcr' is defined for model.num_values=256, not "
      f"{model.num_values}: 'ycocg' takes any number"
    )
  return out
