"""Fractal generative models in JAX and Flax.

import fractal_jax
model = fractal_jax.load('runs/digits')  # a run
model = fractal_jax.Model.from_pretrained('user/name')  # of the Hub
images = model.sample(num=16)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from fractal_jax.api import Model, load  # noqa: F401

__version__ = '0.1.0'


def __getattr__(name: str):
  if name in ('load', 'Model'):  # importing the package stays instant
    from fractal_jax import api

    return getattr(api, name)
  if name == 'FractalDetector':  # needs scikit-learn and JAX
    from fractal_jax.series import detector

    return detector.FractalDetector
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
