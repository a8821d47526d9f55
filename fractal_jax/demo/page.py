"""The page: what visitors see, and what happens when they press its buttons.

Handlers are generators of {component: its new value}.
"""

from collections.abc import Iterator
import functools
import pathlib
import tempfile
import time
import traceback
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from fractal_jax import pages, pictures, report
from fractal_jax.data import pipeline
from fractal_jax.data.common import image_dtype, image_shape
from fractal_jax.demo import DemoError, jobs, layout, uploads, views
from fractal_jax.errors import UserError
from fractal_jax.inference import inputs, sample
from fractal_jax.models.types import Drawn

if TYPE_CHECKING:
  from fractal_jax import api

LOCAL = ('digits', 'folder', 'npz')  # data sets that are read from the disk
MASKS = 32  # at a time, so that a job can be ended soon
EXAMPLES = 8  # images of the validation split to click
MOVIE = 4  # images of a movie, at most
VEIL = (255, 64, 129)  # the colour of a mask, here as in painter.js
# No telemetry; what visitors left behind is deleted after an hour.
BLOCKS = dict(analytics_enabled=False, delete_cache=(600, 3600))
PACE = 0.08  # seconds that each picture of a growing image is seen, at least


def check(model: 'api.Model') -> None:
  """Raises DemoError for a model whose images the page can't show."""
  m = model.config.model
  if m.rank == 2 and m.channels not in (1, 3):
    raise DemoError(
      f'this is a model of images of {m.channels} channels: the page shows '
      'grey and RGB images, and series. Use fractal-jax sample, edit and '
      'explain, or fractal_jax.load in Python'
    )


