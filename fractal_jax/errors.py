"""Errors that a user can mend, and what their messages are made of."""

from collections.abc import Iterable
import difflib

# What reading JSON raises where a file is a folder, damaged, or something else.
DAMAGES = (
  *(IsADirectoryError, LookupError, ValueError, AttributeError, TypeError),
  *(OverflowError, RecursionError),
)


class UserError(Exception):
  """The base of every error whose message is all that a user needs.

  The message names the value, the rule, and what to set. The command line
  prints it without a traceback.
  """


def nearest(name: str, names: Iterable[str]) -> str:
  """' Did you mean 'X'?', or nothing when no name is near."""
  close = difflib.get_close_matches(name, list(names), n=1)
  return f" Did you mean '{close[0]}'?" if close else ''


def short(what: object) -> str:
  """The text of an error, or other value, in a line of some 300 characters."""
  text = ' '.join(str(what).split()) or type(what).__name__
  # The cause stands at either end.
  return text if len(text) < 300 else f'{text[:200]} ... {text[-100:]}'
