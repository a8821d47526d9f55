"""The documents' Python runs as it stands; their flags and files exist."""

import importlib.util
import pathlib
import re

import pytest

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.training import checkpoint
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
name_of = lambda path: path.name


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with an untrained, small runs/digits."""
  path = ROOT / 'configs' / 'digits.py'
  spec = importlib.util.spec_from_file_location('digits', path)
  spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
  config = module.get_config()
  config.model.update(widths=(16, 16, 16), depths=(1, 1, 1), heads=(2, 2, 2))
  net = fractal.from_config(config.model)
  folder = tmp_path_factory.mktemp('docs')
  params = tiny.jit(lambda: sharding.unbox(tiny.init(net)))()
  checkpoint.save_params(str(folder / 'runs' / 'digits'), config, params)
  return folder


@pytest.mark.parametrize(
  'page', [PAGES[0], ROOT / 'docs' / 'edit.md'], ids=name_of
)
def test_python_runs_as_it_stands(page, runs, monkeypatch):
  monkeypatch.chdir(runs)
  blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.S)
  assert blocks
  names = {}
  for block in blocks:
    exec(compile(block, page.name, 'exec'), names)
  # What the comments say of shapes.
  for block in blocks:
    for name, shape in re.findall(r'^(\w+) = .*# \[([\d, ]+)\]', block, re.M):
      assert names[name].shape == tuple(map(int, shape.split(','))), name


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_flags_and_files_exist(page):
  text = page.read_text()
  sources = {
    p.stem: p.read_text() for p in ROOT.glob('fractal_jax/commands/*.py')
  }
  defined = {
    name: set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source))
    for name, source in sources.items()
  }
  for command, rest in re.findall(r'fractal-jax (\w+)( .*--.*)', text):
    assert command in defined, command
    rest = rest.split('`')[0].split('#')[0]
    for flag in re.findall(r'--(\w+)(?=[=\s\]]|$)', rest):
      assert flag in defined[command] | defined['common'], (command, flag)
  links = re.findall(r'\]\(([^)#]+)\)', text)
  links += re.findall(r'src="([^"]+)"', text)
  for link in links:
    if not link.startswith('http'):
      assert (page.parent / link).exists(), link
