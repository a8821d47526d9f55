"""Editing: known values stay, masks of any shape."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from fractal_jax import api, sharding
from fractal_jax import config as config_lib
from fractal_jax.inference import inputs, sample
from fractal_jax.inference.progress import result_of
from fractal_jax.models import mar, pixel
from fractal_jax.models.types import Draws, Given, Network, Request, Sampling
from tests import tiny

KINDS = [('ar', 'mar', 'pixel'), ('mar', 'ar', 'pixel')]


def build(kinds, sizes=(4, 2, 1), mesh=None, spread=0.3, **changes):
  """A Model of random parameters."""
  changes = {'channels': 2} | changes
  c = tiny.config(kinds, sizes, **changes)
  c.sample.update(guidance=1.0, iterations=(2, 2)[: len(sizes) - 1], batch=8)
  net, params = tiny.build(kinds, sizes, spread=spread, **changes)
  return api.Model(c, net, params, mesh or sharding.single_device_mesh())


def random_masks(n, shape, seed=0):
  """Of every density, cutting through patches; all and nothing among them."""
  rng = np.random.default_rng(seed)
  density = np.linspace(0, 1, n).reshape((n,) + (1,) * len(shape))
  pixels = rng.random((n,) + shape[:-1] + (1,)) < density
  planes = rng.random((n,) + shape) < density
  by_pixel = (np.arange(n) % 2).reshape(density.shape) == 0
  return np.where(by_pixel, pixels, planes)


@pytest.mark.parametrize('guidance', [1.0, 3.0])
@pytest.mark.parametrize('kinds', KINDS)
def test_known_values_are_kept_and_the_rest_is_drawn(kinds, guidance):
  m = build(kinds, guide='mar' in kinds)
  for seed in range(8):
    images = tiny.images(m.net, 8, seed).astype(np.uint8)
    masks = random_masks(8, images.shape[1:], seed)
    assert not masks[0].any() and masks[-1].all()
    how = {'labels': [0, 1, 2, -1] * 2, 'guidance': guidance, 'seed': seed}
    out = m.edit(images, masks, num=2, **how)
    assert out.shape == (8, 2) + images.shape[1:] and out.dtype == np.uint8
    for i in range(2):
      np.testing.assert_array_equal(out[:, i][~masks], images[~masks])
    assert (out[:, 0][masks] != out[:, 1][masks]).any()
    assert (out[:, 0][masks] != images[masks]).any()
  # What is drawn where nothing is known is what `sample` draws.
  free = m.edit(images, np.ones_like(masks), 1, guidance=guidance)[:, 0]
  np.testing.assert_array_equal(free, m.sample([1] * 8, guidance=guidance))
  whole = m.edit(images, np.zeros_like(masks), guidance=guidance)[:, 0]
  np.testing.assert_array_equal(whole, images)


def test_guides_are_means_that_the_known_values_allow():
  spec = build(('ar', 'mar', 'pixel'), guide=True).net.specs[1]
  for seed in range(20):
    rng = np.random.default_rng(seed)
    square = rng.integers(0, 5, (1, 2, 2, 2), np.int32)
    known = rng.random((1, 2, 2, 2)) < 0.6
    every = np.array(list(itertools.product(range(5), repeat=4)))
    every = np.where(
      known.reshape(4, 2), square.reshape(4, 2), every[:, :, None]
    )
    means = np.round(every.mean(1))  # [5^4, C]: of all that it may become
    least, most = mar.possible_means(Given(square, known), spec)
    np.testing.assert_array_equal(least[0], means.min(0))
    np.testing.assert_array_equal(most[0], means.max(0))
  least, most = mar.possible_means(Given(square, known | True), spec)
  np.testing.assert_array_equal(least[0], np.round(square[0].mean((0, 1))))
  np.testing.assert_array_equal(most, least)


def test_guides_are_drawn_within_bounds():
  """By the network's own distribution, given that they lie there."""
  m = build(('ar', 'mar', 'pixel'), guide=True, spread=0.5)
  guide = pixel.PixelLevel(pixel.guide_spec(m.net.specs[1]))
  conds = np.ones((2, 1000, 1, 16), np.float32)
  conds[1] = -1
  params, keys = m.params['level_1']['guide'], tiny.keys(1000)
  flat = Sampling(temperature=1 / 0.03)

  @functools.partial(tiny.jit, static_argnames='free')
  def draw(bounds, free=False):
    wanted = Request((conds,), keys, guidance=1.0)
    steps = guide.generate(
      [Network(guide, params)], wanted, flat, bounds=None if free else bounds
    )
    return steps.run().values.reshape(1000, 2)

  both = lambda *ends: tuple(np.full((1000, 2), x) for x in ends)
  free, inside = draw(both(0, 4), free=True), draw(both(1, 3))
  np.testing.assert_array_equal(free, draw(both(0, 4)))
  assert free.min() == 0 and free.max() == 4
  assert inside.min() == 1 and inside.max() == 3
  share = lambda x: np.bincount(x[(x >= 1) & (x <= 3)], minlength=5)
  wanted = share(free[:, 0]) / share(free[:, 0]).sum()
  found = share(inside[:, 0]) / 1000
  np.testing.assert_allclose(found, wanted, atol=5 * 0.7 / np.sqrt(500))
  np.testing.assert_array_equal(draw(both(2, 2)), both(2)[0])


