"""`sample`: generates images."""

import os
import pathlib

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  common.workdir_flags()
  flags.DEFINE_integer('num', None, 'Images.')
  flags.DEFINE_integer('batch', None, 'Images at a time.')
  flags.DEFINE_integer('seed', 0, 'Image i depends on seed and i alone.')
  flags.DEFINE_list(
    'labels',
    None,
    "Classes by name or number, repeated, or 'none'; all if unset.",
  )
  common.sampling_flags()
  flags.DEFINE_string('out', 'samples.png', 'A .png grid, or .npz of values.')
  flags.DEFINE_string('movie', None, 'A .gif or .mp4 of images growing.')


def run():
  import numpy as np
  import tqdm

  from fractal_jax.inference import sample

  for name, least in (('num', 1), ('batch', 1)):
    common.at_least(name, least)
  if FLAGS.movie:
    sample.check_movie(FLAGS.movie)
  if not FLAGS.out.endswith(('.png', '.npz')):
    raise common.UsageError(f'--out={FLAGS.out} must end in .png or .npz')
  config = common.load_config()
  changes = common.sampling_changes()
  sampling, guided = sample.settings(
    config, record=bool(FLAGS.movie), **changes
  )
  labels = classes(config.model)
  num, batch = (
    FLAGS.num or config.sample.num,
    FLAGS.batch or config.sample.batch,
  )
  common.use_cores(min(num, batch))
  config, net, params, mesh = common.load_run(config)
  drawn = sample.generate(
    net,
    params,
    sample.round_robin(num, labels),
    sampling,
    guided=guided,
    seed=FLAGS.seed,
    batch=batch,
    mesh=mesh,
    progress=lambda x: tqdm.tqdm(x, unit='batch', disable=None),
  )
  import jax

  if jax.process_index():
    return
  columns = len(labels) if 1 < len(labels) <= 16 else None
  if FLAGS.out.endswith('.npz'):
    pathlib.Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
      FLAGS.out,
      images=drawn.values.astype(
        np.uint8 if sampling_fits(config) else np.int32
      ),
      labels=sample.round_robin(num, labels),
    )
  else:
    pictures = sample.pictures(drawn.values, config.model)
    sample.save(sample.grid(pictures, columns), FLAGS.out)
  common.say(f'{num} images: {os.path.abspath(FLAGS.out)}')
  if FLAGS.movie:
    sample.save_movie(drawn, config.model, FLAGS.movie, columns=columns)
    common.say(f'movie: {os.path.abspath(FLAGS.movie)}')


def sampling_fits(config):
  return config.model.num_values <= 256


def classes(model):
  """The classes that --labels names, checked."""
  if FLAGS.labels is None:
    return list(range(model.classes))
  if FLAGS.labels == ['none']:
    return [-1]
  if not FLAGS.labels:
    raise common.UsageError('--labels= names no class')
  return common.class_numbers(FLAGS.labels, model)
