"""Batches of images: `info`, `train_batches` and `eval_batches`.

A data set is opened by one function of `SOURCES`, which returns a `Source`:
records that can be read at random. The training stream is a pure function of
the config and of a running index: index -> epoch and position -> record ->
decoded and augmented image. So any step can be started at, and any number of
hosts sees the same global batches: host h reads only its own rows.

Sources and grain are imported when they are used, TensorFlow never: TFDS data
sets are prepared by another process (`fractal_jax.data.prepared`).
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import math
import os
import sys

from ml_collections import ConfigDict
import numpy as np

from fractal_jax import paths
from fractal_jax.data import arrays, common, folder, prepared, series
from fractal_jax.data.common import DataError, Source
from fractal_jax.errors import nearest

# How each data set is opened: (config, split) -> Source. Any other name is
# looked up among the TensorFlow datasets.
SOURCES = {
  'digits': arrays.digits,
  'emoji': prepared.data_set,
  'emoji_subgroups': prepared.data_set,
  'folder': folder.folder,
  'imagenet2012': prepared.imagenet2012,
  'npz': arrays.npz,
  'series': series.series,
}


@dataclasses.dataclass(frozen=True)
class Info:
  """What a config's data set holds.

  Attributes:
    classes: number of classes.
    class_names: their names, in the order of the labels.
    num_train: examples of data.train_split.
    num_val: examples of data.val_split.
    skipped: which files are left out and why, a sentence; '' if none are.
    files: texts by name that a run keeps in its work directory.
  """

  classes: int
  class_names: tuple[str, ...]
  num_train: int
  num_val: int
  skipped: str = ''
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def info(config: ConfigDict) -> Info:
  """What the data set holds, after checking all that is cheap to check.

  Raises:
    DataError: the data set is missing, or does not fit the model.
  """
  train, val = (
    open_split(config, split)
    for split in (config.data.train_split, config.data.val_split)
  )
  for source in (train, val):
    source.check()
  return Info(
    classes=len(train.class_names),
    class_names=train.class_names,
    num_train=train.size,
    num_val=val.size,
    skipped='; '.join(
      filter(None, dict.fromkeys((train.skipped, val.skipped)))
    ),
    files=train.files,
  )


def check_files(workdir: str | os.PathLike, files: Mapping[str, str]) -> None:
  """Raises DataError where a run keeps other texts than its data now gives.

  The bins of series, say: a model goes on only with those that it was trained
  with.
  """
  for name, text in files.items():
    path = paths.path(workdir) / name
    if path.exists() and path.read_text() != text:
      raise DataError(
        f'{path} is not what the data gives now, so that the run cannot go on '
        'with it: give it the data, and the data.rows, held_out, bins and '
        'margin, that it was trained with, or take another --workdir.'
      )


def open_split(config: ConfigDict, split: str) -> Source:
  """Opens one split of the data set that config.data names.

  Raises:
    DataError: it is missing, empty, or does not fit the model.
  """
  name, m = config.data.name, config.model
  if name not in SOURCES and not prepared.exists(config):
    near = nearest(name, [*SOURCES, *prepared.names()])
    raise DataError(
      f"there is no data set '{name}'.{near} Set data.name to one of "
      f'{", ".join(SOURCES)}, or to a TensorFlow data set of images (this '
      f'needs {prepared.EXTRA}).'
    )
  source = SOURCES.get(name, prepared.data_set)(config, split)
  if source.size == 0:
    raise DataError(f"split '{split}' of data set '{name}' is empty.")
  if source.values > m.num_values:
    raise DataError(
      f"data set '{name}' has values up to {source.values - 1} but "
      f'model.num_values={m.num_values} allows only 0 to {m.num_values - 1}: '
      f'set model.num_values={source.values}.'
    )
  if len(source.class_names) > m.classes:
    raise DataError(
      f"data set '{name}' has {len(source.class_names)} classes (labels up to "
      f'{len(source.class_names) - 1}) but model.classes={m.classes}: set '
      f'model.classes={len(source.class_names)}.'
    )
  return source


class TrainBatches:
  """The endless training batches of one host; see `train_batches`."""

  def __init__(
    self,
    make_batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    examples: int,
  ):
    self._make_batches = make_batches  # first step -> iterator over batches
    self._examples = examples  # in an epoch
    self.set_state({'step': 0})

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """The number of the next batch: the same on any number of hosts."""
    return {'step': self._step, 'examples': self._examples}

  def set_state(self, state: dict[str, int]) -> None:
    """Continues with the batch that `get_state` would have given next.

    Raises:
      DataError: the data set had another size, so that this batch would hold
        other images.
    """
    before = state.get('examples', self._examples)
    if before != self._examples:
      raise DataError(
        f'the training split holds {self._examples} examples, and held '
        f'{before} when the run stopped: its place in them would be another '
        'one. Give it the data that it was trained on, or start in another '
        '--workdir with --config.model.init_from of this one and '
        '--config.model.init_levels of all levels.'
      )
    self._step = state['step']
    self._batches = self._make_batches(self._step)


def train_batches(
  config: ConfigDict,
  *,
  process_index: int = 0,
  process_count: int = 1,
  source: Source | None = None,
) -> TrainBatches:
  """Endless training batches of this host, reshuffled every epoch.

  Args:
    config: the config; reads data, optim.batch, seed and the model's shape.
    process_index: this host, h.
    process_count: number of hosts; each gets b = optim.batch / hosts rows.
    source: data at hand, in place of the split data.train_split.

  Returns:
    An iterator over dict(image uint8 or int32 [b, S, S, C] or [b, S, C],
    label int32 [b], index int64 [b], the running index of each example: step
    * optim.batch + position). Host h has rows h * b to (h + 1) * b of the
    global batch, which depends neither on the number of hosts nor on where it
    began. `get_state()` and `set_state(state)` save and restore the position.

  Raises:
    DataError: see `info`; or the batch does not divide by the hosts.
  """
  d, batch = config.data, config.optim.batch
  rows = _rows('optim.batch', batch, process_count)
  source = open_split(config, d.train_split) if source is None else source
  seed = config.seed % 2**32

  @functools.lru_cache(2)  # a batch can lie in two epochs
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((1, seed, epoch)).permutation(source.size)

  def example(row: int) -> tuple:
    step, position = divmod(row, rows)
    index = step * batch + process_index * rows + position
    epoch, position = divmod(index, source.size)
    image, label = source.read(int(order(epoch)[position]))
    image = _augment(config, image, np.random.default_rng((2, seed, index)))
    return image, label, index

  def batches(step: int):
    return _batches(config, example, step * rows, sys.maxsize, rows)

  return TrainBatches(batches, source.size)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """The batches of one host over a split; see `eval_batches`."""

  make: Callable[[], Iterator[dict[str, np.ndarray]]]
  number: int

  def __len__(self) -> int:
    return self.number

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self.make()


def eval_batches(
  config: ConfigDict,
  split: str,
  batch: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
  num: int = 0,
  parts: int | None = None,
) -> EvalBatches:
  """One pass over a split, in a fixed order, without augmentation.

  Args:
    config: the config; reads data and the model's shape.
    split: such as config.data.val_split.
    batch: examples per batch, over all hosts; where the split has fewer,
      no more than `parts` needs to hold them.
    process_index: this host, h.
    process_count: number of hosts; each gets b = batch / hosts rows.
    num: 0 for the whole split in its own order; else this many examples,
      drawn once and for all: a sorted split is represented evenly.
    parts: what a smaller batch, too, must divide into: devices, say. The hosts
      where None.

  Returns:
    An iterable, as often as wanted, with len(): the number of batches, equal
    on all hosts. It yields dict(image, label as in `train_batches`, index
    int64 [b], the number of the example in its split, valid bool [b]). The
    last batch is filled up with blank rows: valid is False and index is the
    size of the split, out of range.

  Raises:
    DataError: see `info`; or the batch does not divide by the hosts.
  """
  _rows('batch', batch, process_count)
  source = open_split(config, split)
  records = np.arange(source.size)
  if 0 < num < source.size:
    records = np.random.default_rng(0).permutation(source.size)[:num]
  parts = process_count if parts is None else parts
  batch = min(batch, -(-len(records) // parts) * parts)
  rows = batch // process_count
  num_batches = -(-len(records) // batch)
  blank = np.zeros(common.image_shape(config.model), np.uint8)

  def example(row: int) -> tuple:
    step, position = divmod(row, rows)
    position += step * batch + process_index * rows
    if position >= len(records):
      return blank, 0, source.size, False
    record = int(records[position])
    return *source.read(record), record, True

  def batches():
    return _batches(config, example, 0, num_batches * rows, rows)

  return EvalBatches(batches, num_batches)


def examples(
  config: ConfigDict, split: str, num: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Images [n, S, (S,) C] and labels [n] of a split; see `eval_batches`."""
  found = list(eval_batches(config, split, 64, num=num))
  valid = np.concatenate([x['valid'] for x in found])
  of = lambda name: np.concatenate([x[name] for x in found])[valid]
  return of('image'), of('label')


