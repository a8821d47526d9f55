"""Errors that a user can mend."""

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