def test_a_level_is_told_the_true_mean_of_known_channels():
  """Whatever its guide would rather draw of them."""
  m = build(('ar', 'mar', 'pixel'), guide=True, spread=0.5)

  def rather(value):
    bias = m.params['level_1']['guide']['logit_bias']
    own = m.params['level_1'] | {
      'guide': m.params['level_1']['guide']
      | {'logit_bias': bias.at[0, value].add(100.0)}
    }
    return dataclasses.replace(m, params=m.params | {'level_1': own})

  images = tiny.images(m.net, 8)
  second = np.ones(images.shape, bool)
  second[..., 0] = False
  for mask, differs in ((second, False), (second | True, True)):
    low, high = (rather(x).edit(images, mask, num=2) for x in (0, 4))
    assert (low != high).any() == differs


def test_a_new_mask_and_image_do_not_compile_again():
  m = build(('mar', 'ar', 'pixel'), guide=True)
  images = tiny.images(m.net, 8)
  masks = random_masks(8, images.shape[1:])
  m.edit(images, masks)
  compiled = []
  count = lambda name, _, **__: compiled.append(name)
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    m.edit(images + 0, random_masks(8, images.shape[1:], seed=1), seed=4)
    m.edit(images[:, ::-1], np.ones((4, 4), bool), 2)
    m.edit(images, masks[..., :1], temperature=1.5)
    assert not [name for name in compiled if 'compile' in name]
    jax.jit(lambda x: x + 1)(np.ones(7))  # does it count?
    assert [name for name in compiled if 'compile' in name]
  finally:
    jax.monitoring.unregister_event_duration_listener(count)


def test_edits_are_the_same_on_any_mesh():
  """Five images, padded to eight; a mask that cuts through patches."""
  c = config_lib.default()
  c.mesh.update(data=4, fsdp=2)
  one = build(('mar', 'pixel'), (4, 1))
  eight = build(('mar', 'pixel'), (4, 1), mesh=sharding.make_mesh(c))
  images = tiny.images(one.net, 5)
  masks = random_masks(5, images.shape[1:])
  np.testing.assert_array_equal(
    one.edit(images, masks), eight.edit(images, masks)
  )


def test_masked_levels_see_known_patches_wherever_they_are():
  """The last patch tells of the first in mar levels; in ar levels it can't."""
  images = np.zeros((1, 4, 4, 1), np.int32)
  other = images.copy()
  other[0, 2:, 2:] = 4
  mask = np.ones((4, 4), bool)
  mask[2:, 2:] = False
  for kind, differs in (('mar', True), ('ar', False)):
    m = build((kind, 'ar', 'pixel'), channels=1, spread=0.5)
    a, b = (m.edit(x, mask, num=128)[0, :, :2, :2] for x in (images, other))
    assert (a != b).any() == differs


