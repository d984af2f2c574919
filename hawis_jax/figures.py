"""The report's figures, drawn from nothing but the content of report.json.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; a
net also keeps its marker everywhere.
"""

from collections.abc import Mapping
import dataclasses
import io

import matplotlib
from matplotlib import figure as figure_lib
from matplotlib import lines
from matplotlib import patches
from matplotlib import ticker
import numpy as np


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


FOUND = Look("found", "#D55E00", "o")
UNIFORM = Look("uniform", "#0072B2", "s")
NETS = {
  "found": FOUND,
  "uniform": UNIFORM,
  "baseline_1x": Look("1x baseline", "#000000", "^"),
}
# The found net is the policy's, so it has the policy's colour.
METHODS = {
  "policy": dataclasses.replace(FOUND, name="policy"),
  "random": Look("random search", "#009E73", "D"),
  "uniform": UNIFORM,
}
_SPARE = (("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"))
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
}
# Every file that `draw` may return.
FILES = ("robustness.png", "search.png", "widths.png", "training.png")

_STYLE = {
  "font.family": "DejaVu Sans",
  "font.size": 8,
  "axes.titlesize": 8.5,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.7,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#dddddd",
  "grid.linewidth": 0.5,
  "legend.frameon": False,
  "legend.fontsize": 8,
  "lines.linewidth": 1.4,
  "lines.markersize": 4,
  "text.usetex": False,
}
_WIDTH = 7.2  # inch, two columns of a paper
_DPI = 200
_NEUTRAL = "#888888"  # what belongs to no net


def look(net: str, nets: Mapping[str, dict]) -> Look:
  """How to draw one of `nets`; those not known get a spare colour."""
  if net in NETS:
    return NETS[net]
  others = [name for name in nets if name not in NETS]
  color, marker = _SPARE[others.index(net) % len(_SPARE)]
  return Look(net, color, marker)


def axis(scenario: str) -> Axis:
  """How to draw a scenario; those not known show their level as it is."""
  return AXES.get(scenario) or Axis(
    scenario, f"level of {scenario}", 1, scenario + " = {:g}"
  )


def level_text(scenario: str, level: float) -> str:
  """A level in running text."""
  return axis(scenario).short.format(axis(scenario).scale * level)


def draw(content: dict) -> dict[str, bytes]:
  """Draws all figures that the content has data for.

  Args:
    content: of report.json.

  Returns:
    {name in `FILES`: PNG}.
  """
  with matplotlib.rc_context(_STYLE):
    drawn = {
      "robustness.png": _robustness(content),
      "search.png": _search(content),
      "widths.png": _widths(content),
    }
    if content["curves"]:
      drawn["training.png"] = _training(content)
    return {name: _png(figure) for name, figure in drawn.items()}


def _figure(height):
  return figure_lib.Figure(figsize=(_WIDTH, height), layout="constrained")


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
  return buffer.getvalue()


def _key(label, color=_NEUTRAL, **style):
  """A legend entry without data."""
  return lines.Line2D([], [], color=color, label=label, **style)


def _percent(values):
  return 100 * np.asarray(values, np.float64)


def _robustness(content):
  """Accuracy over the levels of every scenario, all nets."""
  nets = content["nets"]
  scenarios = list(
    dict.fromkeys(s for net in nets.values() for s in net["sweeps"])
  )
  figure = _figure(3.0)
  # Scales of their own: faults cost a few points, variation all of them.
  panels = figure.subplots(1, len(scenarios), squeeze=False)[0]
  for panel, scenario in zip(panels, scenarios, strict=True):
    for name, net in reversed(nets.items()):
      if scenario in net["sweeps"]:
        _sweep(panel, net["sweeps"][scenario], axis(scenario), look(name, nets))
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 101))
    chance = 100 * content["chance"]
    if low - 0.1 * (high - low) < chance:
      panel.axhline(chance, color=_NEUTRAL, ls=":", lw=1)
    panel.set_title(axis(scenario).title)
    panel.set_xlabel(axis(scenario).label)
    panel.margins(x=0.03)
  panels[0].set_ylabel("test accuracy [%]")
  looks = [look(name, nets) for name in nets]
  figure.legend(
    handles=[
      *(_key(x.name, x.color, marker=x.marker) for x in looks),
      _key("mean of chips"),
      patches.Patch(color=_NEUTRAL, alpha=0.4, lw=0, label="95 % interval"),
      _key("5th percentile", ls="--", lw=0.8),
      _key("chance", ls=":", lw=1),
    ],
    loc="outside lower center",
    ncols=len(looks) + 4,
    columnspacing=1.2,
    handlelength=1.8,
  )
  return figure


