"""`reference`: statistics of a data set, for `evaluate --ref`.

fractal-jax reference --data=photos --size=64 --out=ref.npz
"""

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import checks, paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of `reference`."""
  common.config_flag(
    'A config, whose data set and size of images are used.', required=False
  )
  flags.DEFINE_string(
    'data',
    None,
    'In place of --config: a folder with a folder of images per class, or '
    'an .npz file.',
  )
  common.number_flag('size', None, 'With --data: the side of the images.')
  common.number_flag('channels', 3, 'With --data: 3, or 1 for grey.')
  common.number_flag(
    'values',
    256,
    'With --data: values are 0 to this - 1.',
    checks.integer(least=2),
  )
  flags.DEFINE_string('split', None, 'Split; the training split if unset.')
  common.number_flag('num', 0, 'Images; 0: the whole split.', checks.FROM_0)
  common.number_flag('batch', None, 'Images at a time.')
  flags.DEFINE_string('out', None, 'The .npz file to write.')
  flags.mark_flag_as_required('out')
  common.metrics_flags()
  common.distributed_flags()


def run() -> None:
  """Writes the statistics of --config's or --data's images to --out."""
  from fractal_jax import sharding
  from fractal_jax.data import pipeline
  from fractal_jax.metrics import features, reference, weights

  common.check_output(FLAGS.out, '--out', ('.npz',))
  config = the_config()
  features.check_model(config.model)
  extractor = features.Extractor(
    weights.load(FLAGS.inception),
    mesh=sharding.any_mesh(config),
    batch=FLAGS.batch or features.BATCH,
  )
  split = FLAGS.split or config.data.train_split
  if skipped := pipeline.open_split(config, split).skipped:
    common.say(skipped)
  made = reference.make(
    config, split, extractor, num=FLAGS.num, progress=common.shown('batch')
  )
  if common.leads():
    reference.write(FLAGS.out, made)
  common.say(
    f'{made.num} images of {made.name}, {len(made.features)} of them for '
    f'precision and recall: {paths.absolute(FLAGS.out)}'
  )


def the_config() -> ConfigDict:
  """The config of --config, or one that reads --data."""
  from fractal_jax import config as config_lib

  if (FLAGS.config is None) == (FLAGS.data is None):
    raise common.UsageError(
      'give --config=FILE, or --data=DIR or FILE.npz: one of them'
    )
  if FLAGS.config is not None:
    for name in ('size', 'channels', 'values'):
      if FLAGS[name].present:
        raise common.UsageError(f'--{name} goes with --data, not with --config')
    config_lib.check(FLAGS.config)
    return FLAGS.config
  if FLAGS.size is None:
    raise common.UsageError(
      '--data needs --size, the side that images are cropped to'
    )
  config = config_lib.default()
  common.read_data(config)
  config.model.update(
    sizes=(FLAGS.size, 1), channels=FLAGS.channels, num_values=FLAGS.values
  )
  return config
