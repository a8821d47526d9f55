"""The command line: one subcommand per job.

  fractal-jax train --config=configs/digits.py --workdir=runs/digits

`fractal-jax` alone says what to do first; `fractal-jax COMMAND --help` lists a
command's flags.

Exit codes: 0 done; 2 a flag or an error that the message explains; 70 the
run hung or another of its processes failed; 75 told to stop (by SIGTERM, or
SIGHUP) and saved; 130 interrupted by Ctrl-C, after saving if it trained; 143
and 129 ended by SIGTERM or SIGHUP, with nothing to save; 141 nobody reads the
output any more. After 70, 75, 143 and a crash the same command goes on from
what was saved.
"""

import atexit
from collections.abc import Callable
import contextlib
import errno
import importlib
import logging as py_logging
import os
import signal
import sys
import time
import traceback
import types

from absl import app, flags, logging

import fractal_jax
from fractal_jax import checks, cpu, paths, usage
from fractal_jax.commands import common
from fractal_jax.errors import UserError, nearest, short

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
  'anomaly': 'alarms and a report of a table of sensors',
  'forecast': 'what comes after a table of sensors',
  'impute': 'what may stand in its empty cells',
  'pilot': 'whether this works for your sensors or images, in stages',
  'ab': 'one level of a run against that of another',
  'convert': 'published weights to a run, and back; a run to a release',
  'push': 'share a model on the Hugging Face Hub',
  'pull': 'get a model from there',
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
  """Sets JAX up: the compilation cache, and the other processes, if any.

  They are connected where --distributed asks for it, and on TPU pods, where
  JAX finds them.
  """
  import jax

  jax.config.update('jax_compilation_cache_dir', cache_folder())
  if 'distributed' not in FLAGS:
    return
  from fractal_jax.training import processes

  if not (FLAGS.distributed or processes.on_tpu_pod()):
    for name in ('coordinator', 'processes', 'process'):
      if FLAGS[name].value is not None:
        raise common.UsageError(
          f'--{name}={FLAGS[name].value} is for several processes: add '
          f'--distributed, or leave --{name} out'
        )
  else:
    processes.start(
      FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat
    )


def report_compiling() -> Callable[[], None]:
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


CLOSED_PIPE = 128 + signal.SIGPIPE  # the exit codes that shells give


class Stopped(KeyboardInterrupt):
  """SIGTERM or SIGHUP: a command ends, and tidies up, as after Ctrl-C.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int):
    super().__init__(number)
    self.number = number


def listen() -> None:
  """Turns the first of each such signal into Stopped; a second one kills."""

  def stop(number, _):
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)

  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
      signal.signal(number, stop)


# Errors of the system that a user can mend: no space, no right, no such file.
MENDABLE = (
  'ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EMFILE '
  'ENOENT ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP'
).split()


def leave(text: str, code: int) -> None:
  """Exits with a message; where there are several processes, without them."""
  if text:
    with contextlib.suppress(OSError):  # the terminal may be gone
      print(text, file=sys.stderr, flush=True)
  try:
    sys.stdout.flush()
  except OSError:  # what nobody takes, Python would try to print as it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  processes = sys.modules.get('fractal_jax.training.processes')
  if processes is not None and processes.count() > 1:
    processes.fail(text, code)
  sys.exit(code)


def leave_after(command: str, error: BaseException) -> None:
  """Exits after an error: with a line for whoever can mend it, or raises it."""
  if isinstance(error, UserError):
    leave(f'fractal-jax {command}: {error}', 2)
  if isinstance(error, KeyboardInterrupt):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in what Python does at exit
    number = getattr(error, 'number', signal.SIGINT)
    by = f' by {signal.Signals(number).name}' if number != signal.SIGINT else ''
    leave(f'fractal-jax {command}: interrupted{by}', 128 + number)
  if isinstance(error, BrokenPipeError):
    leave('', CLOSED_PIPE)  # who read the output, such as `head`, has enough
  if isinstance(error, OSError):
    if errno.errorcode.get(error.errno) in MENDABLE:
      leave(f'fractal-jax {command}: {error}', 2)
  why = short(error)
  if 'No space left on device' in str(error):  # as Orbax's storage says it
    leave(f'fractal-jax {command}: {why}', 2)
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
    leave(
      f'fractal-jax {command}: out of memory: ask for fewer images, or for '
      f'fewer at a time; docs/mesh.md has more. ({why})',
      2,
    )
  if not isinstance(error, OSError) and paths.of_storage(error):
    leave(f'fractal-jax {command}: {error}', 2)
  processes = sys.modules.get('fractal_jax.training.processes')
  if processes is not None:
    if isinstance(error, processes.Preempted):
      with contextlib.suppress(OSError):
        common.say(str(error))
      sys.exit(error.code)
    if processes.count() > 1:
      traceback.print_exception(error)
      processes.crashed(error)
  raise error


def tell(text: str) -> None:
  """Prints a text, and exits."""
  try:
    print(text, flush=True)
  except OSError as e:
    leave_after('help', e)
  sys.exit(0)


def open_streams() -> None:
  """Opens what is closed of the streams 0, 1 and 2, on nothing.

  Or the next files would get their numbers, a checkpoint say, and in it what
  libraries write to standard error.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      found = os.open(os.devnull, os.O_RDWR)  # the lowest number: this one
      os.set_inheritable(found, True)
      setattr(sys, name, os.fdopen(found, 'w' if number else 'r'))


