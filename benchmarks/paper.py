"""The paper's tables, one command a number.

  python benchmarks/paper.py                    # writes benchmarks/paper.md
  python benchmarks/paper.py --list
  python benchmarks/paper.py --row=fractalmar_in64-samples --data=/tfds \
      --weights=pretrained_models --inception=weights-inception-....pth \
      --ref=VIRTUAL_imagenet64_labeled.npz
  python benchmarks/paper.py --row=fractalmar_in64-samples --tiny

ROWS is the one table of what the paper reports: paper.md is made from it, and
so are the commands that --row runs. --tiny runs the same commands with the same
config, shrunk by flags, on a few digits with random weights: what its numbers
are means nothing, that they come out means that the path is whole. A row that
was interrupted goes on where it was.
"""

import ast
import dataclasses
import functools
import importlib.util
import os
import pathlib
import shlex
import subprocess
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('row', None, 'The row to run; none: write paper.md.')
flags.DEFINE_bool('list', False, 'Print the names of the rows.')
flags.DEFINE_string('data', '/tfds', 'Prepared ImageNet: config.data.dir.')
flags.DEFINE_string(
  'weights', 'pretrained_models', 'Has MODEL/checkpoint-last.pth, as published.'
)
flags.DEFINE_string('inception', None, 'As of `fractal-jax evaluate`.')
flags.DEFINE_string('ref', None, 'As of `fractal-jax evaluate`.')
flags.DEFINE_string('runs', 'runs/paper', 'Where the runs go.')
flags.DEFINE_bool('tiny', False, 'The same path with tiny models on digits.')

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / 'benchmarks' / 'paper.md'


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of one of the paper's tables.

  Attributes:
    name: of the row.
    kind: which commands it takes, see `commands`.
    config: file of configs/, and its argument.
    expected: what the paper reports, by what it is.
    changes: flags of the config.
    sampling: flags of `evaluate`.
  """

  name: str
  kind: str
  config: str
  expected: dict
  changes: tuple[str, ...] = ()
  sampling: tuple[str, ...] = ()


def cost_row(config, params=None, gflops=None):
  found = {'parameters': params, 'GFLOPs': gflops}
  found = {
    k: v if isinstance(v, str) else f'{v:,}'
    for k, v in found.items()
    if v is not None
  }
  return Row(f'{config.replace(":", "-")}-cost', 'cost', config, found)


def samples_row(config, iterations, guidance, temperature, *found):
  names = ('FID', 'IS', 'Prec.', 'Rec.')
  return Row(
    f'{config}-samples',
    'samples',
    config,
    dict(zip(names, found)),
    sampling=(
      f'--iterations={iterations}',
      f'--guidance={guidance}',
      f'--temperature={temperature}',
    ),
  )


MAR = 'fractalmar_in64'
TITLES = {
  'cost': 'Parameters and forward GFLOPs an image (2 per multiply-add)',
  'samples': 'Class-conditional generation, 50,000 images',
  'likelihood': 'Unconditional likelihood on ImageNet 64x64, bits/dim',
  'trained': 'The same of two levels, of which no weights are published',
}
ROWS = (
  cost_row('fractalar_in64', 442_068_224, 438),
  cost_row('fractalmar_in64', 431_995_648, 438),
  cost_row('fractalmar_base_in256', 186_300_224),
  cost_row('fractalmar_large_in256', 437_000_064, '864 (215 + 208 + 419 + 22)'),
  cost_row('fractalmar_huge_in256', 849_586_240),
  cost_row('two_level_in64:ar', gflops=5516),
  cost_row('two_level_in64:mar', gflops=5516),
  cost_row('one_level_in64:ar', gflops=29845),
  cost_row('one_level_in64:mar', gflops=29845),
  samples_row('fractalar_in64', '256,16', '11.0', '1.03', '5.30', '56.8'),
  samples_row(MAR, '64,16', '6.5', '1.02', '2.72', '87.9'),
  samples_row(
    'fractalmar_base_in256', '64,16,16', '29.0', '1.1',
    '11.80', '274.3', '0.78', '0.29',
  ),
  samples_row(
    'fractalmar_large_in256', '64,16,16', '21.0', '1.1',
    '7.30', '334.9', '0.79', '0.44',
  ),
  samples_row(
    'fractalmar_huge_in256', '64,16,16', '19.0', '1.1',
    '6.15', '348.9', '0.81', '0.46',
  ),
  Row(
    'fractalar_in64-likelihood', 'likelihood', 'fractalar_in64',
    {'bits/dim': '3.14'},
  ),
  Row(f'{MAR}-likelihood', 'likelihood', MAR, {'bits/dim': '3.15'}),
  Row(
    'two_level_in64-ar-likelihood', 'trained', 'two_level_in64:ar',
    {'bits/dim': '3.34'},
  ),
  Row(
    'two_level_in64-mar-likelihood', 'trained', 'two_level_in64:mar',
    {'bits/dim': '3.36'},
  ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the bytes are that the commands need."""

  data: str
  weights: str
  runs: str
  num: int = 50_000  # images to evaluate
  evaluation: tuple[str, ...] = ()  # flags of `evaluate`
  config: tuple[str, ...] = ()  # flags of the config


