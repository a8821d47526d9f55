"""Independent levels: all patches at once, none seeing another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fractal_jax import api, convert, report, sharding
from fractal_jax.models import fractal
from fractal_jax.models.types import Draws, Given, Sampling
from fractal_jax.planning import cost
from fractal_jax.training import train
from tests import tiny

NO_DRAWS = Draws(None, None)


@pytest.mark.parametrize(
  'changes',
  [
    dict(kinds=('independent', 'pixel'), sizes=(2, 1)),
    dict(kinds=('ar', 'independent', 'pixel'), sizes=(4, 2, 1), rank=1),
    dict(kinds=('independent', 'ar', 'pixel'), sizes=(4, 2, 1), rank=1),
  ],
)
def test_a_distribution_and_draws_from_it(changes):
  """Probabilities of all 16 images sum to 1; samples come as often."""
  net, params = tiny.build(num_values=2, spread=0.4, **changes)
  assert net.exact and not net.masks
  every = tiny.all_images(net)
  labels = np.ones(16, np.int32)
  score = tiny.jit(lambda p: net.score(p, every, labels, NO_DRAWS, train=False))
  nats = np.asarray(score(params).pixels.nats).reshape(16, -1).sum(1)
  p = np.exp(-nats)
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
  assert p.max() > 1.5 * p.min()
  n = 4000
  generate = tiny.jit(
    lambda p, k: (
      net.generate(
        p, jnp.ones(n, jnp.int32), k, Sampling(), guided=False
      ).values
    )
  )
  drawn = np.asarray(generate(params, tiny.keys(n))).reshape(n, -1)
  found = np.bincount(drawn @ 2 ** np.arange(4), minlength=16)
  assert scipy.stats.chisquare(found, n * p, sum_check=False).pvalue > 1e-3


def test_no_patch_sees_another():
  """A value moves the logits of its own pixel, and of no other."""
  net, params = tiny.build(('independent', 'pixel'), (4, 1), channels=2)
  image = tiny.images(net, 1)
  other = image.copy()
  other[0, 1, 2, 0] = (other[0, 1, 2, 0] + 2) % 5
  logits = tiny.jit(
    lambda p: net.predictive(
      p, np.concatenate([image, other]), np.zeros(2, np.int32), NO_DRAWS
    )[1]
  )(params)
  first, second = np.asarray(logits).reshape(2, 16, 2, 5)
  moved = (first != second).any(-1)
  assert moved[6].tolist() == [False, True] and moved.sum() == 1
  # Places differ, though: positions tell them apart.
  assert len(np.unique(first[:, 0, 0])) == 16


def test_the_label_reaches_every_patch():
  net, params = tiny.build(('independent', 'pixel'), (2, 1))
  images = np.repeat(tiny.images(net, 1), 2, 0)
  out = tiny.jit(
    lambda p: net.score(p, images, np.array([0, 1]), NO_DRAWS, train=False)
  )(params)
  first, second = np.asarray(out.pixels.nats).reshape(2, 4)
  assert (first != second).all()


def test_it_takes_all_conditions_of_a_masked_level():
  """Each of the five moves what is generated, and known values are kept."""
  kinds = ('mar', 'independent', 'pixel')
  net, params = tiny.build(kinds, (4, 2, 1), num_values=17)
  assert [s.num_conds for s in net.specs] == [5, 5, 1]
  assert net.masks and not net.exact
  image = tiny.images(net, 1)
  known = np.zeros(image.shape, bool)
  known[:, 1:3] = True  # cuts through every patch of level 0
  generate = tiny.jit(
    lambda p, given: net.generate(
      p,
      np.zeros(1, np.int32),
      tiny.keys(1),
      Sampling(iterations=(3, 1), record=True),
      guided=False,
      given=given,
    )
  )
  drawn = generate(params, Given(image, known))
  np.testing.assert_array_equal(drawn.values[known], image[known])
  assert (drawn.values[~known] != image[~known]).any()
  assert (drawn.when[known] == -1).all() and (drawn.when[~known] >= 0).all()
  c = tiny.config(kinds, (4, 2, 1), num_values=17)
  m = api.Model(c, net, params, sharding.single_device_mesh())
  found = m.explain(image[0], passes=4).conditions
  names = ['itself', 'top', 'right', 'bottom', 'left', 'itself']
  assert [c.name for c in found] == names
  assert all(c.worth for c in found)


def config():
  """A run on the digits, two steps long."""
  c = tiny.config(
    ('ar', 'independent', 'pixel'),
    (8, 2, 1),
    num_values=17,
    classes=10,
    dropout=0.1,
  )
  c.optim.update(batch=8, steps=2, warmup=0.0, log_every=1, save_every=2)
  c.data.update(threads=1, flip=False)
  c.eval.update(every=2, batch=8, num=16)
  c.sample.update(every=2, num=4)
  return c


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run trained on a mesh that splits batch, parameters and heads."""
  folder = str(tmp_path_factory.mktemp('independent'))
  c = config()
  c.mesh.update(data=2, fsdp=2, tensor=2)
  train.train(c, folder)
  return folder


def test_it_trains_and_does_all_that_a_level_does(run):
  m = api.load(run)
  assert m.mesh.shape == {'data': 2, 'fsdp': 2, 'tensor': 2}
  qkv = m.params['level_1']['blocks']['attention']['qkv']
  assert qkv.sharding.spec == tiny.QKV
  images = m.sample([1, 2], seed=3)
  nats = -m.log_prob(images, [1, 2])
  assert nats.shape == (2,) and np.isfinite(nats).all() and (nats > 0).all()
  found = m.explain(images[0], 1)
  assert found.exact and report.summary(found).count('exact') == 1
  np.testing.assert_allclose(found.total * np.log(2), nats[0], rtol=1e-4)
  assert [c.name for c in found.conditions] == ['class', 'itself', 'itself']
  mask = np.zeros((8, 8), bool)
  mask[3:7, 3:7] = True  # cuts through patches
  edited = m.edit(images, mask, [1, 2])
  np.testing.assert_array_equal(edited[:, 0][:, ~mask], images[:, ~mask])
  # On one device as on eight.
  alone = m.sample([1, 2], seed=3, batch=2)
  params = jax.device_get(m.params)
  one = api.Model(m.config, m.net, params, sharding.single_device_mesh())
  np.testing.assert_array_equal(one.sample([1, 2], seed=3), alone)
  np.testing.assert_allclose(-one.log_prob(images, [1, 2]), nats, rtol=1e-5)


def test_its_cost_and_its_lack_of_published_weights():
  counted = cost.cost(config())
  level = counted.levels[1]
  assert level.kind == 'independent' and level.length == 4
  assert level.sequences == 16 and level.sampling == level.forward
  assert 'independent' in cost.table(config())
  with pytest.raises(convert.ConvertError, match='its own kinds of levels'):
    convert.names(fractal.specs(config().model))
