"""Choice among scored width vectors: the best of a method, and the front.

Axes: N evaluations, D distinct vectors, L layers.
"""

from collections.abc import Callable, Sequence

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


def hypervolume(budgets: Sequence[float], scores: np.ndarray) -> np.ndarray:
  """Returns the share of scores and costs that vectors dominate.

  >>> float(hypervolume([1.0, 2.0, 4.0], np.array([0.5, 0.4, 0.8])))
  0.375

  Each vector is taken to cost its budget: what it leaves of that is no merit of
  the method. The greatest budget is the reference, so that a vector of half of
  it with a score of 1 dominates 1/2, and those of the reference itself nothing.

  Args:
    budgets: `[K]`, ascending.
    scores: of the best vector of each budget, in [0, 1], `[K, ...]`; the shares
      are `[...]`.
  """
  best = np.maximum.accumulate(scores)
  gained = np.diff(best, axis=0, prepend=0)
  left = 1 - np.array(budgets) / max(budgets)
  return np.tensordot(left, gained, 1)


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
