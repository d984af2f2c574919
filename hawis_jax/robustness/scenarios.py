"""Scenarios of the robustness stage: effects, and severities that are swept.

A scenario is a mapping {field of the device: a number, or a tuple of them}; a
tuple is swept, tuples of one scenario together, and everything else of the
device is as it is, without its random effects. Those are brought by `device`,
the share that a chip has of their severities: 1 is the device as it is.
Optional are `name`; `preset`, a name of `crossbar.PRESETS` whose memory stands
in the device's tiles, wires and converters, at its temperature and bandwidth,
and whose random effects, but for the errors of converters, are then those of
`device`; `fault_map`, a file of a measured chip's faults (see
`interop.load_faults`); `layers`, patterns of the layers that are on chips,
while the others are computed exactly; and `placing`, `spare_columns`, `copies`
and `copied`: how weights are placed on every chip for its own faults, `rules`
and fields of `crossbar.Placing`. Examples:

  {"device": 1.0}
  {"stuck_off": (0.0, 0.05, 0.1)}
  {"name": "both faults", "stuck_off": (0.0, 0.09), "stuck_on": (0.0, 0.018)}
  {"wire_resistance": (0.78, 1.6, 4.7), "load_resistance": 4.0}
  {"stuck_off": (0.05, 0.1), "layers": ("stage3_*", "head")}
  {"name": "chip 7", "fault_map": "chip7.npz", "write_error": 1.0}
  {"stuck_off": (0.05, 0.1), "placing": ("polarity", "permutation")}
  {"preset": "reram_wan2022", "write_error": (0.0, 0.5, 1.0)}
"""

from collections.abc import Mapping
import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np

from hawis_jax import crossbar
from hawis_jax import errors

