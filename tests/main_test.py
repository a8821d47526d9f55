"""The command line, as a user types it: every command, good and bad input."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
from PIL import Image
import pytest

from fractal_jax import main
from fractal_jax.commands import common, evaluate, sample
from fractal_jax.pictures import LETTERS
from tests import commandline
from tests.commandline import call

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = '--config=configs/digits.py'
TINY = [
  '--config.model.widths=(16,16,16)',
  '--config.model.depths=(1,1,1)',
  '--config.optim.batch=16',
  '--config.eval.batch=99',
  '--config.eval.num=33',
  '--config.sample.num=4',
  '--config.optim.log_every=2',
]


def start(*args, stdout=subprocess.PIPE, **env):
  """A command in a process of its own."""
  return subprocess.Popen(
    [sys.executable, '-m', 'fractal_jax.main', *args],
    cwd=ROOT,
    env=dict(os.environ, XLA_FLAGS='', PYTHONPATH=str(ROOT), **env),
    stdout=stdout,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(job) -> tuple[str, str]:
  """Its output, and errors; it must succeed."""
  out, errors = job.communicate(timeout=300)
  assert job.returncode == 0, out + errors
  return out, errors


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('run'))
  steps = '--config.optim.steps=4'
  args = 'train', DIGITS, f'--workdir={folder}', steps, '--profile=2:2', *TINY
  out, _ = finish(start(*args))
  assert 'step 4/4' in out.replace('  ', ' ')
  assert out.splitlines()[-1].startswith('validation bits/dim: ')
  return folder


def test_train_writes_all_that_a_user_looks_for(workdir):
  run = pathlib.Path(workdir)
  for name in ('config.json', 'metrics.jsonl', 'tensorboard'):
    assert (run / name).exists()
  assert list((run / 'samples').glob('*.png'))
  assert list((run / 'tensorboard').glob('plugins/profile/*/*.xplane.pb'))
  lines = [json.loads(x) for x in open(run / 'metrics.jsonl')]
  assert {'val/bits_per_dim', 'train/grad_norm/level_1'} <= set().union(*lines)


def test_train_goes_on_where_it_was(workdir):
  steps = '--config.optim.steps=4'
  out = call('train', DIGITS, f'--workdir={workdir}', steps, *TINY)
  assert 'resuming after step 4' in out


def test_likelihood_needs_only_the_workdir(workdir, tmp_path):
  out = call('likelihood', f'--workdir={workdir}', '--num=0')
  assert out.startswith('validation bits/dim: ')
  assert '(297 images, exact)' in out
  args = 'likelihood', f'--workdir={workdir}', '--split=train', '--num=9'
  # Nothing is said of compiling where earlier runs on this machine did it.
  empty = str(tmp_path / 'cache')
  out, errors = finish(start(*args, JAX_COMPILATION_CACHE_DIR=empty))
  assert '(9 images, exact)' in out
  took = re.search(
    r'^compiling took ([\d.]+) of ([\d.]+) s; kept in /', errors, re.M
  )
  assert 0 < float(took[1]) < float(took[2])


def test_sample_writes_grid_values_and_movie(workdir, tmp_path):
  out, movie = str(tmp_path / 'g.png'), str(tmp_path / 'g.gif')
  call(
    'sample',
    f'--workdir={workdir}',
    '--num=4',
    '--labels=3,7',
    '--guidance=1.5',
    '--temperature=1.1',
    '--schedule=constant',
    f'--out={out}',
    f'--movie={movie}',
  )
  with Image.open(out) as grid, Image.open(movie) as frames:
    assert grid.size == frames.size == (2 * 66 + 2, 2 * 66 + 2 + LETTERS)
    assert frames.n_frames > 10
  values = str(tmp_path / 'v.npz')
  call('sample', f'--workdir={workdir}', '--num=3', f'--out={values}')
  stored = np.load(values)
  assert stored['images'].shape == (3, 8, 8, 1)
  assert stored['images'].max() <= 16
  np.testing.assert_array_equal(stored['labels'], [0, 1, 2])


def test_convert_makes_a_run_of_published_weights(tmp_path):
  pytest.importorskip('torch')
  config = tmp_path / 'golden.py'
  config.write_text(
    'from fractal_jax import config\n'
    'def get_config():\n'
    '  c = config.default()\n'
    '  c.model.update(sizes=(16, 4, 1), kinds=("ar", "ar", "pixel"),\n'
    '    widths=(64, 48, 32), depths=(2, 2, 2), heads=(4, 4, 2), classes=10,\n'
    '    num_conds=1)\n'
    '  return c\n'
  )
  run, back = str(tmp_path / 'run'), str(tmp_path / 'back.pth')
  pth = 'tests/goldens/ar_small.pth'
  call('convert', f'--config={config}', f'--pth={pth}', f'--workdir={run}')
  call('convert', f'--workdir={run}', f'--out={back}')
  from fractal_jax import convert

  ours, theirs = convert.read_pth(back), convert.read_pth(str(ROOT / pth))
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name])
  wrong = '--config=configs/digits.py'
  text = call('convert', wrong, f'--pth={pth}', f'--workdir={run}x', code=2)
  assert 'RGB images' in text and not pathlib.Path(f'{run}x').exists()
  text = call('convert', f'--workdir={run}', code=2)
  assert '--pth' in text and '--out' in text


def test_cost_prints_the_papers_total():
  out = call('cost', '--config=configs/fractalmar_in64.py')
  assert '431,995,648' in out and '437.4' in out
  out = call('cost', DIGITS, '--config.model.kinds=mar,ar,pixel')
  assert '0 mar' in out and '1 ar' in out


@pytest.mark.parametrize(
  'args, words',
  [
    (['nonsense'], ["no command 'nonsense'", 'train']),
    (['train', DIGITS], ['--workdir']),
    (
      ['train', DIGITS, '--workdir=X', '--config.optim.stepz=3'],
      ['stepz', '"steps"'],
    ),
    (['cost', '--config=configs/none.py'], ['configs/none.py']),
    (
      ['cost', DIGITS, '--config.optim.lr=1', '--config.optim.lr=2'],
      ['--config.optim.lr is given more than once'],
    ),
    (
      ['cost', DIGITS, '--config.model.widths=a,b', '--config.seed=-1'],
      ["model.widths=('a,b',) must be a tuple", 'seed=-1 must be'],
    ),
    (['cost', DIGITS, '--mesh=fsdp=8'], ['--device=None', 'v5e', 'H100']),
    (
      ['cost', DIGITS, '--mesh=data=-1,fsdp=8', '--device=v5e'],
      ['-1 needs --devices'],
    ),
    (['cost', DIGITS, '--topology=A100:8'], ["no chip 'A100'", 'v5e:8x8']),
    (
      [
        'train',
        DIGITS,
        '--workdir=X',
        '--config.model.sizes=(8,3,1)',
        '--config.model.heads=(5,4,2)',
      ],
      ['3 does not divide 8', 'heads[0]=5'],
    ),
    (['cost', '--flagfile=X'], ['X', 'No such file']),
    (
      ['sample', '--workdir=X', '--config.sample.order=halton'],
      ["'config.sample.order'\nThe config is that of --workdir; --order sets"],
    ),
    (
      ['likelihood', '--workdir=X', '--config.model.dtype=float32'],
      ["'config.model.dtype'\nThe config is that of --workdir.\n"],
    ),
    (
      ['train', '--workdir=X', '--config.seed=1'],
      ["'config.seed'", 'It changes a key of --config: give that, too.\n'],
    ),
    (['likelihood', '--workdir=X'], ['X', 'config.json']),
    (['demo', '--workdir=X'], ['X', 'config.json']),
    (
      ['sample', '--workdir=X', '--num=0'],
      ['--num=0', 'must be a whole number at least 1'],
    ),
    (['sample', '--workdir=X', '--out=a.bmp'], ['a.bmp', '.png']),
    (
      ['explain', '--workdir=nab_ar', '--index=0', '--out=X'],
      ['data of --workdir=nab_ar are not here', '--image=FILE'],
    ),
    (
      ['ab', '--a=nab_ar', '--b=nab_ar', '--level=0'],
      ['data of --a=nab_ar are not here'],
    ),
    (['likelihood', '--workdir=nab_ar'], ['name other data by --data']),
    (
      ['train', DIGITS, '--config.foo=1', '--workdir=X'],
      ['no config has the key foo'],
    ),
    (
      [
        'edit',
        '--workdir=digits_ar',
        '--image=X',
        '--split=train',
        '--mode=lower',
      ],
      ['--split goes with --index'],
    ),
    (['pilot', 'check', 'X', '--size=8'], ['--size is for pilot init: leave']),
    (['pilot', 'init', '--stage=data'], ['--stage is for pilot run']),
    (['pilot', 'run', 'X', '--out=Y'], ['--out is for pilot init']),
    (
      ['edit', '--workdir=X', '--mode=lower', '--box=1,1,2,2'],
      ['--box goes with --mode=inpaint or class'],
    ),
    (['edit', '--workdir=X', '--mode=class'], ['--label']),
  ],
)
def test_bad_input_is_named_with_the_way_out(args, words):
  text = call(*args, code=2)
  for word in words:
    assert word in text
  assert 'Traceback' not in text
  assert not (ROOT / 'X').exists()


def test_bad_labels_and_a_changed_model_are_refused(workdir):
  text = call('sample', f'--workdir={workdir}', '--labels=3,12', code=2)
  assert '0 to 9' in text
  text = call('train', DIGITS, f'--workdir={workdir}', code=2)
  assert 'model.widths' in text


def test_nothing_that_is_needed_is_replaced(workdir, tmp_path):
  rows = ''.join(f'{i}\n' for i in range(99))
  for command, name in (('anomaly', 'scores'), ('forecast', 'forecast')):
    data = tmp_path / f'{name}.csv'
    data.write_text(f'a\n{rows}')
    text = call(command, f'--data={data}', f'--out={tmp_path}', code=2)
    assert 'is what --data names, and would be replaced' in text
    assert data.read_text() == f'a\n{rows}'
  out = tmp_path / 'image.npy'
  np.save(out, np.zeros((8, 8, 1), int))
  (tmp_path / 'link.npy').symlink_to(out)
  args = f'--image={tmp_path}/link.npy', '--mode=lower', f'--out={out}'
  text = call('edit', f'--workdir={workdir}', *args, code=2)
  assert 'is what --image names' in text and np.load(out).ndim == 3
  out = f'--out={workdir}/config.json'
  text = call('likelihood', f'--workdir={workdir}', out, code=2)
  assert 'is a part of the run' in text


def test_edit_and_explain_need_only_the_workdir(workdir, tmp_path):
  from PIL import Image

  out = tmp_path / 'edit.png'
  args = [f'--workdir={workdir}', '--index=2']
  text = call('edit', *args, '--mode=lower', '--num=1', f'--out={out}')
  assert '1 completions' in text
  with Image.open(out) as image:
    assert image.size == (8, 8)
  text = call('edit', *args, f'--out={out}', code=2)
  assert '--mask=FILE' in text
  folder = tmp_path / 'explain'
  text = call('explain', *args, '--label=3', f'--out={folder}', '--passes=2')
  assert 'bits/dim' in text and (folder / 'report.html').exists()


def test_a_home_that_takes_no_cache(monkeypatch, tmp_path):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert main.cache_folder() == f'{tmp_path}/.cache/fractal_jax/xla'
  monkeypatch.setenv('HOME', '/proc/nowhere')
  assert main.cache_folder() is None


def test_a_run_that_may_not_be_written_to_is_evaluated(monkeypatch, tmp_path):
  flags = types.SimpleNamespace(cache=None, workdir=str(tmp_path))
  for module in (evaluate, common):
    monkeypatch.setattr(module, 'FLAGS', flags)
  assert evaluate.cache() == str(tmp_path)
  flags.workdir = '/proc/run'
  with pytest.raises(common.UsageError, match='--cache=DIR'):
    evaluate.cache()
  flags.cache = f'{tmp_path}/new'
  assert evaluate.cache() == flags.cache


def test_a_closed_pipe_loses_no_steps(tmp_path):
  """`train | head`, in a terminal that can print ASCII alone."""
  often = ['--config.optim.log_every=1', '--config.eval.every=2']
  args = 'train', DIGITS, f'--workdir={tmp_path}', *TINY[:-1], *often
  job = start(*args, '--config.optim.steps=9999', PYTHONIOENCODING='ascii')
  for line in job.stdout:
    if 'validation bits/dim' in line:  # after a step: '±' is no obstacle
      assert re.search(r'bits/dim: [\d.]+ \? ', line), line
      break
  job.stdout.close()
  errors = job.stderr.read()
  assert job.wait(300) == 141, errors
  saved = int(re.search(r'saved after step (\d+)', errors)[1])
  assert (tmp_path / 'checkpoints' / str(saved)).is_dir()
  assert 'Traceback' not in errors and 'ignored' not in errors


def test_other_commands_end_quietly_where_nobody_reads():
  job = start('cost', '--config=configs/fractalmar_in64.py')
  job.stdout.close()
  errors = job.stderr.read()
  assert job.wait(300) == 141 and 'Traceback' not in errors


@pytest.mark.parametrize('name', ['coordinator', 'processes', 'process'])
def test_flags_of_several_processes_do_nothing_alone(name, monkeypatch):
  kept = jax.config.jax_compilation_cache_dir
  monkeypatch.setattr(main, 'cache_folder', lambda: kept)
  given = f'--{name}=2'
  with commandline.flags_of('train', DIGITS, '--workdir=X', given):
    with pytest.raises(common.UsageError, match=f'{given} is for several'):
      main.start()


def test_help_to_a_full_disk_or_to_nobody():
  if os.path.exists('/dev/full'):
    with open('/dev/full', 'w') as full:
      job = start(stdout=full)
      errors = job.communicate(timeout=300)[1]
    assert job.returncode == 2 and errors.count('\n') == 1, errors
    assert 'No space left on device' in errors
  job = start('cost', '--help')
  job.stdout.close()
  assert (job.stderr.read(), job.wait(300)) == ('', 141)


def test_what_is_written_to_closed_streams_is_in_no_file(tmp_path):
  code = (
    'import os; from fractal_jax import main; main.open_streams(); '
    f"file = open('{tmp_path}/x', 'w'); os.write(1, b'text')"
  )
  command = f'exec "{sys.executable}" -c "$CODE" >&-'
  env = os.environ | {'CODE': code, 'PYTHONPATH': str(ROOT)}
  assert subprocess.run(['sh', '-c', command], env=env).returncode == 0
  assert (tmp_path / 'x').read_bytes() == b''


def test_a_command_whose_streams_are_closed_ends_as_any_other():
  command = f'exec "{sys.executable}" -m fractal_jax.main cost >&- 2>&-'
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  assert subprocess.run(['sh', '-c', command], env=env).returncode == 2


def test_reads_that_nobody_waits_for_are_not_told(monkeypatch):
  told = []
  monkeypatch.setattr(sys, 'unraisablehook', told.append)
  main.hush()
  for text in ('Event loop is closed', 'another'):
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
  assert [str(x.exc_value) for x in told] == ['another']


def test_ctrl_c_is_one_line(workdir):
  job = start('sample', f'--workdir={workdir}', '--num=100000')
  time.sleep(6)
  job.send_signal(signal.SIGINT)
  errors = job.communicate(timeout=300)[1]
  assert job.returncode == 130, errors
  assert errors.splitlines()[-1] == 'fractal-jax sample: interrupted'
  assert 'Traceback' not in errors


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_are_one_line_too(number, capsys):
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, number)}
  try:
    main.listen()
    with pytest.raises(main.Stopped) as stopped:
      signal.raise_signal(number)
    assert signal.getsignal(number) == signal.SIG_DFL  # a second one kills
    with pytest.raises(SystemExit) as end:
      main.leave_after('sample', stopped.value)
  finally:
    for n, handler in before.items():
      signal.signal(n, handler)
  assert end.value.code == 128 + number
  text = f'fractal-jax sample: interrupted by {number.name}\n'
  assert capsys.readouterr().err == text


@pytest.mark.parametrize(
  'error, words',
  [
    (MemoryError('Unable to allocate 8 TiB'), 'out of memory: ask for fewer'),
    (FileNotFoundError(2, 'No such file', 'x/y'), 'x/y'),
    (OSError(36, 'File name too long', 'x'), 'too long'),
    (OSError(28, 'No space left'), 'No space left'),
    (
      ValueError('RESOURCE_EXHAUSTED: x: No space left on device'),
      'fractal-jax sample: RESOURCE_EXHAUSTED: x: No space left',
    ),
  ],
)
def test_what_a_user_can_mend_is_one_line(error, words, capsys):
  with pytest.raises(SystemExit) as end:
    main.leave_after('sample', error)
  text = capsys.readouterr().err
  assert end.value.code == 2 and words in text and text.count('\n') == 1


def test_a_lost_process_is_a_crash_which_launchers_start_again():
  import jax

  lost = jax.errors.JaxRuntimeError('UNAVAILABLE: a peer is gone')
  with pytest.raises(jax.errors.JaxRuntimeError):
    main.leave_after('train', lost)


def test_a_number_too_large_to_count_with_is_refused(monkeypatch):
  with commandline.flags_of('sample', '--workdir=x', f'--step={10**30}'):
    with pytest.raises(common.UsageError, match=f'at most {2**31 - 1}'):
      main.check_numbers()
  with commandline.flags_of('sample', '--workdir=x', f'--seed={2**32 - 1}'):
    main.check_numbers()


@pytest.mark.parametrize('text', ['x', '0', '3:0', '1:2:3'])
def test_a_profile_is_of_steps(text):
  flag = f'--profile={text}'
  out = call('train', DIGITS, '--workdir=X', flag, code=2)
  assert f'{flag} must be STEP or STEP:COUNT' in out


def test_distributed_says_what_is_missing():
  job = start('train', DIGITS, '--workdir=X', '--distributed')
  _, errors = job.communicate(timeout=300)
  assert job.returncode == 2
  assert '--coordinator=HOST:PORT, --processes=COUNT, --process=INDEX' in errors
  assert 'Traceback' not in errors and not (ROOT / 'X').exists()


def test_another_seed_is_refused(workdir):
  out = call(
    'train', DIGITS, f'--workdir={workdir}', *TINY, '--config.seed=5', code=2
  )
  assert 'seed: 0 before, 5 now' in out and 'Traceback' not in out


def test_the_largest_seed_of_a_config_is_taken():
  text = call('train', DIGITS, '--config.seed=4294967295', '--show')
  assert 'c.seed = 4294967295' in text
  text = call(
    'train', DIGITS, '--config.seed=4294967296', '--workdir=X', code=2
  )
  assert 'seed=4294967296 must be' in text and 'at most 4294967295' in text


def test_no_class_may_stand_among_classes():
  with commandline.flags_of(
    'sample', '--workdir=digits_ar', '--labels=none, 1'
  ):
    assert sample.classes(common.load_config().model) == [-1, 1]


def test_a_mask_of_nothing_is_refused(tmp_path):
  np.save(tmp_path / 'mask.npy', np.zeros((8, 8), bool))
  np.save(tmp_path / 'image.npy', np.zeros((8, 8, 1), int))
  text = call(
    'edit', '--workdir=digits_ar', f'--image={tmp_path}/image.npy',
    f'--mask={tmp_path}/mask.npy', f'--out={tmp_path}/x.png', code=2,
  )  # fmt: skip
  assert 'mask.npy is black, or False, everywhere' in text
