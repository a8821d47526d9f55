"""A run as one HTML page, which needs no other file and can be sent.

It is made of what the run keeps: config.json, classes.json, metrics.jsonl and
samples/.
"""

import html
import importlib.metadata
import math
import platform
import re

from fractal_jax import charts, config_files, pages, paths
from fractal_jax.data import classes
from fractal_jax.training import checkpoint, logs

STYLE = """
img { image-rendering: pixelated }
pre { overflow: auto; background: #f5f5f5; padding: 1em; font-size: 12px }
"""
SHOWN = 8  # grids of samples, evenly over the run
PACKAGES = ('fractal_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def write(workdir: str, machine: str = '') -> str:
  """Writes WORKDIR/report.html.

  Args:
    workdir: of a run that has trained.
    machine: what it ran on, in words.

  Returns:
    The path of the page.
  """
  path = paths.path(workdir) / 'report.html'
  paths.write_text(path, page(workdir, machine))
  return str(path)


def page(workdir: str, machine: str = '') -> str:
  """The HTML page; see `write`."""
  config = checkpoint.load_config(workdir)
  names = classes.load(workdir)
  lines = logs.read_metrics(workdir)
  name = html.escape(paths.path(workdir).name)
  facts = pages.table(('', ''), _facts(config, names, lines, machine))
  code = config_files.text(config, f'The config of the run {name}.')
  body = f"""<h1>{name}</h1>
<p>A fractal generative model, trained by fractal_jax.</p>
{facts}
<h2>Samples over time</h2>
<p>Drawn by the model as it was after the step below each{
    ', a class in each column' if 1 < len(names) <= 16 else ''
  }; none is selected.</p>
{_samples(workdir)}
<h2>Curves</h2>
{_curves(lines)}
<h2>Config</h2>
<details><summary>Every key, as a file that --config takes</summary>
<pre>{html.escape(code)}</pre></details>"""
  return pages.page(paths.path(workdir).name, body, style=STYLE)


def _facts(config, names, lines, machine: str) -> list[tuple[str, str]]:
  """Rows of the table at the top."""
  m, out = config.model, []
  scored = [x for x in lines if {'val/bits_per_dim', 'val/stderr'} <= x.keys()]
  if scored:
    last = scored[-1]
    best = min(scored, key=lambda x: x['val/bits_per_dim'])
    bits = lambda x: (
      f'{x["val/bits_per_dim"]:.3f} ± {x["val/stderr"]:.3f} bits/dim'
    )
    text = bits(last) + f' after step {last["step"]}'
    if best is not last:
      text += f'; the best, {bits(best)}, after step {best["step"]}'
    out.append(('held-out images', text))
  steps = max((x['step'] for x in lines), default=0)
  out.append(('trained', f'{steps:,} steps of {config.optim.batch} images'))
  speeds = sorted(
    x['train/images_per_second']
    for x in lines
    if 'train/images_per_second' in x
  )
  if speeds:
    out.append(('speed', f'{speeds[len(speeds) // 2]:.4g} images/s (median)'))
  uptime = max((x.get('uptime', 0) for x in lines), default=0)
  if uptime:
    out.append(('time', f'{logs.duration(uptime)} since it last started'))
  side = 'x'.join([str(m.sizes[0])] * m.rank)
  levels = ' → '.join(
    f'{kind} {size}' if size > 1 else kind
    for kind, size in zip(m.kinds, m.sizes)
  )
  out += [
    ('images', f'{side}, {m.channels} channel(s) of {m.num_values} values'),
    ('levels', f'{levels}; widths {tuple(m.widths)}, depths {tuple(m.depths)}'),
    ('data', f'{config.data.name} {config.data.dir}'.strip()),
  ]
  if names:
    out.append(('classes', classes.listing(names)))
  if machine:
    out.append(('machine', machine))
  versions = [f'Python {platform.python_version()}']
  for package in PACKAGES:
    try:
      versions.append(f'{package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      continue  # run from a checkout that is not installed
  return [*out, ('versions', ', '.join(versions))]


def _samples(workdir: str) -> str:
  """Figures of grids of samples, and of the last ones as they grow."""
  folder = paths.path(workdir) / 'samples'
  files = sorted(
    (file for file, is_file in paths.entries(folder) if is_file)
    if folder.is_dir()
    else []
  )
  grids = [  # others may have been put there
    file
    for file in files
    if re.fullmatch(r'step_\d+\.png', paths.path(file).name)
  ]
  if len(grids) > SHOWN:
    step = (len(grids) - 1) / (SHOWN - 1)
    grids = [grids[round(i * step)] for i in range(SHOWN)]
  out = [
    (f'step {int(paths.path(f).stem.removeprefix("step_"))}', f, 'png')
    for f in grids
  ]
  movies = [file for file in files if file.endswith('.gif')]
  out += [('growing, value by value', f, 'gif') for f in movies]
  if not out:
    return '<p>No samples were drawn: sample.every is 0.</p>'
  return ''.join(
    pages.figure(paths.path(file).read_bytes(), caption, kind=kind)
    for caption, file, kind in out
  )


def _curves(lines: list[dict[str, float]]) -> str:
  """Charts of what was logged."""
  charts = (
    ('bits per dimension', {
      'training (dropout on)': 'train/bits_per_dim',
      'held out': 'val/bits_per_dim',
    }),
    ('norm of the gradient', {'': 'train/grad_norm'}),
    ('learning rate', {'': 'train/lr'}),
    ('images per second', {'': 'train/images_per_second'}),
  )  # fmt: skip
  out = ''
  for title, curves in charts:
    found = {
      label: [(x['step'], x[key]) for x in lines if key in x]
      for label, key in curves.items()
    }
    found = {label: points for label, points in found.items() if points}
    if found:
      out += pages.figure(chart(found), title)
  return out or '<p>Nothing was logged.</p>'


def chart(curves: dict[str, list[tuple[float, float]]]) -> bytes:
  """Curves over steps as a PNG.

  Args:
    curves: finite (step, value) in order, by label.
  """
  figure, (axis,) = charts.new_axes(1, 2.4, width=4.9)
  for label, points in curves.items():
    dot = '.' if len(points) <= 40 else None
    axis.plot(*zip(*points), marker=dot, label=label)
  # The first of many values may be far above all others: they are cut off.
  values = sorted(v for points in curves.values() for _, v in points)
  low, high = values[0], values[math.ceil(0.98 * (len(values) - 1))]
  if low < high:
    axis.set_ylim(top=high + (high - low) / 20)
  axis.set_xlabel('step', fontsize=8)
  axis.grid(alpha=0.3)
  if any(curves):
    axis.legend(fontsize=8)
  return charts.png(figure)
