"""The Python interface: jobs that are watched, and what a model looks like."""

from importlib import metadata
import inspect
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import fractal_jax
from fractal_jax import api
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs
from fractal_jax.models.types import NEVER
from fractal_jax.training import checkpoint
from tests import tiny
from tests.edit_test import build


@pytest.fixture(scope='module')
def model():
  return build(('mar', 'pixel'), (4, 1))


def test_a_model_is_shown_in_four_lines(model):
  number = sum(x.size for x in jax.tree.leaves(model.params))
  assert repr(model).splitlines() == [
    f'fractal_jax Model: {number:,} parameters',
    '  levels: mar 4x4 → pixel',
    '  images: 4x4, 2 channels of 5 values, 3 classes',
    '  mesh: data=1, fsdp=1, tensor=1',
  ]


LOAD = """
import sys
import fractal_jax
print(fractal_jax.load(sys.argv[1]))
heavy = {'matplotlib', 'sklearn', 'scipy.optimize', 'grain', 'tensorflow',
  'gradio', 'tensorboard', 'tensorflow_datasets', 'imageio'} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""


def test_loading_is_quiet_and_imports_nothing_to_plot_or_read_data(
  model, tmp_path
):
  workdir = str(tmp_path / 'run')
  checkpoint.save_params(workdir, model.config, model.params)
  done = subprocess.run(
    [sys.executable, '-W', 'error::UserWarning', '-c', LOAD, workdir],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and done.stderr == '', done.stderr
  assert done.stdout.startswith('fractal_jax Model: ')


def test_the_package_says_that_it_is_typed():
  folder = pathlib.Path(fractal_jax.__file__).parent
  assert (folder / 'py.typed').exists()
  for function in (fractal_jax.load, *map(model_method, api.JOBS)):
    hints = function.__annotations__
    names = inspect.signature(function).parameters
    assert set(names) - {'self'} == set(hints) - {'return'}, function
    assert 'return' in hints


def model_method(name):
  return getattr(api.Model, name)


def test_the_version_is_the_installed_one():
  assert fractal_jax.__version__ == metadata.version('fractal_jax')
  with pytest.raises(AttributeError, match='no_such_name'):
    fractal_jax.no_such_name  # noqa: B018


def test_a_stream_ends_with_what_the_method_returns(model):
  images = tiny.images(model.net, 5)
  mask = np.ones((4, 4), bool)
  for job, args, how, doing in (
    ('sample', ([0, 1, -1],), {'iterations': (5,)}, ['drawing'] * 6),
    ('log_prob', (images, 1), {'passes': 2, 'batch': 4}, ['scoring'] * 4),
    (
      'edit',
      (images[:1], mask),
      {'candidates': 2, 'iterations': (2,)},
      ['drawing'] * 3 + ['scoring'],
    ),
  ):
    *told, last = model.stream(job, *args, **how)
    assert [x.doing for x in told] == doing
    assert told[-1].share == 1 and all(x.result is None for x in told)
    wanted = getattr(model, job)(*args, **how)
    np.testing.assert_array_equal(last.result, wanted)
    assert last.doing == 'done' and last.result.dtype == wanted.dtype
  *told, last = model.stream('explain', images[0], 1, passes=3, batch=2)
  found = model.explain(images[0], 1, passes=3, batch=2)
  np.testing.assert_array_equal(last.result.each, found.each)
  assert [x.done for x in told] == list(range(1, 2 * 3 + 1))  # 2 conditions


def test_leaving_the_loop_ends_the_job(model, monkeypatch):
  for progress in model.stream('sample', num=4, iterations=(5,)):
    if progress.done == 2:
      break
  drawn = progress.drawn.when < NEVER
  assert 0 < drawn.mean() < 1
  assert progress.result is None


def test_streams_refuse_in_words(model):
  with pytest.raises(
    inputs.InputError, match="no job 'draw': there are sample"
  ):
    model.stream('draw')
  with pytest.raises(inputs.InputError, match=r'labels \[99\]: classes are'):
    next(model.stream('sample', 99))


@pytest.mark.parametrize('name', [None, 5, b'digits_ar'])
def test_a_name_is_a_text(name):
  with pytest.raises(UserError, match='is no name of a run or release'):
    api.load(name)
