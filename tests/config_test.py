"""The checks of a config: each rule fires, names its key, and all at once."""

import pytest

from fractal_jax import config as config_lib

SHARED = dict(
  share=(0, 0, 2), widths=(512, 512, 128), depths=(8, 8, 3), heads=(8, 8, 4)
)
INF = float('inf')
# One value that breaks a rule each: {key: value}, and words of the message.
BAD = [
  ({'data.shift': 64}, 'data.shift=64', 'below model.sizes[0]=64'),
  ({'data.list': 'images.csv'}, 'data.list', "not for 'digits'"),
  # model: sizes and lists
  (dict(sizes=(64, 4)), 'model.sizes', 'end in 1'),
  (dict(sizes=(1,)), 'model.sizes', 'two or more'),
  (dict(sizes=(64, 5, 1)), 'model.sizes', '5 does not divide 64'),
  (dict(sizes=(64, 64, 1)), 'model.sizes', 'smaller patches'),
  (dict(sizes=(64, 0, 1)), 'model.sizes', 'at least 1'),
  (dict(kinds=('mar', 'pixel')), 'model.kinds', '2 entries'),
  (dict(widths=(1024, 512)), 'model.widths', '2 entries'),
  (dict(depths=(32, 8, 3, 1)), 'model.depths', '4 entries'),
  (dict(heads=(16,)), 'model.heads', '1 entries'),
  (dict(kinds=('mar', 'vae', 'pixel')), "model.kinds[1]='vae'", 'be ar or '),
  (dict(kinds=('mar', 'mar', 'mar')), "model.kinds[2]='mar'", 'be pixel'),
  (dict(widths=(1024, 0, 128)), 'model.widths', 'at least 1'),
  (dict(heads=(16, 0, 4)), 'model.heads', 'at least 1'),
  (dict(heads=(16, 7, 4)), 'model.heads[1]=7', 'widths[1]=512'),
  (dict(depths=(32, 0, 3)), 'model.depths', 'only the pixel level'),
  (dict(depths=(32, 8, -1)), 'model.depths', 'at least 0'),
  (
    dict(kinds=('ar', 'mar', 'pixel'), widths=(48, 512, 128)),
    'model.heads[0]=16',
    'multiple of 4',
  ),
  # model: conditions
  (dict(num_conds=0), 'model.num_conds=0', 'at least 1'),
  (dict(num_conds=(5,)), 'model.num_conds=(5,)', '2 levels above pixels'),
  (dict(num_conds=(5, 0)), 'model.num_conds', 'at least 1'),
  (dict(num_conds=(5, 6)), 'model.num_conds[1]=6', 'only 5'),
  (
    dict(num_conds=(1, 2), kinds=('ar', 'mar', 'pixel')),
    'model.num_conds[1]=2',
    'only 1',
  ),
  # model: values
  (dict(rank=3), 'model.rank=3', '1 or 2'),
  (dict(channels=0), 'model.channels=0', 'at least 1'),
  (dict(num_values=1), 'model.num_values=1', 'at least 2'),
  (dict(classes=0), 'model.classes=0', 'at least 1'),
  (dict(mean=(0.5,)), 'model.mean', 'one per channel'),
  (dict(std=(0.5,)), 'model.std', 'one per channel'),
  (dict(channel_weights=(1.0,)), 'model.channel_weights', 'one per channel'),
  (dict(std=(0.5, 0.0, 0.5)), 'model.std', 'above 0'),
  (
    dict(channel_weights=(1.0, -1.0, 1.0)),
    'model.channel_weights',
    'at least 0',
  ),
  (dict(channel_weights=(0.0, 0.0, 0.0)), 'model.channel_weights', 'all be 0'),
  # model: colour, blocks that levels share
  (dict(colour='lab'), "model.colour='lab'", 'ycbcr'),
  (dict(colour='ycocg', rank=1), "model.colour='ycocg'", 'model.rank=2'),
  (dict(colour='ycbcr', num_values=17), 'model.colour', 'num_values=256'),
  (dict(channel_order=(0, 1)), 'model.channel_order=(0, 1)', '3 channels'),
  (dict(channel_order=(0, 1, 1)), 'model.channel_order', 'once'),
  (dict(share=(0, 0)), 'model.share=(0, 0)', 'each of the 3'),
  (dict(share=(0, 2, 2)), 'model.share[1]=2', 'an earlier level'),
  (dict(share=(0, 0, 1)), 'model.share[2]=1', 'blocks of its own'),
  (dict(share=(0, 0, 2)), 'model.share[1]=0', 'equal model.widths'),
  (
    dict(share=(0, 1, 1), kinds=('mar', 'ar', 'pixel')),
    'model.share[2]=1',
    "'pixel' and 'ar' have different blocks",
  ),
  (
    {**SHARED, 'optim.frozen': (1,)},
    'optim.frozen names level 1',
    'name level 0, too',
  ),
  (
    {**SHARED, 'init_levels': (1,), 'init_from': 'x'},
    'model.init_levels names level 1',
    'name level 0, too',
  ),
  (dict(mask_law='cosine'), "model.mask_law='cosine'", "'normal' or 'uniform'"),
  # model: regularisation, computation, other checkpoints
  (dict(dropout=1.0), 'model.dropout=1.0', 'below 1'),
  (dict(label_dropout=-0.1), 'model.label_dropout=-0.1', 'at least 0'),
  (dict(mask_std=0.0), 'model.mask_std=0.0', 'above 0'),
  (dict(dtype='float8'), "model.dtype='float8'", 'bfloat16'),
  (dict(remat='some'), "model.remat='some'", 'full'),
  (dict(chunks=(1, 2)), 'model.chunks has 2 entries', 'one per level'),
  (dict(chunks=(1, 0, 1)), 'model.chunks=(1, 0, 1)', 'at least 1'),
  (dict(init_levels=(3,), init_from='x'), 'model.init_levels', '0 to 2'),
  (dict(init_levels=(0,)), 'model.init_from', 'both or neither'),
  (dict(init_from='x'), 'model.init_levels', 'both or neither'),
  # data
  ({'data.name': ''}, "data.name=''", 'not empty (data set: digits'),
  ({'data.shift': -1}, 'data.shift=-1', 'at least 0'),
  ({'data.threads': 0}, 'data.threads=0', 'at least 1'),
  # optim
  ({'optim.name': 'adam'}, "optim.name='adam'", 'muon'),
  ({'optim.batch': 0}, 'optim.batch=0', 'at least 1'),
  ({'optim.steps': -1}, 'optim.steps=-1', 'epochs'),
  ({'optim.epochs': 0.0}, 'optim.epochs=0.0', 'above 0'),
  ({'optim.lr': 0.0}, 'optim.lr=0.0', 'above 0'),
  ({'optim.warmup': 1.0}, 'optim.warmup=1.0', 'below 1'),
  ({'optim.b1': 1.0}, 'optim.b1=1.0', 'below 1'),
  ({'optim.b2': -0.5}, 'optim.b2=-0.5', 'at least 0'),
  ({'optim.eps': 0.0}, 'optim.eps=0.0', 'above 0'),
  ({'optim.weight_decay': -1.0}, 'optim.weight_decay=-1.0', 'at least 0'),
  ({'optim.clip': 0.0}, 'optim.clip=0.0', 'inf'),
  ({'optim.spike': 0.5}, 'optim.spike=0.5', 'above 1'),
  ({'optim.hang_after': -1.0}, 'optim.hang_after=-1.0', 'at least 0'),
  ({'optim.max_bad_steps': 0}, 'optim.max_bad_steps=0', 'at least 1'),
  ({'optim.log_every': 0}, 'optim.log_every=0', 'at least 1'),
  ({'optim.save_every': 0}, 'optim.save_every=0', 'at least 1'),
  ({'optim.keep': 0}, 'optim.keep=0', 'at least 1'),
  ({'optim.keep_every': -1}, 'optim.keep_every=-1', 'at least 0'),
  ({'optim.frozen': (3,)}, 'optim.frozen names level 3', '0 to 2'),
  ({'optim.frozen': (0, 1, 2)}, 'optim.frozen', 'every level'),
  # mesh
  ({'mesh.data': 0}, 'mesh.data=0', '-1'),
  ({'mesh.fsdp': 0}, 'mesh.fsdp=0', 'at least 1'),
  ({'mesh.tensor': -2}, 'mesh.tensor=-2', 'at least 1'),
  ({'mesh.fsdp': -1}, 'mesh', 'only one axis'),
  ({'mesh.slices': 0}, 'mesh.slices=0', 'at least 1'),
  ({'mesh.groups': -1}, 'mesh.groups=-1', 'at least 0'),
  ({'mesh.groups': 3}, 'mesh.groups=3', 'optim.batch=2048'),
  # eval
  ({'eval.every': -1}, 'eval.every=-1', 'never'),
  ({'eval.batch': 0}, 'eval.batch=0', 'at least 1'),
  ({'eval.num': -1}, 'eval.num=-1', 'all'),
  ({'eval.passes': 0}, 'eval.passes=0', 'at least 1'),
  # sample
  ({'sample.every': -1}, 'sample.every=-1', 'never'),
  ({'sample.num': 0}, 'sample.num=0', 'at least 1'),
  ({'sample.batch': 0}, 'sample.batch=0', 'at least 1'),
  ({'sample.guidance': -1.0}, 'sample.guidance=-1.0', 'at least 0'),
  ({'sample.schedule': 'cosine'}, "sample.schedule='cosine'", 'linear'),
  ({'sample.temperature': 0.0}, 'sample.temperature=0.0', 'above 0'),
  ({'sample.filter_threshold': 1.0}, 'sample.filter_threshold=1.0', 'below 1'),
  ({'sample.iterations': (64,)}, 'sample.iterations=(64,)', '2 levels'),
  ({'sample.guidance': (1.0, -1.0)}, 'sample.guidance', 'at least 0'),
  ({'sample.guidance': (1.0, 2.0)}, 'sample.guidance=(1.0, 2.0)', 'levels 2'),
  (
    {'guide': True, 'sample.temperature': (1.0,)},
    'sample.temperature=(1.0,)',
    'levels 1, 2',
  ),
  ({'sample.interval': (0.5,)}, 'sample.interval=(0.5,)', 'two numbers'),
  ({'sample.interval': (0.5, 0.5)}, 'sample.interval', 'above the first'),
  ({'sample.interval': (0.0, 1.5)}, 'sample.interval', 'at most 1'),
  ({'sample.resample': -1}, 'sample.resample=-1', 'at least 0'),
  ({'sample.order': 'best'}, "sample.order='best'", 'halton'),
  ({'sample.order': ('halton',)}, "sample.order=('halton',)", '2 levels'),
  ({'sample.step_sizes': 'linear'}, 'sample.step_sizes', 'two-stage'),
  ({'sample.candidates': 0}, 'sample.candidates=0', 'at least 1'),
  ({'sample.keep': 2}, 'sample.keep=2', 'sample.candidates=1'),
  ({'sample.keep_by': 'luck'}, "sample.keep_by='luck'", 'dimension'),
  ({'sample.iterations': (64, 0)}, 'sample.iterations=(64, 0)', 'at least 1'),
  # numbers that are none, or none that can be used
  ({'model.widths': ('a,b',)}, "model.widths=('a,b',)", 'a whole number'),
  ({'model.widths': 64}, 'model.widths=64', 'a tuple'),
  ({'model.depths': (32, 8.5, 3)}, 'model.depths', 'a whole number'),
  ({'model.num_conds': '5'}, "model.num_conds='5'", 'a whole number'),
  ({'model.num_conds': (5, 'a')}, 'model.num_conds', 'a whole number'),
  ({'model.mean': (0.5, INF, 0.5)}, 'model.mean', 'a finite number'),
  ({'model.std': ('inf,',)}, "model.std=('inf,',)", 'a finite number'),
  ({'model.kinds': (1, 2, 3)}, 'model.kinds=(1, 2, 3)', 'a text'),
  ({'model.guide': 1}, 'model.guide=1', 'True or False'),
  ({'model.rank': True}, 'model.rank=True', '1 or 2'),
  ({'optim.epochs': INF}, 'optim.epochs=inf', 'a finite number'),
  ({'optim.lr': float('nan')}, 'optim.lr=nan', 'a finite number'),
  ({'optim.clip': -INF}, 'optim.clip=-inf', 'above 0, or inf'),
  ({'optim.batch': True}, 'optim.batch=True', 'a whole number'),
  ({'optim.steps': 1.5}, 'optim.steps=1.5', 'a whole number'),
  ({'sample.guidance': INF}, 'sample.guidance=inf', 'a finite number'),
  ({'sample.temperature': '1'}, "sample.temperature='1'", 'finite number'),
]


