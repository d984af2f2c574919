"""Hardware cost of a width vector: crossbar arrays and binary MACs.

Cost is a chain: a layer's cost depends on its own width and its input's, so
`pair_costs` tabulates it completely and dynamic programming can budget it.

Axes: L layers (3x3 convolutions, stem first), C choices of a layer.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import numpy as np

KINDS = ("arrays", "macs")


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What a network's cost needs beside its widths.

  Attributes:
    planes: input channels of the stem (thermometer planes).
    taps: kernel taps of each layer, `[L]`.
    positions: output positions of each layer for one image, `[L]`.
    outputs: outputs of the linear head.
    tile_shape: cells of one array (rows, columns).
  """

  planes: int
  taps: tuple[int, ...]
  positions: tuple[int, ...]
  outputs: int
  tile_shape: tuple[int, int]


class Cost(NamedTuple):
  """Cost of one image's inference.

  Attributes:
    arrays: differential pairs of crossbar arrays.
    macs: binary multiply-accumulates.
    weights: binary weights.
  """

  arrays: chex.Numeric
  macs: chex.Numeric
  weights: chex.Numeric


def cifar_geometry(
  depth: int,
  image_shape: tuple[int, int, int],
  levels: int,
  num_classes: int,
  tile_shape: tuple[int, int],
) -> Geometry:
  """Geometry of `resnet.cifar_resnet`.

  Args:
    depth: 6 n + 2.
    image_shape: (height, width, channels).
    levels: thermometer levels.
    num_classes: outputs of the head.
    tile_shape: cells of one array.
  """
  height, width, channels = image_shape
  positions = [height * width]
  for stage in range(3):
    if stage:
      height, width = -(-height // 2), -(-width // 2)
    positions += [height * width] * ((depth - 2) // 3)
  return Geometry(
    planes=channels * levels,
    taps=(9,) * (depth - 1),
    positions=tuple(positions),
    outputs=num_classes,
    tile_shape=tile_shape,
  )


def layer_cost(
  in_width: chex.Numeric,
  out_width: chex.Numeric,
  taps: int,
  positions: int,
  tile_shape: tuple[int, int],
) -> Cost:
  """Cost of one layer; integer NumPy widths give exact integers.

  Arrays: ceil(C_in k^2 / R) ceil(C_out / C) differential pairs.
  """
  rows = in_width * taps
  weights = rows * out_width
  arrays = -(-rows // tile_shape[0]) * -(-out_width // tile_shape[1])
  return Cost(arrays, weights * positions, weights)


def network_cost(widths: chex.Array, geometry: Geometry) -> Cost:
  """Cost of a whole network, head included.

  Args:
    widths: int `[..., L]`, leading axes allowed. NumPy int64 gives exact
      integers; JAX arrays give float32 MACs, which int32 could not hold.
    geometry: of the network.

  Returns:
    `Cost` of arrays `[...]`.
  """
  total = Cost(0, 0, 0)
  num_layers = len(geometry.taps)
  number = float if isinstance(widths, jax.Array) else int
  for layer in range(num_layers + 1):
    in_width = widths[..., layer - 1] if layer else geometry.planes
    if layer == num_layers:
      part = layer_cost(
        in_width, geometry.outputs, 1, number(1), geometry.tile_shape
      )
    else:
      part = layer_cost(
        in_width,
        widths[..., layer],
        geometry.taps[layer],
        number(geometry.positions[layer]),
        geometry.tile_shape,
      )
    total = Cost(*(a + b for a, b in zip(total, part, strict=True)))
  return total


def pair_costs(
  choices: np.ndarray, geometry: Geometry, kind: str
) -> np.ndarray:
  """Tabulates one kind of cost for every pair of adjacent choices.

  Args:
    choices: int64 `[L, C]` widths.
    geometry: of the network.
    kind: "arrays" or "macs".

  Returns:
    int64 `[L, C_in, C_out]`: cost of layer l when layer l - 1 takes choice
    C_in (irrelevant for l = 0) and layer l choice C_out. The last layer's
    entry includes the head. A vector's cost is the sum of its L entries.
  """
  choices = choices.astype(np.int64)
  table = np.zeros((*choices.shape, choices.shape[1]), np.int64)
  for layer, taps in enumerate(geometry.taps):
    if layer:
      in_width = choices[layer - 1][:, None]
    else:
      in_width = np.full((choices.shape[1], 1), geometry.planes)
    part = layer_cost(
      in_width,
      choices[layer][None, :],
      taps,
      geometry.positions[layer],
      geometry.tile_shape,
    )
    table[layer] = getattr(part, kind)
  head = layer_cost(choices[-1], geometry.outputs, 1, 1, geometry.tile_shape)
  table[-1] += getattr(head, kind)[None, :]
  return table
