"""Metric files and the progress line."""

import json
import struct
import sys

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2

from fractal_jax.training import logs


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_continue_without_repeating_steps(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = logs.JSONLines(path, 0)
  for step in (1, 2, 3):
    writer.write_scalars(step, {'loss': np.float32(step)})
  writer.close()
  with open(path, 'a') as file:
    file.write('{"step": 4, "lo')  # torn
  writer = logs.JSONLines(path, 2)
  writer.write_scalars(3, {'loss': 30})
  writer.close()
  assert lines(path) == [
    {'step': 1, 'loss': 1.0},
    {'step': 2, 'loss': 2.0},
    {'step': 3, 'loss': 30.0},
  ]


def events(path):
  """The events of a file: length, crc, event, crc; ..."""
  rest, out = path.read_bytes(), []
  while rest:
    (size,) = struct.unpack('<Q', rest[:8])
    out.append(event_pb2.Event.FromString(rest[12 : 12 + size]))
    rest = rest[16 + size :]
  return out


def test_a_run_writes_lines_and_what_tensorboard_reads(tmp_path):
  writer = logs.metric_writer(str(tmp_path), 4)
  writer.write_scalars(5, {'train/loss': 0.5})
  writer.write_images(5, {'samples': np.zeros((1, 4, 6, 3), np.uint8)})
  writer.flush()
  writer.close()
  found = [
    event
    for path in sorted((tmp_path / 'tensorboard').iterdir())
    for event in events(path)
  ]
  # TensorBoard hides what an earlier run wrote from this step on.
  (session,) = [e for e in found if e.HasField('session_log')]
  assert session.step == 5
  assert session.session_log.status == event_pb2.SessionLog.START
  tags = {(e.step, v.tag) for e in found for v in e.summary.value}
  assert (5, 'train/loss') in tags
  assert any(step == 5 and 'samples' in tag for step, tag in tags)
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 5, 'train/loss': 0.5}]


def test_without_tensorflow_the_lines_remain_and_it_is_said(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  writer = logs.metric_writer(str(tmp_path), 0)
  writer.write_scalars(1, {'a': 1})
  writer.close()
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 1, 'a': 1.0}]
  assert 'TensorFlow is not installed' in capsys.readouterr().out


def test_progress_line_at_most_so_often_but_always_at_the_end(
  capsys, monkeypatch
):
  now = [0.0]
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  progress = logs.Progress(0, 100, batch=4, every=5.0)
  speeds = []
  for step in range(10, 101, 10):
    now[0] += 2.0
    speeds.append(progress.update(step, 1.0, 2.0))
  assert speeds == [20.0] * 10  # 5 steps a second of 4 images
  out = capsys.readouterr().out.splitlines()
  assert [int(x.split()[1].split('/')[0]) for x in out] == [10, 40, 70, 100]
  assert out[0] == (
    'step  10/100  loss 1.0000  bits/dim 2.0000  20 images/s  ETA 18s'
  )


def test_pauses_are_not_training(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  progress = logs.Progress(0, 100, batch=1)
  with progress.pause():
    now[0] += 50
  now[0] += 2
  assert progress.update(10, 0, 0) == 5


@pytest.mark.parametrize(
  'seconds, text',
  [(5, '5s'), (90, '1m30s'), (3661, '1h01m'), (90000, '1d01h'), (np.inf, '?')],
)
def test_duration(seconds, text):
  assert logs.duration(seconds) == text
