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
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import sharding
from hawis_jax.search import method
from hawis_jax.search import reward


@flax.struct.dataclass
class SearchState:
  """What an update changes."""

  methods: tuple  # of each method, what it has learnt
  references: chex.Array  # int32 `[K, R, L]`, choices; constant
  choices: chex.Array  # int32 `[U, M, K, P, L]`, every vector scored so far
  scores: chex.Array  # float32 `[U, M, K, P]`, robust; NaN: not yet
  reference_scores: chex.Array  # float32 `[U, K, R]`


@dataclasses.dataclass(frozen=True)
class Settings:
  """How vectors are scored, and what methods learn from."""

  chips: int  # of each scenario and update, shared by all proposals
  scenarios: int  # their number
  cvar_weight: float = 0.5  # b of `reward.robust_score`
  reward: str = "accuracy"  # or "cross_entropy"
  penalty: float = 0.0  # of exceeding a budget by its own size; 0: it is hard


def make_updates(
  step_function: Callable[..., tuple[SearchState, dict]],
  updates_per_call: int,
  mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[SearchState, dict]]:
  """Returns the program of some updates, for the accelerators of a mesh.

  It is jitted: (state, first update, scorer, context, key) -> (state, metrics).
  All of it is whole on every accelerator.
  """

  # Donated: the state holds every vector that was ever scored.
  @functools.partial(
    jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh)
  )
  def updates(state, first, scorer, context, key):
    steps = first + jnp.arange(updates_per_call)
    state, values = jax.lax.scan(
      lambda *now: step_function(*now, scorer, context, key), state, steps
    )
    # Of several updates: what is best, or furthest, of all, else means.
    return state, {
      name: value.max(0) if name.endswith(("_best", "_kl")) else value.mean(0)
      for name, value in values.items()
    }

  return updates


def make_init(
  methods: Mapping[str, method.Method],
  settings: method.Settings,
  references: int,
) -> Callable[..., SearchState]:
  """Returns a jitted function: (key, context, feasible) -> the state before 0.

  The R references are draws of `feasible`, a `cost.FeasibleSet`.
  """

  @jax.jit
  def init(key, context, feasible):
    updates, budgets = settings.updates, context.feasible.ranges
    shape = updates, len(methods), budgets, settings.proposals
    reference_key, *keys = jax.random.split(key, 1 + len(methods))
    return SearchState(
      methods=tuple(
        m.init(k, context) for m, k in zip(methods.values(), keys, strict=True)
      ),
      references=method.uniform_draws(reference_key, feasible, references),
      choices=jnp.zeros((*shape, len(context.widths)), jnp.int32),
      scores=jnp.full(shape, jnp.nan, jnp.float32),
      reference_scores=jnp.full(
        (updates, budgets, references), jnp.nan, jnp.float32
      ),
    )

  return init


def search_step(
  state: SearchState,
  step: chex.Numeric,
  scorer: reward.Scorer,
  context: method.Context,
  key: chex.PRNGKey,
  *,
  settings: Settings,
  methods: Mapping[str, method.Method],
  score: Callable[..., monte_carlo.Scores],
) -> tuple[SearchState, dict[str, chex.Array]]:
  """Runs one update: propose, program shared chips, score, learn.

  Update k uses fold_in(key, k); `score` is from `reward.make_score`, and the
  methods are in the order of `state`.
  """
  chip_key, method_key = jax.random.split(jax.random.fold_in(key, step))
  keys = jax.random.split(method_key, (len(methods), 2))
  before = list(zip(methods.items(), state.methods, keys, strict=True))
  proposed = [
    each.propose(pair[0], learnt, context, step)
    for (_, each), learnt, pair in before
  ]
  choices = jnp.stack([choices for choices, _ in proposed])  # [M, K, P, L]
  # One call for all methods: so they meet the same chips.
  both = choices, state.references
  vectors = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in both])
  scored = score(
    scorer,
    width_vectors.take(context.widths, vectors),
    reward.chip_keys(chip_key, settings.chips, settings.scenarios),
  )

  def robust(values):
    """Scores `[M, K, P]`, advantages alike, references' scores `[K, R]`."""
    mixed = reward.robust_score(
      values, settings.scenarios, settings.cvar_weight
    )
    split = choices[..., 0].size
    scores = mixed[:split].reshape(choices.shape[:-1])
    references = mixed[split:].reshape(state.references.shape[:-1])
    return scores, scores - references.mean(1)[None, :, None], references

  scores, advantages, references = robust(scored.accuracy)
  rewards = advantages
  if settings.reward == "cross_entropy":
    _, rewards, _ = robust(-scored.cross_entropy)
  if settings.penalty:
    rewards -= settings.penalty * excess(context, choices)
  after, values = [], {}
  for index, ((name, each), learnt, pair) in enumerate(before):
    _, notes = proposed[index]
    told = (notes, choices[index], rewards[index], advantages[index])
    learnt, said = each.learn(pair[1], learnt, context, step, *told)
    after.append(learnt)
    values |= {name: scores[index].mean(), f"{name}_best": scores[index].max()}
    # A reward that is not finite stops the search.
    values |= {f"{name}_reward": rewards[index].mean()}
    values |= {f"{name}_{what}": value for what, value in said.items()}
  state = state.replace(
    methods=tuple(after),
    choices=state.choices.at[step].set(choices),
    scores=state.scores.at[step].set(scores),
    reference_scores=state.reference_scores.at[step].set(references),
  )
  return state, {**values, "references": references.mean()}


def excess(context: method.Context, choices: chex.Array) -> chex.Array:
  """Returns the share by which vectors `[M, K, P, L]` exceed their budgets."""
  spent = cost.vector_cost(context.costs, choices)
  budget = context.budget_share[None, :, None]
  return jnp.maximum(spent / budget - 1, 0)
