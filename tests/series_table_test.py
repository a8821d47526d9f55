"""Tables of sensors: what is read, what is refused and how it is said."""

import datetime
import re

import numpy as np
import pytest

from fractal_jax.data.common import DataError
from fractal_jax.series import table

DAYS = [f'2024-01-{day:02d}' for day in range(1, 11)]


def write(path, text):
  path.write_text(text)
  return str(path)


def lines(times, values):
  return ''.join(f'{t},{v}\n' for t, v in zip(times, values))


def test_csv(tmp_path):
  text = 'Timestamp, a ,b,label\n2024-01-01 00:00,1,-2.5,0\n'
  text += '2024-01-01 00:05,,3e2,1\n2024-01-01 00:10,NaN,0,0\n'
  found = table.read(write(tmp_path / 'line.csv', text))
  assert found.name == 'line' and found.channels == ('a', 'b')
  np.testing.assert_array_equal(found.values[:, 0], [1, np.nan, np.nan])
  np.testing.assert_array_equal(found.values[:, 1], [-2.5, 300, 0])
  assert found.labels.tolist() == [False, True, False]
  assert found.per_week == pytest.approx(7 * 24 * 12)
  assert table.read(tmp_path / 'line.csv', ['b']).channels == ('b',)


def test_a_time_column_of_any_name_and_a_table_without(tmp_path):
  text = 'when,a\n' + lines(DAYS[:4], range(4))
  assert table.read(write(tmp_path / 'a.csv', text)).times is not None
  found = table.read(write(tmp_path / 'b.csv', 'a,b\n1,2\n3,4\n'))
  assert found.times is None and found.per_week is None
  assert found.channels == ('a', 'b')


def test_missing_rows_are_not_known(tmp_path):
  times = DAYS[:4] + DAYS[6:]
  text = 'date,a\n' + lines(times, range(8))
  found = table.read(write(tmp_path / 'a.csv', text))
  assert len(found.values) == 10 and np.isnan(found.values[4:6]).all()
  np.testing.assert_array_equal(found.values[found.row, 0], np.arange(8))
  assert '2 rows are missing in 1 gap' in found.notes[0]
  assert str(found.times[5]).startswith('2024-01-06')


def test_what_is_masked_is_not_known():
  found = table.from_array(np.ma.masked_equal([[1, 2], [3, 4]], 3))
  np.testing.assert_array_equal(found.values, [[1, 2], [np.nan, 4]])


def test_uneven_times_are_said(tmp_path):
  text = 'time,a\n' + lines([0, 1, 2.5, 3, 4.4, 5, 6.2, 7], range(8))
  found = table.read(write(tmp_path / 'a.csv', text))
  assert len(found.values) == 8 and 'varies' in found.notes[0]


@pytest.mark.parametrize(
  'text, words',
  [
    ('a,b\n1,2\n3,bad\n', ['row 3', "column 'b'", "'bad'"]),
    ('time,a\n2,1\n1,1\n', ['row 3', "'time'", 'come after']),
    ('time,a\n1,1\n1,1\n', ['row 3', 'come after']),
    ('time,a\n1,1\n,1\n', ['row 3', 'no time']),
    ('a\n1\ninf\n', ['row 3', "'a'", 'infinite']),
    ('a,b\n\n1,2\n\n3,bad\n', ['row 5', "'bad'"]),
    ('time,a\n1,1\n\n1,1\n', ['row 4', 'come after']),
    ('a,b\n1,2\n \n3,inf\n', ['row 4', 'infinite']),
    ('a,b\n"1\n",2\n3,bad\n', ['row 3', "'bad'"]),
    ('a,b\n1,2\n', ['two rows']),
    ('time\n1\n2\n', ['0 channels']),
    ('a,b\n1,2,3\n4,5,6,7\n', ['csv']),
    ('', ['cannot be read']),
    ('a,a \n1,2\n3,4\n', ["column 'a'", 'more than once']),
    ('time,a\n-1e308,1\n1e308,2\n1e308,3\n', ['row 4', 'come after']),
  ],
)
def test_what_is_refused(text, words, tmp_path):
  with pytest.raises(DataError) as e:
    table.read(write(tmp_path / 'a.csv', text))
  for word in ['a.csv', *words]:
    assert word in str(e.value)


