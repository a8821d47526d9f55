"""What it is worth: low, middle and high, break-even, and what matters most.

a year = incidents * found * preventable * cost of an incident
         - false alarms per week * 52 * cost of a false alarm
         - upkeep hours * hour of work
         - hardware hours * hour of hardware
the first year costs setup hours * hour of work more
"""

from collections.abc import Mapping
import dataclasses

from fractal_jax.pilot.gates import Interval
from fractal_jax.pilot.settings import UNSET

WEEKS = 52.0
SWING = 0.2  # by which an input of pilot.toml is moved, to see what matters


@dataclasses.dataclass(frozen=True)
class Case:
  """One case, in the currency of pilot.toml, per year."""

  found: float  # share of the incidents
  false_alarms: float  # per week
  saved: float
  alarms: float  # what false alarms cost
  upkeep: float  # work and hardware
  setup: float  # once

  @property
  def yearly(self) -> float:
    """What remains of a year after alarms and upkeep."""
    return self.saved - self.alarms - self.upkeep

  @property
  def first_year(self) -> float:
    """What remains of the first year, which pays the setup."""
    return self.yearly - self.setup

  @property
  def months(self) -> float | None:
    """Until the setup is paid; None: never."""
    return 12 * self.setup / self.yearly if self.yearly > 0 else None


@dataclasses.dataclass(frozen=True)
class Roi:
  """Three cases, and what they depend on."""

  low: Case
  middle: Case
  high: Case
  break_even: float | None  # share of incidents found at which a year pays
  sensitivity: tuple[tuple[str, float], ...]  # input, change of a year; sorted

  @property
  def cases(self) -> tuple[Case, Case, Case]:
    """All three, the worst first."""
    return self.low, self.middle, self.high


def case(costs: Mapping[str, float], found: float, weekly: float) -> Case:
  """The arithmetic; see the top of this file."""
  return Case(
    found=found,
    false_alarms=weekly,
    saved=(
      costs['incidents_per_year']
      * found
      * costs['preventable']
      * costs['incident']
    ),
    alarms=weekly * WEEKS * costs['false_alarm'],
    upkeep=(
      costs['upkeep_hours'] * costs['hour_of_work']
      + costs['hardware_hours'] * costs['hour_of_hardware']
    ),
    setup=costs['setup_hours'] * costs['hour_of_work'],
  )


def roi(
  costs: Mapping[str, float], found: Interval | None, weekly: Interval | None
) -> Roi | None:
  """Returns from the ends of both intervals; None where an input is unknown."""
  if found is None or weekly is None or UNSET in costs.values():
    return None
  middle = case(costs, found.value, weekly.value)
  most = case(costs, 1.0, weekly.value).saved
  needed = middle.alarms + middle.upkeep
  more = {name: value * (1 + SWING) for name, value in costs.items()}
  more['preventable'] = min(more['preventable'], 1.0)  # a share
  changes = {
    name: case({**costs, name: value}, found.value, weekly.value)
    for name, value in more.items()
  }
  larger = min(found.value * (1 + SWING), 1.0)
  changes['found'] = case(costs, larger, weekly.value)
  changes['weekly'] = case(costs, found.value, weekly.value * (1 + SWING))
  ranked = {name: c.yearly - middle.yearly for name, c in changes.items()}
  ranked = {k: v for k, v in ranked.items() if v}
  return Roi(
    low=case(costs, found.low, weekly.high),
    middle=middle,
    high=case(costs, found.high, weekly.low),
    break_even=needed / most if most > 0 and needed <= most else None,
    sensitivity=tuple(sorted(ranked.items(), key=lambda x: -abs(x[1]))),
  )
