"""Methods that change what has been good: evolution, and local search.

Axes: K budgets, P proposals for each, S population, T tournament, L layers.
"""

import chex
import flax
import jax
import jax.numpy as jnp

from hawis_jax.search import method
from hawis_jax.search import neighbours


@flax.struct.dataclass
class Population:
  """The population of each budget."""

  choices: chex.Array  # int32 `[K, S, L]`
  rewards: chex.Array  # float32 `[K, S]`; -inf, not scored yet, wins nothing
  oldest: chex.Array  # int32, the place that is overwritten next


def regularized_evolution(settings: method.Settings) -> method.Method:
  """Returns regularised evolution (Real et al., AAAI 2019).

  Each proposal has as parent the best of a random tournament and is a mutation
  of it; the oldest leave the population.
  """

  def init(key, context):
    # All proposals of an update have a place.
    size = max(settings.population, settings.proposals)
    choices = method.uniform_draws(key, context.feasible, size)
    rewards = jnp.full(choices.shape[:2], -jnp.inf, jnp.float32)
    return Population(choices, rewards, jnp.zeros((), jnp.int32))

  def propose(key, state, context, step):
    size = state.rewards.shape[1]
    places = (state.oldest + jnp.arange(settings.proposals)) % size
    beginning = step * settings.proposals < size

    def child(key, budget, choices, rewards):
      tournament_key, mutation_key = jax.random.split(key)
      entrants = jax.random.randint(
        tournament_key, (settings.tournament,), 0, size
      )
      parent = choices[entrants[rewards[entrants].argmax()]]
      return neighbours.mutate(mutation_key, context, budget, parent)

    budgets = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(budgets), settings.proposals))
    each = jax.vmap(jax.vmap(child, (0, None, None, None)))
    children = each(keys, budgets, state.choices, state.rewards)
    # The first population is random, and scored before it has children.
    return jnp.where(beginning, state.choices[:, places], children), places

  def learn(key, state, context, step, places, choices, rewards, advantages):
    del key, context, step, advantages
    state = Population(
      choices=state.choices.at[:, places].set(choices),
      rewards=state.rewards.at[:, places].set(rewards),
      oldest=(places[-1] + 1) % state.rewards.shape[1],
    )
    # Places that were never scored would make the mean -inf.
    scored = ~jnp.isneginf(state.rewards)
    mean = jnp.where(scored, state.rewards, 0).sum() / scored.sum()
    return state, {"population": mean}

  return method.Method(propose, init, learn)


def local_search(settings: method.Settings) -> method.Method:
  """Returns hill climbing from a random vector, the incumbent.

  An update scores it and P - 1 neighbours; the best is the next incumbent.
  """

  def init(key, context):
    return method.uniform_draws(key, context.feasible, 1)[:, 0]

  def propose(key, state, context, step):
    del step
    budgets = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(budgets), settings.proposals - 1))
    mutate = jax.vmap(neighbours.mutate, (0, None, None, None))
    tried = jax.vmap(mutate, (0, None, 0, 0))(keys, context, budgets, state)
    # The incumbent meets the same chips: an old lucky score counts no more.
    return jnp.concatenate([state[:, None], tried], 1), ()

  def learn(key, state, context, step, notes, choices, rewards, advantages):
    del key, context, step, notes, advantages
    best = rewards.argmax(1)
    incumbent = jnp.take_along_axis(choices, best[:, None, None], 1)[:, 0]
    moved = (incumbent != state).any(-1).mean()
    return incumbent, {"moved": moved}

  return method.Method(propose, init, learn)
