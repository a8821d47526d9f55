"""The page: what visitors see, and what happens when they press its buttons.

Handlers are generators of {component: its new value}.
"""

import pathlib
import tempfile
import time
import traceback

import gradio as gr
import numpy as np

from fractal_jax import data, edit, explain, sample
from fractal_jax.demo import DemoError, jobs, uploads, views

HERE = pathlib.Path(__file__).parent
EACH = 'each'  # in place of a class: each in turn
LOCAL = ('digits', 'folder', 'npz')  # data sets that are read from the disk
MOVIE = 4  # images of a movie, at most
VEIL = (255, 64, 129)  # the colour of a mask, here as in painter.js
PACE = 0.08  # seconds that each picture of a growing image is seen, at least


KNOWN = (DemoError, data.DataError, edit.EditError, sample.SampleError)


def check(model) -> None:
  """Raises DemoError for a model whose images the page can't show."""
  m = model.config.model
  if m.rank != 2 or m.channels not in (1, 3):
    kind = 'series' if m.rank == 1 else f'images of {m.channels} channels'
    raise DemoError(
      f'this is a model of {kind}: the page shows grey and RGB images. Use '
      'fractal-jax sample, edit and explain, or fractal_jax.load in Python'
    )


class Page:
  """The page of one model; `blocks` is what Gradio serves."""

  def __init__(self, model, name: str):
    check(model)
    self.model, self.name, self.jobs = model, name, jobs.Jobs()
    self.split, names = None, range(model.config.model.classes)
    if model.config.data.name in LOCAL:
      try:
        self.split = data.open_split(model.config, model.config.data.val_split)
        names = self.split.class_names
      except data.DataError as e:
        print(f'No images from the data on the page: {e}', flush=True)
    self.classes = [
      (str(i) if str(i) == str(n) else f'{i}: {n}', i)
      for i, n in enumerate(names)
    ]
    self.blocks = self._build()

  # What it looks like.

  def _build(self) -> gr.Blocks:
    with gr.Blocks(title=f'fractal_jax: {self.name}', **BLOCKS) as blocks:
      gr.Markdown(f'# {self.name}')
      gr.Markdown(self._facts(), elem_classes='facts')
      self.drawn = gr.State(time_to_live=3600)  # the last Drawn
      self.image = gr.State(time_to_live=3600)  # values [S, S, C]
      with gr.Tabs() as self.tabs:
        with gr.Tab('Generate', id='generate'):
          self._generate_tab()
        with gr.Tab('Edit', id='edit'):
          self._edit_tab()
        with gr.Tab('Bits', id='bits'):
          self._bits_tab()
      self._wire()
      blocks.unload(self.leave)
    return blocks

  def _facts(self) -> str:
    m = self.model.config.model
    levels = ' → '.join(
      f'{kind}, {side}x{side}' if side > 1 else 'pixel'
      for kind, side in zip(m.kinds, m.sizes)
    )
    colour = 'grey' if m.channels == 1 else 'RGB'
    return (
      f'{m.sizes[0]}x{m.sizes[0]} pixels, {colour}, {m.num_values} values a '
      f'channel, {m.classes} classes. Levels: {levels}.'
    )

  def _settings(self) -> list:
    """Of drawing: guidance, temperature, iterations, seed."""
    s, masked = self.model.config.sample, 'mar' in self.model.config.model.kinds
    with gr.Row():
      guidance = gr.Slider(
        0,
        30,
        min(s.guidance, 30),
        step=0.1,
        label='Guidance',
        info='1: none',
      )
      temperature = gr.Slider(
        0.1,
        3,
        min(max(s.temperature, 0.1), 3),
        step=0.05,
        label='Temperature',
        info='Above 1 sharpens',
      )
    with gr.Row():
      iterations = gr.Textbox(
        ','.join(map(str, s.iterations)),
        label='Iterations',
        info='Steps of each level, say 8,4. Empty: one a patch',
        visible=masked,
        max_length=40,
      )
      seed = gr.Number(
        0,
        label='Seed',
        info='The same seed and settings: the same images',
        precision=0,
      )
    return [guidance, temperature, iterations, seed]

  def _buttons(self, text: str) -> tuple:
    with gr.Row():
      go = gr.Button(text, variant='primary', elem_classes='go')
      stop = gr.Button('Cancel', variant='stop', interactive=False)
    return go, stop

  def _generate_tab(self):
    with gr.Row():
      with gr.Column(scale=2, min_width=300):
        label = gr.Dropdown(
          [('each in turn', EACH), ('no class', -1), *self.classes],
          value=EACH,
          label='Class',
          elem_id='class',
        )
        num = gr.Radio([1, 4, 8, 16], value=4, label='Images')
        self.how = [label, num, *self._settings()]
        self.go, self.stop = self._buttons('Generate')
      with gr.Column(scale=3, min_width=300):
        self.status = gr.HTML(views.status('Nothing drawn yet.'))
        self.view = gr.HTML(views.tiles([]), elem_id='view')
        with gr.Row(visible=False, equal_height=True) as self.after:
          self.which = gr.Number(
            1, label='Image', precision=0, minimum=1, min_width=80
          )
          self.to_edit = gr.Button('Edit it', min_width=80)
          self.to_bits = gr.Button('See its bits', min_width=80)
          self.play = gr.Button('Movie, value by value', min_width=160)
        self.movie = gr.HTML(elem_id='movie')

  def _source(self) -> tuple:
    """Where an image comes from: (upload, number, button, note)."""
    limit = f'{uploads.MAX_BYTES >> 20} MB'
    gr.Markdown(f'### Image\nUp to {limit}, cut and resized to fit.')
    upload = gr.UploadButton(
      'Upload an image', file_types=list(uploads.ENDINGS), size='md'
    )
    here = self.split is not None
    number = gr.Number(
      0,
      label='Or one of the validation split',
      info=f'0 to {self.split.size - 1}' if here else '',
      precision=0,
      visible=here,
    )
    button = gr.Button('Take it', size='md', visible=here)
    return upload, number, button, gr.HTML()

  def _edit_tab(self):
    with gr.Row():
      with gr.Column(scale=2, min_width=300):
        self.edit_source = self._source()
        gr.Markdown(
          '### Mask\nPaint over what is to be generated, or upload a mask: '
          'white is generated.'
        )
        self.painter = gr.HTML(
          self._canvas(None),
          html_template=(HERE / 'painter.html').read_text(),
          js_on_load=(HERE / 'painter.js').read_text(),
          elem_id='painter',
          elem_classes='painter',
        )
        with gr.Row():
          self.ready = [
            (gr.Button(text, size='sm', min_width=90), mode)
            for text, mode in (
              ('Lower half', 'lower'),
              ('Middle', 'inpaint'),
              ('Border', 'outpaint'),
              ('Clear', None),
            )
          ]
          self.mask_upload = gr.UploadButton(
            'Upload a mask',
            file_types=list(uploads.ENDINGS),
            size='sm',
            min_width=120,
          )
        label = gr.Dropdown(
          [('no class', -1), *self.classes], value=-1, label='Class'
        )
        with gr.Row():
          num = gr.Radio([1, 2, 4, 8], value=4, label='Completions')
          candidates = gr.Radio(
            [1, 2, 4, 8],
            value=1,
            label='Candidates',
            info='Of so many draws each, the likeliest',
          )
        with gr.Accordion('Settings', open=False):
          settings = self._settings()
        self.edit_how = [label, num, candidates, *settings]
        self.edit_go, self.edit_stop = self._buttons('Complete')
      with gr.Column(scale=3, min_width=300):
        self.edit_status = gr.HTML(views.status('Nothing completed yet.'))
        self.edit_view = gr.HTML(views.tiles([]), elem_id='edit_view')

  def _bits_tab(self):
    with gr.Row():
      with gr.Column(scale=2, min_width=300):
        self.bits_source = self._source()
        self.preview = gr.HTML(elem_id='preview')
        masked = 'mar' in self.model.config.model.kinds
        label = gr.Dropdown(
          [('no class', -1), *self.classes], value=-1, label='Class'
        )
        passes = gr.Slider(
          2,
          256,
          64,
          step=2,
          label='Random orders',
          info='More: a smaller standard error',
          visible=masked,
        )
        self.bits_how = [label, passes]
        self.bits_go, self.bits_stop = self._buttons('Explain')
      with gr.Column(scale=3, min_width=300):
        self.bits_status = gr.HTML(views.status('Nothing explained yet.'))
        self.bits_view = gr.HTML(views.tiles([]), elem_id='bits_view')

  def _wire(self):
    quiet = dict(api_visibility='private', show_progress='hidden')
    job = dict(trigger_mode='once', concurrency_limit=8, **quiet)
    for go, stop, status, run, inputs, outputs in (
      (
        *(self.go, self.stop, self.status, self.generate, self.how),
        [self.view, self.drawn, self.after, self.movie],
      ),
      (
        *(self.edit_go, self.edit_stop, self.edit_status, self.complete),
        [self.image, self.painter, *self.edit_how],
        [self.edit_view],
      ),
      (
        *(self.bits_go, self.bits_stop, self.bits_status, self.bits),
        [self.image, *self.bits_how],
        [self.bits_view],
      ),
    ):
      go.click(run, inputs, [go, stop, status, *outputs], **job)
      stop.click(self.cancel, None, status, queue=False, **quiet)
    self.play.click(self.replay, self.drawn, [self.movie, self.status], **job)
    shown = [self.image, self.painter, self.preview]
    for upload, number, button, note in (self.edit_source, self.bits_source):
      upload.upload(self.upload, upload, [*shown, note], **quiet)
      button.click(self.take, number, [*shown, note], **quiet)
    for button, tab in ((self.to_edit, 'edit'), (self.to_bits, 'bits')):
      button.click(
        lambda drawn, which, tab=tab: self.use(drawn, which, tab),
        [self.drawn, self.which],
        [*shown, self.tabs, self.status],
        **quiet,
      )
    for button, mode in self.ready:
      button.click(
        lambda value, mode=mode: self.ready_mask(value, mode),
        self.painter,
        self.painter,
        **quiet,
      )
    self.mask_upload.upload(
      self.upload_mask,
      [self.mask_upload, self.painter],
      [self.painter, self.edit_source[-1]],
      **quiet,
    )

  # Jobs.

  def generate(self, request: gr.Request, label, num, *settings):
    labels = sample.round_robin(
      num, np.arange(len(self.classes)) if label == EACH else label
    )

    def work(report):
      how = self._drawing(*settings)
      last = None

      def watch(progress):
        nonlocal last
        last = progress.drawn
        report(progress)

      self.model.sample(labels, watch=watch, **how)
      return last

    def shown(progress):
      return {self.view: self._grown(progress.drawn, labels)}

    def finished(drawn):
      return {
        self.view: self._grown(drawn, labels),
        self.drawn: drawn,
        self.after: gr.update(visible=True),
      }

    yield {self.after: gr.update(visible=False), self.movie: ''}
    buttons = (self.go, self.stop, self.status)
    yield from self._follow(request, work, buttons, shown, finished)

  def complete(
    self, request: gr.Request, image, canvas, label, num, candidates, *settings
  ):
    known = None

    def work(report):
      nonlocal known
      how = self._drawing(*settings)
      if image is None:
        raise DemoError('Choose an image first: upload one, or take one.')
      mask = self._mask(canvas)
      if not mask.any():
        raise DemoError('Paint over what is to be generated first.')
      known = self._known(image, mask)
      (drawn,) = self.model.edit(
        image[None],
        mask,
        label,
        num=num,
        candidates=candidates,
        watch=report,
        **how,
      )
      return drawn

    def show(pictures, name):
      captions = [f'{name} {i + 1}' for i in range(len(pictures))]
      return {
        self.edit_view: views.tiles(
          [*known, *pictures], ['image', 'known', *captions]
        )
      }

    def shown(progress):
      if progress.drawn is None:
        return {}
      pictures = sample.so_far(progress.drawn, self.model.config.model)
      return show(pictures, 'candidate' if candidates > 1 else 'completion')

    def finished(drawn):
      pictures = sample.pictures(drawn, self.model.config.model)
      return show(pictures, 'completion')

    buttons = (self.edit_go, self.edit_stop, self.edit_status)
    yield from self._follow(request, work, buttons, shown, finished)

  def bits(self, request: gr.Request, image, label, passes):
    def work(report):
      if image is None:
        raise DemoError('Choose an image first: upload one, or take one.')
      return self.model.explain(image, label, passes=passes, watch=report)

    def finished(found):
      pictures = explain.pictures(found, image, self.model.config.model)
      captions = explain.captions(found)
      worth = views.table(
        ('level told', 'condition', 'bits more without', 'standard error'),
        [
          (c.level, c.name, f'{c.worth:+.2f}', f'{c.stderr:.2f}')
          for c in found.conditions
        ],
      )
      return {
        self.bits_status: views.status(explain.summary(found)),
        self.bits_view: views.tiles(
          pictures.values(), [captions.get(n, n) for n in pictures], 200
        )
        + '<h3>What the conditions are worth</h3>'
        + worth,
      }

    buttons = (self.bits_go, self.bits_stop, self.bits_status)
    yield from self._follow(request, work, buttons, lambda _: {}, finished)

  def _follow(self, request, work, buttons, shown, finished):
    """Runs a job, and shows how far it is and what becomes of it."""
    go, stop, status = buttons
    yield {
      go: gr.update(interactive=False),
      stop: gr.update(interactive=True),
      status: views.status('Starting ...', 0),
    }
    end = {
      go: gr.update(interactive=True),
      stop: gr.update(interactive=False),
    }
    try:
      for kind, what in self.jobs.run(request.session_hash, work):
        if kind == 'report':
          text = f'{what.doing.capitalize()}: {what.done} of {what.total} steps'
          if not what.done:  # a new shape of work, of which it can't know
            text += '. What is new is compiled first: that takes a while.'
          seen = shown(what)
          yield {status: views.status(text, what.share)} | seen
          if seen:
            time.sleep(PACE)
        else:
          yield end | {status: views.status('Done.')} | finished(what)
    except jobs.Cancelled:
      yield end | {status: views.status('Cancelled.')}
    except KNOWN as e:
      yield end | {status: views.error(str(e))}
    except Exception as e:
      traceback.print_exc()
      text = f'This failed: {type(e).__name__}: {e}\nThe terminal has more.'
      yield end | {status: views.error(text)}

  def cancel(self, request: gr.Request):
    """Ends the visitor's job after the step that it is at."""
    if self.jobs.cancel(request.session_hash):
      return views.status('Stopping after this step ...')
    return gr.skip()

  def leave(self, request: gr.Request):
    """The visitor has closed the page."""
    self.jobs.cancel(request.session_hash)

  def replay(self, drawn):
    if drawn is None:
      return '', views.error('Generate something first.')
    some = type(drawn)(drawn.values[:MOVIE], drawn.when[:MOVIE])
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'movie.gif'
      sample.save_movie(some, self.model.config.model, str(path))
      return views.movie(path.read_bytes()), gr.skip()

  # Images and masks.

  def upload(self, path):
    model = self.model.config.model
    return self._chosen(lambda: uploads.read_image(path, model))

  def take(self, number):
    def read():
      if number is None or not 0 <= number < self.split.size:
        raise DemoError(f'Validation images are 0 to {self.split.size - 1}.')
      image, label = self.split.read(int(number))
      return image, f'Class {dict(map(reversed, self.classes))[label]}'

    return self._chosen(read)

  def use(self, drawn, which, tab):
    number = len(drawn.values) if drawn is not None else 0
    if which is None or not 1 <= which <= number:
      text = f'Images are 1 to {number}.'
      return [gr.skip()] * 4 + [views.error(text)]
    image = drawn.values[int(which) - 1]
    return [*self._shown(image), gr.update(selected=tab), gr.skip()]

  def ready_mask(self, canvas, mode):
    model = self.model.config.model
    mask = np.zeros(edit.shape(model), bool)
    if mode is not None:
      mask |= edit.make_mask(mode, model)[..., None]
    return canvas | {'mask': self._digits(mask)}

  def upload_mask(self, path, canvas):
    try:
      mask = uploads.read_mask(path, self.model.config.model)
    except KNOWN as e:
      return gr.skip(), views.error(str(e))
    return canvas | {'mask': self._digits(mask)}, ''

  def _chosen(self, read):
    """Outputs of an image that `read` gives, with a note, or why it doesn't."""
    try:
      image, note = read()
    except KNOWN as e:
      return [gr.skip()] * 3 + [views.error(str(e))]
    return [*self._shown(image), views.status(note)]

  def _shown(self, image):
    """An image, on the canvas and in the preview."""
    image = image.astype(edit.dtype(self.model.config.model))
    (picture,) = sample.pictures(image[None], self.model.config.model)
    return image, self._canvas(picture), views.tiles([picture], size=240)

  def _grown(self, drawn, labels) -> str:
    pictures = sample.so_far(drawn, self.model.config.model)
    names = {-1: 'no class'} | {i: f'class {n}' for n, i in self.classes}
    captions = [f'{i + 1}: {names[n]}' for i, n in enumerate(labels.tolist())]
    size = 240 if len(pictures) <= 4 else 120
    return views.tiles(pictures, captions, size)

  def _known(self, image, mask) -> np.ndarray:
    """Pictures of an image, and of what is known of it."""
    model = self.model.config.model
    grey = round(sample.GREY * (model.num_values - 1) / 255)
    values = np.stack([image, np.where(mask, grey, image)])
    pictures = sample.pictures(values, model)
    pictures[1][mask.all(-1)] = VEIL
    return pictures

  def _canvas(self, picture) -> dict:
    """What the painter shows: see painter.js."""
    shape = edit.shape(self.model.config.model)
    return {
      'image': None if picture is None else views.data_url(picture),
      'side': shape[0],
      'channels': shape[-1],
      'mask': self._digits(np.zeros(shape, bool)),
    }

  def _digits(self, mask: np.ndarray) -> str:
    """A mask [S, S, C] as a digit a pixel, a bit a channel."""
    return ''.join(map(str, (mask << np.arange(mask.shape[-1])).sum(-1).flat))

  def _mask(self, canvas) -> np.ndarray:
    """The inverse of `_digits`, of what a browser sent."""
    side, _, channels = shape = edit.shape(self.model.config.model)
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

  def _drawing(self, guidance, temperature, iterations, seed) -> dict:
    """Settings of drawing, as `Model.sample` takes them."""
    try:
      steps = tuple(int(x) for x in iterations.split(',') if x.strip())
    except ValueError as e:
      raise DemoError(
        f'Iterations "{iterations}" must be whole numbers with commas between.'
      ) from e
    if seed is None or not 0 <= seed < 2**31:
      raise DemoError(f'The seed must be a whole number, 0 to {2**31 - 1}.')
    return dict(
      guidance=guidance,
      temperature=temperature,
      iterations=steps,
      seed=int(seed),
    )


# No telemetry; what visitors left behind is deleted after an hour.
BLOCKS = dict(analytics_enabled=False, delete_cache=(600, 3600))
