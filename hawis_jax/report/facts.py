"""The report's numbers: what report.json holds, and the page's tables of it.

`content` is report.json's: plain values, see `pipeline.report.collect`. A table
is a DataFrame of text, its first column the name of the row.
"""

from collections.abc import Callable, Mapping, Sequence
import operator

import numpy as np
import pandas as pd
from scipy import stats

from hawis_jax import cost
from hawis_jax.networks import net_names
from hawis_jax.report import style
from hawis_jax.robustness import statistics

FORMAT = 18  # of report.json and the page; a new one remakes old reports
_MOST_LINES = 300  # of scored vectors that are drawn
_ORDER = ("found", "uniform", "baseline_1x")  # others follow
# {robustness.batch_norm: what nets have on chips}
_STATISTICS = {
  "fixed": "the normalisation statistics of ideal weights",
  "design": "the mean normalisation statistics of {design} chips as training "
  "draws them",
  "chip": "normalisation statistics measured on every chip with {images} "
  "training images",
}
_SEARCH = "Was the search worth it?"
_TRAINING = "What training on chips brings"
_CALIBRATION = "What calibrating brings"
_ALONE, _WIDTHS, _REFERENCES, _FLOATS = (
  "On chips",
  "Against other widths",
  "Against 8-bit weights",
  "Against float weights",
)
_QUESTIONS = (_ALONE, _SEARCH, _WIDTHS, _TRAINING, _CALIBRATION)
_QUESTIONS += (_REFERENCES, _FLOATS)
_VERDICTS = {
  "ahead": "beats",
  "behind": "loses to",
  "undecided": "can't be told from",
}


def own_effects(content: dict) -> str:
  """Returns the random effects that the device has itself, in words."""
  return style.effects(content["effects"]) or "none"


def data_set(content: dict) -> str:
  """Returns the data set's name, with its file or version where it has one."""
  data = content["data"]
  return " ".join(
    filter(None, [data["name"], data.get("file", data["version"])])
  )


def main_net(swept: Mapping[str, dict], names: Sequence[str]) -> str | None:
  """Returns the net that the others are compared with; None: none on chips.

  It is the found net, one trained on chips before one that is not, else the
  first binary one.

  Args:
    swept: results of the robustness stage, {net: result}.
    names: of the nets, as configured.
  """
  favourites = ("found_chips", "found")

  def rank(net):
    place = (*favourites, net).index(net)
    order = (*names, net).index(net)
    return place, swept[net]["weight_bits"] != 1, order

  measured = (net for net, result in swept.items() if result["sweeps"])
  return min(measured, key=rank, default=None)


def in_order(swept: Mapping[str, dict], main: str | None) -> dict[str, dict]:
  """Returns the results: binary nets first, the main one in front."""
  vectors = [net_names.parse(net).widths for net in swept]
  vectors = [*dict.fromkeys((*_ORDER, *vectors))]

  def rank(net):
    vector, _, on_chips = net_names.parse(net)
    bits = swept[net]["weight_bits"]
    return bits, net != main, vectors.index(vector), on_chips

  return {net: swept[net] for net in sorted(swept, key=rank)}


def net(result: dict, costs: dict) -> dict:
  """Returns what is known of one net beside its chips.

  Args:
    result: of the robustness stage.
    costs: of a 1-bit net of these widths.
  """
  images, is_binary = result["test_images"], result["weight_bits"] == 1
  joule = costs["energy_joule"] / costs["macs"]
  costs = {**costs, "joule_per_mac": joule, "ops_per_joule": 2 / joule}
  correct = stats.binomtest(round(result["clean"] * images), images)
  return {
    **{name: value if is_binary else None for name, value in costs.items()},
    **{name: value for name, value in result.items() if name != "sweeps"},
    "clean_ci95": list(correct.proportion_ci(method="wilson")),
  }


