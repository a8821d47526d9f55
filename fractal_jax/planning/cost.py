"""What a model costs, from its config alone: parameters and FLOPs.

One FLOP is one addition or one multiplication: 2 per multiply-add. Only
matrix products count; norms, activations and softmax are a few percent more.
Four counts:

  paper     forward, as the paper's tables count it: patches only, no
            masking, no guides, no logits, and the same block for every kind.
  forward   the matrix products that this code runs to score an image whose
            patches all go down: with the tokens of conditions and guides,
            guide networks, SwiGLU, and logits.
  scoring   one Monte-Carlo pass of the likelihood: only masked patches go
            down, on average half of them and half a patch.
  training  3 forwards (one for each of the backward pass's two products) in
            which only masked patches go down, on average over the law of the
            mask ratio. What `remat` computes again is not counted.

A kind of level counts itself, in its own file: `flops` of a sequence,
`sample_flops` of a square, and `share` of the patches.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
from ml_collections import ConfigDict

from fractal_jax.models import fractal, layers
from fractal_jax.models.types import Spec

# By what JAX calls the device (a part of it; the first that fits).
PEAK_TFLOPS = {
  'H200': 989, 'H100 PCIe': 756, 'H100': 989, 'A100': 312, 'L40S': 362,
  'L4': 121,
  'V100': 125, 'TPU v4': 275, 'TPU v5 lite': 197, 'TPU v5e': 197,
  'TPU v5': 459, 'TPU v6': 918,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LevelCost:
  """One level. FLOPs are of one image: of all the level's sequences."""

  kind: str
  sequences: int  # per image, where all patches go down
  trained: float  # of these, in a training step, on average
  length: int  # patches of a sequence; channels of a pixel
  params: int  # guide network included
  paper: float  # forward FLOPs, the paper's count
  forward: float  # forward FLOPs, as run
  scoring: float  # FLOPs of one pass of the likelihood
  training: float  # forward and backward FLOPs of a training step
  sampling: float  # FLOPs to generate, one guidance stream


@dataclasses.dataclass(frozen=True)
class Cost:
  """A model: its levels, and the table of classes."""

  levels: tuple[LevelCost, ...]
  label_params: int

  @property
  def params(self) -> int:
    """Parameters of the whole model."""
    return self.label_params + sum(level.params for level in self.levels)

  def total(self, count: str) -> float:
    """Sum over levels of 'paper', 'forward', 'scoring', 'training', ..."""
    return sum(getattr(level, count) for level in self.levels)


def cost(config: ConfigDict) -> Cost:
  """The cost of a config's model; nothing is computed or compiled.

  Args:
    config: reads `model`, and `sample.iterations` for the cost of sampling.

  Returns:
    A Cost.
  """
  net = fractal.from_config(config.model)
  params = param_counts(net)
  iterations = sample_iterations(net.specs, config.sample.iterations)
  levels, sequences, scored, trained = [], 1, 1.0, 1.0
  for spec, kind, steps in zip(net.specs, net.kinds, iterations):
    level = kind(spec, parent=None)
    above_pixels = steps is not None
    flops = level.flops()
    sample = level.sample_flops(steps) if above_pixels else flops
    levels.append(
      LevelCost(
        kind=spec.kind,
        sequences=sequences,
        trained=trained,
        length=spec.length if above_pixels else spec.channels,
        params=params[f'level_{spec.index}'],
        paper=sequences * paper_flops(spec),
        forward=sequences * flops,
        scoring=scored * flops,
        training=3 * trained * flops,
        sampling=sequences * sample,
      )
    )
    if above_pixels:
      sequences *= spec.length
      scored *= spec.length * level.share('uniform')
      trained *= spec.length * level.share('train')
  return Cost(tuple(levels), params['labels'])


def param_counts(net: fractal.Fractal) -> dict[str, int]:
  """Parameters of each subtree: `labels`, `level_0`, `level_1`, ..."""
  params = fractal.boxed_params(net)
  return {
    name: sum(math.prod(p.shape) for p in jax.tree.leaves(tree))
    for name, tree in params.items()
  }


def sample_iterations(
  specs: tuple[Spec, ...], iterations: Sequence[int]
) -> list:
  """Generation steps of each level; None at the pixel level."""
  return list(iterations or [s.length for s in specs[:-1]]) + [None]


def paper_flops(spec: Spec) -> float:
  """Forward FLOPs per sequence as the paper counts them, of any kind."""
  d = spec.width
  pixel = spec.kind == 'pixel'
  t = spec.channels if pixel else spec.length
  embed = spec.cond_width + (0 if pixel else t * spec.patch_values)
  return 2 * d * embed + spec.depth * layers.vit_flops(d, t)


def peak_flops(device_kind: str) -> float | None:
  """Dense bfloat16 FLOP/s of a device as its maker states; None: unknown."""
  for name, tera in PEAK_TFLOPS.items():
    if name in device_kind:
      return tera * 1e12
  return None


def sample_flops_per_image(
  config: ConfigDict, guided: bool, iterations: Sequence[int] = ()
) -> float:
  """FLOPs to generate an image.

  Args:
    config: reads `model`.
    guided: whether the unconditional stream runs too (guidance is not 1).
    iterations: steps of each level above pixels; (): one per patch.

  Returns:
    Model FLOPs: without the slots by which steps of a few patches are padded.
  """
  config = config.copy_and_resolve_references().unlock()
  config.sample.iterations = tuple(iterations)
  return (1 + guided) * cost(config).total('sampling')


def table(config: ConfigDict) -> str:
  """The cost of a config as text, what `fractal-jax cost` prints."""
  c = cost(config)
  head = (
    'level kind', 'sequences', 'length', 'parameters', 'paper', 'forward',
    'training',
  )  # fmt: skip
  rows = [head, ('classes', '', '', f'{c.label_params:,}', '', '', '')]
  for i, level in enumerate(c.levels):
    rows.append(
      (
        f'{i} {level.kind}',
        f'{level.sequences:,}',
        f'{level.length:,}',
        f'{level.params:,}',
        giga(level.paper),
        giga(level.forward),
        giga(level.training),
      )
    )
  totals = [giga(c.total(name)) for name in ('paper', 'forward', 'training')]
  rows.append(('total', '', '', f'{c.params:,}', *totals))
  guided = config.sample.guidance != 1
  steps = sample_iterations(
    fractal.specs(config.model), config.sample.iterations
  )
  sampling = (1 + guided) * c.total('sampling')
  lines = aligned(rows)
  lines += [
    'GFLOPs per image, 2 per multiply-add. paper: forward, as the paper',
    'counts. forward: as run, all patches going down. training: 3 forwards,',
    'only the masked patches going down.',
    f'Generation, {"with" if guided else "without"} guidance, '
    f'{",".join(map(str, steps[:-1]))} iterations: {giga(sampling)} GFLOPs per '
    'image.',
  ]
  return '\n'.join(lines)


def giga(flops: float) -> str:
  """FLOPs in units of 1e9, to four digits or whole."""
  g = flops / 1e9
  return f'{g:,.0f}' if g >= 1000 else f'{g:#.4g}'


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
  """Lines of columns: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for first, *others in rows:
    cells = [cell.rjust(w) for cell, w in zip(others, widths[1:])]
    lines.append('  '.join([first.ljust(widths[0]), *cells]).rstrip())
  return lines
