"""The processes of a run: they start, fail and stop together.

Processes tell each other what they do through the key-value store of JAX's
coordination service, which process 0 holds. That needs no devices, so it
still works while the devices wait for a process that is gone.
"""

from collections.abc import Callable, Iterator
import contextlib
import faulthandler
import os
import re
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax._src import distributed
from jax._src.clusters import cloud_tpu_cluster
from jax.experimental import multihost_utils

from fractal_jax import checks
from fractal_jax.errors import UserError

# Exit codes, beside 2 of an error in what the user asked for.
FAILED = 70  # this process hung, or another one failed
PREEMPTED = 75  # everything is saved: the same command goes on
INTERRUPTED = 130  # by Ctrl-C, which is not to be undone by a restart

HEARTBEAT = 100  # seconds without a sign of life until a process is dead
POLL = 2.0  # seconds between looks at the others
SLOW = 30  # compiling, saving and the like may take this times hang_after


class Preempted(Exception):
  """The run was told to stop, and has saved what it did.

  Attributes:
    code: the exit code that tells so.
  """

  def __init__(self, text: str, code: int = PREEMPTED):
    super().__init__(text)
    self.code = code


class ProcessesError(UserError, ValueError):
  """Processes that can't find each other."""


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  heartbeat: int = HEARTBEAT,
) -> None:
  """Connects the processes; on pods and SLURM they find each other.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: how many there are.
    process: which of them this is.
    heartbeat: seconds after which a process that died ends the others.

  Raises:
    ProcessesError: something is not given, and no cluster tells it; or it can't
      be.
  """
  last = processes - 1 if processes else None
  for name, value, rule in (
    ('--processes', processes, checks.integer(least=1)),
    ('--process', process, checks.integer(least=0, most=last)),
    ('--heartbeat', heartbeat, checks.integer(least=1)),
  ):
    wrong = value is not None and checks.problem(name, value, rule)
    if wrong:
      raise ProcessesError(wrong)
  if coordinator is not None and not re.fullmatch(r'.+:\d{1,5}', coordinator):
    raise ProcessesError(
      f'--coordinator={coordinator} must be HOST:PORT of process 0'
    )
  try:
    jax.distributed.initialize(
      coordinator, processes, process, heartbeat_timeout_seconds=heartbeat
    )
  except (TypeError, ValueError) as e:
    given = {
      '--coordinator=HOST:PORT': coordinator,
      '--processes=COUNT': processes,
      '--process=INDEX': process,
    }
    missing = [flag for flag, value in given.items() if value is None]
    lacks = f'{", ".join(missing)} missing' if missing else str(e)
    raise ProcessesError(
      f'--distributed: {lacks}. TPU pods, Slurm and the like tell which '
      'processes there are, but none is found here. Give every process the '
      'address of process 0, the number of processes, and its own index; one '
      'process alone needs no --distributed.'
    ) from e
  # Earlier than JAX itself, which aborts without saying what they did last. It
  # hears of each process every heartbeat / 2, so that much may have gone by.
  watchdog.silence = max(2 * POLL, heartbeat / 2 - 3 * POLL)
  watchdog.start()


def on_tpu_pod() -> bool:
  """Whether this host is one of several of a TPU pod, as JAX finds out."""
  return any(
    cluster.is_env_present() and cluster.get_process_count() > 1
    for cluster in (
      cloud_tpu_cluster.GceTpuCluster,
      cloud_tpu_cluster.GkeTpuCluster,
    )
  )


def _client():
  return distributed.global_state.client


# jax.process_index() would wait for the devices of all processes at first.


def _me() -> int:
  return distributed.global_state.process_id


def count() -> int:
  """How many processes there are."""
  return distributed.global_state.num_processes or 1


def together(job: Callable[[], object], error: type[Exception]) -> Any:
  """Runs a job on every process; where one of them raises `error`, all do."""
  if count() == 1:
    return job()
  together.calls += 1
  key = f'fractal/together/{together.calls}'
  try:
    result, text = job(), ''
  except error as e:
    result, text = None, str(e)
  client, me = _client(), _me()
  client.key_value_set(f'{key}/{me}', text or '-')
  for i in range(count()):
    found = client.blocking_key_value_get(f'{key}/{i}', 300_000)
    if found != '-':
      raise error(text or f'on process {i}: {found}')
  return result


together.calls = 0


def meet() -> None:
  """Waits until all processes are here.

  Before their devices first wait for each other: on CPUs (Gloo) that ends with
  an error after 30 seconds, in which a busy host may not have compiled.
  """
  together(lambda: None, ProcessesError)


def broadcast(text: str) -> str:
  """The text of process 0."""
  if count() == 1:
    return text
  together.calls += 1
  key = f'fractal/broadcast/{together.calls}'
  if _me() == 0:
    _client().key_value_set(key, text)
  return _client().blocking_key_value_get(key, 300_000)


