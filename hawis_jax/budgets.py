"""Budgets: the width vectors whose cost lies in a window, to be drawn from.

Costs are sums of terms of adjacent layers (`cost.tables`), so dynamic
programming over the layers counts the ways to finish every beginning of a
vector. Whoever chooses layer after layer among the choices with such a way
never leaves the window. Further limits on other costs hold by a witness: each
beginning keeps one way to finish and what it costs, and is given up when even
that one costs too much. The witness's own next choice keeps it as witness, so
nobody gets stuck; and since it is the way of least cost, a single limit
excludes no vector that meets it.

Axes: K windows, M limits, L layers, C choices of a layer, U units of cost, A
choices of the layer before the last (1 where no product skips a layer), B of
the last.
"""

from collections.abc import Sequence
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax import widths as widths_lib

# Finest resolution of a budget, and of a limit; with products that skip a
# layer, tables have one axis more and a budget is counted more coarsely.
_MAX_UNITS, _MAX_UNITS_SKIPPING = 2**14, 2**12
_LIMIT_UNITS = 2**22
# More than any entry of a vector within a limit; 2^8 of them fit in int32.
_TOO_MANY = 2 * _LIMIT_UNITS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeasibleSet:
  """Width vectors inside windows of cost, as tables to draw from.

  Attributes:
    completions: float32 `[K, L, B, C, U + 1]`, log of the number of ways to
      finish a vector inside a window after layers l - 1 and l took choices b
      and c and u units in all are spent; -inf where there is none. Limits are
      not counted.
    units: int32 `[K, L, A, C, C]`, cost of layer l in a window's units, by the
      choices of layers l - 2, l - 1 and l.
    limit_units: int32 `[M, L, A, C, C]`, the same of each limited cost; each
      limit is 2^22 units.
    witness: int32 `[K, M, L, B, C, U + 1]`, units of each limited cost that the
      rest of the witness has.
  """

  completions: chex.Array
  units: chex.Array
  limit_units: chex.Array
  witness: chex.Array

  @property
  def windows(self) -> int:
    """K."""
    return self.completions.shape[0]

  def start(self) -> "Prefix":
    """The empty beginning."""
    zero = jnp.zeros((), jnp.int32)
    used = jnp.zeros(self.limit_units.shape[0], jnp.int32)
    return Prefix(zero, zero, zero, zero, used)

  def marginal(self, window: chex.Numeric, prefix: "Prefix") -> chex.Array:
    """Cost of each choice of the next layer, `[C]`, in the window's units."""
    before = jnp.minimum(prefix.before, self.units.shape[2] - 1)
    return self.units[window, prefix.layer, before, prefix.previous]

  def log_counts(self, window: chex.Numeric, prefix: "Prefix") -> chex.Array:
    """Log number of completions of each choice of the next layer, `[C]`.

    -inf where there is none, or none known that meets all limits.
    """
    layer, spent = prefix.layer, prefix.spent + self.marginal(window, prefix)
    previous = jnp.minimum(prefix.previous, self.completions.shape[2] - 1)
    last = self.completions.shape[-1] - 1
    choice, total = jnp.arange(len(spent)), jnp.minimum(spent, last)
    counts = self.completions[window, layer, previous, choice, total]
    possible = spent <= last
    if self.limit_units.shape[0]:
      used = prefix.used[:, None] + self._limited(prefix)
      rest = self.witness[window, :, layer, previous, choice, total]
      possible &= (used + rest.T <= _LIMIT_UNITS).all(0)
    return jnp.where(possible, counts, -jnp.inf)

  def extend(
    self, window: chex.Numeric, prefix: "Prefix", choice: chex.Numeric
  ) -> "Prefix":
    """The beginning with one more choice."""
    return Prefix(
      layer=prefix.layer + 1,
      before=prefix.previous,
      previous=jnp.asarray(choice, jnp.int32),
      spent=prefix.spent + self.marginal(window, prefix)[choice],
      used=prefix.used + self._limited(prefix)[:, choice],
    )

  def _limited(self, prefix):
    """`[M, C]` units of the limited costs of each choice."""
    before = jnp.minimum(prefix.before, self.limit_units.shape[2] - 1)
    return self.limit_units[:, prefix.layer, before, prefix.previous]

  def sample(self, key: chex.PRNGKey, window: chex.Numeric = 0) -> chex.Array:
    """Draws one vector: choice indices int32 `[L]`.

    Uniformly from the window; limits exclude what they must, and what is left
    is drawn by the counts without them.
    """

    def step(prefix, layer_key):
      counts = self.log_counts(window, prefix)
      choice = jax.random.categorical(layer_key, counts)
      return self.extend(window, prefix, choice), choice

    keys = jax.random.split(key, self.units.shape[1])
    return jax.lax.scan(step, self.start(), keys)[1]

  def contains(self, window: chex.Numeric, choices: chex.Array) -> chex.Array:
    """Whether vectors `[..., L]` lie in a window and meet all limits."""
    spent = vector_cost(self.units[window], choices)
    last = self.completions.shape[-1] - 1
    previous = jnp.minimum(choices[..., -2], self.completions.shape[2] - 1)
    own, total = choices[..., -1], jnp.clip(spent, 0, last)
    counts = self.completions[window, -1, previous, own, total]
    inside = jnp.isfinite(counts) & (spent <= last)
    for limited in self.limit_units:
      used = vector_cost(limited, choices)
      inside &= used <= _LIMIT_UNITS
    return inside


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
  """The beginning of a width vector.

  Attributes:
    layer: of the next choice.
    before: choice of the last layer but one.
    previous: choice of the last layer.
    spent: cost so far in the window's units.
    used: int32 `[M]`, of each limited cost in units of its limit.
  """

  layer: chex.Array
  before: chex.Array
  previous: chex.Array
  spent: chex.Array
  used: chex.Array


