"""Methods that learn nothing: random search, of all vectors or one a stage.

Axes: K budgets, P proposals for each, L layers, C choices.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost
from hawis_jax.search import method

_MOST_STAGE_VECTORS = 2**16
SPARE = 0.2  # of a budget, that vectors of one scale a stage may leave


def random_search(settings: method.Settings) -> method.Method:
  """Draws from the feasible set, uniformly where there are no limits."""

  def propose(key, state, context, step):
    del state, step
    ranges = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(ranges), settings.proposals))
    draw = jax.vmap(context.feasible.sample, (0, None))
    return jax.vmap(draw)(keys, ranges), ()

  return method.Method(lambda key, context: (), propose, _learn_nothing)


def per_stage(settings: method.Settings) -> method.Method:
  """Random search among the vectors of one scale a stage (stem with first).

  A stage's layers take the choices of the same rank. There are few, so the
  budget's low end does not matter: those are drawn that have less than `SPARE`
  of the budget left, else all within it. Where none is, random vectors of the
  range stand in.
  """

  def vectors(context):
    """Choice indices int32 `[N, L]` of all of them, thinned where too many."""
    groups = settings.groups
    num_layers, size = context.valid.shape
    place = np.maximum(np.arange(num_layers) - 1, 0)
    group = place // ((num_layers - 1) // groups)
    every = int(np.ceil(size / _MOST_STAGE_VECTORS ** (1 / groups)))
    ranks = itertools.product(range(0, size, every), repeat=groups)
    ranks = jnp.array(list(ranks), jnp.int32)[:, group]
    last = context.valid.sum(1, dtype=jnp.int32) - 1
    return jnp.minimum(ranks, last[None])

  def init(key, context):
    del key
    all_of_them = vectors(context)
    ranges = jnp.arange(context.feasible.ranges)
    within = jax.vmap(context.feasible.affords, (0, None))(ranges, all_of_them)
    spent = cost.vector_cost(context.costs, all_of_them)[None]
    close = within & (spent >= (1 - SPARE) * context.budget_share[:, None])
    inside = jnp.where(close.any(1, keepdims=True), close, within)
    return {"vectors": all_of_them, "inside": inside}

  def propose(key, state, context, step):
    del step

    def draw(key, budget_range, inside):
      vector_key, other_key = jax.random.split(key)
      logits = jnp.where(inside, 0.0, -jnp.inf)
      pick = jax.random.categorical(vector_key, logits)
      other = context.feasible.sample(other_key, budget_range)
      return jnp.where(inside.any(), state["vectors"][pick], other)

    ranges = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(ranges), settings.proposals))
    each = jax.vmap(jax.vmap(draw, (0, None, None)))
    return each(keys, ranges, state["inside"]), ()

  return method.Method(init, propose, _learn_nothing)


def _learn_nothing(
  key, state, context, step, notes, choices, rewards, advantages
):
  del key, context, step, notes, choices, rewards, advantages
  return state, {}
