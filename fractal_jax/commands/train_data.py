"""`train --data`: looks at the data, chooses a config, says what to expect."""

import os
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import paths
from fractal_jax.commands import common

if TYPE_CHECKING:
  from fractal_jax.planning.propose import Machine, Proposal

FLAGS = flags.FLAGS
CONFIG, LISTING = 'chosen.py', 'images.csv'  # in the run
# Images seen, repeats counted, after which a person first recognised samples,
# by the side of the images: our own runs, shown in docs/own_images.md.
RECOGNISED = {16: 27_200}


def workdir_of(data: str) -> str:
  """The run of some data, where --workdir is unset."""
  name = os.path.basename(paths.absolute(data).rstrip('/'))
  return os.path.join('runs', name.removesuffix('.npz'))


def config_for(data: str, size: int | None, workdir: str) -> ConfigDict:
  """The config of the run in `workdir`, or one that is chosen for the data.

  What --config.KEY says is changed in it. With --show it is printed, and
  nothing is written.
  """
  from fractal_jax.data import folder
  from fractal_jax.training import checkpoint, restore

  if FLAGS.distributed:
    raise common.UsageError(
      '--data looks at one machine: let it choose there with --show > my.py, '
      'and train with --config=my.py --distributed'
    )
  changes = FLAGS['config'].override_values
  there = (paths.path(workdir) / 'config.json').exists()
  if not FLAGS.show and (there or restore.steps(workdir)):
    config = checkpoint.load_config(workdir)
    check_same(config, data, size, workdir)
    common.say(f'{workdir} is a run of this data: it goes on.')
    change(config, changes)
    return config
  paths.check_folder(workdir, '--workdir')
  folder.check_apart(data, workdir)
  check_listing(paths.path(workdir) / LISTING)
  return choose(data, size, workdir, changes)


def change(config: ConfigDict, changes: dict) -> None:
  """Makes --config.KEY=VALUE part of a config, and checks it."""
  from fractal_jax import config as config_lib

  with config.unlocked():
    config.update_from_flattened_dict(changes)
  config_lib.split_names(config)
  config_lib.check(config)


def check_same(
  config: ConfigDict, data: str, size: int | None, workdir: str
) -> None:
  """Refuses to go on with a run of other data, or of another size."""
  now = data if config.data.dir == '' else paths.absolute(data)
  before = config.data.dir or config.data.name
  if before != now:
    raise common.UsageError(
      f'{workdir} is a run of {before}, not of {data}: give another --workdir'
    )
  if size not in (None, config.model.sizes[0]):
    raise common.UsageError(
      f'{workdir} is a run of images of side {config.model.sizes[0]}, not '
      f'{size}: give another --workdir'
    )


def check_listing(path: paths.Path) -> None:
  """Refuses to replace a file of the user's that has the listing's name."""
  from fractal_jax.data import listing

  if path.exists():
    try:
      listing.read(path)
    except listing.DataError as e:
      raise common.UsageError(
        f'{path} is no listing of an earlier run, and would be replaced: give '
        'another --workdir'
      ) from e


def choose(
  data: str, size: int | None, workdir: str, changes: dict
) -> ConfigDict:
  """Looks at the data, says what is found and chosen, keeps it in the run."""
  import tempfile

  from fractal_jax import config_files, cpu, sharding
  from fractal_jax.data import listing, look
  from fractal_jax.planning import propose

  root = paths.path(tempfile.mkdtemp() if FLAGS.show else workdir)
  list_path = str(root / LISTING)

  def write(found) -> str:
    listing.write(list_path, found.rows)
    return paths.absolute(list_path)

  # Before JAX starts, which counting parameters does.
  batch = propose.cpu_batch(cpu.cores())
  common.use_cores(changes.get('optim.batch', batch))
  found = look.at(data, common.shown('image', 'looking'))
  on = propose.machine()
  chosen = propose.propose(found, on, size, write)
  reasons = dict(chosen.reasons)
  change(chosen.config, changes)
  for key in changes:
    reasons[key] = f'--config.{key}'
  if not FLAGS.show:  # --show may print what another machine will train
    sharding.check_batch(chosen.config, sharding.make_mesh(chosen.config))
  text = config_files.text(
    chosen.config, header(data, workdir, chosen, on), reasons
  )
  if FLAGS.show:
    common.say(text, end='')
    return chosen.config
  paths.write_text(root / CONFIG, text)
  say_chosen(chosen, on, reasons, root / CONFIG)
  return chosen.config