def change(config, values):
  """Sets keys; those without a dot are the model's."""
  with config.ignore_type():  # num_conds is one number or a tuple
    for key, value in values.items():
      section, _, name = key.rpartition('.')
      config[section or 'model'][name] = value
  return config


def test_default_keeps_the_rules():
  assert config_lib.problems(config_lib.default()) == []
  config_lib.check(config_lib.default())


@pytest.mark.parametrize('values,key,words', BAD, ids=lambda x: str(x)[:40])
def test_rule(values, key, words):
  """A problem names the key and what to do; check() raises it."""
  c = change(config_lib.default(), values)
  found = config_lib.problems(c)
  assert any(key in p and words in p for p in found), found
  with pytest.raises(config_lib.ConfigError, match='breaks these rules'):
    config_lib.check(c)


GOOD = [
  {'data.name': 'npz', 'data.list': 'images.csv'},
  dict(num_conds=(5, 3)),
  dict(colour='ycbcr', channel_order=(1, 0, 2)),
  {**SHARED, 'optim.frozen': (0,)},
  {**SHARED, 'optim.frozen': (0, 1)},
  dict(mask_law='uniform'),
  dict(num_conds=1, kinds=('mar', 'ar', 'pixel')),
  dict(depths=(32, 8, 0)),
  dict(sizes=(12, 6, 1), rank=1),
  dict(init_from='x', init_levels=(0, 2)),
  {'optim.frozen': (0, 2)},
  {'optim.clip': float('inf')},
  {'optim.steps': 10, 'optim.epochs': 0.0},
  {'mesh.data': 2, 'mesh.fsdp': -1},
  {'mesh.groups': 8},
  {'sample.iterations': (64, 16)},
  {'sample.guidance': 0.0},
  {'optim.lr': 1},
]


