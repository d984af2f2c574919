"""The report's numbers: what report.json holds, and the page's tables of it.

`content` is report.json's: plain values, see `pipeline.report.collect`. A table
is a DataFrame of text, its first column the name of the row.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from hawis_jax import cost
from hawis_jax.networks import net_names
from hawis_jax.report import style
from hawis_jax.robustness import statistics

_ORDER = ("found", "uniform", "baseline_1x")  # others follow
# {robustness.batch_norm: what nets have on chips}
_STATISTICS = {
  "fixed": "the normalisation statistics of ideal weights",
  "design": "the mean normalisation statistics of {design} chips as training "
  "draws them",
  "chip": "normalisation statistics measured on every chip with {images} "
  "training images",
}
_VERDICTS = {
  "ahead": "beats",
  "behind": "loses to",
  "undecided": "can't be told from",
}


def main_net(swept: Mapping[str, dict], names: Sequence[str]) -> str | None:
  """Returns the net that the others are compared with; None: none on chips.

  It is the found net, else the first binary one.

  Args:
    swept: results of the robustness stage, {net: result}.
    names: of the nets, as configured.
  """

  def rank(net):
    place = (*names, net).index(net)
    return net != "found", swept[net]["weight_bits"] != 1, place

  measured = (net for net, result in swept.items() if result["sweeps"])
  return min(measured, key=rank, default=None)


def in_order(swept: Mapping[str, dict], main: str | None) -> dict[str, dict]:
  """Returns the results: binary nets first, the main one in front."""
  order = (main, *_ORDER)

  def rank(net):
    return swept[net]["weight_bits"], (*order, net).index(net)

  return {net: swept[net] for net in sorted(swept, key=rank)}


def net(result: dict, costs: dict) -> dict:
  """Returns what is known of one net beside its chips.

  Args:
    result: of the robustness stage.
    costs: of a 1-bit net of these widths.
  """
  images, is_binary = result["test_images"], result["weight_bits"] == 1
  correct = stats.binomtest(round(result["clean"] * images), images)
  return {
    **{name: value if is_binary else None for name, value in costs.items()},
    **{name: value for name, value in result.items() if name != "sweeps"},
    "clean_ci95": list(correct.proportion_ci(method="wilson")),
  }


def accuracy(
  swept: Mapping[str, dict], chance: float, failed_below: float
) -> list[dict]:
  """Returns a row for every net, scenario and severity, ascending.

  Args:
    swept: results of the robustness stage, {net: result}, in order.
    chance: accuracy of guessing.
    failed_below: share of the way from chance to a net's clean accuracy below
      which a chip has failed.
  """
  return [
    {
      "net": net,
      "scenario": scenario,
      **entry,
      "failed": statistics.failed_chips(
        entry["accuracy"], chance + failed_below * (result["clean"] - chance)
      ),
    }
    for net, result in swept.items()
    for scenario, entries in sweeps(result).items()
    for entry in sorted(entries, key=lambda entry: entry["severity"])
  ]


def sweeps(result: dict) -> dict[str, list[dict]]:
  """Returns the sweeps of a net with all statistics, {key: entries}."""
  return {
    key(kind, scenario): entries
    for kind, found in result["sweeps"].items()
    for scenario, entries in found.items()
  }


def key(kind: str, scenario: str) -> str:
  """Returns the key of a scenario that is measured with some statistics."""
  if kind == "fixed":
    return scenario
  name, _, effect = scenario.rpartition(": ")
  return f"{f'{name}, ' * bool(name)}{kind} statistics: {effect}"


def comparisons(
  rows: Sequence[dict],
  main: str | None,
  load_correct: Callable[[dict], np.ndarray],
) -> list[dict]:
  """Returns the paired differences main net - rival, at all severities.

  Their verdicts are of one family: what the page says of some holds of all.

  Args:
    rows: of `accuracy`.
    main: the net that others are compared with.
    load_correct: row -> which images each chip classifies correctly, `[S, N]`.
  """
  ours = {_place(row): row for row in rows if row["net"] == main}
  pairs = [
    {
      "rival": row["net"],
      "scenario": row["scenario"],
      "severity": row["severity"],
      **statistics.paired_difference(
        load_correct(ours[_place(row)]), load_correct(row)
      ),
    }
    for row in rows
    if row["net"] != main and _place(row) in ours
  ]
  decided = statistics.verdicts(pairs)
  return [pair | verdict for pair, verdict in zip(pairs, decided, strict=True)]


def _place(row):
  return row["scenario"], row["severity"]


def search(result: dict) -> dict:
  """Returns the search's result and `comparisons`.

  These are the found net minus every other method's best at the main budget,
  paired over chips; their intervals are over chips alone, so that they give no
  verdict.
  """
  best = {n: of[result["main_budget"]] for n, of in result["best"].items()}
  found = best.pop(result["method"])
  pairs = []
  for name, rival in best.items():
    if rival:
      gap = np.subtract(found["chips"], rival["chips"])
      pairs.append(
        {
          "rival": name,
          "same_widths": rival["widths"] == found["widths"],
          "chips": len(gap),
          "over": "chips",
          "difference": float(gap.mean()),
          "ci95": statistics.mean_interval(gap, -1, 1),
        }
      )
  return {**result, "comparisons": pairs}


def vectors(
  swept: Mapping[str, dict],
  found: Sequence[int] | None,
  known: Mapping[str, Sequence[int]],
  geometry: cost.Geometry,
) -> dict[str, dict]:
  """Returns the width vectors on the page: {name: description}.

  Args:
    swept: results of the robustness stage, {net: result}, in order.
    found: widths of the found net; None: there was no search.
    known: other vectors of the network; published ones come last.
    geometry: of the network.

  Returns:
    `widths`; `compared` (False: only known by name, or of no 1-bit net); and
    `cost`, of a 1-bit net; `components`: {name: energy_joule, area_m2};
    `cells`: used share of every product's cells; `used`: of all.
  """
  named = {**known, **({"found": found} if found else {})}
  compared = {*net_names.SEARCHED} if found else set()
  for net, result in swept.items():
    vector = net_names.parse(net).widths
    named[vector] = result["widths"]
    compared |= {vector} if result["weight_bits"] == 1 else set()
  compared |= {net_names.BASELINE} if compared else set()
  trained = [net_names.parse(net).widths for net in swept]
  return {
    name: {
      "widths": list(named[name]),
      "compared": name in compared,
      **_describe(np.array(named[name], np.int64), geometry),
    }
    for name in dict.fromkeys((*net_names.SEARCHED, *trained, *known))
    if name in named
  }


def _describe(widths, geometry):
  total = cost.network_cost(widths, geometry)._asdict()
  total = {name: np.asarray(value).item() for name, value in total.items()}
  rows, columns = geometry.tile_shape
  return {
    "cost": total,
    "components": {
      name: {field: float(v) for field, v in amount._asdict().items()}
      for name, amount in cost.components(widths, geometry).items()
    },
    "cells": cost.utilisation(widths, geometry).cells.tolist(),
    "used": total["weights"] / (total["arrays"] * rows * columns),
  }


def distinct(content: dict, compared: bool = True) -> dict[tuple, list[str]]:
  """Returns {widths: names} of the vectors, equal ones together.

  Args:
    content: of report.json.
    compared: only those that are compared as 1-bit nets.
  """
  same = {}
  for name, vector in content["vectors"].items():
    if vector["compared"] or not compared:
      same.setdefault(tuple(vector["widths"]), []).append(name)
  return same


def candidates_of(search: dict, method: str, budget: int) -> list[dict]:
  """Returns a method's candidates of a budget, best first."""
  return [e for e in search["candidates"][method] if e["budget"] == budget]


