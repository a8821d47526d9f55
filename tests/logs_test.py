"""Metric files and the progress line."""

import inspect
import io
import json
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from tensorboard.compat.proto import event_pb2

from fractal_jax.training import events as events_lib
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
    file.write('3\n{}\n{"step": "x"}\n')  # of something else
    file.write('{"step": 4, "lo')  # torn
  writer = logs.JSONLines(path, 2)
  writer.write_scalars(3, {'loss': 30})
  writer.close()
  assert lines(path) == [
    {'step': 1, 'loss': 1.0},
    {'step': 2, 'loss': 2.0},
    {'step': 3, 'loss': 30.0},
  ]


def test_lines_that_are_no_metrics_are_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(
    b'{"step": 1, "loss": 2.0}\n[1]\n3\n{}\n{"step": "x"}\n\xff\n'
    b'{"step": 2, "loss": "x"}\n' + b'[' * 100_000 + b'\n{"step": 3, "lo'
  )
  assert logs.read_metrics(tmp_path) == [{'step': 1, 'loss': 2.0}]
  assert logs.read_metrics(tmp_path / 'none') == []


def test_scalars_of_a_step_share_a_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = logs.JSONLines(path, 0)
  writer.write_scalars(1, {'loss': 1})
  writer.write_scalars(1, {'speed': 2})
  writer.write_images(1, {'samples': np.zeros((4, 6, 3), np.uint8)})
  writer.write_scalars(2, {'loss': 3})
  writer.flush()
  assert lines(path) == [
    {'step': 1, 'loss': 1.0, 'speed': 2.0},
    {'step': 2, 'loss': 3.0},
  ]


def test_our_writers_have_clus_whole_interface():
  """Whatever may be called of clu's, by place or by name, may be of ours."""
  interface = pytest.importorskip('clu.metric_writers').MetricWriter
  ours = (logs.NullWriter, logs.JSONLines, logs.Writers, events_lib.TensorBoard)
  for writer in map(object.__new__, ours):
    for name in interface.__abstractmethods__:
      _, *theirs = inspect.signature(
        getattr(interface, name)
      ).parameters.values()
      own = inspect.signature(getattr(writer, name))
      own.bind(**{x.name: None for x in theirs})
      named = {x.name: None for x in theirs if x.kind == x.KEYWORD_ONLY}
      own.bind(*[None] * (len(theirs) - len(named)), **named)


def events(folder):
  """The events of a folder's files in order: length, crc, event, crc; ..."""
  out = []
  for path in sorted(folder.iterdir()):
    rest = path.read_bytes()
    while rest:
      (size,) = struct.unpack('<Q', rest[:8])
      out.append(event_pb2.Event.FromString(rest[12 : 12 + size]))
      rest = rest[16 + size :]
  return out


def test_tensorboard_gets_scalars_images_movies_and_the_config(tmp_path):
  writer = logs.metric_writer(tmp_path, 4)
  writer.write_hparams({'optim.lr': 0.1, 'model.sizes': (8, 1)})
  writer.write_scalars(5, {'train/loss': 0.5})
  writer.write_images(5, {'samples/grid': np.zeros((4, 6, 3), np.uint8)})
  gif = io.BytesIO()
  PIL.Image.new('RGB', (3, 2)).save(gif, 'gif')
  writer.write_gifs(5, {'samples/growing': gif.getvalue()})
  writer.flush()
  writer.close()
  found = events(tmp_path / 'tensorboard')
  # TensorBoard hides what an earlier run wrote from this step on.
  (session,) = [e for e in found if e.HasField('session_log')]
  assert session.step == 5
  assert session.session_log.status == event_pb2.SessionLog.START
  values = {v.tag: (e.step, v) for e in found for v in e.summary.value}
  step, value = values['bits/loss']
  assert step == 5 and value.simple_value == 0.5
  step, value = values['samples/grid']
  assert (step, value.image.width, value.image.height) == (5, 6, 4)
  shown = io.BytesIO(value.image.encoded_image_string)
  assert PIL.Image.open(shown).size == (6, 4)
  step, value = values['samples/growing']
  assert value.image.encoded_image_string == gif.getvalue()
  _, value = values['_hparams_/session_start_info']
  assert b'optim.lr' in value.metadata.plugin_data.content
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 5, 'train/loss': 0.5}]


