"""Jobs that say how far they are.

A job is a generator: it yields a Progress after each step, and returns its
result. A caller that asks for no further step ends the job. While a job waits
to be asked, it holds no context (no mesh is set).
"""

import collections
from collections.abc import Generator, Iterator
import dataclasses
from typing import Any

from fractal_jax.models.types import Drawn


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a job is."""

  doing: str  # 'drawing', 'scoring' or 'explaining'; at the end, 'done'
  done: int  # steps that are done
  total: int  # steps of what it is doing
  drawn: Drawn | None = None  # the images so far, where they are watched
  result: Any = None  # what the job returns; only at the end

  @property
  def share(self) -> float:
    """The share of the steps that are done, 0 to 1."""
    return self.done / self.total


Job = Generator[Progress, None, Any]


def stream(job: Job) -> Iterator[Progress]:
  """The Progress of a job, and at the end one more, with its result."""
  result = yield from job
  yield Progress('done', 1, 1, result=result)


def result_of(job: Job) -> Any:
  """Runs a job to its end, and gives its result."""
  (last,) = collections.deque(stream(job), maxlen=1)
  return last.result
