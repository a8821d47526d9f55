"""`explain`: the bits of each value of an image."""

import os

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  common.image_flags()
  flags.DEFINE_integer('passes', 64, 'Random masks, for masked levels.')
  flags.DEFINE_string('out', 'explain', 'Folder for the PNGs and report.html.')


def run():
  from fractal_jax.inference import explain

  common.at_least('passes', 2)
  config = common.load_config()
  image, label = common.the_image(config)
  model = common.load_model(config)
  found = model.explain(image, label, passes=FLAGS.passes, seed=FLAGS.seed)
  import jax

  if jax.process_index():
    return
  common.say(explain.summary(found))
  for c in found.conditions:
    error = '' if found.exact else f' ± {c.stderr:.2f}'
    common.say(
      f'  level {c.level} without {c.name}: {c.worth:+.2f}{error} bits'
    )
  paths = explain.write(found, image, config.model, FLAGS.out)
  common.say(f'report: {os.path.abspath(paths[-1])}')