class Page:
  """The page of one model; `blocks` is what Gradio serves."""

  def __init__(
    self,
    model: 'api.Model',
    name: str,
    names: tuple[str, ...] = (),
    runs: list[str] | None = None,
    desk: jobs.Jobs | None = None,
  ):
    """Makes the page.

    Args:
      model: an api.Model.
      name: of the run.
      names: of its classes, () where the run keeps none.
      runs: names of all runs that are served, of which this is one.
      desk: runs the jobs of all pages, one at a time.
    """
    check(model)
    self.model, self.jobs = model, desk or jobs.Jobs()
    self.split = None
    if model.config.data.name in LOCAL:
      try:
        self.split = pipeline.open_split(
          model.config, model.config.data.val_split
        )
        names = names or self.split.class_names
      except pipeline.DataError as e:
        print(f'No images from the data on the page: {e}', flush=True)
    numbers = range(model.config.model.classes)
    known = lambda i: i < len(names) and names[i] != str(i)
    self.classes = [  # (what the page calls it, the class)
      (f'{i}: {names[i]}' if known(i) else str(i), i) for i in numbers
    ]
    self.captions = {-1: 'no class'} | {
      i: names[i] if known(i) else f'class {i}' for i in numbers
    }
    with gr.Blocks(title=f'fractal_jax: {name}', **BLOCKS) as self.blocks:
      num_data = self.split.size if self.split else 0
      self.ui = layout.Layout(
        model.config,
        name,
        masks=model.net.masks,
        classes=self.classes,
        num_data=num_data,
        canvas=self._canvas(None),
        runs=runs or [name],
        examples=self._examples(),
      )
      self._wire()
      self.blocks.unload(self.leave)

  def _wire(self):
    ui = self.ui
    quiet = dict(api_visibility='private', show_progress='hidden')
    job = dict(trigger_mode='once', concurrency_limit=8, **quiet)
    for (go, stop, status), run, given, outputs in (
      (
        (ui.go, ui.stop, ui.status),
        self.generate,
        ui.how,
        [ui.view, ui.drawn, ui.after, ui.movie],
      ),
      (
        (ui.edit_go, ui.edit_stop, ui.edit_status),
        self.complete,
        [ui.image, ui.painter, *ui.edit_how],
        [ui.edit_view],
      ),
      (
        (ui.bits_go, ui.bits_stop, ui.bits_status),
        self.bits,
        [ui.image, *ui.bits_how],
        [ui.bits_view],
      ),
    ):
      go.click(run, given, [go, stop, status, *outputs], **job)
      stop.click(self.cancel, None, status, queue=False, **quiet)
    ui.play.click(self.replay, ui.drawn, [ui.movie, ui.status], **job)
    shown = [ui.image, ui.painter, ui.preview]
    for source in (ui.edit_source, ui.bits_source):
      upload, gallery, number, button, note = source
      upload.upload(self.upload, upload, [*shown, note], **quiet)
      button.click(self.take, number, [*shown, note], **quiet)
      gallery.select(self.pick, None, [*shown, note], **quiet)
    for button, tab in ((ui.to_edit, 'edit'), (ui.to_bits, 'bits')):
      button.click(
        functools.partial(self.use, tab),
        [ui.drawn, ui.which],
        [*shown, ui.tabs, ui.status],
        **quiet,
      )
    for button, mode in ui.ready:
      button.click(
        functools.partial(self.ready_mask, mode),
        ui.painter,
        ui.painter,
        **quiet,
      )
    ui.mask_upload.upload(
      self.upload_mask,
      [ui.mask_upload, ui.painter],
      [ui.painter, ui.edit_source[-1]],
      **quiet,
    )

  # Jobs.

  def generate(
    self, request: gr.Request, label: int | str, num: int, *settings: Any
  ) -> Iterator[dict]:
    """Draws images, and shows them as they grow."""
    labels = sample.round_robin(
      num, np.arange(len(self.classes)) if label == layout.EACH else label
    )
    last = None  # what is drawn, and when each value was

    def job():
      how = self._drawing(*settings)
      yield from self.model.stream('sample', labels, **how)

    def shown(progress):
      nonlocal last
      last = progress.drawn
      return {self.ui.view: self._grown(last, labels)}

    def finished(_):
      return {
        self.ui.view: self._grown(last, labels, done=True),
        self.ui.drawn: last,
        self.ui.after: gr.update(visible=True),
      }

    yield {self.ui.after: gr.update(visible=False), self.ui.movie: ''}
    buttons = (self.ui.go, self.ui.stop, self.ui.status)
    yield from self._follow(request, job(), buttons, shown, finished)

  def complete(
    self,
    request: gr.Request,
    image: np.ndarray | None,
    canvas: dict,
    label: int,
    num: int,
    candidates: int,
    *settings: Any,
  ) -> Iterator[dict]:
    """Completes what is painted over, and shows it as it grows."""
    known = None

    def job():
      nonlocal known
      how = self._drawing(*settings)
      if image is None:
        raise DemoError('Choose an image first: upload one, or take one.')
      mask = self._mask(canvas)
      if not mask.any():
        raise DemoError('Paint over what is to be generated first.')
      known = self._known(image, mask)
      how |= dict(num=num, candidates=candidates)
      yield from self.model.stream('edit', image[None], mask, label, **how)

    def show(shots, name):
      captions = [f'{name} {i + 1}' for i in range(len(shots))]
      return {
        self.ui.edit_view: views.tiles(
          [*known, *shots],
          ['image', 'known', *captions],
          values=self.model.config.model.num_values,
        )
      }

    def shown(progress):
      if progress.drawn is None:
        return {}
      shots = pictures.so_far(progress.drawn, self.model.config.model)
      return show(shots, 'candidate' if candidates > 1 else 'completion')

    def finished(drawn):
      shots = pictures.from_values(drawn[0], self.model.config.model)
      return show(shots, 'completion')

    buttons = (self.ui.edit_go, self.ui.edit_stop, self.ui.edit_status)
    yield from self._follow(request, job(), buttons, shown, finished)

  def bits(
    self, request: gr.Request, image: np.ndarray | None, label: int, passes: int
  ) -> Iterator[dict]:
    """Explains an image, and shows its maps of bits."""

    def job():
      if image is None:
        raise DemoError('Choose an image first: upload one, or take one.')
      batch = min(self.model.config.eval.batch, MASKS)
      how = dict(passes=passes, batch=batch)
      yield from self.model.stream('explain', image, label, **how)

    def finished(found):
      maps = report.maps(found, image, self.model.config.model)
      captions = report.captions(found)
      numbers = {
        name: views.Numbers(np.atleast_2d(bits), 'bits')
        for name, bits in report.numbers(found).items()
      }
      numbers['image'] = self._numbers(image, label)
      return {
        self.ui.bits_status: views.status(report.summary(found)),
        self.ui.bits_view: views.tiles(
          list(maps.values()),
          [captions.get(name, name) for name in maps],
          260 if self.ui.series else 200,
          numbers=[numbers.get(name) for name in maps],
        )
        + report.conditions(found),
      }

    buttons = (self.ui.bits_go, self.ui.bits_stop, self.ui.bits_status)
    yield from self._follow(request, job(), buttons, lambda _: {}, finished)

  def _follow(self, request: gr.Request, job, buttons, shown, finished):
    """Runs a job, and shows how far it is and what becomes of it.

    Args:
      request: tells the visitor.
      job: an iterator of Progress, the last of which has the result.
      buttons: the components (go, stop, status).
      shown: Progress to updates of other components, while it runs.
      finished: the result to such updates, at the end.
    """
    go, stop, status = buttons
    # In every update, since gradio may drop one that the next one overtakes.
    running = {
      go: gr.update(interactive=False),
      stop: gr.update(interactive=True),
    }
    yield running | {status: views.status('Starting ...', 0)}
    end = {go: gr.update(interactive=True), stop: gr.update(interactive=False)}
    try:
      for progress in self.jobs.run(request.session_hash, job):
        if progress.doing == 'done':
          done = {status: views.status('Done.')} | finished(progress.result)
          yield end | done
          continue
        seen = shown(progress)
        yield running | {status: self._status(progress)} | seen
        if seen:
          time.sleep(PACE)
    except jobs.Cancelled:
      yield end | {status: views.status('Cancelled.')}
    except UserError as e:
      yield end | {status: views.error(str(e))}
    except Exception as e:
      traceback.print_exc()
      text = f'This failed: {type(e).__name__}: {e}\nThe terminal has more.'
      yield end | {status: views.error(text)}

  def _status(self, progress) -> str:
    text = f'{progress.doing.capitalize()}: {progress.done} of '
    text += f'{progress.total} steps'
    if not progress.done:  # a new shape of work, of which it can't know
      text += '. What is new is compiled first: that takes a while.'
    return views.status(text, progress.share)

  def cancel(self, request: gr.Request) -> str | dict:
    """Ends the visitor's job after the step that it is at."""
    if self.jobs.cancel(request.session_hash):
      return views.status('Stopping after this step ...')
    return gr.skip()

  def leave(self, request: gr.Request) -> None:
    """The visitor has closed the page."""
    self.jobs.cancel(request.session_hash)

  def replay(self, drawn: Drawn | None) -> tuple[str, str | dict]:
    """Shows the movie of the images that were drawn last."""
    if drawn is None:
      return '', views.error('Generate something first.')
    some = type(drawn)(drawn.values[:MOVIE], drawn.when[:MOVIE])
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'movie.gif'
      columns = 1 if self.ui.series else None  # they are wide
      model = self.model.config.model
      pictures.save_movie(some, model, str(path), columns=columns)
      return views.movie(path.read_bytes()), gr.skip()

  # Images and masks.

  def upload(self, path: str) -> list:
    """Takes an upload as the image."""
    model = self.model.config.model
    return self._chosen(lambda: uploads.read_image(path, model))

  def take(self, number: int | None) -> list:
    """Takes an image of the validation split."""

    def read():
      if number is None or not 0 <= number < self.split.size:
        raise DemoError(f'Validation images are 0 to {self.split.size - 1}.')
      image, label = self.split.read(int(number))
      return image, f'Class {dict(map(reversed, self.classes))[label]}'

    return self._chosen(read)

  def pick(self, event: gr.SelectData) -> list:
    """Takes the image of the gallery that was clicked."""
    return self.take(self._shown_examples()[event.index])

  def _shown_examples(self) -> list[int]:
    """Numbers of the images of the gallery, evenly over the split."""
    n = min(EXAMPLES, self.split.size) if self.split else 0
    return [i * self.split.size // n for i in range(n)]

  def _examples(self) -> list[np.ndarray]:
    """The pictures of the gallery."""
    images = [self.split.read(i)[0] for i in self._shown_examples()]
    if not images:
      return []
    shots = pictures.from_values(np.stack(images), self.model.config.model)
    return [pictures.enlarged(shot, 128) for shot in shots]

  def use(self, tab: str, drawn: Drawn | None, which: int | None) -> list:
    """Takes one of the images that were drawn last to another tab."""
    number = len(drawn.values) if drawn is not None else 0
    if which is None or not 1 <= which <= number:
      text = f'Images are 1 to {number}.'
      return [gr.skip()] * 4 + [views.error(text)]
    image = drawn.values[int(which) - 1]
    return [*self._shown(image), gr.update(selected=tab), gr.skip()]

  def ready_mask(self, mode: str | None, canvas: dict) -> dict:
    """Puts a mask that is made, or none, onto the canvas."""
    model = self.model.config.model
    mask = np.zeros(image_shape(model), bool)
    if mode is not None:
      mask |= inputs.make_mask(mode, model)[..., None]
    return canvas | {'mask': self._digits(mask)}

  def upload_mask(self, path: str, canvas: dict) -> tuple[dict, str]:
    """Puts an upload onto the canvas, as the mask."""
    try:
      mask = uploads.read_mask(path, self.model.config.model)
    except UserError as e:
      return gr.skip(), views.error(str(e))
    return canvas | {'mask': self._digits(mask)}, ''

  def _chosen(self, read):
    """Outputs of an image that `read` gives, with a note, or why it doesn't."""
    try:
      image, note = read()
    except UserError as e:
      return [gr.skip()] * 3 + [views.error(str(e))]
    return [*self._shown(image), views.status(note)]

  def _shown(self, image):
    """An image, on the canvas and in the preview."""
    image = image.astype(image_dtype(self.model.config.model))
    (picture,) = pictures.from_values(image[None], self.model.config.model)
    preview = views.tiles([picture], size=260, numbers=[self._numbers(image)])
    return image, self._canvas(picture), preview

  def _numbers(self, image, label: int = -1) -> views.Numbers:
    """What the pointer shows of an image or series [S, (S,) C] of a class."""
    m, bins = self.model.config.model, self.model.quantiser
    if m.rank == 2:
      return views.Numbers(image, '')
    if bins is None or label < 0:  # the unit is that of a class
      return views.Numbers(image[None], f'of {m.num_values - 1}')
    return views.Numbers(bins.decode(image, label)[None], '')

  def _grown(self, drawn, labels, done: bool = False) -> str:
    """Images as far as they are drawn, with their classes."""
    model = self.model.config.model
    shots = pictures.so_far(drawn, model)
    captions = [
      f'{i + 1}: {self.captions[n]}' for i, n in enumerate(labels.tolist())
    ]
    size = {1: 320, 4: 200}.get(len(shots), 110)
    if self.ui.series:
      numbers = map(self._numbers, drawn.values, labels.tolist())
      numbers = list(numbers) if done else None
      return views.tiles(shots, captions, max(size, 260), numbers=numbers)
    return views.tiles(shots, captions, size, values=model.num_values)

  def _known(self, image, mask) -> np.ndarray:
    """Pictures of an image, and of what is known of it."""
    model = self.model.config.model
    values = np.stack([image, pictures.hidden(image, mask, model)])
    shots = pictures.from_values(values, model)
    shots[1][mask.all(-1)] = VEIL
    return shots

  def _canvas(self, picture) -> dict:
    """What the painter shows: see painter.js."""
    shape = image_shape(self.model.config.model)
    if len(shape) == 2:  # a series: nothing can be painted on
      shape, picture = (1, 1, 1), None
    return {
      'image': None if picture is None else pages.data_url(picture),
      'side': shape[0],
      'channels': shape[-1],
      'mask': self._digits(np.zeros(shape, bool)),
    }

  def _digits(self, mask: np.ndarray) -> str:
    """A mask [S, S, C] as a digit per pixel, a bit per channel."""
    return ''.join(map(str, (mask << np.arange(mask.shape[-1])).sum(-1).flat))

  def _mask(self, canvas) -> np.ndarray:
    """The inverse of `_digits`, of what a browser sent."""
    side, _, channels = shape = image_shape(self.model.config.model)
    text = canvas.get('mask') if isinstance(canvas, dict) else None
    digits = [str(i) for i in range(2**channels)]
    if (
      not isinstance(text, str)
      or len(text) != side**2
      or not set(text) <= set(digits)
    ):
      raise DemoError('The mask got lost: reload the page.')
    found = np.array(list(text), int).reshape(side, side, 1)
    return (found >> np.arange(channels) & 1).astype(bool).reshape(shape)

  def _drawing(
    self, guidance, temperature, iterations, seed, interval=''
  ) -> dict:
    """Settings of drawing, as `Model.sample` takes them."""
    steps = _numbers('Iterations', iterations, int, 'whole numbers')
    span = _numbers('Interval', interval, float, 'two numbers')
    if seed is not None and seed % 1 == 0:
      seed = int(seed)  # of a field for numbers
    inputs.check_seed(seed)
    how = dict(
      guidance=guidance, temperature=temperature, iterations=steps, seed=seed
    )
    return how | (dict(interval=span) if span else {})


def _numbers(name: str, text: str, kind: type, what: str) -> tuple:
  """The numbers that a field lists."""
  try:
    return tuple(kind(x) for x in text.split(',') if x.strip())
  except ValueError as e:
    raise DemoError(
      f'{name} "{text}" must be {what} with commas between.'
    ) from e
