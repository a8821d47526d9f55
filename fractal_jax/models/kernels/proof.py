"""Whether the kernels of a level are right on the chip at hand.

They are made for chips that compile them differently, so a run tries each of
its kernels first: on a small batch, forward and backward, with dropout and
without, beside the same function without kernels. A level one of whose kernels
fails, or is further from the float32 result than rounding explains, goes on
without them.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from fractal_jax import cpu
from fractal_jax.models import layers, pixel
from fractal_jax.models.attention import rotary_angles
from fractal_jax.models.fractal import Fractal
from fractal_jax.models.kernels import (
  attention,
  blocks,
  geometry,
  mlp,
  pixel_draw,
  pixel_nats,
)
from fractal_jax.models.kinds import KINDS
from fractal_jax.models.types import Sampling, Spec

F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Trial:
  """A kernel and what it is tried on.

  `kernel` and `xla` are functions (how, params, x, *rest) with gradients by
  params and x.
  """

  name: str
  kernel: object
  xla: object
  how: object
  params: dict
  x: jax.Array
  rest: tuple
  gradients: bool = True


def tried(net: Fractal, wanted: str) -> Fractal:
  """The net for a run on the devices at hand.

  Args:
    net: a Fractal, as fractal.from_config makes it.
    wanted: config.model.kernels. 'auto': on TPUs its levels take the kernels
      that pass their trials; else it stays as it is.
  """
  if wanted != 'auto' or on() != 'tpu':
    return net
  specs = [dataclasses.replace(spec, kernels='pallas') for spec in net.specs]
  problems = [first_problem(spec) for spec in specs]
  failed = anywhere([bool(problem) for problem in problems])
  for i, problem in enumerate(problems):
    if failed[i]:
      specs[i] = net.specs[i]
      blocks.say(
        f'level {specs[i].index} runs without kernels: '
        f'{problem or "so another process of this run found"}. Please report '
        'this line; model.kernels=xla silences it'
      )
  return net.clone(specs=tuple(specs))


def anywhere(failed: list[bool]) -> list[bool]:
  """Which trials failed in any process: all have to run the same program."""
  if jax.process_count() == 1:
    return failed
  return list(multihost_utils.process_allgather(np.array(failed)).any(0))


def on() -> str:
  """The platform that a run is on. JAX starts its devices if need be."""
  return 'cpu' if cpu.on_cpu() else jax.default_backend()


@functools.cache
def first_problem(spec: Spec) -> str:
  """What is wrong with the first of a level's kernels that is not right."""
  trials = pixel_trials(spec) if spec.kind == 'pixel' else block_trials(spec)
  for trial in trials:
    problem = failure(trial)
    if problem:
      return f'{trial.name} {problem}'
  return first_problem(pixel.guide_spec(spec)) if spec.guide else ''


def failure(trial: Trial) -> str:
  """How a kernel fails its trial; '' where it passes."""

  def run(f, dtype):
    how = dataclasses.replace(trial.how, dtype=jnp.dtype(dtype))
    call = lambda params, x: f(how, params, x, *trial.rest)

    @jax.jit
    def with_gradients(params, x):
      y, vjp = jax.vjp(call, params, x)
      return y, vjp(jax.random.normal(jax.random.key(2), y.shape, y.dtype))

    both = with_gradients if trial.gradients else jax.jit(call)
    return jax.device_get(both(trial.params, trial.x.astype(dtype)))

  try:
    got = run(trial.kernel, trial.how.dtype)
  except Exception as e:  # whatever the compiler or the chip may raise
    said = str(e).strip().partition('\n')[0]
    return f'fails with {type(e).__name__}: {said}'
  near = run(trial.xla, trial.how.dtype)
  with jax.default_matmul_precision('highest'):
    exact = run(trial.xla, F32)
  # Rounding turns few draws, but it turns them to any value.
  slack = 1e-5 if trial.gradients else 0.05
  for mine, other, true in zip(*map(jax.tree.leaves, (got, near, exact))):
    off, usual = distance(mine, true), distance(other, true)
    if not off <= 2 * usual + slack:
      return f'is wrong: {off:.1e} off, where without kernels it is {usual:.1e}'
  return ''


