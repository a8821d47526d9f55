"""One run at a time in a work directory."""

import subprocess
import threading
import time

import pytest

from fractal_jax import paths
from fractal_jax.training import CheckpointError, lease


def refuses(workdir):
  with pytest.raises(CheckpointError, match=r'by another run \(process \d+ on'):
    with lease.hold(workdir):
      pass


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lease, 'HEARTBEAT', 0.1)
  monkeypatch.setattr(lease, 'EXPIRY', 1.0)


def test_a_second_run_is_refused(tmp_path):
  with lease.hold(tmp_path):
    refuses(tmp_path)
  with lease.hold(tmp_path):
    pass


def test_a_second_run_is_refused_in_a_bucket(bucket, quick):
  workdir = f'{bucket.url}/second'
  with lease.hold(workdir) as held:
    assert paths.path(f'{workdir}/.lock').read_text().startswith(held.holder)
    refuses(workdir)
    held.check()
  assert 'second/.lock' in bucket.writes
  assert not paths.path(f'{workdir}/.lock').exists()
  with lease.hold(workdir):
    pass


def test_a_dead_runs_lease_expires(bucket, quick):
  workdir = f'{bucket.url}/dead'
  dead = lease.Lease(workdir)
  dead.take()  # and is never renewed
  start = time.monotonic()
  with lease.hold(workdir) as held:
    assert time.monotonic() - start >= lease.EXPIRY
    refuses(workdir)
    # Should it wake up, it notices, and leaves the lease alone.
    dead.keep()
    until = time.monotonic() + 10
    while time.monotonic() < until and dead._lost is None:
      time.sleep(0.02)
    with pytest.raises(CheckpointError, match='taken over by another run'):
      dead.check()
    dead.release()
    held.check()
    refuses(workdir)


def test_a_process_that_is_known_to_be_dead():
  assert lease.identity() and not lease.is_dead(lease.identity())
  child = subprocess.Popen(['sleep', '60'])
  found = lease.identity(child.pid)
  assert not lease.is_dead(found)
  child.kill()
  until = time.monotonic() + 10
  while not lease.is_dead(found) and time.monotonic() < until:
    time.sleep(0.01)
  assert lease.is_dead(found)  # before anyone has waited for it
  child.wait()
  assert lease.is_dead(found)
  boot, space, pid, start = found.split()
  # Another process has its number now; other hosts and containers are unseen.
  assert lease.is_dead(lease.identity()[:-1] + 'x')
  for unknown in (
    f'x {space} {pid} {start}',
    f'{boot} 1 {pid} {start}',
    '',
    '?',
  ):
    assert not lease.is_dead(unknown)


def test_a_run_that_was_killed_here_is_taken_over_at_once(bucket):
  workdir = f'{bucket.url}/killed'
  child = subprocess.Popen(['sleep', '60'])
  dead = lease.Lease(workdir)
  mine = lease.identity()
  assert mine in dead._text
  dead._text = dead._text.replace(mine, lease.identity(child.pid))
  child.kill()
  child.wait()
  dead.take()
  start = time.monotonic()
  with lease.hold(workdir):
    assert time.monotonic() - start < lease.EXPIRY / 2


def test_only_one_takes_over(bucket, quick):
  workdir = f'{bucket.url}/contest'
  lease.Lease(workdir).take()
  ends = []

  def contend():
    try:
      mine = lease.Lease(workdir)
      mine.take()
      mine.keep()
      ends.append(mine)
    except CheckpointError as e:
      ends.append(str(e))

  threads = [threading.Thread(target=contend) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  winners = [e for e in ends if not isinstance(e, str)]
  for winner in winners:
    winner.release()
  assert len(ends) == 4 and len(winners) == 1, ends


def test_a_released_lease_is_taken_at_once(bucket, monkeypatch):
  monkeypatch.setattr(lease, 'HEARTBEAT', 2.0)
  workdir = f'{bucket.url}/released'
  first = lease.Lease(workdir)
  first.take()
  first.keep()
  threading.Timer(0.3, first.release).start()
  start = time.monotonic()
  lease.Lease(workdir)._await_end(lease._Seen(first._generation, ''))
  assert time.monotonic() - start < lease.EXPIRY / 2


def test_throttling_is_waited_out(bucket, quick):
  bucket.faults += [429, 503]
  with lease.hold(f'{bucket.url}/throttled') as held:
    held.check()
  assert not bucket.faults


def test_an_answer_that_was_lost_is_no_rival(bucket):
  workdir = f'{bucket.url}/lost'
  mine = lease.Lease(workdir)
  paths.path(f'{workdir}/.lock').write_text(mine._text)
  assert mine._write(0)
  assert mine._write(mine._generation)


def test_what_cannot_be_written_to(bucket, tmp_path):
  with pytest.raises(CheckpointError, match='cannot be written to'):
    with lease.hold('gs://no-such-bucket/run'):
      pass
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot be written to'):
    with lease.hold(tmp_path / 'file'):
      pass
