"""What commands share: flags, checks of them, and the run they are about."""

from absl import flags
from ml_collections import config_flags

from fractal_jax.errors import UserError

FLAGS = flags.FLAGS


class UsageError(UserError, ValueError):
  """Flags that don't go together, or a value out of range."""


def distributed_flags():
  flags.DEFINE_bool(
    'distributed',
    False,
    'Start JAX on several hosts (needed on pods and clusters, not on one).',
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of process 0. Pods and SLURM tell, others need all three.',
  )
  flags.DEFINE_integer('processes', None, 'How many processes there are.')
  flags.DEFINE_integer('process', None, 'Which of them this is: 0, 1, ...')
  flags.DEFINE_integer(
    'heartbeat', 100, 'Seconds until a dead process ends the others.'
  )


def run_flags():
  flags.DEFINE_string('workdir', None, 'The run: config and checkpoints.')
  flags.DEFINE_integer('step', None, 'Checkpoint to use; the latest if unset.')
  flags.mark_flag_as_required('workdir')


def workdir_flags():
  run_flags()
  distributed_flags()


def sampling_flags():
  """How values are drawn; `sample` in the config where unset."""
  flags.DEFINE_float('guidance', None, '1: none.')
  flags.DEFINE_float('temperature', None, 'Multiplies logits: above 1 sharpens')
  drawing_flags()


def drawing_flags():
  """Those of sampling_flags that a sweep does not sweep."""
  flags.DEFINE_enum(
    'schedule', None, ['linear', 'constant'], 'Of guidance at level 0.'
  )
  flags.DEFINE_float('filter_threshold', None, 'See Generation in model.md')
  flags.DEFINE_list('iterations', None, 'Steps of each level: 64,16.')


def sampling_changes(
  names=('guidance', 'temperature', 'schedule', 'filter_threshold'),
) -> dict:
  """What the sampling flags change, for `sample.settings`."""
  found = {name: FLAGS[name].value for name in names}
  if FLAGS.iterations is not None:
    found['iterations'] = integers('iterations', FLAGS.iterations)
  return {k: v for k, v in found.items() if v is not None}


def metrics_flags():
  flags.DEFINE_string(
    'inception',
    None,
    'Weights of the FID Inception net: a .pth, .npz or .safetensors. Unset: '
    'what $FRACTAL_JAX_INCEPTION names.',
  )


def config_flag():
  config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/.', lock_config=True
  )
  flags.mark_flag_as_required('config')


def image_flags():
  workdir_flags()
  flags.DEFINE_string('image', None, 'An image file, or a .npy of values.')
  flags.DEFINE_integer('index', None, 'In place of --image: one of --split.')
  flags.DEFINE_string('split', None, 'Split; the validation split if unset.')
  flags.DEFINE_string(
    'label', None, "Class, by name or number; unset or 'none': no class."
  )
  flags.DEFINE_integer('seed', 0, 'Of the draws.')


def the_image(config):
  """The image that the flags name, [S, (S,) C], and --label."""
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
  at_least('index', 0)
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
  """On a CPU: a device a core. Call it before anything that starts JAX."""
  from fractal_jax import cpu

  if not FLAGS.distributed:
    cpu.use_cores(images)


def at_least(name: str, least: int) -> None:
  value = FLAGS[name].value
  if value is not None and value < least:
    raise UsageError(f'--{name}={value} must be at least {least}')


def integers(name: str, values: list[str]) -> tuple[int, ...]:
  try:
    return tuple(int(v) for v in values)
  except ValueError as e:
    raise UsageError(
      f'--{name}={",".join(values)} must be whole numbers with commas between'
    ) from e


def say(text: str) -> None:
  import jax

  if jax.process_index() == 0:
    print(text, flush=True)


def load_config():
  from fractal_jax.training import checkpoint

  return checkpoint.load_config(FLAGS.workdir)


def default_config():
  from fractal_jax import config

  return config.default()


def load_run(config=None):
  """The config, model, parameters and mesh of --workdir."""
  m = load_model(config)
  return m.config, m.net, m.params, m.mesh


def load_model(config=None):
  from fractal_jax import api

  return api.load(FLAGS.workdir, FLAGS.step, config)
