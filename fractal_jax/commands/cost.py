"""`cost`: parameters and FLOPs of a config; memory and hours on devices.

fractal-jax cost --config=digits
fractal-jax cost --config=fractalmar_in64 --mesh=fsdp=8 --device=H100
"""

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import checks
from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of `cost`."""
  common.config_flag()
  common.show_flag()
  flags.DEFINE_list(
    'mesh',
    None,
    'Memory and hours on it: data=1,fsdp=8,tensor=1. Axes left out are 1; one '
    'may be -1, the rest of the devices.',
  )
  common.number_flag(
    'devices', None, 'How many devices; unset: the product of --mesh.'
  )
  flags.DEFINE_string(
    'device', None, 'Their kind: v4, v5e, v5p, v6e, A100, H100 or H200.'
  )
  common.number_flag(
    'mfu',
    0.4,
    'Share of the peak FLOP/s that a step is assumed to reach.',
    checks.Number(above=0, most=1),
  )
  flags.DEFINE_string(
    'topology',
    None,
    "In place of --device and --devices: ask the TPUs' compiler. A chip and "
    'how many: v5e:8x8, v6e:4x4, v5p:4x4x2. It takes libtpu, and minutes.',
  )
  common.number_flag(
    'images', 1_281_167, "Images of an epoch; ImageNet's if unset."
  )


def run() -> None:
  """Prints the parameters and FLOPs of --config; with --mesh, memory too."""
  from fractal_jax import config as config_lib
  from fractal_jax.planning import memory

  config = FLAGS.config
  config_lib.check(config)
  if FLAGS.show:
    return common.show_config()
  if FLAGS.mesh is not None:
    set_mesh(config)
  if FLAGS.topology is not None:
    from fractal_jax.planning import compiled

    compiler = compiled.Compiler(FLAGS.topology)
    say_counts(config)
    common.say(
      f'\nCompiling a step of {config.optim.batch} images on '
      f'{len(compiler.devices)} x {compiler.chip}, then\ngenerating '
      f'{config.sample.batch} on one: minutes each.'
    )
    for text in compiled.report(compiler, config, FLAGS.images):
      common.say('\n' + text)
    return
  devices = FLAGS.mesh is not None and check_counting(config)
  say_counts(config)
  if devices:
    text = memory.table(config, devices, FLAGS.device, FLAGS.mfu, FLAGS.images)
    common.say('\n' + text)


def say_counts(config: ConfigDict) -> None:
  """Prints what needs no devices to be named."""
  from fractal_jax.planning import cost, memory

  size = memory.state_bytes(config) / memory.GIB
  common.say(cost.table(config))
  common.say(
    f'Parameters, their gradients and moments, float32: {size:.2f} GiB.'
  )


def check_counting(config: ConfigDict) -> int:
  """Checks the flags that --mesh needs; returns the number of devices."""
  import math

  from fractal_jax import sharding
  from fractal_jax.planning import memory

  if FLAGS.device not in memory.DEVICES:
    raise common.UsageError(
      f'--device={FLAGS.device}: --mesh needs one of '
      f'{", ".join(memory.DEVICES)}, or --topology'
    )
  axes = [config.mesh[axis] for axis in sharding.AXES]
  if FLAGS.devices is None and -1 in axes:
    raise common.UsageError('--mesh: an axis of -1 needs --devices')
  return FLAGS.devices or math.prod(axes)


def set_mesh(config: ConfigDict) -> None:
  """Sets config.mesh from --mesh."""
  from fractal_jax import sharding

  axes = dict.fromkeys(sharding.AXES, 1)
  for part in FLAGS.mesh:
    name, _, number = part.partition('=')
    if name not in axes:
      raise common.UsageError(
        f"--mesh: no axis '{name}' in {part!r}; write data=1,fsdp=8,tensor=1"
      )
    (axes[name],) = common.integers(f'mesh: {name}', [number])
  if any(n < 1 and n != -1 for n in axes.values()):
    raise common.UsageError(
      f'--mesh={",".join(FLAGS.mesh)}: axes are 1 or more, or -1 (the rest)'
    )
  with config.unlocked():
    config.mesh.update(axes)
