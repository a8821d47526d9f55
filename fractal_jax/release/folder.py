"""A whole release: written from a config and parameters, and told apart."""

from collections.abc import Sequence
import os

import jax
from ml_collections import ConfigDict

from fractal_jax import paths
from fractal_jax.data import classes
from fractal_jax.errors import UserError
from fractal_jax.release import ReleaseError, card, weights
from fractal_jax.release.card import About
from fractal_jax.series import quantiser as quantiser_lib
from fractal_jax.training import checkpoint, processes

DETECTOR = 'detector.json'  # of series: see series.runs
# What a release is made of; nothing else is written, sent or fetched.
FILES = (
  'config.json',
  classes.FILE,
  card.FILE,
  card.SAMPLES,
  quantiser_lib.FILE,
  DETECTOR,
  weights.FILE,
  weights.INDEX,
  'model-*.safetensors',
)
# Keys of a config that name files of the machine it was trained on.
LOCAL = {
  'data': {'dir': '', 'manual_dir': ''},
  'model': {'init_from': '', 'init_levels': ()},
}


def check_target(
  folder: str | os.PathLike,
  flag: str = '--out',
  origin: str | os.PathLike | None = None,
) -> None:
  """Whether a release can be written to a folder, before the work for it.

  Args:
    folder: where to.
    flag: that named it, for the message.
    origin: the run or release that the model is loaded from, if any.

  Raises:
    ReleaseError: it holds a run, or is the origin.
    PathError: it can't be written to.
  """
  found = paths.path(folder)
  paths.check_folder(folder, flag)
  if (found / 'checkpoints').exists():
    raise ReleaseError(
      f'{flag}={folder} is the work directory of a run: choose another folder.'
    )
  if origin and paths.same(folder, origin):
    raise ReleaseError(
      f'{flag}={folder} is what the model is read from, and would be replaced: '
      'choose another folder.'
    )


def write(
  folder: str | os.PathLike,
  config: ConfigDict,
  params: dict,
  about: About,
  dtype: str = 'float32',
) -> None:
  """Writes a release; all processes call it, and process 0 writes.

  It is whole once this returns, on any of them. What the folder holds of an
  older release is replaced. config.json comes last: a folder without it is no
  release.

  Args:
    folder: where to; see `check_target`.
    config: of the model. What names local files is left out.
    params: nested, on any mesh.
    about: for the card.
    dtype: one of weights.DTYPES, of the parameters.

  Raises:
    ReleaseError: no such dtype; or see `check_target`.
    PathError: it can't be written to.
  """
  if dtype not in weights.DTYPES:
    known = ' or '.join(weights.DTYPES)
    raise ReleaseError(f"dtype='{dtype}' must be {known}.")
  found, leads = paths.path(folder), jax.process_index() == 0

  def begin():
    check_target(folder)
    found.mkdir(parents=True, exist_ok=True)
    (found / 'config.json').unlink(missing_ok=True)

  def end():
    _write_rest(found, config, params, about, dtype)

  # Where process 0 can't write, the others are told, and don't wait for it.
  processes.together(lambda: leads and begin(), UserError)
  weights.write(found, params, dtype, {'step': str(about.step)})
  processes.together(lambda: leads and end(), UserError)


def _write_rest(found, config, params: dict, about: About, dtype: str) -> None:
  """All of a release but its weights."""
  if about.samples:  # which may be those that are there
    samples = paths.path(about.samples).read_bytes()
    paths.write_bytes(found / card.SAMPLES, samples)
  if about.class_names:
    classes.save(found, about.class_names)
  for name, text in about.files.items():
    paths.write_text(found / name, text)
  kept = {
    card.SAMPLES: about.samples,
    classes.FILE: about.class_names,
    quantiser_lib.FILE: about.files.get(quantiser_lib.FILE),
    DETECTOR: about.files.get(DETECTOR),
  }
  for name, has in kept.items():
    if not has:  # of an older release
      (found / name).unlink(missing_ok=True)
  parameters = sum(x.size for x in jax.tree.leaves(params))
  text = card.text(config, parameters, dtype, about)
  paths.write_text(found / card.FILE, text)
  config = config.copy_and_resolve_references()
  for section, values in LOCAL.items():
    config[section].update(values)
  text = checkpoint.config_text(config, step=about.step)
  paths.write_text(found / 'config.json', text)


def about(
  origin: str | None,
  step: int | None,
  config: ConfigDict,
  *,
  name: str,
  license: str = card.UNKNOWN,
  made_by: str = '',
  numbers: Sequence[str] = (),
  samples: str | None = None,
  quantiser: quantiser_lib.Quantiser | None = None,
) -> About:
  """What is known of a model, for its card.

  Args:
    origin: the run or release that it was loaded from; None: there is none.
    step: steps that it was trained for.
    config: of the model.
    name, license, made_by: as in `api.Model.save_pretrained`.
    numbers, samples: too; where there are none, what training measured and
      drew at that step.
    quantiser: of a model of series.

  Raises:
    ReleaseError: a file that holds no numbers, or is missing.
  """
  found = [x for path in numbers for x in card.read_numbers(path)]
  step, class_names = step or 0, ()
  files = {quantiser_lib.FILE: quantiser.text()} if quantiser else {}
  if samples and not paths.path(samples).is_file():
    raise ReleaseError(f'samples={samples} is no file.')
  if origin:
    origin = paths.path(origin)
    class_names = classes.load(origin)
    if (origin / DETECTOR).is_file():
      files[DETECTOR] = (origin / DETECTOR).read_text()
    found = found or card.numbers_of_run(origin, step, config.data.val_split)
    for drawn in (f'samples/step_{step:07d}.png', card.SAMPLES):
      if not samples and (origin / drawn).is_file():
        samples = str(origin / drawn)
  found, class_names = tuple(found), tuple(class_names)
  return About(name, step, license, made_by, found, class_names, samples, files)
