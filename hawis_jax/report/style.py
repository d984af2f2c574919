"""How the report names, colours and writes what it shows.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; a
net also keeps its marker in all figures. Each has a twin for dark screens. Nets
of the same widths share both: one that is trained on chips is drawn dashed,
its marker open.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import itertools
import re
from typing import Any

from matplotlib import ticker
import numpy as np

from hawis_jax import cost
from hawis_jax.networks import net_names

TEXT, GRID, NEUTRAL = "#1b1b1b", "#dddddd", "#888888"
SHADE, BACK = "#eeeeee", "#ffffff"
# Of components: none of a net's; neighbours differ in lightness.
PARTS = {
  "#1f3a5f": "#4f7db3",
  "#7fa3c7": "#a9c8e8",
  "#8c6d1f": "#b8943a",
  "#e3cf8f": "#f0e2b0",
  "#3f6b3f": "#5f9c5f",
  "#a9cda0": "#c5e6bc",
  "#6b3a6b": "#a062a0",
  "#cda9cd": "#e6cbe6",
}
# (colour, the same on dark, marker). Their yellow is too pale: brown instead.
_PALETTE = (
  ("#d55e00", "#ff8533", "o"),
  ("#0072b2", "#4da6e0", "s"),
  ("#111111", "#fafafa", "^"),
  ("#cc79a7", "#e39ac3", "v"),
  ("#e69f00", "#f2b632", "P"),
  ("#56b4e9", "#8fd0f7", "X"),
  ("#009e73", "#2bc79b", "D"),
  ("#7f5539", "#b98b6c", "*"),
  ("#7a5195", "#b48ccf", "p"),
)
# Of the fifths of scored vectors, the worst first.
RAMP = {
  "#c9d3e0": "#2c3a4d",
  "#9db4d1": "#3f5f87",
  "#6b90bf": "#5b8cc9",
  "#3a689f": "#8ab8ee",
  "#123a6b": "#cfe5ff",
}
# {statistics on chips: title of a panel}, see `facts.calibration`.
STATISTICS = {
  "fixed": "not calibrated",
  "design": "statistics of the design",
  "chip": "every chip calibrated",
}
_OTHER_RUNS = ("x", "+", "1", "2", "3", "4")  # markers of a second run's nets
DARK = {
  TEXT: "#e6e6e6",
  GRID: "#3a3a3a",
  NEUTRAL: "#999999",
  SHADE: "#2a2a2a",
  BACK: "#161616",
  **PARTS,
  **RAMP,
  **{light: dark for light, dark, _ in _PALETTE},
}


@dataclasses.dataclass(frozen=True)
class Look:
  """How a net or a search method is named and drawn."""

  name: str
  color: str
  marker: str
  dashes: str = "-"

  @property
  def face(self) -> str:
    """Returns the colour within its marker."""
    return self.color if self.dashes in "-:" else "none"


@dataclasses.dataclass(frozen=True)
class Effect:
  """How the severities of a scenario are named and drawn.

  Attributes:
    title: what happens to the cells.
    label: of the axis, with its unit.
    short: format of a severity in running text.
    scale: a severity times this is shown.
    meaning: of the effect, for the definitions.
  """

  title: str
  label: str
  short: str
  scale: float
  meaning: str


_IR_DROP = (
  "Currents of the resistive network of cells, wires, drivers and sensing "
  "ends, solved exactly."
)
# fmt: off
EFFECTS = {
  "stuck_off": Effect(
    "Cells stuck off (high resistance)", "cells stuck at $G_{off}$ [%]",
    "{:g} % stuck off", 100,
    "Share of cells that stay at G_off whatever is written."),
  "stuck_on": Effect(
    "Cells stuck on (low resistance)", "cells stuck at $G_{on}$ [%]",
    "{:g} % stuck on", 100,
    "Share of cells that stay at G_on whatever is written."),
  "variation": Effect(
    "Variation between cells", r"$\gamma$, std of ln $G$",
    "variation γ = {:g}", 1,
    "Every conductance is divided by exp(θ), θ normal with standard deviation "
    "γ."),
  "device": Effect(
    "Chips as the device is", "share of the device's own severities",
    "{:g} x the device's own effects", 1,
    "All random effects of the configured device, or of the memory that a "
    "scenario names, with the configured converters' errors, at this share of "
    "their severities."),
  "dead_rows": Effect(
    "Dead word lines", "word lines without current [%]", "{:g} % dead rows",
    100, "Share of word lines of an array whose cells carry no current."),
  "dead_columns": Effect(
    "Dead bit lines", "bit lines without current [%]", "{:g} % dead columns",
    100, "Share of bit lines of an array whose cells carry no current."),
  "gaussian_variation": Effect(
    "Gaussian variation between cells", "std of $G$ [% of $G$]",
    "variation of {:g} % of G", 100,
    "Every conductance is multiplied by 1 + s n, n standard normal, and "
    "clipped at 0."),
  "write_error": Effect(
    "Programming error", "times the measured one",
    "{:g} x the measured write error", 1,
    "Normal, of a standard deviation that was measured as a function of the "
    "target conductance; new at every programming."),
  "drift_time": Effect(
    "Drift", "time since programming [s]", "{:,.0f} s of drift", 1,
    "Conductances fall as a power of the time since programming, each cell "
    "with an exponent of its own."),
  "relaxation": Effect(
    "Relaxation after programming", "times the measured one",
    "{:g} x the measured relaxation", 1,
    "Conductances shift and spread with the logarithm of the time since "
    "programming, as was measured."),
  "flicker_noise": Effect(
    "Accumulated 1/f noise", "times the measured one",
    "{:g} x the measured 1/f noise", 1,
    "Normal, of a standard deviation that grows with the root of the logarithm "
    "of the time since programming; drawn once a chip."),
  "retention_time": Effect(
    "Retention", "time since programming [s]", "{:,.0f} s of retention", 1,
    "Relaxation and 1/f noise are those of this time since programming."),
  "read_disturb": Effect(
    "Read disturb", "reads since programming", "{:,.0f} reads", 1,
    "Every read takes cells a little nearer to their highest conductance; all "
    "chips are alike."),
  "temperature_rise": Effect(
    "Warmer than at programming", "difference [K]", "{:+g} K", 1,
    "Cells conduct as their state's activation energy says; all chips are "
    "alike."),
  "white_noise": Effect(
    "White noise a read", r"std of a cell's $G$, relative",
    "white noise of {:g}", 1,
    "Normal noise of every driven cell, new at every read: of one standard "
    "deviation, or of one that is proportional to the conductance or to its "
    "inverse."),
  "read_noise": Effect(
    "Thermal and shot noise", "times the physical one", "{:g} x read noise", 1,
    "Normal noise of every current that is read, new at every read."),
  "telegraph_noise": Effect(
    "Random telegraph noise", "times the measured step",
    "{:g} x telegraph noise", 1,
    "At every read each cell is, with probability 1/2, one measured step "
    "above its conductance; a column's sum is drawn from the normal "
    "distribution of the same mean and variance."),
  "legacy_noise": Effect(
    "Noise of the published test", "times the published one",
    "{:g} x the published noise", 1,
    "As in the published code: a third of the whole conductance range, here "
    "drawn once a chip. For comparison only; no device has it."),
  "chip_variation": Effect(
    "Variation between chips", "std of a chip's ln $G$",
    "chips' variation of {:g}", 1,
    "All conductances of a chip are divided by one exp(θ), θ normal."),
  "tile_variation": Effect(
    "Variation between tiles", "std of a tile's ln $G$",
    "tiles' variation of {:g}", 1,
    "All conductances of a tile are divided by one exp(θ), θ normal."),
  "chip_dispersion": Effect(
    "Chips of more or fewer stuck cells", r"$\rho$ of the share of stuck cells",
    "chips' dispersion of {:g}", 1,
    "The share of a chip's cells that are stuck is beta distributed, of "
    "variance ρ p (1 - p) about its mean p."),
  "tile_dispersion": Effect(
    "Tiles of more or fewer stuck cells", r"$\rho$ of the share of stuck cells",
    "tiles' dispersion of {:g}", 1,
    "The share of a tile's cells that are stuck is beta distributed about its "
    "chip's."),
  "wire_resistance": Effect(
    "IR drop of wires", r"wire resistance a cell [$\Omega$]",
    "wires of {:g} Ω a cell", 1, _IR_DROP),
  "load_resistance": Effect(
    "IR drop of loads", r"load resistance [$\Omega$]", "loads of {:g} Ω", 1,
    _IR_DROP),
  "source_wire_resistance": Effect(
    "IR drop of feeding wires", r"more resistance a cell [$\Omega$]",
    "feeding wires of {:g} Ω a cell more", 1, _IR_DROP),
  "sense_wire_resistance": Effect(
    "IR drop of bit lines", r"more resistance a cell [$\Omega$]",
    "bit lines of {:g} Ω a cell more", 1, _IR_DROP),
  "source_load_resistance": Effect(
    "IR drop of drivers", r"more resistance [$\Omega$]",
    "drivers of {:g} Ω more", 1, _IR_DROP),
  "sense_load_resistance": Effect(
    "IR drop of sensing ends", r"more resistance [$\Omega$]",
    "sensing ends of {:g} Ω more", 1, _IR_DROP),
  "nonlinearity": Effect(
    "Non-linear cells", "$a$ [1/V]", "cells of sinh({:g} v)", 1,
    "A cell conducts G V sinh(a v) / sinh(a V) at v, V the read voltage."),
  "fault_map": Effect(
    "Measured faults", "", "the measured faults", 1,
    "Cells are stuck as those of a measured chip."),
  "adc_offset": Effect(
    "Offsets of converters", "std of an offset [weights of 1]",
    "converters' offsets of {:g}", 1,
    "What every column's converter adds, drawn once a chip."),
  "adc_gain": Effect(
    "Gains of converters", "std of a gain",
    "converters' gain errors of {:g}", 1,
    "A factor of what every column's converter reads, drawn once a chip."),
  "adc_noise": Effect(
    "Noise of converters", "std of the noise [weights of 1]",
    "converters' noise of {:g}", 1,
    "Normal noise of every converter, new at every read."),
  "adc_mismatch": Effect(
    "Capacitors of converters", "std of a unit capacitor",
    "capacitors' mismatch of {:g}", 1,
    "The levels that every column's SAR converter compares with are those of "
    "binary-weighted capacitors, drawn once a chip."),
  "dac_noise": Effect(
    "Noise of word lines", "std of a driven line's voltage, relative",
    "word lines' noise of {:g}", 1,
    "The voltage of every driven word line is normal, new at every read and "
    "one for all columns."),
  "adc_bits": Effect(
    "Converters", "bits (0: ideal)", "{:g}-bit converters", 1,
    "Every column of every tile is read by a converter of so many bits, and "
    "the codes of the row tiles are added."),
}
# fmt: on
_METHODS = {
  "policy": "policy (PPO on a reward model)",
  "ppo": "PPO",
  "reinforce": "policy (REINFORCE)",
  "local": "local search",
  "random": "random search",
  "per_stage": "a width a group",
}
# The place of a binary net in the palette, where no net before it has it.
_PLACES = dict(found=0, uniform=1, baseline_1x=2, hawis_a=0, hawis_b=3)
_PLACES |= {"4x": 1, "1x": 2}
_NAMES = dict(baseline_1x="1x baseline", hawis_a="HAWIS-A", hawis_b="HAWIS-B")
_KINDS = {net_names.INT8: "8-bit ", net_names.FLOAT: "float "}
_SHARE = re.compile(r"(found|uniform)_([0-9.e+-]+)")
_PRESET = re.compile(r"resnet(\d+)_(hawis_[ab]|\d+x)")


def net_name(net: str) -> str:
  """Returns the shown name: "found", "found at 0.7x budget", "8-bit 1x".

  Args:
    net: as in `config.train.nets`; one not known keeps its name. It may follow
      a run's: "<run>: <net>".
  """
  run, colon, net = net.rpartition(": ")
  if run:
    return f"{run}{colon}{net_name(net)}"
  vector, kind, on_chips = net_names.parse(net)
  preset = _PRESET.fullmatch(vector)
  name = preset[2] if preset else _SHARE.sub(r"\1 at \2x budget", vector)
  name = _KINDS.get(kind, "") + _NAMES.get(name, name)
  if preset and kind == net_names.BINARY:
    name = f"{name} (ResNet-{preset[1]})"
  return f"{name}, trained on chips" if on_chips else name


def weights(bits: int) -> str:
  """Returns what a net's weights are: "1-bit", "8-bit" or "float"."""
  return "float" if bits == 32 else f"{bits}-bit"


