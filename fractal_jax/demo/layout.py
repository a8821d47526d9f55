"""What the page looks like: its components, by name."""

import pathlib

import gradio as gr
from ml_collections import ConfigDict
import numpy as np

from fractal_jax.demo import uploads, views
from fractal_jax.models.kinds import KINDS

HERE = pathlib.Path(__file__).parent
EACH = 'each'  # in place of a class: each in turn


class Layout:
  """The components, made inside `gr.Blocks`; page.py says what they do."""

  def __init__(
    self,
    config: ConfigDict,
    name: str,
    *,
    masks: bool,
    classes: list[tuple[str, int]],
    num_data: int,
    canvas: dict,
    runs: list[str],
    examples: list,
  ):
    """Makes them.

    Args:
      name: of the run.
      masks: whether any level is masked: those take iterations and orders.
      classes: [(name, class)].
      num_data: images of the validation split; 0: none are at hand.
      canvas: what the painter shows at first.
      runs: names of all that are served, this one included.
      examples: pictures [H, W, 3] of some validation images.
    """
    self.config, self.masks, self.classes = config, masks, classes
    self.num_data, self.canvas = num_data, canvas
    self.examples = examples
    self.series = config.model.rank == 1
    gr.Markdown(f'# Fractal {self._things()}: {name}')
    complete = '' if self.series else ', let it complete a part'
    gr.Markdown(
      f'A fractal model draws {self._things()} from coarse to fine: for each '
      'patch it calls a smaller model of the same kind, down to single values. '
      f'Here you can watch it draw{complete}, and see how many bits each value '
      'costs it.'
    )
    gr.Markdown(self._facts(), elem_classes='facts')
    if len(runs) > 1:
      gr.HTML(views.links(runs, name))
    self.drawn = gr.State(time_to_live=3600)  # the last Drawn
    self.image = gr.State(time_to_live=3600)  # values [S, S, C]
    with gr.Tabs() as self.tabs:
      with gr.Tab('Generate', id='generate'):
        self._generate_tab()
      with gr.Tab('Edit', id='edit', visible=not self.series):
        self._edit_tab()
      with gr.Tab('Bits', id='bits'):
        self._bits_tab()

  def _things(self) -> str:
    return 'series' if self.series else 'images'

  def _facts(self) -> str:
    m = self.config.model
    by = lambda side: 'x'.join([str(side)] * m.rank)
    levels = ' → '.join(
      f'{KINDS[kind].WORD} over {by(side)}'
      for kind, side in zip(m.kinds[:-1], m.sizes)
    )
    several = lambda n, one, more: f'{n} {one if n == 1 else more}'
    colour = 'grey' if m.channels == 1 else 'RGB'
    what = f'{by(m.sizes[0])} pixels, {colour}'
    if self.series:
      channels = several(m.channels, 'channel', 'channels')
      what = f'{m.sizes[0]} steps of {channels}'
    return (
      f'{what}, {m.num_values} values per channel, '
      f'{several(m.classes, "class", "classes")}. '
      f'Levels: {levels} → single values.'
    )

  def _settings(self) -> list:
    """Components for guidance, temperature, iterations, seed, interval."""
    s = self.config.sample
    # Where a config has one number per level, the page begins with the pixels'.
    strength, heat = (np.ravel(x)[-1] for x in (s.guidance, s.temperature))
    guidance = gr.Slider(
      0,
      30,
      float(min(strength, 30)),
      step=0.1,
      label='Guidance',
      info='Towards the class; 1: none',
    )
    temperature = gr.Slider(
      0.1,
      3,
      float(min(max(heat, 0.1), 3)),
      step=0.05,
      label='Temperature',
      info='Below 1: more likely values, less variety',
    )
    with gr.Row():
      iterations = gr.Textbox(
        ','.join(map(str, s.iterations)),
        label='Iterations',
        info='Steps of each level, say 8,4. Empty: one per patch',
        visible=self.masks,
        max_length=40,
      )
      seed = gr.Number(
        0,
        label='Seed',
        info=f'The same seed and settings: the same {self._things()}',
        precision=0,
      )
    interval = gr.Textbox(
      ','.join(f'{share:g}' for share in s.interval),
      label='Interval of guidance',
      info='The part of the image that is guided, say 0.1,0.8',
      max_length=40,
    )
    return [guidance, temperature, iterations, seed, interval]

  def _result(self) -> gr.Column:
    """Where a tab shows what a job gives."""
    return gr.Column(scale=3, min_width=300, elem_classes='result')

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
        num = gr.Radio([1, 4, 8, 16], value=4, label=self._things().title())
        self.how = [label, num, *self._settings()]
        self.go, self.stop = self._buttons('Generate')
        gr.Markdown('Or click one of these, then *Generate*:')
        gr.Examples(
          self._settings_to_try(), self.how[:4], label='Try', elem_id='try'
        )
      with self._result():
        self.status = gr.HTML(views.status('Nothing drawn yet.'))
        self.view = gr.HTML(views.tiles([]), elem_id='view')
        with gr.Row(visible=False, elem_classes='after') as self.after:
          self.which = gr.Number(
            1,
            label='Series' if self.series else 'Image',
            precision=0,
            minimum=1,
            min_width=80,
          )
          self.to_edit = gr.Button(
            'Edit it', min_width=80, visible=not self.series
          )
          self.to_bits = gr.Button('See its bits', min_width=80)
          self.play = gr.Button('Movie, value by value', min_width=250)
        self.movie = gr.HTML(elem_id='movie')

  def _settings_to_try(self) -> list[list]:
    """Rows of (class, images, guidance, temperature) to click."""
    some = [EACH, *(number for _, number in self.classes[:2])]
    guidance = float(np.ravel(self.config.sample.guidance)[-1])
    return [
      [some[0], 8, guidance, 1.0],
      [some[-1], 4, guidance, 0.8],
      [-1, 4, 1.0, 1.0],
    ]

  def _source(self) -> tuple:
    """Where an image comes from: (upload, gallery, number, button, note)."""
    limit = f'{uploads.MAX_BYTES >> 20} MB'
    gr.Markdown(
      '### Series\nGenerate some, and press *See its bits* there.'
      if self.series
      else f'### Image\nUp to {limit}, cut and resized to fit.'
    )
    upload = gr.UploadButton(
      'Upload an image',
      file_types=list(uploads.ENDINGS),
      size='md',
      visible=not self.series,
    )
    gr.Markdown(
      'Or click one that the model was not trained on:',
      visible=bool(self.examples),
    )
    gallery = gr.Gallery(
      self.examples,
      format='png',
      show_label=False,
      columns=4,
      allow_preview=False,
      interactive=False,
      buttons=[],
      object_fit='contain',
      visible=bool(self.examples),
      elem_classes='examples',
    )
    here = self.num_data > 0
    number = gr.Number(
      0,
      label='Or one of the validation split',
      info=f'0 to {self.num_data - 1}',
      precision=0,
      visible=here,
    )
    button = gr.Button('Take it', size='md', visible=here)
    return upload, gallery, number, button, gr.HTML()

  def _edit_tab(self):
    with gr.Row():
      with gr.Column(scale=2, min_width=300):
        self.edit_source = self._source()
        gr.Markdown(
          '### Mask\nPaint over what is to be generated, or upload a mask: '
          'white is generated.'
        )
        self.painter = gr.HTML(
          self.canvas,
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
            info='Draws of which each completion is the likeliest',
          )
        with gr.Accordion('Settings', open=False):
          settings = self._settings()
        self.edit_how = [label, num, candidates, *settings]
        self.edit_go, self.edit_stop = self._buttons('Complete')
      with self._result():
        self.edit_status = gr.HTML(views.status('Nothing completed yet.'))
        self.edit_view = gr.HTML(views.tiles([]), elem_id='edit_view')

  def _bits_tab(self):
    with gr.Row():
      with gr.Column(scale=2, min_width=300):
        self.bits_source = self._source()
        self.preview = gr.HTML(elem_id='preview')
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
          visible=self.masks,
        )
        self.bits_how = [label, passes]
        self.bits_go, self.bits_stop = self._buttons('Explain')
      with self._result():
        self.bits_status = gr.HTML(views.status('Nothing explained yet.'))
        self.bits_view = gr.HTML(views.tiles([]), elem_id='bits_view')
