"""`train`: trains a model, or goes on with a run.

  fractal-jax train --data=photos --size=32
  fractal-jax train --config=digits --workdir=runs/digits
"""

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  common.config_flag()
  flags.DEFINE_string('workdir', None, 'Where config, checkpoints, logs go.')
  flags.mark_flag_as_required('workdir')
  flags.DEFINE_string(
    'profile', None, 'STEP[:COUNT]: trace these steps for TensorBoard.'
  )
  common.distributed_flags()


def run():
  import math

  profile = steps_to_profile(FLAGS.profile)
  from fractal_jax.training import train

  mesh = FLAGS.config.mesh
  if sorted((mesh.data, mesh.fsdp, mesh.tensor)) == [-1, 1, 1]:
    common.use_cores(math.gcd(FLAGS.config.optim.batch, mesh.groups))
  train.train(FLAGS.config, FLAGS.workdir, profile=profile)


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
