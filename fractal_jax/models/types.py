"""What passes between the levels of a fractal.

Axis letters, here and in the files beside this one:
B images, N sequences (B times the folded positions), L positions, D width,
H heads, K head size, F MLP width, C channels, V values per channel,
G guidance streams (1, or 2: with and without the class).

A level's *square* has side s along each of its `rank` axes: [N, s, s, C] for
images, [N, s, C] for series. It is cut into L patches, in raster order, and
each patch is the square of the next level.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Spec:
  """One level, as `fractal.specs` reads it from the model config."""

  # sizes
  index: int  # 0 is the outermost level
  side: int  # of the squares it sees; 1 at the pixel level
  patch: int  # side of the patches it cuts them into
  rank: int  # axes of a square: 1 or 2
  channels: int
  values: int  # per channel
  width: int
  depth: int
  heads: int
  cond_width: int  # width of the level above
  num_conds: int  # conditions taken
  out_conds: int  # conditions given to the level below
  # structure
  kind: str
  shares: int  # the level whose blocks it uses: its own index, or a lower one
  guide: bool
  mean: tuple[float, ...]  # of v / (values - 1), per channel
  std: tuple[float, ...]
  # regularisation
  dropout: float
  mask_law: str
  mask_mean: float
  mask_std: float
  # computation
  dtype: jnp.dtype
  remat: str
  unroll: bool = False  # write the layers out rather than loop over them
  chunks: int = 1  # parts of the rows, one after another: see chunked.py
  kernels: str = 'xla'  # or 'pallas': see kernels/

  @property
  def grid(self) -> tuple[int, ...]:
    """Patches along each axis."""
    return (self.side // self.patch,) * self.rank

  @property
  def length(self) -> int:
    """L, the number of patches."""
    return (self.side // self.patch) ** self.rank

  @property
  def patch_values(self) -> int:
    """Channel values of a patch, C p^rank."""
    return self.channels * self.patch**self.rank


@struct.dataclass
class Rows:
  """The sequences of one level, all positions of the level above folded in."""

  squares: Array  # [N, s, (s,) C] integer values
  conds: Array  # [N, n, D of the level above]
  weight: Array  # [N] 1, or the likelihood weight; 0: an empty slot
  image: Array  # [N] index of the image, ascending
  site: Array  # [N] which of the image's squares of this level


@struct.dataclass
class Scores:
  """Negative log-likelihoods of channel values."""

  nats: Array  # [N, C] float32
  weight: Array  # [N]
  image: Array  # [N]
  site: Array  # [N] as in Rows


@struct.dataclass
class Draws:
  """What a teacher-forced pass draws at random.

  Everything is a function of the image's own key, so that results do not
  depend on the mesh. None where nothing is drawn: no level masks, or masks
  are given.
  """

  keys: Array | None  # [B] typed keys, one per image
  ratio: Array | None  # [B] in [0, 1): the stratum of level 0's mask ratio
  law: str = struct.field(pytree_node=False, default='train')


@struct.dataclass
class Sampling:
  """How values are drawn in generation (section 4.2, appendix of the paper).

  What `config.SAMPLE` says of the keys of the same names. Guidance and
  temperature are one number, or one for each level that draws values: those
  with a guiding pixel, and the pixel level.
  """

  guidance: Array | float = 1.0
  temperature: Array | float = 1.0  # divides the logits: below 1 is sharper
  filter_threshold: Array | float = 1e-4
  schedule: str = struct.field(pytree_node=False, default='linear')
  interval: tuple[float, float] = struct.field(
    pytree_node=False, default=(0.0, 1.0)
  )
  resample: int = struct.field(pytree_node=False, default=0)
  iterations: tuple[int, ...] = struct.field(pytree_node=False, default=())
  order: tuple[str, ...] = struct.field(pytree_node=False, default=())
  step_sizes: str = struct.field(pytree_node=False, default='cosine')
  greedy: bool = struct.field(pytree_node=False, default=False)
  record: bool = struct.field(pytree_node=False, default=False)

  @property
  def confident(self) -> bool:
    """Whether some level asks how likely the values drawn for it were."""
    return 'confidence' in self.order

  def guides(self, share: ArrayLike) -> bool:
    """Whether guidance is on when this share of level 0's patches is there."""
    start, stop = self.interval
    return start <= share < stop


@struct.dataclass
class Given:
  """Values that generation is given rather than draws: editing.

  A level counts a patch all of whose values are known as generated; one that
  is known in part is generated, and its known values are kept further down.
  """

  values: Array  # [N, s, (s,) C] int32; read where known
  known: Array  # [N, s, (s,) C] bool


@struct.dataclass
class Drawn:
  """Generated squares, and when each value was drawn, if that is recorded."""

  values: Array  # [N, s, (s,) C] int32
  when: Array | None = None  # [N, s, (s,) C] int32, counted in values drawn
  nats: Array | None = None  # [N, s, (s,) C], of values when they were drawn


NEVER = 2**31 - 1  # when a value is drawn that is not drawn yet


@struct.dataclass
class Request:
  """N squares of a level to be generated, and what each is generated from.

  A network has its guidance streams on one axis. Where another network guides,
  there are two arrays, of G = 1 each.
  """

  conds: tuple[Array, ...]  # of each network: [G, N, n, D of the level above]
  keys: Array  # [N] typed keys: a square is a function of its own key
  guidance: Array | float  # one number, or [levels]; not used without guidance
  given: Given | None = None  # values that are known, of these squares


# The next level: draws the squares of a request.
DrawPatch = Callable[[Request], Drawn]


@dataclasses.dataclass(frozen=True)
class Steps:
  """The generation of squares, step by step: all at once, or some at a time."""

  count: int
  start: Any  # the state before step 0
  step: Callable  # (t, state) to the state after step t
  drawn: Callable  # a state to Drawn: the squares as they are by then

  def run(self) -> Drawn:
    """The squares after all steps."""
    state = jax.lax.fori_loop(0, self.count, self.step, self.start)
    return self.drawn(state)


def undrawn(
  shape: tuple[int, ...], sampling: Sampling, given: Given | None
) -> Drawn:
  """Before the first draw: what is known is there."""
  values = jnp.zeros(shape, jnp.int32)
  if given is not None:
    values = jnp.where(given.known, given.values, values)
  return Drawn(
    values,
    jnp.full(shape, NEVER) if sampling.record else None,
    jnp.zeros(shape) if sampling.confident else None,
  )


def of_level(x: Array | float, spec: Spec) -> Array | float:
  """A level's entry of what is one number, or [levels]."""
  return x if jnp.ndim(x) == 0 else x[spec.index]


@dataclasses.dataclass(frozen=True)
class Network:
  """A level with its parameters, to be applied inside loops."""

  level: Any  # an unbound flax module
  params: Any

  def __call__(self, method: str | Callable, *args: Any, **kwargs: Any) -> Any:
    return self.level.apply(
      {'params': self.params}, *args, method=method, **kwargs
    )

  @property
  def spec(self) -> Spec:
    """The sizes of the level."""
    return self.level.spec

  def generating(self, **changes: Any) -> 'Network':
    """This network, without what only training needs."""
    spec = dataclasses.replace(self.spec, remat='none', **changes)
    return Network(self.level.clone(spec=spec, parent=None), self.params)
