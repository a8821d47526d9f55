"""`edit`: generates what is under a mask, given the rest.

fractal-jax edit --workdir=runs/digits --index=0 --mode=lower --out=edit.png
"""

from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fractal_jax import paths
from fractal_jax.commands import common, sampling

if TYPE_CHECKING:
  import numpy as np

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The command's flags."""
  from fractal_jax.inference import inputs

  common.image_flags()
  flags.DEFINE_string(
    'mask',
    None,
    'What to generate: an image file, white there, or a .npy, True there.',
  )
  flags.DEFINE_enum(
    'mode',
    None,
    inputs.MODES,
    'In place of --mask, one that is made: a box (inpaint), all but the middle '
    '(outpaint, uncrop), the lower half (lower). class: a box, or --mask, '
    'drawn as another --label.',
  )
  flags.DEFINE_list(
    'box',
    None,
    'The box of inpaint and class in pixels: top,left,height,width, of a '
    'series start,length. The middle half if unset.',
  )
  flags.DEFINE_integer(
    'margin',
    None,
    'How many pixels outpaint and uncrop generate at each side; a quarter of '
    'the side if unset.',
  )
  common.number_flag('num', 8, 'How many completions.')
  common.number_flag(
    'candidates', 1, 'Draws of which each completion is the likeliest.'
  )
  common.batch_flag()
  sampling.define_flags()
  flags.DEFINE_string(
    'out',
    'edit.png',
    'Where to: a .png, of the image, what is known of it and the completions '
    '(of --num=1, the completion alone), or a .npy of their values.',
  )


def run() -> None:
  """Completes the image, and writes the completions."""
  from fractal_jax.inference import edit, inputs, sample

  common.check_output(FLAGS.out, '--out', ('.png', '.npy'))
  check_mask_flags()
  config = common.load_config()
  changes = sampling.changes()
  sample.check_use(config, [changes], FLAGS.guide)  # at once
  image, label = common.the_image(config)
  mask = inputs.check_mask(the_mask(config.model), image[None])
  if not mask.any():
    raise common.UsageError(
      f'--mask={FLAGS.mask} is black, or False, everywhere: it is to be white, '
      'or True, where something is generated'
    )
  guide = sampling.load_guide(config, FLAGS.guide)
  model = common.load_model(config)
  how = common.arguments('num', 'candidates', 'seed', 'batch') | changes
  job = model.start(edit.edit, image[None], mask, label, guide=guide, **how)
  (drawn,) = common.follow(job)
  if common.leads():
    write(image, mask[0], drawn, config.model)
  common.say(f'{FLAGS.num} completions: {paths.absolute(FLAGS.out)}')


def the_mask(model: ConfigDict) -> 'np.ndarray':
  """--mask, or what --mode, --box and --margin make."""
  from fractal_jax.inference import inputs

  if FLAGS.mask:
    return inputs.read_mask(FLAGS.mask, model)
  box = FLAGS.box and common.integers('box', FLAGS.box)
  return inputs.make_mask(FLAGS.mode, model, box=box, margin=FLAGS.margin)


def write(
  image: 'np.ndarray',
  mask: 'np.ndarray',
  drawn: 'np.ndarray',
  model: ConfigDict,
) -> None:
  """Writes the completions [n, S, (S,) C] of an image as --out."""
  import numpy as np

  from fractal_jax import pictures

  if FLAGS.out.endswith('.npy'):
    with paths.atomic_write(FLAGS.out) as file:
      np.save(file, drawn)
  elif len(drawn) == 1:
    pictures.save(pictures.from_values(drawn, model)[0], FLAGS.out)
  else:
    known = pictures.hidden(image, mask, model)
    shown = np.concatenate([image[None], known[None], drawn])
    columns = int(np.ceil(np.sqrt(2 * len(shown))))
    shown = pictures.from_values(shown, model)
    names = ['image', 'known', *(str(i + 1) for i in range(len(drawn)))]
    pictures.save(pictures.grid(shown, columns, names), FLAGS.out)


def check_mask_flags() -> None:
  """Refuses no mask, two masks, and flags that would go unused."""
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
