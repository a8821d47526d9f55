"""Commands within this process: their flags for a while, or the whole of one.

A process of its own costs seconds of imports, so only what is about processes
(signals, pipes, several of them) starts one.
"""

import contextlib
import importlib
import io
import sys
from unittest import mock

from absl import app, flags, logging

from fractal_jax import config, cpu, main

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
    forget(own)  # those of libraries that were imported meanwhile stay


def call(*arguments: str, code: int = 0) -> str:
  """What `fractal-jax ARGUMENTS` prints; asserts that it exits with `code`."""
  app.define_help_flags()  # by the first command, to stay
  before, verbosity = set(flags.FLAGS), logging.get_verbosity()
  own = set()
  out = io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True)
  with contextlib.ExitStack() as stack:
    if arguments[0] in main.COMMANDS:
      job = importlib.import_module(f'fractal_jax.commands.{arguments[0]}')
      define = job.define_flags

      def define_flags():
        define()
        own.update(set(flags.FLAGS) - before)

      stack.enter_context(mock.patch.object(job, 'define_flags', define_flags))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(out))
    stack.enter_context(
      mock.patch.object(sys, 'argv', ['fractal-jax', *arguments])
    )
    # Signals stay pytest's, and pages as they are.
    stack.enter_context(mock.patch.object(main, 'listen'))
    stack.enter_context(mock.patch.object(main, 'hush'))
    stack.enter_context(mock.patch.object(cpu, 'use_huge_pages'))
    try:
      main.run()
    except SystemExit as e:
      found = e.code or 0
    finally:
      logging.set_verbosity(verbosity)
      forget(own)
  text = out.buffer.getvalue().decode()
  assert found == code, text
  return text


def forget(names: set[str]) -> None:
  """Removes flags, and those of the keys of --config."""
  for name in list(flags.FLAGS):
    if name in names or name.startswith('config.'):
      delattr(flags.FLAGS, name)
