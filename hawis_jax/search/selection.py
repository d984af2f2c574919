"""Choice among scored width vectors: the best of a method, and the front.

Axes: N evaluations, D distinct vectors, L layers.
"""

from collections.abc import Callable

import numpy as np


def best_vectors(
  choices: np.ndarray,
  advantages: np.ndarray,
  num: int,
  estimate: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[tuple[np.ndarray, float]]:
  """The best distinct vectors of one method: [(choices, mean advantage)].

  An advantage is a score less that of the update's references, which met the
  same
  chips: so an update with lucky chips has no advantage. The estimate of a
  vector scored n times is the sum of its advantages over n + 1: one lucky score
  counts half. A method that predicts advantages is asked first, and what the
  scores say beyond is counted so. Returned is the plain mean of a vector's
  advantages.

  Args:
    choices: int `[N, L]`, all evaluations; a vector may occur many times.
    advantages: `[N]`.
    num: at most so many.
    estimate: distinct vectors `[D, L]` -> predicted advantages `[D]`, up to a
      constant; None: nothing is predicted.
  """
  if not len(choices):
    return []
  unique, inverse = np.unique(choices, axis=0, return_inverse=True)
  inverse = inverse.reshape(-1)
  predicted = np.zeros(len(unique))
  if estimate:
    predicted = np.asarray(estimate(unique), np.float64)
    predicted += np.mean(advantages - predicted[inverse])
  beyond = np.bincount(inverse, advantages - predicted[inverse])
  count = np.bincount(inverse)
  value = predicted + beyond / (count + 1)
  mean = np.bincount(inverse, advantages) / count
  order = np.argsort(-value, kind="stable")[:num]
  return [(unique[i], float(mean[i])) for i in order]


def front(candidates: dict[str, list[dict]]) -> list[dict]:
  """The candidates that none beats in robust score at no more energy.

  Args:
    candidates: {method: entries}.

  Returns:
    `method`, `budget`, `widths`, `score` and `energy_joule` of each, cheapest
    first.
  """
  points = [
    {
      "method": name,
      "budget": entry["budget"],
      "widths": entry["widths"],
      "score": entry["score"],
      "energy_joule": entry["cost"]["energy_joule"],
    }
    for name, entries in candidates.items()
    for entry in entries
  ]
  points.sort(key=lambda p: (p["energy_joule"], -p["score"]))
  kept = []
  for point in points:
    if not kept or point["score"] > kept[-1]["score"]:
      kept.append(point)
  return kept
