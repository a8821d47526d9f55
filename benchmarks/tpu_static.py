"""Where a step's time goes on TPUs that are not there: a static estimate.

  python benchmarks/tpu_static.py configs/fractalmar_in64.py v5e:2x2 --images=32
  python benchmarks/tpu_static.py configs/fractalmar_in64.py v5e:2x2 --sample=64

It needs libtpu (pip install libtpu==0.0.42.1) and no TPU: the training step, or
the program that generates a batch, is compiled for the topology as a run would
compile it, and the cycles of its operations are summed, loops counted:

- XLA's operations by its own `estimated_cycles`: right for products, up to four
  times too many for what only moves memory. So each total is given twice, the
  second time with what is no product at the bandwidth of HBM.
- Kernels by the bundles of their final schedule, inner loops counted, times
  their grid steps. Waiting for HBM and fetching instructions are not counted.

Nothing here ran on a TPU; docs/performance.md says how far estimates were off.
"""

import argparse
import collections
import glob
import os
import re
import runpy
import sys
import tempfile
import time

DUMP = tempfile.mkdtemp(prefix='tpu_static_')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TPU_SKIP_MDS_QUERY'] = '1'
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ['LIBTPU_INIT_ARGS'] = (
  f'--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true '
  '--xla_jf_dump_llo_pass_label_regex=final '
  + os.environ.get('LIBTPU_INIT_ARGS', '')
)

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from fractal_jax import sharding  # noqa: E402
from fractal_jax.inference import programs, sample  # noqa: E402
from fractal_jax.models import fractal, masking  # noqa: E402
from fractal_jax.planning import cost, memory  # noqa: E402
from fractal_jax.training import optimizer, train, train_state  # noqa: E402

# A chip's clock, bytes of HBM a second, FLOPs a second in bfloat16.
CHIPS = {
  'v4': (1.05e9, 1228e9, 275e12),
  'v5e': (1.5e9, 819e9, 197e12),
  'v5p': (1.75e9, 2765e9, 459e12),
  'v6e': (1.75e9, 1640e9, 918e12),
}

# The compiled program, as text.

TYPE = re.compile(r'\b(pred|[suf]\d+|bf16)\[([\d,]*)\](?:\{([^}]*)\})?')
NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')