def other_budgets(content: dict) -> list[tuple[str, list[int]]]:
  """Returns (budget in words, widths) of what was found within the others."""
  search = content["search"]
  best = search["best"][search["method"]] if search else ()
  return [
    (style.of_cost(search["cost"], search["budgets"][k]), entry["widths"])
    for k, entry in enumerate(best)
    if entry and k != search["main_budget"]
  ]


def chips(content: dict) -> str:
  """Returns the least to greatest number of chips of a severity."""
  counts = {row["chips"] for row in content["accuracy"]} - {1} or {1}
  return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))


def calibration(content: dict) -> str:
  """Returns what nets have on chips: which statistics, which factors."""
  config = content["config"]
  words = " or ".join(
    _STATISTICS[kind].format(
      design=f"{config['robustness.design_chips']:,}",
      images=f"{config['robustness.calibration_images']:,}",
    )
    for kind in config["robustness.batch_norm"]
  )
  if config["robustness.compensation"] == "global":
    words += ", and one factor a layer measured on every chip"
  return words


def claims(content: dict) -> list[str]:
  """Returns the main finding: a sentence a rival of the main net."""
  nets, main = content["nets"], content["main_net"]
  if main is None:
    return ["No net was measured on chips."]
  ours, lines = f"The {style.net_name(main)} net", []
  for rival, rows in _harshest(content).groupby("rival", sort=False):
    theirs = f"the {style.net_name(rival)} net"
    if all(nets[rival][k] == nets[main][k] for k in ("widths", "weight_bits")):
      lines.append(f"{ours} has the same widths as {theirs}.")
      continue
    counts = rows["verdict"].value_counts()
    verdict = f"{ours} {_VERDICTS[counts.index[0]]} {theirs}"
    where = "at the harshest severity of every defect"
    if len(counts) > 1:
      tally = ", ".join(f"{v} at {counts[v]}" for v in _VERDICTS if v in counts)
      verdict = f"{ours} against {theirs} is {tally}"
      where = f"of {len(rows)} harshest severities"
    ends = map(style.points, rows["difference"].agg(["min", "max"]))
    ends = " to ".join(dict.fromkeys(ends))
    price = _price(content, nets[main], nets[rival])
    lines.append(f"{verdict} {where}: by {ends} points, {price}.")
  if not lines and content["comparisons"]:
    return [f"No severity leaves {ours.lower()} half its clean accuracy."]
  return lines or [f"{ours} is alone: there is no other on chips to compare."]


