"""Any folder of images with a folder for each class."""

import collections
import io
import os

from ml_collections import ConfigDict

from fractal_jax import paths
from fractal_jax.data import classes, common, decode, listing
from fractal_jax.data.common import DataError, Source
from fractal_jax.errors import nearest

MAX_CHECKED = 20_000  # images whose headers are read before the run starts
KEPT = 2**30  # bytes of cropped images: photographs take long to decode
SPLIT_NAMES = {'train', 'validation', 'val', 'test'}


def folder(config: ConfigDict, split: str) -> Source:
  """The folder data.dir, of images of any size.

  Either DIR/train/CLASS/* and DIR/validation/CLASS/* (or DIR/val), or
  DIR/CLASS/*, of which a fixed tenth is held out, or DIR/* without classes. The
  file data.list, if it is set, says instead which images there are. Classes are
  numbered in the order of their names, or of their numbers where all are called
  by one. Images are decoded as they are needed and cropped to the side of the
  model; what is cropped is kept in memory, up to KEPT bytes of each split.
  """
  common.check_images(config)
  root = config.data.dir and paths.path(config.data.dir)
  if not root or not root.is_dir():
    raise DataError(
      f"data.dir='{config.data.dir}' is no folder: set data.dir to a folder "
      'with a folder of images for each class.'
    )
  others = []
  if config.data.list:
    files, labels, names = _listed(root, config.data.list, split)
  elif has_splits(root):
    splits = subfolders(root)
    if split == 'validation' and split not in splits and 'val' in splits:
      split = 'val'
    common.check_split(config, split, splits)
    names = subfolders(root / 'train') or [root.name]
    files, labels, others = _list(root / split, names)
  else:
    names = subfolders(root) or [root.name]
    files, labels, others = _list(root, names)
    common.check_split(config, split, (*common.SPLITS, common.ALL))
    if len(files) < 2 and split != common.ALL:
      raise DataError(
        f"data.dir='{root}' holds one image, {files[0]}: at least 2 are "
        'needed, since a tenth of them is held out for validation.'
      )
    keep = common.split_of(split, len(files))
    files, labels = [files[i] for i in keep], [labels[i] for i in keep]

  remote = paths.is_remote(root)
  return Source(
    size=len(files),
    read=_reader(files, labels, config, remote=remote),
    class_names=tuple(names),
    values=256,
    # In a bucket each look at a header is a request.
    check=lambda: _check([] if remote else files, config),
    skipped=left_out(root, others),
  )


def check_apart(root: str, workdir: str) -> None:
  """Raises DataError for a run whose samples would lie among its images.

  They would be a class, and images, of whoever reads the folder next.
  """
  if root and paths.within(paths.path(workdir) / 'samples', root):
    raise DataError(
      f'--workdir={workdir} lies in the folder of the data, {root}, where what '
      'the run draws would be images of a class: choose another --workdir.'
    )


def _reader(files: list[str], labels: list[int], config, *, remote: bool):
  """What reads example i; it keeps what is decoded, up to KEPT bytes."""
  kept, room = {}, KEPT // (config.model.sizes[0] ** 2 * config.model.channels)

  def read(i: int):
    if i in kept:
      return kept[i], labels[i]
    file = files[i]
    if remote:
      file = io.BytesIO(paths.path(file).read_bytes())
    image = common.decode(file, files[i], config)
    if len(kept) < room:
      kept[i] = image  # which can't be written to
    return image, labels[i]

  return read


def _check(files: list[str], config) -> None:
  """Raises DataError for the first unfit image, and says how many there are."""
  errors = []
  for file in files if len(files) <= MAX_CHECKED else ():
    try:
      common.check_size(file, decode.size(file, file), config)
    except decode.ImageError as e:
      errors.append(f'{e}; {common.remedy(config)}.')
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
    f"their endings ({kinds}), in no class's folder, or no files at all "
    f'(pipes, links to nowhere), such as {others[0]}'
  )


def subfolders(path: paths.Path) -> list[str]:
  """Names of the folders in `path`, in the order of the classes."""
  if not path.is_dir():
    return []
  return classes.in_order(
    p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith('.')
  )


