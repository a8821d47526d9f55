"""Model cards: what a model is, how to use it, and numbers that were measured.

A card is README.md of a release: a head in YAML, which the Hugging Face Hub
reads, and a page in Markdown. Numbers are read where commands wrote them: in
the metrics.jsonl of a run, and in the files of `likelihood --out` and
`evaluate --out`. Each stands beside the command that prints it.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import re

from ml_collections import ConfigDict
import yaml

from fractal_jax import errors, paths
from fractal_jax.data import classes
from fractal_jax.data.common import FROM_DIR
from fractal_jax.metrics import sweep
from fractal_jax.release import ReleaseError
from fractal_jax.training import logs

FILE = 'README.md'
SAMPLES = 'samples.png'
UNKNOWN = 'unknown'  # a license, as the Hub writes it
PAPER = 'https://arxiv.org/abs/2502.17437'
# What is shown of what `likelihood --out` and `evaluate --out` write.
METRICS = {'bits_per_dim': 'bits per dimension', **sweep.CURVES}
ERRORS = {'bits_per_dim': 'stderr', 'inception_score': 'inception_score_std'}
KNOWN_ELSEWHERE = {'imagenet2012': 'imagenet-1k'}  # data.name on the Hub


@dataclasses.dataclass(frozen=True)
class Number:
  """A measured number.

  Attributes:
    metric: a key of METRICS.
    value: what was measured.
    error: its standard error, or None.
    of: what it was measured on, in words.
    split: of the data set, or ''.
    command: that printed it; its --workdir is replaced by the release's name.
  """

  metric: str
  value: float
  error: float | None
  of: str
  split: str
  command: str

  def __str__(self) -> str:
    error = '' if self.error is None else f' ± {self.error:.4f}'
    return f'{self.value:.4f}{error}'


@dataclasses.dataclass(frozen=True)
class About:
  """What the config and the parameters do not say of a model.

  Attributes:
    name: of the release: what --workdir takes.
    step: training steps.
    license: an identifier of the Hub, such as 'mit'.
    made_by: the command that made the release.
    numbers: what was measured.
    class_names: in the order of labels; () where they are not known.
    samples: an image file of samples, or None.
    files: texts of further files, by name: bins and detectors of series.
  """

  name: str
  step: int = 0
  license: str = UNKNOWN
  made_by: str = ''
  numbers: Sequence[Number] = ()
  class_names: Sequence[str] = ()
  samples: str | None = None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def text(config: ConfigDict, parameters: int, dtype: str, about: About) -> str:
  """The card of a release of so many parameters, stored as `dtype`."""
  head = yaml.safe_dump(_head(config, about), sort_keys=False, width=1000)
  page = [
    f'# {about.name}',
    _what(config.model, about),
    about.samples and f'![Samples of the model]({SAMPLES})',
    f'{parameters:,} parameters, stored as {dtype}, after {about.step:,} '
    'training steps:',
    _levels(config.model),
    '## Use',
    _use(config, about.name),
    *_numbers(config.model, about, dtype),
    about.made_by and f'## Made by\n\n```\n{about.made_by}\n```',
    '`config.json` holds every setting. The folder holds no code, and nothing '
    'in it is executed.',
  ]
  return f'---\n{head}---\n\n' + '\n\n'.join(x for x in page if x) + '\n'


def _head(config, about: About) -> dict:
  series = config.model.rank == 1
  task = (
    'time-series-forecasting' if series else 'unconditional-image-generation'
  )
  tags = ['fractal-generative-model', 'jax', 'flax', 'arxiv:2502.17437']
  tags += dict.fromkeys(config.model.kinds[:-1])
  head = {
    'library_name': 'fractal_jax',
    'license': about.license,
    'tags': tags,
    'pipeline_tag': task,
  }
  data = KNOWN_ELSEWHERE.get(config.data.name, config.data.name)
  if data not in FROM_DIR:
    head['datasets'] = [data]
  if about.numbers:
    results = [
      {
        'task': {'type': task},
        'dataset': {
          'name': data,
          'type': data,
          **({'split': x.split} if x.split else {}),
        },
        'metrics': [
          {
            'name': METRICS[x.metric],
            'type': x.metric,
            'value': round(x.value, 4),
          }
        ],
      }
      for x in about.numbers
    ]
    head['model-index'] = [{'name': about.name, 'results': results}]
  return head


def _what(model, about: About) -> str:
  side = model.sizes[0]
  of = f'series, in windows of {side} rows'
  if model.rank == 2:
    of = f'{side}x{side} images'
  named = list(about.class_names) != [*map(str, range(model.classes))]
  listing = classes.listing(about.class_names) if named else ''
  names = f' ({listing})' if listing else ''
  channels = f'{model.channels} channel' + 's' * (model.channels > 1)
  return (
    f'A [fractal generative model]({PAPER}) of {of}: {channels} of '
    f'{model.num_values} values, {model.classes} classes{names}.'
  )


def _levels(model) -> str:
  rows = [
    f'| {i} | {kind} | {side} | {width} | {depth} | {heads} |'
    for i, (kind, side, width, depth, heads) in enumerate(
      zip(model.kinds, model.sizes, model.widths, model.depths, model.heads)
    )
  ]
  head = '| level | kind | side | width | blocks | heads |'
  return '\n'.join([head, '|---' * 6 + '|', *rows])


def _use(config, name: str) -> str:
  model = config.model
  commands = ['sample', 'likelihood', 'demo']
  if config.data.name == 'series':  # data of one's own takes --data
    commands = ['sample', 'anomaly --data=FILE', 'forecast --data=FILE']
  commands = '\n'.join(f'fractal-jax {x} --workdir={name}' for x in commands)
  images = 'images' if model.rank == 2 else 'series'
  shape = ', '.join(['16', *[str(model.sizes[0])] * model.rank])
  return f"""```python
import fractal_jax

model = fractal_jax.Model.from_pretrained('{name}')
{images} = model.sample(num=16)  # [{shape}, {model.channels}]
nats = model.log_prob({images})
```

