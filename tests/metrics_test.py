"""The numbers against closed forms, and the files that they are read from."""

import os

import numpy as np
from PIL import Image
import pytest

from fractal_jax import config as config_lib
from fractal_jax import sharding
from fractal_jax.metrics import (
  MetricsError,
  files,
  neighbours,
  reference,
  scores,
)
from fractal_jax.metrics import images as images_lib
from tests.data import literal_adm

D = 2048


def rotation(n, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def test_frechet_distance_of_gaussians_with_common_axes():
  rng = np.random.default_rng(0)
  q = rotation(8)
  a, b = rng.uniform(0.1, 2, (2, 8))
  mu1, mu2 = rng.standard_normal((2, 8))
  wanted = ((mu1 - mu2) ** 2).sum() + ((a**0.5 - b**0.5) ** 2).sum()
  found = scores.frechet_distance(mu1, q * a @ q.T, mu2, q * b @ q.T)
  np.testing.assert_allclose(found, wanted, rtol=1e-12)
  assert abs(scores.frechet_distance(mu1, q * a @ q.T, mu1, q * a @ q.T)) < 1e-9


def test_frechet_distance_of_flat_gaussians():
  """Rank 3 and 2 in 300 dimensions, two axes in common; known exactly."""
  q = rotation(300)
  a, b = np.zeros((2, 300))
  a[:3], b[1:3] = (4, 9, 1), (4, 25)
  wanted = 4 + (3 - 2) ** 2 + (1 - 5) ** 2
  found = scores.frechet_distance(
    np.zeros(300), q * a @ q.T, np.zeros(300), q * b @ q.T
  )
  np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_frechet_distance_of_few_images_needs_no_root_of_a_matrix():
  rng = np.random.default_rng(0)
  rows = rng.standard_normal((10, 40))
  sigma = np.cov(rows.T)
  other = np.cov(rng.standard_normal((30, 40)).T)
  root = scores.root_of(rows)
  np.testing.assert_allclose(root.T @ root, sigma, atol=1e-12)
  assert scores.root_of(rows.T) is None
  args = rows.mean(0), sigma, np.zeros(40), other
  np.testing.assert_allclose(
    scores.frechet_distance(*args, root), scores.frechet_distance(*args)
  )


def test_statistics_in_batches_do_not_cancel():
  rows = 1e6 + np.random.default_rng(0).standard_normal((50, 4))
  total = scores.Statistics()
  for start in range(0, 50, 7):
    total.add(rows[start : start + 7])
  mu, sigma = total.result()
  assert total.num == 50
  np.testing.assert_allclose(mu, rows.mean(0), rtol=1e-15)
  np.testing.assert_allclose(sigma, np.cov(rows.T), rtol=1e-9)


def test_inception_score_of_known_probabilities():
  same = np.tile(np.log([0.2, 0.3, 0.5]), (40, 1))
  np.testing.assert_allclose(scores.inception_score(same), (1, 0), atol=1e-12)
  # Sure, and each part of ten holds all four classes equally often: 4.
  order = np.random.RandomState(scores.SHUFFLE).permutation(80)
  logits = np.full((80, 5), -1e4)
  logits[order, np.arange(80) % 4] = 0
  np.testing.assert_allclose(scores.inception_score(logits), (4, 0), rtol=1e-9)


def test_precision_and_recall_of_points_on_a_line():
  real = np.array([[0], [1], [2], [3], [100]], np.float32)
  fake = np.array([[1.5], [50], [300], [301], [302], [303]], np.float32)
  # The third neighbour of each real point is 3, 2, 2, 3 and 99 away.
  np.testing.assert_array_equal(neighbours.radii(real), [9, 4, 4, 9, 99**2])
  inside = neighbours.inside(fake, real, neighbours.radii(real))
  np.testing.assert_array_equal(inside, [1, 1, 0, 0, 0, 0])
  # Those of the fakes: 299.5, 251, 3, 2, 2 and 3.
  precision, recall = neighbours.precision_recall(fake, real)
  assert precision == pytest.approx(1 / 3) and recall == 1
  # All fakes on one real point: only that one is recalled.
  precision, recall = neighbours.precision_recall(real[[1] * 6], real)
  assert precision == 1 and recall == pytest.approx(1 / 5)


def test_blocks_of_distances_change_nothing(monkeypatch):
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((23, 6)), 1.5 * rng.standard_normal((17, 6))
  labels = lambda n: np.arange(n) % 4
  whole = (
    neighbours.precision_recall(a, b),
    neighbours.class_recall(a, labels(23), b, labels(17)),
  )
  distance = ((a[:, None] - a) ** 2).sum(-1)
  np.testing.assert_allclose(neighbours.radii(a), np.sort(distance)[:, 3])
  assert 0 < whole[0][1] < 1 and np.isfinite(whole[1]).all()
  monkeypatch.setattr(neighbours, 'ROWS', 4)
  monkeypatch.setattr(neighbours, 'COLUMNS', 5)
  assert whole[0] == neighbours.precision_recall(a, b)
  again = neighbours.class_recall(a, labels(23), b, labels(17))
  np.testing.assert_array_equal(whole[1], again)


def test_recall_within_classes_sees_what_recall_does_not():
  """Two classes that swap their images are recalled only as a whole."""
  line = np.arange(6.0)[:, None]
  real = np.concatenate([line, line + 100])
  labels = np.repeat([0, 1], 6)
  assert neighbours.precision_recall(real, real) == (1, 1)
  swapped = neighbours.class_recall(real, 1 - labels, real, labels)
  np.testing.assert_array_equal(swapped, [0, 0])
  few = neighbours.class_recall(real[:9], labels[:9], real, labels)
  np.testing.assert_array_equal(few, [1, np.nan])  # three images of class 1


def test_diversity_is_the_share_of_the_variance_within_classes():
  rng = np.random.default_rng(0)
  labels = np.array([0, 0, 0, 2, 2, 0, 2, 3])
  rows = rng.standard_normal((8, 5)) + 1e3 * labels[:, None]
  within = scores.ClassVariance()
  for at in (slice(3), slice(3, 3), slice(3, 8)):
    within.add(rows[at], labels[at])
  wanted = [np.var(rows[labels == c], 0, ddof=1).sum() for c in (0, 2)]
  found = within.result()
  np.testing.assert_allclose(found[[0, 2]], wanted, rtol=1e-6)
  assert np.isnan(found[[1, 3]]).all()
  half = scores.diversity(found / 2, np.array([wanted[0], 7.0, wanted[1]]))
  np.testing.assert_allclose(half, [0.5, np.nan, 0.5, np.nan, 0.5], rtol=1e-6)


class Fake:
  """An extractor whose features are the first values of a picture."""

  fingerprint = 'fake'
  batch, host, hosts = 150, 0, 1

  @property
  def mesh(self):
    return sharding.single_device_mesh()

  def __call__(self, pictures):
    out = np.zeros((len(pictures), D), np.float32)
    out[:, : pictures[0].size] = pictures.reshape(len(pictures), -1)
    return out, None

  def rows(self, batch):
    features = self(batch['pictures'])[0]
    return {k: v for k, v in batch.items()} | {'features': features}


def test_reference_of_a_data_set_is_read_back(tmp_path):
  c = config_lib.default()
  c.data.name = 'digits'
  c.model.update(sizes=(8, 1), channels=1, num_values=17, classes=10)
  made = reference.make(c, 'validation', Fake(), num=30)
  assert made.num == 30 and made.side == 8
  assert made.features.shape == (30, D) and made.labels.shape == (30,)
  wanted = made.features.astype(np.float64)  # all of them: 30 < NEIGHBOURS
  np.testing.assert_allclose(made.mu, wanted.mean(0), rtol=1e-6)
  np.testing.assert_allclose(np.diag(made.sigma), wanted.var(0, ddof=1))
  path = str(tmp_path / 'new' / 'ref.npz')
  reference.write(path, made)
  back = reference.read(path, Fake())
  for name in ('mu', 'sigma', 'features', 'labels', 'class_variance'):
    np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
  assert (back.num, back.side, back.name) == (30, 8, made.name)
  other = Fake()
  other.fingerprint = 'other'
  with pytest.raises(
    MetricsError, match=r'weights \(fingerprint fake\).*other'
  ):
    reference.read(path, other)


def test_precision_and_recall_see_a_fixed_part(monkeypatch):
  c = config_lib.default()
  c.data.name = 'digits'
  c.model.update(sizes=(8, 1), channels=1, num_values=17, classes=10)
  whole = reference.make(c, 'validation', Fake())
  monkeypatch.setattr(reference, 'NEIGHBOURS', 40)
  part = reference.make(c, 'validation', Fake())
  assert part.num == 297 and part.features.shape == (40, D)
  np.testing.assert_array_equal(part.mu, whole.mu)
  known = {x.tobytes(): y for x, y in zip(whole.features, whole.labels)}
  found = [known[x.tobytes()] for x in part.features]
  np.testing.assert_array_equal(found, part.labels)


def test_a_batch_larger_than_the_data_costs_no_more():
  c = config_lib.default()
  c.data.name = 'digits'
  c.model.update(sizes=(8, 1), channels=1, num_values=17, classes=10)
  seen = []

  class Large(Fake):
    batch = 100_000

    def rows(self, batch):
      seen.append(len(batch['pictures']))
      return super().rows(batch)

  assert reference.make(c, 'validation', Large()).num == 297
  assert reference.make(c, 'validation', Large(), num=30).num == 30
  assert reference.make(c, 'validation', Large(), num=10**6).num == 297
  assert seen == [297, 30, 297]


def test_the_fingerprint_of_data_is_of_what_they_hold(tmp_path, monkeypatch):
  path = tmp_path / 'data.npz'
  c = config_lib.default()
  c.data.update(name='npz', dir=str(path))
  c.model.update(sizes=(2, 1), channels=1, num_values=5, classes=3)
  rng = np.random.default_rng(0)
  data = {
    'images': rng.integers(0, 5, (50, 2, 2, 1), np.uint8),
    'labels': np.arange(50) % 3,
  }

  def fingerprint(**changes):
    np.savez(path, **data | changes)
    return reference.fingerprint(c, 'train')

  assert fingerprint() == fingerprint()  # the same content, written again
  label = (data['labels'] + 1) % 3
  fewer = {k: x[:-1] for k, x in data.items()}
  ways = fingerprint(), fingerprint(labels=label), fingerprint(**fewer)
  assert len({*ways, fingerprint(images=data['images'][::-1])}) == 4
  monkeypatch.setattr(reference, 'SEEN', 10)  # a replaced set is noticed
  assert fingerprint() != fingerprint(images=4 - data['images'])


def test_reference_files_of_others(tmp_path):
  path = tmp_path / 'ref.npz'
  mu, sigma = np.ones(D), 2 * np.eye(D)
  for prefix in ('', 'ref_'):
    np.savez(path, **{f'{prefix}mu': mu, f'{prefix}sigma': sigma})
    found = reference.read(path, Fake())
    np.testing.assert_array_equal(found.mu, mu)
    assert found.features is None and found.side is None
  pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
  np.savez(path, arr_0=pictures, mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
  found = reference.read(path, Fake())
  np.testing.assert_array_equal(found.mu, mu)  # of more images than arr_0
  np.testing.assert_array_equal(found.features, Fake()(pictures)[0])
  assert found.side == 8 and found.num is None
  np.savez(path, arr_0=pictures)
  found = reference.read(path, Fake())
  assert found.num == 5
  np.testing.assert_allclose(found.mu, found.features.mean(0), rtol=1e-6)


STATISTICS = {'mu': np.zeros(D), 'sigma': np.eye(D)}
SEEN = {'features': np.zeros((2, D), np.float32)}


@pytest.mark.parametrize(
  'arrays, words',
  [
    (
      {'images': np.zeros((2, 4, 4, 3), np.uint8)},
      r'`images` uint8 \[2, 4, 4, 3\]; expected `mu` \[2048\].*--data=FILE',
    ),
    ({'mu': np.zeros(768), 'sigma': np.eye(768)}, r'mu is \[768\].*Other lay'),
    ({'mu': np.full(D, np.nan), 'sigma': np.eye(D)}, 'nan or infinity'),
    ({'mu': np.zeros(D), 'sigma': -np.eye(D)}, 'negative variance'),
    ({'mu': np.zeros(D), 'sigma': np.tri(D)}, 'not symmetric'),
    ({'arr_0': np.zeros((2, 4, 4), np.uint8)}, r'arr_0: uint8 of shape \(2, 4'),
    (
      {**STATISTICS, 'mu': np.full(D, 'a')},
      r'`mu` is <U1 \[2048\]; exp.*num',
    ),
    ({**STATISTICS, 'num': [3, 4]}, r'`num` is int64 \[2\]; expected integers'),
    ({**STATISTICS, 'side': 2.5}, r'`side` is float64 \[\]'),
    ({**STATISTICS, 'name': 3}, '`name` is int64.*texts'),
    ({**STATISTICS, 'features': np.zeros((2, 7))}, r'\[2, 7\].*\[any, 2048\]'),
    ({**STATISTICS, **SEEN, 'labels': [1]}, r'`labels` is int64 \[1\].*\[2\]'),
    ({**STATISTICS, **SEEN, 'labels': [1.0, 0]}, 'float64.*expected integers'),
    ({**STATISTICS, **SEEN, 'labels': [2**40, 0]}, 'holds 0 to 1099511627776'),
    ({**STATISTICS, **SEEN, 'labels': [-1, 0]}, 'holds -1 to 0'),
    ({**STATISTICS, 'class_variance': ['a']}, '`class_variance` is <U1'),
    ({**STATISTICS, 'class_variance': [np.inf]}, '`class_variance` holds nan'),
    ({**STATISTICS, 'class_names': [1, 2]}, '`class_names` is int64'),
  ],
)
def test_wrong_references_are_named(arrays, words, tmp_path):
  path = tmp_path / 'ref.npz'
  np.savez(path, **arrays)
  with pytest.raises(MetricsError, match=words):
    reference.read(path, Fake())


def test_samples_of_other_sizes_are_cropped_as_for_training(tmp_path):
  rng = np.random.default_rng(0)
  shapes = [(8, 8), (9, 12), (30, 17)]
  pictures = [rng.integers(0, 256, (*s, 3), np.uint8) for s in shapes]
  for i, x in enumerate(pictures):
    Image.fromarray(x).save(tmp_path / f'{i}.png')
  seen = files.Samples(str(tmp_path))
  found = images_lib.of_files(seen, 2)
  with pytest.raises(MetricsError, match='all must be equal'):
    found.pictures(0)
  assert seen.fit(None) == ''
  note = seen.fit(8)
  found = images_lib.of_files(seen, 2)
  assert note.startswith('2 of 3 images are not 8x8') and found.side == 8
  want = [literal_adm(Image.fromarray(x), 8) for x in pictures]
  np.testing.assert_array_equal(found.pictures(0), want[:2])
  np.testing.assert_array_equal(found.pictures(2), want[2:])
  with pytest.raises(MetricsError, match='0.png has 8x8 pixels, those of'):
    seen.fit(9)
  np.savez(tmp_path / 'x.npz', arr_0=np.stack([pictures[1]] * 2))
  seen = files.Samples(str(tmp_path / 'x.npz'))
  assert seen.fit(8).startswith('2 of 2')
  same = images_lib.of_files(seen, 2)
  assert same.pictures(0).shape == (2, 8, 8, 3)


def test_samples_from_folders_and_npz(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
  flat = tmp_path / 'flat'
  for i, x in enumerate(pictures):
    for folder in (flat, tmp_path / 'classes' / 'ab'[i // 3]):
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(x).save(folder / f'{i}.png')
  found = files.Samples(flat)
  assert len(found) == 4 and found.labels is None and found.side == 6
  np.testing.assert_array_equal(found[1:3], pictures[1:3])
  found = files.Samples(tmp_path / 'classes')
  np.testing.assert_array_equal(found.labels, [0, 0, 0, 1])
  np.testing.assert_array_equal(found[0:9], pictures)
  path = tmp_path / 'samples.npz'
  chunks = (pictures[:3], pictures[3:])
  files.save_samples(path, 4, pictures.shape[1:], chunks, [0, 0, 0, 1])
  with np.load(path) as stored:  # as ADM's suite reads it
    np.testing.assert_array_equal(stored['arr_0'], pictures)
    assert stored['arr_1'].dtype == np.int64
  found = files.Samples(path)
  np.testing.assert_array_equal(found[0:4], pictures)
  np.testing.assert_array_equal(found.labels, [0, 0, 0, 1])

  for labels, words in (
    ([0, 1], r'`arr_1` is int64 \[2\]; expected integers \[4\]'),
    (['a'] * 4, '`arr_1` is <U1'),
    ([0, 1, 2, 2**40], 'holds 0 to 1099511627776; expected class numbers'),
  ):
    np.savez(tmp_path / 'bad.npz', arr_0=pictures, arr_1=labels)
    with pytest.raises(MetricsError, match=words):
      files.Samples(tmp_path / 'bad.npz')
  narrow = np.array([0, 255, 3, 3], np.uint8)  # 255 + 1 must not wrap
  np.savez(path, arr_0=pictures, arr_1=narrow)
  found = files.Samples(path).labels
  assert found.max() + 1 == 256
  rows = np.zeros((4, 2))
  assert len(neighbours.class_recall(rows, found, rows, found)) == 256

  Image.fromarray(pictures[0, :5]).save(flat / '9.png')
  with pytest.raises(MetricsError, match='9.png has 5x5 pixels, the first'):
    files.Samples(flat)[3:5]
  np.savez(path, images=pictures)
  with pytest.raises(MetricsError, match='holds `images` uint8.*`arr_0`'):
    files.Samples(path)
  with pytest.raises(MetricsError, match='there is no file'):
    files.Samples(tmp_path / 'none.npz')
  with pytest.raises(MetricsError, match='images and folders'):
    (flat / 'x').mkdir()
    files.Samples(flat)


def test_samples_are_files_whose_folders_sort_as_numbers(tmp_path):
  for name in ('10', '2', '.hidden'):
    (tmp_path / name).mkdir()
    Image.new('RGB', (5, 5)).save(tmp_path / name / 'a.png')
  os.mkfifo(tmp_path / '2' / 'b.png')  # reading it would never end
  (tmp_path / '2' / 'c.png').mkdir()
  (tmp_path / '2' / 'd.png').symlink_to('d.png')
  (tmp_path / 'notes.txt').write_text('')
  found = files.Samples(str(tmp_path))
  assert found.folders == ['2', '10'] and found.labels.tolist() == [0, 1]
  assert len(found[0:9]) == 2
  assert '4 file(s)' in found.skipped and 'notes.txt' in found.skipped
