"""Seconds that a program compiled for TPUs takes, from its text: an estimate.

libtpu says of each operation how many cycles it expects, and of each kernel of
this project which instructions it runs. These are summed, loops counted:

- XLA's operations by their `estimated_cycles`: right for products, up to four
  times too many for what only moves memory. So all is given twice, the second
  time with what is no product at the bandwidth of HBM, if that takes less.
- Kernels by the bundles of instructions of their final schedule, inner loops
  counted, times their grid steps. Waiting for HBM is not counted.
- The network is not in the sum: what collectives move is given beside it.

docs/performance.md says how far such estimates were off.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import math
import pathlib
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class Chip:
  """What the makers say of a chip beside its FLOP/s."""

  clock: float  # Hz
  hbm: float  # bytes per second
  network: float  # bytes per second, all links between chips together
  cores: int = 1  # that share the blocks of a kernel: see kernels/calls.py


CHIPS = {
  'v4': Chip(1.05e9, 1228e9, 300e9, cores=2),
  'v5e': Chip(1.5e9, 819e9, 200e9),
  'v5p': Chip(1.75e9, 2765e9, 600e9, cores=2),
  'v6e': Chip(1.75e9, 1640e9, 448e9),
}


@dataclasses.dataclass
class Estimate:
  """The time of one run of a program, on each device.

  Attributes:
    seconds: {(level, operation): [2] by cycles, and at the speed of HBM}.
    network: bytes that collectives bring to a device.
    unknown: kernels whose schedule is missing: they count as nothing.
  """

  seconds: dict[tuple[str, str], np.ndarray]
  network: float = 0.0
  unknown: tuple[str, ...] = ()

  @property
  def total(self) -> np.ndarray:
    """[2] seconds: by cycles, and at the speed of HBM."""
    return sum(self.seconds.values(), np.zeros(2))


def of_program(
  text: str,
  schedules: dict[str, int],
  chip: Chip,
  shares: dict[str, Sequence[float]] | None = None,
) -> Estimate:
  """Sums what a program does.

  Args:
    text: the compiled program.
    schedules: cycles of a grid step by the name of a kernel's instruction, as
      `schedules` reads them.
    chip: that it is compiled for.
    shares: {level: how often each branch of its steps is taken}; else all
      alike.
  """
  kernels = kernel_calls(text, schedules)
  found = collections.defaultdict(lambda: np.zeros(2))
  network, unknown = 0.0, set()
  for op in operations(text, shares):
    cycles = re.search(r'[^a-z_]"estimated_cycles":"(\d+)"', op.line)
    kernel = kernels.get(NAMED.match(op.line).group(1))
    if op.kind.removesuffix('-start') in COLLECTIVES:
      network += op.times * network_bytes(op)
    if kernel and kernel.cycles is None:
      unknown.add(kernel.name)
    elif kernel:
      ways = chip.cores if kernel.blocks % chip.cores == 0 else 1
      seconds = kernel.cycles * kernel.blocks / ways / chip.clock
      found[op.level, kernel.name] += op.times * seconds
    elif cycles:
      seconds = np.full(2, int(cycles.group(1)) / chip.clock)
      if op.kind != 'product':
        seconds[1] = min(seconds[1], moved_bytes(op) / chip.hbm)
      found[op.level, op.kind] += op.times * seconds
  return Estimate(dict(found), network, tuple(sorted(unknown)))


# The compiled program, as text.

TYPE = re.compile(r'\b(pred|[suf]\d+|bf16)\[([\d,]*)\](?:\{([^}]*)\})?')
NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')
PRODUCT = re.compile(r' (convolution|dot)\(|custom_call_target="__cublas')
PARTS = ('slice', 'dynamic-slice', 'gather')  # of their first operand
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all')


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


def bytes_of(text: str) -> int:
  """Bytes of the types in a text, as tiles pad them."""
  total = 0
  for dtype, dims, layout in TYPE.findall(text):
    size = 1 if dtype == 'pred' else int(re.sub(r'\D', '', dtype)) // 8
    dims = [int(x) for x in dims.split(',') if x]
    order = [int(x) for x in layout.split(':')[0].split(',') if x.isdigit()]
    if len(order) == len(dims):
      dims = [dims[i] for i in order]  # the minor one first
    tile = re.search(r'T\(([\d,]+)\)', layout)
    for i, k in enumerate(tile.group(1).split(',')[::-1] if tile else ()):
      if i < len(dims):
        dims[i] = -(-dims[i] // int(k)) * int(k)
    total += size * math.prod(dims)
  return total


def trips(line: str, comps: dict[str, list[str]]) -> int:
  """How often a while loop runs."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
  if known:
    return int(known.group(1))
  lines = list(comps[called(line, 'condition')])
  for name in re.findall(r'calls=%?([\w.\-]+)', ' '.join(lines)):
    lines += comps.get(name, [])
  limits = re.findall(r's32\[\]\S* constant\((\d+)\)', ' '.join(lines))
  return max(map(int, limits), default=1)


