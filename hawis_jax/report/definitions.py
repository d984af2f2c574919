"""What the terms on the report's page mean."""

from hawis_jax import widths
from hawis_jax.report import looks
from hawis_jax.report import wording


def definitions(content: dict) -> dict[str, str]:
  """{term: what it means}, of everything on the page."""
  return {
    **_net_definitions(content),
    **_accuracy_definitions(content),
    **(_search_definitions(content) if content["search"] else {}),
    **_effect_definitions(content),
    "Crossbar arrays": (
      "Differential pairs of arrays that hold all weights, head included."
    ),
    "MACs": (
      "Multiply-accumulates of one image, head included; of as many bits as "
      "the weights have."
    ),
    "Energy, latency, area": (
      "Of one image's inference by a 1-bit net, layer after layer: arrays, "
      "their drivers and converters, buffers, wires and digital parts. They "
      "are estimates with the component numbers of one technology, here "
      f"{content['hardware']['technology']}, and compare with no cost by "
      "another."
    ),
    "Used cells": (
      "Share of the cells of a product's arrays that hold weights: the rest is "
      "built, and partly driven, for nothing."
    ),
  }


# {fields of the device: (term, what it means)}
_EFFECTS = {
  ("stuck_off", "stuck_on"): (
    "Stuck off, stuck on",
    "Share of cells that stay at G_off (high-resistance state) or G_on "
    "(low-resistance state) whatever is written.",
  ),
  ("variation",): (
    "Variation γ",
    "Every conductance is divided by exp(θ), θ normal with standard deviation "
    "γ.",
  ),
  ("dead_rows", "dead_columns"): (
    "Dead lines",
    "Share of word or bit lines of an array whose cells carry no current.",
  ),
  ("gaussian_variation",): (
    "Gaussian variation",
    "Every conductance is multiplied by 1 + s n, n standard normal, and "
    "clipped at 0.",
  ),
  ("write_error",): (
    "Programming error",
    "Normal, of a standard deviation that was measured as a function of the "
    "target conductance; new at every programming.",
  ),
  ("drift_time",): (
    "Drift",
    "Conductances fall as a power of the time since programming, each cell "
    "with an exponent of its own.",
  ),
  ("read_noise",): (
    "Thermal and shot noise",
    "Normal noise of every current that is read, new at every read.",
  ),
  ("telegraph_noise",): (
    "Random telegraph noise",
    "At every read each cell is, with probability 1/2, one measured step "
    "above its conductance; a column's sum is drawn from the normal "
    "distribution of the same mean and variance.",
  ),
  ("legacy_noise",): (
    "Noise of the published test",
    "As in the published code: a third of the whole conductance range, here "
    "drawn once a chip. For comparison only; no device has it.",
  ),
  ("wire_resistance", "load_resistance"): (
    "IR drop",
    "Currents of the resistive network of cells, wires, drivers and sensing "
    "ends, solved exactly.",
  ),
  ("adc_bits",): (
    "Converters",
    "Every column of every tile is read by a converter of so many bits, and "
    "the codes of the row tiles are added.",
  ),
}


def _effect_definitions(content):
  """Of the effects that any scenario on the page names."""
  config = content["config"]
  named = {
    field
    for section in ("search.scenarios", "robustness.scenarios")
    for scenario in config[section]
    for field in scenario
  }
  return dict(
    entry for fields, entry in _EFFECTS.items() if not named.isdisjoint(fields)
  )


def _net_definitions(content):
  """What the kinds of nets on the page are."""
  terms = {}
  named = [looks.net_name(n) for n in content["nets"] if n in widths.PRESETS]
  if named:
    terms[", ".join(named)] = (
      "Width vectors of the publication, or baselines to them: given by name."
    )
  if wording.of_kind(content, 8):
    terms["8-bit net"] = (
      "Standard ResNet of the same widths with 8-bit weights and activations. "
      "A weight is one differential pair of analog cells, of up to 127 steps, "
      "or a pair a slice where the device has cells of few bits. "
      "Its converters are ideal, and no cost here counts them."
    )
  if wording.of_kind(content, 32):
    terms["Float net"] = (
      "Standard ResNet of the same widths in floating point: a digital "
      "reference, never put on a crossbar."
    )
  return terms


def _accuracy_definitions(content):
  """What is measured on chips, and how nets are compared."""
  terms = {
    "Chip": (
      "One Monte Carlo draw of the defects of every cell, kept for all test "
      "images. Chip number s has the same random numbers for every net, "
      "scenario and level."
    ),
    "Mean [95 % interval]": (
      "Mean accuracy over chips with its 95 % studentised bootstrap interval "
      "(Student's t below 16 chips). It covers the draw of chips only: not "
      "test-set error, not the randomness of training. Accuracies are "
      "percentages of the test images."
    ),
    "Test set ±": (
      "1.96 standard errors of the mean from the draw of test images alone, by "
      "a two-way analysis of variance of chips and images."
    ),
    "5th percentile (5th pct.)": (
      "Over chips, linearly interpolated: one chip in twenty is worse."
    ),
    "Clean accuracy": (
      "Without defects, with ideal wires and converters. Its 95 % Wilson "
      "interval covers the draw of test images."
    ),
  }
  if content["comparisons"]:
    name = looks.net_name(content["reference"])
    terms[f"{wording.capital(name)} - other net"] = (
      "Mean over chips of the paired difference in percentage points, with "
      "its 95 % studentised bootstrap interval. Ahead or behind: the interval "
      "leaves out 0; undecided: it doesn't. Every interval stands for itself, "
      'without correction for their number. "Unpaired" is how many times '
      "wider Welch's interval is, as if the nets had met different chips."
    )
  return terms


def _search_definitions(content):
  """The search's scores."""
  config = content["config"]
  weight = config["search.cvar_weight"]
  mix = " / ".join(
    " and ".join(looks.level_text(*item) for item in scenario.items())
    for scenario in config["search.scenarios"]
  )
  return {
    "Robust score": (
      f"{1 - weight:g} mean + {weight:g} CVaR over chips, averaged over the "
      f"scenarios {mix}, on validation images. CVaR is the mean of the worst "
      "quarter of the chips."
    ),
    "Score while searching": (
      "From few chips; the greatest of many such scores is optimistic, "
      "therefore finalists are scored again on fresh chips, and the best of "
      "them on others still, whose score is shown."
    ),
  }
