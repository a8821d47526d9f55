"""The compiled programs that generate a batch of images.

One runs all of it (`generate_batch`). For a job that is watched, `begin` and
`advance` run some steps of level 0 at a time. Each device generates its own
images.
"""

from collections.abc import Callable, Iterator
import functools
import time
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.models.fractal import Guide
from fractal_jax.models.types import Array, Drawn, Given, Sampling, Steps

PART = 0.25  # seconds between two reports of a watched generation, about


@struct.dataclass
class Batch:
  """The images of a request that are generated at a time."""

  key: Array  # the request's
  index: Array  # [b] which images of the request they are
  labels: Array  # [b] classes, -1 for "no class"
  given: Given | None  # values that are known, [b, S, (S,) C] each
  sampling: Sampling
  guided: bool = struct.field(pytree_node=False)  # is there a second stream
  guide: Guide | None = None  # its network; None: the same, without classes


def in_parts(
  net: fractal.Fractal,
  params: dict,
  batch: Batch,
  *,
  mesh: Mesh,
  stepwise: bool,
) -> Iterator[tuple[Drawn, int, int]]:
  """Generates a batch: (what is drawn so far, steps done, steps).

  All of it is one step, or, where `stepwise`, some steps of level 0 are.
  """
  if not stepwise:
    with jax.set_mesh(mesh):
      drawn = jax.device_get(generate_batch(net, params, batch, mesh=mesh))
    yield drawn, 1, 1
    return
  with jax.set_mesh(mesh):
    state, *shown = begin(net, params, batch, mesh=mesh)
    drawn, total = jax.device_get(shown)
  done, size, total = 0, 1, int(total[0])
  while True:
    yield drawn, done, total
    if done == total:
      return
    began, first = time.monotonic(), done
    done = min(done + size, total)
    with jax.set_mesh(mesh):
      state, drawn = advance(net, params, batch, state, first, done, mesh=mesh)
      drawn = jax.device_get(drawn)
    took = time.monotonic() - began
    if took > PART:
      size = max(size // 2, 1)
    elif took < PART / 2:  # at least 16 parts, so that there is much to see
      size = max(min(2 * size, total // 16), 1)


@functools.partial(jax.jit, static_argnames=('net', 'mesh'))
def generate_batch(
  net: fractal.Fractal, params: dict, batch: Batch, *, mesh: Mesh
) -> Drawn:
  """A batch of images at once, whole on every host."""
  drawn = _on_devices(Steps.run, net, params, batch, mesh=mesh)
  return jax.lax.with_sharding_constraint(drawn, jax.P())


@functools.partial(jax.jit, static_argnames=('net', 'mesh'))
def begin(
  net: fractal.Fractal, params: dict, batch: Batch, *, mesh: Mesh
) -> tuple[Any, Drawn, Array]:
  """Before level 0's first step.

  Returns:
    (the state, what is drawn by then, [devices] how many steps there are).
  """

  def run(steps: Steps):
    count = jnp.full((1,), steps.count)
    return _with_axis(steps.start), steps.drawn(steps.start), count

  state, *shown = _on_devices(run, net, params, batch, mesh=mesh)
  return state, *jax.lax.with_sharding_constraint(shown, jax.P())


@functools.partial(
  jax.jit, static_argnames=('net', 'mesh'), donate_argnames=('state',)
)
def advance(
  net: fractal.Fractal,
  params: dict,
  batch: Batch,
  state: Any,
  first: int,
  last: int,
  *,
  mesh: Mesh,
) -> tuple[Any, Drawn]:
  """Level 0's steps first .. last - 1: (the state, what is drawn by then)."""

  def run(steps: Steps, state):
    state = jax.tree.map(lambda x: x[0], state)
    state = jax.lax.fori_loop(first, last, steps.step, state)
    return _with_axis(state), steps.drawn(state)

  state, drawn = _on_devices(run, net, params, batch, state, mesh=mesh)
  return state, jax.lax.with_sharding_constraint(drawn, jax.P())


def _with_axis(state):
  """A leading axis for the devices: a state has its own axes on each."""
  return jax.tree.map(lambda x: x[None], state)


def _on_devices(run: Callable, net, params, batch: Batch, *state, mesh):
  """run(steps, *state): each device has the Steps of its own images."""
  keys = jax.vmap(lambda i: jax.random.fold_in(batch.key, i))(batch.index)

  def on_device(params, guide, labels, given, keys, sampling, state):
    how = dict(guided=batch.guided, guide=guide, given=given)
    steps = net.steps(params, labels, keys, sampling, **how)
    return run(steps, *state)

  # Each device generates its own images; nothing crosses devices in the loop.
  over = jax.P(sharding.BATCH)
  specs = (jax.P(), jax.P(), over, over, over, jax.P(), over)
  call = sharding.by_device(on_device, mesh, *specs)
  return call(
    params, batch.guide, batch.labels, batch.given, keys, batch.sampling, state
  )
