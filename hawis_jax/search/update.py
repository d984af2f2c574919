"""An update of the search: one compiled function for all methods.

Every method proposes P vectors for each budget, all are scored on the same
fresh chips, and the methods learn. So they spend equal evaluations and see
equal chips. A few reference vectors of each budget, the same ones in all
updates, are scored beside them: what the update's chips do to these is taken
off its scores.

Axes: U updates, M methods, K budgets, P proposals, R references, S chips of all
scenarios, L layers.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

import chex
import flax
import jax
import jax.numpy as jnp

from hawis_jax import cost
from hawis_jax.networks import width_vectors
from hawis_jax.runtime import sharding
from hawis_jax.search import method
from hawis_jax.search import reward


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


@dataclasses.dataclass(frozen=True)
class Settings:
  """How vectors are scored, and what methods learn from.

  Attributes:
    chips: of each scenario and update, shared by all proposals.
    scenarios: their number.
    cvar_weight: b of `reward.robust_score`.
    reward: "accuracy" or "cross_entropy".
    penalty: of what exceeds a budget by its own size; 0: budgets are hard.
  """

  chips: int
  scenarios: int
  cvar_weight: float = 0.5
  reward: str = "accuracy"
  penalty: float = 0.0


def make_updates(
  step_function: Callable[..., tuple[SearchState, dict]],
  updates_per_call: int,
  mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[SearchState, dict]]:
  """Returns the program of some updates, for the accelerators of a mesh.

  It is jitted: (state, first update, scorer, context, key) -> (state, metrics).
  All of it is whole on every accelerator.

  Args:
    step_function: `search_step` but for its keyword arguments.
    updates_per_call: their number.
    mesh: of the accelerators.
  """

  @functools.partial(
    jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh)
  )
  def updates(state, first, scorer, context, key):
    steps = first + jnp.arange(updates_per_call)
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


def init(
  key: chex.PRNGKey,
  methods: Mapping[str, method.Method],
  context: method.Context,
  feasible: cost.FeasibleSet,
  settings: method.Settings,
  references: int,
) -> SearchState:
  """Returns the state before update 0.

  Args:
    key: consumed.
    methods: by name.
    context: of the methods.
    feasible: that references are drawn from.
    settings: of the methods.
    references: R.
  """
  ranges, layers = context.feasible.ranges, len(context.widths)
  shape = settings.updates, len(methods), ranges, settings.proposals

  @jax.jit
  def fresh(key, context, feasible):
    reference_key, *keys = jax.random.split(key, 1 + len(methods))
    keys_each = jax.random.split(reference_key, (ranges, references))
    draw = jax.vmap(feasible.sample, (0, None))
    return SearchState(
      methods=tuple(
        m.init(k, context) for m, k in zip(methods.values(), keys, strict=True)
      ),
      references=jax.vmap(draw)(keys_each, jnp.arange(ranges)),
      choices=jnp.zeros((*shape, layers), jnp.int32),
      scores=jnp.full(shape, jnp.nan, jnp.float32),
      reference_scores=jnp.full(
        (settings.updates, ranges, references), jnp.nan, jnp.float32
      ),
    )

  return fresh(key, context, feasible)


def search_step(
  state: SearchState,
  step: chex.Numeric,
  scorer: reward.Scorer,
  context: method.Context,
  key: chex.PRNGKey,
  *,
  settings: Settings,
  methods: Mapping[str, method.Method],
  score,
) -> tuple[SearchState, dict[str, chex.Array]]:
  """One update: propose, program shared chips, score, learn.

  Args:
    state: before.
    step: from 0 on.
    scorer: see `reward.Scorer`.
    context: of the methods.
    key: of the stage; update k uses fold_in(key, k).
    settings: see `Settings`.
    methods: by name, in the order of `state`.
    score: from `reward.make_score`.
  """
  scenarios = settings.scenarios
  chip_key, method_key = jax.random.split(jax.random.fold_in(key, step))
  keys = jax.random.split(method_key, (len(methods), 2))
  before = tuple(zip(methods.values(), state.methods, keys, strict=True))
  proposed = [
    each.propose(pair[0], learnt, context, step)
    for each, learnt, pair in before
  ]
  choices = jnp.stack([choices for choices, _ in proposed])  # [M, K, P, L]
  layers = choices.shape[-1]
  vectors = jnp.concatenate(
    [choices.reshape(-1, layers), state.references.reshape(-1, layers)]
  )
  scored = score(
    scorer,
    width_vectors.take(context.widths, vectors),
    reward.chip_keys(chip_key, settings.chips, scenarios),
  )

  def robust(values):
    """Scores of proposals `[M, K, P]` and of references `[K, R]`."""
    mixed = reward.robust_score(values, scenarios, settings.cvar_weight)
    split = choices[..., 0].size
    return (
      mixed[:split].reshape(choices.shape[:-1]),
      mixed[split:].reshape(state.references.shape[:-1]),
    )

  scores, references = robust(scored.accuracy)
  advantages = scores - references.mean(1)[None, :, None]
  rewards = advantages
  if settings.reward == "cross_entropy":
    rewards, baseline = robust(-scored.cross_entropy)
    rewards -= baseline.mean(1)[None, :, None]
  if settings.penalty:
    rewards -= settings.penalty * excess(context, choices)
  learnt, values = [], {}
  for index, name in enumerate(methods):
    each, state_before, pair = before[index]
    after, said = each.learn(
      pair[1],
      state_before,
      context,
      step,
      proposed[index][1],
      choices[index],
      rewards[index],
      advantages[index],
    )
    learnt.append(after)
    values |= {name: scores[index].mean(), f"{name}_best": scores[index].max()}
    # A reward that is not finite stops the search.
    values |= {f"{name}_reward": rewards[index].mean()}
    values |= {f"{name}_{what}": value for what, value in said.items()}
  state = state.replace(
    methods=tuple(learnt),
    choices=state.choices.at[step].set(choices),
    scores=state.scores.at[step].set(scores),
    reference_scores=state.reference_scores.at[step].set(references),
  )
  return state, {**values, "references": references.mean()}


def excess(context: method.Context, choices: chex.Array) -> chex.Array:
  """Share by which vectors `[M, K, P, L]` exceed their budgets; at least 0."""
  spent = cost.vector_cost(context.costs, choices)
  budget = context.budget_share[None, :, None]
  return jnp.maximum(spent / budget - 1, 0)
