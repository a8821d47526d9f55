"""The most memory that a traced program holds at once; nothing is compiled.

A walk over a jaxpr, in its order, under the rules by which XLA gives buffers:

  A value has a buffer if it comes from, or goes into, what can't be fused: a
  matrix product, a sort, a scatter, a loop. Elementwise values are computed
  again where they are read, unless that is costly (exp, erf, ...) and several
  read them. Reductions are fused with what they read.
  A buffer lives until its last reader is done, and an elementwise result may
  take over the buffer of an operand that dies then.
  A loop holds what goes in and out of it, and the most of one iteration. One
  of a single iteration is none.
  Gradients that come from no loop, those of embeddings and codebooks, are
  computed last: XLA's schedules tend to, and hold what they are made of.
"""

import collections
import dataclasses
import itertools
import math
import re

import jax
import numpy as np

ALIAS = {
  'bitcast_convert_type', 'copy', 'copy_p', 'expand_dims', 'name',
  'optimization_barrier', 'random_unwrap', 'random_wrap', 'reshape', 'reshard',
  'squeeze',
}  # fmt: skip
COSTLY = {
  'cbrt', 'cos', 'erf', 'erf_inv', 'erfc', 'exp', 'exp2', 'expm1', 'log',
  'log1p', 'logistic', 'pow', 'rsqrt', 'sin', 'sqrt', 'tanh',
}  # fmt: skip
SOLID = {  # read whole, written whole
  'cond', 'conv_general_dilated', 'cumsum', 'dot_general', 'random_bits',
  'random_fold_in', 'random_seed', 'random_split', 'scatter', 'scatter-add',
  'sort', 'top_k', 'while',
}  # fmt: skip


@dataclasses.dataclass(eq=False)
class Value:
  """A value of the program, and its buffer if it has one."""

  full: float  # bytes
  kind: str = 'argument'  # or fused, reduced, solid, loop, looped
  at: int = -1  # when it is computed
  level: str = ''  # in which it is
  inputs: tuple['Value', ...] = ()
  split: bool = False  # over mesh axis `tensor`
  costly: bool = False
  inner: float = 0.0  # bytes that making it takes, beside itself
  takes: tuple['Value', ...] = ()  # whose buffers it may take over
  parts: float = 1  # over how many devices
  readers: int = 0
  whole: bool = False  # something reads its buffer
  reads: frozenset['Value'] = frozenset()  # buffers, through what is fused
  last: float = -1  # when it is read last
  order: int = dataclasses.field(default_factory=itertools.count().__next__)

  @property
  def size(self) -> float:
    return self.full / self.parts


@dataclasses.dataclass(frozen=True)
class Peak:
  """The most that a program holds, in bytes, and in which level that is."""

  size: float
  level: str


def peak(jaxpr, split, outputs, tensor=1, gathers=False, tiles=False) -> Peak:
  """The peak of a program, its arguments not counted.

  Args:
    jaxpr: what jax.make_jaxpr gives.
    split: of each argument, whether it is split over mesh axis `tensor`.
    outputs: of each output, over how many devices it is split; None: as it
      is computed.
    tensor: devices of that axis.
    gathers: whether parameters are gathered where they are used: to a copy.
    tiles: whether arrays lie in tiles of 8 by 128, as on TPUs.
  """
  walk = Walk(tensor, gathers, tiles)
  arguments = [Value(0.0, split=s) for s in split]
  out = walk.program(jaxpr.jaxpr, jaxpr.consts, arguments)
  for value, parts in zip(out, outputs, strict=True):
    value.parts = value.parts if parts is None else parts
    value.whole = True
  postpone({v for v, parts in zip(out, outputs) if parts is not None}, out)
  return walk.peak(out)


def postpone(last: set[Value], outputs) -> None:
  """Moves values, and what nothing else needs, behind all others."""
  values = reached(outputs)
  readers = collections.defaultdict(list)
  for value in values:
    for read in value.inputs:
      readers[read].append(value)
  end, last = values[-1].order + 1, set(last)
  for value in reversed(values):
    only = readers[value] and all(v in last for v in readers[value])
    if value.kind in ('fused', 'reduced', 'solid') and (value in last or only):
      last.add(value)
      value.at += end
    else:
      last.discard(value)


