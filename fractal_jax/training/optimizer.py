"""The optimizer: schedule, clipping, frozen levels, updates not to apply.

AdamW as published (section 5.1 of the paper), or Muon, which learns more in a
step (docs/own_images.md). A level is frozen by keeping its parameters out of
what is differentiated and updated, so that it costs neither gradients nor
optimizer state.
"""

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax
from optax import contrib

from fractal_jax.models import names


def steps(config: ConfigDict, num_train: int) -> int:
  """Training steps: optim.steps, or as many as optim.epochs make."""
  o = config.optim
  return o.steps or max(1, round(o.epochs * num_train / o.batch))


def schedule(config: ConfigDict, total: int) -> optax.Schedule:
  """The learning rate of each step, 0 to total - 1.

  A linear ramp from 0 over the share optim.warmup of the steps, then a
  half-cosine to 0. The peak is optim.lr * optim.batch / 256.
  """
  o = config.optim
  warmup = min(round(o.warmup * total), total - 1)
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=o.lr * o.batch / 256,
    warmup_steps=warmup,
    decay_steps=total,
  )


ADAMW_RMS = 0.2  # root mean square of AdamW's updates, in experience


def create(config: ConfigDict, total: int) -> optax.GradientTransformation:
  """Gradient clipping, then optim.name, for trained levels, over `total` steps.

  Muon (Jordan et al., 2024) updates the matrices of blocks by an orthogonal
  matrix near to their mean gradient, and leaves all else to AdamW. Its updates
  are scaled to the size of AdamW's (Liu et al., arXiv 2502.16982, equation 4),
  so that a learning rate and a weight decay mean the same in both.
  """
  o = config.optim
  rate = schedule(config, total)
  update = optax.adamw(
    rate,
    b1=o.b1,
    b2=o.b2,
    eps=o.eps,
    weight_decay=o.weight_decay,
    mask=decay_mask,
  )
  if o.name == 'muon':
    muon = contrib.muon(
      rate,
      weight_decay=o.weight_decay,
      muon_weight_dimension_numbers=_block_matrices,
      consistent_rms=ADAMW_RMS,
    )
    update = optax.partition({'muon': muon, 'adamw': update}, kinds)
  return optax.chain(optax.clip_by_global_norm(o.clip), update)


def _block_matrices(params: dict) -> dict:
  """The (in, out) axes of each matrix; the layers, and q, k, v, are batches."""
  return jax.tree.map(
    lambda x: contrib.MuonDimensionNumbers(1, x.ndim - 1), params
  )


def kinds(params: dict) -> dict:
  """A tree like `params`: what Muon updates with, 'muon' or 'adamw'."""
  kind = lambda path: 'muon' if names.in_block(path) else 'adamw'
  return _by_name(params, kind)


def moments(params: dict, config: ConfigDict) -> dict:
  """A tree like `params`: how many moments of each are kept, 1 or 2."""
  by_muon = lambda kind: config.optim.name == 'muon' and kind == 'muon'
  return jax.tree.map(lambda kind: 1 if by_muon(kind) else 2, kinds(params))


def decay_mask(params: dict) -> dict:
  """A tree like `params`: True for each parameter that decays."""
  return _by_name(params, names.decays)


def _by_name(params: dict, ask: Callable[[tuple[str, ...]], object]) -> dict:
  """A tree like `params`: what `ask` says of the names on each one's path."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: ask(tuple(k.key for k in path)), params
  )


def split(params: dict, config: ConfigDict) -> tuple[dict, dict]:
  """Parameters, or any other tree by level, as (trained, frozen)."""
  stay = {n for level in config.optim.frozen for n in names.of_level(level)}
  trained = {k: v for k, v in params.items() if k not in stay}
  return trained, {k: v for k, v in params.items() if k in stay}


# Updates that would do harm are not applied.

JUDGED_AFTER = 20  # updates: a mean over fewer says little
MEMORY = 100  # updates that the running mean of the loss is over


@struct.dataclass
class Guard:
  """What decides whether an update is applied; saved with the parameters.

  Attributes:
    skipped: int32 scalar, updates that were not applied since the run began.
    in_a_row: int32 scalar, updates skipped since one was last applied.
    mean_loss: float32 scalar, running mean of the loss over applied updates.
  """

  skipped: jax.Array
  in_a_row: jax.Array
  mean_loss: jax.Array

  @classmethod
  def new(cls) -> 'Guard':
    """Before the first update."""
    zero = jnp.zeros((), jnp.int32)
    return cls(zero, zero, jnp.zeros((), jnp.float32))


def judge(
  config: ConfigDict,
  guard: Guard,
  step: jax.Array,
  loss: jax.Array,
  grad_norm: jax.Array,
) -> tuple[jax.Array, jax.Array, Guard]:
  """Whether to apply the update of a step.

  An update is skipped if its loss or gradient is not finite, and, where
  optim.spike is set, if its loss is more than optim.spike times the running
  mean of the loss.

  Args:
    config: reads optim.spike.
    guard: before the step.
    step: int32 scalar, steps done before.
    loss: scalar, of the step, in nats per channel value.
    grad_norm: scalar, of the step, before clipping.

  Returns:
    Whether to apply the update, whether its loss is a spike, and the guard
    after the step.
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  seen = step - guard.skipped
  spike = jnp.zeros((), bool)
  if config.optim.spike:
    limit = config.optim.spike * guard.mean_loss
    spike = finite & (seen >= JUDGED_AFTER) & (loss > limit)
  applied = finite & ~spike
  rate = 1 / jnp.minimum(seen + 1, MEMORY).astype(jnp.float32)
  mean = guard.mean_loss + rate * (loss - guard.mean_loss)
  after = Guard(
    skipped=guard.skipped + ~applied,
    in_a_row=jnp.where(applied, 0, guard.in_a_row + 1),
    mean_loss=jnp.where(applied, mean, guard.mean_loss),
  )
  return applied, spike, after
