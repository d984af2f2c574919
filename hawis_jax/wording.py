"""The report's words: number formats, headline, captions."""

from hawis_jax import looks

_SAME = ("widths", "weight_bits")  # of nets that differ in nothing
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


def amount(count: float | None) -> str:
  """A count: whole up to 9,999, then three digits and a prefix; None: "-"."""
  if count is None:
    return "-"
  if count < 1e4:
    return f"{count:,}"
  unit, suffix = next(
    (unit, suffix)
    for unit, suffix in zip((1e3, 1e6, 1e9, 1e12, 1e15), "kMGTP", strict=True)
    if count < 999.5 * unit
  )
  return f"{count / unit:#.3g}".rstrip(".") + f" {suffix}"


def the_net(net: str) -> str:
  """A net as the subject of a sentence: "the 8-bit 1x net"."""
  return f"the {looks.net_name(net).replace(',', '')} net"


def weight_kind(bits: int) -> str:
  """What a net's weights are: "1-bit", "8-bit" or "float"."""
  return "float" if bits == 32 else f"{bits}-bit"


def headline(content: dict) -> list[str]:
  """The main finding in sentences, from the numbers alone.

  With every rival the reference net is compared at each scenario's harshest
  level that both were measured at and that leaves it half its clean accuracy:
  beyond, nets differ in how they fail.

  Args:
    content: `nets`, `reference`, `comparisons` and `search` of report.json.
  """
  nets, reference = content["nets"], content["reference"]
  if reference is None:
    clean = "; ".join(
      f"{looks.net_name(name)} {percent(net['clean'])} %"
      for name, net in nets.items()
    )
    return [f"No net was measured on chips. Without defects: {clean}."]
  harshest = {}
  for row in content["comparisons"]:  # ascending in level
    sweep = nets[reference]["sweeps"][row["scenario"]]
    mean = sweep["mean"][sweep["level"].index(row["level"])]
    if mean < 0.5 * nets[reference]["clean"]:
      continue
    harshest.setdefault(row["rival"], {})[row["scenario"]] = row
  if not harshest:
    levels = ", ".join(
      f"{percent(sweep['mean'][-1])} % at "
      f"{looks.level_text(scenario, sweep['level'][-1])}"
      for scenario, sweep in nets[reference]["sweeps"].items()
    )
    lead = (
      f"There is no other net on chips to compare {the_net(reference)} with"
    )
    if content["comparisons"]:
      lead = f"No level leaves {the_net(reference)} half its clean accuracy"
    return [f"{lead}. At the harshest levels its mean accuracy is {levels}."]
  return [
    _versus(content, rival, list(rows.values()))
    for rival, rows in harshest.items()
  ]


def _versus(content, rival, rows):
  """One sentence: the reference net against one rival."""
  nets, reference = content["nets"], content["reference"]
  ours, theirs = the_net(reference), the_net(rival)
  if all(nets[rival][k] == nets[reference][k] for k in _SAME):
    return f"{capital(ours)} has the same widths as {theirs}."
  count = {
    verdict: sum(row["verdict"] == verdict for row in rows)
    for verdict in ("ahead", "behind", "undecided")
  }
  if count["ahead"] == len(rows):
    verdict = f"{capital(ours)} beats {theirs} at the harshest level of "
    verdict += "every defect"
  elif count["behind"] == len(rows):
    verdict = f"{capital(ours)} loses to {theirs} at the harshest level of "
    verdict += "every defect"
  elif count["undecided"] == len(rows):
    verdict = f"Undecided: {ours} can't be told from {theirs} at "
    verdict += "the harshest level of any defect"
  else:
    lead = "Mixed" if count["ahead"] else "No win"
    tally = ", ".join(f"{v} at {n}" for v, n in count.items() if n)
    verdict = f"{lead}: against {theirs}, {ours} is {tally} of "
    verdict += f"{len(rows)} harshest defect levels"
  parts = "; ".join(
    f"{difference(row)} points at "
    f"{looks.level_text(row['scenario'], row['level'])}"
    for row in rows
  )
  return f"{verdict} ({_costs(content, reference, rival)}): {parts}."


def _costs(content, reference, rival):
  """What two nets cost; a ratio only where their weights are of one kind."""
  pair = [content["nets"][net] for net in (reference, rival)]
  kinds = [weight_kind(net["weight_bits"]) for net in pair]
  alike = kinds[0] == kinds[1]
  unit = content["search"]["cost"] if content["search"] and alike else "arrays"
  ours, theirs = (net.get(unit) for net in pair)
  if ours is None or theirs is None:
    return f"{kinds[0]} against {kinds[1]} weights"
  if alike:
    return (
      f"{amount(ours)} against {amount(theirs)} {UNITS[unit]}, "
      f"{ours / theirs:.2f} times the cost"
    )
  return (
    f"{amount(ours)} {UNITS[unit]} of {kinds[0]} weights against "
    f"{amount(theirs)} of {kinds[1]} weights"
  )


