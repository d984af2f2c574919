"""What a search leaves: its finalists, the front, and all scored vectors.

Axes: U updates, M methods, K budgets, P proposals, L layers.
"""

from collections.abc import Callable
import functools
import json
import pathlib

import jax
import numpy as np

from hawis_jax import budgets
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import methods as methods_lib
from hawis_jax import metrics as metrics_lib
from hawis_jax import policy as policy_lib
from hawis_jax import scoring

UNIFORM = "uniform"
# Scores so far, until search/result.json has them.
_FIRST, _FRESH = "finalists_first.json", "finalists_fresh.json"


def choose(
  experiment: experiment_lib.Experiment,
  scorer: scoring.Scorer,
  methods: list[methods_lib.Method],
  context: policy_lib.Context,
  state,
  metrics: metrics_lib.Metrics,
  folder: pathlib.Path,
) -> dict:
  """Scores every method's best again, on fresh chips and all validation data.

  Args:
    experiment: of the run.
    scorer: its super-net and images.
    methods: those of `config.search.methods`.
    context: of the methods.
    state: `search.SearchState` after the last update, on the host.
    metrics: of the run, for progress.
    folder: where scores are saved as they come, until `remove_saved`.

  Returns:
    The content of search/result.json.

  Raises:
    InputError: with a penalty, no vector of the first method was within the
      main budget.
    Preempted: the run was asked to stop.
  """
  config = experiment.config.search
  names = list(config.methods)
  groups = _candidates(experiment, methods, context, state)
  for window, widths in enumerate(experiment.uniforms):
    groups[UNIFORM, window] = [(widths, None)] if widths else []
  key, fresh_key = jax.random.split(experiment.key("finalists"))

  def scored(vectors, key, name):
    distinct = sorted(set(vectors))
    entries = scoring.score_vectors(
      experiment, scorer, distinct, key, metrics, folder / name
    )
    return dict(zip(distinct, entries, strict=True))

  first = scored(
    [w for group in groups.values() for w, _ in group], key, _FIRST
  )
  ranked = {
    place: sorted(group, key=lambda item: -first[item[0]]["score"])
    for place, group in groups.items()
  }
  # Chips that chose the best would flatter it: it is judged on others.
  first_places = [group[0][0] for group in ranked.values() if group]
  fresh = scored(first_places, fresh_key, _FRESH)
  finalists = {name: [] for name in (*names, UNIFORM)}
  best = {name: [] for name in finalists}
  for name in finalists:
    for window in range(len(experiment.budgets)):
      group = ranked[name, window]
      finalists[name] += _entries(window, group, first)
      best[name] += _entries(window, group[:1], fresh) or [None]
  found = best[names[0]][experiment.main_budget]
  if found is None:
    raise errors.InputError(
      f"config.search.penalty: got {config.penalty:g}, with which {names[0]} "
      f"scored no vector within config.search.budget; needed is more, or 0: a "
      "hard budget. search/evaluations.npz has what was scored"
    )
  return {
    "method": names[0],
    "found": found["widths"],
    "cost": experiment.config.space.cost,
    "technology": experiment.config.space.technology,
    "budgets": list(experiment.budgets),
    "main_budget": experiment.main_budget,
    "limits": {limit.name: limit.most for limit in experiment.limits},
    "evaluations": config.updates * config.proposals,
    "distinct": _distinct(names, state),
    "references": config.updates * config.references,
    "finalists": finalists,
    "best": best,
    "front": front(finalists),
    "trajectory": _trajectory(names, state.scores),
  }


def remove_saved(folder: pathlib.Path) -> None:
  """Removes the scores saved by `choose`, once result.json has them."""
  for name in (_FIRST, _FRESH):
    (folder / name).unlink(missing_ok=True)


def _entries(window, group, scored):
  """Those of result.json of the vectors of one method and budget."""
  return [
    {"budget": window, **scored[widths], "search_gain": gain}
    for widths, gain in group
  ]


def _trajectory(names, scores):
  """{method: mean of an update and best so far, of each budget}."""
  return {
    name: {
      "mean": scores[:, index].mean(-1).T.tolist(),
      "best": np.fmax.accumulate(scores[:, index].max(-1)).T.tolist(),
    }
    for index, name in enumerate(names)
  }


def _distinct(names, state):
  """{method: number of distinct vectors it had scored, of each budget}."""
  return {
    name: [
      len(np.unique(of_budget.reshape(-1, of_budget.shape[-1]), axis=0))
      for of_budget in state.choices[:, index].swapaxes(0, 1)
    ]
    for index, name in enumerate(names)
  }


def _candidates(experiment, methods, context, state):
  """{(method, budget): [(widths, gain in the search)]}, best first."""
  config, table = experiment.config.search, experiment.space.table
  length = len(table)
  gains = state.scores - state.reference_scores.mean(2)[:, None, :, None]
  groups = {}
  for index, name in enumerate(config.methods):
    method, learnt = methods[index], state.methods[index]
    for window, budget in enumerate(experiment.budgets):
      estimate = method.estimate and functools.partial(
        method.estimate, learnt, context, window
      )
      choices = state.choices[:, index, window].reshape(-1, length)
      gain = gains[:, index, window].reshape(-1)
      if config.penalty:
        within = budgets.vector_cost(experiment.costs, choices) <= budget
        choices, gain = choices[within], gain[within]
      best = best_vectors(choices, gain, config.finalists, estimate)
      groups[name, window] = [
        (tuple(int(w) for w in table[np.arange(length), vector]), value)
        for vector, value in best
      ]
  return groups


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


def write_table(
  path: pathlib.Path, experiment: experiment_lib.Experiment, state
) -> None:
  """Writes every vector scored with its score and costs, for analysis.

  Args:
    path: of the .npz file: `methods` `[M]`, `budgets` `[K]`, `widths` int32
      `[U, M, K, P, L]`, `scores` float32 `[U, M, K, P]`, `reference_widths`
      int32 `[K, R, L]`, `reference_scores` float32 `[U, K, R]`, and every cost
      (see `cost.Cost`) float64 `[U, M, K, P]`; `seed`; `config`, as JSON.
    experiment: of the run.
    state: `search.SearchState`, on the host.
  """
  table, layers = experiment.space.table, np.arange(len(experiment.space.table))
  widths = table[layers, state.choices]
  costs = experiment.cost(widths)._asdict()
  content = {
    "methods": np.array(experiment.config.search.methods),
    "budgets": np.array(experiment.budgets),
    "widths": widths.astype(np.int32),
    "scores": state.scores,
    "reference_widths": table[layers, state.references].astype(np.int32),
    "reference_scores": state.reference_scores,
    "seed": np.array(experiment.config.seed),
    "config": np.array(json.dumps(experiment.config.to_dict(), default=str)),
    **{name: np.asarray(cost, np.float64) for name, cost in costs.items()},
  }
  files.write_npz(path, content)
