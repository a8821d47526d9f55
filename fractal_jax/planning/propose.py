"""A config for data that were looked at, and for this machine, with reasons.

What is known comes from configs that were trained or published: `digits` on a
CPU, the plan of `emoji` for one GPU, the published models for many. Everything
between is a rule of thumb, and each reason says which.
"""

from collections.abc import Callable
import dataclasses
import itertools
import math

import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import cpu, sharding
from fractal_jax.data import look, pipeline
from fractal_jax.data.common import DataError
from fractal_jax.planning import cost, memory

SIDES = (4, 8, 16, 32, 64, 128, 256)
STATISTICS = 1000  # images for means and standard deviations
SEEN = 64_000  # images, repeats counted, after which digits are well drawn
PASSES = 40  # over the data at least, where there is time
CPU_BATCH = 64  # images per step on a CPU at most, as configs/digits.py has it
# And as few as keep its cores busy: the fewer, the more is learnt from as many
# images, see docs/own_images.md.
PER_CORE, FEWEST = 8, 16
MANY = 50_000  # images, from which on a run may take longer
# FLOP/s in training: of a core, what the digits reach on two of them
# (docs/data.md); of an accelerator, a share of its peak, which is a guess.
CORE, SHARE = 1.5e10, 0.15


@dataclasses.dataclass(frozen=True)
class Machine:
  """What a run can use.

  Attributes:
    kind: cpu, gpu or tpu.
    text: what it is, in words.
    devices: how many JAX has; on a CPU, cores.
    memory: GiB of each device; 0 where it need not be looked at.
    flops: FLOP/s that training is expected to reach on all of them.
    hours: how long a first run may take.
    most: the largest side of images that is chosen without being asked for.
  """

  kind: str
  text: str
  devices: int
  memory: float
  flops: float
  hours: float
  most: int


def machine() -> Machine:
  """This one. JAX is not started where a CPU is all that there can be."""
  n = cpu.cores()
  if cpu.on_cpu():
    return _cpu(n)
  import jax

  devices = jax.devices()
  first = devices[0]
  if first.platform == 'cpu':
    return _cpu(n)
  stats = first.memory_stats() or {}
  gib = stats.get('bytes_limit', 16 * memory.GIB) / memory.GIB
  peak = cost.peak_flops(first.device_kind) or 5e13
  kind = 'tpu' if first.platform == 'tpu' else 'gpu'
  return Machine(
    kind,
    f'{len(devices)} x {first.device_kind} with {gib:.0f} GiB each',
    len(devices),
    gib,
    len(devices) * peak * SHARE,
    hours=2.0,
    most=64,
  )


def _cpu(cores: int) -> Machine:
  text = f'a CPU, {cores} core{"s" * (cores > 1)}'
  return Machine('cpu', text, cores, 0, cores * CORE, hours=0.4, most=16)


