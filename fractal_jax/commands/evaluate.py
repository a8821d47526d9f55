"""`evaluate`: FID, Inception Score, precision, recall, diversity.

fractal-jax evaluate --workdir=runs/photos --num=10000 --out=metrics.json
"""

from collections.abc import Callable, Iterator
import contextlib
import os
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import checks, paths
from fractal_jax.commands import common, sampling

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from fractal_jax import api
  from fractal_jax.metrics.features import Extractor
  from fractal_jax.metrics.images import Images
  from fractal_jax.metrics.reference import Reference
  from fractal_jax.metrics.weights import Weights

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of `evaluate`."""
  common.run_flags(required=False)
  flags.DEFINE_string(
    'images',
    None,
    'Images of any model, in place of those that the --workdir generates: a '
    'folder, one with a folder for each class, by name or number, or an .npz '
    "in the format of ADM's suite.",
  )
  common.number_flag(
    'num', 50_000, 'How many images: a multiple of the number of classes.'
  )
  run_flags()
  sampling.define_flags()
  sampling.rejection_flags()
  flags.DEFINE_string(
    'save', None, "An .npz for the images, in the format of ADM's suite."
  )
  flags.DEFINE_string('out', None, 'A .json file for the numbers.')
  common.distributed_flags()


def run_flags() -> None:
  """The flags that `sweep` takes, too."""
  common.metrics_flags()
  flags.DEFINE_string(
    'ref',
    None,
    'An .npz of reference statistics. Unset: those of the training split of '
    'the --workdir, made once.',
  )
  common.number_flag(
    'batch', None, 'Images at a time; unset: sample.batch of the config.'
  )
  common.number_flag(
    'seed', 0, 'Image i is a function of the seed and of i alone.', checks.SEED
  )
  flags.DEFINE_string(
    'cache',
    None,
    'A folder for generated images and their statistics, in place of the '
    '--workdir: for a run that may not be written to.',
  )
  flags.DEFINE_bool('unconditional', False, 'Generate without classes.')


def run() -> None:
  """Prints the metrics of --workdir or --images, and writes what is asked."""
  from fractal_jax.inference import sample
  from fractal_jax.metrics import images as images_lib
  from fractal_jax.metrics import results, weights

  check_flags()
  # Images alone, for another's suite, need no weights.
  only_save = FLAGS.save and not (
    FLAGS.out or FLAGS.inception or os.environ.get(weights.VARIABLE)
  )
  loaded = None if only_save else load_weights()
  if FLAGS.images:
    images, ref, extractor = given_images(loaded)
  else:
    config, changes = common.load_config(), sampling.changes()
    sample.check_use(config, [changes], FLAGS.guide)  # at once
    guide = sampling.load_guide(config, FLAGS.guide)
    model = load()
    images = images_of(model, FLAGS.num, FLAGS.seed, changes, guide)
    if only_save:
      images_lib.save(images, FLAGS.save)
      common.say(f'{images.num} images: {paths.absolute(FLAGS.save)}')
      if report := images.report():
        common.say(str(report))
      common.say(
        f'No metrics: they need --inception=FILE or ${weights.VARIABLE}.'
      )
      return
    extractor = make_extractor(loaded, images.num, mesh=model.mesh)
    ref = the_reference(model.config, extractor)
  with bar(images.num) as progress:
    found = results.measure(images, ref, extractor, progress)
  common.say(results.summary(found))
  if FLAGS.save:
    images_lib.save(images, FLAGS.save)
    common.say(f'images: {paths.absolute(FLAGS.save)}')
  if FLAGS.out:
    common.write_numbers(FLAGS.out, found)


def given_images(loaded: 'Weights') -> 'tuple[Images, Reference, Extractor]':
  """The images of --images, what they are compared with, and what sees them."""
  from fractal_jax import config as config_lib
  from fractal_jax import sharding
  from fractal_jax.data import classes
  from fractal_jax.metrics import features, files, images

  seen = files.Samples(FLAGS.images)
  if seen.skipped:
    common.say(seen.skipped)
  known = bool(FLAGS.workdir)
  config = common.load_config() if known else config_lib.default()
  mesh = sharding.any_mesh(config)
  extractor = make_extractor(loaded, len(seen), mesh=mesh)
  ref = the_reference(config, extractor)
  if note := seen.fit(ref.side):
    common.say(note)
  names = classes.load(common.workdir()) if known else ref.class_names
  batch = FLAGS.batch or features.BATCH
  return images.of_files(seen, batch, names or ()), ref, extractor


def check_flags() -> None:
  """Refuses flags that don't go together, before anything is loaded."""
  if not (FLAGS.workdir or FLAGS.images):
    raise common.UsageError(
      'give --workdir of a run, or --images=DIR or FILE.npz'
    )
  if FLAGS.images:
    if not (FLAGS.ref or FLAGS.workdir):
      raise common.UsageError(
        '--images needs --ref=FILE.npz, which `fractal-jax reference` makes, '
        'or the --workdir of a run on whose data they are judged'
      )
    generating = (
      ('save', 'step') if FLAGS.workdir else ('save', 'step', 'cache')
    )
    given = [n for n in (*generating, 'guide') if FLAGS[n].value is not None]
    given += list(sampling.changes())
    if given:
      raise common.UsageError(
        f'--{given[0]} is for images that a --workdir generates, not for '
        '--images'
      )
  for name, ending in (('save', '.npz'), ('out', '.json')):
    if FLAGS[name].value:
      common.check_output(FLAGS[name].value, f'--{name}', (ending,))
  if FLAGS.workdir and not (FLAGS.images and FLAGS.ref):
    cache()


