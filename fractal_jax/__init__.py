"""Fractal generative models in JAX and Flax.

import fractal_jax
model = fractal_jax.load('runs/digits')  # a run
model = fractal_jax.Model.from_pretrained('user/name')  # of the Hub
images = model.sample(num=16)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from fractal_jax.api import Model

__version__ = '0.1.0'


def load(workdir: str, step: int | None = None) -> 'Model':
  """The model of a run, for use from Python: see `fractal_jax.api.Model`.

  Args:
    workdir: the run's directory, as `fractal-jax train` or `convert` wrote it.
    step: of the checkpoint; the latest where None.

  Returns:
    An `api.Model`.

  Raises:
    CheckpointError: there is no such run or checkpoint.
  """
  from fractal_jax import api  # importing the package stays instant

  return api.load(workdir, step)


def __getattr__(name: str):
  if name == 'Model':  # importing the package stays instant
    from fractal_jax import api

    return api.Model
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
