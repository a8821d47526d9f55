"""Serves the page on this machine, and to no other."""

import os
import pathlib
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from fractal_jax.demo import DemoError, uploads

if TYPE_CHECKING:
  import fastapi
  from starlette.types import ASGIApp, Receive, Scope, Send

HOST = '127.0.0.1'
# What scrolls is the window, so that results can stay in sight: see page.css,
# whose rules Gradio applies inside of its container.
VISIBLE = '<style>.gradio-container { overflow: clip !important }</style>'


def check_gradio() -> None:
  """Before anything else is done: raises DemoError if gradio is missing."""
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read by its import
  os.environ['HF_HUB_OFFLINE'] = '1'
  try:
    import gradio  # noqa: F401
  except ModuleNotFoundError as e:
    if e.name != 'gradio':
      raise
    raise DemoError(
      "the page needs gradio: pip install 'fractal_jax[demo]'"
    ) from e


def listen(port: int) -> socket.socket:
  """A socket that listens on a port of this machine; 0: any that is free."""
  sock = socket.socket()
  sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    sock.bind((HOST, port))
    sock.listen()  # who comes before the page is ready waits
  except (OSError, OverflowError) as e:
    sock.close()
    raise DemoError(
      f'--port={port} of {HOST} cannot be used ({e}): is another demo running? '
      'Give another --port, or 0 for any that is free'
    ) from e
  return sock


def serve(pages: dict, sock: socket.socket) -> None:
  """Serves pages by name until the process is told to stop."""
  import uvicorn

  config = uvicorn.Config(
    app(pages), log_level='warning', timeout_graceful_shutdown=2
  )
  uvicorn.Server(config).run(sockets=[sock])


def app(pages: dict) -> 'fastapi.FastAPI':
  """Pages by name as an ASGI app: one at /, several each at /NAME/.

  Other hosts' pages can't reach it under a name of their own (DNS rebinding),
  and browsers are told to load nothing from elsewhere.
  """
  import fastapi
  from starlette.middleware.trustedhost import TrustedHostMiddleware
  from starlette.responses import RedirectResponse

  out = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
  out.add_middleware(ContentPolicy)
  out.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, 'localhost'])
  if len(pages) == 1:
    (page,) = pages.values()
    return _mounted(out, page, '/')
  first = next(iter(pages))
  out.add_api_route('/', lambda: RedirectResponse(f'/{quote(first)}/'))
  for name, page in pages.items():
    out = _mounted(out, page, f'/{quote(name)}')
  return out


def _mounted(out, page, path: str):
  import gradio as gr

  font = ['system-ui', 'sans-serif']
  here = pathlib.Path(__file__).parent
  return gr.mount_gradio_app(
    out,
    page.blocks,
    path=path,
    server_name=HOST,
    footer_links=[],
    run_history=False,
    show_error=True,
    max_file_size=uploads.MAX_BYTES,
    ssr_mode=False,
    enable_monitoring=False,
    mcp_server=False,
    theme=gr.themes.Soft(font=font, font_mono=['ui-monospace', 'monospace']),
    css=(here / 'page.css').read_text(),
    head=f'{VISIBLE}<script>{(here / "page.js").read_text()}</script>',
  )


class ContentPolicy:
  """Adds the header that says where a page may load from: here alone."""

  POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"frame-ancestors 'self'"
  )

  def __init__(self, app: 'ASGIApp'):
    self.app = app

  async def __call__(
    self, scope: 'Scope', receive: 'Receive', send: 'Send'
  ) -> None:
    async def with_policy(message):
      if message['type'] == 'http.response.start':
        message['headers'] = [
          *message['headers'],
          (b'content-security-policy', self.POLICY),
        ]
      await send(message)

    await self.app(scope, receive, with_policy)
