"""Circuits around the arrays: energies, times and areas of one operation.

A technology is one consistent set of numbers. Those of two sources differ up to
twentyfold for the same circuit, so that a cost says little without its name.
"""

import dataclasses
import pathlib
from typing import Any

from hawis_jax import errors
from hawis_jax.crossbar.devices import is_finite

_MOST_BITS = 24  # of a converter whose formulas are checked


@dataclasses.dataclass(frozen=True)
class Technology:
  """Energy, time and area of every circuit; SI units.

  A converter of b bits has c_0 + c_1 b + c_2 b^2 + d 2^b of energy and area: a
  SAR's logic grows with b, its capacitors with 2^b.

  Attributes:
    name: for reports.
    read_time: that rows are driven at one read [s].
    overlapped: sample-and-holds let the next read begin while a read's columns
      are converted.
    conduction: share of the time of a read's conversions in which its cells go
      on conducting. 0: rows are released, or columns cut off, before it.
    columns_per_converter: that take turns.
    adc_energy: (c_0, c_1, c_2, d) of a conversion [J].
    adc_area: (c_0, c_1, c_2, d) of a converter [m^2].
    adc_time: (c_0, c_1) of a conversion, c_0 + c_1 b [s].
    sense_energy: of a sense amplifier's decision, a comparison of one column
      with a threshold (whose source is not counted) [J].
    sense_area: [m^2].
    sense_time: [s].
    load_voltage: from which a converter draws as much current as its columns
      carry [V].
    cell_area: [m^2].
    driver_energy: of one driven row of one array at one read [J].
    driver_area: of one row of one array [m^2].
    hold_energy: of a column of one array at one read [J].
    hold_area: of a column of one array [m^2].
    add_energy: of adding one conversion to a partial sum [J].
    add_area: of an adder, one a converter [m^2].
    value_bits: of a result that is not binarised at once.
    buffer_energy: of a bit written to or read from a buffer [J].
    buffer_area: of a bit [m^2].
    bus_energy: of a bit between a buffer, or a partial sum's adder, and an
      array [J].
    router_energy: of a bit from a layer to the next [J].
    interconnect_area: share of one array in bus and router [m^2].
    digital_energy: of what follows a product, one output [J]: scale, shift,
      threshold, and an addition of the shortcut or for pooling.
    digital_area: of such a unit, one for every `columns_per_converter` outputs
      [m^2].
  """

  name: str
  read_time: float
  overlapped: bool
  conduction: float
  columns_per_converter: int
  adc_energy: tuple[float, float, float, float]
  adc_area: tuple[float, float, float, float]
  adc_time: tuple[float, float]
  sense_energy: float
  sense_area: float
  sense_time: float
  load_voltage: float
  cell_area: float
  driver_energy: float
  driver_area: float
  hold_energy: float
  hold_area: float
  add_energy: float
  add_area: float
  value_bits: int
  buffer_energy: float
  buffer_area: float
  bus_energy: float
  router_energy: float
  interconnect_area: float
  digital_energy: float
  digital_area: float

  def convert_energy(self, bits: int) -> float:
    """Returns the energy of a conversion [J], without the columns' load."""
    return _polynomial(self.adc_energy, bits)

  def convert_time(self, bits: int) -> float:
    """Returns the time of a conversion [s]."""
    return self.adc_time[0] + self.adc_time[1] * bits

  def converter_area(self, bits: int) -> float:
    """Returns the area of a converter [m^2]."""
    return _polynomial(self.adc_area, bits)


def _polynomial(coefficients, bits):
  c_0, c_1, c_2, exponential = coefficients
  return c_0 + c_1 * bits + c_2 * bits**2 + exponential * 2**bits


# [ISAAC]: Shafiee et al., ISCA 2016, Table I: a tile of 12 in-situ multiply-
# accumulate units (IMAs) of 8 arrays of 128 x 128 cells at 32 nm, a read every
# 100 ns. It gives powers: an energy of it assumes that the unit works all the
# time at that power, a driver at every row.
_ISAAC_ARRAYS = 12 * 8
_ISAAC_LINES = 8 * 128  # rows, or columns, of an IMA

# [Accelergy]: hwcomponents-library, isaac.py, read in 2026. Its energies of
# memory and wires are ISAAC's powers over a rate that it assumes: while 9.6
# Gbit/s empty an IMA's input buffer of 16,384 bits, those bits and 2048 of
# results pass the bus and the router once and the eDRAM twice. ISAAC itself has
# no energy of a bit.

# Of 16-bit floating point at 45 nm: Horowitz, ISSCC 2014 (energies 1.1 and
# 0.4 pJ) and Dally, NeurIPS 2015 tutorial (areas 1640 and 1360 um^2). One
# multiplication and two additions: an assumption.
_FLOAT_ENERGY = 1.1e-12 + 2 * 0.4e-12
_FLOAT_AREA = 1640e-12 + 2 * 1360e-12

