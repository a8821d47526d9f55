"""Likelihoods: bits per dimension of a split, and of images at hand.

Levels that send all patches down give the exact likelihood. For masked levels
the model is any-order, and its likelihood is the mean over orders, estimated
from one random mask per sequence and pass: with n masked patches uniform on
1 .. L, the masked patches' nats times L / n have the right mean (section 4.2 of
the paper, and docs/model.md). Guiding pixels are functions of the pixels, so
with them the sum of pixel and guide nats is an upper bound: it is called one
wherever it is shown. With model.colour='ycbcr' the bits are those of the
rounded colours, fewer than the image has: that is no likelihood of it, and said
to be none.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools

from clu import metrics as clu_metrics
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax import cpu, sharding
from fractal_jax.averages import Averages
from fractal_jax.inference import inputs
from fractal_jax.inference.progress import Job, Progress
from fractal_jax.models import fractal, masking
from fractal_jax.models.types import Draws


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Bits per dimension, over the images of a split."""

  bits_per_dim: float  # with guiding pixels: an upper bound
  stderr: float  # of bits_per_dim: over images, Monte-Carlo noise included
  mc_stderr: float  # the Monte-Carlo noise alone; 0 if exact, nan if 1 pass
  published_bits_per_dim: float  # mean over scored values, + mean guide nats
  images: int
  passes: int
  exact: bool  # no Monte-Carlo estimate: see Fractal.exact
  bound: bool  # an upper bound, since there are guiding pixels
  rounded: bool  # of colours that several values of the data share
  dropped: int  # masked patches that did not fit their buffers

  def __str__(self):
    kind = 'exact' if self.exact else f'{self.passes} passes'
    if self.bound:
      kind += ', upper bound'
    if self.rounded:
      kind += ', of rounded colours'
    error = f' ± {self.stderr:.4f}' if self.images > 1 else ''
    number = f'{self.images} image' + 's' * (self.images != 1)
    return f'{self.bits_per_dim:.4f}{error} ({number}, {kind})'


@struct.dataclass
class Masks:
  """Which random masks a batch is scored under; levels without take none."""

  key: jax.Array  # typed key: an image's masks follow from it and its index
  first: int  # images before the batch: its place among the strata
  number: int  # of the pass
  offset: float  # of the pass, in [0, 1): moves the strata of mask ratios


def evaluate(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  split: str | None = None,
  *,
  mesh: Mesh | None = None,
  batch: int | None = None,
  num: int | None = None,
  passes: int | None = None,
  conditional: bool = False,
  progress: Callable[[Iterable], Iterable] = lambda batches: batches,
) -> Likelihood:
  """Bits per dimension of a split, on any mesh and number of hosts.

  Args:
    net, params: the model.
    config: `eval` has the defaults of what is not given here.
    split: name of the split; config.data.val_split where None.
    mesh: the mesh; that of the config where None.
    batch: images at a time, rounded up to what the mesh divides; no more than
      there are.
    num: images; 0 for the whole split.
    passes: Monte-Carlo passes; exact models need just one.
    conditional: give the labels; else "no class", as published.
    progress: wraps the iterable of batches, say tqdm.

  Returns:
    A Likelihood.
  """
  from fractal_jax.data import pipeline  # the model itself needs no data set

  mesh = sharding.make_mesh(config) if mesh is None else mesh
  split = split or config.data.val_split
  batch = sharding.padded_batch(batch or config.eval.batch, mesh)
  num = config.eval.num if num is None else num
  passes = 1 if net.exact else passes or config.eval.passes
  host, hosts = sharding.host_rows(mesh)
  batches = pipeline.eval_batches(
    config,
    split,
    batch,
    process_index=host,
    process_count=hosts,
    num=num,
    parts=sharding.batch_devices(mesh),
  )
  key = jax.random.key(config.seed)
  nats = []  # [images, passes] of each batch
  means, dropped = Averages(), 0
  for n, rows in enumerate(progress(batches)):
    if not conditional:
      rows = {**rows, 'label': np.full_like(rows['label'], -1, np.int32)}
    of_batch = []
    for out in _scored(net, params, rows, key, n * batch, passes, mesh=mesh):
      seen = out['valid'].astype(bool)
      of_batch.append(out['nats'][seen].astype(np.float64))
      means.add(_averages(out, seen))
      dropped += int(out['dropped'])
    nats.append(np.stack(of_batch, 1))
  return summarise(net, np.concatenate(nats), means.take(), dropped)


def summarise(
  net: fractal.Fractal,
  nats: np.ndarray,
  means: dict[str, float],
  dropped: int,
) -> Likelihood:
  """The Likelihood of scored images.

  Args:
    nats: [images, passes], estimates of each image's nats.
    means: nats of a scored pixel, and of each level's guiding one, unweighted.
    dropped: masked patches that did not fit their buffers.
  """
  top = net.specs[0]
  n, passes = nats.shape
  bits = nats / (top.channels * top.side**top.rank * np.log(2))
  each = bits.mean(1)
  published = sum(means.values()) / top.channels / np.log(2)
  noise = 0.0 if net.exact else np.nan
  if passes > 1:
    noise = np.sqrt(bits.var(1, ddof=1).mean() / passes / n)
  return Likelihood(
    bits_per_dim=float(each.mean()),
    stderr=float(each.std(ddof=1) / np.sqrt(n)) if n > 1 else float('nan'),
    mc_stderr=float(noise),
    published_bits_per_dim=float(published),
    images=n,
    passes=passes,
    exact=net.exact,
    bound=any(s.guide for s in net.specs),
    rounded=net.colour.lossy,
    dropped=dropped,
  )


