"""Training: `train(config, workdir)` is the whole run, read top to bottom."""

from collections.abc import Callable
import contextlib
import dataclasses
import sys
import time

import chex
from clu import parameter_overview
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax
from PIL import Image

from fractal_jax import config as config_lib
from fractal_jax import paths, sharding
from fractal_jax.data import classes, pipeline
from fractal_jax.models import fractal, masking, names
from fractal_jax.models.kernels import proof
from fractal_jax.models.keys import Salt
from fractal_jax.models.types import Draws
from fractal_jax.training import (
  CheckpointError,
  checkpoint,
  lease,
  logs,
  monitor,
  optimizer,
  processes,
  restore,
  resume,
  train_state,
)
from fractal_jax.training.train_state import TrainState

# What spoils the state, or the saving of it: nothing is saved after these.
UNSAVABLE = (
  monitor.TrainingError,
  CheckpointError,
  jax.errors.JaxRuntimeError,
)


def train(
  config, workdir: str, *, profile: tuple[int, int] | None = None
) -> TrainState:
  """Trains a model, from its work directory's last checkpoint if it has one.

  Args:
    config: see config.py.
    workdir: gets config.json, checkpoints/, metrics.jsonl, tensorboard/ and
      samples/.
    profile: the first step to trace for TensorBoard, and how many.

  Returns:
    The state after the last step.

  Raises:
    ConfigError, DataError, ShardingError: before anything is compiled.
    ResumeError: the run can't go on under this config.
    CheckpointError: the work directory is in use, of another model, damaged,
      or can't be written to.
    ProfileError: there are no such steps, or no TensorFlow.
    Preempted: the run was told to stop, and is saved.
    TrainingError: too many updates in a row had to be skipped.
    DataError, OSError: an image can't be read, or the output written. With
      one process, or where only output failed, all steps done are saved first.
  """
  config_lib.check(config)
  mesh = sharding.make_mesh(config)
  info = pipeline.info(config)
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(lease.hold(workdir))
    checkpoint.check_config(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir, config, held)
    stack.push(closing(checkpoints))
    start = checkpoints.latest()
    if start is not None:
      resume.check(config, workdir)
    classes.check(config, workdir, info.class_names, start is not None)

    # ---------------------------------------------- the model, what trains it
    total = optimizer.steps(config, info.num_train)
    net = fractal.from_config(config.model)
    net = proof.tried(net, config.model.kernels)
    tx = optimizer.create(config, total)
    announce(net, config, info, total, workdir, mesh=mesh)

    # ----------------------------- the state and the data: new, or restored
    index, count = sharding.host_rows(mesh)
    batches = pipeline.train_batches(
      config, process_index=index, process_count=count
    )
    if start is not None:
      like = train_state.abstract(net, tx, config, mesh=mesh)
      state, position = checkpoints.restore(like)
      batches.set_state(position)
      logs.say(f'resuming after step {start}')
    else:
      start = 0
      state = train_state.create(net, tx, config, mesh=mesh)
      state = initialise_levels(state, config)
    # From here on the run is this one: what it finds there is overwritten.
    checkpoint.save_config(config, workdir)
    if jax.process_index() == 0:
      classes.save(workdir, info.class_names)

    # ------------------------------------------------- what watches the steps
    stop = stack.enter_context(processes.stop_requests())
    writer = logs.metric_writer(workdir, start)
    stack.callback(writer.close)
    actions = logs.periodic_actions(workdir, start, total, writer, profile)
    stack.callback(logs.stop_profile)
    dog = stack.enter_context(
      processes.watchdog().limit(config.optim.hang_after)
    )
    progress = logs.Progress(start, total, config.optim.batch)
    watch = monitor.Monitor(config, total, progress, writer, checkpoints)
    validation = monitor.Validation()

    # ---------------------------------------------------------------- the loop
    step_fn, final = None, None
    done = saved = start
    position = batches.get_state()  # where step `done` left the data
    together = jax.process_count() == 1  # all processes stop after `done`
    for action in actions:
      action(start)
    try:
      for step in range(start + 1, total + 1):
        dog.at(step, 'waiting for a batch')
        batch = sharding.place(next(batches), mesh)
        if step_fn is None:
          with progress.pause(), dog.slow('compiling'):
            step_fn = compile_step(net, tx, state, config, batch, mesh=mesh)
        dog.at(step, 'waiting for the devices')
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
          state, metrics = step_fn(state, batch)
        done, position = step, batches.get_state()

        # What is done now and then; the last step does it all. The order:
        # 1. Metrics, a step late, so that the devices always have work. Before
        #    anything else is done with the state, this step's are read, too: a
        #    run whose updates went bad stops before it saves or shows them.
        # 2. clu's actions, between two steps: a profile holds whole steps.
        # 3. Evaluation before the checkpoint, which is kept if it is the best.
        # 4. The checkpoint before the samples, which may take long: what is
        #    saved in the background is written meanwhile.
        # 5. Whether to stop, last: a run told to stop has nothing else to do.
        last = step == total
        evals = due(config.eval.every, step, last)
        samples = due(config.sample.every, step, last)
        saves = due(config.optim.save_every, step, last)
        with stop.on_error():
          watch.add(step, metrics)
        for action in actions:
          with stop.on_error():
            action(step)
        if evals or samples or saves:
          with stop.on_error():
            watch.catch_up()
          with progress.pause(), dog.slow('evaluating, saving or sampling'):
            bits = None
            if evals:
              final = evaluate(net, state.params, config, mesh=mesh)
              bits = final.bits_per_dim
              with stop.on_error():
                write_evaluation(final, step, writer)
                if not last:
                  logs.say(f'step {step}  {report(final)}')
                if risen := validation.add(step, final):
                  logs.say(f'step {step}  {risen}')
            if saves:
              checkpoints.save(step, state, position, bits)
              saved = step
            if samples:
              with stop.on_error():
                sample(
                  net, state.params, config, step, workdir, writer, mesh=mesh
                )
            with stop.on_error():
              writer.flush()
        if stop(step) and not last:
          together = True
          raise stop.reason(step)
    except UNSAVABLE:
      raise
    except Exception:
      # Saving takes all processes: where one of them fails by itself, the
      # others are on their way to the next step.
      if done > saved and together:
        with contextlib.suppress(OSError, UnicodeError):  # of log lines
          watch.catch_up()
        with dog.slow('saving before the end'):
          checkpoints.save(done, state, position)
          checkpoints.wait()
        warn(f'saved after step {done}')
      raise

    # ----------------------------------------------------------------- the end
    if stop.error is not None:  # in the last step
      raise stop.error
    if final is None and config.eval.every:  # nothing was left to train
      final = evaluate(net, state.params, config, mesh=mesh)
  if final is not None:
    logs.say(report(final))
  return state


