"""Paths that users give: local files, mounted ones, and objects of a bucket.

`path` is the one place where a name becomes a path. A local one is a
`pathlib.Path`; `gs://bucket/run` is an `etils.epath.Path`, which has the same
methods over gcsfs. What a bucket lacks is here too: nothing can be renamed in
one step, appended to, or written without being committed on closing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import csv
import errno
import importlib.util
import io
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
from typing import TYPE_CHECKING, BinaryIO
import uuid

from etils import epath

from fractal_jax.errors import UserError

if TYPE_CHECKING:
  from numpy.typing import ArrayLike

# The package that reads and writes each scheme. `epath` finds these by itself.
PACKAGES = {
  'gs': ('gcsfs', "pip install 'fractal_jax[gcs]'"),
  's3': ('s3fs', 'pip install s3fs'),
  'az': ('adlfs', 'pip install adlfs'),
  'hf': ('huggingface_hub', 'pip install huggingface_hub'),
}
TIMEOUT = 60  # seconds until a request is given up; gcsfs then tries it again
PART = 1 << 20  # bytes after which a growing file goes on in another object

# TensorFlow would take seconds to import, and retries nothing.
os.environ.setdefault('EPATH_USE_TF', 'false')

Path = pathlib.Path | epath.Path


class PathError(UserError):
  """A path that can't be used as asked."""


def path(name: str | os.PathLike) -> Path:
  """The path of a name, with ~ for the home directory.

  Args:
    name: of a local file or folder, or a URL such as gs://bucket/run.

  Raises:
    PathError: it is empty; there is no such home directory; or its scheme
      can't be used, in which case the message says what to install.
  """
  text = os.fspath(name)
  if not text or '\0' in text:
    raise PathError(f'{text!r} is no path: name a file or folder.')
  url = re.match(r'(\w[\w+.-]*):/(/?)', text)
  if url and (url[2] or url[1] in PACKAGES):
    _check_url(text, url[1])
    return epath.Path(text)
  if text.startswith('~'):
    text = os.path.expanduser(text)
    if text.startswith('~'):
      raise PathError(
        f'{text}: that home directory is not known: set HOME, or give the '
        'whole path.'
      )
  return pathlib.Path(text)


def _check_url(text: str, scheme: str) -> None:
  """Raises PathError for a URL that can't be used."""
  if scheme not in PACKAGES:
    known = ', '.join(f'{name}://' for name in PACKAGES)
    raise PathError(
      f'{text}: the scheme {scheme}:// is not known. Use one of {known}, or '
      'mount the storage and give the local path.'
    )
  if not re.match(r'\w+://[^/]', text):
    raise PathError(f'{text} names no bucket: write {scheme}://BUCKET/NAME.')
  package, install = PACKAGES[scheme]
  if importlib.util.find_spec(package) is None:
    raise PathError(f'{text} needs the package {package}: {install}')
  if scheme == 'gs':
    from fsspec import config

    # Without a cache: others write there too, Orbax and TensorBoard included.
    config.conf.setdefault(
      'gcs', {'use_listings_cache': False, 'requests_timeout': TIMEOUT}
    )


def is_remote(name: str | os.PathLike) -> bool:
  """Whether a path is a URL."""
  return not isinstance(path(name), pathlib.Path)


def absolute(name: str | os.PathLike) -> str:
  """The name of a path that means the same in any folder, for messages."""
  found = path(name)
  return str(found.absolute() if isinstance(found, pathlib.Path) else found)


def same(a: str | os.PathLike, b: str | os.PathLike) -> bool:
  """Whether two names lead to one file or folder."""
  a, b = path(a), path(b)
  try:
    return os.path.samefile(a, b)
  except OSError:  # one is not there, or in a bucket
    return str(a) == str(b)


def within(inner: str | os.PathLike, outer: str | os.PathLike) -> bool:
  """Whether a place, which need not be there, is a folder or lies in it.

  What is hidden there, which `entries` passes over, is not in it.
  """
  real = lambda x: x if is_remote(x) else os.path.realpath(path(x))
  inner, outer = (pathlib.PurePath(str(real(x))) for x in (inner, outer))
  if not inner.is_relative_to(outer):
    return False
  return not any(part[0] == '.' for part in inner.relative_to(outer).parts)


def entries(folder: Path) -> list[tuple[str, bool]]:
  """(path, whether it is a file) of what a folder holds, but hidden names.

  Sorted by path. Of a local folder without a look at each file. A link that
  leads nowhere, or in a circle, is no file.
  """
  if isinstance(folder, pathlib.Path):
    with os.scandir(folder) as found:
      both = [(e.path, _is_file(e)) for e in found if e.name[0] != '.']
  else:
    both = [(str(p), p.is_file()) for p in folder.iterdir() if p.name[0] != '.']
  return sorted(both)


