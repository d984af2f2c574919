"""Figures of widths, and of the hardware that they need."""

from matplotlib import figure as figure_lib
from matplotlib import ticker
import numpy as np

from hawis_jax import cost
from hawis_jax import nets
from hawis_jax.report import breakdown
from hawis_jax.report import canvas
from hawis_jax.report import looks
from hawis_jax.report import outcome
from hawis_jax.report import units

_DASHES = ("--", ":", "-.")  # of lines that share a colour
# Of components, none of a net's colours; neighbours differ in lightness.
_PART_COLORS = (
  "#1f3a5f",
  "#7fa3c7",
  "#8c6d1f",
  "#e3cf8f",
  "#3f6b3f",
  "#a9cda0",
  "#6b3a6b",
  "#cda9cd",
)


def widths(content: dict) -> figure_lib.Figure:
  """Widths a layer of every vector, over the limits of the space if searched.

  Vectors of nets have a colour; those for comparison alone are grey.
  """
  styles = looks.content_looks(content)
  trained = {nets.parse(net).widths for net in content["nets"]}
  trained |= {name for name, v in content["vectors"].items() if v["compared"]}
  same = breakdown.distinct(content, compared=False)
  figure = canvas.figure(3.1)
  figure.suptitle("Width of every layer", x=0.01, ha="left", fontsize=8.5)
  panel = figure.subplots()
  handles, greys = [], 0
  for place, (vector, names) in enumerate(same.items()):
    style = dict(color=canvas.NEUTRAL, ls=_DASHES[greys % 3], lw=0.9)
    if trained.isdisjoint(names):
      greys += 1
    else:
      front = place == 0  # filled markers, so that those behind show
      style = dict(
        color=styles[names[0]].color,
        marker=styles[names[0]].marker,
        lw=1.8 if front else 1.2,
        markersize=4 if front else 6.5,
        markerfacecolor=None if front else "none",
        zorder=3 - place / len(same),
      )
    label = "; ".join(styles[name].name for name in names)
    handles.append(_profile(panel, vector, label, style))
  handles += _other_budgets(panel, content, styles)
  if content["space"]:
    handles.append(_choices(panel, content["space"]))
  panel.set_yscale("log", base=2)
  panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
  panel.set_ylabel("width [channels]")
  panel.set_xlabel("layer of the width vector, 1 = stem")
  panel.set_xticks(np.arange(1, len(vector) + 1))
  panel.set_xlim(0.5, len(vector) + 0.5)
  panel.grid(axis="x", visible=False)
  _stages(panel, content["stage_starts"], len(vector))
  canvas.legend(figure, handles)
  return figure


def _profile(panel, vector, label, style):
  """Draws one vector; returns its legend entry."""
  layer = np.arange(1, len(vector) + 1)
  panel.plot(layer, vector, drawstyle="steps-mid", **style)
  return canvas.key(label, **style)


def _other_budgets(panel, content, styles):
  """Draws the found vectors of the other budgets; [legend entry]."""
  search, handles = content["search"], []
  for budget, entry in enumerate(outcome.found(search) if search else ()):
    if entry and budget != search["main_budget"]:
      style = dict(
        color=styles["found"].color,
        ls=_DASHES[len(handles) % 3],
        lw=1,
        zorder=1.9,
      )
      most = units.quantity(search["cost"], search["budgets"][budget])
      label = f"found, {most}"
      if search["cost"] in cost.COUNTS:
        label += f" {search['cost']}"
      handles.append(_profile(panel, entry["widths"], label, style))
  return handles


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


def utilisation(content: dict) -> figure_lib.Figure:
  """Used share of the cells of every product's arrays, bars a vector."""
  same, styles = breakdown.distinct(content), looks.content_looks(content)
  products = content["hardware"]["products"]
  figure = canvas.figure(2.9)
  panel = figure.subplots()
  width = 0.84 / len(same)
  for place, names in enumerate(same.values()):
    panel.bar(
      np.arange(len(products)) + width * (place - (len(same) - 1) / 2),
      canvas.percent(content["vectors"][names[0]]["cells"]),
      width,
      color=styles[names[0]].color,
      label="; ".join(styles[name].name for name in names),
    )
  rows, columns = content["hardware"]["tile_shape"]
  panel.set_title(f"Used cells of arrays of {rows} x {columns}")
  panel.set_ylabel("used cells [%]")
  panel.set_ylim(0, 103)
  short = [p.replace("stage", "").replace("_block", ".") for p in products]
  panel.set_xticks(range(len(products)), short, rotation=90, fontsize=6.5)
  panel.set_xlabel("product: stage.block/layer")
  panel.set_xlim(-0.6, len(products) - 0.4)
  panel.grid(axis="x", visible=False)
  canvas.legend(figure, panel.containers)
  return figure


def components(content: dict) -> figure_lib.Figure:
  """Energy and area of every vector, stacked by component."""
  same, styles = breakdown.distinct(content), looks.content_looks(content)
  technology = content["hardware"]["technology"]
  vectors = [content["vectors"][names[0]] for names in same.values()]
  labels = ["\n".join(styles[n].name for n in names) for names in same.values()]
  scale, letter = units.prefix(max(v["cost"]["energy_joule"] for v in vectors))
  panels = (
    ("energy_joule", scale, f"energy of one image [{letter}J]"),
    ("area_m2", 1e-6, "area [mm²]"),
  )
  figure = canvas.figure(0.9 + 0.28 * max(3, len(vectors)))
  row = figure.subplots(1, 2, sharey=True)
  for panel, (field, size, label) in zip(row, panels, strict=True):
    start = np.zeros(len(vectors))
    for part, color in zip(looks.COMPONENTS, _PART_COLORS, strict=True):
      length = np.array([v["components"][part][field] for v in vectors]) / size
      panel.barh(labels, length, 0.7, start, color=color)
      start += length
    panel.set_xlabel(f"{label}, {technology}")
    panel.grid(axis="y", visible=False)
  row[0].invert_yaxis()
  canvas.legend(
    figure,
    [
      canvas.key(name, color, lw=5)
      for name, color in zip(
        looks.COMPONENTS.values(), _PART_COLORS, strict=True
      )
    ],
  )
  return figure
