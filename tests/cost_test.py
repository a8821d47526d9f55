"""Costs against the paper's numbers, and against what XLA counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from fractal_jax import config as config_lib
from fractal_jax.models import fractal
from fractal_jax.models.types import Draws
from fractal_jax.planning import cost
from tests.configs_test import load

PARAMS = {
  'fractalar_in64': 442_068_224,
  'fractalmar_in64': 431_995_648,
  'fractalmar_base_in256': 186_300_224,
  'fractalmar_large_in256': 437_000_064,
  'fractalmar_huge_in256': 849_586_240,
}


@pytest.mark.parametrize('name', PARAMS)
def test_published_parameters(name):
  assert cost.cost(load(name).get_config()).params == PARAMS[name]


@pytest.mark.parametrize(
  'name,option,gflops',
  [
    ('fractalar_in64', None, 438),
    ('fractalmar_in64', None, 438),
    ('two_level_in64', 'ar', 5516),
    ('two_level_in64', 'mar', 5516),
    ('one_level_in64', 'ar', 29845),
    ('one_level_in64', 'mar', 29845),
  ],
)
def test_published_flops(name, option, gflops):
  c = cost.cost(load(name).get_config(option))
  assert c.total('paper') / 1e9 == pytest.approx(gflops, rel=0.02)


def test_published_flops_of_levels():
  c = cost.cost(load('fractalmar_large_in256').get_config())
  found = [level.paper / 1e9 for level in c.levels]
  np.testing.assert_allclose(found, [215, 208, 419, 22], rtol=0.02)


def small(kinds, guide=False):
  """Small grids, yet so wide that nearly all FLOPs are matrix products."""
  c = config_lib.default()
  c.model.update(
    sizes=(8, 4, 2, 1)[-len(kinds) :],
    kinds=kinds,
    widths=(1024, 768, 512, 512)[-len(kinds) :],
    depths=(1,) * len(kinds),
    heads=(4,) * len(kinds),
    classes=3,
    guide=guide,
    dropout=0.0,
    remat='none',
  )
  return c


def xla_flops(config, gradient, compiled):
  """What XLA counts where all patches go down, an image; nothing is run.

  Of the program as written or, slower, as compiled: the same within 1%.
  """
  images = 2
  net = fractal.from_config(config.model)
  # XLA counts the body of a loop once: write the layers out.
  specs = tuple(dataclasses.replace(s, unroll=True) for s in net.specs)
  net = net.clone(specs=specs)
  params = jax.eval_shape(lambda: fractal.init(net, jax.random.key(0)))
  masks, rows = [], images
  for spec in specs[:-1]:
    masks.append(np.ones((rows, spec.length), bool))
    rows *= spec.length

  def loss(params, values, labels, keys):
    draws = Draws(keys, jnp.zeros(images))
    out = net.apply(
      {'params': params}, values, labels, draws, masks, train=False
    )
    return out.pixels.nats.sum() + sum(g.nats.sum() for g in out.guides)

  side = specs[0].side
  args = jax.eval_shape(
    lambda: (
      jnp.zeros((images, side, side, 3), jnp.int32),
      jnp.zeros(images, jnp.int32),
      jax.random.split(jax.random.key(0), images),
    )
  )
  f = jax.jit(jax.grad(loss) if gradient else loss)
  program = f.lower(params, *args)
  program = program.compile() if compiled else program
  return program.cost_analysis()['flops'] / images


AR, MAR = ('ar', 'ar', 'pixel'), ('mar', 'mar', 'pixel')


@pytest.mark.parametrize(
  'kinds,guide,compiled',
  [
    (AR, False, False),
    (MAR, False, False),
    (('ar', 'mar', 'pixel'), True, True),
  ],
)
def test_forward_is_what_xla_counts(kinds, guide, compiled):
  """Within 4%: XLA also counts norms, activations and softmax."""
  c = small(kinds, guide)
  found = xla_flops(c, False, compiled)
  assert 1 <= found / cost.cost(c).total('forward') < 1.04


def test_gradient_is_three_forwards():
  c = small(MAR)
  found = xla_flops(c, True, False)
  assert found == pytest.approx(3 * cost.cost(c).total('forward'), rel=0.04)


def test_training_sends_down_what_is_masked():
  """E[ceil(ratio L)] / L, from the distribution function of the ratio."""
  c = cost.cost(load('fractalmar_in64').get_config())
  sequences, trained = 1.0, [1.0]
  for length in (256, 16):
    low, k, high = ndtr(-4), np.arange(length), ndtr(0)
    above = (high - ndtr((k / length - 1) / 0.25)) / (high - low)
    sequences *= above.sum()  # E[n] = sum of P(n > k)
    trained.append(sequences)
  found = [level.trained for level in c.levels]
  np.testing.assert_allclose(found, trained, rtol=1e-3)
  for level in c.levels:
    each = level.forward / level.sequences
    assert level.training == pytest.approx(3 * level.trained * each)
  ar = cost.cost(load('fractalar_in64').get_config())
  assert ar.total('training') == pytest.approx(3 * ar.total('forward'))


def test_sampling():
  c = load('fractalar_in64').get_config()
  once = cost.sample_flops_per_image(c, guided=False)
  assert once == cost.cost(c).total('forward')
  assert cost.sample_flops_per_image(c, guided=True) == 2 * once
  assert c.sample.iterations == (256, 16) and c.is_locked
  c = load('fractalmar_in64').get_config()
  sample = lambda *n: cost.sample_flops_per_image(c, False, n)
  outer, inner, pixels = (level.forward for level in cost.cost(c).levels)
  # In the last layer only the tokens that give conditions have queries, a
  # projection and an MLP: 20 D^2 + 4 T D a token.
  idle = lambda d, t, tokens: tokens * (20 * d * d + 4 * t * d)
  # One patch a step and itself and four neighbours to tell of; one pixel.
  outer_idle = lambda steps: idle(1024, 261, steps * 261 - 256 * 5)
  inner_idle = 256 * idle(512, 21, 16 * 21 - 16)
  assert sample() == pytest.approx(
    256 * outer - outer_idle(256) + 16 * inner - inner_idle + pixels
  )
  assert sample(64, 16) == pytest.approx(
    64 * outer - outer_idle(64) + 16 * inner - inner_idle + pixels
  )


def test_table():
  text = cost.table(load('fractalmar_large_in256').get_config())
  for word in ('437,000,064', '215.2', '207.7', '417.8', '21.63', '3 pixel'):
    assert word in text
  assert 'with guidance, 64,16,16 iterations' in text
  assert max(map(len, text.splitlines())) <= 80
