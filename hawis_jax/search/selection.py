"""Choice among scored width vectors: the best of a method, and the front.

Axes: N evaluations, D distinct vectors, L layers.
"""

from collections.abc import Callable

import numpy as np


def best_vectors(
  choices: np.ndarray,
  gains: np.ndarray,
  num: int,
  estimate: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[tuple[np.ndarray, float]]:
  """The best distinct vectors of one method: [(choices, mean gain)].

  A gain is a score less that of the update's references, which met the same
  chips: so an update with lucky chips has no advantage. The estimate of a
  vector scored n times is the sum of its gains over n + 1: one lucky score
  counts half. A method that predicts gains is asked first, and what the scores
  say beyond is counted so. Returned is the plain mean of a vector's gains.

  Args:
    choices: int `[N, L]`, all evaluations; a vector may occur many times.
    gains: `[N]`.
    num: at most so many.
    estimate: distinct vectors `[D, L]` -> predicted gains `[D]`, up to a
      constant; None: nothing is predicted.
  """
  if not len(choices):
    return []
  unique, inverse = np.unique(choices, axis=0, return_inverse=True)
  inverse = inverse.reshape(-1)
  predicted = np.zeros(len(unique))
  if estimate:
    predicted = np.asarray(estimate(unique), np.float64)
    predicted += np.mean(gains - predicted[inverse])
  beyond = np.bincount(inverse, gains - predicted[inverse])
  count = np.bincount(inverse)
  value = predicted + beyond / (count + 1)
  mean = np.bincount(inverse, gains) / count
  order = np.argsort(-value, kind="stable")[:num]
  return [(unique[i], float(mean[i])) for i in order]


def front(finalists: dict[str, list[dict]]) -> list[dict]:
  """The finalists that none beats in robust score at no more energy.

  Args:
    finalists: {method: entries}.

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
    for name, entries in finalists.items()
    for entry in entries
  ]
  points.sort(key=lambda p: (p["energy_joule"], -p["score"]))
  kept = []
  for point in points:
    if not kept or point["score"] > kept[-1]["score"]:
      kept.append(point)
  return kept
