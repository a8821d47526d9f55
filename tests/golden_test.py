"""The model against numbers computed with the published PyTorch code.

Runs over every .npz and .pth in the folder named by FRACTAL_GOLDENS, and
knows of a file what is written in it: see goldens/README.md.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fractal_jax import config as config_lib
from fractal_jax import convert, sharding
from fractal_jax.models import fractal
from fractal_jax.models.types import Draws, Sampling
from fractal_jax.training import optimizer, train, train_state
from tests import tiny, xla

FOLDER = pathlib.Path(
  os.environ.get('FRACTAL_GOLDENS', '')
  or pathlib.Path(__file__).parent / 'goldens'
)
FILES = sorted(FOLDER.glob('*.npz'))
CHECKPOINTS = sorted(FOLDER.glob('*.pth'))
TRAININGS = sorted(FOLDER.glob('training/*.npz'))
IMAGE = '/image_uint8_nhwc'
NO_DRAWS = Draws(None, None)


def samples():
  """(file, name) of every generated image."""
  out = []
  for path in FILES:
    with np.load(path) as z:
      found = [k for k in z.files if k.startswith('sample/')]
    out += [
      (path, k.removesuffix(IMAGE).removeprefix('sample/'))
      for k in found
      if k.endswith(IMAGE)
    ]
  return out


def name_of(value):
  return getattr(value, 'stem', value)


class Golden:
  """One file: its numbers, and our model with its weights."""

  def __init__(self, path, kernels='xla'):
    with np.load(path) as z:
      self.numbers = {k: z[k] for k in z.files}
    self.state = self.under('state/')
    given = json.loads(str(self.numbers['config']))
    conds = given.get('num_conds', 5)
    levels = len(given['image_sizes']) - 1
    config = config_lib.default()
    config.model.update(
      sizes=tuple(given['image_sizes']),
      kinds=tuple(given['kinds']),
      widths=tuple(given['widths']),
      depths=tuple(given['depths']),
      heads=tuple(given['heads']),
      num_conds=conds if isinstance(conds, int) else tuple(conds[:levels]),
      guide=bool(given.get('guiding_pixel', False)),
      kernels=kernels,
      classes=len(self.state['class_emb.weight']),
    )
    config_lib.check(config)
    self.model = config.model
    self.levels = levels
    self.net = fractal.from_config(self.model)
    self.params = convert.from_published(self.state, self.model)
    self.images = jnp.asarray(self.numbers['images_uint8_nhwc'])
    self.labels = jnp.asarray(self.numbers['labels'])
    self.masks = self.by_level('mask/level')
    self.score = tiny.jit(jax.value_and_grad(self.loss, has_aux=True))
    self.logits = tiny.jit(
      lambda params, labels: self.net.predictive(
        params, self.images, labels, NO_DRAWS, self.masks
      )[1]
    )

  def under(self, prefix):
    return {
      k.removeprefix(prefix): v
      for k, v in self.numbers.items()
      if k.startswith(prefix)
    }

  def by_level(self, prefix):
    """One array a level above pixels, None where the file has none."""
    return [self.numbers.get(f'{prefix}{i}') for i in range(self.levels)]

  def loss(self, params, labels, weights):
    """Mean over scored pixels, each a mean of its channels by `weights`."""
    result = self.net.apply(
      {'params': params},
      self.images,
      labels,
      NO_DRAWS,
      self.masks,
      train=False,
    )
    mean = lambda scores: (scores.nats @ weights).mean()
    loss = mean(result.pixels) + sum(mean(g) for g in result.guides)
    return loss, result.pixels.nats

  @functools.cached_property
  def trained(self):
    """The training loss, nats of all pixels [N, C], and the gradient."""
    weights = jnp.asarray(self.model.channel_weights)
    (loss, nats), grads = self.score(
      self.params, self.labels, weights / weights.sum()
    )
    return loss, nats, grads


@functools.cache
def load(path):
  return Golden(path)


@pytest.fixture
def golden(path):
  return load(path)


each_file = pytest.mark.parametrize('path', FILES, ids=name_of)


def test_there_are_goldens():
  assert FILES, f'{FOLDER} (FRACTAL_GOLDENS) holds no .npz file'


@each_file
def test_weights_there_and_back(golden):
  back = convert.to_published(golden.params, golden.model)
  assert back.keys() == golden.state.keys()
  for name, value in golden.state.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


@each_file
def test_training_loss(golden):
  loss, _, _ = golden.trained
  np.testing.assert_allclose(loss, golden.numbers['train/loss'], rtol=1e-5)


@each_file
def test_gradients(golden):
  """Norms, and inner products with the parameters, tensor by tensor."""
  _, _, grads = golden.trained
  grads = convert.to_published(grads, golden.model)
  norms = golden.under('grad_norm/')
  dots = golden.under('grad_dot_param/')
  assert set() < norms.keys() | dots.keys() <= grads.keys()
  # Below these, float32 has nothing to say: a sum of products that cancel,
  # and gradients that are zero but for rounding (of a key's bias, say).
  total = np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
  wrong = []
  for name, grad in grads.items():
    grad, value = grad.astype(np.float64), golden.state[name]
    norm, dot = np.linalg.norm(grad), np.sum(grad * value)
    if name in norms and not np.isclose(
      norm, norms[name], rtol=1e-4, atol=1e-6 * total
    ):
      wrong.append(f'norm of {name}: {norm}, not {norms[name]}')
    floor = 1e-6 * np.linalg.norm(value) * max(norm, 1e-2 * total)
    if name in dots and not np.isclose(dot, dots[name], rtol=1e-4, atol=floor):
      wrong.append(f'product with {name}: {dot}, not {dots[name]}')
  assert not wrong, '\n'.join(wrong)


@each_file
def test_evaluation_loss(golden):
  """Unconditional, every channel counting the same."""
  none = jnp.full_like(golden.labels, -1)
  (loss, _), _ = golden.score(golden.params, none, jnp.full(3, 1 / 3))
  want = golden.numbers['eval/loss_nats_unconditional']
  np.testing.assert_allclose(loss, want, rtol=1e-5)


@each_file
@pytest.mark.parametrize('when', ['train', 'eval'])
def test_logits(golden, when):
  """Of the first pixels, in the order in which they reach the pixel level."""
  want = golden.numbers.get(f'{when}/pixel_logits')
  if want is None:
    pytest.skip(f'the file has no {when}/pixel_logits')
  none = jnp.full_like(golden.labels, -1)
  labels = golden.labels if when == 'train' else none
  logits = golden.logits(golden.params, labels)
  np.testing.assert_allclose(logits[: len(want)], want, rtol=1e-4, atol=1e-4)


@each_file
def test_targets(golden):
  """Every pixel reaches the pixel level where the published model has it."""
  targets = golden.numbers.get('train/pixel_targets')
  if targets is None:
    pytest.skip('the file has no train/pixel_targets')
  _, nats, _ = golden.trained
  logits = golden.logits(golden.params, golden.labels)
  log_p = jax.nn.log_softmax(logits)
  want = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(nats, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('path, name', samples(), ids=name_of)
def test_greedy_images(golden, name):
  """Generated without randomness, the images are identical."""
  want = golden.numbers[f'sample/{name}{IMAGE}']
  settings = golden.numbers[f'sample/{name}/settings'].tolist()
  guidance, linear, temperature, threshold, *iterations = settings
  if len(iterations) == 1:  # the same of every level
    iterations *= golden.levels
  sampling = Sampling(
    guidance=guidance,
    temperature=1 / temperature,  # the published one multiplies
    filter_threshold=threshold,
    schedule='linear' if linear else 'constant',
    iterations=tuple(map(int, iterations)),
    greedy=True,
  )
  orders = golden.by_level('sample/order/level')
  generate = tiny.jit(
    lambda params, labels, keys: golden.net.generate(
      params, labels, keys, sampling, guided=guidance != 1, orders=orders
    )
  )
  drawn = generate(golden.params, golden.labels, tiny.keys(len(golden.labels)))
  np.testing.assert_array_equal(drawn.values, want)


@pytest.mark.parametrize('path', TRAININGS, ids=name_of)
def test_training_is_that_of_the_published_code(path):
  """Its losses, step by step, from its weights and on its batches."""
  with np.load(path) as z:
    numbers = {k: z[k] for k in z.files}
  given = json.loads(str(numbers['config']))
  c = config_lib.default()
  same = ('widths', 'depths', 'heads', 'classes', 'dropout', 'label_dropout')
  c.model.update(
    sizes=tuple(given['sizes']),
    kinds=tuple(given['kinds']),
    channel_weights=tuple(given['channel_weights']),
    remat='none',
    **{k: tuple(v) if isinstance(v := given[k], list) else v for k in same},
  )
  c.optim.update({k: given[k] for k in ('b1', 'b2', 'clip', 'weight_decay')})
  c.optim.update(
    batch=given['batch'],
    steps=given['total_steps'],
    warmup=given['warmup_steps'] / given['total_steps'],
    lr=given['lr_peak'] * 256 / given['batch'],
  )
  config_lib.check(c)
  net = fractal.from_config(c.model)
  mesh = sharding.single_device_mesh()
  tx = optimizer.create(c, c.optim.steps)
  prefix = 'weights/'
  weights = {
    k.removeprefix(prefix): v
    for k, v in numbers.items()
    if k.startswith(prefix)
  }
  state = train_state.create(net, tx, c, mesh=mesh)
  state = state.replace(
    params=jax.device_put(
      convert.from_published(weights, c.model),
      train_state.param_shardings(net, mesh=mesh),
    )
  )
  images, labels = numbers['images'], numbers['labels']
  batches = [
    sharding.place({'image': images[order], 'label': labels[order]}, mesh)
    for order in numbers['order']
  ]
  with jax.set_mesh(mesh):
    step = train.jitted_step(net, tx, state, c, mesh=mesh)
    step = step.lower(state, batches[0]).compile(xla.OPTIMISED)
  losses = []
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert len(losses) == 45 and losses[-1] < 0.9 * losses[0]
  np.testing.assert_allclose(losses, numbers['losses'], rtol=1e-5)


@pytest.mark.parametrize('path', CHECKPOINTS, ids=name_of)
def test_checkpoint(path):
  """A file in the layout of the published checkpoints."""
  pytest.importorskip('torch')
  state = convert.read_pth(str(path))
  twin = path.with_suffix('.npz')
  assert twin in FILES, f'{path.name} has no {twin.name} to compare it with'
  want = load(twin).state
  assert state.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(state[name], value, err_msg=name)
