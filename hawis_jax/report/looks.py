"""How the report names and draws nets, search methods and defects.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; a
net also keeps its marker in all figures.
"""

from collections.abc import Iterable
import dataclasses
import itertools
import re

from hawis_jax import nets as nets_lib


@dataclasses.dataclass(frozen=True)
class Look:
  """How a net or a search method is named and drawn."""

  name: str
  color: str
  marker: str


@dataclasses.dataclass(frozen=True)
class Axis:
  """How the levels of a scenario are named and drawn.

  Attributes:
    title: what happens to the cells.
    label: of the axis, with its unit.
    scale: a level times this is drawn.
    short: format of a scaled level in running text.
  """

  title: str
  label: str
  scale: float
  short: str


# (colour, marker) by place. Their yellow is too pale on white: brown instead.
_PALETTE = (
  ("#D55E00", "o"),
  ("#0072B2", "s"),
  ("#000000", "^"),
  ("#CC79A7", "v"),
  ("#E69F00", "P"),
  ("#56B4E9", "X"),
  ("#009E73", "D"),
  ("#7F5539", "*"),
)
# The place of a binary net in the palette, where no net before it has it.
_PLACES = {
  "found": 0,
  "uniform": 1,
  "baseline_1x": 2,
  "hawis_a": 0,
  "4x": 1,
  "1x": 2,
  "hawis_b": 3,
}
_NAMES = {
  "baseline_1x": "1x baseline",
  "hawis_a": "HAWIS-A",
  "hawis_b": "HAWIS-B",
}
_KINDS = {nets_lib.INT8: "8-bit", nets_lib.FLOAT: "float"}
_PRESET = re.compile(r"resnet(\d+)_(hawis_[ab]|\d+x)")

# Names of `cost.COMPONENTS`.
COMPONENTS = {
  "array": "arrays",
  "drivers": "drivers",
  "converters": "converters",
  "sample_hold": "sample and hold",
  "partial_sums": "partial sums",
  "buffer": "buffers",
  "interconnect": "interconnect",
  "digital": "digital",
}
_METHOD_NAMES = {
  "ppo": "policy (PPO)",
  "reinforce": "policy (REINFORCE)",
  "predictor": "predictor",
  "evolution": "evolution",
  "local": "local search",
  "random": "random search",
  "per_stage": "a width a stage",
}
AXES = {
  "stuck_off": Axis(
    "Cells stuck off (high resistance)",
    "cells stuck at $G_{off}$ [%]",
    100,
    "{:g} % stuck off",
  ),
  "stuck_on": Axis(
    "Cells stuck on (low resistance)",
    "cells stuck at $G_{on}$ [%]",
    100,
    "{:g} % stuck on",
  ),
  "variation": Axis(
    "Variation between cells",
    r"$\gamma$, std of ln $G$",
    1,
    "variation γ = {:g}",
  ),
  "dead_rows": Axis(
    "Dead word lines", "word lines without current [%]", 100, "{:g} % dead rows"
  ),
  "dead_columns": Axis(
    "Dead bit lines",
    "bit lines without current [%]",
    100,
    "{:g} % dead columns",
  ),
  "gaussian_variation": Axis(
    "Gaussian variation between cells",
    "std of $G$ [% of $G$]",
    100,
    "variation of {:g} % of G",
  ),
  "write_error": Axis(
    "Programming error",
    "times the measured one",
    1,
    "{:g} x the measured write error",
  ),
  "drift_time": Axis(
    "Drift", "time since programming [s]", 1, "{:,.0f} s of drift"
  ),
  "read_noise": Axis(
    "Thermal and shot noise", "times the physical one", 1, "{:g} x read noise"
  ),
  "telegraph_noise": Axis(
    "Random telegraph noise",
    "times the measured step",
    1,
    "{:g} x telegraph noise",
  ),
  "legacy_noise": Axis(
    "Noise of the published test",
    "times the published one",
    1,
    "{:g} x the published noise",
  ),
  "wire_resistance": Axis(
    "IR drop", r"wire resistance a cell [$\Omega$]", 1, "wires of {:g} Ω a cell"
  ),
  "load_resistance": Axis(
    "IR drop", r"load resistance [$\Omega$]", 1, "loads of {:g} Ω"
  ),
  "fault_map": Axis("Measured faults", "", 1, "the measured faults"),
  "adc_bits": Axis("Converters", "bits (0: ideal)", 1, "{:g}-bit converters"),
}


def net_name(net: str) -> str:
  """The shown name of a net: "found", "HAWIS-A (ResNet-20)", "8-bit, 1x".

  Args:
    net: as in `config.train.nets`; one not known keeps its name.
  """
  vector, kind = nets_lib.parse(net)
  preset = _PRESET.fullmatch(vector)
  name = _without_depth(vector)
  name = _NAMES.get(name, name)
  if kind != nets_lib.BINARY:
    return f"{_KINDS[kind]}, {name}"
  return f"{name} (ResNet-{preset[1]})" if preset else name


def net_looks(nets: Iterable[str]) -> dict[str, Look]:
  """How to draw some nets together: {net: look}, distinct up to 8 nets."""
  nets = list(nets)
  places = {}
  for net in nets:
    place = _PLACES.get(_without_depth(net))
    if place is not None and place not in places.values():
      places[net] = place
  spare = [p for p in range(len(_PALETTE)) if p not in places.values()]
  others = [net for net in nets if net not in places]
  places.update(zip(others, itertools.cycle(spare), strict=False))
  return {net: Look(net_name(net), *_PALETTE[places[net]]) for net in nets}


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
  """How to draw search methods, the one of the found net first, and uniform.

  The first has the colour of the found net, uniform scaling its net's.
  """
  others = itertools.cycle((6, 3, 4, 5, 7, 2))
  places = {name: next(others) for name in list(methods)[1:]}
  places = {next(iter(methods)): 0, **places, "uniform": 1}
  return {
    name: Look(_METHOD_NAMES.get(name, name), *_PALETTE[place])
    for name, place in places.items()
  }


def content_looks(content: dict) -> dict[str, Look]:
  """How to draw the nets of report.json, and its vectors that aren't nets'."""
  names = [*content["nets"], *content["vectors"]]
  nets_alone = net_looks(content["nets"])
  return {**net_looks(dict.fromkeys(names)), **nets_alone}


def _without_depth(net):
  """The preset `resnet20_hawis_a` without its depth; other names stay."""
  preset = _PRESET.fullmatch(net)
  return preset[2] if preset else net


def axis(scenario: str) -> Axis:
  """How to draw a scenario; those not known show their level as it is.

  Args:
    scenario: "<effect>", or "<name>: <effect>" (see `scenarios.Scenario`).
  """
  name, _, effect = scenario.rpartition(": ")
  found = AXES.get(effect) or Axis(
    effect, f"level of {effect}", 1, effect + " = {:g}"
  )
  if not name:
    return found
  braces = name.replace("{", "{{").replace("}", "}}")
  return dataclasses.replace(
    found,
    title=name[0].upper() + name[1:],
    short=f"{braces}: {found.short}",
  )


def level_text(scenario: str, level: float | str) -> str:
  """A level in running text."""
  if isinstance(level, str):
    return f"{scenario} {level}"
  return axis(scenario).short.format(axis(scenario).scale * level)
