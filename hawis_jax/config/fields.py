"""Every field of the configuration: its default, its meaning, its check.

`describe` makes the command's help and docs/configuration.md of this table. A
check looks at the type of a value before it looks inside, for a configuration
file may give a field anything.
"""

from collections.abc import Callable
import math
import sys
from typing import Any, NamedTuple

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax.arithmetic import integer
from hawis_jax.networks import resnet
from hawis_jax.search import registry


class Field(NamedTuple):
  """A field of the configuration.

  Attributes:
    default: None: another field says it.
    meaning: with the unit.
    allowed: what a value may be, in words.
    accepts: whether a value is that, of whatever type it is.
    kind: type of what the command line gives.
    is_free: it may differ between a run and its resumption: it changes how a
      result is computed, saved or shown, never the result.
  """

  default: Any
  meaning: str
  allowed: str
  accepts: Callable[[Any], bool]
  kind: type
  is_free: bool = False


def _is_integer(x, least=1, most=2**31 - 1):
  return type(x) is int and least <= x <= most


def _is_number(x, low=0, high=math.inf, above=False, below=False):
  if type(x) not in (int, float) or not low <= x <= high:
    return False
  if x > sys.float_info.max:  # as an integer may be
    return False
  return not (above and x == low) and not (below and x == high)


def _integer(default, meaning, least=1, most=2**31 - 1):
  allowed = f"an integer from {least} to {most}"
  accepts = lambda x: _is_integer(x, least, most)  # noqa: E731
  return Field(default, meaning, allowed, accepts, int)


def _number(default, meaning, low=0, high=math.inf, above=False, below=False):
  allowed = f"a number {'above' if above else 'from'} {low:g}"
  if math.isfinite(high):
    allowed += f" to {'below ' if below else ''}{high:g}"
  else:
    allowed += ", finite"
  accepts = lambda x: _is_number(x, low, high, above, below)  # noqa: E731
  return Field(default, meaning, allowed, accepts, float)


def _choice(values, meaning, default=None):
  """One of some values; the first is the default, if nothing else is."""
  kind = type(values[0])
  default = values[0] if default is None else default
  allowed = f"one of {', '.join(map(repr, values))}"
  accepts = lambda x: type(x) is kind and x in values  # noqa: E731
  return Field(default, meaning, allowed, accepts, kind)


def _flag(meaning, default=False):
  accepts = lambda x: type(x) is bool  # noqa: E731
  return Field(default, meaning, "True or False", accepts, bool)


def _text(default, meaning):
  return Field(default, meaning, "a text without NUL", _is_text, str)


def _is_text(x):
  return isinstance(x, str) and "\0" not in x  # which no path may hold


def _tuple(default, meaning, items, accepts):
  """A tuple; `accepts` is asked about nothing else."""
  is_one = lambda x: isinstance(x, tuple) and accepts(x)  # noqa: E731
  return Field(default, meaning, f"a tuple of {items}", is_one, tuple)


def _or_none(field):
  """A field of the device that its preset says by default."""
  return field._replace(
    default=None,
    allowed=f"None or {field.allowed}",
    accepts=lambda x: x is None or field.accepts(x),
  )


def _free(field):
  return field._replace(is_free=True)


def _is_distinct(x):
  return len(set(x)) == len(x)


def _is_layer(x):
  """Whether it is width choices of a layer."""
  is_list = isinstance(x, tuple | list)
  return is_list and all(_is_integer(width, 1, 2**16) for width in x)


def _is_limit(x):
  """Whether it is a kind of cost and the most of it."""
  if not isinstance(x, tuple | list) or len(x) != 2 or not _is_text(x[0]):
    return False
  is_amount = _is_text(x[1]) or _is_number(x[1], 0, 1e30, above=True)
  return x[0] in cost.KINDS and is_amount


