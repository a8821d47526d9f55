"""What --help and `fractal-jax` alone print, and `--show`."""

import contextlib
import importlib
import re

from absl import flags
import pytest

import fractal_jax
from fractal_jax import config as config_lib
from fractal_jax import config_files, main, usage
from tests import docs_test


def test_the_overview_says_what_to_do_first():
  text = usage.overview(main.COMMANDS)
  assert text.startswith(f'fractal_jax {fractal_jax.__version__}')
  for name in (*main.COMMANDS, *config_files.names()):
    assert name in text
  for program, arguments in docs_test.calls(text):
    if arguments:
      assert not docs_test.mistake(program, arguments)
  assert max(map(len, text.splitlines())) <= 80


@contextlib.contextmanager
def defined(command):
  """Yields a command's module and the names of its flags, for a while."""
  job = importlib.import_module(f'fractal_jax.commands.{command}')
  before = set(flags.FLAGS)
  job.define_flags()
  own = [name for name in flags.FLAGS if name not in before]
  try:
    yield job, own
  finally:
    for name in own:
      delattr(flags.FLAGS, name)


@pytest.mark.parametrize('command', main.COMMANDS)
def test_help_lists_every_flag_once_with_an_example(command):
  with defined(command) as (job, own):
    text = usage.of_command(command, job.__doc__, own)
  listed = re.findall(r'^  --(?:\[no\])?([\w]+)', text, re.M)
  assert sorted(listed) == sorted(own)
  assert text.startswith(f'fractal-jax {command}: ')
  assert ('The image:' in text) == ('image' in own)
  assert '(default: )' not in text and 'repeat this option' not in text
  examples = docs_test.calls(job.__doc__)
  assert any(program == command and given for program, given in examples)
  for program, given in examples:
    assert not docs_test.mistake(program, given), given


def test_groups_name_flags_that_there_are():
  named = {name for group in usage.GROUPS.values() for name in group}
  for command in main.COMMANDS:
    with defined(command) as (_, own):
      named -= set(own)
  assert not named


def test_a_config_is_shown_as_a_file_with_every_key_explained():
  config = config_lib.default()
  config.optim.clip = float('inf')
  text = config_files.text(config, 'All.')
  for section, keys in config_lib.SECTIONS.items():
    for name in keys:
      assert f'\n  c.{section}.{name} = ' in text
  assert text.count('  # ') >= text.count('  c.')
  names = {}
  exec(compile(text, 'shown.py', 'exec'), names)
  assert names['get_config']().to_dict() == config.to_dict()
