"""Published weights to ours and back, and every refusal."""

import argparse
import ast
import collections
import os
import pathlib
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import fractal_jax
from fractal_jax import convert
from fractal_jax.models import fractal
from tests import tiny

AR, MAR = ('ar', 'ar', 'pixel'), ('mar', 'mar', 'pixel')
MAR4 = ('mar', 'mar', 'mar', 'pixel')
IN64 = ((64, 4, 1), (1024, 512, 128), (32, 8, 3), (16, 8, 4))
IN256, HEADS = (256, 16, 4, 1), (16, 8, 4, 4)
PUBLISHED = {  # kinds, sizes, widths, depths, heads, guide
  'fractalar_in64': (AR, *IN64, False),
  'fractalmar_in64': (MAR, *IN64, False),
  'fractalmar_base_in256': (
    MAR4, IN256, (768, 384, 192, 64), (24, 6, 3, 1), (12, 6, 3, 4), True
  ),
  'fractalmar_large_in256': (
    MAR4, IN256, (1024, 512, 256, 64), (32, 8, 4, 1), HEADS, True
  ),
  'fractalmar_huge_in256': (
    MAR4, IN256, (1280, 640, 320, 64), (40, 10, 5, 1), HEADS, True
  ),
}  # fmt: skip


def rgb(kinds, sizes, **changes):
  return tiny.build(kinds, sizes, channels=3, num_values=256, **changes)