DEVICE = "device"  # the word for the effects that the device has itself
PRESET = "preset"  # the word for another memory
_PLACING = ("placing", "spare_columns", "copies", "copied")
WORDS = ("name", PRESET, "fault_map", "layers", *_PLACING)  # of no device
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Severity:
  """One device of a scenario."""

  value: float  # of the first swept field; 0 of a fault map alone
  device: crossbar.Device  # with all of the scenario's fields
  is_random: bool  # whether chips differ
  fault_map: str = ""  # file of measured faults; "": none
  layers: tuple[str, ...] | None = None  # patterns of those on chips; None: all
  placing: crossbar.Placing | None = None  # None: weights are as they come


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A sweep; its key is "<effect>" or "<name>: <effect>"."""

  key: str
  severities: tuple[Severity, ...]  # in the order given


def parse(
  scenario: Mapping[str, Any],
  base: crossbar.Device,
  field: str,
  own: Mapping[str, float] | None = None,
) -> Scenario:
  """Checks a scenario and makes its devices.

  Args:
    scenario: see above.
    base: the device without random effects.
    field: for errors.
    own: severities of the device's own effects; None: it has none.

  Raises:
    InputError: names the field, what it got and what is allowed.
  """
  if not isinstance(scenario, Mapping):
    raise errors.InputError(
      f"{field}: got {scenario!r}, allowed is a dict of device parameters"
    )
  check_values(scenario, field)
  base, own = of_preset(scenario, base, own or {}, field)
  values = {k: v for k, v in scenario.items() if k not in WORDS}
  allowed = (*crossbar.SCENARIO_FIELDS, DEVICE, *WORDS)
  errors.check_fields(values, allowed, field)
  fault_map = scenario.get("fault_map", "")
  if not isinstance(fault_map, str) or (
    fault_map and not os.path.isfile(fault_map)
  ):
    raise errors.InputError(
      f"{field}.fault_map: got {fault_map!r}, needed is a file"
    )
  layers = _layers(scenario.get("layers"), field)
  swept = {k: v for k, v in values.items() if isinstance(v, tuple | list)}
  numbers = [k for k, v in values.items() if type(v) in (int, float)]
  if not swept and not numbers and not fault_map:
    raise errors.InputError(
      f"{field}: got {dict(scenario)!r}, needed is an effect with a severity"
    )
  counts = {len(v) for v in swept.values()}
  if len(counts) > 1 or 0 in counts:
    raise errors.InputError(
      f"{field}: got {' and '.join(str(len(v)) for v in swept.values())} "
      f"severities of {', '.join(swept)}, needed is one number of them, at "
      "least 1"
    )
  # The effect whose severities are the figure's axis, so they must be numbers.
  effect = next(iter([*swept, *numbers]), "fault_map")
  for value in swept.get(effect, ()):
    if type(value) in (bool, str) or value is None:
      raise errors.InputError(
        f"{field}.{effect}: got {value!r} for a severity, needed are numbers; "
        "other fields may be swept beside them"
      )
  severities = []
  for place in range(max(counts, default=1)):
    at = {k: v[place] if k in swept else v for k, v in values.items()}
    fields = with_own(at, own, field)
    device = crossbar.with_fields(base, fields, field, crossbar.SCENARIO_FIELDS)
    placing = _placing(scenario, device, field)
    is_random = any(
      crossbar.is_present(getattr(device, field))
      for field in crossbar.DEFECTS
      if field not in crossbar.NOT_RANDOM
    )
    severities.append(
      Severity(
        at.get(effect, 0.0), device, is_random, fault_map, layers, placing
      )
    )
  crossbar.check_constants(values, [x.device for x in severities], field)
  # Results are kept by severity: of two alike, one would be lost.
  if len({severity.value for severity in severities}) < len(severities):
    raise errors.InputError(
      f"{field}.{effect}: got {tuple(swept[effect])!r}, needed are distinct "
      "severities"
    )
  return Scenario(_key(scenario, values, effect), tuple(severities))


def of_preset(
  scenario: Mapping[str, Any],
  base: crossbar.Device,
  own: Mapping[str, float],
  field: str,
) -> tuple[crossbar.Device, Mapping[str, float]]:
  """Returns the device of a scenario without random effects, and those.

  They are those given, of the configured device, where it names no preset.

  Raises:
    InputError: there is none of this name, or it does not fit the circuit.
  """
  if PRESET not in scenario:
    return base, own
  preset = crossbar.preset(scenario[PRESET], f"{field}.{PRESET}")
  # Circuits' errors are those of the configured ones, which stay.
  of_circuit = crossbar.CIRCUIT_ERRORS
  kept = {name: value for name, value in own.items() if name in of_circuit}
  own = kept | {
    name: getattr(preset, name)
    for name in crossbar.DEFECTS
    if name not in of_circuit and crossbar.is_present(getattr(preset, name))
  }
  device = crossbar.in_circuit(crossbar.without_defects(preset), base)
  return crossbar.validate(device, f"{field}.{PRESET}"), own


def with_own(
  values: Mapping[str, Any], own: Mapping[str, float], field: str
) -> dict[str, Any]:
  """Returns one device's fields, `device` written out as the effects it means.

  >>> with_own({"device": 0.5, "stuck_on": 0.0}, {"stuck_off": 0.1}, "here")
  {'stuck_off': 0.05, 'stuck_on': 0.0}

  Args:
    values: of a scenario, at one severity.
    own: severities of the device's own effects.
    field: for errors.

  Raises:
    InputError: the share is no number from 0 on.
  """
  values = dict(values)
  share = values.pop(DEVICE, 0)
  if type(share) not in (int, float) or not 0 <= share < math.inf:
    raise errors.InputError(
      f"{field}.{DEVICE}: got {share!r}, allowed is a share of the severities "
      "of the device's own effects, from 0 on; 1: as it is"
    )
  return {name: share * own[name] for name in own if share} | values


def check_values(scenario: Mapping[str, Any], field: str) -> None:
  """Checks that nothing is in a scenario that can't be compared or printed.

  Raises:
    InputError: names the field.
  """
  for key, value in scenario.items():
    if not isinstance(key, str):
      raise errors.InputError(
        f"{field}: got a {type(key).__name__} for a name, allowed are texts"
      )
    if not _is_plain(value):
      raise errors.InputError(
        f"{field}, {key!r}: got a {type(value).__name__} that is no number of "
        "32 bits, no text and no tuple of them, allowed are those"
      )


def _is_plain(value, depth=2):
  if isinstance(value, tuple | list):
    return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
  if type(value) in (int, float):
    return not _LARGEST < abs(value) < math.inf
  return value is None or isinstance(value, bool | str)


def _layers(patterns, field):
  """Checked patterns of layers; None: none given."""
  if patterns is None:
    return None
  is_list = isinstance(patterns, tuple | list) and len(patterns) > 0
  if not is_list or not all(isinstance(x, str) and x for x in patterns):
    raise errors.InputError(
      f"{field}.layers: got {patterns!r}, needed is a tuple of names or "
      'patterns of layers, e.g. ("stage3_*", "head")'
    )
  return tuple(patterns)


def _placing(scenario, device, field):
  """Checked placing; None: weights are as they come."""
  values = {name: scenario[name] for name in _PLACING if name in scenario}
  try:
    placing = crossbar.Placing(values.pop("placing", ()), **values)
    crossbar.check_placing(placing, device)
  except errors.InputError as error:
    raise errors.InputError(f"{field}.placing, {error}") from error
  return None if placing == crossbar.Placing() else placing


def _key(scenario, values, effect):
  others = [
    k if isinstance(v, tuple | list) else f"{k} = {v}"
    for k, v in values.items()
    if k != effect
  ]
  if PRESET in scenario:
    others.insert(0, scenario[PRESET])
  others += beside(scenario)
  name = str(scenario.get("name") or ", ".join(others))
  return f"{name}: {effect}" if name else effect


def beside(scenario: Mapping[str, Any]) -> list[str]:
  """Returns what a scenario has beside a device: layers, placing, faults."""
  found = []
  if scenario.get("layers"):
    found.append(f"in {' '.join(scenario['layers'])}")
  if scenario.get("placing"):
    found.append(" and ".join(scenario["placing"]))
  found += [
    f"{name} = {scenario[name]}" for name in _PLACING[1:3] if name in scenario
  ]
  if scenario.get("copied"):
    found.append(f"copied {' '.join(scenario['copied'])}")
  if scenario.get("fault_map"):
    found.append(pathlib.Path(scenario["fault_map"]).name)
  return found
