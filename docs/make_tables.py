"""Makes the tables of docs/mesh.md anew: what is counted, and as compiled.

  python docs/make_tables.py [published] [compiled] [scale]

Each is a table, or all of them; minutes on a CPU. In the page, a table follows
the line `<!-- made by docs/make_tables.py: NAME -->`, up to an empty line.
`scale` counts again beside what libtpu said, which stays as it is. `published`
takes the MFU of a model on a chip from docs/performance.md: on a TPU what is
predicted there, on a GPU what the bytes of a step allow; where it has none, 40%
are assumed.
"""

import os
import pathlib
import re
import runpy
import subprocess
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'

from fractal_jax import sharding
from fractal_jax.planning import memory

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / 'docs' / 'mesh.md'
PREDICTIONS = ROOT / 'docs' / 'performance.md'
PREDICTION = re.compile(
  r'\| (?P<config>fractal\w+) \| \d+ \| `(?P<chip>v\w+):.*?\| (?P<mfu>[\d.]+)%'
)  # a row of its table of training steps
BYTES = re.compile(
  r'\| (?P<config>fractal\w+) \|.* \| (?P<mfu>\d+)% \|$'
)  # a row of its table of what GPUs move
GIB = memory.GIB
MFU, IMAGES = 0.4, 1_281_167

# Config, the mesh axis of its devices.
PUBLISHED = [
  ('fractalmar_huge_in256', 'fsdp'),
  ('fractalmar_large_in256', 'fsdp'),
  ('fractalmar_base_in256', 'data'),
  ('fractalmar_in64', 'fsdp'),
  ('fractalar_in64', 'fsdp'),
]
# How many, and of which kinds, whose memory is counted alike.
DEVICES = [(64, ('v5e', 'v6e')), (32, ('v5p',)), (8, ('H100',))]


def config_of(name: str, **axes):
  config = runpy.run_path(ROOT / 'configs' / f'{name}.py')['get_config']()
  with config.unlocked():
    config.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1} | axes)
  return config


def cells(*texts) -> str:
  return f'| {" | ".join(texts)} |'


def predicted() -> dict[tuple[str, str], float]:
  """The MFU of a training step by (config, chip); of GPUs, at most."""
  found = {}
  for line in PREDICTIONS.read_text().splitlines():
    if row := PREDICTION.match(line) or BYTES.match(line):
      chip = row.groupdict().get('chip', 'H100')
      found[row['config'], chip] = float(row['mfu']) / 100
  return found


def published_row(config, found, axis: str, device: str, mfu) -> list[str]:
  """What `fractal-jax cost` says, but for the config's name.

  mfu: None assumes one.
  """
  devices = config.mesh[axis]
  rows = memory.choices(config, found, device)
  kept = {remat: m.activations for remat, _, m in rows[::-1]}
  _, chunks, least = rows[-1]
  time = memory.hours(config, devices, device, mfu or MFU, IMAGES)
  gib = lambda x: f'{x / GIB:,.2f}'
  return [
    *(f'{axis}={devices}', device),
    *map(gib, (least.params, least.optimizer, least.gradients)),
    *(gib(kept[remat]) for remat in ('none', 'dots', 'full')),
    ','.join(map(str, chunks)) or '-',
    f'{gib(least.total)} of {memory.DEVICES[device][1]}',
    shown(mfu, device),
    f'{time.epoch:,.0f}',
    f'{time.epoch * devices / 3600:,.3g}',
  ]


def shown(mfu: float | None, device: str) -> str:
  if mfu is None:
    return f'assumed: {MFU:.0%}'
  return f'{mfu:.1%}' if device.startswith('v') else f'at most {mfu:.0%}'


def published(old: list[str]) -> list[str]:
  rows, mfus = [], predicted()
  for name, axis in PUBLISHED:
    for devices, kinds in DEVICES:
      config = config_of(name, **{axis: devices})
      mesh = sharding.abstract_mesh(config, devices)
      found = memory.by_remat(config, mesh, kinds[0])
      rows += [
        cells(
          name,
          *published_row(config, found, axis, kind, mfus.get((name, kind))),
        )
        for kind in kinds
      ]
      print(rows[-1], flush=True)
  return old[:2] + rows


def example(old: list[str]) -> list[str]:
  """The command's output, between two lines of a code block."""
  config = config_of('fractalmar_huge_in256', fsdp=64)
  text = memory.table(config, 64, 'v6e', MFU, IMAGES)
  return [*old[:2], *text.splitlines(), old[-1]]


def compiled(old: list[str]) -> list[str]:
  """As benchmarks/memory.py prints it."""
  out = subprocess.run(
    [sys.executable, 'benchmarks/memory.py'],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  rows = [line for line in out.splitlines() if line.startswith('| mini')]
  return old[:2] + rows


def scale(old: list[str]) -> list[str]:
  """Columns `counted` and `off by` of the rows that are there."""
  return old[:2] + [
    scale_row(*line.strip('| ').split(' | ')) for line in old[2:]
  ]


def scale_row(name, chunks, where, dtype, *sizes) -> str:
  *sizes, total, _, _, seconds = sizes
  config = config_of(name, fsdp=64)
  config.model.dtype = dtype
  config.model.chunks = tuple(map(int, re.findall(r'\d+', chunks)))
  mesh = sharding.abstract_mesh(config, 64)
  found = memory.memory(config, mesh, tpu='v5e' in where).total / GIB
  off = f'{found / float(total) - 1:+.1%}'
  known = (name, chunks, where, dtype, *sizes, total)
  return cells(*known, f'{found:.3f}', off, seconds)


TABLES = dict(
  example=example, published=published, compiled=compiled, scale=scale
)


def main(names: list[str]) -> None:
  for name in names or TABLES:
    text = PAGE.read_text()
    head = f'<!-- made by docs/make_tables.py: {name} -->\n'
    before, rest = text.split(head)
    old, gap, after = rest.partition('\n\n')
    new = '\n'.join(TABLES[name](old.splitlines()))
    PAGE.write_text(before + head + new + gap + after)
    print(f'docs/mesh.md: {name}', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
