"""The search's outcome: methods compared, in numbers and in words."""

from hawis_jax import cost
from hawis_jax import intervals
from hawis_jax.report import looks
from hawis_jax.report import units


def collect(result: dict) -> dict:
  """What report.json holds of the search.

  Args:
    result: of search/result.json.

  Returns:
    It and `comparisons`: the found net minus every other method's best at the
    main budget, paired over chips.
  """
  main = result["main_budget"]
  found = best(result, result["method"], main)
  rivals = {
    name: best(result, name, main)
    for name in result["finalists"]
    if name != result["method"]
  }
  return {
    **result,
    "comparisons": [
      {
        "rival": name,
        "same_widths": rival["widths"] == found["widths"],
        **intervals.paired_difference(found["chips"], rival["chips"]),
      }
      for name, rival in rivals.items()
      if rival
    ],
  }


def best(search: dict, method: str, budget: int) -> dict | None:
  """A method's best vector of a budget on chips of its own, if it has any."""
  return search["best"][method][budget]


def found(search: dict) -> list[dict | None]:
  """The best vector of every budget of the method that is used."""
  return search["best"][search["method"]]


def of_budget(search: dict, method: str, budget: int) -> list[dict]:
  """A method's finalists of a budget, best first."""
  entries = search["finalists"][method]
  return [entry for entry in entries if entry["budget"] == budget]


def looks_of(search: dict) -> dict[str, looks.Look]:
  """How the methods are drawn."""
  return looks.method_looks(search["trajectory"])


def budget_text(content: dict, budget: int) -> str:
  """A budget in running text: "31.2 µJ of energy by isaac_32nm"."""
  search, technology = content["search"], content["hardware"]["technology"]
  kind = search["cost"]
  amount = units.of_cost(kind, search["budgets"][budget])
  return amount + units.by(technology, kind)


def sentences(content: dict) -> list[str]:
  """What the search spent and found, and how far it can be trusted."""
  search, shown = content["search"], looks_of(content["search"])
  main, found = search["main_budget"], search["method"]
  score = units.percent(best(search, found, main)["score"])
  others = "; ".join(
    f"{shown[row['rival']].name} "
    f"{units.percent(best(search, row['rival'], main)['score'])} %"
    for row in search["comparisons"]
  )
  return [
    _spent(content, shown),
    f"On fresh chips the found net, the best of {shown[found].name}, reaches a "
    f"robust score of {score} %{others and f'; the best of others: {others}'}.",
    *_verdicts(search, shown),
    _caution(),
  ]


def _spent(content, shown):
  """Budgets, limits and evaluations."""
  search, technology = content["search"], content["hardware"]["technology"]
  methods, others = search["trajectory"], len(search["budgets"]) - 1
  main = search["budgets"][search["main_budget"]]
  text = f"Within the budget of {units.of_cost(search['cost'], main)}"
  limits = search["limits"]
  if limits:
    most = (units.of_cost(kind, amount) for kind, amount in limits.items())
    text += f" and at most {', '.join(most)}"
  text += units.by(technology, search["cost"], *limits)
  count = f"{search['evaluations']:,} width vectors"
  if len(methods) == 1:
    text += f", {shown[search['method']].name} scored {count}"
  else:
    text += (
      f", each of {len(methods)} methods scored {count}, all on the same chips"
    )
  if others:
    text += (
      f"; as many within each of {others} other "
      f"budget{'s' if others > 1 else ''}"
    )
  return f"{text}."


def _verdicts(search, shown):
  """Whom the found net is ahead of, if there is any other method."""
  verdicts = {}
  for row in search["comparisons"]:
    verdict = "same" if row["same_widths"] else row["verdict"]
    verdicts.setdefault(verdict, []).append(shown[row["rival"]].name)
  texts = {
    "ahead": "is ahead of",
    "behind": "is behind",
    "undecided": "can't be told from",
    "same": "has the same widths as",
  }
  parts = [
    f"{text} {', '.join(verdicts[verdict])}"
    for verdict, text in texts.items()
    if verdict in verdicts
  ]
  if not parts:
    return []
  return [
    "Mean accuracy, paired over chips, against the best of others: the found "
    f"net {'; it '.join(parts)}."
  ]


def _caution():
  return (
    "It is one search of each method, so the intervals hold the draw of chips "
    "alone: another seed may turn the order. The validation images are partly "
    "those of the search; a method's best is picked on other chips than it is "
    "judged on. All scores are of the super-net, not of nets trained on their "
    "own."
  )


def table(content: dict) -> tuple[str, tuple, list[tuple]]:
  """(caption, header, rows) of each budget's and method's best finalist."""
  search = content["search"]
  technology = content["hardware"]["technology"]
  kinds = [kind for kind in cost.KINDS if kind != search["cost"]]
  shown = looks_of(search)
  rows = []
  for budget, most in enumerate(search["budgets"]):
    for name in search["finalists"]:
      if best(search, name, budget):
        rows.append(
          (
            units.quantity(search["cost"], most),
            shown[name].name,
            *_row(search, name, budget, kinds),
          )
        )
  caption = (
    "Finalists of each budget and method are scored again on fresh chips and "
    "all validation images, and the best of them once more on others; gain: "
    "over the references scored in the same updates. Energy, times and area by "
    f"{technology}."
  )
  header = (
    f"budget ({_heading(search['cost'])})",
    "method",
    "scores (distinct vectors)",
    "finalists",
    "robust score of the best [%]",
    "mean of the finalists [%]",
    "the best's gain while searching [points]",
    "the best's clean accuracy [%]",
    f"its {_heading(search['cost'])} (of the budget)",
    *map(_heading, kinds),
  )
  return caption, header, rows


def _heading(kind):
  return "MACs" if kind == "macs" else kind


def _row(search, name, budget, kinds):
  """Cells of one budget and method."""
  first, searched = best(search, name, budget), name in search["trajectory"]
  entries, most = of_budget(search, name, budget), search["budgets"][budget]

  def spent(kind):
    return first["cost"][cost.KINDS[kind].field]

  own = search["cost"]
  return (
    f"{search['evaluations']:,} ({search['distinct'][name][budget]:,})"
    if searched
    else "-",
    str(len(entries)),
    units.percent(first["score"]),
    units.percent(sum(e["score"] for e in entries) / len(entries)),
    f"{100 * first['search_gain']:+.2f}" if searched else "-",
    units.percent(first["clean"]),
    f"{units.quantity(own, spent(own))} ({100 * spent(own) / most:.1f} %)",
    *(units.quantity(kind, spent(kind)) for kind in kinds),
  )


def difference_table(content: dict) -> tuple[str, tuple, list[tuple]] | None:
  """(caption, header, rows) of the found net against the others' best."""
  search = content["search"]
  if not search["comparisons"]:
    return None
  shown = looks_of(search)
  caption = (
    f"The found net ({shown[search['method']].name}) minus each other method's "
    "best at its budget, both in the super-net: mean accuracy over the "
    "scenarios, paired over chips, with its 95 % interval over chips."
  )
  rows = [
    (
      shown[row["rival"]].name,
      str(row["chips"]),
      units.difference(row),
      "same widths" if row["same_widths"] else row["verdict"],
    )
    for row in search["comparisons"]
  ]
  return caption, ("minus", "chips", "difference [points]", "verdict"), rows
