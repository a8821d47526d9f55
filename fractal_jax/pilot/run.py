"""Runs the stages of a pilot, one after another, and keeps what they found."""

from collections.abc import Callable
import dataclasses
import json
import time
from typing import Any

import numpy as np

from fractal_jax import errors, paths
from fractal_jax.pilot import gates, settings, work
from fractal_jax.pilot.gates import Gate, Interval
from fractal_jax.pilot.images import ImagePilot
from fractal_jax.pilot.settings import PilotError
from fractal_jax.pilot.tables import TablePilot
from fractal_jax.pilot.work import Pilot

PILOTS: dict[str, type[Pilot]] = {k.KIND: k for k in (TablePilot, ImagePilot)}
STAGES = tuple(TablePilot.STAGES)  # those of all kinds


@dataclasses.dataclass(frozen=True)
class Done:
  """A stage that ran."""

  name: str
  gates: tuple[Gate, ...]
  facts: dict[str, float]
  seconds: float  # that it took, those of killed attempts left out
  hash: str  # of pilot.toml when it ran
  key: str  # of the settings that results depend on

  @property
  def verdict(self) -> str:
    """That of the stage's gates together."""
    return gates.verdict(g.verdict for g in self.gates)


def open_pilot(folder: str, models: Any = None) -> Pilot:
  """The pilot of a folder.

  Args:
    folder: with a pilot.toml.
    models: how models are made, in place of the kind's MODELS.

  Raises:
    PilotError: it has no pilot.toml, or one that can't be run.
    DataError: the data can't be read.
  """
  found = settings.load(folder, {k: v.SECTIONS for k, v in PILOTS.items()})
  kind = PILOTS[found.data['kind']]
  pilot = kind(folder, found, kind.open(found), models or kind.MODELS())
  lines = pilot.problems()
  if lines:
    raise settings.broken(paths.path(folder) / settings.FILE, lines)
  return pilot


def load(pilot: Pilot) -> dict[str, Done]:
  """The stages that ran on this data and task, by name."""
  out = {}
  for name in STAGES:
    path = pilot.path('stages', f'{name}.json')
    if not (path.exists() and path.with_suffix('.npz').exists()):
      continue
    try:
      kept = json.loads(path.read_text())
      kept['gates'] = tuple(
        Gate(**{**g, 'found': g['found'] and Interval(**g['found'])})
        for g in kept['gates']
      )
      done = Done(**kept)
      _check(pilot, name, done)
    except errors.DAMAGES as e:
      raise PilotError(
        f'{path} is damaged ({type(e).__name__}: {e}): remove it, and the '
        'stage is run again'
      ) from e
    if done.key == pilot.settings.key():
      out[name] = done
  return out


def _check(pilot: Pilot, name: str, done: Done) -> None:
  """Raises one of DAMAGES unless this is what `run_stage` keeps of a stage."""
  if done.name != name or not done.gates:
    raise ValueError(f'{len(done.gates)} gates of stage {done.name!r}')
  sum(done.facts.values(), done.seconds)  # numbers
  for gate in done.gates:
    sum(dataclasses.astuple(gate.found) if gate.found else ())
    gate.verdict, pilot.settings.gates[gate.name]


def curves(pilot: Pilot, name: str) -> dict[str, np.ndarray]:
  """The arrays that a stage kept for pictures."""
  return work.arrays(pilot.path('stages', f'{name}.npz'))


def changed(pilot: Pilot, done: Done) -> list[tuple[str, float, float]]:
  """Gates that pilot.toml has changed since the stage ran: (name, old, new)."""
  now = pilot.settings.gates
  found = {g.name: g.threshold for g in done.gates}
  return [(k, old, now[k]) for k, old in found.items() if now[k] != old]


def price(pilot: Pilot, name: str) -> float | None:
  """Seconds that the models of a stage will take; None: it fits none."""
  fits = pilot.STAGES[name].fits(pilot)
  return work.price(pilot, fits) if fits else None


def known_price(pilot: Pilot, name: str) -> float | None:
  """The price of a stage where this machine's speed was measured already."""
  return price(pilot, name) if work.probed(pilot) else None


def check_before(pilot: Pilot, name: str, anyway: bool) -> None:
  """Raises PilotError where a stage before is not GO; unless `anyway`."""
  before = load(pilot)
  for other in STAGES[: STAGES.index(name)]:
    found = before[other].verdict if other in before else None
    if found != gates.GO and not anyway:
      why = f'is {found}' if found else 'has not run'
      raise PilotError(
        f'stage {name} is not run, since stage {other} {why}: see the report, '
        'or run it by --anyway'
      )


def run_stage(
  pilot: Pilot, name: str, *, follow: Callable, anyway: bool = False
) -> Done:
  """Runs a stage, or gives what it found before.

  Args:
    follow: runs a job to its end, and gives its result.
    anyway: even where a stage before it is not GO, or did not run.

  Raises:
    PilotError: a stage before it is not GO.
  """
  before = load(pilot)
  if name in before:
    return before[name]
  check_before(pilot, name, anyway)
  begun = time.monotonic()
  found = follow(pilot.STAGES[name].job(pilot))
  done = Done(
    name,
    found.gates,
    found.facts,
    time.monotonic() - begun,
    pilot.settings.hash,
    pilot.settings.key(),
  )
  folder = pilot.path('stages')
  work.keep(folder / f'{name}.npz', found.curves)
  # Last, since the stage is done where this file is.
  kept = json.dumps(dataclasses.asdict(done), indent=1)
  paths.write_text(folder / f'{name}.json', kept + '\n')
  return done


def verdict(done: dict[str, Done]) -> str:
  """The verdict of a pilot: GO takes every stage."""
  found = gates.verdict(d.verdict for d in done.values())
  if found == gates.GO and len(done) < len(STAGES):
    return gates.MORE_DATA
  return found
