"""Random keys: elementwise, and no two draws share one."""

import jax
import jax.numpy as jnp
import numpy as np

from fractal_jax.models.keys import Salt, fold_in


def test_fold_in_is_elementwise_and_broadcasts():
  keys = jax.random.split(jax.random.key(0), 3)
  data = jnp.array([[5], [6]])
  found = jax.random.key_data(fold_in(keys, data))
  assert found.shape[:2] == (2, 3)
  for i, salt in enumerate((5, 6)):
    for j in range(3):
      one = jax.random.key_data(jax.random.fold_in(keys[j], salt))
      np.testing.assert_array_equal(found[i, j], one)


def test_salts_are_unique_with_room_between_them():
  """Two of them are counted on from: by squares, and by levels."""
  values = sorted(Salt)
  assert len(set(values)) == len(Salt.__members__) == 6
  squares = 256**2  # of the largest published images
  assert Salt.GUIDE_NOISE + squares < Salt.OVERFLOW
  assert Salt.OVERFLOW + 100 < Salt.LABEL
  assert squares < min(values)  # nor reached by what is counted itself