def test_partly_known_patches_condition_their_other_values():
  """An ar patch known in its first pixel: the second follows its law."""
  m = build(('ar', 'pixel'), (2, 1), channels=1, spread=0.5)
  image = np.array([[[[3], [0]], [[0], [0]]]])
  mask = np.array([[False, True], [False, False]])
  out = m.edit(image, mask, num=2000, batch=500)[0, :, 0, 1, 0]
  found = np.bincount(out, minlength=5) / 2000
  # Given the pixels before alone: those after it can't be seen.
  every = np.repeat(image, 5, 0)
  every[:, 0, 1, 0] = np.arange(5)
  _, logits = tiny.jit(m.net.predictive)(
    m.params, every, -np.ones(5, np.int32), Draws(None, None)
  )
  wanted = np.asarray(jax.nn.softmax(logits.reshape(5, 4, 5)[0, 1]))
  assert wanted.max() < 0.9
  np.testing.assert_allclose(found, wanted, atol=5 * 0.5 / np.sqrt(2000))


def test_log_prob_of_a_completion_by_the_chain_rule():
  """log p(lower | upper) = log p(image) - log p(upper): ar, raster order.

  p(upper) is a sum over all lower halves; the conditional is counted in edits,
  and computed from the bits of each value.
  """
  m = build(('ar', 'pixel'), (2, 1), channels=1, num_values=3, spread=0.5)
  every = tiny.all_images(m.net)
  p = np.exp(m.log_prob(every, 1))
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
  upper = (every[:, 0] == every[40, 0]).all((1, 2))
  conditional = p[upper] / p[upper].sum()
  assert conditional.max() < 0.9
  mask = inputs.make_mask('lower', m.config.model)
  drawn = m.edit(every[40:41], mask, 1, num=4000, batch=500)[0]
  counts = [(drawn == x).all((1, 2, 3)).mean() for x in every[upper]]
  assert np.isclose(sum(counts), 1)
  np.testing.assert_allclose(counts, conditional, atol=5 * 0.5 / np.sqrt(4000))
  # By the chain rule: the bits of the lower values alone.
  bits = m.explain(every[40], 1).bits[1:].sum()
  np.testing.assert_allclose(
    -bits * np.log(2), np.log(p[40]) - np.log(p[upper].sum()), rtol=1e-5
  )


def test_candidates_are_likelier():
  m = build(('ar', 'pixel'), (4, 1), channels=1, spread=0.5)
  images, mask = tiny.images(m.net, 2), np.ones((4, 4), bool)
  one = m.log_prob(m.edit(images, mask, 1, num=4).reshape(8, 4, 4, 1), 1)
  best = m.edit(images, mask, 1, num=4, candidates=8)
  best = m.log_prob(best.reshape(8, 4, 4, 1), 1)
  assert best.mean() > one.mean() + 0.5


def test_log_prob_of_any_number_of_images_on_any_mesh():
  c = config_lib.default()
  c.mesh.update(data=4, fsdp=2)
  one = build(('mar', 'pixel'), (4, 1))
  eight = build(('mar', 'pixel'), (4, 1), mesh=sharding.make_mesh(c))
  images = tiny.images(one.net, 5)
  np.testing.assert_allclose(
    one.log_prob(images, passes=2, batch=8),
    eight.log_prob(images, passes=2, batch=8),
    rtol=1e-5,
  )


def test_when_known_values_were_there():
  m = build(('mar', 'pixel'), (4, 1))
  images = tiny.images(m.net, 1)
  known = random_masks(5, images.shape[1:])[2:3]
  job = sample.draw(
    m.net,
    m.params,
    m.config,
    np.zeros(1, np.int32),
    given=Given(images, known),
    record=True,
    iterations=(3,),
  )
  drawn = result_of(job)
  assert (drawn.when[known] == -1).all() and (drawn.when[~known] >= 0).all()