def _sweep(panel, sweep, scale, style):
  """One net's mean, interval and 5th percentile."""
  levels = scale.scale * np.array(sweep["level"])
  low, high = _percent(sweep["ci95"]).T
  color = style.color
  panel.fill_between(levels, low, high, color=color, alpha=0.25, lw=0)
  panel.plot(levels, _percent(sweep["p5"]), color=color, ls="--", lw=0.8)
  panel.plot(levels, _percent(sweep["mean"]), color=color, marker=style.marker)


def _search(content):
  """Scores during the search, and of the finalists on fresh chips."""
  search = content["search"]
  figure = _figure(2.9)
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
  for name, trajectory in search["trajectory"].items():
    style = METHODS[name]
    count = len(trajectory["mean"])
    spent = search["evaluations"] / count * np.arange(1, count + 1)
    best, mean = _percent(trajectory["best"]), _percent(trajectory["mean"])
    left.plot(spent, best, color=style.color, drawstyle="steps-post", lw=1.8)
    left.plot(spent, mean, color=style.color, lw=0.9)
  left.set_title("While searching: scores on each update's own chips")
  left.set_xlabel("width vectors scored, each method")
  left.set_ylabel("robust score [% accuracy]")
  left.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  left.margins(x=0.02)
  for place, (name, entries) in enumerate(search["finalists"].items()):
    style = METHODS[name]
    spread = np.linspace(-0.22, 0.22, len(entries)) if entries[1:] else 0
    right.plot(
      place + spread,
      _percent([entry["score"] for entry in entries]),
      color=style.color,
      marker=style.marker,
      ls="none",
      alpha=0.8,
    )
  names = [METHODS[name].name for name in search["finalists"]]
  right.set_xticks(range(len(names)), [n.split()[0] for n in names])
  right.set_xlim(-0.6, len(names) - 0.4)
  right.grid(axis="x", visible=False)
  right.set_title("Finalists, on fresh chips")
  searched = [METHODS[name] for name in search["trajectory"]]
  figure.legend(
    handles=[
      *(_key(x.name, x.color, lw=3) for x in searched),
      _key("best so far", lw=1.8),
      _key("mean of the update's proposals", lw=0.9),
    ],
    loc="outside lower center",
    ncols=4,
  )
  return figure


def _widths(content):
  """Widths a layer of every net, over the limits of the space."""
  nets, choices = content["nets"], content["space"]
  layer = np.arange(1, len(choices) + 1)
  figure = _figure(3.1)
  figure.suptitle("Width of every layer", x=0.01, ha="left", fontsize=8.5)
  panel = figure.subplots()
  panel.fill_between(
    np.append(layer - 0.5, layer[-1] + 0.5),
    [c[0] for c in choices] + [choices[-1][0]],
    [c[-1] for c in choices] + [choices[-1][-1]],
    step="post",
    color="#eeeeee",
    lw=0,
  )
  for name, net in reversed(nets.items()):
    style = look(name, nets)
    front = name == "found"
    panel.plot(
      layer,
      net["widths"],
      color=style.color,
      marker=style.marker,
      drawstyle="steps-mid",
      lw=1.8 if front else 1.2,
      markersize=4 if front else 6.5,
      markerfacecolor=style.color if front else "none",
    )
  panel.set_yscale("log", base=2)
  panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
  panel.set_ylabel("width [channels]")
  panel.set_xlabel("3x3 convolution, 1 = stem")
  panel.set_xticks(layer)
  panel.set_xlim(0.5, len(layer) + 0.5)
  panel.grid(axis="x", visible=False)
  _stages(panel, content["stage_starts"], len(layer))
  figure.legend(
    handles=[
      *(
        _key(
          look(name, nets).name,
          look(name, nets).color,
          marker=look(name, nets).marker,
          markerfacecolor=None if name == "found" else "none",
        )
        for name in nets
      ),
      patches.Patch(color="#eeeeee", label="choices of the space"),
    ],
    loc="outside lower center",
    ncols=len(nets) + 1,
  )
  return figure