def has_splits(root: paths.Path) -> bool:
  """Whether a folder holds its splits, as folders, rather than its classes."""
  found = subfolders(root)
  return 'train' in found and bool(
    subfolders(root / 'train') or (found[1:] and set(found) <= SPLIT_NAMES)
  )


def _listed(root: paths.Path, path: str, split: str) -> tuple[list, list, list]:
  """The files of a split by a listing, their labels; all class names."""
  rows = listing.read(path)
  names = classes.in_order({row.label for row in rows if row.split})
  number = {name: i for i, name in enumerate(names)}
  some = listing.of_split(rows, split, path)
  files = [str(root / row.example) for row in some]
  return files, [number[row.label] for row in some], names


def images(root: paths.Path) -> tuple[list[tuple], bool, list[str]]:
  """All images below a folder, for a listing.

  Below a class's folder they may lie in folders of folders.

  Returns:
    [(file, class, split)], the split '' where the folder has none of its own;
    whether it has; and the files that are left out.
  """
  splits = {'': root}
  if has_splits(root):
    found = subfolders(root)
    held = [x for x in ('validation', 'val', 'test') if x in found][:1]
    splits = {x: root / x for x in ('train', *held)}
    if not held:  # a tenth of it is held out
      splits = {'': root / 'train'}
  out, others = [], []
  kept = {top.name for top in splits.values()} | {'test'}
  for name in subfolders(root) if has_splits(root) else []:
    if name not in kept:
      some, rest = _below(root / name, set())
      others += some + rest
  for split, top in splits.items():
    names = subfolders(top)
    loose, rest, _ = inside(top)
    others += loose + rest if names else rest
    out += [] if names else [(file, root.name, split) for file in loose]
    for name in names:
      found, rest = _below(top / name, set())
      out += [(file, name, split) for file in found]
      others += rest
  return out, len(splits) > 1, others


def _below(folder: paths.Path, seen: set[str]) -> tuple[list[str], list[str]]:
  """The image files below a folder, sorted, and what else there is.

  Links are followed, each folder once: a circle ends.

  Args:
    folder: where to look.
    seen: the folders that were looked into, by their real paths; is added to.
  """
  real = str(folder) if paths.is_remote(folder) else os.path.realpath(folder)
  if real in seen:
    return [], []
  seen.add(real)
  found, others, folders = inside(folder)
  for path in folders:
    more, rest = _below(paths.path(path), seen)
    found, others = found + more, others + rest
  return sorted(found), others


def inside(folder: paths.Path) -> tuple[list[str], list[str], list[str]]:
  """What a folder holds, but hidden names, sorted.

  Returns:
    Image files; other files, a link to nowhere or a pipe among them; folders.
  """
  found, others, folders = [], [], []
  for path, is_file in paths.entries(folder):
    ending = os.path.splitext(path)[1].lower()
    if is_file and ending in decode.EXTENSIONS:
      found.append(path)
    elif not is_file and paths.path(path).is_dir():
      folders.append(path)
    else:
      others.append(path)
  return found, others, folders


def _list(root: paths.Path, names: list[str]) -> tuple[list, list, list]:
  """The image files under `root` by class, their labels; what is left out."""
  found = subfolders(root)
  loose, rest, _ = inside(root)
  if not found:
    if not loose:
      raise DataError(
        f'{root} holds neither images ({" ".join(decode.EXTENSIONS)}) nor '
        'folders: put a folder of images there for each class.'
      )
    return loose, [0] * len(loose), rest
  files, labels, others = [], [], loose + rest
  for name in found:
    path = root / name
    if name not in names:
      raise DataError(
        f'{path} is a class that the training split does not have:'
        f'{nearest(name, names)} Remove or rename it.'
      )
    some, rest, deeper = inside(path)
    if not some:
      raise DataError(
        f'{path} holds no images ({" ".join(decode.EXTENSIONS)}): put some '
        'there or remove the folder.'
      )
    files += some
    labels += [names.index(name)] * len(some)
    others += rest + deeper
  return files, labels, others