# What pandas would guess is refused, or read as it stands.


@pytest.mark.parametrize(
  'text, words',
  [
    ('a,b\n1,2,3\n4,5,6\n', 'Expected 2 fields in line 2, saw 3'),
    ('a,b\n1,2,\n4,5,\n', 'as many cells in each row as in the header'),
    ('a,a\n1,2\n3,4\n', "'a' is there, or asked for, more than once"),
    ('a;b\n1;2\n3;4\n', "the header has ';' between its names"),
    ('a\tb\n1\t2\n3\t4\n', 'write commas'),
    ('a;b\n1,5;2\n3,5;4\n', 'Expected 1 fields in line 2, saw 2'),
    ('a,b\n"1,5",2\n"3,5",4\n', "'1,5' is no number"),
    ('day,a\nmay,1\njune,2\n', "'may' is no number"),
    ('a,label\n1,normal\n2,fault\n', 'write 0 and 1 in it'),
    ('time,a\n1,1\ninf,2\n', "'inf' is no time"),
    ('time,a\n1500-01-01,1\n1500-01-02,2\n', 'must lie in 1678 to 2261'),
    ('time,a\n01/02/2024,1\n02/02/2024,2\n', 'month or with the day'),
  ],
)
def test_nothing_is_guessed(text, words, tmp_path):
  with pytest.raises(DataError, match=re.escape(words)):
    table.read(write(tmp_path / 'line.csv', text))


def test_an_empty_line_of_one_column_is_an_empty_cell(tmp_path):
  found = table.read(write(tmp_path / 'line.csv', 'a\n1\n\n3\n'))
  np.testing.assert_array_equal(found.values[:, 0], [1, np.nan, 3])
  found = table.read(write(tmp_path / 'two.csv', 'a,b\n1,2\n\n3,4\n'))
  np.testing.assert_array_equal(found.values, [[1, 2], [3, 4]])


def test_the_index_that_pandas_writes_is_no_channel(tmp_path):
  found = table.read(write(tmp_path / 'line.csv', ',a\n0,5\n1,6\n'))
  assert found.channels == ('a',) and 'no name' in found.notes[0]
  found = table.read(write(tmp_path / 'na.csv', 'NA,a\n0,5\n1,6\n'))
  assert found.channels == ('NA', 'a') and not found.notes
  text = ',a\n2024-01-01,5\n2024-01-02,6\n'
  found = table.read(write(tmp_path / 'days.csv', text))
  assert found.channels == ('a',) and not found.notes
  assert str(found.times[1]).startswith('2024-01-02')


def test_truths_are_numbers(tmp_path):
  text = 'on,label\nTrue,False\nfalse,TRUE\n,true\n'
  found = table.read(write(tmp_path / 'line.csv', text))
  np.testing.assert_array_equal(found.values[:, 0], [1, 0, np.nan])
  assert found.labels.tolist() == [False, True, True]


def test_days_may_come_first(tmp_path):
  for form in ('%d/%m/%Y', '%m/%d/%Y', '%d.%m.%y'):
    days = [datetime.date(2024, 1, 10 + i).strftime(form) for i in range(9)]
    found = table.read(write(tmp_path / 'line.csv', lines(days, range(9))))
    assert str(found.times[-1]).startswith('2024-01-18') and not found.notes


def test_parquet_says_the_same_as_csv(tmp_path):
  pd = pytest.importorskip('pandas')
  frame = pd.DataFrame({'time': pd.to_datetime(DAYS), 'a': np.arange(10.0)})
  frame.loc[3, 'a'] = np.nan
  frame.to_parquet(tmp_path / 'a.parquet')
  frame.to_csv(tmp_path / 'a.csv', index=False)
  one, other = (table.read(tmp_path / f'a.{x}') for x in ('parquet', 'csv'))
  np.testing.assert_array_equal(one.values, other.values)
  np.testing.assert_array_equal(one.times, other.times)


