"""A kernel's weight matrix and its cut into crossbar tiles.

The matrix has a row per (input channel, tap), ordered (c_in, kh, kw), and a
column per output channel: a net narrowed to its first channels occupies a
prefix of the rows and columns, so its cells are the wide net's cells.
"""

import chex
import jax.numpy as jnp


def kernel_to_matrix(kernel: chex.Array) -> chex.Array:
  """Returns `[C_in * kh * kw, C_out]` of `[kh, kw, C_in, C_out]`."""
  kernel = jnp.moveaxis(kernel, -2, 0)
  return kernel.reshape(-1, kernel.shape[-1])


def matrix_to_kernel(matrix: chex.Array, shape: tuple[int, ...]) -> chex.Array:
  """Returns the kernel of `shape` that `kernel_to_matrix` made `matrix` of."""
  *taps, c_in, c_out = shape
  return jnp.moveaxis(matrix.reshape(c_in, *taps, c_out), 0, -2)


def split(matrix: chex.Array, tile_shape: tuple[int, int]) -> chex.Array:
  """Returns `[row_tiles, col_tiles, R, C]` of a matrix, zero-padded."""
  tile_rows, tile_cols = tile_shape
  pad = [(0, -n % t) for n, t in zip(matrix.shape, tile_shape, strict=True)]
  matrix = jnp.pad(matrix, pad)
  grid = matrix.reshape(matrix.shape[0] // tile_rows, tile_rows, -1, tile_cols)
  return grid.transpose(0, 2, 1, 3)


def join(tiles: chex.Array, shape: tuple[int, int]) -> chex.Array:
  """Returns the matrix of `shape` that `split` cut: cropped."""
  row_tiles, col_tiles, tile_rows, tile_cols = tiles.shape
  matrix = tiles.transpose(0, 2, 1, 3).reshape(
    row_tiles * tile_rows, col_tiles * tile_cols
  )
  return matrix[: shape[0], : shape[1]]
