"""TensorFlow data sets: prepared once on disk, then read without TensorFlow.

Reading goes through array_record files and PIL. Only preparation (download,
decoding of archives) needs TensorFlow; it runs in a process of its own, so
that a training process never pays for it, in memory or in imports:

  python -m fractal_jax.data.prepared NAME DATA_DIR MANUAL_DIR
"""

import contextlib
import fcntl
import io
import os
import pathlib
import re
import subprocess
import sys

from ml_collections import ConfigDict

from fractal_jax import paths
from fractal_jax.data import common
from fractal_jax.data.common import DataError, Source

FILE_FORMAT = 'array_record'  # read at random, without TensorFlow
EXTRA = (
  "pip install 'fractal_jax[tfds]', or EXTRAS=tfds before a script of launch/"
)
# What to place in data.manual_dir, and where it comes from.
EMOJI = (
  ('emoji-datasource-google-16.0.0.tgz',),
  'made by `npm pack emoji-datasource-google@16.0.0`',
)
ARCHIVES = {
  'emoji': EMOJI,
  'emoji_subgroups': EMOJI,
  'imagenet2012': (
    ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
    'from https://image-net.org/download-images, after registration',
  ),
}


def imagenet2012(config: ConfigDict, split: str) -> Source:
  """ImageNet 2012 with the paper's crop, for any side.

  As in the published code, images smaller than the side are enlarged, and EXIF
  orientations are ignored.
  """
  return data_set(config, split, published=True)


def names() -> list[str]:
  """The data sets that TFDS knows, or none if it is not installed."""
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    return []
  return tfds.list_builders(with_community_datasets=False)


def exists(config: ConfigDict) -> bool:
  """Whether TFDS knows the data set, or finds it prepared in data.dir."""
  try:
    _builder(config.data.name, config.data.dir)
  except (ImportError, LookupError):
    return False
  return True


def describe(name: str) -> tuple:
  """A data set that `exists`, prepared here if need be.

  Where it has one split alone, a tenth of that is held out.

  Returns:
    The names for data.train_split and data.val_split; those of the classes;
    the shorter side of the images, 0 where they differ; their channels.

  Raises:
    DataError: it can't be prepared, or has no images with classes.
  """
  from fractal_jax import config as config_lib

  config = config_lib.default()
  config.data.name = name
  _check_features(name, '')
  prepare(config)
  info = _builder(name, '').info
  held = [x for x in ('validation', 'test') if x in info.splits]
  splits = ('train', held[0]) if held else ('train[:90%]', 'train[90%:]')
  height, width, channels = info.features['image'].shape
  side = min(height or 0, width or 0)
  return splits, tuple(info.features['label'].names), side, channels


def _builder(name: str, data_dir: str):
  """The TFDS builder.

  Raises:
    LookupError: there is no such data set.
    DataError: what describes it in data.dir can't be read.
  """
  import tensorflow_datasets as tfds

  options = dict(data_dir=paths.path(data_dir)) if data_dir else {}
  try:
    if name in ('emoji', 'emoji_subgroups'):
      # TFDS finds builders of ours once they are imported.
      from fractal_jax.data import emoji  # noqa: F401
    return tfds.builder(name, **options)
  except (tfds.core.DatasetNotFoundError, AssertionError) as e:
    raise LookupError(name) from e
  except Exception as e:  # a damaged description raises nearly anything
    folder = data_dir and paths.path(data_dir) / name.partition(':')[0]
    if not folder or not folder.is_dir():  # no name of a data set
      raise LookupError(name) from e
    raise DataError(
      f"data set '{name}' in {folder} cannot be opened: "
      f'{" ".join(str(e).split())}. If its dataset_info.json or features.json '
      'is damaged, prepare it again in another data.dir.'
    ) from e


def data_set(config: ConfigDict, split: str, published: bool = False) -> Source:
  """Any data set of features `image` and `label`, prepared if need be."""
  common.check_images(config)
  name = config.data.name
  try:
    import tensorflow_datasets  # noqa: F401
  except ImportError as e:
    raise DataError(
      f"data set '{name}' needs TensorFlow Datasets ({e}): {EXTRA}."
    ) from e
  if config.data.dir:
    _check_place(config.data.dir)
  features = _check_features(name, config.data.dir)
  prepare(config)
  builder = _builder(name, config.data.dir)
  base = re.split(r'[\[+]', split)[0]  # of 'train[:90%]'
  common.check_split(config, base, sorted(builder.info.splits))
  records = _records(builder, split)

  def read(i: int):
    where = f"record {i} of split '{split}' in {builder.data_dir}"
    try:
      record = records[i]
      if record['image'] is None:  # of a file that was cut off
        raise RuntimeError('it is empty')
    except RuntimeError as e:  # array_record has no other
      raise DataError(
        f'{where} cannot be read: {e}. If its file is damaged, prepare the '
        'data set again in another data.dir.'
      ) from e
    if 'file_name' in record:
      where = f'{record["file_name"].decode()} ({where})'
    image = common.decode(io.BytesIO(record['image']), where, config, published)
    return image, int(record['label'])

  def check() -> None:
    height, width, _ = features['image'].shape
    if height and width and not published:
      common.check_size(f"data set '{name}'", (width, height), config)

  return Source(
    size=len(records),
    read=read,
    class_names=tuple(features['label'].names),
    values=256,
    check=check,
  )


