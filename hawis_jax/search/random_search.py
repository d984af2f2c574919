"""Methods that learn nothing: random search, of all vectors or one a stage.

Axes: K budgets, P proposals for each, N vectors, L layers.
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
    num = settings.proposals
    return method.uniform_draws(key, context.feasible, num), ()

  return method.Method(propose)


def stage_vectors(
  context: method.Context, groups: int
) -> tuple[jax.Array, jax.Array]:
  """Returns choices of one rank a stage, thinned if too many, and which differ.

  Choices are int32 `[N, L]`. A stage of fewer choices than another repeats its
  last one: those that repeat a vector are False in bool `[N]`.
  """
  num_layers, size = context.valid.shape
  place = np.maximum(np.arange(num_layers) - 1, 0)
  group = place // max((num_layers - 1) // groups, 1)
  group = np.minimum(group, groups - 1)
  every = int(np.ceil(size / _MOST_STAGE_VECTORS ** (1 / groups)))
  ranks = itertools.product(range(0, size, every), repeat=groups)
  ranks = jnp.array(list(ranks), jnp.int32)[:, group]
  last = context.valid.sum(1, dtype=jnp.int32) - 1
  most = jax.ops.segment_max(last, group, groups)[group]
  differs = (ranks < most[None] + every).all(1)
  return jnp.minimum(ranks, last[None]), differs


def per_stage(settings: method.Settings) -> method.Method:
  """Random search among the vectors of one scale a stage (stem with first).

  A stage's layers take the choices of the same rank.
  """

  def init(key, context):
    del key
    every, differs = stage_vectors(context, settings.groups)
    budgets = jnp.arange(context.feasible.ranges)
    within = jax.vmap(context.feasible.affords, (0, None))(budgets, every)
    within &= differs[None]
    spent = cost.vector_cost(context.costs, every)[None]
    # They are few, so the budget's low end does not matter: those that leave
    # little of it are drawn, else all within it.
    close = within & (spent >= (1 - SPARE) * context.budget_share[:, None])
    inside = jnp.where(close.any(1, keepdims=True), close, within)
    return {"vectors": every, "inside": inside}

  def propose(key, state, context, step):
    del step

    def draw(key, budget, inside):
      vector_key, other_key = jax.random.split(key)
      logits = jnp.where(inside, 0.0, -jnp.inf)
      pick = jax.random.categorical(vector_key, logits)
      # Where no vector is of the kind, any of the budget stands in.
      other = context.feasible.sample(other_key, budget)
      return jnp.where(inside.any(), state["vectors"][pick], other)

    budgets = jnp.arange(context.feasible.ranges)
    keys = jax.random.split(key, (len(budgets), settings.proposals))
    each = jax.vmap(jax.vmap(draw, (0, None, None)))
    return each(keys, budgets, state["inside"]), ()

  return method.Method(propose, init)
