"""Ablations: one study a question, run on real data, with seeds.

  python benchmarks/ablations.py --study=levels --seeds=3
  python benchmarks/ablations.py --study=order --seeds=3 --data=emoji64.npz

trains every variant of a study with every seed (`fractal_jax.train`), and
writes into --report a table (STUDY.md), one row a run (STUDY.csv) and a plot
(STUDY.png). Runs lie under --out; one that is finished is never run again, so
the same command goes on where it was stopped, and with more seeds adds to what
is there. `--notrain` only writes the report of the runs that are there.

Studies that change a model's size try each of their peak learning rates on seed
0, for each variant alike; its other seeds have the best of these.
"""

from collections.abc import Callable
import csv
import dataclasses
import json
import pathlib
import time

from absl import app, flags
import numpy as np

from fractal_jax import checkpoint, cost, train
from fractal_jax import config as config_lib

TUNING_SEED = 0  # its runs choose the learning rate
MATCH = 0.1  # relative distance of training FLOPs that counts as equal


@dataclasses.dataclass(frozen=True)
class Study:
  """A question, and the runs that answer it.

  Attributes:
    question: in words.
    base: makes the config that all variants share.
    variants: changes {'section.key': value} to the base, by name.
    peaks: learning rates; of several, each variant's best is used.
    equal: whether training FLOPs an image must agree within MATCH.
  """

  question: str
  base: Callable
  variants: dict[str, dict]
  peaks: tuple[float, ...]
  equal: bool = False


def digits():
  """8x8 digits, ar levels: exact likelihoods."""
  c = config_lib.default()
  m = c.model
  m.channels, m.num_values, m.classes = 1, 17, 10
  m.mean, m.std = (0.3057,), (0.3761,)  # of the training split
  m.channel_weights = (1.0,)
  m.label_dropout = 0.3  # scored without labels
  c.data.name = 'digits'
  c.data.flip, c.data.shift = False, 1
  c.eval.batch = 152
  return running(c, batch=32, steps=400)


def running(c, batch: int, steps: int):
  """What all studies have in common."""
  c.model.remat, c.model.unroll = 'none', 1
  c.optim.batch, c.optim.steps = batch, steps
  c.optim.log_every = c.eval.every = steps // 10
  c.optim.save_every = steps
  c.optim.hang_after = 0.0  # the machine may be busy
  c.sample.every = 0
  c.data.threads = 1
  return c


def levels(sizes, widths, depths, heads) -> dict:
  kinds = ('ar',) * (len(sizes) - 1) + ('pixel',)
  names = ('sizes', 'kinds', 'widths', 'depths', 'heads')
  values = (sizes, kinds, widths, depths, heads)
  return {f'model.{k}': v for k, v in zip(names, values)}


STUDIES = {
  'levels': Study(
    question='Does depth help at equal training compute?',
    base=digits,
    variants={
      # The last level of `flat` has no blocks: it only gives logits.
      'flat': levels((8, 1), (64, 64), (2, 0), (4, 4)),
      '2 levels': levels((8, 1), (64, 24), (2, 1), (4, 2)),
      '3 levels': levels((8, 2, 1), (96, 48, 32), (3, 1, 1), (4, 4, 2)),
      '4 levels': levels(
        (8, 4, 2, 1), (96, 96, 48, 32), (5, 2, 1, 1), (4, 4, 4, 2)
      ),
    },
    peaks=(3e-3, 6e-3, 1.2e-2),
    equal=True,
  ),
}


class AblationError(ValueError):
  """A study that can't be run or reported as it stands."""


def config_of(study: Study, variant: str, seed: int, peak: float):
  """The config of one run, checked."""
  c = study.base()
  for key, value in study.variants[variant].items():
    section, name = key.split('.')
    c[section][name] = value
  c.seed = seed
  c.optim.lr = peak * 256 / c.optim.batch
  config_lib.check(c)
  return c


def check_equal(study: Study) -> None:
  """Raises AblationError where a study's variants differ in compute."""
  flops = {
    name: cost.train_flops_per_image(config_of(study, name, 0, 1e-3))
    for name in study.variants
  }
  low, high = min(flops.values()), max(flops.values())
  if study.equal and high > (1 + MATCH) * low:
    raise AblationError(
      f'training FLOPs an image differ by more than {MATCH:.0%}: {flops}; '
      'change widths or depths'
    )


def run(config, folder: pathlib.Path) -> dict:
  """What a run came to: trained now, or read where it is finished.

  Raises:
    AblationError: the folder holds a finished run of another config.
  """
  path = folder / 'result.json'
  if path.exists():
    if checkpoint.load_config(folder).to_dict() != config.to_dict():
      raise AblationError(
        f'{folder} holds a run of another config: the study has changed since. '
        'Remove the folder, or choose another --out.'
      )
    return json.loads(path.read_text())
  wall, cpu = time.monotonic(), time.process_time()
  train.train(config, str(folder))
  found = {
    'wall_seconds': time.monotonic() - wall,
    'cpu_seconds': time.process_time() - cpu,
    'curve': curve(folder),
  }
  torn = path.with_suffix('.tmp')
  torn.write_text(json.dumps(found, indent=1) + '\n')
  torn.replace(path)
  return found


def curve(folder: pathlib.Path) -> list[dict]:
  """The validation scores of a run, one a step that was scored."""
  lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return [
    {k.removeprefix('val/'): v for k, v in line.items()}
    for line in lines
    if 'val/bits_per_dim' in line
  ]


def train_all(study: Study, name: str, seeds: int, out: pathlib.Path) -> None:
  """Trains what is missing: first the tuning runs, then seed by seed."""
  if len(study.peaks) > 1:
    for variant in study.variants:
      for peak in study.peaks:
        run(*planned(study, name, variant, TUNING_SEED, peak, out))
  for seed in range(seeds):
    for variant in study.variants:
      peak = best_peak(study, name, variant, out)
      run(*planned(study, name, variant, seed, peak, out))


def planned(study, name, variant, seed, peak, out):
  """The config and folder of one run."""
  folder = out / name / variant.replace(' ', '_') / f'lr{peak:g}_seed{seed}'
  return config_of(study, variant, seed, peak), folder


def best_peak(study: Study, name: str, variant: str, out) -> float:
  """The learning rate whose run with the tuning seed scored best."""
  if len(study.peaks) == 1:
    return study.peaks[0]
  scores = {}
  for peak in study.peaks:
    _, folder = planned(study, name, variant, TUNING_SEED, peak, out)
    found = json.loads((folder / 'result.json').read_text())
    scores[peak] = found['curve'][-1]['bits_per_dim']
  return min(scores, key=scores.get)
