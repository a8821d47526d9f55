"""Paths: names to files and objects, writing them, checks before work."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from fractal_jax import paths
from fractal_jax.paths import PathError

ROOT = pathlib.Path(__file__).parent.parent


def test_names_become_paths(monkeypatch, tmp_path, bucket):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert paths.path('a/b') == pathlib.Path('a/b')
  assert paths.path('~/run') == tmp_path / 'run'
  assert paths.path(tmp_path) == tmp_path
  assert str(paths.path('gs://b/run') / 'x' / 'y') == 'gs://b/run/x/y'
  assert paths.path(paths.path('gs://b/run')) == paths.path('gs://b/run')
  assert paths.is_remote('gs://b/run') and not paths.is_remote('run')
  assert paths.absolute('gs://b/run') == 'gs://b/run'
  assert paths.absolute('run') == f'{os.getcwd()}/run'


@pytest.mark.parametrize(
  'name, words',
  [
    ('', 'is no path'),
    ('a\0b', 'is no path'),
    ('~nobody-of-this-name/x', 'home directory is not known'),
    ('ftp://host/x', 'ftp:// is not known.*mount the storage'),
    ('file:///x', 'file:// is not known'),
    ('GS://b/x', 'GS:// is not known'),
    ('gs://', 'names no bucket'),
    ('gs:///x', 'names no bucket'),
    ('gs:/bucket/x', 'names no bucket: write gs://BUCKET/NAME'),
  ],
)
def test_names_that_are_none(name, words):
  with pytest.raises(PathError, match=words):
    paths.path(name)


@pytest.mark.parametrize(
  'name, install',
  [
    ('gs://b/x', r"gcsfs: pip install 'fractal_jax\[gcs\]'"),
    ('s3://b/x', 's3fs: pip install s3fs'),
  ],
)
def test_what_to_install(name, install, monkeypatch):
  monkeypatch.setattr(paths.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(PathError, match=install):
    paths.path(name)


# Writing.


@pytest.fixture(params=['local', 'bucket'])
def folder(request, tmp_path):
  """A folder, here and in a bucket."""
  if request.param == 'local':
    return str(tmp_path)
  bucket = request.getfixturevalue('bucket')
  return f'{bucket.url}/paths/{request.function.__name__}'


def names(folder):
  return sorted(p.name for p in paths.path(folder).iterdir())


def test_a_file_is_written_whole_or_not_at_all(folder):
  name = f'{folder}/new/array.npz'
  with paths.atomic_write(name) as file:
    assert file.name.endswith('.npz')
    np.savez(file, x=np.arange(5))
  before = paths.path(name).read_bytes()
  with pytest.raises(RuntimeError):
    with paths.atomic_write(name) as file:
      file.write(b'half of it')
      raise RuntimeError
  assert paths.path(name).read_bytes() == before
  assert names(f'{folder}/new') == ['array.npz']
  with paths.local(name) as file:
    np.testing.assert_array_equal(np.load(file)['x'], np.arange(5))


def test_what_is_no_file_is_written_to_itself(tmp_path):
  link, there = tmp_path / 'link', tmp_path / 'there'
  there.write_text('old')
  link.symlink_to(there)
  paths.write_text(link, 'new')
  assert link.is_symlink() and there.read_text() == 'new'
  paths.write_text('/dev/null', 'nothing')
  assert not pathlib.Path('/dev/null').is_file()
  paths.write_text(tmp_path / ('x' * 255), 'a name as long as can be')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has it')
def test_a_full_disk_is_told_with_the_name_of_the_file():
  with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
    paths.write_text('/dev/full', 'text')


def test_a_file_grows_and_is_cut(folder, monkeypatch):
  monkeypatch.setattr(paths, 'PART', 20)
  name = f'{folder}/lines.jsonl'
  assert paths.read_grown(name) == b''
  file = paths.growing(name)
  for i in range(4):
    file.write(b'line %d\n' % i)
  file.flush()
  file.close()
  file = paths.growing(name)
  for i in range(4, 8):
    file.write(b'line %d\n' % i)
  file.close()
  assert paths.read_grown(name) == b''.join(b'line %d\n' % i for i in range(8))
  if paths.is_remote(name):
    assert names(folder) == ['lines.0001.jsonl', 'lines.jsonl']
  file = paths.growing(name, keep=lambda line: line < b'line 2')
  file.write(b'line 2 again\n')
  file.close()
  assert paths.read_grown(name) == b'line 0\nline 1\nline 2 again\n'


def test_a_growing_object_waits_for_its_bucket(bucket):
  name = f'{bucket.url}/paths/patient.jsonl'
  file = paths.growing(name)
  bucket.faults.append(403)  # which is not tried again at once
  file.write(b'one\n')
  file.flush()
  file.write(b'two\n')
  file.close()
  assert not bucket.faults
  assert paths.read_grown(name) == b'one\ntwo\n'


# Checks before the work.


@pytest.mark.parametrize(
  'name, words',
  [
    ('', 'is no path'),
    ('folder', 'is a folder'),
    ('new/', 'is a folder'),
    ('file/x.png', 'file is no folder'),
    ('file/new/x.png', 'is no folder'),
    ('x' * 256 + '.png', 'cannot be written'),
    ('new/' + 'x' * 256 + '/x.png', 'names have at most 255'),
    ('x.jpeg', 'must end in .png or .npz'),
    ('/proc/new/x.png', 'cannot be written: No such file'),
  ],
)
def test_outputs_that_cannot_be(name, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_text('')
  endings = ('.png', '.npz') if name == 'x.jpeg' else ()
  with pytest.raises(PathError, match=words):
    paths.check_output(name, '--out', endings)
  assert sorted(os.listdir(tmp_path)) == ['file', 'folder']


def test_outputs_that_can_be(folder):
  paths.check_output(f'{folder}/new/folder/x.png', '--out', ('.png',))
  paths.write_text(f'{folder}/x.png', 'old')
  paths.check_output(f'{folder}/x.png')
  paths.check_folder(f'{folder}/new', '--cache')
  assert names(folder) == ['x.png']


def test_a_bucket_that_is_not_there(bucket):
  with pytest.raises(PathError, match='--out=gs://no-such-bucket/x.png cannot'):
    paths.check_output('gs://no-such-bucket/x.png')


@pytest.mark.skipif(os.getuid() != 0, reason='needs another user to be')
def test_what_may_not_be_written(tmp_path):
  os.chmod(tmp_path, 0o755)
  for parent in list(tmp_path.parents)[:-2]:
    os.chmod(parent, 0o755)
  (tmp_path / 'mine').write_text('')
  code = (
    'import os, sys; from fractal_jax import paths\n'
    'os.setgid(65534); os.setuid(65534)\n'
    'for name in sys.argv[1:]:\n'
    '  try: paths.check_output(name)\n'
    '  except paths.PathError as e: print(e)\n'
  )
  run = subprocess.run(
    [sys.executable, '-c', code, f'{tmp_path}/new/x', f'{tmp_path}/mine'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert 'Permission denied' in run.stdout, run.stderr
  assert 'may not be overwritten' in run.stdout


def test_errors_of_storage_and_others():
  assert paths.of_storage(PermissionError(13, 'no'))
  assert paths.of_storage(ValueError('PERMISSION_DENIED: Error reading'))
  try:
    try:
      raise TimeoutError
    except TimeoutError as e:
      raise ValueError('of Orbax') from e
  except ValueError as e:
    assert paths.of_storage(e)
  assert not paths.of_storage(FileNotFoundError())
  assert not paths.of_storage(ValueError('DATA_LOSS'))


def test_what_lies_in_a_folder(tmp_path):
  (tmp_path / 'link').symlink_to('photos')
  for inner in ('photos', 'photos/run', 'link/run', 'photos/x/../run'):
    assert paths.within(tmp_path / inner, tmp_path / 'photos')
  for inner in ('photos2', '.', 'runs/photos', 'photos/.run/x'):
    assert not paths.within(tmp_path / inner, tmp_path / 'photos')
  assert paths.within('gs://a/photos/run', 'gs://a/photos')
  assert not paths.within(tmp_path, 'gs://a/photos')