# Told to stop.


class StopRequest:
  """Whether a run should save what it did, and end.

  Attributes:
    signal: the signal that asked for it, or None.
    error: what went wrong with the run's output, or None.
  """

  def __init__(self):
    self.signal = self.error = None
    self._noticed = threading.Event()

  def __call__(self, step: int) -> bool:
    """Whether to end after this step; to be called after every one.

    True on all processes after the same step, whichever was asked.
    """
    if distributed.global_state.preemption_sync_manager is not None:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._noticed.is_set()

  def request(self) -> None:
    """Asks all processes to end."""
    if distributed.global_state.preemption_sync_manager is not None:
      signal.raise_signal(signal.SIGTERM)  # which JAX tells the others
    else:
      self._noticed.set()

  @contextlib.contextmanager
  def on_error(self) -> Iterator[None]:
    """Where output fails, the run ends after this step in place of here.

    A closed pipe, a full disk, a terminal that can't print a character: the
    other processes know nothing of it, and nothing is wrong with the steps.
    """
    try:
      yield
    except (OSError, UnicodeError) as e:
      self.error = e
      self.request()

  def reason(self, step: int) -> Exception:
    """What to raise once everything up to `step` is saved."""
    if self.error is not None and self.signal is None:
      return self.error
    return Preempted(
      f'told to stop: saved after step {step}; the same command goes on',
      INTERRUPTED if self.signal == signal.SIGINT else PREEMPTED,
    )


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
  """Listens for the signals that end a run, which then saves first.

  SIGTERM announces the end on clouds and under schedulers, SIGINT is Ctrl-C
  and SIGHUP a terminal that was closed. A second Ctrl-C ends at once. Signals
  that are ignored, as under nohup, stay so; out of the main thread, where none
  can be listened for, only errors of the output end the run.

  Yields:
    A StopRequest.
  """
  stop = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def notice(number, _):
    stop.signal = number
    if number == signal.SIGINT:
      signal.signal(number, signal.SIG_DFL)
      with contextlib.suppress(OSError):  # print could meet itself in here
        os.write(2, b'\nsaving after this step; Ctrl-C again ends at once\n')
    stop.request()

  numbers = [signal.SIGINT, signal.SIGHUP]
  if distributed.global_state.preemption_sync_manager is None:
    numbers.append(signal.SIGTERM)  # else JAX listens for it
  before = {n: signal.getsignal(n) for n in numbers}
  before = {n: x for n, x in before.items() if x not in (None, signal.SIG_IGN)}
  for number in before:
    signal.signal(number, notice)
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


# Failing.


def fail(text: str, code: int, silent: int = 0) -> None:
  """Ends this process, and with it the others, without waiting for them.

  The others may wait for this one on their devices, where no exception can
  reach them: their watchdogs find the note that is left here, and exit.

  Args:
    text: why, for the others to print.
    code: with which to exit.
    silent: how many others won't answer any more.
  """
  me, client = _me(), _client()
  sys.stdout.flush()
  sys.stderr.flush()
  with contextlib.suppress(Exception):  # process 0 may be gone
    note = f'{code}|{text}'
    client.key_value_set(f'fractal/failed/{me}', note, allow_overwrite=True)
    if me == 0:  # the notes live in this process: let the others read them
      until = time.monotonic() + 3 * POLL
      while time.monotonic() < until and len(_notes()) < count() - silent:
        time.sleep(0.1)
  os._exit(code)


def _notes() -> dict[int, tuple[int, str]]:
  """Exit code and last words of the processes that failed, by their index."""
  notes = {i: x.split('|', 1) for i, x in _read('fractal/failed/').items()}
  return {i: (int(code), text) for i, (code, text) in notes.items()}


def _read(folder: str) -> dict[int, str]:
  found = _client().key_value_dir_get(folder)
  return {int(k.rsplit('/', 1)[1]): v for k, v in found}


def _silent(i: int, post: str) -> str:
  """The message that process i is silent; post: its last, see Watchdog.post."""
  _, step, doing = post.split('|', 2)
  return f'process {i} does not answer (last in step {step}: {doing})'


def missing() -> str:
  """Which processes are behind or silent: takes a few seconds to find out."""
  before = _read('fractal/at/')
  for _ in range(3):
    time.sleep(POLL)
    watchdog.post()  # this process is alive
  after = _read('fractal/at/')
  me = _me()
  at = {i: after[i].split('|') for i in after}  # [posts, step, doing]
  silent = [i for i in after if i != me and after[i] == before.get(i)]
  out = [_silent(i, after[i]) for i in silent]
  out += [
    f'process {i} has never answered' for i in range(count()) if i not in after
  ]
  first = max((int(step) for _, step, _ in at.values()), default=0)
  out += [
    f'process {i} is behind, in step {at[i][1]}: {at[i][2]}'
    for i in after
    if i not in silent and int(at[i][1]) < first
  ]
  return '; '.join(out) or 'all processes are alive and at the same step'