@pytest.mark.parametrize(
  'name, shown',
  [
    ('train/bits_per_dim', 'bits/training'),
    ('val/bits_per_dim', 'bits/held_out'),
    ('val/stderr', 'held_out/stderr'),
    ('train/grad_norm/level_1', 'gradients/norm_level_1'),
    ('train/lr', 'optimizer/lr'),
    ('steps_per_sec', 'speed/steps_per_sec'),
    ('samples/grid', 'samples/grid'),
  ],
)
def test_curves_are_grouped_by_what_is_looked_for(name, shown):
  assert events_lib.tag(name) == shown


@pytest.fixture
def no_tensorflow(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)


def test_without_tensorflow_a_line_says_what_is_off(
  no_tensorflow, tmp_path, capsys
):
  writer = logs.metric_writer(tmp_path, 0)
  writer.write_scalars(1, {'loss': 2})
  assert logs.periodic_actions(tmp_path, 0, 9, writer) == []
  writer.close()
  (line,) = capsys.readouterr().out.splitlines()
  assert 'TensorFlow is not installed' in line and '--profile' in line
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 2.0}]
  with pytest.raises(logs.ProfileError, match='pip install'):
    logs.periodic_actions(tmp_path, 0, 9, writer, (2, 1))


def test_a_profile_of_steps_is_where_tensorboard_looks(tmp_path):
  pytest.importorskip('tensorflow')
  writer = logs.NullWriter()
  with pytest.raises(logs.ProfileError, match='after the last step, 9'):
    logs.periodic_actions(tmp_path, 0, 9, writer, (10, 1))
  actions = logs.periodic_actions(tmp_path, 3, 9, writer, (5, 2))
  traces = lambda: list(tmp_path.rglob('plugins/profile/*/*.xplane.pb'))
  for step in range(3, 10):
    for action in actions:
      action(step)
    assert len(traces()) == (step >= 6)  # of steps 5 and 6
  logs.stop_profile()  # is no error where none is being taken


def test_speed_is_reported_at_the_end(tmp_path):
  pytest.importorskip('tensorflow')
  writer = logs.JSONLines(tmp_path / 'metrics.jsonl', 0)
  for step in range(4):
    for action in logs.periodic_actions(tmp_path, 0, 3, writer)[:1]:
      action(0)
      action(step)
  writer.close()
  (line,) = lines(tmp_path / 'metrics.jsonl')
  assert line['step'] == 3 and line.keys() > {'steps_per_sec', 'uptime'}


def test_tensorflow_is_loaded_by_the_writers_alone(tmp_path):
  """Not by the data, the model, the step, or a process that doesn't write."""
  code = (
    'import sys; from fractal_jax import config; '
    'from fractal_jax.data import pipeline; '
    'from fractal_jax.training import logs, train; '
    'c = config.default(); c.model.sizes = (8, 1); c.model.num_values = 17; '
    'c.model.channels = 1; c.optim.batch = 4; c.data.flip = False; '
    'next(pipeline.train_batches(c)); '
    'bad = {"tensorflow", "tensorflow_datasets"} & set(sys.modules); '
    'sys.exit(str(bad) if bad else 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_progress_line_at_most_so_often_but_always_at_the_end(
  capsys, monkeypatch
):
  now = [0.0]
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  progress = logs.Speed(0, 100, batch=4, every=5.0)
  speeds = []
  for step in range(10, 101, 10):
    now[0] += 2.0
    speeds.append(progress.update(step, 1.0, 2.0))
  assert speeds == [20.0] * 10  # 5 steps of 4 images per second
  out = capsys.readouterr().out.splitlines()
  assert [int(x.split()[1].split('/')[0]) for x in out] == [10, 40, 70, 100]
  assert out[0] == (
    'step  10/100  loss 1.0000  bits/dim 2.0000  20 images/s  ETA 18s'
  )


def test_pauses_are_not_training(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  progress = logs.Speed(0, 100, batch=1)
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
