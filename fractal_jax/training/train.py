"""Training: `train(config, workdir)` is the whole run, read top to bottom."""

from collections.abc import Callable
import contextlib
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fractal_jax import config as config_lib
from fractal_jax import paths, sharding
from fractal_jax.data import pipeline
from fractal_jax.models import fractal, masking
from fractal_jax.models.keys import Salt
from fractal_jax.models.types import Draws
from fractal_jax.training import (
  checkpoint,
  lease,
  logs,
  optimizer,
  processes,
  restore,
  train_state,
)
from fractal_jax.training.monitor import TrainingError, Watch
from fractal_jax.training.train_state import TrainState


def train(config, workdir: str) -> TrainState:
  """Trains a model, from its work directory's last checkpoint if it has one.

  Args:
    config: see config.py.
    workdir: gets config.json, checkpoints/, metrics.jsonl, tensorboard/ and
      samples/.

  Returns:
    The state after the last step.

  Raises:
    ConfigError, DataError, ShardingError: before anything is compiled.
    CheckpointError: the work directory is in use, of another model, damaged,
      or can't be written to.
    Preempted: the run was told to stop, and is saved.
    TrainingError: too many updates in a row had to be skipped.
  """
  config_lib.check(config)
  mesh = sharding.make_mesh(config)
  info = pipeline.info(config)
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(lease.hold(workdir))
    checkpoint.check_config(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir, config, held)
    stack.push(closing(checkpoints))

    # The model and what trains it.
    total = optimizer.steps(config, info.num_train)
    net = fractal.from_config(config.model)
    tx = optimizer.optimizer(config, total)
    announce(config, workdir, mesh, info, net, total)

    # The state: of the last checkpoint, or new.
    start = checkpoints.latest()
    index, count = sharding.host_rows(mesh)
    batches = pipeline.train_batches(
      config, process_index=index, process_count=count
    )
    if start is not None:
      like = train_state.abstract(config, net, tx, mesh)
      state, position = checkpoints.restore(like)
      batches.set_state(position)
      logs.say(f'resuming after step {start}')
    else:
      start = 0
      state = train_state.create(config, net, tx, mesh)
      state = initialise_levels(config, state)
    # From here on the run is this one: what it finds there is overwritten.
    checkpoint.save_config(config, workdir)
    writers = logs.Writers(workdir, start)
    stack.callback(writers.close)

    step_fn = None
    told_to_stop = stack.enter_context(processes.preemption())
    dog = stack.enter_context(
      processes.watchdog().limit(config.optim.hang_after)
    )
    progress = logs.Progress(start, total, config.optim.batch)
    watch = Watch(config, total, progress, writers, checkpoints)
    final = None
    for step in range(start + 1, total + 1):
      dog.at(step, 'waiting for a batch')
      batch = sharding.place(next(batches), mesh)
      if step_fn is None:
        with progress.pause(), dog.slow('compiling'):
          step_fn = compile_step(config, net, tx, mesh, state, batch)
      dog.at(step, 'waiting for the devices')
      state, metrics = step_fn(state, batch)
      watch.add(step, metrics)

      # What is done now and then; the last step does it all.
      o, last = config.optim, step == total
      evals = due(config.eval.every, step, last)
      samples = due(config.sample.every, step, last)
      saves = due(o.save_every, step, last)
      if evals or samples or saves:
        watch.flush()  # nothing is saved that has not been checked
        with progress.pause(), dog.slow('evaluating, saving or sampling'):
          bits = None
          if evals:
            final = evaluate(config, net, state, mesh, step, writers)
            bits = final.bits_per_dim
            if not last:
              logs.say(f'step {step}  {report(final)}')
          if saves:
            checkpoints.save(step, state, batches.get_state(), bits)
          if samples:
            sample(config, net, state, mesh, step, writers, workdir)
          writers.flush()

      if told_to_stop(step) and not last:
        watch.flush()
        with dog.slow('saving, told to stop'):
          if not saves:
            checkpoints.save(step, state, batches.get_state())
          checkpoints.wait()
        raise processes.Preempted(
          f'told to stop: saved after step {step}; the same command goes on'
        )

    if final is None and config.eval.every:  # nothing was left to train
      final = evaluate(config, net, state, mesh, start, None)
  if final is not None:
    logs.say(report(final))
  return state