def closing(checkpoints):
  """What to do with the checkpoints at the end: an exit of a context."""

  def close(kind, error, trace):
    del kind, trace
    # Saving takes all processes; where one fails, the others never come.
    alone = error is not None and not isinstance(
      error, (monitor.TrainingError, processes.Preempted)
    )
    if jax.process_count() == 1 or not alone:
      checkpoints.close()

  return close


def due(every: int, step: int, last: bool) -> bool:
  """Whether it is time for something done every so many steps; 0: never."""
  return bool(every) and (last or step % every == 0)


def announce(
  net: fractal.Fractal,
  config,
  info: pipeline.Info,
  total: int,
  workdir: str,
  *,
  mesh: Mesh,
) -> None:
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
    f'process(es), mesh {axes}; {batch} images per step, {batch // parts} per '
    f'device, in {sharding.num_groups(config, mesh)} group(s)'
  )
  logs.say(
    f'{info.num_train} training images in {info.classes} classes: {total} '
    f'steps are {total * batch / info.num_train:.4g} epochs; work directory '
    f'{workdir}'
  )
  logs.say(f'classes: {classes.listing(info.class_names)}')
  if info.skipped:
    logs.say(info.skipped)
  boxed = train_state.boxed_params(net)
  for line in sharding.unsplit(boxed, mesh):
    logs.say(f'not split, since it does not divide: {line}')
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    sharding.unbox(boxed),
    train_state.param_shardings(net, mesh),
  )
  logs.say(
    parameter_overview.get_parameter_overview(params, include_stats='sharding')
  )