def origin(content: dict, name: str) -> str:
  """Returns where a net's widths come from, in a few words."""
  vector, kind, _ = net_names.parse(name)
  if kind != net_names.BINARY:
    return f"reference net of the widths of {style.net_name(vector)}"
  if vector == "found" and content["search"]:
    search = content["search"]
    method = style.method_looks(search["trajectory"])[search["method"]].name
    return f"best of {method}, {search['evaluations']:,} width vectors scored"
  return {
    "uniform": "all 1x widths times one factor, within the same budget",
    "baseline_1x": "the widths that the others are scaled from",
  }.get(vector, "widths given by name")


def _harshest(content):
  """The comparisons at every rival's and scenario's harshest severity.

  It is the last one that both were measured at and that leaves the main net
  half its clean accuracy: beyond, nets differ in how they fail.
  """
  main, place = content["main_net"], ["scenario", "severity"]
  rows = pd.DataFrame(content["accuracy"])
  rows = rows[rows["net"] == main]
  rows = rows[rows["mean"] >= 0.5 * content["nets"][main]["clean"]]
  columns = ["rival", *place, "difference", "ci95", "verdict"]
  pairs = pd.DataFrame(content["comparisons"], columns=columns)
  # Ascending in severity: the last one is the harshest.
  pairs = pairs.merge(rows[place], on=place)
  return pairs.groupby(["rival", "scenario"], sort=False).tail(1)


