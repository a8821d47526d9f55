"""`sweep`: the metrics over settings of sampling, with seeds.

fractal-jax sweep --workdir=runs/photos --guidance=1,2,4 --num=5000
"""

import itertools

from absl import flags

from fractal_jax import checks, paths
from fractal_jax.commands import common, evaluate, sampling

FLAGS = flags.FLAGS
GUIDELESS = 'none'  # of --guide: guided by the model without classes

# Settings that are swept, and what a value, or each level's part of one, is.
SINGLE = {
  'guidance': float,
  'temperature': float,
  'resample': int,
  'order': str,
  'step_sizes': str,
  'candidates': int,
}


def define_flags() -> None:
  """The flags of `sweep`."""
  common.workdir_flags()
  for name in SINGLE:
    flags.DEFINE_list(
      name,
      None,
      f'Values of sample.{name} to try, with commas between, each with each of '
      'the other settings. A value of its own for each level has colons '
      'between: 4,4:2:1 are two values.',
    )
  flags.DEFINE_multi_string(
    'interval', None, 'An interval to try, such as 0.1,0.8; give several flags.'
  )
  flags.DEFINE_multi_string(
    'guide',
    None,
    f'{GUIDELESS}, or {sampling.GUIDE} Give several flags.',
  )
  common.number_flag('num', 10_000, 'Images per setting and seed.')
  common.number_flag(
    'seeds', 1, 'Seeds per setting, from --seed on: they make the error bars.'
  )
  evaluate.run_flags()
  sampling.drawing_flags()
  sampling.keep_flags()
  flags.DEFINE_string('out', 'sweep.csv', 'A .csv file for the numbers.')
  flags.DEFINE_string(
    'plot',
    'sweep.png',
    'A .png, .pdf or .svg file: fidelity against variety, and a curve for each '
    'metric.',
  )


def run() -> None:
  """Evaluates --workdir with each of the settings; writes table and curves."""
  from fractal_jax.inference import sample
  from fractal_jax.metrics import results, sweep

  common.check_output(FLAGS.out, '--out', ('.csv',))
  common.check_output(FLAGS.plot, '--plot', ('.png', '.pdf', '.svg'))
  last = FLAGS.seed + FLAGS.seeds - 1
  if not checks.SEED.holds(last):
    raise common.UsageError(
      f'--seed={FLAGS.seed} and --seeds={FLAGS.seeds}: the last seed, {last}, '
      f'must be {checks.SEED}'
    )
  evaluate.cache()
  config = common.load_config()
  others = sampling.changes(swept=(*SINGLE, 'interval'))
  settings = [each | others for each in all_settings()]
  names = dict.fromkeys(FLAGS.guide or [GUIDELESS])
  guiding = [name for name in names if name != GUIDELESS]
  guide = guiding[0] if guiding else None
  sample.check_use(config, settings, guide)  # before the first is run
  guides = {name: sampling.load_guide(config, name) for name in guiding}
  loaded = evaluate.load_weights()
  model = evaluate.load()
  extractor = evaluate.make_extractor(loaded, FLAGS.num, mesh=model.mesh)
  reference = evaluate.the_reference(model.config, extractor)
  rows = []
  jobs = list(itertools.product(settings, names, range(FLAGS.seeds)))
  for i, (each, name, seed) in enumerate(jobs):
    seed += FLAGS.seed
    images = evaluate.images_of(model, FLAGS.num, seed, each, guides.get(name))
    with evaluate.bar(images.num) as progress:
      found = results.measure(images, reference, extractor, progress)
    section = sample.section(config, each)
    rows.append(sweep.row(section, seed, found, name))
    if common.leads():
      sweep.write_csv(rows, FLAGS.out)
    common.say(f'{i + 1}/{len(jobs)}  {sweep.line(rows[-1])}')
  if common.leads():
    sweep.plot(rows, FLAGS.plot)
  common.say(f'{paths.absolute(FLAGS.out)}, {paths.absolute(FLAGS.plot)}')


def all_settings() -> list[dict]:
  """Each value of a flag with each of the others; the config's where unset."""
  tried = {}
  for name, kind in SINGLE.items():
    if FLAGS[name].value is not None:
      tried[name] = values(name, kind)
  if FLAGS.interval is not None:
    tried['interval'] = [
      common.numbers('interval', text.split(',')) for text in FLAGS.interval
    ]
  return [dict(zip(tried, each)) for each in itertools.product(*tried.values())]


def values(name: str, kind: type) -> list:
  """What a flag lists, each once, numbers in order; tuples if by level."""
  found = {
    common.numbers(name, text.split(':'), kind, 'colons'): None
    for text in FLAGS[name].value or ['']
  }
  found = list(found) if kind is str else sorted(found)
  return [each if len(each) > 1 else each[0] for each in found]
