"""The page: its jobs, its limits, its words; then all of it in a browser."""

import base64
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
from PIL import Image
import pytest

from fractal_jax import api, report, sharding
from fractal_jax import pictures as pictures_lib
from fractal_jax.demo import DemoError, jobs, server, uploads
from fractal_jax.inference import inputs
from fractal_jax.series import quantiser
from fractal_jax.training import checkpoint
from tests import tiny, xla

ROOT = pathlib.Path(__file__).parent.parent
VISITOR = types.SimpleNamespace(session_hash='one')


def build(kinds=('mar', 'pixel'), sizes=(4, 1), **changes):
  """A Model of random parameters, none of whose 7 shades is GREY // 2."""
  changes = {'num_values': 7} | changes
  c = tiny.config(kinds, sizes, **changes)
  c.sample.batch = 4
  net, params = tiny.build(kinds, sizes, **changes)
  return api.Model(c, net, params, sharding.single_device_mesh())


# Jobs.


def test_jobs_yield_what_they_are_given():
  assert list(jobs.Jobs().run('one', iter([1, 2, 3]))) == [1, 2, 3]
  with pytest.raises(ZeroDivisionError):
    list(jobs.Jobs().run('one', (1 / x for x in [0])))


@pytest.mark.parametrize('how', ['cancel', 'close', 'start another'])
def test_jobs_stop_where_they_are(how):
  desk, steps = jobs.Jobs(), []
  told = desk.run('one', (steps.append(i) or i for i in itertools.count()))
  assert next(told) == 0 and next(told) == 1
  if how == 'cancel':
    assert not desk.cancel('another') and desk.cancel('one')
  elif how == 'close':
    told.close()
  if how != 'cancel':  # the turn is free, also of a job that nobody looks at
    assert list(desk.run('one', iter([7]))) == [7]
  if how != 'close':
    with pytest.raises(jobs.Cancelled):
      next(told)
  assert list(told) == [] and steps == [0, 1]
  assert list(desk.run('two', iter([8]))) == [8]


def test_what_is_done_as_a_job_is_cancelled_is_dropped():
  desk, go, over = jobs.Jobs(), threading.Event(), []

  def job():
    go.wait(5)
    yield 'late'

  def look():
    try:
      over.append(list(desk.run('one', job())))
    except jobs.Cancelled:
      over.append('cancelled')

  looking = threading.Thread(target=look)
  looking.start()
  while not desk.cancel('one'):
    time.sleep(0.01)
  go.set()
  looking.join(5)
  assert over == ['cancelled']


def test_one_job_at_a_time_and_those_that_wait_can_be_cancelled():
  desk, began, told = jobs.Jobs(), [], []
  first = desk.run('one', iter(['began', 'done']))
  assert next(first) == 'began'

  def wait():
    try:
      told.extend(desk.run('two', (began.append(x) for x in [1])))
    except jobs.Cancelled:
      told.append('cancelled')

  second = threading.Thread(target=wait)
  second.start()
  time.sleep(3 * jobs.POLL)
  while not desk.cancel('two'):
    time.sleep(0.01)
  second.join(5)
  assert told == ['cancelled'] and not began
  assert list(first) == ['done']
  assert list(desk.run('two', iter([2]))) == [2]


# Uploads.


def write(path, size=(8, 8), mode='RGB', **how):
  Image.new(mode, size, **how).save(path)
  return str(path)


def test_uploads_are_cut_to_fit_and_not_kept(tmp_path):
  model = tiny.model(('ar', 'pixel'), (8, 1), num_values=17)
  path = write(tmp_path / 'a.png', (8, 8), color=(255, 255, 255))
  values, note = uploads.read_image(path, model)
  assert values.shape == (8, 8, 1) and (values == 16).all() and not note
  assert not os.path.exists(path)
  values, note = uploads.read_image(write(tmp_path / 'b.jpg', (90, 30)), model)
  assert values.shape == (8, 8, 1) and (values == 0).all()
  assert '90x30 pixels' in note and '8x8' in note


