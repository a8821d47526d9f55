"""FractalDetector: the conventions of scikit-learn and PyOD."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

import fractal_jax
from fractal_jax.series import scores
from fractal_jax.series.detector import DetectorError, alarms


def sine(rows, channels=1, seed=0):
  noise = np.random.default_rng(seed).normal(0, 0.1, (rows, channels))
  return np.sin(np.arange(rows)[:, None] / 3) + noise


class Quick(fractal_jax.FractalDetector):
  """Everything but the model: scores are squared distances from the mean."""

  def __init__(self, window=4, smooth=1, score='z2'):
    super().__init__(window=window, smooth=smooth, score=score)

  def _train(self, config, source):
    windows = np.concatenate([source.read(i)[0] for i in range(source.size)])
    yield from ()
    return {'mean': self.quantiser_.decode(windows.mean(0))}

  def scoring(self, X):
    yield from ()
    _, width = self.quantiser_.of(0)
    z2 = ((X - self.params_['mean']) / width) ** 2
    return scores.PointScores(*[z2] * 6, self.quantiser_.outside(X).sum(0))


# Rows are steps in time: their order counts, and a few of them are no window.
NOT_FOR_SERIES = {
  'check_methods_sample_order_invariance',
  'check_methods_subset_invariance',
  'check_fit2d_1sample',
}
# These call `score` if there is one: here it is a parameter.
WITH_SCORE = {
  'check_fit_score_takes_y',
  'check_n_features_in_after_fitting',
  'check_pipeline_consistency',
}


@pytest.mark.filterwarnings('ignore')
def test_scikit_learn_checks():
  """The conventions, on a detector whose model is a mean.

  Fitting a real one takes seconds, and these fit dozens.
  """
  found = estimator_checks.check_estimator(
    Quick(window=4), on_fail=None, on_skip=None
  )
  failed = {
    x['check_name']: x['exception'] for x in found if x['status'] == 'failed'
  }
  assert set(failed) <= NOT_FOR_SERIES | WITH_SCORE, failed
  assert len(found) > 30


@pytest.fixture(scope='module')
def fitted():
  detector = fractal_jax.FractalDetector(
    window=16, smooth=5, levels=2, bins=32, steps=12, false_alarms=0.05
  )
  return detector.fit(sine(300, 2))


def test_fitted(fitted):
  assert fitted.decision_scores_.shape == fitted.labels_.shape == (300,)
  assert len(fitted.held_out_scores_) == 60
  flagged = fitted.held_out_scores_ > fitted.threshold_
  assert flagged.mean() == pytest.approx(0.05, abs=0.02)
  found = fitted.decision_function(sine(300, 2))
  np.testing.assert_allclose(found, fitted.decision_scores_, rtol=1e-5)
  np.testing.assert_array_equal(
    fitted.predict(sine(300, 2)), (found > fitted.threshold_).astype(int)
  )
  broken = sine(100, 2, seed=3)
  broken[50:60, 1] += 5
  broken[20] = np.nan
  assert fitted.decision_function(broken).argmax() in range(46, 64)
  points = fitted.point_scores(broken)
  assert np.nanmax(points.z2, 0).argmax() == 1


def test_clones_and_pickles(fitted):
  other = clone(fitted)
  assert other.get_params() == fitted.get_params()
  assert not hasattr(other, 'params_')
  again = pickle.loads(pickle.dumps(fitted))
  x = sine(50, 2, seed=1)
  np.testing.assert_array_equal(
    again.decision_function(x), fitted.decision_function(x)
  )
  with pytest.raises(DetectorError, match='smooth=0 must be'):
    again.set_params(smooth=0).predict(x)


@pytest.mark.parametrize(
  'change, word',
  [
    (dict(score='nats'), 'score='),
    (dict(false_alarms=0), 'false_alarms'),
    (dict(smooth=0), 'smooth'),
    (dict(causal=True, kind='mar'), 'causal'),
    (dict(window=64), 'minimum of 160'),
    (dict(window=20), 'model.sizes'),
  ],
)
def test_parameters_that_do_not_do(change, word):
  detector = fractal_jax.FractalDetector(window=16).set_params(**change)
  with pytest.raises(ValueError, match=word):
    detector.fit(sine(120))
  with pytest.raises(DetectorError, match='nothing of it is known'):
    detector.fit(np.full((120, 1), np.nan))


def test_data_frames_keep_their_names():
  pd = pytest.importorskip('pandas')
  frame = pd.DataFrame(sine(100, 2), columns=['a', 'b'])
  found = Quick().fit(frame)
  assert list(found.feature_names_in_) == ['a', 'b']
  with pytest.raises(ValueError, match='2 features'):
    found.predict(sine(100, 3))
  with pytest.raises(ValueError, match='feature names'):
    found.predict(frame.rename(columns={'a': 'c'}))


def test_alarms():
  found = alarms(np.array([3.0, 0, 4, 5, np.nan, 6]), 2)
  assert [(a.first, a.last, a.peak) for a in found] == [
    (0, 0, 3.0), (2, 3, 5.0), (5, 5, 6.0)
  ]  # fmt: skip