@pytest.mark.parametrize('values', GOOD, ids=str)
def test_allowed(values):
  assert config_lib.problems(change(config_lib.default(), values)) == []


def test_problems_come_together():
  """One run tells all that is wrong, in every section."""
  c = change(
    config_lib.default(),
    {
      'model.sizes': (64, 5, 1),
      'model.heads': (16, 7, 4),
      'model.mean': (0.5,),
      'data.shift': -2,
      'optim.lr': -1.0,
      'mesh.fsdp': 0,
      'eval.passes': 0,
      'sample.temperature': -1.0,
    },
  )
  with pytest.raises(config_lib.ConfigError) as e:
    config_lib.check(c)
  for key in (
    'model.sizes=(64, 5, 1)', 'model.heads[1]=7', 'model.mean',
    'data.shift=-2', 'optim.lr=-1.0', 'mesh.fsdp=0', 'eval.passes=0',
    'sample.temperature=-1.0',
  ):  # fmt: skip
    assert key in str(e.value)
  assert str(e.value).count('\n  - ') == len(config_lib.problems(c))


@pytest.mark.parametrize('seed', [-1, 2**32, 2**63, 0.5, '0', True])
def test_seeds_have_32_bits(seed):
  c = config_lib.default()
  with c.ignore_type():
    c.seed = seed
  (found,) = config_lib.problems(c)
  assert f'seed={seed!r} must be a whole number at least 0' in found
  assert 'at most 4294967295' in found


