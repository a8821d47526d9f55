"""Releases: written, read on any mesh, and refused in words where damaged."""

import json
import pathlib
import struct

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors
import yaml

import fractal_jax
from fractal_jax import api, config, convert, paths
from fractal_jax.data import classes
from fractal_jax.models import fractal
from fractal_jax.release import ReleaseError, card, folder, weights
from fractal_jax.training import CheckpointError, checkpoint, restore, train
from tests import commandline, tiny

KIND = ('ar', 'pixel'), (2, 1)
NAMES = ('ant', 'bee', 'cat')


def configure(**changes):
  c = config.default()
  c.model.update(tiny.model(*KIND, **changes).to_dict())
  c.data.update(dir='/home/me/digits', manual_dir='/home/me')
  c.optim.batch = 8
  return c


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of step 0, with what training leaves beside its checkpoints."""
  found = tmp_path_factory.mktemp('run')
  checkpoint.save_params(str(found), configure(), tiny.build(*KIND)[1])
  classes.save(found, NAMES)
  line = {
    'step': 0, 'val/bits_per_dim': 1.25, 'val/stderr': 0.5, 'val/images': 9.0,
    'val/passes': 1.0, 'val/exact': 1.0, 'val/bound': 0.0, 'val/rounded': 0.0,
  }  # fmt: skip
  (found / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  (found / 'samples').mkdir()
  (found / 'samples' / 'step_0000000.png').write_bytes(b'a picture')
  return str(found)


@pytest.fixture(scope='module')
def model(run):
  return api.load(run)


@pytest.fixture
def release(model, tmp_path):
  """A new release of the model, as a Path."""
  model.save_pretrained(str(tmp_path / 'mine'))
  return tmp_path / 'mine'


def assert_equal(params, wanted):
  jax.tree.map(np.testing.assert_array_equal, params, wanted)


# There and back.


def test_a_release_is_the_same_model(model, release, monkeypatch):
  names = {p.name for p in release.iterdir()}
  assert names == {
    'README.md', 'classes.json', 'config.json', 'model.safetensors',
    'samples.png',
  }  # fmt: skip
  # Who may read one file may read all.
  assert len({p.stat().st_mode for p in release.iterdir()}) == 1
  monkeypatch.chdir(release.parent)
  found = fractal_jax.Model.from_pretrained('./mine')
  assert_equal(found.params, model.params)
  images = tiny.images(model.net, 8)
  for one, other in zip(found.log_prob(images), model.log_prob(images)):
    assert one == other
  assert found.step == 0 and classes.load(release) == NAMES
  # All of the config but what names files of this machine.
  wanted = configure().to_dict()
  wanted['data'].update(dir='', manual_dir='')
  assert found.config.to_dict() == wanted
  assert '/home/me' not in (release / 'config.json').read_text()
  with open(release / 'model.safetensors', 'rb') as file:
    assert b'level_0.blocks.attention.qkv' in file.read(4000)


def test_eight_devices_read_their_parts_of_what_one_saved(
  model, release, monkeypatch
):
  one = jax.tree.map(np.asarray, model.params)
  mesh, wanted = tiny.on_mesh(model.net, one, (2, 2, 2))
  asked = []
  with weights.opened(release) as tensors:
    name = 'level_0.blocks.attention.qkv'
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      wanted,
    )
    files = tensors._files

    class Spy:
      def get_slice(self, name):
        self.inner = files[name].get_slice(name)
        return self

      def __getitem__(self, index):
        part = self.inner[index]
        asked.append(part.shape)
        return part

    monkeypatch.setattr(tensors, '_files', dict.fromkeys(files, Spy()))
    found = tensors.read({'level_0': like['level_0']})
  assert_equal(found['level_0'], model.params['level_0'])
  qkv = found['level_0']['blocks']['attention']['qkv']
  assert name and qkv.sharding.spec == tiny.QKV
  layers, width, three, columns = qkv.shape
  assert (layers, width // 2, three, columns // 2) in asked
  assert qkv.shape not in asked
  found = fractal_jax.Model.from_pretrained(str(release), mesh=mesh)
  assert_equal(found.params, model.params)
  same = lambda x, y: np.testing.assert_(x.sharding == y.sharding)
  jax.tree.map(same, found.params, wanted)


def test_bfloat16_takes_half_the_space(model, release, tmp_path):
  half = tmp_path / 'half'
  model.save_pretrained(str(half), dtype='bfloat16')
  size = lambda path: (path / weights.FILE).stat().st_size
  saved = size(release) - size(half)
  assert saved > 1.9 * sum(x.size for x in jax.tree.leaves(model.params))
  found = fractal_jax.Model.from_pretrained(str(half), dtype='bfloat16')
  assert found.config.model.dtype == 'bfloat16'
  rounded = jax.tree.map(
    lambda x: x.astype('bfloat16').astype('float32'), model.params
  )
  assert_equal(found.params, rounded)
  assert 'rounded to bfloat16' in (half / 'README.md').read_text()
  with pytest.raises(ReleaseError, match="dtype='int4' must be float32 or"):
    model.save_pretrained(str(tmp_path / 'other'), dtype='int4')


def test_int8_takes_a_quarter_of_the_space(model, tmp_path):
  """Every number to half a step of its row, on any mesh."""
  path = tmp_path / 'quarter'
  params = jax.tree.map(lambda x: np.array(x), model.params)
  qkv = params['level_0']['blocks']['attention']['qkv']
  qkv[0, 0, 0] = 0  # a row without a largest number
  odd = api.Model(model.config, model.net, params, model.mesh)
  odd.save_pretrained(str(path), dtype='int8')
  found = api.load(str(path))

  def near(x, wanted):
    step = np.abs(wanted).max(-1, keepdims=True) / 127 if wanted.ndim > 1 else 0
    assert (np.abs(x - wanted) <= 0.501 * step).all()

  jax.tree.map(near, found.params, params)
  assert 'stored as int8' in (path / 'README.md').read_text()
  _, on_mesh = tiny.on_mesh(model.net, params, (2, 2, 2))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    on_mesh,
  )
  with weights.opened(path) as tensors:
    assert_equal(tensors.read(like), found.params)
  stored = safetensors.load_file(path / weights.FILE)
  matrices = [x for x in stored.values() if x.dtype == np.int8]
  assert len(matrices) > 5 and max(np.abs(x).max() for x in matrices) == 127
  name = 'level_0.blocks.attention.qkv'
  for wrong, words in (
    ({name: stored[name]}, 'qkv is I8; expected F32, .*or I8 with'),
    (
      {name: stored[name], f'{name}:scale': np.zeros(3, np.float32)},
      r'qkv:scale has the shape \(3,\)',
    ),
  ):
    safetensors.save_file(wrong, path / weights.FILE)
    with pytest.raises(ReleaseError, match=words):
      api.load(str(path))


def test_parts_and_their_index(model, release, monkeypatch):
  monkeypatch.setattr(weights, 'PART_BYTES', 4000)
  model.save_pretrained(str(release))
  parts = sorted(p.name for p in release.glob('model-*.safetensors'))
  assert parts[0] == f'model-00001-of-{len(parts):05d}.safetensors'
  assert len(parts) > 2 and not (release / weights.FILE).exists()
  index = json.loads((release / weights.INDEX).read_text())
  assert set(index['weight_map'].values()) == set(parts)
  number = sum(x.size for x in jax.tree.leaves(model.params))
  assert index['metadata']['total_size'] == 4 * number
  assert_equal(api.load(str(release)).params, model.params)
  (release / parts[1]).unlink()
  with pytest.raises(ReleaseError, match=f'{parts[1]} is missing.*half a down'):
    api.load(str(release))
  index['weight_map']['x'] = '../../secret'
  (release / weights.INDEX).write_text(json.dumps(index))
  with pytest.raises(ReleaseError, match='index.json is .*names the files'):
    api.load(str(release))
  monkeypatch.undo()
  model.save_pretrained(str(release))
  assert (
    not list(release.glob('model-*')) and not (release / weights.INDEX).exists()
  )


def test_a_level_of_a_release_is_a_start(model, release, tmp_path):
  c = configure()
  c.model.update(init_from=str(release), init_levels=(1,))
  net = fractal.from_config(c.model)
  found = train.given_levels(net, c, mesh=model.mesh)
  assert_equal(found, {'level_1': model.params['level_1']})
  c.model.update(tiny.model(*KIND, widths=(16, 8)).to_dict())
  c.model.update(init_from=str(release), init_levels=(1,))
  net = fractal.from_config(c.model)
  with pytest.raises(CheckpointError, match='misshapen: level_1/'):
    train.given_levels(net, c, mesh=model.mesh)


def test_nothing_is_trained_or_written_over(model, run, release):
  before = (release / 'config.json').read_bytes()
  with pytest.raises(CheckpointError, match='is a release.*model.init_from='):
    checkpoint.check_config(configure(), str(release))
  assert (release / 'config.json').read_bytes() == before
  with pytest.raises(ReleaseError, match='work directory of a run'):
    model.save_pretrained(run)
  with pytest.raises(ReleaseError, match='is what the model is read from'):
    api.load(str(release)).save_pretrained(f'{release}/', dtype='int8')
  with pytest.raises(CheckpointError, match=r'no checkpoint of step 7.*\[0\]'):
    restore.restore_like(str(release), 7, {})


# Damage.


def cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def lie(path):
  """The header says that it is longer than the file."""
  content = path.read_bytes()
  path.write_bytes(struct.pack('<Q', 1 << 40) + content[8:])


def larger(path):
  """The header says that the last tensor is larger than the file."""
  content = path.read_bytes()
  (size,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8 : 8 + size])
  name = max(header, key=lambda n: header[n].get('data_offsets', [0, 0])[1])
  header[name]['data_offsets'][1] += 400
  header[name]['shape'] = [
    (b - a) // 4 for a, b in [header[name]['data_offsets']]
  ]
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + content[8 + size :])


def write(tensors):
  return lambda path: safetensors.save_file(tensors, path)


@pytest.mark.parametrize(
  'damage, words',
  [
    (cut, 'cut off, damaged'),
    (lie, 'cut off, damaged'),
    (larger, 'cut off, damaged'),
    (lambda path: path.write_bytes(b''), 'cut off, damaged'),
    (lambda path: path.write_text('<html>not found</html>'), 'something else'),
    (write({'bert.weight': np.zeros(3, np.float32)}), 'extra: bert/weight'),
    (write({'labels.table': np.zeros(3, np.int64)}), 'labels.table is I64'),
    (
      write({'a': np.zeros(3, np.float32), 'a.b': np.zeros(3, np.float32)}),
      'a is both',
    ),
  ],
)
def test_damaged_weights_are_refused(release, damage, words):
  damage(release / weights.FILE)
  with pytest.raises((ReleaseError, CheckpointError), match=words):
    api.load(str(release))


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda c: c | {'version': 3}, 'format 3, .*install a newer one'),
    (lambda c: {'architectures': ['Bert']}, 'no config of fractal_jax'),
    (lambda c: [1], 'no config of fractal_jax'),
    (lambda c: c | {'optim': 3}, 'optim is no section'),
    (lambda c: c | {'model': c['model'] | {'widths': [8, 8]}}, 'misshapen'),
    (lambda c: c | {'model': c['model'] | {'kinds': ['x', 'pixel']}}, 'kinds'),
  ],
)
def test_configs_that_are_something_else_are_refused(release, change, words):
  path = release / 'config.json'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  with pytest.raises(fractal_jax.errors.UserError, match=words):
    api.load(str(release))


def test_a_release_without_its_config(release):
  (release / 'config.json').unlink()
  with pytest.raises(CheckpointError, match='has no config.json'):
    api.load(str(release))


# The card.


def test_a_card_says_what_it_is_and_what_was_measured(release):
  text = (release / 'README.md').read_text()
  _, head, page = text.split('---\n', 2)
  head = yaml.safe_load(head)
  assert head['library_name'] == 'fractal_jax' and head['license'] == 'unknown'
  assert head['pipeline_tag'] == 'unconditional-image-generation'
  assert head['datasets'] == ['digits'] and 'ar' in head['tags']
  (index,) = head['model-index']
  (result,) = index['results']
  assert result['metrics'] == [
    {'name': 'bits per dimension', 'type': 'bits_per_dim', 'value': 1.25}
  ]
  assert result['dataset']['split'] == 'validation'
  for words in (
    '# mine\n',
    '0 ant, 1 bee, 2 cat',
    "from_pretrained('mine')",
    '| bits per dimension | 1.2500 ± 0.5000 | 9 images of validation, exact | '
    '`fractal-jax likelihood --workdir=mine` |',
    '![Samples of the model](samples.png)',
  ):
    assert words in page


def test_the_hub_understands_a_card(release):
  hub = pytest.importorskip('huggingface_hub')
  found = hub.ModelCard.load(release / 'README.md').data
  assert found.library_name == 'fractal_jax'
  assert found.eval_results[0].metric_value == 1.25


def test_numbers_of_commands(model, tmp_path):
  measured = {
    'command': 'fractal-jax evaluate --workdir=a/b --num=90 --out=x.json',
    'num': 90, 'fid': 3.5, 'recall': None, 'inception_score': 2.0,
    'inception_score_std': 0.25, 'reference': {'name': 'digits train'},
  }  # fmt: skip
  path = tmp_path / 'numbers.json'
  path.write_text(json.dumps(measured))
  release = tmp_path / 'mine'
  how = {'license': 'mit', 'made_by': 'launch/release.sh'}
  model.save_pretrained(str(release), numbers=[str(path)], **how)
  text = (release / 'README.md').read_text()
  assert 'license: mit' in text and '\nlaunch/release.sh\n' in text
  assert (
    '| FID | 3.5000 | 90 images against digits train | `fractal-jax evaluate '
    '--workdir=mine --num=90` |'
  ) in text
  assert '| Inception Score | 2.0000 ± 0.2500 |' in text
  assert 'recall' not in text and 'bits per dimension' not in text
  for content in ('{}', '[3]', 'x', '{"bits_per_dim": 3}'):
    path.write_text(content)
    with pytest.raises(ReleaseError, match='numbers.json (is no|holds none)'):
      model.save_pretrained(str(release), numbers=[str(path)])
  with pytest.raises(ReleaseError, match='samples=none.png is no file'):
    model.save_pretrained(str(release), samples='none.png')


def test_a_card_of_series_and_of_local_data():
  c = configure(rank=1)
  c.data.name = 'folder'
  text = card.text(c, 7, 'float32', card.About('waves'))
  head = yaml.safe_load(text.split('---\n')[1])
  assert head['pipeline_tag'] == 'time-series-forecasting'
  assert 'datasets' not in head and 'model-index' not in head
  assert 'series = model.sample(num=16)  # [16, 2, 1]' in text


# The command line.


def call(command, *arguments):
  with commandline.flags_of(command, *arguments) as job:
    job.run()


def published_weights(folder):
  """Published weights, parameters, and c.py: the config they belong to."""
  c = configure(channels=3, num_values=256)
  checkpoint.save_config(c, folder)
  (folder / 'c.py').write_text(
    'from fractal_jax.training import checkpoint\n'
    f'get_config = lambda: checkpoint.load_config({str(folder)!r})\n'
  )
  _, params = tiny.build(*KIND, channels=3, num_values=256)
  return convert.to_published(params, c.model), params


@pytest.fixture
def published(tmp_path):
  state, params = published_weights(tmp_path)
  convert.write(str(tmp_path / 'w.safetensors'), state)
  return tmp_path, state, params


def test_published_weights_become_a_release_and_come_back(published):
  root, state, params = published
  config, pth = f'--config={root}/c.py', f'--pth={root}/w.safetensors'
  out = root / 'release'
  call('convert', config, pth, f'--out={out}', '--license=mit')
  assert_equal(api.load(str(out)).params, params)
  text = (out / 'README.md').read_text()
  assert 'license: mit' in text and 'model-index' not in text
  for ending in convert.ENDINGS:
    if ending == '.pth':
      pytest.importorskip('torch')
    back = f'{root}/back{ending}'
    call('convert', f'--workdir={out}', f'--out={back}')
    found = convert.read(back)
    assert found.keys() == state.keys()
    for name in state:
      np.testing.assert_array_equal(found[name], state[name])
  # A file of the other kind, and a run.
  call('convert', config, f'--pth={back}', f'--out={root}/other.safetensors')
  assert convert.read(f'{root}/other.safetensors').keys() == state.keys()
  call('convert', config, f'--pth={back}', f'--workdir={root}/new')
  assert_equal(api.load(f'{root}/new').params, params)


def test_convert_refuses_before_the_work(published):
  root, _, _ = published
  config, pth = f'--config={root}/c.py', f'--pth={root}/w.safetensors'
  for arguments, words in (
    ((pth,), 'give two of'),
    ((config, pth, '--out=a', '--workdir=b'), 'give two of'),
    ((pth, f'--out={root}/x'), 'needs the --config'),
    ((f'--workdir={root}/x', f'--out={root}/c.py/x'), 'cannot be written'),
    ((f'--workdir={root}/x', '--out=/dev/x.pth'), 'x has|no config.json'),
    ((config, f'--pth={root}/none.safetensors', '--out=a'), 'There is no file'),
    ((config, f'--pth={root}/c.py', '--out=a'), 'PyTorch'),
  ):
    with pytest.raises(fractal_jax.errors.UserError, match=words):
      call('convert', *arguments)
  (root / 'w.safetensors').write_bytes(b'something else')
  with pytest.raises(convert.ConvertError, match='no whole .safetensors'):
    call('convert', config, pth, f'--out={root}/x')
  safetensors.save_file({'x': np.zeros(2, bool)}, root / 'w.safetensors')
  with pytest.raises(convert.ConvertError, match='x is bool.*real numbers'):
    call('convert', config, pth, f'--out={root}/x')
  assert not (root / 'x').exists()


def test_a_release_is_evaluated_elsewhere(release, tmp_path, monkeypatch):
  from fractal_jax.commands import evaluate

  monkeypatch.setenv('HOME', str(tmp_path))
  with commandline.flags_of('evaluate', f'--workdir={release}'):
    found = evaluate.cache()
  assert paths.path(found) == pathlib.Path(tmp_path, '.cache', 'fractal_jax')


def test_likelihood_writes_its_numbers(monkeypatch, tmp_path):
  """As `--numbers` takes them; with the command that printed them."""
  from fractal_jax.commands import common

  out = tmp_path / 'x.json'
  argv = ['x', 'likelihood', '--workdir=a b', f'--out={out}']
  monkeypatch.setattr('sys.argv', argv)
  common.write_numbers(str(out), {'bits_per_dim': 1.5})
  found = json.loads(out.read_text())
  assert found['bits_per_dim'] == 1.5
  assert found['command'].startswith("fractal-jax likelihood '--workdir=a b'")


def test_what_ships_is_whole():
  """Each of releases/: loads, and its card has numbers and a command."""
  from fractal_jax.release import hub

  for name in hub.shipped():
    text = (hub.SHIPPED / name / 'README.md').read_text()
    assert f'--workdir={name}' in text and 'launch/release.sh' in text
    assert 'model-index' in text and 'license: apache-2.0' in text
    model = api.load(name)
    assert model.step > 0 and folder.FILES
