"""Looks at data before training: what images, of which sizes, in what classes.

`at` takes what `fractal-jax train --data` names: a folder of images, an .npz
file, or a data set of TFDS. Each image of a folder is opened once: what can't
be read is left out and listed, and near copies are found (see listing.py).
"""

from collections.abc import Callable, Iterable
from concurrent import futures
import dataclasses
import functools
import hashlib
import io
import os

import numpy as np
from PIL import Image

from fractal_jax import cpu, paths
from fractal_jax.data import classes, common, decode, folder, listing, prepared
from fractal_jax.data.common import DataError
from fractal_jax.data.listing import Row
from fractal_jax.errors import nearest

COMPARED = 200_000  # images; more are neither all opened nor compared
SAMPLED = 1000  # of those, and for means
FEWEST = 2  # images for each class, on average
SMALLEST = 4  # side of images that can be trained on
# Folders by these names, in any case, are splits that somebody meant.
LIKE_SPLITS = folder.SPLIT_NAMES | set(
  'training valid dev eval testing tests'.split()
)


@dataclasses.dataclass(frozen=True)
class Look:
  """What was found.

  Attributes:
    name, dir: for data.name and data.dir.
    splits: for data.train_split and data.val_split.
    class_names: in the order of labels.
    sides: the shorter side of each image, in pixels: of each row, 0 where it
      can't be read, or of a sample.
    colour: whether any image has colours.
    values: of a channel, 0 to this - 1.
    rows: for a listing; None where the data set has splits of its own kind.
    notes: sentences on what was left out, and the like.
  """

  name: str
  dir: str
  splits: tuple[str, str]
  class_names: tuple[str, ...]
  sides: np.ndarray
  colour: bool
  values: int = 256
  rows: list[Row] | None = None
  notes: tuple[str, ...] = ()


def at(data: str, progress: Callable[[Iterable], Iterable] = iter) -> Look:
  """Looks at a folder, an .npz file, or a data set of TFDS.

  Args:
    data: the path, or the name.
    progress: shows how far the opening of images is.

  Raises:
    DataError: there is no such data, or nothing in it can be trained on.
  """
  path = paths.path(data)
  if path.is_dir():
    return _folder(path, progress)
  if data.endswith('.npz'):
    return _npz(data)
  if not path.exists() and data.replace('_', '').isalnum():
    return _tfds(data)
  raise DataError(
    f'--data={data} is no folder of images, no .npz file, and no name of a '
    'data set of TFDS.'
  )


def fitting(found: Look, side: int) -> Look:
  """Without the images that are smaller than `side`, which are noted.

  Raises:
    DataError: too few are left.
  """
  small = (found.sides > 0) & (found.sides < side)
  if not small.any():
    return found
  number = f'{small.sum()} of {(found.sides > 0).sum()} images'
  largest, middle = found.sides.max(), int(np.median(found.sides))
  remedy = f'Take --size={middle} or less: half of the images are that large.'
  if found.rows is None:
    raise DataError(f'{number} are smaller than {side}x{side}. {remedy}')
  rows = [
    dataclasses.replace(row, split='', note=f'smaller than {side}x{side}')
    if too_small
    else row
    for row, too_small in zip(found.rows, small)
  ]
  for split in common.SPLITS:
    if split not in {row.split for row in rows}:
      raise DataError(
        f'{number} are smaller than {side}x{side} (the largest has a short '
        f'side of {largest}), and none is left for {split}. {remedy}'
      )
  names = classes.in_order({row.label for row in rows if row.split})
  note = f'{number} are smaller than {side}x{side} and left out'
  return dataclasses.replace(
    found, rows=rows, class_names=tuple(names), notes=(*found.notes, note)
  )


# Folders.


@dataclasses.dataclass(frozen=True)
class Seen:
  """An image that was opened; `error` says why it can't be used, or ''."""

  side: int
  colour: bool
  thumb: np.ndarray  # uint8 [THUMB, THUMB, 3]
  digest: str
  error: str = ''


NOTHING = Seen(0, False, np.zeros((listing.THUMB,) * 2 + (3,), np.uint8), '')


