"""The fractal: levels that call the next smaller level (section 3).

`Fractal` is called teacher-forced to score images, and `Fractal.generate`
draws them. Its parameters are one subtree a level: `labels`, `level_0`,
`level_1`, ..., the last of which is the pixel level. Axis letters: types.py.
"""

import dataclasses
import functools

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from fractal_jax import sharding
from fractal_jax.models import ar, colour, layers, mar, masking, pixel, shared
from fractal_jax.models.colour import Colour
from fractal_jax.models.keys import Salt, fold_in
from fractal_jax.models.types import (
  Array,
  Drawn,
  Draws,
  Given,
  Loop,
  Rows,
  Sampling,
  Scores,
  Spec,
)

# A new kind of level: its file, and its entry here.
KINDS = {'ar': ar.ARLevel, 'mar': mar.MARLevel}


@struct.dataclass
class Result:
  """What a teacher-forced pass gives."""

  pixels: Scores
  guides: tuple[Scores, ...]  # of the levels that have a guiding pixel
  dropped: Array  # masked patches that did not fit, all levels


class Fractal(nn.Module):
  """A fractal generative model of any number of levels."""

  specs: tuple[Spec, ...]  # outermost first; the last is the pixel level
  classes: int
  label_dropout: float
  colour: Colour = Colour()

  def setup(self):
    self.labels = Labels(self.classes, self.specs[0].width)
    self.levels = [
      level(spec, name=f'level_{spec.index}')
      for level, spec in zip(self.level_classes(), self.specs)
    ]

  @nn.nowrap
  def level_classes(self):
    kinds = [KINDS[s.kind] for s in self.specs[:-1]]
    return kinds + [pixel.PixelLevel]

  def rows(self, images: Array, labels: Array, draws: Draws, train) -> Rows:
    """The one square of each image, under its class."""
    b = len(images)
    if train and self.label_dropout and draws.keys is not None:
      keys = fold_in(draws.keys, jnp.asarray(Salt.LABEL.value))
      u = jax.vmap(jax.random.uniform)(keys)
      labels = jnp.where(u < self.label_dropout, -1, labels)
    embedding = self.labels(labels)[:, None]  # [B, 1, D]
    spec = self.specs[0]
    return Rows(
      squares=images,
      conds=jnp.tile(embedding, (1, spec.num_conds, 1)),
      weight=jnp.ones(b),
      image=jnp.arange(b),
      site=jnp.zeros(b, jnp.int32),
    )

  def __call__(
    self,
    images: Array,
    labels: Array,
    draws: Draws,
    masks=None,
    keep=None,
    *,
    train: bool,
  ) -> Result:
    """Scores images: the negative log-likelihoods of their values.

    Args:
      images: [B, S, (S,) C], values 0 .. V - 1 (of RGB, whatever the colour
        space of the model).
      labels: [B], -1 for "no class".
      draws: the random draws of masked levels, and of dropped labels.
      masks: masks to use in place of random ones, one entry a level (None at
        ar levels).
      keep: for each level but the first, factors [n] of the conditions that it
        gets: 0 drops one.
      train: whether dropout and label dropping are on.

    Returns:
      A Result. For ar levels all values are scored; masked levels score those
      of masked patches. Channels are those of the colour space, in its order.
    """
    rows = self.rows(self.colour.encode(images), labels, draws, train)
    guides, dropped = [], jnp.zeros((), jnp.int32)
    for i, level in enumerate(self.levels[:-1]):
      mask = None if masks is None else masks[i]
      rows, guide, lost = level(rows, draws, mask, train=train)
      if keep is not None:
        rows = rows.replace(conds=rows.conds * keep[i][:, None])
      guides += [] if guide is None else [self.named(guide)]
      dropped += lost
    values = rows.squares.reshape(len(rows.squares), -1)  # [N, C]
    nats = self.levels[-1](rows.conds, values, train=train)
    pixels = Scores(nats, rows.weight, rows.image, rows.site)
    return Result(self.named(pixels), tuple(guides), dropped)

  @nn.nowrap
  def named(self, scores: Scores) -> Scores:
    """Scores with channels as they are named, not as they are predicted."""
    return scores.replace(nats=self.colour.unordered(scores.nats))

  def pixel_logits(self, images, labels, draws, masks=None) -> Array:
    """Logits [N, C, V] of the pixels that reach the pixel level."""
    rows = self.rows(self.colour.encode(images), labels, draws, False)
    for i, level in enumerate(self.levels[:-1]):
      mask = None if masks is None else masks[i]
      rows, _, _ = level(rows, draws, mask, train=False)
    values = rows.squares.reshape(len(rows.squares), -1)
    logits = self.levels[-1].logits(rows.conds, values)
    return self.colour.unordered(logits, 1)

  @nn.nowrap
  def whole(self, params: dict) -> dict:
    """Parameters as `apply` reads them: every level with its blocks."""
    return shared.whole(params, self.specs)

  @nn.nowrap  # pure: it calls `apply` itself, inside loops
  def generate(
    self,
    params,
    labels: Array,
    keys: Array,
    sampling: Sampling,
    *,
    guided: bool,
    orders=None,
    given: Given | None = None,
  ) -> Drawn:
    """Generates images; pure: call it on the unbound module, under jit.

    Args:
      params: the parameters, without their logical axes.
      labels: [B] classes, -1 for "no class".
      keys: [B] typed keys: an image is a function of its own key.
      sampling: how values are drawn. Iterations: one number a level.
      guided: whether to run the unconditional stream (guidance is not 1).
      orders: orders of the patches at each level, in place of random ones.
      given: values that are known, and returned as they are. Where none is,
        the images are those drawn without.

    Returns:
      Images [B, S, (S,) C].
    """
    how = dict(guided=guided, orders=orders, given=given)
    return self.loop(params, labels, keys, sampling, **how).run()

  @nn.nowrap
  def loop(
    self, params, labels, keys, sampling, *, guided, orders=None, given=None
  ) -> Loop:
    """Level 0's steps of `generate`, of which one can run some at a time."""
    params = self.whole(params)
    levels = [
      level(spec, parent=None)
      for level, spec in zip(self.level_classes(), self.specs)
    ]
    if not sampling.iterations:
      lengths = tuple(s.length for s in self.specs[:-1])
      sampling = sampling.replace(iterations=lengths)

    def loop(i, conds, keys, guidance, given):
      return levels[i].generate(
        params[f'level_{i}'],
        conds,
        keys,
        guidance,
        sampling,
        functools.partial(draw, i + 1),
        None if orders is None else orders[i],
        given,
      )

    def draw(i, *args):
      if i < len(levels) - 1:
        return loop(i, *args).run()
      conds, keys, guidance, given = args
      return levels[i].generate(
        params[f'level_{i}'], conds, keys, guidance, sampling, given
      )

    embed = Labels(self.classes, self.specs[0].width, parent=None)
    streams = [labels, jnp.full_like(labels, -1)] if guided else [labels]
    conds = embed.apply({'params': params['labels']}, jnp.stack(streams))
    conds = jnp.repeat(conds[:, :, None], self.specs[0].num_conds, 2)
    known = None if given is None else self.colour.encode_given(given)
    whole = loop(0, conds, keys, sampling.guidance, known)

    def drawn(state):
      found = self.colour.decode_drawn(whole.drawn(state), given)
      if sampling.record and given is not None:  # there before the first draw
        found = found.replace(when=jnp.where(given.known, -1, found.when))
      return found

    return dataclasses.replace(whole, drawn=drawn)


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


