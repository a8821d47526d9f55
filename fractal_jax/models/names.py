"""What the names of parameters mean: which level they are of, what decays.

Parameters are a tree with one subtree per level, `level_0`, `level_1`, ...,
and one for the class embedding, `labels`. Who freezes, copies or decays
parameters asks here.
"""


def of_level(level: int) -> tuple[str, ...]:
  """Subtrees of a level: the class embedding belongs to level 0."""
  return ('labels', 'level_0') if level == 0 else (f'level_{level}',)


def decays(path: tuple[str, ...]) -> bool:
  """Whether weight decay acts on a parameter: not on biases and norms' scales.

  Told by the name, since a scanned stack gives its biases a second dimension.

  Args:
    path: the names on the way to the parameter, its own last.
  """
  name = path[-1]
  return name not in ('bias', 'scale') and not name.endswith('_bias')


def in_block(path: tuple[str, ...]) -> bool:
  """Whether a parameter is a matrix of a transformer's block, one per layer.

  Args:
    path: the names on the way to the parameter, its own last.
  """
  return 'blocks' in path[:-1] and decays(path)