def cache() -> str:
  """Where images and statistics of the run are kept: it can be written to."""
  from fractal_jax.release import weights

  if FLAGS.cache:
    paths.check_folder(FLAGS.cache, '--cache')
    return FLAGS.cache
  workdir, flag = common.workdir(), '--workdir'
  if weights.found(workdir):  # a release stays as it is
    workdir, flag = os.path.join('~', '.cache', 'fractal_jax'), 'HOME'
  try:
    paths.check_folder(workdir, flag)
  except paths.PathError as e:
    raise common.UsageError(
      f'{e} What is generated can be kept elsewhere: --cache=DIR.'
    ) from e
  return workdir


def load() -> 'api.Model':
  """The model of --workdir."""
  config = common.load_config()
  common.use_cores(FLAGS.batch or config.sample.batch)
  return common.load_model(config)


def images_of(
  model: 'api.Model',
  num: int,
  seed: int,
  changes: dict,
  guide: 'api.Model | None',
) -> 'Images':
  """Images of --workdir, with changes of how they are drawn."""
  from fractal_jax.metrics import images

  return images.of_run(
    model,
    cache(),
    num,
    seed=seed,
    guide=guide,
    **common.arguments('batch', 'unconditional'),
    **changes,
  )


def load_weights() -> 'Weights':
  """The weights of --inception; says so where they are unpublished ones."""
  from fractal_jax.metrics import weights

  found = weights.load(FLAGS.inception)
  if found.published is False:
    common.say(
      f'These weights are not the published {weights.FILE}: compare the '
      'numbers only with those of the same weights.'
    )
  return found


def make_extractor(loaded: 'Weights', num: int, *, mesh: 'Mesh') -> 'Extractor':
  """What sees `num` images with the weights that are loaded."""
  from fractal_jax.metrics import features

  return features.Extractor(loaded, mesh=mesh, batch=min(features.BATCH, num))


def the_reference(config: ConfigDict, extractor: 'Extractor') -> 'Reference':
  """--ref, or statistics of the run's training split."""
  from fractal_jax.metrics import reference

  if FLAGS.ref:
    return reference.read(FLAGS.ref, extractor)
  show = common.shown('batch', 'reference')
  found, path = reference.of_run(config, cache(), extractor, show)
  common.say(f'reference: {paths.absolute(path)}')
  return found


@contextlib.contextmanager
def bar(num: int) -> Iterator[Callable[[int], None]]:
  """A progress bar, as a function of the images that are done."""
  import tqdm

  with tqdm.tqdm(total=num, unit='image', disable=None) as found:
    yield lambda done: found.update(done - found.n)
