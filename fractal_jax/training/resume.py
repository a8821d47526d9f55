"""Going on with a run under a config that is not quite the run's own.

The place in the training data is a number of batches. It means the same images
only with the same data set, batch size and seed, so a run that changes one of
these is refused. Any other change is said, one line per key.
"""

import os

from ml_collections import ConfigDict

from fractal_jax import config as config_lib
from fractal_jax.data.common import FROM_DIR
from fractal_jax.errors import UserError
from fractal_jax.training import checkpoint, logs

# Keys that say which images the next batch holds.
PLACE = ('seed', 'data.name', 'data.train_split', 'optim.batch')


class ResumeError(UserError, ValueError):
  """A config under which a run can't go on where it stopped."""


def check(config: ConfigDict, workdir: str) -> None:
  """Says what differs from the config that a run was last trained with.

  Args:
    config: of the run that goes on.
    workdir: with checkpoints; its config.json is the config before.

  Raises:
    ResumeError: a key differs without which the run's place in the data would
      be another one; the message says what to set.
  """
  before = config_lib.flat(checkpoint.load_config(workdir))
  now = config_lib.flat(config)
  place = changed_place(before, now)
  if place:
    lines = [f'  {k}: {before[k]!r} before, {now[k]!r} now' for k in place]
    keys = ', '.join(f'--config.{k}={before[k]}' for k in place)
    paths = [k for k in place if k in ('data.dir', 'data.list')]
    moved = (
      f' If it only moved, change {" and ".join(paths)} in '
      f'{workdir}/config.json.'
      if paths
      else ''
    )
    raise ResumeError(
      f'the run in {workdir} cannot go on at its place in the data with\n'
      + '\n'.join(lines)
      + f'\nSet {keys} as before, or start in another --workdir with '
      f'--config.model.init_from={workdir} and --config.model.init_levels of '
      f'all levels.{moved}'
    )
  for k in now:
    if before[k] != now[k]:
      logs.say(
        f'changed since the run stopped: {k}: {before[k]!r} before, '
        f'{now[k]!r} now'
      )


def changed_place(before: dict, now: dict) -> list[str]:
  """The keys of two flat configs that put a run elsewhere in the data."""
  place = [k for k in PLACE if before[k] != now[k]]
  # However the path is written.
  path_of = lambda text: text and os.path.abspath(os.path.expanduser(text))
  if now['data.name'] in FROM_DIR:
    for k in ('data.dir', 'data.list'):
      if path_of(before[k]) != path_of(now[k]):
        place.append(k)
  return place
