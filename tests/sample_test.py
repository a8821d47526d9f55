"""Generation as users call it: requests, settings, meshes, steps."""

import jax
from jax.sharding import AxisType
import numpy as np
from PIL import Image
import pytest

from fractal_jax import api, pictures, sharding
from fractal_jax import config as config_lib
from fractal_jax.inference import inputs, sample
from fractal_jax.inference.progress import result_of
from fractal_jax.models.types import NEVER, Given
from fractal_jax.training import CheckpointError, checkpoint
from tests import commandline, tiny


@pytest.fixture(scope='module')
def net_and_params():
  return tiny.build(('mar', 'pixel'), (4, 1), channels=2)


def test_an_image_depends_on_seed_and_index_alone(net_and_params):
  net, params = net_and_params
  labels = sample.round_robin(5, [0, 1, 2])
  config = tiny.config(('mar', 'pixel'), (4, 1), channels=2)
  config.sample.update(guidance=2.0, iterations=(3,))

  def generate(params=params, **how):
    return result_of(sample.draw(net, params, config, labels, **how))

  once = generate(batch=8).values
  assert once.shape == (5, 4, 4, 2) and once.min() >= 0 and once.max() <= 4
  np.testing.assert_array_equal(once, generate(batch=2).values)
  for axes in tiny.MESHES:
    mesh, split = tiny.on_mesh(net, params, axes)
    qkv = split['level_0']['blocks']['attention']['qkv']
    assert qkv.sharding.spec == tiny.QKV
    np.testing.assert_array_equal(once, generate(split, mesh=mesh).values)
  assert (once != generate(batch=8, seed=1).values).any()


@pytest.mark.parametrize(
  'by_guide, changes',
  [
    (
      False,
      dict(
        guidance=(3.0, 1.5), interval=(0.2, 0.8), resample=2, order='halton'
      ),
    ),
    (True, dict(guidance=2.0, candidates=2)),
  ],
  ids=['of_one_model', 'of_two_models'],
)
def test_any_way_of_drawing_is_the_same_on_a_mesh(by_guide, changes):
  kinds, sizes = ('mar', 'mar', 'pixel'), (4, 2, 1)
  c = tiny.config(kinds, sizes, guide=True)
  c.sample.update(iterations=(3, 2))

  def models(axes):
    for seed in (0, 1):
      net, params = tiny.build(kinds, sizes, seed=seed, guide=True)
      mesh = sharding.single_device_mesh()
      if axes:
        mesh, params = tiny.on_mesh(net, params, axes)
        qkv = params['level_0']['blocks']['attention']['qkv']
        assert qkv.sharding.spec == tiny.QKV
      yield api.Model(c, net, params, mesh)

  def images(axes=None):
    model, other = models(axes)
    how = dict(seed=3, guide=other if by_guide else None, **changes)
    return model.sample([0, 1, 2], num=5, **how)

  np.testing.assert_array_equal(images((2, 2, 2)), images())


