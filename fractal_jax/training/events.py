"""TensorBoard's event files without TensorFlow, for runs in a bucket too."""

import io
import os
import time

import numpy as np

from fractal_jax import paths


class TensorBoard:
  """A writer of an event file, with the methods of clu's metric writers."""

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
      step, [value(tag=k, simple_value=float(v)) for k, v in scalars.items()]
    )

  def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
    """Images: uint8 [H, W, 3] by name."""
    from PIL import Image

    values = []
    for name, pixels in images.items():
      png = io.BytesIO()
      Image.fromarray(pixels).save(png, 'PNG')
      image = self._summary.Summary.Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        colorspace=3,
        encoded_image_string=png.getvalue(),
      )
      values.append(self._summary.Summary.Value(tag=name, image=image))
    self._write_values(step, values)

  def flush(self) -> None:
    self._records.flush()

  def close(self) -> None:
    self._records.close()
