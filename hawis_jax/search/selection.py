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
  """Returns the best `num` distinct vectors: [(choices, mean advantage)].

  An advantage is a score less that of the update's references, which met the
  same chips: so an update with lucky chips has no advantage. Of all evaluations
  `choices` is int `[N, L]`, `advantages` `[N]`. A method that predicts
  advantages is asked first: `estimate`, distinct vectors `[D, L]` -> `[D]`, up
  to a constant.
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
  # What n scores say beyond the prediction: one lucky score counts half.
  value = predicted + beyond / (count + 1)
  mean = np.bincount(inverse, advantages) / count
  order = np.argsort(-value, kind="stable")[:num]
  return [(unique[i], float(mean[i])) for i in order]


def with_suggested(
  best: list[tuple[np.ndarray, float]], suggested: np.ndarray
) -> list[tuple[np.ndarray, float | None]]:
  """Puts vectors that a method expects to be best in place of the worse half.

  `best` are of `best_vectors`; `suggested`, `[N, L]`, of `Method.suggest`, the
  first ones first. One that was not scored has the advantage None.
  """
  known = {tuple(map(int, vector)) for vector, _ in best}
  new = [v for v in np.asarray(suggested) if tuple(map(int, v)) not in known]
  new = new[: len(best) // 2]
  return best[: len(best) - len(new)] + [(vector, None) for vector in new]


def front(candidates: dict[str, list[dict]]) -> list[dict]:
  """Returns the candidates that none beats in score at no more energy.

  Candidates are {method: entries}; those returned are the cheapest first.
  """
  points = [
    {
      "method": name,
      **{field: entry[field] for field in ("budget", "widths", "score")},
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
