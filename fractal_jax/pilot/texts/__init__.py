"""The texts of reports: a file per language, with the same keys.

A key that ends in @KIND stands for the same key in pilots of that kind; a key
with {i} stands for one of level 0 and one of level 1.

A new language is one more file with a dict TEXTS; `languages` finds it.
"""

import importlib
import pkgutil

from fractal_jax.errors import UserError


class LanguageError(UserError, ValueError):
  """A language that there are no texts in."""


def languages() -> list[str]:
  """The languages that there are, such as 'en'."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def texts(language: str, kind: str = '') -> dict[str, str]:
  """All texts in a language, with those of a kind of pilot in their places.

  Raises:
    LanguageError: there are none.
  """
  if language not in languages():
    raise LanguageError(
      f'--language={language} must be one of {", ".join(languages())}'
    )
  module = importlib.import_module(f'{__name__}.{language}')
  found = {
    key.replace('{i}', i): text.replace('{i}', i)
    for key, text in module.TEXTS.items()
    for i in '01'
  }
  own = {
    key.removesuffix(f'@{kind}'): text
    for key, text in found.items()
    if kind and key.endswith(f'@{kind}')
  }
  return found | own
