"""A network as its matrix products, and the hardware that computes them.

Axes: L layers (convolutions that a width vector sets, stem first).
"""

import dataclasses

import chex
import jax
import numpy as np

from hawis_jax import errors
from hawis_jax.cost.hardware import Hardware

_HARDWARE = Hardware()
_MOST = 2**16  # channels: of products of such numbers int64 holds the sums


@dataclasses.dataclass(frozen=True)
class Layer:
  """Names the width of a layer by its place in the width vector."""

  index: int


@dataclasses.dataclass(frozen=True)
class Product:
  """Holds one binary matrix product of a network.

  Attributes:
    inputs: channels read: a searched layer's, or a fixed number.
    outputs: channels made: a searched layer's, or a fixed number.
    taps: kernel taps.
    positions: output positions for one image.
    name: of its module in the network, with "/" between modules.
    binarized: its outputs are only normalised and compared with a threshold,
      so that a sense amplifier can read them; else their values are needed.
  """

  inputs: Layer | int
  outputs: Layer | int
  taps: int
  positions: int
  name: str = ""
  binarized: bool = False

  def __post_init__(self):
    """Raises InputError where it is no product: it would cost less than 0."""
    ends = [e for e in (self.inputs, self.outputs) if not isinstance(e, Layer)]
    for n in (*ends, self.taps, self.positions):
      if not (isinstance(n, int | np.integer) and n >= 1):
        raise errors.InputError(
          f"product {self.name}: got {n!r}, allowed are channels, taps and "
          "positions of at least 1, whole numbers"
        )

  @property
  def layer(self) -> int:
    """Returns the layer that it counts at: the later of two; 0 with none."""
    ends = (self.inputs, self.outputs)
    return max((e.index for e in ends if isinstance(e, Layer)), default=0)


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Holds what a network's cost needs beside its widths.

  Attributes:
    products: all matrix products, head included.
    positions: output positions of each layer for one image, `[L]`.
    hardware: that computes them; a tile shape stands for the default hardware
      with such tiles.
  """

  products: tuple[Product, ...]
  positions: tuple[int, ...]
  hardware: Hardware

  def __post_init__(self):
    """Raises InputError where copies are given for other layers."""
    if not isinstance(self.hardware, Hardware):
      hardware = Hardware(tile_shape=tuple(self.hardware))
      object.__setattr__(self, "hardware", hardware)
    copies, layers = self.hardware.duplication, len(self.positions)
    if isinstance(copies, tuple) and len(copies) != layers:
      raise errors.InputError(
        f"duplication: got {len(copies)} numbers, needed is one, or one for "
        f"each of the {layers} layers"
      )

  @property
  def tile_shape(self) -> tuple[int, int]:
    """Returns the cells of one array (rows, columns)."""
    return self.hardware.tile_shape

  @property
  def names(self) -> tuple[str, ...]:
    """Returns the products' names."""
    return tuple(product.name for product in self.products)


def checked_widths(widths: chex.Array, geometry: Geometry) -> chex.Array:
  """Returns width vectors `[..., L]`, a JAX array or else NumPy's int64.

  Traced values are not known, and not checked.

  Raises:
    InputError: they are no such integers of at least 1.
  """
  if not isinstance(widths, jax.Array):
    widths = np.asarray(widths)
  layers = len(geometry.positions)
  whole = np.issubdtype(widths.dtype, np.integer)
  if not whole or widths.shape[-1:] != (layers,):
    raise errors.InputError(
      f"widths: got {widths.dtype} of shape {widths.shape}, needed are "
      f"integers of shape [..., {layers}], one a layer"
    )
  if isinstance(widths, jax.core.Tracer):
    return widths
  if widths.size and not 1 <= widths.min() <= widths.max() <= _MOST:
    raise errors.InputError(
      f"widths: got {widths.min()} to {widths.max()}, allowed are 1 to {_MOST} "
      "channels"
    )
  is_jax = isinstance(widths, jax.Array)
  return widths if is_jax else widths.astype(np.int64)