def see(file: str) -> Seen:
  """Opens an image file."""
  try:
    content = paths.path(file).read_bytes()
    image = decode.load(io.BytesIO(content), file, least=64)
    width, height = decode.size(io.BytesIO(content), file)
  except (decode.ImageError, OSError) as e:
    return dataclasses.replace(NOTHING, error=str(e).removeprefix(f'{file} '))
  few = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.int16)
  return Seen(
    min(width, height),
    bool(np.ptp(few, -1).max() > 12),  # JPEG gives grey a tint
    listing.thumbnail(image),
    hashlib.sha256(content).hexdigest(),
  )


def _folder(root: paths.Path, progress) -> Look:
  found, own_splits, others = folder.images(root)
  names = classes.in_order({label for _, label, _ in found})
  _check_found(root, found, names)
  note = folder.left_out(root, others)
  notes = [note] if note else []
  whole = len(found) <= COMPARED and not paths.is_remote(root)
  step = 1 if whole else max(1, len(found) // SAMPLED)
  files = [file for file, _, _ in found[::step]]
  with futures.ThreadPoolExecutor(min(cpu.cores(), 16)) as threads:
    seen = list(progress(threads.map(see, files)))
  good = [x for x in seen if not x.error]
  if not good:
    raise DataError(
      f'none of the {len(files)} images of {root} can be read; the first is '
      f'{files[0]}: {seen[0].error}'
    )
  look = functools.partial(
    Look,
    'folder',
    paths.absolute(root),
    sides=np.array([x.side for x in seen]),
    colour=any(x.colour for x in good),
  )
  if not whole:
    notes.append(
      f'{len(found):,} images are too many, or too far away, to open them all: '
      f'{len(files):,} were looked at, of which {len(good):,} can be read. '
      'Those that cannot will stop the run; near copies may fall on both sides '
      'of the split'
    )
    own = tuple(dict.fromkeys(x for *_, x in found))
    return look(
      splits=own if own_splits else common.SPLITS,
      class_names=tuple(names),
      notes=tuple(notes),
    )
  rows = _rows(root, found, seen, own_splits, notes)
  kept = classes.in_order({row.label for row in rows if row.split})
  return look(
    splits=common.SPLITS, class_names=tuple(kept), rows=rows, notes=tuple(notes)
  )


def _check_found(root: paths.Path, found: list[tuple], names: list[str]):
  """Raises DataError for images of which no classes can be trained on."""
  if not found:
    raise DataError(
      f'{root} holds no images ({" ".join(decode.EXTENSIONS)}): name a folder '
      'of images, or of a folder of images for each class.'
    )
  if len(found) == 1:
    raise DataError(
      f'{root} holds one image, {found[0][0]}: at least 2 are needed, one to '
      'train on and one to hold out.'
    )
  if len(found) < FEWEST * len(names):
    raise DataError(
      f'{root} holds {len(names):,} folders with {len(found) / len(names):.1f} '
      'images each on average: a folder is a class, and a class needs 2 or '
      'more. Put the images into fewer folders, or all into one.'
    )
  if not folder.has_splits(root) and len(names) > 1:
    if {name.lower() for name in names} <= LIKE_SPLITS:
      raise DataError(
        f'{root} holds the folders {", ".join(names)}, which would be its '
        'classes. If they are splits, call them train and validation (or val); '
        'if they are classes, give one of them another name.'
      )


def _rows(root, found, seen, has_splits: bool, notes: list[str]) -> list[Row]:
  """A listing of the images; what is said of them is added to the notes."""
  good = [i for i, x in enumerate(seen) if not x.error]
  groups = listing.near_copies(np.stack([seen[i].thumb for i in good]))
  copies = int((groups != np.arange(len(good))).sum())
  if has_splits:
    out = np.array([found[i][2] != 'train' for i in good])
  else:
    out = listing.held_out(groups, [seen[i].digest for i in good])
  if has_splits and not 0 < out.sum() < len(good):
    raise DataError(
      f'the {len(good)} images of {root} that can be read are all '
      f'{"held out" if out.any() else "in train"}: put some into each of its '
      'splits, or remove an empty one, and a tenth is held out.'
    )
  _check_held(out, len(good), root)
  labels = np.array([found[i][1] for i in good])
  notes += _untrained(labels[~out], labels[out])
  name = lambda i: os.path.relpath(found[i][0], str(root))
  sides = {i: common.SPLITS[held] for i, held in zip(good, out.tolist())}
  firsts = {i: good[g] for i, g in zip(good, groups.tolist())}
  rows = [
    Row(
      name(i),
      found[i][1],
      sides.get(i, ''),
      f'near copy of {name(firsts[i])}'
      if firsts.get(i, i) != i
      else seen[i].error,
    )
    for i in range(len(found))
  ]
  bad = len(found) - len(good)
  if bad:
    first = next(i for i, x in enumerate(seen) if x.error)
    notes.append(
      f'{bad} image(s) cannot be read and are left out, such as '
      f'{found[first][0]}: {seen[first].error}'
    )
  if copies and has_splits:
    across = sum(
      sides[i] != sides[first] for i, first in firsts.items() if i != first
    )
    notes.append(
      f'{copies} image(s) are near copies of others, {across} of them of one '
      'in the other split: the splits of the folder are left as they are'
    )
  elif copies:
    notes.append(
      f'{copies} image(s) are near copies of others: they stay on one side of '
      'the split'
    )
  return rows


def _check_held(out: np.ndarray, n: int, where) -> None:
  """Raises DataError unless some of n images are held out, and not all."""
  if not 0 < out.sum() < n:
    raise DataError(
      f'the {n} images of {where} that can be read are all copies of one: 2 '
      'different ones are needed, to train on and to hold out.'
    )


def _untrained(train: np.ndarray, held: np.ndarray) -> list[str]:
  """A note on classes, names [n], of which nothing is trained on."""
  lacking = sorted(set(held.tolist()) - set(train.tolist()))
  if not lacking:
    return []
  return [
    f'{len(lacking)} class(es) have held-out images alone, such as '
    f"'{lacking[0]}': the model cannot learn how they look"
  ]


# Arrays, and data sets of TFDS.


def _npz(data: str) -> Look:
  from fractal_jax.data import arrays

  images, labels, names, split = arrays.read_npz(data, rank=2)
  n, height, width, channels = images.shape
  most = int(images.max())
  rows, notes, of = None, [], np.array(names)[labels]
  if split is None:
    digests = [hashlib.sha256(x.tobytes()).hexdigest() for x in images]
    if images.dtype == np.uint8 and channels in (1, 3):
      few = (Image.fromarray(x[..., 0] if channels == 1 else x) for x in images)
      thumbs = np.stack([listing.thumbnail(x.convert('RGB')) for x in few])
      scale = 255 // max(most, 1)  # few shades are spread over all
      groups = listing.near_copies(thumbs * scale)
    else:
      groups = np.unique(digests, return_inverse=True)[1]
    out = listing.held_out(groups, digests)
    _check_held(out, n, data)
    notes = _untrained(of[~out], of[out])
    rows = [
      Row(str(i), names[label], common.SPLITS[held])
      for i, (label, held) in enumerate(zip(labels, out.tolist()))
    ]
  splits = common.SPLITS
  if split is not None:
    held = [x for x in ('validation', 'val', 'test') if x in split]
    if 'train' not in split or not held:
      raise DataError(
        f'{data}: `split` holds {", ".join(sorted(set(split)))}: it needs '
        'train, and one of validation, val and test.'
      )
    splits = ('train', held[0])
    in_ = lambda name: of[np.array(split) == name]
    notes = _untrained(in_('train'), in_(held[0]))
  return Look(
    'npz',
    paths.absolute(data),
    splits,
    names,
    sides=np.full(n, min(height, width)),
    colour=channels != 1,
    values=256 if most >= 128 else most + 1,
    rows=rows,
    notes=tuple(notes),
  )


def _tfds(name: str) -> Look:
  from fractal_jax import config as config_lib

  config = config_lib.default()
  config.data.name = name
  if not prepared.exists(config):
    near = nearest(name, prepared.names())
    raise DataError(
      f'--data={name} is no folder and no file, and TFDS knows no data set of '
      f'this name.{near} For TFDS: {prepared.EXTRA}.'
    )
  splits, names, side, channels = prepared.describe(name)
  sides = np.array([side or 64])
  return Look(name, '', splits, names, sides, colour=channels != 1)