def _optimizer(name, learning_rate, schedule, weight_decay):
  names, schedules = ("sgd", "adam"), ("cosine", "multistep", "constant")
  return dict(
    name=_choice(names, "sgd has momentum", name),
    learning_rate=_number(learning_rate, "at first", 0, 100, above=True),
    schedule=_choice(schedules, "how the learning rate falls", schedule),
    milestones=_tuple(
      (0.5, 0.65, 0.8),
      "multistep: x0.1 at these shares of the steps",
      "ascending shares of the steps in (0, 1)",
      lambda x: (
        all(_is_number(share, 0, 1, True, True) for share in x)
        and list(x) == sorted(set(x))
      ),
    ),
    momentum=_number(0.9, "of sgd", 0, 1),
    weight_decay=_number(
      weight_decay, "L2, added to the gradient of what a step used", 0, 1
    ),
  )


# Stages of a run, in order; each has a section of the configuration, but the
# last.
STAGES = ("pretrain", "search", "train", "robustness", "report")
STATISTICS = ("fixed", "design", "chip")  # of robustness.batch_norm
ADDITIVE = tuple(name for name, kind in cost.KINDS.items() if kind.additive)
_ONE_OR_MORE = "one or more dicts of device parameters"
_RUN = dict(
  seed=_integer(0, "every random draw of a run derives from it", 0),
  log_every=_free(_integer(20, "steps between two lines of metrics")),
  checkpoint_seconds=_free(
    _number(30.0, "at least this long between checkpoints [s]")
  ),
)
_DATA = dict(
  name=_text(
    "digits",
    'a TFDS data set (digits is embedded); "image_folder": data_dir has '
    'train/<class>/<image> and test/ or val/<class>/<image>; or "npz": '
    "data_dir is a file of arrays x_train, y_train, x_test, y_test",
  ),
  data_dir=Field(
    "",
    "where it is prepared; empty: $TFDS_DATA_DIR, or TFDS's default",
    "a folder of this machine's file system, such as a mounted share; of npz "
    "a file; not None",
    # What a command line gives is text: of None a folder would be made.
    lambda x: _is_text(x) and "://" not in x and x != "None",
    str,
    is_free=True,
  ),
  validation_images=_integer(
    256, "held out of train for pretraining and search"
  ),
  levels=_choice(
    (1, 2, 4, 8, 16, 32, 64, 128), "thermometer levels an input channel", 32
  ),
  augment=_choice(
    ("none", "flip_crop", "imagenet"),
    "flip_crop: flip, pad by 1/8 of the height, crop; imagenet: random resized "
    "crop of 8 to 100 % of the area, flip, lighting",
  ),
  lighting=_number(
    0.1, "augment imagenet: sigma of AlexNet's colour noise; 0: none", 0, 10
  ),
  image_size=_integer(
    0, "height = width to crop to [pixels]; 0: as stored", 0, 2**14
  ),
  resize=_integer(
    256, "short side before the centre crop to image_size [pixels]", 1, 2**14
  ),
  # Of the other splits none is left out: figures would be of other images.
  damaged=_free(
    _choice(
      ("stop", "skip"),
      "a damaged image of train: stop with its name, or skip it for the next "
      "one; at one of the other splits a run always stops",
    )
  ),
  read_threads=_free(_integer(2, "Grain reader threads", 0, 1024)),
)
_NETWORK = dict(
  family=_choice(
    ("cifar", "imagenet"), "3 groups of blocks, or 4 (imagenet: ResNet-18)"
  ),
  depth=Field(
    20,
    "convolutions and head, shortcuts not counted",
    "8, 14, 20, ... (6 n + 2), of the family imagenet 18",
    lambda x: _is_integer(x, 8) and (x % 6 == 2 or x == 18),
    int,
  ),
  base_widths=_tuple(
    (16, 32, 64),
    "1x widths of the groups of blocks [channels]",
    "integers from 1 to 65536, one a group of blocks",
    _is_layer,
  ),
  stem=_choice(resnet.STEMS, "of the family imagenet"),
  # Parts that the published network has not. Every product stays 1-bit.
  channel_scale=_flag("a weight scale an output channel, not a layer"),
  rprelu=_flag("PReLU with learnt shifts before activation binarisers"),
  learned_thresholds=_flag("thermometer thresholds are learnt"),
  compute=_choice(
    ("float32", "bfloat16"), "type of products; sums stay exact integers"
  ),
)
_SPACE = dict(
  choices=_tuple(
    (
      tuple(range(16, 97, 8)),
      tuple(range(32, 193, 16)),
      tuple(range(64, 385, 32)),
    ),
    "width choices [channels]: one tuple a group of blocks, or one a layer",
    "tuples of ascending integers from 1 to 65536",
    lambda x: all(map(_is_layer, x)),
  ),
  # The interval of a pipeline is that of its slowest layer: no sum.
  cost=_text(
    "arrays",
    f"what budgets count, one of {', '.join(ADDITIVE)}: energy [J] and latency "
    "[s] are of one image, layer after layer; area [m^2]. Or a file of costs "
    "of your own, .csv or .npz (docs/own_data_and_devices.md)",
  ),
  technology=_text(
    "neurosim_22nm",
    f"numbers of the circuits: a preset ({', '.join(cost.TECHNOLOGIES)}), or a "
    'JSON file {"field": value} of a cost.Technology',
  ),
  duplication=_integer(
    1, "copies of every layer's arrays, at work side by side", 1, 2**16
  ),
)
_DEVICE = dict(
  preset=_text(
    "hawis_published",
    f"one of {', '.join(crossbar.PRESETS)}, or a JSON file "
    '{"field": value} of a crossbar.Device, which may start from a "preset"; '
    "scenarios with device have its random effects, others their own; "
    "the other fields say what differs, None: nothing",
  ),
  g_on=_or_none(
    _number(0, "conductance of the low-resistance state [S]", 1e-12, 1)
  ),
  g_off=_or_none(
    _number(0, "conductance of the high-resistance state [S]", 1e-12, 1)
  ),
  tile_shape=_or_none(
    _tuple(
      None,
      "(rows, columns) of an array",
      "2 integers from 1 to 65536",
      lambda x: len(x) == 2 and _is_layer(x),
    )
  ),
  read_voltage=_or_none(_number(0, "of an input bit 1 [V]", 1e-6, 1e3)),
  wire_resistance=_or_none(_number(0, "from cell to cell [ohm]", 0, 1e9)),
  load_resistance=_or_none(_number(0, "of driver, sense [ohm]", 0, 1e9)),
  adc_bits=_or_none(
    _integer(
      0, "of a column's converter; 0: ideal, 1: a sense amplifier", 0, 16
    )
  ),
  adc_range=_or_none(
    _choice(
      ("full_scale", "calibrated", "granular"),
      "of it: all rows', that of data, or an LSB of one unit of current",
    )
  ),
  cell_bits=_or_none(_choice((0, 1, 2), "of 8-bit weights; 0: analog cell")),
)
_PRETRAIN = dict(
  steps=_integer(2000, "optimiser steps, warm-up included"),
  warmup_steps=_integer(500, "first steps, on the maximum net alone", 0),
  batch_size=_integer(256, "images", 2),
  random_widths=_integer(
    2, "random width vectors a step, beside maximum and minimum", 0, 1024
  ),
  faulty_widths=_integer(
    0,
    "so many of those are on a chip, a new one each step, see hardware_aware",
    0,
    1024,
  ),
  cost_bins=_integer(
    16, "random vectors are drawn uniform over this many cost bands", 1, 1024
  ),
  distill=_flag("the maximum net's softmax teaches the other branches", True),
  optimizer=_optimizer("adam", 1e-3, "cosine", 0.0),
)
_SEARCH = dict(
  budget=_number(0.0, "hard upper limit of space.cost; 0: see the next two"),
  budget_of=_text("", "width vector that costs it, e.g. resnet20_hawis_a"),
  budget_uniform=_number(
    2.0, "neither: what base_widths times this cost", 0, 1e6, above=True
  ),
  budget_slack=_number(
    0.05, "proposals cost within [1 - slack, 1] x budget", 0, 1
  ),
  front=_tuple(
    (),
    "further budgets, as shares of that one: one search serves all of them",
    "distinct positive numbers, shares of the budget",
    lambda x: (
      all(_is_number(share, 0, 1e6, above=True) for share in x)
      and _is_distinct(x)
    ),
  ),
  limits=_tuple(
    (),
    'hard upper limits of other costs, for all budgets: (("latency", 1e-4), '
    "...), or of what a named vector has; beside those of space.cost "
    '"interval" [s] between two images, layers working at the same time',
    f"pairs of one of {', '.join(cost.KINDS)} and a positive number or a "
    "width vector's name",
    lambda x: all(map(_is_limit, x)),
  ),
  penalty=_number(
    0.0,
    "in place of a hard budget: what exceeding it by its own size takes off a "
    "score, in the unit of the reward; 0: hard",
  ),
  methods=_tuple(
    ("policy", "random"),
    "the first finds the net; the others are compared with it at equal numbers "
    "of evaluations, on the same chips",
    f"distinct ones of {', '.join(registry.NAMES)}",
    lambda x: (
      len(x) > 0
      and all(_is_text(name) and name in registry.NAMES for name in x)
      and _is_distinct(x)
    ),
  ),
  updates=_integer(100, "of the search: proposals, their scores, learning"),
  proposals=_integer(
    64, "width vectors an update, method and budget", 2, 2**20
  ),
  updates_per_call=_integer(1, "in one compiled call, a divisor of updates"),
  references=_integer(
    4, "vectors a budget scored in every update, for comparison", 1, 2**10
  ),
  chips=_integer(
    4, "chips a scenario and update, shared by all proposals", 1, 2**20
  ),
  # Cells of a super-net that a vector does not have would load its wires.
  scenarios=_tuple(
    (dict(device=1.0), dict(variation=0.5)),
    "mix of the reward, all of the same weight: fields of crossbar.Device but "
    "for its wires, as the search scores without IR drop; device: a share of "
    "the severities of the device's own effects, left out where it has none; "
    "preset: another memory, of these names, in the device's tiles",
    _ONE_OR_MORE,
    lambda x: len(x) > 0 and all(isinstance(one, dict) for one in x),
  ),
  cvar_weight=_number(
    0.5, "b: reward = (1 - b) mean + b CVaR_25% over chips", 0, 1
  ),
  reward=_choice(("accuracy", "cross_entropy"), "what is learnt from"),
  images=_integer(256, "validation images a score uses"),
  batch_size=_integer(128, "images a forward pass, of each vector", 2),
  vectors_per_step=_integer(
    16, "width vectors a forward pass, at most: as many of them as fit a device"
  ),
  calibration_images=_integer(
    256, "training images that batch norms are recalibrated on", 2
  ),
  batch_norm=_choice(
    STATISTICS,
    "statistics that a vector is scored with: fixed of the ideal net; design: "
    "the mean of chips as of hardware_aware; or recalibrated on each chip",
  ),
  design_chips=_integer(8, "that design averages over", 1, 2**16),
  hidden=_integer(64, "GRU units of policy, ppo and reinforce", 1, 2**16),
  learning_rate=_number(1e-2, "Adam, of the policy", 0, 100, above=True),
  epochs=_integer(4, "PPO epochs an update", 1, 1024),
  clip=_number(0.2, "PPO ratio clip", 0, 1, above=True),
  entropy=_tuple(
    (0.05, 0.001),
    "entropy bonus, first to last update (linear)",
    "2 numbers from 0 to 1e+06",
    lambda x: len(x) == 2 and all(_is_number(bonus, 0, 1e6) for bonus in x),
  ),
  imagined=_integer(
    8, "PPO updates of policy on its reward model, an update", 1, 2**16
  ),
  least_correlation=_number(
    0.1,
    "of ranks that policy's reward model expects with those scored, for it to "
    "be used",
    -1,
    1,
  ),
  population=_integer(
    64, "evolution, for each budget; so many first are random", 2, 2**20
  ),
  tournament=_integer(16, "evolution: that a parent wins", 1, 2**20),
  candidates=_integer(
    16, "best of each method and budget, scored again at the end", 1, 2**16
  ),
  candidate_chips=_integer(
    16, "chips a scenario for that final score", 2, 2**20
  ),
  selection=_number(
    0.0,
    "price of selection by training on chips: steps of all candidates, as a "
    "share of train.steps; 0: the found net is that of the best score",
    0,
    100,
  ),
  selected=_integer(
    8, "candidates it starts with, uniform among them", 2, 2**16
  ),
)
_HARDWARE_AWARE = dict(
  scenarios=_tuple(
    (),
    "one is drawn for each chip: fields of crossbar.Device, severities, device "
    "and preset too; empty: search.scenarios",
    "dicts of device parameters",
    lambda x: all(isinstance(one, dict) for one in x),
  ),
  most_severity=_number(
    1.0,
    "a chip has a share of its scenario's severities, uniform from 0 to this",
    0,
    10,
    above=True,
  ),
  chips=_integer(
    1, "new ones a step, between which a batch of train is divided", 1, 1024
  ),
  ramp=_tuple(
    (0.0, 0.0),
    "shares of all steps: none has defects up to the first, and most_severity "
    "is reached in a line at the second",
    "2 ascending shares of the steps in [0, 1]",
    lambda x: (
      len(x) == 2 and all(_is_number(s, 0, 1) for s in x) and x[0] <= x[1]
    ),
  ),
  worst=_number(
    1.0,
    "share of a step's chips, those of the largest loss, that train learns "
    "from (CVaR)",
    0,
    1,
    above=True,
  ),
)
_TRAIN = dict(
  nets=_tuple(
    ("found", "baseline_1x", "uniform"),
    "found, uniform (of another budget found_0.7, uniform_0.7; front: found of "
    "each), baseline_1x or a published vector, e.g. resnet20_hawis_a; "
    "with _int8 or _float its 8-bit or float reference net, with _chips at the "
    "end trained on chips; without found, uniform and the loss supernet there "
    "is nothing to search",
    "distinct names of nets",
    lambda x: len(x) > 0 and all(map(_is_text, x)) and _is_distinct(x),
  ),
  steps=_integer(4000, "optimiser steps"),
  batch_size=_integer(128, "images", 2),
  microbatches=_integer(
    1, "parts of a batch, one at a time, gradients summed", 1, 2**16
  ),
  loss=_choice(
    ("labels", "margin", "supernet", "teacher"),
    "of the binary nets; labels: cross-entropy; margin: mean of max(0, "
    "train.margin - y logit), y = 1 or -1; supernet, teacher: KL to the "
    "softmax of the maximum super-net, or of teacher; the other nets learn "
    "labels",
  ),
  margin=_number(8.0, "of the loss margin", 0, 1e6, above=True),
  teacher=_text(
    "",
    "a float net earlier in nets, or a file of PyTorch weights of a standard "
    "float ResNet of the same family (.npz, .safetensors, .pth)",
  ),
  teacher_depth=_integer(50, "of the ResNet of that file", 8, 2**10),
  label_smoothing=_number(
    0.0, "share of a label that goes to all classes", 0, 1, below=True
  ),
  weight_penalty=_number(
    0.0, "times the sum of (|w| - 0.01)^2 over binary weights"
  ),
  ema=_number(
    0.0, "averaged weights' decay a step; 0: off, else used", 0, 1, below=True
  ),
  use_validation=_flag("train on the held-out images too"),
  validate_every=_integer(
    0, "steps between measurements on validation; 0: never", 0
  ),
  select=_choice(
    ("last", "best"), "the net of which step is used; best on validation"
  ),
  optimizer=_optimizer("sgd", 0.1, "multistep", 0.0),
  reference_optimizer=_optimizer("sgd", 0.1, "cosine", 1e-4),
  int8=_choice(
    ("trained", "quantized"), "or from the float net, earlier in nets"
  ),
  int8_scales=_choice(
    integer.SCALES,
    "of 8-bit nets: a weight scale an output channel, activations clipped at "
    "the 99.99th percentile; tensor: a layer's largest weight and activation, "
    "as published",
  ),
)
_ROBUSTNESS = dict(
  chips=_integer(64, "a severity; with target_ci the first ones", 2, 2**24),
  target_ci=_number(
    0.0,
    "half-width of the mean's 95 % interval over chips [share of images] down "
    "to which chips are added, to 128 at least; 0: none are",
    0,
    1,
  ),
  max_chips=_integer(1024, "chips with target_ci, at most", 2, 2**24),
  failed_below=_free(
    _number(
      0.5,
      "share of the way from chance to the net's clean accuracy below which a "
      "chip counts as failed in the report",
      0,
      1,
    )
  ),
  images=_integer(0, "of the test images, the first; 0: all", 0),
  batch_norm=_tuple(
    ("fixed", "chip"),
    "statistics, chips are measured with each: fixed of the ideal net, as in "
    "the search; design: the mean of chips as of hardware_aware; chip: "
    "recalibrated on each chip",
    "distinct ones of 'fixed', 'design', 'chip'",
    lambda x: (
      len(x) > 0
      and all(_is_text(one) and one in STATISTICS for one in x)
      and _is_distinct(x)
    ),
  ),
  compensation=_choice(
    ("none", "global"),
    "global: with the statistics fixed, and no others, a layer's sums times "
    "one factor, measured on each chip with known inputs",
  ),
  float_nets=_flag(
    "float nets of train.nets are measured on chips too, a weight in a pair of "
    "analog cells; not in scenarios of converters or noise a read"
  ),
  design_chips=_integer(32, "that design averages over", 1, 2**16),
  calibration_images=_integer(
    256, "training images of chip's and design's, and of 8-bit ranges", 2
  ),
  calibration_batch=_integer(
    64, "their batch; moments are pooled, converters see the first batch", 2
  ),
  batch_size=_free(
    _integer(1024, "images on an accelerator at a time, about", 2)
  ),
  chips_per_step=_free(
    _integer(0, "chips on one at a time; 0: as many as is fast", 0, 2**24)
  ),
  memory_gb=_free(
    _number(0.0, "of its memory that may be used [GB]; 0: all", 0, 2**20)
  ),
  # `config.sweeps` says which item is none.
  scenarios=_tuple(
    (
      dict(stuck_off=(0.0, 0.02, 0.04, 0.06, 0.08, 0.10)),  # share of cells
      dict(stuck_on=(0.0, 0.005, 0.01, 0.015, 0.02)),  # share of cells
      dict(variation=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1)),  # lognormal sigma
      dict(device=1.0),  # with its own effects
    ),
    "fields of crossbar.Device, severities in a tuple; device: a share of the "
    "severities of the device's own effects, 1: as it is; each may have a "
    "name, a preset whose memory takes the device's place, a fault_map, "
    "layers, placing, and more than one field (docs/own_data_and_devices.md)",
    _ONE_OR_MORE,
    lambda x: len(x) > 0,
  ),
)
SECTIONS = {
  "": ("The run", _RUN),
  "data": ("Where images come from", _DATA),
  "network": ("The family and its optional parts", _NETWORK),
  "space": ("Width choices, and what they cost", _SPACE),
  "device": ("The device; its effects are in scenarios", _DEVICE),
  "pretrain": ("The super-net", _PRETRAIN),
  "search": ("What is searched, how, and by which reward", _SEARCH),
  "hardware_aware": ("Training on chips", _HARDWARE_AWARE),
  "train": ("Which nets are trained, and how", _TRAIN),
  "robustness": ("What nets meet on chips, and how", _ROBUSTNESS),
}


def _flat(table, prefix):
  for name, entry in table.items():
    if isinstance(entry, Field):
      yield prefix + name, entry
    else:
      yield from _flat(entry, f"{prefix}{name}.")


FIELDS = {
  name: field
  for section, (_, table) in SECTIONS.items()
  for name, field in _flat(table, section and f"{section}.")
}
