"""Long jobs of the page: one at a time, with a way to end one."""

from collections.abc import Iterator
import threading

POLL = 0.05  # seconds between two looks of a job that waits for its turn


class Cancelled(Exception):
  """What ends a job once its visitor has asked for it."""


class Jobs:
  """Runs the jobs of all visitors, one after another; a visitor has one.

  A job is an iterator. It is asked for its next step by whoever looks at it,
  and no other job is begun until it has ended or was cancelled.
  """

  def __init__(self):
    self._step = threading.Lock()  # held while a step is computed
    self._turn = threading.Event()  # the `stop` of the job whose turn it is
    self._turn.set()
    self._stops: dict[str, threading.Event] = {}

  def run(self, visitor: str, job: Iterator) -> Iterator:
    """Waits for the job's turn, then yields what it yields.

    A job that waits can be cancelled, too. Closing the iterator cancels: what
    a visitor no longer waits for is not done.

    Args:
      visitor: who may cancel it; an earlier job of theirs is cancelled.
      job: what to run.

    Raises:
      Cancelled, or what the job raises.
    """
    self.cancel(visitor)
    stop = self._stops[visitor] = threading.Event()
    try:
      while not self._take_turn(stop):
        if stop.wait(POLL):
          raise Cancelled
      while True:
        with self._step:
          if stop.is_set():
            raise Cancelled
          try:
            found = next(job)
          except StopIteration:
            return
        if stop.is_set():  # what was done before it was heard of is dropped
          raise Cancelled
        yield found
    finally:
      stop.set()  # the turn is free
      if self._stops.get(visitor) is stop:
        del self._stops[visitor]

  def _take_turn(self, stop: threading.Event) -> bool:
    """Whether it is this job's turn now: the last one ended or was stopped."""
    if not self._step.acquire(blocking=False):
      return False
    try:
      if self._turn.is_set():
        self._turn = stop
      return self._turn is stop
    finally:
      self._step.release()

  def cancel(self, visitor: str) -> bool:
    """Cancels the visitor's job; False where there is none."""
    stop = self._stops.get(visitor)
    if stop is not None:
      stop.set()
    return stop is not None
