"""The configuration: its checks, what follows from it, what a run keeps of it.

Every field, with its meaning and unit, is in `defaults`.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import ml_collections

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import defaults
from hawis_jax import errors
from hawis_jax import files
from hawis_jax import intervals
from hawis_jax import nets
from hawis_jax import rules
from hawis_jax import scenarios as scenarios_lib
from hawis_jax import widths

default = defaults.default

# Fields that may differ between a run and its resumption: they change how a
# result is computed, saved or shown, never the result.
FREE_FIELDS = (
  "log_every",
  "checkpoint_seconds",
  "data.damaged",
  "data.data_dir",
  "data.read_threads",
  "robustness.batch_size",
  "robustness.chips_per_step",
  "robustness.memory_gb",
)

# Stages with artefacts of their own in <workdir>/<stage>, in order.
STAGES = ("pretrain", "search", "train", "robustness")


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every field's range and the combinations that need no data.

  Raises:
    InputError: names the first bad field, what it got and what is allowed.
  """
  values = flatten(config)
  for field, rule in rules.FIELDS.items():
    _check(field, values[field], rule)
  files.check_local(config.data.data_dir, "config.data.data_dir")
  network = config.network
  _check("network.depth", network.depth, rules.depth(network.family))
  stages = num_stages(config)
  base = tuple(network.base_widths)
  _check("network.base_widths", base, rules.base_widths(stages))
  _check("train.nets", config.train.nets, rules.train_nets(network.depth))
  if config.pretrain.warmup_steps > config.pretrain.steps:
    raise _error(
      "pretrain.warmup_steps",
      config.pretrain.warmup_steps,
      f"at most pretrain.steps = {config.pretrain.steps}",
    )
  random, faulty = config.pretrain.random_widths, config.pretrain.faulty_widths
  if faulty > random:
    allowed = f"at most pretrain.random_widths = {random}"
    raise _error("pretrain.faulty_widths", faulty, allowed)
  images, batch = config.search.calibration_images, config.search.batch_size
  if images % batch:
    raise _error(
      "search.calibration_images",
      images,
      f"a multiple of search.batch_size = {batch}",
    )
  robustness = config.robustness
  images, batch = robustness.calibration_images, robustness.calibration_batch
  if images % batch:
    raise _error(
      "robustness.calibration_images",
      images,
      f"a multiple of robustness.calibration_batch = {batch}",
    )
  chips = robustness.chips
  if robustness.target_ci and chips < intervals.FEWEST:
    allowed = f"at least {intervals.FEWEST} with robustness.target_ci"
    raise _error("robustness.chips", chips, allowed)
  if config.robustness.target_ci and config.robustness.max_chips < chips:
    allowed = f"at least robustness.chips = {chips}"
    raise _error("robustness.max_chips", config.robustness.max_chips, allowed)
  _check_training(config)
  hardware(config)
  _check_search(config.search)
  if searches(config):
    width_space(config)
  search_devices(config)
  pretrain_devices(config)
  sweeps(config)


def _check(field, got, rule):
  allowed, is_allowed = rule
  if not is_allowed(got):
    raise _error(field, got, allowed)


def _check_search(search):
  """Combinations within the section `search`."""
  if search.updates % search.updates_per_call:
    allowed = f"a divisor of search.updates = {search.updates}"
    raise _error("search.updates_per_call", search.updates_per_call, allowed)
  if search.budget and search.budget_of:
    raise _error("search.budget_of", search.budget_of, "'' with search.budget")
  kinds = [kind for kind, _ in search.limits]
  if len(set(kinds)) < len(kinds):
    raise _error("search.limits", search.limits, "one of each kind")
  if search.penalty and search.limits:
    raise _error("search.limits", search.limits, "() with search.penalty")


