"""Figures of the search: scores while it ran, and score against energy."""

from matplotlib import figure as figure_lib
from matplotlib import ticker
import numpy as np

from hawis_jax import finalists
from hawis_jax.report import canvas
from hawis_jax.report import outcome
from hawis_jax.report import units


def trajectories(content: dict) -> figure_lib.Figure:
  """Scores during the search, and of the finalists on fresh chips."""
  search, looks_of = content["search"], outcome.looks_of(content["search"])
  main = search["main_budget"]
  figure = canvas.figure(3.2)
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
  # The found net's method is the first: in front.
  for name, trajectory in reversed(search["trajectory"].items()):
    color = looks_of[name].color
    best, mean = (canvas.percent(trajectory[k][main]) for k in ("best", "mean"))
    spent = search["evaluations"] / len(mean) * np.arange(1, len(mean) + 1)
    left.plot(spent, mean, color=color, lw=0.8, alpha=0.7)
    left.plot(spent, best, color=color, drawstyle="steps-post", lw=1.8)
  left.set_title("While searching: scores on each update's own chips")
  left.set_xlabel("width vectors scored, each method")
  left.set_ylabel("robust score [% accuracy]")
  left.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  left.margins(x=0.02)
  shown = [n for n in looks_of if outcome.of_budget(search, n, main)]
  for place, name in enumerate(shown):
    entries = outcome.of_budget(search, name, main)
    spread = np.linspace(-0.25, 0.25, len(entries)) if entries[1:] else 0
    right.plot(
      place + spread,
      canvas.percent([entry["score"] for entry in entries]),
      color=looks_of[name].color,
      marker=looks_of[name].marker,
      markersize=3.5,
      ls="none",
      alpha=0.8,
    )
  right.set_xticks(
    range(len(shown)),
    [looks_of[name].name for name in shown],
    rotation=40,
    ha="right",
    rotation_mode="anchor",
  )
  right.set_xlim(-0.6, len(shown) - 0.4)
  right.grid(axis="x", visible=False)
  right.set_title("Finalists, on fresh chips")
  methods = [looks_of[name] for name in search["trajectory"]]
  handles = [
    *(canvas.key(x.name, x.color, lw=3) for x in methods),
    canvas.key("best so far", lw=1.8),
    canvas.key("mean of the update's proposals", lw=0.8),
  ]
  canvas.legend(figure, handles)
  return figure


def front(content: dict) -> figure_lib.Figure:
  """Robust score against energy of all finalists; what none beats in both."""
  search, looks_of = content["search"], outcome.looks_of(content["search"])
  entries = [e for group in search["finalists"].values() for e in group]
  most = max(e["cost"]["energy_joule"] for e in entries)
  scale, letter = units.prefix(most)
  figure = canvas.figure(3.4)
  panel = figure.subplots()
  handles = []
  for name, group in search["finalists"].items():
    if not group:
      continue
    uniform = name == finalists.UNIFORM
    style = dict(
      color=looks_of[name].color,
      marker=looks_of[name].marker,
      ls="none",
      markersize=7 if uniform else 4,
      markeredgecolor="black" if uniform else "none",
      alpha=1 if uniform else 0.65,
    )
    energies = [e["cost"]["energy_joule"] / scale for e in group]
    scores = canvas.percent([e["score"] for e in group])
    panel.plot(energies, scores, **style)
    handles.append(canvas.key(looks_of[name].name, **style))
  line = dict(color="black", lw=1, drawstyle="steps-post", zorder=1.5)
  panel.plot(
    [point["energy_joule"] / scale for point in search["front"]],
    canvas.percent([point["score"] for point in search["front"]]),
    **line,
  )
  ring = dict(
    color="black",
    marker="o",
    ls="none",
    markersize=10,
    markerfacecolor="none",
  )
  found = outcome.of_budget(search, search["method"], search["main_budget"])[0]
  panel.plot(
    found["cost"]["energy_joule"] / scale, 100 * found["score"], **ring
  )
  handles += [
    canvas.key("not dominated", color="black", lw=1),
    canvas.key("found net", **ring),
  ]
  if search["cost"] == "energy":
    style = dict(color=canvas.NEUTRAL, ls=":", lw=1)
    for budget in search["budgets"]:
      panel.axvline(budget / scale, **style)
    handles.append(canvas.key("budgets", **style))
  panel.set_title("Finalists of all methods and budgets, on fresh chips")
  technology = content["hardware"]["technology"]
  panel.set_xlabel(f"energy of one image [{letter}J], {technology}")
  panel.set_ylabel("robust score [% accuracy]")
  canvas.legend(figure, handles)
  return figure
