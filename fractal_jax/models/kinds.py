"""The kinds of levels, by the names that config.model.kinds gives them."""

from fractal_jax.models.ar import ARLevel
from fractal_jax.models.independent import IndependentLevel
from fractal_jax.models.level import Level
from fractal_jax.models.mar import MARLevel

# A new kind of level: its file, and its entry here.
KINDS: dict[str, type[Level]] = {
  'ar': ARLevel,
  'independent': IndependentLevel,
  'mar': MARLevel,
}


def causal() -> list[str]:
  """Names of the kinds whose patches depend on those before them alone."""
  return [name for name, kind in KINDS.items() if kind.CAUSAL]
