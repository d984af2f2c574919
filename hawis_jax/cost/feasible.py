"""Feasible sets: tables of the vectors inside a budget, to be drawn from.

Axes: K ranges, M limits, L layers, C choices of a layer, U units of cost, A
choices of the layer before the last (1 where no product skips a layer), B of
the last.
"""

import dataclasses
from typing import Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

_TRIES = 64  # draws of which one that meets the limits is taken


class Space(Protocol):
  """Describes what is counted of a space of `networks.width_vectors`.

  Attributes:
    choices: `[L]` tuples of ascending widths.
    table: int64 `[L, C]` widths; short rows repeat their last choice.
    valid: bool `[L, C]`, False on the padding of `table`.
  """

  choices: tuple[tuple[int, ...], ...]
  table: np.ndarray
  valid: np.ndarray


def vector_cost(costs: chex.Array, choices: chex.Array) -> chex.Array:
  """Returns the cost `[...]` of vectors of choice indices `[..., L]`.

  `costs` are `[L, A, C, C]`, NumPy or JAX as the indices are.
  """
  layer, before, previous = _chain(choices, costs.shape[1])
  return costs[layer, before, previous, choices].sum(-1)


def slowest_entry(costs: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """Returns the greatest entry of each vector, see `Limit.slowest`."""
  layer, before, previous = _chain(choices, costs.shape[1])
  return costs[layer, before, previous, choices].max(-1)


def _chain(choices, skipping):
  """Returns indices of the entries of vectors, but for their own choice."""
  module = jnp if isinstance(choices, jax.Array) else np
  start = module.zeros_like(choices[..., :1])
  previous = module.concatenate([start, choices[..., :-1]], -1)
  before = module.concatenate([start, previous[..., :-1]], -1)
  before = module.minimum(before, skipping - 1)
  return np.arange(choices.shape[-1]), before, previous


def cost_range(space: Space, costs: np.ndarray) -> tuple[float, float]:
  """Returns the cheapest and the dearest vector's cost."""
  bounds = []
  for best, worst in ((np.min, np.inf), (np.max, -np.inf)):
    # Of every (choice before, own choice): `[1 or C, C]`.
    total = np.where(space.valid[0], costs[0, 0, 0], worst)[None]
    for layer in range(1, len(space.choices)):
      # Entries [before, previous, own], best over `before`.
      total = best(total[:, :, None] + costs[layer], axis=0)
      total = np.where(space.valid[layer], total, worst)
    bounds.append(best(total))
  return tuple(x.item() for x in np.array(bounds).astype(costs.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeasibleSet:
  """Holds width vectors inside ranges of cost, as tables to draw from.

  Attributes:
    completions: float32 `[K, L, B, C, U + 1]`, log of the number of ways to
      finish a vector inside a budget range after layers l - 1 and l took
      choices b and c and u units in all are spent; -inf where there is none.
      Limits are not counted.
    units: int32 `[K, L, A, C, C]`, cost of layer l beyond its cheapest in a
      budget range's units, by the choices of layers l - 2, l - 1 and l.
    limit_units: int32 `[M, L, A, C, C]`, the same of each limited cost.
    limits: int32 `[M]`, the most of them.
    witness: int32 `[K, M, L, B, C, U + 1]`, units of each limited cost that the
      rest of the witness has.
  """

  completions: chex.Array
  units: chex.Array
  limit_units: chex.Array
  limits: chex.Array
  witness: chex.Array

  @property
  def ranges(self) -> int:
    """Returns K."""
    return self.completions.shape[0]

  def start(self) -> "Prefix":
    """Returns the empty beginning."""
    zero = jnp.zeros((), jnp.int32)
    used = jnp.zeros(self.limit_units.shape[0], jnp.int32)
    return Prefix(zero, zero, zero, zero, used)

  def marginal(
    self, budget_range: chex.Numeric, prefix: "Prefix"
  ) -> chex.Array:
    """Returns the cost `[C]` of each choice of the next layer, in units."""
    before = jnp.minimum(prefix.before, self.units.shape[2] - 1)
    return self.units[budget_range, prefix.layer, before, prefix.previous]

  def log_counts(
    self, budget_range: chex.Numeric, prefix: "Prefix", limited: bool = True
  ) -> chex.Array:
    """Returns the log number `[C]` of completions of each next choice.

    -inf where there is none, or none known that meets all limits, unless
    `limited` is False.
    """
    layer = prefix.layer
    spent = prefix.spent + self.marginal(budget_range, prefix)
    previous = jnp.minimum(prefix.previous, self.completions.shape[2] - 1)
    # What is beyond the table reads its end, and is ruled out below.
    last = self.completions.shape[-1] - 1
    choice, total = jnp.arange(len(spent)), jnp.minimum(spent, last)
    counts = self.completions[budget_range, layer, previous, choice, total]
    possible = spent <= last
    if limited and self.limit_units.shape[0]:
      used = prefix.used[:, None] + self._limited(prefix)
      rest = self.witness[budget_range, :, layer, previous, choice, total]
      possible &= (used + rest.T <= self.limits[:, None]).all(0)
    return jnp.where(possible, counts, -jnp.inf)

  def extend(
    self, budget_range: chex.Numeric, prefix: "Prefix", choice: chex.Numeric
  ) -> "Prefix":
    """Returns the beginning with one more choice."""
    return Prefix(
      layer=prefix.layer + 1,
      before=prefix.previous,
      previous=jnp.asarray(choice, jnp.int32),
      spent=prefix.spent + self.marginal(budget_range, prefix)[choice],
      used=prefix.used + self._limited(prefix)[:, choice],
    )

  def _limited(self, prefix):
    """Returns units `[M, C]` of the limited costs of each choice."""
    before = jnp.minimum(prefix.before, self.limit_units.shape[2] - 1)
    return self.limit_units[:, prefix.layer, before, prefix.previous]

  def sample(
    self, key: chex.PRNGKey, budget_range: chex.Numeric = 0
  ) -> chex.Array:
    """Draws one vector: choice indices int32 `[L]`.

    Uniformly from the budget range. With limits, the first of 64 such draws
    that meets them: uniform as well. Where none does, choices are made by the
    counts without limits among those whose witness meets them.
    """
    if not self.limit_units.shape[0]:
      return self._draw(key, budget_range, limited=False)
    guided_key, free_key = jax.random.split(key)
    tried = jax.vmap(lambda key: self._draw(key, budget_range, limited=False))(
      jax.random.split(free_key, _TRIES)
    )
    inside = self.contains(budget_range, tried)
    guided = self._draw(guided_key, budget_range, limited=True)
    return jnp.where(inside.any(), tried[inside.argmax()], guided)

  def _draw(self, key, budget_range, limited):
    def step(prefix, layer_key):
      counts = self.log_counts(budget_range, prefix, limited)
      choice = jax.random.categorical(layer_key, counts)
      return self.extend(budget_range, prefix, choice), choice

    keys = jax.random.split(key, self.units.shape[1])
    return jax.lax.scan(step, self.start(), keys)[1]

  def contains(
    self, budget_range: chex.Numeric, choices: chex.Array
  ) -> chex.Array:
    """Returns whether vectors `[..., L]` lie inside and meet all limits."""
    spent = vector_cost(self.units[budget_range], choices)
    last = self.completions.shape[-1] - 1
    previous = jnp.minimum(choices[..., -2], self.completions.shape[2] - 1)
    own, total = choices[..., -1], jnp.clip(spent, 0, last)
    counts = self.completions[budget_range, -1, previous, own, total]
    inside = jnp.isfinite(counts) & (spent <= last)
    return inside & self._meets_limits(choices)

  def affords(
    self, budget_range: chex.Numeric, choices: chex.Array
  ) -> chex.Array:
    """Returns `contains`, but vectors may cost less than the range allows."""
    spent = vector_cost(self.units[budget_range], choices)
    # The dearest total that ends a vector inside.
    ends = jnp.isfinite(self.completions[budget_range, -1]).any((0, 1))
    last = ends.shape[0] - 1 - ends[::-1].argmax()
    return (spent <= last) & self._meets_limits(choices)

  def _meets_limits(self, choices):
    inside = jnp.ones(choices.shape[:-1], bool)
    for units, most in zip(self.limit_units, self.limits, strict=True):
      inside &= vector_cost(units, choices) <= most
    return inside


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
  """Holds the beginning of a width vector.

  Attributes:
    layer: of the next choice.
    before: choice of the last layer but one.
    previous: choice of the last layer.
    spent: cost so far in the budget range's units.
    used: int32 `[M]`, of each limited cost in units of its limit.
  """

  layer: chex.Array
  before: chex.Array
  previous: chex.Array
  spent: chex.Array
  used: chex.Array
