"""`ab`: a level of one run in another, against its own.

fractal-jax ab --level=1 --a=runs/one --b=runs/two --out=compared
"""

from absl import flags

from fractal_jax import checks, cpu, paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  """The command's flags."""
  common.number_flag(
    'level',
    None,
    'The level that is compared; 0 is the outermost.',
    checks.FROM_0,
  )
  flags.DEFINE_string(
    'a', None, 'The run whose other levels stay; or a config, trained first.'
  )
  flags.DEFINE_string(
    'b',
    None,
    'The run that gives the level; or a config, by which the level is trained '
    'anew while the others of a are frozen.',
  )
  for name in ('level', 'a', 'b'):
    flags.mark_flag_as_required(name)
  flags.DEFINE_string(
    'out', None, 'A folder for ab.json, and for the runs of configs.'
  )
  flags.DEFINE_string('split', None, "Of a's data; validation if unset.")
  common.number_flag(
    'num', 0, 'How many images; 0: the whole split.', checks.FROM_0
  )
  common.number_flag(
    'passes', None, "Random masks per image; the config's if unset."
  )
  flags.DEFINE_bool('conditional', False, 'Give the labels to the models.')
  common.batch_flag()


def run():
  """Trains what is a config, compares, and prints."""
  import dataclasses
  import json

  from fractal_jax.pilot import modules
  from fractal_jax.training import train

  cpu.use_cores(FLAGS.batch or 64)
  if FLAGS.out:
    paths.check_folder(FLAGS.out, '--out')
  a, b = FLAGS.a, FLAGS.b
  if is_config(a):
    config, a = read_config(a), workdir('a')
    train.train(config, a)
  if is_config(b):
    config, b = modules.retraining(read_config(b), a, FLAGS.level), workdir('b')
    train.train(config, b)
  job = modules.compare(
    a,
    b,
    FLAGS.level,
    split=FLAGS.split,
    num=FLAGS.num,
    batch=FLAGS.batch,
    passes=FLAGS.passes,
    conditional=FLAGS.conditional,
  )
  found = common.follow(job)
  common.say(modules.text(found))
  if FLAGS.out:
    kept = {
      'a': a,
      'b': b,
      **dataclasses.asdict(found),
      'recommendation': modules.recommendation(found),
    }
    path = paths.path(FLAGS.out) / 'ab.json'
    paths.write_text(path, json.dumps(kept, indent=1) + '\n')


def is_config(name: str) -> bool:
  """Whether a name is that of a config file, such as configs/digits.py:ar."""
  return name.partition(':')[0].endswith('.py')


def read_config(name: str):
  """The config of FILE.py or FILE.py:OPTION."""
  import runpy

  from fractal_jax import config as config_lib

  file, _, option = name.partition(':')
  if not paths.path(file).is_file():
    raise common.UsageError(f'{file}: there is no such config file')
  try:
    get = runpy.run_path(file)['get_config']
  except KeyError as e:
    raise common.UsageError(f'{file} has no get_config()') from e
  config = get(option) if option else get()
  config_lib.check(config)
  return config


def workdir(name: str) -> str:
  """Where a config is trained."""
  if not FLAGS.out:
    raise common.UsageError(f'--{name} is a config: set --out, for its run')
  return str(paths.path(FLAGS.out) / name)
