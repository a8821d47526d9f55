"""Ablations: one study per question, run on real data, with seeds.

  python benchmarks/ablations.py --study=levels --seeds=3
  python benchmarks/ablations.py --study=order --seeds=3 --data=emoji64.npz

trains every variant of a study with every seed (`training.train`), and writes
into --report a table (STUDY.md), one row per run (STUDY.csv) and a plot
(STUDY.png). Runs lie under --out; one that is finished is never run again, not
for another study either, so the same command goes on where it was stopped, and
with more seeds adds to what is there. `--notrain` writes the report of what is
there.

Studies that change a model's size try their peak learning rates on seed 0, from
the lowest up to the first that is not clearly better than the one before, and
report all seeds with the best. Data: digits come with scikit-learn; the other
studies read --data, an .npz of emoji of 64x64 (`images`, `labels`,
`label_names`), halved twice by averaging; a fixed tenth is held out.
"""

import csv
import dataclasses
import importlib.util
import json
import math
import pathlib
import statistics
import sys
import time

from absl import app, flags

from fractal_jax import config as config_lib
from fractal_jax.errors import UserError
from fractal_jax.planning import cost
from fractal_jax.training import checkpoint, train

TUNING_SEED = 0  # its runs choose the learning rate
# Bits/dim by which a higher learning rate must be better: less is noise, and
# the lower one is the steadier of the two.
CLEARLY = 0.005
MATCH = 0.1  # relative distance of training FLOPs that counts as equal


class AblationError(UserError, ValueError):
  """A study that can't be run or reported as it stands."""


