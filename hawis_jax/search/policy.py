"""The policy with a learned reward model (DyNA-PPO).

A policy needs many rewards, and a score is dear. So all scores, of all budgets,
teach the Bayesian regression of `predictor`; the policy takes many PPO steps on
what draws from its posterior say, and only what it then proposes is scored. The
regression is used while it is right: before new scores are learnt, their ranks
are compared with those that it expects. Where their running correlation is
below a bound, the method is plain PPO (Angermueller et al., ICLR 2020).

Axes: U updates, K budgets, P proposals for each, N vectors, L layers.
"""

import dataclasses
import functools

import chex
import flax
import jax
import jax.numpy as jnp

from hawis_jax import cost
from hawis_jax.search import method
from hawis_jax.search import policy_gradient
from hawis_jax.search import policy_network
from hawis_jax.search import predictor
from hawis_jax.search import random_search

_KEPT = 0.8  # of the running correlation, an update
_POOL = 8  # vectors of the policy for each that is scored
# Bonus on the model. Ranks have one size however alike proposals are, and a
# draw costs nothing: with ppo's bonus the policy settles on one vector after
# ten updates, before the model knows it to be good (benchmarks/search.py: 2.4
# points of regret, not 1.4).
_ENTROPY = (1.0, 0.5)


@flax.struct.dataclass
class State:
  """What the method learns."""

  policy: policy_gradient.State
  model: predictor.State
  # Of ranks expected and found, of each update, float32 `[U]`; the first is 0,
  # as nothing was expected; NaN: not yet.
  correlations: chex.Array
  running: chex.Array  # their exponential mean, 0 before there are two


def policy(settings: method.Settings) -> method.Method:
  """Returns PPO on a reward model, while that ranks well, else on scores."""
  first = functools.partial(_first_vectors, settings=settings)
  free = dataclasses.replace(settings, entropy=_ENTROPY)

  def init(key, context):
    policy_key, model_key = jax.random.split(key)
    return State(
      policy_gradient.init(settings, policy_key, context),
      predictor.init(model_key, context),
      jnp.full(settings.updates, jnp.nan, jnp.float32),
      jnp.zeros(()),
    )

  def sample(key, state, context, num):
    drawn = policy_gradient.draw(key, settings, state, context, num)
    return drawn, drawn.choices.reshape(context.feasible.ranges, num, -1)

  def is_trusted(state):
    return state.running >= settings.least_correlation

  def propose(key, state, context, step):
    pool_key, draw_key = jax.random.split(key)
    num = settings.proposals
    _, pool = sample(pool_key, state.policy, context, _POOL * num)
    drawn = predictor.draws(draw_key, state.model, num, context.feasible.ranges)
    choices = jax.lax.cond(
      is_trusted(state) & (step > 0),
      lambda: predictor.best_of_draws(context, pool, drawn),
      lambda: pool[:, :num],
    )
    return jnp.where(step == 0, first(key, context), choices), ()

  def learn(key, state, context, step, notes, choices, rewards, advantages):
    del notes
    pool_key, real_key, key = jax.random.split(key, 3)
    expected = predictor.predict(state.model, context, choices)
    ranks = jax.vmap(policy_network.rank_advantages)
    found = (ranks(expected) * ranks(rewards)).mean()
    correlation = jnp.where(step == 0, 0.0, found)
    # A mean of few is theirs: it does not start from 0.
    kept = jnp.minimum(_KEPT, (step - 1) / jnp.maximum(step, 1))
    kept = jnp.where(step == 0, 0.0, kept)
    state = state.replace(
      correlations=state.correlations.at[step].set(correlation),
      running=kept * state.running + (1 - kept) * correlation,
    )
    near = predictor.make_pool(pool_key, state.model, context, predictor.POOL)
    _, mine = sample(real_key, state.policy, context, predictor.POOL)
    model = predictor.observe(
      state.model,
      context,
      choices,
      rewards,
      advantages,
      jnp.concatenate([near, mine], 1),
    )
    improve = functools.partial(
      policy_gradient.improve,
      context=context,
      step=step,
      epochs=settings.epochs,
    )

    def imagine(policy, key):
      sample_key, draw_key = jax.random.split(key)
      drawn, vectors = sample(sample_key, policy, context, settings.proposals)
      one = predictor.draws(draw_key, model, 1, context.feasible.ranges)
      expected = predictor.rewards_of_draws(context, vectors, one)[:, 0]
      return improve(free, policy, proposals=drawn, rewards=expected)

    def on_model(policy):
      keys = jax.random.split(key, settings.imagined)
      policy, said = jax.lax.scan(imagine, policy, keys)
      return policy, {name: value.max() for name, value in said.items()}

    def on_scores(policy):
      # The first vectors were not the policy's, and may have no probability.
      given = jnp.where(step == 0, mine[:, : choices.shape[1]], choices)
      given = policy_gradient.given(settings, policy, context, given)
      values = jnp.where(step == 0, 0.0, rewards)
      return improve(settings, policy, proposals=given, rewards=values)

    after, said = jax.lax.cond(
      is_trusted(state), on_model, on_scores, state.policy
    )
    said |= {"correlation": state.running, "modelled": 1.0 * is_trusted(state)}
    return state.replace(policy=after, model=model), said

  def estimate(state, context, budget, choices):
    return predictor.estimate(state.model, context, budget, choices)

  return method.Method(
    propose,
    init,
    learn,
    estimate,
    lambda state: state.model.elite,
    lambda state: {"correlation": state.correlations},
    {"kl": policy_gradient.MOST_KL},
  )


def _first_vectors(key, context, settings):
  """Vectors `[K, P, L]` to start from: half of one scale a stage, if there are.

  The one of a single scale is the first. The other half are spread over the
  range of cost, as they stand in for those that there are not.
  """
  stage_key, draw_key = jax.random.split(key)
  num = settings.proposals
  every, differs = random_search.stage_vectors(context, settings.groups)
  half = min(num // 2, len(every))
  pool = method.uniform_draws(draw_key, context.feasible, 4 * num)
  spent = cost.vector_cost(context.costs, pool)
  low, high = spent.min(1, keepdims=True), spent.max(1, keepdims=True)
  shares = [jnp.linspace(0, 1, half), jnp.linspace(0, 1, num - half)]
  targets = low + (high - low) * jnp.concatenate(shares)[None]
  spread = predictor.closest(pool, spent, targets)
  budgets = jnp.arange(context.feasible.ranges)
  inside = jax.vmap(context.feasible.contains, (0, None))(budgets, every)
  inside &= differs[None]
  rank = every / (context.valid.sum(1) - 1).clip(1)[None]
  order = jax.random.uniform(stage_key, inside.shape)
  order += (jnp.ptp(rank, axis=1) < 1e-6)[None]
  order, place = jax.lax.top_k(jnp.where(inside, order, -jnp.inf), half)
  is_there = jnp.isfinite(order)[..., None]
  stages = jnp.where(is_there, every[place], spread[:, :half])
  return jnp.concatenate([stages, spread[:, half:]], 1)
