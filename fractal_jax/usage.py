"""What `fractal-jax`, and `--help` after a command, print."""

from collections.abc import Iterable, Mapping
import re
import shutil
import textwrap

from absl import flags

import fractal_jax
from fractal_jax import config_files

FLAGS = flags.FLAGS

# Flags that several commands have, under a heading of their own where the first
# of them is there; all others come first.
GROUPS = {
  'The run': ('workdir', 'step'),
  'The image': ('image', 'index', 'split', 'label'),
  'How images are drawn': (
    'guidance', 'temperature', 'schedule', 'filter_threshold', 'iterations',
    'seed',
  ),
  'What the metrics compare': ('inception', 'ref', 'cache', 'unconditional'),
  'Several processes': (
    'distributed', 'coordinator', 'processes', 'process', 'heartbeat',
  ),
}  # fmt: skip
VALUES = {
  'int': 'NUMBER',
  'float': 'NUMBER',
  'string': 'TEXT',
  'comma separated list of strings': 'A,B,...',
  'config object': 'NAME',
}


def overview(commands: Mapping[str, str]) -> str:
  """What to do first, the commands, and the configs.

  Args:
    commands: what each does, by name.
  """
  lines = [
    f'fractal_jax {fractal_jax.__version__}: Fractal Generative Models in JAX',
    '',
    'Train on a folder of your own images, then look at what came out:',
    '',
    '  fractal-jax train --data=photos --workdir=runs/photos',
    '  fractal-jax sample --workdir=runs/photos --out=samples.png',
    '  fractal-jax demo --workdir=runs/photos',
    '',
    'Or on handwritten digits, which need no download:',
    '',
    '  fractal-jax train --config=digits --workdir=runs/digits',
    '',
    'Commands (fractal-jax COMMAND --help: its flags, and an example):',
    '',
    *(f'  {name:12}{text}' for name, text in commands.items()),
    '',
    'fractal-jax train --config=NAME --show prints one of these configs:',
    '',
    *_wrapped(', '.join(config_files.names()), 2),
  ]
  return '\n'.join(lines)


def of_command(command: str, doc: str, names: Iterable[str]) -> str:
  """What a command does, and its flags by group with their defaults.

  Args:
    command: its name.
    doc: the docstring of its module: what it does, and an example.
    names: of its flags, which are defined, in the order to list them.
  """
  names = list(names)
  groups = {
    title: group for title, group in GROUPS.items() if group[0] in names
  }
  grouped = {name for group in groups.values() for name in group}
  first, _, examples = doc.strip().partition('\n')
  lines = [f'fractal-jax {command}: {first.partition(": ")[2]}']
  lines += [textwrap.indent(textwrap.dedent(examples), '  '), '']
  first = {'Flags': [name for name in names if name not in grouped]}
  for title, group in (first | groups).items():
    some = [name for name in group if name in names]
    if some:
      lines += [f'{title}:', *(x for name in some for x in _flag(name)), '']
  if 'config' in names:
    lines += [
      '--config.SECTION.KEY=VALUE changes a key of the config; --show lists',
      'them, where the command has it.',
      '',
    ]
  return '\n'.join(lines[:-1])


def _flag(name: str) -> list[str]:
  """A flag's lines: how it is written, whether it must be, what it does."""
  flag = FLAGS[name]
  kind = VALUES.get(flag.flag_type(), 'VALUE')
  if flag.boolean:
    how = f'--[no]{name}'
  elif choices := getattr(flag.parser, 'enum_values', None):
    how = f'--{name}={"|".join(choices)}'
  else:
    how = f'--{name}={kind}'
  note = ''
  if any('other than None' in v.message for v in flag.validators):
    note = '  (required)'
  elif flag.default not in (None, '', []):
    note = f'  (default: {flag.default_as_str.strip(chr(39))})'
  # absl writes an enum's values before its help, and how to repeat it behind.
  text = re.sub(r'^<[^>]*>: |;\s+repeat this option.*', '', flag.help)
  return [f'  {how}{note}', *_wrapped(text, 6)]


def _wrapped(text: str, indent: int) -> list[str]:
  width = min(shutil.get_terminal_size().columns, 80)
  space = ' ' * indent
  return textwrap.wrap(
    text,
    max(width, 40),
    initial_indent=space,
    subsequent_indent=space,
    break_long_words=False,
  )
