"""Training: `train(config, workdir)` is the whole run, read top to bottom."""

from collections.abc import Callable
import contextlib
import time

import chex
from clu import parameter_overview
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from fractal_jax import config as config_lib
from fractal_jax import paths, run_report, sharding
from fractal_jax.data import classes, folder, pipeline
from fractal_jax.models import fractal, masking, names
from fractal_jax.models.kernels import proof
from fractal_jax.models.keys import Salt
from fractal_jax.models.types import Draws
from fractal_jax.release import hub
from fractal_jax.training import (
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
from fractal_jax.training.chores import Chores, report
from fractal_jax.training.train_state import TrainState


def train(
  config: ConfigDict, workdir: str, *, profile: tuple[int, int] | None = None
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
  if config.data.name == 'folder' and not restore.steps(workdir):
    folder.check_apart(config.data.dir, workdir)
  info = pipeline.info(config)
  total = optimizer.steps(config, info.num_train)
  with contextlib.ExitStack() as stack:
    checkpoints, start = open_workdir(config, workdir, info, stack)
    net = fractal.from_config(config.model)
    net = proof.tried(net, config.model.kernels)
    tx = optimizer.create(config, total)
    announce(net, config, info, total, workdir, mesh=mesh)
    state, batches = begin(net, tx, config, checkpoints, start, mesh=mesh)
    # From here on the run is this one: what it finds there is overwritten.
    keep(config, workdir, info)
    start, step_fn = start or 0, None
    chores = Chores(
      net, config, checkpoints, workdir, start, total, stack,
      profile=profile, mesh=mesh,
    )  # fmt: skip
    with chores.saving_on_error():
      for step in range(start + 1, total + 1):
        chores.dog.at(step, 'waiting for a batch')
        batch = sharding.place(next(batches), mesh)
        if step_fn is None:
          with chores.pause('compiling'):
            step_fn = compile_step(net, tx, state, config, batch, mesh=mesh)
            processes.meet()
        chores.dog.at(step, 'waiting for the devices')
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
          state, metrics = step_fn(state, batch)
        chores.attend(step, state, batches.get_state(), metrics)
        if chores.stop(step) and step < total:
          chores.save_rest()
          raise chores.stop.reason(step)
    if chores.stop.error is not None:  # in the last step
      raise chores.stop.error
    if start >= total and config.eval.every:  # nothing was left to train
      chores.evaluate(state)
  if jax.process_index() == 0:
    kind = mesh.devices.flat[0].device_kind
    page = run_report.write(workdir, f'{mesh.size} x {kind}')
    logs.say(f'report: {page}')
  if chores.likelihood is not None:
    logs.say(report(chores.likelihood))
  return state


def open_workdir(
  config: ConfigDict,
  workdir: str,
  info: pipeline.Info,
  stack: contextlib.ExitStack,
) -> tuple[checkpoint.Checkpoints, int | None]:
  """Takes hold of the work directory, if this run may go on in it.

  Args:
    stack: closes what is opened here.

  Returns:
    Its checkpoints, and the step of the latest; None: the run is new.
  """
  held = stack.enter_context(lease.hold(workdir))
  checkpoint.check_config(config, workdir)
  checkpoints = checkpoint.Checkpoints(workdir, config, held)
  stack.push(closing(checkpoints))
  start = checkpoints.latest()
  if start is not None:
    resume.check(config, workdir)
  classes.check(config, workdir, info.class_names, start is not None)
  if start is not None:
    pipeline.check_files(workdir, info.files)
  return checkpoints, start


def keep(config: ConfigDict, workdir: str, info: pipeline.Info) -> None:
  """Writes what the work directory says of the run: config, classes, bins."""
  checkpoint.save_config(config, workdir)
  if jax.process_index() == 0:
    classes.save(workdir, info.class_names)
    for name, text in info.files.items():
      paths.write_text(paths.path(workdir) / name, text)


def closing(checkpoints: checkpoint.Checkpoints) -> Callable:
  """What closes them at a run's end, however it comes (ExitStack.push)."""

  def close(kind, error, trace):
    del kind, trace
    # Saving takes all processes; where one fails, the others never come.
    alone = error is not None and not isinstance(
      error, (monitor.TrainingError, processes.Preempted)
    )
    if jax.process_count() == 1 or not alone:
      with processes.stop_requests():  # who is told to stop saves first
        checkpoints.close()

  return close


def announce(
  net: fractal.Fractal,
  config: ConfigDict,
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
  boxed = fractal.boxed_params(net)
  for line in sharding.unsplit(boxed, mesh):
    logs.say(f'not split, since it does not divide: {line}')
  logs.say(
    parameter_overview.get_parameter_overview(
      train_state.abstract_params(net, mesh=mesh), include_stats='sharding'
    )
  )


def given_levels(
  net: fractal.Fractal, config: ConfigDict, *, mesh: Mesh
) -> dict:
  """Parameters of model.init_levels, from the run or release model.init_from.

  Raises:
    CheckpointError, ReleaseError: it can't be read, or its levels don't fit.
  """
  m = config.model
  if not m.init_from:
    return {}
  subtrees = [n for level in m.init_levels for n in names.of_level(level)]
  like = train_state.abstract_params(net, mesh=mesh)
  like = {name: like[name] for name in subtrees}
  return restore.restore_subtrees(hub.folder(m.init_from), like)


def begin(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  config: ConfigDict,
  checkpoints: checkpoint.Checkpoints,
  start: int | None,
  *,
  mesh: Mesh,
) -> tuple[TrainState, pipeline.TrainBatches]:
  """The state and the batches of step `start`; None: those of a new run."""
  index, count = sharding.host_rows(mesh)
  batches = pipeline.train_batches(
    config, process_index=index, process_count=count
  )
  if start is None:
    given = given_levels(net, config, mesh=mesh)
    if given:
      logs.say(f'{", ".join(given)} begin as in {config.model.init_from}')
    state = train_state.create(net, tx, config, mesh=mesh)
    return state.replace(params=state.params | given), batches
  like = train_state.abstract(net, tx, config, mesh=mesh)
  state, position = checkpoints.restore(like)
  batches.set_state(position)
  logs.say(f'resuming after step {start}')
  return state, batches


# The step.


def compile_step(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  state: TrainState,
  config: ConfigDict,
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
  config: ConfigDict,
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
  config: ConfigDict,
  *,
  mesh: Mesh,
) -> Callable:
  """One update: draws, loss, gradients of the trained levels, AdamW.

  Returns:
    (state, batch) -> (state, metrics): float32 scalars by name, and of the
    guard `applied`, `spike`, `in_a_row`, `skipped`. Norms are of a level's
    parameters, by its name. `update_ratio`, which costs most, is NaN but for
    an applied update each optim.log_every steps.
  """

  def step(state: TrainState, batch: dict[str, jax.Array]):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    trained, frozen = optimizer.split(state.params, config)

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
    logged = applied & (new.step % config.optim.log_every == 0)
    # Kept nowhere else, the updates take a pass of their own.
    again = lambda: tx.update(grads, state.opt_state, trained)[0]
    return new, metrics | level_norms(grads, trained, again, logged)

  return step


def level_norms(
  grads: dict, params: dict, updates: Callable[[], dict], logged: jax.Array
) -> dict[str, jax.Array]:
  """Norms by level, of gradients and parameters; and of updates over these.

  Args:
    grads, params: of the trained levels.
    updates: computes theirs.
    logged: whether these are wanted; NaN where not.
  """
  norms = {name: optax.tree.norm(params[name]) for name in params}

  def ratios():
    found = updates()
    return {name: optax.tree.norm(found[name]) / norms[name] for name in params}

  def unknown():
    return jax.tree.map(lambda norm: jnp.full_like(norm, jnp.nan), norms)

  update_ratios = jax.lax.cond(logged, ratios, unknown)
  out = {}
  for name, grad in grads.items():
    out[f'grad_norm/{name}'] = optax.tree.norm(grad)
    out[f'param_norm/{name}'] = norms[name]
    out[f'update_ratio/{name}'] = update_ratios[name]
  return out


def loss_fn(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
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
    params: parameters by level.
    config: reads `model`, `optim.batch` and `mesh.groups`.
    batch: image [B, S, (S,) C] and label [B], integers.
    key: the step's key.

  Returns:
    The loss: nats per channel value, weighted by channel, of pixels, plus the
    same of each guide. And metrics: loss, bits_per_dim (all channels alike;
    with dropout and label dropping on), guide_loss, dropped.
  """
  m, size = config.model, config.optim.batch
  images, labels = batch['image'].astype(jnp.int32), batch['label']
  chex.assert_shape(images, (size, *(m.sizes[0],) * m.rank, m.channels))
  chex.assert_shape(labels, (size,))
  groups = sharding.num_groups(config, mesh)
  draws, dropout = draws_of(key, size, groups)
  weights = np.array(m.channel_weights, np.float32)
  weights /= weights.sum()

  def sums(scores):  # over the pixels of a group
    w = scores.weight
    mean = scores.nats.mean(-1)
    return w @ (scores.nats @ weights), w @ mean, w.sum()

  def one_group(images, labels, draws, dropout):
    rngs = {'dropout': dropout}
    out = net.score(params, images, labels, draws, train=True, rngs=rngs)
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


def draws_of(key: jax.Array, size: int, groups: int) -> tuple[Draws, jax.Array]:
  """A step's draws for each of its `size` images, and dropout's [groups] keys.

  Mask ratios are the points of an even grid under one random shift.
  """
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  places = jnp.arange(size)
  shift = jax.random.bits(
    jax.random.fold_in(key, Salt.RATIO.value), (), jnp.uint32
  )
  draws = Draws(fold(key, places), masking.strata(shift, places))
  dropout = jax.random.fold_in(key, Salt.DROPOUT.value)
  return draws, fold(dropout, jnp.arange(groups))
