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
from fractal_jax.models.independent import IndependentLevel
from fractal_jax.models.level import Level
from fractal_jax.models.types import Draws
from fractal_jax.planning import cost
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
  assert {'BLOCK', 'MASKS', 'EXACT', 'GUIDES', 'generate', 'flops'} <= wanted
  assert [x for x in wanted if not hasattr(kind, x)] == []
  for rank in (1, 2):
    assert kind.conditions(rank)[0] == 'itself'
  assert kind.EXACT != kind.MASKS


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


def compared_names(path):
  """Strings that the code of a file compares something with."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Compare):
      for side in [node.left, *node.comparators]:
        for part in ast.walk(side):
          if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def test_no_code_asks_for_a_kind_by_its_name():
  found = [
    (path.relative_to(PACKAGE).as_posix(), name)
    for path in PACKAGE.rglob('*.py')
    for name in compared_names(path)
    if name in kinds.KINDS
  ]
  assert found == []
  assert 'pixel' in set(compared_names(PACKAGE / 'planning' / 'cost.py'))


def test_initial_parameters_are_those_of_the_specs():
  net = fractal.from_config(tiny.model(('ar', 'pixel')))
  params = jax.eval_shape(lambda: tiny.init(net))
  assert set(params) == {'labels', 'level_0', 'level_1'}