def net_looks(nets: Iterable[str]) -> dict[str, Look]:
  """Returns how nets are drawn together, distinct up to nine colours.

  Those of a second run, "<run>: <net>", have the colours of the first one's.
  """
  nets, places = list(nets), {}
  parsed = {net: net_names.parse(net.rpartition(": ")[2]) for net in nets}
  runs = [*dict.fromkeys(net.rpartition(": ")[0] for net in nets)]
  # By widths and kind of weights.
  plain = {net: of._replace(on_chips=False) for net, of in parsed.items()}
  for vector, kind, _ in plain.values():
    preset = _PRESET.fullmatch(vector)
    place = _PLACES.get(preset[2] if preset else vector)
    is_free = place is not None and place not in places.values()
    if kind == net_names.BINARY and is_free:
      places.setdefault(net_names.Net(vector, kind), place)
  spare = [p for p in range(len(_PALETTE)) if p not in places.values()]
  others = [net for net in dict.fromkeys(plain.values()) if net not in places]
  places.update(zip(others, itertools.cycle(spare), strict=False))
  looks = {}
  for net in nets:
    look = _look(net_name(net), places[plain[net]])
    run = runs.index(net.rpartition(": ")[0])
    dashes = ((":", "-.") if run else ("-", "--"))[parsed[net].on_chips]
    marker = _OTHER_RUNS[(run - 1) % len(_OTHER_RUNS)] if run else look.marker
    looks[net] = dataclasses.replace(look, dashes=dashes, marker=marker)
  return looks


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
  """Returns how search methods, the found net's first, and uniform are drawn.

  The first has the colour of the found net, uniform scaling its net's.
  """
  first, *others = methods
  places = {first: 0, **dict(zip(others, (6, 3, 4, 5, 7, 2, 8), strict=False))}
  places["uniform"] = 1
  return {
    name: _look(_METHODS.get(name, name), place)
    for name, place in places.items()
  }


