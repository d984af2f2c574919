"""How well arrays are used, and how many any net's kernels take.

Axes: L layers that a width vector sets, P matrix products.
"""

from typing import NamedTuple

import chex
from flax import traverse_util
import numpy as np

from hawis_jax.cost.geometry import checked_widths
from hawis_jax.cost.geometry import Geometry
from hawis_jax.cost.geometry import Layer


class Utilisation(NamedTuple):
  """Holds used shares of a product's arrays, `[..., P]`."""

  rows: np.ndarray
  columns: np.ndarray
  cells: np.ndarray


def utilisation(widths: chex.Array, geometry: Geometry) -> Utilisation:
  """Returns used shares of every product's arrays, named `geometry.names`.

  Widths are int `[..., L]`, leading axes allowed.
  """
  widths = np.asarray(checked_widths(widths, geometry), np.int64)
  tile_rows, tile_columns = geometry.hardware.weight_shape

  def channels(end):
    if isinstance(end, Layer):
      return widths[..., end.index]
    return np.full(widths.shape[:-1], end)

  def share(used, size):
    used = np.stack(used, axis=-1)
    return used / (-(-used // size) * size)

  products = geometry.products
  rows = share([channels(p.inputs) * p.taps for p in products], tile_rows)
  columns = share([channels(p.outputs) for p in products], tile_columns)
  return Utilisation(rows, columns, rows * columns)


def stored_weights(params: dict, tile_shape: tuple[int, int]) -> dict[str, int]:
  """Returns `arrays` and `weights` of any net's kernels, in pairs of cells.

  `tile_shape` are the cells of one array (rows, columns).
  """
  flat = traverse_util.flatten_dict(params)
  shapes = [leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"]
  arrays = weights = 0
  for *taps, inputs, outputs in shapes:
    rows = int(np.prod(taps)) * inputs
    arrays += -(-rows // tile_shape[0]) * -(-outputs // tile_shape[1])
    weights += rows * outputs
  return {"arrays": arrays, "weights": weights}
