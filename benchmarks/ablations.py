"""Ablations: one study per question, run on real data, with seeds.

  python benchmarks/ablations.py --study=levels --seeds=3
  python benchmarks/ablations.py --study=order --seeds=3 --data=emoji64.npz

trains every variant of a study with every seed (`training.train`), and writes
into --report a table (STUDY.md), one row per run (STUDY.csv) and a plot
(STUDY.png). Runs lie under --out; one that is finished is never run again, not
for another study either, so the same command goes on where it was stopped, and
with more seeds adds to what is there. The table and the plot are made of the
CSV, to which the runs under --out are added: `--notrain` makes them anew
without any run.

Studies that change a model's size try their peak learning rates on seed 0, from
the lowest up to the first that is not clearly better than the one before, and
report all seeds with the best. Data: digits come with scikit-learn; the other
studies read --data, an .npz of emoji of 64x64 (`images`, `labels`,
`label_names`), halved twice by averaging; a fixed tenth is held out.
"""

from collections.abc import Callable
import csv
import dataclasses
import importlib.util
import itertools
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
from fractal_jax.training import checkpoint, logs, train

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
    variant: cost.cost(configs.config_of(name, variant)).total('training')
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
      'curve': curve(folder),
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

    def bits(peak: float) -> float | None:
      result = self.result(variant, TUNING_SEED, peak)
      return result and score(result)['bits_per_dim']

    return best_peak(self.study.peaks, bits)

  def train_all(self, seeds: int) -> None:
    """Trains what is missing: first to tune, then seed by seed."""
    for variant in self.study.variants:
      for peak in self.study.peaks:
        if self.peak(variant) is None:
          self.train(variant, TUNING_SEED, peak)
    for seed in range(seeds):
      for variant in self.study.variants:
        self.train(variant, seed, self.peak(variant))


def best_peak(
  peaks: tuple[float, ...], bits: Callable[[float], float | None]
) -> float | None:
  """The learning rate before the first that is not clearly better.

  Args:
    peaks: the learning rates, the lowest first; one alone needs no trial.
    bits: bits/dim with a learning rate, or None where it was not tried.

  Returns:
    The learning rate, or None where more must be tried.
  """
  best = None
  for peak in peaks if len(peaks) > 1 else ():
    found = bits(peak)
    if found is None:
      return None
    if best is not None and found > best[0] - CLEARLY:
      break
    best = found, peak
  return best[1] if best else peaks[0]


