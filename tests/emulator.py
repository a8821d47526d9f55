"""Google Cloud Storage in this process, for tests of runs in a bucket."""

import contextlib
from http import HTTPStatus
import logging
import os
import re

from gcp_storage_emulator import exceptions, server

from tests import ports

BUCKET = 'bucket'


def generation(storage, name: str) -> str:
  """Of an object; '0' if there is none."""
  try:
    return storage.get_file_obj(BUCKET, name)['generation']
  except exceptions.NotFound:
    return '0'


class Emulator:
  """A server with one bucket, which fails when it is told to.

  Attributes:
    url: of the bucket.
    faults: statuses with which the next requests that write are answered.
    writes: names of the objects written, in order.
    watch: called with each of these names, before it is written.
  """

  def __init__(self):
    self.url = f'gs://{BUCKET}'
    self.faults, self.writes = [], []
    self.watch = lambda name: None
    self._port = ports.free()
    self._server = server.create_server(
      '127.0.0.1', self._port, in_memory=True, default_bucket=BUCKET
    )

  def environment(self) -> dict[str, str]:
    """Variables with which the libraries talk to this server."""
    here = f'http://127.0.0.1:{self._port}'
    return {
      'STORAGE_EMULATOR_HOST': here,
      'TENSORSTORE_GCS_HTTP_URL': here,
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': here,  # array_record's client
      # A question to Google about the kind of bucket.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }

  def write(self, handler):
    """A handler of writes that fails as told, and heeds conditions."""

    def checked(request, response, storage, *args, **kwargs):
      name = request.params.get('object_id')
      name = name or request.query.get('name', [None])[0]
      name = name or request.data['meta']['name']
      self.watch(name)
      if self.faults:
        response.status = HTTPStatus(self.faults.pop(0))
        response.json({'error': {'message': 'told to fail'}})
        return
      wanted = request.query.get('ifGenerationMatch')
      if wanted and wanted != [generation(storage, name)]:
        response.status = HTTPStatus.PRECONDITION_FAILED
        response.json({'error': {'message': 'another generation'}})
        return
      self.writes.append(name)
      handler(request, response, storage, *args, **kwargs)

    return checked

  def read(self, handler):
    """A handler of reads that says which generation they are of.

    It knows the range of the last so many bytes, too.
    """

    def checked(request, response, storage, *args, **kwargs):
      name = request.params['object_id']
      found = generation(storage, name)
      if [found] == request.query.get('ifGenerationNotMatch'):
        response.status = HTTPStatus.NOT_MODIFIED
        return
      last = re.fullmatch('bytes=-([0-9]+)', request.get_header('range', ''))
      if last and found != '0':
        size = len(storage.get_file(BUCKET, name))
        start = max(0, size - int(last[1]))
        request.get_header = {'range': f'bytes={start}-'}.get
      handler(request, response, storage, *args, **kwargs)
      response['x-goog-generation'] = found

    return checked

  def start(self) -> None:
    self._server.start()

  def stop(self) -> None:
    self._server.stop()


@contextlib.contextmanager
def serve():
  """Yields an Emulator that answers, and is what this process talks to."""
  found = Emulator()
  objects = server.objects
  wrap = {
    objects.insert: found.write,
    objects.delete: found.write,
    objects.get: found.read,
    objects.download: found.read,
  }
  routes = [
    (methods, method, handler)
    for _, methods in server.HANDLERS
    for method, handler in methods.items()
    if handler in wrap
  ]
  for methods, method, handler in routes:
    methods[method] = wrap[handler](handler)
  insert = objects.insert
  objects.insert = found.write(insert)
  server.server.HTTPServer.handle_error = lambda *_: None  # broken pipes
  logging.getLogger('api').setLevel(logging.CRITICAL)
  before = dict(os.environ)
  os.environ.update(found.environment())
  found.start()
  try:
    yield found
  finally:
    found.stop()
    os.environ.clear()
    os.environ.update(before)
    objects.insert = insert
    for methods, method, handler in routes:
      methods[method] = handler