def _records(builder, split: str):
  """The records of a split, to be read at random; images are not decoded."""
  import tensorflow_datasets as tfds

  as_stored = {'image': tfds.decode.SkipDecoding()}
  try:
    return builder.as_data_source(split, decoders=as_stored)
  except NotImplementedError as e:
    raise DataError(
      f'{builder.data_dir} was not prepared as {FILE_FORMAT}: set data.dir to '
      'another folder to prepare it again, or convert it with `tfds '
      'convert_format`.'
    ) from e


def _check_place(data_dir: str) -> None:
  """Raises DataError for a place from which records can't be read.

  Those in gs:// are read one by one, each in a request, by array_record's own
  client. Without credentials it would look for them for 15 minutes.
  """
  if not paths.is_remote(data_dir):
    return
  if not str(paths.path(data_dir)).startswith('gs://'):
    raise DataError(
      f"data.dir='{data_dir}': array records are read from local or mounted "
      'files, or from gs://: copy or mount them, and set data.dir to that.'
    )
  if 'CLOUD_STORAGE_EMULATOR_ENDPOINT' in os.environ:
    return
  from google import auth

  try:
    auth.default()
  except auth.exceptions.DefaultCredentialsError as e:
    raise DataError(
      f"data.dir='{data_dir}': records of a bucket are read with credentials, "
      'and none are found: `gcloud auth application-default login`, or set '
      'GOOGLE_APPLICATION_CREDENTIALS to the file of a key.'
    ) from e


def _check_features(name: str, data_dir: str) -> dict:
  """The features of a data set, if they are an image and a class."""
  import tensorflow_datasets as tfds

  features = dict(_builder(name, data_dir).info.features or {})
  if not (
    isinstance(features.get('image'), tfds.features.Image)
    and isinstance(features.get('label'), tfds.features.ClassLabel)
  ):
    raise DataError(
      f"data set '{name}' has the features {', '.join(sorted(features))}: "
      'only sets with an `image` and a `label` that is a class can be read.'
    )
  return features


def prepare(config: ConfigDict) -> None:
  """Prepares the data set in another process, unless it is there.

  Processes that share data.dir wait for the first one.

  Raises:
    DataError: an archive is missing from data.manual_dir, or it failed.
  """
  d = config.data
  builder = _builder(d.name, d.dir)
  if builder.is_prepared():
    return
  if d.dir and paths.is_remote(d.dir):
    raise DataError(
      f"data set '{d.name}' is not prepared in data.dir='{d.dir}': prepare it "
      f'in a local folder (`python -m {__name__} {d.name} FOLDER ARCHIVES`) '
      f'and copy it there (`gcloud storage rsync -r FOLDER {d.dir}`).'
    )
  _check_archives(d)
  root = pathlib.Path(builder.data_dir_root)
  root.mkdir(parents=True, exist_ok=True)
  with open(root / f'.{builder.name}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends
    if _builder(d.name, d.dir).is_prepared():
      return
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    done = subprocess.run(
      [sys.executable, '-m', __name__, d.name, str(root), d.manual_dir],
      env=os.environ | dict(PYTHONPATH=path, CUDA_VISIBLE_DEVICES='-1'),
      stdout=subprocess.PIPE,
      text=True,
    )
  if done.returncode:
    why = done.stdout.strip() or f'exit code {done.returncode}'
    remedy = (
      f"Replace the archives in data.manual_dir='{d.manual_dir}'."
      if d.name in ARCHIVES
      else f'Without a network, prepare it elsewhere with `tfds build {d.name} '
      f'--file_format={FILE_FORMAT}`, copy the result and set data.dir to it.'
    )
    raise DataError(
      f"data set '{d.name}' could not be prepared in {root}: {why}\n{remedy}"
    )


def _check_archives(d) -> None:
  files, origin = ARCHIVES.get(d.name, ((), ''))
  folder = paths.path(d.manual_dir or '.')
  missing = [f for f in files if not d.manual_dir or not (folder / f).is_file()]
  if missing:
    raise DataError(
      f"data set '{d.name}' is not prepared in data.dir='{d.dir}', and "
      f"data.manual_dir='{d.manual_dir}' lacks {' and '.join(missing)}: place "
      f'there {" and ".join(files)} ({origin}), or set data.dir to where it '
      'is prepared.'
    )


def _main(name: str, data_dir: str, manual_dir: str) -> None:
  """Prepares a data set; prints why it failed, if it did."""
  import tensorflow_datasets as tfds

  options = {}
  if manual_dir:
    options['manual_dir'] = paths.path(manual_dir)
  try:
    with contextlib.redirect_stdout(sys.stderr):
      _builder(name, data_dir).download_and_prepare(
        download_config=tfds.download.DownloadConfig(**options),
        file_format=FILE_FORMAT,
      )
  except Exception as e:
    print(f'{type(e).__name__}: {e}')
    sys.exit(1)


if __name__ == '__main__':
  _main(*sys.argv[1:])
