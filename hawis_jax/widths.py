"""Width vectors: the space of choices, budgets, feasible sampling, presets.

Axes: L layers (3x3 convolutions, stem first), C choices of a layer, U units of
cost.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors

# Published width vectors (HAWIS, ASP-DAC 2022), and its baselines: "1x", and
# "4x", the uniformly scaled net that costs about what HAWIS-A does.
PRESETS = {
  "resnet20_1x": (16,) * 7 + (32,) * 6 + (64,) * 6,
  "resnet20_4x": (64,) * 7 + (128,) * 6 + (256,) * 6,
  "resnet20_hawis_a": (64,)
  + (80,) * 6
  + (112,) * 6
  + (216, 216, 216, 216, 208, 216),
  "resnet20_hawis_b": (84, 84, 84, 84, 84, 80, 84)
  + (168, 168, 192, 224, 188, 224)
  + (284, 284, 256, 248, 224, 224),
  "resnet32_1x": (16,) * 11 + (32,) * 10 + (64,) * 10,
  "resnet18_1x": (64,) * 5 + (128,) * 4 + (256,) * 4 + (512,) * 4,
  "resnet18_hawis_a": (256,) * 5 + (448,) * 4 + (896,) * 4 + (1344,) * 4,
  "resnet18_hawis_b": (256, 256, 256, 320, 320)
  + (504, 504, 560, 504)
  + (1064, 1152, 1064, 1152)
  + (1792, 1788, 1788, 1780),
}

# Finest resolution at which a budget is counted.
_MAX_UNITS = 2**14


@dataclasses.dataclass(frozen=True)
class WidthSpace:
  """The width choices of every layer.

  Attributes:
    choices: `[L]` tuples of ascending widths [channels].
  """

  choices: tuple[tuple[int, ...], ...]

  @property
  def max_widths(self) -> tuple[int, ...]:
    """The widest vector, `[L]`."""
    return tuple(layer[-1] for layer in self.choices)

  @property
  def min_widths(self) -> tuple[int, ...]:
    """The narrowest vector, `[L]`."""
    return tuple(layer[0] for layer in self.choices)

  @property
  def table(self) -> np.ndarray:
    """int64 `[L, C]` widths; short rows repeat their last choice."""
    size = max(len(layer) for layer in self.choices)
    rows = [layer + layer[-1:] * (size - len(layer)) for layer in self.choices]
    return np.array(rows, np.int64)

  @property
  def valid(self) -> np.ndarray:
    """Bool `[L, C]`, False on the padding of `table`."""
    sizes = np.array([len(layer) for layer in self.choices])
    return np.arange(sizes.max()) < sizes[:, None]

  def check(self, widths: tuple[int, ...], name: str = "widths") -> np.ndarray:
    """Returns the vector as int64 `[L]`.

    Raises:
      InputError: wrong length, or a width that is not a choice of its layer.
    """
    if len(widths) != len(self.choices):
      raise errors.InputError(
        f"{name}: got {len(widths)} widths, needed are {len(self.choices)}"
      )
    for layer, width in enumerate(widths):
      if width not in self.choices[layer]:
        raise errors.InputError(
          f"{name}[{layer}]: got {width}, allowed are {self.choices[layer]}"
        )
    return np.array(widths, np.int64)

  def floor(self, widths: np.ndarray) -> tuple[int, ...]:
    """Snaps every width to its layer's largest choice below it (or least)."""
    return tuple(
      max((c for c in layer if c <= width), default=layer[0])
      for layer, width in zip(self.choices, widths, strict=True)
    )


def width_space(
  choices: tuple[tuple[int, ...], ...],
  num_layers: int,
  stages: int = 3,
  name: str = "choices",
) -> WidthSpace:
  """Returns the space from choices a stage (stem with the first) or a layer.

  Raises:
    InputError: wrong number of tuples, or one that does not ascend from 1.
  """
  if not all(isinstance(layer, tuple | list) for layer in choices):
    raise errors.InputError(
      f"{name}: got {choices}, needed are tuples of widths"
    )
  choices = tuple(tuple(layer) for layer in choices)
  if len(choices) == stages and num_layers != stages:
    choices = spread(choices, num_layers)
  if len(choices) != num_layers:
    raise errors.InputError(
      f"{name}: got {len(choices)} tuples, needed are {stages} (one a stage) "
      f"or {num_layers} (one a layer)"
    )
  for index, layer in enumerate(choices):
    integers = all(type(width) is int and width > 0 for width in layer)
    if not layer or not integers or list(layer) != sorted(set(layer)):
      raise errors.InputError(
        f"{name}, layer {index}: got {layer}, needed are ascending positive "
        "integers"
      )
  return WidthSpace(choices)


