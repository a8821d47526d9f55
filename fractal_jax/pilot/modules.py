"""One level of a model in place of another's: does it fit, is it better.

Level L of run B in run A: A's other levels stay as they are. A level reads
what the level above puts out, and is read by the one below, so that the widths
on both sides must agree, and everything that says what values mean.
"""

import dataclasses
import functools
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.data import classes, pipeline
from fractal_jax.errors import UserError
from fractal_jax.inference import likelihood
from fractal_jax.inference.progress import Job
from fractal_jax.models import fractal, names, shared
from fractal_jax.pilot.paired import Paired, paired
from fractal_jax.planning import cost
from fractal_jax.series import quantiser
from fractal_jax.training import checkpoint, restore, train_state

OWN = ('kinds', 'widths', 'depths', 'heads')  # keys with an entry per level
# Keys that change how a level is trained or computed, not what it means.
FREE = (
  *checkpoint.MAY_CHANGE, *OWN, 'dropout', 'label_dropout', 'mask_law',
  'mask_mean', 'mask_std', 'channel_weights',
)  # fmt: skip


class ModuleError(UserError, ValueError):
  """Levels that do not fit, or images that are too few."""


@dataclasses.dataclass(frozen=True)
class Side:
  """What one of the two costs."""

  bits: float  # per dimension
  params: int  # of the level
  training: float  # FLOPs of the level in a training step, per image
  sampling: float  # FLOPs of the level to generate an image
  seconds: float  # measured, to score an image with the whole model


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Level `level` of B in A, beside A's own."""

  level: int
  difference: Paired  # bits per image
  a: Side
  b: Side
  exact: bool
  others: tuple[int, ...]  # further levels in which the two runs differ


def mixed_config(a: ConfigDict, b: ConfigDict, level: int) -> ConfigDict:
  """A's config with `level` as in B's.

  Raises:
    ModuleError: naming each reason why the level does not fit.
  """
  m, other = a.model, b.model
  levels = len(m.sizes)
  if not 0 <= level < levels:
    raise ModuleError(f'--level={level}: the run has levels 0 to {levels - 1}')
  lines = [
    f'model.{k} is {m[k]!r} in a, {other[k]!r} in b'
    for k in config_lib.MODEL
    if k not in FREE and m[k] != other[k]
  ]
  if not lines:
    lines += [
      f'level {i} is {m.widths[i]} wide in a, {other.widths[i]} in b: {why}'
      for i, why in (
        (level - 1, f'level {level} of b reads what a wider or narrower '
         f'level {level - 1} puts out'),
        (level, f'level {level + 1} of a reads what level {level} puts out'),
      )
      if 0 <= i < levels - 1 and m.widths[i] != other.widths[i]
    ]  # fmt: skip
    for share in (shared.owners(m), shared.owners(other)):
      if share[level] != level or share.count(level) > 1:
        lines.append(
          f'level {level} has blocks in common with another level '
          f'(model.share={share}): it is no module of its own'
        )
        break
  if lines:
    raise ModuleError(
      f'level {level} of b does not fit into a:\n'
      + '\n'.join(f'  {line}' for line in lines)
      + '\nTrain b from the config of a, with only this level changed.'
    )
  mixed = a.copy_and_resolve_references().unlock()
  for key in OWN:
    entries = list(m[key])
    entries[level] = other[key][level]
    mixed.model[key] = tuple(entries)
  config_lib.check(mixed)
  return mixed.lock()


def check_conditions(mixed: ConfigDict, b: ConfigDict, level: int) -> None:
  """Raises ModuleError where b's level was trained with other conditions.

  How many it takes and gives follows from the kinds of the levels beside it.
  """
  ours, theirs = (fractal.from_config(c.model).specs[level] for c in (mixed, b))
  lines = [
    f'level {level} {word} {there} conditions in b, {here} in a'
    for word, there, here in (
      ('takes', theirs.num_conds, ours.num_conds),
      ('gives', theirs.out_conds, ours.out_conds),
    )
    if there != here
  ]
  if lines:
    raise ModuleError(
      f'{"; ".join(lines)}: the levels beside it are of another kind '
      '(model.kinds). Name a config as b, by which it is trained in a'
    )


