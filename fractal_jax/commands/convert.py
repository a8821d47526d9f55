"""`convert`: published weights to a run or release and back; runs to releases.

fractal-jax convert --config=fractalmar_in64 --pth=a.pth --out=mar
fractal-jax convert --workdir=mar --out=back.safetensors
"""

import os

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of `convert`."""
  common.config_flag('The config of the published model.', required=False)
  flags.DEFINE_string(
    'pth', None, 'Published weights to read: a .pth or .safetensors file.'
  )
  flags.DEFINE_string(
    'workdir', None, 'A run to write (--pth); or to read, or a release.'
  )
  flags.DEFINE_string(
    'out',
    None,
    'What to write: published weights as a .pth or .safetensors file, or else '
    'a release: a folder with weights, config and card.',
  )
  flags.DEFINE_integer('step', None, 'Checkpoint to use; the latest if unset.')
  common.release_flags()


def run() -> None:
  """Reads --pth or --workdir, writes --workdir or --out."""
  from fractal_jax import convert

  check_flags()
  if FLAGS.pth:
    from_published()
  elif to_file():
    model = common.load_model()
    state = convert.to_published(model.params, model.config.model)
    convert.write(FLAGS.out, state)
    common.say(f'{len(state)} tensors: {paths.absolute(FLAGS.out)}')
  else:
    release = common.arguments(*common.RELEASE)
    common.load_model().save_pretrained(FLAGS.out, **release)
    common.say(f'release: {paths.absolute(FLAGS.out)}')


def from_published() -> None:
  """Makes a run, a release or another file of --pth."""
  from fractal_jax import config as config_lib
  from fractal_jax import convert
  from fractal_jax.release import folder
  from fractal_jax.training import checkpoint

  config_lib.check(FLAGS.config)
  state = convert.read(FLAGS.pth)
  params = convert.from_published(state, FLAGS.config.model)
  if FLAGS.workdir:
    checkpoint.save_params(FLAGS.workdir, FLAGS.config, params)
    common.say(f'{FLAGS.pth} is now the run {paths.absolute(FLAGS.workdir)}')
    return
  if to_file():
    convert.write(FLAGS.out, state)
  else:
    name = os.path.basename(os.path.abspath(FLAGS.out))
    card = common.arguments(*common.CARD)
    about = folder.about(None, None, FLAGS.config, name=name, **card)
    folder.write(FLAGS.out, FLAGS.config, params, about, FLAGS.dtype)
  common.say(f'{FLAGS.pth} is now {paths.absolute(FLAGS.out)}')


def check_flags() -> None:
  """Refuses flags that don't go together, and outputs that can't be written."""
  from fractal_jax.release import folder

  given = [bool(FLAGS[name].value) for name in ('pth', 'workdir', 'out')]
  if given.count(True) != 2:
    raise common.UsageError(
      'convert reads --config=... --pth=FILE into a new --workdir or --out, or '
      'a --workdir into --out: give two of --pth, --workdir and --out.'
    )
  if FLAGS.pth and FLAGS.config is None:
    raise common.UsageError(
      '--pth needs the --config that the weights belong to.'
    )
  if to_file():
    common.check_output(FLAGS.out, '--out')
  elif FLAGS.out:
    origin = common.workdir() if FLAGS.workdir else None
    folder.check_target(FLAGS.out, origin=origin)


def to_file() -> bool:
  """Whether --out is a file of published weights."""
  from fractal_jax import convert

  return bool(FLAGS.out) and FLAGS.out.endswith(convert.ENDINGS)