@pytest.mark.parametrize('kind', ['ar', 'mar'])
def test_watched_images_grow_are_the_same_and_can_be_stopped(kind):
  net, params = tiny.build((kind, 'pixel'), (4, 1))
  config = tiny.config((kind, 'pixel'), (4, 1))
  labels = sample.round_robin(5, [0, 1, -1])
  known = np.zeros((5, 4, 4, 1), bool)
  known[:, 1, 2:] = True
  given = Given(tiny.images(net, 5), known)
  mesh = jax.make_mesh(
    (2, 1, 1), sharding.AXES, (AxisType.Auto,) * 3, devices=jax.devices()[:2]
  )

  def generate(**how):
    return sample.draw(
      net,
      params,
      config,
      labels,
      guidance=2.0,
      iterations=(5,),
      given=given,
      batch=4,
      mesh=mesh,
      **how,
    )

  def watched():
    for progress in generate(stepwise=True):
      assert progress.doing == 'drawing'
      yield progress.drawn, progress.done, progress.total

  shots = list(watched())
  drawn, *_ = shots[-1]
  np.testing.assert_array_equal(drawn.values, result_of(generate()).values)
  steps = {'ar': 16, 'mar': 5}[kind]
  assert [(done, total) for _, done, total in shots] == [
    (batch * steps + i, 2 * steps) for batch in (0, 1) for i in range(steps + 1)
  ]
  for shot, done, _ in shots:
    there = shot.when < NEVER
    assert there[:4].all() == (done >= steps)
    assert (shot.when[:4][known[:4]] == -1).all()
    np.testing.assert_array_equal(shot.values[there], drawn.values[there])
  shot, *_ = shots[steps // 2]
  assert (pictures.so_far(shot, config.model)[4] == pictures.GREY // 2).all()
  assert known.mean() < (shot.when[:4] < NEVER).mean() < 0.8
  # A job that waits holds no mesh: others may set theirs meanwhile.
  job = generate(stepwise=True)
  next(job)
  assert jax.sharding.get_abstract_mesh().empty
  job.close()
  with pytest.raises(StopIteration):
    next(job)


def test_raster_order_shows_in_the_times_of_ar_levels():
  kinds, sizes = ('ar', 'ar', 'pixel'), (4, 2, 1)
  net, params = tiny.build(kinds, sizes)
  job = sample.draw(
    net, params, tiny.config(kinds, sizes), np.array([0]), record=True
  )
  drawn = result_of(job)
  literal = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
  np.testing.assert_array_equal(drawn.when[0, ..., 0], literal)


def test_settings_take_changes_and_say_if_guided():
  c = config_lib.default()
  sampling, guided = sample.settings(c, guidance=3.0, iterations=(4, 2))
  assert guided and sampling.guidance == 3.0 and sampling.iterations == (4, 2)
  assert sampling.filter_threshold == c.sample.filter_threshold
  assert not sample.settings(c, guidance=1.0)[1]
  assert sample.settings(c, record=True)[0].record


@pytest.mark.parametrize(
  'change, words',
  [
    ({'temperature': 0.0}, r'sample.temperature=0.0 must be .* above 0'),
    ({'guidance': float('nan')}, 'sample.guidance=nan must be a finite'),
    ({'guidance': float('inf')}, '=inf must be a finite'),
    ({'iterations': (4,)}, r'sample.iterations=\(4,\) must hold one number'),
    ({'temprature': 1.0}, 'no setting temprature: there are guidance'),
  ],
)
def test_bad_settings_are_refused_in_words(change, words):
  with pytest.raises(inputs.InputError, match=words):
    sample.settings(config_lib.default(), **change)


@pytest.mark.parametrize(
  'change',
  [{'order': 'halton'}, {'step_sizes': 'two-stage'}],
)
def test_what_is_for_masked_levels_alone_is_refused_without_one(change):
  c = tiny.config(('ar', 'pixel'), (4, 1))
  with pytest.raises(inputs.InputError, match='is for masked levels'):
    sample.settings(c, **change)
  sample.settings(c, order=c.sample.order)  # changes nothing
  sample.settings(tiny.config(('mar', 'pixel'), (4, 1)), **change)


@pytest.mark.parametrize(
  'change, needed',
  [
    ({'interval': (0.1, 0.8)}, 'guidance'),
    ({'resample': 4}, 'guidance'),
    ({'schedule': 'constant'}, 'guidance'),
    ({'filter_threshold': 0.0}, 'guidance'),
    ({'keep_by': 'dimension'}, 'candidates'),
  ],
)
def test_what_would_change_nothing_is_refused_where_it_was_asked_for(
  change, needed
):
  c = tiny.config()
  (name,) = change
  words = rf'{name}=.* does nothing .*: set {needed} above 1, or leave {name}'
  with pytest.raises(inputs.InputError, match=words):
    sample.check_use(c, [change])
  sample.check_use(c, [change, {needed: 2}])  # a sweep's baseline
  c.sample.update(change)
  sample.check_use(c, [change])  # as the config says
  c.sample.update({needed: 2})
  with pytest.raises(inputs.InputError, match=words):
    changed = {name: config_lib.default().sample[name]}
    sample.check_use(c, [changed | {needed: 1}])


def test_a_guide_needs_guidance(net_and_params):
  net, params = net_and_params
  c = tiny.config(('mar', 'pixel'), (4, 1), channels=2)
  model = api.Model(c, net, params, sharding.single_device_mesh(), origin='x')
  words = 'guide=x does nothing at guidance 1: set guidance above 1'
  known = np.zeros((1, 4, 4, 2), np.uint8), np.ones((4, 4), bool)
  for call, args in ((model.sample, ()), (model.edit, known)):
    with pytest.raises(inputs.InputError, match=words):
      call(*args, guide=model)


@pytest.mark.parametrize('seed', [-1, 2**32, 2**63, 1.5])
def test_seeds_have_32_bits(seed, net_and_params):
  """2**32 would give the images of seed 0."""
  net, params = net_and_params
  job = sample.images(net, params, config_lib.default(), num=1, seed=seed)
  with pytest.raises(inputs.InputError, match=f'seed={seed} must be a whole'):
    next(job)
  inputs.check_seed(2**32 - 1)


def test_grid_of_a_run_is_written_as_png(net_and_params, tmp_path):
  net, params = net_and_params
  c = tiny.config(('mar', 'pixel'), (4, 1), channels=2)
  c.sample.update(num=6, batch=6, iterations=(3,))
  path = tmp_path / 'new' / 'grid.png'
  image = sample.sample_grid(net, params, c, path=str(path))
  with Image.open(path) as stored:
    np.testing.assert_array_equal(np.asarray(stored), image)


def test_the_command_takes_a_guide_and_candidates(
  net_and_params, tmp_path, capsys
):
  net, params = net_and_params
  c = tiny.config(('mar', 'pixel'), (4, 1), channels=2)
  c.sample.update(batch=4, iterations=(3,))
  run, other = str(tmp_path / 'run'), str(tmp_path / 'other')
  checkpoint.save_params(run, c, params)

  def drawn(*args):
    out = str(tmp_path / 'images.npz')
    given = (f'--workdir={run}', '--num=4', f'--out={out}', *args)
    with commandline.flags_of('sample', *given) as job:
      job.run()
    with np.load(out) as file:
      return file['images']

  plain = drawn()
  assert (drawn('--guidance=3') != plain).any()
  np.testing.assert_array_equal(
    drawn('--guidance=3', f'--guide={run}@0'), plain
  )
  drawn('--candidates=2')
  assert 'kept 4 of 8 candidates (50%)' in capsys.readouterr().out
  c.model = tiny.model(('mar', 'pixel'), (2, 1), channels=2)
  checkpoint.save_params(other, c, tiny.build(('mar', 'pixel'), (2, 1))[1])
  with pytest.raises(inputs.InputError, match=r'model.sizes is \(2, 1\) of'):
    drawn('--guidance=3', f'--guide={other}')
  with pytest.raises(CheckpointError, match='no config.json'):
    drawn('--guidance=3', '--guide=nowhere')
  for flag in ('--guide=nowhere', '--interval=0,0.5', '--schedule=constant'):
    with pytest.raises(inputs.InputError, match='does nothing at guidance 1'):
      drawn(flag)
