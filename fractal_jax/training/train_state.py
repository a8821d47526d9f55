"""What training changes: parameters, optimizer state. Created sharded."""

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from fractal_jax import sharding
from fractal_jax.models import fractal
from fractal_jax.training import optimizer


@struct.dataclass
class TrainState:
  """The state of training.

  Attributes:
    step: int32 scalar, steps done.
    params: parameters by level, without their logical axes.
    opt_state: of the trained levels only.
    guard: what it takes to skip bad updates.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  guard: optimizer.Guard = struct.field(default_factory=optimizer.Guard.new)


def boxed_params(net: fractal.Fractal):
  """Shapes of the parameters, with their logical axes; computes nothing."""
  return jax.eval_shape(lambda: fractal.init(net, jax.random.key(0)))


def param_shardings(net: fractal.Fractal, mesh: Mesh):
  """Where each parameter lies: a tree of NamedSharding."""
  return sharding.param_shardings(boxed_params(net), mesh)


def abstract(config, net, tx, mesh: Mesh) -> TrainState:
  """The state's shapes, types and shardings: a tree of ShapeDtypeStruct."""
  init = lambda: _init(config, net, tx)
  shapes = jax.eval_shape(init)
  params = param_shardings(net, mesh)
  where = TrainState(
    step=sharding.replicated(mesh),
    params=params,
    opt_state=_like_params(shapes.opt_state, params, mesh),
    guard=jax.tree.map(lambda _: sharding.replicated(mesh), shapes.guard),
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    where,
  )


def create(config, net, tx, mesh: Mesh) -> TrainState:
  """A new state, from config.seed. No device ever holds more than its part."""
  where = jax.tree.map(lambda x: x.sharding, abstract(config, net, tx, mesh))
  init = jax.jit(lambda: _init(config, net, tx), out_shardings=where)
  with jax.set_mesh(mesh):
    return init()


def _init(config, net, tx) -> TrainState:
  params = sharding.unbox(fractal.init(net, jax.random.key(config.seed)))
  trained, _ = optimizer.split(config, params)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained))


def _like_params(opt_state, where: dict, mesh: Mesh):
  """Shardings of optimizer state: each moment lies where its parameter does.

  A leaf belongs to a parameter when its path ends in the parameter's.
  """

  def keys(path):
    return tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey))

  leaves = jax.tree_util.tree_leaves_with_path(where)
  by_path = {keys(path): leaf for path, leaf in leaves}
  return jax.tree_util.tree_map_with_path(
    lambda path, _: by_path.get(keys(path), sharding.replicated(mesh)),
    opt_state,
  )
