"""`sample`: generates images.

fractal-jax sample --workdir=runs/digits --num=40 --guidance=2
fractal-jax sample --workdir=runs/photos --labels=cat,dog --movie=grow.gif
"""

from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import checks, paths
from fractal_jax.commands import common, sampling

if TYPE_CHECKING:
  from fractal_jax.models.types import Drawn

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  common.workdir_flags()
  common.number_flag(
    'num', None, "How many images; the config's sample.num if unset."
  )
  common.batch_flag()
  common.number_flag(
    'seed', 0, 'Image i depends on the seed and i alone.', checks.SEED
  )
  flags.DEFINE_list(
    'labels',
    None,
    "Classes to draw in turn, by name or number, or 'none' for no class; all "
    'if unset.',
  )
  sampling.define_flags()
  sampling.rejection_flags()
  flags.DEFINE_string(
    'out',
    'samples.png',
    'Where to: a .png, a grid of the images, or an .npz of their values.',
  )
  flags.DEFINE_string(
    'movie', None, 'A .gif or .mp4 to write, of the images as they grow.'
  )


def run() -> None:
  """Generates and writes the images."""
  from fractal_jax import pictures
  from fractal_jax.inference import sample

  if FLAGS.movie:
    pictures.check_movie(FLAGS.movie)
    common.check_output(FLAGS.movie, '--movie')
  common.check_output(FLAGS.out, '--out', ('.png', '.npz'))
  config = common.load_config()
  changes = sampling.changes()
  sample.check_use(config, [changes], FLAGS.guide)  # at once
  labels = classes(config.model)
  num = FLAGS.num or config.sample.num
  batch = FLAGS.batch or config.sample.batch
  common.use_cores(min(num, batch))
  guide = sampling.load_guide(config, FLAGS.guide)
  model = common.load_model(config)
  job = model.start(
    sample.kept,
    sample.round_robin(num, labels),
    guide=guide,
    seed=FLAGS.seed,
    batch=batch,
    record=bool(FLAGS.movie),
    **changes,
  )
  drawn, report = common.follow(job)
  if report is not None:
    common.say(str(report))
  if common.leads():
    write(drawn, labels, config.model)


def write(drawn: 'Drawn', labels: list[int], model: ConfigDict) -> None:
  """Writes --out and --movie."""
  import numpy as np

  from fractal_jax import pictures
  from fractal_jax.inference import sample

  num = len(drawn.values)
  most = pictures.most_classes(model)
  columns = len(labels) if 1 < len(labels) <= most else None
  each = sample.round_robin(num, labels)
  names = common.names_of(each)
  if FLAGS.out.endswith('.npz'):
    with paths.atomic_write(FLAGS.out) as file:
      np.savez_compressed(file, images=drawn.values, labels=each)
  else:
    shown = pictures.from_values(drawn.values, model)
    pictures.save(pictures.grid(shown, columns, names), FLAGS.out)
  common.say(f'{num} images: {paths.absolute(FLAGS.out)}')
  if FLAGS.movie:
    pictures.save_movie(drawn, model, FLAGS.movie, columns=columns, names=names)
    common.say(f'movie: {paths.absolute(FLAGS.movie)}')


def classes(model: ConfigDict) -> list[int]:
  """The classes that --labels names, checked; -1 for "no class"."""
  if FLAGS.labels is None:
    return list(range(model.classes))
  if not FLAGS.labels:
    raise common.UsageError('--labels= names no class')
  return common.class_numbers(FLAGS.labels, model)
