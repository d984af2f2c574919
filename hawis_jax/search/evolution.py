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
  """The population of each budget.

  Attributes:
    choices: int32 `[K, S, L]`.
    rewards: float32 `[K, S]`; -inf: not scored yet.
    oldest: int32, the place that is overwritten next.
  """

  choices: chex.Array
  rewards: chex.Array
  oldest: chex.Array


def regularized_evolution(settings: method.Settings) -> method.Method:
  """Regularised evolution (Real et al., AAAI 2019).

  The first S proposals are random. Then each has as parent the best of a random
  tournament and is a mutation of it; the oldest leave the population.
  """

  def init(key, context):
    num, layers = context.feasible.ranges, len(context.widths)
    size = max(settings.population, settings.proposals)
    keys = jax.random.split(key, (num, size))
    draw = jax.vmap(context.feasible.sample, (0, None))
    return Population(
      choices=jax.vmap(draw)(keys, jnp.arange(num)).reshape(num, size, layers),
      rewards=jnp.full((num, size), -jnp.inf),
      oldest=jnp.zeros((), jnp.int32),
    )

  def propose(key, state, context, step):
    size = state.rewards.shape[1]
    places = (state.oldest + jnp.arange(settings.proposals)) % size
    beginning = step * settings.proposals < size

    def child(key, budget_range, choices, rewards):
      tournament_key, mutation_key = jax.random.split(key)
      entrants = jax.random.randint(
        tournament_key, (settings.tournament,), 0, size
      )
      parent = choices[entrants[rewards[entrants].argmax()]]
      return neighbours.mutate(mutation_key, context, budget_range, parent)

    ranges = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(ranges), settings.proposals))
    each = jax.vmap(jax.vmap(child, (0, None, None, None)))
    children = each(keys, ranges, state.choices, state.rewards)
    # The first population is random, and scored before it has children.
    return jnp.where(beginning, state.choices[:, places], children), places

  def learn(key, state, context, step, places, choices, rewards, advantages):
    del key, context, step, advantages
    state = Population(
      choices=state.choices.at[:, places].set(choices),
      rewards=state.rewards.at[:, places].set(rewards),
      oldest=(places[-1] + 1) % state.rewards.shape[1],
    )
    scored = ~jnp.isneginf(state.rewards)
    mean = jnp.where(scored, state.rewards, 0).sum() / scored.sum()
    return state, {"population": mean}

  return method.Method(init, propose, learn)


def local_search(settings: method.Settings) -> method.Method:
  """Hill climbing: the best vector meets its neighbours on the same chips.

  An update scores the incumbent and P - 1 neighbours of it; the best of them is
  the next incumbent. It starts from a random vector.
  """

  def init(key, context):
    ranges = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, len(ranges))
    return jax.vmap(context.feasible.sample)(keys, ranges)

  def propose(key, state, context, step):
    del step
    ranges = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(ranges), settings.proposals - 1))
    mutate = jax.vmap(neighbours.mutate, (0, None, None, None))
    tried = jax.vmap(mutate, (0, None, 0, 0))(keys, context, ranges, state)
    return jnp.concatenate([state[:, None], tried], 1), ()

  def learn(key, state, context, step, notes, choices, rewards, advantages):
    del key, context, step, notes, advantages
    best = rewards.argmax(1)
    incumbent = jnp.take_along_axis(choices, best[:, None, None], 1)[:, 0]
    moved = (incumbent != state).any(-1).mean()
    return incumbent, {"moved": moved}

  return method.Method(init, propose, learn)
