"""Where the bits of an image are: the cost of each value, and why.

A fractal model gives every channel value of an image its own probability, so
an image has a map of bits. It is exact where no level masks. With masked levels
a value's bits depend on what is known when it is drawn; here they are averaged
over orders, from random masks, as in `likelihood`.
"""

import dataclasses
import functools
import itertools

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import sharding
from fractal_jax.inference import inputs
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import colour, fractal, masking
from fractal_jax.models.patches import patchify
from fractal_jax.models.types import Array, Draws, Scores, Spec
from fractal_jax.planning import cost


@dataclasses.dataclass(frozen=True)
class Condition:
  """What a level is told by the one above, and what that is worth."""

  level: int  # the level that is told
  name: str
  worth: float  # bits that the image costs more without it
  stderr: float  # 0 if exact


@dataclasses.dataclass(frozen=True)
class Explanation:
  """The bits of one image."""

  each: np.ndarray  # [passes, S, (S,) C] of each value, by random mask
  guide_bits: tuple[np.ndarray, ...]  # per level: [its squares' grid], or empty
  stderr: float  # of the total, over random masks; 0 if exact
  conditions: tuple[Condition, ...]
  flops: tuple[float, ...]  # share of each level in a forward pass
  sides: tuple[int, ...]  # of the patches that each level cuts
  exact: bool
  dropped: int  # masked patches that did not fit their buffers
  colour: colour.Colour  # what the channels of `bits` are

  @property
  def passes(self) -> int:
    """Random masks; 1 if exact."""
    return len(self.each)

  @property
  def bits(self) -> np.ndarray:
    """Bits of each value, [S, (S,) C]."""
    return self.each.mean(0)

  @property
  def total(self) -> float:
    """Bits of the image, guiding pixels included: the sum of all maps."""
    return float(self.bits.sum() + sum(g.sum() for g in self.guide_bits))

  @property
  def bits_per_dim(self) -> float:
    """Bits of the image per channel value."""
    return self.total / self.bits.size

  @property
  def shares(self) -> tuple[float, ...]:
    """The share of each level in the bits.

    Guiding pixels count at the level that draws them, values at the last.
    """
    return tuple(float(g.sum()) / self.total for g in self.guide_bits) + (
      float(self.bits.sum()) / self.total,
    )

  def patches(self, level: int) -> np.ndarray:
    """Bits of the patches that a level cuts, in their grid [n, (n)]."""
    return self._patches(level).mean(0)

  def errors(self, level: int) -> np.ndarray:
    """Standard errors of `patches`, over random masks; 0 if exact."""
    return _stderr(self._patches(level))

  def _patches(self, level: int) -> np.ndarray:
    side, rank = self.sides[level], self.each.ndim - 2
    n = self.each.shape[1] // side
    x = self.each.sum(-1).reshape((self.passes,) + (n, side) * rank)
    return x.sum(tuple(range(2, 2 * rank + 1, 2)))

  def ranked(self, level: int, num: int = 10) -> list[tuple]:
    """The most surprising patches of a level: (place in the grid, bits)."""
    x = self.patches(level)
    best = np.argsort(-x, axis=None, kind='stable')[:num]
    places = zip(*np.unravel_index(best, x.shape))
    return [
      (tuple(map(int, at)), float(x.ravel()[i])) for at, i in zip(places, best)
    ]


def _stderr(x: np.ndarray) -> np.ndarray:
  """Standard errors of means over the first axis; 0 where it has one entry."""
  return x.std(0, ddof=len(x) > 1) / np.sqrt(len(x))