def commands(row: Row, places: Places) -> list[list[str]]:
  """The arguments of fractal-jax, one list a command."""
  name = row.config.partition(':')[0]
  run = f'{places.runs}/{row.config.replace(":", "-")}'
  config = [
    f'--config={config_path(row)}',
    f'--config.data.dir={places.data}',
    *row.changes,
    *places.config,
  ]
  workdir = f'--workdir={run}'
  pth = f'--pth={places.weights}/{name}/checkpoint-last.pth'
  convert = ['convert', *config, pth, workdir]
  evaluate = ['evaluate', workdir, f'--num={places.num}', *row.sampling]
  evaluate += [*places.evaluation, f'--out={run}/metrics.json']
  likelihood = ['likelihood', workdir]
  return {
    'cost': [['cost', f'--config={config_path(row)}', *places.config]],
    'samples': [convert, evaluate],
    'likelihood': [convert, likelihood],
    'trained': [['train', *config, workdir], likelihood],
  }[row.kind]


def config_path(row: Row) -> str:
  name, _, argument = row.config.partition(':')
  return f'configs/{name}.py' + (f':{argument}' if argument else '')


def load_config(row: Row, changes=()):
  """The row's config, with flags `--config.section.key=value` applied."""
  name, _, argument = row.config.partition(':')
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(argument or None)
  for change in changes:
    key, _, value = change.removeprefix('--config.').partition('=')
    section, key = key.split('.')
    typed = config[section].get_type(key) is str
    with config.unlocked(), config.ignore_type():
      config[section][key] = value if typed else ast.literal_eval(value)
  return config


# A row's own tiny version.


def tiny_places(row: Row, places: Places) -> Places:
  """Makes what the row's commands need, but tiny, under places.runs."""
  runs = pathlib.Path(places.runs)
  runs.mkdir(parents=True, exist_ok=True)
  data, net = runs / 'digits.npz', runs / 'inception.npz'
  config = tiny_flags(row, data)
  if not data.exists():
    write_digits(data)
  if row.kind == 'samples' and not net.exists():
    import numpy as np

    from fractal_jax.metrics import weights

    np.savez(net, **weights.random_state())
  pth = runs / row.config / 'checkpoint-last.pth'
  if row.kind in ('samples', 'likelihood') and not pth.exists():
    write_weights(pth, load_config(row, config))
  return dataclasses.replace(
    places,
    data=str(data),
    weights=str(runs),
    num=10,
    config=config,
    evaluation=(f'--inception={net}', *tiny_iterations(row)),
  )


def tiny_flags(row: Row, data) -> tuple[str, ...]:
  """Flags that shrink a config, and have it read digits."""
  config = load_config(row)
  levels = len(config.model.sizes)
  each = lambda x: f'({",".join([str(x)] * levels)})'
  sizes = {2: '(4,1)', 3: '(4,2,1)', 4: '(8,4,2,1)'}.get(levels, '(4,)')
  model = {
    'sizes': sizes, 'widths': each(16), 'depths': each(1), 'heads': each(2),
    'classes': 10, 'dtype': 'float32', 'remat': 'none',
  }  # fmt: skip
  if levels == 1:
    model.pop('sizes')  # it is one level of many tokens; cost computes nothing
  optim = {'batch': 8, 'steps': 2}
  out = [f'--config.model.{k}={v}' for k, v in model.items()]
  out += [f'--config.optim.{k}={v}' for k, v in optim.items()]
  out += ['--config.data.name=npz', f'--config.data.dir={data}']
  out += ['--config.eval.batch=10', '--config.eval.every=0']
  return tuple(out + ['--config.sample.batch=10', '--config.sample.every=0'])


def tiny_iterations(row: Row) -> tuple[str, ...]:
  """As many levels as the row's, two steps each."""
  levels = len(load_config(row).model.sizes) - 1
  return (f'--iterations={",".join(["2"] * levels)}',)


