"""Parameters as safetensors: dotted names, in one file or in parts.

As int8, a tensor of rows comes with a scale for each row, NAME:scale, which the
row's largest number makes 127; the others stay float32.

Reading takes the shapes from the headers alone. Values are read as devices ask
for their parts of them, so that no host holds what it does not need.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import re

from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from fractal_jax import paths
from fractal_jax.release import ReleaseError

FILE = 'model.safetensors'
INDEX = f'{FILE}.index.json'
PART = r'model-\d{5}-of-\d{5}\.safetensors'
PART_BYTES = 5_000_000_000
# How parameters may be written, in bytes per value, and what is read; all are
# float32 once they are read.
DTYPES = {'float32': 4, 'bfloat16': 2, 'int8': 1}
STORED = ('F32', 'BF16', 'F16')
SCALE = ':scale'


def found(folder: str | os.PathLike) -> bool:
  """Whether a folder holds parameters as safetensors: whether it's a release.

  Raises:
    OSError, and what clients of buckets raise: it can't be read.
  """
  folder = paths.path(folder)
  return any((folder / name).is_file() for name in (FILE, INDEX))


def step(folder: str | os.PathLike) -> int:
  """How many steps of training a release is the result of."""
  path = paths.path(folder) / 'config.json'
  with _reading(path):
    return int(json.loads(path.read_text()).get('step', 0))


# Writing.


def write(
  folder: str | os.PathLike,
  params: dict,
  dtype: str,
  notes: Mapping[str, str] | None = None,
) -> None:
  """Writes parameters; all processes call it, and process 0 writes.

  Args:
    folder: the release; what it holds of other weights is removed.
    params: nested, on any mesh.
    dtype: one of DTYPES.
    notes: texts for the header of each file.
  """
  folder, flat = paths.path(folder), traverse_util.flatten_dict(params, sep='.')
  files = _files({name: x.size * DTYPES[dtype] for name, x in flat.items()})
  writes = jax.process_index() == 0
  if writes:
    _remove(folder)
  places, total = {}, 0  # the file of each tensor, and their bytes
  for file, names in files.items():
    tensors = {}
    for name in names:
      values = _gathered(flat[name])  # all processes gather
      if writes:
        tensors |= _stored(name, values, dtype)
    if writes:
      save(folder / file, tensors, {'format': 'np', **(notes or {})})
    places |= dict.fromkeys(tensors, file)
    total += sum(x.nbytes for x in tensors.values())
  if writes and len(files) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': places}
    paths.write_text(folder / INDEX, json.dumps(index, indent=2) + '\n')


def _stored(name: str, values: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
  """The tensors, by name, that a tensor is written as."""
  if dtype != 'int8':
    return {name: np.asarray(values, dtype, order='C')}
  if values.ndim < 2:
    return {name: np.asarray(values, np.float32)}
  scale = np.abs(values).max(-1, keepdims=True) / 127
  whole = np.round(values / np.where(scale > 0, scale, 1))
  return {
    name: whole.astype(np.int8, order='C'),
    name + SCALE: scale.astype(np.float32),
  }


def save(
  path: str | os.PathLike, tensors: dict[str, np.ndarray], notes: dict[str, str]
) -> None:
  """Writes a file of contiguous arrays; it takes its name once it is whole."""
  with paths.atomic_write(path) as out:
    safetensors_numpy.save_file(tensors, out.name, notes)
    # That is another file, which only its owner may read.
    os.chmod(out.name, os.fstat(out.fileno()).st_mode)
    with open(out.name, 'rb') as written:
      os.fsync(written.fileno())


def _files(sizes: dict[str, int]) -> dict[str, list[str]]:
  """Which tensors each file holds, given their bytes."""
  parts, filled = [[]], 0
  for name, size in sizes.items():
    if parts[-1] and filled + size > PART_BYTES:
      parts.append([])
      filled = 0
    parts[-1].append(name)
    filled += size
  if len(parts) == 1:
    return {FILE: parts[0]}
  return {
    f'model-{i + 1:05d}-of-{len(parts):05d}.safetensors': part
    for i, part in enumerate(parts)
  }


def _remove(folder: paths.Path) -> None:
  if folder.is_dir():
    for path in list(folder.iterdir()):
      if path.name in (FILE, INDEX) or re.fullmatch(PART, path.name):
        path.unlink()


def _gathered(x) -> np.ndarray:
  """All values of an array that may lie on several hosts."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


