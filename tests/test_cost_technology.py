"""What each component costs: hand-computed, by brute force, as published."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.crossbar import cells
from hawis_jax.networks import width_vectors

# Round and all different, so that a mistaken factor shows.
_ROUND = cost.Technology(
  name="round",
  read_time=7.0,
  overlapped=False,
  conduction=0.0,
  columns_per_converter=4,
  adc_energy=(1.0, 2.0, 3.0, 0.5),
  adc_area=(5.0, 1.0, 0.0, 0.25),
  adc_time=(1.0, 2.0),
  sense_energy=0.5,
  sense_area=2.0,
  sense_time=3.0,
  load_voltage=11.0,
  cell_area=13.0,
  driver_energy=17.0,
  driver_area=19.0,
  hold_energy=23.0,
  hold_area=29.0,
  add_energy=31.0,
  add_area=37.0,
  value_bits=16,
  buffer_energy=41.0,
  buffer_area=43.0,
  bus_energy=47.0,
  router_energy=53.0,
  interconnect_area=59.0,
  digital_energy=61.0,
  digital_area=67.0,
)
_HARDWARE = cost.Hardware(
  tile_shape=(16, 8),
  g_on=3.0,
  g_off=1.0,
  read_voltage=2.0,
  technology=_ROUND,
  activity=0.5,
)


def _one(inputs, taps, positions, binarized=False, hardware=_HARDWARE):
  """A network of one product, from `inputs` channels to those of a layer."""
  product = cost.Product(
    inputs, cost.Layer(0), taps, positions, "it", binarized
  )
  return cost.Geometry((product,), (positions,), hardware)


def test_a_product_with_converters_by_hand():
  """27 rows, 10 columns: 2 x 2 pairs of 16 x 8; 6 positions; 5 bits."""
  geometry = _one(3, 9, 6)
  assert geometry.hardware.converter_bits == 5
  parts = cost.components(np.array([10]), geometry)
  driven = 27 * 0.5
  convert = 1 + 2 * 5 + 3 * 5**2 + 0.5 * 2**5
  energy = {
    # Used columns: on and off; the 6 unused ones: off twice. 2 V, 7 s.
    "array": 2**2 * 7 * driven * (10 * (3 + 1) + 6 * (1 + 1)),
    "drivers": driven * 2 * 2 * 17,  # 2 column tiles, 2 arrays
    # 2 row tiles; a conversion takes 1 + 2 * 5 s, with the column's current.
    "converters": 2 * 10 * convert + 11 * 2 * driven * 10 * (3 + 1) * 11,
    "sample_hold": 2 * 2 * 10 * 23,
    "partial_sums": 2 * 10 * 31,
    "buffer": (27 + 10 * 16) * 41,
    "interconnect": (27 + 2 * 10 * 5) * 47 + 10 * 16 * 53,
    "digital": 10 * 61,
  }
  converter_area = 5 + 5 + 0.25 * 2**5
  area = {
    "array": 4 * 2 * 16 * 8 * 13,
    "drivers": 4 * 2 * 16 * 19,
    "converters": 4 * 2 * converter_area,  # 8 columns, 4 a converter
    "sample_hold": 4 * 2 * 8 * 29,
    "partial_sums": 4 * 2 * 37,
    "buffer": 6 * 10 * 16 * 43,
    "interconnect": 4 * 2 * 59,
    "digital": 3 * 67,  # 10 columns, 4 a unit
  }
  for name, amount in parts.items():
    assert amount == pytest.approx((6 * energy[name], area[name])), name
  total = cost.network_cost(np.array([10]), geometry)
  time = 6 * (7 + 4 * 11)
  assert total == pytest.approx(
    (4, 27 * 10 * 6, 270, 6 * sum(energy.values()), time, time)
    + (sum(area.values()),)
  )


def test_a_product_with_sense_amplifiers_by_hand():
  """16 rows, 3 columns: 1 pair of 16 x 8; 6 positions; binarised."""
  geometry = _one(16, 1, 6, True)
  parts = cost.components(np.array([3]), geometry)
  energy = {
    "array": 2**2 * 7 * 8 * (3 * (3 + 1) + 5 * (1 + 1)),
    "drivers": 8 * 2 * 17,
    "converters": 3 * 0.5 + 11 * 2 * 8 * 3 * (3 + 1) * 3,
    "sample_hold": 2 * 3 * 23,
    "partial_sums": 0,
    "buffer": (16 + 3) * 41,
    "interconnect": (16 + 3) * 47 + 3 * 53,
    "digital": 3 * 61,
  }
  for name, amount in parts.items():
    assert amount.energy_joule == pytest.approx(6 * energy[name]), name
  assert parts["converters"].area_m2 == 2 * 2
  assert parts["partial_sums"].area_m2 == 0
  assert parts["buffer"].area_m2 == 6 * 3 * 43
  total = cost.network_cost(np.array([3]), geometry)
  assert total.latency_second == 6 * (7 + 3 * 3)  # 3 columns take turns


def test_where_a_sense_amplifier_reads():
  for rows, binarized, adc_bits, sensed in (
    (16, True, 0, True),
    (17, True, 0, False),
    (16, False, 0, False),
    (16, True, 1, True),
    (16, False, 1, False),
    (17, False, 1, False),
    (16, True, 6, False),
  ):
    hardware = dataclasses.replace(_HARDWARE, adc_bits=adc_bits)
    geometry = _one(rows, 1, 6, binarized, hardware)
    adders = cost.components(np.array([3]), geometry)["partial_sums"]
    assert (adders.energy_joule == 0) == sensed, (rows, binarized, adc_bits)
    assert hardware.converter_bits == (6 if adc_bits == 6 else 5)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_converters_tell_all_sums_of_a_column_apart(rows):
  """Sums of +-1 over the driven rows, their number known."""
  hardware = dataclasses.replace(_HARDWARE, tile_shape=(rows, 8))
  most = max(
    len({2 * positive - driven for positive in range(driven + 1)})
    for driven in range(rows + 1)
  )
  assert 2 ** (hardware.converter_bits - 1) < most <= 2**hardware.converter_bits


def test_array_energy_is_that_of_all_cells(rng):
  """V^2 G t over every cell of every array that a driven row crosses."""
  rows, columns = 27, 10
  signs = rng.choice([-1, 1], (rows, columns))
  pairs = np.full((2, 32, 16), _HARDWARE.g_off)  # tiles side by side
  pairs[0, :rows, :columns][signs > 0] = _HARDWARE.g_on
  pairs[1, :rows, :columns][signs < 0] = _HARDWARE.g_on
  bits = np.zeros(32)
  bits[:rows] = rng.random(rows) < 0.6
  brute = 2.0**2 * 7 * np.einsum("r,prc->", bits, pairs)
  hardware = dataclasses.replace(_HARDWARE, activity=bits.sum() / rows)
  parts = cost.components(np.array([columns]), _one(3, 9, 1, False, hardware))
  assert parts["array"].energy_joule == pytest.approx(brute)


@pytest.mark.parametrize("mapping", crossbar.MAPPINGS)
def test_costs_follow_the_cells_of_programmed_tiles(rng, mapping):
  """Arrays, cells, lines and columns of a chip are counted; energy: V^2 G t."""
  device = crossbar.Device(
    g_on=1e-4, g_off=2e-5, read_voltage=2.0, tile_shape=(16, 8), mapping=mapping
  )
  rows, columns = 27, 10
  # Half of every row's weights are +1, as costs take them to be.
  signs = rng.permuted(np.tile([-1.0, 1.0], (rows, columns // 2)), axis=1)
  params = {"params": {"it": {"kernel": np.float32(signs)}}}
  chip = cells.chip_cells(jax.random.key(0), params, device)["it"]
  g = np.asarray(chip.conductances[0], np.float64)  # tiles, arrays, lines
  num_rows, num_columns, arrays = g.shape[:3]
  bits = rng.random(rows) < 0.6
  lines_of_row = 2 if mapping == "complementary" else 1
  lines = np.repeat(bits, lines_of_row)
  lines = np.pad(lines, (0, num_rows * 16 - len(lines))).reshape(num_rows, 16)
  hardware = cost.hardware(device, _ROUND, activity=bits.sum() / rows)
  geometry = _one(3, 9, 1, False, hardware)
  parts = cost.components(np.array([columns]), geometry)
  brute = 4.0 * 7 * np.einsum("tr,tcarw->", lines, g)
  assert parts["array"].energy_joule == pytest.approx(brute)
  assert parts["array"].area_m2 == g.size * 13
  assert parts["drivers"].area_m2 == g.size / g.shape[-1] * 19
  driven = lines.sum() * num_columns * arrays
  assert parts["drivers"].energy_joule == pytest.approx(driven * 17)
  read = num_rows * columns * arrays * (1 + (mapping == "interleaved"))
  read += num_rows * num_columns * (g.shape[-1] - 8)  # references
  assert parts["sample_hold"].energy_joule == read * 23
  assert parts["sample_hold"].area_m2 == g.size / 16 * 29
  number = 1 if mapping == "interleaved" else 2  # of 4 or 8 columns of weights
  assert parts["converters"].area_m2 / (num_rows * num_columns * number) == (
    5 + hardware.converter_bits + 0.25 * 2**hardware.converter_bits
  )
  single = num_rows * num_columns * arrays
  total = cost.network_cost(np.array([columns]), geometry)
  assert total.arrays == -(-single // 2) and total.weights == rows * columns
  used = cost.utilisation(np.array([columns]), geometry).cells
  weights = num_rows * num_columns * hardware.weights_of_pair * arrays / 2
  assert used == pytest.approx(rows * columns / weights)


@pytest.mark.parametrize(
  "mapping, conversions, converters, turns, currents",
  [
    # 2 row tiles, 10 columns of weights of 8 a tile, 4 a converter.
    ("differential", 2 * 10 * 2, 2 * 2, 4, 10 * (3 + 1)),
    # 3 tiles' columns of 4 weights in 8 bit lines.
    ("interleaved", 2 * 10 * 2, 2, 4, 10 * (3 + 1)),
    # A bias column a tile: 9 bit lines.
    ("single", 2 * (10 + 2), 3, 4, (10 + 2) * (3 + 1) / 2),
  ],
)
def test_both_currents_have_converters_by_hand(
  mapping, conversions, converters, turns, currents
):
  """27 rows, 10 columns, 6 positions, 5 bits; else as subtracted currents."""
  hardware = dataclasses.replace(_HARDWARE, mapping=mapping)
  digital = dataclasses.replace(hardware, subtraction="digital")
  before, after = (
    cost.components(np.array([10]), _one(3, 9, 6, False, h))
    for h in (hardware, digital)
  )
  driven = 27 * 0.5
  convert = 1 + 2 * 5 + 3 * 5**2 + 0.5 * 2**5
  tiles = 2 * (3 if mapping == "interleaved" else 2)
  moved = 27 + 2 * 10 * 6  # a difference of 5-bit codes has 6
  expected = {
    **before,
    "converters": (
      6 * (conversions * convert + 11 * 2 * driven * currents * 11),
      tiles * converters * (5 + 5 + 0.25 * 2**5),
    ),
    "partial_sums": (6 * conversions * 31, tiles * converters * 37),
    "interconnect": (
      6 * (moved * 47 + 10 * 16 * 53),
      before["interconnect"].area_m2,
    ),
  }
  for name, amount in after.items():
    assert amount == pytest.approx(tuple(expected[name])), name
  total = cost.network_cost(np.array([10]), _one(3, 9, 6, False, digital))
  assert total.latency_second == 6 * (7 + turns * 11)
  assert not digital.may_sense(True)
  with pytest.raises(errors.InputError, match="subtraction: got 'digital', al"):
    dataclasses.replace(digital, mapping="offset")


def test_a_mapping_of_one_cell_buys_twice_the_width():
  """In the same arrays; of two word lines, as much as a differential pair."""
  wide, narrow = np.array([256]), np.array([128])

  def arrays(mapping, widths):
    hardware = cost.Hardware((64, 64), mapping=mapping)
    return cost.network_cost(widths, _one(64, 9, 1, False, hardware)).arrays

  assert arrays("differential", narrow) == 9 * 2
  assert arrays("complementary", narrow) == 9 * 2
  assert arrays("single", wide) == arrays("offset", wide) == 9 * 2


def test_inputs_that_are_counted():
  """By an adder a row and one a column; no fixed threshold reads the rest."""
  offset = dataclasses.replace(_HARDWARE, mapping="offset")
  parts = cost.components(np.array([3]), _one(16, 1, 6, True, offset))
  adders = 16 + 3 + 3  # rows, columns' counts, partial sums
  assert parts["partial_sums"].energy_joule == 6 * adders * 31
  single = dataclasses.replace(_HARDWARE, mapping="single")
  assert single.may_sense(True) and not offset.may_sense(True)


def test_copies_divide_time_and_multiply_area():
  base = cost.network_cost(np.array([10]), _one(3, 9, 7))
  for copies, reads in ((2, 4), (7, 1), (100, 1), ((3,), 3)):
    hardware = dataclasses.replace(_HARDWARE, duplication=copies)
    got = cost.network_cost(np.array([10]), _one(3, 9, 7, False, hardware))
    assert got[:4] == base[:4]
    assert got.latency_second == pytest.approx(base.latency_second * reads / 7)
    buffer = 7 * 10 * 16 * 43
    number = min(copies[0] if isinstance(copies, tuple) else copies, 7)
    assert got.area_m2 - buffer == pytest.approx(
      number * (base.area_m2 - buffer)
    )


def test_overlapped_reads_and_conversions():
  tech = dataclasses.replace(_ROUND, overlapped=True)
  hardware = dataclasses.replace(_HARDWARE, technology=tech)
  got = cost.network_cost(np.array([10]), _one(3, 9, 6, False, hardware))
  assert got.latency_second == 6 * 4 * 11
  assert got.interval_second == 6 * 4 * 11


@pytest.mark.parametrize("rows, convert", [(16, 3), (17, 11)])
def test_cells_may_conduct_while_columns_are_converted(rows, convert):
  """3 columns in turns, by a sense amplifier or 2 x 5 bits: nothing else."""
  tech = dataclasses.replace(_ROUND, conduction=0.25)
  hardware = dataclasses.replace(_HARDWARE, technology=tech)
  geometries = (_one(rows, 1, 6, True, h) for h in (_HARDWARE, hardware))
  base, longer = (cost.components(np.array([3]), g) for g in geometries)
  ratio = longer["array"].energy_joule / base["array"].energy_joule
  assert ratio == pytest.approx((7 + 0.25 * 3 * convert) / 7)
  assert {**longer, "array": base["array"]} == base


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"duplication": 0}, "duplication: got 0, allowed"),
    ({"duplication": (1, 2.0)}, "duplication: got"),
    ({"duplication": (1, 1)}, "duplication: got 2 numbers, needed is one"),
    ({"activity": 1.5}, "activity: got 1.5, allowed"),
    ({"activity": float("nan")}, "activity: got nan, allowed"),
    ({"g_on": float("nan")}, "g_on: got nan, allowed is a finite number above"),
    ({"g_off": 4.0}, "g_off: got 4.0, allowed is at most g_on"),
    ({"read_voltage": 0}, "read_voltage: got 0, allowed"),
    ({"adc_bits": 2.5}, "adc_bits: got 2.5, allowed are integers from 0 to 16"),
    ({"tile_shape": (0, 8)}, "tile_shape: got .0, 8., allowed are"),
    ({"mapping": "xnor"}, "mapping: got 'xnor', allowed is one of diff"),
    (
      {"mapping": "complementary", "tile_shape": (15, 8)},
      "tile_shape: got .15, 8., allowed is an even number of rows",
    ),
    (
      {"mapping": "interleaved", "tile_shape": (16, 9)},
      "tile_shape: got .16, 9., allowed is an even number of columns",
    ),
    ({"subtraction": "both"}, "subtraction: got 'both', allowed is one of ana"),
    ({"technology": "isaac_32nm"}, "technology: got 'isaac_32nm', allowed"),
    (
      {"technology": dataclasses.replace(_ROUND, read_time=float("nan"))},
      "technology.read_time: got nan, allowed is a finite number",
    ),
  ],
)
def test_bad_hardware_is_refused(fields, message):
  with pytest.raises(errors.InputError, match=message):
    _one(3, 9, 6, False, dataclasses.replace(_HARDWARE, **fields))


def test_hardware_of_a_device():
  device = crossbar.preset("mnsim")
  tech = cost.technology("neurosim_22nm")
  got = cost.hardware(device, tech, (2, 3))
  assert got == cost.Hardware(
    (128, 128), 1 / 3e4, 1 / 1.5e5, 0.5, 6, tech, (2, 3), 1.0
  )
  # An absent effect's severity may be None.
  device = dataclasses.replace(device, adc_bits=None)
  assert cost.hardware(device).converter_bits == 8


def test_published_converters():
  """ISAAC's to 0.01 pJ and 1 um^2, NeuroSim's formula; 21 times apart."""
  isaac, neurosim = map(cost.technology, ("isaac_32nm", "neurosim_22nm"))
  for bits, picojoule, micron2 in zip(
    range(4, 9),
    (0.79, 0.99, 1.20, 1.42, 1.67),
    (361, 477, 627, 845, 1200),
    strict=True,
  ):
    assert isaac.convert_energy(bits) == pytest.approx(
      picojoule * 1e-12, abs=0.0101e-12
    )
    assert isaac.converter_area(bits) == pytest.approx(
      micron2 * 1e-12, abs=1.1e-12
    )
    watt = (0.538 * bits + 4.3753) * 1e-6
    assert neurosim.convert_energy(bits) == pytest.approx(
      watt * (bits + 1) * 1e-9
    )
    assert neurosim.convert_time(bits) == pytest.approx((bits + 1) * 1e-9)
  gate = 28 * 7.6 * (22e-9) ** 2
  assert neurosim.converter_area(8) == pytest.approx(
    gate * (269 + 7 * 109 + 209 + 7 * 73)
  )
  ratio = isaac.convert_energy(8) / neurosim.convert_energy(8)
  assert 20 < ratio < 22


def test_energies_of_a_bit_are_isaacs_powers_at_accelergys_rate():
  """9.6 Gbit/s empty an IMA's input buffer of 2 KB; 256 B are results."""
  isaac, bits = cost.technology("isaac_32nm"), (2048 + 256) * 8
  seconds = 2048 * 8 / 9.6e9
  for energy, watt, passes in (
    (isaac.buffer_energy, 20.7e-3 / 12, 2),
    (isaac.bus_energy, 7e-3 / 12, 1),
    (isaac.router_energy, 42e-3 / 4 / 12, 1),
  ):
    assert energy == pytest.approx(watt * seconds / (bits * passes), rel=5e-4)


