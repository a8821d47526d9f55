"""The command line: one subcommand a job.

  fractal-jax train --config=configs/digits.py --workdir=runs/digits

`fractal-jax` alone lists the commands; `fractal-jax COMMAND --helpshort`
lists a command's flags.

Exit codes: 0 done; 1 bad flags; 2 an error that the message explains; 70 the
run hung or another of its processes failed; 75 told to stop (SIGTERM) and
saved. After 70, 75 and a crash the same command goes on from what was saved.
"""

import errno
import importlib
import os
import sys
import time

from absl import app, flags, logging

from fractal_jax import cpu, paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


# A new command: its module in commands/, and its entry here.
COMMANDS = {
  'train': 'train a model, or go on with a run',
  'likelihood': 'bits per dimension',
  'sample': 'generate images',
  'edit': 'generate what is under a mask',
  'explain': 'the bits of each value of an image',
  'evaluate': 'FID, Inception Score, precision, recall, diversity',
  'sweep': 'the same over guidance and temperature',
  'reference': 'statistics of a data set, for evaluate',
  'convert': 'published weights to a run, and back',
  'demo': 'a web page: generate, edit, see the bits',
  'cost': 'parameters and FLOPs of a config',
}


def cache_folder() -> str | None:
  """Where JAX keeps compiled programs; None where HOME can't be written to."""
  chosen = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if chosen:
    return chosen
  own = os.path.join('~', '.cache', 'fractal_jax', 'xla')
  try:
    paths.check_folder(own, 'HOME')
  except paths.PathError:
    return None
  return paths.absolute(own)


def start() -> None:
  """Sets JAX up: the compilation cache, and the other hosts if asked."""
  import jax

  jax.config.update('jax_compilation_cache_dir', cache_folder())
  if 'distributed' in FLAGS and FLAGS.distributed:
    from fractal_jax.training import processes

    processes.start(
      FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat
    )


def report_compiling():
  """Starts to count; returns what says how long XLA compiled, if it did."""
  import jax

  begun, seconds = time.monotonic(), []

  def listen(event, duration, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      seconds.append(duration)

  def report():
    if sum(seconds) >= 0.1 and jax.process_index() == 0:
      text = f'compiling took {sum(seconds):.1f} of'
      text += f' {time.monotonic() - begun:.1f} s; '
      folder = cache_folder()
      text += f'kept in {folder}' if folder else 'HOME takes no cache of it'
      print(text, file=sys.stderr)  # beside the results, not among them

  jax.monitoring.register_event_duration_secs_listener(listen)
  return report


def known_errors() -> tuple:
  """Errors whose message is all that a user needs."""
  from fractal_jax import config as config_lib
  from fractal_jax import convert, demo, metrics, sharding
  from fractal_jax.data import pipeline
  from fractal_jax.inference import inputs, sample
  from fractal_jax.training import checkpoint, monitor

  return (
    common.UsageError,
    paths.PathError,
    config_lib.ConfigError,
    checkpoint.CheckpointError,
    convert.ConvertError,
    pipeline.DataError,
    demo.DemoError,
    inputs.EditError,
    sample.SampleError,
    sharding.ShardingError,
    monitor.TrainingError,
    metrics.MetricsError,
  )


# Errors of the system that a user can mend: no space, no right to write.
MENDABLE = ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EACCES', 'EPERM')


def leave(text: str, code: int) -> None:
  """Exits with a message; where there are several processes, without them."""
  from fractal_jax.training import processes

  print(text, file=sys.stderr, flush=True)
  if processes.count() > 1:
    processes.fail(text, code)
  sys.exit(code)


def leave_after(command: str, error: Exception) -> None:
  """Exits after an error that is none of known_errors()."""
  import traceback

  from fractal_jax.training import processes

  if isinstance(error, processes.Preempted):
    common.say(str(error))
    sys.exit(processes.PREEMPTED)
  if isinstance(error, OSError):
    if errno.errorcode.get(error.errno) in MENDABLE:
      leave(f'fractal-jax {command}: {error}', 2)
  if processes.count() == 1:
    raise error
  traceback.print_exception(error)
  processes.crashed(error)


def run() -> None:
  """The console script."""
  cpu.use_huge_pages()
  names = '\n'.join(f'  {n:12}{text}' for n, text in COMMANDS.items())
  usage = (
    'usage: fractal-jax COMMAND [--flag=value ...]\n\n'
    f'{names}\n\nfractal-jax COMMAND --helpshort lists the flags of a command.'
  )
  command = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if command in ('-h', '--help', 'help'):
    print(usage)
    sys.exit(0)
  if command not in COMMANDS:
    sys.exit(f"fractal-jax: no command '{command}'\n\n{usage}")
  job = importlib.import_module(f'fractal_jax.commands.{command}')
  job.define_flags()

  def parse(argv):
    try:
      rest = app.parse_flags_with_usage(argv)
      if 'config' in FLAGS and FLAGS.config is not None:
        FLAGS.config.seed  # noqa: B018  raises if its file can't be read
      return rest
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as e:
      # A key, value or file of --config; a list of choices takes several lines.
      text = str(e).strip('\'"').replace('\\n', '\n').replace("\\'", "'")
      if isinstance(e, OSError):  # its text holds a whole traceback
        text = ' '.join(line.strip() for line in text.splitlines()[-2:])
      sys.exit(f'fractal-jax {command}: --config: {text}')

  def main(argv):
    # The libraries' own chatter; ours goes through logs.say.
    logging.set_verbosity(logging.ERROR)
    try:
      if argv[1:]:
        raise common.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
      start()
      report = report_compiling()
      job.run()
      report()
    except known_errors() as e:
      leave(f'fractal-jax {command}: {e}', 2)
    except Exception as e:
      leave_after(command, e)

  argv = [f'fractal-jax {command}', *sys.argv[2:]]
  app.run(main, argv=argv, flags_parser=parse)


if __name__ == '__main__':
  run()
