"""The flags of commands within this process, for a while."""

import contextlib
import importlib
import sys
from unittest import mock

from absl import flags

from fractal_jax import config

# What fractal_jax.main takes for a mistake in the flags or in --config.
ERRORS = (
  *(flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError),
)


@contextlib.contextmanager
def flags_of(command: str, *arguments: str):
  """Yields a command's module, its flags set as the arguments say.

  Raises one of ERRORS where they say nothing that a command accepts.
  """
  job = importlib.import_module(f'fractal_jax.commands.{command}')
  before = set(flags.FLAGS)
  argv = [f'fractal-jax {command}', *arguments]
  own = set()
  try:
    with mock.patch.object(sys, 'argv', argv):  # config_flags reads it
      job.define_flags()
      own = set(flags.FLAGS) - before
      flags.FLAGS(argv)
      if 'config' in own and flags.FLAGS.config is not None:
        config.split_names(flags.FLAGS.config)  # as fractal_jax.main does
    yield job
  finally:
    # Those of libraries that were imported meanwhile stay.
    for name in set(flags.FLAGS) - before:
      if name in own or name.startswith('config.'):
        delattr(flags.FLAGS, name)