def hush() -> None:
  """Prints nothing of reads that end after what waited for them has failed.

  Orbax begins to read all arrays of a checkpoint, and stops waiting at the
  first that is damaged; the others would each print a traceback.
  """
  before = sys.unraisablehook

  def hook(found):
    if str(found.exc_value) != 'Event loop is closed':
      before(found)

  sys.unraisablehook = hook


HELP = ('-h', '--help', '-help', '--helpshort', '--helpfull')


def run() -> None:
  """The console script."""
  open_streams()
  hush()
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors='replace')  # no character is worth a run
  command, *given = sys.argv[1:] or ['help']
  if command in (*HELP, 'help'):
    tell(usage.overview(COMMANDS))
  if command == '--version':
    tell(f'fractal_jax {fractal_jax.__version__}')
  if command not in COMMANDS:
    leave(
      f"fractal-jax: no command '{command}'.{nearest(command, COMMANDS)} There "
      f'are {", ".join(COMMANDS)}.',
      2,
    )
  wants_help = not set(HELP).isdisjoint(given)
  if not wants_help:
    cpu.use_huge_pages()
  try:
    listen()
    job = importlib.import_module(f'fractal_jax.commands.{command}')
    before = set(FLAGS)
    try:
      job.define_flags()
    except flags.Error as e:  # a --flagfile that is not there
      text = ' '.join(str(e).removeprefix('ERROR::').split())
      leave(f'fractal-jax {command}: {text}', 2)
    if wants_help:
      own = [name for name in FLAGS if name not in before]
      tell(usage.of_command(command, job.__doc__, own))
    app.run(
      lambda argv: run_job(command, job, argv),
      argv=[f'fractal-jax {command}', *given],
      flags_parser=lambda argv: parse(command, argv),
    )
  except KeyboardInterrupt as e:  # while importing, or parsing flags
    leave_after(command, e)


def parse(command: str, argv: list[str]) -> list[str]:
  """Parses the flags, and reads the file of --config."""
  try:
    rest = FLAGS(argv)
    if 'config' in FLAGS and FLAGS.config is not None:
      from fractal_jax import config as config_lib

      config_lib.split_names(FLAGS.config)  # raises if it can't be read
      config_lib.check_arguments(argv)
    return rest
  except flags.Error as e:
    leave(
      f'fractal-jax {command}: {e}\n{of_config(e)}fractal-jax {command} --help '
      'lists the flags.',
      2,
    )
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as e:
    # A key, value or file of --config; a list of choices takes several lines.
    text = str(e).strip('\'"')
    if text.isidentifier():  # a key that has no like
      text = f'no config has the key {text}'
    text = text.replace('\\n', '\n').replace("\\'", "'")
    if isinstance(e, OSError):  # its text holds a whole traceback
      text = ' '.join(line.strip() for line in text.splitlines()[-2:])
    leave(f'fractal-jax {command}: --config: {text}', 2)


def of_config(error: flags.Error) -> str:
  """What to write in place of a --config.KEY that the command does not take."""
  section, _, key = getattr(error, 'flagname', '').rpartition('.')
  if not section.startswith('config'):
    return ''
  if 'config' in FLAGS:
    return 'It changes a key of --config: give that, too.\n'
  if 'workdir' not in FLAGS:
    return 'This command has no --config.\n'
  instead = f'; --{key} sets this' if key in FLAGS else ''
  return f'The config is that of --workdir{instead}.\n'


def check_numbers() -> None:
  """Raises UsageError for a flag's whole number that is too large to use."""
  seeds = ('seed', 'config.seed')  # which have a rule of their own
  for name in FLAGS:
    flag = FLAGS[name]
    if (
      flag.flag_type() == 'int' and name not in seeds and flag.value is not None
    ):
      if wrong := checks.problem(f'--{name}', flag.value, checks.integer()):
        raise common.UsageError(wrong)


def run_job(command: str, job: types.ModuleType, argv: list[str]) -> None:
  """Runs a command whose flags are parsed; exits where it fails."""
  # What libraries log themselves: what they raise is told in one line, and a
  # save on a full disk would have pages of tracebacks around that line.
  logging.set_verbosity(logging.FATAL)
  py_logging.getLogger('asyncio').setLevel(py_logging.CRITICAL)
  try:
    words = argv[1:]
    if words and not hasattr(job, 'ARGUMENTS'):
      raise common.UsageError(f'unexpected arguments: {" ".join(words)}')
    check_numbers()
    start()
    report = report_compiling()
    job.run(*words)
    report()
    sys.stdout.flush()  # a closed pipe shows here, not at Python's end
  except (Exception, KeyboardInterrupt) as e:
    try:
      leave_after(command, e)
    except SystemExit as end:
      if isinstance(e, KeyboardInterrupt):
        # XLA may be computing still, and crash as Python takes itself apart.
        atexit._run_exitfuncs()
        os._exit(end.code)
      raise


if __name__ == '__main__':
  run()