def test_masks_are_white_or_one_plane_a_channel(tmp_path):
  rgb = tiny.model(('ar', 'pixel'), (4, 1), channels=3)
  grey = tiny.model(('ar', 'pixel'), (4, 1))
  planes = np.zeros((4, 4, 3), np.uint8)
  planes[:2] = 255
  Image.fromarray(planes).save(tmp_path / 'm.png')
  mask = uploads.read_mask(str(tmp_path / 'm.png'), rgb)
  np.testing.assert_array_equal(mask, planes > 0)
  planes[3, 0, 1] = 255
  for model in (rgb, grey):
    Image.fromarray(planes).save(tmp_path / 'm.png')
    if model is rgb:
      mask = uploads.read_mask(str(tmp_path / 'm.png'), model)
      np.testing.assert_array_equal(mask, planes > 0)
    else:
      with pytest.raises(inputs.InputError, match='m.png is coloured'):
        uploads.read_mask(str(tmp_path / 'm.png'), model)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda p: p.write_bytes(b'\0' * (uploads.MAX_BYTES + 1)), '5.0 MB: the'),
    (lambda p: p.write_text('no image'), 'not an image that can be read'),
    (lambda p: write(p, (5000, 4000), '1'), 'the limit is 16,000,000'),
    (lambda p: write(p, (30000, 30000), '1'), 'the limit is 16,000,000'),
    (lambda p: write(p, mode='I;16'), 'more than 8 bits'),
    (lambda p: Image.new('RGB', (9, 9)).save(p, 'TIFF'), 'one of PNG, JPEG'),
  ],
)
def test_uploads_beyond_the_limits_are_refused(make, words, tmp_path):
  path = tmp_path / 'x.png'
  make(path)
  model = tiny.model(('ar', 'pixel'), (8, 1))
  with pytest.raises(DemoError, match=words) as e:
    uploads.read_image(str(path), model)
  assert 'x.png' in str(e.value) and not path.exists()


# What the page does, without a browser.


@pytest.fixture(scope='module')
def page():
  pytest.importorskip('gradio')
  from fractal_jax.demo import page

  return page.Page(build(), 'tiny')


def follow(page, updates):
  """The last value of each component, and the texts of its status."""
  last, texts = {}, []
  for update in updates:
    last |= update
    for status in (page.ui.status, page.ui.edit_status, page.ui.bits_status):
      texts += [update[status]] if status in update else []
  return last, texts


