"""`demo`: a web page on this machine: generate, edit, see the bits.

fractal-jax demo
fractal-jax demo --workdir=runs/digits
fractal-jax demo --workdir=runs
"""

import os
import tempfile

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  common.run_flags(required=False)
  flags.DEFINE_integer(
    'port', 7860, 'The port of 127.0.0.1 to serve; 0: any that is free.'
  )


def run() -> None:
  """Serves a page for each run until it is told to stop."""
  from fractal_jax import api
  from fractal_jax.data import classes
  from fractal_jax.demo import jobs, server

  folders = runs()
  server.check_gradio()
  sock = server.listen(FLAGS.port)
  with sock, tempfile.TemporaryDirectory() as uploads:
    os.environ['GRADIO_TEMP_DIR'] = uploads  # rather than one for all users
    from fractal_jax.demo import page

    desk = jobs.Jobs()
    pages = {
      name: page.Page(
        api.load(folder, FLAGS.step), name, classes.load(folder), [*folders],
        desk,
      )
      for name, folder in folders.items()
    }  # fmt: skip
    common.say(
      f'The page: http://{server.HOST}:{sock.getsockname()[1]}  '
      '(this machine only; Ctrl-C ends it)'
    )
    server.serve(pages, sock)


def runs() -> dict[str, str]:
  """The run --workdir, or all runs in it, by name; unset: what is shipped."""
  from fractal_jax.release import hub, weights

  folder = paths.path(common.workdir() if FLAGS.workdir else hub.SHIPPED)
  found = {}
  if folder.is_dir() and not (folder / 'config.json').exists():
    found = {
      p.name: str(p)
      for p in sorted(folder.iterdir())
      if (p / 'config.json').exists()
      and ((p / 'checkpoints').exists() or weights.found(p))
    }
  if not found:
    common.load_config()  # a wrong --workdir is told at once
    name = os.path.basename(os.path.abspath(FLAGS.workdir))
    found = {name: str(folder)}
  return found
