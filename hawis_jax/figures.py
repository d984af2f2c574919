"""The report's figures, drawn from nothing but the content of report.json."""

import matplotlib
from matplotlib import patches
from matplotlib import ticker
import numpy as np

from hawis_jax import canvas
from hawis_jax import looks

# Every file that `draw` may return.
FILES = ("robustness.png", "search.png", "widths.png", "training.png")

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
      drawn["search.png"] = _search(content)
    drawn["widths.png"] = _widths(content)
    if content["curves"]:
      drawn["training.png"] = _training(content)
    return {name: canvas.png(figure) for name, figure in drawn.items()}


def _percent(values):
  return 100 * np.asarray(values, np.float64)


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
  low, high = _percent(sweep["ci95"]).T
  color = style.color
  if len(levels) > 1:
    panel.fill_between(levels, low, high, color=color, alpha=0.25, lw=0)
  else:
    panel.vlines(levels, low, high, color=color, alpha=0.4, lw=4)
  panel.plot(levels, _percent(sweep["p5"]), color=color, ls="--", lw=0.8)
  panel.plot(levels, _percent(sweep["mean"]), color=color, marker=style.marker)


def _search(content):
  """Scores during the search, and of the finalists on fresh chips."""
  search = content["search"]
  figure = canvas.figure(2.9)
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
  for name, trajectory in search["trajectory"].items():
    style = looks.METHODS[name]
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
    style = looks.METHODS[name]
    spread = np.linspace(-0.22, 0.22, len(entries)) if entries[1:] else 0
    right.plot(
      place + spread,
      _percent([entry["score"] for entry in entries]),
      color=style.color,
      marker=style.marker,
      ls="none",
      alpha=0.8,
    )
  names = [looks.METHODS[name].name for name in search["finalists"]]
  right.set_xticks(range(len(names)), [n.split()[0] for n in names])
  right.set_xlim(-0.6, len(names) - 0.4)
  right.grid(axis="x", visible=False)
  right.set_title("Finalists, on fresh chips")
  searched = [looks.METHODS[name] for name in search["trajectory"]]
  handles = [
    *(canvas.key(x.name, x.color, lw=3) for x in searched),
    canvas.key("best so far", lw=1.8),
    canvas.key("mean of the update's proposals", lw=0.9),
  ]
  canvas.legend(figure, handles)
  return figure


def _widths(content):
  """Widths a layer of every net, over the limits of the space if searched."""
  nets, styles = content["nets"], looks.net_looks(content["nets"])
  same = {}  # a net and its counterparts share one line
  for name, net in nets.items():
    same.setdefault(tuple(net["widths"]), []).append(name)
  figure = canvas.figure(3.1)
  figure.suptitle("Width of every layer", x=0.01, ha="left", fontsize=8.5)
  panel = figure.subplots()
  handles = []
  for place, (vector, names) in enumerate(same.items()):
    front = place == 0  # filled markers, so that those behind show
    style = dict(
      color=styles[names[0]].color,
      marker=styles[names[0]].marker,
      lw=1.8 if front else 1.2,
      markersize=4 if front else 6.5,
      markerfacecolor=None if front else "none",
      zorder=3 - place / len(same),
    )
    layer = np.arange(1, len(vector) + 1)
    panel.plot(layer, vector, drawstyle="steps-mid", **style)
    handles.append(
      canvas.key("; ".join(styles[n].name for n in names), **style)
    )
  if content["space"]:
    handles.append(_choices(panel, content["space"]))
  panel.set_yscale("log", base=2)
  panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
  panel.set_ylabel("width [channels]")
  panel.set_xlabel("layer of the width vector, 1 = stem")
  panel.set_xticks(layer)
  panel.set_xlim(0.5, len(layer) + 0.5)
  panel.grid(axis="x", visible=False)
  _stages(panel, content["stage_starts"], len(layer))
  canvas.legend(figure, handles)
  return figure


def _choices(panel, choices):
  """Shades each layer's choices; returns their legend entry."""
  return panel.fill_between(
    np.arange(len(choices) + 1) + 0.5,
    [c[0] for c in choices] + [choices[-1][0]],
    [c[-1] for c in choices] + [choices[-1][-1]],
    step="post",
    color="#eeeeee",
    lw=0,
    label="choices of the space",
  )


def _stages(panel, starts, num_layers):
  """Marks and names the stages of the network."""
  ends = [*starts[1:], num_layers + 1]
  names = ["stem and stage 1"]
  names += [f"stage {place}" for place in range(2, len(starts) + 1)]
  for name, start, end in zip(names, starts, ends, strict=True):
    if end <= num_layers:
      panel.axvline(end - 0.5, color=canvas.NEUTRAL, lw=0.8, ls=":")
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
      _percent(points["value"]),
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
