"""Configs are found by name, wherever the package lies."""

import pathlib

from absl import flags
import pytest

from fractal_jax import config as config_lib
from fractal_jax import config_files
from tests import commandline

ROOT = pathlib.Path(__file__).parent.parent


def test_every_config_is_found_by_its_name():
  files = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
  assert config_files.names() == files and 'digits' in files
  for name in files:
    code = (ROOT / 'configs' / f'{name}.py').read_text()
    path, option = config_files.find(name)
    assert path.read_text() == code and option is None


def test_a_file_comes_first_and_options_stay(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = config_files.FOLDER / 'digits.py'
  assert config_files.find('digits:mar') == (shipped, 'mar')
  assert config_files.find('configs/digits.py:mar') == (shipped, 'mar')
  own = tmp_path / 'configs' / 'digits.py'
  own.parent.mkdir()
  own.write_text('')
  assert config_files.find('configs/digits.py')[0].samefile(own)
  assert config_files.find(f'{own}:a:b') == (own, 'a:b')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert config_files.find('~/configs/digits.py') == (own, None)


BEGIN = 'from fractal_jax import config\ndef get_config(option=None):\n  '


@pytest.mark.parametrize(
  'code, words',
  [
    ('def get_config(:', 'own.py, line 1: SyntaxError'),
    (
      'import nothing_here',
      'line 1: ModuleNotFoundError: No module',
    ),
    ('import sys\nsys.exit(3)', 'line 2: SystemExit: 3'),
    ('def f(): f()\nf()', 'RecursionError'),
    ('\0', 'own.py'),
    ('x = 1', r'has no get_config\(\)'),
    ('get_config = 1', r'has no get_config\(\)'),
    (BEGIN + '1 / 0', 'line 3: ZeroDivisionError: division by zero'),
    (BEGIN + 'raise RuntimeError("a\\nb")', 'RuntimeError: a b$'),
    (BEGIN + 'return 1', 'gives int, and not a ConfigDict'),
    (BEGIN + 'pass', 'gives NoneType'),
    (BEGIN + 'c = config.default(); c.seeed = 1', 'line 3: .*seeed'),
    (
      BEGIN + 'c = config.default().unlock(); del c["seed"]; return c',
      'lacks seed: begin with',
    ),
    (
      BEGIN + 'c = config.default().unlock(); c.model.x = 1; return c',
      'has the key model.x: begin with',
    ),
    (
      BEGIN + 'c = config.default().unlock(); del c["data"]; return c',
      'lacks data.balanced, data.bins',
    ),
  ],
)
def test_whatever_is_wrong_with_a_file_is_said(tmp_path, code, words):
  file = tmp_path / 'own.py'
  file.write_text(code)
  with pytest.raises(config_files.ConfigFileError, match=words) as found:
    config_files.load(str(file))
  assert '\n' not in str(found.value)


@pytest.mark.parametrize('name', ['ftp://a/x.py', '~nobody1/x.py', 'none.py'])
def test_a_flag_that_names_no_file_is_refused(name):
  with pytest.raises(flags.Error, match=name):
    with commandline.flags_of('cost', f'--config={name}'):
      pass


def test_a_text_is_a_file_whatever_names_are_in_it(tmp_path):
  config = config_lib.default()
  config.data.dir = 'a"""b\\N\udcff'
  path = tmp_path / 'own.py'
  text = config_files.text(config, config.data.dir, {'data.dir': '\udcff'})
  path.write_text(text)
  assert config_files.load(str(path)).data.dir == config.data.dir


@pytest.mark.parametrize('name', ['digit', 'configs/digit.py', 'a/b.py', ''])
def test_others_are_refused_with_the_names(name):
  with pytest.raises(config_files.ConfigFileError, match='mini, one_level'):
    config_files.find(name)


def test_an_installed_package_holds_the_configs():
  setup = (ROOT / 'setup.cfg').read_text()
  assert 'fractal_jax = configs/*.py, ' in setup
