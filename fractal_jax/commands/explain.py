"""`explain`: the bits of each value of an image.

fractal-jax explain --workdir=runs/digits --index=0 --out=explain
"""

from absl import flags

from fractal_jax import checks, paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  common.image_flags()
  common.number_flag(
    'passes',
    64,
    'Random masks that bits are averaged over, if any level is masked.',
    checks.integer(least=2),
  )
  flags.DEFINE_string(
    'out', 'explain', 'A folder for the maps as PNGs, bits.npy and report.html.'
  )


def run() -> None:
  """Explains the image, and writes the report."""
  from fractal_jax import report
  from fractal_jax.inference import explain

  paths.check_folder(FLAGS.out, '--out')
  config = common.load_config()
  image, label = common.the_image(config)
  model = common.load_model(config)
  how = common.arguments('passes', 'seed')
  found = common.follow(model.start(explain.explain, image, label, **how))
  if not common.leads():
    return
  common.say(report.summary(found))
  for c in found.conditions:
    error = '' if found.exact else f' ± {c.stderr:.2f}'
    common.say(
      f'  level {c.level} without {c.name}: {c.worth:+.2f}{error} bits'
    )
  path = report.write(
    found, image, config.model, FLAGS.out, common.class_name(label)
  )
  common.say(f'report: {paths.absolute(path)}')
