"""Colours and channel orders: the transforms, and models that use them."""

import itertools

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from fractal_jax import report
from fractal_jax.inference import inputs, likelihood
from fractal_jax.models import colour, fractal
from fractal_jax.models.types import Draws, Sampling
from tests import tiny
from tests.edit_test import build, random_masks

NO_DRAWS = Draws(None, None)
KINDS = ('mar', 'pixel'), (2, 1)
CORNERS = np.array(list(itertools.product([0, 255], repeat=3)))


def test_ycbcr_is_what_jpeg_files_hold():
  rng = np.random.default_rng(0)
  rgb = np.concatenate([CORNERS, rng.integers(0, 256, (5000, 3))])
  c = colour.Colour('ycbcr')
  found = np.asarray(c.encode(rgb))
  image = Image.fromarray(rgb[None].astype(np.uint8))
  assert np.abs(found - np.asarray(image.convert('YCbCr'))[0]).max() <= 1
  y = rgb @ [0.299, 0.587, 0.114]
  exact = np.stack(
    [y, 128 + (rgb[:, 2] - y) / 1.772, 128 + (rgb[:, 0] - y) / 1.402], -1
  )
  # Rounded; what the coefficients are rounded by adds less than 0.01.
  assert np.abs(found - exact).max() < 0.51
  assert found.min() >= 0 and found.max() == 255
  grey = np.repeat(np.arange(256)[:, None], 3, 1)
  np.testing.assert_array_equal(
    c.encode(grey), grey * [1, 0, 0] + [0, 128, 128]
  )
  np.testing.assert_array_equal(c.decode(c.encode(grey)), grey)
  back = np.asarray(c.decode(found))
  assert np.abs(back - rgb).max() <= 2 and (back != rgb).any()


@pytest.mark.parametrize('values', [2, 5, 17, 256])
def test_ycocg_is_one_to_one(values):
  if values < 256:
    rgb = np.array(list(itertools.product(range(values), repeat=3)))
  else:
    rng = np.random.default_rng(0)
    rgb = np.concatenate([CORNERS, rng.integers(0, 256, (5000, 3))])
  c = colour.Colour('ycocg', (2, 0, 1), values)
  found = np.asarray(c.encode(rgb))
  assert found.min() == 0 and found.max() == values - 1
  np.testing.assert_array_equal(c.decode(found), rgb)
  if values < 256:
    assert len(np.unique(found, axis=0)) == values**3
  grey = np.repeat(np.arange(values)[:, None], 3, 1)
  wanted = np.full((values, 3), values // 2)
  wanted[:, 1] = np.arange(values)  # Cg, Y, Co in this order
  np.testing.assert_array_equal(c.encode(grey), wanted)


def test_an_order_is_a_model_of_permuted_channels():
  """The same parameters, each channel's mean and std moved with it."""
  order = (2, 0, 1)
  mean, std = (0.1, 0.5, 0.8), (0.2, 0.4, 0.6)
  named = dict(channels=3, mean=mean, std=std, channel_order=order)
  net, params = tiny.build(*KINDS, guide=False, **named)
  moved = dict(
    channels=3,
    mean=tuple(mean[i] for i in order),
    std=tuple(std[i] for i in order),
  )
  plain, _ = tiny.build(*KINDS, **moved)
  images, labels = jnp.asarray(tiny.images(net, 4)), jnp.zeros(4, jnp.int32)
  masks = [np.ones((4, 4), bool)]

  def nats(net, images):
    run = lambda p: net.apply(
      {'params': p}, images, labels, NO_DRAWS, masks, train=False
    )
    return np.asarray(tiny.jit(run)(params).pixels.nats)

  mine, theirs = nats(net, images), nats(plain, images[..., order])
  np.testing.assert_allclose(mine[:, order], theirs, rtol=1e-5)
  assert np.abs(mine - theirs).max() > 0.1


@pytest.mark.parametrize('space', ['ycbcr', 'ycocg'])
def test_generation_gives_the_colours_of_the_data(space):
  """What a model without colours draws, decoded; and when it is there."""
  changes = dict(channels=3, num_values=256)
  net, params = tiny.build(
    *KINDS, colour=space, channel_order=(1, 0, 2), **changes
  )
  plain = net.clone(colour=colour.Colour())
  sampling = Sampling(record=True)

  def draw(net):
    run = lambda p: net.generate(
      p, jnp.ones(8, jnp.int32), tiny.keys(8), sampling, guided=False
    )
    return tiny.jit(run)(params)

  mine, raw = draw(net), draw(plain)
  np.testing.assert_array_equal(mine.values, net.colour.decode(raw.values))
  last = np.asarray(raw.when).max(-1, keepdims=True)
  np.testing.assert_array_equal(
    mine.when, np.broadcast_to(last, last.shape[:-1] + (3,))
  )


def test_ycocg_models_are_distributions_over_images():
  """Probabilities of all images sum to 1: the bits are those of the image."""
  net, params = tiny.build(
    ('ar', 'pixel'), (3, 1), rank=1, channels=3, num_values=2, spread=0.4
  )
  net = net.clone(colour=colour.Colour('ycocg', (), 2))
  every = tiny.all_images(net)
  labels = jnp.ones(len(every), jnp.int32)
  score = tiny.jit(
    lambda p: net.apply({'params': p}, every, labels, NO_DRAWS, train=False)
  )
  nats = np.asarray(score(params).pixels.nats).reshape(len(every), -1).sum(1)
  np.testing.assert_allclose(np.exp(-nats).sum(), 1, rtol=1e-4)


def test_edits_keep_what_is_known_in_colours_that_are_rounded():
  m = build(
    ('mar', 'pixel'), (4, 1), channels=3, num_values=256, colour='ycbcr'
  )
  rng = np.random.default_rng(3)
  images = rng.integers(0, 256, (4, 4, 4, 3)).astype(np.uint8)
  assert (m.net.colour.decode(m.net.colour.encode(images)) != images).any()
  masks = random_masks(4, (4, 4, 1))
  out = m.edit(images, masks, seed=1)[:, 0]
  known = np.broadcast_to(~masks, images.shape)
  np.testing.assert_array_equal(out[known], images[known])
  assert (out != images).any()
  with pytest.raises(inputs.InputError, match='whole pixels'):
    m.edit(images, np.arange(3) > np.zeros((4, 4, 1)))
  found = m.explain(images[0], 1, passes=2)
  assert 'rounded colours' in report.summary(found)
  assert report.captions(found)['bits_channel_1'].startswith('channel 1, Cb:')


def test_masks_of_a_plane_in_another_order():
  m = build(('ar', 'pixel'), (2, 1), channels=3, channel_order=(2, 1, 0))
  images = tiny.images(m.net, 3)
  red = np.zeros((2, 2, 3), bool)
  red[..., 0] = True
  out = m.edit(images, red, num=4)
  np.testing.assert_array_equal(
    out[..., 1:], np.broadcast_to(images[:, None], out.shape)[..., 1:]
  )
  assert (out[..., 0] != images[:, None, ..., 0]).any()


def test_bits_of_rounded_colours_say_so():
  known = dict(bits_per_dim=3.0, stderr=0.1, mc_stderr=0.0)
  found = likelihood.Likelihood(
    **known,
    published_bits_per_dim=3.0,
    images=4,
    passes=1,
    exact=True,
    bound=False,
    rounded=True,
    dropped=0,
  )
  assert 'of rounded colours' in str(found)
  assert fractal.from_config(tiny.model()).colour == colour.Colour(values=5)