def _price(content, ours, theirs):
  """What two nets cost; a ratio only where their weights are of one kind."""
  kinds = [style.weights(net["weight_bits"]) for net in (ours, theirs)]
  is_alike = kinds[0] == kinds[1]
  kind = "arrays"
  if content["search"] and is_alike:
    kind = content["search"]["cost"]
  ours, theirs = (net[cost.KINDS[kind].field] for net in (ours, theirs))
  if ours is None or theirs is None:
    return f"{kinds[0]} against {kinds[1]} weights"
  amounts = [style.of_cost(kind, ours), style.of_cost(kind, theirs)]
  if is_alike:
    ratio = f"at {ours / theirs:.2f} times the cost"
    return f"{ratio}, {' against '.join(amounts)}"
  amounts = (f"{a} of {k} weights" for a, k in zip(amounts, kinds, strict=True))
  return "with " + " against ".join(amounts)


def tables(content: dict) -> dict[str, pd.DataFrame]:
  """Returns the page's tables; one that there is no data for has no rows."""
  rows, pairs = content["accuracy"], content["comparisons"]
  order = list(dict.fromkeys(row["scenario"] for row in rows))
  places = {_place(row) for row in rows}
  places = sorted(places, key=lambda place: (order.index(place[0]), place[1]))
  nets = {row["net"]: f"{style.net_name(row['net'])} [%]" for row in rows}
  rivals = {p["rival"]: f"minus {style.net_name(p['rival'])}" for p in pairs}
  made = {
    "nets": _nets(content),
    "accuracy": _grid(_cells(rows, "net", _on_chips), places, nets),
    "differences": _grid(_cells(pairs, "rival", _paired), places, rivals),
    "vectors": _vectors(content),
    "components": _components(content),
  }
  if main := content["main_net"]:
    worst = _harshest(content).to_dict("records")
    own = [row for row in rows if row["net"] == main]
    last = {row["scenario"]: _place(row) for row in own}
    cells = _cells(own, "net", _mean)
    cells |= _cells(worst, "rival", _paired)
    columns = {main: nets[main]}
    columns |= {p["rival"]: f"{rivals[p['rival']]} [points]" for p in worst}
    places = dict.fromkeys(map(_place, worst)) or last.values()
    made["harshest"] = _grid(cells, places, columns)
  if content["search"]:
    made |= {"candidates": _candidates(content), "methods": _methods(content)}
  return made


def _cells(rows, column, text):
  """{(a row's column, its place): text of the row}."""
  return {(row[column], _place(row)): text(row) for row in rows}


def _grid(cells, places, columns):
  """A line a (scenario, severity) that has a cell, a column a net."""
  lines = [
    (style.severity(*place), *(cells.get((c, place), "-") for c in columns))
    for place in places
    if any((c, place) in cells for c in columns)
  ]
  return pd.DataFrame(lines, columns=["defects", *columns.values()])


def _mean(row):
  return style.estimate(row["mean"], row["ci95_total"])


def _on_chips(row):
  if row["chips"] == 1:
    return f"{_mean(row)}\nall chips alike"
  failed = row["failed"]
  lines = [
    _mean(row),
    f"over chips {style.brackets(row['ci95'])}",
    f"5th pct. {style.percent(row['p5'])}",
    f"failed {style.estimate(failed['share'], failed['ci95'])}",
  ]
  return "\n".join(lines)


def _paired(pair):
  text = style.estimate(pair["difference"], pair["ci95"], style.points)
  return f"{text}\n{pair['verdict']}"


