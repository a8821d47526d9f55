"""Fractal generative models in JAX and Flax.

import fractal_jax
model = fractal_jax.load('runs/digits')
images = model.sample(num=16)
"""


def load(workdir: str, step: int | None = None):
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
  if name == '__version__':  # of what is installed; looked up when asked for
    from importlib import metadata

    return metadata.version('fractal_jax')
  if name == 'FractalDetector':  # needs scikit-learn and JAX
    from fractal_jax.series import detector

    return detector.FractalDetector
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
