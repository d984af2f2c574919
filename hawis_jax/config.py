"""The configuration: every field with its meaning, and the checks on it."""

from collections.abc import Mapping
import dataclasses
import difflib
import json
import math
import pathlib
from typing import Any

import ml_collections

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import files
from hawis_jax import widths

# Fields that may differ between a run and its resumption: they change how a
# result is computed, saved or shown, never the result.
FREE_FIELDS = (
  "log_every",
  "checkpoint_seconds",
  "data.data_dir",
  "data.read_threads",
  "robustness.chips_per_step",
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
  d.name = "digits"  # TFDS data set name; "digits" is embedded
  d.data_dir = ""  # where it is prepared; "" = $TFDS_DATA_DIR or TFDS's default
  d.validation_images = 256  # held out of `train` for pretraining and search
  d.levels = 32  # thermometer levels an input channel, divides 128
  d.augment = "none"  # "none" or "flip_crop" (flip, 4-pixel pad and crop)
  d.read_threads = 2  # Grain reader threads

  c.network = n = ml_collections.ConfigDict()
  n.depth = 20  # 6 n + 2
  n.base_widths = (16, 32, 64)  # 1x widths of the three stages [channels]

  c.space = s = ml_collections.ConfigDict()
  # Width choices [channels], ascending: one tuple a stage, or one a layer.
  s.choices = (
    tuple(range(16, 97, 8)),
    tuple(range(32, 193, 16)),
    tuple(range(64, 385, 32)),
  )
  s.cost = "arrays"  # what cost and budgets count: "arrays" or "macs"

  c.device = v = ml_collections.ConfigDict()
  v.g_on = 3.33e-4  # low-resistance state [S]
  v.g_off = 3.33e-7  # high-resistance state [S]
  v.tile_shape = (64, 64)  # cells of one array (rows, columns)

  c.pretrain = p = ml_collections.ConfigDict()
  p.steps = 2000  # optimiser steps, warm-up included
  p.warmup_steps = 500  # first steps, on the maximum net alone
  p.batch_size = 256  # images
  p.random_widths = 2  # random width vectors a step, beside maximum and minimum
  p.cost_bins = 16  # random vectors are drawn uniform over this many cost bands
  p.distill = True  # the maximum net's softmax teaches the other branches
  p.optimizer = _optimizer("adam", 1e-3, "cosine")

  c.search = r = ml_collections.ConfigDict()
  r.budget = 0  # hard upper limit of `space.cost`; 0: see the next field
  r.budget_uniform = 2.0  # budget 0 means: cost of base_widths times this
  r.budget_slack = 0.05  # proposals cost within [1 - slack, 1] x budget
  r.updates = 100  # policy updates
  r.proposals = 64  # width vectors proposed an update
  r.chips = 4  # chips a scenario and update, shared by all proposals
  # Scenario mix of the reward: device parameters by name; all weigh the same.
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
  r.hidden = 64  # GRU units
  r.learning_rate = 1e-2  # Adam
  r.epochs = 4  # PPO epochs an update
  r.clip = 0.2  # PPO ratio clip
  r.entropy = (0.05, 0.001)  # entropy bonus, first to last update (linear)
  r.finalists = 16  # best proposals of each method, scored again at the end
  r.finalist_chips = 16  # chips a scenario for that final score

  c.train = t = ml_collections.ConfigDict()
  t.nets = ("found", "baseline_1x", "uniform")
  t.steps = 4000
  t.batch_size = 128
  t.loss = "labels"  # "labels" or "supernet" (KL to the maximum super-net)
  t.optimizer = _optimizer("sgd", 0.1, "multistep")

  c.robustness = b = ml_collections.ConfigDict()
  b.chips = 64  # chips a level
  b.batch_size = 256  # images a forward pass
  # BN statistics: "fixed" of the ideal net, or "chip": recalibrated on each
  # chip. The search always scores with "fixed".
  b.batch_norm = "fixed"
  b.calibration_images = 256  # training images of "chip"'s recalibration
  b.chips_per_step = 0  # chips vmapped at once; 0 = best for the backend
  # Sweeps: one device parameter, its levels; everything else ideal.
  b.stuck_off = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)  # share of cells
  b.stuck_on = (0.0, 0.005, 0.01, 0.015, 0.02)  # share of cells
  b.variation = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1)  # lognormal sigma (gamma)
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


def _integers(least, most=2**31 - 1):
  text = f"an integer from {least} to {most}"
  return text, lambda x: type(x) is int and least <= x <= most


def _number(low, high, above=False):
  text = f"a number {'above' if above else 'from'} {low:g}"
  text += f" to {high:g}" if math.isfinite(high) else ", finite"

  def check(x):
    if type(x) not in (int, float) or not math.isfinite(x):
      return False
    return (x > low if above else x >= low) and x <= high

  return text, check


def _one_of(*values):
  return f"one of {', '.join(map(repr, values))}", lambda x: x in values


def _some_of(*values):
  def check(x):
    distinct = len(set(x)) == len(x) if isinstance(x, tuple) else False
    return distinct and len(x) > 0 and all(item in values for item in x)

  return f"a tuple of some of {', '.join(map(repr, values))}", check


def _numbers(low, high, length=None):
  text = f"a tuple of {length or 'one or more distinct'} numbers "
  text += f"from {low:g} to {high:g}"

  def check(x):
    if not isinstance(x, tuple) or (length and len(x) != length) or not x:
      return False
    item = _number(low, high)[1]
    return all(map(item, x)) and (length or len(set(x)) == len(x))

  return text, check


