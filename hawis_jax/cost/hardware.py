"""What stands for a network's products: tiles, cells, circuits, copies."""

import dataclasses
from typing import NamedTuple

import chex

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.cost.technology import DEFAULT
from hawis_jax.cost.technology import Technology
from hawis_jax.cost.technology import validate_technology
from hawis_jax.crossbar.devices import is_finite

_DEVICE = crossbar.Device()


class _Cells(NamedTuple):
  """What a mapping takes of a tile, and of its circuits.

  Attributes:
    arrays: of a tile.
    lines: word lines of a row of weights, in all arrays.
    rows: word lines of a row of weights, in one array.
    columns: bit lines of a column of weights, in one array.
    references: columns beside those of weights.
    counts: whether the digital side counts a tile's inputs.
  """

  arrays: int = 1
  lines: int = 1
  rows: int = 1
  columns: int = 1
  references: int = 0
  counts: bool = False

  @property
  def of_weight(self) -> int:
    """Returns cells of a weight."""
    return self.arrays * self.rows * self.columns


_MAPPINGS = {
  "differential": _Cells(arrays=2, lines=2),
  "single": _Cells(references=1),
  "offset": _Cells(counts=True),
  "complementary": _Cells(lines=2, rows=2),
  "interleaved": _Cells(columns=2),
}


@dataclasses.dataclass(frozen=True)
class Hardware:
  """Holds a device, the circuits around it, and how it is used.

  Attributes:
    tile_shape: (rows, columns) of one array.
    g_on: conductance of the low-resistance state [S].
    g_off: conductance of the high-resistance state [S].
    read_voltage: of an input bit 1 [V].
    adc_bits: of the converters, as the device says: 0 (ideal ones), 1 (sense
      amplifiers where they can read) or more.
    technology: energies, times and areas of the circuits.
    duplication: copies of a layer's arrays that work on different positions:
      of every layer, or one number a layer.
    activity: share of rows that are driven at a read, those whose input bit is
      1. 1: an upper bound of energy, whatever the images.
    spare_columns: of every array, that hold no weights, see `crossbar.Placing`.
    mapping: of weights onto cells, see `crossbar.Device`.
    subtraction: of currents or of codes, see `crossbar.Device`.
  """

  tile_shape: tuple[int, int] = _DEVICE.tile_shape
  g_on: float = _DEVICE.g_on
  g_off: float = _DEVICE.g_off
  read_voltage: float = _DEVICE.read_voltage
  adc_bits: int = _DEVICE.adc_bits
  technology: Technology = DEFAULT
  duplication: int | tuple[int, ...] = 1
  activity: float = 1.0
  spare_columns: int = 0
  mapping: str = _DEVICE.mapping
  subtraction: str = _DEVICE.subtraction

  def __post_init__(self):
    """Raises InputError where a field makes no sense: costs would not."""

    def check(field, is_good, allowed):
      if not is_good:
        raise errors.InputError(
          f"{field}: got {getattr(self, field)!r}, allowed {allowed}"
        )

    shape = self.tile_shape
    good = isinstance(shape, tuple) and len(shape) == 2
    good = good and all(type(n) is int and n >= 1 for n in shape)
    check("tile_shape", good, "are (rows, columns), integers of at least 1")
    for field in ("g_on", "g_off", "read_voltage"):
      value = getattr(self, field)
      good = is_finite(value) and value > 0
      check(field, good, "is a finite number above 0")
    check("g_off", self.g_off <= self.g_on, "is at most g_on")
    bits = self.adc_bits
    good = type(bits) is int and 0 <= bits <= 16
    check("adc_bits", good, "are integers from 0 to 16")
    good = isinstance(self.technology, Technology)
    check("technology", good, "is a Technology, as cost.technology(name) is")
    validate_technology(self.technology)
    copies = self.duplication
    copies = copies if isinstance(copies, tuple) else (copies,)
    good = copies and all(type(n) is int and n >= 1 for n in copies)
    allowed = "are integers of at least 1: one, or a tuple of one a layer"
    check("duplication", good, allowed)
    good = is_finite(self.activity) and 0 <= self.activity <= 1
    check("activity", good, "is a share of rows in [0, 1]")
    spares, most = self.spare_columns, shape[1] - 1
    good = type(spares) is int and 0 <= spares <= most
    allowed = f"are integers from 0 to {most}: an array has {most + 1} columns"
    check("spare_columns", good, allowed)
    good = self.mapping in _MAPPINGS
    check("mapping", good, f"is one of {', '.join(_MAPPINGS)}")
    for each, takes in (("rows", 0), ("columns", 1)):
      good = not shape[takes] % getattr(self.cells, each)
      allowed = f"is an even number of {each}: a weight takes two"
      check("tile_shape", good, allowed)
    good = self.subtraction in crossbar.SUBTRACTIONS
    check("subtraction", good, f"is one of {', '.join(crossbar.SUBTRACTIONS)}")
    good = not self.digital or self.mapping not in ("offset", "complementary")
    check("subtraction", good, "is analog where no second current is read")

  @property
  def cells(self) -> _Cells:
    """Returns what the mapping takes of a tile."""
    return _MAPPINGS[self.mapping]

  @property
  def weight_shape(self) -> tuple[int, int]:
    """Returns (rows, columns) of a tile's weights."""
    rows, columns = self.tile_shape
    return rows // self.cells.rows, columns // self.cells.columns

  @property
  def digital(self) -> bool:
    """Returns whether what is subtracted has converters of its own."""
    return self.subtraction == "digital"

  @property
  def weights_of_pair(self) -> int:
    """Returns how many weights two arrays hold."""
    rows, columns = self.weight_shape
    return 2 // self.cells.arrays * rows * columns

  def pairs(self, tiles: chex.Array) -> chex.Array:
    """Returns the pairs of arrays of some tiles of one product."""
    return tiles if self.cells.arrays == 2 else (tiles + 1) // 2

  @property
  def converter_bits(self) -> int:
    """Returns the bits of the converters where no sense amplifier reads.

    The sum of n driven cells of +-1 has the parity of n: given n, which a
    counter knows, a column of R rows of weights has at most R + 1 values.
    """
    if self.adc_bits > 1:
      return self.adc_bits
    return self.weight_shape[0].bit_length()  # ceil(log2(R + 1))

  def may_sense(self, binarized: bool) -> bool:
    """Returns whether a sense amplifier may read a column that fits one tile.

    It may if the result is only compared with a threshold, unless the device
    names converters of more bits, or the digital side subtracts, or counts
    inputs: then the threshold moves with them.
    """
    moves = self.cells.counts or self.digital
    return self.adc_bits < 2 and binarized and not moves

  def copies(self, layer: int, positions: int) -> int:
    """Returns copies of a product's arrays; more than its positions idle."""
    copies = self.duplication
    if isinstance(copies, tuple):
      copies = copies[layer]
    return min(copies, positions)


def hardware(
  device: crossbar.Device,
  technology: Technology = DEFAULT,
  duplication: int | tuple[int, ...] = 1,
  activity: float = 1.0,
) -> Hardware:
  """Returns the hardware of a (concrete) device.

  Raises:
    InputError: a bad device, technology, duplication or activity.
  """
  crossbar.validate(device)
  return Hardware(
    tile_shape=device.tile_shape,
    g_on=float(device.g_on),
    g_off=float(device.g_off),
    read_voltage=float(device.read_voltage),
    adc_bits=int(device.adc_bits or 0),
    technology=technology,
    duplication=duplication,
    activity=activity,
    mapping=device.mapping,
    subtraction=device.subtraction,
  )