def _rows(name: str, batch: int, process_count: int) -> int:
  """Rows of a batch on each host."""
  if batch % process_count:
    raise DataError(
      f'{name}={batch} does not divide evenly over {process_count} hosts: set '
      f'it to a multiple of {process_count}.'
    )
  return batch // process_count


def _augment(config, image: np.ndarray, rng: np.random.Generator):
  """Noise (of series), flip (of images), shift of [S, S, C] or [S, C]."""
  d, rank = config.data, config.model.rank
  if d.noise and rank == 1:  # what is not known stays as it is
    moved = np.rint(image + rng.normal(0, d.noise, image.shape))
    moved = moved.clip(0, config.model.num_values - 1)
    image = np.where(image < 0, image, moved)
  if d.flip and rank == 2 and rng.integers(2):
    image = image[:, ::-1]
  if d.shift:
    positions = np.arange(image.shape[0])
    for axis in range(rank):
      moved = positions + rng.integers(-d.shift, d.shift, endpoint=True)
      image = image.take(moved.clip(0, positions[-1]), axis)  # edges repeated
  return image


def _batches(
  config, example: Callable[[int], tuple], start: int, stop: int, rows: int
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of `rows` of example(start) .. example(stop - 1), read ahead.

  Args:
    config: reads data.threads and model.num_values.
    example: row -> (image, label, index) or (image, label, index, valid).
    start: first row, a multiple of `rows`.
    stop: end of the rows.
    rows: rows of a batch.

  Yields:
    dict(image, label, index and, if given, valid), each [rows, ...].
  """
  from absl import flags
  import grain

  if not flags.FLAGS.is_parsed():  # grain reads flags, also outside absl.app
    flags.FLAGS.mark_as_parsed()
  threads = config.data.threads
  dtypes = dict(
    image=common.image_dtype(config.model),
    label=np.int32,
    index=np.int64,
    valid=np.bool_,
  )
  # Rows that a thread reads at a time: reading a small image costs less than
  # grain's work for each element.
  chunk = math.gcd(rows, 32)

  def read(number: int) -> dict[str, np.ndarray]:
    columns = zip(*map(example, range(number * chunk, (number + 1) * chunk)))
    return {k: np.array(v, dtypes[k]) for k, v in zip(dtypes, columns)}

  def join(chunks) -> dict[str, np.ndarray]:
    return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}

  ahead = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * max(rows // chunk, threads)
  )
  numbers = grain.MapDataset.range(start // chunk, stop // chunk)
  dataset = numbers.map(read).to_iter_dataset(ahead)
  return iter(dataset.batch(rows // chunk, batch_fn=join))
