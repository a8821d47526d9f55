"""Batches: streams, augmentation, evaluation, and errors in common."""

import json

import numpy as np
import pytest

from fractal_jax.data import pipeline
from tests.data import join, make_config, same, take, write_npz

# The stream.


def test_a_batch_has_the_promised_types():
  batch = next(pipeline.train_batches(make_config()))
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    'image': ('uint8', (64, 8, 8, 1)),
    'label': ('int32', (64,)),
    'index': ('int64', (64,)),
  }


@pytest.mark.parametrize('hosts', [2, 4])
@pytest.mark.parametrize('batch', [64, 12])  # 12: chunks of single rows
def test_hosts_share_one_global_stream(hosts, batch):
  c = make_config()
  c.data.update(flip=True, shift=2)
  c.optim.batch = batch
  one = pipeline.train_batches(c)
  many = [
    pipeline.train_batches(c, process_index=h, process_count=hosts)
    for h in range(hosts)
  ]
  for _ in range(3):
    parts = [next(it) for it in many]
    assert all(len(p['index']) == batch // hosts for p in parts)
    same(next(one), join(parts))


def test_each_image_comes_once_an_epoch_in_a_new_order():
  n, c = 1500, make_config()
  c.optim.batch = 100
  batches = take(pipeline.train_batches(c), 2 * n // 100)
  np.testing.assert_array_equal(join(batches)['index'], np.arange(2 * n))
  images = join(batches)['image'].reshape(2 * n, -1)
  whole = join(pipeline.eval_batches(c, 'train', 100))['image'].reshape(n, -1)
  first, second = images[:n].tolist(), images[n:].tolist()
  assert sorted(first) == sorted(second) == sorted(whole.tolist())
  assert first != second
  assert first != whole.tolist()


def test_the_seed_decides_the_stream():
  a, b, c = make_config(), make_config(), make_config()
  c.seed = 1
  a, b, c = (next(pipeline.train_batches(x))['image'] for x in (a, b, c))
  assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize('hosts', [1, 2])
def test_resumes_exactly_by_state(hosts):
  c = make_config()
  c.data.shift = 1
  c.optim.batch = 700  # epochs end in the middle of a batch
  options = dict(process_index=hosts - 1, process_count=hosts)
  straight = pipeline.train_batches(c, **options)
  take(straight, 3)
  state = json.loads(json.dumps(straight.get_state()))
  want = take(straight, 3)

  started = pipeline.train_batches(c, **options)  # no batch was read yet
  started.set_state(state)
  assert started.get_state() == state
  restored = pipeline.train_batches(c, **options)
  next(restored)
  restored.set_state(state)
  for it in (started, restored):
    for a, b in zip(want, take(it, 3), strict=True):
      same(a, b)
  assert started.get_state() == restored.get_state() == straight.get_state()


def test_a_state_is_the_same_on_any_number_of_hosts():
  c = make_config()
  one = pipeline.train_batches(c)
  two = pipeline.train_batches(c, process_index=1, process_count=2)
  take(one, 2), take(two, 2)
  assert one.get_state() == two.get_state()


def test_a_place_in_data_of_another_size_is_refused(tmp_path):
  batches = pipeline.train_batches(make_config())
  assert batches.get_state() == {'step': 0, 'examples': 1500}
  batches.set_state({'step': 3})  # of a version that did not keep the size
  with pytest.raises(
    pipeline.DataError, match='1500 examples, and held 1499 when'
  ):
    batches.set_state({'step': 3, 'examples': 1499})
  assert batches.get_state()['step'] == 3


def test_a_batch_larger_than_the_data_set_repeats_it(tmp_path):
  c = write_npz(tmp_path, np.arange(40, dtype=np.uint8).reshape(10, 2, 2))
  batch = next(pipeline.train_batches(c))  # 64 of 9 training images
  counts = np.unique(batch['image'][:, 0, 0, 0], return_counts=True)[1]
  assert sorted(counts) == [7] * 8 + [8]


# Augmentation.


def augmented(tmp_path, rank=2, flip=False, shift=0, n=512):
  """Random pictures of one image, [n, ...], and the image."""
  shape = (5, 5, 1) if rank == 2 else (5, 2)
  image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
  c = write_npz(tmp_path, np.stack([image] * 4), rank=rank)
  c.data.update(flip=flip, shift=shift)
  c.optim.batch = n
  return next(pipeline.train_batches(c))['image'], image


def unique(images):
  return {x.tobytes() for x in images}


def test_flip_mirrors_half_of_the_images(tmp_path):
  got, image = augmented(tmp_path, flip=True)
  assert unique(got) == unique([image, image[:, ::-1]])
  share = np.mean([(x == image).all() for x in got])
  assert 0.4 < share < 0.6


def test_series_are_never_flipped(tmp_path):
  got, image = augmented(tmp_path, rank=1, flip=True)
  assert unique(got) == unique([image])


def test_shift_moves_each_axis_and_repeats_edges(tmp_path):
  got, image = augmented(tmp_path, shift=2)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode='edge')
  want = [padded[i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
  assert unique(got) == unique(want)
  assert len(unique(want)) == 25


def test_series_shift_along_time(tmp_path):
  got, image = augmented(tmp_path, rank=1, shift=1)
  padded = np.pad(image, ((1, 1), (0, 0)), mode='edge')
  assert unique(got) == unique([padded[i : i + 5] for i in range(3)])


# Evaluation.


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_evaluation_pads_and_gives_hosts_equal_batches(hosts):
  c = make_config()
  c.data.update(flip=True, shift=2)  # must not matter
  loaders = [
    pipeline.eval_batches(
      c, 'validation', 64, process_index=h, process_count=hosts
    )
    for h in range(hosts)
  ]
  assert [len(x) for x in loaders] == [5] * hosts
  parts = [list(x) for x in loaders]
  assert [len(p) for p in parts] == [5] * hosts
  got = join(join(step) for step in zip(*parts, strict=True))
  assert got['valid'].dtype == bool and got['valid'].sum() == 297
  np.testing.assert_array_equal(got['valid'], np.arange(320) < 297)
  np.testing.assert_array_equal(got['index'], np.arange(320).clip(0, 297))
  assert not got['image'][297:].any()
  source = pipeline.open_split(c, 'validation')
  for i in (0, 100, 296):
    image, label = source.read(i)
    np.testing.assert_array_equal(got['image'][i], image)
    assert got['label'][i] == label


def test_evaluation_can_be_iterated_again():
  loader = pipeline.eval_batches(make_config(), 'validation', 64)
  same(join(loader), join(loader))


def test_a_subset_is_fixed_nested_and_representative(tmp_path):
  labels = np.repeat(np.arange(10), 100)  # sorted by class
  images = np.arange(1000, dtype=np.int32).reshape(1000, 1, 1)
  c = write_npz(tmp_path, images, labels, split=np.array(['test'] * 1000))
  c.model.num_values = 1000
  small = join(pipeline.eval_batches(c, 'test', 50, num=100))
  large = join(pipeline.eval_batches(c, 'test', 50, num=200))
  assert small['valid'].all() and len(small['index']) == 100
  assert len(set(large['index'])) == 200
  np.testing.assert_array_equal(small['index'], large['index'][:100])
  np.testing.assert_array_equal(small['image'][:, 0, 0, 0], small['index'])
  assert np.bincount(large['label'], minlength=10).min() >= 8
  everything = join(pipeline.eval_batches(c, 'test', 50, num=5000))
  np.testing.assert_array_equal(everything['index'], np.arange(1000))


# Errors.


def test_unknown_names_are_listed_with_the_nearest():
  pytest.importorskip('tensorflow_datasets')  # it knows cifar10
  with pytest.raises(
    pipeline.DataError, match="'digit'.*mean 'digits'.*npz, series, or"
  ):
    pipeline.info(make_config('digit'))
  with pytest.raises(pipeline.DataError, match="'cifra10'.*mean 'cifar10'"):
    pipeline.info(make_config('cifra10'))
  for name in ('', 'qqqqqq'):
    with pytest.raises(pipeline.DataError, match=f"no data set '{name}'. Set "):
      pipeline.info(make_config(name))


def test_model_that_does_not_fit():
  def raises(match, **kwargs):
    with pytest.raises(pipeline.DataError, match=match):
      pipeline.info(make_config(**kwargs))

  raises(r'grey images of 8x8.*sizes\[0\]=8', side=16)
  raises('grey images of 8x8.*channels=1', channels=3)
  raises(r'values up to 16.*num_values=16 allows.*num_values=17', values=16)
  raises('labels up to 9.*model.classes=9.*model.classes=10', classes=9)
  raises("'digits' has no split 'test'.*train, validat", val_split='test')
  raises('model.channels=2', name='folder', channels=2)
  c = make_config('folder')
  c.model.rank = 1
  with pytest.raises(pipeline.DataError, match='model.rank=1'):
    pipeline.info(c)


def test_batches_must_divide_by_the_hosts():
  c = make_config()
  with pytest.raises(
    pipeline.DataError, match='optim.batch=64 .* over 3 hosts'
  ):
    pipeline.train_batches(c, process_count=3)
  with pytest.raises(pipeline.DataError, match='batch=10 .* over 4 hosts'):
    pipeline.eval_batches(c, 'train', 10, process_count=4)