def check_meaning(a: str, b: str) -> None:
  """Raises ModuleError where values or classes mean something else in b."""
  first, second = classes.load(a), classes.load(b)
  if first and second and list(first) != list(second):
    raise ModuleError(
      f'{a} and {b} have other classes, or in another order: a class number '
      'would mean something else'
    )
  if quantiser.load(a) != quantiser.load(b):
    raise ModuleError(
      f'{quantiser.FILE} differs between {a} and {b}: a bin would mean another '
      'number. Train b on the same rows as a (data.rows, data.held_out)'
    )


def compare(
  a: str,
  b: str,
  level: int,
  *,
  split: str | None = None,
  num: int = 0,
  batch: int | None = None,
  passes: int | None = None,
  conditional: bool = False,
) -> Job:
  """A job: level `level` of run `b`, in run `a`, against a's own.

  Both are scored on the same images under the same masks. Windows of series
  are taken so that none overlap.

  Args:
    a, b: work directories.
    level: 0 is the outermost.
    split: of a's data; its validation split where None.
    num: images; 0: all.
    batch: images at a time; config.eval.batch where None.
    passes: random masks per image, for masked levels; as the config where None.
    conditional: give the labels.

  Yields:
    Progress.

  Returns:
    A Comparison.

  Raises:
    ModuleError: the level does not fit, or there is one image alone.
    CheckpointError: a run that can't be read.
  """
  config = checkpoint.load_config(a)
  other = checkpoint.load_config(b)
  mixed = mixed_config(config, other, level)
  check_conditions(mixed, other, level)
  check_meaning(a, b)
  own, theirs = restore.restore_params(a), restore.restore_params(b)
  new = {**own, **{n: theirs[n] for n in names.of_level(level)}}
  images, labels = images_of(config, split, num)
  if len(images) < 2:
    raise ModuleError(f'{len(images)} image: a comparison takes two or more')
  labels = labels if conditional else np.full(len(labels), -1, np.int32)
  how = dict(batch=batch, passes=passes)
  nats, sides, exact = [], [], []
  for c, params, run in ((config, own, a), (mixed, new, b)):
    net = fractal.from_config(c.model)
    restore.check_fit(params, train_state.param_shapes(net), run)
    found, seconds = yield from timed(net, params, c, images, labels, **how)
    nats.append(found)
    exact.append(net.exact)
    sides.append(_side(c, level, found, images[0].size, seconds))
  difference = (nats[1] - nats[0]) / np.log(2)
  return Comparison(
    level=level,
    difference=paired(difference),
    a=sides[0],
    b=sides[1],
    exact=all(exact),
    others=_others(own, theirs, level, len(config.model.sizes)),
  )


def timed(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  batch: int | None,
  passes: int | None,
) -> Job:
  """A job: the nats [n] of images, and the seconds that each took."""
  mesh = sharding.any_mesh(config)
  params = jax.device_put(params, train_state.param_shardings(net, mesh=mesh))
  how = dict(mesh=mesh, batch=batch, passes=passes, seed=config.seed)
  score = functools.partial(likelihood.log_prob, net, params, config, **how)
  # Compiled before the time is taken.
  size = min(batch or config.eval.batch, len(images))
  yield from score(images[:size], labels[:size])
  begun = time.monotonic()
  found = yield from score(images, labels)
  return -found, (time.monotonic() - begun) / len(images)


def images_of(
  config: ConfigDict, split: str | None, num: int
) -> tuple[np.ndarray, np.ndarray]:
  """(images [n, S, (S,) C], labels [n]) of a split; windows do not overlap."""
  config = config.copy_and_resolve_references()
  if config.model.rank == 1:
    config.data.stride = max(config.data.stride, config.model.sizes[0])
  return pipeline.examples(config, split or config.data.val_split, num)


