"""What a level must provide: the interface between the recursion and a kind.

A *kind* of level is a flax module with one field, its Spec, and the methods
below. `fractal.Fractal` and everything behind it (likelihood, explanations,
costs, conversion of published weights) know levels by this interface alone, so
that a new kind is one file beside this one and one entry of `kinds.KINDS`.
Kinds that send every patch down begin from `AllDown`, at the end of this file.
Axis letters: types.py.
"""

from typing import ClassVar, Protocol

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fractal_jax.models.chunked import chunked
from fractal_jax.models.patches import patchify
from fractal_jax.models.types import (
  Array,
  DrawPatch,
  Draws,
  Network,
  Request,
  Rows,
  Sampling,
  Scores,
  Spec,
  Steps,
)


class Level(Protocol):
  """A level above the pixels."""

  spec: Spec

  # What the kind is.

  # Its name in a sentence, as in "masked over 4x4".
  WORD: ClassVar[str]
  # Its transformer's block. Levels may share blocks of one class.
  BLOCK: ClassVar[type[nn.Module]]
  # Whether a pass sends only some patches down, drawn at random, rather than
  # all of them. Such a pass estimates the likelihood; see Draws.law.
  MASKS: ClassVar[bool]
  # Whether one pass gives the exact likelihood, by the chain rule.
  EXACT: ClassVar[bool]
  # Whether a patch depends on no patch but those before it, in raster order.
  CAUSAL: ClassVar[bool]
  # Whether it can predict a guiding pixel (config.model.guide).
  GUIDES: ClassVar[bool]

  @staticmethod
  def conditions(rank: int) -> tuple[str, ...]:
    """Names of the conditions that it can give to the level below, in order."""

  @staticmethod
  def takes(num_conds: int) -> int:
    """How many conditions it takes where it is offered `num_conds`."""

  @staticmethod
  def sequence_length(spec: Spec) -> int:
    """T, the tokens of the sequence that its transformer reads."""

  @staticmethod
  def problems(spec: Spec) -> list[str]:
    """Every rule of this kind that the level breaks, for the user to read."""

  @staticmethod
  def published(spec: Spec) -> dict | None:
    """Its parameters in the published checkpoints; None: there are none.

    Returns:
      {path of ours: (names of theirs, Layout)}, see published.py.
    """

  # Scoring: teacher-forced, as a flax module.

  def __call__(
    self,
    rows: Rows,
    draws: Draws,
    mask: ArrayLike | None = None,
    *,
    train: bool,
  ) -> tuple[Rows, Scores | None, Array]:
    """Sends patches down, each with its conditions.

    Args:
      rows: N squares [N, s, (s,) C] with conditions [N, num_conds, Dc].
      draws: the random draws of levels that mask.
      mask: [N, L], which patches go down, in place of a random choice; levels
        that do not mask ignore it.
      train: whether dropout is on.

    Returns:
      The M patches that go down, as the rows of the next level, with conditions
      [M, out_conds, D]; the scores of its guiding pixel, or None; an int32
      scalar, how many patches should have gone down and did not fit.
    """

  # Generating: pure.

  @staticmethod
  def generate(
    networks: list[Network],
    request: Request,
    sampling: Sampling,
    draw_patch: DrawPatch,
    order: Array | None = None,
  ) -> Steps:
    """Generates squares [N, s, (s,) C], patch by patch.

    What the recursion leaves to the kind:

    Squares: they start as `types.undrawn` gives them; patches come from
      `draw_patch` alone.
    Keys: patch `place` of a square is drawn with `fold_in(key, place)` of the
      square's key, whatever step draws it.
    Known values: `draw_patch` gets each patch's part of `request.given`.
    Interval of guidance: at level 0, with the share of patches that are there
      before a step, the step runs `networks[:1]` alone and sends their
      conditions alone down, unless `sampling.guides(share)`. Other levels
      always run all networks.
    Scale of guidance: `draw_patch` gets that of `request`. At level 0, where
      `sampling.schedule` is 'linear', it rises from near 1 to that with the
      patches; a kind that draws all at once has nothing to raise it by.
    Times: with `sampling.record`, `when` of what `draw_patch` gives counts the
      patch's own values. The kind shifts it, so that it counts those of the
      square that were drawn before; `nats` are kept as they come.

    Args:
      networks: this level with its parameters; behind it, the same level of
        the network that guides, where another one does.
      request: the squares that are wanted.
      sampling: how values are drawn.
      draw_patch: the next level: M patches from conditions [G, M, out_conds,
        D] of each network, one key and one Given each. Without those of the
        guide, they are drawn unguided.
      order: [L], an order of the patches for all squares, in place of that of
        `sampling`; levels with an order of their own ignore it.

    Returns:
      The steps whose result are the squares. What is known of them is kept.
    """

  @staticmethod
  def branches(
    spec: Spec, sampling: Sampling, networks: int
  ) -> np.ndarray | None:
    """How often a step takes each branch of its `lax.switch`, as shares [n].

    For estimates of time, see planning/aot.py; `networks` as `generate` gets
    them. None: all branches count as taken in every step.
    """

  # Counting FLOPs, 2 per multiply-add, as they are computed here.

  def flops(self) -> float:
    """FLOPs of scoring one square."""

  def sample_flops(self, iterations: int) -> float:
    """FLOPs of generating one square in `iterations` steps."""

  def share(self, law: str) -> float:
    """The share of a square's patches that go down; law: as in Draws."""


