"""What commands share: flags, checks of them, and the run they are about."""

from collections.abc import Callable, Iterable
import functools
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fractal_jax import checks, paths
from fractal_jax.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from fractal_jax import api
  from fractal_jax.inference.progress import Job

FLAGS = flags.FLAGS
# Flags of what a release's card says, and of all of a release.
CARD = ('license', 'numbers', 'samples', 'made_by')
RELEASE = ('dtype', *CARD)


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

  def keeps(value):
    if value is not None and (wrong := checks.problem('', value, rule)):
      raise flags.ValidationError(wrong.partition(' ')[2])  # absl names it
    return True

  flags.register_validator(name, keeps)


def distributed_flags() -> None:
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


def run_flags(required: bool = True) -> None:
  """The run that a command is about."""
  flags.DEFINE_string(
    'workdir',
    None,
    'A run, by its folder; or a model of the Hugging Face Hub, by its name '
    '(user/name); or one that comes with this package (digits_ar).',
  )
  flags.DEFINE_integer(
    'step', None, 'The step whose checkpoint to use; the latest if unset.'
  )
  if required:
    flags.mark_flag_as_required('workdir')


def release_flags() -> None:
  """How a release is written, and what its card says."""
  flags.DEFINE_enum(
    'dtype',
    'float32',
    ['float32', 'bfloat16', 'int8'],
    'How parameters are stored in a release: bfloat16 takes half the space, '
    'int8, with a scale for each row of a tensor, a quarter.',
  )
  flags.DEFINE_string(
    'license', 'unknown', "For a release's card: such as mit or apache-2.0."
  )
  flags.DEFINE_list(
    'numbers',
    [],
    "For a release's card: files that `likelihood --out` and `evaluate --out` "
    'wrote. Unset: what training measured.',
  )
  flags.DEFINE_string(
    'samples',
    None,
    "For a release's card: an image file. Unset: what training drew.",
  )
  flags.DEFINE_string(
    'made_by', '', "For a release's card: the command that makes it."
  )


def arguments(*names: str) -> dict:
  """What flags say, as arguments of their names."""
  return {name: FLAGS[name].value for name in names}


def workdir_flags() -> None:
  """run_flags, and those of several hosts."""
  run_flags()
  distributed_flags()


def read_data(config: ConfigDict) -> None:
  """Makes a config read --data, a folder or an .npz file of any classes.

  Raises:
    UsageError: there is no such folder or file.
  """
  name = 'npz' if FLAGS.data.endswith('.npz') else 'folder'
  found = paths.path(FLAGS.data)
  if not (found.is_file() if name == 'npz' else found.is_dir()):
    raise UsageError(
      f'--data={FLAGS.data} is no folder of images and no .npz file of them'
    )
  with config.unlocked():
    config.data.update(name=name, dir=FLAGS.data, list='')
    config.model.classes = 2**31 - 1  # as many as there are


def batch_flag() -> None:
  """How many images are worked on at a time."""
  text = "Images, or series, at a time; the config's if unset."
  number_flag('batch', None, text)


# Flags of files that a command reads, and files that a run is made of.
READ = ('data', 'image', 'mask', 'images', 'ref', 'pth', 'inception')
KEPT = (
  'config.json', 'classes.json', 'quantiser.json', 'detector.json',
  'images.csv', 'model.safetensors',
)  # fmt: skip


def check_output(
  name: str | os.PathLike, flag: str = '--out', endings: tuple = ()
) -> None:
  """Checks an output as paths.check_output does, and that it replaces no input.

  Raises:
    PathError: it can't be written.
    UsageError: the command reads it, or it is a part of a run or release.
  """
  paths.check_output(name, flag, endings)
  found = paths.path(name)
  for other in READ:
    if other in FLAGS and (value := FLAGS[other].value):
      if paths.same(name, value):
        raise UsageError(
          f'{flag}={name} is what --{other} names, and would be replaced: '
          f'choose another {flag}'
        )
  if found.name in KEPT and found.exists():
    if (found.parent / 'config.json').exists():
      raise UsageError(
        f'{flag}={name} is a part of the run in {found.parent}, and would be '
        f'replaced: choose another {flag}'
      )


def metrics_flags() -> None:
  """What the metrics need to see images with."""
  flags.DEFINE_string(
    'inception',
    None,
    'Weights of the FID Inception net: a .pth, .npz or .safetensors file. '
    'Unset: the file that $FRACTAL_JAX_INCEPTION names.',
  )


DEFAULT = '(default)'  # what --config is where a config is chosen


class ConfigParser(flags.ArgumentParser):
  """Reads the config that --config names; see `config_files.load`."""

  def __init__(self, files: flags.ArgumentParser):
    """Args: files: the parser that ml_collections has for config files."""
    self._files = files

  def flag_type(self) -> str:
    return self._files.flag_type()

  def parse(self, argument: str) -> ConfigDict:
    from fractal_jax import config, config_files

    if argument == DEFAULT:
      return config.default()
    try:
      return config_files.load(argument)
    except UserError as e:  # absl names the flag
      raise ValueError(str(e)) from e


def config_flag(
  text: str = 'A config: its name, such as digits, or a file.',
  required: bool = True,
) -> None:
  """A config, and --config.KEY=VALUE to change what it says."""
  config_flags.DEFINE_config_file('config', None, text)
  FLAGS['config'].parser = ConfigParser(FLAGS['config'].parser)
  if required:
    flags.mark_flag_as_required('config')