def load_studies():
  """configs/ablations.py, as a module."""
  path = pathlib.Path(__file__).parent.parent / 'configs' / 'ablations.py'
  spec = importlib.util.spec_from_file_location('configs_ablations', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look it up
  spec.loader.exec_module(module)
  return module


configs = load_studies()


def check_equal(name: str) -> None:
  """Raises AblationError where a study's variants differ in compute."""
  study = configs.STUDIES[name]
  flops = {
    variant: cost.train_flops_per_image(configs.config_of(name, variant))
    for variant in study.variants
  }
  if study.equal and max(flops.values()) > (1 + MATCH) * min(flops.values()):
    raise AblationError(
      f'training FLOPs per image differ by more than {MATCH:.0%}: {flops}; '
      'change widths or depths'
    )


# Training.


@dataclasses.dataclass(frozen=True)
class Runs:
  """A study's runs, in a folder."""

  name: str  # of the study
  out: pathlib.Path
  data: str = ''

  @property
  def study(self):
    """The question and its variants, a configs.Study."""
    return configs.STUDIES[self.name]

  def folder(self, variant: str, seed: int, peak: float) -> pathlib.Path:
    """The work directory of one run; studies share the runs of their base."""
    name = variant if self.study.variants[variant] else 'base'
    of = self.out / self.study.base.__name__
    return of / name / f'lr{peak:g}_seed{seed}'

  def config(self, variant: str, seed: int, peak: float):
    """The config of one run, checked."""
    c = configs.config_of(self.name, variant, seed, peak)
    if c.data.name == 'npz' and self.data:
      c.data.dir = str(pathlib.Path(self.data).expanduser().absolute())
    config_lib.check(c)
    return c

  def train(self, variant: str, seed: int, peak: float) -> None:
    """Trains a run, unless it is finished.

    Raises:
      AblationError: the folder holds a finished run of another config.
    """
    config = self.config(variant, seed, peak)
    folder = self.folder(variant, seed, peak)
    if self.result(variant, seed, peak) is not None:
      found = checkpoint.load_config(folder).to_dict()
      if found != config.to_dict():
        raise AblationError(
          f'{folder} holds a run of another config: the study has changed. '
          'Remove the folder, or choose another --out.'
        )
      return
    wall, cpu = time.monotonic(), time.process_time()
    train.train(config, str(folder))
    found = {
      'wall_seconds': time.monotonic() - wall,
      'cpu_seconds': time.process_time() - cpu,
      'curve': curve(folder / 'metrics.jsonl'),
    }
    torn = folder / 'result.tmp'
    torn.write_text(json.dumps(found, indent=1) + '\n')
    torn.replace(folder / 'result.json')

  def result(self, variant: str, seed: int, peak: float) -> dict | None:
    """What a run came to, or None."""
    path = self.folder(variant, seed, peak) / 'result.json'
    return json.loads(path.read_text()) if path.exists() else None

  def peak(self, variant: str) -> float | None:
    """The learning rate to use, from the tuning seed; None: not known yet."""
    peaks = self.study.peaks
    best = None
    for peak in peaks if len(peaks) > 1 else ():
      result = self.result(variant, TUNING_SEED, peak)
      if result is None:
        return None
      bits = score(result)['bits_per_dim']
      if best is not None and bits > best[0] - CLEARLY:
        break
      best = bits, peak
    return best[1] if best else peaks[0]

  def train_all(self, seeds: int) -> None:
    """Trains what is missing: first to tune, then seed by seed."""
    for variant in self.study.variants:
      for peak in self.study.peaks:
        if self.peak(variant) is None:
          self.train(variant, TUNING_SEED, peak)
    for seed in range(seeds):
      for variant in self.study.variants:
        self.train(variant, seed, self.peak(variant))

  def found(self, seeds: int) -> dict[str, dict[int, dict]]:
    """Results by variant and seed, of what is there."""
    out = {}
    for variant in self.study.variants:
      peak = self.peak(variant)
      for seed in range(seeds) if peak is not None else ():
        result = self.result(variant, seed, peak)
        if result is not None:
          out.setdefault(variant, {})[seed] = result
    return out


def curve(path: pathlib.Path) -> list[dict]:
  """The validation scores of a run, one per step that was scored."""
  lines = map(json.loads, path.read_text().splitlines())
  return [
    {k.removeprefix('val/'): v for k, v in line.items()}
    for line in lines
    if 'val/bits_per_dim' in line
  ]


def score(result: dict) -> dict:
  """The last validation score."""
  return result['curve'][-1]


# Reporting.


def kind(last: dict) -> str:
  """What the bits of a score are."""
  name = 'exact' if last['exact'] else f'estimate, {last["passes"]:.0f} masks'
  if last['bound']:
    name += ', upper bound'
  return name + (', of YCbCr' if last.get('rounded') else '')


def spread(values) -> str:
  """Mean and standard deviation, where there are several."""
  if len(values) == 1:
    return f'{values[0]:.4f}'
  return f'{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}'


def rows(runs: Runs, found, costs) -> list[dict]:
  """One row per run, for the CSV."""
  out = []
  for variant, results in found.items():
    for seed, result in results.items():
      c = runs.config(variant, seed, runs.peak(variant))
      flops = costs[variant].total('training')
      last = score(result)
      out.append(
        dict(
          variant=variant,
          seed=seed,
          bits_per_dim=f'{last["bits_per_dim"]:.5f}',
          stderr_images=f'{last["stderr"]:.5f}',
          stderr_masks=f'{last["mc_stderr"]:.5f}',
          kind=kind(last),
          parameters=costs[variant].params,
          train_mflops_image=f'{flops / 1e6:.2f}',
          train_tflops=f'{flops * c.optim.batch * c.optim.steps / 1e12:.4f}',
          peak_lr=runs.peak(variant),
          batch=c.optim.batch,
          steps=c.optim.steps,
          wall_seconds=f'{result["wall_seconds"]:.0f}',
          cpu_seconds=f'{result["cpu_seconds"]:.0f}',
        )
      )
  return out


def difference(results: dict, first: dict) -> str:
  """Mean difference to the first variant over common seeds, its std. error."""
  bits = lambda x: score(x)['bits_per_dim']
  both = [bits(results[s]) - bits(first[s]) for s in results if s in first]
  if results is first or not both:
    return ''
  text = f'{statistics.mean(both):+.4f}'
  if len(both) > 1:
    text += f' ± {statistics.stdev(both) / math.sqrt(len(both)):.4f}'
  return text


def table(runs: Runs, found, costs) -> str:
  """The study as a Markdown table, one row per variant."""
  head = (
    'variant', 'seeds', 'bits/dim', 'difference', 'what the bits are',
    'parameters', 'training MFLOPs per image', 'peak learning rate',
    'CPU s per run', 'wall s',
  )  # fmt: skip
  lines = [head, ('---',) * len(head)]
  first = next(iter(found.values()))
  for variant, results in found.items():
    mean = lambda name, r=results: statistics.mean(x[name] for x in r.values())
    lines.append(
      (
        variant,
        str(len(results)),
        spread([score(x)['bits_per_dim'] for x in results.values()]),
        difference(results, first),
        kind(score(next(iter(results.values())))),
        f'{costs[variant].params:,}',
        f'{costs[variant].total("training") / 1e6:.1f}',
        f'{runs.peak(variant):g}',
        f'{mean("cpu_seconds"):.0f}',
        f'{mean("wall_seconds"):.0f}',
      )
    )
  text = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
  tuning = tuned(runs)
  return text + ('\n\n' + tuning if tuning else '') + '\n'


def tuned(runs: Runs) -> str:
  """What the learning rates came to, seed 0."""
  peaks = runs.study.peaks
  if len(peaks) == 1:
    return ''
  head = ('peak learning rate (seed 0)', *(f'{p:g}' for p in peaks))
  lines = [head, ('---',) * len(head)]
  for variant in runs.study.variants:
    results = [runs.result(variant, TUNING_SEED, p) for p in peaks]
    bits = ['' if r is None else f'{score(r)["bits_per_dim"]:.4f}'
            for r in results]  # fmt: skip
    lines.append((variant, *bits))
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def plot(runs: Runs, found, costs, path: pathlib.Path) -> None:
  """Bits/dim of every seed; against compute, where sizes are compared."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  last = {
    v: [score(x)['bits_per_dim'] for x in r.values()] for v, r in found.items()
  }
  panels = 2 if runs.study.equal else 1
  figure, axes = plt.subplots(
    1, panels, figsize=(4.5 * panels + 1, 3.6), squeeze=False,
    layout='constrained',
  )  # fmt: skip
  ends = axes[0, -1]
  for i, (variant, bits) in enumerate(last.items()):
    colour = f'C{i}'
    ends.plot([i] * len(bits), bits, 'o', color=colour, alpha=0.5)
    ends.plot([i - 0.25, i + 0.25], [statistics.mean(bits)] * 2, color=colour)
    if runs.study.equal:
      c = runs.config(variant, 0, runs.peak(variant))
      flops = costs[variant].total('training') * c.optim.batch / 1e12
      for j, result in enumerate(found[variant].values()):
        x = [point['step'] * flops for point in result['curve']]
        y = [point['bits_per_dim'] for point in result['curve']]
        label = f'{variant}' if not j else None
        axes[0, 0].plot(x, y, color=colour, alpha=0.8, label=label)
  ends.set_xticks(range(len(last)), last, fontsize=9)
  ends.set_xlim(-0.6, len(last) - 0.4)
  ends.set_ylabel('validation bits/dim')
  ends.set_title('at the end: one dot per seed, a line at the mean', fontsize=9)
  if runs.study.equal:
    lowest = min(map(min, last.values()))
    axes[0, 0].set_ylim(lowest - 0.02, lowest + 0.3)
    axes[0, 0].set_xlabel('training TFLOPs')
    axes[0, 0].set_ylabel('validation bits/dim')
    axes[0, 0].set_title('while training: one line per seed', fontsize=9)
    axes[0, 0].legend(fontsize=9)
  figure.suptitle(runs.study.question, fontsize=11)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def report(runs: Runs, seeds: int, folder: pathlib.Path) -> str:
  """Writes NAME.md, NAME.csv and NAME.png; returns the table."""
  name, found = runs.name, runs.found(seeds)
  if not found:
    raise AblationError(f'no finished run of study {name} in {runs.out}')
  folder.mkdir(parents=True, exist_ok=True)
  costs = {v: cost.cost(runs.config(v, 0, runs.peak(v))) for v in found}
  each = rows(runs, found, costs)
  with open(folder / f'{name}.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, each[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(each)
  text = table(runs, found, costs)
  (folder / f'{name}.md').write_text(text)
  plot(runs, found, costs, folder / f'{name}.png')
  return text


def main(_):
  """Trains what is missing, and reports."""
  import jax

  cache = pathlib.Path(FLAGS.out, 'xla').absolute()
  jax.config.update('jax_compilation_cache_dir', str(cache))
  runs = Runs(FLAGS.study, pathlib.Path(FLAGS.out), FLAGS.data)
  try:
    check_equal(FLAGS.study)
    if FLAGS.train:
      runs.train_all(FLAGS.seeds)
    print(report(runs, FLAGS.seeds, pathlib.Path(FLAGS.report)))
  except UserError as e:
    sys.exit(f'ablations: {e}')


FLAGS = flags.FLAGS

if __name__ == '__main__':
  flags.DEFINE_enum('study', 'levels', list(configs.STUDIES), 'Which study.')
  flags.DEFINE_integer('seeds', 3, 'Runs per variant.', lower_bound=1)
  flags.DEFINE_string('out', 'runs/ablations', 'Where the runs lie.')
  flags.DEFINE_string('report', 'docs/ablations', 'Where to write the report.')
  flags.DEFINE_string('data', 'emoji64.npz', 'The emoji, where they are used.')
  flags.DEFINE_bool('train', True, 'Train what is missing.')
  app.run(main)
