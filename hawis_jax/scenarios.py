"""Scenarios of the robustness stage: effects, and levels that are swept.

A scenario is a mapping {field of the device: a number, or a tuple of them}; a
tuple is swept, tuples of one scenario together, and everything else of the
device is as it is. `name` is optional. Examples:

  {"stuck_off": (0.0, 0.05, 0.1)}
  {"name": "both faults", "stuck_off": (0.0, 0.09), "stuck_on": (0.0, 0.018)}
  {"wire_resistance": (0.78, 1.6, 4.7), "load_resistance": 4.0}
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from hawis_jax import crossbar
from hawis_jax import errors


@dataclasses.dataclass(frozen=True)
class Level:
  """One device of a scenario.

  Attributes:
    value: of the scenario's first swept field.
    device: with all of the scenario's fields.
    is_random: whether chips differ.
  """

  value: float
  device: crossbar.Device
  is_random: bool


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A sweep.

  Attributes:
    key: "<effect>", or "<name>: <effect>", with the field that sets the levels.
    levels: in the order given.
  """

  key: str
  levels: tuple[Level, ...]


def parse(
  scenario: Mapping[str, Any], base: crossbar.Device, field: str
) -> Scenario:
  """Checks a scenario and makes its devices.

  Args:
    scenario: see the module.
    base: device that it changes.
    field: where it stands, for errors.

  Raises:
    InputError: names the field, what it got and what is allowed.
  """
  if not isinstance(scenario, Mapping):
    raise errors.InputError(
      f"{field}: got {scenario!r}, allowed is a dict of device parameters"
    )
  values = {k: v for k, v in scenario.items() if k != "name"}
  swept = {k: v for k, v in values.items() if isinstance(v, tuple | list)}
  numbers = [k for k, v in values.items() if type(v) in (int, float)]
  if not swept and not numbers:
    raise errors.InputError(
      f"{field}: got {dict(scenario)!r}, needed is an effect with a level"
    )
  counts = {len(v) for v in swept.values()}
  if len(counts) > 1 or 0 in counts:
    raise errors.InputError(
      f"{field}: got {' and '.join(str(len(v)) for v in swept.values())} "
      f"levels of {', '.join(swept)}, needed is one number of them, at least 1"
    )
  effect = next(iter(swept), None) or numbers[0]
  levels = []
  for place in range(max(counts, default=1)):
    at = {k: v[place] if k in swept else v for k, v in values.items()}
    device = crossbar.with_fields(base, at, field, crossbar.SCENARIO_FIELDS)
    is_random = any(
      crossbar.is_present(getattr(device, k)) for k in crossbar.DEFECTS
    )
    levels.append(Level(at[effect], device, is_random))
  if len({level.value for level in levels}) < len(levels):
    raise errors.InputError(
      f"{field}.{effect}: got {tuple(swept[effect])!r}, needed are distinct "
      "levels"
    )
  return Scenario(_key(scenario, values, effect), tuple(levels))


def _key(scenario, values, effect):
  others = [
    k if isinstance(v, tuple | list) else f"{k} = {v}"
    for k, v in values.items()
    if k != effect
  ]
  name = str(scenario.get("name") or ", ".join(others))
  return f"{name}: {effect}" if name else effect
