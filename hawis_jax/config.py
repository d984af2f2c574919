"""The configuration: every field with its meaning, and the checks on it."""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import ml_collections
from ml_collections import config_dict

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import files
from hawis_jax import intervals
from hawis_jax import nets
from hawis_jax import rules
from hawis_jax import scenarios as scenarios_lib
from hawis_jax import widths

# Fields that may differ between a run and its resumption: they change how a
# result is computed, saved or shown, never the result.
FREE_FIELDS = (
  "log_every",
  "checkpoint_seconds",
  "data.data_dir",
  "data.read_threads",
  "robustness.batch_size",
  "robustness.chips_per_step",
  "robustness.memory_gb",
)

# Stages with artefacts of their own in <workdir>/<stage>, in order.
STAGES = ("pretrain", "search", "train", "robustness")


def default() -> ml_collections.ConfigDict:
  """Returns every field with its default, locked against new fields."""
  c = ml_collections.ConfigDict()
  c.seed = 0  # every random draw of a run derives from it
  c.log_every = 20  # optimiser steps between two lines of metrics
  c.checkpoint_seconds = 30.0  # at least this long between checkpoints [s]

  c.data = d = ml_collections.ConfigDict()
  # A TFDS data set name ("digits" is embedded), or "image_folder": data_dir
  # then has train/<class>/<image> and test/ or val/<class>/<image>.
  d.name = "digits"
  d.data_dir = ""  # where it is prepared; "" = $TFDS_DATA_DIR or TFDS's default
  d.validation_images = 256  # held out of `train` for pretraining and search
  d.levels = 32  # thermometer levels an input channel, divides 128
  # "none"; "flip_crop" (flip, 4-pixel pad and crop); "imagenet" (random resized
  # crop of 8 to 100 % of the area, flip, lighting).
  d.augment = "none"
  d.lighting = 0.1  # "imagenet": AlexNet's colour noise, its sigma; 0: none
  d.image_size = 0  # height = width to crop to [pixels]; 0: as stored
  d.resize = 256  # short side before the centre crop to image_size [pixels]
  d.read_threads = 2  # Grain reader threads

  c.network = n = ml_collections.ConfigDict()
  n.family = "cifar"  # "cifar" (3 stages) or "imagenet" (ResNet-18, 4 stages)
  n.depth = 20  # 6 n + 2; 18 of the ImageNet family
  n.base_widths = (16, 32, 64)  # 1x widths of the stages [channels]
  n.stem = "7x7"  # of the ImageNet family: "7x7" or "3x3"
  # Parts that the published network has not. Every product stays 1-bit.
  n.channel_scale = False  # a weight scale an output channel, not a layer
  n.rprelu = False  # PReLU with learnt shifts before activation binarisers
  n.learned_thresholds = False  # thermometer thresholds are learnt
  n.compute = "float32"  # of products: or "bfloat16" (sums stay exact integers)

  c.space = s = ml_collections.ConfigDict()
  # Width choices [channels], ascending: one tuple a stage, or one a layer.
  s.choices = (
    tuple(range(16, 97, 8)),
    tuple(range(32, 193, 16)),
    tuple(range(64, 385, 32)),
  )
  # What budgets count: "arrays", "macs"; "energy" [J], "latency" [s] of one
  # image, layer after layer; "area" [m^2].
  s.cost = "arrays"
  # Component numbers of energy, latency and area: a preset
  # (cost.TECHNOLOGIES), or a JSON file {"field": value} of a cost.Technology.
  s.technology = "neurosim_22nm"
  s.duplication = 1  # copies of every layer's arrays, at work side by side

  # The device, whose random effects are absent: scenarios say where they are.
  c.device = v = ml_collections.ConfigDict()
  # A preset (crossbar.PRESETS), or a JSON file {"field": value} of a
  # crossbar.Device, which may start from a "preset".
  v.preset = "hawis_published"
  # What differs from that; None: nothing.
  v.g_on = config_dict.placeholder(float)  # low-resistance state [S]
  v.g_off = config_dict.placeholder(float)  # high-resistance state [S]
  v.tile_shape = config_dict.placeholder(tuple)  # (rows, columns) of an array
  v.read_voltage = config_dict.placeholder(float)  # of an input bit 1 [V]
  v.wire_resistance = config_dict.placeholder(float)  # from cell to cell [ohm]
  v.load_resistance = config_dict.placeholder(float)  # of driver, sense [ohm]
  v.adc_bits = config_dict.placeholder(int)  # of a column's converter; 0: ideal
  v.adc_range = config_dict.placeholder(str)  # "full_scale" or "calibrated"
  v.cell_bits = config_dict.placeholder(int)  # of 8-bit weights; 0: analog cell

  c.pretrain = p = ml_collections.ConfigDict()
  p.steps = 2000  # optimiser steps, warm-up included
  p.warmup_steps = 500  # first steps, on the maximum net alone
  p.batch_size = 256  # images
  p.random_widths = 2  # random width vectors a step, beside maximum and minimum
  # Of those so many are on a chip, a new one each step: with the defects of one
  # of search.scenarios, its levels times a factor drawn uniform in [0, 1).
  p.faulty_widths = 0
  p.cost_bins = 16  # random vectors are drawn uniform over this many cost bands
  p.distill = True  # the maximum net's softmax teaches the other branches
  p.optimizer = _optimizer("adam", 1e-3, "cosine")

  c.search = r = ml_collections.ConfigDict()
  r.budget = 0.0  # hard upper limit of `space.cost`; 0: see the next fields
  r.budget_of = ""  # width vector that costs it, e.g. "resnet20_hawis_a"
  r.budget_uniform = 2.0  # neither: what base_widths times this cost
  r.budget_slack = 0.05  # proposals cost within [1 - slack, 1] x budget
  # Further budgets, as shares of that one: one search serves all of them.
  r.front = ()
  # Hard upper limits of other costs, for all budgets: (("latency", 1e-4), ...),
  # or of what a named width vector has; beside the above "interval" [s] between
  # two images, layers working at the same time.
  r.limits = ()
  # Instead of a hard budget: what exceeding it by its own size takes off a
  # score, in the unit of `signal`; 0: hard.
  r.penalty = 0.0
  # The first finds the net; the others are compared with it at equal numbers of
  # evaluations, on the same chips: see hawis_jax/methods.
  r.methods = ("predictor", "random")
  r.updates = 100
  r.proposals = 64  # width vectors an update, method and budget
  r.updates_per_call = 1  # updates of one compiled call, a divisor of updates
  r.references = 4  # vectors a budget scored in every update, for comparison
  r.chips = 4  # chips a scenario and update, shared by all proposals
  # Scenario mix of the reward: fields of the device but for its wires; all
  # weigh the same. The search scores without IR drop.
  r.scenarios = (
    dict(stuck_on=0.0175, stuck_off=0.0904),
    dict(variation=0.5),
  )
  r.cvar_weight = 0.5  # b: reward = (1 - b) mean + b CVaR_25% over chips
  r.signal = "accuracy"  # learning signal: "accuracy" or "cross_entropy"
  r.images = 256  # validation images a score uses
  r.batch_size = 128  # images a forward pass, of each vector
  r.vectors_per_step = 16  # width vectors a forward pass, at most
  r.calibration_images = 256  # training images of the BN recalibration
  r.hidden = 64  # GRU units of the policy ("ppo", "reinforce")
  r.learning_rate = 1e-2  # Adam, of the policy
  r.epochs = 4  # PPO epochs an update
  r.clip = 0.2  # PPO ratio clip
  r.entropy = (0.05, 0.001)  # entropy bonus, first to last update (linear)
  # Of "evolution", for each budget; the first `population` scores are random.
  r.population = 64
  r.tournament = 16  # of "evolution"
  r.finalists = 16  # best of each method and budget, scored again at the end
  r.finalist_chips = 16  # chips a scenario for that final score

  c.train = t = ml_collections.ConfigDict()
  # Nets: "found", "uniform", "baseline_1x" or a published vector, e.g.
  # "resnet20_hawis_a"; with "_int8" or "_float" its 8-bit or float counterpart.
  # Without "found", "uniform" and loss "supernet" there is nothing to search.
  t.nets = ("found", "baseline_1x", "uniform")
  t.steps = 4000
  t.batch_size = 128
  t.microbatches = 1  # parts of a batch, one at a time, gradients summed
  # Loss of the binary nets: "labels"; "supernet" or "teacher": KL to the
  # softmax of the maximum super-net, or of `teacher`. The rest learn labels.
  t.loss = "labels"
  # A float net earlier in `nets`, or a file of PyTorch weights of a standard
  # float ResNet (.npz, .safetensors, .pth), of this depth and the same family.
  t.teacher = ""
  t.teacher_depth = 50
  t.label_smoothing = 0.0  # share of a label that goes to all classes
  t.weight_penalty = 0.0  # times the sum of (|w| - 0.01)^2 over binary weights
  t.ema = 0.0  # decay a step of averaged weights, used in their stead; 0: off
  t.use_validation = False  # train on the held-out images too
  t.validate_every = 0  # steps between measurements on `validation`; 0: never
  t.optimizer = _optimizer("sgd", 0.1, "multistep")
  t.counterparts = _optimizer("sgd", 0.1, "cosine")  # their optimiser
  t.counterparts.weight_decay = 1e-4
  t.int8 = "trained"  # or "quantized": from the float net, earlier in `nets`

  c.robustness = b = ml_collections.ConfigDict()
  b.chips = 64  # chips a level; with target_ci the first ones
  # Half-width of the mean's 95 % interval [share of images] down to which chips
  # are added, `max_chips` at most; 0: none are.
  b.target_ci = 0.0
  b.max_chips = 1024
  b.images = 0  # of the test images, the first; 0: all
  # BN statistics: "fixed" of the ideal net, or "chip": recalibrated on each
  # chip. The search always scores with "fixed".
  b.batch_norm = "fixed"
  # Training images of "chip"'s recalibration and of 8-bit ranges, in batches
  # whose moments are pooled; calibrated converters see the first batch.
  b.calibration_images = 256
  b.calibration_batch = 64
  # How it is computed; results are the same to the bit.
  b.batch_size = 1024  # images that are on the devices at a time, about
  b.chips_per_step = 0  # chips of a device at a time; 0: as many as is fast
  b.memory_gb = 0.0  # of a device's memory that may be used; 0: all
  # Sweeps: fields of the device (see crossbar.Device), levels in a tuple; each
  # may have a "name", and more than one field (see scenarios.py).
  b.scenarios = (
    dict(stuck_off=(0.0, 0.02, 0.04, 0.06, 0.08, 0.10)),  # share of cells
    dict(stuck_on=(0.0, 0.005, 0.01, 0.015, 0.02)),  # share of cells
    dict(variation=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1)),  # lognormal sigma
  )
  c.lock()
  return c


