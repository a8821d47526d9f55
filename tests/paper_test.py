"""The page of the paper's tables, and the tiny path of each kind of row."""

import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import paper
from tests import xla

KINDS = {
  'samples': 'fractalmar_in64-samples',
  'likelihood': 'fractalmar_in64-likelihood',
  'trained': 'two_level_in64-ar-likelihood',
  'cost': 'one_level_in64-ar-cost',
}


def test_the_page_is_what_the_table_of_rows_makes():
  assert paper.PAGE.read_text() == paper.page(), (
    'run `python benchmarks/paper.py`'
  )
  assert len({r.name for r in paper.ROWS}) == len(paper.ROWS)


def test_costs_are_the_published_ones():
  rows = [r for r in paper.ROWS if r.kind == 'cost']
  for number in ('parameters', 'GFLOPs'):
    assert any(number in r.expected for r in rows)
  for row in rows:
    found, _ = paper.cost_of(row.config)
    if 'parameters' in row.expected:
      assert f'{found.params:,}' == row.expected['parameters']
    if 'GFLOPs' in row.expected:
      wanted = float(row.expected['GFLOPs'].split()[0].replace(',', ''))
      assert found.total('paper') / 1e9 == pytest.approx(wanted, rel=5e-3)


def test_each_kind_of_row_runs(tmp_path):
  """Conversion, generation, Inception, metrics, likelihood, training, cost."""
  assert KINDS.keys() == {r.kind for r in paper.ROWS}
  pytest.importorskip('torch')  # published weights are .pth files
  root = pathlib.Path(paper.__file__).parent.parent
  done = subprocess.run(
    [
      *(sys.executable, 'benchmarks/paper.py', '--tiny'),
      *(f'--runs={tmp_path}', f'--row={",".join(KINDS.values())}'),
    ],
    cwd=root,
    env=dict(os.environ, PYTHONPATH=str(root), XLA_FLAGS=xla.flags()),
    capture_output=True,
    text=True,
    timeout=600,
  )
  text = done.stdout
  assert done.returncode == 0, text + done.stderr
  parts = text.split('published: ')
  assert parts[0].count('$ fractal-jax') == 2  # convert, then evaluate
  for words in ('FID  ', 'Inception Score', 'numbers: '):
    assert words in parts[0]
  assert 'has its weights already' in parts[1]
  assert 'validation bits/dim' in parts[1]
  assert 'step 2/2' in parts[2] and 'validation bits/dim' in parts[2]
  assert 'level kind' in parts[3]
  assert (tmp_path / 'fractalmar_in64' / 'metrics.json').exists()


def test_a_row_that_is_not_there_is_named():
  done = subprocess.run(
    [sys.executable, paper.__file__, '--row=fid'],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and '--row=fid: there are' in done.stderr
  assert 'fractalmar_in64-samples' in done.stderr
