"""What stands below the report's figures."""

from hawis_jax.report import breakdown
from hawis_jax.report import looks
from hawis_jax.report import outcome
from hawis_jax.report import units
from hawis_jax.report import wording


def captions(content: dict) -> dict[str, str]:
  """{file: caption} of the figures."""
  count = wording.chips(content)
  shaded = "; shaded: from the least to the greatest choice of the search space"
  supernet = (
    " The super-net's loss is the sum over the width vectors of a step; up to "
    "the dotted line it is warmed up on its maximum width vector alone."
  )
  technology = content["hardware"]["technology"]
  published = not all(v["compared"] for v in content["vectors"].values())
  return {
    "robustness.png": (
      f"Test accuracy on defective chips, {count} chips a level and net. Line: "
      "mean; band: 95 % interval of the mean over chips; dashed: 5th "
      "percentile of the chips. Each defect has a vertical scale of its own."
    ),
    **(_of_search(content) if content["search"] else {}),
    "widths.png": (
      "Output channels of every layer of the width vectors"
      f"{shaded if content['space'] else ''}. Equal ones share a line"
      f"{'; grey: published ones, for comparison' if published else ''}."
    ),
    "utilisation.png": (
      "Share of the cells of every matrix product's arrays that hold weights. "
      f"{_used(content)}"
    ),
    "components.png": (
      "Energy of one image and area of the 1-bit nets by component, with the "
      f"component numbers of {technology}."
    ),
    "training.png": (
      "Training curves: batch values (faint) and their running mean."
      f"{supernet if 'pretrain' in content['curves'] else ''} "
      f"{_last_validation(content)}"
    ).rstrip(),
  }


def _of_search(content):
  """Captions of the figures of the search."""
  search = content["search"]
  technology = content["hardware"]["technology"]
  lines = ""
  if search["cost"] == "energy":
    lines = "; dotted: the budgets"
  return {
    "search.png": (
      "At the found net's budget of "
      f"{outcome.budget_text(content, search['main_budget'])}. Left: robust "
      "score of the proposals of every update, mean and best so far. Each "
      "update scores all methods on the same few chips, drawn afresh, so the "
      "best so far is an optimistic value. Right: each method's finalists "
      "scored again on other chips, the best at the left."
    ),
    "front.png": (
      "Robust score on fresh chips against energy of all finalists of every "
      f"method and budget{lines}. Line: those that none beats in score at no "
      "more energy; it is drawn through the luckiest scores, so it is slightly "
      f"optimistic. Energy of one image by {technology}."
    ),
  }


def _used(content):
  """How much of all cells the compared nets use."""
  rows, columns = content["hardware"]["tile_shape"]
  used = "; ".join(
    f"{' = '.join(looks.net_name(name) for name in names)} "
    f"{100 * content['vectors'][names[0]]['used']:.1f} %"
    for names in breakdown.distinct(content).values()
  )
  return (
    f"Of all cells: {used}. Arrays are whole tiles of {rows} x {columns} "
    "cells, of the same area however few of these are used: widths that fill "
    "tiles hold more weights in as many arrays."
  )


def _last_validation(content):
  """The nets' last accuracies on validation images; "": not measured."""
  lasts = []
  for stage, curve in content["curves"].items():
    points = curve.get("accuracy_validation")
    if points and points["value"][-1] is not None:
      lasts.append(
        f"{looks.net_name(stage.removeprefix('train/'))} "
        f"{units.percent(points['value'][-1])} % at step {points['step'][-1]:,}"
      )
  if not lasts:
    return ""
  return (
    f"Last accuracy on the {content['config']['data.validation_images']:,} "
    f"validation images, without defects: {'; '.join(lasts)}."
  )