class Watchdog:
  """Ends a run that stands still, or one of whose processes has failed.

  A thread of each process posts what the process does, looks for the notes of
  failed processes, and at how long the run has not moved.
  """

  def __init__(self):
    self._thread = None
    self._limit = 0.0  # seconds without progress; 0: no limit
    self._at = (0, 'starting')
    self._still = 0.0  # seconds
    self._slow = 0  # nested contexts
    self._steps = 0  # done since the limit was set
    self._slowest = 0.0
    self._posts = 0
    self.silence = HEARTBEAT  # seconds without a post
    self._heard = {}  # last post of each process, and for how long unchanged
    self._lock = threading.Lock()

  def start(self) -> None:
    """Starts the thread, once."""
    if self._thread is None:
      self._thread = threading.Thread(target=self._run, daemon=True)
      self._thread.start()

  @contextlib.contextmanager
  def limit(self, seconds: float) -> Iterator['Watchdog']:
    """Ends the process if it stands still for longer; 0: never."""
    self._steps, self._slowest, self._still = 0, 0.0, 0.0
    self._limit = seconds
    if seconds:
      self.start()
    try:
      yield self
    finally:
      with self._lock:
        self._limit = 0.0
        faulthandler.cancel_dump_traceback_later()

  def at(self, step: int, doing: str) -> None:
    """The run moves: it is in this step, doing this."""
    if step != self._at[0]:
      self._steps += 1
    if self._steps > 2 and not self._slow:
      self._slowest = max(self._slowest, self._still)
    self._at, self._still = (step, doing), 0.0

  @contextlib.contextmanager
  def slow(self, doing: str) -> Iterator[None]:
    """What happens in here may take long."""
    before = self._at
    self._slow += 1
    self.at(before[0], doing)
    try:
      yield
    finally:
      self.at(*before)
      self._slow -= 1

  def allowed(self) -> float:
    """Seconds that the run may stand still now."""
    if self._slow or self._steps <= 2:  # the first steps may compile and read
      return SLOW * self._limit
    return max(self._limit, 5 * self._slowest)

  def _run(self) -> None:
    while True:
      time.sleep(POLL)
      # Not a clock: a process that was stopped itself has not been hanging.
      self._still += POLL
      if _client() is not None:
        with contextlib.suppress(Exception):  # heartbeats tell of a dead 0
          self.post()
          self._listen()
          if _me() == 0:
            self._notice_silence()
      with self._lock:
        if self._limit and _client() is not None:
          # For code that never lets other threads run, this one included.
          faulthandler.dump_traceback_later(
            self.allowed() + 60, exit=True, file=sys.__stderr__
          )
      if self._limit and self._still > self.allowed():
        self._hangs()

  def post(self) -> None:
    """Tells the others that this process is alive, and what it does."""
    self._posts += 1
    step, doing = self._at
    _client().key_value_set(
      f'fractal/at/{_me()}',
      f'{self._posts}|{step}|{doing}',
      allow_overwrite=True,
    )

  def _listen(self) -> None:
    me = _me()
    notes = _notes()
    if notes and me not in notes:
      for i, (_, text) in notes.items():
        _shout(f'process {i} of {count()} failed: {text}')
      code = min(code for code, _ in notes.values())
      fail('stopped since another process failed', code)

  def _notice_silence(self) -> None:
    for i, post in _read('fractal/at/').items():
      last, since = self._heard.get(i, (None, 0.0))
      self._heard[i] = (post, since + POLL if post == last else 0.0)
    silent = [i for i, (_, t) in self._heard.items() if t > self.silence]
    if silent:
      text = '; '.join(_silent(i, self._heard[i][0]) for i in silent)
      _shout(text)
      fail(text, FAILED, len(silent))

  def _hangs(self) -> None:
    step, doing = self._at
    text = f'no progress for {self._still:.0f} s in step {step}: {doing}'
    if _client() is not None:
      with contextlib.suppress(Exception):
        text += f'. {missing()}'
    _shout(f'{text}. Its stacks:')
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    if _client() is not None:
      fail(text, FAILED)
    os._exit(FAILED)


def _shout(text: str) -> None:
  """Prints on any process."""
  me = _me()
  print(f'process {me}: {text}', file=sys.stderr, flush=True)


watchdog = Watchdog()  # of this process


def crashed(error: BaseException) -> None:
  """Ends a process of several after an error that no user can have caused."""
  text = f'{type(error).__name__}: {str(error)[:500]}'
  _shout(text)
  with contextlib.suppress(Exception):
    found = missing()
    text += f' ({found})'
    _shout(found)
  fail(text, FAILED)
