"""Guidance: intervals, other networks, resampling, numbers for each level."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from fractal_jax.models import guidance
from fractal_jax.models.fractal import Guide
from fractal_jax.models.types import Given, Sampling
from tests import tiny

KINDS = ('ar', 'mar')
LABELS = np.array([0, 2, 1])
SAMPLING = Sampling(guidance=4.0, order=('raster',))


@functools.cache
def model(kind):
  return tiny.build((kind, 'pixel'), (4, 1), channels=2, num_values=9)


@functools.cache
def images(kind, sampling=None, guided=True, guide=None):
  """Images of a model, in raster order; guide: parameters' name, see GUIDES."""
  net, params = model(kind)
  other = guide and GUIDES[guide](kind)
  return draw(net, params, sampling or SAMPLING, guided, other)


def draw(net, params, sampling, guided=True, guide=None, given=None):
  generate = tiny.jit(
    lambda params, guide, keys: (
      net.generate(
        params,
        LABELS,
        keys,
        sampling,
        guided=guided,
        guide=guide,
        given=given,
      ).values
    )
  )
  return np.asarray(generate(params, guide, tiny.keys(len(LABELS))))


def itself(kind):
  return Guide(*model(kind))


def classless(kind):
  """The model that takes any class for none."""
  net, params = model(kind)
  labels = params['labels']
  table = jnp.tile(labels['none'], (len(labels['table']), 1))
  return Guide(net, params | {'labels': labels | {'table': table}})


def smaller(kind):
  """A network of other widths and depths, and another number of conditions."""
  return Guide(
    *tiny.build(
      (kind, 'pixel'),
      (4, 1),
      channels=2,
      num_values=9,
      seed=5,
      widths=(24, 8),
      depths=(1, 0),
      num_conds=1,
    )
  )


GUIDES = dict(itself=itself, classless=classless, smaller=smaller)


@pytest.mark.parametrize('kind', KINDS)
def test_a_guide_that_is_the_model_itself_changes_nothing(kind):
  plain = images(kind, guided=False)
  assert (images(kind) != plain).any()
  np.testing.assert_array_equal(images(kind, guide='itself'), plain)


@pytest.mark.parametrize('kind', KINDS)
def test_a_guide_is_the_second_stream(kind):
  """One that knows no class is the model without classes."""
  found = images(kind, guide='classless')
  np.testing.assert_array_equal(found, images(kind))
  assert (images(kind, guide='smaller') != found).any()


@pytest.mark.parametrize('guide', [None, 'smaller'])
@pytest.mark.parametrize('kind', KINDS)
def test_an_interval_guides_within_it(kind, guide):
  """Before it values are those without guidance, in it those with, given
  what was drawn before."""
  net, params = model(kind)
  late = SAMPLING.replace(interval=(0.5, 1.0))
  found = images(kind, late, guide=guide)
  plain = images(kind, guided=False)
  np.testing.assert_array_equal(found[:, :2], plain[:, :2])
  assert (found != plain).any()
  known = np.zeros(found.shape, bool)
  known[:, :2] = True
  given = Given(jnp.asarray(plain), jnp.asarray(known))
  other = guide and GUIDES[guide](kind)
  want = draw(net, params, SAMPLING, guide=other, given=given)
  np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize('kind', KINDS)
def test_an_early_interval_is_guided_first(kind):
  early = images(kind, SAMPLING.replace(interval=(0.0, 0.5)))
  np.testing.assert_array_equal(early[:, :2], images(kind)[:, :2])
  assert (early != images(kind)).any()
  # All steps of level 0 lie in this one: two networks do what one did.
  all_of_it = images(kind, SAMPLING.replace(interval=(0.0, 0.99)))
  np.testing.assert_array_equal(all_of_it, images(kind))


# Numbers for each level that draws.


def test_levels_have_their_own_guidance_and_temperature():
  net, params = tiny.build(
    ('ar', 'mar', 'pixel'), (4, 2, 1), guide=True, num_conds=1, num_values=9
  )

  @tiny.jit
  def both(guidance, temperature):
    sampling = Sampling(guidance=guidance, temperature=temperature)
    return net.generate(
      params, LABELS, tiny.keys(3), sampling, guided=True
    ).values

  once = both(jnp.array([3.0, 3.0]), jnp.array([0.8, 0.8]))
  one = tiny.jit(
    lambda g, t: (
      net.generate(
        params, LABELS, tiny.keys(3), Sampling(g, t), guided=True
      ).values
    )
  )(3.0, 0.8)
  np.testing.assert_array_equal(once, one)
  for changed in (([0.0, 3.0], [0.8, 0.8]), ([3.0, 3.0], [0.8, 0.1])):
    assert (both(*map(jnp.array, changed)) != once).any()


# Resampling.


def test_of_one_candidate_nothing_is_chosen():
  one = images('mar', SAMPLING.replace(resample=1))
  np.testing.assert_array_equal(one, images('mar', guided=False))
  three = images('mar', SAMPLING.replace(resample=3))
  assert (three != one).any() and (three != images('mar')).any()


@pytest.mark.parametrize('candidates', [2, 40])
def test_resampled_values_follow_their_law(candidates):
  """Of two candidates exactly; of many nearly the guided distribution."""
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 5)).astype(np.float32)
  sampling = Sampling(filter_threshold=0.0, resample=candidates)
  n = 40_000
  uniforms = jax.random.uniform(jax.random.key(0), (n, candidates + 1))
  stretched = jnp.tile(jnp.asarray(logits)[:, None], (1, n, 1))
  draw = tiny.jit(lambda x, u: guidance.draw(x, u, 2.0, sampling))
  found = np.bincount(draw(stretched, uniforms), minlength=5)
  p = scipy.special.softmax(logits[0])
  w = np.exp(logits[0] - logits[1])  # guided by 2 over unguided
  if candidates == 2:
    pairs = np.outer(p, p) * w[:, None] / (w[:, None] + w)
    want = pairs.sum(1) * 2
    np.testing.assert_allclose(want.sum(), 1, rtol=1e-6)
    assert scipy.stats.chisquare(found, n * want, sum_check=False).pvalue > 1e-3
  else:
    guided = p * w / (p * w).sum()
    np.testing.assert_allclose(found / n, guided, atol=0.02)
    assert abs(p - guided).max() > 0.1


def test_resampling_keeps_to_bounds():
  uniforms = jax.random.uniform(jax.random.key(0), (500, 4))
  logits = jnp.zeros((2, 500, 7))
  bounds = jnp.full(500, 2), jnp.full(500, 4)
  sampling = Sampling(resample=3)
  values = guidance.draw(logits, uniforms, 2.0, sampling, bounds)
  assert set(np.unique(values)) == {2, 3, 4}
