"""`edit`: generates what is under a mask, given the rest."""

import os
import pathlib

from absl import flags

from fractal_jax.commands import common

FLAGS = flags.FLAGS


def define_flags():
  from fractal_jax.inference import inputs

  common.image_flags()
  flags.DEFINE_string('mask', None, 'White (or True, in a .npy): generate.')
  flags.DEFINE_enum(
    'mode',
    None,
    inputs.MODES,
    'A mask made for you. class: a box or --mask, drawn as another --label.',
  )
  flags.DEFINE_list('box', None, 'Of inpaint, class: top,left,height,width.')
  flags.DEFINE_integer('margin', None, 'Of outpaint or uncrop, in pixels.')
  flags.DEFINE_integer('num', 8, 'Completions.')
  flags.DEFINE_integer('candidates', 1, 'Draws of which the likeliest is kept.')
  flags.DEFINE_integer('batch', None, 'Images at a time.')
  flags.DEFINE_float('guidance', None, '1: none.')
  flags.DEFINE_float('temperature', None, 'Divides logits: below 1 is sharper.')
  flags.DEFINE_list('iterations', None, 'Steps of each level: 64,16.')
  flags.DEFINE_string('out', 'edit.png', 'A .png, or a .npy of values.')


def run():
  import numpy as np

  from fractal_jax.inference import inputs, sample

  for name, least in (('num', 1), ('candidates', 1), ('batch', 1)):
    common.at_least(name, least)
  inputs.check_out(FLAGS.out, '.png', '.npy')
  check_mask_flags()
  config = common.load_config()
  image, label = common.the_image(config)
  if FLAGS.mask:
    mask = inputs.read_mask(FLAGS.mask, config.model)
  else:
    box = FLAGS.box and common.integers('box', FLAGS.box)
    mask = inputs.make_mask(
      FLAGS.mode, config.model, box=box, margin=FLAGS.margin
    )
  mask = inputs.check_mask(mask, image[None])
  changes = {
    name: FLAGS[name].value
    for name in ('guidance', 'temperature')
    if FLAGS[name].value is not None
  }
  if FLAGS.iterations is not None:
    with config.unlocked():
      config.sample.iterations = common.integers('iterations', FLAGS.iterations)
  model = common.load_model(config)
  (drawn,) = model.edit(
    image[None],
    mask,
    label,
    num=FLAGS.num,
    candidates=FLAGS.candidates,
    seed=FLAGS.seed,
    batch=FLAGS.batch,
    **changes,
  )
  import jax

  if jax.process_index():
    return
  if FLAGS.out.endswith('.npy'):
    pathlib.Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
    np.save(FLAGS.out, drawn)
  elif FLAGS.num == 1:
    sample.save(sample.pictures(drawn, config.model)[0], FLAGS.out)
  else:
    grey = round(sample.GREY * (config.model.num_values - 1) / 255)
    hidden = np.where(mask[0], grey, image)
    shown = np.concatenate([image[None], hidden[None], drawn])
    shown = sample.pictures(shown, config.model)
    columns = int(np.ceil(np.sqrt(2 * len(shown))))
    sample.save(sample.grid(shown, columns), FLAGS.out)
  common.say(f'{FLAGS.num} completions: {os.path.abspath(FLAGS.out)}')


def check_mask_flags():
  """One mask, and no flag that would go unused."""
  if not (FLAGS.mask or FLAGS.mode):
    raise common.UsageError('give --mask=FILE, or --mode to have one made')
  if FLAGS.mask and FLAGS.mode not in (None, 'class'):
    raise common.UsageError(
      f'--mode={FLAGS.mode} makes a mask: give it or --mask, not both'
    )
  if FLAGS.mode == 'class' and FLAGS.label in (None, 'none'):
    raise common.UsageError('--mode=class needs --label: the class to draw')
  for name, modes in (
    ('box', ('inpaint', 'class')),
    ('margin', ('outpaint', 'uncrop')),
  ):
    if FLAGS[name].value is not None and (
      FLAGS.mask or FLAGS.mode not in modes
    ):
      raise common.UsageError(
        f'--{name} goes with --mode={" or ".join(modes)}, and no --mask'
      )
