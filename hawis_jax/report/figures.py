"""The report's figures, drawn from report.json's content alone, as SVG."""

from collections.abc import Sequence
import io
from typing import Any

import matplotlib
from matplotlib import artist
from matplotlib import figure as figure_lib
from matplotlib import lines
from matplotlib import patches
from matplotlib import ticker
import numpy as np
import pandas as pd

from hawis_jax import cost
from hawis_jax.networks import net_names
from hawis_jax.report import facts
from hawis_jax.report import style

# Every figure that `draw` may return, in the page's order.
NAMES = ("robustness", "search", "front", "widths", "utilisation")
NAMES += ("components", "training")
_STYLE = {
  "font.family": "sans-serif",
  "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
  "font.size": 8.5,
  "axes.titlesize": 8.5,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.7,
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.facecolor": "none",
  "figure.facecolor": "none",
  "grid.color": style.GRID,
  "grid.linewidth": 0.5,
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "lines.linewidth": 1.4,
  "lines.markersize": 4,
  # The same bytes for the same content; text stays text.
  "svg.hashsalt": "hawis_jax",
  "svg.fonttype": "none",
  **{
    f"{part}color": style.TEXT
    for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")
  },
}
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_DASHES = ("--", ":", "-.")  # of lines that share a colour
_INTERVAL = "95 % interval over chips and images"
_GREY = dict(color=style.NEUTRAL, ls=":", lw=1)
_SCORE = "robust score [% accuracy]"
_MOST_POINTS = 500  # of a curve: more are not seen


def draw(content: dict) -> dict[str, str]:
  """Returns the figures that the content has data for: {name: SVG}."""
  drawn = {}
  with matplotlib.rc_context(_STYLE):
    if content["main_net"]:
      drawn["robustness"] = robustness(content)
    if content["search"]:
      drawn["search"] = trajectories(content)
      drawn["front"] = front(content)
    drawn["widths"] = widths(content)
    if facts.distinct(content):
      drawn["utilisation"] = utilisation(content)
      drawn["components"] = components(content)
    if content["curves"]:
      drawn["training"] = training(content)
    return {name: _svg(figure) for name, figure in drawn.items()}


def _svg(figure):
  file = io.StringIO()
  figure.savefig(file, format="svg", metadata=_METADATA)
  return file.getvalue()


def _figure(height):
  """An empty figure, two columns of a paper wide and `height` high [inch]."""
  return figure_lib.Figure(figsize=(7.2, height), layout="constrained")


def _legend(figure, handles: Sequence[artist.Artist]):
  """Adds the legend below, in as few rows as fit; the figure grows with them.

  Entries fill a column first.
  """
  for rows in range(1, len(handles) + 1):
    columns = -(-len(handles) // rows)
    place = dict(loc="outside lower center", ncols=columns)
    added = figure.legend(handles=handles, columnspacing=1.2, **place)
    if added.get_window_extent().width <= figure.bbox.width:
      break
    added.remove()
  figure.set_figheight(figure.get_figheight() + 0.18 * (rows - 1))
  return figure


def _key(label: str, color: str = style.NEUTRAL, **look: Any) -> lines.Line2D:
  """A legend entry without data."""
  return lines.Line2D([], [], color=color, label=label, **look)


def _percent(values):
  return 100 * np.asarray(values, np.float64)


def robustness(content: dict) -> figure_lib.Figure:
  """Accuracy over severity, a panel a scenario; bars where there is one."""
  frame = pd.DataFrame(content["accuracy"])
  looks = style.net_looks(content["nets"])
  shown = [net for net in content["nets"] if net in {*frame["net"]}]
  scenarios = frame["scenario"].unique()
  rows = -(-len(scenarios) // 3)
  figure = _figure(0.6 + 2.4 * rows)
  # Scales of their own: faults cost a few points, variation all of them.
  grid = figure.subplots(rows, min(len(scenarios), 3), squeeze=False)
  for panel in grid.flat[len(scenarios) :]:
    panel.remove()
  for panel, scenario in zip(grid.flat, scenarios, strict=False):
    effect = style.effect(scenario)
    panel.set_title(effect.title)
    swept = frame[frame["scenario"] == scenario]
    if swept["severity"].nunique() == 1:
      severity = style.severity(scenario, swept["severity"].iloc[0])
      panel.set_xlabel(severity.removeprefix(scenario.rpartition(": ")[0]))
      _bars(panel, swept.set_index("net"), looks)
    else:
      panel.set_xlabel(effect.label)
      for net in reversed(shown):
        _lines(panel, swept[swept["net"] == net], effect.scale, looks[net])
      _spread(panel, effect.scale * swept["severity"])
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 101))
    if low - 0.1 * (high - low) < 100 * content["chance"]:
      panel.axhline(100 * content["chance"], **_GREY)
  for panel in grid[:, 0]:
    panel.set_ylabel("test accuracy [%]")
  handles = [
    *(_key(x.name, x.color, marker=x.marker) for x in map(looks.get, shown)),
    _key("mean of chips"),
    patches.Patch(color=style.NEUTRAL, alpha=0.4, lw=0, label=_INTERVAL),
    _key("5th percentile", ls="--", lw=0.8),
    _key("chance", **_GREY),
  ]
  return _legend(figure, handles)