def closing(checkpoints):
  """What to do with the checkpoints at the end: an exit of a context."""

  def close(kind, error, trace):
    del kind, trace
    # Saving takes all processes; where one fails, the others never come.
    alone = error is not None and not isinstance(
      error, (TrainingError, processes.Preempted)
    )
    if jax.process_count() == 1 or not alone:
      checkpoints.close()

  return close


def due(every: int, step: int, last: bool) -> bool:
  return bool(every) and (last or step % every == 0)


def announce(config, workdir, mesh, info, net, total) -> None:
  """Says what is about to run: config, mesh, batch, parameters."""
  for name, value in config.items():
    if hasattr(value, 'items'):
      value = ' '.join(f'{k}={v!r}' for k, v in value.items())
    logs.say(f'{name}: {value}')
  batch, parts = config.optim.batch, sharding.batch_devices(mesh)
  devices = mesh.devices.flat
  axes = ' '.join(f'{axis}={n}' for axis, n in mesh.shape.items())
  logs.say(
    f'{len(devices)} x {devices[0].device_kind} in {jax.process_count()} '
    f'process(es), mesh {axes}; {batch} images a step, {batch // parts} a '
    f'device, in {sharding.num_groups(config, mesh)} group(s)'
  )
  logs.say(
    f'{info.num_train} training images in {info.classes} classes: {total} '
    f'steps are {total * batch / info.num_train:.4g} epochs; work directory '
    f'{workdir}'
  )
  boxed = train_state.boxed_params(net)
  for line in sharding.unsplit(boxed, mesh):
    logs.say(f'not split, since it does not divide: {line}')
  logs.say(logs.parameter_table(sharding.unbox(boxed)))


def initialise_levels(config, state: TrainState) -> TrainState:
  """Takes model.init_levels from the run model.init_from, if it names one."""
  m = config.model
  if not m.init_from:
    return state
  names = [
    name for level in m.init_levels for name in optimizer.subtrees(level)
  ]
  like = {
    name: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state.params[name],
    )
    for name in names
  }
  found = restore.restore_subtrees(m.init_from, like)
  logs.say(f'{", ".join(names)} begin as in {m.init_from}')
  return state.replace(params=state.params | found)


# The step.


def compile_step(config, net, tx, mesh, state, batch) -> Callable:
  """The compiled training step (state, batch) -> (state, metrics)."""
  start = time.monotonic()
  step = jitted_step(config, net, tx, mesh, state)
  with jax.set_mesh(mesh):
    compiled = step.lower(state, batch).compile()
  logs.say(f'compiled the training step in {time.monotonic() - start:.1f} s')
  return compiled