def pictures(html):
  """The pictures of tiles, uint8 [H, W, 3], by their captions."""
  parts = html.split('<figure>')[1:]
  out = {}
  for part in parts:
    data = part.split('base64,')[1].split('"')[0]
    name = part.split('alt="')[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
      out[name] = np.asarray(image.convert('RGB'))
  return out


def test_images_grow_into_what_the_api_draws(page):
  updates = list(page.generate(VISITOR, 'each', 4, 3.0, 1.0, '5', 7))
  last, texts = follow(page, updates)
  images = page.model.sample(num=4, seed=7, guidance=3.0, iterations=(5,))
  shots = [pictures(u[page.ui.view]) for u in updates if page.ui.view in u]
  assert list(shots[-1]) == [f'{i + 1}: class {i % 3}' for i in range(4)]
  for shot, image in zip(shots[-1].values(), images):
    np.testing.assert_array_equal(
      pictures_lib.to_values(shot[..., :1], page.model.config.model), image
    )
  final = np.stack(list(shots[-1].values()))
  alike = [(np.stack(list(s.values())) == final).mean() for s in shots]
  assert len(shots) >= 6 and alike[0] < 0.2 and alike[2] < alike[4] < 1
  assert 'Drawing: 2 of 5 steps' in ''.join(texts) and 'Done.' in texts[-1]
  drawn = last[page.ui.drawn]
  assert 'data:image/gif' in page.replay(drawn)[0]
  image, *_ = page.use('edit', drawn, 2)
  np.testing.assert_array_equal(image, images[1])


def test_a_cancelled_image_stays_unfinished(page):
  updates = page.generate(VISITOR, 0, 4, 1.0, 1.0, '', 0)
  seen = []
  for update in updates:
    seen.append(update)
    if 'Drawing: 3 of 16' in update.get(page.ui.status, ''):
      assert 'Stopping' in page.cancel(VISITOR)
  last, texts = follow(page, seen)
  assert 'Cancelled.' in texts[-1] and page.ui.drawn not in last
  shots = pictures(last[page.ui.view]).values()
  assert all((shot == 64).mean() > 0.5 for shot in shots)  # half a grey
  last, texts = follow(page, page.generate(VISITOR, 0, 4, 1.0, 1.0, '', 0))
  assert 'Done.' in texts[-1]


def test_completions_keep_what_is_known(page):
  image = tiny.images(page.model.net, 1)[0].astype(np.uint8)
  canvas = page.ready_mask('lower', page._canvas(None))
  assert canvas['mask'] == '0' * 8 + '1' * 8
  how = (image, canvas, 1, 2, 2, 1.0, 1.0, '5', 3)
  last, texts = follow(page, page.complete(VISITOR, *how))
  shown = pictures(last[page.ui.edit_view])
  assert list(shown) == ['image', 'known', 'completion 1', 'completion 2']
  mask = inputs.make_mask('lower', page.model.config.model)
  (wanted,) = page.model.edit(
    image[None],
    mask,
    1,
    num=2,
    candidates=2,
    seed=3,
    guidance=1.0,
    iterations=(5,),
  )
  for i in range(2):
    shot = shown[f'completion {i + 1}']
    np.testing.assert_array_equal(
      pictures_lib.to_values(shot[..., :1], page.model.config.model), wanted[i]
    )
    np.testing.assert_array_equal(shot[:2], shown['image'][:2])
  assert (shown['known'][2:] == (255, 64, 129)).all()
  assert 'Scoring: 1 of 1' in ''.join(texts)


def test_the_bits_are_those_of_explain(page):
  image = tiny.images(page.model.net, 1)[0].astype(np.uint8)
  last, texts = follow(page, page.bits(VISITOR, image, 1, 40))
  found = page.model.explain(image, 1, passes=40, batch=32)
  assert report.summary(found) in texts[-1]
  shown = pictures(last[page.ui.bits_view])
  np.testing.assert_array_equal(
    shown[report.captions(found)['bits']], pictures_lib.heat(found.bits.sum(-1))
  )
  html = last[page.ui.bits_view]
  assert all(f'{c.worth:+.2f}' in html for c in found.conditions)
  # The pointer tells values of the image, and bits of the maps.
  values, bits, *_ = told(html)
  np.testing.assert_array_equal(values, image)
  np.testing.assert_allclose(bits, found.bits.sum(-1), rtol=1e-3)
  assert html.count('linear-gradient(to right, rgb(0, 0, 4)') == len(shown) - 1
  steps = 2 * (1 + len(found.conditions))  # 40 masks, 32 at a time
  assert f'Explaining: 3 of {steps}' in ''.join(texts)


def told(html):
  """What the pointer tells of each picture, arrays of numbers."""
  return [np.array(json.loads(x)) for x in re.findall('numbers="(.*?)"', html)]


def test_series_are_curves_whose_values_are_told():
  pytest.importorskip('gradio')
  from fractal_jax.demo import page

  m = build(('ar', 'pixel'), (8, 1), rank=1, channels=2)
  rows = np.random.default_rng(0).random((3, 20, 2)) * 9
  bins = quantiser.fit(rows, 7, channels=('flow', 'heat'))
  m = dataclasses.replace(m, quantiser=bins)
  page = page.Page(m, 'waves')
  last, _ = follow(page, page.generate(VISITOR, 1, 4, 1.0, 1.0, '', 7))
  drawn = last[page.ui.drawn]
  wanted = bins.decode(drawn.values, 1)  # in the unit of class 1
  found = np.stack(told(last[page.ui.view]))
  assert found.shape == (4, 1, 8, 2)
  np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-3)
  series, _, preview, *_ = page.use('bits', drawn, 2)
  np.testing.assert_array_equal(told(preview)[0][0], drawn.values[1])
  assert 'data-unit="of 6"' in preview  # of no class, so a number of its bin
  last, _ = follow(page, page.bits(VISITOR, series, 1, 2))
  html = last[page.ui.bits_view]
  assert 'the series' in html and 'bits of each step; the highest' in html
  assert 'linear-gradient' not in html  # bars have no colours to explain
  np.testing.assert_allclose(told(html)[0][0], wanted[1], rtol=1e-3)