def from_config(model) -> Fractal:
  """The model of a config's section `model`."""
  return Fractal(
    specs(model), model.classes, model.label_dropout, colour.from_config(model)
  )


def init(net: Fractal, key):
  """Initial parameters, with their logical axes; under jit or eval_shape."""
  spec = net.specs[0]
  side = (spec.side,) * spec.rank
  images = jnp.zeros((1,) + side + (spec.channels,), jnp.int32)
  draws = Draws(jax.random.split(key, 1), jnp.zeros(1))
  labels = jnp.zeros(1, jnp.int32)
  params = net.init(key, images, labels, draws, train=False)['params']
  return shared.once(params, net.specs)


def specs(model) -> tuple[Spec, ...]:
  """The levels of a config's section `model`, outermost first."""
  last = len(model.sizes) - 1
  order = tuple(model.channel_order) or range(model.channels)
  out = []
  offered = None  # conditions that the level above can give
  for i, kind in enumerate(model.kinds):
    wanted = model.num_conds
    if not isinstance(wanted, int):
      wanted = wanted[i] if i < last else 1
    elif offered is not None:
      wanted = min(wanted, offered)
    takes = 1 if i == last else KINDS[kind].takes(wanted)
    offered = None if i == last else KINDS[kind].emits(model.rank)
    out.append(
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
        num_conds=takes,
        out_conds=0,
        kind=kind,
        shares=shared.owners(model)[i],
        guide=bool(model.guide and kind == 'mar' and i > 0),
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
      )
    )
  below = [s.num_conds for s in out[1:]] + [0]
  return tuple(dataclasses.replace(s, out_conds=n) for s, n in zip(out, below))


