"""Cost of an inference: what every product does, and what each doing costs.

The formulas and their assumptions stand in docs/cost.md. Every cost is a sum of
products of non-negative, non-decreasing functions of the widths, hence
non-decreasing in each of them, to the last bit.

Axes: L layers (convolutions that a width vector sets, stem first), P matrix
products (more than L: head and shortcuts).
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.cost.geometry import checked_widths
from hawis_jax.cost.geometry import Geometry
from hawis_jax.cost.geometry import Layer
from hawis_jax.cost.geometry import Product
from hawis_jax.cost.hardware import Hardware


class Cost(NamedTuple):
  """Holds the cost of one image's inference.

  Attributes:
    arrays: pairs of crossbar arrays that hold the weights, copies of
      `duplication` not counted. A pair is one tile of differential weights; of
      other mappings two tiles of one product.
    macs: binary multiply-accumulates.
    weights: binary weights.
    energy_joule: of all components.
    latency_second: of all products one after another.
    interval_second: between images that follow each other through all layers at
      once: the slowest product's time.
    area_m2: of all components and copies.
  """

  arrays: chex.Numeric
  macs: chex.Numeric
  weights: chex.Numeric
  energy_joule: chex.Numeric
  latency_second: chex.Numeric
  interval_second: chex.Numeric
  area_m2: chex.Numeric


# Fields of `Cost` that count; exact integers in NumPy.
COUNTS = ("arrays", "macs", "weights")


class Kind(NamedTuple):
  """Names a cost that budgets and reports can ask for.

  `field` is that of `Cost`, `unit` for display. Where it is `additive` a
  network's is the sum of its layers'; else the greatest.
  """

  field: str
  unit: str
  additive: bool = True

  def of(self, cost: Cost) -> chex.Numeric:
    """Returns this cost of all."""
    return getattr(cost, self.field)


KINDS = {
  "arrays": Kind("arrays", "arrays"),
  "macs": Kind("macs", "MACs"),
  "energy": Kind("energy_joule", "J"),
  "latency": Kind("latency_second", "s"),
  "interval": Kind("interval_second", "s", additive=False),
  "area": Kind("area_m2", "m²"),
}

OWN = "own_cost"  # stands for the field of a cost that is not of `KINDS`


def field(kind: str) -> str:
  """Returns the name under which results have a kind of cost."""
  return KINDS[kind].field if kind in KINDS else OWN


def unit(kind: str) -> str:
  """Returns the unit of a kind of cost, for display; one's own has none."""
  return KINDS[kind].unit if kind in KINDS else ""


COMPONENTS = (
  "array",
  "drivers",
  "converters",
  "sample_hold",
  "partial_sums",
  "buffer",
  "interconnect",
  "digital",
)


class Amount(NamedTuple):
  """Holds a component's energy of one image and its area."""

  energy_joule: chex.Numeric
  area_m2: chex.Numeric


