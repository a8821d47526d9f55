"""Where the bits of an image are: the cost of each value, and why.

A fractal model gives every channel value of an image its own probability, so
an image has a map of bits. With ar levels alone it is exact. With masked levels
a value's bits depend on what is known when it is drawn; here they are averaged
over orders, from random masks, as in `likelihood`.
"""

import base64
import dataclasses
import functools
import html
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import sharding
from fractal_jax.inference import sample
from fractal_jax.models import colour, masking
from fractal_jax.models.patches import patchify
from fractal_jax.models.types import Draws
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
  guide_bits: tuple[np.ndarray, ...]  # a level: [its squares' grid] or size 0
  stderr: float  # of the total, over random masks; 0 if exact
  conditions: tuple[Condition, ...]
  flops: tuple[float, ...]  # share of each level in a forward pass
  sides: tuple[int, ...]  # of the patches that each level cuts
  exact: bool
  dropped: int  # masked patches that did not fit their buffers
  colour: colour.Colour  # what the channels of `bits` are

  @property
  def passes(self) -> int:
    return len(self.each)

  @property
  def bits(self) -> np.ndarray:
    """Bits of each value, [S, (S,) C]."""
    return self.each.mean(0)

  @property
  def total(self) -> float:
    """Bits of the image, guiding pixels included: the sum of the maps."""
    return float(self.bits.sum() + sum(g.sum() for g in self.guide_bits))

  @property
  def bits_per_dim(self) -> float:
    return self.total / self.bits.size

  @property
  def shares(self) -> tuple[float, ...]:
    """Of the bits, by level: guiding pixels at theirs, values at the last."""
    return tuple(float(g.sum()) / self.total for g in self.guide_bits) + (
      float(self.bits.sum()) / self.total,
    )

  def patches(self, level: int) -> np.ndarray:
    """Bits summed over the patches that a level cuts, a grid of them."""
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
  """Of the mean over the first axis; 0 of a single entry, which is exact."""
  return x.std(0, ddof=len(x) > 1) / np.sqrt(len(x))


