"""The optimizer: schedule, clipping, frozen levels, updates not to apply.

AdamW as published (section 5.1 of the paper). Parameters are one subtree a
level: `labels`, `level_0`, `level_1`, ...; a level is frozen by keeping its
subtree out of what is differentiated and updated, so that it costs neither
gradients nor optimizer state.
"""

from flax import struct
import jax
import jax.numpy as jnp
import optax


def steps(config, num_train: int) -> int:
  """Training steps: optim.steps, or as many as optim.epochs make."""
  o = config.optim
  return o.steps or max(1, round(o.epochs * num_train / o.batch))


def schedule(config, total: int) -> optax.Schedule:
  """Learning rate of step 0 .. total - 1.

  A linear ramp from 0 over the share optim.warmup of the steps, then a
  half-cosine to 0. The peak is optim.lr * batch / 256.
  """
  o = config.optim
  warmup = min(round(o.warmup * total), total - 1)
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=o.lr * o.batch / 256,
    warmup_steps=warmup,
    decay_steps=total,
  )


def optimizer(config, total: int) -> optax.GradientTransformation:
  """AdamW behind gradient clipping, over the trained levels' parameters."""
  o = config.optim
  return optax.chain(
    optax.clip_by_global_norm(o.clip),
    optax.adamw(
      schedule(config, total),
      b1=o.b1,
      b2=o.b2,
      eps=o.eps,
      weight_decay=o.weight_decay,
      mask=decay_mask,
    ),
  )


def decay_mask(params):
  """True for each parameter that decays: all but biases and norms' scales.

  Judged by name: a scanned stack gives its biases a second dimension.
  """

  def decays(path, _):
    name = path[-1].key
    return name not in ('bias', 'scale') and not name.endswith('_bias')

  return jax.tree_util.tree_map_with_path(decays, params)


def subtrees(level: int) -> tuple[str, ...]:
  """Names of a level's parameters; the class embedding goes with level 0."""
  return ('labels', 'level_0') if level == 0 else (f'level_{level}',)


def split(config, params: dict) -> tuple[dict, dict]:
  """Parameters (or anything by level) into (trained, frozen) levels."""
  names = {name for level in config.optim.frozen for name in subtrees(level)}
  trained = {k: v for k, v in params.items() if k not in names}
  return trained, {k: v for k, v in params.items() if k in names}


# Updates that would do harm are not applied.

JUDGED_AFTER = 20  # updates: a mean over fewer says little
MEMORY = 100  # updates that the running mean of the loss is over


@struct.dataclass
class Guard:
  """What decides whether an update is applied; saved with the parameters.

  Attributes:
    skipped: int32 scalar, updates not applied since the run began.
    in_a_row: int32 scalar, the last so many of them without one between.
    mean_loss: float32 scalar, running mean over the steps applied.
  """

  skipped: jax.Array
  in_a_row: jax.Array
  mean_loss: jax.Array

  @classmethod
  def new(cls) -> 'Guard':
    zero = jnp.zeros((), jnp.int32)
    return cls(zero, zero, jnp.zeros((), jnp.float32))


def judge(config, guard: Guard, step, loss, grad_norm) -> tuple:
  """Whether to apply the update of a step.

  Not if the loss or the gradient is not finite, nor, with optim.spike, if the
  loss is more than so many times its running mean.

  Args:
    config: reads optim.spike.
    guard: before the step.
    step: steps done before.
    loss: of the step.
    grad_norm: of the step, before clipping.

  Returns:
    Whether to apply it, whether its loss is a spike, the guard after it.
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