# Reading.


class Tensors:
  """The tensors of open files: shapes at once, values when asked for."""

  def __init__(self, folder: paths.Path, files: dict):
    self._folder = folder
    found = {name: f for f in files.values() for name in f.keys()}
    scaled = [name for name in found if name + SCALE in found]
    self._scales = {name: found.pop(name + SCALE) for name in scaled}
    self._files = found

  def shapes(self) -> dict:
    """What `read` can give: a nested tree of ShapeDtypeStruct, float32.

    Raises:
      ReleaseError: names that make no tree, or types that are no numbers'.
    """
    out = {}
    for name, file in self._files.items():
      tensor = file.get_slice(name)
      kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
      if kind not in STORED and not (kind == 'I8' and name in self._scales):
        raise ReleaseError(
          f'{self._folder}: {name} is {kind}; expected {", ".join(STORED)}, or '
          f'I8 with {name}{SCALE}.'
        )
      if name in self._scales:
        scale = self._scales[name].get_slice(name + SCALE).get_shape()
        if tuple(scale) != shape[:-1] + (1,):
          raise ReleaseError(
            f'{self._folder}: {name}{SCALE} has the shape {tuple(scale)}; '
            f'expected {shape[:-1] + (1,)}, a number for each row of {name}.'
          )
      out[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    parents = {n[:i] for n in out for i, c in enumerate(n) if c == '.'}
    if parents & out.keys():
      name = min(parents & out.keys())
      raise ReleaseError(
        f'{self._folder}: {name} is both a tensor and a group of tensors, so '
        'these are no parameters of fractal_jax.'
      )
    return traverse_util.unflatten_dict(out, sep='.')

  def read(self, like: dict) -> dict:
    """Some of the tensors, each device's part by itself.

    Args:
      like: nested ShapeDtypeStructs with shardings; their names are there, and
        have these shapes.
    """

    def one(name, x):
      tensor, scales = self._files[name].get_slice(name), None
      if name in self._scales:
        scales = self._scales[name].get_slice(name + SCALE)

      def part(index):
        values = np.asarray(tensor[index], x.dtype)
        if scales is None:
          return values
        return values * np.asarray(scales[index[:-1] + (slice(None),)], x.dtype)

      with _reading(self._folder):
        return jax.make_array_from_callback(x.shape, x.sharding, part)

    flat = traverse_util.flatten_dict(like, sep='.')
    return traverse_util.unflatten_dict(
      {name: one(name, x) for name, x in flat.items()}, sep='.'
    )


@contextlib.contextmanager
def opened(folder: str | os.PathLike) -> Iterator[Tensors]:
  """Yields the Tensors of a release.

  Raises:
    ReleaseError: a file is missing, damaged, or no safetensors.
  """
  folder = paths.path(folder)
  with contextlib.ExitStack() as stack:
    files = {}
    for name in _names(folder):
      with _reading(folder / name):
        copy = stack.enter_context(paths.local(folder / name))
        files[name] = stack.enter_context(safetensors.safe_open(copy, 'np'))
    yield Tensors(folder, files)


def _names(folder: paths.Path) -> list[str]:
  """The files of a release that hold tensors."""
  with _reading(folder / INDEX):
    if (folder / FILE).is_file():
      return [FILE]
    index = json.loads((folder / INDEX).read_text())
    names = sorted(set(index['weight_map'].values()))
    if not all(re.fullmatch(PART, name) for name in names):  # no paths
      raise ValueError(f'it names the files {", ".join(names)[:80]}')
    return names


@contextlib.contextmanager
def _reading(path: paths.Path):
  """Whatever fails in here, a file or the way to it is to blame."""
  try:
    yield
  except FileNotFoundError as e:
    raise ReleaseError(
      f'{path} is missing, as after half a download: get the folder again '
      '(`fractal-jax pull`).'
    ) from e
  except Exception as e:  # safetensors, json and buckets have errors each
    text = ' '.join(str(e).split())[:300] or type(e).__name__
    if paths.of_storage(e):
      raise ReleaseError(
        f'{path} cannot be read ({text}): get the right to read it, and see '
        'whether its disk or bucket can be reached.'
      ) from e
    raise ReleaseError(
      f'{path} is cut off, damaged or something else ({text}): get the folder '
      'again (`fractal-jax pull`).'
    ) from e
