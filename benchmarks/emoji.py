"""Trains both small emoji models and makes all pictures and numbers of them.

  python benchmarks/emoji.py

Two trainings of less than two hours each on two cores (configs/emoji.py:small
and :small_mar), then an hour of samples; --models=ar for one of them. What is
done is not done again, and trainings resume: after an interruption, run it
again. --minutes ends each training for now after so many.

Writes into --out, of each model NAME (ar, mar) and of its best checkpoint:

  NAME.png             samples, a class in each column
  NAME_classes.png     a sample of each of the 98 classes
  NAME.gif             four emoji as they grow
  NAME_completed.png   held-out emoji whose lower half is drawn anew
  NAME_curve.png       training and validation bits/dim by step
  NAME.txt             bits/dim of held-out emoji, with its error, and how far
                       held-out and drawn emoji are from those of training
  NAME_diversity.*     the table and picture of benchmarks/diversity.py, of
                       --diversity images a setting (0: none)
  codecs.txt           bits/dim of PNG, WebP and simple densities
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

from absl import app, flags
import numpy as np

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'data',
  None,
  'Where `npm pack emoji-datasource-google@16.0.0` was run, or an .npz of '
  'images and classes of your own. By default as in the config.',
)
flags.DEFINE_string('runs', 'runs', 'Where the runs are.')
flags.DEFINE_string('out', 'docs/pictures/emoji', 'Where the pictures go.')
flags.DEFINE_float('minutes', None, 'Stop a training after so many, and save.')
flags.DEFINE_list('models', ['ar', 'mar'], 'Which models.')
flags.DEFINE_integer('diversity', 900, 'Images of each setting; 0: none.')
flags.DEFINE_bool('train', True, 'Train; otherwise take the runs as they are.')

HERE = pathlib.Path(__file__).parent
MODELS = {'ar': 'small', 'mar': 'small_mar'}
# Of the 98 classes, those in the columns of a picture.
COLUMNS = (
  'face-smiling,face-concerned,person,person-role,heart,country-flag,'
  'food-fruit,animal-mammal,geometric'
)
GROWING = 'face-smiling,person,country-flag,hands'
HALVES = (3, 31, 60, 88, 117, 150)  # held-out emoji to complete
COPY = 10  # of 255: the eye hardly sees what differs
PREEMPTED = 75  # see fractal_jax/main.py


def call(*arguments: str, out: pathlib.Path | None = None) -> None:
  """Runs a program of this project; its output goes to a file where given."""
  print('$', *arguments, flush=True)
  command = [sys.executable, *arguments]
  if out is None:
    subprocess.run(command, check=True)
    return
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  out.write_text(done.stdout)
  print(done.stdout, flush=True)


def ours(command: str, *arguments: str, **how) -> None:
  call('-m', 'fractal_jax.main', command, *arguments, **how)


def data() -> list[str]:
  """The flags that name another source of the emoji."""
  if not FLAGS.data:
    return []
  place = os.path.abspath(FLAGS.data)
  if not place.endswith('.npz'):
    return [f'--config.data.manual_dir={place}']
  with np.load(place) as arrays:
    classes = int(arrays['labels'].max()) + 1
  return [
    '--config.data.name=npz',
    f'--config.data.dir={place}',
    f'--config.model.classes={classes}',
  ]


def config_of(name: str) -> str:
  return f'--config={HERE.parent}/configs/emoji.py:{MODELS[name]}'


def trained(name: str, workdir: pathlib.Path) -> bool:
  """Trains a model; False where --minutes ended it before its last step."""
  command = [sys.executable, '-m', 'fractal_jax.main', 'train']
  command += [config_of(name), f'--workdir={workdir}', *data()]
  command += ['--config.optim.keep_every=1000']  # one of them will guide
  print('$', *command, flush=True)
  process = subprocess.Popen(command)
  try:
    process.wait(FLAGS.minutes and 60 * FLAGS.minutes)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGTERM)
    process.wait()
  if process.returncode not in (0, PREEMPTED):
    sys.exit(f'emoji: training {name} failed with {process.returncode}')
  return process.returncode == 0


def history(workdir: pathlib.Path, key: str) -> list[tuple[int, float]]:
  """(step, value) of a metric over a run."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [(r['step'], r[key]) for r in map(json.loads, lines) if key in r]