def spread(per_stage: tuple, num_layers: int) -> tuple:
  """One item a stage -> one a layer `[L]`; the stem has the first stage's."""
  size = (num_layers - 1) // len(per_stage)
  return (per_stage[0], *(item for item in per_stage for _ in range(size)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeasibleSet:
  """All width vectors whose cost lies in a window, as a table to draw from.

  Attributes:
    completions: float32 `[L, C, U + 1]`, log of the number of ways to finish a
      vector inside the window after layer l took choice c and u units in all
      are spent; -inf where there is none.
    units: int32 `[L, C, C]`, cost in units of each pair of choices.
  """

  completions: chex.Array
  units: chex.Array

  def log_counts(
    self, layer: chex.Numeric, previous: chex.Numeric, spent: chex.Numeric
  ) -> chex.Array:
    """Log number of feasible completions of each choice of a layer, `[C]`.

    Args:
      layer: int index.
      previous: index of the choice of layer - 1 (ignored for layer 0).
      spent: units spent on the layers before.
    """
    total = spent + self.units[layer, previous]
    last = self.completions.shape[-1] - 1
    choice = jnp.arange(self.completions.shape[1])
    counts = self.completions[layer, choice, jnp.minimum(total, last)]
    return jnp.where(total <= last, counts, -jnp.inf)

  def sample(self, key: chex.PRNGKey) -> chex.Array:
    """Draws one vector uniformly from the set: choice indices int32 `[L]`."""

    def step(carry, inputs):
      previous, spent = carry
      layer, layer_key = inputs
      counts = self.log_counts(layer, previous, spent)
      choice = jax.random.categorical(layer_key, counts)
      spent = spent + self.units[layer, previous, choice]
      return (choice, spent), choice

    num_layers = self.units.shape[0]
    zero = jnp.zeros((), jnp.int32)
    _, choices = jax.lax.scan(
      step,
      (zero, zero),
      (jnp.arange(num_layers), jax.random.split(key, num_layers)),
    )
    return choices


def cost_range(space: WidthSpace, costs: np.ndarray) -> tuple[int, int]:
  """Returns the cheapest and the dearest vector's cost.

  Args:
    space: of the vectors.
    costs: int64 `[L, C, C]`, from `cost.pair_costs`.
  """
  bounds = []
  for best, worst in ((np.min, np.inf), (np.max, -np.inf)):
    total = np.where(space.valid[0], costs[0, 0], worst)
    for layer in range(1, len(space.choices)):
      total = best(total[:, None] + costs[layer], axis=0)
      total = np.where(space.valid[layer], total, worst)
    bounds.append(int(best(total)))
  return bounds[0], bounds[1]


def feasible_set(
  space: WidthSpace,
  costs: np.ndarray,
  low: float,
  high: float,
  name: str = "budget",
) -> FeasibleSet:
  """Tabulates all vectors with low <= cost <= high by dynamic programming.

  Costs are counted in units of their greatest common divisor, exactly, where
  `high` is at most 2^14 of them. Beyond, every layer's cost is rounded up to
  units of high / 2^14: no vector costs more than `high`, some may cost less
  than `low` by up to L units.

  Args:
    space: of the vectors.
    costs: int64 `[L, C, C]`, from `cost.pair_costs`.
    low: least cost.
    high: greatest cost.
    name: of the budget, for the error.

  Raises:
    InputError: no vector lies in the window; says the space's range.
  """
  unit = cost_unit(costs, high)
  units = -(-costs // unit)
  spent = np.arange(int(high // unit) + 1)
  counts = _count_completions(space, units, spent * unit >= low)
  table = _as_set(counts, units)
  if np.isneginf(np.asarray(table.log_counts(0, 0, 0))).all():
    cheapest, dearest = cost_range(space, costs)
    raise errors.InputError(
      f"{name}: got a window of {low:g} to {high:g} that holds no width "
      f"vector, counted in units of {unit}; the space's vectors cost "
      f"{cheapest} to {dearest}"
    )
  return table


def cost_unit(costs: np.ndarray, high: float) -> int:
  """The unit that `feasible_set` counts a budget `high` in; see there."""
  common = int(np.gcd.reduce(costs, axis=None))
  return max(common, -(-int(high) // _MAX_UNITS))


def cost_bands(
  space: WidthSpace, costs: np.ndarray, bands: int, resolution: int = 512
) -> FeasibleSet:
  """Cuts the space into bands of equal cost range, to draw cost-uniformly.

  Args:
    space: of the vectors.
    costs: int64 `[L, C, C]`, from `cost.pair_costs`.
    bands: number of bands between the cheapest and the dearest vector.
    resolution: about the number of units of the dearest vector's cost.

  Returns:
    The `FeasibleSet`s of the non-empty bands, stacked on a leading axis.
  """
  cheapest, dearest = cost_range(space, costs)
  unit = max(1, dearest // resolution)
  units = np.rint(costs / unit).astype(np.int64)
  first, last = cost_range(space, units)
  spent = np.arange(last + 1)
  band = (spent - first) * bands // (last + 1 - first)
  sets = [
    _as_set(_count_completions(space, units, band == index), units)
    for index in range(bands)
  ]
  sets = [s for s in sets if np.isfinite(s.log_counts(0, 0, 0)).any()]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *sets)


def _count_completions(space, units, ends):
  """Counts `[L, C, U + 1]`; `ends` bool `[U + 1]`: total costs inside."""
  last = len(ends) - 1
  counts = np.zeros((*space.table.shape, last + 1))
  counts[-1] = np.where(space.valid[-1][:, None], ends, False)
  for layer in range(len(space.choices) - 1, 0, -1):
    for i in np.flatnonzero(space.valid[layer - 1]):
      for j in np.flatnonzero(space.valid[layer]):
        shift = units[layer, i, j]
        if shift <= last:
          reach = counts[layer, j, shift:]
          counts[layer - 1, i, : last + 1 - shift] += reach
  return counts


def _as_set(counts, units):
  with np.errstate(divide="ignore"):
    log_counts = np.log(counts)
  return FeasibleSet(
    jnp.asarray(log_counts, jnp.float32), jnp.asarray(units, jnp.int32)
  )


def uniform_widths(
  space: WidthSpace,
  base: tuple[int, ...],
  costs: np.ndarray,
  budget: float,
  slack: float = 0.0,
) -> tuple[int, ...]:
  """Returns the widest uniformly scaled net within a budget.

  Every layer takes its largest choice up to factor x base. Where that leaves
  more than `slack` of the budget (the choices are coarse), the layers that are
  narrowest for their base are widened, one choice at a time, as far as the
  budget goes.

  Args:
    space: of the vectors.
    base: 1x widths, `[L]`.
    costs: int64 `[L, C, C]`, from `cost.pair_costs`.
    budget: greatest cost.
    slack: share of the budget that may stay unused.

  Raises:
    InputError: even the least widths cost more.
  """
  layers = zip(space.choices, base, strict=True)
  factors = sorted({c / b for layer, b in layers for c in layer})
  best = None
  for factor in factors:
    widths = space.floor(np.array(base) * factor * (1 + 1e-9))
    if vector_cost(space, costs, widths) <= budget:
      best = widths
  if best is None:
    cheapest = cost_range(space, costs)[0]
    raise errors.InputError(
      f"budget: got {budget:g}, needed is at least {cheapest}"
    )
  while vector_cost(space, costs, best) < (1 - slack) * budget:
    wider = [
      best[:layer]
      + (choices[choices.index(best[layer]) + 1],)
      + best[layer + 1 :]
      for layer, choices in sorted(
        enumerate(space.choices), key=lambda item: best[item[0]] / base[item[0]]
      )
      if best[layer] != choices[-1]
    ]
    fitting = (w for w in wider if vector_cost(space, costs, w) <= budget)
    following = next(fitting, None)
    if following is None:
      break
    best = following
  return best


def vector_cost(
  space: WidthSpace, costs: np.ndarray, widths: tuple[int, ...]
) -> int:
  """Cost of one vector by the table of `cost.pair_costs`."""
  space.check(widths)
  total, previous = 0, 0
  for layer, width in enumerate(widths):
    choice = space.choices[layer].index(width)
    total += int(costs[layer, previous, choice])
    previous = choice
  return total


def take(table: chex.Array, choices: chex.Array) -> chex.Array:
  """Widths int32 `[..., L]` of choice indices `[..., L]`; `table` `[L, C]`."""
  table = jnp.asarray(table, jnp.int32)
  return table[jnp.arange(table.shape[0]), choices]