def _check_training(config):
  """Combinations within the section `train`, and of it with the data."""
  train = config.train
  if train.batch_size % train.microbatches:
    allowed = f"a divisor of train.batch_size = {train.batch_size}"
    raise _error("train.microbatches", train.microbatches, allowed)
  if train.use_validation and train.validate_every:
    allowed = "0 with train.use_validation: its images are trained on"
    raise _error("train.validate_every", train.validate_every, allowed)
  if train.select == "best" and not train.validate_every:
    allowed = "'last' with train.validate_every = 0"
    raise _error("train.select", train.select, allowed)
  for place, name in enumerate(train.nets):
    net = nets.parse(name)
    source = f"{net.widths}_float"
    if net.kind == nets.INT8 and train.int8 == "quantized":
      if source not in train.nets[:place]:
        allowed = f"a tuple with {source!r} before {name!r}, to be quantised"
        raise _error("train.nets", train.nets, allowed)
  if train.loss == "teacher":
    _check_teacher(train)
  if config.network.family == "imagenet":
    if not config.data.image_size:
      allowed = "the size of the network's images, e.g. 224"
      raise _error("data.image_size", 0, allowed)


def _check_teacher(train):
  """The teacher is trained before its students, or a file that is there."""
  binary = [nets.parse(net).kind == nets.BINARY for net in train.nets]
  first = binary.index(True) if any(binary) else len(binary)
  floats = [n for n in train.nets[:first] if nets.parse(n).kind == nets.FLOAT]
  if train.teacher not in floats and not pathlib.Path(train.teacher).is_file():
    allowed = "a file, or a float net before the binary ones of train.nets"
    raise _error("train.teacher", train.teacher, allowed)


def _error(field, got, allowed):
  return errors.InputError(f"config.{field}: got {got!r}, allowed is {allowed}")


def num_stages(config: ml_collections.ConfigDict) -> int:
  """Stages of the network."""
  return 4 if config.network.family == "imagenet" else 3


def searches(config: ml_collections.ConfigDict) -> bool:
  """Whether the nets to be trained need the super-net or its search."""
  vectors = {nets.parse(net).widths for net in config.train.nets}
  needed = not vectors.isdisjoint(nets.SEARCHED)
  return needed or config.train.loss == "supernet"


def width_space(config: ml_collections.ConfigDict) -> widths.WidthSpace:
  """The width choices of `config.space`, checked."""
  return widths.width_space(
    config.space.choices,
    config.network.depth - 1,
    num_stages(config),
    "config.space.choices",
  )


def device(config: ml_collections.ConfigDict) -> crossbar.Device:
  """The device of `config.device` without random effects, checked."""
  changes = config.device.to_dict()
  preset = changes.pop("preset")
  if preset in crossbar.PRESETS:
    base = crossbar.preset(preset)
  elif os.path.isfile(preset):
    base = crossbar.from_json(preset)
  else:
    allowed = f"a file, or one of {', '.join(crossbar.PRESETS)}"
    raise _error("device.preset", preset, allowed)
  changes = {k: v for k, v in changes.items() if v is not None}
  base = crossbar.without_defects(base)
  return crossbar.with_fields(base, changes, "config.device")


def hardware(config: ml_collections.ConfigDict) -> cost.Hardware:
  """What the nets' cost depends on beside their widths, checked."""
  name = config.space.technology
  if name not in cost.TECHNOLOGIES and os.path.isfile(name):
    technology = cost.technology_from_json(name)
  else:
    technology = cost.technology(name, "config.space.technology")
  return cost.hardware(device(config), technology, config.space.duplication)


def search_devices(config: ml_collections.ConfigDict) -> list[crossbar.Device]:
  """The devices of `config.search.scenarios`, checked; the last is ideal.

  The search scores without IR drop: cells of a super-net that a candidate does
  not have would load the wires of those that it has.
  """
  base, scenarios = device(config), config.search.scenarios
  base = dataclasses.replace(base, wire_resistance=0.0, load_resistance=0.0)
  if not scenarios or not all(isinstance(s, Mapping) for s in scenarios):
    allowed = "a tuple of one or more dicts of device parameters"
    raise _error("search.scenarios", scenarios, allowed)
  devices = [
    crossbar.with_fields(
      base,
      scenario,
      f"config.search.scenarios[{index}]",
      [f for f in crossbar.SCENARIO_FIELDS if "_resistance" not in f],
    )
    for index, scenario in enumerate(scenarios)
  ]
  for index, one in enumerate(devices):
    if one.adc_bits and one.adc_range == "calibrated" and searches(config):
      field = f"search.scenarios[{index}], adc_range"
      allowed = "full_scale: the super-net has no widths to calibrate for"
      raise _error(field, one.adc_range, allowed)
    if one.adc_bits == 1 and searches(config):
      allowed = "0 or 2 to 16: signs of parts of a column don't add up"
      raise _error(f"search.scenarios[{index}], adc_bits", 1, allowed)
  devices.append(crossbar.without_effects(base))
  try:
    crossbar.stack(devices)
  except errors.InputError as error:
    raise errors.InputError(f"config.search.scenarios: {error}") from error
  return devices


