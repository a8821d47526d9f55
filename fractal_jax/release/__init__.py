"""Releases: models that travel, as folders without code.

    config.json         the whole config and its format, as in a work directory
    classes.json        the names of the classes, where they are known
    model.safetensors   the parameters by dotted names; above 5 GB in parts,
                        with model.safetensors.index.json
    samples.png         what it draws, where that was at hand
    README.md           the card: what it is, how to use it, measured numbers

Whatever reads a work directory reads a release in its place. weights.py reads
and writes the tensors, card.py writes the card, folder.py a whole release, and
hub.py takes them to and from the Hugging Face Hub.
"""

from fractal_jax.errors import UserError


class ReleaseError(UserError):
  """A release that can't be written, reached or read."""