@dataclasses.dataclass(frozen=True)
class Shape:
  """Levels of a model of two levels above pixels, and where it is from."""

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  fewest: int  # images that it is worth having for
  why: str

  def of(self, levels: int) -> tuple[tuple[int, ...], ...]:
    """Widths, depths and heads with a number of levels above the pixels."""
    parts = (self.widths, self.depths, self.heads)
    if levels == 1:
      return tuple((first, last) for first, _, last in parts)
    between = [max(1, x[1] // 2) for x in parts] if levels == 3 else [()] * 3
    return tuple(
      (first, second, *np.ravel(extra).astype(int).tolist(), last)
      for (first, second, last), extra in zip(parts, between)
    )


SHAPES = (  # from the largest
  Shape(
    (1024, 512, 128), (32, 8, 3), (16, 8, 4), 500_000, 'the published size'
  ),
  Shape(
    (512, 256, 128), (10, 4, 2), (8, 8, 4), 1000,
    'as configs/emoji.py, planned for one GPU',
  ),
  Shape((256, 128, 64), (6, 3, 2), (8, 4, 4), 500, 'as configs/mini.py'),
  Shape(
    (128, 64, 48), (4, 2, 1), (4, 4, 4), 0,
    'little more than configs/digits.py, which a CPU trains in minutes',
  ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A config, why each of its keys is so, and what the data are, in words."""

  config: object
  reasons: dict[str, str]
  found: look.Look  # of the images that are large enough
  train: int  # images to train on
  held: int


def propose(
  found: look.Look,
  on: Machine,
  size: int | None,
  write: Callable[[look.Look], str],
) -> Proposal:
  """Chooses a config.

  Args:
    found: the data.
    on: the machine.
    size: the side of the images; chosen where None.
    write: keeps the listing of a Look, and gives its path; '' for none.

  Raises:
    DataError: the images are too small or too few, or the size is one that
      can't be cut into levels.
  """
  side, why = side_of(found, on, size)
  found = look.fitting(found, side)
  c, reasons = config_lib.default(), {}

  def choose(why: str, **values) -> None:
    for name, value in values.items():
      section, _, key = name.partition('_')
      c[section][key] = value
      reasons[f'{section}.{key}'] = why
      why = 'see above'

  sizes = levels(side)
  choose(f'{why}; then patches of patches down to pixels', model_sizes=sizes)
  _data(choose, found, write)
  train, held = _splits(c)
  _statistics(c, choose)
  _model(c, choose, on, train)
  _training(c, choose, on, train, held)
  return Proposal(c, reasons, found, train, held)


def side_of(found: look.Look, on: Machine, size: int | None) -> tuple[int, str]:
  """The side of the images, and why."""
  sides = np.sort(found.sides[found.sides > 0])
  if sides[-1] < look.SMALLEST:
    raise DataError(
      f'the images have at most {sides[-1]}x{sides[-1]} pixels: at least '
      f'{look.SMALLEST}x{look.SMALLEST} are needed.'
    )
  if size is not None:
    if not look.SMALLEST <= size <= 1024:
      raise DataError(f'--size={size} must be {look.SMALLEST} to 1024.')
    return size, f'--size={size}'
  most = sides[len(sides) // 20]  # of all but the smallest twentieth
  if most < look.SMALLEST:
    most = sides[-1]
  fits = [s for s in SIDES if s <= min(most, on.most)]
  why = f'19 of 20 images are {most} pixels or more on their shorter side'
  if most > on.most:
    why += f'; {on.most} is what {on.text} trains in reasonable time'
  return fits[-1], f'{why} (--size changes it)'


def levels(side: int) -> tuple[int, ...]:
  """model.sizes for images of a side: short sequences at each level.

  Raises:
    DataError: the side can't be divided so.
  """
  divisors = [d for d in range(1, side) if side % d == 0]

  def good(sizes):  # at most 256 patches above pixels, 64 pixels in the last
    steps = [a // b for a, b in itertools.pairwise(sizes)]
    return max(steps) <= 16 and steps[-1] <= 8 and 1 not in steps

  two = [(side, d, 1) for d in divisors if good((side, d, 1))]
  if side <= 4:
    return (side, 1)
  if two:  # patches of 4 where they can be, as published
    return min(two, key=lambda s: (abs(math.log(s[1] / 4)), s))
  three = [
    (side, a, b, 1)
    for a in divisors
    for b in divisors
    if a % b == 0 and good((side, a, b, 1))
  ]
  if three:
    return min(three, key=lambda s: (abs(s[2] - 4), abs(s[1] - 16), s))
  raise DataError(
    f'--size={side} cannot be cut into patches of patches: take a multiple of '
    f'4, such as {max(4, side // 4 * 4)} or {side // 4 * 4 + 4}.'
  )


def _data(choose, found: look.Look, write) -> None:
  names = len(found.class_names)
  listed = f'{names} folders' if found.name == 'folder' else f'{names} labels'
  one = 'no folders of classes: all are one' if names == 1 else listed
  choose('what --data names', data_name=found.name)
  if found.dir:
    choose('what --data names', data_dir=found.dir)
  if found.rows is not None:
    choose(
      'which image is in which split: a list to read, and to edit',
      data_list=write(found),
    )
    choose(
      'as the list says', data_train_split='train', data_val_split='validation'
    )
  else:
    train, held = found.splits
    choose("the data's own splits", data_train_split=train, data_val_split=held)
  choose(one, model_classes=names)
  grey = 'no image has colours' if not found.colour else 'there are colours'
  channels = 3 if found.colour else 1
  choose(grey, model_channels=channels)
  choose(
    'all channels count alike; the published 5 for the first is for many '
    'images and a long training',
    model_channel_weights=(1.0,) * channels,
  )
  choose(f'values are 0 to {found.values - 1}', model_num_values=found.values)


def _splits(c) -> tuple[int, int]:
  with c.unlocked():
    c.model.update(
      mean=(0.5,) * c.model.channels, std=(1.0,) * c.model.channels
    )
  size = lambda split: pipeline.open_split(c, split).size
  return size(c.data.train_split), size(c.data.val_split)


def _statistics(c, choose) -> None:
  """Means and standard deviations of some images to train on."""
  source = pipeline.open_split(c, c.data.train_split)
  number = min(STATISTICS, source.size)
  some = np.linspace(0, source.size - 1, number).astype(int)
  axes = tuple(range(c.model.rank))
  scale = c.model.num_values - 1
  moments = []
  for i in some:
    x = source.read(int(i))[0] / scale
    moments.append((x.mean(axes), np.square(x).mean(axes)))
  mean, square = np.mean(moments, 0)
  std = np.sqrt(np.maximum(square - mean**2, 1e-4))
  rounded = lambda x: tuple(float(f'{v:.3f}') for v in x)
  choose(
    f'of {len(some):,} images, per channel, 0 to 1',
    model_mean=rounded(mean), model_std=rounded(std),
  )  # fmt: skip


def _model(c, choose, on: Machine, train: int) -> None:
  above = len(c.model.sizes) - 1
  if on.kind == 'cpu':
    choose(
      'one patch after another: the quickest to train, and its likelihood is '
      'exact. mar is better at holes in images',
      model_kinds=('ar',) * above + ('pixel',), model_num_conds=1,
    )  # fmt: skip
  else:
    choose(
      'masked levels: the better samples, and holes can be filled',
      model_kinds=('mar',) * above + ('pixel',), model_num_conds=5,
    )  # fmt: skip
    choose('accelerators are faster so', model_dtype='bfloat16')
  wanted = max(SEEN, PASSES * train)
  for shape in SHAPES:
    widths, depths, heads = shape.of(above)
    c.model.update(widths=widths, depths=depths, heads=heads)
    seconds = wanted * cost.cost(c).total('training') / on.flops
    if train >= shape.fewest and seconds <= 3600 * _hours(on, train):
      break
  choose(
    f'{shape.why}: for {train:,} images, and {on.text}',
    model_widths=widths, model_depths=depths, model_heads=heads,
  )  # fmt: skip
  few = train < 5000 and on.kind != 'cpu'
  choose(
    'a large model, few images' if few else 'published',
    model_dropout=0.2 if few else 0.1,
  )
  one = c.model.classes == 1
  choose(
    'there is but one class'
    if one
    else 'judged without classes, sampled with guidance',
    model_label_dropout=0.1 if one else 0.2,
  )
  choose(
    'the fastest; the model is small' if on.kind == 'cpu' else 'saves memory',
    model_remat='none' if on.kind == 'cpu' else 'dots',
  )
  if on.kind == 'cpu':
    choose('a few layers run faster unrolled', model_unroll=max(depths))


def _training(c, choose, on: Machine, train: int, held: int) -> None:
  batch = _batch(c, on, train)
  choose(
    f'enough to keep {on.text} busy; the fewer, the more is learnt from as '
    'many images'
    if on.kind == 'cpu'
    else f'divides over the devices, {on.text}, and fits their memory',
    optim_batch=batch,
  )
  # Between 3e-3 at width 96 (configs/digits.py) and 4e-4 at 1024 (published).
  width = c.model.widths[0]
  peak = 3e-3 * (96 / width) ** 0.85
  choose(
    f'a peak of {peak:.2g} at this batch: between 3e-3 for width 96, as in '
    'configs/digits.py, and 4e-4 for 1024, as published',
    optim_lr=float(f'{peak * 256 / batch:.2g}'),
  )
  flops = cost.cost(c).total('training')
  hours = _hours(on, train)
  time = 3600 * hours * on.flops / flops  # images in that time
  wanted = max(SEEN, PASSES * train)
  steps = _round(max(min(wanted, time) / batch, 100))
  passes = steps * batch / train
  why = f'{passes:.3g} passes over {train:,} images'
  if time < wanted:
    why += f', what fits into about {hours * 60:.0f} minutes'
  choose(f'{why}; more steps, better samples', optim_steps=steps)
  choose(
    'helps where images are few'
    if train < 10_000
    else 'there are enough images',
    data_shift=max(1, c.model.sizes[0] // 16) if train < 10_000 else 0,
  )
  choose(
    'twice as many images; set it to False where left and right differ, as in '
    'writing',
    data_flip=True,
  )
  _watching(c, choose, on, steps, held)


def _watching(c, choose, on: Machine, steps: int, held: int) -> None:
  """What a run logs, scores and draws."""
  every = steps // 8
  choose(
    'an eighth of the run: eight looks at the samples',
    sample_every=every, eval_every=every, optim_save_every=every,
  )  # fmt: skip
  choose('often enough to watch', optim_log_every=min(100, steps // 40))
  batches = math.ceil(held / 256)
  fitting = math.ceil(held / batches / on.devices) * on.devices
  choose(f'{held} held-out images in {batches} part(s)', eval_batch=fitting)
  classes = c.model.classes
  columns = classes if classes <= 16 else 8
  choose(
    'a column for each class' if 1 < classes <= 16 else 'rows of eight',
    sample_num=columns * max(1, 40 // columns), sample_batch=64,
  )  # fmt: skip
  choose(
    'images more like their class' if classes > 1 else 'no classes, none',
    sample_guidance=2.0 if classes > 1 else 1.0,
  )
  if on.kind != 'cpu':
    steps_of = tuple(
      min((a // b) ** 2, 64 if i == 0 else 16)
      for i, (a, b) in enumerate(itertools.pairwise(c.model.sizes))
    )
    choose('fewer steps than patches', sample_iterations=steps_of)


def _hours(on: Machine, train: int) -> float:
  """How long a first run may take: longer where there are many images."""
  return on.hours * max(1, train / MANY)


def _batch(c, on: Machine, train: int) -> int:
  """Images per step that divide over the devices, and fit their memory."""
  if on.kind == 'cpu':
    return cpu_batch(on.devices, train)
  batch = 128 * max(1, on.devices // (1 if on.devices < 8 else 2))
  while batch > on.devices:
    c.optim.batch = batch
    mesh = sharding.abstract_mesh(c, on.devices)
    tpu = on.kind == 'tpu'
    if memory.memory(c, mesh, tpu=tpu).total <= 0.75 * on.memory * memory.GIB:
      break
    batch //= 2
  return batch


def cpu_batch(cores: int, train: int = CPU_BATCH) -> int:
  """Images per step on a CPU: a power of two, no more than there are."""
  power = lambda n: 2 ** int(math.log2(max(n, 2)))
  most = min(max(PER_CORE * cores, FEWEST), CPU_BATCH)
  return max(power(min(train, most)), power(min(cores, most)))


def _round(steps: float) -> int:
  """Steps rounded up to a number whose eighths and fortieths are whole."""
  whole = 10 ** max(0, int(math.log10(steps)) - 1)
  return max(40, math.ceil(steps / whole) * whole // 40 * 40)
