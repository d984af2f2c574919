"""Stage 2: search width vectors within budgets (see `search.update`).

At the end each method's best are scored again, on fresh chips (see
`candidates`).
"""

from collections.abc import Callable, Iterator
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from hawis_jax import cost
from hawis_jax.config import settings
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import halving
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import device_memory
from hawis_jax.runtime import distributed
from hawis_jax.runtime import loop
from hawis_jax.runtime import programs
from hawis_jax.runtime import sharding
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import method
from hawis_jax.search import registry
from hawis_jax.search import update


def run(
  experiment: Experiment, workdir: pathlib.Path, metrics: Metrics
) -> dict:
  """Searches, or finishes a search; returns and writes search/result.json."""
  config = experiment.config.search
  folder = workdir / "search"
  if distributed.on_first(results.search_path(workdir).exists):
    distributed.on_first(lambda: candidates.remove_saved(folder))
    return results.load_search(workdir)
  mesh = sharding.training_mesh()
  methods, context = build_methods(experiment), make_context(experiment)
  scorer = sharding.place(
    candidates.make_scorer(
      experiment, results.load_supernet(experiment, workdir)
    ),
    mesh,
  )
  updates = _updates(experiment, mesh)
  state = _init(experiment)(*_init_arguments(experiment, context))
  state = sharding.place(state, mesh)
  placed = sharding.place((context, experiment.key("search")), mesh)
  provenance.record(experiment, workdir, "search")
  with checkpoint.Checkpoints(folder) as checkpoints:
    state = loop.run_steps(
      lambda state, step: updates(state, np.int32(step), scorer, *placed),
      state,
      name="search",
      total=config.updates,
      stride=config.updates_per_call,
      checkpoints=checkpoints,
      metrics=metrics,
      log_every=1,
      shares=_shares(config),
      limits={
        f"{name}_{what}": limit
        for name, each in methods.items()
        for what, limit in each.limits.items()
      },
      checkpoint_seconds=experiment.config.checkpoint_seconds,
    )
  host = jax.device_get(state)
  table = results.evaluations_path(workdir)
  distributed.on_first(lambda: candidates.write_table(table, experiment, host))
  result = candidates.choose(
    experiment, scorer, methods, context, host, metrics, folder
  )
  if config.selection:
    main = experiment.main_budget
    result["selection"] = halving.select(
      experiment,
      scorer,
      {
        tuple(entry["widths"]): entry["score"]
        for name in (config.methods[0], candidates.UNIFORM)
        for entry in result["candidates"][name]
        if entry["budget"] == main
      },
      experiment.uniforms[main],
      metrics,
      folder / candidates.SELECTION,
    )
    result["found"] = result["selection"]["found"]
  distributed.on_first(lambda: results.write_search(workdir, result))
  distributed.on_first(lambda: candidates.remove_saved(folder))
  return results.load_search(workdir)


def jobs(
  experiment: Experiment, workdir: pathlib.Path
) -> Iterator[Callable[[], Any]]:
  """Yields what compiles the stage's programs, if they are to be called."""
  if results.search_path(workdir).exists():
    return
  mesh = sharding.training_mesh()
  yield lambda: _updates(experiment, mesh).compile(*arguments(experiment, mesh))
  context = make_context(experiment)
  yield lambda: _init(experiment).compile(*_init_arguments(experiment, context))
  yield lambda: candidates.compile_score(experiment)
  if experiment.config.search.selection:
    yield from halving.jobs(experiment)


def arguments(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple:
  """Returns the shapes of what the stage's program is called with."""
  methods, context = build_methods(experiment), make_context(experiment)
  state = jax.eval_shape(lambda: init(experiment, methods, context))
  images = experiment.config.search.images
  scorer = candidates.scorer_shapes(experiment, images)
  given = state, np.int32(0), scorer, context, experiment.key("search")
  return sharding.abstract(given, sharding.replicated(mesh))


@programs.once(1)
def _updates(experiment, mesh):
  """The stage's program, as many vectors at a time as fit a device."""
  methods = build_methods(experiment)
  return device_memory.fitting(
    functools.partial(make_updates, experiment, methods, mesh),
    experiment.config.search.vectors_per_step,
    sharding.memory_bytes(mesh),
    candidates.VECTOR,
  )


def _shares(config):
  """Metrics that are accuracies; and rewards, where they are differences."""
  shares = {"references", *config.methods}
  shares |= {f"{name}_best" for name in config.methods}
  if config.reward == "accuracy" and not config.penalty:
    shares |= {f"{name}_reward" for name in config.methods}
  return shares


def build_methods(experiment: Experiment) -> dict[str, method.Method]:
  """Returns the methods of `config.search.methods`, the first one first."""
  return {
    name: registry.build(name, method_settings(experiment))
    for name in experiment.config.search.methods
  }


def method_settings(experiment: Experiment) -> method.Settings:
  """Returns how the methods search."""
  config = experiment.config.search
  return method.Settings(
    updates=config.updates,
    proposals=config.proposals,
    groups=settings.num_groups(experiment.config),
    hidden=config.hidden,
    learning_rate=config.learning_rate,
    epochs=config.epochs,
    clip=config.clip,
    entropy=config.entropy,
    imagined=config.imagined,
    least_correlation=config.least_correlation,
    population=config.population,
    tournament=config.tournament,
  )


def make_context(experiment: Experiment) -> method.Context:
  """Returns what the methods see of the experiment's budgets.

  With a penalty, budgets exclude nothing: all vectors of the space are allowed.
  """
  space, costs = experiment.space, experiment.costs
  feasible = experiment.feasible
  if experiment.config.search.penalty:
    # Costs are rounded up: above the dearest vector's, not to lose it.
    whole = (0, 1.01 * cost.cost_range(space, costs)[1])
    feasible = cost.feasible_set(
      space, costs, [whole] * len(experiment.budgets)
    )
  return method.make_context(
    space, feasible, costs, experiment.geometry.positions, experiment.budgets
  )


def init(
  experiment: Experiment,
  methods: dict[str, method.Method],
  context: method.Context,
) -> update.SearchState:
  """Returns the state before update 0."""
  made = _make_init(experiment, methods)
  return made(*_init_arguments(experiment, context))


def _make_init(experiment, methods):
  references = experiment.config.search.references
  return update.make_init(methods, method_settings(experiment), references)


def _init_arguments(experiment, context):
  return experiment.key("policy"), context, experiment.feasible


@programs.once(1)
def _init(experiment):
  return programs.of(_make_init(experiment, build_methods(experiment)))


def make_step(experiment: Experiment, methods: dict[str, method.Method], score):
  """Returns `update.search_step` but for its first arguments.

  Args:
    experiment: of the run.
    methods: by name.
    score: from `reward.make_score`, or in its place.
  """
  config = experiment.config.search
  devices = settings.search_devices(experiment.config)[:-1]
  return functools.partial(
    update.search_step,
    settings=update.Settings(
      chips=config.chips,
      scenarios=len(devices),
      cvar_weight=config.cvar_weight,
      reward=config.reward,
      penalty=config.penalty,
    ),
    methods=methods,
    score=score,
  )


def make_updates(
  experiment: Experiment,
  methods: dict[str, method.Method],
  mesh: jax.sharding.Mesh,
  block: int,
):
  """Returns the stage's program for the accelerators of a mesh.

  It scores `block` width vectors at a time.
  """
  config = experiment.config
  score = candidates.untraced_score(experiment, mesh, block, ideal=False)
  return update.make_updates(
    make_step(experiment, methods, score), config.search.updates_per_call, mesh
  )
