"""Ports of this machine, for servers in processes that are yet to start."""

import random
import socket


def free() -> int:
  """A port that nobody listens to, below those that connections are given.

  Linux gives these from 32768 on, so that one of them may be taken before the
  process that is to listen has started.
  """
  while True:
    port = random.SystemRandom().randrange(20_000, 30_000)
    with socket.socket() as s:
      try:
        s.bind(('127.0.0.1', port))
      except OSError:
        continue
    return port
