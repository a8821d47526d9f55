"""What commands share: flags, checks of them, and the run they are about."""

from absl import flags
from ml_collections import config_flags

from fractal_jax import checks
from fractal_jax.errors import UserError

FLAGS = flags.FLAGS


class UsageError(UserError, ValueError):
  """Flags that don't go together, or a value out of range."""


def number_flag(
  name: str,
  default: float | None,
  text: str,
  rule: checks.Number = checks.FROM_1,
) -> None:
  """A flag of a number, which is refused if it is set and breaks a rule."""
  define = flags.DEFINE_integer if rule.integer else flags.DEFINE_float
  define(name, default, text)
  flags.register_validator(
    name,
    lambda value: value is None or rule.holds(value),
    f'must be {rule}',
  )


def distributed_flags():
  """Where the processes of a job on several hosts find each other."""
  flags.DEFINE_bool(
    'distributed',
    False,
    'Connect several processes (on TPU pods they connect without it).',
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of process 0. Pods and Slurm tell JAX; elsewhere this flag, '
    '--processes and --process are needed.',
  )
  flags.DEFINE_integer('processes', None, 'How many processes there are.')
  flags.DEFINE_integer('process', None, 'Which of them this is: 0, 1, ...')
  flags.DEFINE_integer(
    'heartbeat', 100, 'Seconds until a dead process ends the others.'
  )


def run_flags():
  """The run that a command is about."""
  flags.DEFINE_string(
    'workdir', None, "The run's folder: its config and checkpoints."
  )
  flags.DEFINE_integer(
    'step', None, 'The step whose checkpoint to use; the latest if unset.'
  )
  flags.mark_flag_as_required('workdir')


def workdir_flags():
  """run_flags, and those of several hosts."""
  run_flags()
  distributed_flags()


def sampling_flags():
  """How values are drawn; where unset, as `sample` in the config says."""
  flags.DEFINE_float(
    'guidance',
    None,
    'Strength of classifier-free guidance: above 1 images are more like their '
    'class; 1 is none, and half the work.',
  )
  flags.DEFINE_float(
    'temperature',
    None,
    'Divides the logits of what is drawn: below 1 is sharper, less varied.',
  )
  drawing_flags()


def drawing_flags():
  """Those of sampling_flags that `sweep` does not sweep."""
  flags.DEFINE_enum(
    'schedule',
    None,
    ['linear', 'constant'],
    'Whether guidance grows from 1 over the patches of level 0, or is the same '
    'for all.',
  )
  flags.DEFINE_float(
    'filter_threshold',
    None,
    'Guidance does not favour values that are less likely than this, given the '
    'class.',
  )
  flags.DEFINE_list(
    'iterations',
    None,
    'In how many steps masked levels draw their patches, one number per level '
    'above pixels: 64,16.',
  )


def sampling_changes(
  names=('guidance', 'temperature', 'schedule', 'filter_threshold'),
) -> dict:
  """What the sampling flags change, for `sample.settings`."""
  found = {name: FLAGS[name].value for name in names}
  if FLAGS.iterations is not None:
    found['iterations'] = integers('iterations', FLAGS.iterations)
  return {k: v for k, v in found.items() if v is not None}


def batch_flag():
  """How many images are worked on at a time."""
  number_flag('batch', None, "Images at a time; the config's if unset.")


def metrics_flags():
  """What the metrics need to see images with."""
  flags.DEFINE_string(
    'inception',
    None,
    'Weights of the FID Inception net: a .pth, .npz or .safetensors file. '
    'Unset: the file that $FRACTAL_JAX_INCEPTION names.',
  )


def config_flag():
  """A config file, and --config.KEY=VALUE to change what it says."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'A config file, such as those in configs/.',
    lock_config=True,
  )
  flags.mark_flag_as_required('config')


def image_flags():
  """The run, and one image that it is asked about."""
  workdir_flags()
  flags.DEFINE_string('image', None, 'An image file, or a .npy of values.')
  number_flag(
    'index',
    None,
    'In place of --image: the number of an image in --split, from 0.',
    checks.FROM_0,
  )
  flags.DEFINE_string(
    'split', None, 'The split of --index; the validation split if unset.'
  )
  flags.DEFINE_string(
    'label',
    None,
    "The image's class, by name or number; unset or 'none': no class.",
  )
  number_flag('seed', 0, 'The same seed gives the same draws.', checks.SEED)


def the_image(config):
  """The image that the flags name, [S, (S,) C], and --label, None if unset."""
  import itertools

  from fractal_jax.data import pipeline
  from fractal_jax.inference import inputs

  if (FLAGS.image is None) == (FLAGS.index is None):
    raise UsageError('give --image=FILE, or --index of one in --split')
  label = None
  if FLAGS.label not in (None, 'none'):
    (label,) = class_numbers([FLAGS.label], config.model)
  if FLAGS.image is not None:
    return inputs.read_image(FLAGS.image, config.model), label
  split = FLAGS.split or config.data.val_split
  found = pipeline.eval_batches(config, split, 1)
  if FLAGS.index >= len(found):
    raise UsageError(f'--index={FLAGS.index}: {split} has {len(found)} images')
  (one,) = itertools.islice(found, FLAGS.index, FLAGS.index + 1)
  return one['image'][0], label


def class_numbers(texts: list[str], model) -> list[int]:
  """Classes of --labels or --label, by number or by the names in --workdir."""
  from fractal_jax.data import classes

  return classes.numbers(texts, classes.load(FLAGS.workdir), model.classes)


def use_cores(images: int) -> None:
  """On a CPU: one device per core. To be called before JAX starts."""
  from fractal_jax import cpu

  if not FLAGS.distributed:
    cpu.use_cores(images)


def integers(name: str, values: list[str]) -> tuple[int, ...]:
  """The whole numbers that a flag lists."""
  try:
    return tuple(int(v) for v in values)
  except ValueError as e:
    raise UsageError(
      f'--{name}={",".join(values)} must be whole numbers with commas between'
    ) from e


def follow(job):
  """Runs a job under a progress bar, and gives its result."""
  import tqdm

  from fractal_jax.inference.progress import stream

  with tqdm.tqdm(unit='step', disable=None) as bar:
    for progress in stream(job):
      if progress.doing != 'done':
        bar.set_description(progress.doing, refresh=False)
        bar.total, bar.n = progress.total, progress.done
        bar.refresh()
  return progress.result


def say(text: str) -> None:
  """Prints a line, once for all processes."""
  import jax

  if jax.process_index() == 0:
    print(text, flush=True)


def load_config():
  """The config of --workdir."""
  from fractal_jax.training import checkpoint

  return checkpoint.load_config(FLAGS.workdir)


def default_config():
  """The config of no run."""
  from fractal_jax import config

  return config.default()


def load_model(config=None):
  """The model of --workdir and --step, an api.Model."""
  from fractal_jax import api

  return api.load(FLAGS.workdir, FLAGS.step, config)
