"""Pilots on images: the data, and the models."""

from collections.abc import Mapping
import dataclasses

import jax
from ml_collections import ConfigDict
import numpy as np

from fractal_jax import api
from fractal_jax import config as config_lib
from fractal_jax.data import listing, pipeline
from fractal_jax.data.common import Source
from fractal_jax.inference.progress import Job
from fractal_jax.pilot import (
  image_measures,
  image_pictures,
  image_settings,
  image_simple,
  image_stages,
  stages,
  work,
)
from fractal_jax.pilot.settings import Settings
from fractal_jax.pilot.work import Pilot, Stage
from fractal_jax.planning import propose as planning
from fractal_jax.series import fit
from fractal_jax.training import checkpoint, restore

SHADOW = 0.4  # of the images held out: they are seen by the last stage alone


class Models:
  """How models of images are made and kept; tests give quicker ones."""

  def fitting(self, config: ConfigDict, images: np.ndarray) -> Job:
    """A job: an api.Model, and norms [steps] of its levels' gradients."""
    source = Source(
      len(images), lambda i: (images[i], 0), ('all',), config.model.num_values
    )
    seen = []
    net, params, mesh = yield from fit.fit(config, source, watch=seen.append)
    model = api.Model(config, net, jax.device_get(params), mesh)
    return model, fit.gradients(seen, params)

  def save(self, folder: str, model: api.Model) -> None:
    """Keeps it, whole or not at all."""
    work.keep_folder(
      folder,
      lambda part: checkpoint.save_params(part, model.config, model.params),
    )

  def load(self, folder: str) -> api.Model | None:
    """The model that `save` kept; None where there is none."""
    return api.load(folder) if restore.steps(folder) else None

  def worth(self, model: api.Model, images: np.ndarray) -> np.ndarray:
    """What each level tells the next one."""
    return work.worth(model, images)


@dataclasses.dataclass(frozen=True)
class Images:
  """Images [n, S, S, C] by what they are for.

  Attributes:
    train: to learn from.
    held: they judge modules and the full size.
    shadow: for the last stage, in the order of the data.
    anomalies: of the classes data.anomalous; half of them for each of the two.
    labels: classes of `train`.
    names: of all classes.
    left_out: share of the files that can't be used.
  """

  train: np.ndarray
  held: np.ndarray
  shadow: np.ndarray
  anomalies: np.ndarray
  labels: np.ndarray
  names: tuple[str, ...]
  left_out: float = 0.0


def read(settings: Settings) -> Images:
  """The images that pilot.toml names.

  Raises:
    DataError: they can't be read.
  """
  d, config = settings.data, image_settings.base_config(settings)
  parts = []
  for split in d['splits']:
    source = pipeline.open_split(config, split)
    read = [source.read(i) for i in range(source.size)]
    parts.append([np.stack([np.asarray(x[k]) for x in read]) for k in (0, 1)])
  names = np.array(source.class_names)
  odd = [np.isin(names[labels], d['anomalous']) for _, labels in parts]
  train, later = (images[~o] for (images, _), o in zip(parts, odd))
  order = np.random.default_rng(0).permutation(len(later))
  first = len(later) - int(len(later) * SHADOW)
  held = np.sort(order[:first][: image_measures.JUDGED])
  shadow = np.sort(order[first:][: image_measures.JUDGED])
  left_out = 0.0
  if d['list']:
    rows = listing.read(d['list'])
    left_out = np.mean([not row.split for row in rows])
  return Images(
    train,
    later[held],
    later[shadow],
    np.concatenate([images[o] for (images, _), o in zip(parts, odd)]),
    parts[0][1][~odd[0]],
    source.class_names,
    float(left_out),
  )


