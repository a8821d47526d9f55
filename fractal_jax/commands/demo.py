"""`demo`: a web page on this machine: generate, edit, see the bits.

fractal-jax demo --workdir=runs/digits
"""

import os
import tempfile

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  """The command's flags."""
  common.run_flags()
  flags.DEFINE_integer(
    'port', 7860, 'The port of 127.0.0.1 to serve; 0: any that is free.'
  )


def run():
  """Serves the page until it is told to stop."""
  from fractal_jax.demo import server

  config = common.load_config()  # a wrong --workdir is told at once
  server.check_gradio()
  sock = server.listen(FLAGS.port)
  with sock, tempfile.TemporaryDirectory() as uploads:
    os.environ['GRADIO_TEMP_DIR'] = uploads  # rather than one for all users
    from fractal_jax.demo import page

    name = os.path.basename(os.path.abspath(FLAGS.workdir))
    shown = page.Page(common.load_model(config), name)
    common.say(
      f'The page: http://{server.HOST}:{sock.getsockname()[1]}  '
      '(this machine only; Ctrl-C ends it)'
    )
    server.serve(shown, sock)
