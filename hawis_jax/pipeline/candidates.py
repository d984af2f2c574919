"""The search's candidates: its best vectors, scored again on fresh chips.

Axes: U updates, M methods, K budgets, P proposals, L layers, S chips of all
scenarios.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
import pathlib

import chex
import jax
import numpy as np

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.pipeline import nets
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import statistics
from hawis_jax.runtime import device_memory
from hawis_jax.runtime import distributed
from hawis_jax.runtime import preemption
from hawis_jax.runtime import programs
from hawis_jax.runtime import sharding
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import method
from hawis_jax.search import reward
from hawis_jax.search import selection
from hawis_jax.search import update
from hawis_jax.training import hardware_aware

UNIFORM = "uniform"
VECTOR = "a width vector a pass"  # of what does not fit a device's memory
_VECTORS_PER_CALL = 8  # of the final scoring
# Scores so far, until search/result.json has them.
_FIRST, _FRESH = "candidates_first.json", "candidates_fresh.json"
SELECTION = "selection"  # folder of the trainings of `halving`, until then


def choose(
  experiment: Experiment,
  scorer: reward.Scorer,
  methods: Mapping[str, method.Method],
  context: method.Context,
  state: update.SearchState,
  metrics: Metrics,
  folder: pathlib.Path,
) -> dict:
  """Scores every method's best again, on fresh chips and all validation data.

  Args:
    experiment: of the run.
    scorer: its super-net and images.
    methods: by name, the first finds the net.
    context: of the methods.
    state: `update.SearchState` after the last update, on the host.
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
  for budget_range, widths in enumerate(experiment.uniforms):
    groups[UNIFORM, budget_range] = [(widths, None)] if widths else []
  key, fresh_key = jax.random.split(experiment.key("candidates"))

  def scored(vectors, key, name):
    distinct = sorted(set(vectors))
    entries = score_vectors(
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
  candidates = {name: [] for name in (*names, UNIFORM)}
  best = {name: [] for name in candidates}
  for name in candidates:
    for budget_range in range(len(experiment.budgets)):
      group = ranked[name, budget_range]
      candidates[name] += _entries(budget_range, group, first)
      best[name] += _entries(budget_range, group[:1], fresh) or [None]
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
    "candidates": candidates,
    "best": best,
    "front": selection.front(candidates),
    "trajectory": _trajectory(names, state.scores),
    "reports": {
      name: jax.tree.map(lambda x: x.tolist(), each.report(learnt))
      for (name, each), learnt in zip(
        methods.items(), state.methods, strict=True
      )
      if each.report
    },
  }


def remove_saved(folder: pathlib.Path) -> None:
  """Removes the scores saved by `choose`, once result.json has them."""
  for name in (_FIRST, _FRESH):
    (folder / name).unlink(missing_ok=True)
  storage.remove_folder(folder / SELECTION)