def accuracy(
  swept: Mapping[str, dict],
  chance: float,
  failed_below: float,
  told: Mapping[tuple[str, float], Mapping[str, str]],
) -> list[dict]:
  """Returns a row for every net, statistics, scenario and severity, ascending.

  Args:
    swept: results of the robustness stage, {net: result}, in order.
    chance: accuracy of guessing.
    failed_below: share of the way from chance to a net's clean accuracy below
      which a chip has failed.
    told: {(scenario, severity): {"label": all that it has in words, "effects":
      the same with the device's own effects written out}}.
  """

  def words(scenario, severity):
    label = style.severity(scenario, severity)  # of one not configured now
    return told.get((scenario, severity), {"label": label, "effects": label})

  return [
    {
      "net": net,
      "statistics": kind,
      "scenario": scenario,
      **words(scenario, entry["severity"]),
      **entry,
      "failed": statistics.failed_chips(
        entry["accuracy"], chance + failed_below * (result["clean"] - chance)
      ),
    }
    for net, result in swept.items()
    for kind, sweeps in result["sweeps"].items()
    for scenario, entries in sweeps.items()
    for entry in sorted(entries, key=lambda entry: entry["severity"])
  ]


def harshest(
  rows: Sequence[dict], nets: Mapping[str, dict], main: str | None
) -> dict[str, float]:
  """Returns the harshest severity of every scenario, {scenario: severity}.

  It is the last one that leaves the main net half its clean accuracy, with all
  statistics that it has on chips: beyond, nets differ in how they fail.
  """
  frame = pd.DataFrame([row for row in rows if row["net"] == main])
  if frame.empty:
    return {}
  worst = frame.groupby(["scenario", "severity"], sort=False)["mean"].min()
  kept = worst[worst >= 0.5 * nets[main]["clean"]].reset_index()
  return kept.groupby("scenario", sort=False)["severity"].max().to_dict()


def comparisons(
  rows: Sequence[dict],
  main: str | None,
  load_correct: Callable[[dict], np.ndarray],
) -> list[dict]:
  """Returns paired differences net - rival at all severities, of one family.

  Every other net has a rival of its own training: the main net, or the net of
  its widths that is trained as the other one is. So a difference is that of one
  thing, where such a net was measured. Further, the main net's statistics are
  compared with the first. Their verdicts hold together: what the page says of
  some holds of all. A difference of an image or less is never "ahead": its
  `reason` is "image", unless its interval holds 0 (see `statistics.verdicts`).

  Args:
    rows: of `accuracy`.
    main: the net that others are compared with.
    load_correct: row -> which images each chip classifies correctly, `[S, N]`.
  """
  by_place = {(row["net"], *place(row)): row for row in rows}
  nets = [*dict.fromkeys(row["net"] for row in rows)]
  pairs = []
  for row in rows:
    kind, *rest = place(row)
    if row["net"] != main:
      ours = by_place.get((_opponent(row["net"], main, nets), *place(row)))
      pairs += [(ours, row)] if ours else []
    first = by_place.get((main, rows[0]["statistics"], *rest))
    if row["net"] == main and first and kind != first["statistics"]:
      pairs.append((row, first))
  differences = [
    {
      "net": ours["net"],
      "rival": row["net"],
      "statistics": ours["statistics"],
      "rival_statistics": row["statistics"],
      "scenario": row["scenario"],
      "severity": row["severity"],
      "label": row["label"],
      **statistics.paired_difference(load_correct(ours), load_correct(row)),
    }
    for ours, row in pairs
  ]
  decided = statistics.verdicts(differences)
  for one, verdict in zip(differences, decided, strict=True):
    is_small = abs(one["difference"]) * one["images"] <= 1
    if is_small and verdict["reason"] != "interval":
      verdict |= {"verdict": "undecided", "reason": "image"}
  return [one | other for one, other in zip(differences, decided, strict=True)]


def _opponent(rival, main, nets):
  """The main net, or one of its widths that is trained as the rival is."""
  vector, kind, _ = net_names.parse(main)
  same = [
    net
    for net in nets
    if net_names.parse(net)
    == net_names.Net(vector, kind, net_names.parse(rival).on_chips)
  ]
  return main if not same or rival in same else same[0]


