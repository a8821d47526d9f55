"""The stages of images that differ from those of tables: data, full, shadow."""

import time

import numpy as np

from fractal_jax.inference import inputs
from fractal_jax.inference.progress import Job
from fractal_jax.pilot import gates, image_measures, work
from fractal_jax.pilot.gates import Gate
from fractal_jax.pilot.image_pictures import SHOWN
from fractal_jax.pilot.stages import alarm_gates, gate
from fractal_jax.pilot.work import Found, Pilot

ALONE = 20  # images that are timed one at a time


def data(pilot: Pilot) -> Job:
  """Size, what can't be read, leaks, balance of classes, shift."""
  yield from ()
  found = pilot.data
  later = np.concatenate([found.held, found.shadow])
  leaks = image_measures.copies(found.train, later, pilot.values)
  counts = np.bincount(found.labels)
  counts = counts[counts > 0]
  shade = lambda x: x.mean((1, 2, 3), dtype=float) / (pilot.values - 1)
  of_train, of_later = shade(found.train), shade(later)
  spread = max(of_train.std(), 1e-6)
  shift = abs(of_later.mean() - of_train.mean()) / spread
  exact, more = gates.exact, dict(least=True, mends=True)
  judged = [
    gate(pilot, 'least_images', exact(len(found.train)), **more),
    gate(pilot, 'most_unreadable', exact(found.left_out), least=False),
    gate(pilot, 'most_copies', exact(leaks.mean()), least=False),
    gate(pilot, 'least_class', exact(counts.min()), **more),
    gate(pilot, 'most_shift', exact(shift), least=False),
    gate(pilot, 'least_judged', exact(len(found.held)), **more),
  ]
  if pilot.settings.task['kind'] == 'anomalies':
    number = exact(len(found.anomalies))
    judged.append(gate(pilot, 'least_anomalies', number, **more))
  facts = {
    'images': len(found.train),
    'judged': len(found.held),
    'replayed': len(found.shadow),
    'anomalies': len(found.anomalies),
    'classes': len(counts),
    'smallest_class': int(counts.min()),
    'largest_class': int(counts.max()),
    'uniform': float(np.log2(pilot.values)),
    'histogram': float(pilot.histogram().mean()),
  }
  curves = {'train': found.train[:: max(len(found.train) // SHOWN, 1)][:SHOWN]}
  return Found(tuple(judged), facts, curves | {'counts': counts})


# Full size.


def full_fits(pilot: Pilot) -> list[tuple[int, int, int]]:
  """(side, levels, steps) of the stage's model."""
  return [(pilot.side, 3, pilot.settings.task['steps'])]


def full_model(pilot: Pilot) -> Job:
  """A job: the model of full size, kept in DIR/run."""
  folder = str(pilot.path('run-' + pilot.settings.key()))
  model = pilot.models.load(folder)
  if model is None:
    config = pilot.config(pilot.side, 3, None)
    model, _ = yield from pilot.models.fitting(config, pilot.data.train)
    pilot.models.save(folder, model)
  return model


def scored(pilot: Pilot) -> Job:
  """A job: bits per value of the images that both last stages look at."""

  def make() -> Job:
    model = yield from full_model(pilot)
    some = pilot.data.train[:: max(pilot.learnt // image_measures.JUDGED, 1)]
    parts = {
      'train': some[: image_measures.JUDGED],
      'held': pilot.data.held,
      'shadow': pilot.data.shadow,
      'anomalies': pilot.data.anomalies,
    }
    return {
      name: image_measures.bits(model, x) if len(x) else np.zeros(0)
      for name, x in parts.items()
    }

  return (yield from work.kept(pilot, 'scored', make))


def full(pilot: Pilot) -> Job:
  """The full size: the task's measure, calibration, the worst images."""
  bits = yield from scored(pilot)
  worst = np.argsort(-bits['held'])[:SHOWN]
  gap = image_measures.difference(bits['held'], bits['train'])
  judged = [gate(pilot, 'most_gap', gap, least=False)]
  facts = {
    'held_bits': float(bits['held'].mean()),
    'train_bits': float(bits['train'].mean()),
    'steps': pilot.settings.task['steps'],
  }
  curves = {
    'worst': pilot.data.held[worst],
    'bits_held': bits['held'],
    'bits_train': bits['train'],
  }
  own = yield from TASKS[pilot.settings.task['kind']](pilot, bits)
  return Found((*own.gates, *judged), own.facts | facts, own.curves | curves)


def generation(pilot: Pilot, bits: dict) -> Job:
  """Distance, precision, recall and novelty of images that the model draws."""

  def make() -> Job:
    model = yield from full_model(pilot)
    number = pilot.settings.task['samples']
    drawn = model.sample(0, num=number, seed=0, guidance=1.0)
    return {'drawn': drawn, 'bits': image_measures.bits(model, drawn)}

  made = yield from work.kept(pilot, 'generated', make)
  drawn, learnt = made['drawn'], pilot.data.train
  features = image_measures.components(learnt)
  parts = [features(x) for x in (drawn, pilot.data.held, learnt)]
  distance = gates.mean(image_measures.distance(*parts))
  strange, others = image_measures.strange(*parts)
  missed, missed_train = image_measures.missed(*parts)
  same = image_measures.copies(learnt, drawn, pilot.values)
  share = gates.share(int(same.sum()), len(drawn))
  rest = gates.mean(missed - missed_train)
  judged = (
    gate(pilot, 'distance', distance, least=False),
    gate(pilot, 'most_strange', gates.more(strange, others), least=False),
    gate(pilot, 'most_missed', rest, least=False),
    gate(pilot, 'drawn_copies', share, least=False),
  )
  facts = {
    'drawn_bits': float(made['bits'].mean()),
    'strange': float(strange.mean()),
    'strange_held': float(others.mean()),
    'missed': float(missed.mean()),
    'missed_train': float(missed_train.mean()),
  }
  curves = {'drawn': drawn[:SHOWN], 'bits_drawn': made['bits']}
  return Found(judged, facts, curves)


def completion(pilot: Pilot, bits: dict) -> Job:
  """Lower halves of images held out, against those of nearest neighbours."""
  made = yield from completed(pilot, 'completed', pilot.data.held)
  gain = image_measures.saved(pilot.data.train, pilot.data.held, made['made'])
  judged = (gate(pilot, 'completion', gates.mean(gain), least=True),)
  real = np.stack([pilot.data.held, made['made']], 1)[: SHOWN // 2]
  curves = {'drawn': real.reshape(-1, *real.shape[2:])}
  return Found(judged, {'gain': float(gain.mean())}, curves)


def completed(pilot: Pilot, name: str, real: np.ndarray) -> Job:
  """A job: `made`, the images [n, S, S, C] with lower halves drawn anew."""

  def make() -> Job:
    model = yield from full_model(pilot)
    made = model.edit(real, lower_half(pilot), 0, seed=0, guidance=1.0)
    return {'made': made[:, 0]}

  return (yield from work.kept(pilot, name, make))


def lower_half(pilot: Pilot) -> np.ndarray:
  """The mask [S, S] of what is completed."""
  return inputs.make_mask('lower', pilot.config(pilot.side, 3, None).model)


def anomalies(pilot: Pilot, bits: dict) -> Job:
  """Which images have more bits than nearly all normal ones."""
  yield from ()
  odd = bits['anomalies'][::2]
  limit = threshold(pilot, bits['held'])
  # Each image held out is judged by the threshold of the others.
  others = [
    threshold(pilot, np.delete(bits['held'], i))
    for i in range(len(bits['held']))
  ]
  false = int((bits['held'] > others).sum())
  judged, facts = alarms(pilot, '', odd, limit, false, len(bits['held']))
  facts['threshold'] = limit
  return Found(judged, facts, {'bits_anomalies': odd})


def threshold(pilot: Pilot, bits: np.ndarray) -> float:
  """The bits per value that few of the normal images exceed."""
  return float(np.quantile(bits, 1 - pilot.settings.task['false_alarms']))


def alarms(
  pilot: Pilot,
  prefix: str,
  odd: np.ndarray,
  limit: float,
  false: int,
  normal: int,
) -> tuple[tuple[Gate, ...], dict[str, float]]:
  """Gates and facts of anomalies found, and of false alarms per week."""
  found = int((odd > limit).sum())
  weeks = normal / pilot.settings.data['images_per_week']
  return alarm_gates(pilot, prefix, found, len(odd), false, weeks)


TASKS = {
  'generation': generation,
  'completion': completion,
  'anomalies': anomalies,
}


# Shadow.


def shadow(pilot: Pilot) -> Job:
  """Images that no stage has looked at, in their order, one at a time."""
  bits = yield from scored(pilot)
  task = pilot.settings.task['kind']
  timed = yield from work.kept(pilot, 'timed', lambda: one_by_one(pilot, task))
  more = image_measures.difference(bits['shadow'], bits['held'])
  milliseconds = gates.mean(timed['milliseconds'])
  judged = [
    gate(pilot, 'shadow_bits', more, least=False),
    gate(pilot, 'most_milliseconds', milliseconds, least=False),
  ]
  facts, curves = {'shadow_bits': float(bits['shadow'].mean())}, {}
  curves['line'] = bits['shadow']
  if task == 'anomalies':
    odd, limit = bits['anomalies'][1::2], threshold(pilot, bits['held'])
    false = int((bits['shadow'] > limit).sum())
    own, some = alarms(pilot, 'shadow_', odd, limit, false, len(bits['shadow']))
    judged[:0], facts = own, facts | some
    curves['threshold'] = np.float64(limit)
  if task == 'completion':
    real = pilot.data.shadow
    made = yield from completed(pilot, 'shadow_completed', real)
    gain = image_measures.saved(pilot.data.train, real, made['made'])
    gain = gate(pilot, 'shadow_completion', gates.mean(gain), least=True)
    judged.insert(0, gain)
  facts['memory_gb'] = work.memory()
  return Found(tuple(judged), facts, curves)


def one_by_one(pilot: Pilot, task: str) -> Job:
  """A job: `milliseconds` [n] of the task, an image at a time."""
  model = yield from full_model(pilot)
  mask = lower_half(pilot)
  do = {
    'generation': lambda x, i: model.sample(0, num=1, seed=i, guidance=1.0),
    'completion': lambda x, i: model.edit(x, mask, 0, seed=i, guidance=1.0),
    'anomalies': lambda x, i: model.log_prob(x, 0),
  }[task]
  some, at = pilot.data.shadow[:ALONE], []
  for i in range(-1, len(some)):  # the first one compiles
    begun = time.monotonic()
    do(some[max(i, 0)][None], max(i, 0))
    at.append(1000 * (time.monotonic() - begun))
  return {'milliseconds': np.array(at[1:])}
