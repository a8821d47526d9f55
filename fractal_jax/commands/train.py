"""`train`: trains a model, or goes on with a run.

fractal-jax train --data=photos --size=32
fractal-jax train --config=digits --workdir=runs/digits
"""

import re
import sys

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of `train`."""
  common.config_flag(required=False)
  flags.DEFINE_string(
    'data',
    None,
    'In place of --config: a folder of images, an .npz file, or a data set of '
    'TFDS. A config is chosen for it and for this machine, and the reasons are '
    'said; --config.KEY=VALUE still changes it.',
  )
  flags.DEFINE_integer(
    'size', None, 'With --data: the side of the images; chosen if unset.'
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Where config, checkpoints, samples and logs go; with --data, runs/ and '
    'its name if unset. A run that is there goes on.',
  )
  common.show_flag()
  flags.DEFINE_string(
    'profile', None, 'STEP[:COUNT]: trace these steps for TensorBoard.'
  )
  common.distributed_flags()
  flags.register_multi_flags_validator(
    ['workdir', 'data', 'show'],
    lambda x: x['workdir'] or x['data'] or x['show'],
    '--workdir=DIR is needed: where the run is to be kept',
  )
  if any(re.match('--?data(=|$)', x) for x in sys.argv):
    FLAGS.set_default('config', common.DEFAULT)  # --config.KEY changes it


def run() -> None:
  """Trains --config, or what is chosen for --data."""
  import math

  given = FLAGS['config'].present
  if bool(given) == (FLAGS.data is not None):
    raise common.UsageError(
      'give --config=NAME, or --data=DIR of your own images: one of them'
    )
  if FLAGS.size is not None and FLAGS.data is None:
    raise common.UsageError('--size goes with --data; or set model.sizes')
  profile = steps_to_profile(FLAGS.profile)
  config, workdir = FLAGS.config, FLAGS.workdir
  if FLAGS.data is not None:
    from fractal_jax.commands import train_data

    workdir = workdir or train_data.workdir_of(FLAGS.data)
    config = train_data.config_for(FLAGS.data, FLAGS.size, workdir)
  if FLAGS.show:
    return None if FLAGS.data else common.show_config()
  from fractal_jax.training import train

  mesh = config.mesh
  if sorted((mesh.data, mesh.fsdp, mesh.tensor)) == [-1, 1, 1]:
    common.use_cores(math.gcd(config.optim.batch, mesh.groups))
  if FLAGS.data is not None:
    train_data.say_what_to_expect(config, workdir)
  train.train(config, workdir, profile=profile)
  if FLAGS.data is not None:
    train_data.say_what_next(workdir)


def steps_to_profile(text: str | None) -> tuple[int, int] | None:
  """'100' or '100:3' -> the first step to trace, and how many (5 if unset)."""
  if text is None:
    return None
  try:
    first, count = map(int, (*text.split(':'), 5)[:2])
  except ValueError:
    first = count = 0
  if min(first, count) < 1 or text.count(':') > 1:
    raise common.UsageError(
      f'--profile={text} must be STEP or STEP:COUNT, whole numbers from 1'
    )
  return first, count