def place(row: dict) -> tuple:
  """Returns what is measured: (statistics, scenario, severity)."""
  return row["statistics"], row["scenario"], row["severity"]


def search(result: dict, table: Mapping[str, np.ndarray] | None) -> dict:
  """Returns the search's result, `comparisons`, `importance` and `scored`.

  Comparisons are the first method's best minus every other's at the main
  budget, paired over chips; their intervals are over chips alone, so that they
  give no verdict. Where candidates were trained to select the found net, it may
  be another than the first method's best.

  Args:
    result: of the search.
    table: all that it scored, see `candidates.write_table`; None: it was
      deleted, so that nothing is known of `importance` and `scored`.
  """
  best = {n: of[result["main_budget"]] for n, of in result["best"].items()}
  ours = best.pop(result["method"])
  pairs = []
  for name, rival in best.items():
    if rival:
      gap = np.subtract(ours["chips"], rival["chips"])
      pairs.append(
        {
          "rival": name,
          "same_widths": rival["widths"] == ours["widths"],
          "chips": len(gap),
          "over": "chips",
          "difference": float(gap.mean()),
          "ci95": statistics.mean_interval(gap, -1, 1),
        }
      )
  result = {"selection": None, "importance": None, "scored": None, **result}
  result["comparisons"] = pairs
  return result | (_scored(table, result["main_budget"]) if table else {})


def _scored(table, budget):
  """What all distinct vectors of a budget say of widths; a sample of them."""
  widths = table["widths"][:, :, budget]  # [U, M, P, L]
  own = table["reference_scores"][:, budget].mean(-1)[:, None, None]
  advantages = (table["scores"][:, :, budget] - own).reshape(-1)
  vectors, place = np.unique(
    widths.reshape(-1, widths.shape[-1]), axis=0, return_inverse=True
  )
  place = place.reshape(-1)
  advantages = np.bincount(place, advantages) / np.bincount(place)
  order = np.argsort(advantages, kind="stable")
  some = np.linspace(0, len(order) - 1, min(len(order), _MOST_LINES))
  some = order[some.astype(int)]
  return {
    "importance": width_importance(vectors, advantages),
    "scored": {
      "of": len(vectors),
      "widths": vectors[some].tolist(),
      "advantage": advantages[some].tolist(),
    },
  }


