"""Any folder of images with a folder for each class."""

import io

from PIL import Image

from fractal_jax import paths
from fractal_jax.data import common
from fractal_jax.data.common import DataError, Source

EXTENSIONS = (
  '.bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp'.split()  # any case
)
MAX_CHECKED = 20_000  # images whose headers are read before the run starts


def folder(config, split: str) -> Source:
  """The folder data.dir, of images of any size.

  Either DIR/train/CLASS/* and DIR/validation/CLASS/* (or DIR/val), or
  DIR/CLASS/*, of which a fixed tenth is held out. Images are decoded as they
  are needed and cropped to the side of the model.
  """
  common.check_images(config)
  root = config.data.dir and paths.path(config.data.dir)
  if not root or not root.is_dir():
    raise DataError(
      f"data.dir='{config.data.dir}' is no folder: set data.dir to a folder "
      'with a folder of images for each class.'
    )
  if _subfolders(root / 'train'):
    splits = [p.name for p in _subfolders(root)]
    if split == 'validation' and split not in splits and 'val' in splits:
      split = 'val'
    common.check_split(config, split, splits)
    names = [p.name for p in _subfolders(root / 'train')]
    files, labels = _list(root / split, names)
  else:
    names = [p.name for p in _subfolders(root)]
    files, labels = _list(root, names)
    common.check_split(config, split, common.SPLITS)
    keep = common.split_of(split, len(files))
    files, labels = [files[i] for i in keep], [labels[i] for i in keep]

  remote = paths.is_remote(root)

  def check() -> None:
    # In a bucket each look at a header is a request.
    few = len(files) <= MAX_CHECKED and not remote
    for file in files if few else ():
      try:
        with Image.open(file) as image:  # the header only
          size = image.size
      except Exception:
        common.decode(file, file, config)  # raises the same error, in words
      common.check_size(file, size, config)

  def read(i: int):
    if not remote:
      return common.decode(files[i], files[i], config), labels[i]
    file = io.BytesIO(paths.path(files[i]).read_bytes())
    return common.decode(file, files[i], config), labels[i]

  return Source(
    size=len(files),
    read=read,
    class_names=tuple(names),
    values=256,
    check=check,
  )


def _subfolders(path: paths.Path) -> list[paths.Path]:
  if not path.is_dir():
    return []
  return sorted(
    p for p in path.iterdir() if p.is_dir() and not p.name.startswith('.')
  )


def _list(root: paths.Path, names: list[str]) -> tuple[list, list]:
  """The image files under `root`, sorted by class, and their labels."""
  if not _subfolders(root):
    raise DataError(
      f'{root} holds no folders: it needs one folder of images for each class.'
    )
  files, labels = [], []
  for path in _subfolders(root):
    if path.name not in names:
      raise DataError(
        f'{path} is a class that the training split does not have:'
        f'{common.nearest(path.name, names)} Remove or rename it.'
      )
    found = sorted(
      str(file)
      for file in path.iterdir()
      if file.suffix.lower() in EXTENSIONS and not file.name.startswith('.')
    )
    if not found:
      raise DataError(
        f'{path} holds no images ({" ".join(EXTENSIONS)}): put some there or '
        'remove the folder.'
      )
    files += found
    labels += [names.index(path.name)] * len(found)
  return files, labels
