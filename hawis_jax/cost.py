"""Hardware cost of a width vector: crossbar arrays and binary MACs.

A network is a list of matrix products, and each costs what its own and its
input's width say. Where every product joins adjacent layers, cost is a chain:
`pair_costs` tabulates it completely and dynamic programming can budget it.

Axes: L layers (convolutions that a width vector sets, stem first), C choices of
a layer.
"""

import dataclasses
from typing import NamedTuple

import chex
from flax import traverse_util
import jax
import numpy as np

from hawis_jax import errors

KINDS = ("arrays", "macs")


@dataclasses.dataclass(frozen=True)
class Layer:
  """The width of a layer, by its place in the width vector."""

  index: int


@dataclasses.dataclass(frozen=True)
class Product:
  """One binary matrix product of a network.

  Attributes:
    inputs: channels read: a searched layer's, or a fixed number.
    outputs: channels made: a searched layer's, or a fixed number.
    taps: kernel taps.
    positions: output positions for one image.
  """

  inputs: Layer | int
  outputs: Layer | int
  taps: int
  positions: int


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What a network's cost needs beside its widths.

  Attributes:
    products: all matrix products, head included.
    positions: output positions of each layer for one image, `[L]`.
    tile_shape: cells of one array (rows, columns).
  """

  products: tuple[Product, ...]
  positions: tuple[int, ...]
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
  inputs = [channels * levels, *map(Layer, range(depth - 2))]
  products = [
    Product(source, Layer(layer), 9, positions[layer])
    for layer, source in enumerate(inputs)
  ]
  head = Product(Layer(depth - 2), num_classes, 1, 1)
  return Geometry((*products, head), tuple(positions), tile_shape)


def imagenet_geometry(
  stem: str,
  image_size: int,
  levels: int,
  num_classes: int,
  tile_shape: tuple[int, int],
) -> Geometry:
  """Geometry of `resnet.imagenet_resnet18`.

  Args:
    stem: "7x7" or "3x3".
    image_size: height and width of the RGB images [pixels].
    levels: thermometer levels.
    num_classes: outputs of the head.
    tile_shape: cells of one array.
  """
  planes = 3 * levels
  size = -(-image_size // 2)
  first, size_in = size**2, size
  if stem == "7x7":
    channels = planes
    products = [Product(planes, channels, 49, first)]
  else:
    channels = 2 * planes
    # The shortcut's product comes before its pooling.
    products = [
      Product(planes, channels, 9, first),
      Product(planes, channels, 1, image_size**2),
    ]
  size = -(-size // 2)
  products += [
    Product(channels, Layer(0), 9, size**2),
    Product(channels, Layer(0), 1, size_in**2),
  ]
  positions = [size**2]
  for block in range(8):
    if block in (2, 4, 6):
      size = -(-size // 2)
    before, middle, after = (Layer(2 * block + i) for i in range(3))
    products += [
      Product(before, middle, 9, size**2),
      Product(middle, after, 9, size**2),
      Product(before, after, 1, size**2),
    ]
    positions += [size**2] * 2
  products.append(Product(Layer(16), num_classes, size**2, 1))
  return Geometry(tuple(products), tuple(positions), tile_shape)


def product_cost(
  in_width: chex.Numeric,
  out_width: chex.Numeric,
  taps: int,
  positions: int,
  tile_shape: tuple[int, int],
) -> Cost:
  """Cost of one product; integer NumPy widths give exact integers.

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
  number = float if isinstance(widths, jax.Array) else int

  def channels(end):
    return widths[..., end.index] if isinstance(end, Layer) else end

  for product in geometry.products:
    part = product_cost(
      channels(product.inputs),
      channels(product.outputs),
      product.taps,
      number(product.positions),
      geometry.tile_shape,
    )
    total = Cost(*(a + b for a, b in zip(total, part, strict=True)))
  return total


def stored_weights(params: dict, tile_shape: tuple[int, int]) -> dict[str, int]:
  """`arrays` and `weights` of any net's kernels, one pair of cells a weight.

  Args:
    params: of a network, with its `kernel`s.
    tile_shape: cells of one array (rows, columns).
  """
  flat = traverse_util.flatten_dict(params)
  shapes = [leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"]
  costs = [
    product_cost(inputs, outputs, int(np.prod(taps)), 0, tile_shape)
    for *taps, inputs, outputs in shapes
  ]
  return {
    "arrays": sum(part.arrays for part in costs),
    "weights": sum(part.weights for part in costs),
  }


def is_chain(geometry: Geometry) -> bool:
  """Whether no product skips a layer, as `pair_costs` needs it."""
  return all(
    not isinstance(p.inputs, Layer)
    or not isinstance(p.outputs, Layer)
    or p.outputs.index == p.inputs.index + 1
    for p in geometry.products
  )


def pair_costs(
  choices: np.ndarray, geometry: Geometry, kind: str
) -> np.ndarray:
  """Tabulates one kind of cost for every pair of adjacent choices.

  Args:
    choices: int64 `[L, C]` widths.
    geometry: of the network; a chain (see `is_chain`).
    kind: "arrays" or "macs".

  Returns:
    int64 `[L, C_in, C_out]`: cost of layer l when layer l - 1 takes choice
    C_in (irrelevant for l = 0) and layer l choice C_out. A product of fixed
    width counts with the layer at its other end. A vector's cost is the sum of
    its L entries.

  Raises:
    InputError: the network is no chain.
  """
  if not is_chain(geometry):
    raise errors.InputError(
      "network: got projection shortcuts, allowed for a budget are networks "
      "whose products all join adjacent layers"
    )
  choices = choices.astype(np.int64)
  table = np.zeros((*choices.shape, choices.shape[1]), np.int64)

  def channels(end, axis):
    if not isinstance(end, Layer):
      return np.int64(end)
    return np.expand_dims(choices[end.index], axis)

  for product in geometry.products:
    inputs, outputs = product.inputs, product.outputs
    # A layer's own choice is on the second axis.
    layer = outputs if isinstance(outputs, Layer) else inputs
    part = product_cost(
      channels(inputs, 1 if layer is outputs else 0),
      channels(outputs, 0),
      product.taps,
      product.positions,
      geometry.tile_shape,
    )
    table[layer.index] += np.asarray(getattr(part, kind))
  return table
