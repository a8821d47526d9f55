"""A local web page: generate, edit, and see the bits. See docs/demo.md."""


class DemoError(ValueError):
  """What the page can't serve, refuses, or can't start for; in words."""
