"""What the terms on the report's page mean."""

from hawis_jax import looks
from hawis_jax import widths
from hawis_jax import wording


def definitions(content: dict) -> dict[str, str]:
  """{term: what it means}, of everything on the page."""
  return {
    **_net_definitions(content),
    **_accuracy_definitions(content),
    **(_search_definitions(content) if content["search"] else {}),
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
    "MACs": (
      "Multiply-accumulates of one image, head included; of as many bits as "
      "the weights have."
    ),
  }


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
      "A weight is one differential pair of analog cells, of up to 127 steps. "
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
      "Mean accuracy over chips with its 95 % Student-t interval. It covers "
      "the draw of chips only: not test-set error, not the randomness of "
      "training. Accuracies are percentages of the test images."
    ),
    "5th percentile (5th pct.)": (
      "Over chips, linearly interpolated: one chip in twenty is worse."
    ),
    "Clean accuracy": (
      "Without defects. Its 95 % Wilson interval covers the draw of test "
      "images."
    ),
  }
  if content["comparisons"]:
    name = looks.net_name(content["reference"])
    terms[f"{wording.capital(name)} - other net"] = (
      "Mean over chips of the paired difference in percentage points, with "
      "its 95 % Student-t interval. Ahead or behind: the interval leaves out "
      "0; undecided: it doesn't. Every interval stands for itself, without "
      "correction for their number."
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
      "therefore finalists are scored again on fresh chips. The best of "
      "several finalists is still slightly optimistic; uniform scaling is a "
      "single vector and isn't."
    ),
  }
