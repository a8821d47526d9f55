"""Our metrics against torch-fidelity's, with the same random weights.

  python benchmarks/fidelity.py [--num=24]

Needs `pip install 'fractal_jax[fidelity]'`. Two sets of pictures are written
as PNGs: digits, and digits with noise. torch-fidelity and `evaluate` read the
same files, with the same weights from one .pth. benchmarks/fidelity.txt is the
output; --golden=tests/goldens/inception/fidelity.npz writes what tests compare
with.
"""

import argparse
import pathlib
import sys
import tempfile

import jax
import numpy as np
from PIL import Image
from sklearn import datasets

from fractal_jax.metrics import (
  features,
  files,
  inception,
  neighbours,
  reference,
  results,
  scores,
  weights,
)

LAYERS = ('64', '192', '768', '2048', 'logits_unbiased', 'logits')


def import_fidelity():
  """torch_fidelity, also where torchvision's compiled part does not load.

  That part has nothing of what the metrics need, but torchvision can't be
  imported until someone declares two of its operators.
  """
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    boxes = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
    for name in ('nms', 'qnms'):
      torch.library.define(f'torchvision::{name}', boxes)
    for name in [n for n in sys.modules if n.startswith('torchvision')]:
      del sys.modules[name]
  import torch_fidelity

  return torch_fidelity


def write_pth(path, state):
  """Random weights as torch-fidelity loads them."""
  import torch

  tensors = {k: torch.tensor(v) for k, v in state.items()}
  for name in state:
    if name.endswith('bn.weight'):
      count = name.replace('weight', 'num_batches_tracked')
      tensors[count] = torch.tensor(0)
  torch.save(tensors, path)


def golden_images():
  """Pictures [2, 20, 24, 3] of noise."""
  return np.random.default_rng(1).integers(0, 256, (2, 20, 24, 3), np.uint8)


def golden_sets():
  """Features [60, 256], [50, 256] and logits [60, 1008] to score."""
  rng = np.random.default_rng(2)
  a, b = (
    np.abs(rng.standard_normal((n, 256), np.float32)) * scale
    for n, scale in ((60, 1.0), (50, 1.05))
  )
  return a, b, 3 * rng.standard_normal((60, inception.CLASSES), np.float32)


def theirs_of_images(path, images):
  """torch-fidelity's features by layer."""
  import_fidelity()
  import torch
  from torch_fidelity import feature_extractor_inceptionv3

  net = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
    'net', list(LAYERS), feature_extractor_weights_path=str(path)
  )
  found = net(torch.tensor(images.transpose(0, 3, 1, 2)))
  return {k: x.numpy() for k, x in zip(LAYERS, found)}


def theirs_of_sets(a, b, logits):
  """torch-fidelity's FID, Inception Score, precision and recall."""
  import_fidelity()
  import torch
  from torch_fidelity import metric_fid, metric_isc, metric_prc

  a, b = torch.tensor(a), torch.tensor(b)
  stats = [metric_fid.fid_features_to_statistics(x.double()) for x in (a, b)]
  fid = metric_fid.fid_statistics_to_metric(*stats, False)
  isc = metric_isc.isc_features_to_metric(torch.tensor(logits))
  precision, recall = metric_prc.calculate_precision_recall_full(a, b)
  return {
    'fid': fid[metric_fid.KEY_METRIC_FID],
    'inception_score': isc[metric_isc.KEY_METRIC_ISC_MEAN],
    'inception_score_std': isc[metric_isc.KEY_METRIC_ISC_STD],
    'precision': precision,
    'recall': recall,
  }


def ours_of_sets(a, b, logits):
  """Our own of the same."""
  stats = []
  for rows in (a, b):
    total = scores.Statistics()
    total.add(rows)
    stats += total.result()
  score, deviation = scores.inception_score(logits)
  precision, recall = neighbours.precision_recall(a, b)
  return {
    'fid': scores.frechet_distance(*stats),
    'inception_score': score,
    'inception_score_std': deviation,
    'precision': precision,
    'recall': recall,
  }


def exact_fid(a, b):
  """FID of features [n, D] and [m, D] without their covariances."""
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  gap = a.mean(0) - b.mean(0)
  a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
  cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
  return gap @ gap + (a**2).sum() + (b**2).sum() - 2 * cross


def write_pngs(folder, pictures):
  folder.mkdir()
  for i, x in enumerate(pictures):
    Image.fromarray(x).save(folder / f'{i:05d}.png')


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--num', type=int, default=24, help='pictures of a set')
  parser.add_argument('--golden', help='a file to write for the tests')
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    run(pathlib.Path(temporary), given.num, given.golden)


def run(folder, num, golden):
  torch_fidelity = import_fidelity()
  state = weights.random_state(0)
  pth = folder / 'random.pth'
  write_pth(pth, state)
  found = weights.load(str(pth))

  print('Features of two pictures: greatest difference, and the values std')
  images = golden_images()
  theirs = theirs_of_images(pth, images)
  ours = jax.device_get(
    jax.jit(inception.Inception().apply)({'params': found.params}, images)
  )
  for name in LAYERS:
    gap = np.abs(ours[name] - theirs[name]).max()
    print(f'  {name:16}{gap:.2e}  {theirs[name].std():.3f}')

  sets = golden_sets()
  fixed = theirs_of_sets(*sets)
  if golden:
    np.savez_compressed(golden, **theirs, **fixed)
  print('Metrics of random features: torch-fidelity, ours')
  report(fixed, ours_of_sets(*sets))

  # The distance of sets of few images, which have covariances of low rank, from
  # the singular values of the centred sets: no root of a rounding error in it.
  print(f'  {"fid, from sets":20}{exact_fid(*sets[:2]):16.9f}')

  digits = datasets.load_digits().images[: 2 * num].astype(np.float32)
  noise = np.random.default_rng(0).normal(0, 2, digits.shape)
  first = digits[:num] + noise[:num]
  grey = lambda x: np.clip(x * 255 / 16, 0, 255).astype(np.uint8)
  rgb = lambda x: np.repeat(grey(x)[..., None], 3, -1)
  write_pngs(folder / 'generated', rgb(first))
  write_pngs(folder / 'real', rgb(digits[num:]))
  theirs = torch_fidelity.calculate_metrics(
    input1=str(folder / 'generated'),
    input2=str(folder / 'real'),
    fid=True,
    isc=True,
    prc=True,
    feature_extractor='inception-v3-compat',  # of prc, too, as ADM has it
    cuda=False,
    verbose=False,
    cache=False,
    save_cpu_ram=True,  # no forks
    batch_size=8,
    feature_extractor_weights_path=str(pth),
  )
  extractor = features.Extractor(found, batch=8)
  real = images.of_files(files.Samples(str(folder / 'real')), 8)
  pool, _ = results.features_of(real, extractor, lambda done: None)
  total = scores.Statistics()
  total.add(pool)
  ref = reference.Reference('real', *total.result(), features=pool)
  generated = images.of_files(files.Samples(str(folder / 'generated')), 8)
  ours = results.measure(generated, ref, extractor)
  print(f'{num} noisy digits against {num} digits, from PNGs')
  report(
    {
      'fid': theirs['frechet_inception_distance'],
      'inception_score': theirs['inception_score_mean'],
      'inception_score_std': theirs['inception_score_std'],
      'precision': theirs['precision'],
      'recall': theirs['recall'],
    },
    ours,
  )


def report(theirs, ours):
  for name, value in theirs.items():
    gap = abs(ours[name] - value)
    print(f'  {name:20}{value:16.9f}{ours[name]:16.9f}  {gap:.1e}')


if __name__ == '__main__':
  main()
