"""`cost`: parameters and FLOPs of a config."""

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


define_flags = common.config_flag


def run():
  from fractal_jax import config as config_lib
  from fractal_jax import cost

  config_lib.check(FLAGS.config)
  common.say(cost.table(FLAGS.config))