class Walk:
  """One pass over a program."""

  def __init__(self, tensor: int, gathers: bool, tiles: bool):
    self.tensor, self.gathers, self.tiles = tensor, gathers, tiles
    self.now = 0

  def value(self, aval, split=False, **fields) -> Value:
    parts = self.tensor if split else 1
    return Value(bytes_of(aval), split=split, parts=parts, **fields)

  def program(self, jaxpr, consts, inputs, level='') -> list[Value]:
    """The values of its outputs."""
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {var: Value(0.0) for var in jaxpr.constvars}
    del consts

    def read(atom):
      return Value(0.0) if hasattr(atom, 'val') else env[atom]

    for eqn in jaxpr.eqns:
      found = re.findall(r'level_(\d+)', str(eqn.source_info.name_stack))
      where = found[0] if found else level
      out = self.equation(eqn, [read(v) for v in eqn.invars], where)
      env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn, inputs, level) -> list[Value]:
    name = eqn.primitive.name
    self.now += 1
    if name == 'scan':
      return self.scan(eqn, inputs, level)
    called = eqn.params.get('call_jaxpr', eqn.params.get('jaxpr'))
    if called is not None:
      called = getattr(called, 'jaxpr', called)
      return self.program(called, (), inputs, level)
    gather = name == 'sharding_constraint' and self.gathers
    if name in ALIAS or name == 'sharding_constraint' and not gather:
      return inputs
    split = any(v.split for v in inputs)
    kind = 'fused'
    if name in SOLID or gather:
      kind = 'solid'
    if name.startswith(('reduce_', 'arg')):
      kind = 'reduced'
    if name == 'dot_general' and not eqn.params['dimension_numbers'][1][0]:
      # A weight and what it is multiplied with, forward and backward: summed
      # over the split axis where both have it.
      split = inputs[0].split != inputs[1].split
    out = [
      self.value(
        var.aval,
        split,
        kind=kind,
        at=self.now,
        level=level,
        inputs=tuple(inputs),
        costly=name in COSTLY,
      )
      for var in eqn.outvars
    ]
    if self.tiles and name == 'dot_general':
      if eqn.params['dimension_numbers'][1][0]:  # of attention
        for value, var in zip(inputs + out, eqn.invars + eqn.outvars):
          value.full = max(value.full, tiled(var.aval))
    return out

  def scan(self, eqn, inputs, level) -> list[Value]:
    consts, carried = eqn.params['num_consts'], eqn.params['num_carry']
    body = eqn.params['jaxpr'].jaxpr
    if eqn.params['length'] == 1:  # XLA writes it out
      return self.program(body, (), inputs, level)
    carry = inputs[consts : consts + carried]
    split = [v.split for v in inputs]
    while True:  # until it is known what is split
      walk = Walk(self.tensor, self.gathers, self.tiles)
      own = []
      for i, var in enumerate(body.invars):
        if i < consts:
          own.append(Value(0.0, split=split[i]))
        elif i < consts + carried:
          own.append(walk.value(var.aval, split[i], kind='solid', at=0))
        else:  # a slice of what is looped over
          own.append(walk.value(var.aval, split[i], kind='fused', at=0))
      out = walk.program(body, (), own, level)
      new = [s or v.split for s, v in zip(split[consts:], out[:carried])]
      if split[consts : consts + carried] == new:
        break
      split[consts : consts + carried] = new
    carries = own[consts : consts + carried]
    for value in out[:carried]:
      value.whole = True
    held = walk.peak(out, carries)
    loop = Value(
      0.0,
      kind='loop',
      at=self.now,
      level=held.level or level,
      inputs=tuple(inputs),
      inner=held.size - sum(v.size for v in carries),
    )
    results = []
    for i, (var, inside) in enumerate(zip(eqn.outvars, out)):
      results.append(
        self.value(
          var.aval,
          inside.split,
          kind='looped',
          at=self.now,
          level=level,
          inputs=(loop,),
          takes=(carry[i],) if i < carried else (),
        )
      )
    return results

  def peak(self, outputs, inside=()) -> Peak:
    """The most that is held until the outputs are there.

    Args:
      outputs: values; they are held to the end where they have buffers.
      inside: buffers that are there from the start.
    """
    values = reached(outputs)
    for value in values:
      for read in set(value.inputs):
        read.readers += 1
        read.whole |= value.kind in ('solid', 'loop')
    buffers = set()
    for value in values:
      through = [v for v in value.inputs if v not in buffers]
      value.costly |= any(v.costly for v in through)
      value.reads = frozenset().union(
        (v for v in value.inputs if v in buffers), *(v.reads for v in through)
      )
      value.costly &= value.kind == 'fused'
      shared = value.costly and value.readers > 1
      if value.kind in ('solid', 'reduced', 'loop', 'looped') or (
        value.kind == 'fused' and (value.whole or shared)
      ):
        buffers.add(value)
        value.last = max(value.last, value.at)
        for read in value.reads:
          read.last = max(read.last, value.at)
    buffers |= set(inside)
    for value in outputs:
      for held in {value} & buffers or value.reads:
        held.last = math.inf
    born, dies = collections.defaultdict(list), collections.defaultdict(list)
    for value in buffers:
      born[value.at].append(value)
      dies[value.last].append(value)
    held, most = 0.0, Peak(0.0, '')
    for now in sorted(born):
      dying = {v for v in dies[now] if v.at < now}
      for value in born[now]:
        held += value.size
        candidates = value.takes or (
          value.reads if value.kind == 'fused' else ()
        )
        for old in candidates:
          if old in dying and old.size >= value.size:
            dying.remove(old)
            held -= old.size
            break
      size = held + sum(v.inner for v in born[now])
      if size > most.size:
        level = max(born[now], key=lambda v: v.inner + v.size).level
        most = Peak(size, level)
      held -= sum(v.size for v in dying)
      held -= sum(v.size for v in born[now] if v.last == now)
    return most


def reached(outputs) -> list[Value]:
  """The values that outputs are made of, in the order in which they are."""
  seen, stack = set(), list(outputs)
  while stack:
    value = stack.pop()
    if value not in seen:
      seen.add(value)
      stack.extend(value.inputs)
  return sorted(
    (v for v in seen if v.kind != 'argument'), key=lambda v: v.order
  )


def tiled(aval) -> float:
  """Bytes where the last two dimensions are padded to tiles of 8 by 128."""
  *rest, rows, columns = 1, *aval.shape
  tile = min(8, 1 << (rows - 1).bit_length())
  size = -(-rows // tile) * tile * -(-columns // 128) * 128
  return float(np.dtype(aval.dtype).itemsize * math.prod(rest) * size)


def bytes_of(aval) -> float:
  if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
    return 8.0 * math.prod(aval.shape)
  return float(np.dtype(aval.dtype).itemsize * math.prod(aval.shape))
