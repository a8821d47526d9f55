"""Detectors in work directories: what `fractal-jax anomaly` keeps and reads."""

import json
from typing import Any

import jax
import numpy as np

from fractal_jax import api, errors, paths
from fractal_jax.data import classes
from fractal_jax.errors import UserError
from fractal_jax.release import folder
from fractal_jax.series import quantiser
from fractal_jax.series.detector import FractalDetector
from fractal_jax.training import checkpoint

FILE = folder.DETECTOR  # parameters, and the scores of the rows held out
SCORING = ('score', 'smooth', 'causal')  # parameters that scores depend on


class RunError(UserError, ValueError):
  """A work directory that can't serve series."""


def save(workdir: str, detector: FractalDetector, name: str) -> None:
  """Makes a work directory of a fitted detector.

  Raises:
    CheckpointError: it has checkpoints already.
  """
  checkpoint.save_params(workdir, detector.config_, detector.params_)
  quantiser.save(workdir, detector.quantiser_)
  classes.save(workdir, [name])
  kept = {
    'parameters': detector.get_params(),
    'rows': len(detector.labels_),
    'held_out_scores': detector.held_out_scores_.tolist(),
  }
  text = json.dumps(kept, indent=1) + '\n'
  paths.write_text(paths.path(workdir) / FILE, text)


def load(
  workdir: str, label: str | None = None, **changes: Any
) -> FractalDetector:
  """The detector of a run, of `save` or of `fractal-jax train`.

  Args:
    workdir: of a run on series; or a release, as api.load takes it.
    label: which class the series is of, by name or number, where the run has
      several.
    **changes: parameters in place of those kept.

  Returns:
    The detector. Its `threshold_` follows from the scores of the rows held
    out when it was fitted: a run of `train` has none, and neither has one
    whose way of scoring is changed.

  Raises:
    RunError: a run on something else, or a class that it needs.
    CheckpointError, DataError: no such run or class.
  """
  model = api.load(workdir)
  if model.quantiser is None:
    raise RunError(f'{workdir} has no {quantiser.FILE}: it is no run on series')
  m = model.config.model
  parameters, scores = _kept(model.origin)
  found = FractalDetector(
    **parameters or {'window': m.sizes[0], 'kind': m.kinds[0]}
  )
  before = found.get_params()
  found.set_params(**changes)
  found.config_, found.quantiser_ = model.config, model.quantiser
  found.params_ = jax.device_get(model.params)
  found.n_features_in_ = m.channels
  found.label_ = _class(model.origin, label, m.classes)
  if scores is not None and all(
    getattr(found, k) == before[k] for k in SCORING
  ):
    found.held_out_scores_ = scores
    found.threshold_ = found._threshold()
  return found


def _kept(workdir: str) -> tuple[dict, np.ndarray | None]:
  """What `save` kept: parameters, and scores [t]; ({}, None) without a file.

  Raises:
    RunError: the file is damaged.
  """
  path = paths.path(workdir) / FILE
  if not path.exists():
    return {}, None
  try:
    kept = json.loads(path.read_text())
    scores = np.array(kept['held_out_scores'], np.float64)
    parameters = dict(kept['parameters'])
    FractalDetector(**parameters).check_parameters()
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
      raise ValueError('held_out_scores must hold finite numbers')
  except errors.DAMAGES as e:
    raise RunError(
      f'{path} does not hold what `fractal-jax anomaly` keeps '
      f'({type(e).__name__}: {e}): take it from a copy of the work directory, '
      'or remove it, and give --threshold'
    ) from e
  return parameters, scores


def _class(workdir: str, label: str | None, number: int) -> int:
  names = classes.load(workdir)
  if label is not None:
    return classes.numbers([label], names, number)[0]
  if number > 1:
    raise RunError(
      f'{workdir} was trained on {number} series, each with bins of its own: '
      f'say of which --label the data is, {classes.listing(names)}'
    )
  return 0
