"""An analysis as scores.csv and one HTML page that needs no other file."""

import html

import numpy as np

from fractal_jax import pages, paths
from fractal_jax.pages import data_url, table
from fractal_jax.series import plots, ranking
from fractal_jax.series.analysis import Analysis

STYLE = 'img { width: 100% }'


def write(found: Analysis, folder: str) -> str:
  """Writes scores.csv and report.html; returns the latter's path."""
  path = paths.path(folder)
  paths.write_text(path / 'scores.csv', scores_csv(found))
  paths.write_text(path / 'report.html', page(found))
  return str(path / 'report.html')


def scores_csv(found: Analysis) -> str:
  """A line for each row of the file: score, alarm, and z2 by channel."""
  names = found.table.channels
  head = ['row', 'time'] if found.table.times is not None else ['row']
  out = [[*head, 'score', 'alarm', 'bits', *(f'z2_{name}' for name in names)]]
  bits = np.nansum(found.points.bits, 1)
  shown = lambda x: '' if np.isnan(x) else f'{x:.6g}'
  for number, row in enumerate(found.table.row):
    line = [number + 2]
    if found.table.times is not None:
      line.append(str(found.table.times[row]))
    line += [shown(found.rows[row]), int(found.rows[row] > found.threshold)]
    line += [shown(bits[row]), *map(shown, found.points.z2[row])]
    out.append(line)
  return paths.csv_text(out)


def summary(found: Analysis) -> str:
  """What was found, a few words per line."""
  flagged = int((found.rows > found.threshold).sum())
  lines = [
    f'{len(found.alarms)} alarms, {flagged} of {len(found.rows)} rows above '
    f'the threshold {found.threshold:.4g}'
  ]
  if found.weekly is not None:
    number, low, high = found.weekly
    lines.append(
      f'expected false alarms per week: {number:.2g} ({low:.2g} to {high:.2g})'
    )
  labels = found.table.labels
  if labels is not None and labels.any():
    window = ranking.period(np.nan_to_num(found.table.values[:, 0]))
    area = ranking.vus_pr(found.rows, labels, window)
    lines.append(
      f'against the labels of the file: VUS-PR {area:.3f} (of scores that say '
      f'nothing, about {labels.mean():.3f})'
    )
  if found.learnt is not None:
    lines.append(
      f'bits per value on rows held out: {found.learnt.bits:.3f}, of a linear '
      f'autoregression {found.learnt.linear_bits:.3f}'
    )
  return '\n'.join(lines)


def page(found: Analysis) -> str:
  """The page: pictures inside, no other files, no scripts."""
  name = found.table.name
  rows = ''.join(f'<p>{html.escape(x)}</p>' for x in summary(found).split('\n'))
  doubts = ''.join(f'<li>{html.escape(text)}</li>' for text in found.doubts)
  body = f"""<h1>{html.escape(name)}</h1>
{rows}
<h2>What to distrust</h2>
<ul>{doubts}</ul>
<h2>The series and its alarms</h2>
{figure(plots.series(found), _series_text(found))}
<h2>Alarms</h2>
{_alarms(found)}
<h2>The most surprising segments</h2>
{_segments(found)}
<h2>Where the bits are</h2>
{figure(plots.heat(found), 'Bits of each channel over time.')}
{
    figure(
      plots.levels(found),
      'Bits per value, by the patches that each level of '
      'the model cuts: a burst shows in the wide ones, a spike in the narrow.',
    )
  }
<h2>What was learnt</h2>
{_learnt(found)}
<h2>How</h2>
{_how(found)}"""
  return pages.page(f'{name}: alarms', body, style=STYLE)


def figure(shot: bytes, text: str) -> str:
  """A PNG in the page, and what it shows."""
  return f'<p>{text}</p><img alt="" src="{data_url(shot)}">'


def _series_text(found: Analysis) -> str:
  text = 'Red: alarms. Dashed: the threshold.'
  if found.learnt is not None:
    text += ' Grey: rows held out of training, which set it.'
  if found.table.labels is not None:
    text += ' Green, below: what the file labels as anomalous.'
  return text


def _alarms(found: Analysis) -> str:
  ranked = sorted(found.alarms, key=lambda a: -a.peak)[:30]
  if not ranked:
    return '<p>None.</p>'
  rows = [
    (
      found.when(a.first),
      found.when(a.last),
      a.last - a.first + 1,
      f'{a.peak:.4g}',
    )
    for a in ranked
  ]
  text = ''
  if len(found.alarms) > len(ranked):
    text = f'<p>The {len(ranked)} highest of {len(found.alarms)}.</p>'
  return text + table(('from', 'to', 'rows', 'highest score'), rows)


def _segments(found: Analysis) -> str:
  rows = [
    (
      found.when(s.first),
      found.when(s.last),
      s.channel,
      f'{s.score:.4g}',
      f'{s.bits:+.0f}',
    )
    for s in found.segments
  ]
  head = ('from', 'to', 'channel', 'mean score', 'bits more than expected')
  shot = plots.zooms(found)
  text = (
    'Black: the most surprising channel. Blue: what was predicted, two '
    'standard deviations either way, each row from those before.'
  )
  return table(head, rows) + (figure(shot, text) if shot else '')


def _learnt(found: Analysis) -> str:
  if found.learnt is None:
    return '<p>No row of this file was held out of training.</p>'
  learnt = found.learnt
  first, end = learnt.rows
  rows = [
    ('bits per value', f'{learnt.bits:.3f}'),
    (
      f'of a linear autoregression on {found.detector.window} rows',
      f'{learnt.linear_bits:.3f}',
    ),
    ('mean squared standardised residual (1 is right)', f'{learnt.z2:.2f}'),
    ('rows', f'{end - first}'),
  ]
  text = (
    'Calibration: where values fall in what was predicted. Flat is right; a '
    'hump says that predictions are too wide, high ends that they are too '
    'narrow.'
  )
  return table(('on rows held out', ''), rows) + figure(
    plots.calibration(found), text
  )


def _how(found: Analysis) -> str:
  detector, m = found.detector, found.detector.config_.model
  rows = [
    ('levels', ', '.join(f'{k} {s}' for k, s in zip(m.kinds, m.sizes))),
    ('bins', m.num_values),
    ('training', f'{detector.config_.optim.steps} steps'),
    ('score', f'{detector.score}, mean over {detector.smooth} rows'),
    (
      'looks at',
      'the past, an exponential mean of it'
      if detector.causal
      else 'rows before and after',
    ),
    (
      'threshold',
      f'{found.threshold:.4g}: {detector.false_alarms:.2%} of the rows held '
      'out are above it',
    ),
  ]
  return table(('', ''), rows)
