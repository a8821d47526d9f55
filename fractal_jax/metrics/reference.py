"""The images that generated ones are compared with, as statistics.

`read` takes files of four kinds:

  this package's  mu, sigma, and what precision, recall and diversity need
  TTUR, ADM       mu, sigma
  others          ref_mu, ref_sigma
  ADM's VIRTUAL_* arr_0 (10,000 images), mu, sigma

`make` makes one of any data set of `fractal_jax.data`, and `of_run` that of a
run's own.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import dataclasses
import json
import os

import jax
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import paths, sharding
from fractal_jax.data import pipeline
from fractal_jax.metrics import MetricsError, files, inception, scores
from fractal_jax.metrics.features import Extractor, check_model
from fractal_jax.metrics.images import FOLDER
from fractal_jax.pictures import from_values
from fractal_jax.training import processes

SEEN = 2000  # examples that a split's fingerprint is made of, at most
NEIGHBOURS = 10_000  # images that precision and recall look at, as ADM's
WANTED = (
  f'`mu` [{inception.FEATURES}] and `sigma` [{inception.FEATURES}, '
  f'{inception.FEATURES}] of Inception features, or `ref_mu` and `ref_sigma`, '
  'or images `arr_0` uint8 [n, H, W, 3]: a file of `fractal-jax reference`, '
  "of TTUR, or one of ADM's VIRTUAL_imagenet*.npz"
)


@dataclasses.dataclass(frozen=True)
class Reference:
  """Statistics of reference images; None: not known.

  m images for precision and recall, K classes.
  """

  name: str  # what it is of
  mu: np.ndarray  # [2048] float64
  sigma: np.ndarray  # [2048, 2048] float64
  num: int | None = None  # images that mu and sigma are of
  side: int | None = None  # of the images
  features: np.ndarray | None = None  # [m, 2048] float32
  labels: np.ndarray | None = None  # [m]
  class_variance: np.ndarray | None = None  # [K], see scores.ClassVariance
  class_names: tuple[str, ...] | None = None  # in the order of the labels
  fingerprint: str | None = None  # of the weights


def of_run(
  config: ConfigDict,
  workdir: str,
  extractor: Extractor,
  progress: Callable = iter,
) -> tuple[Reference, paths.Path]:
  """Statistics of the training data of a run, kept in its work directory.

  They are made once for each content of the data, see `fingerprint`.

  Args:
    config: the run's.
    workdir: the run's; gets a file evaluate/reference-HASH.npz.
    extractor: computes features.
    progress: wraps the iterable of batches.

  Returns:
    (the Reference, its path).

  Raises:
    MetricsError, DataError: as of `make` and `read`.
  """
  d, m = config.data, config.model
  what = processes.together(
    lambda: [
      *(d.name, d.dir, d.train_split, m.sizes[0], m.channels, m.num_values),
      *(fingerprint(config, d.train_split), extractor.fingerprint),
    ],
    pipeline.DataError,
  )
  name = f'reference-{files.digest(json.dumps(what))}.npz'
  path = paths.path(workdir) / FOLDER / processes.broadcast(name)
  if processes.broadcast(str(path.is_file())) == 'True':
    job = lambda: read(path, extractor)
    return processes.together(job, MetricsError), path
  made = make(config, d.train_split, extractor, progress=progress)
  if jax.process_index() == 0:
    write(path, made)
  return made, path


def fingerprint(config: ConfigDict, split: str) -> str:
  """A hash of what a split holds: other examples give another.

  Of a split of more than SEEN examples, SEEN are looked at, evenly spaced:
  a replaced data set is noticed, a change of a few images perhaps not.
  """
  source = pipeline.open_split(config, split)
  num = min(source.size, SEEN)
  index = np.linspace(0, source.size - 1, num).astype(int).tolist()
  with futures.ThreadPoolExecutor(config.data.threads) as pool:
    seen = pool.map(source.read, index)
    parts = (
      part
      for image, label in seen
      for part in (f'{label} {image.dtype} {image.shape}', np.asarray(image))
    )
    return files.digest(f'{source.size} {source.class_names}', *parts)


def make(
  config: ConfigDict,
  split: str,
  extractor: Extractor,
  *,
  num: int = 0,
  progress: Callable = iter,
) -> Reference:
  """Statistics of a split of a config's data set, without augmentation.

  Args:
    config: reads data, and of model the shape of the images.
    split: its name.
    extractor: its mesh and hosts share the work; a batch of it that is larger
      than the data is cut to that.
    num: images, drawn once and for all; 0 for all.
    progress: wraps the iterable of batches.

  Raises:
    MetricsError, DataError: images that Inception can't be shown, too few.
  """
  check_model(config.model)
  source = pipeline.open_split(config, split)
  size = source.size
  if size < 2:
    raise MetricsError(f"split '{split}' holds {size} image: 2 are needed.")
  # Whose features are kept: the first of the order in which eval_batches draws.
  kept = np.zeros(size + 1, bool)  # the last entry is of its blank rows
  drawn = np.random.default_rng(0).permutation(size)
  kept[drawn[: min(num or size, NEIGHBOURS)]] = True
  total, within = scores.Statistics(), scores.ClassVariance()
  features, labels = [], []
  for seen in _seen(config, split, extractor, num, progress):
    total.add(seen['features'])
    within.add(seen['features'], seen['label'])
    chosen = kept[seen['index']]
    features.append(seen['features'][chosen])
    labels.append(seen['label'][chosen])
  mu, sigma = total.result()
  return Reference(
    name=f'{config.data.name} {config.data.dir} {split}'.replace('  ', ' '),
    mu=mu,
    sigma=sigma,
    num=total.num,
    side=config.model.sizes[0],
    features=np.concatenate(features),
    labels=np.concatenate(labels),
    class_variance=within.result(),
    class_names=source.class_names,
    fingerprint=extractor.fingerprint,
  )


def _seen(
  config, split: str, extractor: Extractor, num: int, progress: Callable
) -> Iterator[dict]:
  """`features`, `label` and `index` of a split's examples, some at a time."""
  batches = pipeline.eval_batches(
    config,
    split,
    extractor.batch,
    process_index=extractor.host,
    process_count=extractor.hosts,
    num=num,
    parts=sharding.batch_devices(extractor.mesh),
  )
  for batch in progress(batches):
    out = extractor.rows(
      {
        'pictures': from_values(batch['image'], config.model),
        'label': batch['label'],
        'index': batch['index'].astype(np.int32),
        'valid': batch['valid'],
      }
    )
    yield {k: v[out['valid']] for k, v in out.items()}