@struct.dataclass
class Question:
  """What an image costs, under its class and conditions or without some."""

  image: Array  # [S, (S,) C]
  label: Array  # -1 for "no class"
  keep: list[Array]  # as in Fractal.__call__


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question, and the condition that it leaves out."""

  question: Question
  level: int = 0  # that is given the condition
  name: str = ''  # of the condition; '' where none is left out


def explain(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  image: ArrayLike,
  label: int | None = None,
  *,
  mesh: Mesh | None = None,
  passes: int = 64,
  seed: int = 0,
  batch: int | None = None,
) -> Job:
  """The job of `api.Model.explain`, whose arguments and errors these are.

  Yields:
    Progress after each batch of masks.

  Returns:
    An Explanation.
  """
  inputs.check_counts(passes=passes, batch=batch)
  inputs.check_seed(seed)
  (image,) = inputs.check_images(np.asarray(image)[None], config.model)
  (label,) = inputs.labels_of(label, 1, config.model)
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  passes = 1 if net.exact else passes
  batch = min(batch or config.eval.batch, passes)
  batch = sharding.padded_batch(batch, mesh)
  key, parts = jax.random.key(seed), sharding.batch_devices(mesh)
  asked, dropped = _questions(net, image, label), 0
  found = [[] for _ in asked]  # of each question: the maps of each batch
  steps = list(itertools.product(range(len(asked)), range(0, passes, batch)))
  for done, (i, start) in enumerate(steps):
    index = start + np.arange(batch)
    with jax.set_mesh(mesh):
      *maps, lost = jax.device_get(
        value_nats(net, params, asked[i].question, key, index, parts=parts)
      )
    found[i].append(maps)
    dropped += int(lost.sum())
    yield Progress('explaining', done + 1, len(steps))
  maps, *without = [_bits(batches, passes) for batches in found]
  total = _totals(maps)
  flops = np.array([level.forward for level in cost.cost(config).levels])
  return Explanation(
    each=maps[-1],
    guide_bits=tuple(g.mean(0) for g in maps[:-1]),
    stderr=float(_stderr(total)),
    conditions=_conditions(asked[1:], without, total),
    flops=tuple((flops / flops.sum()).tolist()),
    sides=tuple(s.patch for s in net.specs[:-1]),
    exact=net.exact,
    dropped=dropped,
    colour=net.colour,
  )


def _questions(
  net: fractal.Fractal, image: np.ndarray, label: int
) -> list[Asked]:
  """What an image costs, told all; then, told all but one condition."""
  keep = [np.ones(s.out_conds, np.float32) for s in net.specs[:-1]]
  out = [Asked(Question(image, np.int32(label), keep))]
  if label >= 0:
    out.append(Asked(Question(image, np.int32(-1), keep), 0, 'class'))
  for i, (kind, spec) in enumerate(zip(net.kinds, net.specs[:-1])):
    for j, name in enumerate(kind.conditions(spec.rank)[: spec.out_conds]):
      one = [x.copy() for x in keep]
      one[i][j] = 0
      out.append(Asked(Question(image, np.int32(label), one), i + 1, name))
  return out


def _conditions(
  asked: list[Asked], without: list[list[np.ndarray]], total: np.ndarray
) -> tuple[Condition, ...]:
  """What each condition is worth.

  Args:
    asked: the question without each.
    without: the maps of each question.
    total: [passes] bits with all of them.
  """
  out = []
  for x, maps in zip(asked, without):
    more = _totals(maps) - total  # by the same masks
    worth, error = float(more.mean()), float(_stderr(more))
    out.append(Condition(x.level, x.name, worth, error))
  return tuple(out)


def _bits(batches: list[list[np.ndarray]], passes: int) -> list[np.ndarray]:
  """The maps of all batches, [passes, ...] each, in bits."""
  maps = [np.concatenate(x)[:passes] for x in zip(*batches)]
  return [x.astype(np.float64) / np.log(2) for x in maps]


def _totals(maps: list[np.ndarray]) -> np.ndarray:
  """The bits of the image in each pass, [passes]."""
  return sum(x.reshape(len(x), -1).sum(1) for x in maps)


@functools.partial(jax.jit, static_argnames=('net', 'parts'))
def value_nats(
  net: fractal.Fractal,
  params: dict,
  question: Question,
  key: Array,
  index: Array,
  *,
  parts: int,
) -> list[Array]:
  """Nats of an image at their places, under one random mask per pass.

  Args:
    net, params: the model.
    question: the image, its class, and which conditions are kept.
    key: of the masks.
    index: [b] which passes.
    parts: devices that share the passes; masks are compacted by device.

  Returns:
    [[b, squares of level 0, ...], ..., values [b, S, (S,) C], dropped]: a map
    of guides for each level, empty where it has none, then of values. Their
    mean over passes is that over orders: masked values are weighted as in the
    likelihood.
  """

  def split(x):
    x = x.reshape((parts, -1) + x.shape[1:])
    return jax.lax.with_sharding_constraint(x, jax.P(sharding.BATCH))

  one = jax.vmap(
    functools.partial(_value_nats, net, params, question),
    spmd_axis_name=sharding.BATCH,
  )
  draws = masking.uniform_draws(key, index)
  *maps, dropped = one(jax.tree.map(split, draws))
  maps = [x.reshape(index.shape + x.shape[2:]) for x in maps]
  return jax.lax.with_sharding_constraint([*maps, dropped], jax.P())


def _value_nats(
  net: fractal.Fractal, params: dict, question: Question, draws: Draws
) -> list[Array]:
  """`value_nats` of one device's passes."""
  b = len(draws.ratio)
  images = jnp.repeat(question.image[None].astype(jnp.int32), b, 0)
  labels = jnp.full(b, question.label, jnp.int32)
  result = net.score(
    params, images, labels, draws, keep=question.keep, train=False
  )
  guides, maps = list(result.guides), []
  for spec in net.specs[:-1]:
    found = jnp.zeros((b, 0))
    if spec.guide:
      grid = (net.specs[0].side // spec.side,) * spec.rank
      found = _placed(net.specs, guides.pop(0), spec.index, b).sum(-1)
      found = found.reshape((b,) + grid)
    maps.append(found)
  values = _placed(net.specs, result.pixels, len(net.specs) - 1, b)
  return [*maps, values.reshape(images.shape), result.dropped]


def _placed(
  specs: tuple[Spec, ...], scores: Scores, level: int, b: int
) -> Array:
  """Nats [b, squares of a level in raster order, C] of weighted scores."""
  sites = (specs[0].side // specs[level].side) ** specs[0].rank
  out = jnp.zeros((b, sites, scores.nats.shape[-1]))
  nats = scores.nats * scores.weight[:, None]
  out = out.at[scores.image, scores.site].add(nats)
  raster = raster_of_site(specs, level)
  return jnp.zeros_like(out).at[:, raster].set(out)


def raster_of_site(specs: tuple[Spec, ...], level: int) -> Array:
  """Raster index [sites] of a level's squares, in the order of Rows.site."""
  n = specs[0].side // specs[level].side
  x = jnp.arange(n ** specs[0].rank).reshape((1,) + (n,) * specs[0].rank + (1,))
  for s in specs[:level]:
    unit = specs[level].side
    s = dataclasses.replace(
      s, channels=1, side=s.side // unit, patch=s.patch // unit
    )
    x = patchify(x, s)
    x = x.reshape((-1,) + x.shape[2:])
  return x.reshape(-1)
