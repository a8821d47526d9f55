"""The optimizer: schedule, clipping, weight-decay mask, frozen levels.

AdamW as published (section 5.1 of the paper). Parameters are one subtree a
level: `labels`, `level_0`, `level_1`, ...; a level is frozen by keeping its
subtree out of what is differentiated and updated, so that it costs neither
gradients nor optimizer state.
"""

import jax
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
