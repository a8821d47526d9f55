"""The wheel is complete: every command runs from it, outside the repository."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from fractal_jax import main
from tests import xla

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [
  *('--config.model.kinds=ar,pixel', '--config.model.sizes=(8,1)'),
  *('--config.model.widths=(16,16)', '--config.model.depths=(1,1)'),
  *('--config.model.heads=(2,2)',),
  *('--config.optim.batch=8', '--config.optim.steps=1'),
  *('--config.eval.every=0', '--config.sample.every=0'),
]
# Every command; what stands after | is the error that ends it.
CALLS = {
  'train': ['--config=digits', '--workdir=run', *SMALL],
  'likelihood': ['--workdir=run', '--num=8', '--batch=8', '--out=x.json'],
  'sample': ['--workdir=run', '--num=8', '--batch=8'],
  'edit': ['--workdir=run', '--index=0', '--mode=lower', '--num=1'],
  'explain': ['--workdir=run', '--index=0'],
  'evaluate': ['--workdir=run', '--num=10', '--batch=8', '--save=x.npz'],
  'sweep': ['--workdir=run', '--num=10', '|the weights of the FID'],
  'reference': ['--config=digits', '--out=r.npz', '|the weights of the FID'],
  'anomaly': ['--data=none.csv', '--out=x', '|none.csv'],
  'forecast': ['--data=none.csv', '--horizon=4', '|none.csv'],
  'impute': ['--data=none.csv', '|none.csv'],
  'pilot': ['|say '],
  'ab': ['--level=0', '--a=run', '--b=none', '|config.json'],
  'convert': ['--workdir=run', '--out=mine', '--license=mit'],
  'push': ['--workdir=mine', '--repo=none', '|must be user/name'],
  'pull': ['--repo=none', '|no name of a repository'],
  'demo': ['--workdir=none', '|has no config.json'],
  'cost': ['--config=digits'],
}
PROGRAM = """
import sys
from fractal_jax.errors import UserError
import commandline
for command, arguments in {calls!r}.items():
  words = [x[1:] for x in arguments if x[0] == '|']
  flags = [x for x in arguments if x[0] != '|']
  try:
    with commandline.flags_of(command, *flags) as job:
      job.run()
    assert not words, command
  except UserError as e:
    assert words and words[0] in str(e), (command, str(e))
import fractal_jax
for name in ('digits_ar', 'digits_mar'):
  print(fractal_jax.Model.from_pretrained(name))
print(fractal_jax.__file__)
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder that the wheel is installed into."""
  folder = tmp_path_factory.mktemp('wheel')
  shutil.copytree(
    ROOT,
    folder / 'source',
    symlinks=True,
    ignore=shutil.ignore_patterns(
      '.*', 'runs', 'tests', 'docs', 'build', '*.egg-info', '__pycache__'
    ),
  )
  pip = [sys.executable, '-m', 'pip', '--quiet', '--no-input']
  pip += ['--disable-pip-version-check']
  wheel = ['wheel', '.', '--no-deps', '--no-build-isolation', '-w', '..']
  subprocess.run([*pip, *wheel], check=True, cwd=folder / 'source')
  shutil.rmtree(folder / 'source')
  (wheel,) = folder.glob('*.whl')
  assert wheel.stat().st_size < 25_000_000
  install = ['install', '--no-deps', '--target=site', wheel.name]
  subprocess.run([*pip, *install], check=True, cwd=folder)
  shutil.copy(ROOT / 'tests' / 'commandline.py', folder / 'site')
  return folder / 'site'


def files(package: pathlib.Path) -> set[str]:
  return {
    os.path.relpath(os.path.join(folder, name), package)
    for folder, _, names in os.walk(package, followlinks=True)
    for name in names
    if not name.endswith('.pyc')
  }


def test_every_command_runs_from_the_wheel(installed, tmp_path):
  assert CALLS.keys() == main.COMMANDS.keys()
  env = {k: v for k, v in os.environ.items() if k != 'FRACTAL_JAX_INCEPTION'}
  done = subprocess.run(
    [sys.executable, '-P', '-c', PROGRAM.format(calls=CALLS)],
    cwd=tmp_path,
    env=env | {'PYTHONPATH': str(installed), 'XLA_FLAGS': xla.flags()},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stdout + done.stderr
  wanted = files(ROOT / 'fractal_jax')
  assert wanted == files(installed / 'fractal_jax')
  *_, last = done.stdout.splitlines()
  assert last.startswith(str(installed))
  made = {p.name for p in tmp_path.iterdir()}
  assert made >= {'run', 'samples.png', 'edit.png', 'explain', 'x.npz', 'mine'}
