"""The paper's tables, one command per number.

  python benchmarks/paper.py                    # writes benchmarks/paper.md
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

import argparse
import ast
import dataclasses
import functools
import importlib.util
import pathlib
import shlex
import sys

from absl import flags

from fractal_jax import cpu

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
  sampling: dict = dataclasses.field(default_factory=dict)


def cost_row(config, params=None, gflops=None):
  """A row about a config's size; None: the paper does not say."""
  found = {'parameters': params, 'GFLOPs': gflops}
  found = {
    k: v if isinstance(v, str) else f'{v:,}'
    for k, v in found.items()
    if v is not None
  }
  return Row(f'{config.replace(":", "-")}-cost', 'cost', config, found)


def samples_row(config, iterations, guidance, temperature, *found):
  """The temperature is that of the published flag, T: 1/T is ours."""
  names = ('FID', 'IS', 'Prec.', 'Rec.')
  return Row(
    f'{config}-samples',
    'samples',
    config,
    dict(zip(names, found)),
    sampling={
      'iterations': iterations,
      'guidance': guidance,
      'temperature': repr(1 / float(temperature)),
    },
  )


def likelihood_row(config, kind, bits):
  """A row about bits per dimension, of published weights or of a training."""
  name = f'{config.replace(":", "-")}-likelihood'
  return Row(name, kind, config, {'bits/dim': bits})


def order_row(name, fid, *changes):
  """A row about an order of the channels, of a training of 400 epochs."""
  changes = ('--config.optim.epochs=400', *changes)
  found = {'FID': fid, 'bits/dim': 'about 3.17'}
  return Row(f'order-{name}', 'trained', 'fractalmar_in64', found, changes)


TABLES = {
  'Parameters and forward GFLOPs per image (2 per multiply-add)': (
    cost_row('fractalar_in64', 442_068_224, 438),
    cost_row('fractalmar_in64', 431_995_648, 438),
    cost_row('fractalmar_base_in256', 186_300_224),
    cost_row(
      'fractalmar_large_in256', 437_000_064, '864 (215 + 208 + 419 + 22)'
    ),
    cost_row('fractalmar_huge_in256', 849_586_240),
    cost_row('two_level_in64:ar', gflops=5516),
    cost_row('two_level_in64:mar', gflops=5516),
    cost_row('one_level_in64:ar', gflops=29845),
    cost_row('one_level_in64:mar', gflops=29845),
  ),
  'Class-conditional generation, 50,000 images': (
    samples_row('fractalar_in64', '256,16', '11.0', '1.03', '5.30', '56.8'),
    samples_row('fractalmar_in64', '64,16', '6.5', '1.02', '2.72', '87.9'),
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
  ),
  'Unconditional likelihood on ImageNet 64x64': (
    likelihood_row('fractalar_in64', 'likelihood', '3.14'),
    likelihood_row('fractalmar_in64', 'likelihood', '3.15'),
    likelihood_row('two_level_in64:ar', 'trained', '3.34'),
    likelihood_row('two_level_in64:mar', 'trained', '3.36'),
  ),
  'FID by the order of the channels, 400 epochs': (
    order_row('rgb', '3.15'),
    order_row('grb', '3.14', '--config.model.channel_order=(1,0,2)'),
    order_row('brg', '3.32', '--config.model.channel_order=(2,0,1)'),
    order_row(
      'ycbcr', '3.55',
      '--config.model.colour=ycbcr',
      '--config.model.mean=(0.459,0.470,0.519)',
    ),
  ),
}  # fmt: skip
ROWS = tuple(row for rows in TABLES.values() for row in rows)


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the bytes are that the commands need."""

  data: str
  weights: str
  runs: str
  num: int = 50_000  # images to evaluate
  sampling: dict = dataclasses.field(default_factory=dict)  # over the row's
  evaluation: tuple[str, ...] = ()  # flags of `evaluate`
  config: tuple[str, ...] = ()  # flags of the config


def commands(row: Row, places: Places) -> list[list[str]]:
  """The arguments of fractal-jax, one list per command."""
  name = row.config.partition(':')[0]
  run = f'{places.runs}/{row.config.replace(":", "-")}'
  if row.changes:
    run = f'{places.runs}/{row.name}'
  config = [
    f'--config={config_path(row)}',
    f'--config.data.dir={places.data}',
    *row.changes,
    *places.config,
  ]
  workdir = f'--workdir={run}'
  pth = f'--pth={places.weights}/{name}/checkpoint-last.pth'
  convert = ['convert', *config, pth, workdir]
  sampling = dict(row.sampling) | places.sampling
  evaluate = ['evaluate', workdir, f'--num={places.num}']
  evaluate += [f'--{k}={v}' for k, v in sampling.items()]
  evaluate += [*places.evaluation, f'--out={run}/metrics.json']
  likelihood = ['likelihood', workdir]
  trained = [['train', *config, workdir], likelihood]
  return {
    'cost': [['cost', f'--config={config_path(row)}', *places.config]],
    'samples': [convert, evaluate],
    'likelihood': [convert, likelihood],
    'trained': trained + ([evaluate] if 'FID' in row.expected else []),
  }[row.kind]


def config_path(row: Row) -> str:
  """What --config is given."""
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
  levels = len(load_config(row).model.sizes)
  config = tiny_flags(row)
  if not data.exists():
    write_digits(data)
  if not net.exists():
    import numpy as np

    from fractal_jax.metrics import weights

    np.savez(net, **weights.random_state())
  pth = runs / 'weights' / row.config / 'checkpoint-last.pth'
  if row.kind in ('samples', 'likelihood') and not pth.exists():
    write_weights(pth, load_config(row, config))
  return dataclasses.replace(
    places,
    data=str(data),
    weights=str(runs / 'weights'),
    num=10,
    config=config,
    sampling={'iterations': ','.join(['2'] * (levels - 1))},
    evaluation=(f'--inception={net}',),
  )


def tiny_flags(row: Row) -> tuple[str, ...]:
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
  out += ['--config.data.name=npz', '--config.eval.batch=10']
  out += ['--config.eval.every=0']
  return tuple(out + ['--config.sample.batch=10', '--config.sample.every=0'])


def write_digits(path) -> None:
  """One digit per class in each split, as RGB of 8x8; a few for training."""
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
    call(arguments)
  print(f'published: {listed(row.expected)}', flush=True)


def call(arguments: list[str]) -> None:
  """Runs a command of fractal-jax in this process; ends it if that fails."""
  from fractal_jax import main

  before = set(flags.FLAGS)
  sys.argv = ['fractal-jax', *arguments]
  try:
    main.run()
  except SystemExit as e:
    if e.code:
      raise
  finally:
    # Those of libraries that were imported meanwhile stay.
    for name in set(flags.FLAGS) - before:
      module = flags.FLAGS.find_module_defining_flag(name) or ''
      if module.startswith('fractal_jax') or name.startswith('config'):
        delattr(flags.FLAGS, name)


def shown(arguments) -> str:
  """A command as one would type it."""
  return shlex.join(['fractal-jax', *arguments])


def listed(values: dict) -> str:
  """Values with their names, for a cell of a table."""
  return ', '.join(f'{k} {v}' for k, v in values.items()) or '-'


# The page.


@functools.cache
def cost_of(config: str):
  """(a cost.Cost, the config), of a config's name."""
  from fractal_jax.planning import cost

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
  from fractal_jax.planning import cost

  if row.kind == 'cost':
    return 'any CPU, seconds'
  found, config = cost_of(row.config)
  if row.kind == 'trained':
    epochs = 400 if row.changes else config.optim.epochs
    images = epochs * 1_281_167
    flops = images * found.total('training') / TRAINING
  elif row.kind == 'samples':
    iterations = map(int, row.sampling['iterations'].split(','))
    flops = cost.sample_flops_per_image(config, True, iterations)
    flops *= 50_000 / SAMPLING
  else:
    flops = 50_000 * found.total('scoring') / TRAINING
  hours = flops / PEAK / 3600
  if hours < 1:
    return f'one H100, {60 * hours:.0f} min'
  return f'{hours:,.0f} hours of an H100'


