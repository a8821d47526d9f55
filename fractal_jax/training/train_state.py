"""What training changes: parameters, optimizer state. Created sharded."""

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
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
    opt_state: the optimizer's state, of the trained levels only.
    guard: what decides whether an update is applied.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  guard: optimizer.Guard = struct.field(default_factory=optimizer.Guard.new)


def param_shapes(net: fractal.Fractal) -> dict:
  """Shapes of the parameters by level: a tree of ShapeDtypeStruct."""
  return sharding.unbox(fractal.boxed_params(net))


def param_shardings(net: fractal.Fractal, *, mesh: Mesh) -> dict:
  """Where each parameter lies: a tree of NamedSharding."""
  return sharding.param_shardings(fractal.boxed_params(net), mesh)


def abstract_params(net: fractal.Fractal, *, mesh: Mesh) -> dict:
  """The parameters' shapes, types and shardings: a tree of ShapeDtypeStruct."""
  where = param_shardings(net, mesh=mesh)
  return sharding.shaped(param_shapes(net), where)


def abstract(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  config: ConfigDict,
  *,
  mesh: Mesh,
) -> TrainState:
  """The state's shapes, types and shardings: a tree of ShapeDtypeStruct."""
  new = lambda params: _new(params, tx, config)
  shapes = jax.eval_shape(new, param_shapes(net))
  params, whole = param_shardings(net, mesh=mesh), sharding.replicated(mesh)
  trained, _ = optimizer.split(params, config)
  where = TrainState(
    step=whole,
    params=params,
    # Each moment lies where its parameter does. Muon has none of some.
    opt_state=optax.tree_map_params(
      tx,
      lambda moment, sharding: moment if _is_masked(moment) else sharding,
      shapes.opt_state,
      trained,
      transform_non_params=lambda _: whole,
      is_leaf=_is_masked,
    ),
    guard=jax.tree.map(lambda _: whole, shapes.guard),
  )
  return sharding.shaped(shapes, where)


def _is_masked(x) -> bool:
  return isinstance(x, optax.MaskedNode)


def create(
  net: fractal.Fractal,
  tx: optax.GradientTransformation,
  config: ConfigDict,
  *,
  mesh: Mesh,
) -> TrainState:
  """A new state, from config.seed. No device ever holds more than its part."""
  like = abstract(net, tx, config, mesh=mesh)
  where = jax.tree.map(lambda x: x.sharding, like)

  def init():
    key = jax.random.key(config.seed)
    return _new(sharding.unbox(fractal.init(net, key)), tx, config)

  with jax.set_mesh(mesh):
    return jax.jit(init, out_shardings=where)()


def _new(params: dict, tx, config: ConfigDict) -> TrainState:
  trained, _ = optimizer.split(params, config)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained))