```
{commands}
```"""


def _numbers(model, about: About, dtype: str) -> list[str]:
  if not about.numbers:
    return []
  words = {1: 'windows', 2: 'images'}[model.rank]
  of = lambda x: x.of.replace('images', words)
  rows = [
    f'| {METRICS[x.metric]} | {x} | {of(x)} '
    f'| `{for_release(x.command, about.name)}` |'
    for x in about.numbers
  ]
  head = '| | measured | of | printed by |'
  out = ['## Numbers', '\n'.join([head, '|---' * 4 + '|', *rows])]
  if dtype != 'float32':
    out.append(f'Measured before the parameters were rounded to {dtype}.')
  return out


def for_release(command: str, name: str) -> str:
  """A command line, about the release `name`, without local files."""
  command = re.sub(r' --(out|save|cache|ref|inception)[= ]\S+', '', command)
  return re.sub(r'--workdir[= ]\S+', f'--workdir={name}', command)


# Where numbers are found.


def read_numbers(path: str | os.PathLike) -> list[Number]:
  """The numbers in a file of `likelihood --out` or `evaluate --out`.

  Raises:
    ReleaseError: there are none.
  """
  path = paths.path(path)
  try:
    found = json.loads(path.read_text())
    out = _numbers_in(found, str(found.get('command', '')))
  except (OSError, *errors.DAMAGES) as e:
    raise ReleaseError(
      f'{path} is no file of numbers ({e}): give what `fractal-jax likelihood '
      '--out=FILE.json` or `evaluate --out=FILE.json` wrote.'
    ) from e
  if not out:
    raise ReleaseError(
      f'{path} holds none of the numbers {", ".join(METRICS)}: give what '
      '`fractal-jax likelihood --out=FILE.json` or `evaluate --out=FILE.json` '
      'wrote.'
    )
  return out


def numbers_of_run(
  workdir: str | os.PathLike, step: int, split: str
) -> list[Number]:
  """What training measured of a checkpoint on its `split`, if it did."""
  for found in reversed(logs.read_metrics(workdir)):
    if found['step'] == step and 'val/bits_per_dim' in found:
      values = {k.removeprefix('val/'): v for k, v in found.items()}
      command = 'fractal-jax likelihood --workdir=RUN'
      with contextlib.suppress(*errors.DAMAGES):  # as where there is none
        return _numbers_in(values | {'split': split}, command)
  return []


def _numbers_in(found: dict, command: str) -> list[Number]:
  split = str(found.get('split', ''))
  if 'bits_per_dim' in found:
    passes = int(found['passes'])
    kind = 'exact' if found['exact'] else f'{passes} random masks each'
    kind += ', upper bound' * bool(found['bound'])
    kind += ', of rounded colours' * bool(found['rounded'])
    kind += ', given their classes' * bool(found.get('conditional'))
    of = f'{int(found["images"])} images of {split}, {kind}'
  else:
    reference = found.get('reference', {})
    of = f'{found.get("num")} images against {reference.get("name")}'
  return [
    Number(
      metric,
      float(found[metric]),
      None if (e := found.get(ERRORS.get(metric))) is None else float(e),
      of,
      split,
      command,
    )
    for metric in METRICS
    if found.get(metric) is not None
  ]