def distance(a: np.ndarray, b: np.ndarray) -> float:
  """||a - b|| / ||b||; of integers, the share that differs."""
  if np.issubdtype(b.dtype, np.integer):
    return float(np.mean(a != b))
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def normal(shapes: Any, seed: int, spread: float = 1.0) -> Any:
  """A tree of normal arrays of these shapes."""
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(spread * rng.normal(size=x.shape), x.dtype)
  return jax.tree.map(draw, shapes)


def block_trials(spec: Spec) -> Iterator[Trial]:
  """Trials of both halves of a level's block."""
  kind = KINDS[spec.kind]
  tokens, width = kind.sequence_length(spec), spec.width
  rows = blocks.rows_of(spec, tokens)
  if rows is None:
    return
  llama = kind.BLOCK is layers.LlamaBlock
  block = kind.BLOCK(width, spec.heads, llama, spec.dropout, spec.dtype)
  turns = None
  if llama:
    turns = rotary_angles(spec.grid, width // spec.heads)[:, :tokens]
  # Each core sums the gradients of weights over two blocks: MOST rows or less.
  number = 4 * max(1, geometry.MOST // rows.step) * rows.sequences
  shape = jax.ShapeDtypeStruct((number, tokens, width), spec.dtype)
  x = normal(shape, 1)
  init = lambda: block.init(jax.random.key(0), x[:1], turns, False)['params']
  params = normal(nn.meta.unbox(jax.eval_shape(init)), 0, width**-0.5)
  first = {k: params[k] for k in ('norm1', 'attention')}
  second = {k: v for k, v in params.items() if k not in first}
  words = jnp.asarray([3, 5, 7, 11], jnp.int32)
  for rate in sorted({0.0, spec.dropout}):
    inner = 0.0 if llama else rate
    dtype = jnp.dtype(spec.dtype)
    yield Trial(
      'the attention half',
      attention.attention_half,
      attention.xla,
      attention.How(rows, spec.heads, llama, inner, rate, dtype),
      first,
      rows.pack(x),
      (words, turns),
    )
    yield Trial(
      'the MLP half',
      blocks.mlp_of(rows, width, dtype),
      mlp.xla,
      mlp.How(rows, inner, rate, dtype),
      second,
      rows.pack(x),
      (words,),
    )


def pixel_trials(spec: Spec) -> Iterator[Trial]:
  """Trials of the pixel level's nats, and of how it draws."""
  n, how = 4 * pixel_nats.ROWS, pixel.kernel_sizes(spec)  # two blocks per core
  rng = np.random.default_rng(2)
  shape = (n, spec.channels)
  values = jnp.asarray(rng.integers(0, spec.values, shape), jnp.int32)
  uniforms = jnp.asarray(rng.uniform(size=shape), F32)
  conds = normal(jax.ShapeDtypeStruct((n, spec.cond_width), spec.dtype), 1)
  plain = pixel.PixelLevel(dataclasses.replace(spec, kernels='xla'))
  init = lambda: plain.init(
    jax.random.key(0), conds[:1, None], values[:1], train=False
  )
  params = nn.meta.unbox(jax.eval_shape(init))['params']
  params = normal(params, 0, spec.width**-0.5)
  yield Trial(
    'scoring pixels',
    pixel_nats.pixel_nats,
    pixel_nats.xla,
    how,
    params,
    conds,
    (values,),
  )
  sampling = Sampling(guidance=2.0, temperature=1.0, filter_threshold=1e-4)
  yield Trial(
    'drawing pixels',
    pixel_draw.pixel_draw,
    pixel_draw.xla,
    how,
    params,
    jnp.stack([conds, conds[::-1]]),
    (uniforms, None, None, sampling),
    gradients=False,
  )
