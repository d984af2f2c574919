"""What every field of the configuration may be."""

from collections.abc import Callable
import math
from typing import Any

from hawis_jax import cost
from hawis_jax import methods
from hawis_jax import nets
from hawis_jax import resnet

Rule = tuple[str, Callable[[Any], bool]]  # (what is allowed, check)


def _integers(least, most=2**31 - 1):
  text = f"an integer from {least} to {most}"
  return text, lambda x: type(x) is int and least <= x <= most


def _number(low, high, above=False, below=False):
  text = f"a number {'above' if above else 'from'} {low:g}"
  if math.isfinite(high):
    text += f" to {'below ' if below else ''}{high:g}"
  else:
    text += ", finite"

  def check(x):
    if type(x) not in (int, float) or not math.isfinite(x):
      return False
    return (x > low if above else x >= low) and (
      x < high if below else x <= high
    )

  return text, check


def _one_of(*values):
  return f"one of {', '.join(map(repr, values))}", lambda x: x in values


def _numbers(low, high, length=None):
  text = f"a tuple of {length or 'one or more distinct'} numbers "
  text += f"from {low:g} to {high:g}"

  def check(x):
    if not isinstance(x, tuple) or (length and len(x) != length) or not x:
      return False
    item = _number(low, high)[1]
    return all(map(item, x)) and (length or len(set(x)) == len(x))

  return text, check


def _is_limit(item):
  pair = isinstance(item, tuple | list) and len(item) == 2
  if not pair or item[0] not in cost.KINDS:
    return False
  return isinstance(item[1], str) or _number(0, math.inf, above=True)[1](
    item[1]
  )


_FLAG = ("True or False", lambda x: type(x) is bool)

_OPTIMIZER = {
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

FIELDS = {
  "seed": _integers(0),
  "log_every": _integers(1),
  "checkpoint_seconds": _number(0, math.inf),
  "data.validation_images": _integers(1),
  "data.levels": _one_of(1, 2, 4, 8, 16, 32, 64, 128),
  "data.augment": _one_of("none", "flip_crop", "imagenet"),
  "data.lighting": _number(0, 10),
  "data.image_size": _integers(0, 2**14),
  "data.resize": _integers(1, 2**14),
  "data.damaged": _one_of("stop", "skip"),
  "data.read_threads": _integers(0, 1024),
  "network.family": _one_of("cifar", "imagenet"),
  "network.stem": _one_of(*resnet.STEMS),
  "network.channel_scale": _FLAG,
  "network.rprelu": _FLAG,
  "network.learned_thresholds": _FLAG,
  "network.compute": _one_of("float32", "bfloat16"),
  # The interval of a pipeline is that of its slowest layer: no sum.
  "space.cost": _one_of(
    *(k for k, kind in cost.KINDS.items() if kind.additive)
  ),
  "space.duplication": _integers(1, 2**16),
  "pretrain.steps": _integers(1),
  "pretrain.warmup_steps": _integers(0),
  "pretrain.batch_size": _integers(2),
  "pretrain.random_widths": _integers(0, 1024),
  "pretrain.faulty_widths": _integers(0, 1024),
  "pretrain.cost_bins": _integers(1, 1024),
  "search.budget": _number(0, math.inf),
  "search.budget_uniform": _number(0, math.inf, above=True),
  "search.budget_slack": _number(0, 1),
  "search.front": (
    "a tuple of distinct positive numbers, shares of the budget",
    lambda x: (
      isinstance(x, tuple)
      and all(_number(0, 1e6, above=True)[1](share) for share in x)
      and len(set(x)) == len(x)
    ),
  ),
  "search.limits": (
    f"a tuple of pairs of one of {', '.join(cost.KINDS)} and a positive "
    "number or a width vector's name",
    lambda x: isinstance(x, tuple) and all(map(_is_limit, x)),
  ),
  "search.penalty": _number(0, math.inf),
  "search.methods": (
    f"a tuple of distinct ones of {', '.join(methods.NAMES)}",
    lambda x: (
      isinstance(x, tuple)
      and len(set(x)) == len(x) > 0
      and all(name in methods.NAMES for name in x)
    ),
  ),
  "search.updates": _integers(1),
  "search.updates_per_call": _integers(1),
  "search.references": _integers(1, 2**10),
  "search.population": _integers(2, 2**20),
  "search.tournament": _integers(1, 2**20),
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
  "train.steps": _integers(1),
  "train.batch_size": _integers(2),
  "train.microbatches": _integers(1, 2**16),
  "train.loss": _one_of("labels", "supernet", "teacher"),
  "train.teacher_depth": _integers(8, 2**10),
  "train.label_smoothing": _number(0, 1, below=True),
  "train.weight_penalty": _number(0, math.inf),
  "train.ema": _number(0, 1, below=True),
  "train.use_validation": _FLAG,
  "train.validate_every": _integers(0),
  "train.select": _one_of("last", "best"),
  "train.int8": _one_of("trained", "quantized"),
  "robustness.chips": _integers(2, 2**24),
  "robustness.target_ci": _number(0, 1),
  "robustness.max_chips": _integers(2, 2**24),
  "robustness.memory_gb": _number(0, 2**20),
  "robustness.images": _integers(0),
  "robustness.batch_size": _integers(2),
  "robustness.batch_norm": _one_of("fixed", "chip"),
  "robustness.calibration_images": _integers(2),
  "robustness.calibration_batch": _integers(2),
  "robustness.chips_per_step": _integers(0, 2**24),
}
for _section in ("pretrain", "train", "train.counterparts"):
  for _name, _rule in _OPTIMIZER.items():
    _owner = _section if _section.count(".") else f"{_section}.optimizer"
    FIELDS[f"{_owner}.{_name}"] = _rule


def depth(family: str) -> Rule:
  """Rule of `network.depth`."""
  if family == "imagenet":
    return _one_of(18)
  check = _integers(8)[1]
  return "8, 14, 20, ... (6 n + 2)", lambda x: check(x) and x % 6 == 2


def base_widths(stages: int) -> Rule:
  """Rule of `network.base_widths`: one positive integer a stage."""
  return (
    f"a tuple of {stages} positive integers",
    lambda x: len(x) == stages and all(type(w) is int and w > 0 for w in x),
  )


def train_nets(network_depth: int) -> Rule:
  """Rule of `train.nets`: see the module `nets`."""
  vectors = nets.vector_names(network_depth)
  text = (
    f"a tuple of some of {', '.join(vectors)}, each also with _int8, _float"
  )

  def check(x):
    distinct = isinstance(x, tuple) and len(set(x)) == len(x) > 0
    return distinct and all(nets.parse(name).widths in vectors for name in x)

  return text, check