def rgb_model(kinds, sizes, **changes):
  return tiny.model(kinds, sizes, channels=3, num_values=256, **changes)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs(name):
  """Each of our tensors is made of published ones, none used twice."""
  kinds, sizes, widths, depths, heads, guide = PUBLISHED[name]
  model = rgb_model(
    kinds,
    sizes,
    widths=widths,
    depths=depths,
    heads=heads,
    guide=guide,
    classes=1000,
  )
  ours = convert.shapes(model)
  theirs = convert.published_shapes(model)
  table = convert.names(fractal.specs(model))
  assert table.keys() == ours.keys()
  used = collections.Counter(n for names, _ in table.values() for n in names)
  assert set(used.values()) == {1} and used.keys() == theirs.keys()
  for path, (names, layout) in table.items():
    # Views of one number: they have the shapes, and take no memory.
    views = [np.broadcast_to(np.float32(0), theirs[n]) for n in names]
    shapes = {layout.ours(view).shape for view in views}
    assert len(shapes) == 1
    shape = shapes.pop()
    if convert.stacked(path):
      shape = (len(names),) + shape
    assert shape == ours[path].shape, path
  # A few by hand, as the published code declares them.
  d = widths[0]
  n = 5 if kinds[0] == 'mar' else 1
  length = (sizes[0] // sizes[1]) ** 2
  assert theirs['class_emb.weight'] == (1000, d)
  assert theirs['generator.pos_embed_learned'] == (1, n + length, d)
  qkv = 'attn.qkv' if kinds[0] == 'mar' else 'attention.wqkv'
  last = f'generator.blocks.{depths[0] - 1}.{qkv}.weight'
  assert theirs[last] == (3 * d, d)
  pixel = 'next_fractal.' * (len(sizes) - 1)
  assert theirs[f'{pixel}cond_proj.weight'] == (widths[-1], widths[-2])
  assert theirs[f'{pixel}b_codebook.weight'] == (256, widths[-1])
  guides = {n.partition('guiding')[0] for n in theirs if 'guiding' in n}
  deeper = ['next_fractal.' * i + 'generator.' for i in (1, 2)]
  assert guides == (set(deeper) if guide else set())


@pytest.mark.parametrize(
  'kinds, sizes, changes',
  [
    (('ar', 'pixel'), (2, 1), {}),
    (('mar', 'ar', 'pixel'), (4, 2, 1), {}),
    (('mar', 'mar', 'mar', 'pixel'), (8, 4, 2, 1), {'guide': True}),
    (('mar', 'pixel'), (2, 1), {'depths': (2, 0), 'num_conds': 2}),
  ],
)
def test_there_and_back(kinds, sizes, changes):
  model = rgb_model(kinds, sizes, **changes)
  _, params = rgb(kinds, sizes, **changes)
  state = convert.to_published(params, model)
  assert {k: v.shape for k, v in state.items()} == convert.published_shapes(
    model
  )
  back = convert.from_published(state, model)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  chex.assert_trees_all_equal(back, params)


def test_layouts():
  """q, k, v are stacked there; the layers are stacked here."""
  model = rgb_model(('mar', 'pixel'), (2, 1))
  _, params = rgb(('mar', 'pixel'), (2, 1))
  state = convert.to_published(params, model)
  block = params['level_0']['blocks']
  qkv = np.asarray(block['attention']['qkv'])  # [layers, D, 3, D]
  for layer in range(2):
    theirs = state[f'generator.blocks.{layer}.attn.qkv.weight']
    for i in range(3):
      np.testing.assert_array_equal(
        theirs[16 * i : 16 * (i + 1)].T, qkv[layer, :, i]
      )
    np.testing.assert_array_equal(
      state[f'generator.blocks.{layer}.mlp.fc1.weight'].T,
      block['fc1']['kernel'][layer],
    )
  for i, name in enumerate('rgb'):
    np.testing.assert_array_equal(
      state[f'next_fractal.{name}_mlm.bias'][0],
      params['level_1']['logit_bias'][i],
    )


@pytest.fixture(scope='module')
def small():
  model = rgb_model(('ar', 'pixel'), (2, 1))
  _, params = rgb(('ar', 'pixel'), (2, 1))
  return model, convert.to_published(params, model)


def test_every_misfit_is_named(small):
  model, state = small
  state = dict(state)
  del state['generator.patch_emb.bias']
  state['ema.rate'] = np.zeros(2)
  state['fake_latent'] = np.zeros((1, 17))
  with pytest.raises(convert.ConvertError) as e:
    convert.from_published(state, model)
  text = str(e.value)
  assert 'missing: generator.patch_emb.bias (16,)' in text
  assert 'extra: ema.rate (2,)' in text
  assert 'misshapen: fake_latent is (1, 17), expected (1, 16)' in text
  assert text.count('\n') == 3  # and nothing else


def test_broken_numbers_are_named(small):
  model, state = small
  broken = state | {'fake_latent': state['fake_latent'] * np.nan}
  with pytest.raises(convert.ConvertError, match='fake_latent holds nan.*1 of'):
    convert.from_published(broken, model)


def test_other_values_have_no_published_layout():
  with pytest.raises(convert.ConvertError, match='256 values'):
    convert.names(fractal.specs(tiny.model()))


# Files.


def test_tensors_of_other_kinds_are_refused(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'w.pth'
  for tensor, kind in (
    (torch.zeros(2, dtype=torch.complex64), 'complex64'),
    (torch.zeros(2, dtype=torch.bool), 'bool'),
    (torch.eye(2).to_sparse(), 'sparse'),
  ):
    torch.save({'model': {'a': torch.zeros(2), 'b': tensor}}, path)
    with pytest.raises(convert.ConvertError, match=f'b is .*{kind}.*dense'):
      convert.read_pth(str(path))
  torch.save({1: torch.zeros(2)}, path)
  with pytest.raises(convert.ConvertError, match='holds no state dict'):
    convert.read_pth(str(path))


def test_file_there_and_back(small, tmp_path):
  pytest.importorskip('torch')
  _, state = small
  path = str(tmp_path / 'w.pth')
  convert.write_pth(path, state)
  back = convert.read_pth(path)
  assert back.keys() == state.keys()
  for name in state:
    np.testing.assert_array_equal(back[name], state[name])


def test_published_layout_and_bare_state(small, tmp_path):
  """With the optimizer, the arguments and the rest, or the tensors alone."""
  torch = pytest.importorskip('torch')
  tensors = {k: torch.from_numpy(v) for k, v in small[1].items()}
  full = {
    'model': tensors,
    'optimizer': {'state': {0: {'step': torch.ones(1)}}},
    'epoch': 3,
    'scaler': {},
    'args': argparse.Namespace(lr=1.0),
  }
  for i, file in enumerate((full, tensors)):
    path = str(tmp_path / f'{i}.pth')
    torch.save(file, path)
    assert convert.read_pth(path).keys() == tensors.keys()


def test_half_precision_is_read(tmp_path):
  torch = pytest.importorskip('torch')
  path = str(tmp_path / 'w.pth')
  torch.save({'model': {'w': torch.ones(2, dtype=torch.bfloat16)}}, path)
  assert convert.read_pth(path)['w'].dtype == np.float32


class Trap:
  """What an attacker would put in a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('kind', ['class', 'trap'])
def test_other_classes_are_refused(kind, tmp_path):
  torch = pytest.importorskip('torch')
  marker = tmp_path / 'executed'
  other = pathlib.PurePosixPath('x') if kind == 'class' else Trap(str(marker))
  path = str(tmp_path / 'w.pth')
  torch.save({'model': {'w': torch.ones(2)}, 'args': other}, path)
  with pytest.raises(convert.ConvertError, match='w.pth is not a PyTorch'):
    convert.read_pth(path)
  assert not marker.exists()


def test_not_a_checkpoint(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'w.pth'
  path.write_text('hello')
  with pytest.raises(convert.ConvertError, match='is not a PyTorch'):
    convert.read_pth(str(path))
  with pytest.raises(convert.ConvertError, match='There is no file'):
    convert.read_pth(str(tmp_path / 'none.pth'))
  for file in ({'model': 3}, {'epoch': 3}, [torch.ones(1)], torch.ones(1)):
    torch.save(file, path)
    with pytest.raises(convert.ConvertError, match='holds no state dict'):
      convert.read_pth(str(path))


# Torch is optional.


def test_without_torch(small, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  for call in (
    lambda: convert.read_pth('w.pth'),
    lambda: convert.write_pth(str(tmp_path / 'w.pth'), small[1]),
  ):
    with pytest.raises(convert.ConvertError, match='pip install'):
      call()


def imports(path):
  """Names of the modules that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module or ''


def test_torch_is_imported_in_one_place():
  root = pathlib.Path(fractal_jax.__file__).parent
  found = [
    path.relative_to(root).as_posix()
    for path in sorted(root.rglob('*.py'))
    for name in imports(path)
    if name.split('.')[0].startswith('torch')
  ]
  assert found == ['convert.py']


def test_torch_is_not_loaded():
  """Nor by a dependency, by importing what trains and generates."""
  code = """
import importlib, sys
for name in ('convert', 'inference.sample', 'training.train', 'api'):
  importlib.import_module(f'fractal_jax.{name}')
print([m for m in sys.modules if m.split('.')[0] == 'torch'])
"""
  root = pathlib.Path(fractal_jax.__file__).parents[1]
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(root)},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == '[]'
