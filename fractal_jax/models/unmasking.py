"""How a masked level generates: some patches in each step, in some order.

Patches leave the mask step by step. A step computes the conditions of its
patches from those that are there, and the next level draws them all at once.
How many patches each step draws is known when the program is compiled. Each
number would be a program of its own, so steps are padded to a few sizes. Axis
letters: types.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models import masking, orders
from fractal_jax.models.keys import fold_in
from fractal_jax.models.patches import patchify, unpatchify
from fractal_jax.models.types import (
  Array,
  Drawn,
  DrawPatch,
  Given,
  Network,
  Request,
  Sampling,
  Spec,
  Steps,
  undrawn,
)


class Program(NamedTuple):
  """What steps have in common that are compiled once."""

  size: int  # patches that it computes: at least as many as it draws
  guided: bool  # whether all networks run, or the first one alone


@dataclasses.dataclass(frozen=True)
class Plan:
  """The steps of a square, as NumPy arrays [steps]."""

  still: np.ndarray  # patches that are masked before each
  left: np.ndarray  # and after it
  program: np.ndarray  # its number among the programs
  programs: list[Program]


def plan(spec: Spec, sampling: Sampling, order: str, networks: int) -> Plan:
  """The steps of a level's squares.

  Args:
    spec: the level.
    sampling: iterations, step sizes, the interval of guidance.
    order: a name of `orders.NAMES`, or 'given'.
    networks: 2 where another one guides.
  """
  steps = min(spec.length, sampling.iterations[spec.index])
  left = masking.unmask_counts(spec.length, steps, sampling.step_sizes)
  left = np.array(left)
  still = np.concatenate([[spec.length], left[:-1]])
  left, still = left[still > left], still[still > left]
  # By confidence, patches are chosen when all that are masked are drawn.
  sizes = still if order == 'confidence' else still - left
  guided = np.ones(len(still), bool)
  if networks > 1 and spec.index == 0:
    there = 1 - still / spec.length
    guided = np.array([sampling.guides(share) for share in there])
  outermost = spec.index == 0 and guided.all()
  programs = [
    Program(size, on)
    for on in np.unique(guided).tolist()
    for size in masking.padded_sizes(
      list(sizes[guided == on]), outermost=outermost
    )
  ]
  fits = [[p.guided == on and p.size >= size for p in programs]
          for on, size in zip(guided, sizes)]  # fmt: skip
  return Plan(still, left, np.argmax(fits, 1), programs)


class State(NamedTuple):
  """Squares between two steps."""

  drawn: Drawn  # [N, L, p, (p,) C]
  order: Array  # [N, L], see orders.py


@dataclasses.dataclass(frozen=True)
class MaskedSquares:
  """N squares of a masked level that are generated.

  Patches that are known as a whole count as generated in the first steps, and
  are seen from the start. At level 0 a linear schedule raises the guidance with
  the number of patches that are there.
  """

  networks: list[Network]  # this level of each
  request: Request
  sampling: Sampling
  draw_patch: DrawPatch  # the next level
  guide: Array | None  # [N, C] the mean colour of each square
  order: Array | None  # [L] in place of that of `sampling`

  @property
  def spec(self) -> Spec:
    """The level; that of a guide has the same sizes."""
    return self.networks[0].spec

  @property
  def order_name(self) -> str:
    """A name of `orders.NAMES`, or 'given'."""
    if self.order is not None:
      return 'given'
    names = self.sampling.order
    return names[self.spec.index] if names else 'random'

  @functools.cached_property
  def given(self) -> Given | None:
    """What is known, by patches: [N, L, p, (p,) C]."""
    return jax.tree.map(lambda x: patchify(x, self.spec), self.request.given)

  @functools.cached_property
  def known(self) -> Array | None:
    """[N, L] which patches are known as a whole."""
    if self.given is None:
      return None
    return self.given.known.all(tuple(range(2, self.given.known.ndim)))

  def steps(self) -> Steps:
    """All steps, whose result are the squares."""
    s, n = self.spec, len(self.request.keys)
    steps = plan(s, self.sampling, self.order_name, len(self.networks))
    branches = [functools.partial(self.step, p) for p in steps.programs]
    program, left, still = jax.tree.map(
      jnp.asarray, (steps.program, steps.left, steps.still)
    )
    shape = (n, s.length) + (s.patch,) * s.rank + (s.channels,)
    start = State(undrawn(shape, self.sampling, self.given), self.first_order())
    return Steps(
      count=len(steps.still),
      start=start,
      step=lambda t, state: jax.lax.switch(
        program[t], branches, state, left[t], still[t]
      ),
      drawn=lambda state: jax.tree.map(lambda x: unpatchify(x, s), state.drawn),
    )

  def first_order(self) -> Array:
    """Each square's order [N, L], the patches that are known at its end."""
    s, keys = self.spec, self.request.keys
    if self.order_name == 'given':
      order = jnp.broadcast_to(jnp.asarray(self.order), (len(keys), s.length))
    else:
      order = orders.of_squares(self.order_name, keys, s.grid)
    if self.known is not None:
      last = jnp.take_along_axis(self.known, order, 1).argsort(-1, stable=True)
      order = jnp.take_along_axis(order, last, 1)
    return order

  def step(
    self, program: Program, state: State, left: Array, still: Array
  ) -> State:
    """Generates the patches of the order's places left .. still - 1.

    It computes program.size of them, at least as many, and drops the others.
    """
    size, n = program.size, len(self.request.keys)
    rows = jnp.arange(n)[:, None]
    first = jnp.maximum(still - size, 0)
    slots = first + jnp.arange(size)
    place = jax.lax.dynamic_slice_in_dim(state.order, first, size, 1)  # [N, m]
    patches = self.patches(program, state, place, left, still)  # [N, m, ...]
    used = (slots >= left) & (slots < still)
    order = state.order
    if self.order_name == 'confidence':
      nats = patches.nats.sum(tuple(range(2, patches.nats.ndim)))  # [N, m]
      # The likeliest of those still masked come last, and are kept.
      rank = jnp.where(slots < still, -nats, jnp.inf).argsort(-1)
      place = jnp.take_along_axis(place, rank, 1)
      patches = jax.tree.map(lambda x: x[rows, rank], patches)
      order = jax.lax.dynamic_update_slice_in_dim(order, place, first, 1)
    at = jnp.where(used, place, self.spec.length)  # out of range: dropped
    drawn = jax.tree.map(
      lambda all, new: all.at[rows, at].set(new, mode='drop'),
      state.drawn,
      patches,
    )
    return State(drawn, order)

  def patches(
    self,
    program: Program,
    state: State,
    place: Array,
    left: Array,
    still: Array,
  ) -> Drawn:
    """Draws the patches of places [N, m], as Drawn [N, m, p, (p,) C]."""
    s, request = self.spec, self.request
    n, size = place.shape
    rows = jnp.arange(n)[:, None]
    mask = jnp.zeros((n, s.length), bool)
    mask = mask.at[rows, state.order].set(jnp.arange(s.length) < still)
    if self.known is not None:
      mask &= ~self.known

    def conditions(network, conds):  # [G, N, n, .] to [G, N m, n, D]
      streams = len(conds)
      found = network.level.conds_of(
        network.params,
        state.drawn.values,
        mask,
        conds.reshape((-1,) + conds.shape[2:]),
        self.guide,
        jnp.tile(place, (streams, 1)),
      )  # [G N, m, n, D]
      return found.reshape((streams, n * size) + found.shape[2:])

    networks = self.networks if program.guided else self.networks[:1]
    scale = request.guidance
    if s.index == 0 and self.sampling.schedule == 'linear':
      # The published schedule counts one patch as masked at the last step.
      seen = s.length - jnp.maximum(left, 1)
      scale = 1 + (scale - 1) * seen / s.length
    wanted = Request(
      conds=tuple(map(conditions, networks, request.conds)),
      keys=fold_in(request.keys[:, None], place).reshape(-1),
      guidance=scale,
      given=jax.tree.map(
        lambda x: x[rows, place].reshape((-1,) + x.shape[2:]), self.given
      ),
    )
    patches = self.draw_patch(wanted)  # [N m, p, (p,) C]
    if self.sampling.record:
      when = (s.length - still) * s.patch_values + patches.when * size
      patches = patches.replace(when=when)
    return jax.tree.map(lambda x: x.reshape((n, size) + x.shape[1:]), patches)
