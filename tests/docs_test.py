"""The documents' Python and flags work as they stand; their links exist."""

import ast
import pathlib
import re
import runpy
import shlex

from absl import flags
import pytest

from fractal_jax import main, sharding
from fractal_jax.models import fractal
from fractal_jax.training import checkpoint
from tests import commandline, tiny

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
  *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md')),
  *(ROOT / 'launch' / 'README.md', *sorted(ROOT.glob('benchmarks/*.md'))),
  *sorted(ROOT.glob('docs/*.md')),
  *sorted(ROOT.glob('docs/*/*.md')),
  *sorted(ROOT.glob('releases/*/README.md')),
]
PROGRAMS = [
  str(p.relative_to(ROOT))
  for p in [*ROOT.glob('benchmarks/*.py'), *ROOT.glob('launch/*.s*')]
]
CONFIG = 'configs/fractalmar_in64.py'  # where a page names none
# Config files that a reader has or makes.
READERS_OWN = r'configs/[A-Z]+|(?<==)mine|runs/\w+/chosen'
each_page = pytest.mark.parametrize(
  'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


# Python.


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with an untrained, small runs/digits."""
  config = runpy.run_path(str(ROOT / 'configs' / 'digits.py'))['get_config']()
  config.model.update(widths=(16, 16, 16), depths=(1, 1, 1), heads=(2, 2, 2))
  net = fractal.from_config(config.model)
  folder = tmp_path_factory.mktemp('docs')
  params = tiny.jit(lambda: sharding.unbox(tiny.init(net)))()
  checkpoint.save_params(str(folder / 'runs' / 'digits'), config, params)
  return folder


def blocks_of(page: pathlib.Path) -> list[str]:
  """Its blocks of Python."""
  return re.findall(r'```python\n(.*?)```', page.read_text(), re.S)


@each_page
def test_python_is_python(page):
  for block in blocks_of(page):
    compile(block, page, 'exec')


@pytest.mark.parametrize(
  'page', ['README.md', 'docs/edit.md', 'docs/sharing.md']
)
def test_python_runs_as_it_stands(page, runs, monkeypatch):
  monkeypatch.chdir(runs)
  blocks = blocks_of(ROOT / page)
  names = {}
  for block in blocks:
    exec(compile(block, page, 'exec'), names)
  # What the comments say of shapes.
  shapes = re.findall(r'^(\w+) = .*# \[([\d, ]+)\]', '\n'.join(blocks), re.M)
  assert shapes
  for name, shape in shapes:
    assert names[name].shape == tuple(map(int, shape.split(','))), name


# Flags.

# Flags of other programs: gcloud's and sbatch's.
OTHERS = {
  'spot', 'reserved', 'network', 'nodes', 'gpus-per-node', 'internal-ips',
  'recursive', 'logdir', 'no-deps', 'target',
}  # fmt: skip


def calls(text: str) -> list[tuple[str, list[str]]]:
  """(program, its arguments) wherever one of ours is called.

  A program is a command, a file of benchmarks/ or a script of launch/. Square
  brackets, which are around what is optional, are taken away.
  """
  found = re.findall(
    r'(?:fractal-jax +(?=[a-z])|`(?=[a-z]+ --)|(?=(?:benchmarks|launch)/))'
    r'([\w/.]+)([^`\n#|]*)',
    text.replace('\\\n', ' '),
  )
  return [
    (name, shlex.split(re.sub(r'[][]|\.\.\.', ' ', rest)))
    for name, rest in found
    if name in PROGRAMS or name in main.COMMANDS
  ]


def flags_alone(text: str) -> list[list[str]]:
  """The arguments in `--flag ...` and `configs/NAME.py --flag ...`."""
  found = re.findall(r'`((?:--|configs/)[^`]*)`', text)
  arguments = [
    shlex.split(x.replace('=...', ''))
    for x in found
    if '--' in x and '*' not in x
  ]
  for given in arguments:
    given[0] = re.sub('^configs/', '--config=configs/', given[0])
  return arguments


def name_of(argument: str) -> str:
  return argument.removeprefix('--').partition('=')[0]


def own_flags(program: str) -> set[str]:
  """The flags of a file of benchmarks/ or launch/, read in its code."""
  code = (ROOT / program).read_text()
  if not program.endswith('.py'):
    code += (ROOT / 'launch' / 'common.sh').read_text()
    return {*re.findall(r'--([\w-]+)', code)}
  return {
    prefix + node.args[0].value.removeprefix('--')
    for node in ast.walk(ast.parse(code))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and re.match('DEFINE_|add_argument$', node.func.attr)
    and isinstance(node.args[0], ast.Constant)
    for prefix in ('', 'no')[: 1 + (node.func.attr == 'DEFINE_bool')]
  }


def mistake(program: str, arguments: list[str]) -> str:
  """What is wrong with the arguments of a program, or nothing.

  They are parsed as they are when it is called: flags are its own, keys those
  of the config that is named, and values of their type.
  """
  given = [
    re.sub(rf'({READERS_OWN})\.py', CONFIG, x)
    for x in arguments
    if x.startswith('--')
  ]
  if '/' in program:
    own = own_flags(program)
    given = [x for x in given if name_of(x) not in own - {'config'}]
    # A script hands on to `train` what is not of its own; of a program of
    # Python there may be a config, which is read as that of `train`.
    for name in map(name_of, given) if program.endswith('.py') else ():
      if 'config' not in own or name.partition('.')[0] != 'config':
        return f'{program} has no flag {name!r}'
    program = 'train'
  named = [name_of(x) for x in given]
  said = [x for x in given if '=' in x and not re.search('=[A-Z]+$', x)]
  unsaid = {'workdir': 'DIR', 'out': 'ref.npz', 'config': CONFIG}
  unsaid |= {'data': 'line.csv'}
  unsaid = {k: v for k, v in unsaid.items() if k not in map(name_of, said)}
  parsed = [f'--undefok={",".join(unsaid)}']
  parsed += [f'--{k}={v}' for k, v in unsaid.items()]
  parsed += said
  try:
    with commandline.flags_of(program, *parsed):
      for name in named:
        if name.startswith('config.'):
          value = flags.FLAGS.config if 'config' in flags.FLAGS else {}
          for key in name.split('.')[1:]:
            value = value[key]
        elif name not in flags.FLAGS:
          return f'{program} has no --{name}'
  except commandline.ERRORS as e:
    return str(e)
  return ''


@each_page
def test_flags_are_flags_of_their_command_and_keys_of_their_config(
  page, monkeypatch
):
  monkeypatch.chdir(ROOT)
  text = page.read_text()
  found = calls(text)
  assert set(re.findall('fractal-jax ([a-z]+)', text)) <= set(main.COMMANDS)
  for program, arguments in found:
    wrong = mistake(program, arguments)
    assert not wrong, f'{program} {shlex.join(arguments)}: {wrong}'
  alone = flags_alone(text)
  seen = {name_of(x) for a in [*alone, *(a for _, a in found)] for x in a}
  every = set(re.findall(r'--([a-z][\w.-]*\w)', text))
  alone += [[f'--{name}'] for name in every - seen]
  programs = [*main.COMMANDS, *PROGRAMS]
  for arguments in alone:
    if not {name_of(x) for x in arguments} <= OTHERS:
      assert any(not mistake(p, arguments) for p in programs), (
        f'{shlex.join(arguments)}: {[mistake(p, arguments) for p in programs]}'
      )


@pytest.mark.parametrize(
  'text, words',
  [
    ('fractal-jax sample --passes=3', "flag 'passes'"),
    ('fractal-jax sample --config=configs/digits.py', "flag 'config'"),
    ('fractal-jax likelihood --passes=many', 'many'),
    ('fractal-jax train [--config.optim.stepz=3]', 'stepz'),
    ('fractal-jax train --config.optim.steps=ten', 'ten'),
    ('fractal-jax train --config=configs/none.py', 'none.py'),
    ('benchmarks/paper.py --rows=all', "flag 'rows'"),
    ('benchmarks/paper.py --guidance=3', "flag 'guidance'"),
    ('benchmarks/paper.py --config.optim.steps=3', "flag 'config.optim.steps'"),
    ('benchmarks/speed.py --config.optim.stepz=3', 'stepz'),
    ('launch/cpu.sh --config.mesh.fdsp=8', 'fdsp'),
  ],
)
def test_mistakes_would_be_found(text, words, monkeypatch):
  monkeypatch.chdir(ROOT)
  (call,) = calls(text)
  assert words in mistake(*call)
  assert not mistake('train', ['--config.optim.steps=10'])


@each_page
def test_links_lead_somewhere(page):
  text = page.read_text()
  links = re.findall(r'\]\(([^)]+)\)', text)
  for link in links + re.findall(r'src="([^"]+)"', text):
    if not link.startswith('http'):
      name, _, anchor = link.partition('#')
      other = page.parent / name if name else page
      assert other.exists(), link
      assert not anchor or anchor in anchors(other.read_text()), link


def anchors(text: str) -> list[str]:
  """The anchors that GitHub gives the headings of a page."""
  text = re.sub(r'```.*?```', '', text, flags=re.S)
  found = []
  for heading in re.findall(r'^#+ +(.*)$', text, re.M):
    heading = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading)
    found.append(re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-'))
  return found


def test_anchors_are_those_of_headings():
  text = (
    "# The `mar` kind: it's [here](there.md)\n```\n# no heading\n```\n## B-c"
  )
  assert anchors(text) == ['the-mar-kind-its-here', 'b-c']
