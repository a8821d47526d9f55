"""How good generated images are: FID, Inception Score, precision, recall.

inception.py (the net) -> weights.py (its weights, from a file of yours) ->
features.py (over the mesh) -> scores.py, neighbours.py (the numbers), against
what reference.py reads or makes. docs/metrics.md says what each number is.
"""

from fractal_jax.errors import UserError


class MetricsError(UserError, ValueError):
  """Weights, a reference or images that can't be used as asked."""