def test_cells_of_neurosim():
  """One transistor: 4 F x 12 F, F = 22 nm; 0.19 mm^2 of HAWIS-A's arrays."""
  tech = cost.technology("neurosim_22nm")
  assert tech.cell_area == pytest.approx(0.0232e-12, rel=2e-3)
  device = crossbar.preset("reram_wan2022")
  hardware = cost.hardware(device, tech)
  geometry = cost.cifar_geometry(20, (32, 32, 3), 32, 10, hardware)
  widths = np.array(width_vectors.PRESETS["resnet20_hawis_a"])
  area = 1e6 * cost.components(widths, geometry)["array"].area_m2
  assert area == pytest.approx(1020 * 2 * 64**2 * 48 * 0.022e-3**2)


def test_power_of_an_isaac_tile():
  """Table I of ISAAC: 12 IMAs of 8 arrays 128 x 128, a read every 100 ns.

  As 48 pairs whose rows are all driven. ISAAC converts every array's columns,
  we the difference of a pair: converters and adders are counted twice here. Its
  memory is built for the peak: we read an input bit once, so that our traffic
  must be less than it can do. Its registers (1.47 mW an IMA) and its pooling
  are not modelled.
  """
  voltage = 0.1
  # 0.3 mW an array.
  mean = 0.3e-3 / (voltage**2 * 128 * 128)
  tech = cost.technology("isaac_32nm")
  hardware = cost.Hardware((128, 128), 1.9 * mean, 0.1 * mean, voltage, 8, tech)
  geometry = _one(48 * 128, 1, 1, False, hardware)
  widths = np.array([128])
  assert cost.network_cost(widths, geometry).arrays == 48
  parts = cost.components(widths, geometry)
  watt = {name: part.energy_joule / 100e-9 for name, part in parts.items()}
  tile = {
    "array": 12 * 2.4e-3,
    "drivers": 12 * 4e-3,
    "sample_hold": 12 * 10e-6,
  }
  for name, expected in tile.items():
    assert watt[name] == pytest.approx(expected, rel=1e-6), name
  # 128 columns in 100 ns are 1.28 GS/s, the table's power is at 1.2: 7 %.
  assert 2 * watt["converters"] == pytest.approx(12 * 16e-3, rel=0.07)
  assert 2 * watt["partial_sums"] == pytest.approx(12 * 0.2e-3, rel=0.07)
  units = sum(watt[name] for name in tile) + 2 * (
    watt["converters"] + watt["partial_sums"]
  )
  assert units == pytest.approx(289e-3 - 12 * 1.47e-3, rel=0.06)
  # The bus brings every row of every array a bit a read.
  bus = 96 * 128 * tech.bus_energy / 100e-9
  assert bus == pytest.approx(7e-3, rel=0.06)
  assert 0.2 * 20.7e-3 < watt["buffer"] < 20.7e-3
  sums = (48 * 128 * 8 + 48 * 128) * tech.bus_energy / 100e-9
  router = watt["interconnect"] - sums
  assert 0 < router < 42e-3 / 4
  # Areas [mm^2]; one converter a pair here, so twice. ISAAC, too, has one adder
  # of two arrays.
  area = {name: 1e6 * part.area_m2 for name, part in parts.items()}
  assert area["array"] == pytest.approx(12 * 0.0002)
  assert area["drivers"] == pytest.approx(12 * 0.00017)
  assert area["sample_hold"] == pytest.approx(12 * 0.00004)
  assert 2 * area["converters"] == pytest.approx(12 * 0.0096, rel=1e-3)
  assert area["partial_sums"] == pytest.approx(12 * 0.00024)
  assert area["interconnect"] == pytest.approx(0.090 + 0.151 / 4)