def write(path: str | os.PathLike, reference: Reference) -> None:
  """Writes an .npz file that `read` and, of mu and sigma, others read."""
  found = dataclasses.asdict(reference)
  paths.write_npz(path, **{k: v for k, v in found.items() if v is not None})


def read(path: str | os.PathLike, extractor: Extractor) -> Reference:
  """Reads any of the four kinds.

  Args:
    path: the file.
    extractor: computes features of images that the file holds.

  Raises:
    MetricsError: it is something else, or of other Inception weights.
  """
  arrays = files.load_npz(path, f'reference statistics: {WANTED}')
  for name in ('mu', 'sigma'):
    if f'ref_{name}' in arrays:
      arrays.setdefault(name, arrays[f'ref_{name}'])
  if not {'mu', 'sigma'} <= arrays.keys() and 'arr_0' not in arrays:
    hint = ''
    if 'images' in arrays:
      hint = (
        ' It looks like a data set: `fractal-jax reference --data=FILE.npz '
        '--size=SIDE --out=ref.npz` makes statistics of it.'
      )
    raise MetricsError(
      f'{path} holds {files.listing(arrays)}; expected {WANTED}.{hint}'
    )
  known = {'name': str(path), 'fingerprint': extractor.fingerprint}
  known |= _checked(path, {k: arrays[k] for k in arrays if k in _FIELDS})
  if known['fingerprint'] != extractor.fingerprint:
    raise MetricsError(
      f'{path} was made with other Inception weights (fingerprint '
      f'{known["fingerprint"]}) than those given now '
      f'({extractor.fingerprint}): give the same --inception, or make the '
      'reference again.'
    )
  if 'arr_0' in arrays and 'features' not in arrays:
    known |= _of_pictures(path, known, extractor)
  return Reference(**known)


