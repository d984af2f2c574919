"""What a search method is, what it sees, and how it is set.

Axes: K budgets, P proposals for each, L layers, C choices of a layer, A of the
layer before the last (1 where no product skips a layer).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost
from hawis_jax.networks import width_vectors


@dataclasses.dataclass(frozen=True)
class Settings:
  """How methods search; each takes what concerns it, see `methods`."""

  updates: int = 100  # of the whole search
  proposals: int = 64  # P, of an update and budget
  groups: int = 3  # of the ResNet's blocks, for `per_stage`
  hidden: int = 64  # GRU units of the policy
  learning_rate: float = 1e-2  # Adam's, of the policy
  epochs: int = 4  # of PPO, an update
  clip: float = 0.2  # of PPO's ratio
  entropy: tuple[float, float] = (0.05, 0.001)  # bonus at first, and at last
  imagined: int = 8  # PPO steps on the reward model an update, of `policy`
  least_correlation: float = 0.1  # of the reward model's ranks, to be used
  population: int = 64  # of evolution, for each budget
  tournament: int = 16  # of evolution


@dataclasses.dataclass(frozen=True)
class Method:
  """A search method: pure functions, to be traced.

  Attributes:
    propose: (key, state, context, step) -> (choices int32 `[K, P, L]`, notes
      for `learn`).
    init: (key, context) -> state.
    learn: (key, state, context, step, notes, choices, rewards, advantages) ->
      (state, scalar metrics). Rewards `[K, P]` are what to learn from,
      advantages what is to be great: robust scores. Both are less those of the
      update's references, which met the same chips.
    estimate: (state, context, budget's index, choices `[N, L]`) -> `[N]`,
      advantages it predicts, up to a constant, for `candidates.best_vectors`;
      or None.
    suggest: state -> choices int32 `[K, N, L]` of the greatest estimates, to be
      candidates too, scored or not; or None.
    report: state -> {name: array} for search/result.json; or None.
    limits: {metric: value}: above it the method has gone astray.
  """

  propose: Callable[..., tuple[chex.Array, Any]]
  init: Callable[..., Any] = lambda key, context: ()
  learn: Callable[..., tuple[Any, dict[str, chex.Array]]] = (
    lambda key, state, *_: (state, {})
  )
  estimate: Callable[..., chex.Array] | None = None
  suggest: Callable[[Any], chex.Array] | None = None
  report: Callable[[Any], dict[str, chex.Array]] | None = None
  limits: Mapping[str, float] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What proposals depend on beside what a method has learnt."""

  feasible: cost.FeasibleSet  # the width vectors within each budget
  # Beyond the cheapest vector, in units of `feasible`, float32 `[K]`.
  budget: chex.Array
  costs: chex.Array  # float32 `[L, A, C, C]`, as shares of the dearest vector
  widths: chex.Array  # int32 `[L, C]`
  valid: chex.Array  # bool `[L, C]`, False on padding of `widths`
  layer_features: chex.Array  # float32 `[L, F]`, of a layer beforehand
  budget_share: chex.Array  # budget / cost of the dearest, float32 `[K]`


def uniform_draws(
  key: chex.PRNGKey, feasible: cost.FeasibleSet, num: int
) -> chex.Array:
  """Draws `num` vectors of each budget, int32 `[K, num, L]`."""
  budgets = jnp.arange(feasible.ranges)
  keys = jax.random.split(key, (len(budgets), num))
  draw = jax.vmap(feasible.sample, (0, None))
  return jax.vmap(draw)(keys, budgets)


def make_context(
  space: width_vectors.WidthSpace,
  feasible: cost.FeasibleSet,
  costs: np.ndarray,
  positions: tuple[int, ...],
  amounts: Sequence[float],
) -> Context:
  """Builds what methods see of a space and its budgets, `amounts` `[K]`.

  These are in the unit of `costs`, `[L, A, C, C]`; `positions` `[L]` are the
  output positions (spatial size) of each layer.
  """
  num_layers = len(space.choices)
  size = np.log2(np.array(positions, np.float64))[:, None]
  # One-hot, because no order of the layers says what a width does in them.
  layer_features = np.concatenate(
    [np.eye(num_layers), size / size.max().clip(1)], axis=1
  )
  # Units of the dearest completion: budgets have units of their own.
  counted = np.isfinite(np.asarray(feasible.completions[:, -1])).any((1, 2))
  last = counted.shape[-1] - 1 - counted[:, ::-1].argmax(-1)
  dearest = cost.cost_range(space, costs)[1]
  return Context(
    feasible=feasible,
    budget=jnp.asarray(np.maximum(last, 1), jnp.float32),
    costs=jnp.asarray(costs / dearest, jnp.float32),
    widths=jnp.asarray(space.table, jnp.int32),
    valid=jnp.asarray(space.valid),
    layer_features=jnp.asarray(layer_features, jnp.float32),
    budget_share=jnp.asarray(np.array(amounts) / dearest, jnp.float32),
  )
