"""The fractal: a generator that calls a smaller generator (section 3).

A level cuts squares into patches, and each patch is a square of the next level.
The last one, the pixel level, has the channels of a single pixel. In scoring
all squares of a level are rows of one batch, so the recursion is a loop:

  rows = the image under its class
  for level in levels above the pixels:
    rows = level(rows)                  # the patches, each with its conditions
  nats = pixel_level(rows)

In generating a level needs a patch to go on to the next, so it calls down:

  def square(i, conditions):            # level i draws a square
    for each patch, as the kind of level i has it:
      patch = square(i + 1, the patch's conditions)
  image = square(0, its class)

What a level is, and all that may be asked of it, is in level.py; the kinds are
in kinds.py. Guidance runs a second stream beside the first, down to the pixel
level, where guidance.py mixes the logits of both. Parameters are one subtree
per level: `labels`, `level_0`, `level_1`, ... Axis letters: types.py.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import chex
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fractal_jax import sharding
from fractal_jax.models import colour, layers, pixel, shared
from fractal_jax.models.colour import Colour
from fractal_jax.models.keys import Salt, fold_in
from fractal_jax.models.kinds import KINDS
from fractal_jax.models.types import (
  Array,
  Drawn,
  Draws,
  Given,
  Network,
  Request,
  Rows,
  Sampling,
  Scores,
  Spec,
  Steps,
)


@struct.dataclass
class Result:
  """What a teacher-forced pass gives."""

  pixels: Scores
  guides: tuple[Scores, ...]  # of the levels that have a guiding pixel
  dropped: Array  # masked patches that did not fit, all levels


class Fractal(nn.Module):
  """A fractal generative model of any number of levels.

  `score` and `generate` are pure functions of the parameters. `apply` is for
  parameters in which levels that share blocks have been given theirs.
  """

  specs: tuple[Spec, ...]  # outermost first; the last is the pixel level
  classes: int
  label_dropout: float  # the share of labels that training drops
  colour: Colour = Colour()
  unknown: bool = False  # whether values may be marked: ~v, read as v

  @property
  def kinds(self) -> list[type]:
    """The class of each level."""
    return [KINDS[s.kind] for s in self.specs[:-1]] + [pixel.PixelLevel]

  @property
  def exact(self) -> bool:
    """Whether one pass gives the exact likelihood."""
    return all(kind.EXACT for kind in self.kinds[:-1])

  @property
  def causal(self) -> bool:
    """Whether a value depends on no patch but those before it, in order."""
    return all(kind.CAUSAL for kind in self.kinds[:-1])

  @property
  def masks(self) -> bool:
    """Whether some level draws at random which patches are scored."""
    return any(kind.MASKS for kind in self.kinds[:-1])

  def setup(self) -> None:
    self.labels = Labels(self.classes, self.specs[0].width)
    self.levels = [
      kind(spec, name=f'level_{spec.index}')
      for kind, spec in zip(self.kinds, self.specs)
    ]

  # Scoring.

  @nn.nowrap  # pure
  def score(
    self,
    params: dict,
    images: Array,
    labels: Array,
    draws: Draws,
    masks: Sequence | None = None,
    keep: Sequence | None = None,
    *,
    train: bool,
    rngs: dict | None = None,
  ) -> Result:
    """Scores images: the negative log-likelihoods of their values.

    Args:
      params: the parameters by level, without their logical axes.
      images: [B, S, (S,) C], values 0 .. V - 1 (of RGB, whatever the colour
        space of the model); with `unknown`, ~v of what is not known.
      labels: [B], -1 for "no class".
      draws: the random draws of masked levels, and of dropped labels.
      masks: masks to use in place of random ones, one entry per level (None at
        levels that do not mask).
      keep: for each level but the first, factors [n] of the conditions that it
        gets: 0 drops one.
      train: whether dropout and label dropping are on.
      rngs: the key named 'dropout', where `train`.

    Returns:
      A Result. Levels that do not mask score all values, the others those of
      masked patches. Channels are those of the colour space, in its order.
    """
    variables = {'params': shared.expand(params, self.specs)}
    return self.apply(
      variables, images, labels, draws, masks, keep, train=train, rngs=rngs
    )

  def __call__(
    self,
    images: Array,
    labels: Array,
    draws: Draws,
    masks: Sequence | None = None,
    keep: Sequence | None = None,
    *,
    train: bool,
  ) -> Result:
    """What `score` does, as a flax module; with its arguments."""
    rows, guides, dropped = self.down(
      images, labels, draws, masks, keep, train=train
    )
    nats = self.levels[-1](rows.conds, values_of(rows), train=train)
    pixels = self.named(Scores(nats, rows.weight, rows.image, rows.site))
    if self.unknown:  # in series a site is a place
      known = images[pixels.image, pixels.site] >= 0
      pixels = pixels.replace(nats=jnp.where(known, pixels.nats, 0))
    return Result(pixels, tuple(guides), dropped)

  @nn.nowrap  # pure
  def predictive(
    self,
    params: dict,
    images: Array,
    labels: Array,
    draws: Draws,
    masks: Sequence | None = None,
  ) -> tuple[Rows, Array]:
    """The rows that reach the pixel level, and their logits [N, C, V].

    Channels are those of the data, in its order; arguments as of `score`.
    """

    def run(self):
      rows, _, _ = self.down(images, labels, draws, masks, train=False)
      logits = self.levels[-1].logits(rows.conds, values_of(rows))
      return rows, self.colour.unordered(logits, 1)

    return self.apply({'params': shared.expand(params, self.specs)}, method=run)

  def down(
    self,
    images: Array,
    labels: Array,
    draws: Draws,
    masks: Sequence | None = None,
    keep: Sequence | None = None,
    *,
    train: bool,
  ) -> tuple[Rows, list[Scores], Array]:
    """Through all levels above the pixels; the arguments are those of `score`.

    Returns:
      The rows of the pixel level, the guides' scores, and how many masked
      patches did not fit.
    """
    if self.unknown:
      images = jnp.where(images < 0, ~images, images)
    rows = self.rows(self.colour.encode(images), labels, draws, train)
    guides, dropped = [], jnp.zeros((), jnp.int32)
    for i, level in enumerate(self.levels[:-1]):
      mask = None if masks is None else masks[i]
      rows, guide, lost = level(rows, draws, mask, train=train)
      if keep is not None:
        rows = rows.replace(conds=rows.conds * keep[i][:, None])
      guides += [] if guide is None else [self.named(guide)]
      dropped += lost
    return rows, guides, dropped

  def rows(
    self, images: Array, labels: Array, draws: Draws, train: bool
  ) -> Rows:
    """The one square of each image, under its class."""
    b, top = len(images), self.specs[0]
    side = (top.side,) * top.rank
    chex.assert_shape(images, (b, *side, top.channels))
    chex.assert_shape(labels, (b,))
    if train and self.label_dropout and draws.keys is not None:
      keys = fold_in(draws.keys, jnp.asarray(Salt.LABEL.value))
      u = jax.vmap(jax.random.uniform)(keys)
      labels = jnp.where(u < self.label_dropout, -1, labels)
    embedding = self.labels(labels)[:, None]  # [B, 1, D]
    return Rows(
      squares=images,
      conds=jnp.tile(embedding, (1, top.num_conds, 1)),
      weight=jnp.ones(b),
      image=jnp.arange(b),
      site=jnp.zeros(b, jnp.int32),
    )

  @nn.nowrap
  def named(self, scores: Scores) -> Scores:
    """Scores with channels as they are named, not as they are predicted."""
    return scores.replace(nats=self.colour.unordered(scores.nats))

  # Generating.

  @nn.nowrap
  def generate(
    self,
    params: dict,
    labels: Array,
    keys: Array,
    sampling: Sampling,
    *,
    guided: bool,
    guide: 'Guide | None' = None,
    orders: Sequence | None = None,
    given: Given | None = None,
  ) -> Drawn:
    """Images [B, S, (S,) C]: all of `steps`, whose arguments these are.

    It is pure: call it on the unbound module, under jit.
    """
    return self.steps(
      params,
      labels,
      keys,
      sampling,
      guided=guided,
      guide=guide,
      orders=orders,
      given=given,
    ).run()

  @nn.nowrap
  def by_level(self, sampling: Sampling) -> Sampling:
    """Settings by level, where they have an entry for each that draws."""

    def spread(x):
      if jnp.ndim(x) == 0:
        return x
      levels = jnp.ones(len(self.specs), jnp.float32)
      at = jnp.array(drawing(self.specs))
      return levels.at[at].set(jnp.asarray(x, jnp.float32))

    lengths = tuple(s.length for s in self.specs[:-1])
    return sampling.replace(
      guidance=spread(sampling.guidance),
      temperature=spread(sampling.temperature),
      iterations=sampling.iterations or lengths,
    )

  @nn.nowrap  # pure: it calls `apply` itself, inside loops
  def steps(
    self,
    params: dict,
    labels: Array,
    keys: Array,
    sampling: Sampling,
    *,
    guided: bool,
    guide: 'Guide | None' = None,
    orders: Sequence | None = None,
    given: Given | None = None,
  ) -> Steps:
    """The generation of images, by steps of level 0.

    Args:
      params: the parameters by level, without their logical axes.
      labels: [B] classes, -1 for "no class".
      keys: [B] typed keys: an image is a function of its own key.
      sampling: how values are drawn. Iterations: one number per level.
      guided: whether to run a second stream (guidance is not 1).
      guide: the network of the second stream, under the same classes; None:
        this one, without classes.
      orders: orders of the patches at each level, in place of the sampling's.
      given: values that are known, and returned as they are. Where none is,
        the images are those drawn without.

    Returns:
      The steps, to be run at once or some at a time.
    """
    sampling = self.by_level(sampling)
    orders = (None,) * len(self.specs) if orders is None else (*orders, None)
    # A second stream that is not there in all steps is a network of its own,
    # at level 0; below, one network does the work of both.
    apart = guided and guide is None and sampling.interval != (0.0, 1.0)
    own = Guide(self, params)
    runs = streams(own, guide, labels, guided=guided, apart=apart)
    networks = [network.levels() for network, _ in runs]
    conds = tuple(network.conds(*under) for network, under in runs)

    def squares(i: int, request: Request) -> Steps:
      """Level i draws squares, and calls level i + 1 for their patches."""

      def draw_patch(wanted: Request) -> Drawn:
        if apart:
          wanted = wanted.replace(conds=(jnp.concatenate(wanted.conds),))
        return squares(i + 1, wanted).run()

      here = [levels[i] for levels in networks[: len(request.conds)]]
      steps = self.kinds[i].generate(
        here, request, sampling, draw_patch, orders[i]
      )
      scope = jax.named_scope(f'level_{i}')  # for profiles
      return dataclasses.replace(steps, step=scope(steps.step))

    known = None if given is None else self.colour.encode_given(given)
    steps = squares(0, Request(conds, keys, sampling.guidance, known))
    decode = lambda state: self.colour.decode_drawn(steps.drawn(state), given)
    return dataclasses.replace(steps, drawn=decode)


@struct.dataclass
class Guide:
  """A network with its parameters, as one argument of compiled programs."""

  net: Fractal = struct.field(pytree_node=False)
  params: dict

  def levels(self) -> list[Network]:
    """Its levels, outermost first."""
    params = shared.expand(self.params, self.net.specs)
    return [
      Network(kind(s, parent=None), params[f'level_{s.index}'])
      for kind, s in zip(self.net.kinds, self.net.specs)
    ]

  def conds(self, *labels: Array) -> Array:
    """What level 0 is given under each of [B] labels, [G, B, n, D]."""
    top = self.net.specs[0]
    embed = Labels(self.net.classes, top.width, parent=None)
    conds = embed.apply({'params': self.params['labels']}, jnp.stack(labels))
    return jnp.repeat(conds[:, :, None], top.num_conds, 2)


def streams(
  own: Guide, guide: Guide | None, labels: Array, *, guided: bool, apart: bool
) -> list[tuple[Guide, list[Array]]]:
  """The networks that run, each with the [B] labels of its guidance streams.

  Where nothing guides, `own` alone runs; else `guide` too, or `own` without
  classes, which is a network of its own where the two run apart.
  """
  none = jnp.full_like(labels, -1)
  if not guided:
    return [(own, [labels])]
  if guide is not None:
    return [(own, [labels]), (guide, [labels])]
  if apart:
    return [(own, [labels]), (own, [none])]
  return [(own, [labels, none])]


def drawing(specs: tuple[Spec, ...]) -> list[int]:
  """The levels that draw values: those with a guiding pixel, and the last."""
  return [s.index for s in specs if s.guide or s.index == len(specs) - 1]


def values_of(rows: Rows) -> Array:
  """The channel values [N, C] of rows of single pixels."""
  return rows.squares.reshape(len(rows.squares), -1)


class Labels(nn.Module):
  """The class embedding, with a learned vector for "no class"."""

  classes: int
  width: int

  @nn.compact
  def __call__(self, labels: Array) -> Array:
    """Labels [...], -1 for "no class", to [..., D]."""
    axes = (None, 'embed')
    table = self.param(
      'table', layers.logical(layers.TABLE, *axes), (self.classes, self.width)
    )
    none = self.param(
      'none', layers.logical(layers.TABLE, *axes), (1, self.width)
    )
    table, none = (sharding.gathered(x, *axes) for x in (table, none))
    # Not jnp.where: see mar.py.
    known = (labels >= 0)[..., None].astype(table.dtype)
    return table[labels] * known + none[0] * (1 - known)


def from_config(model: ConfigDict) -> Fractal:
  """The model of a config's section `model`."""
  return Fractal(
    specs(model),
    model.classes,
    model.label_dropout,
    colour.from_config(model),
    model.unknown,
  )