def test_names_without_quotes():
  """`--config.model.kinds=mar,ar,pixel` arrives as one name."""
  c = config_lib.default()
  for typed in ('mar,ar,pixel', '(mar, ar, pixel)'):
    c.model.kinds = (typed,)
    config_lib.split_names(c)
    assert c.model.kinds == ('mar', 'ar', 'pixel')
  c.data.dir = 'a,b'  # a path may hold a comma
  config_lib.split_names(c)
  assert c.data.dir == 'a,b' and c.model.kinds == ('mar', 'ar', 'pixel')


def test_a_key_is_set_once():
  once = ['fractal-jax', '--config=x.py', '--config.model.widths=1,2']
  config_lib.check_arguments(once)
  for more in ('--config.model.widths=3,4', '-config.model.widths=1,2'):
    with pytest.raises(config_lib.ConfigError, match='model.widths is given'):
      config_lib.check_arguments([*once, more])


def test_every_key_says_what_it_is():
  c = config_lib.default()
  assert set(c.keys()) == {'seed', *config_lib.SECTIONS}
  for section, keys in config_lib.SECTIONS.items():
    assert set(c[section].keys()) == set(keys)
    for name, key in keys.items():
      assert key.doc, f'{section}.{name}'
      assert key.rule.holds(key.default), f'{section}.{name}'