_FIELDS = {field.name for field in dataclasses.fields(Reference)}


def _checked(path, arrays: dict[str, np.ndarray]) -> dict:
  """The fields of a Reference among a file's arrays, as it has them.

  Raises:
    MetricsError: one of them has another kind, shape or range.
  """
  out = dict(arrays)
  single = {'name': 'U', 'fingerprint': 'U', 'num': 'iu', 'side': 'iu'}
  for name, kinds in single.items():
    if name in arrays:
      files.check_array(path, name, arrays[name], kinds, ())
      out[name] = arrays[name].item()
  if {'mu', 'sigma'} <= arrays.keys():
    _check_statistics(path, arrays['mu'], arrays['sigma'])
  if 'features' in arrays:
    shape = (None, inception.FEATURES)
    files.check_array(path, 'features', arrays['features'], 'f', shape)
    if 'labels' in arrays:
      out['labels'] = files.checked_labels(
        path, 'labels', arrays['labels'], len(arrays['features'])
      )
  if 'class_variance' in arrays:
    x = arrays['class_variance']
    if x.dtype.kind == 'f':  # nan where a class has fewer than 2 images
      x = np.where(np.isnan(x), 0, x)
    files.check_array(path, 'class_variance', x, 'f', (None,))
  if 'class_names' in arrays:
    files.check_array(path, 'class_names', arrays['class_names'], 'U', (None,))
    out['class_names'] = tuple(arrays['class_names'].tolist())
  return out


def _of_pictures(path, known: dict, extractor: Extractor) -> dict:
  """What the pictures in a file tell, beside its statistics."""
  pictures = files.Samples(path)
  seen = NEIGHBOURS if 'mu' in known else len(pictures)
  found = extractor(pictures[0:seen])[0]
  out = {'side': pictures.side, 'features': found[:NEIGHBOURS]}
  if pictures.labels is not None:
    out['labels'] = pictures.labels[:NEIGHBOURS]
  if 'mu' in known:
    return out
  if len(pictures) < 2:
    raise MetricsError(f'{path}: arr_0 holds 1 image: statistics need 2.')
  total = scores.Statistics()
  total.add(found)
  mu, sigma = total.result()
  return out | {'mu': mu, 'sigma': sigma, 'num': total.num}


def _check_statistics(path, mu: np.ndarray, sigma: np.ndarray) -> None:
  """Raises MetricsError unless these are a mean and a covariance."""
  d = inception.FEATURES
  if mu.shape != (d,) or sigma.shape != (d, d):
    raise MetricsError(
      f'{path}: mu is {list(mu.shape)} and sigma {list(sigma.shape)}; expected '
      f'[{d}] and [{d}, {d}], the statistics of the last pooling of the FID '
      'Inception net. Other layers and other nets give other numbers.'
    )
  files.check_array(path, 'mu', mu, 'fiu', (d,))
  files.check_array(path, 'sigma', sigma, 'fiu', (d, d))
  scale = max(np.abs(sigma).max(), 1e-12)
  if (
    np.abs(sigma - sigma.T).max() > 1e-3 * scale
    or np.diag(sigma).min() < -1e-6 * scale
  ):
    raise MetricsError(
      f'{path}: sigma is no covariance: not symmetric, or with a negative '
      'variance.'
    )