def _entries(budget_range, group, scored):
  """Those of result.json of the vectors of one method and budget."""
  return [
    {"budget": budget_range, **scored[widths], "search_advantage": advantage}
    for widths, advantage in group
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
  """{(method, budget): [(widths, advantage in the search)]}, best first."""
  config, table = experiment.config.search, experiment.space.table
  length = len(table)
  advantages = state.scores - state.reference_scores.mean(2)[:, None, :, None]
  groups = {}
  for index, name in enumerate(config.methods):
    each, learnt = methods[name], state.methods[index]
    for budget_range, budget in enumerate(experiment.budgets):
      estimate = each.estimate and functools.partial(
        each.estimate, learnt, context, budget_range
      )
      choices = state.choices[:, index, budget_range].reshape(-1, length)
      advantage = advantages[:, index, budget_range].reshape(-1)
      if config.penalty:
        within = cost.vector_cost(experiment.costs, choices) <= budget
        choices, advantage = choices[within], advantage[within]
      best = selection.best_vectors(
        choices, advantage, config.candidates, estimate
      )
      if each.suggest and not config.penalty:
        best = selection.with_suggested(
          best, each.suggest(learnt)[budget_range]
        )
      groups[name, budget_range] = [
        (tuple(int(w) for w in table[np.arange(length), vector]), value)
        for vector, value in best
      ]
  return groups


def write_table(path: pathlib.Path, experiment: Experiment, state) -> None:
  """Writes every vector scored with its score and costs, for analysis.

  Args:
    path: of the .npz file: `methods` `[M]`, `budgets` `[K]`, `widths` int32
      `[U, M, K, P, L]`, `scores` float32 `[U, M, K, P]`, `reference_widths`
      int32 `[K, R, L]`, `reference_scores` float32 `[U, K, R]`, and every cost
      (see `cost.Cost`; the user's own is `own_cost`) float64 `[U, M, K, P]`;
      `seed`; `config`, as JSON.
    experiment: of the run.
    state: `update.SearchState`, on the host.
  """
  table, layers = experiment.space.table, np.arange(len(experiment.space.table))
  widths = table[layers, state.choices]
  costs = experiment.cost(widths)._asdict()
  if experiment.config.space.cost not in cost.KINDS:
    costs[cost.OWN] = cost.vector_cost(experiment.costs, state.choices)
  content = {
    "methods": np.array(experiment.config.search.methods),
    "budgets": np.array(experiment.budgets),
    "widths": widths.astype(np.int32),
    "scores": state.scores,
    "reference_widths": table[layers, state.references].astype(np.int32),
    "reference_scores": state.reference_scores,
    "seed": np.array(experiment.config.seed),
    "config": np.array(json.dumps(experiment.config.to_dict(), default=str)),
    **{name: np.asarray(value, np.float64) for name, value in costs.items()},
  }
  storage.write_npz(path, content)


def make_scorer(
  experiment: Experiment, params: chex.ArrayTree
) -> reward.Scorer:
  """Scores on the first validation images, calibrates on training images."""
  config = experiment.config.search
  calibration = experiment.evaluation(
    experiment.splits.train, config.batch_size, config.calibration_images
  )
  return reward.Scorer(
    params=params,
    images=experiment.evaluation(
      experiment.splits.validation, config.batch_size, config.images
    ),
    calibration=calibration.image,
  )


def scorer_shapes(experiment: Experiment, images: int) -> reward.Scorer:
  """Returns the shapes of `make_scorer`'s result, of so many images."""
  config, shape = experiment.config.search, experiment.splits.image_shape

  def batches(count):
    rows = -(-count // config.batch_size), config.batch_size
    kinds = ((*rows, *shape), np.uint8), (rows, np.int32), (rows, np.bool_)
    return monte_carlo.Batches(*(jax.ShapeDtypeStruct(*kind) for kind in kinds))

  return reward.Scorer(
    params=net_variables.shapes(experiment.supernet, shape)["params"],
    images=batches(images),
    calibration=batches(config.calibration_images).image,
  )


@programs.once(2)
def make_score(experiment: Experiment, ideal: bool = True) -> programs.Program:
  """Returns the program that scores by scenario, and the ideal device, last.

  Its arguments are those of `reward.make_score`'s result; without `ideal` it
  has the scenarios alone.
  """
  mesh = sharding.training_mesh()

  def make(block):
    score = untraced_score(experiment, mesh, block, ideal)
    return jax.jit(score, out_shardings=sharding.replicated(mesh))

  return device_memory.fitting(
    make,
    experiment.config.search.vectors_per_step,
    sharding.memory_bytes(mesh),
    VECTOR,
  )


def compile_score(
  experiment: Experiment, ideal: bool = True, vectors: int = _VECTORS_PER_CALL
) -> None:
  """Compiles `make_score` for so many of the search's candidates a call."""
  config = experiment.config.search
  scorer = scorer_shapes(experiment, len(experiment.splits.validation))
  num = len(settings.search_devices(experiment.config)) - 1
  key = experiment.key("candidates")
  keys = reward.chip_keys(key, config.candidate_chips, num)
  keys += [key[None]] * ideal
  given = sharding.abstract(
    (scorer, keys), sharding.replicated(sharding.training_mesh())
  )
  widths = np.empty((vectors, len(experiment.space.table)), np.int32)
  make_score(experiment, ideal).compile(given[0], widths, given[1])


def untraced_score(
  experiment: Experiment, mesh: jax.sharding.Mesh, block: int, ideal: bool
) -> Callable[..., monte_carlo.Scores]:
  """Returns `reward.make_score` with the statistics of the configuration.

  It is of `block` width vectors at a time.
  """
  config = experiment.config
  devices = settings.search_devices(config)
  batch_norm = config.search.batch_norm
  if batch_norm == "design":
    chips = nets.chips(settings.selection_devices(config), config)
    key, num = experiment.key("design_chips"), config.search.design_chips

    def batch_norm(params, images, widths):
      return hardware_aware.design_statistics(
        key, experiment.supernet, params, images, chips, num, widths
      )

  return reward.make_score(
    experiment.supernet,
    devices if ideal else devices[:-1],
    block,
    mesh,
    batch_norm,
  )


def score_vectors(
  experiment: Experiment,
  scorer: reward.Scorer,
  vectors: Sequence[tuple[int, ...]],
  key: chex.PRNGKey,
  metrics: Metrics,
  path: pathlib.Path,
) -> Iterator[dict]:
  """Yields each vector's clean and robust score, on `candidate_chips` chips.

  Every few vectors their scores are saved, to go on from.

  Args:
    experiment: of the run.
    scorer: its super-net and images; scored on all validation images.
    vectors: widths, `[L]` each.
    key: of the chips.
    metrics: of the run, for progress.
    path: of the file that scores are saved to, and taken up from if they are
      of the same vectors, chips and super-net.

  Raises:
    InputError: a chip is not finite.
    Preempted: the run was asked to stop; the scores so far are saved.
  """
  config = experiment.config.search
  num_scenarios = len(settings.search_devices(experiment.config)) - 1
  keys = reward.chip_keys(key, config.candidate_chips, num_scenarios)
  keys.append(key[None])  # of the ideal device, the last
  scorer = scorer.replace(
    images=experiment.evaluation(
      experiment.splits.validation, config.batch_size
    )
  )
  score = make_score(experiment)
  scorer, keys = sharding.place((scorer, keys), sharding.training_mesh())
  padded = list(vectors) + [vectors[-1]] * (-len(vectors) % _VECTORS_PER_CALL)

  def scored(part):
    accuracy = np.asarray(score(scorer, part, keys).accuracy)
    bad = np.flatnonzero(np.isnan(accuracy).any(1))
    if bad.size:
      scenario = bad[0] // config.candidate_chips
      raise errors.InputError(
        f"config.search.scenarios[{scenario}]: got chips whose weights or "
        "logits are not finite in float32; allowed are parameters that leave "
        "them finite"
      )
    return accuracy

  accuracy = _score_parts(
    scored,
    np.array(padded, np.int32),
    path,
    [jax.random.key_data(key).tolist(), net_variables.digest(scorer.params)],
    metrics,
  )
  clean, accuracy = accuracy[-1], accuracy[:-1]
  robust = reward.robust_score(accuracy, num_scenarios, config.cvar_weight)
  per_chip = accuracy.astype(np.float64)
  per_chip = per_chip.reshape(num_scenarios, -1, len(padded)).mean(0)
  for index, widths in enumerate(vectors):
    yield {
      "widths": list(widths),
      "cost": experiment.exact_costs(widths),
      "score": float(robust[index]),
      "clean": float(clean[index]),
      # Chip i of every scenario has the same key: their mean, to be paired.
      "chips": per_chip[:, index].tolist(),
      "scenarios": [
        statistics.summarize(chips)
        for chips in accuracy[:, index].reshape(num_scenarios, -1)
      ],
    }


def _score_parts(score, vectors, path, identity, metrics):
  """Accuracies `[S, P]` of `vectors`, some at a time, each time saved."""
  identity = [*identity, vectors.tolist()]
  saved = distributed.on_first(
    lambda: storage.read_record(path) if path.exists() else None
  )
  parts = []
  if saved and saved["of"] == identity:
    parts = [np.array(part, np.float32) for part in saved["accuracy"]]
  done = len(parts) * _VECTORS_PER_CALL
  if done < len(vectors):
    progress = metrics.stage("search/candidates", len(vectors), done)
  for start in range(done, len(vectors), _VECTORS_PER_CALL):
    end = start + _VECTORS_PER_CALL
    parts.append(score(vectors[start:end]))
    # Before it is saved: a line too many is dropped, one too few is missing.
    progress.report(end, {"accuracy": parts[-1].mean()})
    metrics.flush()
    content = {"of": identity, "accuracy": [part.tolist() for part in parts]}
    distributed.on_first(
      lambda content=content: storage.write_record(path, content)
    )
    if preemption.reached():
      raise errors.Preempted(
        f"search/candidates, saved at vector {end} of {len(vectors)}"
      )
  return np.concatenate(parts, axis=1)
