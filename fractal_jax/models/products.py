"""Products of activations with weights that are split over the devices.

A weight lies split over the mesh axis `fsdp` and is gathered where it is used.
Differentiated as it stands, the gathered weight would be kept until the
backward pass, of every layer at once; `product` keeps the split one, and
gathers it again. Axis letters: types.py.
"""

from collections.abc import Callable
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from fractal_jax import cpu, sharding
from fractal_jax.models.types import Array


def product(x: Array, w: Array, axes: tuple) -> Array:
  """x [..., D] times w [D, F ...] of logical axes `axes`: [..., F ...].

  The result is one of those that remat='dots' keeps.
  """
  return checkpoint_name(_product(x, w, axes), 'linear')


def dot_general(axes: tuple) -> Callable:
  """`product` as the `dot_general` of an nn.Dense with kernel axes `axes`.

  It contracts the last axis of x with the kernel's first, as nn.Dense does.
  """
  return lambda x, w, *_, **__: product(x, w, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, w: Array, axes: tuple) -> Array:
  return jnp.tensordot(x, sharding.gathered(w, *axes), 1)


def _backward(
  axes: tuple, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
  x, w = saved
  outputs = tuple(range(1 - w.ndim, 0))
  gathered = sharding.gathered(w, *axes)
  by_x = jnp.tensordot(g, gathered, (outputs, tuple(range(1, w.ndim))))
  return by_x, cpu.weight_gradient(x, g)


_product.defvjp(lambda x, w, axes: (_product(x, w, axes), (x, w)), _backward)
