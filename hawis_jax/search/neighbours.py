"""Small changes of a width vector that stay within its budget.

Axes: L layers, C choices of a layer. A budget is given by its index.
"""

import chex
import jax
import jax.numpy as jnp

from hawis_jax.search import method


def neighbour(
  key: chex.PRNGKey,
  context: method.Context,
  budget: chex.Numeric,
  choices: chex.Array,
) -> chex.Array:
  """Changes one or two layers of a feasible vector, int32 `[L]`.

  The change is uniform among what is feasible; where nothing else is, the
  vector stays.
  """
  layers_key, pick_key = jax.random.split(key)
  num_layers, size = context.valid.shape
  first, second = jax.random.permutation(layers_key, num_layers)[:2]
  # All C^2 pairs: so what one layer gains the other can give.
  pairs = jnp.indices((size, size)).reshape(2, -1)
  tried = jnp.broadcast_to(choices, (size * size, num_layers))
  tried = tried.at[:, first].set(pairs[0]).at[:, second].set(pairs[1])
  possible = context.valid[first, pairs[0]] & context.valid[second, pairs[1]]
  possible &= context.feasible.contains(budget, tried)
  possible &= (tried != choices[None]).any(-1)
  logits = jnp.where(possible, 0.0, -jnp.inf)
  picked = tried[jax.random.categorical(pick_key, logits)]
  return jnp.where(possible.any(), picked, choices)


def mutate(
  key: chex.PRNGKey,
  context: method.Context,
  budget: chex.Numeric,
  choices: chex.Array,
) -> chex.Array:
  """Takes one or, half the time, two `neighbour` steps."""
  count_key, first_key, second_key = jax.random.split(key, 3)
  once = neighbour(first_key, context, budget, choices)
  twice = neighbour(second_key, context, budget, once)
  return jnp.where(jax.random.bernoulli(count_key), twice, once)
