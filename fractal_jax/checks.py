"""What one value must be, as data: its type, its range, its choices.

A rule stands beside a default in `fractal_jax.config`, or is applied to the
value of a flag. It has two sides: `holds` tells whether a value keeps it, and
`str` says what it asks for, to stand behind "must be":

    >>> rule = Number(above=0)
    >>> rule.holds(float('nan')), str(rule)
    (False, 'a finite number above 0')

Types are looked at first, so that a name where a number belongs is an error
with a message and not a traceback. `misfit` compares named tensors with those
that are expected.
"""

from collections.abc import Mapping
import dataclasses
import math
import numbers
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
  from ml_collections import ConfigDict


class Rule(Protocol):
  """What a value must be; `str` of it goes on from "must be"."""

  def holds(self, value: object) -> bool:
    """Whether the value, of whatever type, is as asked."""


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number in a range whose ends are optional.

  A whole number without a largest one is at most LARGEST, which all that is
  computed of it can hold.

  Attributes:
    least: the smallest number that is allowed.
    above: a smaller number than any that is allowed.
    most: the largest number that is allowed.
    below: a larger number than any that is allowed.
    also: values with a meaning of their own, which need not be in the range.
    integer: whether only integers are allowed.
  """

  least: float | None = None
  above: float | None = None
  most: float | None = None
  below: float | None = None
  also: tuple[float, ...] = ()
  integer: bool = False

  def holds(self, value: object) -> bool:
    kind = numbers.Integral if self.integer else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
      return False
    if self.integer and self.most is None and value > LARGEST:
      return False
    return value in self.also or (
      (self.integer or math.isfinite(value))
      and (self.least is None or value >= self.least)
      and (self.above is None or value > self.above)
      and (self.most is None or value <= self.most)
      and (self.below is None or value < self.below)
    )

  def __str__(self) -> str:
    ends = {
      'at least': self.least,
      'above': self.above,
      'at most': self.most,
      'below': self.below,
    }
    ends = [f'{word} {end}' for word, end in ends.items() if end is not None]
    text = 'a whole number' if self.integer else 'a finite number'
    text = ' '.join([text, ' and '.join(ends)]).strip()
    return ', or '.join([text, *map(str, self.also)])


@dataclasses.dataclass(frozen=True)
class Text:
  """A string."""

  empty: bool = True  # whether it may be ''

  def holds(self, value: object) -> bool:
    return isinstance(value, str) and (self.empty or bool(value))

  def __str__(self) -> str:
    return 'a text' if self.empty else 'a text that is not empty'


@dataclasses.dataclass(frozen=True)
class Flag:
  """True or False."""

  def holds(self, value: object) -> bool:
    return isinstance(value, bool)

  def __str__(self) -> str:
    return 'True or False'


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of a few values."""

  values: tuple

  def holds(self, value: object) -> bool:
    return any(type(value) is type(v) and value == v for v in self.values)

  def __str__(self) -> str:
    return ' or '.join(map(repr, self.values))


@dataclasses.dataclass(frozen=True)
class Each:
  """A tuple, perhaps an empty one, whose entries all keep one rule."""

  rule: Rule

  def holds(self, value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(map(self.rule.holds, value))

  def __str__(self) -> str:
    return f'a tuple of which each entry is {self.rule}'


@dataclasses.dataclass(frozen=True)
class Either:
  """A value that keeps one of two rules."""

  one: Rule
  other: Rule

  def holds(self, value: object) -> bool:
    return self.one.holds(value) or self.other.holds(value)

  def __str__(self) -> str:
    return f'{self.one}, or {self.other}'


LARGEST = 2**31 - 1


def integer(
  least: int | None = None, most: int | None = None, also: tuple[int, ...] = ()
) -> Number:
  """The rule of an integer."""
  return Number(least=least, most=most, also=also, integer=True)


SHARE = Number(above=0, below=1)
FROM_0, FROM_1 = integer(least=0), integer(least=1)
# Random keys are made of 32 bits; a larger seed would repeat a smaller one.
SEED = integer(least=0, most=2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of a config.

  Attributes:
    default: its value unless it is set.
    rule: what each value must be, whatever the other keys are.
    doc: what it is, and its unit.
    why: why the default is what it is; '' where nothing else makes sense.
  """

  default: object
  rule: Rule
  doc: str
  why: str = ''


def problem(name: str, value: object, rule: Rule, doc: str = '') -> str | None:
  """The message about a value that breaks a rule, or None if it keeps it.

  Args:
    name: of the key or flag, as the user writes it: 'optim.lr', '--seed'.
    value: of any type.
    rule: of the value alone.
    doc: what the value is, for the message.
  """
  if rule.holds(value):
    return None
  shown = tuple(value) if isinstance(value, list) else value
  each = shown if isinstance(shown, tuple) else (shown,)
  large = any(isinstance(x, int) and x > LARGEST for x in each)
  text = f'{name}={shown!r} must be {rule}'
  if large and 'at most' not in text:
    text += f', and at most {LARGEST}'
  return text + (f' ({doc})' if doc else '')


def problems(
  section: str, values: 'Mapping | ConfigDict', keys: Mapping[str, Key]
) -> list[str]:
  """The messages about the values of a section that break their own rule.

  Args:
    section: its name, which goes before that of a key.
    values: a mapping of values by name; keys that it lacks are not checked.
    keys: the section's keys by name.
  """
  found = (
    problem(f'{section}.{name}', values[name], key.rule, key.doc)
    for name, key in keys.items()
    if name in values
  )
  return [text for text in found if text]


def misfit(
  found: Mapping[str, tuple], wanted: Mapping[str, tuple], most: int = 40
) -> list[str]:
  """How named tensors differ from those that are expected.

  Args:
    found: shapes by name.
    wanted: the shapes that are expected, by name.
    most: lines at most; a last one counts the rest.

  Returns:
    A line per tensor that is missing, extra or misshapen; none if all fit.
  """
  found = {name: tuple(shape) for name, shape in found.items()}
  wanted = {name: tuple(shape) for name, shape in wanted.items()}
  lines = [f'missing: {n} {s}' for n, s in wanted.items() if n not in found]
  lines += [f'extra: {n} {s}' for n, s in found.items() if n not in wanted]
  lines += [
    f'misshapen: {n} is {found[n]}, expected {s}'
    for n, s in wanted.items()
    if found.get(n, s) != s
  ]
  if len(lines) > most:
    lines[most:] = [f'... and {len(lines) - most} more']
  return lines
