"""The configuration, its checks, and what follows from it."""

from collections.abc import Callable
import copy
import dataclasses
import os
import pathlib
import re
from typing import Any

import ml_collections
from ml_collections import config_dict
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.config import fields
from hawis_jax.interop import array_files
from hawis_jax.networks import net_names
from hawis_jax.networks import width_vectors
from hawis_jax.robustness import scenarios
from hawis_jax.robustness import statistics
from hawis_jax.runtime import storage

_Config = ml_collections.ConfigDict
_NOT_AT_0 = "tiles that a vector does not have would not read as 0"


def default() -> _Config:
  """Returns every field with its default, locked against new fields.

  Types are checked by `validate`, whose errors name the whole field.
  """
  config = _Config(type_safe=False)
  for name, field in fields.FIELDS.items():
    *sections, last = name.split(".")
    section = config
    for part in sections:
      if part not in section:
        section[part] = _Config(type_safe=False)
      section = section[part]
    if field.default is None:  # the command line needs its type
      section[last] = config_dict.placeholder(field.kind)
    else:
      section[last] = copy.deepcopy(field.default)
  return config.lock()


def flatten(config: _Config) -> dict[str, Any]:
  """Returns {"section.field": value}."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, _Config):
      flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
    else:
      flat[name] = value
  return flat


# How fields go together: (field, what it may be beside others, whether it is).
_COMBINATIONS: tuple[tuple[str, str, Callable[[_Config], bool]], ...] = (
  (
    "search.selection",
    "0, or 3 x search.selected / train.steps and more: a step for each "
    "candidate of every round",
    lambda c: (
      not c.search.selection
      or c.search.selection * c.train.steps >= 3 * c.search.selected
    ),
  ),
  (
    "network.depth",
    "one of 18",
    lambda c: c.network.family != "imagenet" or c.network.depth == 18,
  ),
  (
    "network.depth",
    "8, 14, 20, ... (6 n + 2)",
    lambda c: c.network.family == "imagenet" or c.network.depth != 18,
  ),
  (
    "network.base_widths",
    "a tuple of one positive integer a group of blocks: 3, of imagenet 4",
    lambda c: len(c.network.base_widths) == num_groups(c),
  ),
  (
    "data.image_size",
    "the size of the network's images, e.g. 224",
    lambda c: c.network.family != "imagenet" or c.data.image_size,
  ),
  (
    "search.budget_of",
    "'' with search.budget",
    lambda c: not (c.search.budget and c.search.budget_of),
  ),
  (
    "search.limits",
    "one of each kind",
    lambda c: len({k for k, _ in c.search.limits}) == len(c.search.limits),
  ),
  (
    "search.limits",
    "() with search.penalty",
    lambda c: not (c.search.penalty and c.search.limits),
  ),
  (
    "train.validate_every",
    "0 with train.use_validation: its images are trained on",
    lambda c: not (c.train.use_validation and c.train.validate_every),
  ),
  (
    "train.select",
    "'last' with train.validate_every = 0",
    lambda c: c.train.select == "last" or c.train.validate_every,
  ),
  (
    "hardware_aware.chips",
    "a number that with train.microbatches divides train.batch_size into parts "
    "of at least 2 images",
    lambda c: (
      not trains_on_chips(c)
      or is_divided(
        c.train.batch_size, c.train.microbatches * c.hardware_aware.chips
      )
    ),
  ),
  (
    "robustness.compensation",
    "'none' without 'fixed' in robustness.batch_norm, which it goes with alone",
    lambda c: (
      c.robustness.compensation == "none" or "fixed" in c.robustness.batch_norm
    ),
  ),
  (
    "robustness.chips",
    f"at least {statistics.FEWEST} with robustness.target_ci",
    lambda c: (
      not c.robustness.target_ci or c.robustness.chips >= statistics.FEWEST
    ),
  ),
  (
    "robustness.max_chips",
    "at least robustness.chips",
    lambda c: (
      not c.robustness.target_ci or c.robustness.max_chips >= c.robustness.chips
    ),
  ),
)
# Those of two numbers: (field, what it may be, the other field).
_PAIRS = (
  ("pretrain.warmup_steps", "at most", "pretrain.steps"),
  ("pretrain.faulty_widths", "at most", "pretrain.random_widths"),
  ("search.calibration_images", "a multiple of", "search.batch_size"),
  ("search.updates_per_call", "a divisor of", "search.updates"),
  ("train.microbatches", "a divisor of", "train.batch_size"),
  (
    "robustness.calibration_images",
    "a multiple of",
    "robustness.calibration_batch",
  ),
)
_RELATIONS = {
  "at most": lambda value, other: value <= other,
  "a multiple of": lambda value, other: value % other == 0,
  "a divisor of": lambda value, other: other % value == 0,
}


def is_divided(size: int, parts: int) -> bool:
  """Returns whether a batch can be divided into parts of 2 images or more."""
  return size % parts == 0 and size >= 2 * parts


def trains_on_chips(config: _Config) -> bool:
  """Returns whether a net of `train.nets` is trained on chips."""
  return any(net_names.parse(net).on_chips for net in config.train.nets)


def validate(config: _Config, is_trained: bool = False) -> None:
  """Checks every field and the combinations that need no data.

  Args:
    config: of a run.
    is_trained: its nets are another run's, so that the device may have effects
      that neither search nor training met.

  Raises:
    InputError: names the first bad field, what it got and what is allowed.
  """
  values = {name: _checked(config, name) for name in fields.FIELDS}
  for name in flatten(config):
    if name not in values:
      raise errors.InputError(f"config.{name}: no such field")
  for name, allowed, is_allowed in _COMBINATIONS:
    if not is_allowed(config):
      raise _error(name, values[name], allowed)
  for name, relation, other in _PAIRS:
    if not _RELATIONS[relation](values[name], values[other]):
      allowed = f"{relation} {other} = {values[other]}"
      raise _error(name, values[name], allowed)
  sections = ["robustness"]
  if not is_trained:
    _check_nets(config)
  hardware(config)
  if not is_trained:
    own_costs(config)
    if searches(config):
      width_space(config)
      sections.insert(0, "search")
    search_devices(config)
    if config.hardware_aware.scenarios:
      chip_devices(config)
    pretrain_devices(config)
    train_devices(config)
    selection_devices(config)
  design_devices(config)
  sweeps(config)
  _check_effects(config, sections)


def _checked(config, name):
  """The value of a field, checked by itself."""
  field, value = fields.FIELDS[name], config
  try:
    for part in name.split("."):
      value = value[part] if isinstance(value, _Config) else {}[part]
  except Exception as error:  # a reference may raise anything
    raise errors.InputError(
      f"config.{name}: missing, allowed is {field.allowed}; configurations "
      "start from hawis_jax.config.settings.default()"
    ) from error
  if not field.accepts(value):
    raise _error(name, value, field.allowed)
  return value


def _error(name, got, allowed):
  given = got if isinstance(got, tuple) else (got,)
  # Where all that is allowed is a list of names, not a sentence.
  names = re.search(r"\bones? of ((?:'?\w+'?, )*'?\w+'?)$", allowed)
  words = re.findall(r"\w+", names[1]) if names else []
  wrong = [x for x in given if isinstance(x, str) and x not in words]
  hint = errors.suggestion(wrong[0], words) if wrong and words else ""
  try:
    got = " ".join(repr(got).splitlines())
  except Exception:  # an integer of 5,000 digits, an object of the user's
    got = f"an unprintable {type(got).__name__}"
  return errors.InputError(
    f"config.{name}: got {got}, allowed is {allowed}{hint}"
  )


def _check_nets(config):
  """That the nets can be trained, one after another."""
  train, depth, names = config.train, config.network.depth, nets(config)
  vectors = net_names.vector_names(depth, shares(config))
  parsed = [net_names.parse(name) for name in names]
  pairs = zip(names, parsed, strict=True)
  wrong = [x for x, net in pairs if net.widths not in vectors]
  if wrong:
    known = ", ".join(vectors)
    allowed = (
      f"a tuple of some of {known}, {net_names.FRONT}, each also with _int8, "
      "_float, and at the end _chips"
    )
    ends = [
      kind + chips
      for kind in ("", "_int8", "_float")
      for chips in ("", "_chips")
    ]
    spelled = [x + end for x in (*vectors, net_names.FRONT) for end in ends]
    allowed += errors.suggestion(wrong[0], spelled)
    raise _error("train.nets", train.nets, allowed)
  for place, name in enumerate(names):
    float_name = net_names.float_of(name)
    is_int8 = parsed[place].kind == net_names.INT8
    quantized = is_int8 and train.int8 == "quantized"
    if quantized and float_name not in names[:place]:
      allowed = f"a tuple with {float_name!r} before {name!r}, to be quantised"
      raise _error("train.nets", train.nets, allowed)
  if train.loss == "teacher" and not os.path.isfile(train.teacher):
    kinds = [net.kind for net in parsed] + [net_names.BINARY]
    before = names[: kinds.index(net_names.BINARY)]
    floats = [
      name for name in before if net_names.parse(name).kind == net_names.FLOAT
    ]
    if train.teacher not in floats:
      allowed = "a file, or a float net before the binary ones of train.nets"
      raise _error("train.teacher", train.teacher, allowed)


def shares(config: _Config) -> list[float]:
  """Returns the budgets as shares of the main one, ascending."""
  return sorted({1.0, *config.search.front})


def nets(config: _Config) -> tuple[str, ...]:
  """Returns `train.nets`, with what "front" stands for."""
  return net_names.with_front(config.train.nets, shares(config))


def num_groups(config: _Config) -> int:
  """Returns the number of groups of blocks of the network."""
  return 4 if config.network.family == "imagenet" else 3


def searches(config: _Config) -> bool:
  """Returns whether the nets to be trained need the super-net or its search."""
  vectors = {net_names.parse(net).widths for net in config.train.nets}
  needed = any(map(net_names.is_searched, vectors))
  return needed or config.train.loss == "supernet"


def width_space(config: _Config) -> width_vectors.WidthSpace:
  """Returns the width choices of `config.space`, checked."""
  return width_vectors.width_space(
    config.space.choices,
    config.network.depth - 1,
    num_groups(config),
    "config.space.choices",
  )


def own_costs(config: _Config) -> np.ndarray | None:
  """Returns the table of a file `space.cost`, checked.

  None: it is one of our costs, or there is no search. See `cost.own_tables`.
  """
  name, field = config.space.cost, "config.space.cost"
  is_file = name.endswith((".csv", ".npz")) and os.path.isfile(name)
  if name not in fields.ADDITIVE and not is_file:
    allowed = f"one of {', '.join(fields.ADDITIVE)}, or a file .csv or .npz"
    raise _error("space.cost", name, allowed)
  if not is_file or not searches(config):
    return None
  space, place = width_space(config), f"{field}, {name}"
  if name.endswith(".csv"):
    return cost.own_tables_from_csv(storage.read_text(name), space, place)
  path = pathlib.Path(name)
  with array_files.read_errors(path), array_files.opened(path) as arrays:
    there = sorted(arrays)
    if not {"costs", "widths"} <= set(there):
      raise errors.InputError(
        f"{place}: got arrays {', '.join(there)}, needed are costs and widths"
      )
    costs, widths = arrays["costs"], arrays["widths"]
  if not np.array_equal(widths, space.table):
    raise errors.InputError(
      f"{place}: got widths that are not those of config.space.choices, needed "
      f"is the table {space.table.shape} of hx.width_space(choices, ...)"
    )
  return cost.own_tables(space, costs, f"{place}, costs")


def device(config: _Config) -> crossbar.Device:
  """Returns the device of `config.device` without random effects, checked."""
  changes = {k: v for k, v in config.device.items() if v is not None}
  del changes["preset"]
  base = crossbar.without_defects(_preset(config))
  return crossbar.with_fields(base, changes, "config.device")


def _preset(config):
  preset = config.device.preset
  if preset in crossbar.PRESETS:
    return crossbar.preset(preset)
  if os.path.isfile(preset):
    return crossbar.load_device(preset)
  allowed = f"a file, or one of {', '.join(crossbar.PRESETS)}"
  raise _error("device.preset", preset, allowed)


def own_effects(config: _Config) -> dict[str, float]:
  """Returns the severities of the random effects that the device has itself."""
  severities = {x: getattr(_preset(config), x) for x in crossbar.DEFECTS}
  return {k: v for k, v in severities.items() if crossbar.is_present(v)}


def own_device(config: _Config) -> crossbar.Device:
  """Returns the device of `config.device` with its random effects."""
  return dataclasses.replace(device(config), **own_effects(config))


def _check_effects(config, sections):
  """That no effect of the device is left out without a word.

  Of the default device it may be: its fault rates are those of the published
  test, whose scenarios say theirs.
  """
  preset, effects = config.device.preset, own_effects(config)
  if preset == fields.FIELDS["device.preset"].default:
    return
  for section in sections:
    named = {
      name
      for one in config[section].scenarios
      if scenarios.PRESET not in one  # whose effects are others
      for name in one
    }
    left = [x for x in effects if not named & {x, scenarios.DEVICE}]
    if left:
      raise errors.InputError(
        f"config.{section}.scenarios: got none with "
        f"{' and '.join(left)}, which the device {preset!r} has, needed is "
        "{'device': 1.0}, the device as it is, or one that names them: 0 is "
        "without"
      )


def hardware(config: _Config) -> cost.Hardware:
  """Returns what cost depends on beside widths, checked."""
  name = config.space.technology
  if name not in cost.TECHNOLOGIES and os.path.isfile(name):
    technology = cost.technology_from_json(storage.read_text(name), name)
  else:
    technology = cost.technology(name, "config.space.technology")
  return cost.hardware(device(config), technology, config.space.duplication)


def search_devices(config: _Config) -> list[crossbar.Device]:
  """Returns the devices of `search.scenarios`, checked; the last is ideal.

  The search scores without IR drop: cells of a super-net that a candidate does
  not have would load the wires of those that it has.
  """
  section = "search.scenarios"
  # Tiles that a candidate does not have must read as 0.
  left_out = (*crossbar.CONVERTER_ERRORS, *crossbar.WIRES)
  allowed = [f for f in crossbar.SCENARIO_FIELDS if f not in left_out]
  devices = _scenario_devices(config, section, allowed)
  for index, one in enumerate(devices):
    name = f"{section}[{index}]"
    if one.adc_bits and one.adc_range == "calibrated" and searches(config):
      others = (
        "full_scale or granular: the super-net has no widths to calibrate for"
      )
      raise _error(f"{name}, adc_range", one.adc_range, others)
    if one.adc_bits and any(one.adc_inl) and searches(config):
      raise _error(f"{name}, adc_inl", one.adc_inl, f"(0.0,): {_NOT_AT_0}")
    if one.adc_bits == 1 and searches(config):
      more = "0 or 2 to 16: signs of parts of a column don't add up"
      raise _error(f"{name}, adc_bits", 1, more)
  devices.append(crossbar.without_effects(device(config)))
  return _stackable(devices, section)


def _scenario_devices(config, section, allowed):
  """Devices of scenarios, without the wires of `config.device`."""
  base = dataclasses.replace(
    device(config), **dict.fromkeys(crossbar.WIRES, 0.0)
  )
  own, found = own_effects(config), _checked(config, section)
  # A device without effects is no chip to search or train on, beside others.
  is_left_out = not own and any(set(x) != {scenarios.DEVICE} for x in found)
  devices = []
  for index, scenario in enumerate(found):
    name = f"config.{section}[{index}]"
    scenarios.check_values(scenario, name)
    words = scenarios.DEVICE, scenarios.PRESET
    errors.check_fields(scenario, (*allowed, *words), name)
    of_scenario, effects = scenarios.of_preset(scenario, base, own, name)
    values = {k: v for k, v in scenario.items() if k != scenarios.PRESET}
    values = scenarios.with_own(values, effects, name)
    if not (is_left_out and set(scenario) == {scenarios.DEVICE}):
      one = crossbar.with_fields(of_scenario, values, name, allowed)
      crossbar.check_constants(scenario, [one], name)
      devices.append(one)
  return devices


def _stackable(devices, section):
  try:
    crossbar.check_stack(devices)
  except errors.InputError as error:
    raise errors.InputError(f"config.{section}: {error}") from error
  return devices


def chip_devices(config: _Config) -> list[crossbar.Device]:
  """Returns the devices of `hardware_aware.scenarios`, checked.

  Wires are those of the scenarios alone, not those of `config.device`: their
  exact fold takes far longer than a step.
  """
  section = "hardware_aware.scenarios"
  devices = _scenario_devices(config, section, crossbar.SCENARIO_FIELDS)
  if not devices:
    section, devices = "search.scenarios", search_devices(config)[:-1]
  most = config.hardware_aware.most_severity
  for index, one in enumerate(devices):
    name = f"config.{section}[{index}]"
    if crossbar.without_effects(one) == one:
      raise errors.InputError(
        f"{name}: got no effect, needed is one with a severity, to be trained "
        "on"
      )
    if one.adc_bits and one.adc_range == "calibrated":
      raise errors.InputError(
        f"{name}.adc_range: got 'calibrated', allowed in training on chips are "
        "'full_scale' and 'granular': what it is calibrated on changes"
      )
    if one.adc_bits == 1:
      raise errors.InputError(
        f"{name}.adc_bits: got 1, a sense amplifier, allowed in training on "
        "chips are 0 and 2 to 16: its threshold is of a net that is trained"
      )
    hardest = crossbar.scaled(one, most)
    crossbar.validate(
      hardest,
      f"config.hardware_aware.most_severity = {most:g}, {section}[{index}]",
    )
  return _stackable(devices, section)


def pretrain_devices(config: _Config) -> list[crossbar.Device]:
  """Returns the devices of `pretrain.faulty_widths`, checked."""
  if not config.pretrain.faulty_widths:
    return []
  return _supernet_chips(config, "pretrain.faulty_widths are trained")


def selection_devices(config: _Config) -> list[crossbar.Device]:
  """Returns the devices of `search.selection` and the design, checked."""
  section = config.search
  if not searches(config):
    return []
  if section.selection:
    return _supernet_chips(config, "search.selection trains")
  if section.batch_norm == "design":
    return _supernet_chips(config, "search.batch_norm is 'design'")
  return []


def _supernet_chips(config, where):
  devices = chip_devices(config)
  for index, one in enumerate(devices):
    if crossbar.is_wired(one):
      raise _error(
        f"hardware_aware.scenarios[{index}]",
        config.hardware_aware.scenarios[index],
        f"one without wires where {where}: cells of the super-net that a "
        "vector does not have would load them",
      )
    built = crossbar.CONVERTER_ERRORS
    if (one.adc_bits and any(one.adc_inl)) or any(
      crossbar.is_present(getattr(one, field)) for field in built
    ):
      raise _error(
        f"hardware_aware.scenarios[{index}]",
        config.hardware_aware.scenarios[index],
        f"one without {', '.join(built)} or adc_inl where {where}: {_NOT_AT_0}",
      )
  return devices


def train_devices(config: _Config) -> list[crossbar.Device]:
  """Returns the devices that nets of `train.nets` are trained on, checked."""
  if not trains_on_chips(config):
    return []
  devices = chip_devices(config)
  kinds = [net_names.parse(net) for net in config.train.nets]
  on_float = any(n.kind == net_names.FLOAT and n.on_chips for n in kinds)
  if on_float and any(map(crossbar.bit_effects, devices)):
    raise _error(
      "train.nets",
      config.train.nets,
      "no float net on chips where scenarios have converters or noise a read, "
      "or cells that are gated or not linear: they read integers",
    )
  return devices


def design_devices(config: _Config) -> list[crossbar.Device]:
  """Returns the devices that statistics of a design are of, checked."""
  is_asked = "design" in config.robustness.batch_norm
  return chip_devices(config) if is_asked else []


def sweeps(config: _Config) -> tuple[scenarios.Scenario, ...]:
  """Returns the scenarios of `config.robustness.scenarios`, checked."""
  base, own, parsed = device(config), own_effects(config), []
  for index, scenario in enumerate(_checked(config, "robustness.scenarios")):
    name = f"robustness.scenarios[{index}]"
    if not isinstance(scenario, dict):
      raise _error(name, scenario, "a dict of device parameters")
    parsed.append(scenarios.parse(scenario, base, f"config.{name}", own))
  keys = [scenario.key for scenario in parsed]
  if len(set(keys)) < len(keys):
    allowed = "scenarios of distinct names"
    raise _error("robustness.scenarios", ", ".join(keys), allowed)
  return tuple(parsed)