def called(line: str, key: str) -> str:
  """The computation that an operation calls as its `key`."""
  return re.search(rf'{key}=%?([\w.\-]+)', line).group(1)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation: name = type kind(operands)."""

  name: str
  type: str
  kind: str
  operands: tuple[str, ...]  # by name
  line: str


def instructions(lines: list[str]) -> Iterator[Instruction]:
  """Those of a computation."""
  for line in lines:
    named = NAMED.match(line)
    rest = re.sub(r'/\*.*?\*/', '', named.group(2)) if named else ''
    op = re.search(r'(?:^|\s)([\w\-]+)\(', rest)
    if op:
      args = re.findall(r'%([\w.\-]+)', rest[op.end() :].split(')')[0])
      about = rest[: op.start()], op.group(1), tuple(args), line
      yield Instruction(named.group(1), *about)


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation that runs."""

  times: float
  level: str  # of which it is
  kind: str  # what XLA calls it, or 'product'
  line: str
  operands: list[str]  # their types
  fused: list[str]  # the lines of a fusion


def operations(
  text: str, shares: dict[str, Sequence[float]] | None = None
) -> Iterator[Operation]:
  """All operations that run; the arguments are those of `of_program`."""
  comps = computations(text)

  def walk(name, times, above):
    types = {}
    for it in instructions(comps.get(name, [])):
      types[it.name] = it.type
      line, kind, level = it.line, it.kind, level_of(it.line) or above
      if kind == 'while':
        yield from walk(called(line, 'body'), times * trips(line, comps), level)
      elif kind == 'call':
        yield from walk(called(line, 'to_apply'), times, level)
      elif kind == 'conditional':
        names = branches(line)
        share = (shares or {}).get(level, ())
        if len(share) != len(names):  # another choice than of a step's size
          share = [1 / len(names)] * len(names)
        for branch, part in zip(names, share):
          yield from walk(branch, times * part, level)
      else:
        fused = comps.get(called(line, 'calls'), []) if kind == 'fusion' else []
        if PRODUCT.search('\n'.join(fused or [line])):
          kind = 'product'
        given = [types.get(x, '') for x in it.operands]
        yield Operation(times, level, kind, line, given, fused)

  yield from walk('', 1, 'elsewhere')


def branches(line: str) -> list[str]:
  """The computations that a conditional chooses from, the first for 0."""
  names = re.search(r'branch_computations=\{([^}]*)\}', line)
  if names:
    return [x.strip().lstrip('%') for x in names.group(1).split(',')]
  return [called(line, f'{x}_computation') for x in ('false', 'true')]