def test_guidance_may_have_an_interval(page):
  given = (2.0, 1.0, '5', 7)
  assert 'interval' not in page._drawing(*given, '')
  assert page._drawing(*given, '0.1, 0.8')['interval'] == (0.1, 0.8)
  for fields in (page.ui.how, page.ui.edit_how):
    assert fields[-1].label == 'Interval of guidance'
    assert fields[-1].value == '0,1'


def test_bad_requests_are_answered_in_words(page, tmp_path):
  blank = page._canvas(None)
  image = np.zeros((4, 4, 1), np.uint8)
  guided = lambda by, span: page.generate(VISITOR, 0, 1, by, 1.0, '', 0, span)
  for updates, words in [
    (page.generate(VISITOR, 0, 1, 1.0, 1.0, 'x', 0), '&quot;x&quot; must be'),
    (page.generate(VISITOR, 0, 1, 1.0, 1.0, '4,4', 0), 'iterations=(4, 4)'),
    (guided(2.0, '0.5,x'), 'must be two numbers'),
    (guided(2.0, '0.5'), 'interval=(0.5,) must be two'),
    (guided(1.0, '0.1, 0.8'), 'interval=(0.1, 0.8) does nothing at guidance 1'),
    (page.generate(VISITOR, 0, 1, 1.0, 1.0, '', None), 'seed=None must be'),
    (page.generate(VISITOR, 9, 1, 1.0, 1.0, '', 0), 'classes are 0 to 2'),
    (page.bits(VISITOR, None, 0, 2), 'Choose an image first'),
    *(
      (page.complete(VISITOR, x, canvas, 0, 1, 1, 1.0, 1.0, '', 0), words)
      for x, canvas, words in (
        (None, blank, 'Choose an image first'),
        (image, blank, 'Paint over'),
        (image, blank | {'mask': '0'}, 'mask got lost'),
        (image, blank | {'mask': '7' * 16}, 'mask got lost'),
      )
    ),
  ]:
    last, texts = follow(page, updates)
    assert 'class="error"' in texts[-1] and words in texts[-1], texts[-1]
  (tmp_path / 'x.png').write_text('no image')
  assert 'not an image' in page.upload(str(tmp_path / 'x.png'))[-1]
  assert 'Images are 1 to 0' in page.use('edit', None, 1)[-1]


def test_masks_travel_as_digits():
  pytest.importorskip('gradio')
  from fractal_jax.demo import page

  rgb = page.Page(build(('ar', 'pixel'), (4, 1), channels=3), 'rgb')
  mask = np.random.default_rng(0).random((4, 4, 3)) < 0.5
  digits = rgb._digits(mask)
  assert len(digits) == 16 and set(digits) <= set('01234567')
  np.testing.assert_array_equal(rgb._mask({'mask': digits}), mask)
  with pytest.raises(DemoError, match='the page shows grey and RGB images'):
    page.Page(build(('ar', 'pixel'), (4, 1), channels=2), 'other')


def test_unexpected_errors_are_told_and_end_the_job(page, monkeypatch, capsys):
  def fail(*args, **how):
    raise RuntimeError('no memory <b>')

  monkeypatch.setattr(page, 'model', types.SimpleNamespace(stream=fail))
  _, texts = follow(page, page.generate(VISITOR, 0, 1, 1.0, 1.0, '', 0))
  assert 'RuntimeError: no memory &lt;b&gt;' in texts[-1]
  assert 'Traceback' in capsys.readouterr().err


# The server.


def test_the_server_answers_this_machine_alone(page):
  from starlette.testclient import TestClient

  app = server.app({'tiny': page})
  with TestClient(app, base_url=f'http://{server.HOST}') as client:
    found = client.get('/')
    assert found.status_code == 200 and 'tiny' in found.text
    assert "default-src 'self'" in found.headers['content-security-policy']
    assert 'fonts.g' not in found.text and 'cdn' not in found.text.lower()
    assert client.get('/', headers={'host': 'evil.org'}).status_code == 400
    big = {'files': ('a.png', b'\0' * (uploads.MAX_BYTES + 1))}
    found = client.post('/gradio_api/upload', files=big)
    assert found.status_code == 413
    assert client.get('/monitoring').status_code in (401, 403, 404)
    assert not client.get('/gradio_api/info').json()['named_endpoints']


