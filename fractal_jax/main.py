"""The command line: one subcommand a job.

  fractal-jax train --config=configs/digits.py --workdir=runs/digits

`fractal-jax` alone lists the commands; `fractal-jax COMMAND --helpshort`
lists a command's flags.

Exit codes: 0 done; 1 bad flags; 2 an error that the message explains; 70 the
run hung or another of its processes failed; 75 told to stop (SIGTERM) and
saved. After 70, 75 and a crash the same command goes on from what was saved.
"""

import errno
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS


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


def workdir_flags():
  flags.DEFINE_string('workdir', None, 'The run: config and checkpoints.')
  flags.DEFINE_integer('step', None, 'Checkpoint to use; the latest if unset.')
  flags.mark_flag_as_required('workdir')
  distributed_flags()


def config_flag():
  config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/.', lock_config=True
  )
  flags.mark_flag_as_required('config')


# train


def train_flags():
  config_flag()
  flags.DEFINE_string('workdir', None, 'Where config, checkpoints, logs go.')
  flags.mark_flag_as_required('workdir')
  distributed_flags()


def train():
  from fractal_jax import train

  train.train(FLAGS.config, FLAGS.workdir)


# likelihood


def likelihood_flags():
  workdir_flags()
  flags.DEFINE_string('split', None, 'Split; the validation split if unset.')
  flags.DEFINE_integer('num', None, 'Images; 0: the whole split.')
  flags.DEFINE_integer('batch', None, 'Images at a time.')
  flags.DEFINE_integer('passes', None, 'Monte-Carlo passes of masked levels.')
  flags.DEFINE_bool('conditional', False, 'Give the labels to the model.')


def likelihood():
  import tqdm

  from fractal_jax import likelihood

  at_least('num', 0)
  at_least('batch', 1)
  at_least('passes', 1)
  config, net, params, mesh = load_run()
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
  say(f'{split} bits/dim: {found}')
  if not found.exact:
    if found.passes > 1:
      say(f'of which Monte-Carlo noise: {found.mc_stderr:.4f}')
    say(
      'published definition (mean over the values that were scored): '
      f'{found.published_bits_per_dim:.4f}'
    )
  if found.bound:
    say(
      'With guiding pixels the first number is an upper bound on the negative '
      'log-likelihood: (pixel nats + guide nats) / values. The published '
      'number is the sum of the two mean losses, and no likelihood.'
    )
  if found.dropped:
    say(f'{found.dropped} masked patches did not fit and were left out.')


# sample


def sample_flags():
  workdir_flags()
  flags.DEFINE_integer('num', None, 'Images.')
  flags.DEFINE_integer('batch', None, 'Images at a time.')
  flags.DEFINE_integer('seed', 0, 'Image i depends on seed and i alone.')
  flags.DEFINE_list(
    'labels', None, "Classes, repeated as needed, or 'none'; all if unset."
  )
  flags.DEFINE_float('guidance', None, '1: none.')
  flags.DEFINE_enum(
    'schedule', None, ['linear', 'constant'], 'Of guidance at level 0.'
  )
  flags.DEFINE_float('temperature', None, 'Multiplies logits: above 1 sharpens')
  flags.DEFINE_float('filter_threshold', None, 'See Generation in model.md')
  flags.DEFINE_list('iterations', None, 'Steps of each level: 64,16.')
  flags.DEFINE_string('out', 'samples.png', 'A .png grid, or .npz of values.')
  flags.DEFINE_string('movie', None, 'A .gif or .mp4 of images growing.')


