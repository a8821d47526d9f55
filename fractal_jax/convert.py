"""Published PyTorch weights to our parameters, and back.

What corresponds to what is said by the levels (models/published.py). Files are
.pth, for which `read_pth` and `write_pth` need torch, or .safetensors of the
same names.
"""

import argparse
import types

from flax import traverse_util
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from safetensors import numpy as safetensors

from fractal_jax import checks, paths
from fractal_jax.errors import UserError
from fractal_jax.models import fractal, pixel, published, shared
from fractal_jax.models.kinds import KINDS
from fractal_jax.models.types import Spec
from fractal_jax.release import weights
from fractal_jax.training import train_state


class ConvertError(UserError, ValueError):
  """Weights that do not fit the config; the message names the tensors."""


def names(specs: tuple[Spec, ...]) -> published.Table:
  """Our parameter paths to (their tensor names, Layout).

  Raises:
    ConvertError: the published model has no such levels.
  """
  top = specs[0]
  levels = [KINDS[s.kind].published(s) for s in specs[:-1]]
  if (top.rank, top.channels, top.values) != (2, 3, 256) or None in levels:
    raise ConvertError(
      'The published layout is for RGB images (rank 2, 3 channels, 256 values) '
      f'and its own kinds of levels; the config has rank {top.rank}, '
      f'{top.channels} channels, {top.values} values, kinds '
      f'{[s.kind for s in specs]}.'
    )
  out = {
    ('labels', 'table'): (['class_emb.weight'], published.SAME),
    ('labels', 'none'): (['fake_latent'], published.SAME),
  }
  for s, table in zip(specs, levels):
    theirs = 'next_fractal.' * s.index + 'generator.'
    out |= published.within((f'level_{s.index}',), theirs, table)
  last = specs[-1]
  table = pixel.PixelLevel.published(last)
  theirs = 'next_fractal.' * last.index
  return out | published.within((f'level_{last.index}',), theirs, table)


def shapes(model: ConfigDict) -> dict:
  """Our parameters' shapes, flat by path, without computing anything."""
  net = fractal.from_config(model)
  return traverse_util.flatten_dict(train_state.param_shapes(net))


def from_published(state: dict[str, np.ndarray], model: ConfigDict) -> dict:
  """Our parameters (nested, float32) from published tensors by name.

  Raises:
    ConvertError: naming the missing, extra, misshapen and broken tensors.
  """
  check_colour(model)
  if tuple(model.share) not in ((), tuple(range(len(model.sizes)))):
    raise ConvertError(
      f'model.share={tuple(model.share)}: published weights have blocks of '
      'their own at every level; set model.share=().'
    )
  table = names(fractal.specs(model))
  check_fit(state, published_shapes(model))
  out = {}
  for path, (theirs, layout) in table.items():
    tensors = [layout.ours(np.asarray(state[t], np.float32)) for t in theirs]
    out[path] = np.stack(tensors) if stacked(path) else tensors[0]
  return traverse_util.unflatten_dict(out)


def to_published(params: dict, model: ConfigDict) -> dict[str, np.ndarray]:
  """Published tensors by name from our parameters; inverts from_published.

  Blocks that levels share are written to each of them.
  """
  check_colour(model)
  specs = fractal.specs(model)
  flat = traverse_util.flatten_dict(shared.expand(params, specs))
  out = {}
  for path, (theirs, layout) in names(specs).items():
    ours = np.asarray(flat[path], np.float32)
    parts = ours if stacked(path) else [ours]
    for name, part in zip(theirs, parts, strict=True):
      out[name] = np.ascontiguousarray(layout.theirs(part))
  return out


def check_colour(model: ConfigDict) -> None:
  """The published model sees red, then green, then blue."""
  order = tuple(model.channel_order)
  if model.colour or order not in ((), (0, 1, 2)):
    raise ConvertError(
      f"model.colour='{model.colour}', model.channel_order={order}: the "
      "published layout is for RGB in this order; set them to '' and ()."
    )


def published_shapes(model: ConfigDict) -> dict[str, tuple]:
  """The shapes of the published model's tensors under this config."""
  # A broadcast view has the shape, and costs no memory.
  views = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for path, leaf in shapes(model).items()
  }
  table = names(fractal.specs(model))
  out = {}
  for path, (theirs, layout) in table.items():
    view = views[path]
    for i, name in enumerate(theirs):
      out[name] = layout.theirs(view[i] if stacked(path) else view).shape
  return out


def stacked(path: tuple[str, ...]) -> bool:
  """Whether one of our parameters is several of theirs."""
  return 'blocks' in path or path[-1] in ('codebooks', 'logit_bias')


