"""`likelihood`: bits per dimension of a split."""

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  common.workdir_flags()
  flags.DEFINE_string('split', None, 'Split; the validation split if unset.')
  flags.DEFINE_integer('num', None, 'Images; 0: the whole split.')
  flags.DEFINE_integer('batch', None, 'Images at a time.')
  flags.DEFINE_integer('passes', None, 'Monte-Carlo passes of masked levels.')
  flags.DEFINE_bool('conditional', False, 'Give the labels to the model.')


def run():
  import tqdm

  from fractal_jax.inference import likelihood

  common.at_least('num', 0)
  common.at_least('batch', 1)
  common.at_least('passes', 1)
  config = common.load_config()
  common.use_cores(FLAGS.batch or config.eval.batch)
  config, net, params, mesh = common.load_run(config)
  found = likelihood.evaluate(
    net,
    params,
    config,
    FLAGS.split,
    mesh=mesh,
    batch=FLAGS.batch,
    num=FLAGS.num,
    passes=FLAGS.passes,
    conditional=FLAGS.conditional,
    progress=lambda x: tqdm.tqdm(x, unit='batch', disable=None),
  )
  split = FLAGS.split or config.data.val_split
  common.say(f'{split} bits/dim: {found}')
  if not found.exact:
    if found.passes > 1:
      common.say(f'of which Monte-Carlo noise: {found.mc_stderr:.4f}')
    common.say(
      'published definition (mean over the values that were scored): '
      f'{found.published_bits_per_dim:.4f}'
    )
  if found.bound:
    common.say(
      'With guiding pixels the first number is an upper bound on the negative '
      'log-likelihood: (pixel nats + guide nats) / values. The published '
      'number is the sum of the two mean losses, and no likelihood.'
    )
  if found.rounded:
    common.say(
      "These are bits of the images' YCbCr colours (model.colour), to which "
      'several RGB values are rounded each: no likelihood of the images, and '
      'not to be compared with those of RGB models.'
    )
  if found.dropped:
    common.say(f'{found.dropped} masked patches did not fit and were left out.')