def sample():
  import numpy as np
  import tqdm

  from fractal_jax import sample

  for name, least in (('num', 1), ('batch', 1)):
    at_least(name, least)
  if FLAGS.movie:
    sample.check_movie(FLAGS.movie)
  if not FLAGS.out.endswith(('.png', '.npz')):
    raise UsageError(f'--out={FLAGS.out} must end in .png or .npz')
  config = load_config()
  with config.unlocked():
    for name in ('guidance', 'schedule', 'temperature', 'filter_threshold'):
      if FLAGS[name].value is not None:
        config.sample[name] = FLAGS[name].value
    if FLAGS.iterations is not None:
      config.sample.iterations = integers('iterations', FLAGS.iterations)
  labels = classes(config.model)
  config, net, params, mesh = load_run(config)
  sampling, guided = sample.settings(config, record=bool(FLAGS.movie))
  num = FLAGS.num or config.sample.num
  drawn = sample.generate(
    net,
    params,
    sample.round_robin(num, labels),
    sampling,
    guided=guided,
    seed=FLAGS.seed,
    batch=FLAGS.batch or config.sample.batch,
    mesh=mesh,
    progress=lambda x: tqdm.tqdm(x, unit='batch', disable=None),
  )
  import jax

  if jax.process_index():
    return
  columns = len(labels) if 1 < len(labels) <= 16 else None
  if FLAGS.out.endswith('.npz'):
    pathlib.Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
      FLAGS.out,
      images=drawn.values.astype(
        np.uint8 if sampling_fits(config) else np.int32
      ),
      labels=sample.round_robin(num, labels),
    )
  else:
    pictures = sample.pictures(drawn.values, config.model)
    sample.save(sample.grid(pictures, columns), FLAGS.out)
  say(f'{num} images: {os.path.abspath(FLAGS.out)}')
  if FLAGS.movie:
    sample.save_movie(drawn, config.model, FLAGS.movie, columns=columns)
    say(f'movie: {os.path.abspath(FLAGS.movie)}')


def sampling_fits(config):
  return config.model.num_values <= 256


def classes(model):
  """The classes that --labels names, checked."""
  if FLAGS.labels is None:
    return list(range(model.classes))
  if FLAGS.labels == ['none']:
    return [-1]
  labels = integers('labels', FLAGS.labels)
  bad = [x for x in labels if not 0 <= x < model.classes]
  if bad or not labels:
    raise UsageError(
      f'--labels={",".join(FLAGS.labels)}: classes are 0 to '
      f'{model.classes - 1}, or none'
    )
  return list(labels)


# edit, explain


def image_flags():
  workdir_flags()
  flags.DEFINE_string('image', None, 'An image file, or a .npy of values.')
  flags.DEFINE_integer('index', None, 'In place of --image: one of --split.')
  flags.DEFINE_string('split', None, 'Split; the validation split if unset.')
  flags.DEFINE_string('label', None, "Class; unset or 'none': no class.")
  flags.DEFINE_integer('seed', 0, 'Of the draws.')


def edit_flags():
  image_flags()
  flags.DEFINE_string('mask', None, 'White (or True, in a .npy): generate.')
  flags.DEFINE_enum(
    'mode', None, ['inpaint', 'outpaint', 'lower'], 'A mask made for you.'
  )
  flags.DEFINE_list('box', None, 'Of inpaint: top,left,height,width.')
  flags.DEFINE_integer('margin', None, 'Of outpaint, in pixels.')
  flags.DEFINE_integer('num', 8, 'Completions.')
  flags.DEFINE_integer('candidates', 1, 'Draws of which the likeliest is kept.')
  flags.DEFINE_integer('batch', None, 'Images at a time.')
  flags.DEFINE_float('guidance', None, '1: none.')
  flags.DEFINE_float('temperature', None, 'Multiplies logits: above 1 sharpens')
  flags.DEFINE_list('iterations', None, 'Steps of each level: 64,16.')
  flags.DEFINE_string('out', 'edit.png', 'A .png, or a .npy of values.')


def edit():
  import numpy as np

  from fractal_jax import edit, sample

  for name, least in (('num', 1), ('candidates', 1), ('batch', 1)):
    at_least(name, least)
  edit.check_out(FLAGS.out, '.png', '.npy')
  if bool(FLAGS.mask) == bool(FLAGS.mode):
    raise UsageError(
      'give --mask=FILE, or --mode to have one made: one of them'
    )
  config = load_config()
  image, label = the_image(config)
  if FLAGS.mask:
    mask = edit.read_mask(FLAGS.mask, config.model)
  else:
    box = FLAGS.box and integers('box', FLAGS.box)
    mask = edit.make_mask(
      FLAGS.mode, config.model, box=box, margin=FLAGS.margin
    )
  mask = edit.check_mask(mask, image[None])
  changes = {
    name: FLAGS[name].value
    for name in ('guidance', 'temperature')
    if FLAGS[name].value is not None
  }
  if FLAGS.iterations is not None:
    with config.unlocked():
      config.sample.iterations = integers('iterations', FLAGS.iterations)
  model = load_model(config)
  (drawn,) = model.edit(
    image[None],
    mask,
    label,
    num=FLAGS.num,
    candidates=FLAGS.candidates,
    seed=FLAGS.seed,
    batch=FLAGS.batch,
    **changes,
  )
  import jax

  if jax.process_index():
    return
  if FLAGS.out.endswith('.npy'):
    pathlib.Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
    np.save(FLAGS.out, drawn)
  elif FLAGS.num == 1:
    sample.save(sample.pictures(drawn, config.model)[0], FLAGS.out)
  else:
    grey = round(sample.GREY * (config.model.num_values - 1) / 255)
    hidden = np.where(mask[0], grey, image)
    shown = np.concatenate([image[None], hidden[None], drawn])
    shown = sample.pictures(shown, config.model)
    sample.save(sample.grid(shown), FLAGS.out)
  say(f'{FLAGS.num} completions: {os.path.abspath(FLAGS.out)}')


