"""The report's figures, drawn from report.json's content alone.

Each is made as SVG, for the page, with what it shows under the pointer and
whose it is (`_mark`), as PDF, and as a table of its values.
"""

from collections.abc import Iterator, Sequence
import io
import json
import textwrap
from typing import Any, NamedTuple
from xml.dom import minidom

import matplotlib
from matplotlib import artist
from matplotlib import axes
from matplotlib import figure as figure_lib
from matplotlib import lines
from matplotlib import patches
from matplotlib import ticker
import numpy as np
import pandas as pd
from scipy import stats

from hawis_jax import cost
from hawis_jax.networks import net_names
from hawis_jax.report import facts
from hawis_jax.report import style
from hawis_jax.robustness import statistics
from hawis_jax.search import selection

# Every figure that `draw` may return, in the page's order.
NAMES = ("robustness", "chips", "yield", "trained_front", "search", "front")
NAMES += (
  "hypervolume",
  "importance",
  "scored",
  "widths",
  "utilisation",
  "components",
  "training",
)
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
  "pdf.fonttype": 42,
  **{
    f"{part}color": style.TEXT
    for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")
  },
}
_METADATA = {
  "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
  "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
_DASHES = ("--", ":", "-.")  # of lines that share a colour
_INTERVAL = "95 % interval over chips and images"
_GREY = dict(color=style.NEUTRAL, ls=":", lw=1)
_SCORE = "robust score [% accuracy]"
_MOST_POINTS = 500  # of a curve: more are not seen


class Drawn(NamedTuple):
  """Holds a figure's files."""

  svg: str
  pdf: bytes
  csv: str


_Made = tuple[figure_lib.Figure, pd.DataFrame]  # a figure, and its values


def draw(content: dict) -> dict[str, Drawn]:
  """Returns the figures that the content has data for."""
  search, has_vectors = content["search"], bool(facts.distinct(content))
  chips = [row for row in content["accuracy"] if "accuracy" in row]
  is_there = {
    robustness: content["main_net"],
    chip_accuracies: chips,
    yields: chips,
    trained_front: len(_priced(content)) > 1,
    trajectories: search,
    front: search,
    # With a penalty a vector may cost more than its budget.
    hypervolumes: search
    and search["budgets"][1:]
    and not content["config"]["search.penalty"],
    importance: search and search["importance"],
    scored: search and search["scored"],
    widths: True,
    utilisation: has_vectors,
    components: has_vectors,
    training: content["curves"],
  }
  return {
    name: draw_one(figure, content)
    for name, (figure, there) in zip(NAMES, is_there.items(), strict=True)
    if there
  }


def draw_one(figure: Any, content: dict) -> Drawn:
  """Returns one of this module's figures: content -> (figure, values)."""
  with matplotlib.rc_context(_STYLE):
    drawn, values = figure(content)
    svg, pdf = io.StringIO(), io.BytesIO()
    drawn.savefig(svg, format="svg", metadata=_METADATA["svg"])
    drawn.set_layout_engine("none")  # it is laid out
    drawn.savefig(pdf, format="pdf", metadata=_METADATA["pdf"])
  csv = values.to_csv(index=False, lineterminator="\n")
  return Drawn(_labelled(svg.getvalue()), pdf.getvalue(), csv)


def _mark(drawn: artist.Artist, net: str | None, *tips: str) -> None:
  """Says whose an artist is, and what it shows: in all, or at every marker."""
  drawn.set_gid(json.dumps([net, *tips]))


def _labelled(svg):
  """The SVG with what `_mark` said: `data-net`, and titles."""
  document = minidom.parseString(svg)
  for group in document.getElementsByTagName("g"):
    if not group.getAttribute("id").startswith("["):
      continue
    net, *tips = json.loads(group.getAttribute("id"))
    group.removeAttribute("id")
    if net:
      group.setAttribute("data-net", net)
    marks = [group] if len(tips) < 2 else group.getElementsByTagName("use")
    for mark, tip in zip(marks, tips, strict=len(tips) > 1):
      title = document.createElement("title")
      title.appendChild(document.createTextNode(tip))
      mark.insertBefore(title, mark.firstChild)
  return document.documentElement.toxml()


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


def _panels(
  frame: pd.DataFrame,
) -> tuple[figure_lib.Figure, Iterator[tuple[axes.Axes, str, pd.DataFrame]]]:
  """A figure with a panel a scenario; a row of them where statistics differ.

  Returns:
    the figure; (panel, scenario, its rows) of every panel.
  """
  kinds, scenarios = frame["statistics"].unique(), frame["scenario"].unique()
  columns = len(kinds) if len(kinds) > 1 else min(len(scenarios), 3)
  rows = -(-len(kinds) * len(scenarios) // columns)
  figure = _figure(0.6 + 2.3 * rows)
  # Scales of their own: faults cost a few points, variation all of them.
  shared = "row" if len(kinds) > 1 else "none"
  grid = figure.subplots(rows, columns, squeeze=False, sharey=shared)
  places = [(scenario, kind) for scenario in scenarios for kind in kinds]
  for panel in grid.flat[len(places) :]:
    panel.remove()

  def panels():
    for panel, (scenario, kind) in zip(grid.flat, places, strict=False):
      title = style.effect(scenario).title
      if len(kinds) > 1:
        title += f"\n{style.STATISTICS[kind]}"
      panel.set_title(title)
      is_shown = frame["scenario"].eq(scenario) & frame["statistics"].eq(kind)
      yield panel, scenario, frame[is_shown]

  return figure, panels()


def _told(row):
  """A row of accuracies in words."""
  mean = style.estimate(row["mean"], row["ci95_total"])
  return f"{style.net_name(row['net'])}, {row['label']}: {mean} %"


def _wrapped(label, known=""):
  """A label as wide as a panel, without what is known of it."""
  return textwrap.fill(label.removeprefix(known).strip(), 44)


def _net_keys(looks, shown):
  """A legend entry for every net."""
  return [
    _key(
      look.name,
      look.color,
      marker=look.marker,
      ls=look.dashes,
      markerfacecolor=look.face,
    )
    for look in map(looks.get, shown)
  ]


def robustness(content: dict) -> _Made:
  """Accuracy over severity, a panel a scenario and its statistics."""
  frame = pd.DataFrame(content["accuracy"])
  looks = style.net_looks(content["nets"])
  shown = [net for net in content["nets"] if net in {*frame["net"]}]
  figure, panels = _panels(frame)
  for panel, scenario, swept in panels:
    effect = style.effect(scenario)
    is_one = swept["severity"].nunique() == 1
    panel.set_xlabel(effect.label)
    if is_one:
      name, colon, _ = scenario.rpartition(": ")  # it is the panel's title
      panel.set_xlabel(_wrapped(swept["label"].iloc[0], name + colon))
      panel.set(xticks=[], xlim=(-0.7, len(shown) - 0.3))
      panel.grid(axis="x", visible=False)
    for place, net in reversed([*enumerate(shown)]):
      rows = swept[swept["net"] == net]
      severities = effect.scale * rows["severity"]
      _swept(panel, rows, [place] if is_one else severities, looks[net])
    if not is_one:
      panel.margins(x=0.03)
      _spread(panel, effect.scale * swept["severity"])
    if panel.get_subplotspec().is_first_col():
      panel.set_ylabel("test accuracy [%]")
  # Only now: panels that share a scale have all their lines.
  limits = {panel: panel.get_ylim() for panel in figure.axes}
  for panel, (low, high) in limits.items():
    panel.set_ylim(max(low, 0), min(high, 101))
    if low - 0.1 * (high - low) < 100 * content["chance"]:
      panel.axhline(100 * content["chance"], **_GREY)
  handles = [
    *_net_keys(looks, shown),
    patches.Patch(color=style.NEUTRAL, alpha=0.4, lw=0, label=_INTERVAL),
    _key("chance", **_GREY),
  ]
  columns = ["net", "statistics", "scenario", "severity", "chips", "mean"]
  values = frame[[*columns, "p5"]].copy()
  values[["low95", "high95"]] = [*frame["ci95_total"]]
  values["failed_share"] = [failed["share"] for failed in frame["failed"]]
  return _legend(figure, handles), values


def _swept(panel, rows, places, look):
  """One net's means and their intervals at some places."""
  if rows.empty:
    return
  net, means = rows["net"].iloc[0], 100 * rows["mean"]
  low, high = _percent([*rows["ci95_total"]]).T
  if len(rows) == 1:
    bar = panel.vlines(places, low, high, color=look.color, alpha=0.4, lw=5)
  else:
    shade = dict(color=look.color, alpha=0.14, lw=0)
    bar = panel.fill_between(places, low, high, **shade)
  _mark(bar, net)
  own = dict(ls=look.dashes, marker=look.marker, markerfacecolor=look.face)
  (line,) = panel.plot(places, means, color=look.color, **own)
  _mark(line, net, *map(_told, rows.to_dict("records")))


def _spread(panel, severities):
  """Severities over several decades on a logarithmic axis, 0 included."""
  positive = severities[severities > 0]
  if positive.max() > 200 * positive.min():
    panel.set_xscale("symlog", linthresh=positive.min())


def _drawn_chips(content):
  """What has drawn chips at its scenario's harshest severity, and its looks."""
  rows = [row for row in content["accuracy"] if "accuracy" in row]
  frame = pd.DataFrame(rows)
  looks = style.net_looks(content["nets"])
  return frame, looks, [net for net in looks if net in {*frame["net"]}]


def chip_accuracies(content: dict) -> _Made:
  """Accuracy of every chip at the harshest severities, and the mean's."""
  frame, looks, shown = _drawn_chips(content)
  figure, panels = _panels(frame)
  for panel, _, rows in panels:
    panel.set_xlabel(_wrapped(rows["label"].iloc[0]))
    for row in rows.to_dict("records"):
      look, place = looks[row["net"]], shown.index(row["net"])
      chips = _percent(row["accuracy"])
      # Spread evenly, so that alike ones show, and alike every time.
      beside = place + 0.6 * (0.618 * np.arange(len(chips)) % 1 - 0.5)
      dots = dict(marker="o", ls="none", markersize=2.5, mew=0, alpha=0.5)
      _mark(panel.plot(beside, chips, color=look.color, **dots)[0], row["net"])
      ends = _percent(row["ci95"])
      bar = panel.vlines([place], *ends[:, None], color=style.TEXT, lw=2.5)
      _mark(bar, row["net"])
      own = dict(marker=look.marker, markersize=6, color=look.color)
      if look.face == "none":
        own |= dict(markerfacecolor=style.BACK)
      (mean,) = panel.plot(place, 100 * row["mean"], **own)
      worst = f"worst chip {chips.min():.2f} %, best {chips.max():.2f} %"
      _mark(mean, row["net"], f"{_told(row)}; {worst}")
    panel.set(xlim=(-0.7, len(shown) - 0.3), xticks=[])
    panel.grid(axis="x", visible=False)
    if panel.get_subplotspec().is_first_col():
      panel.set_ylabel("test accuracy [%]")
  ends = "mean of chips, 95 % interval over chips"
  handles = [*_net_keys(looks, shown), _key(ends, style.TEXT, lw=2.5)]
  columns = ["net", "statistics", "scenario", "severity", "accuracy"]
  return _legend(figure, handles), frame[columns].explode("accuracy")


def yields(content: dict) -> _Made:
  """Share of chips that are at least so accurate, with exact intervals."""
  frame, looks, shown = _drawn_chips(content)
  figure, panels = _panels(frame)
  values = []
  for panel, _, rows in panels:
    severity = rows["label"].iloc[0]
    panel.set_xlabel(_wrapped(f"accuracy [%] at {severity}"))
    for row in reversed(rows.to_dict("records")):
      look, chips = looks[row["net"]], np.sort(row["accuracy"])
      accuracy, count = np.unique(chips), len(chips)
      least = count - np.searchsorted(chips, accuracy)  # chips at least so good
      # Clopper and Pearson, point by point.
      low = stats.beta.ppf(0.025, least, count - least + 1)
      high = stats.beta.ppf(0.975, least + 1, np.maximum(count - least, 1e-9))
      high = np.where(least == count, 1, high)
      share = least / count
      steps = dict(step="pre", color=look.color, alpha=0.12, lw=0)
      band = panel.fill_between(100 * accuracy, 100 * low, 100 * high, **steps)
      _mark(band, row["net"])
      # From all chips at the worst's accuracy to none beyond the best's.
      x, y = [*accuracy, accuracy[-1]], [*share, 0]
      line = dict(drawstyle="steps-pre", color=look.color, ls=look.dashes)
      (curve,) = panel.plot(_percent(x), _percent(y), **line)
      tip = f"{look.name}, {severity}: half of the chips reach "
      _mark(curve, row["net"], f"{tip}{style.percent(np.median(chips))} %")
      place = {k: row[k] for k in ("net", "statistics", "scenario", "severity")}
      values += [
        pd.DataFrame(
          dict(place, accuracy=accuracy, share=share, low95=low, high95=high)
        )
      ]
    panel.set_ylim(0, 103)
    if panel.get_subplotspec().is_first_col():
      panel.set_ylabel("share of chips [%]")
  patch = dict(color=style.NEUTRAL, alpha=0.25, lw=0)
  label = "95 % interval over chips, point by point"
  handles = [*_net_keys(looks, shown), patches.Patch(label=label, **patch)]
  return _legend(figure, handles), pd.concat(values)


def _priced(content):
  """1-bit nets that have drawn chips, by their energies: {net: [J]}."""
  energies = {n: net["energy_joule"] for n, net in content["nets"].items()}
  chips = {row["net"] for row in content["accuracy"] if "accuracy" in row}
  return {n: e for n, e in energies.items() if e is not None and n in chips}


def trained_front(content: dict) -> _Made:
  """Accuracy on chips against energy, of trained nets; lines join budgets."""
  frame, looks, _ = _drawn_chips(content)
  energies = _priced(content)
  frame = frame[frame["net"].isin(energies)]
  frame = frame.assign(energy_joule=frame["net"].map(energies))
  figure, panels = _panels(frame)
  for panel, _, rows in panels:
    severity = rows["label"].iloc[0]
    panel.set_xlabel(_wrapped(f"energy of one image, at {severity}"))
    panel.xaxis.set_major_formatter(ticker.EngFormatter("J"))
    panel.xaxis.set_major_locator(ticker.MaxNLocator(4))
    for row in rows.to_dict("records"):
      look, energy = looks[row["net"]], row["energy_joule"]
      ends = _percent(row["ci95_total"])
      bar = panel.vlines([energy], *ends[:, None], color=look.color, lw=1.5)
      _mark(bar, row["net"])
      own = dict(marker=look.marker, markersize=6, color=look.color)
      own["markerfacecolor"] = style.BACK if look.face == "none" else look.face
      (mean,) = panel.plot(energy, 100 * row["mean"], **own)
      joule = style.quantity("energy", energy)
      _mark(mean, row["net"], f"{_told(row)}; {joule}")
    for family in _families(rows["net"]):
      line = rows[rows["net"].isin(family)].sort_values("energy_joule")
      own = dict(color=looks[family[0]].color, lw=0.8, zorder=1.5)
      panel.plot(line["energy_joule"], 100 * line["mean"], **own)
    if panel.get_subplotspec().is_first_col():
      panel.set_ylabel("test accuracy [%]")
  columns = [
    "net",
    "statistics",
    "scenario",
    "severity",
    "energy_joule",
    "mean",
  ]
  values = frame[columns].copy()
  values[["low95", "high95"]] = [*frame["ci95_total"]]
  return _legend(figure, _net_keys(looks, energies)), values


def _families(nets):
  """Nets found alike within several budgets, and trained alike."""
  families = {}
  for net in nets:
    vector, kind, on_chips = net_names.parse(net)
    if net_names.is_searched(vector):
      key = vector.partition("_")[0], kind, on_chips
      families.setdefault(key, []).append(net)
  return [family for family in families.values() if len(family) > 1]


def importance(content: dict) -> _Made:
  """What a doubling of each layer's width brings, in the super-net."""
  frame = pd.DataFrame(content["search"]["importance"])
  figure = _figure(2.6)
  panel = figure.subplots()
  points = 100 * frame[["points", "low95", "high95"]]
  bars = dict(color=style.NEUTRAL, lw=1.5)
  panel.vlines(frame["layer"], points["low95"], points["high95"], **bars)
  dots = dict(color=style.TEXT, marker="o", ls="none")
  (line,) = panel.plot(frame["layer"], points["points"], **dots)
  tips = (
    f"layer {row['layer']}: "
    + style.estimate(row["points"], [row["low95"], row["high95"]], style.points)
    for row in frame.to_dict("records")
  )
  _mark(line, None, *tips)
  panel.axhline(0, **_GREY)
  panel.set(ylabel="points a doubling", xticks=frame["layer"])
  panel.set(xlabel="layer of the width vector, 1 = stem")
  panel.grid(axis="x", visible=False)
  handles = [
    _key("doubling one width, the others as they are", ls="none", marker="o"),
    _key("95 % interval", lw=1.5),
  ]
  return _legend(figure, handles), frame


def scored(content: dict) -> _Made:
  """Parallel coordinates of scored vectors: a line each, by its advantage."""
  search = content["search"]
  vectors = np.array(search["scored"]["widths"])
  advantages = np.array(search["scored"]["advantage"])  # the worst first
  figure = _figure(3.1)
  panel = figure.subplots()
  layers = np.arange(1, vectors.shape[1] + 1)
  fifths = np.array_split(np.arange(len(vectors)), len(style.RAMP))
  handles = []
  for color, fifth in zip(style.RAMP, fifths, strict=True):
    if not len(fifth):
      continue
    panel.plot(layers, vectors[fifth].T, color=color, lw=0.6, alpha=0.7)
    ends = map(style.points, (advantages[fifth[0]], advantages[fifth[-1]]))
    handles.append(_key(" to ".join(ends), color, lw=3))
  look = style.net_looks(["found"])["found"]
  line = dict(color=look.color, marker=look.marker, lw=1.8)
  (found,) = panel.plot(layers, search["found"], **line)
  _mark(found, "found", *(f"found: {width}" for width in search["found"]))
  handles.append(_key("found", **line))
  panel.set_yscale("log", base=2)
  panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
  panel.set(ylabel="width [channels]", xticks=layers)
  panel.set(xlabel="layer of the width vector, 1 = stem")
  values = pd.DataFrame(vectors, columns=[f"layer_{k}" for k in layers])
  values.insert(0, "advantage", advantages)
  return _legend(figure, handles), values


def trajectories(content: dict) -> _Made:
  """Scores during the search, and of the candidates on fresh chips."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  main, values = search["main_budget"], []
  figure = _figure(3.2)
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
  # The first method, whose candidates may be found, is in front.
  for name, trajectory in reversed(search["trajectory"].items()):
    color = looks[name].color
    best, mean = (_percent(trajectory[k][main]) for k in ("best", "mean"))
    scored = search["evaluations"] / len(mean) * np.arange(1, len(mean) + 1)
    columns = dict(scored=scored, mean=mean / 100, best=best / 100)
    values.append(pd.DataFrame(dict(method=name, **columns)))
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
    scores, error = _scores(group)
    look = dict(color=looks[name].color, marker=looks[name].marker, alpha=0.8)
    right.errorbar(place + spread, scores, error, **look, ls="none", lw=0.7)
  names = [looks[name].name for name in shown]
  short = [name.partition(" (")[0] for name in names]
  names = short if len({*short}) == len(short) else names
  turned = dict(rotation=40, ha="right", rotation_mode="anchor")
  right.set_xticks(range(len(shown)), names, **turned)
  right.set(xlim=(-0.6, len(shown) - 0.4), title="Candidates, on fresh chips")
  right.grid(axis="x", visible=False)
  handles = [
    *(_key(looks[n].name, looks[n].color, lw=3) for n in search["trajectory"]),
    _key("best so far", lw=1.8),
    _key("mean of the update's proposals", lw=0.8),
  ]
  return _legend(figure, handles), pd.concat(values)


def _scores(group):
  """Scores of candidates, and half of their means' intervals over chips."""
  ends = [statistics.mean_interval(c["chips"], 0, 1) for c in group]
  half = np.diff(_percent(ends), axis=1)[:, 0] / 2
  return _percent([candidate["score"] for candidate in group]), half


def front(content: dict) -> _Made:
  """Robust score against energy of all candidates; what none beats in both."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  figure, handles, values = _figure(3.4), [], []
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
    scores, error = _scores(group)
    bars = dict(color=looks[name].color, lw=0.6, alpha=0.5)
    panel.vlines(energies, scores - error, scores + error, **bars)
    tips = [
      f"{looks[name].name}: {score:.2f} %, {style.quantity('energy', energy)}"
      for score, energy in zip(scores, energies, strict=True)
    ]
    _mark(panel.plot(energies, scores, **look)[0], None, *tips)
    columns = dict(score=scores / 100, half95=error / 100)
    columns |= {k: [c[k] for c in group] for k in ("budget", "clean")}
    costs = pd.DataFrame([candidate["cost"] for candidate in group])
    values.append(pd.DataFrame(dict(method=name, **columns)).join(costs))
    handles.append(_key(looks[name].name, **look))
  points = pd.DataFrame(search["front"])
  line = dict(color=style.TEXT, lw=1, drawstyle="steps-post", zorder=1.5)
  panel.plot(points["energy_joule"], 100 * points["score"], **line)
  ring = dict(color=style.TEXT, marker="o", ls="none", markersize=10)
  ring["markerfacecolor"] = "none"
  found = facts.found_candidate(search)
  panel.plot(found["cost"]["energy_joule"], 100 * found["score"], **ring)
  handles += [_key("not dominated", style.TEXT, lw=1), _key("found", **ring)]
  if search["cost"] == "energy":
    for budget in search["budgets"]:
      panel.axvline(budget, **_GREY)
    handles.append(_key("budgets", **_GREY))
  panel.set(title="Candidates of all methods and budgets, on fresh chips")
  technology = search["hardware"]["technology"]
  panel.set(ylabel=_SCORE, xlabel=f"energy of one image, {technology}")
  panel.xaxis.set_major_formatter(ticker.EngFormatter("J"))
  return _legend(figure, handles), pd.concat(values)


def hypervolumes(content: dict) -> _Made:
  """How much of scores and budgets each method dominates, while it searches."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  figure, values = _figure(2.6), []
  panel = figure.subplots()
  for name, trajectory in reversed(search["trajectory"].items()):
    best = np.array(trajectory["best"])  # of each budget, after each update
    shares = selection.hypervolume(search["budgets"], best)
    scored = search["evaluations"] * len(best) / len(shares)
    scored = scored * np.arange(1, len(shares) + 1)
    columns = dict(scored=scored, hypervolume=shares)
    values.append(pd.DataFrame(dict(method=name, **columns)))
    look = dict(color=looks[name].color, drawstyle="steps-post", lw=1.8)
    panel.plot(scored, _percent(shares), **look)
  panel.set(title="Dominated by the best so far of every budget")
  panel.set(
    ylabel="hypervolume [%]",
    xlabel="width vectors scored for all budgets, each method",
  )
  panel.xaxis.set_major_formatter("{x:,.0f}")
  handles = [
    _key(looks[n].name, looks[n].color, lw=3) for n in search["trajectory"]
  ]
  return _legend(figure, handles), pd.concat(values)


def widths(content: dict) -> _Made:
  """Widths of every layer of every vector, over the choices of the space.

  Vectors of nets have a colour; those for comparison alone are grey.
  """
  looks = _vector_looks(content)
  trained = {net_names.parse(net).widths for net in content["nets"]}
  trained |= {name for name, v in content["vectors"].items() if v["compared"]}
  same = facts.distinct(content, compared=False)
  figure, handles, greys, values = _figure(3.1), [], 0, {}
  panel = figure.subplots()

  def profile(vector, label, **look):
    layers = np.arange(1, len(vector) + 1)
    (line,) = panel.plot(layers, vector, drawstyle="steps-mid", **look)
    _mark(line, None, f"{label}: {', '.join(map(str, vector))}")
    handles.append(_key(label, **look))
    values[label] = vector

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
  layers = pd.Series(range(1, num_layers + 1), name="layer")
  values = pd.DataFrame(values)
  return _legend(figure, handles), values.assign(layer=layers)


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


def utilisation(content: dict) -> _Made:
  """Used share of the cells of every product's arrays, bars a vector."""
  same, looks = facts.distinct(content), _vector_looks(content)
  products = content["hardware"]["products"]
  figure = _figure(2.9)
  panel = figure.subplots()
  width, values = 0.84 / len(same), {"product": products}
  for place, names in enumerate(same.values()):
    label = "; ".join(looks[name].name for name in names)
    values[label] = content["vectors"][names[0]]["cells"]
    bars = panel.bar(
      np.arange(len(products)) + width * (place - (len(same) - 1) / 2),
      _percent(values[label]),
      width,
      color=looks[names[0]].color,
      label=label,
    )
    for bar, product, share in zip(bars, products, values[label], strict=True):
      _mark(bar, None, f"{label}, {product}: {style.percent(share)} % used")
  rows, columns = content["hardware"]["tile_shape"]
  panel.set(title=f"Used cells of arrays of {rows} x {columns}")
  panel.set(ylabel="used cells [%]", ylim=(0, 103))
  short = [p.replace("stage", "").replace("_block", ".") for p in products]
  panel.set_xticks(range(len(products)), short, rotation=90, fontsize=7)
  panel.set(xlabel="product: group.block/layer")
  panel.set(xlim=(-0.6, len(products) - 0.4))
  panel.grid(axis="x", visible=False)
  return _legend(figure, panel.containers), pd.DataFrame(values)


def components(content: dict) -> _Made:
  """Energy and area of every vector, stacked by component."""
  same = facts.distinct(content)
  vectors = [content["vectors"][names[0]] for names in same.values()]
  labels = ["\n".join(map(style.net_name, names)) for names in same.values()]
  figure = _figure(0.9 + 0.28 * max(3, len(vectors)))
  row, values = figure.subplots(1, 2, sharey=True), {}
  technology = content["hardware"]["technology"]
  colors = dict(zip(cost.COMPONENTS, style.PARTS, strict=True))
  for panel, field in zip(row, ("energy_joule", "area_m2"), strict=True):
    start = np.zeros(len(vectors))
    for part, color in colors.items():
      length = np.array([v["components"][part][field] for v in vectors])
      bars = panel.barh(labels, length, 0.7, start, color=color)
      start += length
      values[part.replace("_", " "), field] = length
      kind = field.split("_")[0]
      for bar, amount in zip(bars, length, strict=True):
        tip = f"{part.replace('_', ' ')}: {style.quantity(kind, amount)}"
        _mark(bar, None, tip)
    panel.grid(axis="y", visible=False)
  row[0].set_xlabel(f"energy of one image, {technology}")
  row[0].xaxis.set_major_formatter(ticker.EngFormatter("J"))
  row[1].set_xlabel(f"area [mm²], {technology}")
  row[1].xaxis.set_major_formatter(lambda value, _: f"{1e6 * value:g}")
  row[0].invert_yaxis()
  handles = [_key(p.replace("_", " "), c, lw=5) for p, c in colors.items()]
  names = [label.replace("\n", "; ") for label in labels]
  columns = pd.DataFrame(values, names)
  columns.columns = [f"{part}, {field}" for part, field in values]
  return _legend(figure, handles), columns.rename_axis("net").reset_index()


def training(content: dict) -> _Made:
  """Loss and accuracy of the super-net and of the nets over their steps."""
  curves = content["curves"]
  rows = [
    ("Super-net", [stage for stage in curves if stage == "pretrain"]),
    ("Nets from scratch", [stage for stage in curves if stage != "pretrain"]),
  ]
  rows = [row for row in rows if row[1]]
  looks = style.net_looks(content["nets"])
  figure, keys, values = _figure(0.5 + 2.1 * len(rows)), {}, []
  grid = figure.subplots(len(rows), 2, squeeze=False)
  for (loss, accuracy), (title, stages) in zip(grid, rows, strict=True):
    for stage in stages:
      look = looks.get(stage.removeprefix("train/"))
      for metric, points in curves[stage].items():
        panel = loss if metric == "loss" else accuracy
        net = stage.removeprefix("train/")
        name, line = _curve(panel, metric, points, look, net)
        keys[name] = _key(name, **line)
        columns = dict(stage=stage, metric=metric, **points)
        values.append(pd.DataFrame(columns))
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
  return _legend(figure, [*keys.values()]), pd.concat(values)


def _curve(panel, metric, points, look, net):
  """Draws a metric of a stage; returns the name and style of its legend.

  Args:
    panel: of it.
    metric: "loss", "accuracy" or one that begins so.
    points: {"step", "value"}.
    look: of the net; None: the super-net.
    net: its name.
  """
  scale = 1 if metric == "loss" else 100
  values = scale * pd.Series(points["value"], points["step"], np.float64)
  every = -(-len(values) // _MOST_POINTS)
  if metric == "accuracy_validation":
    line = dict(ls="--", lw=0.8, markersize=3.5, markerfacecolor=style.BACK)
    count = len(values)
    gap = -(-count // 20)  # markers that don't touch, one at the end
    spread = dict(markevery=((count - 1) % gap, gap), marker=look.marker)
    (curve,) = panel.plot(values, color=look.color, **line, **spread)
    _mark(curve, net)
    return "on validation images", dict(line, marker="o")
  if look is None:
    is_mean = metric == "accuracy_mean"
    name = "super-net, mean of a step's widths" if is_mean else "super-net"
    line = dict(color=style.NEUTRAL, ls="--" if is_mean else "-")
  else:
    name, line = look.name, dict(color=look.color, ls=look.dashes)
  # Running mean over a fortieth of the curve.
  width = min(len(values), 2 * (len(values) // 80) + 1)
  smooth = values.rolling(width, center=True, min_periods=1).mean()
  faint = dict(line, ls="-", lw=0.5, alpha=0.3)
  for curve in (
    *panel.plot(values[::every], **faint),
    *panel.plot(smooth[::every], **line),
  ):
    _mark(curve, net)
  return name, line