def _is_file(entry: os.DirEntry) -> bool:
  try:
    return entry.is_file()
  except OSError:
    return False


# Errors.


def of_storage(error: BaseException | None) -> bool:
  """Whether an error says that something can't be reached, or may not be.

  Neither a missing file nor a damaged one: no right to read, no network, a
  bucket that answers with an error, too many open files.
  """
  while error is not None:
    if isinstance(error, OSError) and not isinstance(
      error, FileNotFoundError | IsADirectoryError | NotADirectoryError
    ):
      return True
    library = type(error).__module__.split('.')[0]
    if library in CLIENTS:
      return True
    if library == 'builtins' and any(x in str(error) for x in STATUSES):
      return True
    error = error.__cause__ or error.__context__
  return False


# Libraries that raise errors of their own.
CLIENTS = ('aiohttp', 'gcsfs', 'google', 'requests')
# Those of TensorStore, whose errors are of Python's own classes.
STATUSES = (
  'PERMISSION_DENIED', 'UNAUTHENTICATED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED',
  'RESOURCE_EXHAUSTED',
)  # fmt: skip


# Writing.


@contextlib.contextmanager
def atomic_write(name: str | os.PathLike) -> Iterator[BinaryIO]:
  """Yields a binary file that takes its name once all of it is written.

  It is written beside its place and renamed, or, for a bucket, written to a
  temporary folder and copied. Where the work fails, what was there before
  stays. `file.name` is a local file with the ending of `name`, for libraries
  that write to a name.
  """
  target = path(name)
  if isinstance(target, pathlib.Path):
    target = target.resolve()  # what a symbolic link points to is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield from _written(target)
    except OSError as e:
      if e.errno == errno.ENOSPC:  # of which the system says no name
        e.filename = str(target)
      raise
    return
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder, target.name)
    with open(local, 'wb') as file:
      yield file
    with open(local, 'rb') as file, target.open('wb') as upload:
      shutil.copyfileobj(file, upload, 1 << 24)