# Keys whose defaults need no reason: names, and what is off or all of it.
PLAIN = {
  'seed', 'model.init_from', 'model.init_levels', 'data.dir', 'data.list',
  'data.manual_dir', 'data.rows', 'data.train_split', 'data.val_split',
  'optim.frozen', 'optim.steps', 'eval.num', 'sample.keep',
}  # fmt: skip


def test_every_default_has_a_reason():
  keys = {
    f'{section}.{name}': key
    for section, keys in config_lib.SECTIONS.items()
    for name, key in keys.items()
  } | {'seed': config_lib.SEED}
  assert {name for name, key in keys.items() if not key.why} == PLAIN


def test_the_largest_seed_is_allowed():
  c = config_lib.default()
  c.seed = 2**32 - 1
  assert config_lib.problems(c) == []


def test_defaults_are_not_shared():
  one = change(config_lib.default(), dict(num_conds=(5, 3)))
  assert one.model.num_conds == (5, 3)
  assert config_lib.default().model.num_conds == 5


@pytest.mark.parametrize(
  'section,typo,nearest',
  [
    ('model', 'width', 'widths'),
    ('optim', 'warm_up', 'warmup'),
    ('sample', 'temprature', 'temperature'),
    ('mesh', 'fsdb', 'fsdp'),
  ],
)
def test_typo_names_the_nearest_key(section, typo, nearest):
  c = config_lib.default()
  with pytest.raises(AttributeError, match=nearest):
    setattr(c[section], typo, 1)
  with pytest.raises(KeyError, match=nearest):
    c[section][typo] = 1


@pytest.mark.parametrize('flag', ['--config', '-config', '--config.seed'])
def test_a_config_is_given_once(flag):
  other = ['--configs=3', '--config.optim.lr=1', 'config', '--step=1']
  config_lib.check_arguments([f'{flag}=1', *other])
  with pytest.raises(config_lib.ConfigError, match='is given more than once'):
    config_lib.check_arguments([f'{flag}=1', *other, f'{flag}=2'])