def header(data: str, workdir: str, chosen: 'Proposal', on: 'Machine') -> str:
  """What stands at the top of the config file."""
  return (
    f'Chosen for {data} and {on.text} by `fractal-jax train --data`.\n\n'
    f'fractal-jax train --config={workdir}/{CONFIG} --workdir=runs/another\n\n'
    + '\n'.join(described(chosen))
    + '\n'
  )


def described(chosen: 'Proposal') -> list[str]:
  """What was found in the data, a line each."""
  from fractal_jax.data import classes

  found = chosen.found
  sides = found.sides[found.sides > 0]
  size = f'{sides.min()} to {sides.max()} pixels on the shorter side'
  if sides.min() == sides.max():
    size = f'{sides.min()} pixels on the shorter side'
  number = len(found.class_names)
  return [
    f'{chosen.train + chosen.held:,} images, {size}, '
    f'{"in colour" if found.colour else "grey"}: {chosen.train:,} to train on, '
    f'{chosen.held:,} held out',
    'one class'
    if number == 1
    else f'{number} classes: {classes.listing(found.class_names)}',
    *found.notes,
  ]


def say_chosen(
  chosen: 'Proposal', on: 'Machine', reasons: dict[str, str], path: paths.Path
) -> None:
  """Prints what was found, and the keys that matter most with their reasons."""
  c = chosen.config
  lines = ['Found:', *(f'  {x}' for x in described(chosen)), '']
  lines += [f'Chosen, for {on.text}:']
  for key in ('model.sizes', 'model.kinds', 'model.widths', 'optim.batch',
              'optim.steps', 'optim.lr', 'sample.guidance'):  # fmt: skip
    section, _, name = key.partition('.')
    lines.append(f'  {key} = {c[section][name]}: {reasons[key]}')
  lines += [f'  All of it, to edit and use again: {path}', '']
  common.say('\n'.join(lines))


def say_what_to_expect(config: ConfigDict, workdir: str) -> None:
  """Times a few steps, unless the run has begun, and says when it is done."""
  from fractal_jax import sharding
  from fractal_jax.models import fractal
  from fractal_jax.planning import probe
  from fractal_jax.training import restore, train
  from fractal_jax.training.logs import duration

  if restore.steps(workdir):
    return
  mesh, net = sharding.make_mesh(config), fractal.from_config(config.model)
  train.given_levels(net, config, mesh=mesh)  # raises before it compiles
  common.say('Timing a few steps ...')
  found = probe.probe(config)
  side, every = config.model.sizes[0], config.sample.every
  steps = found.total
  lines = [
    'Expect, by the time of these steps:',
    f'  {found.images:.4g} images/s; {steps} steps in '
    f'{duration(steps * found.step)}, and samples and scores in between',
  ]
  if every:
    lines.append(
      f'  samples in {workdir}/samples every {duration(every * found.step)}'
    )
  seen = RECOGNISED.get(side)
  if seen and seen <= steps * config.optim.batch:
    lines.append(
      f'  first recognisable samples after about '
      f'{duration(seen / found.images)}: our own run of emoji at {side}x{side} '
      f'showed them after {seen:,} images'
    )
  elif not seen:
    lines.append(
      f'  we have run no {side}x{side} images like these: look at the samples'
    )
  common.say('\n'.join([*lines, '']))


def say_what_next(workdir: str) -> None:
  """Prints what to do with the run."""
  common.say(f"""
Next:
  fractal-jax sample --workdir={workdir} --out=samples.png
  fractal-jax likelihood --workdir={workdir}
  fractal-jax demo --workdir={workdir}
  tensorboard --logdir={workdir}/tensorboard""")
