"""Rules of single values, and the comparison of named tensors."""

import numpy as np
import pytest

from fractal_jax import checks
from fractal_jax.checks import Choice, Each, Either, Flag, Number, Text, integer

INF, NAN = float('inf'), float('nan')


@pytest.mark.parametrize(
  'rule, good, bad, text',
  [
    (Number(), [0, -1.5, np.float32(2)], [NAN, INF, '1', None, True, 1j],
     'a finite number'),
    (Number(above=0), [1e-9, 3], [0, -1, -INF], 'a finite number above 0'),
    (Number(least=0, below=1), [0, 0.5], [1, -0.1],
     'a finite number at least 0 and below 1'),
    (Number(above=0, also=(INF,)), [INF, 1], [-INF, NAN, 0],
     'a finite number above 0, or inf'),
    (integer(1), [1, np.int64(3), 2**31 - 1], [0, 1.0, True, '1', (1,), 2**31],
     'a whole number at least 1'),
    (integer(1, also=(-1,)), [-1, 1], [0, -2],
     'a whole number at least 1, or -1'),
    (checks.SEED, [0, 2**32 - 1], [-1, 2**32, 2**63, 1.0],
     'a whole number at least 0 and at most 4294967295'),
    (Text(), ['', 'a'], [None, 1, b'a'], 'a text'),
    (Text(empty=False), ['a'], [''], 'a text that is not empty'),
    (Flag(), [True, False], [0, 1, 'True'], 'True or False'),
    (Choice(('a', 'b')), ['a'], ['', 'c', 0, None], "'a' or 'b'"),
    (Choice((1, 2)), [1], [3, True, 1.0, '1'], '1 or 2'),
    (Each(integer(1)), [(), (1,), [2, 3]], [1, (0,), ('a,b',), 'ab'],
     'a tuple of which each entry is a whole number at least 1'),
    (Either(integer(1), Each(integer(1))), [1, (1,)], [0, (0,), 'a'],
     'a whole number at least 1, or a tuple of which each entry is a whole '
     'number at least 1'),
  ],
  ids=str,
)  # fmt: skip
def test_rule(rule, good, bad, text):
  assert str(rule) == text
  assert [v for v in good if not rule.holds(v)] == []
  assert [v for v in bad if rule.holds(v)] == []


def test_problem_names_value_rule_and_meaning():
  rule = Number(above=0)
  assert checks.problem('optim.lr', 1, rule) is None
  found = checks.problem('optim.lr', NAN, rule, 'learning rate')
  assert found == (
    'optim.lr=nan must be a finite number above 0 (learning rate)'
  )
  assert checks.problem('steps', 2**40, integer(0)) == (
    f'steps={2**40} must be a whole number at least 0, and at most {2**31 - 1}'
  )
  assert checks.problem('seed', 2**40, checks.SEED).count('at most') == 1
  keys = {
    'a': checks.Key(1, integer(1), 'first'),
    'b': checks.Key('', Text(), 'second'),
  }
  assert checks.problems('s', {'a': 1}, keys) == []
  assert checks.problems('s', {'a': 0, 'b': ''}, keys) == [
    's.a=0 must be a whole number at least 1 (first)'
  ]


def test_misfit_names_each_tensor():
  wanted = {'a': (1, 2), 'b': (3,)}
  assert checks.misfit({'b': (3,), 'a': [1, 2]}, wanted) == []
  found = checks.misfit({'a': (2, 1), 'c': ()}, wanted)
  assert found == [
    'missing: b (3,)',
    'extra: c ()',
    'misshapen: a is (2, 1), expected (1, 2)',
  ]
  found = checks.misfit({f'x{i}': () for i in range(9)}, {}, most=4)
  assert len(found) == 5 and found[-1] == '... and 5 more'
