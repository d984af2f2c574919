"""What report.json holds of the hardware: every width vector's costs.

All of it follows from widths and the experiment, and is stored with no result.
"""

from collections.abc import Sequence

import numpy as np

from hawis_jax import cost
from hawis_jax import experiment as experiment_lib
from hawis_jax import nets


def hardware(experiment: experiment_lib.Experiment) -> dict:
  """What the costs hold for, and the names of the matrix products."""
  used = experiment.geometry.hardware
  return {
    "technology": used.technology.name,
    "tile_shape": list(used.tile_shape),
    "converter_bits": used.converter_bits,
    "sensed": used.adc_bits == 1,
    "duplication": used.duplication,
    "activity": used.activity,
    "products": list(experiment.geometry.names),
  }


def vectors(
  experiment: experiment_lib.Experiment, results: dict, found: list | None
) -> dict[str, dict]:
  """The width vectors that the report compares, by name.

  Args:
    experiment: of the run.
    results: of the nets, by name, the first ones first.
    found: widths of the found net; None: there was no search.

  Returns:
    `widths`, `compared` (False: only known by name, or no 1-bit net's), and
    see `_describe`; published vectors that are no net's come last.
  """
  named = {nets.parse(net).widths: r["widths"] for net, r in results.items()}
  compared = {
    nets.parse(net).widths
    for net, r in results.items()
    if r["weight_bits"] == 1
  }
  if found:
    named.setdefault("found", found)
    compared |= {*nets.SEARCHED}
  if compared:
    compared.add(nets.BASELINE)
  for name in nets.vector_names(experiment.config.network.depth):
    if name in experiment.widths:
      named.setdefault(name, experiment.widths[name])
  order = [*(name for name in nets.SEARCHED if name in named), *named]
  return {
    name: {
      "widths": list(named[name]),
      "compared": name in compared,
      **_describe(named[name], experiment.geometry),
    }
    for name in dict.fromkeys(order)
  }


def _describe(vector: Sequence[int], geometry: cost.Geometry) -> dict:
  """Costs, their components, and used shares of cells of a binary net.

  Returns:
    `cost`: of `cost.Cost`'s fields; `components`: {name: energy_joule and
    area_m2}; `cells`: used share of every product's cells; `used`: of all.
  """
  vector = np.array(vector, np.int64)
  total = cost.network_cost(vector, geometry)._asdict()
  total = {name: np.asarray(value).item() for name, value in total.items()}
  parts = cost.components(vector, geometry)
  rows, columns = geometry.tile_shape
  return {
    "cost": total,
    "components": {
      name: {k: float(v) for k, v in amount._asdict().items()}
      for name, amount in parts.items()
    },
    "cells": cost.utilisation(vector, geometry).cells.tolist(),
    "used": total["weights"] / (total["arrays"] * rows * columns),
  }


def distinct(
  content: dict, compared: bool = True
) -> dict[tuple[int, ...], list[str]]:
  """{widths: names} of the report's vectors, equal ones together.

  Args:
    content: of report.json.
    compared: only those that are compared as 1-bit nets.
  """
  same = {}
  for name, vector in content["vectors"].items():
    if vector["compared"] or not compared:
      same.setdefault(tuple(vector["widths"]), []).append(name)
  return same