def width_importance(
  widths: np.ndarray, advantages: np.ndarray
) -> list[dict] | None:
  """Returns what doubling each layer's width brings, the others as they are.

  It is the slope of least squares on the logarithms to base 2 of all widths,
  with Student's 95 % interval. So it is linear, and of what was scored.

  Args:
    widths: distinct vectors, `[D, L]`.
    advantages: of each, `[D]`.

  Returns:
    `layer` (from 1), `points` a doubling, `low95`, `high95`, of every layer
    whose width varies; None: too few vectors, or they tell no layers apart.
  """
  layers = np.flatnonzero(np.ptp(widths, axis=0))
  design = np.column_stack([np.ones(len(widths)), np.log2(widths[:, layers])])
  freedom = len(design) - design.shape[1]
  if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
    return None
  slopes, *_ = np.linalg.lstsq(design, advantages)
  variance = np.square(advantages - design @ slopes).sum() / freedom
  errors = np.sqrt(variance * np.linalg.inv(design.T @ design).diagonal())
  half = stats.t.ppf(0.975, freedom) * errors
  rows = zip(layers + 1, slopes[1:], half[1:], strict=True)
  return [
    dict(layer=int(k), points=float(m), low95=float(m - h), high95=float(m + h))
    for k, m, h in rows
  ]


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
  most = total["arrays"] * geometry.hardware.weights_of_pair
  return {
    "cost": total,
    "components": {
      name: {field: float(v) for field, v in amount._asdict().items()}
      for name, amount in cost.components(widths, geometry).items()
    },
    "cells": cost.utilisation(widths, geometry).cells.tolist(),
    "used": total["weights"] / most,
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


def found_candidate(search: dict) -> dict:
  """Returns the found net as it was scored in the super-net.

  It is the first method's best, or another candidate that training selected.
  """
  main = search["main_budget"]
  return next(
    entry
    for name in (search["method"], "uniform")
    for entry in candidates_of(search, name, main)
    if entry["widths"] == search["found"]
  )


def counted(search: dict) -> str:
  """Returns how the search's costs were counted; "": as those of this run.

  They are another run's where that one's nets are measured.
  """
  if search["counts_alike"]:
    return ""
  tiles = " x ".join(map(str, search["hardware"]["tile_shape"]))
  return (
    f"by {search['hardware']['technology']} for {search['device']} with arrays "
    f"of {tiles} cells"
  )


def other_budgets(content: dict) -> list[tuple[str, list[int]]]:
  """Returns (budget in words, widths) of what was found within the others."""
  search = content["search"]
  if not search:
    return []
  there = "" if search["counts_alike"] else " of the search"
  amounts = [style.of_cost(search["cost"], most) for most in search["budgets"]]
  return [
    (amounts[k] + there, entry["widths"])
    for k, entry in enumerate(search["best"][search["method"]])
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


def answers(content: dict) -> dict[str, list[str]]:
  """Returns the main findings: sentences, {question: answers}."""
  nets, main = content["nets"], content["main_net"]
  about = "What was searched" if content["search"] else "What is compared"
  about = {about: [*_compared(content)]}
  if main is None:
    return about | {_ALONE: ["No net was measured on chips."]}
  found = {question: [] for question in _QUESTIONS}
  worst = worst_pairs(content)
  for (net, rival), rows in worst.groupby(["net", "rival"], sort=False):
    question = _question(net, rival)
    if question == _CALIBRATION:
      kinds = ["statistics", "rival_statistics"]
      for kind, of_kind in rows.groupby(kinds, sort=False):
        names = (f"{name} statistics" for name in kind)
        verdict = _verdict(*names, of_kind, content)
        found[question].append(f"{verdict}, of {_the(net)}.")
      continue
    ours, theirs = map(_the, (net, rival))
    if question != _TRAINING and all(
      nets[rival][key] == nets[net][key] for key in ("widths", "weight_bits")
    ):
      same = f"{ours} has the same widths as {theirs}."
      found[question].append(style.capital(same))
      continue
    price = _price(nets[net], nets[rival])
    if question == _TRAINING:
      clean = [f"{style.percent(nets[n]['clean'])} %" for n in (net, rival)]
      price = f"at the same cost; without defects {' against '.join(clean)}"
    found[question].append(f"{_verdict(ours, theirs, rows, content)}, {price}.")
  if not any(found.values()):
    found[_ALONE] = [
      f"No severity leaves {_the(main)} half its clean accuracy."
      if content["comparisons"]
      else style.capital(f"{_the(main)} is alone on chips: there is no other.")
    ]
  if content["search"]:
    found[_SEARCH] += _in_search(content)
  return about | {question: said for question, said in found.items() if said}


def _the(net):
  """A net in running text."""
  name = style.net_name(net.removesuffix("_chips"))
  trained = " trained on chips" if net_names.parse(net).on_chips else ""
  return f"the {name} net{trained}"


def _question(net, rival):
  """What a difference of two nets answers."""
  ours, theirs = map(net_names.parse, (net, rival))
  if net == rival:
    return _CALIBRATION
  if ours.kind != theirs.kind:
    is_float = net_names.FLOAT in (ours.kind, theirs.kind)
    return _FLOATS if is_float else _REFERENCES
  if ours.widths == theirs.widths:
    return _TRAINING
  searched = (ours.widths, theirs.widths) == net_names.SEARCHED
  return _SEARCH if searched else _WIDTHS


def _verdict(ours, theirs, rows, content):
  """What some differences say together, in words."""
  words = [_word(row, "{} ({})") for row in rows.to_dict("records")]
  counts = {word: words.count(word) for word in (*_VERDICTS, *words)}
  counts = {word: count for word, count in counts.items() if count}
  where = "at the harshest severity of every defect"
  if len(counts) > 1:
    tally = ", ".join(f"{word} at {count}" for word, count in counts.items())
    verdict = f"{ours} against {theirs}: {tally}"
    where = f"of {len(rows)} harshest severities"
  elif words[0] in _VERDICTS:
    verdict = f"{ours} {_VERDICTS[words[0]]} {theirs}"
    if ours.endswith("statistics"):
      verdict = verdict.replace("beats", "beat").replace("loses", "lose")
  else:
    verdict = f"{ours} against {theirs}: {words[0]}"
  ends = rows.sort_values("difference", kind="stable").iloc[[0, -1]]
  told = [
    f"{style.points(row['difference'])} ({_where(row, content)})"
    for row in ends.to_dict("records")
  ]
  ends = " to ".join(dict.fromkeys(told))
  return style.capital(f"{verdict} {where}: {ends} points")


def _word(pair, withheld):
  """A verdict, or why an interval without 0 has none.

  Args:
    pair: of `comparisons`.
    withheld: format of "no verdict" and its reason.
  """
  reasons = {
    "chips": f"{pair['chips']} chips, {statistics.FEWEST} needed",
    "image": "one image at most",
  }
  if pair["reason"] in reasons:
    return withheld.format("no verdict", reasons[pair["reason"]])
  is_corrected = pair["reason"] == "correction"  # for their number
  return pair["verdict"] + (" once corrected" if is_corrected else "")


def _where(row, content):
  """What a difference was measured at, in a few words."""
  where = row["label"]
  kinds = content["config"]["robustness.batch_norm"]
  is_calibration = row["statistics"] != row["rival_statistics"]
  if len(kinds) < 2 or is_calibration:
    return where
  return f"{where}, {row['statistics']} statistics"


def _in_search(content):
  """How the found net's method compares with the others, in the super-net."""
  search = content["search"]
  looks = style.method_looks(search["trajectory"])
  return [
    f"In the super-net, {looks[search['method']].name} minus "
    f"{looks[pair['rival']].name}: "
    f"{style.estimate(pair['difference'], pair['ci95'], style.points)} points "
    "of robust accuracy, over chips alone."
    for pair in search["comparisons"]
    if pair["rival"] in search["trajectory"] and not pair["same_widths"]
  ]


def warnings(content: dict) -> list[str]:
  """Returns what a reader must know before any number, a sentence each."""
  found, search = [], content["search"]
  if search:
    best = found_candidate(search)
    images = content["config"]["data.validation_images"]
    correct = stats.binomtest(round(best["clean"] * images), images)
    low = correct.proportion_ci(method="wilson").low
    if low <= content["chance"] or best["score"] <= content["chance"]:
      found.append(
        "The super-net does no better than guessing at the found widths: "
        f"{style.percent(best['clean'])} % of the validation images without "
        f"defects, robust score {style.percent(best['score'])} %, chance "
        f"{style.percent(content['chance'])} %. The search had nothing to go "
        "by; raise pretrain.steps, or search.scenarios are too severe."
      )
  energy = energy_warning(content)
  return found + ([energy] if energy else [])


def energy_warning(content: dict) -> str | None:
  """Returns that the device takes most of the energy; None: it does not."""
  first = next(iter(distinct(content).values()), None)
  if not first:
    return None
  vector, device = content["vectors"][first[0]], content["device"]
  cells, total = vector["components"]["array"], vector["cost"]
  share = cells["energy_joule"] / total["energy_joule"]
  if share <= 0.5:
    return None
  a_mac = style.joule(cells["energy_joule"] / total["macs"])
  return (
    f"The device dominates the energy: its cells alone take {a_mac} a "
    f"1-bit MAC, {100 * share:.0f} % of all, at {device['read_voltage']:g} "
    f"V and G_on = {1e6 * device['g_on']:g} µS. Energies say little about "
    "circuits or widths here, and nothing about other devices."
  )


def _compared(content):
  """What every vector of widths is, and costs: a line each."""
  search, first = content["search"], {}
  for name in content["nets"]:
    first.setdefault(net_names.parse(name).widths, content["nets"][name])
  for vector, net in first.items():
    line = f"{style.net_name(vector)}: {_origin(vector, search)}"
    if net_names.is_searched(vector) and search:
      most = search["budgets"][search["main_budget"]]
      most *= net_names.share_of(vector)
      line += f", within {style.of_cost(search['cost'], most)}"
      how = counted(search)
      line += f" (counted {how}, as the search did)" if how else ""
    costs = [
      style.of_cost(kind, net[cost.field(kind)])
      for kind in ("arrays", "energy")
      if net[cost.field(kind)] is not None
    ]
    yield f"{line}; takes {', '.join(costs)}." if costs else f"{line}."


def _origin(vector, search):
  """Where a net's widths come from, in a few words."""
  if vector.startswith("found") and search:
    method = style.method_looks(search["trajectory"])[search["method"]].name
    if search["selection"]:
      trained = len(search["selection"]["rounds"][0])
      uniform = candidates_of(search, "uniform", search["main_budget"])
      return (
        f"best after training of {trained}, which are the best of {method}, "
        f"{search['evaluations']:,} width vectors scored"
        + (", and the uniform net" if uniform else "")
      )
    return f"best of {method}, {search['evaluations']:,} width vectors scored"
  if vector.startswith("uniform"):
    return "all 1x widths times one factor"
  return {
    "baseline_1x": "the widths that the others are scaled from",
  }.get(vector, "widths given by name")


def worst_pairs(content: dict) -> pd.DataFrame:
  """Returns the comparisons at every scenario's harshest severity.

  Where a rival was not measured there, it is the last one before.
  """
  columns = ["net", "rival", "statistics", "rival_statistics", "scenario"]
  of_pair = ["severity", "label", "difference", "ci95", "chips"]
  pairs = pd.DataFrame(
    content["comparisons"],
    columns=[*columns, *of_pair, "verdict", "reason"],
  )
  most = pairs["scenario"].map(content["harshest"])
  pairs = pairs[pairs["severity"] <= most]
  # Ascending in severity: the last one is the harshest.
  return pairs.groupby(columns, sort=False).tail(1)


def _price(ours, theirs):
  """What two nets cost; a ratio only where their weights are of one kind."""
  kinds = [style.weights(net["weight_bits"]) for net in (ours, theirs)]
  costs = {
    kind: [net[cost.field(kind)] for net in (ours, theirs)]
    for kind in ("arrays", "energy")
  }
  if None in costs["arrays"]:
    return f"{kinds[0]} against {kinds[1]} weights"
  if None in costs["energy"] or kinds[0] != kinds[1]:
    amounts = zip(costs["arrays"], kinds, strict=True)
    amounts = (
      f"{style.of_cost('arrays', a)} of {k} weights" for a, k in amounts
    )
    return "with " + " against ".join(amounts)
  ratios = [
    f"{a / b:.2f} times the {kind} ({style.quantity(kind, a)} against "
    f"{style.quantity(kind, b)})"
    for kind, (a, b) in costs.items()
  ]
  return "at " + " and ".join(ratios)


def summary(content: dict) -> pd.DataFrame:
  """Returns a line a net: accuracy without defects, the worst, and its cost."""
  lines = []
  for name, net in content["nets"].items():
    rows = [row for row in content["accuracy"] if row["net"] == name]
    worst = min(rows, key=lambda row: row["mean"], default=None)
    estimate, where = "", ""  # a net that has met no chips
    if worst:
      estimate = style.estimate(worst["mean"], worst["ci95_total"])
      where = worst["label"]
    lines.append(
      {
        "net": style.net_name(name),
        "clean [%]": style.percent(net["clean"]),
        "worst [%]": estimate,
        "where": where,
        "arrays": style.quantity("arrays", net["arrays"]),
        "energy": style.quantity("energy", net["energy_joule"]),
      }
    )
  return pd.DataFrame(lines)


def tables(content: dict) -> dict[str, pd.DataFrame]:
  """Returns the page's tables; one that there is no data for has no rows."""
  rows, pairs = content["accuracy"], content["comparisons"]
  order = list(dict.fromkeys(row["scenario"] for row in rows))
  kinds = list(dict.fromkeys(row["statistics"] for row in rows))

  def rank(place):
    return order.index(place[1]), place[2], kinds.index(place[0])

  places = sorted({place(row) for row in rows}, key=rank)
  nets = {row["net"]: f"{style.net_name(row['net'])} [%]" for row in rows}
  labels = {(row["scenario"], row["severity"]): row["label"] for row in rows}
  made = {
    "nets": _nets(content),
    "accuracy": _grid(_cells(rows, "net", _on_chips), places, nets, labels),
    "clipped": _clipped(rows, places, nets, labels),
    "differences": _grid(
      _cells(pairs, _pair, _paired), places, _minus(pairs), labels
    ),
    "vectors": _vectors(content),
    "components": _components(content),
  }
  if main := content["main_net"]:
    worst = worst_pairs(content).to_dict("records")
    own = [row for row in rows if row["net"] == main]
    last = {(row["statistics"], row["scenario"]): place(row) for row in own}
    cells = _cells(own, "net", _mean) | _cells(worst, _pair, _paired)
    columns = {main: nets[main]} | _minus(worst)
    shown = {place(pair) for pair in worst} or {*last.values()}
    shown = sorted(shown, key=rank)
    made["harshest"] = _grid(cells, shown, columns, labels)
  if content["search"]:
    made |= {"candidates": _candidates(content), "methods": _methods(content)}
    made["selection"] = _selection(content["search"])
  return made


def _pair(one):
  return one["net"], one["rival"]


def _minus(pairs):
  """{pair: heading of its column}."""
  headings = {}
  for one in pairs:
    nets = _pair(one)
    ours, theirs = map(style.net_name, nets)
    if ours == theirs:
      theirs = f"itself with {one['rival_statistics']} statistics"
    elif all(net_names.parse(net).on_chips for net in nets):
      ours = style.net_name(one["net"].removesuffix("_chips"))
      theirs = theirs.replace(", ", ", both ")
    headings[nets] = f"{ours} minus {theirs}"
  return headings


def _cells(rows, column, text):
  """{(a row's column, its place): text of the row}."""
  of = column if callable(column) else operator.itemgetter(column)
  return {(of(row), place(row)): text(row) for row in rows}


def _grid(cells, places, columns, labels):
  """A line a place that has a cell, a column a net; equal columns are left out.

  The statistics have a column where there are several.
  """
  lines = {
    place: [cells.get((c, place), "-") for c in columns]
    for place in places
    if any((c, place) in cells for c in columns)
  }
  names = [labels[place[1:]] for place in lines]
  table = pd.DataFrame(lines.values(), columns=[*columns.values()])
  if len({place[0] for place in places}) > 1:
    table.insert(0, "statistics", [place[0] for place in lines])
  table.insert(0, "defects", names)
  return table


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


def _clipped(rows, places, nets, labels):
  """The layer of every net whose converters clip most of what they see."""
  counted = [row for row in rows if "clipped" in row]

  def most(row):
    layer, share = max(row["clipped"].items(), key=lambda x: x[1])
    return f"{style.percent(share)} in {layer}" if share else "none"

  return _grid(_cells(counted, "net", most), places, nets, labels)


def _paired(pair):
  text = style.estimate(pair["difference"], pair["ci95"], style.points)
  return f"{text}\n{_word(pair, '{}: {}')}"


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
        "energy a MAC": style.joule(net["joule_per_mac"]),
        "TOPS/W": style.tops(net["ops_per_joule"]),
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
  """The first method's best minus every other's."""
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
  """The best candidate of each budget and method, and how many it is of.

  Where candidates were trained, the one that is found has a row of its own.
  """
  search, main = content["search"], content["search"]["main_budget"]
  trained, rows = _trained(search), []
  for budget in range(len(search["budgets"])):
    for name, bests in search["best"].items():
      if best := bests[budget]:
        rows.append(_candidate(search, name, best, trained))
    if trained and budget == main:
      rows.append(_candidate(search, None, found_candidate(search), trained))
  return pd.DataFrame(rows)


def _candidate(search, method, best, trained):
  """A row of the table of candidates; `method` None: found by training.

  A column's scores are all on the same chips, and after as much training.
  """
  own, field = search["cost"], cost.field(search["cost"])
  most, spent = search["budgets"][best["budget"]], best["cost"]
  told, scored, number, mean, advantage = "found, by training", *["-"] * 4
  widths, place = best["widths"], best["budget"]
  judged = search["best"]
  judged = {method: judged[method]} if method else judged
  again = [  # the same vector's, scored once more
    style.percent(of[place]["score"])
    for of in judged.values()
    if of[place] and of[place]["widths"] == widths
  ]
  if method:
    told = style.method_looks(search["trajectory"])[method].name
    group = candidates_of(search, method, place)
    number = len(group)
    mean = style.percent(np.mean([each["score"] for each in group]))
    # As it was first scored, on the chips of all candidates.
    best = next(each for each in group if each["widths"] == widths)
  if method in search["trajectory"]:
    different = search["distinct"][method][place]
    scored = f"{search['evaluations']:,} ({different:,})"
    if best["search_advantage"] is not None:  # suggested, never scored
      advantage = style.points(best["search_advantage"])
  after = {}
  if trained:
    last = len(search["selection"]["rounds"])
    scores = trained.get(tuple(widths), ())
    column = f"its score after round {last} of training [%]"
    after[column] = scores[-1] if len(scores) == last else "-"
  return {
    f"budget ({own})": style.quantity(own, most),
    "method": told,
    "scored (distinct vectors)": scored,
    "candidates": number,
    "robust score of the best [%]": style.percent(best["score"]),
    "mean of the candidates [%]": mean,
    "the best's score on other chips [%]": next(iter(again), "-"),
    **after,
    "the best's advantage in the search [points]": advantage,
    "the best's clean accuracy [%]": style.percent(best["clean"]),
    f"its {own} (of the budget)": _costs(spent, [own])[own]
    + f" ({100 * spent[field] / most:.1f} %)",
    **{
      {"macs": "MACs"}.get(kind, kind): amount
      for kind, amount in _costs(spent, cost.KINDS).items()
      if kind != own
    },
  }


def _trained(search):
  """{widths: its score after each round of training [%]}, the last ones' first.

  Empty where the search trained no candidates.
  """
  scores = {}
  for entries in (search["selection"] or {"rounds": ()})["rounds"]:
    for entry in entries:
      score = style.percent(entry["score"])
      scores.setdefault(tuple(entry["widths"]), []).append(score)
  return dict(sorted(scores.items(), key=lambda item: -len(item[1])))


def _selection(search):
  """Every candidate that was trained: scores before, and after each round."""
  main = search["main_budget"]
  looks = style.method_looks(search["trajectory"])
  known = {}  # {widths: (name, score in the super-net)}
  for method in ("uniform", search["method"]):
    for place, entry in enumerate(candidates_of(search, method, main)):
      name = looks[method].name
      name += f", number {place + 1}" if method != "uniform" else ""
      known.setdefault(tuple(entry["widths"]), (name, entry["score"]))
  decided = {  # nothing in runs of before it did
    tuple(entry["widths"]): style.percent(entry["mean"])
    for entries in (search["selection"] or {"rounds": ()})["rounds"]
    for entry in entries
    if "mean" in entry
  }
  rows = []
  for widths, scores in _trained(search).items():
    name, score = known[widths]
    row = {
      "candidate": name,
      "found": "yes" if list(widths) == search["found"] else "-",
      "in the super-net [%]": style.percent(score),
    }
    for index in range(len(search["selection"]["rounds"])):
      after = scores[index] if index < len(scores) else "-"
      row[f"after round {index + 1} [%]"] = after
    if decided:
      row["mean that decided [%]"] = decided[widths]
    rows.append(row | {"widths": ", ".join(map(str, widths))})
  return pd.DataFrame(rows)
