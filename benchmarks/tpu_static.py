"""Where a program's time goes on TPUs that are not there: a static estimate.

  python benchmarks/tpu_static.py --config=configs/fractalmar_in64.py \\
    --topology=v5e:2x2 --images=32
  python benchmarks/tpu_static.py --config=configs/fractalmar_in64.py \\
    --topology=v5e:2x2 --sample

It is what `fractal-jax cost --topology` says of the training step, or with
--sample of generating config.sample.batch images, for those who work on it:
all operations, and the compiled program in a file. It takes libtpu, and no TPU:
pip install 'fractal_jax[tpu-aot]'. fractal_jax/planning/estimate.py says what
is counted.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS


def define_flags():
  """On running it: the tests, which import this file, have flags of others."""
  config_flags.DEFINE_config_file('config', None, 'Its mesh is used.')
  flags.DEFINE_string('topology', 'v5e:2x2', 'A chip, and how many.')
  flags.DEFINE_integer('images', None, "A device's; optim.batch if unset.")
  flags.DEFINE_bool('sample', False, 'Generate, on one device.')
  flags.DEFINE_integer('top', 40, 'How many operations to list.')
  flags.DEFINE_string('hlo', None, 'A file for the compiled program.')


def main(argv):
  del argv
  from fractal_jax.planning import compiled

  config = FLAGS.config
  if config.model.kernels == 'auto':
    config.model.kernels = 'pallas'
  compiler = compiled.Compiler(FLAGS.topology)
  if FLAGS.images and FLAGS.sample:
    config.sample.batch = FLAGS.images
  elif FLAGS.images:
    config.optim.batch = FLAGS.images * len(compiler.devices)
  found = (compiler.sampling if FLAGS.sample else compiler.training)(config)
  if FLAGS.hlo:
    pathlib.Path(FLAGS.hlo).write_text(found.text)
  print(f'{found.images} images on each device:')
  print('\n'.join(compiled.summary(found, compiler.chip, FLAGS.top)))


if __name__ == '__main__':
  define_flags()
  app.run(main)
