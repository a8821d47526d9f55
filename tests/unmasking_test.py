"""Steps of masked levels: their plan, and orders by confidence."""

import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax.models import unmasking
from fractal_jax.models.types import Draws, Sampling
from tests import tiny


@pytest.fixture(scope='module')
def model():
  return tiny.build(('mar', 'pixel'), (4, 1), channels=2, num_values=9)


def plan(net, networks=2, order='random', **changes):
  sampling = Sampling(iterations=(16,), **changes)
  return unmasking.plan(net.specs[0], sampling, order, networks)


def test_steps_run_the_networks_that_their_interval_asks_for(model):
  found = plan(model[0], interval=(0.25, 0.75))
  guided = [found.programs[i].guided for i in found.program]
  there = 16 - found.still
  np.testing.assert_array_equal(guided, (there >= 4) & (there < 12))
  assert {p.guided for p in plan(model[0]).programs} == {True}
  alone = plan(model[0], networks=1, interval=(0.25, 0.75))
  assert {p.guided for p in alone.programs} == {True}  # all that there is


@pytest.mark.parametrize('order', ['random', 'confidence'])
@pytest.mark.parametrize('step_sizes', ['cosine', 'two-stage'])
def test_programs_are_few_and_hold_what_their_steps_draw(
  model, order, step_sizes
):
  found = plan(
    model[0], order=order, step_sizes=step_sizes, interval=(0.2, 0.6)
  )
  assert len(found.programs) <= 4
  sizes = np.array([found.programs[i].size for i in found.program])
  needed = found.still - (0 if order == 'confidence' else found.left)
  assert (sizes >= needed).all()
  assert (found.still[1:] == found.left[:-1]).all() and found.left[-1] == 0


def test_by_confidence_the_likeliest_patches_stay(model):
  """Of the first step all patches are known from drawing them in one step."""
  net, params = model
  labels = np.array([0, 1, 2])

  def draw(**how):
    how = Sampling(record=True, **how)
    return tiny.jit(lambda p, k: net.generate(p, labels, k, how, guided=False))(
      params, tiny.keys(3)
    )

  together = np.asarray(draw(iterations=(1,)).values).reshape(3, 16, 2)
  mask = np.ones((3, 16), bool)
  score = tiny.jit(
    lambda p, x: net.apply(
      {'params': p}, x, jnp.asarray(labels), Draws(None, None), [mask],
      train=False,
    )
  )  # fmt: skip
  nats = score(params, together.reshape(3, 4, 4, 2)).pixels.nats
  nats = np.asarray(nats).sum(-1).reshape(3, 16)
  drawn = draw(iterations=(2,), order=('confidence',))
  when = np.asarray(drawn.when).reshape(3, 16, 2)[..., 0]
  values = np.asarray(drawn.values).reshape(3, 16, 2)
  for i in range(3):
    first = when[i] == when[i].min()
    assert first.sum() == 16 - 11  # cosine, two steps
    assert nats[i][first].max() < nats[i][~first].min()
    np.testing.assert_array_equal(values[i][first], together[i][first])
  assert (values != together).any()