def moved_bytes(op: Operation) -> int:
  """How many bytes an operation reads and writes, in whatever memory.

  Of an array of which it takes or replaces a part, it is that part.
  """
  out = bytes_of(results(op.line))
  sizes = [bytes_of(x) for x in op.operands]
  if op.kind == 'dynamic-update-slice':
    return 2 * sizes[1]
  if op.kind in PARTS:
    return 2 * out
  if not op.fused:
    return out + sum(sizes)
  inside = {it.name: it for it in instructions(op.fused)}
  users = collections.defaultdict(list)
  for it in inside.values():
    for place, x in enumerate(it.operands):
      users[x].append((it, place))

  def read(name: str) -> float:
    total = 0
    for it, place in users[name]:
      if it.kind == 'bitcast':
        total += read(it.name)
      elif it.kind in PARTS and place == 0:
        total += bytes_of(it.type)
      elif it.kind != 'dynamic-update-slice' or place:
        return math.inf
    return total

  def written(name: str) -> int:
    it = inside.get(name)
    if it and it.kind == 'tuple':
      return sum(map(written, it.operands))
    if it and it.kind == 'bitcast':
      return written(it.operands[0])
    if it and it.kind == 'dynamic-update-slice':
      it = inside.get(it.operands[1])
    return bytes_of(it.type) if it else out

  total = written(next(x.name for x in inside.values() if 'ROOT ' in x.line))
  for it in inside.values():
    if it.kind == 'parameter':
      size = sizes[int(re.search(r'parameter\((\d+)\)', it.line).group(1))]
      total += int(min(size, read(it.name)))
  return total


def network_bytes(op: Operation) -> int:
  """About how many bytes a collective brings to each of many devices."""
  whole = bytes_of(results(op.line))
  own = bytes_of(' '.join(op.operands))
  if op.kind.endswith('-start'):  # gives its operands back, too
    whole -= own
  return max(whole, own) * (2 if 'all-reduce' in op.kind else 1)


def results(line: str) -> str:
  """The types of what an operation gives."""
  types = NAMED.match(line).group(2)
  return types[: re.search(r'(?:^|\s)[\w\-]+\(', types).start()]


def level_of(line: str) -> str:
  """Which level an operation is of; '' where its name does not say."""
  levels = re.findall(r'level_(\d)', name_of(line))
  return f'level {levels[-1]}' if levels else ''


def name_of(line: str) -> str:
  """The name that the model's code gives an operation, or ''."""
  name = re.search(r'op_name="([^"]*)"', line)
  return name.group(1) if name else ''


# Kernels.

KERNEL = re.compile(r'((?:attention|mlp|pixel)_[a-z]+)_(\d+)')


@dataclasses.dataclass(frozen=True)
class KernelCall:
  """A call of a kernel of this project."""

  name: str
  cycles: int | None  # of a grid step; None: no schedule of it was found
  blocks: int  # grid steps


def schedules(folder: str) -> dict[str, int]:
  """Cycles of a grid step of the kernels in a folder that libtpu wrote to.

  By the name of the instruction that calls them. The files are removed: those
  of the next program may have the same names.
  """
  found = {}
  for path in sorted(pathlib.Path(folder).iterdir()):
    name = re.fullmatch(r'\d+-(.*)-\d\d-final_bundles\.txt', path.name)
    if name and KERNEL.match(name.group(1)):
      found[name.group(1)] = bundles(path.read_text())
    path.unlink()
  return found


def bundles(text: str) -> int:
  """Cycles of a grid step: the bundles of a schedule, inner loops counted."""
  code = []  # (depth of loops, text)
  for line in text.splitlines(keepends=True):
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


def kernel_calls(text: str, schedules: dict[str, int]) -> dict[str, KernelCall]:
  """Each call of a kernel, by its instruction's name.

  libtpu writes the schedule of what it compiles twice alike once: a kernel is
  known by its name, which says the rows of a block, and by its operands.
  """
  calls = {}
  for line in text.splitlines():
    if 'tpu_custom_call' in line and KERNEL.search(line):
      name, step = KERNEL.search(line).groups()
      operands = re.search(r'layout_constraints=\{(.*?)\}\}', line).group(1)
      rows = re.findall(r'\[(\d+)[,\d]*\]', operands)[1]
      instruction = NAMED.match(line).group(1)
      calls[instruction] = (name, step, operands), int(rows) // int(step)
  cycles = {
    key: schedules[instruction]
    for instruction, (key, _) in calls.items()
    if instruction in schedules
  }
  return {
    instruction: KernelCall(key[0], cycles.get(key), blocks)
    for instruction, (key, blocks) in calls.items()
  }
