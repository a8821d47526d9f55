"""Rejection: which candidates are drawn, and which of them are kept."""

import numpy as np
import pytest

from fractal_jax import api, sharding
from fractal_jax.inference import inputs, reject, sample
from fractal_jax.inference.progress import result_of
from tests import tiny


@pytest.fixture(scope='module')
def model():
  c = tiny.config(('mar', 'pixel'), (4, 1), num_values=9)
  c.sample.update(batch=4, guidance=1.0)
  net, params = tiny.build(('mar', 'pixel'), (4, 1), num_values=9)
  return api.Model(c, net, params, sharding.single_device_mesh())


def kept(model, labels, **changes):
  how = dict(mesh=model.mesh, seed=3) | changes
  return result_of(
    sample.kept(model.net, model.params, model.config, labels, **how)
  )


def test_images_of_a_class_are_chosen_together():
  labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 0])
  group, place = reject.groups(labels, 2)
  assert group.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 3]
  assert place.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1]
  group, place = reject.groups(labels, 1)
  assert group.tolist() == list(range(9)) and not place.any()


def test_the_best_candidates_are_kept(model):
  labels = np.arange(6) % 3
  drawn, report = kept(model, labels, candidates=3, keep=2)
  # Three groups of three candidates: all of them, and their scores.
  every = np.repeat([0, 1, 2], 3)
  candidates, none = kept(model, every)
  assert none is None
  scores = model.log_prob(candidates.values, every, seed=3)
  scores -= model.log_prob(candidates.values, None, seed=3)
  scores = scores.reshape(3, 3)
  best = np.argsort(-scores, 1)
  for i in range(6):
    at = i % 3 * 3 + best[i % 3, i // 3]
    np.testing.assert_array_equal(drawn.values[i], candidates.values[at])
  np.testing.assert_allclose(report.scores, scores, atol=1e-4)
  assert 'kept 6 of 9 candidates (67%)' in str(report)
  # Whatever the batch; and from the command that asks for images.
  again, _ = kept(model, labels, candidates=3, keep=2, batch=2)
  np.testing.assert_array_equal(again.values, drawn.values)
  images = model.sample(num=6, seed=3, candidates=3, keep=2)
  np.testing.assert_array_equal(images, drawn.values)
  # A later part of the request by itself.
  later, _ = kept(model, labels[3:], candidates=2, first=3)
  whole, _ = kept(model, labels, candidates=2)
  np.testing.assert_array_equal(later.values, whole.values[3:])


def test_one_candidate_is_no_choice(model):
  labels = np.arange(4) % 3
  plain = model.sample(labels, seed=3)
  found, report = kept(model, labels, candidates=1, keep_by='dimension')
  assert report is None
  np.testing.assert_array_equal(found.values, plain)


def test_by_dimension_those_in_the_range_of_their_class_are_kept(
  model, monkeypatch
):
  labels = np.array([0, 1, -1])
  every, _ = kept(model, np.repeat(labels, 4))
  found = reject.dimension.box_dimension(every.values, 9).reshape(3, 4)
  wanted = [2, 3, 1]
  ranges = np.zeros((4, 2))
  for row, (i, k) in zip((0, 1, 3), enumerate(wanted)):
    ranges[row] = found[i, k] - 1e-6, found[i, k] + 1e-6
  monkeypatch.setattr(reject.dimension, 'ranges_of_run', lambda _: ranges)
  drawn, report = kept(model, labels, candidates=4, keep_by='dimension')
  dims = reject.dimension.box_dimension(drawn.values, 9)
  np.testing.assert_allclose(dims, found[range(3), wanted])
  assert '100% are in the range of their class' in str(report)


def test_what_can_not_be_chosen_is_refused(model):
  with pytest.raises(inputs.InputError, match='keep=3 must be at most'):
    model.sample(num=3, candidates=2, keep=3)
  with pytest.raises(inputs.InputError, match='draw them with classes'):
    model.sample([-1, 0], candidates=2)
  assert model.sample([-1], num=2, candidates=1).shape == (2, 4, 4, 1)
