"""The report's words: number formats, headline, captions, definitions."""

from hawis_jax import figures

UNITS = {"arrays": "crossbar arrays", "macs": "binary MACs"}


def percent(share: float) -> str:
  """A share in percent, without the sign."""
  return f"{100 * share:.2f}"


def estimate(value: float, interval: list[float]) -> str:
  """A share and its interval in percent."""
  low, high = map(percent, interval)
  return f"{percent(value)} [{low}, {high}]"


def difference(row: dict) -> str:
  """Signed percentage points with their interval."""
  numbers = [f"{100 * x:+.2f}" for x in (row["difference"], *row["ci95"])]
  mean, low, high = ("0.00" if float(n) == 0 else n for n in numbers)
  return f"{mean} [{low}, {high}]"


def amount(count: float) -> str:
  """A count: whole up to 9,999, then three digits and a prefix."""
  if count < 1e4:
    return f"{count:,}"
  unit, suffix = next(
    (unit, suffix)
    for unit, suffix in zip((1e3, 1e6, 1e9, 1e12, 1e15), "kMGTP", strict=True)
    if count < 999.5 * unit
  )
  return f"{count / unit:#.3g}".rstrip(".") + f" {suffix}"


def headline(content: dict) -> list[str]:
  """The main finding in sentences, from the numbers alone.

  Against every rival the found net is compared at each scenario's harshest
  level that both were measured at and that leaves it half its clean accuracy:
  beyond, nets differ in how they fail.

  Args:
    content: `nets`, `comparisons` and `search` of report.json.
  """
  nets = content["nets"]
  shown = [figures.look(name, nets).name for name in nets]
  if "found" not in nets:
    return [f"The found net was not measured, only {', '.join(shown)}."]
  harshest = {}
  for row in content["comparisons"]:  # ascending in level
    sweep = nets["found"]["sweeps"][row["scenario"]]
    mean = sweep["mean"][sweep["level"].index(row["level"])]
    if mean < 0.5 * nets["found"]["clean"]:
      continue
    harshest.setdefault(row["rival"], {})[row["scenario"]] = row
  if not harshest:
    levels = [
      f"{percent(sweep['mean'][-1])} % at "
      f"{figures.level_text(scenario, sweep['level'][-1])}"
      for scenario, sweep in nets["found"]["sweeps"].items()
    ]
    return [
      "There is no other net to compare the found net with. At the harshest "
      f"levels its mean accuracy is {', '.join(levels)}."
    ]
  return [
    _versus(content, rival, list(rows.values()))
    for rival, rows in harshest.items()
  ]


def _versus(content, rival, rows):
  """One sentence: the found net against one rival."""
  nets, unit = content["nets"], content["search"]["cost"]
  name = figures.look(rival, nets).name
  if nets[rival]["widths"] == nets["found"]["widths"]:
    return f"The found net has the same widths as the {name} net."
  count = {
    verdict: sum(row["verdict"] == verdict for row in rows)
    for verdict in ("ahead", "behind", "undecided")
  }
  total = len(rows)
  if count["ahead"] == total:
    verdict = f"The found net beats the {name} net at the harshest level of "
    verdict += "every defect"
  elif count["behind"] == total:
    verdict = f"The found net loses to the {name} net at the harshest level of "
    verdict += "every defect"
  elif count["undecided"] == total:
    verdict = f"Undecided: the found net can't be told from the {name} net at "
    verdict += "the harshest level of any defect"
  else:
    lead = "Mixed" if count["ahead"] else "No win"
    tally = ", ".join(f"{v} at {n}" for v, n in count.items() if n)
    verdict = f"{lead}: against the {name} net, the found net is {tally} of "
    verdict += f"{total} harshest defect levels"
  costs = [nets[net][unit] for net in ("found", rival)]
  parts = "; ".join(
    f"{difference(row)} points at "
    f"{figures.level_text(row['scenario'], row['level'])}"
    for row in rows
  )
  return (
    f"{verdict} ({amount(costs[0])} against {amount(costs[1])} "
    f"{UNITS[unit]}, {costs[0] / costs[1]:.2f} times the cost): {parts}."
  )


def search_outcome(content: dict) -> str:
  """What the search spent and found, policy against random search."""
  search = content["search"]
  best = {
    name: entries[0]["score"] for name, entries in search["finalists"].items()
  }
  row = search["policy_minus_random"]
  verdict = {
    "ahead": "the policy's is ahead",
    "behind": "the policy's is behind",
    "undecided": "the two can't be told apart",
  }[row["verdict"]]
  return (
    f"Within the budget of {search['budget']:,.0f} "
    f"{UNITS[search['cost']]}, policy and random search "
    f"scored {search['evaluations']:,} width vectors each. On fresh chips the "
    f"best of the policy reaches a robust score of {percent(best['policy'])} "
    f"%, of random search {percent(best['random'])} %, uniform scaling "
    f"{percent(best['uniform'])} %. Paired over chips, the mean accuracy of "
    f"the first two differs by {difference(row)} points: {verdict}. It is one "
    "search each, so the interval holds chips alone, and the validation "
    "images are partly those of the search. All scores are of the super-net, "
    "not of nets trained on their own."
  )


