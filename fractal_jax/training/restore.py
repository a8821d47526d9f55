"""Reading the parameters of a run, onto any mesh and number of hosts.

A release (fractal_jax/release) is read in its place. Nothing here knows of the
optimizer, or writes anything.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import os
import re
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from fractal_jax import checks, paths, sharding
from fractal_jax.errors import short
from fractal_jax.release import weights
from fractal_jax.training import CheckpointError, checksums


class Misfit(CheckpointError):
  """A checkpoint of another model or optimizer."""


def directory(workdir: str) -> paths.Path:
  """Where the checkpoints of a work directory are; Orbax wants it absolute.

  Raises:
    CheckpointError: its name is not UTF-8, which Orbax and TensorBoard need.
  """
  try:
    os.fspath(workdir).encode()
  except UnicodeEncodeError as e:
    raise CheckpointError(
      f'work directory {workdir!a}: this name is not UTF-8: choose another.'
    ) from e
  return paths.path(paths.absolute(workdir)) / 'checkpoints'


def steps(workdir: str) -> list[int]:
  """Steps of the complete checkpoints of a work directory, in order.

  Of a release, how many steps it was trained for.

  In a bucket an unfinished checkpoint has its final name: there those count
  that Orbax has marked.

  Raises:
    CheckpointError: the work directory can't be read.
  """
  folder = directory(workdir)
  with reaching(workdir):
    if weights.found(workdir):
      return [weights.step(workdir)]
    if not folder.is_dir():
      return []
    return sorted(
      int(p.name)
      for p in folder.iterdir()
      if re.fullmatch('0|[1-9][0-9]{0,17}', p.name)
      and ocp.utils.is_checkpoint_finalized(p)
    )


def restore_params(workdir: str) -> dict:
  """The latest parameters, by level, on the first device.

  Raises:
    CheckpointError: no such checkpoint, or a damaged one.
  """
  with _opened(workdir) as (_, stored, read):
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return read(sharding.shaped(stored, jax.tree.map(lambda _: first, stored)))


def restore_like(workdir: str, step: int | None, like: dict) -> dict:
  """Every parameter, as `like`: see train_state.abstract_params.

  Raises:
    CheckpointError: naming each that is missing, extra or misshapen; or see
      `restore_params`.
  """
  with _opened(workdir, step) as (where, stored, read):
    check_fit(stored, like, where)
    return read(like)


def check_params(workdir: str, like: dict) -> None:
  """Raises CheckpointError unless parameters are there, of these shapes."""
  with _opened(workdir) as (where, stored, _):
    check_fit(stored, like, where)


def restore_subtrees(workdir: str, like: dict) -> dict:
  """Some levels' parameters, as `like`, from a run's latest checkpoint.

  Raises:
    CheckpointError: naming each parameter that is missing or misshapen.
  """
  with _opened(workdir) as (where, stored, read):
    check_fit({k: stored[k] for k in like if k in stored}, like, where)
    return read(like)


@contextlib.contextmanager
def _opened(
  workdir: str, step: int | None = None
) -> Iterator[tuple[paths.Path, dict, Callable]]:
  """The parameters of a run or release, to be read within.

  Yields:
    Where they are, their shapes and types, and what reads some of them, as a
    tree of ShapeDtypeStruct with shardings.
  """
  with reaching(workdir):
    released = weights.found(workdir)
  if not released:
    folder = step_folder(workdir, step) / 'params'
    yield folder, metadata(folder), functools.partial(_read, folder)
    return
  _check_step(workdir, step, steps(workdir))
  with weights.opened(workdir) as tensors:
    yield paths.path(workdir), tensors.shapes(), tensors.read


def step_folder(workdir: str, step: int | None = None) -> paths.Path:
  """The folder of a checkpoint, by default of the latest.

  Raises:
    CheckpointError: there is none, or it can't be read.
  """
  found = steps(workdir)
  if not found:
    with reaching(workdir):
      there = paths.path(workdir).is_dir()
    if not there:
      raise CheckpointError(f'work directory {workdir} does not exist.')
    raise CheckpointError(
      f'work directory {workdir} has no checkpoint yet; if it is a release, '
      f'it lacks its {weights.FILE}.'
    )
  _check_step(workdir, step, found)
  return directory(workdir) / str(found[-1] if step is None else step)


def _check_step(workdir: str, step: int | None, found: list[int]) -> None:
  if step is not None and step not in found:
    raise CheckpointError(
      f'{workdir} has no checkpoint of step {step}: it has {found}.'
    )


def _read(folder: paths.Path, like):
  """Some of the parameters in a folder, checked."""
  stored, sums = metadata(folder), read_sums(folder.parent)
  wanted, like = like, typed(like, stored)
  with reading(folder.parent):
    with ocp.PyTreeCheckpointer() as reader:
      found = reader.restore(
        folder,
        args=ocp.args.PyTreeRestore(
          item=like,
          restore_args=ocp.checkpoint_utils.construct_restore_args(like),
          partial_restore=True,
        ),
      )
    if sums is not None:
      checksums.check(found, sums['params'])
    return cast(found, wanted)


# Parts of a checkpoint, for checkpoint.py too.


def metadata(folder: paths.Path) -> dict:
  """Shapes and types of a stored tree."""
  with reading(folder.parent):
    with _quiet(), ocp.StandardCheckpointer() as reader:
      found = reader.metadata(folder).item_metadata
    if found is None:
      # Orbax does not say why.
      (folder / '_METADATA').read_text()
      raise ValueError(f'{folder} cannot be read')
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found.tree
    )


@contextlib.contextmanager
def _quiet():
  """Without Orbax's warning that one item of a checkpoint is no checkpoint."""
  before = logging.get_verbosity()
  logging.set_verbosity(min(before, logging.ERROR))
  try:
    yield
  finally:
    logging.set_verbosity(before)


