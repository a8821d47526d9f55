"""How a kernel is called: resident weights, gradients in float32, the mesh.

Kernels take a module's own parameters, `laid_out`: nothing but their layout
differs. A call works on rows in a grid of blocks, one after another, while the
weights lie in VMEM; gradients of weights are summed there, over all blocks of
a core.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.tree_util import PyTreeDef
from jax.typing import DTypeLike

from fractal_jax import sharding
from fractal_jax.models.types import Array

F32 = jnp.float32
USABLE = 0.95  # of the VMEM, by a kernel
MATRICES = ('qkv', 'kernel', 'codebooks')


def laid_out(params: dict, dtype: DTypeLike) -> dict:
  """A module's parameters as kernels read them: matrices in `dtype`.

  Vectors [D] become float32 rows [1, D], and the fused projection [D, 3, D]
  becomes three, [3, D, D]. A leading axis of layers stays.
  """

  def one(path, x):
    name = path[-1].key
    if name == 'qkv':
      x = jnp.moveaxis(x, -2, -3)
    if name in MATRICES:
      return x.astype(dtype)
    return x[..., None, :].astype(F32)

  return jax.tree_util.tree_map_with_path(one, params)


def vmem_bytes() -> int:
  """How much VMEM the chip has; 128 MiB, a v5e's, where there is no chip."""
  if sharding.platform() != 'tpu':
    return 128 << 20
  return pltpu.get_tpu_info().vmem_capacity_bytes


def cores() -> int:
  """How many cores share a kernel's blocks: two on a v4 and a v5p."""
  return pltpu.get_tpu_info().num_cores if sharding.platform() == 'tpu' else 1


def fits(need: int) -> bool:
  """Whether the VMEM holds so many bytes of a kernel."""
  return need <= vmem_bytes() * USABLE


def sum_bytes() -> int:
  """Of VMEM, per number that blocks sum: twice float32 where cores do it."""
  return 4 if cores() == 1 else 8


def block_number() -> Array:
  """Which block a kernel is at, from 0."""
  return pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)


class Grid(NamedTuple):
  """How rows are cut into blocks, and what each block is given of arrays."""

  cores: int
  blocks: int  # of each core
  step: int  # rows of a block

  @classmethod
  def over(cls, size: int, step: int) -> 'Grid':
    """The grid over `size` rows, a multiple of `step`."""
    assert size % step == 0, (size, step)
    number = size // step
    ways = cores() if number % cores() == 0 else 1
    return cls(ways, number // ways, step)

  def block(self, x: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """The rows of a block."""
    rest = x.shape[1:]
    place = lambda core, i, _: (core * self.blocks + i,) + (0,) * len(rest)
    return pl.BlockSpec((self.step,) + rest, place)

  def resident(self, x: Array) -> pl.BlockSpec:
    """The spec of an array that every step sees whole."""
    return pl.BlockSpec(x.shape, lambda core, i, _: (0,) * x.ndim)

  def of_core(self, x: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """What the blocks of a core share of an array [cores, ...]."""
    # A constant where there is one core: what does not move has one buffer.
    first = lambda core: core if self.cores > 1 else 0
    place = lambda core, i, _: (first(core),) + (0,) * len(x.shape)
    return pl.BlockSpec((None,) + x.shape, place)


def blocks(
  kernel: Callable[..., None],
  name: str,
  scalars: Array,
  rows: Any,
  resident: Any,
  *,
  step: int,
  outs: Any,
  sums: Any = None,
  scratch: Sequence[jax.ShapeDtypeStruct] = (),
) -> Any:
  """Runs a kernel over blocks of rows.

  Args:
    kernel: (scalars, rows, resident, outs, sums, scratch), all references; the
      trees are those given here.
    name: of the kernel, in profiles.
    scalars: int32 or float32 [k], read one by one.
    rows: a tree of arrays [M, ...].
    resident: a tree of arrays that every block reads whole.
    step: rows of a block; it divides M.
    outs: a tree of ShapeDtypeStruct [M, ...].
    sums: a tree of shapes of float32 arrays that every block adds to; they are
      0 before a core's first.
    scratch: shapes of what a block keeps in VMEM.

  Returns:
    outs, and sums unless None.
  """
  grid = Grid.over(len(jax.tree.leaves(rows)[0]), step)
  by_core = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((grid.cores,) + x.shape, F32), sums
  )
  given, tree = jax.tree.flatten((rows, resident))
  made, made_tree = jax.tree.flatten((outs, by_core))
  specs = [grid.block(x) for x in jax.tree.leaves(rows)]
  specs += [grid.resident(x) for x in jax.tree.leaves(resident)]
  out_specs = [grid.block(x) for x in jax.tree.leaves(outs)]
  out_specs += [grid.of_core(x) for x in jax.tree.leaves(sums)]
  found = pl.pallas_call(
    of_references(kernel, tree, made_tree),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(grid.cores, grid.blocks),
      in_specs=specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(s.shape, s.dtype) for s in scratch],
    ),
    out_shape=made,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=int(vmem_bytes() * USABLE),
    ),
    interpret=sharding.platform() != 'tpu',
    name=f'{name}_{step}',  # what a block is, for profiles
  )(scalars, *given)
  outs, by_core = made_tree.unflatten(found)
  if sums is None:
    return outs
  total = lambda x: x.sum(0) if grid.cores > 1 else x[0]
  return outs, jax.tree.map(total, by_core)


