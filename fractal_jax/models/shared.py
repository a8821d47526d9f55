"""Levels that use the blocks of another: self-similarity taken literally.

With `model.share` a level's transformer has the very parameters of an earlier
level's; embeddings, norms and tables remain its own. What is trained and saved
holds such blocks once, at their owner, so that gradients add up there and
nothing can come apart; `expand` puts them in place where a level is applied.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from fractal_jax.models.types import Spec


def owners(model: ConfigDict) -> tuple[int, ...]:
  """The level whose blocks each level uses, in a config's section `model`."""
  return tuple(model.share) or tuple(range(len(model.sizes)))


def expand(params: dict, specs: tuple[Spec, ...]) -> dict:
  """Parameters by level, every level with its blocks."""
  out = dict(params)
  for s in specs:
    if s.shares != s.index:
      blocks = params[f'level_{s.shares}']['blocks']
      out[f'level_{s.index}'] = out[f'level_{s.index}'] | {'blocks': blocks}
  return out


def collapse(params: dict, specs: tuple[Spec, ...]) -> dict:
  """The inverse of `expand`: blocks at their owners alone."""
  out = dict(params)
  for s in specs:
    if s.shares != s.index:
      level = out[f'level_{s.index}']
      out[f'level_{s.index}'] = {k: level[k] for k in level if k != 'blocks'}
  return out


def problems(model: ConfigDict, blocks: list[type]) -> list[str]:
  """Every rule that model.share breaks; blocks: each level's kind of block."""
  share, levels = tuple(model.share), len(model.sizes)
  if share and len(share) != levels:
    return [
      f'model.share={share} must be () or name a level for each of the '
      f'{levels}: its own, or an earlier one whose blocks it uses'
    ]
  out = []
  for i, j in enumerate(share):
    if j == i:
      continue
    if not 0 <= j < i or share[j] != j:
      out.append(
        f'model.share[{i}]={j} must be {i}, or an earlier level that has '
        'blocks of its own'
      )
      continue
    if blocks[i] != blocks[j]:
      out.append(
        f"model.share[{i}]={j}, but '{model.kinds[i]}' and '{model.kinds[j]}' "
        'have different blocks: share between ar levels, or between mar and '
        'pixel levels'
      )
    for name in ('widths', 'depths', 'heads'):
      mine, theirs = model[name][i], model[name][j]
      if mine != theirs:
        out.append(
          f'model.share[{i}]={j} needs equal model.{name}: {mine} and {theirs}'
        )
    if not model.depths[i]:
      out.append(f'model.share[{i}]={j}, but level {i} has no blocks')
  return out


def named_with_owners(
  model: ConfigDict, key: str, named: Sequence[int]
) -> list[str]:
  """The rule that a key which names levels names the owners of their blocks."""
  share = owners(model)
  return [
    f'{key} names level {i}, whose blocks are those of level {share[i]} '
    f'(model.share): name level {share[i]}, too'
    for i in named
    if 0 <= i < len(share) and share[i] not in named
  ]
