"""The texts of reports: a file a language, with the same keys.

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


def texts(language: str) -> dict[str, str]:
  """All texts in a language.

  Raises:
    LanguageError: there are none.
  """
  if language not in languages():
    raise LanguageError(
      f'--language={language} must be one of {", ".join(languages())}'
    )
  return importlib.import_module(f'{__name__}.{language}').TEXTS
