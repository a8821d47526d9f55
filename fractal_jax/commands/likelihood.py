"""`likelihood`: bits per dimension of a split.

fractal-jax likelihood --workdir=runs/digits
"""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import checks
from fractal_jax.commands import common

if TYPE_CHECKING:
  from fractal_jax.inference.likelihood import Likelihood

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  common.workdir_flags()
  flags.DEFINE_string(
    'data',
    None,
    'A folder of images or an .npz file to score, all of it, in place of the '
    "run's own; images of another size are cropped and resized as in training.",
  )
  flags.DEFINE_string('split', None, 'The validation split if unset.')
  common.number_flag(
    'num',
    None,
    "How many images; 0: the whole split. The config's eval.num if unset.",
    checks.FROM_0,
  )
  common.batch_flag()
  common.number_flag(
    'passes',
    None,
    'Random masks per image, if any level is masked: more, less noise. The '
    "config's eval.passes if unset.",
  )
  flags.DEFINE_bool('conditional', False, 'Give the labels to the model.')
  flags.DEFINE_string('out', None, 'A .json file for the numbers.')


def run() -> None:
  """Scores the split, and says what kind of number that is."""
  from fractal_jax.data import pipeline
  from fractal_jax.inference import likelihood

  if FLAGS.out:
    common.check_output(FLAGS.out, '--out', ('.json',))
  config = common.load_config()
  split = FLAGS.split or config.data.val_split
  scored = config
  if not FLAGS.data:
    common.check_own_data(config, 'name other data by --data')
  if FLAGS.data:
    split = FLAGS.split or 'all'
    scored = with_other_data(config)
    skipped = pipeline.open_split(scored, split).skipped
    if config.model.rank == 2:
      side = config.model.sizes[0]
      common.say(
        f'Images that are not {side}x{side} are cut to the square in the '
        'middle and resized, as in training.'
      )
    if skipped:
      common.say(skipped)
  common.use_cores(FLAGS.batch or config.eval.batch)
  model = common.load_model(config)
  found = likelihood.evaluate(
    model.net,
    model.params,
    scored,
    split,
    mesh=model.mesh,
    progress=common.shown('batch'),
    **common.arguments('batch', 'num', 'passes', 'conditional'),
  )
  common.say(f'{split} bits/dim: {found}')
  if FLAGS.out:
    numbers = dataclasses.asdict(found)
    numbers |= {'split': split, 'conditional': FLAGS.conditional}
    common.write_numbers(
      FLAGS.out, {k: None if v != v else v for k, v in numbers.items()}
    )
  explain(found)


def explain(found: 'Likelihood') -> None:
  """Says what kind of number a Likelihood is, where it is not simply exact."""
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


def with_other_data(config: ConfigDict) -> ConfigDict:
  """The config, reading --data in place of the run's own."""
  if FLAGS.conditional:
    raise common.UsageError(
      "--conditional needs the classes of the run's own data: leave out --data"
    )
  config = config.copy_and_resolve_references()
  common.read_data(config)
  if config.data.name == 'npz':
    return config
  if config.model.rank != 2:
    raise common.UsageError(
      f'--data={FLAGS.data}: {FLAGS.workdir} is a model of series: give an '
      '.npz file of windows, or score a table with `fractal-jax anomaly`'
    )
  values = config.model.num_values
  if values != 256:
    raise common.UsageError(
      f'--data={FLAGS.data}: files have 256 values per channel, '
      f'{FLAGS.workdir} has {values}, and its bits are not those of the files: '
      f'give an .npz file of values 0 to {values - 1}'
    )
  return config