def read_sums(folder: paths.Path) -> dict | None:
  """The checksums of a checkpoint; those of older versions have none."""
  with reading(folder):
    if not (folder / 'sums').is_dir():
      return None
    return json.loads((folder / 'sums' / 'metadata').read_text())


def typed(like: Any, stored: Any) -> Any:
  """`like`, with the types of what is stored: checked as it was saved."""
  types = {k: x.dtype for k, x in checksums.by_name(stored).items()}
  leaves = [
    jax.ShapeDtypeStruct(x.shape, types[name], sharding=x.sharding)
    for name, x in checksums.by_name(like).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def cast(found: Any, like: Any) -> Any:
  """Arrays with the types that are asked for."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), found, like
  )


def check_fit(stored: Any, wanted: Any, where: paths.Path | str) -> None:
  """Raises Misfit unless two trees have the same names and shapes."""
  stored, wanted = (
    {k: x.shape for k, x in checksums.by_name(t).items()}
    for t in (stored, wanted)
  )
  lines = checks.misfit(stored, wanted)
  if lines:
    raise Misfit(
      f'{where} does not fit the config:\n'
      + '\n'.join(f'  {line}' for line in lines)
    )


# What can go wrong.


@contextlib.contextmanager
def reading(folder: paths.Path) -> Iterator[None]:
  """Whatever fails in here, the checkpoint or the way to it is to blame."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as e:  # Orbax and its storage raise nearly anything
    if paths.of_storage(e):
      raise _unreachable(f'checkpoint {folder}', e) from e
    workdir = folder.parent.parent
    older = [n for n in steps(workdir) if n < int(folder.name)]
    way_out = (
      f'Move it away to go on from checkpoint {older[-1]}.'
      if older
      else 'There is no earlier one.'
    )
    raise CheckpointError(
      f'checkpoint {folder} is damaged: {short(e)}. Nothing was changed. '
      f'{way_out}'
    ) from e


@contextlib.contextmanager
def reaching(workdir: str) -> Iterator[None]:
  """Turns the errors of a disk or bucket into one that says what to do."""
  try:
    yield
  except Exception as e:
    if not paths.of_storage(e):
      raise
    raise _unreachable(f'work directory {workdir}', e) from e


def _unreachable(what: str, error: Exception) -> CheckpointError:
  return CheckpointError(
    f'{what} cannot be read ({short(error)}): get the right to read it, and '
    'see whether its disk or bucket can be reached. It may well be whole.'
  )
