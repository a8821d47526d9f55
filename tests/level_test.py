"""The interface of a level is all that is asked: a toy kind is one class."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fractal_jax
from fractal_jax import api, convert, sharding
from fractal_jax import config as config_lib
from fractal_jax.models import fractal, kinds, rules
from fractal_jax.models.fractal import Guide
from fractal_jax.models.independent import IndependentLevel
from fractal_jax.models.keys import fold_in
from fractal_jax.models.level import Level
from fractal_jax.models.patches import patchify
from fractal_jax.models.types import (
  NEVER,
  Drawn,
  Draws,
  Given,
  Request,
  Sampling,
)
from fractal_jax.planning import cost
from fractal_jax.series import scores
from fractal_jax.series.detector import DetectorError, FractalDetector
from tests import tiny

PACKAGE = pathlib.Path(fractal_jax.__file__).parent


class ToyLevel(IndependentLevel):
  """A level whose patches all have the same condition, that of the square."""

  @staticmethod
  def conditions(rank):
    return ('the square',)

  @staticmethod
  def problems(spec):
    return ['toy levels have no 13 patches'] if spec.length == 13 else []

  def outputs(self, patches, conds, *, train):
    x = super().outputs(patches, conds, train=train)
    return jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)


@pytest.fixture
def toy(monkeypatch):
  monkeypatch.setitem(kinds.KINDS, 'toy', ToyLevel)


@pytest.mark.parametrize('name', sorted(kinds.KINDS))
def test_every_kind_provides_the_interface(name):
  kind = kinds.KINDS[name]
  wanted = [x for x in Level.__dict__ if not x.startswith('_')]
  wanted = set(wanted) | set(Level.__annotations__) - {'spec'}
  assert {'BLOCK', 'MASKS', 'EXACT', 'CAUSAL', 'GUIDES'} <= wanted
  assert [x for x in wanted if not hasattr(kind, x)] == []
  for rank in (1, 2):
    assert kind.conditions(rank)[0] == 'itself'
  assert kind.EXACT != kind.MASKS
  assert kind.CAUSAL == (name in ('ar', 'independent'))


@pytest.mark.parametrize(
  'index, schedule, interval',
  [
    (0, 'linear', (0.5, 1.0)),
    (0, 'constant', (0.0, 0.5)),
    (1, 'linear', (0.5, 1.0)),
  ],
)
@pytest.mark.parametrize('name', sorted(kinds.KINDS))
def test_every_kind_asks_for_its_patches_as_it_should(
  name, index, schedule, interval
):
  """The duties that `Level.generate` lists, told by a level below.

  Channel 0 holds a draw from the patch's key, channel 1 the guidance that was
  asked for, channel 2 how many networks guide.
  """
  net, params = tiny.build((name, name, 'pixel'), (4, 2, 1), channels=3)
  network = Guide(net, params).levels()[index]
  spec, full = network.spec, 3.0
  sampling = Sampling(
    schedule=schedule,
    interval=interval,
    iterations=(4, 4),
    order=('raster', 'raster'),
    record=True,
  )

  def from_key(key):
    return jax.random.randint(key, (), 0, 1 << 20)

  def draw_patch(wanted):
    m = len(wanted.keys)
    told = [
      jax.vmap(from_key)(wanted.keys),
      jnp.full(m, jnp.round(wanted.guidance * 1000), jnp.int32),
      jnp.full(m, len(wanted.conds)),
    ]
    shape = (m, spec.patch, spec.patch, 3)
    values = jnp.broadcast_to(jnp.stack(told, 1)[:, None, None], shape)
    values = jnp.where(wanted.given.known, wanted.given.values, values)
    when = jnp.arange(spec.patch_values).reshape(shape[1:])
    return Drawn(values, jnp.broadcast_to(when, shape))

  known = np.zeros((2, spec.side, spec.side, 3), bool)
  known[:, -1, -1, 0] = True
  given = Given(jnp.full(known.shape, -7), jnp.asarray(known))
  conds = jax.random.normal(
    jax.random.key(0), (2, 1, 2, spec.num_conds, spec.cond_width)
  )

  def steps():
    request = Request(tuple(conds), tiny.keys(2), full, given)
    kind = kinds.KINDS[name]
    return kind.generate([network, network], request, sampling, draw_patch)

  start, drawn = tiny.jit(
    lambda: (steps().drawn(steps().start), steps().run())
  )()
  np.testing.assert_array_equal(start.values, np.where(known, -7, 0))
  assert (start.when == NEVER).all()
  assert (drawn.values[known] == -7).all()

  def patches(x):  # [N, L, p p, 3]
    return np.asarray(patchify(x, spec)).reshape(2, spec.length, -1, 3)

  when, values = patches(drawn.when), patches(drawn.values)
  for times in when.reshape(2, -1):
    before = (times[:, None] > times).sum(1)
    np.testing.assert_array_equal(times, before)
  values = values[:, :, 0]  # each patch's first pixel
  keys = fold_in(tiny.keys(2)[:, None], jnp.arange(spec.length))
  want = np.array(jax.vmap(jax.vmap(from_key))(keys))
  if spec.patch == 1:
    want[:, -1] = -7
  np.testing.assert_array_equal(values[..., 0], want)
  there = when.reshape(2, spec.length, -1)[..., 0] / when[0].size
  guided = np.array([[sampling.guides(x) for x in row] for row in there])
  np.testing.assert_array_equal(
    values[..., 2], np.where(guided | (index > 0), 2, 1)
  )
  scale = np.take_along_axis(values[..., 1] / 1000, there.argsort(1), 1)
  if index or schedule == 'constant' or not there.any():
    assert (scale == full).all()
  else:
    assert (np.diff(scale) >= 0).all() and scale.max() <= full
    assert (1 <= scale[:, 0]).all() and (scale[:, 0] < scale[:, -1]).all()


def test_a_toy_kind_needs_its_class_and_its_entry(toy):
  net, params = tiny.build(('toy', 'pixel'), (2, 1), num_values=3)
  assert net.exact
  every = tiny.all_images(net)
  labels = np.zeros(len(every), np.int32)
  score = tiny.jit(
    lambda p: net.score(p, every, labels, Draws(None, None), train=False)
  )
  nats = score(params).pixels.nats.reshape(len(every), 4)
  np.testing.assert_allclose(np.exp(-nats.sum(1)).sum(), 1, rtol=1e-5)
  c = tiny.config(('toy', 'pixel'), (2, 1), num_values=3)
  m = api.Model(c, net, params, sharding.single_device_mesh())
  image = m.sample(1, num=1)[0]
  found = m.explain(image, 1)
  assert found.exact and found.conditions[1].name == 'the square'
  assert cost.cost(c).levels[0].kind == 'toy'
  with pytest.raises(convert.ConvertError, match='its own kinds of levels'):
    convert.names(net.specs)


def test_a_kind_says_itself_whether_it_is_causal(toy, monkeypatch):
  """Not whether its likelihood is exact, or whether it masks."""
  detector = FractalDetector(causal=True, kind='toy')
  net = fractal.from_config(
    tiny.model(('toy', 'pixel'), (4, 1), rank=1, unknown=True)
  )
  values = np.zeros((8, 1))
  detector.check_parameters()
  scores.check(net, None, values, True)
  monkeypatch.setattr(ToyLevel, 'CAUSAL', False)
  assert net.exact and not net.masks
  with pytest.raises(DetectorError, match='kind=ar or independent,'):
    detector.check_parameters()
  with pytest.raises(scores.ScoreError, match='of ar or independent'):
    scores.check(net, None, values, True)


def test_rules_ask_the_kind(toy):
  c = config_lib.default().model
  with c.unlocked():
    c.update(kinds=('toy', 'pixel'), sizes=(13, 1), rank=1, channels=1)
    c.update(widths=(8, 8), depths=(1, 1), heads=(2, 2), num_conds=1)
    c.update(mean=(0.5,), std=(0.5,), channel_weights=(1.0,))
  assert rules.problems(c) == ['toy levels have no 13 patches']
  c.kinds = ('toys', 'pixel')
  assert (
    "'toys' must be ar or independent or mar or toy" in (rules.problems(c)[0])
  )


# Where a kind is named: choices of settings, and what is of one kind alone.
NAMED = {
  'fractal_jax/models/kinds.py',  # the table
  'fractal_jax/models/independent.py',  # whose word is its name
  'fractal_jax/config.py',  # the default of model.kinds
  'fractal_jax/planning/propose.py',  # configs that it chooses between
  'fractal_jax/pilot/images.py',
  'fractal_jax/series/settings.py',  # the default of `kind`
  'fractal_jax/series/detector.py',
  'fractal_jax/commands/anomaly.py',
  'benchmarks/emoji.py',  # names of its runs
  'benchmarks/nab.py',
  'benchmarks/published.py',  # the kinds of the published code
}


def named_kinds(path):
  """The kinds whose names stand as strings in the code of a file."""
  return {
    node.value
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and node.value in [*kinds.KINDS, 'pixel']
  }


def test_no_code_asks_for_a_kind_by_its_name():
  root = PACKAGE.parent
  found = {
    path.relative_to(root).as_posix()
    for folder in (PACKAGE, root / 'benchmarks')
    for path in folder.rglob('*.py')
    if path.relative_to(folder).parts[0] != 'configs'
    and named_kinds(path) - {'pixel'}
  }
  assert found == NAMED
  assert 'pixel' in named_kinds(PACKAGE / 'planning' / 'cost.py')


def test_initial_parameters_are_those_of_the_specs():
  net = fractal.from_config(tiny.model(('ar', 'pixel')))
  params = jax.eval_shape(lambda: tiny.init(net))
  assert set(params) == {'labels', 'level_0', 'level_1'}
