"""TensorBoard's event files without TensorFlow, for runs in a bucket too.

TensorBoard shows a section for what stands before the slash of a name: curves
are named by what a reader looks for, others than in metrics.jsonl.
"""

import os
import time

import numpy as np

from fractal_jax import paths, pictures
from fractal_jax.training.logs import NullWriter

# (how a name of metrics.jsonl begins, what stands there in TensorBoard), the
# first that fits.
SECTIONS = (
  ('train/bits_per_dim', 'bits/training'),
  ('val/bits_per_dim', 'bits/held_out'),
  ('train/loss', 'bits/loss'),
  ('train/guide_loss', 'bits/guide_loss'),
  ('train/grad_norm', 'gradients/norm'),
  ('train/param_norm', 'parameters/norm'),
  ('train/update_ratio', 'parameters/update_ratio'),
  ('train/images_per_second', 'speed/images_per_second'),
  ('train/', 'optimizer/'),
  ('val/', 'held_out/'),
  ('samples', 'samples'),
  ('', 'speed/'),
)


def tag(name: str) -> str:
  """The name that TensorBoard shows for one of metrics.jsonl."""
  for begin, shown in SECTIONS:
    if name.startswith(begin):
      return (shown + name[len(begin) :]).replace('norm/', 'norm_')
  raise AssertionError(name)  # the last entry fits all


class TensorBoard(NullWriter):
  """A clu MetricWriter of an event file: scalars, images, movies, a config."""

  def __init__(self, folder: str, start: int):
    """Continues after step `start`: TensorBoard hides what came later."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import record_writer

    self._event, self._summary = event_pb2, summary_pb2
    name = f'events.out.tfevents.{time.time_ns()}.{os.uname().nodename}'
    file = paths.growing(paths.path(folder) / name)
    self._records = record_writer.RecordWriter(file)
    self._write(file_version='brain.Event:2')
    begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step=start + 1, session_log=begin)

  def _write(self, **fields) -> None:
    event = self._event.Event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())

  def _write_values(self, step: int, values) -> None:
    summary = self._summary.Summary(value=values)
    self._write(step=step, summary=summary)

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    value = self._summary.Summary.Value
    self._write_values(
      step,
      [value(tag=tag(k), simple_value=float(v)) for k, v in scalars.items()],
    )

  def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
    """Images: uint8 [H, W, 3] by name."""
    values = []
    for name, pixels in images.items():
      image = self._summary.Summary.Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        colorspace=3,
        encoded_image_string=pictures.png(pixels),
      )
      values.append(self._summary.Summary.Value(tag=tag(name), image=image))
    self._write_values(step, values)

  def write_gifs(self, step: int, gifs: dict[str, bytes]) -> None:
    """Movies by name, which TensorBoard plays among the images."""
    image = self._summary.Summary.Image
    value = self._summary.Summary.Value
    self._write_values(
      step,
      [
        value(tag=tag(k), image=image(encoded_image_string=gif, colorspace=3))
        for k, gif in gifs.items()
      ],
    )

  def write_hparams(self, hparams: dict) -> None:
    """The run's config: numbers, texts and truth values by name."""
    from tensorboard.plugins.hparams import summary_v2

    plain = {
      k: v if isinstance(v, bool | int | float | str) else str(v)
      for k, v in hparams.items()
    }
    self._write(step=0, summary=summary_v2.hparams_pb(plain))

  def flush(self) -> None:
    self._records.flush()

  def close(self) -> None:
    self._records.close()
