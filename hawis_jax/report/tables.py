"""The report's tables: caption, header and rows of plain text."""

from collections.abc import Callable, Iterable

from hawis_jax import cost
from hawis_jax.report import breakdown
from hawis_jax.report import looks
from hawis_jax.report import outcome
from hawis_jax.report import units
from hawis_jax.report import wording

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]

_OF_PARTS = ("energy", "area")  # what components share


def costs(content: dict) -> Table:
  """What every net costs, and its accuracy without defects."""
  shown = ("energy", "latency", "area")
  return (
    "Cost of one image's inference; accuracy without defects on the test "
    "images, with its 95 % Wilson interval over images. Energy, latency and "
    f"area of 1-bit nets, by {content['hardware']['technology']}.",
    (
      "net",
      "kind",
      "crossbar arrays",
      "MACs",
      "weights",
      *shown,
      "test images",
      "clean accuracy [%]",
    ),
    [
      (
        looks.net_name(name),
        wording.weight_kind(net["weight_bits"]),
        *(units.amount(net.get(count)) for count in cost.COUNTS),
        *(units.quantity(k, net[cost.KINDS[k].field]) for k in shown),
        wording.test_images(content, net["test_images"]),
        units.estimate(net["clean"], net["clean_ci95"]),
      )
      for name, net in content["nets"].items()
    ],
  )


def vectors(content: dict) -> Table:
  """Widths of all vectors, and the found ones of other budgets."""
  rows = [
    ("; ".join(map(looks.net_name, names)), vector)
    for vector, names in breakdown.distinct(content, compared=False).items()
  ]
  search = content["search"]
  if search:
    for budget, entry in enumerate(outcome.found(search)):
      if entry and budget != search["main_budget"]:
        rows.append(
          (
            f"found within {outcome.budget_text(content, budget)}",
            entry["widths"],
          )
        )
  return (
    "Output channels of every layer of the width vector, stem first.",
    ("net", "widths"),
    [(name, ", ".join(map(str, vector))) for name, vector in rows],
  )


def parts(content: dict) -> Table | None:
  """Energy and area of every component of the first 1-bit net; None: none."""
  same = breakdown.distinct(content)
  if not same:
    return None
  names = next(iter(same.values()))
  found = content["vectors"][names[0]]
  total = {kind: found["cost"][cost.KINDS[kind].field] for kind in _OF_PARTS}
  rows = []
  for part, amounts in found["components"].items():
    row = [looks.COMPONENTS[part]]
    for kind in _OF_PARTS:
      amount = amounts[cost.KINDS[kind].field]
      row += [units.quantity(kind, amount), units.percent(amount / total[kind])]
    rows.append(tuple(row))
  row = ["sum"]
  for kind in _OF_PARTS:
    row += [units.quantity(kind, total[kind]), units.percent(1)]
  return (
    f"Of {wording.the_net(names[0])}, by {content['hardware']['technology']}.",
    ("component", "energy of an image", "of it [%]", "area", "of it [%]"),
    [*rows, tuple(row)],
  )


def selected(levels: Iterable[float]) -> list[float]:
  """The middle and the harshest of the levels."""
  levels = sorted(levels)
  return sorted({levels[len(levels) // 2], levels[-1]})


def on_chips(
  content: dict, select: Callable[[Iterable[float]], list[float]]
) -> list[Table]:
  """Accuracy on chips, then differences, at the levels `select` picks."""
  nets = {n: net for n, net in content["nets"].items() if net["sweeps"]}
  levels = {}
  for net in nets.values():
    for scenario, sweep in net["sweeps"].items():
      levels.setdefault(scenario, set()).update(sweep["level"])
  rows = [(s, level) for s in levels for level in select(levels[s])]
  if not rows:
    return []
  accuracy = (
    f"Accuracy on defective chips, {wording.chips(content)} each: "
    "mean, its 95 % interval over chips, 5th percentile of the chips, and what "
    "the draw of test images adds: 1.96 standard errors.",
    ("defects", *(f"{looks.net_name(name)} [%]" for name in nets)),
    [
      (
        looks.level_text(*row),
        *(_accuracy(net, *row) for net in nets.values()),
      )
      for row in rows
    ],
  )
  return [accuracy, *_differences(content, rows)]


def _accuracy(net, scenario, level):
  sweep = net["sweeps"].get(scenario, {"level": []})
  if level not in sweep["level"]:
    return "-"
  chips, mean, interval, p5, errors = (
    sweep[column][sweep["level"].index(level)]
    for column in ("chips", "mean", "ci95", "p5", "standard_errors")
  )
  images = f"test set ±{units.percent(1.96 * errors['images'])}"
  if chips == 1:
    return f"{units.percent(mean)}\nall chips alike\n{images}"
  mean = units.estimate(mean, interval)
  return f"{mean}\n5th pct. {units.percent(p5)}\n{images}"


def _differences(content, rows):
  """The reference net minus every other, at some (scenario, level)."""
  pairs = {
    (pair["rival"], pair["scenario"], pair["level"]): pair
    for pair in content["comparisons"]
  }
  rivals = list(dict.fromkeys(rival for rival, *_ in pairs))
  # Without random effects there is one chip, and nothing is compared.
  rows = [row for row in rows if any((r, *row) in pairs for r in rivals)]
  if not rows:
    return []
  name = looks.net_name(content["reference"])
  table = (
    f"{wording.capital(name)} minus the other net, paired over chips: mean "
    "with its 95 % interval [points]; how wide the interval of different chips "
    "would be.",
    ("defects", *(f"minus {looks.net_name(rival)}" for rival in rivals)),
    [
      (
        looks.level_text(*row),
        *(_difference(pairs.get((rival, *row))) for rival in rivals),
      )
      for row in rows
    ],
  )
  return [table]


def _difference(pair):
  if not pair:
    return "-"
  wider = pair["narrowing"]
  unpaired = f"\nunpaired {wider:.1f}x as wide" if wider else ""
  return f"{units.difference(pair)}\n{pair['verdict']}{unpaired}"