def of_references(
  kernel: Callable[..., None], given: PyTreeDef, made: PyTreeDef
) -> Callable[..., None]:
  """A kernel of `blocks` as Pallas calls it, with all references in a row.

  Args:
    kernel: as `blocks` takes it.
    given, made: the structures of (rows, resident) and of (outs, sums), which
      is set to 0 before a core's first block.
  """
  inputs, outputs = given.num_leaves, given.num_leaves + made.num_leaves

  def body(scalars, *refs):
    rows, resident = given.unflatten(refs[:inputs])
    outs, sums = made.unflatten(refs[inputs:outputs])

    @pl.when(pl.program_id(1) == 0)
    def _():
      for x in jax.tree.leaves(sums):
        x[...] = jnp.zeros_like(x)

    kernel(scalars, rows, resident, outs, sums, refs[outputs:])

  return body


def on_devices(
  fn: Callable, in_specs: jax.P | tuple[jax.P, ...], out_specs: jax.P
) -> Callable:
  """fn on each device of the mesh, where the compiler is left to split arrays.

  It can't split what a kernel works on. Within shard_map nothing is left to it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.manual_axes:
    return fn
  return jax.shard_map(
    fn, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


def on_groups(fn: Callable) -> Callable:
  """fn under the training step's vmap over groups of images.

  The compiler would gather a kernel's operands on every device. Here each
  device of the mesh calls it on its own groups: arguments without an axis of
  groups, the weights, are gathered before; what comes out has that axis.
  Without groups, every device does all.
  """

  @custom_vmap
  def alone(*args):
    return on_devices(fn, jax.P(), jax.P())(*args)

  @alone.def_vmap
  def _(groups, batched, *args):
    del groups  # each device has its share
    leaves, tree = jax.tree.flatten(args)
    grouped = jax.tree.leaves(tuple(batched))
    over = jax.P(sharding.BATCH)

    def local(*leaves):
      mine = [x for x, b in zip(leaves, grouped) if b]

      def one(mine):
        mine = iter(mine)
        args = [next(mine) if b else x for x, b in zip(leaves, grouped)]
        return fn(*tree.unflatten(args))

      if len(mine[0]) > 1:
        return jax.lax.map(one, mine)
      return jax.tree.map(lambda x: x[None], one([x[0] for x in mine]))

    specs = tuple(over if b else jax.P() for b in grouped)
    out = on_devices(local, specs, over)(*leaves)
    return out, jax.tree.map(lambda _: True, out)

  return alone


def with_gradient(
  forward: Callable[..., Array], backward: Callable[..., tuple[dict, Array]]
) -> Callable[..., Array]:
  """A function of parameters and rows, from its two kernels.

  Args:
    forward: (how, p, x, *rest) to y; p is laid out.
    backward: (how, p, x, *rest, g) to (gradients of p, float32; of x).

  Returns:
    f(how, params, x, *rest), where `how` is static and hashable, and `rest`
    (words, angles, values) has no gradient. The backward pass needs of the
    forward one its arguments alone.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def f(how, params, x, *rest):
    run = on_groups(functools.partial(forward, how))
    return run(laid_out(params, how.dtype), x, *rest)

  def fwd(how, *args):
    return f(how, *args), args

  def bwd(how, saved, g):
    params, x, *rest = saved
    run = on_groups(functools.partial(backward, how))
    by_p, by_x = run(laid_out(params, how.dtype), x, *rest, g)
    # Else the compiler joins the kernel with the stacking of the layers'
    # gradients, and forgets how much VMEM the kernel may use.
    by_p = jax.lax.optimization_barrier(by_p)
    _, back = jax.vjp(lambda params: laid_out(params, F32), params)
    return *back(by_p), by_x, *(None for _ in rest)

  f.defvjp(fwd, bwd)
  return f