def making(content: dict) -> dict[str, str]:
  """{part: how it was set} of the run."""
  config = content["config"]
  rows, columns = config["device.tile_shape"]
  norm = {
    "fixed": "statistics of the defect-free net",
    "chip": "statistics recalibrated on every chip",
  }[config["robustness.batch_norm"]]
  return {
    "Device": (
      f"G_on = {1e6 * config['device.g_on']:g} µS, G_off = "
      f"{1e6 * config['device.g_off']:g} µS; arrays of {rows} x {columns} "
      "cells; a weight is a differential pair of cells"
    ),
    "Chips": (
      f"{span(content, 'chips')} a level, net and scenario; one kind of "
      f"defect at a time, everything else ideal; batch normalisation: {norm}"
    ),
    "Search": (
      f"{config['search.updates']:,} updates of {config['search.proposals']:,} "
      f"width vectors a method, scored on {config['search.chips']:,} chips a "
      f"scenario and {config['search.images']:,} validation images; finalists "
      f"on {config['search.finalist_chips']:,} chips a scenario and all "
      f"{config['data.validation_images']:,} validation images"
    ),
    "Training": (
      f"{config['train.steps']:,} steps of {config['train.batch_size']} images "
      f"a net, {config['train.optimizer.name']}, loss: "
      f"{config['train.loss']}; super-net: {config['pretrain.steps']:,} steps "
      f"of {config['pretrain.batch_size']} images"
    ),
    "Seed": f"{config['seed']}; every random draw derives from it",
    "Versions": ", ".join(
      f"{name} {version}" for name, version in content["versions"].items()
    )
    + " (when this report was made)",
  }


def captions(content: dict) -> dict[str, str]:
  """{file: caption} of the figures."""
  chips = span(content, "chips")
  return {
    "robustness.png": (
      f"Test accuracy on defective chips, {chips} chips a level and net. Line: "
      "mean; band: 95 % interval of the mean over chips; dashed: 5th "
      "percentile of the chips. Each defect has a vertical scale of its own."
    ),
    "search.png": (
      "Left: robust score of the proposals of every update, and the best so "
      "far, for the policy and for random search. Each update scores both on "
      "the same few chips, drawn afresh, so the best so far is an optimistic "
      "value. Right: each method's finalists scored again on other chips, the "
      "best at the left."
    ),
    "widths.png": (
      "Output channels of every convolution; shaded: from the least to the "
      "greatest choice of the search space."
    ),
    "training.png": (
      "Training curves: batch values (faint) and their running mean. The "
      "super-net's loss is the sum over the width vectors of a step; up to "
      "the dotted line it is warmed up on its maximum width vector alone."
    ),
  }


def span(content: dict, column: str) -> str:
  """Least to greatest value of a column over all sweeps."""
  values = [
    value
    for net in content["nets"].values()
    for sweep in net["sweeps"].values()
    for value in sweep[column]
  ]
  ends = sorted({min(values), max(values)})
  return " to ".join(f"{value:,}" for value in ends)


def definitions(content: dict) -> dict[str, str]:
  """{term: what it means}, of everything on the page."""
  config = content["config"]
  weight = config["search.cvar_weight"]
  mix = " / ".join(
    " and ".join(figures.level_text(*item) for item in scenario.items())
    for scenario in config["search.scenarios"]
  )
  return {
    "Chip": (
      "One Monte Carlo draw of the defects of every cell, kept for the whole "
      "test set. Chip number s has the same random numbers for every net, "
      "scenario and level."
    ),
    "Mean [95 % interval]": (
      "Mean accuracy over chips with its 95 % Student-t interval. It covers "
      "the draw of chips only: not test-set error, not the randomness of "
      "training. Accuracies are percentages of the test images."
    ),
    "5th percentile (5th pct.)": (
      "Over chips, linearly interpolated: one chip in twenty is worse."
    ),
    "Found - other net": (
      "Mean over chips of the paired difference in percentage points, with "
      "its 95 % Student-t interval. Ahead or behind: the interval leaves out "
      "0; undecided: it doesn't. Every interval stands for itself, without "
      "correction for their number."
    ),
    "Clean accuracy": (
      "On a defect-free chip. Its 95 % Wilson interval covers the draw of "
      "test images."
    ),
    "Robust score": (
      f"{1 - weight:g} mean + {weight:g} CVaR over chips, averaged over the "
      f"scenarios {mix}, on validation images. CVaR is the mean of the worst "
      "quarter of the chips."
    ),
    "Score while searching": (
      "From few chips; the greatest of many such scores is optimistic, "
      "therefore finalists are scored again on fresh chips. The best of "
      "several finalists is still slightly optimistic; uniform scaling is a "
      "single vector and isn't."
    ),
    "Stuck off, stuck on": (
      "Share of cells that stay at G_off (high-resistance state) or G_on "
      "(low-resistance state) whatever is written."
    ),
    "Variation γ": (
      "Every conductance is divided by exp(θ), θ normal with standard "
      "deviation γ."
    ),
    "Crossbar arrays": (
      "Differential pairs of arrays that hold all weights, head included."
    ),
    "Binary MACs": "Multiply-accumulates of one image, head included.",
  }
