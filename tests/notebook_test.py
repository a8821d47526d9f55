"""The tour runs top to bottom, and is stored with what one run left."""

import base64
import io
import pathlib
import re

import nbclient
import nbformat
from PIL import Image
import pytest

from tests import xla

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_those_of_one_run_from_top_to_bottom(path):
  assert path.stat().st_size < 1_000_000  # GitHub shows no larger ones
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  cells = [c for c in notebook.cells if c.cell_type == 'code']
  counts = [c.execution_count for c in cells]
  assert counts == list(range(1, len(cells) + 1))
  outputs = [output for c in cells for output in c.outputs]
  assert not [o for o in outputs if o.output_type == 'error']
  kinds = [kind for o in outputs for kind in o.get('data', ())]
  assert kinds.count('image/gif') == 1 and kinds.count('image/png') == 11


def test_the_tour_runs_top_to_bottom(tmp_path, monkeypatch):
  """After a few steps of training: what it draws then is noise."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('XLA_FLAGS', xla.flags())
  monkeypatch.setenv('TOUR_STEPS', '4')
  monkeypatch.setenv('TOUR_WORKDIR', str(tmp_path / 'run'))
  notebook = nbformat.read(ROOT / 'notebooks' / 'tour.ipynb', 4)
  where = {'metadata': {'path': str(ROOT / 'notebooks')}}
  nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
  shown, text = [], ''
  for cell in notebook.cells:
    for output in cell.get('outputs', ()):
      text += output.get('text', '')
      shown += [
        (kind, data)
        for kind, data in output.get('data', {}).items()
        if kind.startswith('image/')
      ]
  kinds = [kind for kind, _ in shown]
  assert kinds.count('image/gif') == 1 and kinds.count('image/png') == 11
  for _, data in shown:
    Image.open(io.BytesIO(base64.b64decode(data))).verify()
  assert re.search(r'level 1 without itself: [+-]\d', text)
  assert re.search(r'validation bits/dim: \d\.\d+ ± .*297 images, exact', text)
  assert (tmp_path / 'run_files' / 'report.html').exists()
