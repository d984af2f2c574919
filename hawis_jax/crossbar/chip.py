"""Chips: program weights, or a whole net, into defective crossbars.

A weight is a differential pair of cells: +1 -> (G+, G-) = (g_on, g_off), -1 ->
(g_off, g_on). Cells are ohmic and read-out is ideal here, so one effective
weight (G+ - G-) / (g_on - g_off) a pair represents the chip exactly.

Axes: R rows and C columns of a tile.
"""

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.crossbar import defects
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import tiles


def conductances(
  key: chex.PRNGKey, weights: chex.Array, device: devices.Device
) -> tuple[chex.Array, chex.Array]:
  """Programs one layer into the tiles of one chip.

  Args:
    key: of one layer of one chip; consumed.
    weights: kernel `[kh, kw, C_in, C_out]` or `[C_in, C_out]`; its signs count,
      0 as +1.
    device: see `Device`.

  Returns:
    (g_pos, g_neg), each `[row_tiles, col_tiles, R, C]` [S]. Cells beyond the
    matrix are programmed to g_off in both arrays.
  """
  (g,) = _program_layers([key], [weights], device)
  return g[:, :, 0], g[:, :, 1]


def effective_weights(
  key: chex.PRNGKey, weights: chex.Array, device: devices.Device
) -> chex.Array:
  """Returns the weights that one chip multiplies by; ideal: exactly -1, +1.

  Args, as `conductances`; the result has the shape of `weights`.
  """
  (g,) = _program_layers([key], [weights], device)
  return _fold(g, weights, device)


def program(key: chex.PRNGKey, variables: dict, device: devices.Device) -> dict:
  """Programs every kernel of a net into one chip.

  Args:
    key: of one chip; consumed.
    variables: of a network of `resnet`: `params` with its `kernel`s.
    device: see `Device`.

  Returns:
    `variables` with a collection `crossbar` that holds each layer's effective
    weights under the layer's path; `params` (hence alpha) are unchanged.
  """
  flat = traverse_util.flatten_dict(variables["params"])
  paths = sorted(path for path in flat if path[-1] == "kernel")
  kernels = [flat[path] for path in paths]
  keys = [jax.random.fold_in(key, layer) for layer in range(len(paths))]
  layers = _program_layers(keys, kernels, device)
  weights = {
    (*path[:-1], "weight"): _fold(g, kernel, device)
    for path, kernel, g in zip(paths, kernels, layers, strict=True)
  }
  return {**variables, "crossbar": traverse_util.unflatten_dict(weights)}


def _program_layers(keys, kernels, device):
  """Returns each kernel's conductances `[row_tiles, col_tiles, 2, R, C]`.

  All layers' tiles are drawn in one call: a draw a layer multiplies the compile
  time of a deep net.
  """
  tile_keys, programmed, grids = [], [], []
  for key, kernel in zip(keys, kernels, strict=True):
    signs = tiles.kernel_to_matrix(jnp.where(kernel >= 0, 1, -1))
    cut = tiles.split(signs, device.tile_shape)  # 0 where there is no weight
    grids.append(cut.shape[:2])
    cut = cut.reshape(-1, *device.tile_shape)
    programmed.append(jnp.stack([cut > 0, cut < 0], axis=1))
    tile_keys.append(defects.tile_keys(key, grids[-1]))
  g = defects.cell_conductances(
    jnp.concatenate(tile_keys), jnp.concatenate(programmed), device
  )
  ends = np.cumsum([rows * columns for rows, columns in grids])[:-1]
  layers = jnp.split(g, ends)
  return [
    layer.reshape(*grid, *layer.shape[1:])
    for layer, grid in zip(layers, grids, strict=True)
  ]


def _fold(g, kernel, device):
  """Conductances `[row_tiles, col_tiles, 2, R, C]` -> effective kernel."""
  difference = (g[:, :, 0] - g[:, :, 1]) / (device.g_on - device.g_off)
  columns = kernel.shape[-1]
  matrix = tiles.join(difference, (kernel.size // columns, columns))
  return tiles.matrix_to_kernel(matrix, kernel.shape).astype(kernel.dtype)
