"""The images that generated ones are compared with, as statistics.

`read` takes files of four kinds:

  this package's  mu, sigma, and what precision, recall and diversity need
  TTUR, ADM       mu, sigma
  others          ref_mu, ref_sigma
  ADM's VIRTUAL_* arr_0 (10,000 images), mu, sigma

`make` makes one of any data set of `fractal_jax.data`.
"""

import dataclasses

import numpy as np

from fractal_jax import sharding
from fractal_jax.data import pipeline
from fractal_jax.inference import sample
from fractal_jax.metrics import MetricsError, files, inception, scores
from fractal_jax.metrics.features import check_model

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
  fingerprint: str | None = None  # of the weights


def make(config, split, extractor, *, num=0, progress=lambda x: x) -> Reference:
  """Statistics of a split of a config's data set, without augmentation.

  Args:
    config: reads data, and of model the shape of the images.
    split: its name.
    extractor: a features.Extractor; its mesh and hosts share the work.
    num: images, drawn once and for all; 0 for all.
    progress: wraps the iterable of batches.

  Raises:
    MetricsError, DataError: images that Inception can't be shown, too few.
  """
  check_model(config.model)
  size = pipeline.open_split(config, split).size
  if size < 2:
    raise MetricsError(f"split '{split}' holds {size} image: 2 are needed.")
  batches = pipeline.eval_batches(
    config,
    split,
    extractor.batch,
    process_index=extractor.host,
    process_count=extractor.hosts,
    num=num,
    parts=sharding.batch_devices(extractor.mesh),
  )
  # The first of the order in which eval_batches draws `num`.
  limit = min(num or size, NEIGHBOURS)
  kept = np.zeros(size + 1, bool)
  kept[np.random.default_rng(0).permutation(size)[:limit]] = True
  total, within = scores.Statistics(), scores.ClassVariance()
  features, labels = [], []
  for batch in progress(batches):
    out = extractor.rows(
      {
        'pictures': sample.pictures(batch['image'], config.model),
        'label': batch['label'],
        'index': batch['index'].astype(np.int32),
        'valid': batch['valid'],
      }
    )
    seen = {k: v[out['valid']] for k, v in out.items()}
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
    fingerprint=extractor.fingerprint,
  )


def write(path: str, reference: Reference) -> None:
  """Writes an .npz file that `read` and, of mu and sigma, others read."""
  found = dataclasses.asdict(reference)
  files.save_npz(path, **{k: v for k, v in found.items() if v is not None})


def read(path: str, extractor) -> Reference:
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
  known = {k: arrays[k] for k in arrays if k in _FIELDS}
  for name in ('num', 'side'):
    if name in known:
      known[name] = int(known[name])
  known['name'] = str(known.get('name', path))
  made_with = str(known.get('fingerprint', extractor.fingerprint))
  known['fingerprint'] = made_with
  if made_with != extractor.fingerprint:
    raise MetricsError(
      f'{path} was made with other Inception weights (fingerprint {made_with}) '
      f'than those given now ({extractor.fingerprint}): give the same '
      '--inception, or make the reference again.'
    )
  if 'arr_0' in arrays and 'features' not in arrays:
    pictures = files.Samples(path)
    known['side'] = pictures.side
    n = NEIGHBOURS if 'mu' in known else len(pictures)
    found = extractor(pictures[0:n])[0]
    if 'mu' not in known:
      known |= _statistics(found)
    known['features'] = found[:NEIGHBOURS]
    if pictures.labels is not None:
      known['labels'] = pictures.labels[:NEIGHBOURS]
  _check(path, known)
  return Reference(**known)


_FIELDS = {field.name for field in dataclasses.fields(Reference)}


def _statistics(features) -> dict:
  total = scores.Statistics()
  total.add(features)
  if total.num < 2:
    raise MetricsError('arr_0 holds 1 image: statistics need 2 or more.')
  mu, sigma = total.result()
  return {'mu': mu, 'sigma': sigma, 'num': total.num}


def _check(path, known) -> None:
  d = inception.FEATURES
  mu, sigma = known['mu'], known['sigma']
  if mu.shape != (d,) or sigma.shape != (d, d):
    raise MetricsError(
      f'{path}: mu is {list(mu.shape)} and sigma {list(sigma.shape)}; expected '
      f'[{d}] and [{d}, {d}], the statistics of the last pooling of the FID '
      'Inception net. Other layers and other nets give other numbers.'
    )
  if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
    raise MetricsError(f'{path}: mu or sigma holds nan or infinity.')
  scale = max(np.abs(sigma).max(), 1e-12)
  if (
    np.abs(sigma - sigma.T).max() > 1e-3 * scale
    or np.diag(sigma).min() < -1e-6 * scale
  ):
    raise MetricsError(
      f'{path}: sigma is no covariance: not symmetric, or with a negative '
      'variance.'
    )