PLACES = Places('/tfds', 'pretrained_models', 'runs/paper')


INTRODUCTION = f"""\
# The paper, one command per number

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

Training is that of the published code: from its weights and on its batches, \
45 steps with warm-up, clipping and AdamW give
its losses to 1e-5 (`pytest tests/golden_test.py -k training_is`).

What is needed: ImageNet, prepared in `/tfds` (see the README); the published \
weights as
`pretrained_models/MODEL/checkpoint-last.pth`; and for FID and the rest the \
Inception weights, in `FRACTAL_JAX_INCEPTION`,
and a reference, `--ref` ([docs/metrics.md](../docs/metrics.md)). Without \
`--ref` one is made of the training split.

The published flag `--temperature` multiplies the logits, ours divides them: \
its T is our 1/T.

Of the two-level models and of those with other orders no weights are \
published: these rows train. The paper does not say
where the loss weight of 5 goes in another order: here it stays on red, or on \
Y."""


def page() -> str:
  """All of paper.md."""
  lines = [INTRODUCTION]
  for title, rows in TABLES.items():
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
      lines += [f'# {r.name}'] if r.kind != 'cost' else []
      lines += [shown(c) for c in commands(r, PLACES)]
    lines += ['```']
  return '\n'.join(lines) + '\n'


def main():
  """Writes the page, or runs rows."""
  parser = argparse.ArgumentParser(
    description="The paper's tables, one command per number."
  )
  parser.add_argument(
    '--row',
    help='rows to run, with commas between, or all; none: write the page',
  )
  parser.add_argument('--data', default=PLACES.data, help='prepared ImageNet')
  parser.add_argument(
    '--weights', default=PLACES.weights, help='MODEL/checkpoint-last.pth'
  )
  parser.add_argument('--inception', help='as of `fractal-jax evaluate`')
  parser.add_argument('--ref', help='as of `fractal-jax evaluate`')
  parser.add_argument('--runs', default=PLACES.runs, help='where the runs go')
  parser.add_argument(
    '--tiny', action='store_true', help='tiny models on digits'
  )
  given = parser.parse_args()
  rows = {r.name: r for r in ROWS}
  if given.row is None:
    PAGE.write_text(page())
    print(PAGE)
    return
  names = list(rows) if given.row == 'all' else given.row.split(',')
  for name in names:
    if name not in rows:
      sys.exit(f'--row={name}: there are\n  ' + '\n  '.join(rows))
  evaluation = [f'--inception={given.inception}'] if given.inception else []
  evaluation += [f'--ref={given.ref}'] if given.ref else []
  places = Places(
    given.data, given.weights, given.runs, evaluation=tuple(evaluation)
  )
  for name in names:
    row = rows[name]
    run(row, tiny_places(row, places) if given.tiny else places)


if __name__ == '__main__':
  cpu.use_huge_pages()  # or the first command starts all of this again
  main()
