"""`sweep`: the metrics over guidance and temperature."""

from absl import flags

from fractal_jax import paths
from fractal_jax.commands import common, evaluate

FLAGS = flags.FLAGS


def define_flags():
  """The flags of `sweep`."""
  common.workdir_flags()
  flags.DEFINE_list('guidance', None, 'Values to try, such as 1,2,4.')
  flags.DEFINE_list(
    'temperature', None, 'Values to try, each with each guidance.'
  )
  common.number_flag('num', 10_000, 'Images per setting.')
  evaluate.run_flags()
  common.drawing_flags()
  flags.DEFINE_string('out', 'sweep.csv', 'A .csv file for the numbers.')
  flags.DEFINE_string(
    'plot', 'sweep.png', 'A .png, .pdf or .svg file for the curves.'
  )


def run():
  """Evaluates --workdir with each of the settings; writes table and curves."""
  import jax

  from fractal_jax.inference import sample
  from fractal_jax.metrics import results, sweep

  paths.check_output(FLAGS.out, '--out', ('.csv',))
  paths.check_output(FLAGS.plot, '--plot', ('.png', '.pdf', '.svg'))
  evaluate.cache()
  config = common.load_config()
  others = common.sampling_changes(('schedule', 'filter_threshold'))
  settings = [
    {'guidance': g, 'temperature': t, **others}
    for t in values('temperature', config)
    for g in values('guidance', config)
  ]
  for each in settings:
    sample.settings(config, **each)  # all are checked before the first is run
  loaded = evaluate.load_weights()
  model, step = evaluate.load()
  extractor = evaluate.make_extractor(loaded, model.mesh, FLAGS.num)
  reference = evaluate.the_reference(model.config, extractor)
  rows = []
  for i, each in enumerate(settings):
    images = evaluate.images_of(model, step, FLAGS.num, each)
    with evaluate.bar(images.num) as progress:
      found = results.measure(images, reference, extractor, progress)
    rows.append(sweep.row(found))
    if jax.process_index() == 0:
      sweep.write_csv(rows, FLAGS.out)
    common.say(f'{i + 1}/{len(settings)}  {sweep.line(rows[-1])}')
  if jax.process_index() == 0:
    sweep.plot(rows, FLAGS.plot)
  common.say(f'{paths.absolute(FLAGS.out)}, {paths.absolute(FLAGS.plot)}')


def values(name, config):
  """What --guidance or --temperature lists, in order; the config's if unset."""
  if FLAGS[name].value is None:
    return [config.sample[name]]
  try:
    return sorted({float(x) for x in FLAGS[name].value})
  except ValueError as e:
    raise common.UsageError(
      f'--{name}={",".join(FLAGS[name].value)} must be numbers with commas '
      'between'
    ) from e
