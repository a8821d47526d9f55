"""A local web page: generate, edit, and see the bits. See docs/demo.md."""

from fractal_jax.errors import UserError


class DemoError(UserError, ValueError):
  """What the page can't serve, refuses, or can't start for; in words."""