def _written(target: pathlib.Path):
  """What `atomic_write` yields where there is no bucket."""
  if target.exists() and not target.is_file():  # /dev/stdout, a pipe
    with open(target, 'wb') as file:
      yield file
    return
  # Not longer than the name, which may be as long as names can be.
  torn = target.with_name(f'.{uuid.uuid4().hex[:8]}{target.suffix}')
  try:
    with open(torn, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    torn.replace(target)
  finally:
    torn.unlink(missing_ok=True)


def write_bytes(name: str | os.PathLike, data: bytes) -> None:
  """Writes a file as a whole; see `atomic_write`."""
  with atomic_write(name) as file:
    file.write(data)


def write_text(name: str | os.PathLike, text: str) -> None:
  """Writes a text file as a whole; see `atomic_write`.

  Names of files in it that are not UTF-8 stay as they are.
  """
  write_bytes(name, text.encode(errors='surrogateescape'))


def write_npz(name: str | os.PathLike, /, **arrays: 'ArrayLike') -> None:
  """Writes arrays by name as a whole; see `atomic_write`."""
  import numpy as np

  with atomic_write(name) as file:
    np.savez(file, **arrays)


def read_npz(name: str | os.PathLike) -> dict:
  """The arrays of an .npz file; others make NumPy or zipfile raise anything."""
  import numpy as np

  with local(name) as copy, np.load(copy, allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


def csv_text(rows: Iterable[Sequence]) -> str:
  """Rows as CSV, the heads of the columns first."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue()


@contextlib.contextmanager
def local(name: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a local file with the contents of `name`, to read from.

  For libraries that want the name of a file.
  """
  found = path(name)
  if isinstance(found, pathlib.Path):
    yield found
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, found.name)
    with found.open('rb') as file, open(copy, 'wb') as download:
      shutil.copyfileobj(file, download, 1 << 24)
    yield copy


# Files that grow.


def growing(
  name: str | os.PathLike, keep: Callable[[bytes], bool] | None = None
) -> 'BinaryIO | _Growing':
  """A binary file that is written to its end, and can be read meanwhile.

  Args:
    name: of the file. In a bucket, where nothing can be appended to, it goes
      on in NAME.0001.EXT and so on, each of about a mebibyte; `read_grown`
      joins them.
    keep: line -> whether it stays of what is there; None for all of them.

  Returns:
    What has `write`, `flush` and `close`. In a bucket all of them return at
    once but `close`; what can't be written is said, and tried again.
  """
  found = path(name)
  parts = _parts(found)
  for part in parts if keep else ():
    old = part.read_bytes()
    new = b''.join(filter(keep, old.splitlines(keepends=True)))
    if new != old:
      write_bytes(part, new)
  if isinstance(found, pathlib.Path):
    found.parent.mkdir(parents=True, exist_ok=True)
    return open(found, 'ab')
  return _Growing(found, max(0, len(parts) - 1))


def read_grown(name: str | os.PathLike) -> bytes:
  """What was written to a growing file; nothing if it does not exist."""
  return b''.join(part.read_bytes() for part in _parts(path(name)))


def _parts(found: Path) -> list[Path]:
  if isinstance(found, pathlib.Path):
    return [found] if found.exists() else []
  parts = []
  while (part := _part(found, len(parts))).exists():
    parts.append(part)
  return parts


def _part(found: Path, number: int) -> Path:
  if not number:
    return found
  return found.with_name(f'{found.stem}.{number:04d}{found.suffix}')


class _Growing:
  """A growing file in a bucket: a thread rewrites its last part."""

  def __init__(self, found: Path, number: int):
    self._path, self._number = found, number
    last = _part(found, number)
    self._held = bytearray(last.read_bytes() if last.exists() else b'')
    self._lock = threading.Lock()
    self._thread = futures.ThreadPoolExecutor(1)
    self._next = None  # the upload that waits or runs
    self._at = 0.0  # when the last one began

  def write(self, data: bytes) -> None:
    """Takes what must not be cut in two: a line, a record."""
    with self._lock:
      self._held += data

  def flush(self) -> None:
    if self._next is None or self._next.running() or self._next.done():
      self._next = self._thread.submit(self._upload)

  def close(self) -> None:
    self.flush()
    self._thread.shutdown(wait=True)

  def _upload(self) -> None:
    # An object may be written once a second.
    time.sleep(max(0.0, self._at + 1 - time.monotonic()))
    self._at = time.monotonic()
    with self._lock:
      data = bytes(self._held)
    part = _part(self._path, self._number)
    try:
      part.write_bytes(data)
    except Exception as e:  # gcsfs and what is below it have errors each
      print(f'{part} is not written yet, tried again later: {e}', flush=True)
      return
    if len(data) >= PART:
      with self._lock:
        del self._held[: len(data)]
      self._number += 1


# Checks before any work is done.


def check_output(
  name: str | os.PathLike, flag: str = '--out', endings: tuple[str, ...] = ()
) -> None:
  """Whether a file can be written there, before the work for it is done.

  Args:
    name: of the file; folders that are missing would be made.
    flag: that named it, for the message.
    endings: which the name may have; () for any.

  Raises:
    PathError: it can't.
  """
  found, what = path(name), f'{flag}={name}'
  if endings and not str(name).endswith(endings):
    raise PathError(f'{what} must end in {" or ".join(endings)}.')
  with _checking(what):
    if isinstance(found, pathlib.Path):
      found = found.resolve()  # what a link leads to is replaced
    if str(name).endswith('/') or found.is_dir():
      raise PathError(f'{what} is a folder: name a file in it.')
    if not isinstance(found, pathlib.Path):
      _probe(found.parent)
    elif found.exists():
      if not os.access(found, os.W_OK):
        raise PermissionError(errno.EACCES, 'it may not be overwritten')
      if found.is_file():  # a new one takes its place
        _check_folder(found.parent)
    else:
      _check_folder(found.absolute().parent, found.name)


def check_folder(name: str | os.PathLike, flag: str) -> None:
  """Whether files can be written into a folder, which may be missing yet.

  Raises:
    PathError: they can't.
  """
  found = path(name)
  with _checking(f'{flag}={name}'):
    if isinstance(found, pathlib.Path):
      _check_folder(found.absolute())
    else:
      _probe(found)


@contextlib.contextmanager
def _checking(what: str):
  try:
    yield
  except PathError:
    raise
  except Exception as e:  # gcsfs and what is below it have errors each
    why = getattr(e, 'strerror', None) or f'{type(e).__name__}: {e}'
    raise PathError(
      f'{what} cannot be written: {why}. Get the right to write there, or '
      'choose another place.'
    ) from e


def _check_folder(folder: pathlib.Path, *names: str) -> None:
  """Raises OSError unless a local folder can be made and such files in it."""
  names = list(names)
  while not folder.exists():
    names.append(folder.name)
    folder = folder.parent
  if not folder.is_dir():
    raise NotADirectoryError(errno.ENOTDIR, f'{folder} is no folder')
  with tempfile.TemporaryFile(dir=folder):
    pass  # what the file system itself says counts
  longest = os.pathconf(folder, 'PC_NAME_MAX')
  for name in names:
    if len(os.fsencode(name)) > longest:
      raise OSError(errno.ENAMETOOLONG, f'names have at most {longest} bytes')


def _probe(folder: Path) -> None:
  """Writes an object into a bucket, and removes it."""
  probe = folder / f'.probe_{uuid.uuid4().hex[:8]}'
  probe.write_bytes(b'')
  probe.unlink()
