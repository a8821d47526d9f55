"""Bits per dimension of a split.

Autoregressive levels give the exact likelihood. For masked levels the model is
any-order, and its likelihood is the mean over orders, estimated from one random
mask a sequence and pass: with n masked patches uniform on 1 .. L, the masked
patches' nats times L / n have the right mean (section 4.2 of the paper, and
model.md). Guiding pixels are functions of the pixels, so with them the sum of
pixel and guide nats is an upper bound: it is called one wherever it is shown.
With model.colour='ycbcr' the bits are those of the rounded colours, fewer than
the image has: no likelihood of it, and said to be none.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax import cpu, sharding
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
  exact: bool
  bound: bool
  rounded: bool  # of colours that several values of the data share
  dropped: int  # masked patches that did not fit their buffers

  def __str__(self):
    kind = 'exact' if self.exact else f'{self.passes} passes'
    if self.bound:
      kind += ', upper bound'
    if self.rounded:
      kind += ', of rounded colours'
    return (
      f'{self.bits_per_dim:.4f} ± {self.stderr:.4f} ({self.images} images, '
      f'{kind})'
    )


def evaluate(
  net: fractal.Fractal,
  params,
  config,
  split: str | None = None,
  *,
  mesh=None,
  batch: int | None = None,
  num: int | None = None,
  passes: int | None = None,
  conditional: bool = False,
  progress=lambda batches: batches,
) -> Likelihood:
  """Bits per dimension of a split, on any mesh and number of hosts.

  Args:
    net: the model.
    params: its parameters.
    config: the config; `eval` has the defaults of what is not given here.
    split: name of the split; config.data.val_split where None.
    mesh: the mesh; that of the config where None.
    batch: images at a time, rounded up to what the mesh divides.
    num: images; 0 for the whole split.
    passes: Monte-Carlo passes; models of ar levels alone need just one.
    conditional: give the labels; else "no class", as published.
    progress: wraps the iterable of batches, say tqdm.

  Returns:
    A Likelihood.
  """
  from fractal_jax.data import (
    pipeline,  # the model and its metrics need no data set
  )

  mesh = sharding.make_mesh(config) if mesh is None else mesh
  split = config.data.val_split if split is None else split
  batch = config.eval.batch if batch is None else batch
  num = config.eval.num if num is None else num
  passes = config.eval.passes if passes is None else passes
  if all(s.kind != 'mar' for s in net.specs):
    passes = 1
  parts = sharding.batch_devices(mesh)
  batch = -(-batch // parts) * parts
  host, hosts = sharding.host_rows(mesh)
  batches = pipeline.eval_batches(
    config, split, batch, process_index=host, process_count=hosts, num=num
  )
  key = jax.random.key(config.seed)

  nats, rows_nats, guide_nats, dropped = [], 0.0, 0.0, 0
  with jax.set_mesh(mesh):
    for n, host_batch in enumerate(progress(batches)):
      placed = sharding.place(
        {k: host_batch[k].astype(np.int32) for k in host_batch}, mesh
      )
      labels = (
        placed['label'] if conditional else -jnp.ones_like(placed['label'])
      )
      for i in range(passes):
        out = jax.device_get(
          scorer()(net, parts, params, key, placed, labels, n, i, i / passes)
        )
        seen = out['valid'].astype(bool)
        if not i:
          nats.append(np.zeros((seen.sum(), passes)))
        nats[-1][:, i] = out['nats'][seen].astype(np.float64)
        rows_nats += _sums(out['pixels'], seen)
        guide_nats += np.array([_sums(g, seen) for g in out['guides']])
        dropped += int(out['dropped'])

  spec = net.specs[0]
  values = spec.channels * spec.side**spec.rank
  bits = np.concatenate(nats) / values / np.log(2)  # [images, passes]
  each = bits.mean(1)
  n = len(each)
  mean_of = lambda sums: sums[0] / sums[1] / spec.channels / np.log(2)
  published = mean_of(rows_nats) + sum(mean_of(g) for g in guide_nats)
  exact = all(s.kind != 'mar' for s in net.specs)
  noise = 0.0 if exact else np.nan
  if passes > 1:
    noise = np.sqrt(bits.var(1, ddof=1).mean() / passes / n)
  return Likelihood(
    bits_per_dim=float(each.mean()),
    stderr=float(each.std(ddof=1) / np.sqrt(n)) if n > 1 else float('nan'),
    mc_stderr=float(noise),
    published_bits_per_dim=float(published),
    images=n,
    passes=passes,
    exact=exact,
    bound=any(s.guide for s in net.specs),
    rounded=net.colour.lossy,
    dropped=dropped,
  )


def image_nats(
  net: fractal.Fractal,
  params,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  mesh=None,
  batch: int = 64,
  passes: int = 1,
  seed: int = 0,
  progress=lambda steps: steps,
) -> np.ndarray:
  """Negative log-likelihoods of images at hand.

  Args:
    net: the model.
    params: its parameters.
    images: [n, S, (S,) C], the same on every host.
    labels: [n] classes, -1 for "no class".
    mesh: the mesh; one of the first device where None.
    batch: images at a time, rounded up to what the mesh divides.
    passes: random masks an image; models of ar levels alone need just one.
    seed: of the masks.
    progress: wraps the list of (first image of a batch, pass).

  Returns:
    Nats [n, passes], float64: with masked levels, estimates each.
  """
  mesh = sharding.single_device_mesh() if mesh is None else mesh
  if all(s.kind != 'mar' for s in net.specs):
    passes = 1
  parts = sharding.batch_devices(mesh)
  batch = -(-min(batch, len(images)) // parts) * parts
  host, hosts = sharding.host_rows(mesh)
  mine = slice(host * batch // hosts, (host + 1) * batch // hosts)
  key = jax.random.key(seed)
  out = np.zeros((len(images), passes))
  starts = range(0, len(images), batch)
  steps = [(start, i) for start in starts for i in range(passes)]
  with jax.set_mesh(mesh):
    for start, i in progress(steps):
      index = np.arange(start, start + batch)
      at = np.minimum(index, len(images) - 1)
      rows = {
        'image': images[at],
        'label': labels[at],
        'index': index,
        'valid': index < len(images),
      }
      placed = sharding.place(
        {k: np.asarray(v[mine], np.int32) for k, v in rows.items()}, mesh
      )
      found = scorer()(
        *(net, parts, params, key, placed, placed['label']),
        *(start // batch, i, i / passes),
      )
      nats = jax.device_get(found['nats'])
      out[start : start + batch, i] = nats[: len(images) - start]
  return out


def _sums(per_image, seen):
  """Nats and number of scored rows, over the images that count."""
  nats, rows = per_image
  return np.array([nats[seen].sum(dtype=np.float64), rows[seen].sum()])


@functools.cache
def scorer():
  """`score_batch`, compiled. Made when first used: its options are of JAX's
  backend."""
  options = cpu.forward_options()
  return jax.jit(score_batch, static_argnums=(0, 1), compiler_options=options)


def score_batch(net, parts, params, key, batch, labels, n, i, offset):
  """Nats of each image of batch n in pass i; masks compacted by device."""
  image_keys = jax.vmap(
    lambda index: jax.random.fold_in(jax.random.fold_in(key, index), i)
  )(batch['index'])
  # Images in a row fill the strata evenly, and so do the passes of one image.
  shift = jax.random.bits(key, (), jnp.uint32)
  places = n * len(labels) + jnp.arange(len(labels))
  ratio = (masking.strata(shift, places) + offset) % 1.0
  draws = Draws(image_keys, ratio, law='uniform')

  def split(x):
    return x.reshape((parts, -1) + x.shape[1:])

  score = jax.vmap(
    functools.partial(_score_images, net, params),
    spmd_axis_name=sharding.BATCH,
  )
  args = batch['image'], labels, draws
  scores = score(*jax.tree.map(split, args))
  dropped = scores.pop('dropped').sum()
  out = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), scores)
  out |= {'dropped': dropped, 'valid': batch['valid']}
  # Every host sees the result whole.
  return jax.lax.with_sharding_constraint(out, jax.P())


def _score_images(net, params, images, labels, draws):
  """Per image: total nats [B]; unweighted (nats, rows) of pixels, guides."""
  result = net.apply(
    {'params': net.whole(params)}, images, labels, draws, train=False
  )
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