def product_costs(
  inputs: chex.Array, outputs: chex.Array, product: Product, hardware: Hardware
) -> tuple[Cost, dict[str, Amount]]:
  """Returns the cost of one product at many widths, and its components.

  `inputs`, channels read, and `outputs`, channels made, are integer arrays that
  broadcast; the product's own widths are not read.
  """
  xp = jnp if isinstance(inputs, jax.Array) else np
  tech, (array_rows, array_columns) = hardware.technology, hardware.tile_shape
  (tile_rows, tile_columns), cells = hardware.weight_shape, hardware.cells
  array_columns += cells.references
  digital = hardware.digital
  bits, mux = hardware.converter_bits, tech.columns_per_converter
  # Bit lines that are converted, of an array: all, or one of each weight.
  lines = array_columns if digital else tile_columns
  converters = -(-lines // mux) * (cells.arrays if digital else 1)  # of a tile
  on, off, voltage = hardware.g_on, hardware.g_off, hardware.read_voltage
  positions = product.positions
  copies = hardware.copies(product.layer, positions)

  rows = inputs * product.taps
  row_tiles = (rows + (tile_rows - 1)) // tile_rows
  held = tile_columns - hardware.spare_columns
  column_tiles = (outputs + (held - 1)) // held
  tiles = row_tiles * column_tiles
  weights = rows * outputs
  # Signs of partial sums don't add up: only where a column fits one tile.
  sensed = (row_tiles == 1) & hardware.may_sense(product.binarized)

  def converter(of_sense, of_adc):
    return xp.where(sensed, of_sense, of_adc)

  convert_time = converter(tech.sense_time, tech.convert_time(bits))
  each = outputs
  if digital:
    each = outputs * cells.columns + cells.references
  turns = xp.minimum(each, min(mux, lines))
  if tech.overlapped:
    cycle = xp.maximum(tech.read_time, convert_time * turns)
  else:
    cycle = tech.read_time + convert_time * turns
  conducting = tech.read_time
  if tech.conduction:
    conducting = conducting + tech.conduction * convert_time * turns
  time = -(-positions // copies) * cycle

  # Of one position; floats, since JAX's integers would overflow.
  driven = hardware.activity * rows
  sums = conversions = row_tiles * (outputs * 1.0)
  if digital:
    conversions = sums * (1 if cells.references else 2)
    conversions += tiles * cells.references
  values = outputs * (1.0 if product.binarized else tech.value_bits)
  # Of a pair one cell is on; of single cells half are taken to be.
  share = cells.of_weight / 2
  current = voltage * (on + off) * share * driven * outputs
  if cells.references:
    # A reference's is taken from every column's; a bias column has its own.
    taken = column_tiles if digital else outputs
    current += voltage * (on + off) / 2 * driven * taken
  # Of a column tile without weights: all cells off but the reference's.
  idle = (
    cells.of_weight * tile_columns * off + cells.references * (on + off) / 2
  )
  energy = {
    # Unused columns of the last tiles: their cells are off, and conduct.
    "array": (voltage**2 * conducting)
    * driven
    * (outputs * (share * (on - off)) + column_tiles * idle),
    "drivers": driven * column_tiles * (cells.lines * tech.driver_energy),
    "converters": conversions
    * converter(tech.sense_energy, tech.convert_energy(bits))
    + current * convert_time * tech.load_voltage,
    "sample_hold": sums * (cells.arrays * cells.columns * tech.hold_energy),
    "partial_sums": conversions * converter(0.0, tech.add_energy),
    "buffer": (rows + values) * tech.buffer_energy,
    # The codes of both sides are subtracted where they are made.
    "interconnect": (rows + sums * converter(1.0, bits + digital))
    * tech.bus_energy
    + values * tech.router_energy,
    "digital": outputs * tech.digital_energy,
  }
  if cells.references:
    energy["sample_hold"] += tiles * (cells.references * tech.hold_energy)
  if cells.counts:
    # At most: an adder a row, and one that takes the count from a column's sum.
    energy["partial_sums"] += (rows + conversions) * tech.add_energy
  placed = tiles * float(copies)
  single = placed * cells.arrays
  area = {
    "array": single * (array_rows * array_columns * tech.cell_area),
    "drivers": single * (array_rows * tech.driver_area),
    "converters": placed
    * (converters * converter(tech.sense_area, tech.converter_area(bits))),
    "sample_hold": single * (array_columns * tech.hold_area),
    "partial_sums": placed * (converters * converter(0.0, tech.add_area)),
    # A layer's outputs of one image, so that layers can work on several.
    "buffer": values * (positions * tech.buffer_area),
    "interconnect": single * tech.interconnect_area,
    "digital": (outputs + (mux - 1)) // mux * (copies * tech.digital_area),
  }
  parts = {
    name: Amount(positions * energy[name], area[name]) for name in COMPONENTS
  }
  total = Cost(
    arrays=hardware.pairs(tiles),
    macs=weights * (positions if xp is np else float(positions)),
    weights=weights,
    energy_joule=sum(part.energy_joule for part in parts.values()),
    latency_second=time,
    interval_second=time,
    area_m2=sum(part.area_m2 for part in parts.values()),
  )
  return total, parts


def _each(widths, geometry):
  """Returns costs of the products, `[...]` each, and their components."""
  widths = checked_widths(widths, geometry)
  xp = jnp if isinstance(widths, jax.Array) else np

  def channels(end):
    if isinstance(end, Layer):
      return widths[..., end.index]
    return xp.full(widths.shape[:-1], end, widths.dtype)

  # Not as one array of all products: XLA makes one vectorised loop of these.
  each = [
    product_costs(channels(p.inputs), channels(p.outputs), p, geometry.hardware)
    for p in geometry.products
  ]
  return zip(*each, strict=True)


def layer_costs(widths: chex.Array, geometry: Geometry) -> Cost:
  """Returns the cost of every matrix product, arrays `[..., P]`.

  Widths are int `[..., L]`; the products' names are `geometry.names`.
  """
  costs, _ = _each(widths, geometry)
  xp = jnp if isinstance(widths, jax.Array) else np
  return Cost(*(xp.stack(x, axis=-1) for x in zip(*costs, strict=True)))


def network_cost(widths: chex.Array, geometry: Geometry) -> Cost:
  """Returns the cost `[...]` of a whole network, head included.

  Widths are int `[..., L]`. NumPy gives exact integers of `COUNTS` and float64
  of the rest; JAX arrays give int32 arrays and weights, and float32 of the
  rest, MACs too, which int32 could not hold. Formulas and sources:
  docs/cost.md.

  >>> import hawis_jax as hx
  >>> geometry = hx.cifar_geometry(20, (32, 32, 3), 32, 10)
  >>> int(hx.network_cost(hx.WIDTHS["resnet20_1x"], geometry).arrays)
  111

  Raises:
    InputError: widths are no integers `[..., L]` of at least 1.
  """
  costs, _ = _each(widths, geometry)
  total = Cost(*map(sum, zip(*costs, strict=True)))
  xp = jnp if isinstance(widths, jax.Array) else np
  slowest = functools.reduce(xp.maximum, (c.interval_second for c in costs))
  return total._replace(interval_second=slowest)


def components(widths: chex.Array, geometry: Geometry) -> dict[str, Amount]:
  """Returns energy and area of every component; they sum to the network's.

  Widths are int `[..., L]`: an `Amount` of arrays `[...]` for each of
  `COMPONENTS`.
  """
  _, parts = _each(widths, geometry)
  return {
    name: Amount(*map(sum, zip(*(part[name] for part in parts), strict=True)))
    for name in COMPONENTS
  }