@dataclasses.dataclass(frozen=True)
class Limit:
  """An upper limit on a further cost.

  Attributes:
    costs: `[L, A, C, C]`, from `cost.tables`.
    most: the limit, in the same unit.
    slowest: the cost of a vector is its greatest entry, not their sum.
    name: for errors.
  """

  costs: np.ndarray
  most: float
  slowest: bool = False
  name: str = "limit"


def vector_cost(costs: chex.Array, choices: chex.Array) -> chex.Array:
  """Cost of vectors of choice indices `[..., L]`: `[...]`.

  Args:
    costs: `[L, A, C, C]`, NumPy or JAX.
    choices: int, of the same kind.
  """
  layer, before, previous = _chain(choices, costs.shape[1])
  return costs[layer, before, previous, choices].sum(-1)


def slowest_entry(costs: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """The greatest entry of each vector of `[..., L]`, see `Limit.slowest`."""
  layer, before, previous = _chain(choices, costs.shape[1])
  return costs[layer, before, previous, choices].max(-1)


def _chain(choices, skipping):
  """Indices of the entries of vectors `[..., L]` but for their own choice."""
  module = jnp if isinstance(choices, jax.Array) else np
  start = module.zeros_like(choices[..., :1])
  previous = module.concatenate([start, choices[..., :-1]], -1)
  before = module.concatenate([start, previous[..., :-1]], -1)
  before = module.minimum(before, skipping - 1)
  return np.arange(choices.shape[-1]), before, previous


def cost_range(
  space: widths_lib.WidthSpace, costs: np.ndarray
) -> tuple[float, float]:
  """Returns the cheapest and the dearest vector's cost.

  Args:
    space: of the vectors.
    costs: `[L, A, C, C]`, from `cost.tables`.
  """
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


def feasible_set(
  space: widths_lib.WidthSpace,
  costs: np.ndarray,
  windows: Sequence[tuple[float, float]],
  limits: Sequence[Limit] = (),
  name: str = "budget",
) -> FeasibleSet:
  """Tabulates all vectors with low <= cost <= high by dynamic programming.

  Integer costs are counted in units of their greatest common divisor, exactly,
  where `high` is at most 2^14 of them (2^12 with products that skip a layer).
  Else every layer's cost is rounded up to units of high / 2^14: no vector costs
  more than `high`, some may cost less than `low` by up to L units. Limited
  costs are rounded up to units of limit / 2^22.

  Args:
    space: of the vectors.
    costs: `[L, A, C, C]`, from `cost.tables`; of sums.
    windows: (low, high) of each.
    limits: further ones, see `Limit`; the same for all windows.
    name: of the budget, for the error.

  Raises:
    InputError: no vector lies in a window and meets the limits; says the
      space's range.
  """
  axis = max(costs.shape[1], *(limit.costs.shape[1] for limit in limits), 1)
  costs = _spread(costs, axis)
  allowed = np.ones(costs.shape, bool)
  sums = []
  for limit in limits:
    if limit.slowest:
      allowed &= _spread(limit.costs, axis) <= limit.most
    else:
      share = _spread(limit.costs, axis) / limit.most * _LIMIT_UNITS
      sums.append(np.minimum(np.ceil(share - 1e-6), _TOO_MANY))
  limited = np.array(sums, np.int64).reshape(-1, *costs.shape)
  parts = []
  for low, high in windows:
    unit = cost_unit(costs, high)
    spent = np.arange(int(high / unit * (1 + 1e-12)) + 1)
    beyond = len(spent)
    units = np.where(allowed, _in_units(costs, unit), beyond)
    units = np.minimum(units, beyond)
    ends = spent * unit >= low * (1 - 1e-12)
    counts, witness = _completions(space, units, ends, limited)
    if not _reachable(counts, units, witness, limited):
      raise errors.InputError(
        _nothing_inside(space, costs, (low, high), unit, limits, name)
      )
    parts.append((counts, units, witness))
  return _stack(parts, limited)


def _spread(costs, axis):
  """`[L, A, C, C]` with a given A."""
  shape = (len(costs), axis, *costs.shape[2:])
  return np.broadcast_to(costs, shape)


def cost_unit(costs: np.ndarray, high: float) -> float:
  """The unit that `feasible_set` counts a budget `high` in; see there."""
  most = _MAX_UNITS if costs.shape[1] == 1 else _MAX_UNITS_SKIPPING
  if np.issubdtype(costs.dtype, np.integer):
    return max(int(np.gcd.reduce(costs, axis=None)), -(-int(high) // most))
  return high / most


def _in_units(costs, unit):
  if np.issubdtype(costs.dtype, np.integer):
    return -(-costs // unit)
  # What rounding errors put above a whole number of units does not count.
  return np.ceil(costs / unit - 1e-9).astype(np.int64)


def cost_bands(
  space: widths_lib.WidthSpace,
  costs: np.ndarray,
  bands: int,
  resolution: int = 512,
) -> FeasibleSet:
  """Cuts the space into bands of equal cost range, to draw cost-uniformly.

  Args:
    space: of the vectors.
    costs: `[L, A, C, C]`, from `cost.tables`.
    bands: number of bands between the cheapest and the dearest vector.
    resolution: about the number of units of the dearest vector's cost.

  Returns:
    The non-empty bands, as windows.
  """
  dearest = cost_range(space, costs)[1]
  units = np.rint(costs / (dearest / resolution)).astype(np.int64)
  if np.issubdtype(costs.dtype, np.integer):
    units = np.rint(costs / max(1, dearest // resolution)).astype(np.int64)
  first, last = cost_range(space, units)
  spent = np.arange(last + 1)
  band = (spent - first) * bands // (last + 1 - first)
  none = np.zeros((0, *costs.shape), np.int64)
  parts = []
  for index in range(bands):
    counts, witness = _completions(space, units, band == index, none)
    if _reachable(counts, units, witness, none):
      parts.append((counts, units, witness))
  return _stack(parts, none)


def _completions(space, units, ends, limited):
  """Counts and witnesses of one window.

  Args:
    space: of the vectors.
    units: int64 `[L, A, C, C]`.
    ends: bool `[U + 1]`, total costs inside.
    limited: int64 `[M, L, A, C, C]`.

  Returns:
    float64 `[L, B, C, U + 1]` number of completions, and int64 `[M, L, B, C,
    U + 1]` the rest of the witness.
  """
  size, choices, last = units.shape[1], units.shape[-1], len(ends) - 1
  num, valid = len(limited), space.valid
  counts = np.zeros((len(units), size, choices, last + 1))
  witness = np.full((num, *counts.shape), _TOO_MANY)
  counts[-1] = np.where(valid[-1][:, None], ends, False)
  witness[:, -1] = np.where(counts[-1] > 0, 0, _TOO_MANY)
  for layer in range(len(units) - 1, 0, -1):
    for before in range(size):
      for i in np.flatnonzero(valid[layer - 1]):
        # After (before, i), layer takes j: state (i, j).
        state = min(i, size - 1)
        for j in np.flatnonzero(valid[layer]):
          shift = units[layer, before, i, j]
          if shift > last:
            continue
          room = slice(0, last + 1 - shift)
          reach = counts[layer, state, j, shift:]
          counts[layer - 1, before, i, room] += reach
          if num:
            _take_witness(
              witness[:, layer - 1, before, i, room],
              witness[:, layer, state, j, shift:]
              + limited[:, layer, before, i, j, None],
            )
  return counts, witness


def _take_witness(kept, offered):
  """Keeps, in place, the completion of the least sum of limited costs."""
  better = offered.sum(0) < kept.sum(0)
  kept[:, better] = np.minimum(offered[:, better], _TOO_MANY)


def _reachable(counts, units, witness, limited):
  """Whether any vector is left."""
  first = units[0, 0, 0]
  for choice, spent in enumerate(first):
    if spent >= counts.shape[-1] or not counts[0, 0, choice, spent]:
      continue
    rest = witness[:, 0, 0, choice, spent] + limited[:, 0, 0, 0, choice]
    if (rest <= _LIMIT_UNITS).all():
      return True
  return False


def _nothing_inside(space, costs, window, unit, limits, name):
  cheapest, dearest = cost_range(space, costs)
  message = (
    f"{name}: got a window of {window[0]:g} to {window[1]:g} that holds no "
    f"width vector, counted in units of {unit:g}; the space's vectors cost "
    f"{cheapest:g} to {dearest:g}"
  )
  if limits:
    found = ", ".join(f"{limit.name} {limit.most:g}" for limit in limits)
    message += f"; limits: {found}"
  return message


def _stack(parts, limited):
  """Windows of one space, which may differ in their number of units."""
  last = max(counts.shape[-1] for counts, _, _ in parts)

  def padded(x, value):
    missing = [(0, 0)] * (x.ndim - 1) + [(0, last - x.shape[-1])]
    return np.pad(x, missing, constant_values=value)

  with np.errstate(divide="ignore"):
    completions = [np.log(padded(counts, 0)) for counts, _, _ in parts]
  return FeasibleSet(
    completions=jnp.asarray(np.stack(completions), jnp.float32),
    units=jnp.asarray(np.stack([units for _, units, _ in parts]), jnp.int32),
    limit_units=jnp.asarray(limited, jnp.int32),
    witness=jnp.asarray(
      np.stack([padded(witness, _TOO_MANY) for *_, witness in parts]), jnp.int32
    ),
  )