def _optimizer(name, learning_rate, schedule):
  o = ml_collections.ConfigDict()
  o.name = name  # "sgd" (momentum) or "adam"
  o.learning_rate = learning_rate
  o.schedule = schedule  # "cosine", "multistep" or "constant"
  o.milestones = (0.5, 0.65, 0.8)  # multistep: x0.1 at these shares of steps
  o.momentum = 0.9  # sgd
  o.weight_decay = 0.0  # L2, added to the gradient of what a step used
  return o


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every field's range and the combinations that need no data.

  Raises:
    InputError: names the first bad field, what it got and what is allowed.
  """
  values = flatten(config)
  for field, rule in rules.FIELDS.items():
    _check(field, values[field], rule)
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


def settle(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Writes <workdir>/config.json, or checks that it can go on with this one.

  A difference is allowed where it can't matter: in `FREE_FIELDS`, or in the
  section of a stage that neither has begun nor has a later one.

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
  now = json.loads(json.dumps(flatten(config) | resolved))
  before = files.read_json(path) if path.exists() else now
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
  files.write_json(path, now)


def _matters(field, workdir):
  if field in FREE_FIELDS:
    return False
  section = field.split(".")[0]
  first = STAGES.index(section) if section in STAGES else 0
  folders = (workdir / stage for stage in STAGES[first:])
  return any(path.is_file() for f in folders for path in f.rglob("*"))
