"""A small Hugging Face Hub on this machine, for tests: repositories in memory.

It answers what huggingface_hub asks when a model is pushed and pulled. Files
are taken inside of commits ('regular' uploads), so no storage is needed.
"""

import base64
import contextlib
import hashlib
from http import server
import json
import re
import threading
from urllib import parse

TOKEN = 'hf_right'
MODEL = r'/api/models/([^/]+/[^/]+)'


class Refused(Exception):
  """An answer with an error status, and the Hub's code for it."""

  def __init__(self, status: int, code='', message='', **body):
    super().__init__(status, code, message)
    self.status, self.body = status, body
    self.code, self.message = code, message


class Hub:
  """Repositories: of each its branches' commits, and the files of a commit.

  Attributes:
    url: for HF_ENDPOINT.
    repos: by name.
    asked: (method, path) of each request.
    ranges: what of files was asked for, where not all of it.
    cut: file name -> bytes after which its next download is cut off.
    fail: names of files that can't be had, but for a download to be cut.
  """

  def __init__(self, url: str):
    self.url, self.repos, self.cut, self.fail = url, {}, {}, set()
    self.asked, self.ranges = [], []

  def add(self, repo: str, files: dict[str, bytes], **how) -> str:
    """Makes a repository, or a commit of one; returns the commit."""
    found = self.repos.setdefault(
      repo, {'private': False, 'branches': {}, 'commits': {}}
    )
    found |= {k: v for k, v in how.items() if k in ('private', 'gated')}
    number = f'{repo} {len(found["commits"])}'.encode()
    sha = hashlib.sha1(number).hexdigest()
    found['commits'][sha] = dict(files)
    found['branches'][how.get('branch', 'main')] = sha
    return sha

  def files(self, repo: str, revision: str = 'main') -> dict[str, bytes]:
    found = self.repos[repo]
    return found['commits'][found['branches'].get(revision, revision)]

  # What is asked.

  def answer(self, method: str, path: str, query: dict, body, token):
    """JSON, or (bytes, headers) of a file."""
    if path == '/api/validate-yaml':
      return {'errors': [], 'warnings': []}
    if path == '/api/repos/create':
      return self._create(json.loads(body), token)
    match = re.fullmatch(f'{MODEL}(?:/(\\w+)/([^/]+))?(/.*)?', path)
    if match:
      repo, what, revision, _ = match.groups()
      return self._of_model(repo, what, revision, body, token)
    match = re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path)
    if match:
      repo, revision, name = match.groups()
      sha = self._commit(repo, parse.unquote(revision), token)
      content = self.repos[repo]['commits'][sha][name]
      tag = hashlib.sha1(content).hexdigest()
      return content, {'ETag': f'"{tag}"', 'X-Repo-Commit': sha}
    raise Refused(404)

  def _create(self, what, token):
    self._may_write(token)
    repo = f'{what["organization"]}/{what["name"]}'
    if repo in self.repos:
      raise Refused(409, url=f'{self.url}/{repo}')
    private = what.get('private') or what.get('visibility') == 'private'
    self.add(repo, {}, private=bool(private))
    return {'url': f'{self.url}/{repo}'}

  def _of_model(self, repo, what, revision, body, token):
    revision = parse.unquote(revision or 'main')
    if what in ('preupload', 'commit', 'branch'):
      self._may_write(token)
    if what == 'branch':
      self.add(repo, self.files(repo), branch=revision)
      return {}
    sha = self._commit(repo, revision, token)
    files = self.repos[repo]['commits'][sha]
    if what == 'preupload':
      return {
        'files': [
          {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
          for f in json.loads(body)['files']
        ]
      }
    if what == 'commit':
      files = dict(files)
      for line in map(json.loads, body.splitlines()):
        value = line['value']
        if line['key'] == 'file':
          files[value['path']] = base64.b64decode(value['content'])
        elif line['key'] == 'deletedFile':
          del files[value['path']]
      sha = self.add(repo, files, branch=revision)
      url = f'{self.url}/{repo}/commit/{sha}'
      return {'success': True, 'commitOid': sha, 'commitUrl': url}
    if what == 'tree':
      return [
        {'type': 'file', 'path': p, 'size': len(x), 'oid': _oid(x)}
        for p, x in files.items()
      ]
    names = [{'rfilename': name} for name in files]
    return {'id': repo, 'sha': sha, 'siblings': names, 'private': False}

  def _may_write(self, token):
    if token != TOKEN:
      raise Refused(401, message='Invalid credentials in Authorization header')

  def _commit(self, repo, revision, token) -> str:
    found = self.repos.get(repo)
    if token not in (None, TOKEN):
      raise Refused(401, message='Invalid credentials in Authorization header')
    if found is None or (found['private'] and token != TOKEN):
      raise Refused(404 if token else 401, 'RepoNotFound')
    if found.get('gated'):
      raise Refused(403, 'GatedRepo')
    sha = found['branches'].get(revision, revision)
    if sha not in found['commits']:
      raise Refused(404, 'RevisionNotFound')
    return sha


def _oid(content: bytes) -> str:
  return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Handler(server.BaseHTTPRequestHandler):
  """HTTP around a Hub."""

  protocol_version = 'HTTP/1.1'
  hub: Hub

  def log_message(self, *args):
    pass

  def _handle(self):
    url = parse.urlsplit(self.path)
    body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    token = self.headers.get('Authorization')
    token = token and token.removeprefix('Bearer ')
    self.hub.asked.append((self.command, url.path))
    query = parse.parse_qs(url.query)
    try:
      found = self.hub.answer(self.command, url.path, query, body, token)
    except Refused as e:
      headers = {'X-Error-Code': e.code, 'X-Error-Message': e.message}
      headers = {k: v for k, v in headers.items() if v}
      return self._send(
        e.status, json.dumps({'error': e.code, **e.body}).encode(), headers
      )
    if not isinstance(found, tuple):
      return self._send(200, json.dumps(found).encode(), {})
    content, headers = found
    status, asked = 200, self.headers.get('Range')
    if asked:
      self.hub.ranges.append(asked)
      status, first = 206, int(re.match(r'bytes=(\d+)-', asked)[1])
      last = f'{len(content) - 1}/{len(content)}'
      headers['Content-Range'] = f'bytes {first}-{last}'
      content = content[first:]
    name = url.path.rpartition('/')[2]
    cut = self.hub.cut.pop(name, None) if self.command == 'GET' else None
    if cut is None and name in self.hub.fail and self.command == 'GET':
      return self._send(500, b'', {})
    return self._send(status, content, headers, cut)

  do_GET = do_HEAD = do_POST = _handle

  def _send(self, status, content, headers, cut=None):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content[:cut])
    if cut is not None:
      self.close_connection = True


@contextlib.contextmanager
def serve():
  """Yields a Hub that listens on a port of this machine."""
  handler = type('OfThis', (Handler,), {})
  with server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as listening:
    listening.daemon_threads = True
    handler.hub = Hub(f'http://127.0.0.1:{listening.server_port}')
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
      yield handler.hub
    finally:
      listening.shutdown()
      thread.join()