def init(net: Fractal, key: Array) -> dict:
  """Initial parameters, with their logical axes; under jit or eval_shape."""
  spec = net.specs[0]
  side = (spec.side,) * spec.rank
  images = jnp.zeros((1,) + side + (spec.channels,), jnp.int32)
  draws = Draws(jax.random.split(key, 1), jnp.zeros(1))
  labels = jnp.zeros(1, jnp.int32)
  params = net.init(key, images, labels, draws, train=False)['params']
  return shared.collapse(params, net.specs)


@functools.cache  # tracing takes a second, and a run asks five times
def boxed_params(net: Fractal) -> dict:
  """Shapes of the parameters in flax's boxes of logical axes; runs nothing.

  It is one tree for all who ask: make another one to change it.
  """
  return jax.eval_shape(lambda: init(net, jax.random.key(0)))


def specs(model: ConfigDict) -> tuple[Spec, ...]:
  """The levels of a config's section `model`, outermost first."""
  last = len(model.sizes) - 1
  order = tuple(model.channel_order) or range(model.channels)
  taken = [*conditions_taken(model), 0]
  return tuple(
    Spec(
      index=i,
      side=model.sizes[i],
      patch=model.sizes[i + 1] if i < last else 1,
      rank=model.rank,
      channels=model.channels,
      values=model.num_values,
      width=model.widths[i],
      depth=model.depths[i],
      heads=model.heads[i],
      cond_width=model.widths[max(i - 1, 0)],
      num_conds=taken[i],
      out_conds=taken[i + 1],
      kind=kind,
      shares=shared.owners(model)[i],
      guide=bool(model.guide and 0 < i < last and KINDS[kind].GUIDES),
      mean=tuple(model.mean[c] for c in order),
      std=tuple(model.std[c] for c in order),
      dropout=model.dropout,
      mask_law=model.mask_law,
      mask_mean=model.mask_mean,
      mask_std=model.mask_std,
      dtype=jnp.dtype(model.dtype),
      remat=model.remat,
      unroll=model.depths[i] <= model.unroll,
      chunks=model.chunks[i] if model.chunks else 1,
      # 'auto' is found out on the devices of a run: see kernels/proof.py.
      kernels='pallas' if model.kernels == 'pallas' else 'xla',
    )
    for i, kind in enumerate(model.kinds)
  )


def conditions_taken(model: ConfigDict) -> list[int]:
  """How many conditions each level takes from the one above it."""
  out, offered = [], math.inf
  for i, name in enumerate(model.kinds[:-1]):
    wanted = model.num_conds
    wanted = min(wanted, offered) if isinstance(wanted, int) else wanted[i]
    out.append(KINDS[name].takes(wanted))
    offered = len(KINDS[name].conditions(model.rank))
  return [*out, 1]  # the pixel level reads the first alone
