"""Stage 2: search width vectors within budgets.

An update is one compiled function: every method proposes P vectors for each
budget, all are scored on the same fresh chips, and the methods learn. So they
spend equal evaluations and see equal chips. A few reference vectors of each
budget, the same ones in all updates, are scored beside them: what the update's
chips do to these is taken off its scores. At the end each method's best are
scored again, on fresh chips (see `finalists`).

Axes: U updates, M methods, K budgets, P proposals, R references, S chips of all
scenarios, L layers.
"""

from collections.abc import Callable
import functools
import pathlib

import chex
import flax
import jax
import jax.numpy as jnp
import ml_collections

from hawis_jax import budgets
from hawis_jax import checkpoint
from hawis_jax import config as config_lib
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import finalists
from hawis_jax import loop
from hawis_jax import methods as methods_lib
from hawis_jax import metrics as metrics_lib
from hawis_jax import policy as policy_lib
from hawis_jax import pretrain
from hawis_jax import processes
from hawis_jax import robustness
from hawis_jax import scoring
from hawis_jax import sharding
from hawis_jax import widths as widths_lib

# Of result.json: 2 has several methods and budgets.
_FORMAT = 2


@flax.struct.dataclass
class SearchState:
  """What an update changes.

  Attributes:
    methods: of each method, what it has learnt.
    references: int32 `[K, R, L]`, choices; constant.
    choices: int32 `[U, M, K, P, L]`, every vector scored so far.
    scores: float32 `[U, M, K, P]`, their robust scores; NaN: not yet.
    reference_scores: float32 `[U, K, R]`.
  """

  methods: tuple
  references: chex.Array
  choices: chex.Array
  scores: chex.Array
  reference_scores: chex.Array


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> dict:
  """Searches, or finishes a search; returns and writes search/result.json."""
  config = experiment.config.search
  result_path = workdir / "search" / "result.json"
  if processes.on_first(result_path.exists):
    processes.on_first(lambda: finalists.remove_saved(workdir / "search"))
    return load_result(workdir)
  context = make_context(experiment)
  methods = build_methods(experiment)
  key = experiment.key("search")
  mesh = sharding.training_mesh()
  scorer = sharding.place(
    scoring.make_scorer(experiment, pretrain.load(experiment, workdir)), mesh
  )
  updates = make_updates(experiment, methods, mesh)
  state = sharding.place(init(experiment, methods, context), mesh)
  placed = sharding.place((context, key), mesh)
  with checkpoint.Checkpoints(workdir / "search") as checkpoints:
    state = loop.run_steps(
      lambda state, step: updates(state, step, scorer, *placed),
      state,
      name="search",
      total=config.updates,
      stride=config.updates_per_call,
      checkpoints=checkpoints,
      metrics=metrics,
      log_every=1,
      limits={
        f"{name}_{what}": limit
        for name, method in zip(config.methods, methods, strict=True)
        for what, limit in method.limits.items()
      },
      checkpoint_seconds=experiment.config.checkpoint_seconds,
    )
  host = jax.device_get(state)
  folder = workdir / "search"
  table = folder / "evaluations.npz"
  processes.on_first(lambda: finalists.write_table(table, experiment, host))
  result = finalists.choose(
    experiment, scorer, methods, context, host, metrics, folder
  )
  result = {"format": _FORMAT, **result}
  processes.on_first(lambda: files.write_record(result_path, result))
  processes.on_first(lambda: finalists.remove_saved(folder))
  return load_result(workdir)


def make_updates(
  experiment: experiment_lib.Experiment,
  methods: list[methods_lib.Method],
  mesh: jax.sharding.Mesh,
):
  """Returns the stage's program for the devices of a mesh.

  It is jitted: (state, first update, scorer, context, key) -> (state, metrics),
  after `updates_per_call` updates. All of it is whole on every device.
  """
  config = experiment.config.search
  devices = config_lib.search_devices(experiment.config)[:-1]
  step_function = make_step(
    config, methods, scoring.make_score(experiment, devices, mesh)
  )

  @functools.partial(
    jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh)
  )
  def updates(state, first, scorer, context, key):
    steps = first + jnp.arange(config.updates_per_call)
    state, values = jax.lax.scan(
      lambda state, step: step_function(state, step, scorer, context, key),
      state,
      steps,
    )
    # Of several updates: what is best, or furthest, of all, else means.
    return state, {
      name: value.max(0) if name.endswith(("_best", "_kl")) else value.mean(0)
      for name, value in values.items()
    }

  return updates


def make_step(
  config: ml_collections.ConfigDict,
  methods: list[methods_lib.Method],
  score: Callable[..., robustness.Scores],
):
  """Returns one update, `search_step` but for its first arguments.

  Args:
    config: section `search`.
    methods: from `build_methods`.
    score: from `scoring.make_score`, or in its place.
  """
  named = dict(zip(config.methods, methods, strict=True))
  return functools.partial(
    search_step, config=config, methods=named, score=score
  )


def load_result(workdir: pathlib.Path) -> dict:
  """Returns the search's result.

  Raises:
    InputError: the stage has not finished, or its file is damaged or of an
      earlier version.
  """
  path = workdir / "search" / "result.json"
  if not path.exists():
    raise errors.InputError(f"{path}: missing; run --stages search first")
  result = files.read_record(path)
  if result.get("format") != _FORMAT:
    raise errors.InputError(
      f"{path}: got format {result.get('format')}, needed is {_FORMAT}: it is "
      "of another version of hawis_jax; take another --workdir"
    )
  return result


