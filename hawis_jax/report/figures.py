"""The report's figures, drawn from nothing but the content of report.json."""

import matplotlib
from matplotlib import patches
from matplotlib import ticker
import numpy as np

from hawis_jax.report import breakdown
from hawis_jax.report import canvas
from hawis_jax.report import figures_hardware
from hawis_jax.report import figures_search
from hawis_jax.report import looks

# Every file that `draw` may return, in the page's order.
FILES = (
  "robustness.png",
  "search.png",
  "front.png",
  "widths.png",
  "utilisation.png",
  "components.png",
  "training.png",
)

_PANELS_A_ROW = 3
_VALIDATION = "accuracy_validation"  # metric of stages train/<net>


def draw(content: dict) -> dict[str, bytes]:
  """Draws all figures that the content has data for.

  Args:
    content: of report.json.

  Returns:
    {name in `FILES`: PNG}.
  """
  drawn = {}
  with matplotlib.rc_context(canvas.STYLE):
    if content["reference"]:
      drawn["robustness.png"] = _robustness(content)
    if content["search"]:
      drawn["search.png"] = figures_search.trajectories(content)
      drawn["front.png"] = figures_search.front(content)
    drawn["widths.png"] = figures_hardware.widths(content)
    if breakdown.distinct(content):
      drawn["utilisation.png"] = figures_hardware.utilisation(content)
      drawn["components.png"] = figures_hardware.components(content)
    if content["curves"]:
      drawn["training.png"] = _training(content)
    return {name: canvas.png(figure) for name, figure in drawn.items()}


def _robustness(content):
  """Accuracy over the levels of every scenario, of all nets on chips."""
  nets, styles = content["nets"], looks.net_looks(content["nets"])
  shown = [name for name in nets if nets[name]["sweeps"]]
  scenarios = list(dict.fromkeys(s for n in shown for s in nets[n]["sweeps"]))
  columns = min(len(scenarios), _PANELS_A_ROW)
  rows = -(-len(scenarios) // columns)
  figure = canvas.figure(0.6 + 2.4 * rows)
  # Scales of their own: faults cost a few points, variation all of them.
  grid = figure.subplots(rows, columns, squeeze=False)
  panels = grid.ravel()
  for panel in panels[len(scenarios) :]:
    panel.remove()
  for panel, scenario in zip(panels, scenarios, strict=False):
    axis = looks.axis(scenario)
    for name in reversed(shown):
      if scenario in nets[name]["sweeps"]:
        _sweep(panel, nets[name]["sweeps"][scenario], axis, styles[name])
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 101))
    chance = 100 * content["chance"]
    if low - 0.1 * (high - low) < chance:
      panel.axhline(chance, color=canvas.NEUTRAL, ls=":", lw=1)
    panel.set_title(axis.title)
    panel.set_xlabel(axis.label)
    panel.margins(x=0.03)
    _spread_levels(panel)
  for panel in grid[:, 0]:
    panel.set_ylabel("test accuracy [%]")
  handles = [
    *(
      canvas.key(x.name, x.color, marker=x.marker)
      for x in map(styles.get, shown)
    ),
    canvas.key("mean of chips"),
    patches.Patch(color=canvas.NEUTRAL, alpha=0.4, lw=0, label="95 % interval"),
    canvas.key("5th percentile", ls="--", lw=0.8),
    canvas.key("chance", ls=":", lw=1),
  ]
  canvas.legend(figure, handles)
  return figure


def _spread_levels(panel):
  """Levels over several decades on a logarithmic axis, 0 included."""
  levels = np.concatenate([line.get_xdata() for line in panel.lines])
  positive = levels[levels > 0]
  if positive.size and positive.max() > 200 * positive.min():
    panel.set_xscale("symlog", linthresh=positive.min())


def _sweep(panel, sweep, axis, style):
  """One net's mean, interval and 5th percentile."""
  levels = axis.scale * np.array(sweep["level"])
  low, high = canvas.percent(sweep["ci95"]).T
  color = style.color
  if len(levels) > 1:
    panel.fill_between(levels, low, high, color=color, alpha=0.25, lw=0)
  else:
    panel.vlines(levels, low, high, color=color, alpha=0.4, lw=4)
  panel.plot(levels, canvas.percent(sweep["p5"]), color=color, ls="--", lw=0.8)
  panel.plot(
    levels, canvas.percent(sweep["mean"]), color=color, marker=style.marker
  )


def _training(content):
  """Loss and accuracy of the super-net and of the nets over their steps."""
  curves = content["curves"]
  rows = [
    ("Super-net", [s for s in curves if s == "pretrain"]),
    ("Nets from scratch", [s for s in curves if s != "pretrain"]),
  ]
  rows = [row for row in rows if row[1]]
  styles = looks.net_looks(content["nets"])
  figure = canvas.figure(0.5 + 2.1 * len(rows))
  keys = {}
  for row, (title, stages) in zip(
    figure.subplots(len(rows), 2, squeeze=False), rows, strict=True
  ):
    for stage in stages:
      keys.update(_curve(row, stage, curves[stage], styles))
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
        panel.axvline(warm_up, color=canvas.NEUTRAL, ls=":", lw=1)
      panel.set_xlabel("optimiser step")
      panel.margins(x=0.02)
      panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  handles = [*keys.values(), *_validation(accuracy, curves, styles)]
  canvas.legend(figure, handles)
  return figure


def _curve(row, stage, curve, styles):
  """Draws what a stage was trained on; returns {name: legend entry}."""
  keys = {}
  for metric, points in curve.items():
    if metric == _VALIDATION:
      continue
    if stage == "pretrain":
      mean = metric == "accuracy_mean"
      name = "super-net, mean of a step's widths" if mean else "super-net"
      style = dict(color=canvas.NEUTRAL, ls="--" if mean else "-")
    else:
      look = styles[stage.removeprefix("train/")]
      name, style = look.name, dict(color=look.color)
    keys[name] = canvas.key(name, **style)
    panel, scale = (row[0], 1) if metric == "loss" else (row[1], 100)
    values = scale * np.array(points["value"], np.float64)
    panel.plot(points["step"], values, **style, lw=0.5, alpha=0.3)
    panel.plot(points["step"], _smooth(values), **style)
  return keys


def _validation(panel, curves, styles):
  """Marks the nets' accuracies on validation images; [legend entry]."""
  style = dict(ls="--", lw=0.8, markersize=3.5, markerfacecolor="white")
  keys = []
  for stage, curve in curves.items():
    if _VALIDATION not in curve:
      continue
    look, points = styles[stage.removeprefix("train/")], curve[_VALIDATION]
    count = len(points["step"])
    every = -(-count // 20)  # markers that don't touch, one at the end
    panel.plot(
      points["step"],
      canvas.percent(points["value"]),
      color=look.color,
      marker=look.marker,
      markevery=((count - 1) % every, every),
      **style,
    )
    keys = [canvas.key("on validation images", marker="o", **style)]
  return keys


def _smooth(values):
  """Running mean over a fortieth of the curve, shorter at its ends."""
  window = np.ones(min(len(values), 2 * (len(values) // 80) + 1))
  total = np.convolve(values, window, "same")
  return total / np.convolve(np.ones(len(values)), window, "same")