def capital(text: str) -> str:
  """`text` as the start of a sentence."""
  return text[0].upper() + text[1:]


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
  config, device = content["config"], content["device"]
  rows, columns = device["tile_shape"]
  cells = "; a weight is a differential pair of cells"
  if device["cell_bits"] and of_kind(content, 8):
    cells += f", of 8 bits a pair for every {device['cell_bits']} of them"
  norm = {
    "fixed": "statistics of the defect-free net",
    "chip": "statistics recalibrated on every chip",
  }[config["robustness.batch_norm"]]
  parts = {
    "Device": (
      f"{config['device.preset']}: G_on = {1e6 * device['g_on']:g} µS, G_off = "
      f"{1e6 * device['g_off']:g} µS; arrays of {rows} x {columns} cells{cells}"
      f"; {_periphery(device)}"
    ),
    "Chips": (
      f"{chips(content)} a level, net and scenario, one without random "
      "effects; everything that a scenario does not name is as above; batch "
      f"normalisation: {norm}"
    ),
  }
  if content["search"]:
    parts["Search"] = (
      f"{config['search.updates']:,} updates of {config['search.proposals']:,} "
      f"width vectors a method, scored on {config['search.chips']:,} chips a "
      f"scenario and {config['search.images']:,} validation images, without IR "
      "drop; finalists "
      f"on {config['search.finalist_chips']:,} chips a scenario and all "
      f"{config['data.validation_images']:,} validation images"
    )
  parts["Training"] = "; ".join(_training(content))
  parts["Seed"] = f"{config['seed']}; every random draw derives from it"
  versions = ", ".join(" ".join(x) for x in content["versions"].items())
  parts["Versions"] = f"{versions} (when this report was made)"
  return parts


def _periphery(device):
  """Wires and converters that all chips have, in words."""
  wires = "ideal wires"
  if device["wire_resistance"] or device["load_resistance"]:
    wires = (
      f"wires of {device['wire_resistance']:g} Ω a cell, loads of "
      f"{device['load_resistance']:g} Ω"
    )
  converters = "ideal converters"
  if device["adc_bits"]:
    kind = device["adc_range"].replace("_", "-")
    converters = f"{device['adc_bits']}-bit converters, {kind} range"
  return f"{wires}, {converters} where a scenario sets no other"


def _training(content):
  """How the nets and the super-net were trained, in phrases."""
  config = content["config"]
  phrases = [
    f"{config['train.steps']:,} steps of {config['train.batch_size']} images "
    f"a net, {config['train.optimizer.name']}, loss: {config['train.loss']}"
  ]
  if of_kind(content, 8, 32):
    phrases.append(
      "8-bit and float nets: the same steps, "
      f"{config['train.counterparts.name']}, loss: labels"
    )
  if of_kind(content, 8):
    how = {
      "trained": "trained with their quantisation",
      "quantized": "quantised from the float nets",
    }[config["train.int8"]]
    phrases.append(f"8-bit nets: {how}")
  if config["train.use_validation"]:
    phrases.append("the validation images are trained on too")
  if content["search"]:
    phrases.append(
      f"super-net: {config['pretrain.steps']:,} steps of "
      f"{config['pretrain.batch_size']} images"
    )
  return phrases


def of_kind(content: dict, *bits: int) -> list[str]:
  """The nets whose weights have one of some numbers of bits."""
  nets = content["nets"]
  return [name for name, net in nets.items() if net["weight_bits"] in bits]


def last_validation(content: dict) -> str:
  """The nets' last accuracies on validation images; "": not measured."""
  lasts = []
  for stage, curve in content["curves"].items():
    points = curve.get("accuracy_validation")
    if points and points["value"][-1] is not None:
      lasts.append(
        f"{looks.net_name(stage.removeprefix('train/'))} "
        f"{percent(points['value'][-1])} % at step {points['step'][-1]:,}"
      )
  if not lasts:
    return ""
  return (
    f"Last accuracy on the {content['config']['data.validation_images']:,} "
    f"validation images, without defects: {'; '.join(lasts)}."
  )


def captions(content: dict) -> dict[str, str]:
  """{file: caption} of the figures."""
  count = chips(content)
  shaded = "; shaded: from the least to the greatest choice of the search space"
  supernet = (
    " The super-net's loss is the sum over the width vectors of a step; up to "
    "the dotted line it is warmed up on its maximum width vector alone."
  )
  return {
    "robustness.png": (
      f"Test accuracy on defective chips, {count} chips a level and net. Line: "
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
      "Output channels of every layer of the width vectors"
      f"{shaded if content['space'] else ''}. Nets of equal widths share a "
      "line."
    ),
    "training.png": (
      "Training curves: batch values (faint) and their running mean."
      f"{supernet if 'pretrain' in content['curves'] else ''} "
      f"{last_validation(content)}"
    ).rstrip(),
  }


def chips(content: dict) -> str:
  """Least to greatest number of chips of a level with random effects."""
  values = [
    value
    for net in content["nets"].values()
    for sweep in net["sweeps"].values()
    for value in sweep["chips"]
    if value > 1
  ]
  if not values:
    return "1"
  return " to ".join(f"{v:,}" for v in sorted({min(values), max(values)}))


def test_images(content: dict, count: int) -> str:
  """How many images a net was tested on, and of how many: "500 of 10,000"."""
  total = content["data"]["test_images"]
  return f"{count:,}" if count == total else f"{count:,} of {total:,}"
