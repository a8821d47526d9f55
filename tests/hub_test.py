"""Models by name: pushed to and pulled from a Hub on this machine."""

import os
import socket

import jax
import numpy as np
import pytest

import fractal_jax
from fractal_jax import api
from fractal_jax.release import ReleaseError, hub, weights
from fractal_jax.training import CheckpointError, checkpoint, restore
from tests import commandline, hub_server, tiny
from tests.release_test import KIND, configure

constants = pytest.importorskip('huggingface_hub.constants')


@pytest.fixture(scope='module')
def served():
  with hub_server.serve() as found:
    yield found


@pytest.fixture(autouse=True)
def web(served, tmp_path, monkeypatch):
  """The Hub, for this test, with the right token and an empty cache."""
  monkeypatch.setenv('HF_ENDPOINT', served.url)
  monkeypatch.setenv('HF_TOKEN', hub_server.TOKEN)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  # As they are read at import: another test may have gone offline.
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
  monkeypatch.chdir(tmp_path)
  served.repos.clear()
  served.asked.clear()
  served.ranges.clear()
  return served


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('run'))
  checkpoint.save_params(workdir, configure(), tiny.build(*KIND)[1])
  return api.load(workdir)


@pytest.fixture(scope='module')
def files(model, tmp_path_factory):
  """The files of a release of the model, by name."""
  folder = tmp_path_factory.mktemp('release')
  model.save_pretrained(str(folder), name='me/there')
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def assert_equal(params, wanted):
  jax.tree.map(np.testing.assert_array_equal, params, wanted)


def call(command, *arguments):
  with commandline.flags_of(command, *arguments) as job:
    job.run()


def downloads(web, name=weights.FILE):
  return [
    path for method, path in web.asked if method == 'GET' and name in path
  ]


# There and back.


def test_what_is_pushed_is_loaded_by_name(web, model):
  url = model.push_to_hub('me/mine', private=True, license='mit')
  assert url.startswith(f'{web.url}/me/mine/commit/')
  assert web.repos['me/mine']['private']
  assert web.files('me/mine').keys() == {
    'README.md', 'config.json', 'model.safetensors',
  }  # fmt: skip
  assert b"from_pretrained('me/mine')" in web.files('me/mine')['README.md']
  found = fractal_jax.Model.from_pretrained('me/mine')
  assert_equal(found.params, model.params)
  images = tiny.images(model.net, 8)
  np.testing.assert_array_equal(found.log_prob(images), model.log_prob(images))


def test_a_branch_tag_or_commit(web, model, files):
  first = web.add('me/mine', files)
  old = model.params
  new = jax.tree.map(lambda x: x + 1, old)
  changed = api.Model(model.config, model.net, new, model.mesh)
  changed.push_to_hub('me/mine')
  model.push_to_hub('me/mine', revision='v0')
  load = fractal_jax.Model.from_pretrained
  assert_equal(load('me/mine').params, new)
  for found in (
    load('me/mine', revision=first),
    load(f'me/mine@{first}'),
    load('me/mine', revision='v0'),
  ):
    assert_equal(found.params, old)
  with pytest.raises(ReleaseError, match='me/mine@v9 has no such revision'):
    load('me/mine@v9')


def test_parts_of_an_older_push_are_removed(web, model, files):
  parts = {'model-00001-of-00002.safetensors': b'', 'other.txt': b'kept'}
  web.add('me/mine', files | parts | {weights.INDEX: b'{}'})
  model.push_to_hub('me/mine')
  assert web.files('me/mine').keys() == {*files, 'other.txt'}


def test_only_the_files_of_a_release_are_fetched(web, files):
  """Code and pickles stay where they are."""
  evil = {'modeling.py': b'raise 1', 'pytorch_model.bin': b'', 'a/b.py': b''}
  web.add('me/evil', files | evil)
  found = hub.folder('me/evil')
  assert sorted(os.listdir(found)) == sorted(files)
  assert not [p for _, p in web.asked if p.endswith(('.py', '.bin'))]


# The cache, and networks that fail.


def test_the_cache_needs_no_network(web, model, files, tmp_path, monkeypatch):
  web.add('me/mine', files)
  load = fractal_jax.Model.from_pretrained
  how = {'cache_dir': str(tmp_path / 'mine')}
  load('me/mine', **how)
  assert len(downloads(web)) == 1
  load('me/mine', **how)
  assert len(downloads(web)) == 1
  web.asked.clear()
  assert_equal(
    load('me/mine', local_files_only=True, **how).params, model.params
  )
  assert not web.asked
  with socket.socket() as closed:
    closed.bind(('127.0.0.1', 0))
    port = closed.getsockname()[1]
  monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{port}')
  load('me/mine', **how)
  with pytest.raises(
    ReleaseError, match='me/mine is not in the cache, and.*ca'
  ):
    load('me/mine')
  with pytest.raises(ReleaseError, match='is not in the cache'):
    load('me/mine', local_files_only=True)
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(ReleaseError, match=r'unset \$HF_HUB_OFFLINE'):
    load('me/mine')
  with pytest.raises(ReleaseError, match='Hub cannot be'):
    model.push_to_hub('me/mine')