def _nets(content):
  """What every net costs, and its accuracy without defects."""
  total, rows = content["data"]["test_images"], []
  below = {
    row["net"]: style.percent(row["failed"]["below"])
    for row in content["accuracy"]
  }
  for name, net in content["nets"].items():
    curve = content["curves"].get(f"train/{name}", {})
    points = curve.get("accuracy_validation", {"step": [0], "value": [None]})
    step, last = points["step"][-1], points["value"][-1]
    validation = "-"
    if last is not None:
      validation = f"{style.percent(last)} (step {step:,})"
    rows.append(
      {
        "net": style.net_name(name),
        "weights are": style.weights(net["weight_bits"]),
        "crossbar arrays": style.quantity("arrays", net["arrays"]),
        "MACs": style.quantity("macs", net["macs"]),
        "weights": style.quantity("weights", net["weights"]),
        **_costs(net, ("energy", "latency", "area")),
        "test images": f"{net['test_images']:,} of {total:,}",
        "clean accuracy [%]": style.estimate(net["clean"], net["clean_ci95"]),
        "a chip fails below [%]": below.get(name, "-"),
        "on validation images [%]": validation,
      }
    )
  return pd.DataFrame(rows)


def _costs(costs, kinds):
  """{kind: amount} of some of `cost.KINDS`."""
  return {k: style.quantity(k, costs[cost.field(k)]) for k in kinds}


def _vectors(content):
  """Widths and used cells of all vectors, and widths of other budgets."""
  rows = []
  for widths, names in distinct(content, compared=False).items():
    used = 100 * content["vectors"][names[0]]["used"]
    names = "; ".join(map(style.net_name, names))
    rows.append((names, widths, f"{used:.1f}"))
  for budget, widths in other_budgets(content):
    rows.append((f"found within {budget}", widths, "-"))
  table = pd.DataFrame(rows, columns=["net", "widths", "used cells [%]"])
  table["widths"] = [", ".join(map(str, widths)) for widths in table["widths"]]
  return table


def _components(content):
  """Energy and area of every component of the first 1-bit net."""
  names = next(iter(distinct(content).values()), None)
  if names is None:
    return pd.DataFrame()
  vector, rows = content["vectors"][names[0]], []
  for name, part in {**vector["components"], "sum": vector["cost"]}.items():
    row = {"component": name.replace("_", " ")}
    for kind, amount in _costs(part, ("energy", "area")).items():
      field = cost.KINDS[kind].field
      share = style.percent(part[field] / vector["cost"][field])
      row |= {kind: amount, f"of the {kind} [%]": share}
    rows.append(row)
  return pd.DataFrame(rows)


def _methods(content):
  """The found net minus every other method's best."""
  looks = style.method_looks(content["search"]["trajectory"])
  rows = [
    (
      looks[pair["rival"]].name,
      pair["chips"],
      style.estimate(pair["difference"], pair["ci95"], style.points)
      + ("\nsame widths" if pair["same_widths"] else ""),
    )
    for pair in content["search"]["comparisons"]
  ]
  columns = ["minus", "chips", "difference [points]"]
  return pd.DataFrame(rows, columns=columns)


def _candidates(content):
  """The best candidate of each budget and method, and how many it is of."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  own, field = search["cost"], cost.field(search["cost"])
  rows = []
  for budget, most in enumerate(search["budgets"]):
    for name, bests in search["best"].items():
      best, group = bests[budget], candidates_of(search, name, budget)
      if not best:
        continue
      scored = advantage = "-"
      if name in search["trajectory"]:
        different = search["distinct"][name][budget]
        scored = f"{search['evaluations']:,} ({different:,})"
        advantage = style.points(best["search_advantage"])
      spent, mean = best["cost"], np.mean([c["score"] for c in group])
      share = f" ({100 * spent[field] / most:.1f} %)"
      rows.append(
        {
          f"budget ({own})": style.quantity(own, most),
          "method": looks[name].name,
          "scored (distinct vectors)": scored,
          "candidates": len(group),
          "robust score of the best [%]": style.percent(best["score"]),
          "mean of the candidates [%]": style.percent(mean),
          "the best's advantage in the search [points]": advantage,
          "the best's clean accuracy [%]": style.percent(best["clean"]),
          f"its {own} (of the budget)": _costs(spent, [own])[own] + share,
          **{
            {"macs": "MACs"}.get(kind, kind): amount
            for kind, amount in _costs(spent, cost.KINDS).items()
            if kind != own
          },
        }
      )
  return pd.DataFrame(rows)