def retraining(config: ConfigDict, a: str, level: int) -> ConfigDict:
  """A config that trains `level` alone, the others those of run `a`, frozen.

  Raises:
    ModuleError: the level does not fit.
  """
  out = mixed_config(checkpoint.load_config(a), config, level)
  out = out.copy_and_resolve_references().unlock()
  rest = tuple(i for i in range(len(out.model.sizes)) if i != level)
  out.optim = config.optim
  for key in FREE:
    if key not in OWN:
      out.model[key] = config.model[key]
  out.seed = config.seed
  out.model.init_from, out.model.init_levels = a, rest
  out.optim.frozen = rest
  config_lib.check(out)
  return out.lock()


def _side(config, level: int, nats, dimensions: int, seconds: float) -> Side:
  of_level = cost.cost(config).levels[level]
  return Side(
    bits=float(nats.mean() / np.log(2) / dimensions),
    params=of_level.params,
    training=of_level.training,
    sampling=of_level.sampling,
    seconds=seconds,
  )


def _others(own: dict, theirs: dict, level: int, levels: int) -> tuple:
  """Levels but `level` whose parameters the runs do not have in common."""

  def equal(i: int) -> bool:
    mine, other = (
      jax.tree.leaves_with_path({n: tree[n] for n in names.of_level(i)})
      for tree in (own, theirs)
    )
    return len(mine) == len(other) and all(
      p == q and x.shape == y.shape and np.array_equal(x, y)
      for (p, x), (q, y) in zip(mine, other)
    )

  return tuple(i for i in range(levels) if i != level and not equal(i))


# In words.


def recommendation(found: Comparison) -> str:
  """What to do, in a sentence."""
  d = found.difference
  price = found.b.training / found.a.training
  if d.better is None:
    cheap = ', or take b since it is cheaper' if price < 0.95 else ''
    return f'No difference is shown: keep a{cheap}.'
  if not d.agree:
    return (
      f'The mean speaks for {d.better}, the sign test does not: a few images '
      'make the difference. Look at them, or score more images.'
    )
  if d.better == 'a' and found.others:
    return (
      f'Keep a: level {found.level} of b is worse under the other levels of a. '
      'Train it with these frozen to see what it can do.'
    )
  if d.better == 'a':
    return f'Keep a: level {found.level} of b is worse.'
  more = f', for {price:.1f} times the training FLOPs' if price > 1.1 else ''
  return f'Take level {found.level} of b{more}.'


def text(found: Comparison) -> str:
  """The comparison as text, what `fractal-jax ab` prints."""
  d = found.difference
  rows = [
    (
      '', 'bits/dim', 'parameters', 'training', 'generation', 'ms to score',
    ),
    *(
      (
        f'{name}: level {found.level}',
        f'{side.bits:.4f}',
        f'{side.params:,}',
        cost.giga(side.training),
        cost.giga(side.sampling),
        f'{1000 * side.seconds:.3g}',
      )
      for name, side in (('a', found.a), ('b', found.b))
    ),
  ]  # fmt: skip
  lines = cost.aligned(rows)
  lines += [
    'GFLOPs per image of that level; the time is of the whole model.',
    f'b less a: {d.mean:+.3f} bits per image, 95% interval {d.low:+.3f} to '
    f'{d.high:+.3f} ({d.images} images'
    + (')' if found.exact else ', estimated from random masks)'),
    f'sign test: b is better on {d.wins}, worse on {d.losses}, p = {d.p:.2g}',
  ]
  if found.others:
    some = ' and '.join(map(str, found.others))
    lines.append(
      f'The runs also differ in level {some}: level {found.level} of b was not '
      'trained with those of a. Freeze these (optim.frozen) to compare modules '
      'fairly.'
    )
  lines.append(recommendation(found))
  return '\n'.join(lines)