def _lines(panel, rows, scale, look):
  """One net's mean, interval and 5th percentile."""
  if rows.empty:
    return
  severities, color = scale * rows["severity"], look.color
  low, high = _percent([*rows["ci95_total"]]).T
  panel.fill_between(severities, low, high, color=color, alpha=0.25, lw=0)
  panel.plot(severities, 100 * rows["p5"], color=color, ls="--", lw=0.8)
  panel.plot(severities, 100 * rows["mean"], color=color, marker=look.marker)
  panel.margins(x=0.03)


def _bars(panel, rows, looks):
  """The nets' means, intervals and 5th percentiles at the only severity."""
  for place, (net, row) in enumerate(rows.iterrows()):
    look, (low, high) = looks[net], _percent(row["ci95_total"])
    panel.bar(place, 100 * row["mean"], 0.7, color=look.color, alpha=0.6)
    panel.vlines(place, low, high, color=look.color, lw=5)
    panel.plot(place, 100 * row["mean"], color=look.color, marker=look.marker)
    ends = dict(xmin=place - 0.35, xmax=place + 0.35)
    panel.hlines(100 * row["p5"], **ends, color=style.TEXT, ls="--", lw=1)
  panel.set_xticks([])
  panel.grid(axis="x", visible=False)


def _spread(panel, severities):
  """Severities over several decades on a logarithmic axis, 0 included."""
  positive = severities[severities > 0]
  if positive.max() > 200 * positive.min():
    panel.set_xscale("symlog", linthresh=positive.min())