def _look(name, place):
  color, _, marker = _PALETTE[place]
  return Look(name, color, marker)


def effect(scenario: str) -> Effect:
  """Returns how a scenario is shown; one not known shows its numbers.

  Args:
    scenario: "<effect>", or "<name>: <effect>" (see `scenarios.Scenario`).
  """
  name, _, field = scenario.rpartition(": ")
  unknown = Effect(field, f"severity of {field}", f"{field} = {{:g}}", 1, "")
  found = EFFECTS.get(field, unknown)
  if not name:
    return found
  braces = name.replace("{", "{{").replace("}", "}}")
  short = f"{braces}: {found.short}"
  return dataclasses.replace(found, title=capital(name), short=short)


def severity(scenario: str, value: float | str) -> str:
  """Returns a severity in running text: "10 % stuck off"."""
  if isinstance(value, str):
    return f"{scenario} {value}"
  return effect(scenario).short.format(effect(scenario).scale * value)


def effects(values: Mapping[str, Any]) -> str:
  """Returns severities of several effects in running text, with commas."""
  return ", ".join(
    severity(name, value) if np.isscalar(value) else effect(name).title
    for name, value in values.items()
  )


def capital(text: str) -> str:
  """Returns `text` as the start of a sentence."""
  return text[:1].upper() + text[1:]


