"""Where a program's time goes on TPUs that are not there: a static estimate.

  python benchmarks/tpu_static.py --config=configs/fractalmar_in64.py \\
    --topology=v5e:2x2 --images=32
  python benchmarks/tpu_static.py --config=configs/fractalmar_in64.py \\
    --topology=v5e:2x2 --sample

  python benchmarks/tpu_static.py --topology=v5e:2x2 --products

It is what `fractal-jax cost --topology` says of the training step, or with
--sample of generating config.sample.batch images, for those who work on it:
all operations, and the compiled program in a file. --products checks estimates,
of bfloat16 products whose time at the chip's peak is known. It takes libtpu,
and no TPU: pip install 'fractal_jax[tpu-aot]'. What is counted:
fractal_jax/planning/estimate.py.
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
  flags.DEFINE_bool('products', False, 'In place of a config: products.')
  flags.DEFINE_integer('top', 40, 'How many operations to list.')
  flags.DEFINE_string('hlo', None, 'A file for the compiled program.')


# Rows, and the width before and after.
PRODUCTS = [(8192, 8192, 8192), (8448, 1024, 4096), (8448, 512, 2048)]


def product(compiler, rows: int, width: int, columns: int) -> str:
  """A product's estimate beside its time at the chip's peak, in a line."""
  import jax
  import jax.numpy as jnp

  from fractal_jax.planning import cost, memory

  where = jax.sharding.SingleDeviceSharding(compiler.devices[0])
  shapes = (rows, width), (width, columns)
  given = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)
    for shape in shapes
  ]
  flops = 2 * rows * width * columns
  lower = lambda: jax.jit(jnp.dot).lower(*given)
  found = compiler.program(lower, None, flops, 1).estimate.total[0]
  peak = flops / cost.peak_flops(memory.DEVICES[compiler.chip][0])
  return (
    f'[{rows}, {width}] x [{width}, {columns}]: estimated {found * 1e3:.4f} ms,'
    f' at the peak {peak * 1e3:.4f} ms: {found / peak:.2f} times'
  )


def main(argv):
  del argv
  from fractal_jax.planning import compiled

  if FLAGS.products:
    compiler = compiled.Compiler(FLAGS.topology)
    for shape in PRODUCTS:
      print(product(compiler, *shape), flush=True)
    return
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
