"""Chips: program weights, or a whole net, into defective crossbars.

A weight is an integer q in [-L, L] on a differential pair of cells, each with
L + 1 levels from g_off to g_on: G+ is at level max(q, 0), G- at max(-q, 0). Of
1 bit: L = 1 and +1 -> (g_on, g_off), -1 -> (g_off, g_on); of 8 bits: L = 127.
Cells are ohmic and read-out is ideal here, so one effective weight
L (G+ - G-) / (g_on - g_off) a pair represents the chip exactly.

Axes: T tiles of all layers, R rows and C columns of a tile.
"""

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax import quantization
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import tiles


def conductances(
  key: chex.PRNGKey,
  weights: chex.Array,
  device: devices.Device,
  bits: int = 1,
) -> tuple[chex.Array, chex.Array]:
  """Programs one layer into the tiles of one chip.

  Args:
    key: of one layer of one chip; consumed.
    weights: latent kernel `[kh, kw, C_in, C_out]` or `[C_in, C_out]`.
    device: see `Device`.
    bits: 1: the weights' signs count (both cells of an exact 0 are off, as
      those of padding); 2 to 8: their integers, as of
      `quantization` with the kernel's own maximum.

  Returns:
    (g_pos, g_neg), each `[row_tiles, col_tiles, R, C]` [S]. Cells beyond the
    matrix are programmed to g_off in both arrays.

  Raises:
    InputError: other bits.
  """
  cut = _cut(weights, device, bits)
  _, g = _program_tiles([key], [cut], device, bits)
  g = g.reshape(*cut.shape[:2], *g.shape[1:])
  return g[:, :, 0], g[:, :, 1]


def effective_weights(
  key: chex.PRNGKey,
  weights: chex.Array,
  device: devices.Device,
  bits: int = 1,
) -> chex.Array:
  """Returns the weights that one chip multiplies by; ideal: the exact integers.

  Args, as `conductances`; the result has the shape of `weights`.
  """
  (effective,) = _effective_weights([key], [weights], device, bits)
  return effective


def program(
  key: chex.PRNGKey, variables: dict, device: devices.Device, bits: int = 1
) -> dict:
  """Programs every kernel of a net into one chip.

  Args:
    key: of one chip; consumed.
    variables: of a network: `params` with its `kernel`s.
    device: see `Device`.
    bits: of the network's weights, see `conductances`.

  Returns:
    `variables` with a collection `crossbar` that holds each layer's effective
    weights under the layer's path; `params` (hence scales and biases, which are
    digital) are unchanged.

  Raises:
    InputError: other bits: a float net can't be programmed.
  """
  flat = traverse_util.flatten_dict(variables["params"])
  paths = sorted(path for path in flat if path[-1] == "kernel")
  kernels = [flat[path] for path in paths]
  keys = [jax.random.fold_in(key, layer) for layer in range(len(paths))]
  effective = _effective_weights(keys, kernels, device, bits)
  weights = {
    (*path[:-1], "weight"): weight
    for path, weight in zip(paths, effective, strict=True)
  }
  return {**variables, "crossbar": traverse_util.unflatten_dict(weights)}


def _cut(kernel, device, bits):
  """Integers `[row_tiles, col_tiles, R, C]`; 0 where there is no weight."""
  if bits not in range(1, 9):
    raise errors.InputError(
      f"bits of a crossbar's weights: got {bits}, allowed are 1 to 8"
    )
  if bits == 1:
    integers = jnp.sign(kernel)
  else:
    step = quantization.scale(jnp.abs(kernel).max(), bits)
    integers = quantization.quantize(kernel, step, bits)
  return tiles.split(tiles.kernel_to_matrix(integers), device.tile_shape)


def _program_tiles(keys, cuts, device, bits):
  """Returns (targets, conductances) of all layers' cells, `[T, 2, R, C]`.

  All layers' tiles are drawn in one call: a draw a layer multiplies the compile
  time of a deep net.
  """
  tile_keys = [
    defects.tile_keys(key, cut.shape[:2])
    for key, cut in zip(keys, cuts, strict=True)
  ]
  integers = _stack(cuts)
  levels = jnp.maximum(jnp.stack([integers, -integers], axis=1), 0)
  targets = defects.target_conductances(
    levels, quantization.largest(bits), device
  )
  g = defects.cell_conductances(jnp.concatenate(tile_keys), targets, device)
  return targets, g


def _effective_weights(keys, kernels, device, bits):
  """Returns the effective weights of each layer, of the kernels' shapes."""
  cuts = [_cut(kernel, device, bits) for kernel in kernels]
  targets, g = _program_tiles(keys, cuts, device, bits)
  weights = (g[:, 0] - g[:, 1]) / (device.g_on - device.g_off)
  weights = weights * quantization.largest(bits)
  # Pairs on target are their integers, which the division would round.
  weights = jnp.where((g == targets).all(1), _stack(cuts), weights)
  ends = np.cumsum([cut.shape[0] * cut.shape[1] for cut in cuts])[:-1]
  return [
    _join(layer.reshape(cut.shape), kernel)
    for layer, cut, kernel in zip(
      jnp.split(weights, ends), cuts, kernels, strict=True
    )
  ]


def _stack(cuts):
  """All layers' tiles, `[T, R, C]`."""
  return jnp.concatenate([cut.reshape(-1, *cut.shape[2:]) for cut in cuts])


def _join(cut, kernel):
  """`[row_tiles, col_tiles, R, C]` -> the shape and type of `kernel`."""
  columns = kernel.shape[-1]
  matrix = tiles.join(cut, (kernel.size // columns, columns))
  return tiles.matrix_to_kernel(matrix, kernel.shape).astype(kernel.dtype)