def _stages(panel, starts, num_layers):
  """Marks and names the stages of the network."""
  ends = [*starts[1:], num_layers + 1]
  names = ("stem and stage 1", "stage 2", "stage 3")
  for name, start, end in zip(names, starts, ends, strict=True):
    if end <= num_layers:
      panel.axvline(end - 0.5, color=_NEUTRAL, lw=0.8, ls=":")
    panel.annotate(
      name,
      ((start + end - 1) / 2, 1.0),
      xycoords=("data", "axes fraction"),
      xytext=(0, 3),
      textcoords="offset points",
      ha="center",
    )


def _training(content):
  """Loss and accuracy of the super-net and of the nets over their steps."""
  curves = content["curves"]
  rows = [
    ("Super-net", [s for s in curves if s == "pretrain"]),
    ("Nets from scratch", [s for s in curves if s != "pretrain"]),
  ]
  rows = [row for row in rows if row[1]]
  figure = _figure(0.5 + 2.1 * len(rows))
  keys = {}
  for row, (title, stages) in zip(
    figure.subplots(len(rows), 2, squeeze=False), rows, strict=True
  ):
    for stage in stages:
      keys.update(_curve(row, stage, curves[stage], content["nets"]))
    loss, accuracy = row
    loss.set_title(f"{title}: training loss")
    loss.set_ylabel("loss [nat]")
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    loss.yaxis.set_minor_formatter(ticker.NullFormatter())
    accuracy.set_title(f"{title}: accuracy on training batches")
    accuracy.set_ylabel("accuracy [%]")
    for panel in row:
      if "pretrain" in stages:
        warm_up = content["config"]["pretrain.warmup_steps"]
        panel.axvline(warm_up, color=_NEUTRAL, ls=":", lw=1)
      panel.set_xlabel("optimiser step")
      panel.margins(x=0.02)
      panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  figure.legend(
    handles=keys.values(), loc="outside lower center", ncols=len(keys)
  )
  return figure


def _curve(row, stage, curve, nets):
  """Draws a stage's curves; returns {name: legend entry}."""
  keys = {}
  for metric, values in curve.items():
    if metric == "step":
      continue
    if stage == "pretrain":
      mean = metric == "accuracy_mean"
      name = "super-net, mean of a step's widths" if mean else "super-net"
      style = dict(color=_NEUTRAL, ls="--" if mean else "-")
    else:
      net = look(stage.removeprefix("train/"), nets)
      name, style = net.name, dict(color=net.color)
    keys[name] = _key(name, **style)
    panel, scale = (row[0], 1) if metric == "loss" else (row[1], 100)
    values = scale * np.array(values, np.float64)
    panel.plot(curve["step"], values, **style, lw=0.5, alpha=0.3)
    panel.plot(curve["step"], _smooth(values), **style)
  return keys


def _smooth(values):
  """Running mean over a fortieth of the curve, shorter at its ends."""
  window = np.ones(min(len(values), 2 * (len(values) // 80) + 1))
  total = np.convolve(values, window, "same")
  return total / np.convolve(np.ones(len(values)), window, "same")