def best_step(workdir: pathlib.Path) -> int:
  """The checkpoint of the lowest validation bits/dim that is there."""
  kept = {int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*')}
  found = [x for x in history(workdir, 'val/bits_per_dim') if x[0] in kept]
  return min(found, key=lambda x: x[1])[0]


def draw_curve(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Bits/dim over the steps, of training and of validation."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axis = plt.subplots(figsize=(6, 3.6))
  for key, label in (
    ('train/bits_per_dim', 'training (with dropout, and augmented)'),
    ('val/bits_per_dim', 'validation'),
  ):
    axis.plot(*zip(*history(workdir, key)), label=label)
  axis.axvline(best_step(workdir), color='grey', lw=0.8, label='best')
  axis.set_ylim(top=1.5 * history(workdir, 'val/bits_per_dim')[-1][1])
  axis.set_xlabel('step')
  axis.set_ylabel('bits/dim')
  axis.legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def pictures(name: str, workdir: pathlib.Path, out: pathlib.Path) -> None:
  """All that is made of one run."""
  step = best_step(workdir)
  run = [f'--workdir={workdir}', f'--step={step}']
  draw_curve(workdir, out / f'{name}_curve.png')
  ours('likelihood', *run, out=out / f'{name}.txt')
  with (out / f'{name}.txt').open('a') as file:
    file.write(copies(workdir, step))
  ours('sample', *run, '--num=98', f'--out={out}/{name}_classes.png')
  columns = f'--labels={COLUMNS}'
  ours('sample', *run, columns, '--num=72', f'--out={out}/{name}.png')
  grow = [f'--labels={GROWING}', '--num=4', '--seed=1']
  grow += [f'--movie={out}/{name}.gif', f'--out={workdir}/growing.png']
  ours('sample', *run, *grow)
  for i in HALVES:
    one = ['--mode=lower', '--num=6', f'--index={i}']
    ours('edit', *run, *one, f'--out={workdir}/completed_{i}.png')
  stack([workdir / f'completed_{i}.png' for i in HALVES],
        out / f'{name}_completed.png')  # fmt: skip
  if not FLAGS.diversity:
    return
  call(
    str(HERE / 'diversity.py'),
    f'--workdir={workdir}',
    f'--guide={workdir}@1000',
    f'--out={out}/{name}_diversity',
    f'--num={FLAGS.diversity}',
    '--batch=90',
  )


def copies(workdir: pathlib.Path, step: int) -> str:
  """How near drawn and held-out emoji are to the nearest one of training.

  A model that has learned its images by heart draws them again: at a distance
  near to 0, where held-out emoji have none as near but for near copies.
  """
  from sklearn.neighbors import NearestNeighbors

  import fractal_jax
  from fractal_jax.data import pipeline

  model = fractal_jax.load(workdir, step=step)
  config = model.config
  train, _ = pipeline.examples(config, config.data.train_split)
  held_out, _ = pipeline.examples(config, config.data.val_split)
  known = np.concatenate((train, train[:, :, ::-1]))  # mirrored, too
  nearest = NearestNeighbors(n_neighbors=1).fit(flat(known))
  lines = ['root mean square distance from the nearest training image, of 255:']
  for name, images in (
    ('held-out', held_out),
    ('drawn', model.sample(num=4 * config.model.classes, seed=1)),
  ):
    found = nearest.kneighbors(flat(images))[0] / known[0].size ** 0.5
    low, middle = np.quantile(found, (0.05, 0.5))
    lines.append(
      f'  {len(found)} {name}: median {middle:.1f}, 5% below {low:.1f}, '
      f'{np.mean(found < COPY):.1%} below {COPY}'
    )
  return '\n'.join(lines) + '\n'


def flat(images: np.ndarray) -> np.ndarray:
  """Images as vectors."""
  return images.reshape(len(images), -1).astype(np.float32)


def stack(files: list[pathlib.Path], path: pathlib.Path) -> None:
  """Pictures of one size, one below the other."""
  from PIL import Image

  parts = [Image.open(file) for file in files]
  width, height = parts[0].size
  whole = Image.new('RGB', (width, height * len(parts)), 'white')
  for i, part in enumerate(parts):
    whole.paste(part, (0, i * height))
  whole.save(path)


def main(_):
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  call(
    str(HERE / 'codecs.py'), config_of('ar'), *data(), out=out / 'codecs.txt'
  )
  for name in FLAGS.models:
    workdir = pathlib.Path(FLAGS.runs, f'emoji_{name}')
    if FLAGS.train and not trained(name, workdir):
      print(f'{name} is saved; the same command goes on')
      continue
    pictures(name, workdir, out)


if __name__ == '__main__':
  sys.exit(app.run(main))