def the_image(config):
  """The image that the flags name, [S, (S,) C], and --label."""
  import itertools

  from fractal_jax import data, edit

  if (FLAGS.image is None) == (FLAGS.index is None):
    raise UsageError('give --image=FILE, or --index of one in --split')
  label = None
  if FLAGS.label not in (None, 'none'):
    (label,) = integers('label', [FLAGS.label])
    edit.check_labels(label, config.model)
  if FLAGS.image is not None:
    return edit.read_image(FLAGS.image, config.model), label
  at_least('index', 0)
  split = FLAGS.split or config.data.val_split
  found = data.eval_batches(config, split, 1)
  if FLAGS.index >= len(found):
    raise UsageError(f'--index={FLAGS.index}: {split} has {len(found)} images')
  (one,) = itertools.islice(found, FLAGS.index, FLAGS.index + 1)
  return one['image'][0], label


def explain_flags():
  image_flags()
  flags.DEFINE_integer('passes', 64, 'Random masks, for masked levels.')
  flags.DEFINE_string('out', 'explain', 'Folder for the PNGs and report.html.')


def explain():
  from fractal_jax import explain

  at_least('passes', 2)
  config = load_config()
  image, label = the_image(config)
  model = load_model(config)
  found = model.explain(image, label, passes=FLAGS.passes, seed=FLAGS.seed)
  import jax

  if jax.process_index():
    return
  say(explain.summary(found))
  for c in found.conditions:
    say(f'  level {c.level} without {c.name}: {c.worth:+.2f} bits')
  paths = explain.write(found, image, config.model, FLAGS.out)
  say(f'report: {os.path.abspath(paths[-1])}')


# convert


def convert_flags():
  config_flags.DEFINE_config_file('config', None, 'Of the published model.')
  flags.DEFINE_string('pth', None, 'Published weights to read.')
  flags.DEFINE_string('workdir', None, 'Run to write (--pth), or to read.')
  flags.DEFINE_string('out', None, 'A .pth file to write from --workdir.')
  flags.DEFINE_integer('step', None, 'Checkpoint to use; the latest if unset.')
  flags.mark_flag_as_required('workdir')


def convert():
  from fractal_jax import checkpoint, convert
  from fractal_jax import config as config_lib

  if bool(FLAGS.pth) == bool(FLAGS.out):
    raise UsageError(
      'convert either reads --config=... --pth=FILE into a new --workdir, or '
      'writes --out=FILE.pth from a --workdir: give one of --pth and --out.'
    )
  if FLAGS.out:
    config = checkpoint.load_config(FLAGS.workdir)
    params = checkpoint.restore_params(FLAGS.workdir, FLAGS.step)
    state = convert.to_published(params, config.model)
    convert.write_pth(FLAGS.out, state)
    say(f'{len(state)} tensors: {os.path.abspath(FLAGS.out)}')
    return
  if FLAGS.config is None:
    raise UsageError('--pth needs the --config that the weights belong to.')
  config_lib.check(FLAGS.config)
  params = convert.from_published(
    convert.read_pth(FLAGS.pth), FLAGS.config.model
  )
  checkpoint.save_params(FLAGS.workdir, FLAGS.config, params)
  say(f'{FLAGS.pth} is now the run {os.path.abspath(FLAGS.workdir)}')


# cost


def cost():
  from fractal_jax import config as config_lib
  from fractal_jax import cost

  config_lib.check(FLAGS.config)
  say(cost.table(FLAGS.config))


