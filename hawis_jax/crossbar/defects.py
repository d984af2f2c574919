"""Defects of cells: one tile's random draws, and what they do to conductances.

Draws are a function of (layer's key, tile row, tile column) alone, each
effect on a stream of its own. So nets of different widths on one chip share the
defects of the cells they share, and nothing depends on batching or devices.

Axes: T tiles, 2 = (positive, negative) array of the differential pair, R rows
and C columns of a tile.
"""

import chex
import jax
import jax.numpy as jnp

from hawis_jax.crossbar import devices

# Key stream of each effect: never renumber, chips would change.
_FAULT, _VARIATION = 0, 1


def tile_keys(layer_key: chex.PRNGKey, grid: tuple[int, int]) -> chex.Array:
  """Returns one key a tile, `[row_tiles * col_tiles]`, row-major.

  Args:
    layer_key: of one layer of one chip; consumed.
    grid: (row tiles, column tiles). A tile's key does not depend on it.
  """
  rows, columns = jnp.indices(grid).reshape(2, -1)
  by_row = jax.vmap(jax.random.fold_in, (None, 0))(layer_key, rows)
  return jax.vmap(jax.random.fold_in)(by_row, columns)


def target_conductances(
  levels: chex.Array, top: int, device: devices.Device
) -> chex.Array:
  """Returns what cells are programmed to: evenly spaced from g_off to g_on.

  Args:
    levels: 0 (exactly g_off) to `top` (exactly g_on), any shape.
    top: the highest level.
    device: parameters; may be traced.

  Returns:
    Conductances [S].
  """
  step = (device.g_on - device.g_off) / top
  # Sum first: were it a product plus g_off, compilers might fuse the two and
  # round differently from one program to the next.
  between = (levels + device.g_off / step) * step
  g = jnp.where(levels == top, device.g_on, between)
  return jnp.where(levels == 0, device.g_off, g)


def cell_conductances(
  keys: chex.Array, targets: chex.Array, device: devices.Device
) -> chex.Array:
  """Draws the cells of some tiles and returns their conductances.

  Order: programmed target, lognormal variation of healthy cells, then faults: a
  stuck cell sits at exactly g_on or g_off.

  Args:
    keys: `[T]`, from `tile_keys`.
    targets: `[T, 2, R, C]` [S], from `target_conductances`.
    device: parameters; may be traced.

  Returns:
    Conductances `[T, 2, R, C]` [S].
  """

  def draw(key):
    shape = targets.shape[1:]
    fault = jax.random.uniform(jax.random.fold_in(key, _FAULT), shape)
    theta = jax.random.normal(jax.random.fold_in(key, _VARIATION), shape)
    return fault, theta

  fault, theta = jax.vmap(draw)(keys)
  g = targets * jnp.exp(-device.variation * theta)
  g = jnp.where(fault < device.stuck_on, device.g_on, g)
  return jnp.where(fault >= 1 - device.stuck_off, device.g_off, g)