def curve(workdir: pathlib.Path) -> list[dict]:
  """The validation scores of a run, one per step that was scored."""
  return [
    {k.removeprefix('val/'): v for k, v in line.items()}
    for line in logs.read_metrics(workdir)
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


def rows_of(runs: Runs, seeds: int) -> list[dict]:
  """A row for each finished run, as texts; those that tuned, too."""
  study, out = runs.study, []
  for variant in study.variants:
    flops = cost.cost(configs.config_of(runs.name, variant)).total('training')
    tried = itertools.product(study.peaks, range(seeds))
    for peak, seed in tried:
      result = runs.result(variant, seed, peak)
      if result is None:
        continue
      c, last = runs.config(variant, seed, peak), score(result)
      out.append(
        dict(
          variant=variant,
          seed=f'{seed}',
          bits_per_dim=f'{last["bits_per_dim"]:.6f}',
          stderr_images=f'{last["stderr"]:.5f}',
          stderr_masks=f'{last["mc_stderr"]:.5f}',
          kind=kind(last),
          parameters=f'{cost.cost(c).params}',
          train_mflops_image=f'{flops / 1e6:.2f}',
          train_tflops=f'{flops * c.optim.batch * c.optim.steps / 1e12:.4f}',
          peak_lr=f'{peak:g}',
          batch=f'{c.optim.batch}',
          steps=f'{c.optim.steps}',
          wall_seconds=f'{result["wall_seconds"]:.0f}',
          cpu_seconds=f'{result["cpu_seconds"]:.0f}',
          curve=' '.join(
            f'{point["step"]}:{point["bits_per_dim"]:.4f}'
            for point in result['curve']
          ),
        )
      )
  return out


def with_earlier(study, rows: list[dict], path: pathlib.Path) -> list[dict]:
  """The rows of a CSV, if there is one, with new ones in place of the same."""
  places = {variant: i for i, variant in enumerate(study.variants)}
  place = lambda row: (
    places[row['variant']],
    float(row['peak_lr']),
    int(row['seed']),
  )
  earlier = []
  if path.exists():
    with open(path, newline='') as file:
      earlier = [
        {**x, 'curve': x.get('curve', '')} for x in csv.DictReader(file)
      ]
  found = {place(row): row for row in [*earlier, *rows]}
  return [found[at] for at in sorted(found)]


def reported(study, rows: list[dict]) -> dict[str, dict[str, dict]]:
  """Rows with the learning rate that was chosen, by variant and seed."""
  out = {}
  for variant in study.variants:
    own = [row for row in rows if row['variant'] == variant]
    tried = {
      float(row['peak_lr']): float(row['bits_per_dim'])
      for row in own
      if row['seed'] == str(TUNING_SEED)
    }
    peak = best_peak(study.peaks, tried.get)
    by_seed = {r['seed']: r for r in own if float(r['peak_lr']) == peak}
    if by_seed:
      out[variant] = by_seed
  return out


def bits_of(by_seed: dict[str, dict]) -> list[float]:
  """Bits/dim of each seed."""
  return [float(row['bits_per_dim']) for row in by_seed.values()]


def difference(by_seed: dict[str, dict], first: dict[str, dict]) -> str:
  """Mean difference to the first variant over common seeds, its std. error."""
  common = [seed for seed in by_seed if seed in first]
  if by_seed is first or not common:
    return ''
  ours, theirs = (bits_of({s: x[s] for s in common}) for x in (by_seed, first))
  both = [a - b for a, b in zip(ours, theirs)]
  text = f'{statistics.mean(both):+.4f}'
  if len(both) > 1:
    text += f' ± {statistics.stdev(both) / math.sqrt(len(both)):.4f}'
  return text


def markdown(lines: list[tuple]) -> str:
  """A table whose first line is its head."""
  lines = [lines[0], ('---',) * len(lines[0]), *lines[1:]]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def table(study, found: dict[str, dict[str, dict]]) -> str:
  """The study as a Markdown table, one row per variant."""
  head = (
    'variant', 'seeds', 'bits/dim', 'difference', 'what the bits are',
    'parameters', 'training MFLOPs per image', 'peak learning rate',
    'CPU s per run', 'wall s',
  )  # fmt: skip
  lines = [head]
  first = next(iter(found.values()))
  for variant, by_seed in found.items():
    one = next(iter(by_seed.values()))
    seconds = (
      f'{statistics.mean(float(row[name]) for row in by_seed.values()):.0f}'
      for name in ('cpu_seconds', 'wall_seconds')
    )
    lines.append(
      (
        variant,
        str(len(by_seed)),
        spread(bits_of(by_seed)),
        difference(by_seed, first),
        one['kind'],
        f'{int(one["parameters"]):,}',
        f'{float(one["train_mflops_image"]):.1f}',
        one['peak_lr'],
        *seconds,
      )
    )
  return markdown(lines)


def tuned(study, rows: list[dict]) -> str:
  """What the learning rates came to, on the tuning seed."""
  bits = {
    (row['variant'], float(row['peak_lr'])): f'{float(row["bits_per_dim"]):.4f}'
    for row in rows
    if row['seed'] == str(TUNING_SEED)
  }
  head = ('peak learning rate (seed 0)', *(f'{p:g}' for p in study.peaks))
  return markdown(
    [head]
    + [
      (v, *(bits.get((v, p), '') for p in study.peaks)) for v in study.variants
    ]
  )


def plot(study, found: dict[str, dict[str, dict]], path: pathlib.Path) -> None:
  """Bits/dim of every seed; against compute, where sizes are compared."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  last = {variant: bits_of(by_seed) for variant, by_seed in found.items()}
  panels = 2 if study.equal else 1
  figure, axes = plt.subplots(
    1, panels, figsize=(4.5 * panels + 1, 3.6), squeeze=False,
    layout='constrained',
  )  # fmt: skip
  ends = axes[0, -1]
  for i, (variant, bits) in enumerate(last.items()):
    colour = f'C{i}'
    ends.plot([i] * len(bits), bits, 'o', color=colour, alpha=0.5)
    ends.plot([i - 0.25, i + 0.25], [statistics.mean(bits)] * 2, color=colour)
    if study.equal and str(TUNING_SEED) in found[variant]:
      row = found[variant][str(TUNING_SEED)]
      flops = float(row['train_tflops']) / int(row['steps'])
      points = [point.split(':') for point in row['curve'].split()]
      axes[0, 0].plot(
        [int(step) * flops for step, _ in points],
        [float(bits) for _, bits in points],
        color=colour,
        label=variant,
      )
  ends.set_xticks(
    range(len(last)), [v.replace('_', '\n', 2) for v in last], fontsize=9
  )
  ends.set_xlim(-0.6, len(last) - 0.4)
  ends.set_ylabel('validation bits/dim')
  ends.set_title('at the end: one dot per seed, a line at the mean', fontsize=9)
  if study.equal:
    lowest, highest = min(map(min, last.values())), max(map(max, last.values()))
    axes[0, 0].set_ylim(lowest - 0.02, highest + 0.45)
    axes[0, 0].set_xlabel('training TFLOPs')
    axes[0, 0].set_ylabel('validation bits/dim')
    axes[0, 0].set_title(f'while training: seed {TUNING_SEED}', fontsize=9)
    axes[0, 0].legend(fontsize=9, loc='upper right')
  figure.suptitle(study.question, fontsize=11)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def report(runs: Runs, seeds: int, folder: pathlib.Path) -> str:
  """Writes NAME.csv, and from it NAME.md and NAME.png; returns the table."""
  name, study = runs.name, runs.study
  rows = with_earlier(study, rows_of(runs, seeds), folder / f'{name}.csv')
  found = reported(study, rows)
  if not found:
    raise AblationError(f'no finished run of study {name} in {runs.out}')
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / f'{name}.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  text = table(study, found) + '\n'
  if len(study.peaks) > 1:
    text += '\n' + tuned(study, rows) + '\n'
  (folder / f'{name}.md').write_text(text)
  plot(study, found, folder / f'{name}.png')
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
