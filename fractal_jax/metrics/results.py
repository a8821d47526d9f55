"""The numbers about generated images; docs/metrics.md says what each is."""

from collections.abc import Callable
import functools

import numpy as np

from fractal_jax.inference import reject
from fractal_jax.metrics import MetricsError, inception, neighbours, scores
from fractal_jax.metrics.features import Extractor
from fractal_jax.metrics.images import Chunks, Images, in_chunks
from fractal_jax.metrics.reference import Reference


def features_of(
  images: Images, extractor: Extractor, progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
  """Inception features [num, 2048] and logits [num, 1008], kept if images are.

  Args:
    progress: called with how many images are done, after each chunk.
  """
  kept = None
  if images.folder is not None:
    kept = Chunks(
      images.folder / f'inception-{extractor.fingerprint}',
      features=('f', (inception.FEATURES,)),
      logits=('f', (None,)),
    )

  def seen(first: int) -> dict:
    found = extractor(images.pictures(first))
    return dict(zip(('features', 'logits'), found))

  def each(first: int) -> tuple:
    see = functools.partial(seen, first)
    found = see() if kept is None else kept.get(first, see)
    return found['features'], found['logits']

  out = []
  for first, found in in_chunks(images, each):
    out.append(found)
    progress(first + len(found[0]))
  return tuple(np.concatenate(x) for x in zip(*out))


def measure(
  images: Images,
  reference: Reference,
  extractor: Extractor,
  progress: Callable[[int], None] = lambda done: None,
) -> dict:
  """Every metric of a set of images.

  Args:
    images: at least 10.
    reference: what they are compared with.
    extractor: computes their features.
    progress: called with how many images are done.

  Returns:
    A dict of what JSON can hold. What the reference does not allow is None.

  Raises:
    MetricsError: too few images, or of another size than the reference's.
  """
  _check(images, reference)
  pool, logits = features_of(images, extractor, progress)
  total = scores.Statistics()
  total.add(pool)
  score, deviation = scores.inception_score(logits)
  real = reference.features
  report = images.report()
  near = real is not None and min(len(real), images.num) > neighbours.K
  return {
    'num': images.num,
    'fid': scores.frechet_distance(
      *total.result(), reference.mu, reference.sigma, scores.root_of(pool)
    ),
    'inception_score': score,
    'inception_score_std': deviation,
    **_neighbours(images.labels, pool, reference if near else None),
    **_diversity(images.labels, pool, reference.class_variance),
    'reference': {
      'name': reference.name,
      'num': reference.num,
      'neighbours': len(real) if near else None,
    },
    'inception': extractor.fingerprint,
    'rejection': report and report.numbers(),
    'settings': images.settings,
  }


def _check(images: Images, reference: Reference) -> None:
  """Raises MetricsError where the two can't be compared."""
  if images.num < scores.SPLITS:
    raise MetricsError(
      f'{images.num} images: at least {scores.SPLITS} are needed, one for each '
      'part of the Inception Score.'
    )
  if reference.side not in (None, images.side):
    raise MetricsError(
      f'the images have {images.side} pixels per side, those of the reference '
      f'{reference.name} have {reference.side}: expected equal sizes.'
    )


def _neighbours(labels, pool: np.ndarray, reference: Reference | None) -> dict:
  """Precision and recall of features [n, D]; None without a reference."""
  out = dict.fromkeys(
    ('precision', 'recall', 'class_recall', 'recall_by_class')
  )
  if reference is None:
    return out
  real = reference.features
  out['precision'], out['recall'] = neighbours.precision_recall(pool, real)
  if labels is not None and reference.labels is not None:
    recall = neighbours.class_recall(pool, labels, real, reference.labels)
    out['recall_by_class'] = _numbers(recall)
    if np.isfinite(recall).any():
      out['class_recall'] = float(np.nanmean(recall))
  return out


def _diversity(labels, pool: np.ndarray, reference) -> dict:
  """Variances of features [n, D] within classes, as shares of [K] others."""
  if labels is None or reference is None:
    return dict.fromkeys(('intra_class_diversity', 'diversity_by_class'))
  within = scores.ClassVariance()
  within.add(pool, labels)
  *each, total = _numbers(scores.diversity(within.result(), reference))
  return {'intra_class_diversity': total, 'diversity_by_class': each}


def _numbers(x: np.ndarray) -> list:
  return [float(v) if np.isfinite(v) else None for v in x]


def summary(found: dict) -> str:
  """What `measure` found, as lines of text."""
  number = lambda x, digits: '-' if x is None else f'{x:.{digits}f}'
  ref = found['reference']
  deviation = found['inception_score_std']
  lines = [
    f'FID                    {found["fid"]:.4f}',
    f'Inception Score        {found["inception_score"]:.3f} ± {deviation:.3f}',
    f'precision              {number(found["precision"], 4)}',
    f'recall                 {number(found["recall"], 4)}',
    f'recall within classes  {number(found["class_recall"], 4)}',
    f'intra-class diversity  {number(found["intra_class_diversity"], 4)}',
    f'of {found["num"]} images against {ref["num"] or "?"} of {ref["name"]}, '
    f'{ref["neighbours"] or "none"} of them for precision and recall.',
  ]
  if found['precision'] is None:
    lines.append(
      '-: the reference holds statistics alone. `fractal-jax reference` makes '
      'one that has it all.'
    )
  elif found['class_recall'] is None:
    lines.append(
      '-: needs labels of the images and of the reference, and at least '
      f'{neighbours.K + 1} images of a class on either side.'
    )
  if found['rejection']:
    lines.append(f'{reject.summary(found["rejection"])}.')
  if found['num'] < 50_000:
    lines.append(
      'FIDs of fewer images are higher: compare them at equal numbers only.'
    )
  return '\n'.join(lines)
