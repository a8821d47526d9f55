"""Means of what training and evaluation see, as clu accumulates them."""

from collections.abc import Mapping

from clu import metrics
import jax


class Averages:
  """Means by name, in a clu Collection on the host."""

  def __init__(self):
    self._empty = self._found = None

  def add(self, averages: Mapping[str, metrics.Average]) -> None:
    """Takes totals and counts, of the same names each time."""
    # Fields of a collection are identifiers: they have __ in place of /.
    values = {k.replace('/', '__'): v for k, v in averages.items()}
    if self._empty is None:
      kinds = dict.fromkeys(values, metrics.Average)
      empty = metrics.Collection.create(**kinds).empty()
      self._empty = jax.device_get(empty)  # NumPy merges without dispatching
    new = self._empty.replace(**values)
    self._found = new if self._found is None else self._found.merge(new)

  def take(self) -> dict[str, float]:
    """The means since the last call, by name; none where nothing was added."""
    found, self._found = self._found, None
    if found is None:
      return {}
    return {k.replace('__', '/'): v for k, v in found.compute().items()}