_ISAAC = Technology(
  name="isaac_32nm",
  # The cycle; arrays' outputs are sampled at its end and converted in the next:
  # cells conduct for the cycle alone [ISAAC].
  read_time=100e-9,
  overlapped=True,
  conduction=0.0,
  # One ADC an array [ISAAC].
  columns_per_converter=128,
  # SAR of 1.2 GS/s. 8 bits: 1.67 pJ, 1200 um^2, of 2 mW and 0.0096 mm^2 / 8
  # [ISAAC, after Kull et al., ISSCC 2013]. 4 to 7 bits: 0.79, 0.99, 1.20, 1.42
  # pJ and 361, 477, 627, 845 um^2 [Accelergy, which scaled them after Saberi et
  # al., 2011, and does not say how]. Our fits, to 0.01 pJ and 1 um^2; fewer and
  # more bits are extrapolated: an assumption.
  adc_energy=(0.0225e-12, 0.19e-12, 0.0, 0.0075e-12 / 2**4),
  adc_area=(-1e-12, 82e-12, 0.0, 34e-12 / 2**4),
  # 128 columns a cycle: 1.28 GS/s, where its table says 1.2 [ISAAC].
  adc_time=(100e-9 / 128, 0.0),
  # ISAAC has no sense amplifier: the fits' value at 1 bit, an assumption.
  sense_energy=0.2125e-12 + 2 * 0.0075e-12 / 2**4,
  sense_area=81e-12 + 2 * 34e-12 / 2**4,
  sense_time=100e-9 / 128,
  # In its converter's power: an assumption.
  load_voltage=0.0,
  # 0.0002 mm^2 / 8 arrays [ISAAC].
  cell_area=0.0002e-6 / 8 / 128**2,
  # 0.39 pJ: 1-bit DACs of an IMA, 4 mW and 0.00017 mm^2, over a cycle of 100 ns
  # [ISAAC; Accelergy has 0.417 pJ, at 1.2 GS/s].
  driver_energy=4e-3 / _ISAAC_LINES * 100e-9,
  driver_area=0.00017e-6 / _ISAAC_LINES,
  # Sample-and-holds of an IMA: 10 uW, 0.00004 mm^2 [ISAAC].
  hold_energy=10e-6 / _ISAAC_LINES * 100e-9,
  hold_area=0.00004e-6 / _ISAAC_LINES,
  # 4 shift-and-adds an IMA, 0.2 mW and 0.00024 mm^2 [ISAAC], each of two ADCs'
  # results at 1.2 GS/s: an assumption.
  add_energy=0.05e-3 / 2.4e9,
  add_area=0.00024e-6 / 4,
  # Its activations' [ISAAC].
  value_bits=16,
  # 80 fJ, 20.45 pJ of 256 bits: eDRAM of 20.7 mW a tile [Accelergy's rate, to
  # its 4 digits]; 64 KB in 0.083 mm^2 [ISAAC].
  buffer_energy=20.45e-12 / 256,
  buffer_area=0.083e-6 / (64 * 1024 * 8),
  # 0.054 pJ: bus of 7 mW a tile. 81 fJ, 20.74 pJ of 256 bits: router of 42 mW
  # for four tiles, as busy as their eDRAM [Accelergy's rate].
  bus_energy=0.054e-12,
  router_energy=20.74e-12 / 256,
  # Bus 0.090 mm^2 a tile, router 0.151 mm^2 of four tiles [ISAAC].
  interconnect_area=(0.090e-6 + 0.151e-6 / 4) / _ISAAC_ARRAYS,
  # Capacitance goes with the feature size, area with its square: an assumption.
  digital_energy=_FLOAT_ENERGY * 32 / 45,
  digital_area=_FLOAT_AREA * (32 / 45) ** 2,
)

# [NeuroSim]: DNN+NeuroSim V1.4, 2023, 22 nm, low standby power; by file.
# Smallest gate, formula.cpp and constant.h: 28 F x 2 (1 + 2.8) F.
_GATE = 28 * 2 * 3.8 * 22e-9**2
_SHRINK = 22 / 32  # an assumption, of energies; of areas its square

