"""Width vectors: the space of choices, uniform scaling, presets.

Axes: L layers (3x3 convolutions, stem first), C choices of a layer.
"""

from collections.abc import Callable
import dataclasses

import chex
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors

# Published width vectors (HAWIS, ASP-DAC 2022), and its baselines: "1x" (He et
# al., CVPR 2016), and "4x", the uniformly scaled net that costs about what
# HAWIS-A does. They are public as `hawis_jax.WIDTHS`:
#
# >>> import hawis_jax as hx
# >>> hx.WIDTHS["resnet20_hawis_a"][:8]
# (64, 80, 80, 80, 80, 80, 80, 112)
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


@dataclasses.dataclass(frozen=True)
class WidthSpace:
  """The width choices of every layer."""

  choices: tuple[tuple[int, ...], ...]  # `[L]`, ascending widths [channels]

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
    """Widths, int64 `[L, C]`; short rows repeat their last choice."""
    size = max(len(layer) for layer in self.choices)
    rows = [layer + layer[-1:] * (size - len(layer)) for layer in self.choices]
    return np.array(rows, np.int64)

  @property
  def valid(self) -> np.ndarray:
    """Where a choice is, bool `[L, C]`: False on the padding of `table`."""
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

  def choices_of(self, widths: chex.Array) -> np.ndarray:
    """Finds the choices of widths `[..., L]`: int64 indices `[..., L]`."""
    columns = np.moveaxis(np.asarray(widths), -1, 0)
    return np.stack(list(map(np.searchsorted, self.choices, columns)), -1)

  def floor(self, widths: np.ndarray) -> tuple[int, ...]:
    """Snaps every width to its layer's largest choice below it (or least)."""
    return tuple(
      max((c for c in layer if c <= width), default=layer[0])
      for layer, width in zip(self.choices, widths, strict=True)
    )


def width_space(
  choices: tuple[tuple[int, ...], ...],
  num_layers: int,
  num_groups: int = 3,
  name: str = "choices",
) -> WidthSpace:
  """Returns the space of width vectors from choices a group, or a layer.

  The stem has those of the first group. HAWIS (ASP-DAC 2022) searches such
  spaces.

  >>> import hawis_jax as hx
  >>> space = hx.width_space(((4, 8), (8, 16), (16, 32)), num_layers=7)
  >>> space.max_widths
  (8, 8, 8, 16, 16, 32, 32)

  Args:
    choices: ascending widths [channels] of every group or layer.
    num_layers: L.
    num_groups: of blocks.
    name: of `choices` in errors.

  Raises:
    InputError: wrong number of tuples, or one that does not ascend from 1.
  """
  if not all(isinstance(layer, tuple | list) for layer in choices):
    raise errors.InputError(
      f"{name}: got {choices}, needed are tuples of widths"
    )
  choices = tuple(tuple(layer) for layer in choices)
  if len(choices) == num_groups and num_layers != num_groups:
    choices = spread(choices, num_layers)
  if len(choices) != num_layers:
    raise errors.InputError(
      f"{name}: got {len(choices)} tuples, needed are {num_groups} (one a "
      f"group) or {num_layers} (one a layer)"
    )
  for index, layer in enumerate(choices):
    integers = all(type(width) is int and width > 0 for width in layer)
    if not layer or not integers or list(layer) != sorted(set(layer)):
      raise errors.InputError(
        f"{name}, layer {index}: got {layer}, needed are ascending positive "
        "integers"
      )
  return WidthSpace(choices)


def spread(per_group: tuple, num_layers: int) -> tuple:
  """Makes one item a layer `[L]` of one a group; the stem has the first's."""
  size = (num_layers - 1) // len(per_group)
  return (per_group[0], *(item for item in per_group for _ in range(size)))


def uniform_widths(
  space: WidthSpace,
  base: tuple[int, ...],
  cost: Callable[[tuple[int, ...]], float],
  budget: float,
  slack: float = 0.0,
) -> tuple[int, ...] | None:
  """Returns the widest uniformly scaled net within a budget; None: none is.

  Every layer takes its largest choice up to factor x base. Where that leaves
  more than `slack` of the budget (the choices are coarse), the layers that are
  narrowest for their base are widened, one choice at a time, as far as the
  budget goes.

  Args:
    space: of the vectors.
    base: 1x widths, `[L]`.
    cost: of a vector; infinite where it breaks a limit.
    budget: greatest cost.
    slack: share of the budget that may stay unused.
  """
  layers = zip(space.choices, base, strict=True)
  factors = sorted({c / b for layer, b in layers for c in layer})
  best = None
  for factor in factors:
    # A little more, or rounding loses the choice that gave the factor.
    widths = space.floor(np.array(base) * factor * (1 + 1e-9))
    if cost(widths) <= budget:
      best = widths
  while best is not None and cost(best) < (1 - slack) * budget:
    wider = _one_wider(space, base, best)
    following = next((w for w in wider if cost(w) <= budget), None)
    if following is None:
      break
    best = following
  return best


def _one_wider(space, base, widths):
  """Yields the vectors with one wider layer, the narrowest for its base first.

  Layers have the next choice; equally narrow ones come in their order.
  """
  for layer in np.argsort(np.divide(widths, base), kind="stable"):
    wider = [c for c in space.choices[layer] if c > widths[layer]]
    if wider:
      yield (*widths[:layer], wider[0], *widths[layer + 1 :])


def take(table: chex.Array, choices: chex.Array) -> chex.Array:
  """Takes choices `[..., L]` from `table` `[L, C]`: widths int32 `[..., L]`."""
  table = jnp.asarray(table, jnp.int32)
  return table[jnp.arange(table.shape[0]), choices]
