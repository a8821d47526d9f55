"""The report of a pilot: one HTML page that needs no other file, and JSON."""

import dataclasses
import datetime
import html
import json
import pathlib

from fractal_jax import checks, pages, paths
from fractal_jax.pages import data_url, table
from fractal_jax.pilot import gates, run, texts
from fractal_jax.pilot.gates import Gate
from fractal_jax.pilot.roi import Roi, roi
from fractal_jax.pilot.work import Pilot

STYLE = """
img { width: 100% }
table { border-collapse: collapse }
td, th { padding: .15em 1.2em .15em 0; text-align: left }
.numbers td + td, .numbers th + th { text-align: right }
td + td { font-variant-numeric: tabular-nums }
.gates { width: 100% }
.gates .first td { border-top: 1px solid #ccc }
.gates td:not(:nth-child(2)) { white-space: nowrap }
.gates td:last-child { font-weight: 600 }
.verdict { font-size: 1.6em; padding: .4em .7em; color: white }
p.GO { background: #2a7d3f } tr.GO td:last-child { color: #2a7d3f }
p.NO-GO { background: #b3261e } tr.NO-GO td:last-child { color: #b3261e }
p.MORE { background: #9a6700 } tr.MORE td:last-child { color: #9a6700 }
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  .rest { display: none }
  body { font-size: 10px; line-height: 1.3; margin: 0 }
  td, th { padding: 0 .8em 0 0 }
  h1, h2, p, table { margin: .5em 0 }
}
"""
RISKS, STEPS = 5, 5  # texts 'risk 0', 'risk 1', ...
TERMS = (
  'GO', 'NO-GO', 'MORE DATA', 'bits', 'interval', 'level', 'window', 'score',
  'seed',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Content:
  """The content of a report, in no language."""

  pilot: Pilot
  done: dict[str, run.Done]

  @property
  def verdict(self) -> str:
    """That of all stages that ran."""
    return run.verdict(self.done)

  @property
  def next_stage(self) -> str | None:
    """The first stage that has not run; None: all have."""
    return next((s for s in run.STAGES if s not in self.done), None)

  @property
  def deciding(self) -> tuple[str, Gate] | None:
    """The stage and gate that the verdict is due to; None where all pass."""
    for name, stage in self.done.items():
      for gate in stage.gates:
        if gate.verdict == self.verdict != gates.GO:
          return name, gate
    return None

  @property
  def shares(self) -> set[str]:
    """Names of gates that are shares, shown as percentages."""
    keys = self.pilot.SECTIONS['gates'].items()
    return {name for name, key in keys if key.rule is checks.SHARE}

  @property
  def roi(self) -> Roi | None:
    """The return by the shadow run, or else by the stage of full size."""
    for name, found, weekly in (
      ('shadow', 'shadow_found', 'shadow_weekly_false_alarms'),
      ('full', 'found', 'weekly_false_alarms'),
    ):
      if name in self.done:
        by_name = {g.name: g.found for g in self.done[name].gates}
        costs = self.pilot.settings.costs
        return roi(costs, by_name.get(found), by_name.get(weekly))
    return None


def write(pilot: Pilot, language: str) -> str:
  """Writes report.json and report.LANGUAGE.html; returns the latter's path."""
  found = Content(pilot, run.load(pilot))
  words = texts.texts(language, pilot.KIND)
  path = pilot.path(f'report.{language}.html')
  paths.write_text(pilot.path('report.json'), as_json(found))
  paths.write_text(path, page(found, words, language))
  return str(path)


def as_json(found: Content) -> str:
  """The report for programs; not-a-number and the like are null."""

  def clean(x):
    if isinstance(x, dict):
      return {k: clean(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
      return [clean(v) for v in x]
    return None if isinstance(x, float) and x - x != 0 else x

  stages = {}
  for name, stage in found.done.items():
    kept = dataclasses.asdict(stage)
    for gate, judged in zip(kept['gates'], stage.gates):
      gate['verdict'] = judged.verdict
    stages[name] = kept | {
      'verdict': stage.verdict,
      'changed': run.changed(found.pilot, stage),
    }
  worth = found.roi
  out = {
    'verdict': found.verdict,
    'settings': dataclasses.asdict(found.pilot.settings),
    'stages': stages,
    'roi': worth and dataclasses.asdict(worth),
  }
  return json.dumps(clean(out), indent=1, ensure_ascii=False) + '\n'


# The page.


def page(found: Content, words: dict[str, str], language: str) -> str:
  """The page: pictures inside, no other files, no scripts."""
  asked = found.pilot.settings.question
  question = asked['question'] or words['unnamed']
  title = words['title'].format(question=question)
  parts = [
    f'<h1>{html.escape(title)}</h1>',
    _verdict(found, words),
    _origin(found, words),
    heading(words['gates']),
    _gates(found, words),
    _changes(found, words),
    heading(words['roi']),
    _roi(found, words),
    heading(words['price']),
    _price(found, words),
    '<div class="rest">',
    *(_stage(found, name, words) for name in found.done),
    heading(words['risks']),
    _list(words[f'risk {i}'] for i in range(RISKS)),
    heading(words['production']),
    _list(words[f'step {i}'] for i in range(STEPS)),
    heading(words['glossary']),
    _list(words[f'term {name}'] for name in TERMS),
    '</div>',
  ]
  body = '\n'.join(filter(None, parts))
  return pages.page(title, body, style=STYLE, language=language)


def reason(found: Content, words: dict[str, str]) -> str:
  """Why the verdict is what it is, in a few sentences."""
  if found.deciding is not None:
    name, gate = found.deciding
    why = found.verdict if gate.found is not None else 'unknown'
    out = words[f'reason {why}'].format(
      stage=words[name],
      gate=gate_name(gate, words),
      value=shown(found, gate, 'value', words),
      threshold=required(found, gate, words),
    )
    if gate.times is not None:
      times = number(float(f'{gate.times:.2g}'))
      out += words['settle'].format(times=times)
    return out
  if found.next_stage is not None:
    return words['reason unfinished'].format(stage=words[found.next_stage])
  return words['reason GO']


def gate_name(gate: Gate, words: dict[str, str]) -> str:
  """What a gate is called, with the level that it is about."""
  name = words[f'gate {gate.name}']
  if gate.about is None:
    return name
  return words['level'].format(name=name, level=gate.about)


def required(found: Content, gate: Gate, words: dict[str, str]) -> str:
  """'at least 50%'."""
  side = 'least' if gate.least else 'most'
  return words[side].format(x=amount(found, gate.name, gate.threshold))


def shown(found: Content, gate: Gate, end: str, words: dict[str, str]) -> str:
  """The value, or the low or high end, of what a gate found."""
  if gate.found is None:
    return words['nothing']
  return amount(found, gate.name, getattr(gate.found, end))


def amount(found: Content, gate: str, x: float) -> str:
  """A number that is compared with a gate's."""
  return f'{number(100 * x)}%' if gate in found.shares else number(x)


def number(x: float) -> str:
  """A number in a few digits; whole numbers and amounts with commas."""
  if abs(x) < 1e15 and x == int(x):
    return f'{int(x):,}'
  return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:.3g}'


def span(found: Content, gate: Gate, words: dict[str, str]) -> str:
  """The interval; nothing where it is a number that was counted."""
  if gate.found is not None and gate.found.low == gate.found.high:
    return ''
  if gate.found is None:
    return words['nothing']
  low, high = (shown(found, gate, end, words) for end in ('low', 'high'))
  return words['span'].format(low=low, high=high)


def heading(text: str) -> str:
  """HTML of a heading."""
  return f'<h2>{html.escape(text)}</h2>'


def paragraph(text: str) -> str:
  """HTML of a paragraph."""
  return f'<p>{html.escape(text)}</p>'


def _list(items) -> str:
  return '<ul>' + ''.join(f'<li>{html.escape(x)}</li>' for x in items) + '</ul>'


def _verdict(found: Content, words) -> str:
  mark = found.verdict.split()[0]
  text = words['verdict'].format(verdict=words[found.verdict])
  out = f'<p class="verdict {mark}">{html.escape(text)}</p>'
  out += paragraph(reason(found, words))
  if found.roi is None:
    return out
  low, middle, high = (number(round(c.yearly)) for c in found.roi.cases)
  unit = found.pilot.settings.question['currency']
  return out + paragraph(
    words['worth'].format(low=low, middle=middle, high=high, unit=unit)
  )


def _origin(found: Content, words) -> str:
  """Who decides, the data, and the day of the report."""
  of = found.pilot.settings
  name = pathlib.PurePath(of.data['file'] or of.data['source']).stem
  day = datetime.date.today().isoformat()
  out = words['origin'].format(data=name, day=day)
  owner = of.question['owner']
  return paragraph((words['owner'].format(owner=owner) if owner else '') + out)


def _gates(found: Content, words) -> str:
  heads = ('stage', 'criterion', 'threshold', 'found', 'interval', 'decision')
  rows = [_row('', [words[h] for h in heads], 'th')]
  for name in run.STAGES:
    if name not in found.done:
      rows.append(_row('first', (words[name], *[''] * 4, words['not run'])))
      continue
    for i, gate in enumerate(found.done[name].gates):
      cells = (
        '' if i else words[name],
        gate_name(gate, words),
        required(found, gate, words),
        shown(found, gate, 'value', words),
        span(found, gate, words),
        words[gate.verdict],
      )
      mark = gate.verdict.split()[0]
      rows.append(_row(mark if i else f'{mark} first', cells))
  return f'<table class="gates">{"".join(rows)}</table>'


def _row(mark: str, cells, tag: str = 'td') -> str:
  inner = ''.join(f'<{tag}>{html.escape(x)}</{tag}>' for x in cells)
  return f'<tr class="{mark}">{inner}</tr>'


def _numbers(head, rows) -> str:
  """A table whose columns but the first are numbers."""
  return f'<div class="numbers">{table(head, rows)}</div>'


def _changes(found: Content, words) -> str:
  lines, now = [], found.pilot.settings.hash
  for name, stage in found.done.items():
    for gate, old, new in run.changed(found.pilot, stage):
      lines.append(
        words['changed'].format(
          gate=words[f'gate {gate}'],
          old=amount(found, gate, old),
          new=amount(found, gate, new),
        )
      )
    if stage.hash != now:
      lines.append(
        words['settings'].format(hash=now, stage=words[name], old=stage.hash)
      )
  if not lines:
    lines = [words['settings same'].format(hash=now)]
  return ''.join(map(paragraph, lines))


def _roi(found: Content, words) -> str:
  worth = found.roi
  if found.pilot.settings.task['kind'] != 'anomalies':
    return paragraph(words['roi none'])
  if worth is None:
    return paragraph(words['roi missing'].format(stage=words['full']))
  unit = found.pilot.settings.question['currency']
  cases = worth.cases
  money = ('saved', 'alarms', 'upkeep', 'setup', 'yearly', 'first_year')
  rows = [
    (words['roi found'], *(f'{number(100 * c.found)}%' for c in cases)),
    (words['roi false_alarms'], *(number(c.false_alarms) for c in cases)),
  ]
  rows += [
    (
      f'{words[f"roi {k}"]} ({unit})',
      *(number(round(getattr(c, k))) for c in cases),
    )
    for k in money
  ]
  months = lambda c: words['never'] if c.months is None else number(c.months)
  rows.append((words['roi months'], *map(months, cases)))
  line = words['no break even']
  if worth.break_even is not None:
    line = words['break even'].format(share=f'{worth.break_even:.0%}')
  ranked = [
    (words[f'cost {k}'], f'{round(v):+,} {unit}')
    for k, v in worth.sensitivity[:6]
  ]
  return (
    _numbers(('', *(words[k] for k in ('low', 'middle', 'high'))), rows)
    + paragraph(line)
    + paragraph(words['roi formula'])
    + paragraph(words['sensitivity'])
    + _numbers(('', ''), ranked)
  )


def _price(found: Content, words) -> str:
  seconds = sum(stage.seconds for stage in found.done.values())
  out = paragraph(words['spent'].format(minutes=number(round(seconds / 60, 1))))
  name = found.next_stage
  if name is not None and 'data' in found.done:
    if found.done['data'].verdict != gates.NO_GO:
      cost = run.known_price(found.pilot, name)
      if cost is not None:
        minutes = number(round(cost / 60, 1))
        out += paragraph(
          words['next price'].format(stage=words[name], minutes=minutes)
        )
  return out


def _stage(found: Content, name: str, words) -> str:
  stage = found.done[name]
  facts = [
    (words.get(f'fact {k}', k), number(v)) for k, v in stage.facts.items()
  ]
  shots = found.pilot.pictures(name, run.curves(found.pilot, name))
  title = words['of stage'].format(
    stage=words[name], verdict=words[stage.verdict]
  )
  return (
    heading(title)
    + paragraph(words[f'about {name}'])
    + _numbers((words['facts'], ''), facts)
    + ''.join(
      paragraph(words[f'picture {k}']) + f'<img alt="" src="{data_url(shot)}">'
      for k, shot in shots.items()
    )
  )
