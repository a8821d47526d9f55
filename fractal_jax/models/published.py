"""How parameters are named and laid out in the published PyTorch checkpoints.

The published model stores one tensor per layer and per channel; ours are
stacked, layers first in a block and channels first in a codebook. Linear
weights are [out, in] there and [in, out] here. Each kind of level says with
these pieces what its parameters are called; convert.py reads and writes files.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one tensor of theirs becomes one of ours, and back."""

  ours: Callable[[np.ndarray], np.ndarray]
  theirs: Callable[[np.ndarray], np.ndarray]


# Of one of our parameters: the names of the tensors it is made of, and how.
Table = dict[Path, tuple[list[str], Layout]]

SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)
ROWS = Layout(lambda x: x[0], lambda x: x[None])  # [1, T, D] there
QKV = Layout(  # [3D, D] there, [D, 3, D] here
  lambda x: x.T.reshape(x.shape[1], 3, -1),
  lambda x: x.reshape(x.shape[0], -1).T,
)
QKV_BIAS = Layout(lambda x: x.reshape(3, -1), lambda x: x.reshape(-1))

# The parameters of a block.
VIT = {
  ('norm1', 'scale'): ('norm1.weight', SAME),
  ('norm1', 'bias'): ('norm1.bias', SAME),
  ('attention', 'qkv'): ('attn.qkv.weight', QKV),
  ('attention', 'qkv_bias'): ('attn.qkv.bias', QKV_BIAS),
  ('attention', 'proj', 'kernel'): ('attn.proj.weight', LINEAR),
  ('attention', 'proj', 'bias'): ('attn.proj.bias', SAME),
  ('norm2', 'scale'): ('norm2.weight', SAME),
  ('norm2', 'bias'): ('norm2.bias', SAME),
  ('fc1', 'kernel'): ('mlp.fc1.weight', LINEAR),
  ('fc1', 'bias'): ('mlp.fc1.bias', SAME),
  ('fc2', 'kernel'): ('mlp.fc2.weight', LINEAR),
  ('fc2', 'bias'): ('mlp.fc2.bias', SAME),
}
LLAMA = {
  ('norm1', 'scale'): ('attention_norm.weight', SAME),
  ('attention', 'qkv'): ('attention.wqkv.weight', QKV),
  ('attention', 'proj', 'kernel'): ('attention.wo.weight', LINEAR),
  ('norm2', 'scale'): ('ffn_norm.weight', SAME),
  ('w1', 'kernel'): ('feed_forward.w1.weight', LINEAR),
  ('w3', 'kernel'): ('feed_forward.w3.weight', LINEAR),
  ('w2', 'kernel'): ('feed_forward.w2.weight', LINEAR),
}


def linear(ours: str, theirs: str) -> Table:
  """A linear layer's weights and bias."""
  return _affine(ours, theirs, 'kernel', LINEAR)


def norm(ours: str, theirs: str) -> Table:
  """A LayerNorm's scale and bias."""
  return _affine(ours, theirs, 'scale', SAME)


def _affine(ours: str, theirs: str, weight: str, layout: Layout) -> Table:
  return {
    (ours, weight): ([f'{theirs}.weight'], layout),
    (ours, 'bias'): ([f'{theirs}.bias'], SAME),
  }


def blocks(depth: int, block: dict) -> Table:
  """A stack of `depth` blocks, VIT or LLAMA: one tensor of ours is `depth`."""
  return {
    ('blocks', *path): ([f'blocks.{i}.{name}' for i in range(depth)], layout)
    for path, (name, layout) in block.items()
    if depth
  }


def level(depth: int, block: dict) -> Table:
  """What the published levels have in common."""
  return {
    ('positions',): (['pos_embed_learned'], ROWS),
    **linear('patch_embed', 'patch_emb'),
    **linear('cond_embed', 'cond_emb'),
    **norm('norm_in', 'patch_emb_ln'),
    **blocks(depth, block),
    **norm('norm_out', 'norm'),
  }


def within(ours: Path, theirs: str, table: Table) -> Table:
  """A table of a part as one of the whole, which names the part so."""
  return {
    ours + path: ([theirs + name for name in names], layout)
    for path, (names, layout) in table.items()
  }
