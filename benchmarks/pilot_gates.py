"""Do the gates of an image pilot tell good images from bad ones?

  python benchmarks/pilot_gates.py

Sets of digits whose quality is known are judged as if a model had drawn them,
with the thresholds that `fractal-jax pilot init` proposes: means over some
splits of the digits held out, in three fifths and the rest. Those of one split
are also judged as the images of a shadow run, and as completed images. The
model is the released digits_ar, without classes.
"""

import collections

import numpy as np
from scipy import ndimage
from sklearn import datasets

from fractal_jax import api
from fractal_jax.pilot import gates, image_measures, image_settings
from fractal_jax.pilot.gates import Gate

TRAIN = 1500
SPLITS = 10
DRAWN = 100
VERDICTS = (gates.GO, gates.MORE_DATA, gates.NO_GO)


def drawn_sets(train, labels, rest, rng) -> dict[str, np.ndarray]:
  """DRAWN digits [n, 8, 8, 1] by what is wrong with them; nothing: `rest`."""
  some = train[rng.permutation(TRAIN)[:DRAWN]]
  other = train[rng.permutation(TRAIN)[:DRAWN]]
  halves = np.concatenate([some[:, :4], other[:, 4:]], 1)
  flat = train.reshape(TRAIN, -1)
  alone = np.stack([rng.permutation(x)[:DRAWN] for x in flat.T], 1)
  of = lambda kept: train[rng.permutation(np.flatnonzero(kept))[:DRAWN]]
  noisy = lambda s: np.clip(some + rng.normal(0, s, some.shape), 0, 16)
  return {
    'real digits': rest[:DRAWN],
    'without the nines': of(labels < 9),
    'noise of deviation 2': noisy(2),
    'noise of deviation 4': noisy(4),
    'halves of two digits': halves,
    'means of two digits': (some / 2 + other / 2),
    'blurred': blurred(some),
    'moved by a pixel': np.roll(some, 1, 2),
    'the digits 0 to 4 alone': of(labels < 5),
    'zeros alone': of(labels == 0),
    'each pixel from another digit': alone.reshape(some.shape),
    'uniform noise': rng.integers(0, 17, some.shape),
  }


def blurred(x):
  return ndimage.gaussian_filter(x.astype(float), (0, 0.6, 0.6, 0))


def shadow_sets(rest, rng) -> dict[str, np.ndarray]:
  """The digits of the shadow run, as a camera or a clerk may change them."""
  noisy = lambda s: rest + rng.normal(0, s, rest.shape)
  found = {
    'as they are': rest,
    'noise of deviation 1': noisy(1),
    'noise of deviation 2': noisy(2),
    'darker by 30%': 0.7 * rest,
    'brighter by 30%': 1.3 * rest,
    'blurred': blurred(rest),
    'moved by a pixel': np.roll(rest, 1, 2),
    'mirrored': rest[:, :, ::-1],
    'black and white exchanged': 16 - rest,
  }
  return {k: np.clip(np.round(x), 0, 16).astype(int) for k, x in found.items()}


def completed_sets(model, train, held, rng) -> dict[str, np.ndarray]:
  """The digits held out with other lower halves."""
  lower = np.arange(8)[:, None] * np.ones(8) >= 4
  with_half = lambda x: np.where(lower[..., None], x, held)
  return {
    'as they are': held,
    'drawn by digits_ar': model.edit(held, lower, -1, guidance=1.0)[:, 0],
    'the mean digit': with_half(train.mean(0)),
    'another digit': with_half(rng.permutation(held)),
  }


def judge(drawn, held, train) -> dict[str, gates.Interval]:
  """What the gates of the stage `full` find, by name."""
  features = image_measures.components(train)
  parts = [features(x) for x in (drawn, held, train)]
  missed, others = image_measures.missed(*parts)
  return {
    'distance': gates.mean(image_measures.distance(*parts)),
    'most_strange': gates.more(*image_measures.strange(*parts)),
    'most_missed': gates.mean(missed - others),
  }


def table(found: dict[str, list[dict[str, gates.Interval]]], least=False):
  """Prints means of intervals, and how often each verdict was reached."""
  names = list(next(iter(found.values()))[0])
  limits = {k: image_settings.GATES[k].default for k in names}
  sign = '≥' if least else '≤'
  heads = [f'`{k}` {sign} {limits[k]:g}' for k in names]
  print('\n| images |', ' | '.join(heads), '|', ' / '.join(VERDICTS), '|')
  print('|---' * (len(names) + 2) + '|')
  for kind, splits in found.items():
    cells, verdicts = [], collections.Counter()
    for k in names:
      ends = np.mean([(x[k].value, x[k].low, x[k].high) for x in splits], 0)
      cells.append('{:.2f} ({:.2f} to {:.2f})'.format(*ends))
    for x in splits:
      each = [Gate(k, limits[k], x[k], least).verdict for k in names]
      verdicts[gates.verdict(each)] += 1
    counts = ' / '.join(str(verdicts[v]) for v in VERDICTS)
    print('|', kind, '|', ' | '.join(cells), '|', counts, '|')


def main():
  data = datasets.load_digits()
  x, labels = data.images.astype(np.uint8)[..., None], data.target
  train, later = x[:TRAIN], x[TRAIN:]
  model = api.load('digits_ar')
  drawn = collections.defaultdict(list)
  for seed in range(SPLITS):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(later))
    first = len(later) * 3 // 5
    held, rest = later[order[:first]], later[order[first:]]
    for kind, some in drawn_sets(train, labels[:TRAIN], rest, rng).items():
      drawn[kind].append(judge(some, held, train))
  table(drawn)
  bits = lambda x: -model.log_prob(x, -1) / 64 / np.log(2)
  more = lambda x: image_measures.difference(bits(x), bits(held))
  saved = lambda x: gates.mean(image_measures.saved(train, held, x))
  moved = shadow_sets(rest, rng).items()
  table({kind: [{'shadow_bits': more(x)}] for kind, x in moved})
  halves = completed_sets(model, train, held, rng).items()
  table({kind: [{'completion': saved(x)}] for kind, x in halves}, least=True)


if __name__ == '__main__':
  main()
