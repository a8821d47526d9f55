"""`fractal-jax train --data`: from a folder to a run, its report and pages."""

import json
import pathlib
import re
import runpy
import shutil

from absl import flags
from PIL import Image
import pytest

from fractal_jax import api, run_report
from fractal_jax.commands import common, likelihood, train_data
from fractal_jax.data.common import DataError
from fractal_jax.planning import probe
from fractal_jax.training import CheckpointError, checkpoint, resume
from tests import commandline
from tests.listing_test import picture

pytestmark = pytest.mark.usefixtures('quick_compilation')
TINY = (
  '--config.model.widths=(16,16,16)',
  '--config.model.depths=(1,1,1)',
  '--config.model.heads=(2,2,2)',
  '--config.optim.batch=16',
  '--config.optim.steps=4',
  '--config.optim.log_every=2',
  '--config.optim.save_every=4',
  '--config.sample.every=4',
  '--config.sample.num=4',
  '--config.eval.every=4',
  '--config.eval.batch=8',
)


def call(*arguments):
  with commandline.flags_of('train', *arguments) as job:
    job.run()


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  root = tmp_path_factory.mktemp('data') / 'photos'
  for i in range(40):
    path = root / ('cat', 'dog')[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(i, 12 + i).save(path)
  (root / 'dog' / 'broken.png').write_text('no image')
  return root


@pytest.fixture(scope='module')
def run(photos):
  """The work directory, and all that was printed."""
  workdir, said = photos.parent / 'run', []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(common, 'say', lambda text, end='\n': said.append(text))
    call(f'--data={photos}', '--size=8', f'--workdir={workdir}', *TINY)
  return workdir, '\n'.join(said)


def test_one_command_says_what_it_found_chose_and_expects(run, photos):
  workdir, text = run
  assert '40 images, 12 to 51 pixels on the shorter side, in colour' in text
  assert '2 classes: 0 cat, 1 dog' in text and 'dog/broken.png' in text
  assert 'model.sizes = (8, 4, 1): --size=8' in text
  assert re.search(r'[\d.]+ images/s; 4 steps in \d+s', text)
  assert f'fractal-jax sample --workdir={workdir}' in text
  c = checkpoint.load_config(str(workdir))
  assert c.data.list == str(workdir / 'images.csv') and c.model.classes == 2
  assert c.optim.steps == 4 and c.model.num_values == 256


def test_the_choice_can_be_used_again(run):
  workdir, _ = run
  made = runpy.run_path(str(workdir / 'chosen.py'))['get_config']()
  assert made.to_dict() == checkpoint.load_config(str(workdir)).to_dict()
  text = (workdir / 'chosen.py').read_text()
  assert '# --config.optim.steps\n  c.optim.steps = 4' in text


def test_the_run_has_a_page_that_needs_no_other_file(run):
  workdir, _ = run
  page = (workdir / 'report.html').read_text()
  assert 'http' not in page and '<script' not in page
  last = [json.loads(x) for x in open(workdir / 'metrics.jsonl')][-1]
  bits, error = last['val/bits_per_dim'], last['val/stderr']
  assert f'{bits:.3f} ± {error:.3f} bits/dim' in page
  assert 'data:image/png;base64,' in page and 'data:image/gif;base64,' in page
  for words in ('0 cat, 1 dog', 'jax 0.', 'images/s', 'c.optim.steps = 4'):
    assert words in page
  assert page.count('<img alt="') >= 4
  with Image.open(workdir / 'samples' / 'growing.gif') as movie:
    assert movie.n_frames > 10


def test_a_run_without_samples_or_scores_has_a_page_too(run, tmp_path):
  for name in ('config.json', 'classes.json'):
    (tmp_path / name).write_text((run[0] / name).read_text())
  page = pathlib.Path(run_report.write(str(tmp_path))).read_text()
  assert 'No samples were drawn' in page and 'Nothing was logged' in page


def test_what_others_put_into_a_run_is_not_shown(run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  sample = workdir / 'samples' / 'step_0000004.png'
  before = run_report.page(str(workdir))
  for name in ('foo.png', 'step_x.png', 'step_0000004 (1).png'):
    shutil.copy(sample, sample.with_name(name))
  assert run_report.page(str(workdir)) == before
  with open(workdir / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "val/bits_per_dim": 1.0}\n')
    file.write(f'{{"step": 4, "train/loss": {"9" * 400}}}\n')
  run_report.page(str(workdir))
  (workdir / 'config.json').unlink()
  listed = (workdir / 'images.csv').read_text()
  (workdir / 'images.csv').write_text(listed + '\n')
  with pytest.raises(CheckpointError, match='has no config.json'):
    call(f'--data={run[0].parent / "photos"}', f'--workdir={workdir}')
  assert (workdir / 'images.csv').read_text() == listed + '\n'


def test_the_same_command_goes_on_and_another_is_refused(run, photos, capsys):
  workdir, _ = run
  before = (workdir / 'images.csv').read_text()
  call(f'--data={photos}', f'--workdir={workdir}')
  out = capsys.readouterr().out
  assert 'it goes on' in out and 'resuming after step 4' in out
  assert (workdir / 'images.csv').read_text() == before
  with pytest.raises(common.UsageError, match='a run of images of side 8'):
    call(f'--data={photos}', '--size=16', f'--workdir={workdir}')
  with pytest.raises(common.UsageError, match='not of .*cat: give another'):
    call(f'--data={photos / "cat"}', f'--workdir={workdir}')


def test_other_images_are_scored_whole(run, photos, capsys):
  workdir, _ = run
  arguments = (f'--workdir={workdir}', f'--data={photos / "cat"}')
  with commandline.flags_of('likelihood', *arguments) as job:
    job.run()
  assert re.search(r'all bits/dim: .*\(20 images', capsys.readouterr().out)
  with commandline.flags_of('likelihood', *arguments, '--conditional'):
    with pytest.raises(common.UsageError, match='leave out --data'):
      likelihood.with_other_data(api.load(str(workdir)).config)


@pytest.mark.parametrize(
  'workdir, data, words',
  [
    ('digits_ar', 'photos', '256 values per channel, digits_ar has 17, and'),
    ('digits_ar', 'photos/cat/0.png', 'is no folder of images and no .npz'),
    ('digits_ar', 'none.npz', 'is no folder of images and no .npz'),
    ('nab_ar', 'photos', 'nab_ar is a model of series'),
  ],
)
def test_other_data_that_cannot_be_scored_is_named(
  photos, workdir, data, words
):
  data = f'--data={photos.parent / data}'
  with commandline.flags_of('likelihood', f'--workdir={workdir}', data):
    with pytest.raises(common.UsageError, match=f'{data}.*{words}'):
      likelihood.with_other_data(common.load_config())


def test_show_prints_the_choice_and_writes_nothing(photos, tmp_path, capsys):
  workdir = tmp_path / 'run'
  kinds = '--config.model.kinds=mar,ar,pixel'
  call(f'--data={photos}', f'--workdir={workdir}', '--show', kinds)
  text = capsys.readouterr().out
  assert "  c.model.kinds = ('mar', 'ar', 'pixel')\n" in text
  assert '# there are colours\n  c.model.channels = 3' in text
  assert not workdir.exists()
  call('--config=digits', '--config.optim.steps=7', '--show')
  text = capsys.readouterr().out
  assert 'c.optim.steps = 7' in text and 'c.mesh.tensor = 1' in text


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=digits', '--data=x', '--workdir=y'], 'one of them'),
    (['--config=digits', '--size=8', '--workdir=y'], '--size goes with'),
    (['--workdir=y'], 'one of them'),
    (['--data=x', '--distributed'], '--show > my.py'),
  ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, words):
  with pytest.raises(common.UsageError, match=words):
    call(*arguments)


def test_the_run_is_named_after_the_data():
  for data in ('photos', 'a/photos/', 'b/photos.npz'):
    assert train_data.workdir_of(data) == 'runs/photos'


def test_a_work_directory_is_needed_with_a_config():
  with pytest.raises(flags.IllegalFlagValueError, match='--workdir=DIR'):
    call('--config=digits')


def test_a_run_lies_apart_from_its_images(photos):
  for name in ('photos', 'photos/run', 'photos/cat'):
    workdir = photos.parent / name
    with pytest.raises(DataError, match='lies in the folder of the data'):
      call(f'--data={photos}', f'--workdir={workdir}', *TINY)
  assert sorted(x.name for x in photos.iterdir()) == ['cat', 'dog']


def test_levels_that_do_not_fit_are_told_before_anything_is_timed(
  photos, tmp_path, monkeypatch
):
  monkeypatch.setattr(probe, 'probe', lambda config: 1 / 0)
  first = f'--config.model.init_from={tmp_path}/none'
  given = (first, '--config.model.init_levels=(1,)')
  with pytest.raises(CheckpointError, match='none does not exist'):
    call(f'--data={photos}', '--size=8', f'--workdir={tmp_path}', *TINY, *given)


@pytest.mark.parametrize(
  'change, words',
  [
    ('optim.batch=-1', 'optim.batch=-1 must be'),
    ('optim.batch=9', 'optim.batch=9 does not divide'),
  ],
)
def test_a_choice_that_cannot_be_trained_is_not_kept(
  change, words, photos, tmp_path
):
  with pytest.raises(ValueError, match=words):
    call(
      f'--data={photos}',
      '--size=8',
      f'--workdir={tmp_path}',
      *TINY,
      f'--config.{change}',
    )
  assert not (tmp_path / 'chosen.py').exists()


def test_a_list_of_other_things_is_not_replaced(photos, tmp_path):
  (tmp_path / 'images.csv').write_text('file,author\n0.png,me\n')
  with pytest.raises(common.UsageError, match='is no listing of an earlier'):
    call(f'--data={photos}', f'--workdir={tmp_path}', *TINY)
  assert 'author' in (tmp_path / 'images.csv').read_text()


def test_what_is_listed_and_gone_is_to_be_put_back(run, photos, capsys):
  workdir, _ = run
  file = photos / 'cat' / '0.png'
  file.rename(photos.parent / 'kept.png')
  with pytest.raises(DataError, match='cat/0.png cannot be .* put back'):
    call(f'--data={photos}', f'--workdir={workdir}')
  (photos.parent / 'kept.png').rename(file)
  other = photos.parent / 'other.csv'
  other.write_text((workdir / 'images.csv').read_text())
  changed = f'--config.data.list={other}'
  with pytest.raises(resume.ResumeError, match='data.list: .*images.csv'):
    call(f'--data={photos}', f'--workdir={workdir}', changed)
