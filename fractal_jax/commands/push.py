"""`push`: uploads a run or release to the Hugging Face Hub.

fractal-jax push --workdir=runs/digits --repo=user/digits --license=mit
"""

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  common.run_flags()
  flags.DEFINE_string(
    'repo', None, 'The repository: user/name. Made if it is not there.'
  )
  flags.mark_flag_as_required('repo')
  flags.DEFINE_bool(
    'private', False, 'Whether others can not see it, where it is made.'
  )
  flags.DEFINE_string(
    'revision', None, 'A branch, made if it is not there; main if unset.'
  )
  common.release_flags()


def run() -> None:
  """Uploads a release as it is, and a run as a new one."""
  from fractal_jax.release import hub, weights

  hub.check_repository(FLAGS.repo)
  where = common.arguments('private', 'revision')
  workdir = common.workdir()
  if weights.found(workdir) and not paths.is_remote(workdir):
    given = [name for name in common.RELEASE if FLAGS[name].present]
    if given:
      raise common.UsageError(
        f'--{given[0]} is for runs: {FLAGS.workdir} is a release, and goes as '
        f'it is. Edit its README.md, or make another: fractal-jax convert '
        f'--workdir={FLAGS.workdir} --out=DIR --{given[0]}=...'
      )
    url = hub.push(workdir, FLAGS.repo, **where)
  else:
    model = common.load_model()
    release = common.arguments(*common.RELEASE)
    url = model.push_to_hub(FLAGS.repo, **where, **release)
  common.say(f'pushed: {url}')
  common.say(f'anyone can use it: fractal-jax sample --workdir={FLAGS.repo}')
