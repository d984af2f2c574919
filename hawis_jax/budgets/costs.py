"""Costs of vectors of choices, from tables by adjacent layers.

Axes: L layers, C choices of a layer, A of the layer before the last (1 where no
product skips a layer).
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import widths as widths_lib


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