def pretrain_devices(
  config: ml_collections.ConfigDict,
) -> list[crossbar.Device]:
  """The devices that `pretrain.faulty_widths` are trained on, checked.

  Those of `search.scenarios` that have defects of cells or lines, with ideal
  read-out: converters pass no gradient, and noise a read is no weight.
  """
  if not config.pretrain.faulty_widths:
    return []
  ideal_readout = dict(adc_bits=0, read_noise=0.0, telegraph_noise=0.0)
  devices = [
    dataclasses.replace(device, **ideal_readout)
    for device in search_devices(config)[:-1]
  ]
  devices = [d for d in devices if crossbar.without_defects(d) != d]
  if not devices:
    allowed = "0: no scenario of search.scenarios has defects of cells or lines"
    got = config.pretrain.faulty_widths
    raise _error("pretrain.faulty_widths", got, allowed)
  return devices


def sweeps(
  config: ml_collections.ConfigDict,
) -> tuple[scenarios_lib.Scenario, ...]:
  """The scenarios of `config.robustness.scenarios`, checked."""
  base, scenarios = device(config), config.robustness.scenarios
  if not isinstance(scenarios, tuple | list) or not scenarios:
    allowed = "a tuple of one or more dicts of device parameters"
    raise _error("robustness.scenarios", scenarios, allowed)
  parsed = tuple(
    scenarios_lib.parse(s, base, f"config.robustness.scenarios[{index}]")
    for index, s in enumerate(scenarios)
  )
  keys = [scenario.key for scenario in parsed]
  if len(set(keys)) < len(keys):
    allowed = "scenarios of distinct names"
    raise _error("robustness.scenarios", ", ".join(keys), allowed)
  return parsed


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns {"section.field": value}."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
    else:
      flat[name] = value
  return flat


def settle(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Mapping[str, Any] | None = None,
) -> None:
  """Writes <workdir>/config.json, or checks that it can go on with this one.

  A difference is allowed where it can't matter: in `FREE_FIELDS`, or in the
  section of a stage that neither has begun nor has a later one.

  Args:
    config: of the run.
    workdir: of the run.
    data: what `Splits.facts` says, for `data.data_dir` may change but not what
      is there; None: not known.

  Raises:
    InputError: lists the differences; or the folder can't be written.
  """
  path = workdir / "config.json"
  # What may change under the same name: a preset, a file of a device or chip.
  maps = {level.fault_map for s in sweeps(config) for level in s.levels} - {""}
  resolved = {
    "device.resolved": dataclasses.asdict(device(config)),
    "space.technology.resolved": dataclasses.asdict(
      hardware(config).technology
    ),
    "pretrain.devices": [
      dataclasses.asdict(device) for device in pretrain_devices(config)
    ],
    "robustness.fault_maps": {m: files.digest(m) for m in sorted(maps)},
  }
  if data is not None:
    resolved["data.resolved"] = dict(data)
  now = json.loads(json.dumps(flatten(config) | resolved))
  before = files.read_record(path) if path.exists() else now
  changed = [
    f"config.{field} was {before.get(field)!r}, is {now.get(field)!r}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field) and _matters(field, workdir)
  ]
  if changed:
    raise errors.InputError(
      f"{workdir} holds a run with another configuration: {'; '.join(changed)}."
      " Take another --workdir, or the old values"
    )
  files.write_record(path, now)


def _matters(field, workdir):
  if field in FREE_FIELDS:
    return False
  section = field.split(".")[0]
  first = STAGES.index(section) if section in STAGES else 0
  folders = (workdir / stage for stage in STAGES[first:])
  return any(files.contents(folder) for folder in folders)