_NEUROSIM = Technology(
  name="neurosim_22nm",
  # Param.cpp, readPulseWidth. An assumption: its own parallel read (SubArray.
  # cpp) uses no pulse; see docs/cost.md, "Current during conversion".
  read_time=10e-9,
  # SubArray.cpp: columns are read in turns, with no sample-and-hold.
  overlapped=False,
  # An assumption: the multiplexer cuts off what is not being converted, and
  # what flows through the converted column is in `load_voltage`.
  conduction=0.0,
  # Param.cpp, numColMuxed.
  columns_per_converter=8,
  # SarADC.cpp: (0.538 b + 4.3753) uW for (b + 1) ns; areas are (269 + 209) +
  # (109 + 73) (b - 1) gates. Its factor of 1.4 on the time of a turn, fitted to
  # silicon, is left out.
  adc_energy=(4.3753e-15, 4.9133e-15, 0.538e-15, 0.0),
  adc_area=(296 * _GATE, 182 * _GATE, 0.0, 0.0),
  adc_time=(1e-9, 1e-9),
  # CurrentSenseAmp.cpp: 1.7 uW for 1 ns; 48 + 40 gates.
  sense_energy=1.7e-15,
  sense_area=88 * _GATE,
  sense_time=1e-9,
  # Both files: 0.072341 W ohm / R_column at 0.5 V, in proportion to the read
  # voltage.
  load_voltage=0.072341 / 0.5,
  # Param.cpp, SubArray.cpp: a cell with a transistor, 4 F x 12 F, F = 22 nm. (A
  # cell without one is 2 F x 2 F there, of the wires' 40 nm: 0.0064 um^2.)
  cell_area=4 * 12 * 22e-9**2,
  # NeuroSim lays out what follows gate by gate. Here: ISAAC's values, energy
  # scaled with the feature size and area with its square; of a driver its
  # power, for the shorter read. All of it an assumption.
  driver_energy=_ISAAC.driver_energy * _SHRINK * 10e-9 / 100e-9,
  driver_area=_ISAAC.driver_area * _SHRINK**2,
  hold_energy=0.0,
  hold_area=0.0,
  add_energy=_ISAAC.add_energy * _SHRINK,
  add_area=_ISAAC.add_area * _SHRINK**2,
  value_bits=16,
  buffer_energy=_ISAAC.buffer_energy * _SHRINK,
  buffer_area=_ISAAC.buffer_area * _SHRINK**2,
  bus_energy=_ISAAC.bus_energy * _SHRINK,
  router_energy=_ISAAC.router_energy * _SHRINK,
  interconnect_area=_ISAAC.interconnect_area * _SHRINK**2,
  digital_energy=_ISAAC.digital_energy * _SHRINK,
  digital_area=_ISAAC.digital_area * _SHRINK**2,
)

TECHNOLOGIES = {preset.name: preset for preset in (_ISAAC, _NEUROSIM)}
DEFAULT = _NEUROSIM

_FIELDS = tuple(field.name for field in dataclasses.fields(Technology))
_LENGTHS = {"adc_energy": 4, "adc_area": 4, "adc_time": 2}


def technology(name: Any, field: str = "technology") -> Technology:
  """Returns a named technology.

  Raises:
    InputError: there is none of this name; `field` is for the message.
  """
  if not isinstance(name, str) or name not in TECHNOLOGIES:
    raise errors.InputError(
      f"{field}: got {name!r}, allowed are {', '.join(TECHNOLOGIES)}"
    )
  return TECHNOLOGIES[name]


def technology_from_json(text: str, name: str = "technology") -> Technology:
  """Returns a technology of JSON {"field": value}; "preset" to start from.

  Without "preset" every field must be there, but for "name", whose default is
  the stem of `name`, such as the path of the file.

  Raises:
    InputError: it is no such object, or a field of it is bad.
  """
  values = errors.parse_fields(text, name)
  base = {"name": pathlib.PurePath(name).stem}
  if "preset" in values:
    preset = technology(values["preset"], f"{name}: preset")
    base = dataclasses.asdict(preset) | base
  errors.check_fields(values, (*_FIELDS, "preset"), name)
  values = base | {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in values.items()
    if field != "preset"
  }
  missing = [field for field in _FIELDS if field not in values]
  if missing:
    raise errors.InputError(
      f"{name}: got no {', '.join(missing)}, needed is every field, or a preset"
    )
  return validate_technology(Technology(**values), name)


def validate_technology(
  tech: Technology, name: str = "technology"
) -> Technology:
  """Returns `tech` if its fields make sense together.

  Raises:
    InputError: names the field, what it got and what is allowed.
  """

  def check(field, is_good, allowed):
    if not is_good:
      raise errors.InputError(
        f"{name}.{field}: got {getattr(tech, field)!r}, allowed is {allowed}"
      )

  for field in _FIELDS:
    value = getattr(tech, field)
    if field == "name":
      check(field, isinstance(value, str) and value, "a name")
    elif field == "overlapped":
      check(field, type(value) is bool, "True or False")
    elif field in ("columns_per_converter", "value_bits"):
      is_good = type(value) is int and 1 <= value <= 2**16
      check(field, is_good, "an integer from 1 to 65536")
    elif field == "conduction":
      is_good = is_finite(value) and 0 <= value <= 1
      check(field, is_good, "a share in [0, 1]")
    elif field in _LENGTHS:
      length = _LENGTHS[field]
      is_good = isinstance(value, tuple) and len(value) == length
      is_good = is_good and all(map(is_finite, value))
      check(field, is_good, f"a tuple of {length} finite numbers")
    else:
      is_good = is_finite(value) and value >= 0
      check(field, is_good, "a finite number of at least 0")
  check("read_time", tech.read_time > 0, "a time [s] above 0")
  # Costs must not fall where a column outgrows the sense amplifier.
  for field, sensed, converted in (
    ("adc_energy", tech.sense_energy, tech.convert_energy),
    ("adc_area", tech.sense_area, tech.converter_area),
    ("adc_time", tech.sense_time, tech.convert_time),
  ):
    check(
      field,
      all(converted(bits) >= sensed for bits in range(1, _MOST_BITS + 1)),
      f"at least {sensed:g} of a sense amplifier at 1 bit or more",
    )
  return tech
