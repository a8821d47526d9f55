"""Metric files and the progress line."""

import io
import json
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
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


def events(folder):
  """The events of the one file in a folder: length, crc, event, crc; ..."""
  (path,) = folder.iterdir()
  rest, out = path.read_bytes(), []
  while rest:
    (size,) = struct.unpack('<Q', rest[:8])
    out.append(event_pb2.Event.FromString(rest[12 : 12 + size]))
    rest = rest[16 + size :]
  return out


def test_tensorboard_gets_scalars_and_images(tmp_path):
  writers = logs.Writers(tmp_path, 4)
  writers.write_scalars(5, {'train/loss': 0.5})
  writers.write_images(5, {'samples': np.zeros((4, 6, 3), np.uint8)})
  writers.flush()
  writers.close()
  version, session, scalar, image = events(tmp_path / 'tensorboard')
  assert version.file_version == 'brain.Event:2'
  # TensorBoard hides what an earlier run wrote from this step on.
  assert session.step == 5
  assert session.session_log.status == event_pb2.SessionLog.START
  (value,) = scalar.summary.value
  assert (scalar.step, value.tag, value.simple_value) == (5, 'train/loss', 0.5)
  (value,) = image.summary.value
  assert (value.tag, value.image.height, value.image.width) == ('samples', 4, 6)
  png = PIL.Image.open(io.BytesIO(value.image.encoded_image_string))
  assert png.size == (6, 4)
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 5, 'train/loss': 0.5}]


def test_no_tensorflow_on_the_training_path(tmp_path):
  code = (
    'import sys; from fractal_jax.training import logs, train;'
    f'w = logs.Writers({str(tmp_path)!r}, 0); w.write_scalars(1, {{"a": 1}});'
    'w.close(); bad = {"tensorflow", "clu", "tensorflow_datasets"};'
    'sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


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


def test_parameter_table_adds_up():
  params = {
    'labels': {'table': np.zeros((10, 100))},
    'level_0': {'blocks': {'a': np.zeros((2, 3)), 'b': np.zeros(4)}},
  }
  table = [line.split() for line in logs.parameter_table(params).splitlines()]
  assert table[1:] == [
    ['labels/table', '1', '1,000'],
    ['level_0/blocks', '2', '10'],
    ['total', '3', '1,010'],
  ]