def initialise_levels(state: TrainState, config) -> TrainState:
  """Takes model.init_levels from the run model.init_from, if it names one."""
  m = config.model
  if not m.init_from:
    return state
  subtrees = [n for level in m.init_levels for n in names.of_level(level)]
  like = {
    name: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state.params[name],
    )
    for name in subtrees
  }
  found = restore.restore_subtrees(m.init_from, like)
  logs.say(f'{", ".join(subtrees)} begin as in {m.init_from}')
  return state.replace(params=state.params | found)


# The step.


def compile_step(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  state: TrainState,
  config,
  batch: dict[str, jax.Array],
  *,
  mesh: Mesh,
) -> Callable:
  """The compiled training step (state, batch) -> (state, metrics)."""
  start = time.monotonic()
  step = jitted_step(net, tx, state, config, mesh=mesh)
  with jax.set_mesh(mesh):
    compiled = step.lower(state, batch).compile()
  logs.say(f'compiled the training step in {time.monotonic() - start:.1f} s')
  return compiled


def jitted_step(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  state: TrainState,
  config,
  *,
  mesh: Mesh,
) -> Callable:
  """The step as a jitted function, which takes over its argument `state`."""
  where = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(
    make_step(net, tx, config, mesh=mesh),
    out_shardings=(where, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def make_step(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  config,
  *,
  mesh: Mesh,
) -> Callable:
  """One update: draws, loss, gradients of the trained levels, AdamW.

  Returns:
    (state, batch) -> (state, metrics): float32 scalars by name, and of the
    guard `applied`, `spike`, `in_a_row`, `skipped`. Norms are of a level's
    parameters, by its name.
  """

  def step(state: TrainState, batch: dict[str, jax.Array]):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    trained, frozen = optimizer.split(config, state.params)

    def loss_of(trained):
      return loss_fn(net, trained | frozen, config, batch, key, mesh=mesh)

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
    chex.assert_rank(jax.tree.leaves((loss, metrics)), 0)
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


def loss_fn(
  net: fractal.Fractal,
  params: dict,
  config,
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  mesh: Mesh,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The training loss: sections 3 and 4.1 of the paper.

  Images are scored in groups that never cross devices. Each image draws from
  a key of its own, a function of the step and its place in the batch, so that
  the loss does not depend on the mesh.

  Args:
    net: the model.
    params: parameters by level.
    config: reads `model`, `optim.batch` and `mesh.groups`.
    batch: image [B, S, (S,) C] and label [B], integers.
    key: the step's key.
    mesh: the mesh.

  Returns:
    The loss: nats per channel value, weighted by channel, of pixels, plus the
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
  m = config.model
  chex.assert_shape(images, (size, *(m.sizes[0],) * m.rank, m.channels))
  chex.assert_shape(labels, (size,))

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


def evaluate(net: fractal.Fractal, params: dict, config, *, mesh: Mesh):
  """The Likelihood of the validation split; see likelihood.evaluate."""
  from fractal_jax.inference import likelihood

  return likelihood.evaluate(net, params, config, mesh=mesh)


def write_evaluation(found, step: int, writer) -> None:
  """Writes the numbers of a Likelihood."""
  numbers = dataclasses.asdict(found).items()
  writer.write_scalars(step, {f'val/{k}': float(v) for k, v in numbers})


def report(found) -> str:
  """Validation bits/dim with its standard error."""
  bound = ' (upper bound)' if found.bound else ''
  bound += ' (of rounded colours)' if found.rounded else ''
  bits, error = found.bits_per_dim, found.stderr
  return f'validation bits/dim: {bits:.3f} ± {error:.3f}{bound}'


def sample(
  net: fractal.Fractal,
  params: dict,
  config,
  step: int,
  workdir: str,
  writer,
  *,
  mesh: Mesh,
) -> None:
  """A grid of samples, as a PNG file and in TensorBoard."""
  from fractal_jax.inference import sample as sample_lib

  grid = sample_lib.sample_grid(net, params, config, mesh=mesh)
  if jax.process_index() == 0:
    folder = paths.path(workdir) / 'samples'
    with paths.whole(folder / f'step_{step:07d}.png') as file:
      Image.fromarray(grid).save(file, 'PNG')
  writer.write_images(step, {'samples': grid})


def warn(text: str) -> None:
  """Says on process 0 what must not get lost with the standard output."""
  if jax.process_index() == 0:
    with contextlib.suppress(OSError):
      print(text, file=sys.stderr, flush=True)
