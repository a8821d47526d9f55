"""benchmarks/nab.py, on two short series of one step."""

import argparse

import numpy as np

from benchmarks import nab


def test_a_fit_of_digits_scores_every_row(tmp_path):
  rows = {'a': 130, 'b': 150}
  for seed, (name, n) in enumerate(rows.items()):
    values = np.random.default_rng(seed).normal(size=(n, 1))
    labels = np.arange(n) == n - 1
    np.savez(tmp_path / f'{name}.npz', values=values, labels=labels, train=100)
  runs = tmp_path / 'new' / 'runs'
  nab.fit(
    argparse.Namespace(
      data=str(tmp_path), runs=str(runs), variant='digits', seed=0, steps=1
    )
  )
  with np.load(runs / 'digits_0.npz') as found:
    for name, n in rows.items():
      for kind in nab.SCORES:
        assert np.isfinite(found[f'{name}/{kind}']).sum() == n
