"""The memory device and the crossbar around it: parameters and checks.

An effect has a *severity*, one number; at severity 0 it is absent and costs
nothing. What else its formula needs are constants. docs/crossbar.md has the
formulas and their order.

Axes: S chips, R rows and C columns of a tile.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors

MAPPINGS = (
  "differential",
  "single",
  "offset",
  "complementary",
  "interleaved",
)
SUBTRACTIONS = ("analog", "digital")
ADC_RANGES = ("full_scale", "calibrated", "granular")
WHITE_NOISE_LAWS = ("independent", "proportional", "inverse")
SIDES = ("first", "last")


def _static(default):
  return dataclasses.field(default=default, metadata=dict(static=True))


@dataclasses.dataclass(frozen=True)
class Device:
  """Holds a ReRAM device and the crossbar tile it sits in; SI units.

  Defaults: the published HAWIS tolerance test (see `presets`), without effects.

  >>> import hawis_jax as hx
  >>> device = hx.Device(stuck_off=0.09, stuck_on=0.0175)
  >>> device.tile_shape, device.adc_bits
  ((64, 64), 0)

  Severities and most constants may be traced arrays, so that a sweep over
  severities compiles once; the rest is marked static below. An effect whose
  severity is 0 or None is absent.

  Attributes:
    g_on: conductance of the low-resistance state [S].
    g_off: conductance of the high-resistance state [S].
    read_voltage: of an input bit 1 [V]; 0 V is bit 0.
    tile_shape: (rows, columns) of one array.
    mapping: of a weight of 1 bit onto cells: "differential": one in each of two
      arrays; "single": one, less a reference column's; "offset": one, less what
      the digital side counts of the inputs; "complementary": two on
      neighbouring word lines of opposite voltages; "interleaved": two on
      neighbouring bit lines of one array (docs/crossbar.md).
    subtraction: of what a weight is less: "analog": of currents, before a
      converter; "digital": of codes, after one for each of both currents. That
      of "single" is the reference's, then a bias column.
    cell_bits: of a weight of several bits that one cell holds; its slices lie
      in arrays of their own. 0: one analog cell holds all of them.
    spare_level: an analog cell has a level more than the largest weight needs,
      as in the published 8-bit mapping, whose 127 is 127/128 of the range.
    analog_inputs: inputs of several bits are voltages of a DAC, one read, as in
      the published code; else bits of `read_voltage`, a read a bit.
    stuck_on: share of cells stuck at `g_on` (chip scope).
    stuck_off: share of cells stuck at `g_off` (chip scope).
    stuck_cells_vary: stuck cells have variation and drift too, as in the
      published code; else they sit at exactly `g_on` or `g_off`.
    dead_rows: share of word lines that carry no current (chip scope).
    dead_columns: share of bit lines that carry no current (chip scope).
    chip_dispersion: rho of the share of a chip's cells that are stuck, beta
      distributed, of mean stuck_on + stuck_off = p and variance rho p (1 - p):
      chips' numbers of stuck cells are beta-binomial (chip scope).
    tile_dispersion: the same of tiles about their chip's share.
    fault_cluster: side of the squares of cells that are stuck alike [cells]; 1:
      cells one by one.
    variation: gamma, sigma of the lognormal device-to-device variation
      G exp(-theta), theta ~ N(0, gamma^2) (chip scope).
    chip_variation: the same of one theta for all cells of a chip.
    tile_variation: the same of one theta for all cells of a tile's arrays.
    gaussian_variation: s of the variation max(G (1 + s n), 0), n ~ N(0, 1)
      (chip scope).
    write_error: programming error max(G + severity sigma(G) n, 0), n ~ N(0, 1)
      (write scope); 1: as measured.
    write_sigma: (c_0, c_1, ...) of sigma(G) = max(c_0 + c_1 G + ..., 0), both
      in microsiemens, as measurements are published.
    write_range: (least, greatest) target conductance that `write_sigma` was
      measured for [S].
    drift_time: t, since programming [s] (chip scope): G (t / t_0)^-nu with
      nu ~ max(N(mu, sigma^2), 0); no drift up to t_0.
    drift_start: t_0 [s].
    drift_mean: measured (a, b, low, high) of mu = clip(a ln(G / g_on) + b, low,
      high).
    drift_std: the same of sigma.
    relaxation: of cells towards other conductances after programming (chip
      scope): G + severity (shift(G_0) ln(t / t_0) + (spread(G_0) + growth(G_0)
      ln(t / t_0)) n), n ~ N(0, 1), G_0 the target; 1: as measured.
    relaxation_shift: (c_0, c_1, ...) of a polynomial as `write_sigma`'s, of the
      mean's shift [uS]; a time up to t_0 counts as t_0.
    relaxation_spread: the same of the standard deviation at t_0.
    relaxation_growth: the same of what it grows by with ln(t / t_0).
    relaxation_start: t_0 [s].
    retention_time: t of relaxation and 1/f noise, since programming [s]; that
      of drift, `drift_time`, where it is the later one.
    flicker_noise: 1/f noise that has accumulated (chip scope): G + severity
      (G min(a (G' / g_on)^-p, m) + K log10(G)) sqrt(ln((t + t_r) / 2 t_r)) n,
      n ~ N(0, 1), G' before drift, K and log10's G in microsiemens, log10 at
      least 0; 1: as measured.
    flicker: its measured (a, p, m, K).
    flicker_read: t_r, of a read [s].
    read_disturb: reads since programming, n (chip scope; it is not random):
      each takes a cell the same share nearer to g_on, as pulses of the
      polarity that sets it do: g_on - (g_on - G) exp(-n disturb).
    disturb: that share.
    temperature_rise: from programming to reading [K] (chip scope; it is not
      random): G exp(-(E / k) (1 / T - 1 / (T - rise))), T = `temperature`.
    activation: energies E [eV] of a cell of g_on and of one of g_off, between
      them linear in ln(G), beyond them those of the ends; below 0 of a metal.
    white_noise: of a driven cell at every read, whatever causes it (read
      scope): s of a standard deviation that `white_noise_law` says.
    white_noise_law: "independent": s g_on; "proportional": s G; "inverse":
      s g_on^2 / G, 0 of a cell without conductance.
    read_noise: thermal and shot noise (read scope), of variance
      G df 2 q coth(q V / 2 k T) / V of a driven cell, 4 k T G df / V^2 of one
      whose row is at 0 V; a factor of its standard deviation, 1: as in physics.
    bandwidth: df [Hz].
    temperature: T [K], at which cells are read.
    dac_noise: s of the voltage V (1 + s n), n ~ N(0, 1), of a word line whose
      input bit is 1, new at every read (read scope); one for all cells of a row
      of tiles.
    telegraph_noise: random telegraph noise (read scope): with probability 1/2
      a cell has G + severity dG, dG = G (b G + a) / (G - b G - a), where G > 2
      a.
    telegraph: its (a [S], b).
    legacy_noise: the published test's noise, for comparison only (see
      `defects.legacy_noise`; chip scope here); 1: as published.
    wire_resistance: of a wire from cell to cell [ohm] (see `wires`), of the
      lines that feed the cells and of the bit lines, that are read.
    load_resistance: of a line's driver and of its sensing end [ohm].
    source_wire_resistance: what the wires that feed the cells have beside
      `wire_resistance` [ohm]: word lines or, of `gated` cells, source lines.
    sense_wire_resistance: the same of the bit lines.
    source_load_resistance: what drivers have beside `load_resistance` [ohm].
    sense_load_resistance: the same of the sensing ends.
    source_side: the end of the feeding lines that is driven: "first" or "last",
      at their first or last cell (word lines: column; source lines: row).
    sense_side: the end of the bit lines, at the first or the last row, that is
      read.
    gated: cells are 1T1R: a word line opens the gates of its row, and feeds
      nothing; source lines beside the bit lines feed the cells.
    nonlinearity: a of cells' I-V curves [1/V]: a cell of conductance G conducts
      G V sinh(a v) / sinh(a V) at v, V the read voltage; with resistive wires
      each input is solved for. 0: cells are ohmic.
    adc_bits: of the converter that reads a tile's column; 0: ideal; 1: a sense
      amplifier, whose threshold a channel is the folded normalisation's (see
      `robustness.calibration`).
    adc_offset: sigma of the offset of each column's converter, in units of one
      weight of 1 at one input of 1 (chip scope).
    adc_gain: relative sigma of its gain about 1 (chip scope).
    adc_noise: sigma of its noise, in the units of `adc_offset` (read scope).
    adc_mismatch: relative sigma of a unit capacitor of a SAR converter, whose
      capacitors are binary-weighted (chip scope; see
      `defects.capacitor_errors`).
    adc_inl: integral non-linearity that all converters have: deviations [LSB]
      of the levels at which codes change, evenly spaced from the lowest to the
      highest level, linear in between; as many as levels: each one's.
    adc_range: "full_scale": all rows of a tile at the largest weight;
      "calibrated" from data (see `robustness.calibration`); or "granular": an
      LSB of one weight of 1 at one input of 1, which saturates. With digital
      subtraction codes are from 0 on, and full scale is all cells of a tile on.
    adc_percentile: of the magnitude of a layer's partial sums that the
      calibrated range covers.
  """

  def __new__(cls, *_, **fields):
    """Makes a device; of a name that is no field an error says the likeliest.

    Raises:
      InputError: there is no such field.
    """
    errors.check_fields(fields, tuple(cls.__dataclass_fields__), "Device")
    return super().__new__(cls)

  g_on: float = 3.33e-4
  g_off: float = 3.33e-7
  stuck_on: float = 0.0
  stuck_off: float = 0.0
  variation: float = 0.0
  tile_shape: tuple[int, int] = _static((64, 64))
  read_voltage: float = 3.3
  cell_bits: int = _static(0)
  spare_level: bool = _static(False)
  analog_inputs: bool = _static(False)
  stuck_cells_vary: bool = _static(False)
  dead_rows: float = 0.0
  dead_columns: float = 0.0
  gaussian_variation: float = 0.0
  write_error: float = 0.0
  write_sigma: tuple[float, ...] = (0.0,)
  write_range: tuple[float, float] = (0.0, 1.0)
  drift_time: float = 0.0
  drift_start: float = 1.0
  drift_mean: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  drift_std: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  read_noise: float = 0.0
  bandwidth: float = 1e7
  temperature: float = 300.0
  telegraph_noise: float = 0.0
  telegraph: tuple[float, float] = (1.662e-7, 0.0015)
  legacy_noise: float = 0.0
  wire_resistance: float = 0.0
  load_resistance: float = 0.0
  adc_bits: int = 0
  adc_range: str = _static("full_scale")
  adc_percentile: float = _static(99.9)
  chip_variation: float = 0.0
  tile_variation: float = 0.0
  chip_dispersion: float = 0.0
  tile_dispersion: float = 0.0
  fault_cluster: int = _static(1)
  mapping: str = _static("differential")
  relaxation: float = 0.0
  relaxation_shift: tuple[float, ...] = (0.0,)
  relaxation_spread: tuple[float, ...] = (0.0,)
  relaxation_growth: tuple[float, ...] = (0.0,)
  relaxation_start: float = 1.0
  retention_time: float = 1.0
  flicker_noise: float = 0.0
  flicker: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  flicker_read: float = 2.5e-7
  read_disturb: float = 0.0
  disturb: float = 0.0
  temperature_rise: float = 0.0
  activation: tuple[float, float] = (0.0, 0.0)
  white_noise: float = 0.0
  white_noise_law: str = _static("independent")
  adc_offset: float = 0.0
  adc_gain: float = 0.0
  adc_noise: float = 0.0
  source_wire_resistance: float = 0.0
  sense_wire_resistance: float = 0.0
  source_load_resistance: float = 0.0
  sense_load_resistance: float = 0.0
  source_side: str = _static("first")
  sense_side: str = _static("last")
  gated: bool = _static(False)
  adc_mismatch: float = 0.0
  adc_inl: tuple[float, ...] = _static((0.0,))
  dac_noise: float = 0.0
  subtraction: str = _static("analog")
  nonlinearity: float = 0.0


_FIELDS = tuple(field.name for field in dataclasses.fields(Device))
_STATIC = tuple(
  f.name for f in dataclasses.fields(Device) if f.metadata.get("static")
)
_LEAVES = tuple(name for name in _FIELDS if name not in _STATIC)

# Severities of random effects; 0 is ideal.
DEFECTS = (
  "stuck_on",
  "stuck_off",
  "dead_rows",
  "dead_columns",
  "variation",
  "gaussian_variation",
  "write_error",
  "drift_time",
  "read_noise",
  "telegraph_noise",
  "legacy_noise",
  "chip_variation",
  "tile_variation",
  "chip_dispersion",
  "tile_dispersion",
  "relaxation",
  "flicker_noise",
  "read_disturb",
  "temperature_rise",
  "white_noise",
  "adc_offset",
  "adc_gain",
  "adc_noise",
  "adc_mismatch",
  "dac_noise",
)
# Of them, what is no draw: chips are alike.
NOT_RANDOM = ("read_disturb", "temperature_rise")
# Of converters as they are built.
CONVERTER_ERRORS = ("adc_offset", "adc_gain", "adc_noise", "adc_mismatch")
# Random ones of the circuits around cells.
CIRCUIT_ERRORS = (*CONVERTER_ERRORS, "dac_noise")
# Severities of IR drop.
WIRES = (
  "wire_resistance",
  "load_resistance",
  "source_wire_resistance",
  "sense_wire_resistance",
  "source_load_resistance",
  "sense_load_resistance",
)
# With which currents on resistive wires are not linear in the inputs.
BY_INPUT = ("gated", "nonlinearity")
# Severities of all effects.
EFFECTS = (*DEFECTS, *WIRES, "nonlinearity", "adc_bits")
_DRIFT = ("drift_mean", "drift_std")
_RELAXATION = ("relaxation_shift", "relaxation_spread", "relaxation_growth")
_POLYNOMIALS = ("write_sigma", *_RELAXATION)  # of any length
_CELL_NOISE = ("read_noise", "telegraph_noise", "white_noise")
_READ_NOISE = (*_CELL_NOISE, "dac_noise")
TILE_EFFECTS = ("adc_bits", *_READ_NOISE)  # read-out is no linear map then
# {what is solved for each input on resistive wires: what it leaves out}.
_NOT_SOLVED = {
  "gated": ("telegraph_noise", "white_noise", "dac_noise"),
  "nonlinearity": _READ_NOISE,
}
# {word: severities that it is refused with, whatever they are}.
_WORDS_WITHOUT = {
  "analog_inputs": (*_READ_NOISE, "nonlinearity"),
  "gated": ("dac_noise", "nonlinearity"),
}
_STUCK = ("stuck_on", "stuck_off", "chip_dispersion", "tile_dispersion")
_RATES = ("stuck_on", "stuck_off")
_BY_VOLTAGE = ("read_noise", "legacy_noise")
# {field: effects of which it says something, and nothing where none is there}.
_SAYS_OF = {
  "chip_dispersion": _RATES,
  "tile_dispersion": _RATES,
  "fault_cluster": _RATES,
  "drift_start": ("drift_time",),
  "retention_time": ("relaxation", "flicker_noise"),
  "relaxation_start": ("relaxation",),
  "flicker_read": ("flicker_noise",),
  "disturb": ("read_disturb",),
  "read_voltage": (*_BY_VOLTAGE, "nonlinearity"),
  "bandwidth": _BY_VOLTAGE,
  "temperature": (*_BY_VOLTAGE, "temperature_rise"),
  "white_noise_law": ("white_noise",),
  "source_side": WIRES,
  "sense_side": WIRES,
  "gated": WIRES,
  "nonlinearity": WIRES,
  "adc_range": ("adc_bits",),
  "adc_percentile": ("adc_bits",),
  "subtraction": ("adc_bits",),
}
# What is of the circuits around cells and of where they are, not of the memory.
_CIRCUIT = (
  "bandwidth",
  "temperature",
  "tile_shape",
  "mapping",
  "subtraction",
  "cell_bits",
  "spare_level",
  "analog_inputs",
  *WIRES,
  "source_side",
  "sense_side",
  "gated",
  "adc_bits",
  "adc_range",
  "adc_percentile",
  "adc_inl",
)
# What a scenario may set: numbers and words, of which each chip has one.
SCENARIO_FIELDS = tuple(
  field.name
  for field in dataclasses.fields(Device)
  if not isinstance(field.default, tuple)
)


def is_present(severity: Any) -> bool:
  """Returns whether an effect may act: not where its severity is known as 0."""
  # A traced severity counts as present: its value is not known here.
  known = severity is None or isinstance(severity, int | float)
  return not known or bool(severity)


def _flatten(device):
  """Returns leaves, where an absent effect's severity is None: structure.

  So a function that takes a device as an argument compiles what is present.
  """
  fields = dict(vars(device))
  for name in EFFECTS:
    if not is_present(fields[name]):
      fields[name] = None
  static = [fields.pop(name) for name in _STATIC]
  return list(fields.values()), tuple(static)


def _unflatten(static, leaves):
  return Device(
    **dict(zip(_LEAVES, leaves, strict=True)),
    **dict(zip(_STATIC, static, strict=True)),
  )


jax.tree_util.register_pytree_node(Device, _flatten, _unflatten)


def without_defects(device: Device) -> Device:
  """Returns `device` without random effects; with its wires and converters."""
  return dataclasses.replace(device, **dict.fromkeys(DEFECTS, 0.0))


def without_effects(device: Device) -> Device:
  """Returns `device` with all effects at 0, wires and converters too."""
  return dataclasses.replace(device, **dict.fromkeys(EFFECTS, 0.0))


def in_circuit(memory: Device, circuit: Device) -> Device:
  """Returns `memory` in the tiles, wires and converters of `circuit`.

  Bandwidth and temperature are the circuit's too: a memory's `temperature_rise`
  ends at the temperature of the circuit, at which it is read. Effects that are
  in `DEFECTS`, those of converters among them, are the memory's.
  """
  around = {name: getattr(circuit, name) for name in _CIRCUIT}
  return dataclasses.replace(memory, **around)


def scaled(device: Device, share: Any) -> Device:
  """Returns `device` with a share of its severities, that may be traced.

  A converter stays as it is: a share of its bits would mean nothing.
  """
  severities = {x: getattr(device, x) for x in EFFECTS if x != "adc_bits"}
  return dataclasses.replace(
    device, **{k: v * share for k, v in severities.items() if is_present(v)}
  )


def stack(devices: Sequence[Device]) -> Device:
  """Returns devices of several chips as one: every leaf float32 `[S]`.

  An effect that is absent everywhere is None; where some have it, the others
  have it at severity 0. Shorter polynomials have coefficients of 0.

  Raises:
    InputError: one is bad, or they differ in a static field.
  """
  check_stack(devices)
  there = [
    field
    for field in EFFECTS
    if any(is_present(getattr(device, field)) for device in devices)
  ]
  severities = {
    field: jnp.array([getattr(d, field) or 0 for d in devices], jnp.float32)
    for field in there
  }
  longest = {
    field: max(len(getattr(device, field)) for device in devices)
    for field in _POLYNOMIALS
  }

  def constants_of(device):
    padded = {
      field: (getattr(device, field) + (0.0,) * length)[:length]
      for field, length in longest.items()
    }
    return dataclasses.replace(without_effects(device), **padded)

  constants = jax.tree.map(
    lambda *leaves: jnp.array(leaves, jnp.float32), *map(constants_of, devices)
  )
  return dataclasses.replace(constants, **severities)


def check_stack(devices: Sequence[Device]) -> None:
  """Checks that devices can be stacked, without making arrays.

  Raises:
    InputError: one is bad, or they differ in a static field; or, on resistive
      wires, some have what is solved for each input and others what that
      leaves out, noise a read or digital subtraction.
  """
  for device in devices:
    validate(device)
  if devices:
    there = {
      field: float(any(is_present(getattr(d, field)) for d in devices))
      for field in EFFECTS
    }
    together = dataclasses.replace(devices[0], **there)
    for field, other in _left_out(together):
      raise errors.InputError(
        f"{field} of chips scored together: got it with {other} of others, "
        "allowed on resistive wires is one of both: tiles are read in one way"
      )
  for field in _STATIC:
    values = {getattr(device, field) for device in devices}
    if len(values) > 1:
      got = ", ".join(sorted(map(str, values)))
      raise errors.InputError(
        f"{field} of chips scored together: got {got}, allowed is one"
      )


def is_wired(device: Device) -> bool:
  """Returns whether there is IR drop."""
  return any(is_present(getattr(device, field)) for field in WIRES)


def needs_tiles(device: Device) -> bool:
  """Returns whether read-out is no linear map, see `tile_effects`."""
  return bool(tile_effects(device))


def tile_effects(device: Device) -> list[str]:
  """Returns the effects of a device for which read-out is no linear map."""
  found = [x for x in TILE_EFFECTS if is_present(getattr(device, x))]
  if is_wired(device):
    # How cells load the wires follows from the input.
    found += [x for x in BY_INPUT if is_present(getattr(device, x))]
  return found


def _left_out(device):
  """Returns [(field, what is not modelled where it is solved for)].

  What is solved for each input has no variances, and is a difference.
  """
  solved = [x for x in BY_INPUT if x in tile_effects(device)]
  found = [
    (field, effect)
    for field in solved
    for effect in _NOT_SOLVED[field]
    if is_present(getattr(device, effect))
  ]
  if is_digital(device):
    found += [(field, "digital subtraction") for field in solved]
  return found


def bit_effects(device: Device) -> list[str]:
  """Returns the effects of a device that are modelled for inputs of bits."""
  curved = ["nonlinearity"] if is_present(device.nonlinearity) else []
  return list(dict.fromkeys(tile_effects(device) + curved))


def is_digital(device: Device) -> bool:
  """Returns whether what is subtracted has converters of its own."""
  return device.subtraction == "digital" and is_present(device.adc_bits)


def only_sticks(device: Device) -> bool:
  """Returns whether stuck cells are all that is wrong with its chips."""
  # Curves of cells say nothing where the wires are ideal.
  return not any(
    is_present(getattr(device, field))
    for field in EFFECTS
    if field not in (*_STUCK, "nonlinearity")
  )


# (low, high, what it is); both ends allowed.
_NUMBERS = {
  "g_on": (1e-12, 1, "a conductance [S] from 1e-12 to 1"),
  "g_off": (1e-12, 1, "a conductance [S] from 1e-12 to 1"),
  "read_voltage": (1e-6, 1e3, "a voltage [V] from 1e-06 to 1000"),
  "stuck_on": (0, 1, "a share of cells in [0, 1]"),
  "stuck_off": (0, 1, "a share of cells in [0, 1]"),
  "dead_rows": (0, 1, "a share of word lines in [0, 1]"),
  "dead_columns": (0, 1, "a share of bit lines in [0, 1]"),
  "variation": (0, 10, "a sigma in [0, 10]"),
  "gaussian_variation": (0, 10, "a relative sigma in [0, 10]"),
  "chip_variation": (0, 10, "a sigma in [0, 10]"),
  "tile_variation": (0, 10, "a sigma in [0, 10]"),
  "chip_dispersion": (0, 0.9, "a dispersion in [0, 0.9]"),
  "tile_dispersion": (0, 0.9, "a dispersion in [0, 0.9]"),
  "write_error": (0, 1e3, "a factor in [0, 1000]"),
  "drift_time": (0, 1e12, "a time [s] in [0, 1e+12]"),
  "drift_start": (1e-12, 1e12, "a time [s] in [1e-12, 1e+12]"),
  "read_noise": (0, 1e6, "a factor in [0, 1e+06]"),
  "bandwidth": (0, 1e15, "a bandwidth [Hz] in [0, 1e+15]"),
  "temperature": (0, 1e4, "a temperature [K] in [0, 10000]"),
  "telegraph_noise": (0, 1e3, "a factor in [0, 1000]"),
  "legacy_noise": (0, 1e3, "a factor in [0, 1000]"),
  "relaxation": (0, 1e3, "a factor in [0, 1000]"),
  "relaxation_start": (1e-12, 1e12, "a time [s] in [1e-12, 1e+12]"),
  "retention_time": (0, 1e12, "a time [s] in [0, 1e+12]"),
  "flicker_noise": (0, 1e3, "a factor in [0, 1000]"),
  "flicker_read": (1e-12, 1e12, "a time [s] in [1e-12, 1e+12]"),
  "read_disturb": (0, 1e18, "a number of reads in [0, 1e+18]"),
  "disturb": (0, 1, "a share in [0, 1]"),
  "temperature_rise": (-1e3, 1e3, "a difference [K] in [-1000, 1000]"),
  "white_noise": (0, 10, "a relative sigma in [0, 10]"),
  **dict.fromkeys(WIRES, (0, 1e9, "a resistance [ohm] in [0, 1e+09]")),
  "nonlinearity": (0, 100, "an inverse voltage [1/V] in [0, 100]"),
  "adc_bits": (0, 16, "an integer from 0 (ideal) to 16"),
  "adc_offset": (0, 1e6, "a sigma in [0, 1e+06]"),
  "adc_gain": (0, 1, "a relative sigma in [0, 1]"),
  "adc_noise": (0, 1e6, "a sigma in [0, 1e+06]"),
  "adc_mismatch": (0, 0.1, "a relative sigma in [0, 0.1]"),
  "dac_noise": (0, 10, "a relative sigma in [0, 10]"),
  "adc_percentile": (50, 100, "a percentile in [50, 100]"),
}
# Least g_on / g_off. A cell has up to 128 steps, and float32 rounds every
# conductance by up to 2^-24 of itself: at this ratio by 128 2^-24 / 0.01, a
# thousandth of a step; at 1 + 1e-5 by most of one, and g_on - g_off may be 0.
_LEAST_RATIO = 1.01
# Of one tile: a pair of arrays has 2^25 cells then, 128 MB of float32, which is
# what is computed at a time (see `cells`), and no line of cells is longer.
_MOST_CELLS, _MOST_LINES = 2**24, 2**16
_BOOL = (lambda value: type(value) is bool, "True or False")
_SIDE = (SIDES.__contains__, f"one of {', '.join(SIDES)}")
_LINE = (lambda x: x[2] <= x[3], "(a, b, low, high) with low <= high")
# {field: (whether a value is good, what is allowed)}.
_RULES = {
  "adc_bits": (lambda n: not n % 1, _NUMBERS["adc_bits"][2]),
  "cell_bits": (
    # Not a bool, which equals 0 or 1.
    lambda n: type(n) is int and n in (0, 1, 2),
    "0 (one analog cell a weight), 1 or 2",
  ),
  "fault_cluster": (
    lambda n: type(n) is int and n > 0,
    "a whole number of cells from 1 on",
  ),
  "stuck_cells_vary": _BOOL,
  "spare_level": _BOOL,
  "analog_inputs": _BOOL,
  "gated": _BOOL,
  "source_side": _SIDE,
  "sense_side": _SIDE,
  "mapping": (MAPPINGS.__contains__, f"one of {', '.join(MAPPINGS)}"),
  "subtraction": (
    SUBTRACTIONS.__contains__,
    f"one of {', '.join(SUBTRACTIONS)}",
  ),
  "adc_range": (ADC_RANGES.__contains__, f"one of {', '.join(ADC_RANGES)}"),
  "telegraph": (
    lambda x: x[0] > 0 and 0 <= x[1] < 0.5,
    "(a, b) with a > 0 and 0 <= b < 0.5",
  ),
  "flicker": (
    lambda x: min(x) >= 0 and x[1] <= 1,
    "(a, p, m, K), all from 0 on and p at most 1",
  ),
  "white_noise_law": (
    WHITE_NOISE_LAWS.__contains__,
    f"one of {', '.join(WHITE_NOISE_LAWS)}",
  ),
  "write_range": (lambda x: x[0] <= x[1], "(least, greatest)"),
  "drift_mean": _LINE,
  "drift_std": _LINE,
}
_TUPLES = {  # lengths; None: one or more
  "write_sigma": None,
  "write_range": 2,
  "drift_mean": 4,
  "drift_std": 4,
  "telegraph": 2,
  "flicker": 4,
  "activation": 2,
  "adc_inl": None,
  **dict.fromkeys(_RELAXATION, None),
}


_BOLTZMANN = 8.617333262e-5  # [eV / K]
_MOST_POWER = 10  # of e: more than any cell's range
# {effect: the constant that it needs, of which there is no default}.
_NEED = {"read_disturb": "disturb", "temperature_rise": "activation"}
# Of nonlinearity times read_voltage: sinh(20) is 2e8, and float32 holds it.
_MOST_CURVED = 20.0
# {mapping: {effect: why it is not modelled}}.
_OF_ARRAYS = {"nonlinearity": "only pairs of arrays are solved for each input"}
_COMMON = "its noise would be that of a reference that all columns share"
_NOT_WITH = {
  "single": dict.fromkeys(_CELL_NOISE, _COMMON) | _OF_ARRAYS,
  "offset": {
    "adc_bits": "the ranges of converters are those of differences",
    "dac_noise": "the digital side counts inputs, not their voltages",
    **dict.fromkeys(
      BY_INPUT, "what the digital side counts is for sums that are linear"
    ),
  },
  "complementary": {
    "dac_noise": "a weight's two word lines have two drivers",
    "gated": "a source line has one voltage, not two",
    **_OF_ARRAYS,
  },
  "interleaved": _OF_ARRAYS,
}
# Fields that are checked with one another: where one is traced, none is.
_TOGETHER = (
  "g_on",
  "g_off",
  "write_error",
  "write_sigma",
  "write_range",
  "relaxation",
  *_RELAXATION,
)


def validate(device: Device, name: str = "device") -> Device:
  """Returns `device` if its parameters make sense together.

  Values that are traced are not known, and not checked; but their effects count
  as there where read-out has no room for them. A device is that of one chip: of
  several (see `stack`) only `vmap` makes one.

  Raises:
    InputError: names the field, what it got and what is allowed.
  """
  if not isinstance(device, Device):
    raise errors.InputError(
      f"{name}: got a {type(device).__name__}, needed is a Device"
    )
  traced = {
    field
    for field in _LEAVES
    for x in _items(getattr(device, field))
    if isinstance(x, jax.core.Tracer)
  }
  if traced.intersection(_TOGETHER):
    traced.update(_TOGETHER)
  if "adc_bits" in traced:
    traced.update(CONVERTER_ERRORS)
  if "flicker" in traced:
    traced.add("flicker_noise")
  for effect, constant in _NEED.items():
    if constant in traced:
      traced.add(effect)
    elif effect in traced and not any(_items(getattr(device, constant))):
      raise errors.InputError(
        f"{name}.{effect}: got a traced one, allowed is 0 without a measured "
        f"{constant}, which no preset has"
      )
  if "temperature" in traced:
    traced.add("temperature_rise")
  if traced.intersection(_DRIFT):
    traced.add("drift_time")
  good = {field: getattr(Device(), field) for field in traced}
  concrete = plain(dataclasses.replace(device, **good))
  _validate(concrete, name)
  not_with = _NOT_WITH.get(device.mapping, {})
  if device.mapping == "single" and is_digital(device):
    # A bias column is read once, whatever it is taken from.
    not_with = {x: y for x, y in not_with.items() if x not in _CELL_NOISE}
  for effect, why in not_with.items():
    if effect in traced or is_present(getattr(concrete, effect)):
      raise errors.InputError(
        f"{name}.mapping: got {device.mapping!r} with {effect}, allowed "
        f"without it: {why}"
      )
  # What is not known counts as there: a read-out would leave it out silently.
  for word, effects in _WORDS_WITHOUT.items():
    for effect in traced.intersection(effects):
      if getattr(device, word):
        raise errors.InputError(
          f"{name}.{effect}: got a traced one with {word}, allowed is 0"
        )
  there = dict.fromkeys(traced.intersection(EFFECTS), 1.0)
  for field, other in _left_out(dataclasses.replace(concrete, **there)):
    raise errors.InputError(
      f"{name}.{field}: got it with {other} on resistive wires, allowed is "
      "one of both, as of traced values too"
    )
  return device


def plain(device: Device) -> Device:
  """Returns a (concrete) device whose numbers are Python's.

  An effect that is None is absent, as at a severity of 0.
  """

  def number(x):
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
      return x
    x = np.asarray(x)
    if not x.ndim and jnp.issubdtype(x.dtype, jnp.floating):
      return float(str(x))  # what was meant: float32(0.1) is not quite 0.1
    return x.tolist()

  values = {}
  for field in _LEAVES:
    value = getattr(device, field)
    if value is None and field in EFFECTS:
      value = 0.0
    is_tuple = isinstance(value, tuple)
    values[field] = tuple(map(number, value)) if is_tuple else number(value)
  return dataclasses.replace(device, **values)


def _items(value):
  return value if isinstance(value, tuple) else (value,)


def _validate(device, name):
  """Checks a device of Python's numbers."""

  def fail(field, allowed):
    got = getattr(device, field)
    raise errors.InputError(
      f"{name}.{field}: got {got!r}, allowed is {allowed}"
    )

  for field, (low, high, allowed) in _NUMBERS.items():
    value = getattr(device, field)
    if not is_finite(value) or not low <= value <= high:
      fail(field, allowed)
  for field, length in _TUPLES.items():
    value = getattr(device, field)
    if not isinstance(value, tuple) or not all(map(is_finite, value)):
      fail(field, "a tuple of finite numbers")
    if len(value) != length and (length or not value):
      fail(field, f"a tuple of {length or 'one or more'} numbers")
  # From here on every number is finite, and every tuple of its length.
  if device.g_on < _LEAST_RATIO * device.g_off:
    raise errors.InputError(
      f"{name}.g_off, g_on: got {device.g_off:.9g}, {device.g_on:.9g} S, "
      f"needed is g_on >= {_LEAST_RATIO} g_off: float32 must tell levels apart"
    )
  if device.stuck_on + device.stuck_off > 1:
    raise errors.InputError(
      f"{name}.stuck_on + stuck_off: got {device.stuck_on:g} + "
      f"{device.stuck_off:g}, allowed is a sum of at most 1"
    )
  for field, (is_good, allowed) in _RULES.items():
    if not is_good(getattr(device, field)):
      fail(field, allowed)
  shape = device.tile_shape
  if (
    not isinstance(shape, tuple)
    or len(shape) != 2
    or not all(type(n) is int and 0 < n <= _MOST_LINES for n in shape)
    or shape[0] * shape[1] > _MOST_CELLS
  ):
    raise errors.InputError(
      f"{name}.tile_shape: got {shape!r}, needed are (rows, columns), integers "
      f"from 1 to {_MOST_LINES}, of at most {_MOST_CELLS:,} cells"
    )
  _check_combinations(device, name)


def is_finite(x: Any) -> bool:
  """Returns whether `x` is a finite number, and no bool."""
  # Not math.isfinite, which fails on integers beyond all floats.
  number = isinstance(x, int | float) and not isinstance(x, bool)
  return number and abs(x) <= sys.float_info.max


def _check_combinations(device, name):
  """Refuses what the formulas do not cover, and says why."""
  if device.mapping == "complementary" and device.tile_shape[0] % 2:
    raise errors.InputError(
      f"{name}.tile_shape: got {device.tile_shape} with complementary cells, "
      "needed are an even number of rows: a weight takes two"
    )
  if device.mapping == "interleaved" and device.tile_shape[1] % 2:
    raise errors.InputError(
      f"{name}.tile_shape: got {device.tile_shape} with interleaved cells, "
      "needed are an even number of columns: a weight takes two"
    )
  if device.subtraction == "digital":
    if device.mapping in ("offset", "complementary"):
      raise errors.InputError(
        f"{name}.subtraction: got 'digital' with {device.mapping!r} cells, "
        "allowed is 'analog': no second current is read there"
      )
    if device.analog_inputs:
      raise errors.InputError(
        f"{name}.subtraction: got 'digital' with analog_inputs, allowed is "
        "'analog': their currents have signs, which its converters have not"
      )
    if device.adc_bits == 1:
      raise errors.InputError(
        f"{name}.subtraction: got 'digital' with a sense amplifier (adc_bits = "
        "1), allowed is 'analog': bits of two currents tell no sign"
      )
  if device.fault_cluster > min(device.tile_shape):
    raise errors.InputError(
      f"{name}.fault_cluster: got {device.fault_cluster}, allowed are 1 to "
      f"{min(device.tile_shape)}: a square fits a tile of {device.tile_shape}"
    )
  low, high = device.write_range
  if is_present(device.write_error) and not any(device.write_sigma):
    raise errors.InputError(
      f"{name}.write_error: got {device.write_error:g}, allowed is 0 without a "
      "measured write_sigma: choose a preset that has one, or set it"
    )
  if is_present(device.write_error) and not (
    low <= device.g_off and device.g_on <= high
  ):
    raise errors.InputError(
      f"{name}.write_range: got g_off, g_on = {device.g_off:g}, "
      f"{device.g_on:g} S, allowed with write_error are targets from {low:g} "
      f"to {high:g} S, where write_sigma was measured"
    )
  if is_present(device.relaxation) and not any(
    any(getattr(device, field)) for field in _RELAXATION
  ):
    raise errors.InputError(
      f"{name}.relaxation: got {device.relaxation:g}, allowed is 0 without a "
      f"measured {', '.join(_RELAXATION)}: choose a preset that has one, or "
      "set one"
    )
  if is_present(device.flicker_noise) and not (
    (device.flicker[0] and device.flicker[2]) or device.flicker[3]
  ):
    raise errors.InputError(
      f"{name}.flicker_noise: got {device.flicker_noise:g}, allowed is 0 "
      "without a measured flicker, (a, p, m, K): choose a preset that has one, "
      "or set it"
    )
  for field, constant in _NEED.items():
    if is_present(getattr(device, field)) and not any(
      _items(getattr(device, constant))
    ):
      raise errors.InputError(
        f"{name}.{field}: got {getattr(device, field):g}, allowed is 0 without "
        f"a measured {constant}, which no preset has"
      )
  hot, rise = device.temperature, device.temperature_rise
  if is_present(rise) and min(hot, hot - rise) > 0:
    energy = max(map(abs, device.activation)) / _BOLTZMANN
    power = energy * abs(rise) / (hot * (hot - rise))
    if power > _MOST_POWER:
      raise errors.InputError(
        f"{name}.activation: got {device.activation}, with which {rise:g} K up "
        f"to {hot:g} K change conductances by exp({power:.3g}), allowed are at "
        f"most exp({_MOST_POWER})"
      )
  elif is_present(rise):
    raise errors.InputError(
      f"{name}.temperature_rise: got {device.temperature_rise:g} K up to "
      f"temperature = {device.temperature:g} K, needed are temperatures above 0"
    )
  if is_present(device.drift_time) and not (
    any(device.drift_mean) or any(device.drift_std)
  ):
    raise errors.InputError(
      f"{name}.drift_time: got {device.drift_time:g}, allowed is 0 without a "
      "measured drift_mean or drift_std, (a, b, low, high): choose a preset "
      "that has them, or set them and drift_start"
    )
  for field in CONVERTER_ERRORS:
    if is_present(getattr(device, field)) and not is_present(device.adc_bits):
      raise errors.InputError(
        f"{name}.{field}: got {getattr(device, field):g} with ideal "
        "converters, allowed is 0 where adc_bits is 0"
      )
  if device.adc_bits == 1 and (
    is_present(device.adc_mismatch) or any(device.adc_inl)
  ):
    raise errors.InputError(
      f"{name}.adc_bits: got 1, a sense amplifier, with adc_mismatch or "
      "adc_inl, allowed are 0 and 2 to 16: it has one level, whose error is "
      "adc_offset"
    )
  read = any(is_present(getattr(device, field)) for field in _READ_NOISE)
  if read and device.analog_inputs:
    raise errors.InputError(
      f"{name}.analog_inputs: got True with noise a read, allowed is False: "
      "the noise is that of inputs of 0 or read_voltage"
    )
  if device.gated and device.analog_inputs:
    raise errors.InputError(
      f"{name}.analog_inputs: got True with gated cells, allowed is False: a "
      "gate is open or not"
    )
  if device.gated and is_present(device.dac_noise):
    raise errors.InputError(
      f"{name}.dac_noise: got {device.dac_noise:g} with gated cells, allowed "
      "is 0: their word lines open gates, and feed nothing"
    )
  if device.gated and device.subtraction == "digital" and is_wired(device):
    raise errors.InputError(
      f"{name}.subtraction: got 'digital' with gated cells on resistive lines, "
      "allowed is 'analog': their currents are solved as differences"
    )
  if is_present(device.nonlinearity):
    _check_nonlinearity(device, name)
  for field in ("telegraph_noise", "white_noise"):
    if is_wired(device) and is_present(getattr(device, field)):
      raise errors.InputError(
        f"{name}.{field}: got {getattr(device, field):g} with resistive wires, "
        "allowed is 0: a cell that changes at every read changes the network "
        "that IR drop is solved for"
      )


def _check_nonlinearity(device, name):
  """Refuses what would need other networks than those that are solved."""
  if device.nonlinearity * device.read_voltage > _MOST_CURVED:
    raise errors.InputError(
      f"{name}.nonlinearity: got {device.nonlinearity:g} /V at a read voltage "
      f"of {device.read_voltage:g} V, allowed is a product of at most "
      f"{_MOST_CURVED:g}"
    )
  for field, why in (
    ("gated", "only word lines that feed the cells are solved for"),
    ("analog_inputs", "cells conduct G V at the read voltage alone"),
    ("read_noise", "it is that of ohmic cells"),
    ("dac_noise", "cells conduct G V at the read voltage alone"),
  ):
    if is_present(getattr(device, field)):
      raise errors.InputError(
        f"{name}.nonlinearity: got {device.nonlinearity:g} with {field}, "
        f"allowed is 0: {why}"
      )
  if device.subtraction == "digital" and is_wired(device):
    raise errors.InputError(
      f"{name}.subtraction: got 'digital' with non-linear cells on resistive "
      "lines, allowed is 'analog': their currents are solved as differences"
    )


def check_constants(
  values: Mapping[str, Any], devices: Sequence[Device], name: str
) -> None:
  """Checks that each of some fields says something of one of `devices`.

  A sweep of the constant of an absent effect would measure something else than
  it says.

  Raises:
    InputError: a constant whose effects are absent; `name` is for the message.
  """
  for field, value in values.items():
    effects = _SAYS_OF.get(field)
    if effects and not any(
      is_present(getattr(device, effect))
      for device in devices
      for effect in effects
    ):
      raise errors.InputError(
        f"{name}.{field}: got {value!r} without {' or '.join(effects)}, whose "
        "constant it is: needed is a severity of one, or device: 1.0 of a "
        "device that has one"
      )


def with_fields(
  device: Device,
  values: Mapping[str, Any],
  name: str,
  allowed: Sequence[str] = _FIELDS,
) -> Device:
  """Returns `device` with some fields replaced, checked; `name` is for errors.

  Raises:
    InputError: a field that is none of `allowed`, or a bad value.
  """
  errors.check_fields(values, allowed, name)
  device = plain(dataclasses.replace(device, **values))
  return validate(device, name)
