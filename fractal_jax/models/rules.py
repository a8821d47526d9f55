"""The rules of a config's section `model` that join several keys.

`problems` checks everything before anything is compiled; each message names the
value, the rule and what to set. What a single key must be stands beside its
default, in `config.MODEL`; the rules of a kind of level are its own, see
level.Level.problems.
"""

from ml_collections import ConfigDict

from fractal_jax.models import colour, pixel, shared
from fractal_jax.models.fractal import specs
from fractal_jax.models.kinds import KINDS


def problems(model: ConfigDict) -> list[str]:
  """Every rule that the section breaks; see `config.MODEL` for single keys."""
  out = structure_problems(model)
  out += value_problems(model)
  out += colour.problems(model)
  if out:  # what follows reads levels, and these are not well formed
    return out
  out = condition_problems(model)
  blocks = [KINDS[kind].BLOCK for kind in model.kinds[:-1]]
  out += shared.problems(model, [*blocks, pixel.PixelLevel.BLOCK])
  for spec in [] if out else specs(model)[:-1]:
    out += KINDS[spec.kind].problems(spec)
  return out


def structure_problems(model: ConfigDict) -> list[str]:
  """Whether the levels are well formed: sizes, kinds, widths, heads, depths."""
  out = []
  sizes, kinds = tuple(model.sizes), tuple(model.kinds)
  levels = len(sizes)
  if levels < 2 or sizes[-1] != 1:
    out.append(
      f'model.sizes={sizes} must have two or more entries and end in 1, the '
      'pixel level'
    )
  out += [
    f'model.sizes={sizes}: {b} does not divide {a} into smaller patches'
    for a, b in zip(sizes, sizes[1:])
    if not (1 <= b < a and a % b == 0)
  ]
  for name in ('kinds', 'widths', 'depths', 'heads', 'chunks'):
    n = len(model[name])
    if n != levels and not (name == 'chunks' and n == 0):
      out.append(
        f'model.{name} has {n} entries, model.sizes has {levels}: give one per '
        'level'
      )
  for i, kind in enumerate(kinds):
    choices = ['pixel'] if i == len(kinds) - 1 else sorted(KINDS)
    if kind not in choices:
      out.append(f"model.kinds[{i}]='{kind}' must be {' or '.join(choices)}")
  out += [
    f'model.heads[{i}]={h} does not divide widths[{i}]={w}'
    for i, (w, h) in enumerate(zip(model.widths, model.heads))
    if w % h
  ]
  if not all(model.depths[:-1]):
    out.append(
      f'model.depths={tuple(model.depths)}: only the pixel level may have 0'
    )
  return out


def value_problems(model: ConfigDict) -> list[str]:
  """Whether what is per channel, or names levels, fits the model."""
  out = []
  for name in ('mean', 'std', 'channel_weights'):
    n = len(model[name])
    if n != model.channels:
      out.append(
        f'model.{name} has {n} entries, model.channels is {model.channels}: '
        'give one per channel'
      )
  if not sum(model.channel_weights):
    out.append('model.channel_weights must not all be 0')
  last = len(model.sizes) - 1
  out += [
    f'model.init_levels names level {level}: levels are 0 to {last}'
    for level in model.init_levels
    if level > last
  ]
  if model.unknown and (model.rank != 1 or model.guide):
    out.append(
      'model.unknown=True is for series: it needs model.rank=1 and '
      'model.guide=False'
    )
  if bool(model.init_from) != bool(model.init_levels):
    out.append(
      'model.init_from and model.init_levels go together: set both or neither'
    )
  return out


def condition_problems(model: ConfigDict) -> list[str]:
  """Whether each level is given as many conditions as it is to take."""
  wanted = model.num_conds
  if isinstance(wanted, int):  # levels take as many as there are
    return []
  above = model.kinds[:-1]
  if len(wanted) != len(above):
    return [
      f'model.num_conds={tuple(wanted)} must be one number, or one for each of '
      f'the {len(above)} levels above pixels'
    ]
  out = []
  for i, kind in enumerate(above[:-1]):
    given = len(KINDS[kind].conditions(model.rank))
    if wanted[i + 1] > given:
      out.append(
        f'model.num_conds[{i + 1}]={wanted[i + 1]}, but level {i} '
        f"('{kind}') gives only {given}"
      )
  return out
