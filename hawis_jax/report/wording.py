"""The report's words: headline, how it was made."""

from hawis_jax import cost
from hawis_jax.report import looks
from hawis_jax.report import units

_SAME = ("widths", "weight_bits")  # of nets that differ in nothing


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
    content: `nets`, `reference`, `comparisons`, `search` and `hardware` of
      report.json.
  """
  nets, reference = content["nets"], content["reference"]
  if reference is None:
    clean = "; ".join(
      f"{looks.net_name(name)} {units.percent(net['clean'])} %"
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
      f"{units.percent(sweep['mean'][-1])} % at "
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
    f"{units.difference(row)} points at "
    f"{looks.level_text(row['scenario'], row['level'])}"
    for row in rows
  )
  return f"{verdict} ({_costs(content, reference, rival)}): {parts}."


def _costs(content, reference, rival):
  """What two nets cost; a ratio only where their weights are of one kind."""
  pair = [content["nets"][net] for net in (reference, rival)]
  kinds = [weight_kind(net["weight_bits"]) for net in pair]
  alike = kinds[0] == kinds[1]
  kind = content["search"]["cost"] if content["search"] and alike else "arrays"
  ours, theirs = (net.get(cost.KINDS[kind].field) for net in pair)
  if ours is None or theirs is None:
    return f"{kinds[0]} against {kinds[1]} weights"
  texts = [units.quantity(kind, value) for value in (ours, theirs)]
  if alike:
    noun = units.NOUNS[kind]
    if kind not in cost.COUNTS:
      noun += f" by {content['hardware']['technology']}"
    return (
      f"{texts[0]} against {texts[1]} {noun}, {ours / theirs:.2f} times the "
      "cost"
    )
  return (
    f"{texts[0]} crossbar arrays of {kinds[0]} weights against {texts[1]} of "
    f"{kinds[1]} weights"
  )


def capital(text: str) -> str:
  """`text` as the start of a sentence."""
  return text[0].upper() + text[1:]


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
  if of_kind(content, 1) or content["search"]:
    parts["Energy, latency, area"] = _hardware(content["hardware"])
  if content["search"]:
    parts["Search"] = (
      f"{config['search.updates']:,} updates of {config['search.proposals']:,} "
      "width vectors a method and budget, scored on "
      f"{config['search.chips']:,} chips a "
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


def _hardware(hardware):
  """What stands behind energies, times and areas."""
  converters = (
    f"converters of {hardware['converter_bits']} bits, and sense amplifiers "
    "where a product fits the rows of one array and is only compared"
  )
  if hardware["sensed"]:
    converters = "sense amplifiers"
  copies = hardware["duplication"]
  return (
    f"component numbers of {hardware['technology']}; {converters}; copies of a "
    f"layer's arrays: {copies if copies != 1 else 'one'}; "
    f"{100 * hardware['activity']:g} % of the rows are driven at a read, "
    "which bounds the energy from above"
  )


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
