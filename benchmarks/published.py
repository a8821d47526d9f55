"""The published PyTorch model's jobs, to be timed beside ours.

`speed.py --published=DIR` uses this; DIR is the user's own checkout of
github.com/LTH14/fractalgen, which needs torch, torchvision and timm. The model
is that of a config of ours, with random weights: training as its engine does it
(dropout, AdamW, gradients clipped, no checkpointing), one pass of likelihood,
sampling with both streams. On a GPU it runs under autocast, on a CPU in
float32: there the `.cuda()` that the code has in places is made to do nothing.
It runs in a process of its own, where no thread of JAX is in its way.
"""

from collections.abc import Callable
import contextlib
import functools
import multiprocessing
import pathlib
import sys
import time

import numpy as np

from fractal_jax.errors import UserError


class PublishedError(UserError):
  """A checkout that isn't one, or a config that the published code lacks."""


def timer(folder: str, config) -> Callable[[str], float]:
  """A process with the published model; what times a job there, by its name.

  Args:
    folder: the checkout.
    config: of `jobs`.

  Returns:
    A function of 'train', 'likelihood' or 'sample': the seconds of the second
    of two calls.

  Raises:
    PublishedError: of `jobs`.
  """
  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe()
  # A daemon: it ends with this process.
  context.Process(
    target=serve, args=(theirs, folder, config), daemon=True
  ).start()

  def ask(name: str) -> float:
    ours.send(name)
    return answer()

  def answer():
    said = ours.recv()
    if isinstance(said, Exception):
      raise said
    return said

  answer()  # it is ready
  return ask


def serve(connection, folder: str, config) -> None:
  """Times jobs as they are asked for."""
  try:
    calls = jobs(folder, config)
    connection.send(None)
    while True:
      call = calls[connection.recv()]
      call()  # see speed.py
      start = time.perf_counter()
      call()
      connection.send(time.perf_counter() - start)
  except EOFError:
    pass
  except Exception as e:
    connection.send(e)


def jobs(folder: str, config) -> dict[str, Callable[[], None]]:
  """The jobs 'train', 'likelihood' and 'sample', each a call that waits.

  Args:
    folder: the checkout.
    config: reads `model`, `sample` and `optim.batch`, `.clip`.

  Raises:
    PublishedError: no such checkout, or levels that it does not have.
  """
  torch, model_class = load(folder)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = build(model_class, config).to(device)
  rng = np.random.default_rng(0)
  b, side = config.optim.batch, config.model.sizes[0]
  pixels = rng.integers(0, 256, (b, 3, side, side)) / 255
  mean, std = (
    np.asarray(x)[:, None, None] for x in (config.model.mean, config.model.std)
  )
  images = torch.tensor((pixels - mean) / std, dtype=torch.float32)
  images = images.to(device)
  labels = torch.arange(b, device=device) % config.model.classes
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05
  )
  scaler = torch.amp.GradScaler(device, enabled=device == 'cuda')
  wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
  precision = contextlib.nullcontext
  if device == 'cuda':
    precision = functools.partial(torch.autocast, device)

  def train():
    model.train()
    with precision():
      loss = model(images, labels)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    wait()

  def likelihood():
    model.eval()
    with torch.no_grad(), precision():
      model(images, labels)
    wait()

  def sample():
    model.eval()
    s = config.sample
    with torch.no_grad(), precision():
      conds = model.class_emb(labels)
      if s.guidance != 1:
        conds = torch.cat([conds, model.fake_latent.repeat(b, 1)])
      model.sample(
        cond_list=[conds] * config.model.num_conds,
        num_iter_list=list(s.iterations),
        cfg=s.guidance,
        cfg_schedule=s.schedule,
        temperature=1.0,
        filter_threshold=s.filter_threshold,
        fractal_level=0,
      )
    wait()

  return {'train': train, 'likelihood': likelihood, 'sample': sample}


def load(folder: str):
  """torch, and the class FractalGen of a checkout."""
  root = pathlib.Path(folder).expanduser().absolute()
  if not (root / 'models' / 'fractalgen.py').exists():
    raise PublishedError(
      f'--published={folder} has no models/fractalgen.py: give a checkout of '
      'github.com/LTH14/fractalgen'
    )
  sys.path.insert(0, str(root))
  try:
    from models.fractalgen import FractalGen
    import torch
  except ImportError as e:
    raise PublishedError(
      f'--published={folder}: {e}: pip install torch torchvision timm'
    ) from e
  if not torch.cuda.is_available():
    for kind in (torch.Tensor, torch.nn.Module):
      kind.cuda = lambda self, *args, **kwargs: self
  return torch, FractalGen


def build(model_class, config):
  """The published model of a config's section `model`, with random weights."""
  m = config.model
  inner = [*m.kinds[:-1], 'ar']  # what the published code calls the last one
  colours = (m.rank, m.channels, m.num_values, m.colour) == (2, 3, 256, '')
  if not colours or set(inner) - {'ar', 'mar'} or m.share:
    raise PublishedError(
      'the published code has ar and mar levels of RGB images alone, with '
      f'blocks of their own; the config has kinds {m.kinds}, rank {m.rank}, '
      f'{m.channels} channels of {m.num_values} values, share={m.share}'
    )
  return model_class(
    img_size_list=m.sizes,
    embed_dim_list=m.widths,
    num_blocks_list=m.depths,
    num_heads_list=m.heads,
    generator_type_list=inner,
    label_drop_prob=m.label_dropout,
    class_num=m.classes,
    attn_dropout=m.dropout,
    proj_dropout=m.dropout,
    guiding_pixel=m.guide,
    num_conds=m.num_conds,
    r_weight=m.channel_weights[0],
  )
