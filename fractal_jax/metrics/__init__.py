"""How good generated images are: FID, Inception Score, precision, recall.

images.py (of a run, or from files) are seen by inception.py (the net) with
weights.py (from a file of yours), over the mesh by features.py. results.py
measures them against what reference.py reads or makes, with scores.py and
neighbours.py. docs/metrics.md says what each number is.
"""

from fractal_jax.errors import UserError


class MetricsError(UserError, ValueError):
  """Weights, a reference or images that can't be used as asked."""
