"""`convert`: published weights to a run, and back.

fractal-jax convert --config=fractalmar_in64 --pth=last.pth --workdir=runs/mar
fractal-jax convert --workdir=runs/mar --out=back.pth
"""

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  """The flags of `convert`."""
  common.config_flag('The config of the published model.', required=False)
  flags.DEFINE_string('pth', None, 'Published weights to read.')
  flags.DEFINE_string('workdir', None, 'Run to write (--pth), or to read.')
  flags.DEFINE_string('out', None, 'A .pth file to write from --workdir.')
  flags.DEFINE_integer('step', None, 'Checkpoint to use; the latest if unset.')
  flags.mark_flag_as_required('workdir')


def run():
  """Makes a run of the published weights --pth, or --out of a run."""
  from fractal_jax import config as config_lib
  from fractal_jax import convert
  from fractal_jax.training import checkpoint, restore

  if bool(FLAGS.pth) == bool(FLAGS.out):
    raise common.UsageError(
      'convert either reads --config=... --pth=FILE into a new --workdir, or '
      'writes --out=FILE.pth from a --workdir: give one of --pth and --out.'
    )
  if FLAGS.out:
    paths.check_output(FLAGS.out, '--out', ('.pth',))
    config = checkpoint.load_config(FLAGS.workdir)
    params = restore.restore_params(FLAGS.workdir, FLAGS.step)
    state = convert.to_published(params, config.model)
    convert.write_pth(FLAGS.out, state)
    common.say(f'{len(state)} tensors: {paths.absolute(FLAGS.out)}')
    return
  if FLAGS.config is None:
    raise common.UsageError(
      '--pth needs the --config that the weights belong to.'
    )
  config_lib.check(FLAGS.config)
  params = convert.from_published(
    convert.read_pth(FLAGS.pth), FLAGS.config.model
  )
  checkpoint.save_params(FLAGS.workdir, FLAGS.config, params)
  common.say(f'{FLAGS.pth} is now the run {paths.absolute(FLAGS.workdir)}')