def trajectories(content: dict) -> figure_lib.Figure:
  """Scores during the search, and of the candidates on fresh chips."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  main = search["main_budget"]
  figure = _figure(3.2)
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
  # The found net's method is the first: in front.
  for name, trajectory in reversed(search["trajectory"].items()):
    color = looks[name].color
    best, mean = (_percent(trajectory[k][main]) for k in ("best", "mean"))
    scored = search["evaluations"] / len(mean) * np.arange(1, len(mean) + 1)
    left.plot(scored, mean, color=color, lw=0.8, alpha=0.7)
    left.plot(scored, best, color=color, drawstyle="steps-post", lw=1.8)
  left.set(title="While searching: scores on each update's own chips")
  left.set(ylabel=_SCORE, xlabel="width vectors scored, each method")
  left.xaxis.set_major_formatter("{x:,.0f}")
  left.margins(x=0.02)
  shown = [n for n in looks if facts.candidates_of(search, n, main)]
  for place, name in enumerate(shown):
    group = facts.candidates_of(search, name, main)
    spread = np.linspace(-0.25, 0.25, len(group)) if group[1:] else 0
    scores = _percent([candidate["score"] for candidate in group])
    look = dict(color=looks[name].color, marker=looks[name].marker, alpha=0.8)
    right.plot(place + spread, scores, **look, ls="none")
  names = [looks[name].name for name in shown]
  turned = dict(rotation=40, ha="right", rotation_mode="anchor")
  right.set_xticks(range(len(shown)), names, **turned)
  right.set(xlim=(-0.6, len(shown) - 0.4), title="Candidates, on fresh chips")
  right.grid(axis="x", visible=False)
  handles = [
    *(_key(looks[n].name, looks[n].color, lw=3) for n in search["trajectory"]),
    _key("best so far", lw=1.8),
    _key("mean of the update's proposals", lw=0.8),
  ]
  return _legend(figure, handles)


def front(content: dict) -> figure_lib.Figure:
  """Robust score against energy of all candidates; what none beats in both."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  figure, handles = _figure(3.4), []
  panel = figure.subplots()
  for name, group in search["candidates"].items():
    if not group:
      continue
    is_uniform = name == "uniform"
    look = dict(
      color=looks[name].color,
      marker=looks[name].marker,
      ls="none",
      markersize=7 if is_uniform else 4,
      markeredgecolor=style.TEXT if is_uniform else looks[name].color,
      alpha=1 if is_uniform else 0.65,
    )
    energies = [candidate["cost"]["energy_joule"] for candidate in group]
    panel.plot(energies, _percent([c["score"] for c in group]), **look)
    handles.append(_key(looks[name].name, **look))
  points = pd.DataFrame(search["front"])
  line = dict(color=style.TEXT, lw=1, drawstyle="steps-post", zorder=1.5)
  panel.plot(points["energy_joule"], 100 * points["score"], **line)
  ring = dict(color=style.TEXT, marker="o", ls="none", markersize=10)
  ring["markerfacecolor"] = "none"
  method, main = search["method"], search["main_budget"]
  found = facts.candidates_of(search, method, main)[0]
  panel.plot(found["cost"]["energy_joule"], 100 * found["score"], **ring)
  handles += [_key("not dominated", style.TEXT, lw=1), _key("found", **ring)]
  if search["cost"] == "energy":
    for budget in search["budgets"]:
      panel.axvline(budget, **_GREY)
    handles.append(_key("budgets", **_GREY))
  panel.set(title="Candidates of all methods and budgets, on fresh chips")
  technology = content["hardware"]["technology"]
  panel.set(ylabel=_SCORE, xlabel=f"energy of one image, {technology}")
  panel.xaxis.set_major_formatter(ticker.EngFormatter("J"))
  return _legend(figure, handles)