COMMANDS = {
  'train': (train, train_flags, 'train a model, or go on with a run'),
  'likelihood': (likelihood, likelihood_flags, 'bits per dimension'),
  'sample': (sample, sample_flags, 'generate images'),
  'edit': (edit, edit_flags, 'generate what is under a mask'),
  'explain': (explain, explain_flags, 'the bits of each value of an image'),
  'convert': (convert, convert_flags, 'published weights to a run, and back'),
  'cost': (cost, config_flag, 'parameters and FLOPs of a config'),
}


class UsageError(ValueError):
  """Flags that don't go together, or a value out of range."""


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
  from fractal_jax import checkpoint

  return checkpoint.load_config(FLAGS.workdir)


def load_run(config=None):
  """The config, model, parameters and mesh of --workdir."""
  m = load_model(config)
  return m.config, m.net, m.params, m.mesh


def load_model(config=None):
  from fractal_jax import api

  return api.load(FLAGS.workdir, FLAGS.step, config)


def start() -> None:
  """Sets JAX up: the compilation cache, and the other hosts if asked."""
  import jax

  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    cache = pathlib.Path.home() / '.cache' / 'fractal_jax' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(cache))
  if 'distributed' in FLAGS and FLAGS.distributed:
    from fractal_jax import hosts

    hosts.start(
      FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat
    )


def known_errors() -> tuple:
  """Errors whose message is all that a user needs."""
  from fractal_jax import (
    checkpoint,
    convert,
    data,
    edit,
    health,
    sample,
    sharding,
  )
  from fractal_jax import config as config_lib

  return (
    UsageError,
    config_lib.ConfigError,
    checkpoint.CheckpointError,
    convert.ConvertError,
    data.DataError,
    edit.EditError,
    sample.SampleError,
    sharding.ShardingError,
    health.TrainingError,
  )


# Errors of the system that a user can mend: no space, no right to write.
MENDABLE = ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EACCES', 'EPERM')


def leave(text: str, code: int) -> None:
  """Exits with a message; where there are several processes, without them."""
  from fractal_jax import hosts

  print(text, file=sys.stderr, flush=True)
  if hosts.count() > 1:
    hosts.fail(text, code)
  sys.exit(code)


def leave_after(command: str, error: Exception) -> None:
  """Exits after an error that is none of known_errors()."""
  import traceback

  from fractal_jax import hosts

  if isinstance(error, hosts.Preempted):
    say(str(error))
    sys.exit(hosts.PREEMPTED)
  if isinstance(error, OSError):
    if errno.errorcode.get(error.errno) in MENDABLE:
      leave(f'fractal-jax {command}: {error}', 2)
  if hosts.count() == 1:
    raise error
  traceback.print_exception(error)
  hosts.crashed(error)


def run() -> None:
  """The console script."""
  names = '\n'.join(f'  {n:12}{c[2]}' for n, c in COMMANDS.items())
  usage = (
    'usage: fractal-jax COMMAND [--flag=value ...]\n\n'
    f'{names}\n\nfractal-jax COMMAND --helpshort lists the flags of a command.'
  )
  command = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if command in ('-h', '--help', 'help'):
    print(usage)
    sys.exit(0)
  if command not in COMMANDS:
    sys.exit(f"fractal-jax: no command '{command}'\n\n{usage}")
  job, define_flags, _ = COMMANDS[command]
  define_flags()

  def parse(argv):
    try:
      rest = app.parse_flags_with_usage(argv)
      if 'config' in FLAGS and FLAGS.config is not None:
        FLAGS.config.seed  # noqa: B018  raises if its file can't be read
      return rest
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as e:
      # A key, value or file of --config; a list of choices takes several lines.
      text = str(e).strip('\'"').replace('\\n', '\n').replace("\\'", "'")
      if isinstance(e, OSError):  # its text holds a whole traceback
        text = ' '.join(line.strip() for line in text.splitlines()[-2:])
      sys.exit(f'fractal-jax {command}: --config: {text}')

  def main(argv):
    # The libraries' own chatter; ours goes through logs.say.
    logging.set_verbosity(logging.ERROR)
    try:
      if argv[1:]:
        raise UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
      start()
      job()
    except known_errors() as e:
      leave(f'fractal-jax {command}: {e}', 2)
    except Exception as e:
      leave_after(command, e)

  argv = [f'fractal-jax {command}', *sys.argv[2:]]
  app.run(main, argv=argv, flags_parser=parse)


if __name__ == '__main__':
  run()