def write_digits(path) -> None:
  """One digit a class in each split, as RGB of 8x8; a few for training."""
  import numpy as np
  from sklearn import datasets

  found = datasets.load_digits()
  images = np.repeat(found.images[:20, ..., None] * 255 // 16, 3, -1)
  np.savez(
    path,
    images=images.astype(np.uint8),
    labels=found.target[:20],
    split=np.repeat(['train', 'validation'], 10),
  )


def write_weights(path, config) -> None:
  """Random weights in the layout of the published ones."""
  import flax.linen as nn
  import jax

  from fractal_jax import convert
  from fractal_jax.models import fractal

  net = fractal.from_config(config.model)
  params = nn.meta.unbox(
    jax.jit(lambda k: fractal.init(net, k))(jax.random.key(0))
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  convert.write_pth(str(path), convert.to_published(params, config.model))


# Running.


def run(row: Row, places: Places) -> None:
  """Runs a row's commands, but a conversion that was done before."""
  for arguments in commands(row, places):
    workdir = [a for a in arguments if a.startswith('--workdir=')]
    done = pathlib.Path(workdir[0].partition('=')[2] if workdir else '-')
    if arguments[0] == 'convert' and (done / 'checkpoints').exists():
      print(f'{done} has its weights already', flush=True)
      continue
    print(f'$ {shown(arguments)}', flush=True)
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-m', 'fractal_jax.main', *arguments]
    code = subprocess.run(command, cwd=ROOT, env=env).returncode
    if code:
      sys.exit(code)
  print(f'published: {listed(row.expected)}')


def shown(arguments) -> str:
  return shlex.join(['fractal-jax', *arguments])


def listed(values: dict) -> str:
  return ', '.join(f'{k} {v}' for k, v in values.items()) or '-'


# The page.


@functools.cache
def cost_of(config: str):
  from fractal_jax import cost

  row = Row('', 'cost', config, {})
  return cost.cost(load_config(row)), load_config(row)


def ours(row: Row) -> str:
  """What was computed here: for costs, now; nothing else has been run."""
  if row.kind != 'cost':
    return ''
  found, _ = cost_of(row.config)
  levels = ' + '.join(f'{x.paper / 1e9:,.1f}' for x in found.levels)
  values = {
    'parameters': f'{found.params:,}',
    'GFLOPs': f'{found.total("paper") / 1e9:,.1f} ({levels})',
  }
  return listed(values)


# Shares of the peak that are assumed where a time is estimated.
PEAK, TRAINING, SAMPLING = 989e12, 0.4, 0.1


def estimate(row: Row) -> str:
  """Hardware and hours, from FLOPs alone."""
  from fractal_jax import cost

  if row.kind == 'cost':
    return 'any CPU, seconds'
  found, config = cost_of(row.config)
  if row.kind == 'trained':
    images = config.optim.epochs * 1_281_167
    flops = images * found.total('training') / TRAINING
  elif row.kind == 'samples':
    iterations = row.sampling[0].partition('=')[2].split(',')
    flops = cost.sample_flops_per_image(config, True, map(int, iterations))
    flops *= 50_000 / SAMPLING
  else:
    flops = 50_000 * found.total('scoring') / TRAINING
  hours = flops / PEAK / 3600
  return (
    f'{hours:,.1f} H100 hours' if hours < 100 else f'{hours:,.0f} H100 hours'
  )


PLACES = Places('/tfds', 'pretrained_models', 'runs/paper')


INTRODUCTION = f"""\
# The paper, a command a number

Made by `python benchmarks/paper.py` from the table in that file; do not edit. \
`python benchmarks/paper.py --row=NAME`
runs a row, and `--data`, `--weights`, `--inception`, `--ref` say where the \
bytes are. With `--tiny` it runs the same commands
on a few digits with random weights, as the tests do.

**ours** holds what was run here, and is empty otherwise: this package has not \
seen ImageNet, the published weights or an
accelerator yet. The times are estimates from FLOPs alone: an H100 at 989 \
TFLOP/s, of which {TRAINING:.0%} in training and
scoring and {SAMPLING:.0%} in generation are assumed. Generation by ar levels \
waits for memory, and will take longer.

What is needed: ImageNet, prepared in `/tfds` (see the README); the published \
weights as
`pretrained_models/MODEL/checkpoint-last.pth`; and for FID and the rest the \
Inception weights, in `FRACTAL_JAX_INCEPTION`,
and a reference, `--ref` ([docs/metrics.md](../docs/metrics.md)). Without \
`--ref` one is made of the training split."""


def page() -> str:
  """All of paper.md."""
  lines = [INTRODUCTION]
  for kind, title in TITLES.items():
    rows = [r for r in ROWS if r.kind == kind]
    lines += ['', f'## {title}', '']
    lines += [
      '| row | published | ours | hardware and time |',
      '|---|---|---|---|',
    ]
    lines += [
      f'| {r.name} | {listed(r.expected)} | {ours(r)} | {estimate(r)} |'
      for r in rows
    ]
    lines += ['', '```']
    for r in rows:
      lines += [f'# {r.name}'] if kind != 'cost' else []
      lines += [shown(c) for c in commands(r, PLACES)]
    lines += ['```']
  return '\n'.join(lines) + '\n'


def main(argv):
  del argv
  if FLAGS.list:
    print('\n'.join(r.name for r in ROWS))
    return
  if FLAGS.row is None:
    PAGE.write_text(page())
    print(PAGE)
    return
  rows = {r.name: r for r in ROWS}
  if FLAGS.row not in rows:
    sys.exit(f'--row={FLAGS.row}: there are\n  ' + '\n  '.join(rows))
  evaluation = [
    f'--{name}={FLAGS[name].value}'
    for name in ('inception', 'ref')
    if FLAGS[name].value
  ]
  places = Places(
    FLAGS.data,
    FLAGS.weights,
    str(pathlib.Path(FLAGS.runs).absolute()),
    evaluation=tuple(evaluation),
  )
  row = rows[FLAGS.row]
  run(row, tiny_places(row, places) if FLAGS.tiny else places)


if __name__ == '__main__':
  app.run(main)
