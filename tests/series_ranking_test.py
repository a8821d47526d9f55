"""VUS-PR and the period, against what they should be, worked out apart."""

import numpy as np
import pytest

from fractal_jax.series import ranking


def slow_vus(scores, labels, window):
  """VUS-PR written down as its definition reads, threshold by threshold."""
  n = len(scores)
  starts = [i for i in range(n) if labels[i] and (i == 0 or not labels[i - 1])]
  runs = []
  for start in starts:
    end = start
    while end + 1 < n and labels[end + 1]:
      end += 1
    runs.append((start, end))
  ordered = sorted(scores, reverse=True)
  areas = []
  for w in range(window + 1):
    soft = [0.0] * n
    for start, end in runs:
      for i in range(n):
        away = max(start - i, i - end)
        if away <= 0:
          soft[i] = 1.0
        elif away <= w // 2:
          soft[i] = min(1.0, soft[i] + np.sqrt(1 - away / w))
    wide = [(max(a - w // 2, 0), min(b + w // 2, n - 1)) for a, b in runs]
    area, before = 0.0, 0.0
    for i in np.linspace(0, n - 1, 250).astype(int):
      flagged = [x >= ordered[i] for x in scores]
      true = sum(s for s, f in zip(soft, flagged) if f)
      labelled = sum(
        1.0 if labels[t] else soft[t] * flagged[t] for t in range(n)
      )
      hit = np.mean([any(flagged[a : b + 1]) for a, b in wide])
      recall = min(true / ((sum(labels) + labelled) / 2), 1) * hit
      area += (recall - before) * true / sum(flagged)
      before = recall
    areas.append(area)
  return np.mean(areas)


def test_vus_pr_is_its_definition():
  rng = np.random.default_rng(1)
  labels = np.zeros(120, bool)
  labels[30:41] = labels[90:93] = True
  scores = rng.normal(size=120) + 1.5 * labels
  wanted = slow_vus(scores.tolist(), labels.tolist(), 9)
  assert ranking.vus_pr(scores, labels, 9) == pytest.approx(wanted, abs=1e-12)


def test_better_scores_have_more_and_the_best_nearly_one():
  labels = np.zeros(400, bool)
  labels[100:150] = True
  noise = np.random.default_rng(0).normal(size=400)
  found = [ranking.vus_pr(noise + x * labels, labels, 20) for x in (0, 1, 9)]
  assert found[0] < 0.3 < found[1] < found[2]
  # Labels of a row nearby count, which no score of single rows can follow.
  assert ranking.vus_pr(labels * 1.0, labels, 0) == pytest.approx(1)


def test_labels_at_the_ends_and_neighbours_that_meet():
  labels = np.zeros(60, bool)
  labels[:4] = labels[20:22] = labels[25:27] = labels[-3:] = True
  found = ranking.vus_pr(np.random.default_rng(2).random(60), labels, 12)
  assert 0 < found < 1


@pytest.mark.parametrize('rows', [24, 50, 111])
def test_period(rows):
  t = np.arange(3000)
  noise = 0.1 * np.random.default_rng(0).normal(size=3000)
  assert abs(ranking.period(np.sin(2 * np.pi * t / rows) + noise) - rows) <= 1


def test_no_period():
  assert ranking.period(np.arange(1000.0)) == 125
  assert ranking.period(np.ones(50)) == 125