_OPTIMIZER_RULES = {
  "name": _one_of("sgd", "adam"),
  "learning_rate": _number(0, 100, above=True),
  "schedule": _one_of("cosine", "multistep", "constant"),
  "momentum": _number(0, 1),
  "weight_decay": _number(0, 1),
  "milestones": (
    "a tuple of ascending shares of the steps in (0, 1)",
    lambda x: all(0 < share < 1 for share in x) and list(x) == sorted(set(x)),
  ),
}

# field: (what is allowed, check)
_RULES = {
  "seed": _integers(0),
  "log_every": _integers(1),
  "checkpoint_seconds": _number(0, math.inf),
  "data.validation_images": _integers(1),
  "data.levels": _one_of(1, 2, 4, 8, 16, 32, 64, 128),
  "data.augment": _one_of("none", "flip_crop"),
  "data.read_threads": _integers(0, 1024),
  "network.depth": (
    "8, 14, 20, ... (6 n + 2)",
    lambda x: x >= 8 and x % 6 == 2,
  ),
  "network.base_widths": (
    "three positive integers",
    lambda x: len(x) == 3 and all(type(w) is int and w > 0 for w in x),
  ),
  "space.cost": _one_of("arrays", "macs"),
  "pretrain.steps": _integers(1),
  "pretrain.warmup_steps": _integers(0),
  "pretrain.batch_size": _integers(2),
  "pretrain.random_widths": _integers(0, 1024),
  "pretrain.cost_bins": _integers(1, 1024),
  "search.budget": _integers(0, 2**53),
  "search.budget_uniform": _number(0, math.inf, above=True),
  "search.budget_slack": _number(0, 1),
  "search.updates": _integers(1),
  "search.proposals": _integers(2, 2**20),
  "search.chips": _integers(1, 2**20),
  "search.cvar_weight": _number(0, 1),
  "search.signal": _one_of("accuracy", "cross_entropy"),
  "search.images": _integers(1),
  "search.batch_size": _integers(2),
  "search.vectors_per_step": _integers(1),
  "search.calibration_images": _integers(2),
  "search.hidden": _integers(1, 2**16),
  "search.learning_rate": _number(0, 100, above=True),
  "search.epochs": _integers(1, 1024),
  "search.clip": _number(0, 1, above=True),
  "search.entropy": _numbers(0, math.inf, length=2),
  "search.finalists": _integers(1, 2**16),
  "search.finalist_chips": _integers(2, 2**20),
  "train.nets": _some_of("found", "baseline_1x", "uniform"),
  "train.steps": _integers(1),
  "train.batch_size": _integers(2),
  "train.loss": _one_of("labels", "supernet"),
  "robustness.chips": _integers(2, 2**24),
  "robustness.batch_size": _integers(2),
  "robustness.batch_norm": _one_of("fixed", "chip"),
  "robustness.calibration_images": _integers(2),
  "robustness.chips_per_step": _integers(0, 2**24),
  "robustness.stuck_off": _numbers(0, 1),
  "robustness.stuck_on": _numbers(0, 1),
  "robustness.variation": _numbers(0, 10),
}


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every field's range and the combinations that need no data.

  Raises:
    InputError: names the first bad field, what it got and what is allowed.
  """
  rules = dict(_RULES)
  for section in ("pretrain", "train"):
    for field, rule in _OPTIMIZER_RULES.items():
      rules[f"{section}.optimizer.{field}"] = rule
  values = flatten(config)
  for field, (allowed, check) in rules.items():
    if not check(values[field]):
      raise _error(field, values[field], allowed)
  if config.pretrain.warmup_steps > config.pretrain.steps:
    raise _error(
      "pretrain.warmup_steps",
      config.pretrain.warmup_steps,
      f"at most pretrain.steps = {config.pretrain.steps}",
    )
  for section in ("search", "robustness"):
    images, batch = (
      config[section][name] for name in ("calibration_images", "batch_size")
    )
    if section == "robustness" and config.robustness.batch_norm == "fixed":
      continue
    if images % batch:
      raise _error(
        f"{section}.calibration_images",
        images,
        f"a multiple of {section}.batch_size = {batch}",
      )
  width_space(config)
  base = device(config)
  scenarios = config.search.scenarios
  if not scenarios or not all(isinstance(s, Mapping) for s in scenarios):
    allowed = "a tuple of one or more dicts of device parameters"
    raise _error("search.scenarios", scenarios, allowed)
  for index, scenario in enumerate(config.search.scenarios):
    scenario_device(base, scenario, f"config.search.scenarios[{index}]")


def _error(field, got, allowed):
  return errors.InputError(f"config.{field}: got {got!r}, allowed is {allowed}")


def width_space(config: ml_collections.ConfigDict) -> widths.WidthSpace:
  """The width choices of `config.space`, checked."""
  return widths.width_space(
    config.space.choices, config.network.depth - 1, "config.space.choices"
  )


def device(config: ml_collections.ConfigDict) -> crossbar.Device:
  """The defect-free device of `config.device`, checked."""
  return crossbar.validate(
    crossbar.Device(
      config.device.g_on,
      config.device.g_off,
      tile_shape=tuple(config.device.tile_shape),
    ),
    "config.device",
  )


def scenario_device(
  base: crossbar.Device, scenario: Mapping[str, float], name: str
) -> crossbar.Device:
  """`base` with a scenario's parameters, checked; `name` is for errors."""
  fields = crossbar.DEFECTS
  for field in scenario:
    if field not in fields:
      close = difflib.get_close_matches(field, fields, 1)
      hint = f"; did you mean {close[0]!r}?" if close else ""
      raise errors.InputError(
        f"{name}: got {field!r}, allowed are {', '.join(fields)}{hint}"
      )
  return crossbar.validate(dataclasses.replace(base, **scenario), name)


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
  now = json.loads(json.dumps(flatten(config)))
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
