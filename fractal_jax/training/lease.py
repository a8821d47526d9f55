"""The lock of a work directory: one run at a time writes there.

On a file system the lock is held by the system, which frees it at any exit.
A bucket has no locks: there the run's first process holds a lease, an object
that it rewrites every few seconds. Whoever finds one that is no longer
rewritten takes it over; at once, if it can see that the holder is dead. Each
write names the version of the object that it replaces, which the bucket checks,
so that only one of several can succeed.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import threading
import time
import uuid

import jax

from fractal_jax import paths
from fractal_jax.training import CheckpointError, processes

NAME = '.lock'
SHARED_WITHIN = 30.0  # seconds until all hosts see a new file
HEARTBEAT = 10.0  # seconds between the writes of a lease
EXPIRY = 60.0  # seconds without one until its holder counts as dead
ATTEMPTS = 30.0  # seconds in which a write is tried: fewer than EXPIRY
# What a run writes there.
FILES = ('config.json', 'classes.json', 'metrics.jsonl', 'report.html')
FOLDERS = ('checkpoints', 'samples', 'tensorboard')


class Held:
  """The lock of a work directory, as long as this run holds it."""

  holder: str = ''

  def check(self) -> None:
    """Raises CheckpointError where another run has taken the lock over."""


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[Held]:
  """Holds the work directory for this run, on all its processes.

  Yields:
    What is `Held`.

  Raises:
    CheckpointError: another run holds it, it can't be written to, or the
      processes do not all see the same one.
  """
  with contextlib.ExitStack() as stack:

    def take() -> Held:
      if jax.process_index() > 0:
        return Held()
      take = _lease if paths.is_remote(workdir) else _lock
      return stack.enter_context(take(workdir))

    held = processes.together(take, CheckpointError)
    holder = processes.broadcast(held.holder)
    processes.together(lambda: _check_shared(workdir, holder), CheckpointError)
    yield held


@contextlib.contextmanager
def writing(workdir: str) -> Iterator[None]:
  """Turns the errors of a disk or bucket into one that says what to do."""
  try:
    yield
  except Exception as e:
    if not (isinstance(e, OSError) or paths.of_storage(e)):
      raise
    raise CheckpointError(
      f'the work directory {workdir} cannot be written to ({e}): make space '
      'or get the right to, or choose another --workdir.'
    ) from e


def _check_shared(workdir: str, holder: str) -> None:
  """Raises CheckpointError unless this process can use process 0's files."""
  if jax.process_count() == 1:
    return
  me = jax.process_index()
  file = paths.path(workdir) / NAME
  until = time.monotonic() + SHARED_WITHIN
  while True:
    with contextlib.suppress(Exception):
      if holder in file.read_text():
        break
    if time.monotonic() > until:
      raise CheckpointError(
        f'process {me} on {os.uname().nodename} does not see what process 0 '
        f'wrote into {workdir} ({holder}): give a --workdir on a file system '
        'that all hosts share, or in a bucket.'
      )
    time.sleep(0.2)
  with writing(workdir):
    probe = file.with_name(f'.probe_{me}')
    probe.write_text('x')
    probe.unlink()


def _me() -> str:
  now = time.strftime('%Y-%m-%d %H:%M:%S')
  return f'process {os.getpid()} on {os.uname().nodename} since {now}'


