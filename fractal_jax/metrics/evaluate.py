"""Evaluation: images of a run, or of any other model, to FID and the rest.

Images are generated a chunk at a time and kept in the work directory:

    evaluate/KEY/settings.json   what the images are a function of
    evaluate/KEY/images/         START-STOP.npz, values of these images
    evaluate/KEY/FINGERPRINT/    the same of their Inception features
    evaluate/reference-*.npz     statistics of the run's own data

KEY is made of the settings, the parameters among them, so that images of
different settings never mix. A file is whole or not there: an evaluation that
was killed goes on where it was, with other chunks and on another mesh if need
be, since image i is a function of the settings and of i alone.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import paths, sharding
from fractal_jax.inference import sample
from fractal_jax.metrics import MetricsError, files, neighbours, scores
from fractal_jax.metrics import reference as references
from fractal_jax.metrics.features import check_model
from fractal_jax.training import processes

FOLDER = 'evaluate'


class Chunks:
  """Arrays of images 0, 1, ..., in files of some of them; process 0 writes."""

  def __init__(self, folder: paths.Path):
    """Looks at what is there; all hosts see the same folder."""
    self._folder = folder
    names = [p.name for p in folder.glob('*.npz')] if folder.is_dir() else []
    # All hosts go by what process 0 saw, to do the same work in step.
    names = json.loads(processes.broadcast(json.dumps(sorted(names))))
    ranges = [n.removesuffix('.npz').split('-') for n in names if n[0] != '.']
    self._ranges = sorted((int(a), int(b)) for a, b in ranges)

  def covering(self, first: int) -> tuple[int, int] | None:
    """The range of the file that holds image `first`, or None."""
    found = [r for r in self._ranges if r[0] <= first < r[1]]
    return max(found, key=lambda r: r[1], default=None)

  def read(self, first: int) -> dict[str, np.ndarray]:
    """The arrays from image `first` on of the file that holds it.

    Raises:
      MetricsError: on all hosts, where one of them can't read it.
    """
    start, stop = self.covering(first)
    path = self._path(start, stop)
    what = 'a chunk of an evaluation: remove it, and it will be made again'
    arrays = processes.together(
      lambda: files.load_npz(path, what), MetricsError
    )
    return {k: v[first - start :] for k, v in arrays.items()}

  def write(self, first: int, **arrays) -> None:
    """Keeps the arrays of the images from `first` on."""
    stop = first + len(next(iter(arrays.values())))
    if jax.process_index() == 0:
      files.save_npz(self._path(first, stop), **arrays)
    self._ranges.append((first, stop))

  def _path(self, start: int, stop: int) -> paths.Path:
    return self._folder / f'{start:07d}-{stop:07d}.npz'


@dataclasses.dataclass(frozen=True)
class Images:
  """Generated images of a run: which, and how to get them.

  Attributes:
    num: how many.
    labels: classes [num], or None where they were drawn without.
    side: of an image.
    folder: where they and their features are kept; None: nowhere.
    pictures: image -> pictures of some images from that one on.
    settings: what they are a function of.
  """

  num: int
  labels: np.ndarray | None
  side: int
  folder: paths.Path | None
  pictures: Callable[[int], np.ndarray]
  settings: dict


def of_run(
  model,
  workdir: str,
  step: int,
  num: int,
  *,
  seed: int = 0,
  batch: int | None = None,
  unconditional: bool = False,
  **settings,
) -> Images:
  """Images of a run, equally many a class, generated as they are needed.

  Args:
    model: an api.Model, of `workdir`.
    workdir: the run, in whose folder `evaluate` the images are kept.
    step: the checkpoint's, for the record.
    num: images, a multiple of the classes. Image i has class i mod classes.
    seed: image i is a function of the seed and i alone.
    batch: images at a time; config.sample.batch where None.
    unconditional: draw without class.
    **settings: in place of those of config.sample.

  Raises:
    MetricsError: images that the Inception net can't be shown, or that can't
      be equally many a class.
  """
  m = model.config.model
  check_model(m)
  classes = 1 if unconditional else m.classes
  if num % classes or num < 1:
    few, more = num // classes * classes, (num // classes + 1) * classes
    raise MetricsError(
      f'--num={num} images can not be equally many of each of {classes} '
      f'classes: set it to {f"{few} or " if few else ""}{more}.'
    )
  label = lambda i: -np.ones_like(i) if unconditional else i % classes
  sampling, guided = sample.settings(model.config, **settings)
  what = {
    'step': step,
    'params': fingerprint(model.params),
    'model': json.loads(m.to_json()),
    'seed': seed,
    'labels': 'none' if unconditional else f'i mod {classes}',
    **{k: getattr(sampling, k) for k in sample.SETTINGS},
  }
  folder = paths.path(workdir) / FOLDER / key(what)
  if jax.process_index() == 0:
    paths.write_text(folder / 'settings.json', json.dumps(what, indent=2))
  kept = Chunks(folder / 'images')
  parts = sharding.batch_devices(model.mesh)
  batch = -(-min(batch or model.config.sample.batch, num) // parts) * parts

  def pictures(first: int) -> np.ndarray:
    if kept.covering(first):
      values = kept.read(first)['values']
    else:
      values = sample.generate(
        model.net,
        model.params,
        label(np.arange(first, first + batch)),
        sampling,
        guided=guided,
        seed=seed,
        first=first,
        batch=batch,
        mesh=model.mesh,
      ).values.astype(np.uint8 if m.num_values <= 256 else np.int32)
      kept.write(first, values=values)
    return sample.pictures(values, m)

  return Images(
    num=num,
    labels=None if unconditional else label(np.arange(num)),
    side=m.sizes[0],
    folder=folder,
    pictures=pictures,
    settings=what,
  )


def of_files(path: str, batch: int) -> Images:
  """Images of any other model: see `metrics.files.Samples`."""
  found = files.Samples(path)
  return Images(
    num=len(found),
    labels=found.labels,
    side=found.side,
    folder=None,
    pictures=lambda first: found[first : first + batch],
    settings={'images': str(path)},
  )


def key(settings: dict) -> str:
  """A folder's name: what one looks for, and a hash of all the settings."""
  text = json.dumps(settings, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  return (
    f'step{settings["step"]}-guidance{settings["guidance"]:g}'
    f'-temperature{settings["temperature"]:g}-{digest}'
  )


def fingerprint(params) -> str:
  """Of the parameters' bits, the same on any mesh."""
  sums = jax.device_get(_sums(params))
  leaves = jax.tree_util.tree_leaves_with_path(sums)
  text = [f'{jax.tree_util.keystr(path)} {int(x)}' for path, x in leaves]
  return hashlib.sha256('\n'.join(text).encode()).hexdigest()[:16]


@jax.jit
def _sums(params):
  def one(x):
    # Whole numbers, so that the order of the sum does not matter.
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    weights, stride = jnp.uint32(1), 1
    for axis in reversed(range(x.ndim)):
      index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
      weights += 2 * np.uint32(stride % 2**32) * index
      stride *= x.shape[axis]
    return (bits * weights).sum(dtype=jnp.uint32)

  return jax.tree.map(one, params)


def walk(images: Images, each) -> Iterator:
  """each(first) for image 0 and so on, where it tells how far it went.

  Args:
    images: reads num.
    each: image -> arrays of some images from that one on.

  Yields:
    (first, the arrays), cut where num images are reached.
  """
  first = 0
  while first < images.num:
    arrays = each(first)
    some = jax.tree.leaves(arrays)[0]
    left = images.num - first
    yield first, jax.tree.map(lambda x, left=left: x[:left], arrays)
    first += len(some)


def features(images: Images, extractor, progress) -> tuple:
  """Inception features [num, 2048] and logits [num, 1008], kept if images are.

  Args:
    images: the images.
    extractor: a metrics.features.Extractor.
    progress: called with how many images are done, after each chunk.
  """
  kept = None
  if images.folder is not None:
    kept = Chunks(images.folder / f'inception-{extractor.fingerprint}')

  def each(first: int):
    if kept is not None and kept.covering(first):
      found = kept.read(first)
      return found['features'], found['logits']
    found = extractor(images.pictures(first))
    if kept is not None:
      kept.write(first, features=found[0], logits=found[1])
    return found

  out = []
  for first, found in walk(images, each):
    out.append(found)
    progress(first + len(found[0]))
  return tuple(np.concatenate(x) for x in zip(*out))


def save(images: Images, path: str) -> None:
  """Writes the images as ADM's suite reads them; process 0 alone needs to.

  Every process calls it, since images may have yet to be generated.
  """
  chunks = (x for _, x in walk(images, images.pictures))
  if jax.process_index():
    for _ in chunks:
      pass
    return
  shape = (images.side, images.side, 3)
  files.save_samples(path, images.num, shape, chunks, images.labels)


def evaluate(
  images: Images,
  reference: references.Reference,
  extractor,
  progress=lambda done: None,
) -> dict:
  """All the numbers; docs/metrics.md says what each of them is.

  Args:
    images: at least 10.
    reference: what they are compared with.
    extractor: a metrics.features.Extractor.
    progress: called with how many images are done.

  Returns:
    A dict of what JSON can hold. What the reference does not allow is None.

  Raises:
    MetricsError: too few images, or of another size than the reference's.
  """
  if images.num < scores.SPLITS:
    raise MetricsError(
      f'{images.num} images: at least {scores.SPLITS} are needed, one for each '
      'part of the Inception Score.'
    )
  if reference.side not in (None, images.side):
    raise MetricsError(
      f'the images have {images.side} pixels a side, those of the reference '
      f'{reference.name} have {reference.side}: expected equal sizes.'
    )
  pool, logits = features(images, extractor, progress)
  total = scores.Statistics()
  total.add(pool)
  score, deviation = scores.inception_score(logits)
  out = {
    'num': images.num,
    'fid': scores.frechet_distance(
      *total.result(),
      reference.mu,
      reference.sigma,
      scores.root_of(pool),
    ),
    'inception_score': score,
    'inception_score_std': deviation,
    'precision': None,
    'recall': None,
    'class_recall': None,
    'intra_class_diversity': None,
    'recall_by_class': None,
    'diversity_by_class': None,
    'reference': {
      'name': reference.name,
      'num': reference.num,
      'neighbours': None,
    },
    'inception': extractor.fingerprint,
    'settings': images.settings,
  }
  real = reference.features
  if real is not None and min(len(real), images.num) > neighbours.K:
    out['reference']['neighbours'] = len(real)
    out['precision'], out['recall'] = neighbours.precision_recall(pool, real)
    if images.labels is not None and reference.labels is not None:
      recall = neighbours.class_recall(
        pool, images.labels, real, reference.labels
      )
      out['recall_by_class'] = _numbers(recall)
      out['class_recall'] = _mean(recall)
  if images.labels is not None and reference.class_variance is not None:
    within = scores.ClassVariance()
    within.add(pool, images.labels)
    shares = scores.diversity(within.result(), reference.class_variance)
    *out['diversity_by_class'], out['intra_class_diversity'] = _numbers(shares)
  return out


def _numbers(x: np.ndarray) -> list:
  return [float(v) if np.isfinite(v) else None for v in x]


def _mean(x: np.ndarray) -> float | None:
  return float(np.nanmean(x)) if np.isfinite(x).any() else None


def summary(found: dict) -> str:
  """The numbers as lines of text."""
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
  if found['num'] < 50_000:
    lines.append(
      'FIDs of fewer images are higher: compare them at equal numbers only.'
    )
  return '\n'.join(lines)


def own_reference(config, workdir: str, extractor, progress) -> tuple:
  """Statistics of the training data of a run, kept in its work directory.

  Returns:
    (the Reference, its path).
  """
  d, m = config.data, config.model
  split = d.train_split
  what = [d.name, d.dir, split, m.sizes[0], m.channels, m.num_values]
  text = json.dumps([*what, extractor.fingerprint])
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  path = paths.path(workdir) / FOLDER / f'reference-{digest}.npz'
  there = processes.broadcast(str(path.is_file()))
  if there == 'True':
    return (
      processes.together(
        lambda: references.read(path, extractor), MetricsError
      ),
      path,
    )
  made = references.make(config, split, extractor, progress=progress)
  if jax.process_index() == 0:
    references.write(path, made)
  return made, path