def build_methods(
  experiment: experiment_lib.Experiment,
) -> list[methods_lib.Method]:
  """The methods of `config.search.methods`, the one that is used first."""
  stages = config_lib.num_stages(experiment.config)
  config = experiment.config.search
  return [methods_lib.build(name, config, stages) for name in config.methods]


def make_context(experiment: experiment_lib.Experiment) -> policy_lib.Context:
  """The methods' inputs for the experiment's budgets.

  With a penalty, budgets are no windows: all vectors of the space are.
  """
  space, costs = experiment.space, experiment.costs
  feasible = experiment.feasible
  if experiment.config.search.penalty:
    # Costs are rounded up: above the dearest vector's, not to lose it.
    whole = (0, 1.01 * budgets.cost_range(space, costs)[1])
    windows = [whole] * len(experiment.budgets)
    feasible = budgets.feasible_set(space, costs, windows)
  return policy_lib.make_context(
    space, feasible, costs, experiment.geometry.positions, experiment.budgets
  )


def init(
  experiment: experiment_lib.Experiment,
  methods: list[methods_lib.Method],
  context: policy_lib.Context,
) -> SearchState:
  """Returns the state before update 0."""
  config = experiment.config.search
  key = experiment.key("policy")
  windows, layers = len(experiment.budgets), len(experiment.space.choices)
  shape = config.updates, len(methods), windows, config.proposals

  @jax.jit
  def fresh(key, context, feasible):
    reference_key, *keys = jax.random.split(key, 1 + len(methods))
    keys_each = jax.random.split(reference_key, (windows, config.references))
    draw = jax.vmap(feasible.sample, (0, None))
    return SearchState(
      methods=tuple(
        m.init(k, context) for m, k in zip(methods, keys, strict=True)
      ),
      references=jax.vmap(draw)(keys_each, jnp.arange(windows)),
      choices=jnp.zeros((*shape, layers), jnp.int32),
      scores=jnp.full(shape, jnp.nan, jnp.float32),
      reference_scores=jnp.full(
        (config.updates, windows, config.references), jnp.nan, jnp.float32
      ),
    )

  return fresh(key, context, experiment.feasible)


def search_step(
  state: SearchState,
  step: chex.Numeric,
  scorer: scoring.Scorer,
  context: policy_lib.Context,
  key: chex.PRNGKey,
  *,
  config: ml_collections.ConfigDict,
  methods: dict[str, methods_lib.Method],
  score,
) -> tuple[SearchState, dict[str, chex.Array]]:
  """One update: propose, program shared chips, score, learn.

  Args:
    state: before.
    step: 0 to `config.updates` - 1.
    scorer: see `scoring.Scorer`.
    context: of the methods.
    key: of the stage; update k uses fold_in(key, k).
    config: section `search`.
    methods: by name, in the order of `state`.
    score: from `scoring.make_score`.
  """
  scenarios = len(config.scenarios)
  chip_key, method_key = jax.random.split(jax.random.fold_in(key, step))
  keys = jax.random.split(method_key, (len(methods), 2))
  before = tuple(zip(methods.values(), state.methods, keys, strict=True))
  proposed = [
    method.propose(pair[0], learnt, context, step)
    for method, learnt, pair in before
  ]
  choices = jnp.stack([choices for choices, _ in proposed])  # [M, K, P, L]
  layers = choices.shape[-1]
  vectors = jnp.concatenate(
    [choices.reshape(-1, layers), state.references.reshape(-1, layers)]
  )
  scored = score(
    scorer,
    widths_lib.take(context.widths, vectors),
    scoring.chip_keys(chip_key, config.chips, scenarios),
  )

  def robust(values):
    """Scores of proposals `[M, K, P]` and of references `[K, R]`."""
    mixed = scoring.robust_score(values, scenarios, config.cvar_weight)
    split = choices[..., 0].size
    return (
      mixed[:split].reshape(choices.shape[:-1]),
      mixed[split:].reshape(state.references.shape[:-1]),
    )

  scores, references = robust(scored.accuracy)
  gains = scores - references.mean(1)[None, :, None]
  signals = gains
  if config.signal == "cross_entropy":
    signals, baseline = robust(-scored.cross_entropy)
    signals -= baseline.mean(1)[None, :, None]
  if config.penalty:
    signals -= config.penalty * excess(context, choices)
  learnt, values = [], {}
  for index, name in enumerate(methods):
    method, state_before, pair = before[index]
    after, said = method.learn(
      pair[1],
      state_before,
      context,
      step,
      proposed[index][1],
      choices[index],
      signals[index],
      gains[index],
    )
    learnt.append(after)
    values |= {name: scores[index].mean(), f"{name}_best": scores[index].max()}
    # A signal that is not finite stops the search.
    values |= {f"{name}_signal": signals[index].mean()}
    values |= {f"{name}_{what}": value for what, value in said.items()}
  state = state.replace(
    methods=tuple(learnt),
    choices=state.choices.at[step].set(choices),
    scores=state.scores.at[step].set(scores),
    reference_scores=state.reference_scores.at[step].set(references),
  )
  return state, {**values, "references": references.mean()}


def excess(context: policy_lib.Context, choices: chex.Array) -> chex.Array:
  """Share by which vectors `[M, K, P, L]` exceed their budgets; at least 0."""
  spent = budgets.vector_cost(context.costs, choices)
  budget = context.budget_share[None, :, None]
  return jnp.maximum(spent / budget - 1, 0)
