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

from fractal_jax import cost, sample
from fractal_jax.models import colour, contract
from fractal_jax.models.contract import Draws

CONDITIONS = {
  1: ('itself', 'before', 'after'),
  2: ('itself', 'top', 'right', 'bottom', 'left'),
}


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

  bits: np.ndarray  # [S, (S,) C] of each value
  guide_bits: tuple[np.ndarray, ...]  # a level: [its squares' grid] or size 0
  stderr: float  # of the total, over random masks; 0 if exact
  conditions: tuple[Condition, ...]
  flops: tuple[float, ...]  # share of each level in a forward pass
  sides: tuple[int, ...]  # of the patches that each level cuts
  exact: bool
  passes: int
  colour: colour.Colour  # what the channels of `bits` are

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
    side, rank = self.sides[level], self.bits.ndim - 1
    n = self.bits.shape[0] // side
    x = self.bits.sum(-1).reshape((n, side) * rank)
    return x.sum(tuple(range(1, 2 * rank, 2)))

  def ranked(self, level: int, num: int = 10) -> list[tuple]:
    """The most surprising patches of a level: (place in the grid, bits)."""
    x = self.patches(level)
    best = np.argsort(-x, axis=None, kind='stable')[:num]
    places = zip(*np.unravel_index(best, x.shape))
    return [
      (tuple(map(int, at)), float(x.ravel()[i])) for at, i in zip(places, best)
    ]


def explain(
  config,
  net,
  params,
  image,
  label: int,
  *,
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
    passes: random masks, for masked levels.
    seed: of the masks.
    progress: wraps the list of steps, a pass over the image each.

  Returns:
    An Explanation.
  """
  specs = net.specs
  exact = all(s.kind != 'mar' for s in specs)
  passes = 1 if exact else passes
  images = jnp.asarray(np.repeat(image[None], passes, 0), jnp.int32)

  def run(label, drop=None):
    keep = [np.ones(s.out_conds, np.float32) for s in specs[:-1]]
    if drop is not None:
      keep[drop[0]][drop[1]] = 0
    labels = jnp.full(passes, label, jnp.int32)
    found = value_nats(net, params, images, labels, seed, keep)
    return [np.asarray(x, np.float64) / np.log(2) for x in found]

  def sums(maps):  # of each pass: [passes]
    return sum(x.reshape(passes, -1).sum(1) for x in maps)

  def error(x):
    return float(x.std(ddof=1) / np.sqrt(passes)) if passes > 1 else 0.0

  # What to leave out: the level that is told, its condition's name, how.
  leave = [(0, 'class', {'label': -1})] if label >= 0 else []
  for i, spec in enumerate(specs[:-1]):
    names = CONDITIONS[spec.rank][: spec.out_conds]
    leave += [(i + 1, n, {'drop': (i, j)}) for j, n in enumerate(names)]
  conditions = []
  for step in progress([None, *leave]):
    if step is None:
      maps = run(label)
      whole = sums(maps)
      continue
    level, name, how = step
    more = sums(run(**{'label': label} | how)) - whole  # by the same masks
    conditions.append(Condition(level, name, float(more.mean()), error(more)))
  flops = [level.forward for level in cost.cost(config).levels]
  return Explanation(
    bits=maps[-1].mean(0),
    guide_bits=tuple(g.mean(0) for g in maps[:-1]),
    stderr=error(whole),
    conditions=tuple(conditions),
    flops=tuple(f / sum(flops) for f in flops),
    sides=tuple(s.patch for s in specs[:-1]),
    exact=exact,
    passes=passes,
    colour=net.colour,
  )


@functools.partial(jax.jit, static_argnums=0)
def value_nats(net, params, images, labels, seed, keep):
  """Nats at their places: a map of guides for each level, then of values.

  Args:
    net: the model.
    params: its parameters.
    images: [B, S, (S,) C]; each under a random mask of its own.
    labels: [B].
    seed: of the masks.
    keep: as in Fractal.__call__.

  Returns:
    [[B, squares of level 0, ...], ..., values [B, S, (S,) C]]; a level without
    a guide has an empty map. Each map has the mean that its sum over orders
    has: masked values are weighted as in the likelihood.
  """
  b = len(images)
  keys = jax.random.split(jax.random.key(seed), b)
  draws = Draws(keys, (jnp.arange(b) + 0.5) / b, law='uniform')
  result = net.apply(
    {'params': net.whole(params)}, images, labels, draws, keep=keep, train=False
  )

  def placed(scores, sites):
    out = jnp.zeros((b, sites, scores.nats.shape[-1]))
    nats = scores.nats * scores.weight[:, None]
    return out.at[scores.image, scores.site].add(nats)

  guides, maps, sites = list(result.guides), [], 1
  for spec in net.specs[:-1]:
    found = jnp.zeros((b, 0))
    if spec.guide:
      found = placed(guides.pop(0), sites).sum(-1)
      raster = raster_of_site(net.specs, spec.index)
      grid = (net.specs[0].side // spec.side,) * spec.rank
      found = jnp.zeros((b, sites)).at[:, raster].set(found)
      found = found.reshape((b,) + grid)
    maps.append(found)
    sites *= spec.length
  raster = raster_of_site(net.specs, len(net.specs) - 1)
  values = placed(result.pixels, sites)
  values = jnp.zeros_like(values).at[:, raster].set(values)
  return maps + [values.reshape(images.shape)]


def raster_of_site(specs, level: int) -> np.ndarray:
  """Raster index of each of a level's squares, in the order of Rows.site."""
  n = specs[0].side // specs[level].side
  x = jnp.arange(n ** specs[0].rank).reshape((1,) + (n,) * specs[0].rank + (1,))
  for s in specs[:level]:
    unit = specs[level].side
    s = dataclasses.replace(
      s, channels=1, side=s.side // unit, patch=s.patch // unit
    )
    x = contract.patchify(x, s)
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
  return out


def write(found: Explanation, image, model, folder: str) -> list[str]:
  """Writes the PNGs and report.html, one self-contained page; their paths."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shots = pictures(found, image, model)
  paths = []
  for name, shot in shots.items():
    paths.append(str(folder / f'{name}.png'))
    sample.save(shot, paths[-1])
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

  levels = [
    (i, f'{share:.1%}', f'{flops:.1%}')
    for i, (share, flops) in enumerate(zip(found.shares, found.flops))
  ]
  worth = [
    (c.level, c.name, f'{c.worth:+.2f}', f'{c.stderr:.2f}')
    for c in found.conditions
  ]
  ranked = [
    (level, ', '.join(map(str, at)), f'{bits:.2f}')
    for level in range(len(found.sides))
    for at, bits in found.ranked(level, 5)
  ]
  figures = ''.join(figure(*item) for item in shots.items())
  return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Bits of an image</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 2em auto; max-width: 60em }}
figure {{ display: inline-block; margin: 0 1em 1em 0 }}
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
{table(('level told', 'condition', 'bits more without', 'stderr'), worth)}
<p>The model was trained with all of them: without one it sees zeros, as at
the edge of an image.</p>
<h2>The most surprising patches</h2>
{table(('level', 'place (row, column)', 'bits'), ranked)}
</html>
"""


def summary(found: Explanation) -> str:
  """One line."""
  kind = 'exact'
  if not found.exact:
    kind = f'± {found.stderr:.2f}, {found.passes} random masks'
  if any(g.size for g in found.guide_bits):
    kind += ', an upper bound'
  if found.colour.lossy:
    kind += ', of its rounded colours'
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
  return out