def computations(text: str) -> dict[str, list[str]]:
  """The operations of each computation, by name; the entry's is ''."""
  found, lines = {}, None
  for line in text.splitlines():
    start = re.match(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$', line)
    if start:
      lines = found['' if start.group(1) else start.group(2)] = []
    elif line.startswith('}'):
      lines = None
    elif lines is not None:
      lines.append(line)
  return found


def hbm_bytes(text: str) -> int:
  """Bytes in HBM of the types in a text, as tiles pad them."""
  total = 0
  for dtype, dims, layout in TYPE.findall(text):
    if re.search(r'S\([1-9]\)', layout):  # another memory
      continue
    size = 1 if dtype == 'pred' else int(re.sub(r'\D', '', dtype)) // 8
    dims = [int(x) for x in dims.split(',') if x]
    order = [int(x) for x in layout.split(':')[0].split(',') if x.isdigit()]
    if len(order) == len(dims):
      dims = [dims[i] for i in order]  # the minor one first
    tile = re.search(r'T\(([\d,]+)\)', layout)
    for i, k in enumerate(tile.group(1).split(',')[::-1] if tile else ()):
      if i < len(dims):
        dims[i] = -(-dims[i] // int(k)) * int(k)
    total += size * int(np.prod(dims, dtype=np.int64))
  return total


def trips(line: str, comps) -> int:
  """How often a while loop runs."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
  if known:
    return int(known.group(1))
  lines = list(comps[re.search(r'condition=%?([\w.\-]+)', line).group(1)])
  for called in re.findall(r'calls=%?([\w.\-]+)', ' '.join(lines)):
    lines += comps.get(called, [])
  limits = re.findall(r's32\[\]\S* constant\((\d+)\)', ' '.join(lines))
  return max(map(int, limits), default=1)


def operations(text: str, shares=None):
  """Yields (times, kind, line, operands' types) of all that runs.

  Args:
    text: the program.
    shares: {number of branches: how often each is taken}; else all alike.
  """
  comps = computations(text)

  def walk(name, times):
    types = {}
    for line in comps.get(name, []):
      named = NAMED.match(line)
      if not named:
        continue
      rest = re.sub(r'/\*.*?\*/', '', named.group(2))
      op = re.search(r'(?:^|\s)([\w\-]+)\(', rest)
      if not op:
        continue
      types[named.group(1)] = rest[: op.start()]
      kind = op.group(1)
      called = lambda key, line=line: re.search(
        rf'{key}=%?([\w.\-]+)', line
      ).group(1)
      if kind == 'while':
        yield from walk(called('body'), times * trips(line, comps))
      elif kind == 'call':
        yield from walk(called('to_apply'), times)
      elif kind == 'conditional':
        names = re.findall(r'branch_computations=\{([^}]*)\}', line)
        if names:
          names = [x.strip().lstrip('%') for x in names[0].split(',')]
        else:
          names = [called('true_computation'), called('false_computation')]
        share = (shares or {}).get(len(names), [1 / len(names)] * len(names))
        for branch, part in zip(names, share):
          yield from walk(branch, times * part)
      else:
        args = rest[op.end() :].split(')')[0]
        given = [types.get(x, '') for x in re.findall(r'%([\w.\-]+)', args)]
        fused = kind == 'fusion' and comps.get(called('calls'), [])
        product = re.search(r' (convolution|dot)\(', '\n'.join(fused or [line]))
        yield times, 'product' if product else kind, line, given

  yield from walk('', 1)


def moved_bytes(line: str, given: list[str]) -> int:
  """About how many bytes of HBM an operation reads and writes.

  A fusion that only slices an operand does not read all of it: no operand
  counts for more than twice the result, unless it is reduced.
  """
  out = hbm_bytes(line.split('=', 1)[1].split('(', 1)[0])
  sizes = [hbm_bytes(x) for x in given]
  if 'dynamic-update-slice' in line:
    return 2 * min(sizes, default=0)
  if 'slice' in line or 'gather' in line:
    sizes = [min(x, out) for x in sizes]
  return out + sum(sizes)


# Kernels.


def bundles(path: str) -> int:
  """Cycles of a grid step: the bundles of a schedule, inner loops counted."""
  code = []  # (depth of loops, text)
  for line in open(path):
    start = re.match(r'^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*: ?(>*) ', line)
    if start:
      code.append([len(start.group(1)), line])
    elif code:
      code[-1][1] += line
  # A loop's last bundles, with its branch back, are printed a level up: its
  # span ends a few bundles after that branch.
  spans, closed = [], -1
  for i, (depth, line) in enumerate(code):
    if depth >= 2:
      open_ = spans and closed < spans[-1][0]
      if spans and i - spans[-1][1] <= 8 and (open_ or i - closed <= 5):
        spans[-1][1] = i
        spans[-1][2] += line
      else:
        spans.append([i, i, line])
    near = spans and i - spans[-1][1] <= 4
    if near and 'sbr.rel' in line and closed < spans[-1][0]:
      closed = i
  total = len(code)
  for first, last, text in spans:
    exits = re.findall(
      r'scmp\.ge\.s32\.totalorder %s\w+, (\d+) /\* loop exit test', text
    )
    total += (last - first + 1) * (int(exits[0]) - 1 if exits else 0)
  return total


KERNEL = re.compile(r'((?:attention|mlp|pixel)_[a-z]+)_(\d+)')


def kernel_calls(text: str):
  """(kernel, cycles, blocks) of each call, by its instruction's name.

  What is compiled twice alike is in the dump once: a kernel is known by its
  name, which says the rows of a block, and by its operands.
  """
  schedules, calls = {}, {}
  for path in glob.glob(f'{DUMP}/*-final_bundles.txt'):
    name = re.search(r'\d+-(.*)-\d\d-final_bundles', path).group(1)
    if KERNEL.match(name):
      schedules[name] = path
  for line in text.splitlines():
    if 'tpu_custom_call' in line:
      name = NAMED.match(line).group(1)
      kernel, step = KERNEL.search(line).groups()
      operands = re.search(r'layout_constraints=\{(.*?)\}\}', line).group(1)
      rows = re.findall(r'\[(\d+)[,\d]*\]', operands)[1]
      calls[name] = (kernel, step, operands), int(rows) // int(step)
  cycles = {
    key: bundles(schedules[name])
    for name, (key, _) in calls.items()
    if name in schedules
  }
  return {
    n: (k[0], cycles.get(k, 0), blocks) for n, (k, blocks) in calls.items()
  }


# Programs.


def compiled_step(config, mesh):
  """The training step."""
  net = fractal.from_config(config.model)
  tx = optimizer.create(config, 1000)
  state = train_state.abstract(net, tx, config, mesh=mesh)
  over = sharding.over_batch(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over)
    for name, x in memory.batch_of(config).items()
  }
  with jax.set_mesh(mesh):
    step = train.jitted_step(net, tx, state, config, mesh=mesh)
    return step.lower(state, batch).compile()


def compiled_sampling(config, mesh, images: int):
  """A batch of images, and how often its branches are taken."""
  net = fractal.from_config(config.model)
  sampling, guided = sample.settings(config)
  where = sharding.replicated(mesh)

  def placed(tree):
    def one(x):
      x = x if hasattr(x, 'dtype') else np.asarray(x, np.float32)
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(one, tree)

  init = lambda: nn.meta.unbox(fractal.init(net, jax.random.key(0)))
  numbers = jax.ShapeDtypeStruct((images,), jnp.int32)
  batch = programs.Batch(
    key=jax.eval_shape(lambda: jax.random.key(0)),
    labels=numbers,
    given=None,
    index=numbers,
    sampling=sampling,
  )
  params, batch = placed((jax.eval_shape(init), batch))
  with jax.set_mesh(mesh):
    program = programs.generate_batch.lower(
      net, params, batch, guided=guided, mesh=mesh
    ).compile()
  return program, branch_shares(net, sampling)


def branch_shares(net, sampling) -> dict[int, np.ndarray]:
  """How often a masked level's step is of each size, by how many there are."""
  out = {}
  for spec, kind in zip(net.specs[:-1], net.kinds):
    if kind.MASKS:
      count = min(spec.length, sampling.iterations[spec.index])
      left = np.array(masking.unmask_counts(spec.length, count))
      sizes = np.diff(-left, prepend=-spec.length)
      sizes = sizes[sizes > 0]
      kinds = masking.static_sizes(list(sizes), 2 if spec.index else 3)
      taken = np.bincount(np.searchsorted(kinds, sizes), minlength=len(kinds))
      out.setdefault(len(kinds), taken / len(sizes))
  return out


# What it says.


def level_of(line: str) -> str:
  """Which level an operation is of."""
  name = re.search(r'op_name="([^"]*)"', line)
  levels = re.findall(r'level_(\d)', name.group(1)) if name else []
  return f'level {levels[-1]}' if levels else 'elsewhere'


def tally(text: str, chip: str, shares=None):
  """{(level, kind): seconds by cycles, and at HBM's speed} of a program."""
  clock, bandwidth, _ = CHIPS[chip]
  kernels = kernel_calls(text)
  found = collections.defaultdict(lambda: np.zeros(2))
  for times, kind, line, given in operations(text, shares):
    cycles = re.search(r'[^a-z_]"estimated_cycles":"(\d+)"', line)
    name = NAMED.match(line).group(1)
    if name in kernels:
      kind, cycles, blocks = kernels[name]
      if not cycles:
        print(f'no schedule of {kind} was found: it counts as nothing')
      seconds = np.full(2, times * cycles * blocks / clock)
    elif cycles:
      seconds = np.full(2, times * int(cycles.group(1)) / clock)
      if kind != 'product':
        at_speed = times * moved_bytes(line, given) / bandwidth
        seconds[1] = min(seconds[1], at_speed)
    else:
      continue
    found[level_of(line), kind] += seconds
  return found


def report(found, chip: str, flops: float, images: int, top: int = 30) -> None:
  """Prints seconds by level and kind, and what they amount to."""
  total = sum(found.values())
  rows = [('', 'operation', 'seconds', 'at HBM speed')]
  by_level = collections.defaultdict(lambda: np.zeros(2))
  for (level, _), seconds in found.items():
    by_level[level] += seconds
  for level, seconds in sorted(by_level.items()):
    rows.append((level, 'all', *map(digits, seconds)))
  listed = sorted(found.items(), key=lambda item: -item[1][0])[:top]
  rows += [(*key, *map(digits, seconds)) for key, seconds in listed]
  print('\n'.join(cost.aligned(rows)))
  ideal = flops / CHIPS[chip][2]
  print(
    f'in all {total[0]:.4f} s (at HBM speed {total[1]:.4f} s): MFU '
    f'{ideal / total[0]:.1%} ({ideal / total[1]:.1%}), '
    f'{images / total[0]:.2f} ({images / total[1]:.2f}) images/s per device, '
    'an estimate'
  )


def digits(seconds: float) -> str:
  return f'{seconds:.4f}'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('config', help='a file of configs/, and :OPTION')
  parser.add_argument('topology', help='for example v5e:2x2')
  parser.add_argument('--images', type=int, default=32, help='per device')
  parser.add_argument('--sample', type=int, help='generate so many per device')
  parser.add_argument('--kernels', default='pallas', help='or xla')
  parser.add_argument('--fsdp', type=int, default=1)
  parser.add_argument('--chunks', help='config.model.chunks, say 1,1,4,4')
  parser.add_argument('--devices', type=int, help='of the topology; all')
  parser.add_argument('--hlo', help='a file for the compiled program')
  args = parser.parse_args()

  path, _, option = args.config.partition(':')
  config = runpy.run_path(path)['get_config'](option or None)
  config.model.kernels = args.kernels
  if args.chunks:
    config.model.chunks = tuple(map(int, args.chunks.split(',')))
  config.mesh.fsdp = args.fsdp
  devices = topologies.get_topology_desc(args.topology, 'tpu').devices
  devices = devices[: args.devices]
  config.optim.batch = args.images * len(devices)
  mesh = sharding.make_mesh(config, devices)
  start, shares = time.time(), None
  if args.sample:
    program, shares = compiled_sampling(
      config, mesh, args.sample * len(devices)
    )
    _, guided = sample.settings(config)
    flops = args.sample * cost.sample_flops_per_image(
      config, guided, config.sample.iterations
    )
  else:
    program = compiled_step(config, mesh)
    flops = cost.train_flops_per_image(config) * args.images
  text = program.as_text()
  print(f'compiled in {time.time() - start:.0f} s; {program.memory_analysis()}')
  if args.hlo:
    open(args.hlo, 'w').write(text)
  chip = args.topology.split(':')[0]
  found = tally(text, chip, shares)
  report(found, chip, flops, args.sample or args.images)


if __name__ == '__main__':
  sys.exit(main())
