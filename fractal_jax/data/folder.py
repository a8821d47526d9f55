"""Any folder of images with a folder for each class."""

import collections
import io
import os

from fractal_jax import paths
from fractal_jax.data import classes, common, decode
from fractal_jax.data.common import DataError, Source

MAX_CHECKED = 20_000  # images whose headers are read before the run starts


def folder(config, split: str) -> Source:
  """The folder data.dir, of images of any size.

  Either DIR/train/CLASS/* and DIR/validation/CLASS/* (or DIR/val), or
  DIR/CLASS/*, of which a fixed tenth is held out. Classes are numbered in the
  order of their names, or of their numbers where all are called by one. Images
  are decoded as they are needed and cropped to the side of the model.
  """
  common.check_images(config)
  root = config.data.dir and paths.path(config.data.dir)
  if not root or not root.is_dir():
    raise DataError(
      f"data.dir='{config.data.dir}' is no folder: set data.dir to a folder "
      'with a folder of images for each class.'
    )
  if subfolders(root / 'train'):
    splits = subfolders(root)
    if split == 'validation' and split not in splits and 'val' in splits:
      split = 'val'
    common.check_split(config, split, splits)
    names = subfolders(root / 'train')
    files, labels, others = _list(root / split, names)
  else:
    names = subfolders(root)
    files, labels, others = _list(root, names)
    common.check_split(config, split, common.SPLITS)
    if len(files) < 2:
      raise DataError(
        f"data.dir='{root}' holds one image, {files[0]}: at least 2 are "
        'needed, since a tenth of them is held out for validation.'
      )
    keep = common.split_of(split, len(files))
    files, labels = [files[i] for i in keep], [labels[i] for i in keep]

  remote = paths.is_remote(root)

  def read(i: int):
    file = files[i]
    if remote:
      file = io.BytesIO(paths.path(file).read_bytes())
    return common.decode(file, files[i], config), labels[i]

  return Source(
    size=len(files),
    read=read,
    class_names=tuple(names),
    values=256,
    # In a bucket each look at a header is a request.
    check=lambda: _check([] if remote else files, config),
    skipped=left_out(root, others),
  )


def _check(files: list[str], config) -> None:
  """Raises DataError for the first unfit image, and says how many there are."""
  errors = []
  for file in files if len(files) <= MAX_CHECKED else ():
    try:
      common.check_size(file, decode.size(file, file), config)
    except decode.ImageError as e:
      errors.append(f'{e}; mend it or remove it.')
    except DataError as e:
      errors.append(str(e))
  if errors:
    more = f' {len(errors) - 1} more of the {len(files)} images are unfit, too.'
    raise DataError(errors[0] + (more if len(errors) > 1 else ''))


def left_out(root: paths.Path, others: list[str]) -> str:
  """What of a folder is no image of a class: a sentence, '' for nothing."""
  if not others:
    return ''
  endings = collections.Counter(
    os.path.splitext(path)[1].lower() or 'none' for path in others
  )
  kinds = ', '.join(f'{end}: {n}' for end, n in endings.most_common(5))
  return (
    f'{len(others)} file(s) in {root} are left out, which are no images by '
    f"their endings ({kinds}) or in no class's folder, such as {others[0]}"
  )


def subfolders(path: paths.Path) -> list[str]:
  """Names of the folders in `path`, in the order of the classes."""
  if not path.is_dir():
    return []
  return classes.in_order(
    p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith('.')
  )


def _list(root: paths.Path, names: list[str]) -> tuple[list, list, list]:
  """The image files under `root` by class, their labels; what is left out."""
  found = subfolders(root)
  if not found:
    raise DataError(
      f'{root} holds no folders: it needs one folder of images for each class.'
    )
  files, labels = [], []
  others = [file for file, is_file in paths.entries(root) if is_file]
  for name in found:
    path = root / name
    if name not in names:
      raise DataError(
        f'{path} is a class that the training split does not have:'
        f'{common.nearest(name, names)} Remove or rename it.'
      )
    inside = paths.entries(path)
    images = [
      file
      for file, is_file in inside
      if is_file and os.path.splitext(file)[1].lower() in decode.EXTENSIONS
    ]
    if not images:
      raise DataError(
        f'{path} holds no images ({" ".join(decode.EXTENSIONS)}): put some '
        'there or remove the folder.'
      )
    files += images
    labels += [names.index(name)] * len(images)
    others += sorted({file for file, _ in inside} - set(images))
  return files, labels, others
