"""`pull`: downloads a model of the Hugging Face Hub.

fractal-jax pull --repo=user/digits --out=digits
"""

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  flags.DEFINE_string('repo', None, 'The repository: user/name.')
  flags.mark_flag_as_required('repo')
  flags.DEFINE_string(
    'revision', None, 'A branch, tag or commit of it; main if unset.'
  )
  flags.DEFINE_string(
    'out',
    None,
    'A folder for it; unset: the cache, where --workdir=user/name finds it.',
  )


def run() -> None:
  """Downloads it, and looks whether it is whole."""
  from fractal_jax import config as config_lib
  from fractal_jax.models import fractal
  from fractal_jax.release import folder, hub
  from fractal_jax.training import checkpoint, restore, train_state

  if FLAGS.out is not None:
    if paths.is_remote(FLAGS.out):
      raise common.UsageError(
        f'--out={FLAGS.out}: the Hub is downloaded to disks alone: name a '
        'local folder, and copy it to the bucket'
      )
    folder.check_target(FLAGS.out)
  found = hub.pull(FLAGS.repo, FLAGS.out, revision=FLAGS.revision)
  config = checkpoint.load_config(found)
  config_lib.check(config)
  net = fractal.from_config(config.model)
  restore.check_params(found, train_state.param_shapes(net))
  common.say(f'release: {paths.absolute(found)}')
  workdir = FLAGS.out or FLAGS.repo
  common.say(f'to use it: fractal-jax sample --workdir={workdir}')
