"""`train`: trains a model, or goes on with a run."""

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  common.config_flag()
  flags.DEFINE_string('workdir', None, 'Where config, checkpoints, logs go.')
  flags.mark_flag_as_required('workdir')
  common.distributed_flags()


def run():
  import math

  from fractal_jax.training import train

  mesh = FLAGS.config.mesh
  if sorted((mesh.data, mesh.fsdp, mesh.tensor)) == [-1, 1, 1]:
    common.use_cores(math.gcd(FLAGS.config.optim.batch, mesh.groups))
  train.train(FLAGS.config, FLAGS.workdir)
