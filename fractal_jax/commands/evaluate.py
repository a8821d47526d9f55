"""`evaluate`: FID, Inception Score, precision, recall, diversity."""

import json
import os

from absl import flags

from fractal_jax import checks, paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  """The flags of `evaluate`."""
  flags.DEFINE_string('workdir', None, 'The run that generates the images.')
  flags.DEFINE_integer('step', None, 'Checkpoint to use; the latest if unset.')
  flags.DEFINE_string(
    'images',
    None,
    'In place of --workdir, images of any model: a folder, or an .npz in the '
    "format of ADM's suite.",
  )
  flags.DEFINE_integer(
    'num', 50_000, 'How many images: a multiple of the number of classes.'
  )
  run_flags()
  common.sampling_flags()
  common.rejection_flags()
  flags.DEFINE_string(
    'save', None, "An .npz for the images, in the format of ADM's suite."
  )
  flags.DEFINE_string('out', None, 'A .json file for the numbers.')
  common.distributed_flags()


def run_flags():
  """The flags that `sweep` takes, too."""
  common.metrics_flags()
  flags.DEFINE_string(
    'ref',
    None,
    'An .npz of reference statistics. Unset: those of the training split of '
    'the run, made once.',
  )
  flags.DEFINE_integer(
    'batch', None, 'Images at a time; unset: sample.batch of the config.'
  )
  flags.DEFINE_integer(
    'seed', 0, 'Image i is a function of the seed and of i alone.'
  )
  flags.DEFINE_string(
    'cache',
    None,
    'A folder for generated images and their statistics, in place of the '
    '--workdir: for a run that may not be written to.',
  )
  flags.DEFINE_bool('unconditional', False, 'Generate without classes.')


def run():
  """Prints the metrics of --workdir or --images, and writes what is asked."""
  from fractal_jax import sharding
  from fractal_jax.inference import sample
  from fractal_jax.metrics import images as images_lib
  from fractal_jax.metrics import reference, results, weights
  from fractal_jax.metrics.features import BATCH

  check_flags()
  # Images alone, for another's suite, need no weights.
  only_save = FLAGS.save and not (
    FLAGS.out or FLAGS.inception or os.environ.get(weights.VARIABLE)
  )
  loaded = None if only_save else load_weights()
  if FLAGS.images:
    images = images_lib.of_files(FLAGS.images, FLAGS.batch or BATCH)
    mesh = sharding.any_mesh(common.default_config())
    extractor = make_extractor(loaded, mesh, images.num)
    ref = reference.read(FLAGS.ref, extractor)
  else:
    changes = common.sampling_changes()
    sample.settings(common.load_config(), **changes)  # checked at once
    guide = common.load_guide(common.load_config())
    model, step = load()
    images = images_of(model, step, FLAGS.num, FLAGS.seed, changes, guide)
    if only_save:
      images_lib.save(images, FLAGS.save)
      common.say(f'{images.num} images: {paths.absolute(FLAGS.save)}')
      common.say(
        f'No metrics: they need --inception=FILE or ${weights.VARIABLE}.'
      )
      return
    extractor = make_extractor(loaded, model.mesh, images.num)
    ref = the_reference(model.config, extractor)
  with bar(images.num) as progress:
    found = results.measure(images, ref, extractor, progress)
  common.say(results.summary(found))
  if FLAGS.save:
    images_lib.save(images, FLAGS.save)
    common.say(f'images: {paths.absolute(FLAGS.save)}')
  if FLAGS.out:
    write_json(FLAGS.out, found)
    common.say(f'numbers: {paths.absolute(FLAGS.out)}')


def check_numbers():
  """Refuses numbers of images, and seeds, that there can't be."""
  for name, least in (('num', 1), ('batch', 1)):
    common.at_least(name, least)
  common.keeps('seed', checks.SEED)


def check_flags():
  """Refuses flags that don't go together, before anything is loaded."""
  check_numbers()
  if bool(FLAGS.workdir) == bool(FLAGS.images):
    raise common.UsageError(
      'give --workdir of a run, or --images=DIR or FILE.npz: one of them'
    )
  if FLAGS.images:
    if not FLAGS.ref:
      raise common.UsageError(
        '--images needs --ref=FILE.npz; `fractal-jax reference` makes one'
      )
    given = [n for n in ('save', 'step', 'cache') if FLAGS[n].value is not None]
    given += [k for k in ('guide',) if FLAGS[k].value is not None]
    given += list(common.sampling_changes())
    if given:
      raise common.UsageError(
        f'--{given[0]} is for images that a --workdir generates, not for '
        '--images'
      )
  for name, ending in (('save', '.npz'), ('out', '.json')):
    if FLAGS[name].value:
      paths.check_output(FLAGS[name].value, f'--{name}', (ending,))
  if FLAGS.workdir:
    cache()


def cache() -> str:
  """Where images and statistics of the run are kept: it can be written to."""
  if FLAGS.cache:
    paths.check_folder(FLAGS.cache, '--cache')
    return FLAGS.cache
  try:
    paths.check_folder(FLAGS.workdir, '--workdir')
  except paths.PathError as e:
    raise common.UsageError(
      f'{e} What is generated can be kept elsewhere: --cache=DIR.'
    ) from e
  return FLAGS.workdir


def load():
  """The model of --workdir, and the step of its checkpoint."""
  from fractal_jax.training import restore

  config = common.load_config()
  common.use_cores(FLAGS.batch or config.sample.batch)
  model = common.load_model(config)
  return model, FLAGS.step or restore.steps(FLAGS.workdir)[-1]


def images_of(model, step, num, seed, changes, guide=None):
  """Images of --workdir, with changes of how they are drawn."""
  from fractal_jax.metrics import images

  return images.of_run(
    model,
    cache(),
    step,
    num,
    seed=seed,
    batch=FLAGS.batch,
    unconditional=FLAGS.unconditional,
    guide=guide,
    **changes,
  )


def load_weights():
  """Those of --inception; says so where they are known to be others."""
  from fractal_jax.metrics import weights

  found = weights.load(FLAGS.inception)
  if found.published is False:
    common.say(
      f'These weights are not the published {weights.FILE}: compare the '
      'numbers only with those of the same weights.'
    )
  return found


def make_extractor(loaded, mesh, num):
  """What sees `num` images with the weights that are loaded."""
  from fractal_jax.metrics import features

  return features.Extractor(loaded, mesh, min(features.BATCH, num))


def the_reference(config, extractor):
  """--ref, or statistics of the run's training split."""
  import tqdm

  from fractal_jax.metrics import reference

  if FLAGS.ref:
    return reference.read(FLAGS.ref, extractor)
  found, path = reference.of_run(
    config,
    cache(),
    extractor,
    lambda x: tqdm.tqdm(x, unit='batch', disable=None, desc='reference'),
  )
  common.say(f'reference: {paths.absolute(path)}')
  return found


def bar(num):
  """A progress bar, as a function of the images that are done."""
  import contextlib

  import tqdm

  @contextlib.contextmanager
  def shown():
    with tqdm.tqdm(total=num, unit='image', disable=None) as found:
      yield lambda done: found.update(done - found.n)

  return shown()


def write_json(path, found):
  """Writes the numbers; process 0 alone does."""
  import jax

  if jax.process_index() == 0:
    paths.write_text(path, json.dumps(found, indent=2) + '\n')