def widths(content: dict) -> figure_lib.Figure:
  """Widths of every layer of every vector, over the choices of the space.

  Vectors of nets have a colour; those for comparison alone are grey.
  """
  looks = _vector_looks(content)
  trained = {net_names.parse(net).widths for net in content["nets"]}
  trained |= {name for name, v in content["vectors"].items() if v["compared"]}
  same = facts.distinct(content, compared=False)
  figure, handles, greys = _figure(3.1), [], 0
  panel = figure.subplots()

  def profile(vector, label, **look):
    layers = np.arange(1, len(vector) + 1)
    panel.plot(layers, vector, drawstyle="steps-mid", **look)
    handles.append(_key(label, **look))

  for place, (vector, names) in enumerate(same.items()):
    label = "; ".join(looks[name].name for name in names)
    if trained.isdisjoint(names):
      dashes = _DASHES[greys % 3]
      profile(vector, label, color=style.NEUTRAL, ls=dashes, lw=0.9)
      greys += 1
      continue
    color, is_front = looks[names[0]].color, place == 0
    profile(
      vector,
      label,
      color=color,
      marker=looks[names[0]].marker,
      # Filled in front alone, so that those behind show.
      markerfacecolor=color if is_front else "none",
      markersize=4 if is_front else 6.5,
      lw=1.8 if is_front else 1.2,
      zorder=3 - place / len(same),
    )
  for place, (budget, vector) in enumerate(facts.other_budgets(content)):
    look = dict(color=looks["found"].color, ls=_DASHES[place % 3], lw=1)
    profile(vector, f"found within {budget}", **look, zorder=1.9)
  if content["space"]:
    ends = [(choices[0], choices[-1]) for choices in content["space"]]
    edges, ends = np.arange(len(ends) + 1) + 0.5, [*ends, ends[-1]]
    shade = dict(step="post", color=style.SHADE, lw=0, zorder=0)
    filled = panel.fill_between(edges, *np.array(ends).T, **shade)
    filled.set_label("choices of the space")
    handles.append(filled)
  panel.set_yscale("log", base=2)
  panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
  panel.set(ylabel="width [channels]")
  panel.set(xlabel="layer of the width vector, 1 = stem")
  num_layers = len(vector)
  panel.set(xlim=(0.5, num_layers + 0.5), xticks=range(1, num_layers + 1))
  panel.grid(axis="x", visible=False)
  _groups(panel, content["group_starts"], num_layers)
  return _legend(figure, handles)


def _vector_looks(content):
  """How nets are drawn, and vectors that aren't nets'."""
  nets = content["nets"]
  every = dict.fromkeys([*nets, *content["vectors"]])
  return {**style.net_looks(every), **style.net_looks(nets)}


def _groups(panel, starts, num_layers):
  """Marks and names the network's groups of blocks."""
  ends = [*starts[1:], num_layers + 1]
  for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
    name = f"group {place + 1}" if place else "stem and group 1"
    above = dict(transform=panel.get_xaxis_transform(), ha="center")
    panel.text((start + end - 1) / 2, 1.02, name, **above)
    if end <= num_layers:
      panel.axvline(end - 0.5, **_GREY)


def utilisation(content: dict) -> figure_lib.Figure:
  """Used share of the cells of every product's arrays, bars a vector."""
  same, looks = facts.distinct(content), _vector_looks(content)
  products = content["hardware"]["products"]
  figure = _figure(2.9)
  panel = figure.subplots()
  width = 0.84 / len(same)
  for place, names in enumerate(same.values()):
    panel.bar(
      np.arange(len(products)) + width * (place - (len(same) - 1) / 2),
      _percent(content["vectors"][names[0]]["cells"]),
      width,
      color=looks[names[0]].color,
      label="; ".join(looks[name].name for name in names),
    )
  rows, columns = content["hardware"]["tile_shape"]
  panel.set(title=f"Used cells of arrays of {rows} x {columns}")
  panel.set(ylabel="used cells [%]", ylim=(0, 103))
  short = [p.replace("stage", "").replace("_block", ".") for p in products]
  panel.set_xticks(range(len(products)), short, rotation=90, fontsize=7)
  panel.set(xlabel="product: group.block/layer")
  panel.set(xlim=(-0.6, len(products) - 0.4))
  panel.grid(axis="x", visible=False)
  return _legend(figure, panel.containers)


