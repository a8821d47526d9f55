"""`pilot`: whether this works for a table of sensors or images, in stages.

fractal-jax pilot init --data=line.csv --out=pilot    # or a folder of images
fractal-jax pilot check pilot
fractal-jax pilot run pilot
"""

import sys
from typing import TYPE_CHECKING

from absl import flags

from fractal_jax import cpu, paths
from fractal_jax.commands import common

if TYPE_CHECKING:
  from fractal_jax.pilot.work import Pilot

FLAGS = flags.FLAGS

ARGUMENTS = 'init, or check, run or report and the folder of a pilot'
STAGES = ('data', 'module', 'composition', 'full', 'shadow')
# The flags that each job takes.
USED = {
  'init': ('data', 'columns', 'size', 'out'),
  'check': (),
  'run': ('stage', 'anyway', 'language'),
  'report': ('language',),
}


def define_flags() -> None:
  """The command's flags."""
  flags.DEFINE_string(
    'data',
    None,
    'init: a .csv with a header, .parquet or .npz of sensors; or a folder of '
    'images, an .npz of them, or digits.',
  )
  flags.DEFINE_list(
    'columns', [], 'init: the channels of a table; all if unset.'
  )
  common.number_flag('size', None, 'init: the side of images; chosen if unset.')
  flags.DEFINE_string('out', 'pilot', 'init: the folder of the pilot.')
  flags.DEFINE_enum(
    'stage', None, STAGES, 'run: this stage alone; all in turn if unset.'
  )
  flags.DEFINE_bool('anyway', False, 'run: go on after a stage that is not GO.')
  flags.DEFINE_string('language', 'en', 'Of the report: en or ja.')


def run(*words: str) -> None:
  """Does what the first argument says; exits by the verdict of `run`."""
  jobs = {'init': init, 'check': check, 'run': run_stages, 'report': report}
  if not words or words[0] not in jobs:
    raise common.UsageError(f'say {ARGUMENTS}')
  if len(words) != (1 if words[0] == 'init' else 2):
    raise common.UsageError(
      f'pilot {words[0]} takes '
      + (
        'no further argument: name the folder by --out'
        if words[0] == 'init'
        else 'the folder of a pilot'
      )
    )
  for name in sorted({name for used in USED.values() for name in used}):
    if FLAGS[name].present and name not in USED[words[0]]:
      jobs_of = [job for job, used in USED.items() if name in used]
      raise common.UsageError(
        f'--{name} is for pilot {" and ".join(jobs_of)}: leave it out of pilot '
        f'{words[0]}'
      )
  jobs[words[0]](*words[1:])


def init() -> None:
  """Looks at the data, and writes pilot.toml."""
  from fractal_jax.pilot import image_settings, settings, table_settings

  if not FLAGS.data:
    raise common.UsageError('pilot init needs --data=FILE or FOLDER')
  path = paths.path(FLAGS.out) / settings.FILE
  if path.exists():
    raise common.UsageError(
      f'{path} exists: change it, or choose another --out'
    )
  paths.check_folder(FLAGS.out, '--out')
  if image_settings.are_images(FLAGS.data):
    tables = image_settings.SECTIONS
    sections = image_settings.propose(FLAGS.data, FLAGS.out, FLAGS.size)
  else:
    tables = table_settings.SECTIONS
    columns = [c.strip() for c in FLAGS.columns]
    sections = table_settings.propose(FLAGS.data, columns)
  paths.write_text(path, settings.text(sections, tables))
  common.say(f'{paths.absolute(path)}: fill in what is -1, then')
  common.say(f'  fractal-jax pilot check {FLAGS.out}')


def check(folder: str) -> None:
  """Says what is missing; raises PilotError where it can't be run."""
  from fractal_jax.pilot import run as stages

  pilot = stages.open_pilot(folder)
  for line in pilot.wishes():
    common.say(f'- {line}')
  common.say('The pilot can be run.')


def run_stages(folder: str) -> None:
  """Runs what has not run; writes the report; exits by the verdict."""
  from fractal_jax.pilot import gates, texts
  from fractal_jax.pilot import report as reports
  from fractal_jax.pilot import run as stages

  texts.texts(FLAGS.language)
  cpu.use_cores(32)
  pilot = stages.open_pilot(folder)
  for name in [FLAGS.stage] if FLAGS.stage else STAGES:
    if name not in stages.load(pilot):
      stages.check_before(pilot, name, FLAGS.anyway)
      afford(pilot, name)
    done = stages.run_stage(
      pilot, name, follow=common.follow, anyway=FLAGS.anyway
    )
    common.say(f'{name}: {done.verdict} ({done.seconds / 60:.1f} minutes)')
    if done.verdict != gates.GO and not FLAGS.anyway:
      break
  path = reports.write(pilot, FLAGS.language)
  found = reports.Content(pilot, stages.load(pilot))
  words = texts.texts(FLAGS.language, pilot.KIND)
  common.say(f'{found.verdict}: {reports.reason(found, words)}')
  common.say(f'report: {paths.absolute(path)}')
  code = gates.EXIT[found.verdict]
  if code:
    sys.exit(code)


def afford(pilot: 'Pilot', name: str) -> None:
  """Says what a stage will take; raises UsageError where that is too much."""
  from fractal_jax.pilot import run as stages
  from fractal_jax.pilot import work

  seconds = stages.price(pilot, name)
  if seconds is None:
    return
  taken = work.memory()
  if taken > pilot.settings.budget['memory_gb']:
    raise common.UsageError(
      f'a few steps of the largest model have taken {taken:.1f} GB, and '
      f'budget.memory_gb is {pilot.settings.budget["memory_gb"]:g}: raise it, '
      'or lower task.window (of images: take a smaller --size)'
    )
  spent = sum(d.seconds for d in stages.load(pilot).values())
  budget = pilot.settings.budget
  common.say(f'{name}: about {seconds / 60:.1f} minutes of training')
  if seconds + spent > 60 * budget['minutes'] and not budget['anyway']:
    raise common.UsageError(
      f'stage {name} takes about {seconds / 60:.0f} minutes, {spent / 60:.0f} '
      f'are spent, and budget.minutes is {budget["minutes"]:g}: raise it, set '
      'budget.anyway, or lower task.small_steps, task.steps or task.seeds'
    )


def report(folder: str) -> None:
  """Writes the report again, say in another language."""
  from fractal_jax.pilot import report as reports
  from fractal_jax.pilot import run as stages

  path = reports.write(stages.open_pilot(folder), FLAGS.language)
  common.say(f'report: {paths.absolute(path)}')