def check_rows(rows: Rows, spec: Spec) -> None:
  """Asserts the shapes of what a level is given."""
  n = len(rows.squares)
  side = (spec.side,) * spec.rank
  chex.assert_shape(rows.squares, (n, *side, spec.channels))
  chex.assert_shape(rows.conds, (n, spec.num_conds, spec.cond_width))
  chex.assert_shape([rows.weight, rows.image, rows.site], (n,))


class AllDown(nn.Module):
  """What kinds share that send every patch down, with one condition each.

  Such a level adds `outputs`, from the square's patches [N, L, p, (p,) C] and
  conditions [N, n, Dc] to the condition of each patch, [N, L, D].
  """

  spec: Spec

  MASKS = False
  EXACT = True
  CAUSAL = True
  GUIDES = False

  @staticmethod
  def conditions(rank: int) -> tuple[str, ...]:
    del rank
    return ('itself',)

  @staticmethod
  def takes(num_conds: int) -> int:
    return num_conds

  @staticmethod
  def problems(spec: Spec) -> list[str]:
    del spec
    return []

  @staticmethod
  def branches(spec: Spec, sampling: Sampling, networks: int) -> None:
    del spec, sampling, networks

  def __call__(
    self, rows: Rows, draws: Draws, mask: Array | None = None, *, train: bool
  ) -> tuple[Rows, None, Array]:
    """The patches of a square become neighbouring rows, in raster order."""
    del draws, mask
    s = self.spec
    check_rows(rows, s)
    patches = patchify(rows.squares, s)  # [N, L, p, (p,) C]
    outputs = lambda level, *rows: level.outputs(*rows, train=train)
    conds = chunked(outputs, self, patches, rows.conds)  # [N, L, D]
    n = len(patches) * s.length
    site = rows.site[:, None] * s.length + jnp.arange(s.length)
    below = Rows(
      squares=patches.reshape((n,) + patches.shape[2:]),
      conds=conds.reshape(n, 1, s.width),
      weight=jnp.repeat(rows.weight, s.length),
      image=jnp.repeat(rows.image, s.length),
      site=site.reshape(n),
    )
    return below, None, jnp.zeros((), jnp.int32)

  @nn.nowrap
  def sample_flops(self, iterations: int) -> float:
    """FLOPs of one pass, in however many steps patches are drawn."""
    del iterations
    return self.flops()

  @nn.nowrap
  def share(self, law: str) -> float:
    del law
    return 1.0
