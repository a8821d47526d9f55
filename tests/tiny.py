"""Tiny models for the tests, and a jit that compiles quickly."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.models import fractal, rules
from fractal_jax.training import train_state
from tests import xla


def jit(f, **kwargs):
  return jax.jit(f, compiler_options=xla.QUICK, **kwargs)


def config(kinds=('ar', 'pixel'), sizes=(2, 1), **changes):
  """A config of a small model: one channel, 5 values, no dropout."""
  levels, channels = len(sizes), changes.get('channels', 1)
  c = config_lib.default()
  c.model.update(
    sizes=sizes,
    kinds=kinds,
    widths=(16,) * levels,
    depths=(2,) + (1,) * (levels - 1),
    heads=(2,) * levels,
    num_values=5,
    channels=channels,
    mean=(0.5,) * channels,
    std=(0.4,) * channels,
    channel_weights=(1.0,) * channels,
    classes=3,
    dropout=0.0,
    label_dropout=0.0,
  )
  c.model.update(changes)
  assert not rules.problems(c.model), rules.problems(c.model)
  return c


def model(*args, **changes):
  """The section `model` of `config`."""
  return config(*args, **changes).model


def init(net, key=None):
  """Initial parameters with their logical axes."""
  return fractal.init(net, jax.random.key(0) if key is None else key)


def build(kinds=('ar', 'pixel'), sizes=(2, 1), seed=0, spread=0.3, **changes):
  """A model and parameters that are random everywhere, biases included."""
  net = fractal.from_config(model(kinds, sizes, **changes))
  shapes = nn.meta.unbox(jax.eval_shape(lambda: init(net)))
  rng = np.random.default_rng(seed)

  def leaf(path, x):
    scale = path[-1].key == 'scale'
    value = scale + spread * rng.standard_normal(x.shape)
    return jnp.asarray(value, jnp.float32)

  return net, jax.tree_util.tree_map_with_path(leaf, shapes)


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
QKV = P(None, 'fsdp', None, 'tensor')  # of a stack's qkv, on any mesh


def on_mesh(net, params, axes):
  """A mesh of (data, fsdp, tensor), and the parameters where they lie there."""
  c = config_lib.default()
  c.mesh.update(dict(zip(sharding.AXES, axes)))
  mesh = sharding.make_mesh(c)
  return mesh, jax.device_put(
    params, train_state.param_shardings(net, mesh=mesh)
  )


def keys(n, seed=1):
  return jax.random.split(jax.random.key(seed), n)


def images(net, n, seed=2):
  """Random images [n, S, (S,) C]."""
  s = net.specs[0]
  shape = (n,) + (s.side,) * s.rank + (s.channels,)
  return np.random.default_rng(seed).integers(0, s.values, shape, np.int32)


def all_images(net):
  """Every image there is: [V^(S^rank C), S, (S,) C]."""
  s = net.specs[0]
  shape = (s.side,) * s.rank + (s.channels,)
  n = s.side**s.rank * s.channels
  codes = np.arange(s.values**n)[:, None] // s.values ** np.arange(n)
  return (codes % s.values).reshape((-1,) + shape)