def cifar_geometry(
  depth: int,
  image_shape: tuple[int, int, int],
  levels: int,
  num_classes: int,
  hardware: Hardware | tuple[int, int] = _HARDWARE,
) -> Geometry:
  """Returns the geometry of `resnet.cifar_resnet`, of depth 6 n + 2.

  The network is that of HAWIS (ASP-DAC 2022). `image_shape` is (height, width,
  channels); a tile shape stands for the default hardware.

  >>> import hawis_jax as hx
  >>> geometry = hx.cifar_geometry(8, (32, 32, 3), 32, 10)
  >>> geometry.names[:3], geometry.positions[-1]
  (('stem', 'stage1_block0/conv1', 'stage1_block0/conv2'), 64)
  """
  height, width, channels = image_shape
  if depth < 8 or depth % 6 != 2:
    raise errors.InputError(
      f"network depth: got {depth}, allowed are 8, 14, 20, ...: 6 n + 2"
    )
  blocks = (depth - 2) // 6
  positions = [height * width]
  products = [Product(channels * levels, Layer(0), 9, height * width, "stem")]
  for group in range(3):
    if group:
      height, width = -(-height // 2), -(-width // 2)
    for block in range(blocks):
      name = f"stage{group + 1}_block{block}"
      for conv in ("conv1", "conv2"):
        before, after = Layer(len(positions) - 1), Layer(len(positions))
        products.append(
          Product(
            before, after, 9, height * width, f"{name}/{conv}", conv == "conv1"
          )
        )
        positions.append(height * width)
  head = Product(Layer(depth - 2), num_classes, 1, 1, "head")
  return Geometry((*products, head), tuple(positions), hardware)


def imagenet_geometry(
  stem: str,
  image_size: int,
  levels: int,
  num_classes: int,
  hardware: Hardware | tuple[int, int] = _HARDWARE,
) -> Geometry:
  """Returns the geometry of `resnet.imagenet_resnet18`.

  The network is that of HAWIS (ASP-DAC 2022). `stem` is "7x7" or "3x3",
  `image_size` height and width of the RGB images [pixels]; a tile shape stands
  for the default hardware.

  >>> import hawis_jax as hx
  >>> geometry = hx.imagenet_geometry("7x7", 224, 32, 1000)
  >>> len(geometry.positions), geometry.positions[-1]
  (17, 49)
  """
  if stem not in ("7x7", "3x3"):
    raise errors.InputError(f"stem: got {stem!r}, allowed are 7x7, 3x3")
  planes = 3 * levels
  size = -(-image_size // 2)
  first, size_in = size**2, size
  if stem == "7x7":
    channels = planes
    products = [Product(planes, channels, 49, first, "stem_conv1")]
  else:
    channels = 2 * planes
    # The shortcut's product comes before its pooling.
    products = [
      Product(planes, channels, 9, first, "stem_conv1"),
      Product(planes, channels, 1, image_size**2, "stem_skip1"),
    ]
  size = -(-size // 2)
  products += [
    Product(channels, Layer(0), 9, size**2, "stem_conv2"),
    Product(channels, Layer(0), 1, size_in**2, "stem_skip2"),
  ]
  positions = [size**2]
  for block in range(8):
    if block in (2, 4, 6):
      size = -(-size // 2)
    before, middle, after = (Layer(2 * block + i) for i in range(3))
    name = f"stage{block // 2 + 1}_block{block % 2}"
    products += [
      Product(before, middle, 9, size**2, f"{name}/conv1", True),
      Product(middle, after, 9, size**2, f"{name}/conv2"),
      Product(before, after, 1, size**2, f"{name}/skip"),
    ]
    positions += [size**2] * 2
  products.append(Product(Layer(16), num_classes, size**2, 1, "head"))
  return Geometry(tuple(products), tuple(positions), hardware)
