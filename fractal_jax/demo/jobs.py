"""Long jobs of the page: one at a time, with progress, and a way to end one."""

from collections.abc import Callable, Iterator
import queue
import threading

BACKLOG = 32  # reports that wait to be seen; more are passed over


class Cancelled(Exception):
  """What ends a job, from inside, once its visitor has asked for it."""


class Jobs:
  """Runs the jobs of all visitors, one after another; a visitor has one."""

  def __init__(self):
    self._turn = threading.Lock()  # the machine's: a job at a time
    self._stops: dict[str, threading.Event] = {}

  def run(self, visitor: str, work: Callable) -> Iterator[tuple]:
    """Runs work(report) in a thread, and passes on what it reports.

    A job that waits for its turn can be cancelled, too. Closing the iterator
    cancels: what a visitor no longer waits for is not done.

    Args:
      visitor: who may cancel it; an earlier job of theirs is cancelled.
      work: a function that calls report(anything) often. Once the job is
        cancelled, that raises Cancelled.

    Yields:
      ('report', what) ..., then ('result', what) once work has returned.

    Raises:
      Cancelled, or what work raises.
    """
    self.cancel(visitor)
    stop = self._stops[visitor] = threading.Event()
    told: queue.SimpleQueue = queue.SimpleQueue()

    def report(what):
      if stop.is_set():
        raise Cancelled
      if told.qsize() < BACKLOG:
        told.put(('report', what))

    def body():
      try:
        while not self._turn.acquire(timeout=0.1):
          if stop.is_set():
            raise Cancelled
        try:
          if stop.is_set():
            raise Cancelled
          told.put(('result', work(report)))
        finally:
          self._turn.release()
      except BaseException as e:
        told.put(('error', e))

    threading.Thread(target=body, daemon=True).start()
    try:
      while True:
        kind, what = told.get()
        if kind == 'error':
          raise what
        if stop.is_set():  # what was done before it was heard of is dropped
          raise Cancelled
        yield kind, what
        if kind == 'result':
          return
    finally:
      stop.set()
      if self._stops.get(visitor) is stop:
        del self._stops[visitor]

  def cancel(self, visitor: str) -> bool:
    """Cancels the visitor's job; False where there is none."""
    stop = self._stops.get(visitor)
    if stop is not None:
      stop.set()
    return stop is not None
