"""`ab`: a level of one run in another, against its own.

fractal-jax ab --level=1 --a=runs/one --b=runs/two --out=compared
"""

import re

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import checks, cpu, paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
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


def run() -> None:
  """Trains what is a config, compares, and prints."""
  import dataclasses
  import json

  from fractal_jax.pilot import modules
  from fractal_jax.release import hub
  from fractal_jax.training import checkpoint, train

  cpu.use_cores(FLAGS.batch or 64)
  if FLAGS.out:
    paths.check_folder(FLAGS.out, '--out')
  train_a, train_b = is_config(FLAGS.a), is_config(FLAGS.b)
  a = workdir('a') if train_a else hub.folder(FLAGS.a)
  b = workdir('b') if train_b else hub.folder(FLAGS.b)
  own = read_config(FLAGS.a) if train_a else checkpoint.load_config(a)
  other = read_config(FLAGS.b) if train_b else checkpoint.load_config(b)
  modules.mixed_config(own, other, FLAGS.level)  # else nothing is trained
  common.check_own_data(own, 'compare on a run that has them', 'a')
  if train_a:
    train.train(own, a)
  if train_b:
    train.train(modules.retraining(other, a, FLAGS.level), b)
  how = common.arguments('split', 'num', 'batch', 'passes', 'conditional')
  found = common.follow(modules.compare(a, b, FLAGS.level, **how))
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
  return bool(re.fullmatch(r'.*\.py(:.*)?', name, re.S))


def read_config(name: str) -> ConfigDict:
  """The config of FILE.py or FILE.py:OPTION."""
  from fractal_jax import config as config_lib
  from fractal_jax import config_files

  config = config_files.load(name)
  config_lib.split_names(config)
  config_lib.check(config)
  return config


def workdir(name: str) -> str:
  """Where a config is trained."""
  if not FLAGS.out:
    raise common.UsageError(f'--{name} is a config: set --out, for its run')
  return str(paths.path(FLAGS.out) / name)