def test_presets_are_valid_and_named():
  for name, tech in cost.TECHNOLOGIES.items():
    assert cost.validate_technology(tech) is tech
    assert tech.name == name
  with pytest.raises(errors.InputError, match="got 'tsmc', allowed are isaac"):
    cost.technology("tsmc", "config.cost.technology")


def test_a_file_may_start_from_a_preset(tmp_path):
  path = tmp_path / "mine.json"
  path.write_text(
    json.dumps({"preset": "isaac_32nm", "adc_energy": [0.5e-12, 1e-12, 0, 0]})
  )
  expected = dataclasses.replace(
    cost.technology("isaac_32nm"),
    name="mine",
    adc_energy=(0.5e-12, 1e-12, 0, 0),
  )
  assert cost.technology_from_json(path.read_text(), str(path)) == expected
  path.write_text(json.dumps(dataclasses.asdict(_ROUND)))
  assert cost.technology_from_json(path.read_text(), str(path)) == _ROUND


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "can't be read: "),
    ("[1]", "got a list, needed is an object"),
    ("{}", "got no read_time, overlapped, "),
    ('{"preset": "x"}', "preset: got 'x', allowed are isaac_32nm"),
    ('{"preset": "isaac_32nm", "read_tme": 1}', "did you mean 'read_time'"),
    ('{"preset": "isaac_32nm", "read_time": 0}', "read_time: got 0, allowed"),
    (
      '{"preset": "isaac_32nm", "cell_area": NaN}',
      "can't be read: got the number NaN",
    ),
    ('{"preset": "isaac_32nm", "cell_area": true}', "cell_area: got True"),
    ('{"preset": "isaac_32nm", "overlapped": 1}', "overlapped: got 1"),
    ('{"preset": "isaac_32nm", "conduction": 1.5}', "conduction: got 1.5, all"),
    ('{"preset": "isaac_32nm", "value_bits": 2.5}', "value_bits: got 2.5"),
    ('{"preset": "isaac_32nm", "adc_time": [1]}', "adc_time: got .1,"),
    ('{"preset": "isaac_32nm", "name": ""}', "name: got ''"),
    ('{"preset": "isaac_32nm", "sense_energy": 1}', "adc_energy: got"),
  ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, text, message):
  path = tmp_path / "bad.json"
  path.write_text(text)
  with pytest.raises(errors.InputError, match=message) as error:
    cost.technology_from_json(path.read_text(), str(path))
  assert "\n" not in str(error.value)
  assert str(path) in str(error.value)