def problems(model) -> list[str]:
  """Every rule that a config's section `model` breaks."""
  out = []

  def rule(ok, text):
    if not ok:
      out.append(text)

  sizes = tuple(model.sizes)
  levels = len(sizes)
  rule(
    all(isinstance(s, int) for s in sizes),
    f'model.sizes={sizes} must be whole numbers',
  )
  rule(
    levels >= 2 and sizes[-1] == 1,
    f'model.sizes={sizes} must have two or more entries and end in 1, '
    'the pixel level',
  )
  for a, b in zip(sizes, sizes[1:]):
    rule(
      b >= 1 and a > b and a % b == 0,
      f'model.sizes={sizes}: {b} does not divide {a} into smaller patches',
    )
  shapes = True
  for name in ('kinds', 'widths', 'depths', 'heads'):
    n = len(model[name])
    shapes &= n == levels
    rule(
      n == levels,
      f'model.{name} has {n} entries, model.sizes has {levels}: give one a '
      'level',
    )
  conds = model.num_conds
  listed = not isinstance(conds, int)
  if listed:
    shapes &= len(conds) == levels - 1
    rule(
      len(conds) == levels - 1,
      f'model.num_conds={tuple(conds)} must be one number, or one for each of '
      f'the {levels - 1} levels above pixels',
    )
  rule(
    all(n >= 1 for n in (conds if listed else [conds])),
    f'model.num_conds={conds} must be at least 1',
  )
  for i, kind in enumerate(model.kinds):
    wanted = ['pixel'] if i == len(model.kinds) - 1 else sorted(KINDS)
    known = kind in wanted
    shapes &= known
    rule(
      known,
      f"model.kinds[{i}]='{kind}' must be {' or '.join(wanted)}",
    )
  for name in ('widths', 'heads'):
    good = all(n >= 1 for n in model[name])
    shapes &= good
    rule(good, f'model.{name}={tuple(model[name])} must all be at least 1')
  if shapes:
    for i, (w, h) in enumerate(zip(model.widths, model.heads)):
      shapes &= w % h == 0
      rule(w % h == 0, f'model.heads[{i}]={h} does not divide widths[{i}]={w}')
  least = [1] * (len(model.depths) - 1) + [0]
  rule(
    all(d >= m for d, m in zip(model.depths, least)),
    f'model.depths={tuple(model.depths)} must be at least 1 (pixel level: 0)',
  )
  if shapes and listed and model.rank in (1, 2):
    for i in range(1, levels - 1):
      given = KINDS[model.kinds[i - 1]].emits(model.rank)
      rule(
        conds[i] <= given,
        f'model.num_conds[{i}]={conds[i]}, but level {i - 1} '
        f"('{model.kinds[i - 1]}') gives only {given}",
      )
  rule(model.rank in (1, 2), f'model.rank={model.rank} must be 1 or 2')
  rule(model.channels >= 1, f'model.channels={model.channels} must be >= 1')
  rule(
    model.num_values >= 2,
    f'model.num_values={model.num_values} must be at least 2',
  )
  rule(model.classes >= 1, f'model.classes={model.classes} must be at least 1')
  for name in ('mean', 'std', 'channel_weights'):
    n = len(model[name])
    rule(
      n == model.channels,
      f'model.{name} has {n} entries, model.channels is {model.channels}: '
      'give one a channel',
    )
  rule(all(s > 0 for s in model.std), 'model.std must be above 0')
  weights = tuple(model.channel_weights)
  rule(
    all(w >= 0 for w in weights) and sum(weights) > 0,
    f'model.channel_weights={weights} must be >= 0, and not all 0',
  )
  for name in ('dropout', 'label_dropout'):
    rule(0 <= model[name] < 1, f'model.{name}={model[name]} must be in [0, 1)')
  rule(
    model.mask_law in masking.LAWS,
    f"model.mask_law='{model.mask_law}' must be {' or '.join(masking.LAWS)}",
  )
  rule(model.mask_std > 0, f'model.mask_std={model.mask_std} must be above 0')
  dtypes = ('float32', 'bfloat16', 'float16')
  rule(
    model.dtype in dtypes,
    f"model.dtype='{model.dtype}' must be one of {', '.join(dtypes)}",
  )
  rule(
    model.remat in layers.REMAT,
    f"model.remat='{model.remat}' must be one of {', '.join(layers.REMAT)}",
  )
  rule(model.unroll >= 0, f'model.unroll={model.unroll} must be 0 or more')
  chunks = tuple(model.chunks)
  good = len(chunks) in (0, levels) and all(n >= 1 for n in chunks)
  shapes &= good
  rule(
    good,
    f'model.chunks={chunks} must have one number, at least 1, for each of the '
    f'{levels} levels (or none)',
  )
  for level in model.init_levels:
    rule(
      0 <= level < levels,
      f'model.init_levels names level {level}: levels are 0 to {levels - 1}',
    )
  rule(
    bool(model.init_from) == bool(model.init_levels),
    'model.init_from and model.init_levels go together: set both or neither',
  )
  out += colour.problems(model)
  if shapes:
    blocks = [KINDS[kind].BLOCK for kind in model.kinds[:-1]]
    out += shared.problems(model, [*blocks, pixel.PixelLevel.BLOCK])
  if not out:
    for spec in specs(model)[:-1]:
      out += KINDS[spec.kind].problems(spec)
  return out