def jitted_step(config, net, tx, mesh, state):
  """The step as a jitted function, which takes over its argument `state`."""
  where = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(
    make_step(config, net, tx, mesh),
    out_shardings=(where, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def make_step(config, net, tx, mesh) -> Callable:
  """One update: draws, loss, gradients of the trained levels, AdamW."""

  def step(state: TrainState, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    trained, frozen = optimizer.split(config, state.params)

    def loss_of(trained):
      return loss_fn(config, net, mesh, trained | frozen, batch, key)

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    grad_norm = optax.tree.norm(grads)
    applied, spike, guard = optimizer.judge(
      config, state.guard, state.step, loss, grad_norm
    )
    # A skipped step is done all the same: the next draws other numbers.
    changed, opt_state = jax.tree.map(
      lambda new, old: jnp.where(applied, new, old),
      (optax.apply_updates(trained, updates), opt_state),
      (trained, state.opt_state),
    )
    new = TrainState(state.step + 1, frozen | changed, opt_state, guard)
    metrics |= {
      'applied': applied,
      'spike': spike,
      'in_a_row': guard.in_a_row,
      'skipped': guard.skipped,
      'grad_norm': grad_norm,
    }
    for name, grad in grads.items():
      weight = optax.tree.norm(trained[name])
      metrics[f'grad_norm/{name}'] = optax.tree.norm(grad)
      metrics[f'param_norm/{name}'] = weight
      metrics[f'update_ratio/{name}'] = optax.tree.norm(updates[name]) / weight
    return new, metrics

  return step


def loss_fn(config, net, mesh, params, batch, key):
  """The training loss: sections 3 and 4.1 of the paper.

  Images are scored in groups that never cross devices. Each image draws from
  a key of its own, a function of the step and its place in the batch, so that
  the loss does not depend on the mesh.

  Args:
    config: the config.
    net: the model.
    mesh: the mesh.
    params: parameters by level.
    batch: images [B, S, (S,) C], labels [B].
    key: the step's key.

  Returns:
    The loss: nats a channel value, weighted by channel, of pixels, plus the
    same of each guide. And metrics: loss, bits_per_dim (all channels alike;
    with dropout and label dropping on), guide_loss, dropped.
  """
  size = config.optim.batch
  groups = sharding.num_groups(config, mesh)
  weights = np.array(config.model.channel_weights, np.float32)
  weights /= weights.sum()

  places = jnp.arange(size)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  shift = jax.random.bits(
    jax.random.fold_in(key, Salt.RATIO.value), (), jnp.uint32
  )
  draws = Draws(fold(key, places), masking.strata(shift, places))
  dropout = fold(
    jax.random.fold_in(key, Salt.DROPOUT.value), jnp.arange(groups)
  )
  images, labels = batch['image'].astype(jnp.int32), batch['label']

  def sums(scores):  # over the pixels of a group
    w = scores.weight
    mean = scores.nats.mean(-1)
    return w @ (scores.nats @ weights), w @ mean, w.sum()

  def one_group(images, labels, draws, dropout):
    out = net.score(
      params,
      images,
      labels,
      draws,
      train=True,
      rngs={'dropout': dropout},
    )
    return sums(out.pixels), [sums(s) for s in out.guides], out.dropped

  grouped = jax.tree.map(
    lambda x: x.reshape((groups, size // groups) + x.shape[1:]),
    (images, labels, draws),
  )
  grouped = jax.lax.with_sharding_constraint(
    (*grouped, dropout), sharding.over_batch(mesh)
  )
  over_groups = jax.vmap(one_group, spmd_axis_name=sharding.BATCH)
  totals = jax.tree.map(lambda x: x.sum(0), over_groups(*grouped))
  (nats, plain, count), guides, dropped = totals
  loss = nats / count
  metrics = {'bits_per_dim': plain / count / np.log(2), 'dropped': dropped}
  if guides:
    guide_loss = sum(nats / count for nats, _, count in guides)
    metrics['guide_loss'] = guide_loss
    loss += guide_loss
  return loss, metrics | {'loss': loss}


# Now and then.


def evaluate(config, net, state, mesh, step: int, writers):
  """The validation split's Likelihood, logged; see likelihood.evaluate."""
  from fractal_jax.inference import likelihood

  found = likelihood.evaluate(net, state.params, config, mesh=mesh)
  if writers is not None:
    numbers = dataclasses.asdict(found).items()
    writers.write_scalars(step, {f'val/{k}': float(v) for k, v in numbers})
  return found


def report(found) -> str:
  """Validation bits/dim with its standard error."""
  bound = ' (upper bound)' if found.bound else ''
  bound += ' (of rounded colours)' if found.rounded else ''
  bits, error = found.bits_per_dim, found.stderr
  return f'validation bits/dim: {bits:.3f} ± {error:.3f}{bound}'


def sample(config, net, state, mesh, step: int, writers, workdir) -> None:
  """A grid of samples, as a PNG file and in TensorBoard."""
  from fractal_jax.inference import sample as sample_lib

  path = paths.path(workdir) / 'samples' / f'step_{step:07d}.png'
  grid = sample_lib.sample_grid(
    net, state.params, config, mesh=mesh, num=config.sample.num, path=path
  )
  writers.write_images(step, {'samples': grid})