def test_npz(tmp_path):
  values = np.arange(6.0).reshape(3, 2)
  np.savez(tmp_path / 'a.npz', values=values, labels=[0, 1, 0], train=2)
  found = table.read(tmp_path / 'a.npz')
  assert found.train == 2 and found.labels.tolist() == [False, True, False]
  np.testing.assert_array_equal(found.values, values)
  np.savez(tmp_path / 'b.npz', values=values, labels=[0, 1])
  with pytest.raises(DataError, match='labels'):
    table.read(tmp_path / 'b.npz')
  np.savez(tmp_path / 'c.npz', other=values)
  with pytest.raises(DataError, match='values'):
    table.read(tmp_path / 'c.npz')


TEN = np.zeros((10, 2))


@pytest.mark.parametrize(
  'arrays, words',
  [
    (dict(values=TEN[:0]), '0 rows of 2 channels'),
    (dict(values=TEN[:, :0]), '10 rows of 0 channels'),
    (dict(values=np.array([['a']])), '`values` <U1'),
    (dict(train='x'), '`train` <U1'),
    (dict(train=[1, 2]), r'`train` int64 \[2\]: it must be whole numbers'),
    (dict(train=np.nan), '`train` float64'),
    (dict(train=0), '`train` is 0, of 10 rows'),
    (dict(train=11), '`train` is 11, of 10 rows'),
    (dict(labels=['a'] * 10), '`labels` <U1'),
    (dict(timestamps=['a'] * 10), '`timestamps` <U1'),
    (dict(timestamps=np.zeros(10, complex)), '`timestamps` complex128'),
    (dict(timestamps=np.full(10, np.nan)), 'row 1: `timestamps` is nan'),
    (dict(timestamps=np.full(10, 'NaT', 'M8[s]')), 'row 1: .* is NaT'),
    (dict(timestamps=np.arange(10)[::-1]), 'row 2, .* does not come after'),
    (dict(channels=['a', 'b', 'c']), r'`channels` <U1 \[3\]: .* \[2\]'),
    (dict(channels=np.zeros(2, [('a', 'i4')])), '`channels`'),
  ],
)
def test_arrays_that_are_refused(arrays, words, tmp_path):
  np.savez(tmp_path / 'a.npz', **{'values': TEN, **arrays})
  with pytest.raises(DataError, match=words):
    table.read(tmp_path / 'a.npz')


def test_columns_of_arrays(tmp_path):
  np.savez(tmp_path / 'x.npz', values=np.eye(3), channels=['a', 'b', 'c'])
  found = table.read(tmp_path / 'x.npz', ['c', 'a'])
  assert found.channels == ('c', 'a')
  np.testing.assert_array_equal(found.values, np.eye(3)[:, [2, 0]])
  for columns, words in ((['d'], "no column 'd'"), (['a', 'a'], 'more than')):
    with pytest.raises(DataError, match=words):
      table.read(tmp_path / 'x.npz', columns)


def test_columns_that_hold_no_numbers(tmp_path):
  pd = pytest.importorskip('pandas')
  pytest.importorskip('pyarrow')
  rows = {'a': [[1, 2]] * 3, 'b': [{'x': 1}] * 3, 'c': [1.0, 2.0, 3.0]}
  pd.DataFrame(rows).to_parquet(tmp_path / 'a.parquet')
  with pytest.raises(DataError, match="column 'a'"):
    table.read(tmp_path / 'a.parquet')
  assert table.read(tmp_path / 'a.parquet', ['c']).channels == ('c',)
  with pytest.raises(DataError, match="'c' is there, or asked for, more than"):
    table.read(tmp_path / 'a.parquet', ['c', 'c'])


def test_files(tmp_path):
  for name in ('b.csv', 'a.csv', 'c.npz', 'notes.txt'):
    write(tmp_path / name, 'x\n')
  names = lambda pattern: [p.name for p in table.files(str(pattern))]
  assert names(tmp_path / '*.csv') == ['a.csv', 'b.csv']
  assert names(tmp_path / 'c.npz') == ['c.npz']
  with pytest.raises(DataError, match='several kinds'):
    table.files(str(tmp_path))
  (tmp_path / 'c.npz').unlink()
  assert names(tmp_path) == ['a.csv', 'b.csv']
  for wrong in ('', str(tmp_path / 'none.csv'), str(tmp_path / '*.parquet')):
    with pytest.raises(DataError):
      table.files(wrong)