def test_a_port_in_use_and_a_missing_gradio_are_told(monkeypatch):
  with socket.socket() as taken:
    taken.bind((server.HOST, 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(DemoError, match=f'--port={port} .* Give another'):
      server.listen(port)
  with pytest.raises(DemoError, match='--port=70000'):
    server.listen(70000)
  monkeypatch.setitem(sys.modules, 'gradio', None)
  with pytest.raises(DemoError, match=r"pip install 'fractal_jax\[demo\]'"):
    server.check_gradio()


# All of it in a browser.


# The command with a wait after each step of drawing many images, so that it
# is still at work, on however fast a machine, when a test cancels it.
WATCHED = """
import contextlib
import time

from fractal_jax import api, main

stream = api.Model.stream

def slow(model, job_name, of, *args, **how):
  with contextlib.closing(stream(model, job_name, of, *args, **how)) as job:
    for progress in job:
      yield progress
      if job_name == 'sample' and len(of) > 1:
        time.sleep(0.2)

api.Model.stream = slow
main.run()
"""


@pytest.fixture(scope='module')
def url(tmp_path_factory):
  """The page of `fractal-jax demo`, of a tiny RGB model and its data."""
  pytest.importorskip('gradio')
  folder = tmp_path_factory.mktemp('demo')
  m = build(('ar', 'pixel'), (16, 1), channels=3)
  rng = np.random.default_rng(0)
  np.savez(
    folder / 'data.npz',
    images=rng.integers(0, 7, (20, 16, 16, 3)),
    labels=np.arange(20) % 3,
  )
  m.config.data.update(name='npz', dir=str(folder / 'data.npz'))
  m.config.sample.batch = 1  # so that 16 images are many steps
  checkpoint.save_params(str(folder / 'run'), m.config, m.params)
  run = subprocess.Popen(
    [sys.executable, '-c', WATCHED, 'demo']
    + [f'--workdir={folder / "run"}', '--port=0'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': xla.flags()},
    stdout=subprocess.PIPE,
    text=True,
  )
  line = run.stdout.readline()
  assert line.startswith('The page: http://127.0.0.1:'), line
  yield line.split()[2]
  run.terminate()
  assert run.wait(20) in (0, 143)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  """Headless Chromium; CI has one (launch/browser.sh), a laptop may not."""
  chrome = shutil.which('chromium') or shutil.which('google-chrome')
  driver = shutil.which('chromedriver')
  try:
    from selenium import webdriver
  except ImportError:
    driver = None
  if not (chrome and driver):
    text = 'no chromium, chromedriver or selenium: see launch/browser.sh'
    if os.environ.get('CI') == 'true':
      pytest.fail(text)
    pytest.skip(text)
  options = webdriver.ChromeOptions()
  options.binary_location = chrome
  for flag in (
    *('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic'),
    *('no-first-run', 'disable-background-networking', 'disable-sync'),
    *('disable-component-update', 'disable-dev-shm-usage'),
    'window-size=1280,1000',
    f'user-data-dir={tmp_path_factory.mktemp("chromium")}',
  ):
    options.add_argument(f'--{flag}')
  logs = {'performance': 'ALL', 'browser': 'ALL'}
  options.set_capability('goog:loggingPrefs', logs)
  found = webdriver.Chrome(options, webdriver.ChromeService(driver))
  yield found
  found.quit()


class Visitor:
  """Someone at the page; SHOTS=FOLDER in the environment keeps screenshots."""

  def __init__(self, browser, url):
    self.browser, self.shots = browser, 0
    browser.get(url)
    self.until(lambda: self.all('#class input'), 30)

  def until(self, found, seconds=40):
    from selenium.common import exceptions

    end, out = time.monotonic() + seconds, None
    while not out:
      assert time.monotonic() < end, self.texts()
      time.sleep(0.03)
      try:
        out = found()
      except exceptions.StaleElementReferenceException:
        pass  # the page has just put another in its place
    return out

  def all(self, css):
    return self.browser.find_elements('css selector', css)

  def seen(self, css):
    return [x for x in self.all(css) if x.is_displayed()]

  def texts(self):
    js = "return [...document.querySelectorAll('.status')].filter(x => "
    return self.browser.execute_script(
      js + 'x.offsetParent).map(x => x.innerText)'
    )

  def told(self, words, seconds=40):
    return self.until(
      lambda: next((x for x in self.texts() if words in x), None), seconds
    )

  def press(self, text, css='button:not([role=tab], [tabindex="-1"])'):
    # In one call: while images grow, the page is made anew all the time.
    js = 'const x = [...document.querySelectorAll(arguments[0])].find(x => '
    js += 'x.getClientRects().length && !x.disabled && '
    js += 'x.innerText.trim() === arguments[1]); '
    js += 'x?.scrollIntoView({block: "center"}); '
    js += 'if (x?.matches("button")) { x.click(); return true } return x'

    def found():
      if x := self.browser.execute_script(js, css, text):
        return x is True or x.click() is None  # an option hears the mouse alone

    self.until(found)

  def tiles(self, place):
    js = 'return document.querySelector(arguments[0]).innerHTML'
    return pictures(self.browser.execute_script(js, place))

  def look(self, name):
    """A screenshot of all of the page."""
    folder = os.environ.get('SHOTS')
    if folder:
      metrics = 'Emulation.setDeviceMetricsOverride'
      size = 'return [document.documentElement.clientWidth, '
      w, h = self.browser.execute_script(
        size + 'document.documentElement.scrollHeight]'
      )
      how = {'width': w, 'height': h, 'deviceScaleFactor': 1, 'mobile': False}
      self.browser.execute_cdp_cmd(metrics, how)
      self.shots += 1
      self.browser.save_screenshot(f'{folder}/{self.shots:02}_{name}.png')
      self.browser.execute_cdp_cmd(metrics.replace('set', 'clear'), {})

  def in_sight(self, css):
    """Whether the top of what a job shows is in the window."""
    js = 'const x = document.querySelector(arguments[0]), '
    js += 'y = x.getBoundingClientRect().top; return y >= 0 && y < innerHeight'
    return self.browser.execute_script(js, css)

  def logged(self, kind):
    return [x['message'] for x in self.browser.get_log(kind)]


def test_all_of_the_page_in_a_browser(browser, url, tmp_path):
  from selenium.webdriver import ActionChains

  you = Visitor(browser, url)
  assert '16x16 pixels, RGB' in you.all('.facts')[0].text
  assert 'autoregressive over 16x16' in you.all('.facts')[0].text
  you.look('open')

  # Choose a class and settings; watch an image grow.
  you.all('#class input')[0].click()
  you.press('2', '[role=option]')
  you.press('1', 'label')
  browser.execute_script("""
    window.grown = [];
    new MutationObserver(() => window.grown.push(
      document.querySelector('#view').innerHTML)
    ).observe(document.querySelector('#view'),
      {childList: true, subtree: true, attributes: true});""")
  you.press('Generate')
  you.told('Done.', 90)
  shots = [pictures(x) for x in browser.execute_script('return window.grown')]
  shots = [x['1: class 2'] for x in shots if x]
  alike = [(x == shots[-1]).mean() for x in shots]
  assert len(set(alike)) > 5 and alike[0] < 0.2 and alike[-1] == 1
  assert (np.diff(alike) >= 0).all()  # patches come, and stay
  you.look('generated')

  # Cancel a long job: it stops, what was drawn stays, the next one runs.
  you.press('16', 'label')
  you.press('Generate')
  you.told('Drawing: ')
  you.until(lambda: len(you.tiles('#view')) == 16)
  you.look('growing')
  you.press('Cancel')
  you.told('Cancelled.')
  last = list(you.tiles('#view').values())[-1]
  assert (last == last[0, 0]).all()  # the last image had not begun
  you.press('1', 'label')
  you.press('Generate')
  you.told('Done.')
  made = you.tiles('#view')['1: class 2']
  np.testing.assert_array_equal(made, shots[-1])
  you.press('Movie, value by value')
  you.until(lambda: you.all('#movie img[src^="data:image/gif"]'))

  # Paint a mask on it; completions side by side.
  you.press('Edit it')
  canvas = you.until(lambda: you.seen('#painter canvas'))[0]
  browser.execute_script('arguments[0].scrollIntoView()', canvas)
  cell = canvas.size['width'] / 16
  ActionChains(browser).move_to_element_with_offset(
    canvas, round(-5.5 * cell), round(-3.5 * cell)
  ).click_and_hold().move_by_offset(round(6 * cell), 0).release().perform()
  you.look('painted')
  you.press('Complete')
  you.told('Done.', 90)
  assert you.in_sight('#edit_view')  # beside settings that are longer
  shown = you.tiles('#edit_view')
  assert list(shown) == ['image', 'known'] + [
    f'completion {i + 1}' for i in range(4)
  ]
  np.testing.assert_array_equal(shown['image'], made)
  hidden = (shown['known'] == (255, 64, 129)).all(-1)
  assert np.argwhere(hidden).tolist() == [[4, c] for c in range(2, 9)]
  rest = [shown[f'completion {i + 1}'] for i in range(4)]
  for completion in rest:
    np.testing.assert_array_equal(completion[~hidden], made[~hidden])
  assert len({x[hidden].tobytes() for x in rest}) > 1
  you.look('completed')

  # Upload an image and a mask. What is too large or no image is refused.
  noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / 'large.png')
  Image.fromarray(noise[:40, :60]).save(tmp_path / 'small.png')
  Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / 'mask.png')
  (tmp_path / 'text.png').write_text('no image')
  image, mask = you.all('.tabitem input[type=file]')[:2]
  image.send_keys(str(tmp_path / 'large.png'))
  you.until(lambda: 'maximum allowed size' in browser.page_source)
  image.send_keys(str(tmp_path / 'text.png'))
  you.told('text.png is not an image')
  you.look('refused')
  image.send_keys(str(tmp_path / 'small.png'))
  you.told('60x40 pixels')
  mask.send_keys(str(tmp_path / 'mask.png'))
  you.until(lambda: '60x40' not in ''.join(you.texts()))
  you.press('Complete')
  you.told('Drawing')
  you.told('Done.')
  shown = you.tiles('#edit_view')
  hidden = (shown['known'] == (255, 64, 129)).all(-1)
  np.testing.assert_array_equal(hidden, np.eye(16, dtype=bool))
  you.look('uploaded')

  # The bits, of an image of the data.
  you.press('Bits', '[role=tab]')
  js = 'return [...document.querySelectorAll(".examples .grid-wrap")].map(x => '
  js += '[x.offsetHeight, x.firstElementChild.offsetHeight])'
  heights = [x for x in browser.execute_script(js) if x[0]]
  assert heights and all(0 < a - b < 40 for a, b in heights)  # nothing blank
  you.press('Take it')
  you.told('Class ')
  you.press('Explain')
  you.told('bits/dim', 90)
  shown = you.tiles('#bits_view')
  assert any('bits of each pixel' in name for name in shown) and len(shown) == 5
  you.look('bits')

  # A phone: nothing is cut off.
  phone = {'width': 390, 'height': 844, 'deviceScaleFactor': 1, 'mobile': True}
  for name in ('Bits', 'Edit', 'Generate'):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', phone)
    you.press(name, '[role=tab]')
    wide = 'return document.documentElement.scrollWidth'
    assert browser.execute_script(wide) <= 390
    you.look(f'phone_{name.lower()}')
  browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', phone)
  you.press('Generate')
  you.until(lambda: you.in_sight('#view'))  # below the settings

  # Nothing was asked of any other machine, and no script failed.
  asked = [json.loads(x)['message'] for x in you.logged('performance')]
  asked = {
    x['params']['request']['url']
    for x in asked
    if x['method'] == 'Network.requestWillBeSent'
  }
  asked = {x for x in asked if x.startswith(('http', 'ws'))}
  assert len(asked) > 20 and all(x.startswith(url) for x in asked), asked
  assert not [x for x in you.logged('browser') if 'Failed to' not in x]