def log_prob(
  net: fractal.Fractal,
  params: dict,
  config: ConfigDict,
  images: ArrayLike,
  labels: ArrayLike | None = None,
  *,
  mesh: Mesh | None = None,
  passes: int | None = None,
  seed: int = 0,
  batch: int | None = None,
  first: int = 0,
) -> Job:
  """The job of `api.Model.log_prob`, whose arguments and errors these are.

  Args:
    net, params, config, images, labels, mesh, passes, seed, batch: of it.
    first: the number of the first image: the masks of an image follow from its
      number.

  Yields:
    Progress after each pass over a batch.
  """
  inputs.check_counts(passes=passes, batch=batch)
  inputs.check_seed(seed)
  images = inputs.check_images(images, config.model)
  labels = inputs.labels_of(labels, len(images), config.model)
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  passes = 1 if net.exact else passes or config.eval.passes
  batch = min(batch or config.eval.batch, len(images))
  batch = sharding.padded_batch(batch, mesh)
  host, hosts = sharding.host_rows(mesh)
  mine = slice(host * batch // hosts, (host + 1) * batch // hosts)
  key = jax.random.key(seed)
  nats = np.zeros((len(images), passes))
  starts = range(0, len(images), batch)
  for n, start in enumerate(starts):
    index = np.arange(start, start + batch)[mine]
    at = np.minimum(index, len(images) - 1)
    rows = {
      'image': images[at],
      'label': labels[at],
      'index': first + index,
      'valid': index < len(images),
    }
    outs = _scored(net, params, rows, key, first + start, passes, mesh=mesh)
    for i, out in enumerate(outs):
      nats[start : start + batch, i] = out['nats'][: len(images) - start]
      yield Progress('scoring', n * passes + i + 1, len(starts) * passes)
  return -nats.mean(1)


def _averages(out: dict, seen: np.ndarray) -> dict[str, clu_metrics.Average]:
  """Nats of a pixel and of each guide, over the images [B] that are seen."""
  found = {'pixels': out['pixels']}
  found |= {f'guide_{i}': x for i, x in enumerate(out['guides'])}
  return {
    name: clu_metrics.Average(
      nats[seen].sum(dtype=np.float64), rows[seen].sum()
    )
    for name, (nats, rows) in found.items()
  }


def _scored(
  net, params, rows: dict, key, first: int, passes: int, *, mesh: Mesh
) -> Iterator[dict]:
  """`score_batch` of a batch in each pass, as NumPy arrays.

  Args:
    net, params, mesh: of the model.
    rows: this host's rows of the batch.
    key, first: see Masks.
    passes: how many.
  """
  rows = {k: np.asarray(v).astype(np.int32) for k, v in rows.items()}
  placed, groups = sharding.place(rows, mesh), sharding.batch_devices(mesh)
  for i in range(passes):
    masks = Masks(key, first=first, number=i, offset=i / passes)
    with jax.set_mesh(mesh):
      out = jax.device_get(scorer()(net, params, placed, masks, groups))
    yield out


@functools.cache
def scorer() -> Callable:
  """`score_batch`, compiled. Made when first used: its options are of JAX's
  backend."""
  options = cpu.forward_options()
  return jax.jit(score_batch, static_argnums=(0, 4), compiler_options=options)


def score_batch(
  net: fractal.Fractal, params: dict, batch: dict, masks: Masks, groups: int
) -> dict:
  """Nats of the images of a batch under random masks; traced under a mesh.

  Args:
    net, params: the model.
    batch: `image` [B, S, (S,) C], `label` [B] (-1: no class), `index` [B], and
      `valid` [B], 0 where a row only fills the batch up.
    masks: the random masks.
    groups: of images that are compacted together, which never cross devices.

  Returns:
    `nats` [B] of each image; `pixels` and, of each guide, `guides`: (nats,
    rows), [B] each, unweighted; `dropped`; `valid`. All on every host.
  """
  image_keys = jax.vmap(
    lambda i: jax.random.fold_in(jax.random.fold_in(masks.key, i), masks.number)
  )(batch['index'])
  # Images in a row fill the strata evenly, and so do the passes of one image.
  shift = jax.random.bits(masks.key, (), jnp.uint32)
  places = masks.first + jnp.arange(len(batch['label']))
  ratio = (masking.strata(shift, places) + masks.offset) % 1.0
  draws = Draws(image_keys, ratio, law='uniform')

  def split(x):
    return x.reshape((groups, -1) + x.shape[1:])

  score = jax.vmap(
    functools.partial(_score_images, net, params), spmd_axis_name=sharding.BATCH
  )
  args = batch['image'], batch['label'], draws
  scores = score(*jax.tree.map(split, args))
  dropped = scores.pop('dropped').sum()
  out = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), scores)
  out |= {'dropped': dropped, 'valid': batch['valid']}
  # Every host sees the result whole.
  return jax.lax.with_sharding_constraint(out, jax.P())


def _score_images(net, params: dict, images, labels, draws):
  """Per image: total nats [B]; unweighted (nats, rows) of pixels, guides."""
  result = net.score(params, images, labels, draws, train=False)
  total = functools.partial(jax.ops.segment_sum, num_segments=len(images))

  def per_image(scores):
    scored = scores.weight > 0
    nats = jnp.where(scored, scores.nats.sum(-1), 0)
    return total(nats, scores.image), total(scored * 1.0, scores.image)

  nats = sum(
    total(s.nats.sum(-1) * s.weight, s.image)
    for s in (result.pixels, *result.guides)
  )
  return {
    'nats': nats,
    'pixels': per_image(result.pixels),
    'guides': [per_image(g) for g in result.guides],
    'dropped': result.dropped,
  }