def test_half_a_download_goes_on(web, model, files, tmp_path, monkeypatch):
  """Files that came whole are not fetched again."""
  monkeypatch.setattr('time.sleep', lambda seconds: None)  # before a retry
  web.add('me/mine', files)
  out = str(tmp_path / 'out')
  web.cut[weights.FILE] = 5000
  web.fail.add(weights.FILE)
  with pytest.raises(ReleaseError, match='me/mine: .*cannot be used'):
    hub.pull('me/mine', out)
  with pytest.raises(CheckpointError, match='has no checkpoint yet'):
    restore.restore_params(out)
  web.fail.clear()
  web.asked.clear()
  hub.pull('me/mine', out)
  assert downloads(web) and not downloads(web, 'config.json')
  assert_equal(api.load(out).params, model.params)


def test_a_cut_connection_is_mended(web, model, files, monkeypatch):
  """It goes on where it was cut."""
  monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1000)
  monkeypatch.setattr('time.sleep', lambda seconds: None)
  web.add('me/mine', files)
  web.cut[weights.FILE] = 5000
  found = fractal_jax.Model.from_pretrained('me/mine')
  assert_equal(found.params, model.params)
  assert len(downloads(web)) == 2 and web.ranges == ['bytes=5000-']


# Refusals.


def test_what_the_hub_refuses_is_said(web, model, files, monkeypatch):
  load = fractal_jax.Model.from_pretrained
  web.add('me/mine', files, private=True)
  web.add('me/gated', files, gated=True)
  with pytest.raises(ReleaseError, match='has no me/none, or it is private'):
    load('me/none')
  with pytest.raises(ReleaseError, match='give access on request'):
    load('me/gated')
  with pytest.raises(ReleaseError, match='refuses the token for me/mine.*401'):
    load('me/mine', token='hf_wrong')
  with pytest.raises(ReleaseError, match='refuses the token for me/mine.*401'):
    model.push_to_hub('me/mine', token='hf_wrong')
  monkeypatch.delenv('HF_TOKEN')
  with pytest.raises(ReleaseError, match='or it is private.*hf auth login'):
    load('me/mine')
  with pytest.raises(ReleaseError, match='no local folder me/mine'):
    load('me/mine')
  with pytest.raises(ReleaseError, match="'mine' must be user/name"):
    model.push_to_hub('mine')
  with pytest.raises(ReleaseError, match='no name that a repository may have'):
    load('me/a..b')


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
  with pytest.raises(ReleaseError, match=r"pip install 'fractal_jax\[hub\]'"):
    hub.folder('me/mine')
  with pytest.raises(ReleaseError, match=r"pip install 'fractal_jax\[hub\]'"):
    hub.check_repository('me/mine')


def test_what_is_no_name_of_a_repository_is_left_alone(web, tmp_path):
  (tmp_path / 'runs').mkdir()
  for name in (
    'runs/typo', '/a/b', './a/b', 'a/b/c', 'runs', 'digits', 'gs://a/b', '~/a',
    '', '..', '../a',
  ):  # fmt: skip
    assert hub.folder(name) == name
  assert not web.asked
  with pytest.raises(ReleaseError, match='has no hf://runs/typo'):
    hub.folder('hf://runs/typo')
  with pytest.raises(ReleaseError, match="'runs' is no name of a repository"):
    hub.pull('runs', None)


# The command line.


def test_push_pull_and_use_by_name(web, model, capsys, tmp_path):
  call('push', f'--workdir={model.origin}', '--repo=you/a', '--license=mit')
  out = capsys.readouterr().out
  assert f'pushed: {web.url}/you/a/commit/' in out
  assert b'license: mit' in web.files('you/a')['README.md']
  call('pull', '--repo=you/a', '--out=mine')
  out = capsys.readouterr().out
  assert 'fractal-jax sample --workdir=mine' in out
  assert_equal(api.load('mine').params, model.params)
  # A release goes as it is, its card too; a run's card can be written.
  (tmp_path / 'mine' / 'README.md').write_text('By hand.')
  call('push', '--workdir=mine', '--repo=you/b', '--private')
  assert web.files('you/b')['README.md'] == b'By hand.'
  assert web.repos['you/b']['private']
  with pytest.raises(fractal_jax.errors.UserError, match='--license is for ru'):
    call('push', '--workdir=mine', '--repo=you/b', '--license=mit')
  call('sample', '--workdir=you/a', '--num=2', '--out=x.png', '--batch=2')
  assert (tmp_path / 'x.png').exists()
  call('convert', '--workdir=you/a', '--out=copy')
  assert_equal(api.load('copy').params, model.params)


def test_pull_looks_whether_it_is_whole(web, files):
  web.add('me/half', {'README.md': b'', 'config.json': files['config.json']})
  with pytest.raises(fractal_jax.errors.UserError, match='no checkpoint yet'):
    call('pull', '--repo=me/half')
  web.add('me/bert', {'config.json': b'{"architectures": ["Bert"]}'})
  with pytest.raises(CheckpointError, match='no config of fractal_jax'):
    call('pull', '--repo=me/bert')


def test_shipped_models_have_names(tmp_path):
  for name in hub.shipped():
    assert hub.folder(name) == str(hub.SHIPPED / name)
    (tmp_path / name).mkdir()
    assert hub.folder(name) == name  # a local folder comes first
