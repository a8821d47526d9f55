"""An anomaly detector by the conventions of scikit-learn and PyOD."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from fractal_jax import checks
from fractal_jax.data import series
from fractal_jax.errors import UserError
from fractal_jax.inference.progress import Job, result_of
from fractal_jax.models import kinds
from fractal_jax.series import fit, quantiser, ranking, scores, settings, table

if TYPE_CHECKING:
  from fractal_jax import api

RULES = {  # of parameters, each alone; the config has more
  'window': checks.FROM_1,
  'smooth': checks.FROM_1,
  'score': checks.Choice(scores.NAMES),
  'causal': checks.Flag(),
  'false_alarms': checks.SHARE,
  'held_out': checks.SHARE,
  'kind': checks.Text(),
  'levels': checks.Choice((2, 3)),
  'bins': checks.integer(least=2),
  'range': checks.Choice(quantiser.RANGES),
  'steps': checks.Either(checks.FROM_1, checks.Choice((None,))),
  'seed': checks.SEED,
}


class DetectorError(UserError, ValueError):
  """Parameters or data that no detector can be fitted to."""


class FractalDetector(BaseEstimator):
  """Scores the rows of a series by a fractal model of its normal windows.

    detector = FractalDetector().fit(normal)     # [T, C] or a DataFrame
    detector.predict(new)                        # 1: an alarm, 0: none

  As in PyOD, larger scores are more anomalous and labels are 0 and 1. Rows are
  steps in time: their order counts, and NaN is not known.

  Parameters:
    window: S, rows that the model sees at a time; a multiple of 8.
    smooth: rows that scores are averaged over; 1: none.
    score: 'z2' (squared standardised residual), 'bits', 'excess' (bits less
      those expected) or 'tail' (of the predictive distribution).
    causal: whether a row's score looks at earlier rows alone, for streams; its
      mean is then exponential, as old on average as one of `smooth` rows.
    false_alarms: the share of the rows held out that `threshold_` flags.
    held_out: share of the rows given to `fit`, the last ones, that are not
      trained on: the threshold is theirs.
    kind: of the model's levels, a key of `kinds.KINDS`; 'mar' can't be causal.
    levels: 2 or 3, of the model.
    bins: V, of each channel.
    range: what the bins cover, 'uniform' or 'scaled'; see data.bins.
    steps: of training; chosen from the number of rows where None.
    seed: of all draws.

  Attributes:
    decision_scores_: [T] of the rows given to `fit`.
    held_out_scores_: those of the rows held out, the last ones.
    threshold_: rows with a larger score are alarms.
    labels_: [T] 0 or 1, of the rows given to `fit`.
    n_features_in_, feature_names_in_: as in scikit-learn.
    quantiser_, config_, params_: of the model; `model_` is it, an api.Model.
    gradients_: of each level by its name, the norm of its gradient in each step
      of training; those of a run that was loaded have none.
    label_: the class of its series; 0 but in runs of several.
  """

  def __init__(
    self,
    window: int = 64,
    smooth: int = 200,
    score: str = 'z2',
    causal: bool = False,
    false_alarms: float = 0.01,
    held_out: float = 0.2,
    kind: str = 'ar',
    levels: int = 3,
    bins: int = 256,
    range: str = 'uniform',
    steps: int | None = None,
    seed: int = 0,
  ):
    self.window = window
    self.smooth = smooth
    self.score = score
    self.causal = causal
    self.false_alarms = false_alarms
    self.held_out = held_out
    self.kind = kind
    self.levels = levels
    self.bins = bins
    self.range = range
    self.steps = steps
    self.seed = seed

  def fit(self, X: ArrayLike, y: object = None) -> 'FractalDetector':
    """Fits the model to normal rows X [T, C], and sets the threshold."""
    del y
    return result_of(self.fitting(X))

  def fitting(self, X: ArrayLike) -> Job:
    """The job of `fit`, whose Progress can be shown; returns the detector."""
    X = self._check(X, reset=True)
    config = self._config(X)
    one = table.from_array(X)
    self.quantiser_ = series.fit(config, [one])
    source = series.source(config, [one], 'train', self.quantiser_)
    self.config_, self.label_ = config, 0
    self.params_ = yield from self._train(config, source)
    found = yield from self.scoring(X)
    self.decision_scores_ = self._of_rows(found)
    first = len(X) - int(len(X) * self.held_out)
    self.held_out_scores_ = self.decision_scores_[first:]
    self.threshold_ = self._threshold()
    self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
    return self

  def decision_function(self, X: ArrayLike) -> np.ndarray:
    """Scores [T] of rows X [T, C], larger where more anomalous."""
    check_is_fitted(self)
    X = self._check(X, reset=False)
    return self._of_rows(result_of(self.scoring(X)))

  def predict(self, X: ArrayLike) -> np.ndarray:
    """[T]: 1 where the score is above the threshold, else 0."""
    return (self.decision_function(X) > self.threshold_).astype(int)

  def fit_predict(self, X: ArrayLike, y: object = None) -> np.ndarray:
    """`labels_` of the rows that it is fitted to."""
    return self.fit(X, y).labels_

  def point_scores(self, X: ArrayLike) -> scores.PointScores:
    """What the model says of every value of X [T, C]."""
    check_is_fitted(self)
    return result_of(self.scoring(self._check(X, reset=False)))

  def scoring(self, X: np.ndarray) -> Job:
    """The job of `point_scores`."""
    model = self.model_
    return scores.score(
      model.net,
      model.params,
      self.quantiser_,
      X,
      self.label_,
      causal=self.causal,
      seed=self.seed,
      mesh=model.mesh,
    )

  @property
  def model_(self) -> 'api.Model':
    """The fitted model: it forecasts, imputes and samples."""
    from fractal_jax import api, sharding
    from fractal_jax.models import fractal

    check_is_fitted(self, 'params_')
    net = fractal.from_config(self.config_.model)
    mesh = sharding.any_mesh(self.config_)
    return api.Model(
      self.config_, net, self.params_, mesh, quantiser=self.quantiser_
    )

  # The parts.

  def _train(self, config, source) -> Job:
    """The job of training: returns parameters as NumPy arrays."""
    seen = []
    _, params, _ = yield from fit.fit(config, source, watch=seen.append)
    self.gradients_ = fit.gradients(seen, params)
    return jax.device_get(params)

  def _threshold(self) -> float:
    return float(np.quantile(self.held_out_scores_, 1 - self.false_alarms))

  def _of_rows(self, found: scores.PointScores) -> np.ndarray:
    """Smoothed scores of the rows; the mean of all where nothing is known."""
    rows = found.of_rows(self.score, self.smooth, self.causal)
    return np.where(np.isnan(rows), np.nanmean(rows), rows)

  def check_parameters(self) -> None:
    """Raises DetectorError for parameters that break rules of their own."""
    for name, rule in RULES.items():
      if wrong := checks.problem(name, getattr(self, name), rule):
        raise DetectorError(wrong)
    kind = kinds.KINDS.get(self.kind)  # others are refused with the config
    if self.causal and kind is not None and not kind.CAUSAL:
      raise DetectorError(
        f'causal=True needs kind={" or ".join(kinds.causal())}, not '
        f'{self.kind}, whose levels look at both sides'
      )

  def _config(self, X: np.ndarray):
    """The config of a model for X, after a look at the parameters."""
    self.check_parameters()
    trained = len(X) - int(len(X) * self.held_out)
    if trained < 2 * self.window:
      raise DetectorError(
        f'X has {len(X)} samples (minimum of '
        f'{int(np.ceil(2 * self.window / (1 - self.held_out)))} is required): '
        f'window={self.window} needs twice as many rows to train on, after '
        f'held_out={self.held_out}'
      )
    config = settings.settings(
      trained,
      X.shape[1],
      window=self.window,
      kind=self.kind,
      levels=self.levels,
      bins=self.bins,
      steps=self.steps,
      seed=self.seed,
    )
    config.data.held_out = float(self.held_out)
    config.data.bins = self.range
    return config

  def _check(self, X, *, reset: bool) -> np.ndarray:
    """X as float64 [T, C], NaN may be in it; and the parameters."""
    X = validate_data(
      self, X, reset=reset, dtype=np.float64, ensure_all_finite='allow-nan'
    )
    if np.isnan(X).all():
      raise DetectorError('X holds NaN alone: nothing of it is known')
    self.check_parameters()  # they may have been set after the fit
    return X

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    tags.input_tags.allow_nan = True
    return tags


@dataclasses.dataclass(frozen=True)
class Alarm:
  """Rows one after another whose scores are above the threshold."""

  first: int
  last: int
  peak: float  # the largest score


def alarms(scores: np.ndarray, threshold: float) -> list[Alarm]:
  """The alarms among scores [T], in time."""
  return [
    Alarm(first, last, float(scores[first : last + 1].max()))
    for first, last in ranking.runs_of(scores > threshold)
  ]
