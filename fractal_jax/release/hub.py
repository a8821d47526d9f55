"""Models by name: of the Hugging Face Hub, or shipped with this package.

    user/name            a repository of the Hub; user/name@v1: a revision of it
    hf://user/name       the same, where there is a local folder user/
    digits_ar            a small model that comes with this package

`folder` is the one place where such a name becomes a folder. Only the files of
a release are fetched, and none of them holds code. `HF_ENDPOINT`, `HF_TOKEN`,
`HF_HOME` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.
"""

import contextlib
import os
import pathlib
import re
from typing import Any

from fractal_jax import paths
from fractal_jax.errors import short
from fractal_jax.release import ReleaseError, card, weights
from fractal_jax.release.folder import FILES

SHIPPED = pathlib.Path(__file__).parent.parent / 'releases'
MESSAGE = 'Upload a fractal_jax model'
NAME = r'[\w-][\w.-]*/[\w-][\w.-]*'


def shipped() -> list[str]:
  """The models that come with this package."""
  return sorted(p.name for p in SHIPPED.glob('*/') if weights.found(p))


def folder(name: str, *, revision: str | None = None, **how: Any) -> str:
  """The folder of a run or release that a user names.

  A repository of the Hub is downloaded to the cache, or brought up to date
  there. Anything that is no name of one is given back as it is.

  Args:
    name: see the top of this file; or a local folder, or one in a bucket.
    revision, **how: as `api.Model.from_pretrained` takes them: cache_dir,
      local_files_only and token.

  Raises:
    ReleaseError: the repository can't be downloaded, and is not in the cache.
  """
  if not isinstance(name, str | os.PathLike):
    raise ReleaseError(
      f'{name!r} is no name of a run or release: give its folder, or user/name '
      'of the Hub, as a text.'
    )
  name = os.fspath(name)
  if name in shipped() and not os.path.exists(name):
    return str(SHIPPED / name)
  repo, asked = _repository(name)
  if repo is None:
    return name
  return _download(name, repo, revision=asked or revision, **how)


def pull(name: str, out: str | None, *, revision: str | None = None) -> str:
  """Downloads a repository of the Hub to a folder, or to the cache.

  Files that an earlier attempt has brought are not downloaded again.

  Returns:
    The folder.

  Raises:
    ReleaseError: `name` is no name of a repository, or it can't be downloaded.
  """
  repo, asked = _split(name)
  if repo is None:
    raise ReleaseError(
      f"'{name}' is no name of a repository: give user/name, or user/name@tag."
    )
  out = None if out is None else paths.absolute(out)
  return _download(name, repo, revision=asked or revision, local_dir=out)


def push(
  release: str,
  repo: str,
  *,
  private: bool = False,
  revision: str | None = None,
  token: str | None = None,
  message: str = MESSAGE,
) -> str:
  """Uploads a release as a repository of the Hub, made if it is not there.

  Args:
    release: its local folder.
    repo: user/name.
    private, revision, token, message: as in `api.Model.push_to_hub`.

  Returns:
    The address of the commit.

  Raises:
    ReleaseError: it can't be uploaded.
  """
  check_repository(repo)
  with _asking(repo):
    api = _api(token)
    api.create_repo(repo, private=private, exist_ok=True)
    if revision:
      api.create_branch(repo, branch=revision, exist_ok=True)
    done = api.upload_folder(
      repo_id=repo,
      folder_path=release,
      allow_patterns=list(FILES),
      revision=revision,
      commit_message=message,
      # Of an older release that had more parts, or no samples.
      delete_patterns=['model*.safetensors*', card.SAMPLES],
    )
    return done.commit_url


def check_repository(repo: str) -> None:
  """Raises ReleaseError unless this is user/name, and the library is there."""
  if not re.fullmatch(NAME, repo):
    raise ReleaseError(f"'{repo}' must be user/name, a repository of the Hub.")
  _library()


def _repository(name: str) -> tuple[str | None, str | None]:
  """(repository, revision) where a name is one, and no local folder."""
  if not name.startswith('hf://'):
    # runs/typo is meant to be local where there are runs.
    parent = name.partition('/')[0]
    if os.path.exists(name) or os.path.exists(parent):
      return None, None
  return _split(name)


def _split(name: str) -> tuple[str | None, str | None]:
  """'hf://user/name@v1' -> ('user/name', 'v1'); None where it is no name."""
  found = re.fullmatch(f'(?:hf://)?({NAME})(?:@([^@]+))?', name)
  return found.groups() if found else (None, None)


def _download(name: str, repo: str, token: str | None = None, **how) -> str:
  with _asking(name):
    return _api(token).snapshot_download(
      repo, allow_patterns=list(FILES), **how
    )


def _library():
  try:
    import huggingface_hub
  except ImportError as e:
    raise ReleaseError(
      'names of the Hugging Face Hub need the package huggingface_hub: pip '
      "install 'fractal_jax[hub]'."
    ) from e
  return huggingface_hub


def _api(token: str | None):
  from fractal_jax import __version__

  # The variable as it is now, not as it was when the library was imported.
  return _library().HfApi(
    endpoint=os.environ.get('HF_ENDPOINT') or None,
    token=token,
    library_name='fractal_jax',
    library_version=__version__,
  )


@contextlib.contextmanager
def _asking(name: str):
  """Turns what the Hub and the way to it raise into words."""
  try:
    yield
  except ReleaseError:
    raise
  except Exception as e:  # the library's own, httpx's, and those of the disk
    raise ReleaseError(_explain(name, e)) from e


def _explain(name: str, error: Exception) -> str:
  from huggingface_hub import errors

  response = getattr(error, 'response', None)
  status = getattr(response, 'status_code', None)
  who = 'the Hugging Face Hub'
  local = ''
  if '@' not in name and '://' not in name:
    local = f' (and there is no local folder {name})'
  if isinstance(error, errors.GatedRepoError):
    return (
      f'{name}: its owners give access on request: ask for it on its page, '
      'and log in with `hf auth login`.'
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return f'{name} has no such revision: name a branch, tag or commit of it.'
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f'{who} has no {name}, or it is private{local}: see whether the name is '
      'right; for a private one log in with `hf auth login` or set $HF_TOKEN.'
    )
  if status in (401, 403):
    return (
      f'{who} refuses the token for {name} (status {status}): make one with '
      'the right to do this, and log in with `hf auth login` or set $HF_TOKEN.'
    )
  if isinstance(error, errors.HFValidationError):
    return f'{name} is no name that a repository may have: {short(error)}'
  if isinstance(error, errors.IncompleteSnapshotError):
    return (
      f'{name} was downloaded in part, and {who} cannot be asked for the rest: '
      'try again with a network (`fractal-jax pull`).'
    )
  if isinstance(error, errors.LocalEntryNotFoundError):
    return (
      f'{name} is not in the cache, and {who} cannot be asked{local}: get a '
      'network, unset $HF_HUB_OFFLINE, or give a local folder '
      f'({short(error.__cause__ or error)}).'
    )
  if isinstance(error, OSError) and error.errno and response is None:
    return f'{name} cannot be kept here: {error}.'
  return (
    f'{name}: {who} cannot be used ({short(error)}): see whether there is a '
    'network, or try again later.'
  )