def check_fit(state: dict[str, np.ndarray], shapes: dict[str, tuple]) -> None:
  """Raises ConvertError unless these are finite tensors of these shapes."""
  lines = checks.misfit({k: np.shape(v) for k, v in state.items()}, shapes)
  if lines:
    raise ConvertError(
      'These weights do not fit the config (choose the config they were '
      'trained with):\n' + '\n'.join(f'  {line}' for line in lines)
    )
  broken = [k for k, v in state.items() if not np.isfinite(v).all()]
  if broken:
    raise ConvertError(
      f'{broken[0]} holds nan or infinity ({len(broken)} of {len(state)} '
      'tensors do): get the file again.'
    )


ENDINGS = ('.pth', '.safetensors')


def read(path: str) -> dict[str, np.ndarray]:
  """The tensors of a .pth or .safetensors file: see `read_pth`."""
  if str(path).endswith('.safetensors'):
    return read_safetensors(path)
  return read_pth(path)


def write(path: str, state: dict[str, np.ndarray]) -> None:
  """Writes tensors as a .pth or .safetensors file: see `write_pth`."""
  if not str(path).endswith('.safetensors'):
    write_pth(path, state)
    return
  tensors = {k: np.asarray(v, order='C') for k, v in state.items()}
  weights.save(path, tensors, {'format': 'pt'})


def read_safetensors(path: str) -> dict[str, np.ndarray]:
  """The tensors of a .safetensors file, as float32.

  Raises:
    ConvertError: no such file, or not such tensors.
  """
  try:
    with paths.local(path) as copy:
      state = safetensors.load_file(copy)
  except FileNotFoundError as e:
    raise ConvertError(f'There is no file {path}.') from e
  except Exception as e:  # safetensors and numpy have errors each
    raise ConvertError(f'{path} is no whole .safetensors file: {e}') from e
  for name, x in state.items():
    if not (jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.kind in 'iu'):
      raise ConvertError(
        f'{path}: {name} is {x.dtype}; expected a tensor of real numbers.'
      )
  return {k: np.asarray(v, np.float32) for k, v in state.items()}


def read_pth(path: str) -> dict[str, np.ndarray]:
  """The tensors of a published checkpoint, or of a bare state dict.

  Read with weights_only=True: of all classes that a file may hold, only
  argparse.Namespace, which published files contain, is allowed.

  Raises:
    ConvertError: no torch, no such file, or not such a checkpoint.
  """
  torch, found = import_torch(), paths.path(path)
  try:
    with (
      torch.serialization.safe_globals([argparse.Namespace]),
      paths.local(found) as copy,
    ):
      file = torch.load(copy, map_location='cpu', weights_only=True)
  except FileNotFoundError as e:
    raise ConvertError(f'There is no file {path}.') from e
  except Exception as e:  # torch raises many kinds for a file it can't read
    if paths.of_storage(e) or isinstance(e, OSError):
      raise ConvertError(f'{path} cannot be opened: {e}') from e
    why = ' '.join(str(e).split())[:200]
    raise ConvertError(f'{path} is not a PyTorch checkpoint: {why}') from e
  state = file.get('model', file) if isinstance(file, dict) else file
  if not isinstance(state, dict) or not all(
    isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
  ):
    raise ConvertError(
      f"{path} holds no state dict, neither under 'model' nor by itself."
    )
  for name, x in state.items():
    real = not (x.is_complex() or x.is_quantized or x.dtype == torch.bool)
    if x.layout != torch.strided or x.is_meta or not real:
      raise ConvertError(
        f'{path}: {name} is {x.dtype}, {x.layout} on {x.device}; expected a '
        'dense tensor of real numbers.'
      )
  return {k: v.detach().float().numpy() for k, v in state.items()}


def write_pth(path: str, state: dict[str, np.ndarray]) -> None:
  """Writes tensors in the layout of the published checkpoints.

  Args:
    path: the file.
    state: tensors by name, as `to_published` makes them.

  Raises:
    ConvertError: there is no torch.
  """
  torch = import_torch()
  tensors = {k: torch.tensor(v) for k, v in state.items()}
  with paths.atomic_write(path) as file:
    torch.save({'model': tensors}, file)


def import_torch() -> types.ModuleType:
  """PyTorch; a ConvertError says how to install it where it is missing."""
  try:
    import torch
  except ImportError as e:
    raise ConvertError(
      'Reading or writing .pth files needs PyTorch: pip install '
      "'fractal_jax[torch]'."
    ) from e
  return torch
