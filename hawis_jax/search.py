"""Stage 2: search a width vector within the budget.

An update is one compiled function: the policy proposes P vectors, the feasible
uniform sampler (random search) P more, all are scored on the same fresh chips,
and PPO improves the policy. So both methods spend equal evaluations and see
equal chips. At the end each method's best are scored again, on fresh chips.

Axes: U updates, M methods (policy, random), P proposals, S chips of all
scenarios, L layers.
"""

import functools
import pathlib

import chex
import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from hawis_jax import checkpoint
from hawis_jax import config as config_lib
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import metrics as metrics_lib
from hawis_jax import optimize
from hawis_jax import policy as policy_lib
from hawis_jax import pretrain
from hawis_jax import scoring
from hawis_jax import widths as widths_lib

METHODS = ("policy", "random")


@flax.struct.dataclass
class SearchState:
  """What an update changes.

  Attributes:
    params: of the policy.
    opt_state: of its optimiser.
    choices: int32 `[U, M, P, L]`, every vector scored so far.
    scores: float32 `[U, M, P]`, their robust scores; NaN: not yet.
  """

  params: chex.ArrayTree
  opt_state: chex.ArrayTree
  choices: chex.Array
  scores: chex.Array


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> dict:
  """Searches, or finishes a search; returns and writes search/result.json."""
  config = experiment.config.search
  result_path = workdir / "search" / "result.json"
  if result_path.exists():
    return load_result(workdir)
  scorer = scoring.make_scorer(experiment, pretrain.load(experiment, workdir))
  context = make_context(experiment)
  policy = policy_lib.Policy(experiment.space.table.shape[1], config.hidden)
  optimizer = optax.adam(config.learning_rate)
  key = experiment.key("search")
  step_function = functools.partial(
    search_step,
    config=config,
    policy=policy,
    optimizer=optimizer,
    score=scoring.make_score(
      experiment, config_lib.search_devices(experiment.config)[:-1]
    ),
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def jitted(state, step, scorer, context, key):
    return step_function(state, step, scorer, context, key)

  state = init(experiment, policy, optimizer, context)
  with checkpoint.Checkpoints(workdir / "search") as checkpoints:
    state = optimize.run_steps(
      lambda state, step: jitted(state, step, scorer, context, key),
      state,
      name="search",
      total=config.updates,
      checkpoints=checkpoints,
      metrics=metrics,
      log_every=1,
      checkpoint_seconds=experiment.config.checkpoint_seconds,
    )
  result = choose(experiment, scorer, jax.device_get(state), metrics)
  files.write_json(result_path, result)
  return result


def load_result(workdir: pathlib.Path) -> dict:
  """Returns the search's result.

  Raises:
    InputError: the stage has not finished, or its file is damaged.
  """
  path = workdir / "search" / "result.json"
  if not path.exists():
    raise errors.InputError(f"{path}: missing; run --stages search first")
  return files.read_json(path)


def make_context(experiment: experiment_lib.Experiment) -> policy_lib.Context:
  """The policy's inputs for the experiment's budget."""
  space, budget = experiment.space, experiment.budget
  slack = experiment.config.search.budget_slack
  feasible = widths_lib.feasible_set(
    space, experiment.costs, (1 - slack) * budget, budget
  )
  dearest = widths_lib.cost_range(space, experiment.costs)[1]
  return policy_lib.make_context(
    space, feasible, experiment.geometry.positions, budget / dearest
  )


def init(
  experiment: experiment_lib.Experiment,
  policy: policy_lib.Policy,
  optimizer: optax.GradientTransformation,
  context: policy_lib.Context,
) -> SearchState:
  """Returns the state before update 0."""
  config = experiment.config.search
  params = policy_lib.init(experiment.key("policy"), policy, context)
  shape = (config.updates, len(METHODS), config.proposals)
  return SearchState(
    params=params,
    opt_state=optimizer.init(params),
    choices=jnp.zeros((*shape, len(experiment.space.choices)), jnp.int32),
    scores=jnp.full(shape, jnp.nan, jnp.float32),
  )


def search_step(
  state: SearchState,
  step: chex.Numeric,
  scorer: scoring.Scorer,
  context: policy_lib.Context,
  key: chex.PRNGKey,
  *,
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy,
  optimizer: optax.GradientTransformation,
  score,
) -> tuple[SearchState, dict[str, chex.Array]]:
  """One update: propose, program shared chips, score, improve the policy.

  Args:
    state: before.
    step: 0 to `config.updates` - 1.
    scorer: see `scoring.Scorer`.
    context: the policy's.
    key: of the stage; update k uses fold_in(key, k).
    config: section `search`.
    policy: network.
    optimizer: of `state`.
    score: from `scoring.make_score`.
  """
  scenarios, num = len(config.scenarios), config.proposals
  policy_key, random_key, chip_key = jax.random.split(
    jax.random.fold_in(key, step), 3
  )
  proposals = policy_lib.propose(policy_key, policy, state.params, context, num)
  uniform = jax.vmap(context.feasible.sample)(jax.random.split(random_key, num))
  choices = jnp.stack([proposals.choices, uniform])
  scores = score(
    scorer,
    widths_lib.take(context.widths, choices.reshape(2 * num, -1)),
    scoring.chip_keys(chip_key, config.chips, scenarios),
  )
  mix = functools.partial(
    scoring.robust_score, scenarios=scenarios, cvar_weight=config.cvar_weight
  )
  robust = mix(scores.accuracy).reshape(2, num)
  signal = robust[0]
  if config.signal == "cross_entropy":
    signal = mix(-scores.cross_entropy)[:num]
  progress = step / max(config.updates - 1, 1)
  first, last = config.entropy
  hyper = policy_lib.PPOConfig(config.clip, first + (last - first) * progress)
  advantages = policy_lib.rank_advantages(signal)

  def epoch(carry, _):
    params, opt_state = carry
    grads = jax.grad(policy_lib.ppo_loss)(
      params, policy, context, proposals, advantages, hyper
    )
    updates, opt_state = optimizer.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  (params, opt_state), _ = jax.lax.scan(
    epoch, (state.params, state.opt_state), length=config.epochs
  )
  state = SearchState(
    params=params,
    opt_state=opt_state,
    choices=state.choices.at[step].set(choices),
    scores=state.scores.at[step].set(robust),
  )
  values = {
    "policy": robust[0].mean(),
    "policy_best": robust[0].max(),
    "random": robust[1].mean(),
    "random_best": robust[1].max(),
    "entropy": proposals.entropies.mean(),
    "policy_norm": optax.tree.norm(params),
  }
  return state, values


def best_vectors(
  choices: np.ndarray, gains: np.ndarray, num: int
) -> list[tuple[np.ndarray, float]]:
  """The best distinct vectors of one method: [(choices, estimated gain)].

  A gain is a score minus its update's mean of random vectors, which met the
  same chips: so an update with lucky chips has no advantage. The estimate of a
  vector scored n times is the sum of its gains over n + 1: one lucky score
  counts half.

  Args:
    choices: int `[N, L]`, all evaluations; a vector may occur many times.
    gains: `[N]`.
    num: at most so many.
  """
  unique, inverse = np.unique(choices, axis=0, return_inverse=True)
  inverse = inverse.reshape(-1)
  gain = np.bincount(inverse, gains) / (np.bincount(inverse) + 1)
  order = np.argsort(-gain, kind="stable")[:num]
  return [(unique[i], float(gain[i])) for i in order]


def choose(
  experiment: experiment_lib.Experiment,
  scorer: scoring.Scorer,
  state: SearchState,
  metrics: metrics_lib.Metrics,
) -> dict:
  """Scores every method's best again, on fresh chips and all validation data.

  Returns:
    The content of search/result.json.
  """
  config = experiment.config.search
  table, length = experiment.space.table, len(experiment.space.choices)
  random = state.scores[:, METHODS.index("random")]
  gains = state.scores - random.mean(-1)[:, None, None]
  finalists = {
    method: [
      (tuple(int(w) for w in table[np.arange(length), choices]), gain)
      for choices, gain in best_vectors(
        state.choices[:, index].reshape(-1, length),
        gains[:, index].reshape(-1),
        config.finalists,
      )
    ]
    for index, method in enumerate(METHODS)
  }
  finalists["uniform"] = [(experiment.widths["uniform"], None)]
  scored = scoring.score_vectors(
    experiment,
    scorer,
    [widths for group in finalists.values() for widths, _ in group],
    experiment.key("finalists"),
    metrics,
  )
  ranked = {}
  for method, group in finalists.items():
    entries = [{**next(scored), "search_gain": gain} for _, gain in group]
    ranked[method] = sorted(entries, key=lambda e: -e["score"])
  best = np.fmax.accumulate(np.nanmax(state.scores, axis=2), axis=0)
  return {
    "found": ranked["policy"][0]["widths"],
    "budget": experiment.budget,
    "cost": experiment.config.space.cost,
    "evaluations": config.updates * config.proposals,
    "finalists": ranked,
    "trajectory": {
      method: {
        "mean": state.scores[:, index].mean(-1).tolist(),
        "best": best[:, index].tolist(),
      }
      for index, method in enumerate(METHODS)
    },
  }