def show_flag() -> None:
  """Whether to print the config in place of the work."""
  flags.DEFINE_bool(
    'show', False, 'Print the whole config as a file to edit, and stop.'
  )


def show_config() -> None:
  """Prints --config with what --config.KEY changes, every key explained."""
  from fractal_jax import config_files

  name = FLAGS['config'].config_filename
  say(config_files.text(FLAGS.config, f'All of --config={name}.'), end='')


def image_flags() -> None:
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


def the_image(config: ConfigDict) -> 'tuple[np.ndarray, int | None]':
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
    if FLAGS.split is not None:
      raise UsageError('--split goes with --index: leave it out with --image')
    image, note = inputs.read_image(FLAGS.image, config.model)
    if note:
      say(f'{note}.')
    return image, label
  check_own_data(config, 'give --image=FILE in place of --index')
  split = FLAGS.split or config.data.val_split
  found = pipeline.eval_batches(config, split, 1)
  if FLAGS.index >= len(found):
    raise UsageError(f'--index={FLAGS.index}: {split} has {len(found)} images')
  (one,) = itertools.islice(found, FLAGS.index, FLAGS.index + 1)
  return one['image'][0], label


def check_own_data(
  config: ConfigDict, instead: str, flag: str = 'workdir'
) -> None:
  """Raises UsageError where a release, or a run that moved, lacks its data.

  Args:
    config: of the run.
    instead: what to do without them.
    flag: that names the run.
  """
  from fractal_jax.data.common import FROM_DIR

  d = config.data
  if d.name in FROM_DIR and not (d.dir and paths.path(d.dir).exists()):
    where = f"data.dir='{d.dir}'" if d.dir else 'it is a release'
    raise UsageError(
      f'the data of --{flag}={FLAGS[flag].value} are not here ({where}): '
      f'{instead}'
    )


def class_numbers(texts: list[str], model: ConfigDict) -> list[int]:
  """Classes of --labels or --label, by number or by the names in --workdir.

  That of 'none' is -1, "no class".
  """
  from fractal_jax.data import classes

  given = [text for text in texts if text.strip() != 'none']
  found = iter(classes.numbers(given, classes.load(workdir()), model.classes))
  return [-1 if text.strip() == 'none' else next(found) for text in texts]


def class_name(label: int | None) -> str:
  """A class as a person calls it: by name, or number; '' for no class."""
  from fractal_jax.data import classes

  if label is None:
    return ''
  names = classes.load(workdir())
  return names[label] if label < len(names) else str(label)


def names_of(labels: 'np.ndarray') -> list[str] | None:
  """What to write for images of these classes [n]; None if names are unknown.

  None, too, where there is but one class.
  """
  from fractal_jax.data import classes

  names = classes.load(workdir())
  if len(names) < 2:
    return None
  return [names[i] if i >= 0 else 'no class' for i in labels]


def use_cores(images: int) -> None:
  """On a CPU: one device per core. To be called before JAX starts."""
  from fractal_jax import cpu

  if not FLAGS.distributed:
    cpu.use_cores(images)


MARKS = {'commas': ',', 'colons': ':'}  # between the values of a flag


def numbers(
  name: str, values: list[str], kind: type = float, between: str = 'commas'
) -> tuple:
  """What a flag lists, of a kind: float, int or str."""
  try:
    return tuple(map(kind, values))
  except ValueError as e:
    what = 'whole numbers' if kind is int else 'numbers'
    raise UsageError(
      f'--{name}={MARKS[between].join(values)} must be {what} with {between} '
      'between'
    ) from e


def integers(name: str, values: list[str]) -> tuple[int, ...]:
  """The whole numbers that a flag lists."""
  return numbers(name, values, int)


def follow(job: 'Job') -> Any:
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


def shown(unit: str, what: str | None = None) -> Callable[[Iterable], Iterable]:
  """What shows under a progress bar how far an iterable is."""
  import tqdm

  return functools.partial(tqdm.tqdm, unit=unit, desc=what, disable=None)


def leads() -> bool:
  """Whether this is process 0, which writes and says what all have done."""
  import jax

  return jax.process_index() == 0


def write_numbers(path: str, numbers: dict) -> None:
  """Writes what was measured, and the command line, as JSON; process 0 does."""
  if leads():
    command = shlex.join(['fractal-jax', *sys.argv[1:]])
    text = json.dumps({'command': command, **numbers}, indent=2)
    paths.write_text(path, text + '\n')
  say(f'numbers: {paths.absolute(path)}')


def say(text: str, end: str = '\n') -> None:
  """Prints a line, once for all processes."""
  if leads():
    print(text, end=end, flush=True)


def workdir() -> str:
  """The folder that --workdir names; downloaded, if it is on the Hub."""
  return folder_of(FLAGS.workdir)


@functools.cache  # the Hub is asked once
def folder_of(name: str) -> str:
  """The folder of a run or release, downloaded if it is on the Hub."""
  from fractal_jax.release import hub

  return hub.folder(name)


def load_config() -> ConfigDict:
  """The config of --workdir."""
  from fractal_jax.training import checkpoint

  return checkpoint.load_config(workdir())


def load_model(config: ConfigDict | None = None) -> 'api.Model':
  """The model of --workdir and --step, an api.Model."""
  from fractal_jax import api

  return api.load(workdir(), FLAGS.step, config)
