"""Rejection: of several images that are drawn for one, the best are kept.

`sample.keep` of `sample.candidates` images are, as they score by
`sample.keep_by`: the share of a class that is explained by its condition, or a
box-counting dimension like those of its class. docs/sampling.md says what it
brings and what it costs.
"""

import dataclasses

from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from fractal_jax.inference import dimension, inputs, likelihood
from fractal_jax.inference.progress import Job
from fractal_jax.models import fractal

SETTINGS = ('candidates', 'keep', 'keep_by')


@dataclasses.dataclass(frozen=True)
class Report:
  """What was kept, of all candidates."""

  by: str  # sample.keep_by
  scores: np.ndarray  # [groups, candidates]
  kept: np.ndarray  # [groups, keep], the best ones' scores, the best one first

  def numbers(self) -> dict:
    """As JSON holds it.

    `kept_score` and `score` are means over what was kept and over all: of the
    scores in nats, or of the share whose dimension is in the class's range.
    """
    merit = lambda x: float((x if self.by == 'class' else x == 0).mean())
    return {
      'by': self.by,
      'candidates': self.scores.size,
      'kept': self.kept.size,
      'acceptance': self.kept.size / self.scores.size,
      'kept_score': merit(self.kept),
      'score': merit(self.scores),
    }

  def __str__(self):
    return summary(self.numbers())


def summary(found: dict) -> str:
  """The numbers of a Report as a line of text."""
  kept, every = found['kept_score'], found['score']
  text = (
    f'kept {found["kept"]} of {found["candidates"]} candidates '
    f'({found["acceptance"]:.0%})'
  )
  if found['by'] == 'class':
    return (
      f'{text} by log-likelihood under their class minus that under none: '
      f'{kept:.2f} nats in the mean, {every:.2f} of all'
    )
  return (
    f'{text} by box-counting dimension: {kept:.0%} are in the range of their '
    f'class, {every:.0%} of all'
  )


def groups(labels: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
  """Which candidates each image is chosen from, and as which of the best.

  Images of a class form groups of `keep`, in their order, and groups are
  numbered in the order of their first images.

  Args:
    labels: [n].
    keep: images of a group; the last one of a class may have fewer.

  Returns:
    Each image's group, [n], and its place among the best of it, [n].
  """
  before = np.zeros(len(labels), int)  # images of the same class
  for k in np.unique(labels):
    before[labels == k] = np.arange((labels == k).sum())
  number, seen = {}, []
  for label, group in zip(labels.tolist(), (before // keep).tolist()):
    seen.append(number.setdefault((label, group), len(number)))
  return np.array(seen), before % keep


def check(by: str, labels: np.ndarray) -> None:
  """Raises InputError where images can't be told apart like this."""
  if by == 'class' and (labels < 0).any():
    raise inputs.InputError(
      "sample.keep_by='class' compares images under their class: draw them "
      "with classes, or set sample.keep_by='dimension'"
    )


def scores(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  images: np.ndarray,
  labels: np.ndarray,
  by: str,
  *,
  mesh: Mesh | None,
  seed: int,
  first: int,
) -> Job:
  """The job of the scores [n] of images [n, S, (S,) C]: higher is better.

  Args:
    net, params, config, mesh: of the model.
    images: the candidates.
    labels: [n], their classes.
    by: sample.keep_by.
    seed: of the masks under which they are scored.
    first: the number of the first candidate: its masks follow from its own.
  """
  if by == 'class':
    how = dict(mesh=mesh, seed=seed, first=first)
    given = yield from likelihood.log_prob(
      net, params, config, images, labels, **how
    )
    alone = yield from likelihood.log_prob(
      net, params, config, images, None, **how
    )
    return given - alone  # under the same masks, so that their noise cancels
  low, high = dimension.ranges_of_run(config)[labels].T  # -1: of all classes
  found = dimension.box_dimension(images, config.model.num_values)
  return -np.maximum(np.maximum(low - found, found - high), 0)
