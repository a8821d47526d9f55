"""Images to evaluate: of a run, which are kept, or of any other model.

Images of a run are generated a chunk at a time and kept in its work directory:

    evaluate/KEY/settings.json   what the images are a function of
    evaluate/KEY/images/         START-STOP.npz, values of these images
    evaluate/KEY/rejection/      what their candidates scored, if several
    evaluate/KEY/FINGERPRINT/    the same of their Inception features
    evaluate/reference-*.npz     statistics of the run's own data: reference.py

KEY is made of the settings, the parameters among them, so that images of
different settings never mix. A file is whole or not there: an evaluation that
was killed goes on where it was, with other chunks and on another mesh if need
be, since image i is a function of the settings and of i alone.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import json
import re
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import checks, paths, sharding
from fractal_jax.config import default
from fractal_jax.data import classes as classes_lib
from fractal_jax.data.common import DataError, image_shape
from fractal_jax.inference import progress, reject, sample
from fractal_jax.metrics import MetricsError, files
from fractal_jax.metrics.features import check_model
from fractal_jax.pictures import from_values
from fractal_jax.training import checksums, processes

if TYPE_CHECKING:
  from fractal_jax import api

FOLDER = 'evaluate'
# Settings that are part of KEY whatever they are.
ALWAYS = (
  'guidance', 'temperature', 'filter_threshold', 'schedule', 'iterations',
)  # fmt: skip
FORMAT = 2  # of the settings; 1, or none: the temperature multiplied the logits


class Chunks:
  """Arrays of images 0, 1, ..., in files of some of them; process 0 writes."""

  def __init__(self, folder: paths.Path, **wanted: tuple[str, tuple]):
    """Looks at what is there; all hosts see the same folder.

    Args:
      folder: where the files are.
      **wanted: of each array its kinds, and its shape for one image, as
        `files.check_array` takes them.
    """
    self._folder, self._wanted = folder, wanted
    names = [p.name for p in folder.glob('*.npz')] if folder.is_dir() else []
    # All hosts go by what process 0 saw, to do the same work in step.
    names = json.loads(processes.broadcast(json.dumps(sorted(names))))
    found = [re.fullmatch(r'(\d+)-(\d+)\.npz', name) for name in names]
    self._ranges = sorted((int(m[1]), int(m[2])) for m in found if m)

  def covering(self, first: int) -> tuple[int, int] | None:
    """The range of the file that holds image `first`, or None."""
    found = [r for r in self._ranges if r[0] <= first < r[1]]
    return max(found, key=lambda r: r[1], default=None)

  def read(self, first: int) -> dict[str, np.ndarray]:
    """The arrays from image `first` on of the file that holds it.

    Raises:
      MetricsError: on all hosts, where one of them can't read it, or it does
        not hold what it should.
    """
    start, stop = self.covering(first)
    arrays = processes.together(lambda: self._load(start, stop), MetricsError)
    return {name: x[first - start :] for name, x in arrays.items()}

  def get(self, first: int, make: Callable[[], dict]) -> dict[str, np.ndarray]:
    """The arrays from image `first` on: those kept, or else made and kept."""
    if self.covering(first):
      return self.read(first)
    arrays = make()
    self.write(first, **arrays)
    return arrays

  def write(self, first: int, **arrays: np.ndarray) -> None:
    """Keeps the arrays of the images from `first` on."""
    stop = first + len(next(iter(arrays.values())))
    if jax.process_index() == 0:
      paths.write_npz(self._path(first, stop), **arrays)
    self._ranges.append((first, stop))

  def _load(self, start: int, stop: int) -> dict[str, np.ndarray]:
    path = self._path(start, stop)
    what = 'a chunk of an evaluation: remove it, and it will be made again'
    arrays = files.load_npz(path, what)
    for name, (kinds, shape) in self._wanted.items():
      shape = (stop - start, *shape)
      files.check_array(path, name, arrays.get(name), kinds, shape, what)
    return {name: arrays[name] for name in self._wanted}

  def _path(self, start: int, stop: int) -> paths.Path:
    return self._folder / f'{start:07d}-{stop:07d}.npz'


@dataclasses.dataclass(frozen=True)
class Images:
  """Generated images: which, and how to get them.

  Attributes:
    num: how many.
    labels: classes [num], or None where they were drawn without.
    side: of an image.
    folder: where they and their features are kept; None: nowhere.
    pictures: image -> pictures of some images from that one on.
    settings: what they are a function of.
    report: () -> of what they were chosen, once they are drawn; None where
      each had one candidate, or where that is not known.
  """

  num: int
  labels: np.ndarray | None
  side: int
  folder: paths.Path | None
  pictures: Callable[[int], np.ndarray]
  settings: dict
  report: Callable[[], reject.Report | None] = lambda: None


def of_run(
  model: 'api.Model',
  workdir: str,
  num: int,
  *,
  seed: int = 0,
  batch: int | None = None,
  unconditional: bool = False,
  guide: 'api.Model | None' = None,
  **settings: Any,
) -> Images:
  """Images of a run, equally many per class, generated as they are needed.

  Args:
    model: an api.Model, of `workdir`.
    workdir: the run, in whose folder `evaluate` the images are kept.
    num: images, a multiple of the classes. Image i has class i mod classes.
    seed: image i is a function of the seed and i alone.
    batch: images at a time; config.sample.batch where None.
    unconditional: draw without class.
    guide: an api.Model that guides; see `sample.draw`.
    **settings: in place of those of config.sample.

  Raises:
    MetricsError: images that the Inception net can't be shown, or that can't
      be equally many per class; a seed of more than 32 bits.
  """
  m = model.config.model
  check_model(m)
  classes = 1 if unconditional else m.classes
  _check(num, classes, seed)
  label = lambda i: -np.ones_like(i) if unconditional else i % classes
  chosen = sample.section(model.config, settings)
  if not sample.settings(model.config, **settings)[1]:
    guide = None  # a sweep's baseline is the same with any
  labels = 'none' if unconditional else f'i mod {classes}'
  what = _settings(model, chosen, guide, seed=seed, labels=labels)
  folder, kept = _kept(workdir, what, m)
  batch = min(batch or model.config.sample.batch, num)
  batch = sharding.padded_batch(batch, model.mesh)
  # A file begins where groups of candidates do.
  group = classes * chosen.keep if chosen.keep > 1 else 1
  chunk = -(-batch // group) * group
  several = ('f', (chosen.candidates,))
  scored = Chunks(folder / 'rejection', scores=several, kept=('f', ()))

  def draw(first: int) -> dict:
    how = dict(guide=guide, seed=seed, first=first, batch=batch, **settings)
    labels = label(np.arange(first, first + chunk))
    drawn, found = progress.result_of(model.start(sample.kept, labels, **how))
    if found is not None:
      of, place = reject.groups(labels, chosen.keep)
      scored.write(first, scores=found.scores[of], kept=found.kept[of, place])
    return {'values': drawn.values}

  def pictures(first: int) -> np.ndarray:
    found = kept.get(first, functools.partial(draw, first))
    return from_values(found['values'], m)

  return Images(
    num=num,
    labels=None if unconditional else label(np.arange(num)),
    side=m.sizes[0],
    folder=folder,
    pictures=pictures,
    settings=what,
    report=lambda: _report(scored, label(np.arange(num)), chosen),
  )


def _report(
  scored: Chunks, labels: np.ndarray, chosen: ConfigDict
) -> reject.Report | None:
  """What the candidates for images of `labels` scored; None where not kept."""
  found, first = [], 0
  while first < len(labels):
    if not scored.covering(first):  # one candidate each, or kept from before
      return None
    found.append(scored.read(first))
    first += len(found[-1]['kept'])
  scores, kept = (
    np.concatenate([x[name] for x in found])[: len(labels)]
    for name in ('scores', 'kept')
  )
  _, place = reject.groups(labels, chosen.keep)
  return reject.Report(chosen.keep_by, scores[place == 0], kept)


def _settings(model, chosen: ConfigDict, guide, **request) -> dict:
  """What images are a function of.

  Newer settings of config.sample are part of it only where they are used:
  images that were drawn before there were these still count.
  """
  usual = default().sample
  what = {
    'format': FORMAT,
    'step': model.step,
    'params': fingerprint(model.params),
    'model': json.loads(model.config.model.to_json()),
    **request,
    **{k: v for k, v in chosen.items() if k in ALWAYS or v != usual[k]},
  }
  if guide is not None:
    what['guide'] = fingerprint(guide.params)
  return what


def _kept(workdir: str, what: dict, model) -> tuple[paths.Path, Chunks]:
  """The folder of images with these settings, and those that it holds."""
  folder = paths.path(workdir) / FOLDER / key(what)
  if jax.process_index() == 0:
    paths.write_text(folder / 'settings.json', json.dumps(what, indent=2))
  values = 'iu', image_shape(model)
  return folder, Chunks(folder / 'images', values=values)


def _check(num: int, classes: int, seed: int) -> None:
  """Raises MetricsError unless there can be such images, equally per class."""
  if wrong := checks.problem('seed', seed, checks.SEED):
    raise MetricsError(wrong)
  if num % classes or num < 1:
    few, more = num // classes * classes, (num // classes + 1) * classes
    raise MetricsError(
      f'--num={num} images can not be equally many of each of {classes} '
      f'classes: set it to {f"{few} or " if few else ""}{more}.'
    )


def of_files(
  found: files.Samples, batch: int, names: Sequence[str] = ()
) -> Images:
  """Images of any other model.

  Args:
    found: where they are read from.
    batch: images at a time.
    names: of all classes, in the order of their numbers: what folders' names
      mean. Where they are not known, the folders' own order is taken.

  Raises:
    MetricsError: a folder has another name.
  """
  labels = found.labels
  if found.folders and names:
    try:
      number = classes_lib.numbers(found.folders, names, len(names))
    except DataError as e:
      raise MetricsError(
        f'{found.name} has a folder for each class, but {e}'
      ) from e
    labels = np.array(number)[labels]
  return Images(
    num=len(found),
    labels=labels,
    side=found.side,
    folder=None,
    pictures=lambda first: found[first : first + batch],
    settings={'images': found.name},
  )


def key(settings: dict) -> str:
  """A folder's name: what one looks for, and a hash of all the settings."""
  digest = files.digest(json.dumps(settings, sort_keys=True))
  shown = lambda x: ','.join(f'{v:g}' for v in np.ravel(x))
  return (
    f'step{settings["step"]}-guidance{shown(settings["guidance"])}'
    f'-temperature{shown(settings["temperature"])}-{digest}'
  )


def fingerprint(params: dict) -> str:
  """A hash of the parameters' bits, the same on any mesh."""
  sums = checksums.sums(params)
  return files.digest(json.dumps(sums, sort_keys=True), length=16)


def in_chunks(images: Images, each: Callable[[int], Any]) -> Iterator:
  """Calls each(first) for image 0 and so on; its result says how far it went.

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


def save(images: Images, path: str) -> None:
  """Writes the images as ADM's suite reads them; process 0 alone needs to.

  Every process calls it, since images may have yet to be generated.
  """
  chunks = (x for _, x in in_chunks(images, images.pictures))
  if jax.process_index():
    for _ in chunks:
      pass
    return
  shape = (images.side, images.side, 3)
  files.save_samples(path, images.num, shape, chunks, images.labels)
