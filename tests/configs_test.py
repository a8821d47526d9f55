"""Every file in configs/: it loads, keeps the rules, says what it is for."""

import importlib.util
import pathlib

import pytest

from fractal_jax import config as config_lib
from fractal_jax.models import fractal

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
FILES = sorted(path.stem for path in CONFIGS.glob('*.py'))
OPTIONS = {
  'digits': ('ar', 'mar'),
  'emoji': ('small', 'small_mar'),
  'mini': ('ar', 'mar'),
  'one_level_in64': ('ar', 'mar'),
  'two_level_in64': ('ar', 'mar'),
}


def load(name):
  path = CONFIGS / f'{name}.py'
  spec = importlib.util.spec_from_file_location(f'configs_{name}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('name', FILES)
def test_config(name):
  module = load(name)
  job = 'cost' if name == 'one_level_in64' else 'train'
  command = f'fractal-jax {job} --config=configs/{name}.py'
  assert command in module.__doc__
  for word in ('Hardware:', 'Hours:', 'Expected'):
    assert word in module.__doc__, f'configs/{name}.py says no {word}'
  for option in (None, *OPTIONS.get(name, ())):
    c = module.get_config(option) if option else module.get_config()
    config_lib.check(c)
    assert c.is_locked
    if option in ('ar', 'mar'):
      assert set(c.model.kinds[:-1]) == {option}


@pytest.mark.parametrize('name', FILES)
def test_unknown_option(name):
  with pytest.raises(ValueError) as e:
    load(name).get_config('mra')
  for word in (name, 'mra', *OPTIONS.get(name, ())):
    assert word in str(e.value)


def test_published_recipe():
  """Peak learning rate and warm-up of the recipe, in its own units."""
  for name, batch, epochs in (
    ('fractalar_in64', 2048, 800),
    ('fractalmar_in64', 2048, 800),
    ('fractalmar_base_in256', 1024, 800),
    ('fractalmar_large_in256', 1024, 800),
    ('fractalmar_huge_in256', 1024, 600),
  ):
    o = load(name).get_config().optim
    assert (o.batch, o.epochs, o.lr) == (batch, epochs, 5e-5)
    assert o.warmup * o.epochs == pytest.approx(40)
    assert (o.b1, o.b2, o.weight_decay, o.clip) == (0.9, 0.95, 0.05, 3.0)


def test_guides_of_the_large_models():
  specs = fractal.specs(load('fractalmar_large_in256').get_config().model)
  assert [s.guide for s in specs] == [False, True, True, False]
  assert [s.num_conds for s in specs] == [5, 5, 5, 1]