def explain(
  config,
  net,
  params,
  image,
  label: int,
  *,
  mesh=None,
  batch: int = 64,
  passes: int = 64,
  seed: int = 0,
  progress=lambda steps: steps,
) -> Explanation:
  """Explains one image.

  Args:
    config: the run's config.
    net: the model.
    params: its parameters.
    image: [S, (S,) C] values.
    label: its class, -1 for "no class".
    mesh: the mesh; one of the first device where None.
    batch: masks at a time, rounded up to what the mesh divides.
    passes: random masks, for masked levels.
    seed: of the masks.
    progress: wraps the list of steps, a batch of masks each.

  Returns:
    An Explanation.
  """
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  specs = net.specs
  exact = net.exact
  passes = 1 if exact else passes
  parts = sharding.batch_devices(mesh)
  batch = -(-min(batch, passes) // parts) * parts
  key = jax.random.key(seed)
  dropped = 0

  def run(start, label, drop=None):  # one batch of passes
    nonlocal dropped
    keep = [np.ones(s.out_conds, np.float32) for s in specs[:-1]]
    if drop is not None:
      keep[drop[0]][drop[1]] = 0
    index = start + np.arange(batch)
    with jax.set_mesh(mesh):
      found = value_nats(
        net, parts, params, np.asarray(image), label, key, index, keep
      )
    *maps, lost = jax.device_get(found)
    dropped += int(lost.sum())
    return maps

  def bits(batches):
    maps = [np.concatenate(x)[:passes] for x in zip(*batches)]
    return [x.astype(np.float64) / np.log(2) for x in maps]

  def sums(maps):  # of each pass: [passes]
    return sum(x.reshape(passes, -1).sum(1) for x in maps)

  # What to leave out: the level that is told, its condition's name, how.
  leave = [(0, 'class', {'label': -1})] if label >= 0 else []
  for i, spec in enumerate(specs[:-1]):
    names = net.kinds[i].conditions(spec.rank)[: spec.out_conds]
    leave += [(i + 1, n, {'drop': (i, j)}) for j, n in enumerate(names)]
  asks = [{'label': label}] + [{'label': label} | how for *_, how in leave]
  found = [[] for _ in asks]
  starts = range(0, passes, batch)
  for i, start in progress([(i, x) for i in range(len(asks)) for x in starts]):
    found[i].append(run(start, **asks[i]))
  maps, *without = map(bits, found)
  whole = sums(maps)
  conditions = []
  for (level, name, _), x in zip(leave, without):
    more = sums(x) - whole  # by the same masks
    worth, error = float(more.mean()), float(_stderr(more))
    conditions.append(Condition(level, name, worth, error))
  flops = [level.forward for level in cost.cost(config).levels]
  return Explanation(
    each=maps[-1],
    guide_bits=tuple(g.mean(0) for g in maps[:-1]),
    stderr=float(_stderr(whole)),
    conditions=tuple(conditions),
    flops=tuple(f / sum(flops) for f in flops),
    sides=tuple(s.patch for s in specs[:-1]),
    exact=exact,
    dropped=dropped,
    colour=net.colour,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_nats(net, parts, params, image, label, key, index, keep):
  """Nats of an image at their places, under one random mask a pass.

  Args:
    net: the model.
    parts: devices that share the passes; masks are compacted by device.
    params: its parameters.
    image: [S, (S,) C].
    label: its class.
    key: of the masks.
    index: [b] which passes.
    keep: as in Fractal.__call__.

  Returns:
    [[b, squares of level 0, ...], ..., values [b, S, (S,) C], dropped]: a map
    of guides for each level, empty where it has none, then of values. Their
    mean over passes is that over orders: masked values are weighted as in the
    likelihood.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
  # Passes in a row fill the strata evenly.
  ratio = masking.strata(jax.random.bits(key, (), jnp.uint32), index)

  def split(x):
    x = x.reshape((parts, -1) + x.shape[1:])
    return jax.lax.with_sharding_constraint(x, jax.P(sharding.BATCH))

  one = jax.vmap(
    functools.partial(_value_nats, net, params, image, label, keep),
    spmd_axis_name=sharding.BATCH,
  )
  *maps, dropped = one(Draws(split(keys), split(ratio), law='uniform'))
  maps = [x.reshape(index.shape + x.shape[2:]) for x in maps]
  return jax.lax.with_sharding_constraint([*maps, dropped], jax.P())


def _value_nats(net, params, image, label, keep, draws):
  b = len(draws.ratio)
  images = jnp.repeat(image[None].astype(jnp.int32), b, 0)
  labels = jnp.full(b, label, jnp.int32)
  result = net.score(params, images, labels, draws, keep=keep, train=False)

  def placed(scores, level):
    sites = (net.specs[0].side // net.specs[level].side) ** net.specs[0].rank
    out = jnp.zeros((b, sites, scores.nats.shape[-1]))
    nats = scores.nats * scores.weight[:, None]
    out = out.at[scores.image, scores.site].add(nats)
    raster = raster_of_site(net.specs, level)
    return jnp.zeros_like(out).at[:, raster].set(out)

  guides, maps = list(result.guides), []
  for spec in net.specs[:-1]:
    found = jnp.zeros((b, 0))
    if spec.guide:
      grid = (net.specs[0].side // spec.side,) * spec.rank
      found = placed(guides.pop(0), spec.index).sum(-1).reshape((b,) + grid)
    maps.append(found)
  values = placed(result.pixels, len(net.specs) - 1).reshape(images.shape)
  return [*maps, values, result.dropped]


def raster_of_site(specs, level: int) -> np.ndarray:
  """Raster index of each of a level's squares, in the order of Rows.site."""
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


# As pictures and pages.


def heat(values: np.ndarray, size: int = 256) -> np.ndarray:
  """A map [h, w] as a picture, uint8 [., ., 3]: dark is cheap."""
  import matplotlib

  x = np.atleast_2d(values)
  top = max(float(x.max()), 1e-9)
  shades = matplotlib.colormaps['magma'](np.clip(x / top, 0, 1))[..., :3]
  scale = max(1, size // x.shape[1])
  shades = shades.repeat(scale, 0).repeat(scale, 1)
  return np.round(shades * 255).astype(np.uint8)


def pictures(found: Explanation, image, model) -> dict[str, np.ndarray]:
  """Pictures uint8 [., ., 3] by name: the image, and its maps."""
  shot = sample.pictures(np.asarray(image)[None], model)[0]
  scale = max(1, 256 // shot.shape[1])
  out = {'image': shot.repeat(scale, 0).repeat(scale, 1)}
  out['bits'] = heat(found.bits.sum(-1))
  if found.bits.shape[-1] > 1:
    for c in range(found.bits.shape[-1]):
      out[f'bits_channel_{c}'] = heat(found.bits[..., c])
  for level, side in enumerate(found.sides):
    if side > 1:
      out[f'bits_level_{level}'] = heat(found.patches(level))
  for level, guides in enumerate(found.guide_bits):
    if guides.size:
      out[f'guides_level_{level}'] = heat(guides)
  return out


def write(found: Explanation, image, model, folder: str) -> list[str]:
  """Writes PNGs, bits.npy [S, (S,) C], and report.html, one page with all.

  Returns:
    The paths of the PNGs, then of the page.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shots = pictures(found, image, model)
  paths = []
  for name, shot in shots.items():
    paths.append(str(folder / f'{name}.png'))
    sample.save(shot, paths[-1])
  np.save(folder / 'bits.npy', found.bits)
  (folder / 'report.html').write_text(report(found, shots))
  return paths + [str(folder / 'report.html')]


def report(found: Explanation, shots: dict[str, np.ndarray]) -> str:
  """The page: pictures inside, no other files, no scripts."""
  from PIL import Image

  def figure(name, shot):
    file = io.BytesIO()
    Image.fromarray(shot).save(file, 'png')
    data = base64.b64encode(file.getvalue()).decode()
    text = captions(found).get(name, name)
    return (
      f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
      f'<figcaption>{html.escape(text)}</figcaption></figure>'
    )

  def table(head, rows):
    cells = lambda tag, row: ''.join(
      f'<{tag}>{html.escape(str(x))}</{tag}>' for x in row
    )
    body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
    return f'<table><tr>{cells("th", head)}</tr>{body}</table>'

  def number(bits, error):
    return f'{bits:.2f}' + ('' if found.exact else f' ± {error:.2f}')

  names = [
    f'{i}: {found.patches(i).size} patches of {_by(found, side)}'
    for i, side in enumerate(found.sides)
  ] + [f'{len(found.sides)}: the values of a pixel']
  levels = [
    (name, f'{share:.1%}', f'{flops:.1%}')
    for name, share, flops in zip(names, found.shares, found.flops)
  ]
  worth = [
    (c.level, c.name, ('+' if c.worth >= 0 else '') + number(c.worth, c.stderr))
    for c in found.conditions
  ]
  ranked = [
    (level, _place(at, side), number(bits, found.errors(level)[at]))
    for level, side in enumerate(found.sides)
    for at, bits in found.ranked(level, 5)
  ]
  figures = ''.join(figure(*item) for item in shots.items())
  return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Bits of an image</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 2em auto; max-width: 60em }}
figure {{ display: inline-block; vertical-align: top; margin: 0 1em 1em 0 }}
figcaption {{ max-width: 256px; font-size: 13px; color: #555 }}
img {{ image-rendering: pixelated; width: 256px }}
td, th {{ padding: .1em 1em .1em 0; text-align: left }}
</style>
<h1>{summary(found)}</h1>
<div>{figures}</div>
<h2>By level</h2>
{table(('level', 'share of bits', 'share of FLOPs'), levels)}
<p>Values cost their bits at the last level; levels above it have bits of their
own only where they draw a guiding pixel.</p>
<h2>What the conditions are worth</h2>
{table(('level told', 'condition', 'bits more without'), worth)}
<p>A level is told the class, or what the level above puts out at the patch
itself and at its neighbours. The model was trained with all of them: without
one it sees zeros (without the class, "no class").</p>
<h2>The most surprising patches</h2>
{table(('level', 'pixels, from 0', 'bits'), ranked)}
</html>
"""


def _by(found: Explanation, side: int) -> str:
  """The size of a patch: 2x2, or of a series, 2."""
  return 'x'.join([str(side)] * (found.bits.ndim - 1))


def _place(at: tuple[int, ...], side: int) -> str:
  """The pixels of a patch, from its place in the grid."""
  names = ('step',) if len(at) == 1 else ('row', 'column')
  return ', '.join(
    f'{name} {i}'
    if side == 1
    else f'{name}s {i * side} to {(i + 1) * side - 1}'
    for name, i in zip(names, at)
  )


def summary(found: Explanation) -> str:
  """One line."""
  kind = 'exact'
  if not found.exact:
    kind = f'± {found.stderr:.2f}, {found.passes} random masks'
  if any(g.size for g in found.guide_bits):
    kind += ', an upper bound'
  if found.colour.lossy:
    kind += ', of its rounded colours'
  if found.dropped:
    kind += f', {found.dropped} masked patches did not fit and were left out'
  return f'{found.total:.2f} bits ({kind}), {found.bits_per_dim:.4f} bits/dim'


def captions(found: Explanation) -> dict[str, str]:
  top = found.bits.sum(-1).max()
  out = {
    'image': 'the image',
    'bits': f'bits of each pixel; the brightest has {top:.2f}',
  }
  names = colour.NAMES[found.colour.space]
  for c in range(found.bits.shape[-1]):
    x = found.bits[..., c]
    name = f'channel {c}' + (f', {names[c]}' if names else '')
    out[f'bits_channel_{c}'] = (
      f'{name}: {x.sum():.2f} bits; the brightest has {x.max():.2f}'
    )
  for level in range(len(found.sides)):
    top = found.patches(level).max()
    out[f'bits_level_{level}'] = (
      f'patches of level {level}; the brightest has {top:.2f}'
    )
  for level, guides in enumerate(found.guide_bits):
    if guides.size:
      out[f'guides_level_{level}'] = (
        f'guiding pixels of level {level}: {guides.sum():.2f} bits; the '
        f'brightest has {guides.max():.2f}'
      )
  return out