def identity(pid: int | str = 'self') -> str:
  """What tells a process of this host from any other, anywhere.

  The kernel's boot, the namespace in which process ids are counted, the id
  and when the process started, in ticks after the boot. '' if there is no such
  process, or it has ended, or this is not Linux.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    space = os.stat('/proc/self/ns/pid').st_ino
  except OSError:
    return ''
  fields = stat.rpartition(')')[2].split()  # a name may hold anything
  if fields[0] in 'ZX':  # dead, its parent has not asked for its exit code
    return ''
  return f'{boot} {space} {stat.split()[0]} {fields[19]}'


def is_dead(other: str) -> bool:
  """Whether a process is known to be dead, by its `identity`.

  Never of one that another host runs, or another container: their processes
  can't be seen from here.
  """
  mine, other = identity().split(), other.split()
  if len(mine) != 4 or len(other) != 4 or mine[:2] != other[:2]:
    return False
  return identity(other[2]).split() != other


def _in_use(workdir: str, holder: str) -> CheckpointError:
  return CheckpointError(
    f'{workdir} is in use by another run ({holder}): stop it, or choose '
    'another --workdir.'
  )


# On a file system.


def _check_contents(workdir: pathlib.Path) -> None:
  """Raises OSError for what a run would later fail to write there."""
  for name in FILES + FOLDERS:
    path = workdir / name
    if not os.path.lexists(path):
      continue
    if name in FOLDERS and not path.is_dir():
      raise NotADirectoryError(errno.ENOTDIR, 'it is no folder', str(path))
    if name in FILES and not path.is_file():
      raise IsADirectoryError(errno.EISDIR, 'it is no file', str(path))
    if not os.access(path, os.W_OK):
      raise PermissionError(errno.EACCES, 'it may not be changed', str(path))


@contextlib.contextmanager
def _lock(workdir: str):
  path = paths.path(workdir) / NAME
  with writing(workdir):
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_contents(path.parent)
    file = open(path, 'a+')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise _in_use(workdir, file.read().strip()) from e
    except OSError:
      pass  # a file system without locks
    held = Held()
    held.holder = _me()
    with writing(workdir):
      file.truncate(0)
      file.write(held.holder)
      file.flush()
    yield held


# In a bucket.


@contextlib.contextmanager
def _lease(workdir: str):
  if not str(paths.path(workdir)).startswith('gs://'):
    raise CheckpointError(
      f'{workdir}: a run is kept on a local or mounted file system, or in a '
      'bucket gs://BUCKET/NAME. Give such a --workdir.'
    )
  with writing(workdir):
    lease = Lease(workdir)
    lease.take()
  try:
    lease.keep()
    yield lease
  finally:
    lease.release()


@dataclasses.dataclass(frozen=True)
class _Seen:
  """A lease as it was read: its version, and the text in it."""

  generation: int
  text: str

  @property
  def holder(self) -> str:
    return self.text.partition('\n')[0]

  def is_dead(self) -> bool:
    """Whether its run is known to be dead."""
    return is_dead(''.join(self.text.split('\n')[2:3]))


class Lease(Held):
  """The lease of a work directory in a bucket.

  Attributes:
    holder: who this is, as others will read it.
  """

  def __init__(self, workdir: str):
    """Connects to the bucket."""
    from google.cloud import storage
    from google.cloud.storage import retry

    url = str(paths.path(workdir) / NAME).removeprefix('gs://')
    bucket, _, self._name = url.partition('/')
    self._workdir, self.holder = workdir, _me()
    # The same in each of its writes, and unlike the holder in nobody else's.
    # Other processes of a run may outlive the first: then it has no identity.
    alone = identity() if jax.process_count() == 1 else ''
    self._text = f'{self.holder}\n{uuid.uuid4().hex}\n{alone}\n'
    self._bucket = storage.Client(project=None).bucket(bucket)
    self._limits = dict(
      retry=retry.DEFAULT_RETRY.with_timeout(ATTEMPTS), timeout=ATTEMPTS / 2
    )
    self._generation = 0  # of what we wrote last; 0: nothing
    self._lost = None  # who has it now
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)

  def take(self) -> None:
    """Takes the lease, or takes it over from a run that is dead.

    Raises:
      CheckpointError: another run holds it, and is alive.
    """
    while True:
      found = self._look()
      if found is not None and not found.is_dead():
        self._await_end(found)
      if self._write(found.generation if found else 0):
        return

  def _await_end(self, found: _Seen) -> None:
    """Waits until a lease expires; only this process's clock is asked."""
    until = time.monotonic() + EXPIRY
    while time.monotonic() < until:
      time.sleep(min(HEARTBEAT / 2, EXPIRY / 4))
      now = self._look()
      if now is None:
        return  # released
      if now.generation != found.generation:
        raise _in_use(self._workdir, now.holder)

  def keep(self) -> None:
    """Goes on renewing the lease, in a thread."""
    self._thread.start()

  def release(self) -> None:
    """Ends the lease, if it still is this run's."""
    from google.api_core import exceptions

    self._stop.set()
    self._thread.join()
    if self._lost is None:
      with contextlib.suppress(exceptions.GoogleAPIError, OSError):
        self._blob().delete(
          if_generation_match=self._generation, **self._limits
        )

  def check(self) -> None:
    """As `Held` says: reads what `_renew` learnt, and no file."""
    if self._lost is not None:
      raise CheckpointError(
        f'{self._workdir} was taken over by another run ({self._lost}), since '
        f'this one did not renew its lease for {EXPIRY:.0f} s. Nothing more '
        'is written.'
      )

  def _renew(self) -> None:
    while not self._stop.wait(HEARTBEAT):
      with contextlib.suppress(Exception):  # the network; again at the next
        if not self._write(self._generation):
          now = self._look()
          self._lost = now.holder if now else 'gone since'
          return

  def _blob(self):
    return self._bucket.blob(self._name)  # a new one is of no generation

  def _look(self) -> _Seen | None:
    from google.api_core import exceptions

    try:
      blob = self._bucket.get_blob(self._name, **self._limits)
      if blob is None:
        return None
      data = self._blob().download_as_bytes(**self._limits)
    except exceptions.NotFound:
      return None
    return _Seen(blob.generation, data.decode(errors='replace'))

  def _write(self, replaced: int) -> bool:
    """Writes the lease in place of a version; False if that is not there."""
    from google.api_core import exceptions

    blob = self._blob()
    try:
      blob.upload_from_string(
        self._text, if_generation_match=replaced, **self._limits
      )
      self._generation = blob.generation
    except exceptions.PreconditionFailed:
      # Perhaps by this very write, whose first answer was lost.
      found = self._look()
      if found is None or found.text != self._text:
        return False
      self._generation = found.generation
    return True