@dataclasses.dataclass(frozen=True)
class ImagePilot(Pilot):
  """A pilot on images. Units are images, independent of each other."""

  KIND = 'images'
  SECTIONS = image_settings.SECTIONS
  MODELS = Models
  STAGES = {
    'data': Stage(image_stages.data),
    'module': Stage(stages.module, stages.module_fits),
    'composition': Stage(stages.composition, stages.composition_fits),
    'full': Stage(image_stages.full, image_stages.full_fits),
    'shadow': Stage(image_stages.shadow),
  }

  data: Images

  @staticmethod
  def open(settings: Settings) -> Images:
    return read(settings)

  def problems(self) -> list[str]:
    return image_settings.problems(self.settings, self.data.names)

  def wishes(self) -> list[str]:
    return image_settings.wishes(self.settings)

  @property
  def learnt(self) -> int:
    return len(self.data.train)

  @property
  def side(self) -> int:
    """S of the images as the models see them."""
    return self.settings.data['side']

  @property
  def values(self) -> int:
    """V, how many values a channel has."""
    return self.settings.data['values']

  def modules(self) -> list[tuple[int, int, int]]:
    side, patch, _ = planning.levels(self.side)
    return [(0, side, 1), (1, patch, 2)]

  def config(self, side: int, levels: int, steps: int | None) -> ConfigDict:
    """A config as configs/digits.py has it, without classes."""
    c = config_lib.default()
    m = c.model
    m.sizes = (side, 1) if levels == 2 else planning.levels(side)
    above = len(m.sizes) - 1
    m.kinds = ('ar',) * above + ('pixel',)
    if levels == 1:
      m.kinds = ('ar', 'independent', 'pixel')
    m.widths = (96, 48)[:above] + (32,)
    m.depths = (3, 2)[:above] + (1,)
    m.heads = (4, 4)[:above] + (2,)
    m.channels, m.num_values = self.data.train.shape[-1], self.values
    shades = self.data.train / (self.values - 1)
    rounded = lambda x: tuple(np.round(x, 4).tolist())
    m.mean = rounded(shades.mean((0, 1, 2)))
    m.std = rounded(np.maximum(shades.std((0, 1, 2)), 0.01))
    m.channel_weights = (1.0,) * m.channels
    m.classes, m.remat, m.unroll = 1, 'none', 3
    # As they are: simple models see no moved or mirrored copies either, and
    # drawn images are compared with real ones where those lie.
    c.data.name, c.data.flip, c.data.shift = 'npz', False, 0
    c.data.threads = 2  # images lie in memory
    most = planning.CPU_BATCH
    c.optim.batch = min(most, 2 ** int(np.log2(max(self.learnt, 2))))
    c.optim.lr = 1.2e-2 * 64 / c.optim.batch  # a peak of 3e-3
    c.optim.steps = steps or self.settings.task['steps']
    c.optim.save_every = c.eval.every = c.optim.steps
    c.eval.batch, c.sample.every = 100, 0
    return c

  def probing(self, steps: int) -> Job:
    config = self.config(self.side, 3, steps)
    return self.models.fitting(config, self.data.train)

  def blocks(self, bits: np.ndarray) -> np.ndarray:
    return bits

  def histogram(self) -> np.ndarray:
    return image_simple.histogram(self.data.train, self.data.held, self.values)

  def simple(self) -> dict[str, np.ndarray]:
    forest = image_simple.forest(self.data.train, self.data.held, self.values)
    return {'histogram': self.histogram(), 'forest': forest}

  def fitting(
    self, side: int, levels: int, steps: int, seed: int, share: float
  ) -> Job:
    order = np.random.default_rng(0).permutation(self.learnt)
    some = self.data.train[order[: int(self.learnt * share)]]
    config = self.config(side, levels, steps)
    config.seed = seed
    cut = image_measures.patches
    model, norms = yield from self.models.fitting(config, cut(some, side))
    each = image_measures.bits(model, cut(self.data.held, side))
    return model, each.reshape(len(self.data.held), -1).mean(1), norms

  def worth(self, model: api.Model) -> np.ndarray:
    return self.models.worth(model, self.data.held)

  def drawn(self, model: api.Model, number: int) -> np.ndarray:
    number = min(number, image_pictures.SHOWN)
    return model.sample(0, num=number, seed=0, guidance=1.0)

  def pictures(self, name: str, curves: Mapping) -> dict[str, bytes]:
    return image_pictures.of(self, name, curves)
