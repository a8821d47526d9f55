"""Weights of the Inception net, from a file of the user's. Never downloaded.

The file is torch-fidelity's weights-inception-2015-12-05-6726825d.pth (that of
pytorch-fid has the same content), or the same tensors by the same names as
.npz or .safetensors, which need no PyTorch to read.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import checks, convert, paths
from fractal_jax.metrics import MetricsError, files, inception

VARIABLE = 'FRACTAL_JAX_INCEPTION'
FILE = 'weights-inception-2015-12-05-6726825d.pth'  # ends in its own SHA-256
WHERE = (
  'the releases of github.com/toshas/torch-fidelity (v0.2.0) hold it; '
  'docs/metrics.md has the command'
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """The net's parameters, and which they are."""

  params: dict  # float32, nested
  fingerprint: str  # of their values, whatever the format of the file
  published: bool | None  # whether the file is FILE; None: it can't be told


def load(path: str | None) -> Weights:
  """Weights from a file; from that which $FRACTAL_JAX_INCEPTION names if None.

  Raises:
    MetricsError: no file is named, or it does not hold this net's weights.
  """
  path = path or os.environ.get(VARIABLE)
  if not path:
    raise MetricsError(
      f'the metrics need the weights of the FID Inception net, {FILE}: give '
      f'the file as --inception=FILE or in ${VARIABLE}. Nothing is downloaded '
      f'for you; {WHERE}.'
    )
  path = paths.path(path)
  if not path.is_file():
    raise MetricsError(
      f'--inception={path} is no file; expected {FILE} or the same tensors as '
      f'.npz or .safetensors: {WHERE}.'
    )
  with paths.local(path) as copy:
    state = read(copy)
    published = _is_published(copy) if path.suffix == '.pth' else None
  check(state, path)
  flat = {name: _ours(np.asarray(state[name], np.float32)) for name in shapes()}
  return Weights(
    params=traverse_util.unflatten_dict(
      {_path(name): x for name, x in flat.items()}
    ),
    fingerprint=files.digest(
      *(part for name in sorted(flat) for part in (name, flat[name])), length=16
    ),
    published=published,
  )


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a .pth, .npz or .safetensors file by name."""
  try:
    if path.suffix == '.npz':
      return paths.read_npz(path)
    if path.suffix == '.safetensors':
      return convert.read_safetensors(path)
    if path.suffix in ('.pth', '.pt'):
      return convert.read_pth(str(path))
  except (MetricsError, convert.ConvertError):
    raise
  except Exception as e:  # zipfile, numpy, safetensors each have their own
    raise MetricsError(
      f'{path} cannot be read as a {path.suffix} file ({e}); expected the '
      f'tensors of {FILE}.'
    ) from e
  raise MetricsError(
    f'--inception={path} must end in .pth, .npz or .safetensors.'
  )


@functools.cache
def shapes() -> dict[str, tuple]:
  """The file's tensors: shapes by name, in PyTorch's layout."""
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
  tree = jax.eval_shape(inception.Inception().init, jax.random.key(0), images)
  flat = traverse_util.flatten_dict(tree['params'], sep='.')
  view = lambda x: np.broadcast_to(np.float32(0), x.shape)
  return {name: _theirs(view(x)).shape for name, x in flat.items()}


def check(state: dict, path: str | os.PathLike) -> None:
  """Raises MetricsError unless these are tensors of the FID Inception net."""
  wanted = shapes()
  found = {
    name: np.shape(x)
    for name, x in state.items()
    if not name.endswith('num_batches_tracked')
  }
  if found == wanted:
    _check_numbers({name: state[name] for name in wanted}, path)
    return
  kind = f'{len(found)} tensors'
  if any('AuxLogits' in name for name in found):
    kind = "torchvision's Inception v3, which is another net"
  elif len(found) <= 4:
    kind = f'`{"`, `".join(found) or "nothing"}`'
  raise MetricsError(
    f'{path} holds {kind}; expected the {len(wanted)} tensors of the FID '
    f'Inception net, {FILE} ({WHERE}):\n  '
    + '\n  '.join(checks.misfit(found, wanted, most=6))
  )


def _check_numbers(state: dict, path) -> None:
  """Raises MetricsError unless all tensors hold finite real numbers."""
  for name, x in state.items():
    dtype = np.asarray(x).dtype
    real = jnp.issubdtype(dtype, jnp.floating) or dtype.kind in 'iu'
    if not real or not np.isfinite(np.asarray(x, np.float32)).all():
      raise MetricsError(
        f'{path}: {name} is {dtype}; expected finite real numbers, as {FILE} '
        f'holds them ({WHERE}).'
      )


def random_state(seed: int = 0) -> dict[str, np.ndarray]:
  """Random tensors in the file's layout, for tests: their FIDs mean nothing.

  Drawn by NumPy from the seed, so that they are the same everywhere.
  Activations keep their scale from layer to layer.
  """
  rng = np.random.default_rng(seed)
  out = {}
  for name, shape in sorted(shapes().items()):
    x = rng.standard_normal(shape, np.float32)
    if name.endswith('conv.weight'):
      x *= np.sqrt(2 / np.prod(shape[1:]))
    elif name == 'fc.weight':
      x *= np.sqrt(1 / shape[1])
    elif name.endswith('running_var'):
      x = 1 + 0.2 * np.tanh(x)
    else:  # biases and means, and scales around 1
      x = 0.1 * x + name.endswith('bn.weight')
    out[name] = x.astype(np.float32)
  return out


def _path(name: str) -> tuple:
  """'Mixed_5b.branch1x1.bn.bias' -> ('Mixed_5b.branch1x1', 'bn.bias')."""
  if name.startswith('fc.'):
    return (name,)
  conv, group, leaf = name.rsplit('.', 2)
  return conv, f'{group}.{leaf}'


def _theirs(x: np.ndarray) -> np.ndarray:
  return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def _ours(x: np.ndarray) -> np.ndarray:
  return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def _is_published(path: pathlib.Path) -> bool:
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return digest.startswith(FILE.removesuffix('.pth')[-8:])