def percent(share: float) -> str:
  """Returns a share in percent, without the sign."""
  return f"{100 * share:.2f}"


def points(share: float) -> str:
  """Returns a difference of shares in signed percentage points."""
  text = f"{100 * share:+.2f}"
  return "0.00" if float(text) == 0 else text


def estimate(value: float, interval: list[float], text=percent) -> str:
  """Returns a share, by `points` a difference, with its interval."""
  return f"{text(value)} {brackets(interval, text)}"


def brackets(interval: list[float], text=percent) -> str:
  """Returns an interval of shares, by `points` of differences."""
  low, high = map(text, interval)
  return f"[{low}, {high}]"


def quantity(kind: str, value: float | None) -> str:
  """Returns an amount of three digits: "31.2 µJ", "273 k"; None: "-".

  Args:
    kind: of `cost.KINDS`, or "weights"; a count has no unit, and all its
      digits up to 9,999.
    value: in SI units.
  """
  if value is None:
    return "-"
  if kind in cost.COUNTS and value < 1e4:
    return f"{value:,.6g}"
  if kind == "area":  # of square millimetres, prefixes would be squared
    return f"{_three_digits(1e6 * value)} mm²"
  unit = "" if kind in cost.COUNTS else cost.unit(kind)
  text = ticker.EngFormatter(unit)(float(f"{value:.3g}"))
  number, _, unit = text.partition(" ")
  return f"{_three_digits(float(number))} {unit}".strip()


def joule(value: float | None) -> str:
  """Returns the energy of one operation in pJ; None: "-"."""
  return "-" if value is None else f"{_three_digits(1e12 * value)} pJ"


def tops(value: float | None) -> str:
  """Returns operations a joule as tera-operations a second and watt."""
  return "-" if value is None else _three_digits(1e-12 * value)


def _three_digits(value):
  return f"{value:#.3g}".rstrip(".")


_NOUNS = {
  "arrays": "crossbar arrays",
  "macs": "MACs",
  "interval": "between images",
}


def of_cost(kind: str, value: float) -> str:
  """Returns an amount with its noun: "31.2 µJ of energy", "240 arrays"."""
  return f"{quantity(kind, value)} {_NOUNS.get(kind, f'of {kind}')}"
