"""Counts the width vectors inside ranges of cost, by dynamic programming.

Axes: K ranges, M limits, L layers, C choices of a layer, U units of cost, A
choices of the layer before the last (1 where no product skips a layer), B of
the last.
"""

from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.cost.feasible import cost_range
from hawis_jax.cost.feasible import FeasibleSet
from hawis_jax.cost.feasible import Space

# Finest resolution of a budget, and of a limit; with products that skip a
# layer, tables have one axis more and a budget is counted more coarsely.
_MAX_UNITS, _MAX_UNITS_SKIPPING = 2**14, 2**12
_LIMIT_UNITS = 2**22  # sums of 2^8 such entries fit in int32


@dataclasses.dataclass(frozen=True)
class Limit:
  """Sets an upper limit on a further cost.

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


def feasible_set(
  space: Space,
  costs: np.ndarray,
  ranges: Sequence[tuple[float, float]],
  limits: Sequence[Limit] = (),
  name: str = "budget",
  limits_name: str = "limits",
) -> FeasibleSet:
  """Tabulates all vectors with low <= cost <= high by dynamic programming.

  What is counted is cost beyond the cheapest vector's. Integer costs are
  counted in units of their greatest common divisor, exactly, where the budget
  has at most 2^14 of them (2^12 with products that skip a layer). Else every
  layer's is rounded up to 1 / 2^14 of the budget: no vector costs more than
  `high`; vectors within L units below it may be left out, and as far below
  `low` some may be in. Limited costs are counted likewise, in 2^22 units.

  `costs` are `[L, A, C, C]`, from `cost.tables`; of sums. `ranges` are (low,
  high) each, `limits` the same for all. Names are for errors.

  Raises:
    InputError: not even the narrowest net meets a limit; or no vector lies in a
      budget range and meets the limits. Says the space's range.
  """
  axis = max(costs.shape[1], *(limit.costs.shape[1] for limit in limits), 1)
  costs = _spread(costs, axis)
  allowed, limited, most = _limit_tables(limits, costs.shape, limits_name)
  free, cheapest = _beyond_cheapest(costs)
  parts = []
  for low, high in ranges:
    counted = cost_unit(costs, high)
    last = max(_floor((high - cheapest) / counted), 0)
    units = np.where(allowed, _in_units(free, counted), last + 1)
    units = np.minimum(units, last + 1)
    spent = np.arange(last + 1) * counted
    ends = spent >= (low - cheapest) - 1e-9 * counted
    if high < cheapest * (1 - 1e-12):
      ends[:] = False
    counts, witness = _completions(space, units, ends, limited, most)
    if not _reachable(counts, units, witness, limited, most):
      raise errors.InputError(
        _nothing_inside(space, costs, (low, high), counted, limits, name)
      )
    parts.append((counts, units, witness))
  return _stack(parts, limited, most)


def _spread(costs, axis):
  """Returns `[L, A, C, C]` with a given A."""
  shape = (len(costs), axis, *costs.shape[2:])
  return np.broadcast_to(costs, shape)


def _beyond_cheapest(costs):
  """Returns costs less each layer's least, and their sum: the cheapest's.

  No cost of ours falls with a width, so the least of all layers are of one
  vector. What is counted is only what vectors differ in, and the cheapest one
  exactly. With costs of one's own the sum may lie below the cheapest vector's.
  """
  least = costs.min((1, 2, 3), keepdims=True)
  return costs - least, least.sum().item()


def _limit_tables(limits, shape, name):
  """Returns (allowed entries, units `[M, L, A, C, C]`, the most `[M]`)."""
  allowed, tables, most = np.ones(shape, bool), [], []
  for limit in limits:
    costs = _spread(limit.costs, shape[1])
    free, cheapest = _beyond_cheapest(costs)
    slowest = costs.min((1, 2, 3)).max().item()
    least = slowest if limit.slowest else cheapest
    if limit.most < least * (1 - 1e-12):
      raise errors.InputError(
        f"{name}: got {limit.name} {limit.most:g}, allowed is at least "
        f"{least:g}, that of the narrowest net"
      )
    if limit.slowest:
      allowed &= costs <= limit.most
      continue
    unit = _unit(free, limit.most - cheapest, _LIMIT_UNITS)
    most.append(max(_floor((limit.most - cheapest) / unit), 0))
    tables.append(np.minimum(_in_units(free, unit), most[-1] + 1))
  tables = np.array(tables, np.int64).reshape(-1, *shape)
  return allowed, tables, np.array(most, np.int64)


def cost_unit(costs: np.ndarray, high: float) -> float:
  """Returns the unit that `feasible_set` counts a budget `high` in."""
  most = _MAX_UNITS if costs.shape[1] == 1 else _MAX_UNITS_SKIPPING
  free, cheapest = _beyond_cheapest(costs)
  return _unit(free, high - cheapest, most)


def _unit(free, span, most):
  if np.issubdtype(free.dtype, np.integer):
    common = int(np.gcd.reduce(free, axis=None))
    return max(common, -(-int(span) // most), 1)
  # With nothing to spend, whatever costs anything is beyond.
  return max(span, 1e-9 * free.max(), 1e-300) / most


def _floor(units):
  """Returns whole units, though rounding may have taken some of the last."""
  return int(units * (1 + 1e-12) + 1e-9)


def _in_units(free, unit):
  if np.issubdtype(free.dtype, np.integer):
    return -(-free // unit)
  # What rounding errors put above a whole number of units does not count.
  return np.ceil(free / unit - 1e-9).astype(np.int64)


def cost_bands(
  space: Space,
  costs: np.ndarray,
  bands: int,
  resolution: int = 512,
) -> FeasibleSet:
  """Cuts the space into bands of equal cost range, to draw cost-uniformly.

  Returns the non-empty ones, as ranges, of `bands` between the cheapest and the
  dearest vector, whose cost has about `resolution` units. `costs` are `[L, A,
  C, C]`, from `cost.tables`.
  """
  dearest = cost_range(space, costs)[1]
  unit = dearest / resolution
  if np.issubdtype(costs.dtype, np.integer):
    unit = max(1, dearest // resolution)
  units = np.rint(costs / unit).astype(np.int64)
  first, last = cost_range(space, units)
  spent = np.arange(last + 1)
  band = (spent - first) * bands // (last + 1 - first)
  none = np.zeros((0, *costs.shape), np.int64), np.zeros(0, np.int64)
  parts = []
  for index in range(bands):
    counts, witness = _completions(space, units, band == index, *none)
    if _reachable(counts, units, witness, *none):
      parts.append((counts, units, witness))
  return _stack(parts, *none)


def _completions(space, units, ends, limited, most):
  """Returns counts and witnesses of one budget range.

  They are float64 `[L, B, C, U + 1]`, the number of completions, and int64 `[M,
  L, B, C, U + 1]`, the rest of the witness, of `units`, int64 `[L, A, C, C]`,
  `ends`, bool `[U + 1]`, total costs inside, `limited`, int64 `[M, L, A, C,
  C]`, and `most`, int64 `[M]`, the limits.
  """
  size, choices, last = units.shape[1], units.shape[-1], len(ends) - 1
  num, valid = len(limited), space.valid
  counts = np.zeros((len(units), size, choices, last + 1))
  beyond = most.reshape(-1, *[1] * counts.ndim) + 1
  witness = np.broadcast_to(beyond, (num, *counts.shape)).copy()
  counts[-1] = np.where(valid[-1][:, None], ends, False)
  witness[:, -1] = np.where(counts[-1] > 0, 0, beyond[:, 0])
  # Limits count alike, whatever their units.
  weights = 1 / np.maximum(most, 1)
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
              weights,
              most,
            )
  return counts, witness


def _take_witness(kept, offered, weights, most):
  """Keeps, in place, the completion of the least sum of limited costs."""
  better = weights @ offered < weights @ kept
  np.copyto(kept, np.minimum(offered, most[:, None] + 1), where=better)


def _reachable(counts, units, witness, limited, most):
  """Returns whether any vector is left."""
  last = counts.shape[-1] - 1
  spent = np.minimum(units[0, 0, 0], last)
  choice = np.arange(len(spent))
  inside = (units[0, 0, 0] <= last) & (counts[0, 0, choice, spent] > 0)
  rest = witness[:, 0, 0, choice, spent] + limited[:, 0, 0, 0]
  return (inside & (rest <= most[:, None]).all(0)).any()


def _nothing_inside(space, costs, budget_range, unit, limits, name):
  cheapest, dearest = cost_range(space, costs)
  message = f"{name}: got a range of {budget_range[0]:g} to {budget_range[1]:g}"
  if cheapest == dearest:
    return (
      f"{message}, but all vectors of the space cost {cheapest:g}: this cost "
      "is no budget here"
    )
  message += (
    f" in which no width vector was found, counted in units of {unit:g}; the "
    f"space's vectors cost {cheapest:g} to {dearest:g}"
  )
  if limits:
    found = ", ".join(f"{limit.name} {limit.most:g}" for limit in limits)
    message += f", and limits are {found}"
  return message


def _stack(parts, limited, most):
  """Returns budget ranges as one; they may differ in their number of units."""
  last = max(counts.shape[-1] for counts, _, _ in parts)

  def padded(x, value):
    missing = [(0, 0)] * (x.ndim - 1) + [(0, last - x.shape[-1])]
    return np.pad(x, missing, constant_values=value)

  with np.errstate(divide="ignore"):
    completions = [np.log(padded(counts, 0)) for counts, _, _ in parts]
  witness = [padded(witness, _LIMIT_UNITS + 1) for *_, witness in parts]
  return FeasibleSet(
    completions=jnp.asarray(np.stack(completions), jnp.float32),
    units=jnp.asarray(np.stack([units for _, units, _ in parts]), jnp.int32),
    limit_units=jnp.asarray(limited, jnp.int32),
    limits=jnp.asarray(most, jnp.int32),
    witness=jnp.asarray(np.stack(witness), jnp.int32),
  )
