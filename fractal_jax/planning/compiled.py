"""What a model takes on TPUs, as their compiler has it: memory and seconds.

`fractal-jax cost --topology` prints it. Nothing is run, and no TPU is needed:
see aot.py. Seconds are an estimate: see estimate.py.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import tempfile
import time

from jax.stages import Lowered
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import sharding
from fractal_jax.inference import sample
from fractal_jax.planning import aot, cost, estimate, memory
from fractal_jax.training import optimizer

GIB = memory.GIB


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program, and what is known of it.

  Attributes:
    text: the program.
    analysis: XLA's memory_analysis(), bytes on a device.
    estimate: of its seconds.
    took: seconds to compile.
    flops: that the model needs of a device.
    images: of a device.
  """

  text: str
  analysis: object
  estimate: estimate.Estimate
  took: float
  flops: float
  images: int


class Compiler:
  """Compiles for the devices of a topology."""

  def __init__(self, topology: str):
    """Finds the devices; raises aot.TopologyError where there are none."""
    self.chip = topology.partition(':')[0]
    if self.chip not in estimate.CHIPS:
      raise aot.TopologyError(
        f'--topology={topology}: no chip {self.chip!r}; write one of '
        f'{", ".join(estimate.CHIPS)}, and how many: v5e:8x8'
      )
    self._folder = tempfile.TemporaryDirectory(prefix='fractal_jax_')
    self.devices = aot.devices(topology, self._folder.name)
    self._schedules = {}

  def training(self, config: ConfigDict) -> Compiled:
    """The training step of a config, on its mesh of all devices."""
    mesh = sharding.make_mesh(config, self.devices)
    images = config.optim.batch // sharding.batch_devices(mesh)
    logged = 1 / config.optim.log_every  # see update_ratio in train.make_step
    return self.program(
      lambda: aot.training_step(config, mesh),
      {'elsewhere': [1 - logged, logged]},
      images * cost.cost(config).total('training') / mesh.shape['tensor'],
      images,
    )

  def sampling(self, config: ConfigDict) -> Compiled:
    """Generating config.sample.batch images on one device."""
    alone = config.copy_and_resolve_references().unlock()
    alone.mesh.update(data=1, fsdp=1, tensor=1, slices=1, groups=0)
    mesh = sharding.make_mesh(alone, self.devices[:1])
    images = config.sample.batch
    _, guided = sample.settings(config)
    flops = cost.sample_flops_per_image(
      config, guided, config.sample.iterations
    )
    return self.program(
      lambda: aot.sampling(config, mesh, images),
      aot.branch_shares(config),
      images * flops,
      images,
    )

  def program(
    self,
    lower: Callable[[], Lowered],
    shares: dict[str, Sequence[float]] | None,
    flops: float,
    images: int,
  ) -> Compiled:
    """Compiles what `lower` traces; the rest is as in Compiled."""
    start = time.monotonic()
    program = aot.compiled(lower())
    took, text = time.monotonic() - start, program.as_text()
    self._schedules |= estimate.schedules(self._folder.name)
    found = estimate.of_program(
      text, self._schedules, estimate.CHIPS[self.chip], shares
    )
    analysis = program.memory_analysis()
    return Compiled(text, analysis, found, took, flops, images)


# What it says.


def report(
  compiler: Compiler, config: ConfigDict, images: int
) -> Iterator[str]:
  """Memory, seconds and hours of training, then of sampling, as text.

  Args:
    compiler: for the devices.
    config: `mesh` and `optim.batch` for the training step, `sample` for
      generating.
    images: of the training split: an epoch.

  Raises:
    aot.TopologyError: it does not fit on the devices.
    sharding.ShardingError: the mesh does not fit the topology.
  """
  config = config.copy_and_resolve_references().unlock()
  if config.model.kernels == 'auto':  # on TPUs, if all pass their trials
    config.model.kernels = 'pallas'
  batch, devices = config.optim.batch, len(compiler.devices)
  found = compiler.training(config)
  epoch = found.estimate.total / batch * images  # [2] seconds
  epochs = optimizer.steps(config, images) * batch / images
  run = epoch * epochs / 3600
  yield '\n'.join(
    [
      f'Training on {devices} x {compiler.chip}, {found.images} images on '
      'each, as compiled; nothing was run.',
      *summary(found, compiler.chip),
      f'An epoch of {images:,} images: {pair(epoch)} s, '
      f'{pair(epoch * devices / 3600)} device-hours.',
      f'All {epochs:.4g} epochs: {pair(run)} hours, '
      f'{pair(run * devices)} device-hours.',
    ]
  )
  found = compiler.sampling(config)
  yield '\n'.join(
    [
      f'Generating {found.images} images on one device:',
      *summary(found, compiler.chip),
    ]
  )


def summary(found: Compiled, chip: str, top: int = 12) -> list[str]:
  """Lines on memory and seconds of a program."""
  kind, size = memory.DEVICES[chip]
  analysis, spent = found.analysis, found.estimate
  gib = lambda n: f'{n / GIB:.2f}'
  total = aot.total(analysis)
  ideal = found.flops / cost.peak_flops(kind)
  return [
    f'Memory, GiB: arguments {gib(analysis.argument_size_in_bytes)}, '
    f'temporaries {gib(analysis.temp_size_in_bytes)}, in all {gib(total)} of '
    f'{size} ({total / GIB / size:.0%}).',
    f'Compiled in {found.took:.0f} s. All seconds below are an estimate, given '
    'twice: by the',
    'cycles that the compiler expects and, in the last column or in brackets,',
    'with what only moves memory at the full speed of HBM.',
    *cost.aligned(rows_of(spent, top)),
    *(f'Not counted: {name}, no schedule was found.' for name in spent.unknown),
    f'In all {pair(spent.total, ".3f")} s: '
    f'MFU {pair(ideal / spent.total, ".1%")}, '
    f'{pair(found.images / spent.total)} images/s per device.',
    *network(spent, chip),
  ]


def rows_of(spent: estimate.Estimate, top: int) -> list[tuple[str, ...]]:
  """Seconds of levels, and of the operations that take most."""
  by_level = {}
  for (level, _), seconds in spent.seconds.items():
    by_level[level] = by_level.get(level, 0) + seconds
  listed = sorted(spent.seconds.items(), key=lambda item: -item[1][0])
  levels = sorted(by_level, key=lambda level: (level == 'elsewhere', level))
  found = [((level, 'all'), by_level[level]) for level in levels]
  rows = [('level', 'operation', 'seconds', 'at HBM speed')]
  for (level, name), seconds in found + listed[:top]:
    rows.append((level, name, *(f'{x:.4f}' for x in seconds)))
  return rows


def network(spent: estimate.Estimate, chip: str) -> list[str]:
  """A line on what passes between devices, if anything does."""
  if not spent.network:
    return []
  return [
    f'Not counted: {spent.network / 1e9:.3g} GB that come from other devices, '
    f'{spent.network / estimate.CHIPS[chip].network:.3f} s at full speed.'
  ]


def pair(x: np.ndarray, form: str = '') -> str:
  """An estimate by cycles, and at the speed of HBM in brackets.

  Args:
    x: [2] the numbers.
    form: how they are written; unset: to three digits, or whole.
  """
  one, other = (f'{v:{form or (",.0f" if v >= 100 else ".3g")}}' for v in x)
  return f'{one} ({other})'