def components(content: dict) -> figure_lib.Figure:
  """Energy and area of every vector, stacked by component."""
  same = facts.distinct(content)
  vectors = [content["vectors"][names[0]] for names in same.values()]
  labels = ["\n".join(map(style.net_name, names)) for names in same.values()]
  figure = _figure(0.9 + 0.28 * max(3, len(vectors)))
  row = figure.subplots(1, 2, sharey=True)
  technology = content["hardware"]["technology"]
  colors = dict(zip(cost.COMPONENTS, style.PARTS, strict=True))
  for panel, field in zip(row, ("energy_joule", "area_m2"), strict=True):
    start = np.zeros(len(vectors))
    for part, color in colors.items():
      length = np.array([v["components"][part][field] for v in vectors])
      panel.barh(labels, length, 0.7, start, color=color)
      start += length
    panel.grid(axis="y", visible=False)
  row[0].set_xlabel(f"energy of one image, {technology}")
  row[0].xaxis.set_major_formatter(ticker.EngFormatter("J"))
  row[1].set_xlabel(f"area [mm²], {technology}")
  row[1].xaxis.set_major_formatter(lambda value, _: f"{1e6 * value:g}")
  row[0].invert_yaxis()
  handles = [_key(p.replace("_", " "), c, lw=5) for p, c in colors.items()]
  return _legend(figure, handles)


def training(content: dict) -> figure_lib.Figure:
  """Loss and accuracy of the super-net and of the nets over their steps."""
  curves = content["curves"]
  rows = [
    ("Super-net", [stage for stage in curves if stage == "pretrain"]),
    ("Nets from scratch", [stage for stage in curves if stage != "pretrain"]),
  ]
  rows = [row for row in rows if row[1]]
  looks = style.net_looks(content["nets"])
  figure, keys = _figure(0.5 + 2.1 * len(rows)), {}
  grid = figure.subplots(len(rows), 2, squeeze=False)
  for (loss, accuracy), (title, stages) in zip(grid, rows, strict=True):
    for stage in stages:
      look = looks.get(stage.removeprefix("train/"))
      for metric, points in curves[stage].items():
        panel = loss if metric == "loss" else accuracy
        name, line = _curve(panel, metric, points, look)
        keys[name] = _key(name, **line)
    loss.set(title=f"{title}: training loss", ylabel="loss [nat]", yscale="log")
    low, high = loss.get_ylim()  # of many decades, more labels would overlap
    subs = (1, 2, 5) if high < 1e3 * low else (1,)
    loss.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(ticker.NullFormatter())
    accuracy.set(title=f"{title}: accuracy on training batches")
    accuracy.set(ylabel="accuracy [%]")
    for panel in (loss, accuracy):
      if "pretrain" in stages:
        panel.axvline(content["config"]["pretrain.warmup_steps"], **_GREY)
      panel.set_xlabel("optimiser step")
      panel.margins(x=0.02)
      panel.xaxis.set_major_formatter("{x:,.0f}")
  return _legend(figure, [*keys.values()])


def _curve(panel, metric, points, look):
  """Draws a metric of a stage; returns the name and style of its legend.

  Args:
    panel: of it.
    metric: "loss", "accuracy" or one that begins so.
    points: {"step", "value"}.
    look: of the net; None: the super-net.
  """
  scale = 1 if metric == "loss" else 100
  values = scale * pd.Series(points["value"], points["step"], np.float64)
  every = -(-len(values) // _MOST_POINTS)
  if metric == "accuracy_validation":
    line = dict(ls="--", lw=0.8, markersize=3.5, markerfacecolor=style.BACK)
    count = len(values)
    gap = -(-count // 20)  # markers that don't touch, one at the end
    spread = dict(markevery=((count - 1) % gap, gap), marker=look.marker)
    panel.plot(values, color=look.color, **line, **spread)
    return "on validation images", dict(line, marker="o")
  if look is None:
    is_mean = metric == "accuracy_mean"
    name = "super-net, mean of a step's widths" if is_mean else "super-net"
    line = dict(color=style.NEUTRAL, ls="--" if is_mean else "-")
  else:
    name, line = look.name, dict(color=look.color)
  # Running mean over a fortieth of the curve.
  width = min(len(values), 2 * (len(values) // 80) + 1)
  smooth = values.rolling(width, center=True, min_periods=1).mean()
  panel.plot(values[::every], **line, lw=0.5, alpha=0.3)
  panel.plot(smooth[::every], **line)
  return name, line
