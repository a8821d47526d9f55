"""Configs are found by name, wherever the package lies."""

import pathlib

import pytest

from fractal_jax import config_files

ROOT = pathlib.Path(__file__).parent.parent


def test_every_config_is_found_by_its_name():
  files = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
  assert config_files.names() == files and 'digits' in files
  for name in files:
    code = (ROOT / 'configs' / f'{name}.py').read_text()
    assert pathlib.Path(config_files.find(name)).read_text() == code


def test_a_file_comes_first_and_options_stay(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = str(config_files.FOLDER / 'digits.py')
  assert config_files.find('digits:mar') == f'{shipped}:mar'
  assert config_files.find('configs/digits.py:mar') == f'{shipped}:mar'
  own = tmp_path / 'configs' / 'digits.py'
  own.parent.mkdir()
  own.write_text('')
  assert config_files.find('configs/digits.py') == 'configs/digits.py'
  assert config_files.find(str(own)) == str(own)


@pytest.mark.parametrize('name', ['digit', 'configs/digit.py', 'a/b.py', ''])
def test_others_are_refused_with_the_names(name):
  with pytest.raises(config_files.ConfigFileError, match='mini, one_level'):
    config_files.find(name)


def test_an_installed_package_holds_the_configs():
  setup = (ROOT / 'setup.cfg').read_text()
  assert 'fractal_jax = configs/*.py, ' in setup
