"""Devices: checks that name the field, files, presets, several chips as one."""

import dataclasses
import json
import math
import re

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.crossbar import presets
from hawis_jax.pipeline import results
from hawis_jax.robustness import calibration

_IDEAL = crossbar.Device()
_FIELDS = {field.name: field for field in dataclasses.fields(_IDEAL)}
_STATIC = tuple(n for n, f in _FIELDS.items() if f.metadata.get("static"))
# (low, high), both allowed, just outside is not.
_RANGES = {
  "read_voltage": (1e-6, 1e3),
  "stuck_on": (0, 1),
  "stuck_off": (0, 1),
  "dead_rows": (0, 1),
  "dead_columns": (0, 1),
  "variation": (0, 10),
  "gaussian_variation": (0, 10),
  "chip_variation": (0, 10),
  "tile_variation": (0, 10),
  "chip_dispersion": (0, 0.9),
  "tile_dispersion": (0, 0.9),
  "write_error": (0, 1e3),
  "drift_time": (0, 1e12),
  "drift_start": (1e-12, 1e12),
  "read_noise": (0, 1e6),
  "bandwidth": (0, 1e15),
  "temperature": (0, 1e4),
  "telegraph_noise": (0, 1e3),
  "legacy_noise": (0, 1e3),
  "relaxation": (0, 1e3),
  "relaxation_start": (1e-12, 1e12),
  "retention_time": (0, 1e12),
  "flicker_noise": (0, 1e3),
  "flicker_read": (1e-12, 1e12),
  "read_disturb": (0, 1e18),
  "disturb": (0, 1),
  "temperature_rise": (-1e3, 1e3),
  "white_noise": (0, 10),
  "adc_offset": (0, 1e6),
  "adc_gain": (0, 1),
  "adc_noise": (0, 1e6),
  "adc_mismatch": (0, 0.1),
  "dac_noise": (0, 10),
  **dict.fromkeys(crossbar.WIRES, (0, 1e9)),
  "nonlinearity": (0, 100),
  "adc_bits": (0, 16),
  "adc_percentile": (50, 100),
}
_NUMBERS = ("g_on", "g_off", *_RANGES)
_LENGTHS = {"write_sigma": None, "drift_mean": 4, "drift_std": 4}
_LENGTHS.update(write_range=2, telegraph=2, flicker=4, activation=2)
_LENGTHS.update(adc_inl=None)
_RELAXATION = ("relaxation_shift", "relaxation_spread", "relaxation_growth")
_LENGTHS.update(dict.fromkeys(_RELAXATION))
# Of the other fields, what is not allowed and what is.
_WORDS = {
  "tile_shape": (
    [(64,), (0, 64), (64, -1), (2.0, 2), (True, 8), [64, 64], 64, (1, 1, 1)]
    + [(10**9, 10**9), (2**16 + 1, 1), (2**12, 2**12 + 1)],
    "needed are (rows, columns), integers from 1 to 65536, of at most 16,777,",
  ),
  "cell_bits": ([-1, 3, 8, 1.0, True, None, "2"], "allowed is 0 (one analog"),
  "adc_range": (["full", "", None, 1, ("full_scale",)], "one of full_scale, c"),
  "stuck_cells_vary": ([0, 1, None, "no"], "True or False"),
  "subtraction": (["none", "", None, 1], "one of analog, digital"),
  "mapping": (["xnor", "", None, 1, ("single",)], "one of differential, sing"),
  "fault_cluster": ([0, -1, 2.0, True, None], "a whole number of cells"),
  "spare_level": ([0, 1, None, "no"], "True or False"),
  "white_noise_law": (["white", "", None, 1], "one of independent, proportio"),
  "analog_inputs": ([0, 1, None, "no"], "True or False"),
  "source_side": (["left", "", None, 0], "one of first, last"),
  "sense_side": (["bottom", "", None, 1], "one of first, last"),
  "gated": ([0, 1, None, "no"], "True or False"),
}
# Allowed values that are no field's default; of numbers: a share of it.
_OTHERS = {
  "tile_shape": (17, 230),
  "cell_bits": 2,
  "adc_bits": 11,
  "adc_range": "calibrated",
  "adc_percentile": 97.5,
  "write_sigma": (0.31, -1.7, 0.1234567),
  "write_range": (0.0, 0.5),
  "drift_mean": (1.1, -0.3, 0.0, 0.3),
  "drift_std": (0.7, 0.1, -0.1, 0.1),
  "telegraph": (3.4e-4, 7.1e-4),
  "flicker": (0.01, 0.5, 0.1, 0.02),
  "activation": (-0.01, 0.12),
  "white_noise_law": "inverse",
  "adc_inl": (0.21, -0.3),
  "adc_mismatch": 0.05,
  **{name: (0.21, -0.3) for name in _RELAXATION},
  "stuck_cells_vary": True,
  "fault_cluster": 3,
  "mapping": "offset",
  "subtraction": "digital",
  "spare_level": True,
  "analog_inputs": True,
  "source_side": "last",
  "sense_side": "first",
  "gated": True,
}
_OTHERS |= {
  name: 0.7 * (_FIELDS[name].default or 0.3)
  for name in _NUMBERS
  if name not in _OTHERS
}


def _with(**changes):
  if changes.get("write_error"):  # needs a polynomial
    changes = {"write_sigma": (1.0,), **changes}
  if any(changes.get(field) for field in crossbar.CONVERTER_ERRORS):
    changes = {"adc_bits": 6, **changes}
  if changes.get("nonlinearity"):
    changes = {"read_voltage": 0.2, **changes}
  if changes.get("relaxation"):
    changes = {"relaxation_growth": (1.0,), **changes}
  if changes.get("drift_time"):
    changes = {"drift_mean": (0.0, 0.1, 0.1, 0.1), **changes}
  if changes.get("flicker_noise"):
    changes = {"flicker": (0.0, 0.0, 0.0, 1.0), **changes}
  if changes.get("read_disturb"):
    changes = {"disturb": 1e-9, **changes}
  if changes.get("temperature_rise"):
    changes = {"activation": (0.0, 1e-4), "temperature": 2e3, **changes}
  return dataclasses.replace(_IDEAL, **changes)


def _is_valid(device):
  return crossbar.validate(device) is device


def _complains(message, call, *arguments):
  """In one line, which is returned."""
  with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
    call(*arguments)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def _refused(field, value, allowed):
  """That a bad value is named as it is."""
  message = f"x.{field}: got {value!r}, "
  found = _complains(message, crossbar.validate, _with(**{field: value}), "x")
  assert allowed in found, found


def test_every_field_is_checked():
  """None is left out here: a new field needs its check, and tests of it."""
  assert {*_NUMBERS, *_LENGTHS, *_WORDS} == set(_FIELDS) == set(_OTHERS)
  for field, other in _OTHERS.items():
    device = _with(**{field: other})
    assert getattr(device, field) != _FIELDS[field].default
    assert _is_valid(device)


def test_numbers_are_finite_and_in_their_range():
  for field, (low, high) in _RANGES.items():
    for value in (low, high):
      assert _is_valid(_with(**{field: value}))
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, 1e300)
    for value in (below, above):
      _refused(field, value, "allowed is ")
  for field in _NUMBERS:
    for value in (math.nan, math.inf, -math.inf, "1", True, [0.1], (0.1,), {}):
      _refused(field, value, "allowed is ")
    if field in crossbar.EFFECTS:  # only a severity may be None
      assert _is_valid(_with(**{field: None}))
    else:
      _refused(field, None, "allowed is ")
  for value in (2.5, 0.5):
    _refused("adc_bits", value, "an integer from 0 (ideal) to 16")


def test_tuples_are_of_numbers_and_of_a_length():
  bad = (None, 1.0, "ab", [0.0] * 4, {}, ("a",), (0.0, math.nan), (1, True))
  for field, length in _LENGTHS.items():
    for value in bad:
      _refused(field, value, "finite numbers")
    for wrong in (0, length - 1, length + 1) if length else (0,):
      allowed = f"a tuple of {length or 'one or more'} numbers"
      _refused(field, (0.0,) * wrong, allowed)
  for field in ("drift_mean", "drift_std"):
    allowed = "(a, b, low, high) with low <= high"
    _refused(field, (0.0, 0.1, 0.2, 0.1), allowed)
  _refused("write_range", (1e-3, 1e-4), "(least, greatest)")
  for wrong in ((-0.1, 0.5, 0.1, 0.0), (0.1, 1.1, 0.1, 0.0)):
    _refused("flicker", wrong, "(a, p, m, K), all from 0 on and p at most 1")


@pytest.mark.parametrize("field", _WORDS)
def test_words_and_shapes(field):
  values, allowed = _WORDS[field]
  for value in values:
    _refused(field, value, allowed)


_WIRED = "x.telegraph_noise: got 1 with resistive wires, allowed is 0"
_NOISY = "x.analog_inputs: got True with noise a read, allowed is False"


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(stuck_on=0.6, stuck_off=0.5), "got 0.6 + 0.5, allowed is a sum"),
    (
      dict(g_on=3.33e-7),
      "got 3.33e-07, 3.33e-07 S, needed is g_on >= 1.01 g_off",
    ),
    # Equal in float32.
    (dict(g_on=1e-4, g_off=9.9999999e-5), "got 9.9999999e-05, 0.0001 S, need"),
    (dict(g_off=0.0), "x.g_off: got 0.0, allowed is a conductance [S] from 1e"),
    (dict(g_off=-1.0), "x.g_off: got -1.0, allowed is a conductance [S]"),
    (dict(g_on=1e-44), "x.g_on: got 1e-44, allowed is a conductance [S] from"),
    (dict(g_on=1e38), "x.g_on: got 1e+38, allowed is a conductance [S] from"),
    (dict(telegraph_noise=1.0, wire_resistance=2.0), _WIRED),
    (dict(telegraph_noise=1.0, load_resistance=2.0), _WIRED),
    (dict(analog_inputs=True, read_noise=1.0), _NOISY),
    (dict(analog_inputs=True, telegraph_noise=1.0), _NOISY),
    (dict(analog_inputs=True, white_noise=0.1), _NOISY),
    (dict(analog_inputs=True, dac_noise=0.1), _NOISY),
    *(
      (dict(subtraction="digital", **other), "x.subtraction: got 'digital' wi")
      for other in (
        dict(mapping="offset"),
        dict(mapping="complementary"),
        dict(analog_inputs=True),
        dict(adc_bits=1),
      )
    ),
    (
      dict(gated=True, dac_noise=0.1),
      "x.dac_noise: got 0.1 with gated cells, allowed is 0: their word lines",
    ),
    (
      dict(gated=True, subtraction="digital", sense_load_resistance=2.0),
      "x.subtraction: got 'digital' with gated cells on resistive lines, allo",
    ),
    (
      dict(mapping="interleaved", tile_shape=(64, 9)),
      "x.tile_shape: got (64, 9) with interleaved cells, needed are an even",
    ),
    *(
      (dict(adc_bits=1, **{field: error}), "x.adc_bits: got 1, a sense amplifi")
      for field, error in (("adc_mismatch", 0.01), ("adc_inl", (0.0, 0.2)))
    ),
    (
      dict(adc_offset=0.5, adc_bits=0),
      "x.adc_offset: got 0.5 with ideal converters, allowed is 0 where adc_",
    ),
    (
      dict(white_noise=0.1, wire_resistance=2.0),
      "x.white_noise: got 0.1 with resistive wires, allowed is 0",
    ),
    (
      dict(white_noise=0.1, sense_load_resistance=2.0),
      "x.white_noise: got 0.1 with resistive wires, allowed is 0",
    ),
    (
      dict(gated=True, analog_inputs=True),
      "x.analog_inputs: got True with gated cells, allowed is False: a gate",
    ),
    (
      dict(gated=True, mapping="complementary"),
      "x.mapping: got 'complementary' with gated, allowed without it: a source",
    ),
    (
      dict(gated=True, mapping="offset"),
      "x.mapping: got 'offset' with gated, allowed without it: what the di",
    ),
    *(
      (
        dict(nonlinearity=4.0, mapping=mapping),
        f"x.mapping: got {mapping!r} with nonlinearity, allowed without it",
      )
      for mapping in ("single", "offset", "complementary", "interleaved")
    ),
    *(
      (
        dict(nonlinearity=4.0, **{field: value}),
        f"x.nonlinearity: got 4 with {field}, allowed is 0: ",
      )
      for field, value in (
        ("gated", True),
        ("analog_inputs", True),
        ("read_noise", 1.0),
        ("dac_noise", 1.0),
      )
    ),
    (
      dict(nonlinearity=4.0, subtraction="digital", wire_resistance=1.0),
      "x.subtraction: got 'digital' with non-linear cells on resistive lines",
    ),
    (
      dict(nonlinearity=6.1, read_voltage=3.3),
      "x.nonlinearity: got 6.1 /V at a read voltage of 3.3 V, allowed is a pro",
    ),
    (
      dict(relaxation=2.0, relaxation_growth=(0.0, 0.0)),
      "x.relaxation: got 2, allowed is 0 without a measured relaxation_shift, ",
    ),
    (
      dict(drift_time=2.0, drift_mean=(0.0,) * 4),
      "x.drift_time: got 2, allowed is 0 without a measured drift_mean or dri",
    ),
    *(
      (
        dict(flicker_noise=1.0, flicker=flicker),
        "x.flicker_noise: got 1, allowed is 0 without a measured flicker, (a, ",
      )
      for flicker in ((0.0, 0.65, 0.2, 0.0), (0.0088, 0.65, 0.0, 0.0))
    ),
    (
      dict(write_error=1.0, write_range=(1e-6, 1e-3)),
      "x.write_range: got g_off, g_on = 3.33e-07, 0.000333 S, allowed with "
      "write_error are targets from 1e-06 to 0.001 S",
    ),
    (
      dict(write_error=1.0, write_range=(0.0, 3e-4)),
      "allowed with write_error are targets from 0 to 0.0003 S",
    ),
    (
      dict(write_error=2.0, write_sigma=(0.0, 0.0)),
      "x.write_error: got 2, allowed is 0 without a measured write_sigma",
    ),
  ],
)
def test_combinations(change, message):
  _complains(message, crossbar.validate, _with(**change), "x")
  # All of it is needed to be wrong.
  if len(change) > 1:
    for field in change:
      assert _is_valid(_with(**{k: v for k, v in change.items() if k != field}))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(stuck_off=9.04), "stuck_off: got 9.04"),
    (dict(stuck_on=-0.1), "stuck_on: got -0.1"),
    (dict(variation=np.float32(np.nan)), "variation: got nan"),
    (dict(adc_bits=4.5), "adc_bits: got 4.5"),
    (dict(g_off=1e-3), "g_off, g_on: got 0.001"),
    (dict(g_on="3e-4"), "g_on: got '3e-4'"),
  ],
)
def test_every_public_door_checks_the_device(change, message):
  device, kernel = _with(**change), np.ones((2, 2), np.float32)
  key = jax.random.key(0)
  for call, *arguments in (
    (crossbar.conductances, key, kernel, device),
    (crossbar.effective_weights, key, kernel, device),
    (crossbar.program, key, {"params": {"a": {"kernel": kernel}}}, device),
    (crossbar.wire_transfer, kernel, device),
    (crossbar.stack, [_IDEAL, device]),
    (calibration.calibrate_converters, None, {}, None, device),
    (cost.hardware, device),
  ):
    _complains(f"device.{message}", call, *arguments)
  _complains("device: got a dict, needed", crossbar.wire_transfer, kernel, {})


def test_numbers_of_arrays_are_checked():
  """One chip's: an array of several would be broadcast over cells."""
  on, off = np.float32([0.6, 0.4])
  # As float32 these add up to more than 1.
  assert _is_valid(_with(stuck_on=on, stuck_off=jnp.array(off)))
  device = _with(stuck_on=np.float32(0.4), stuck_off=np.float64(0.7))
  _complains("got 0.4 + 0.7, allowed is a sum", crossbar.validate, device)
  device = _with(write_sigma=(jnp.float32(np.inf),))
  _complains("got (inf,), allowed is a tuple", crossbar.validate, device)
  for device in (_with(g_on=np.float32([1, 1])), crossbar.stack([_IDEAL] * 2)):
    _complains("device.g_on: got [", crossbar.validate, device)


def test_what_is_traced_is_not_checked():
  def check(traced, **others):
    device = _with(**others)
    jax.eval_shape(
      lambda x: crossbar.validate(dataclasses.replace(device, **x)).g_on, traced
    )

  check(dict(g_on=0.0, variation=-1.0, write_error=1.0, write_sigma=(0.0,)))
  check(dict(g_on=0.0), write_error=1.0, write_range=(1e-6, 1e-5))
  with pytest.raises(errors.InputError, match="g_on: got -1"):
    check(dict(variation=0.1), g_on=-1)


def test_combinations_that_make_sense():
  for change in (
    dict(stuck_on=0.4, stuck_off=0.6),
    dict(telegraph_noise=1.0, wire_resistance=0.0, load_resistance=None),
    dict(read_noise=1.0, wire_resistance=1.0, load_resistance=1.0),
    dict(analog_inputs=True, read_noise=0.0, telegraph_noise=None),
    dict(write_error=1.0, write_range=(3.33e-7, 3.33e-4)),
  ):
    assert _is_valid(_with(**change))


def test_presets_have_the_published_numbers(rng):
  """The formulas as their sources write them, in uS."""
  published = {
    "reram_wan2022": lambda g: (
      1.536e-4 * g**3 - 1.167e-2 * g**2 + 0.2374 * g + 1.053
    ),
    "reram_milo2021": lambda g: -0.009107 * g + 4.782321,
    "hfox_cmo": lambda g: 0.00106879 * g + 0.00081107,
    "hfox_cmo_2percent": lambda g: 0.01129027418 * g + 0.0112185391,
    "pcm": lambda g: -1.1731 * (g / 25) ** 2 + 1.9650 * (g / 25) + 0.26348,
    "reram_wan2022_relaxed": lambda g: np.polyval(
      [-16.815, 45.393, -43.853, 16.030, 0.348], g / 40
    ),
  }
  for name, formula in published.items():
    device = crossbar.PRESETS[name]
    low, high = 1e6 * device.g_off, 1e6 * device.g_on
    g = rng.uniform(low, high, 20)
    got = np.polyval(device.write_sigma[::-1], g)
    np.testing.assert_allclose(got, formula(g), rtol=1e-6, err_msg=name)
    assert (got > 0).all() and device.write_error == 1
  measured = {n for n, d in crossbar.PRESETS.items() if d.write_error}
  assert measured == set(published)
  default = crossbar.PRESETS["hawis_published"]
  assert (default.stuck_on, default.stuck_off) == (0.0175, 0.0904)
  assert 1 / default.g_on == pytest.approx(3e3, rel=2e-3)
  assert default.g_on / default.g_off == pytest.approx(1000)
  # NeuroSim at 22 nm, pitches of 2, 4 and 12 F.
  rounded = {p: float(f"{r:.2g}") for p, r in presets.WIRE_RESISTANCES.items()}
  assert rounded == {2: 0.78, 4: 1.6, 12: 4.7}
  for name, device in crossbar.PRESETS.items():
    assert _is_valid(device) and crossbar.preset(name) is device


@pytest.fixture
def file(tmp_path):
  """Writes a device file."""
  path = tmp_path / "device.json"

  def write(content):
    is_text = isinstance(content, str)
    path.write_text(content if is_text else json.dumps(content))
    return path

  return write


def _read(path):
  return crossbar.load_device(path)


def test_files_start_from_a_preset(file):
  found = _read(file({"tile_shape": [8, 16], "preset": "pcm"}))
  pcm = crossbar.PRESETS["pcm"]
  assert found == dataclasses.replace(pcm, tile_shape=(8, 16))
  # A field of the file goes before the preset's, in whatever order.
  found = _read(file({"write_error": None, "preset": "pcm"}))
  assert found == dataclasses.replace(pcm, write_error=0.0)
  assert _read(file({})) == _IDEAL


@pytest.mark.parametrize(
  "content, message",
  [
    ({"stuck_of": 0.1}, "got 'stuck_of', allowed are g_on, g_off, "),
    ({"gon": 0.1}, "; did you mean 'g_on'?"),
    ({"preset": "hawiss"}, ": preset: got 'hawiss', allowed are hawis_publish"),
    ({"preset": ["pcm"]}, ": preset: got ['pcm']"),
    ({"g_on": 10**400}, ".g_on: got 1000"),  # beyond all floats
    ({"stuck_off": [0.1, 0.2]}, ".stuck_off: got (0.1, 0.2), allowed is a sh"),
    ({"tile_shape": [8, [8]]}, ".tile_shape: got (8, [8]), needed are (rows, "),
    ({"preset": "pcm", "g_on": 1e-3}, ".write_range: got g_off, g_on = 2.5e-"),
    ('{"g_on": NaN}', ": can't be read: got the number NaN"),
    ("[1]", ": got a list, needed is an object of fields"),
    ("", ": can't be read: Expecting value"),
    ('{"g_on": 1', ": can't be read: Expecting ',' delimiter"),
  ],
)
def test_bad_files(file, content, message):
  path = file(content)
  found = _complains(message, _read, path)
  assert found.startswith(str(path))


def test_files_that_are_not_there_or_no_text(tmp_path, file):
  missing = tmp_path / "no.json"
  _complains("can't be read: No such file", _read, missing)
  _complains("can't be read: Is a directory", _read, tmp_path)
  path = tmp_path / "binary.json"
  path.write_bytes(b"\xff\xfe\x00")
  assert "decode" in _complains("be read: ", _read, str(path))
  # Nothing is close to this name.
  found = _complains("got 'zzz'", _read, file({"zzz": 1}))
  assert "did you mean" not in found


def test_fields_are_replaced_and_checked():
  replace = crossbar.with_fields
  device = replace(_IDEAL, {"variation": 0.2, "adc_bits": 4}, "y")
  assert device == _with(variation=0.2, adc_bits=4)
  message = "y.variation: got -1, allowed"
  _complains(message, replace, _IDEAL, {"variation": -1}, "y")
  found = _complains(
    "y: got 'g_on', allowed are variation, adc_bits",
    *(replace, _IDEAL, {"g_on": 1}, "y", ("variation", "adc_bits")),
  )
  assert found.endswith("adc_bits")
  _complains("y: got 7, allowed are g_on", replace, _IDEAL, {7: 1}, "y")
  for name in ("hawis", "", None, 3):
    message = f"y: got {name!r}, allowed are hawis_published, reram_wan2022, "
    _complains(message, crossbar.preset, name, "y")


def test_absent_is_known_to_be_0():
  for severity in (0, 0.0, -0.0, None, False):
    assert not crossbar.is_present(severity)
  # Of numbers that are not Python's, it is not known.
  for severity in (0.1, 1, jnp.float32(0), np.float32(0), np.zeros(3)):
    assert crossbar.is_present(severity)


def test_leaves_are_what_is_present_and_its_constants():
  constants = set(_FIELDS) - {*_STATIC, *crossbar.EFFECTS}
  count = sum(
    len(value) if isinstance(value, tuple) else 1
    for value in (getattr(_IDEAL, name) for name in constants)
  )
  assert len(jax.tree.leaves(_IDEAL)) == count
  for field in crossbar.EFFECTS:
    # A severity of 0 that is an array stays.
    for severity in (0.5, jnp.float32(0)):
      device = dataclasses.replace(_IDEAL, **{field: severity})
      assert len(jax.tree.leaves(device)) == count + 1


@given(st.sets(st.sampled_from(sorted(_FIELDS))))
def test_any_fields_make_the_round_trip_through_trees(fields):
  device = _with(**{field: _OTHERS[field] for field in fields})
  leaves, structure = jax.tree.flatten(device)
  found = jax.tree.unflatten(structure, leaves)
  assert hash(structure) == hash(jax.tree.structure(found))
  for field in _FIELDS:
    got, expected = getattr(found, field), getattr(device, field)
    # An absent severity is None then.
    if field in crossbar.EFFECTS and not expected:
      assert got is None
    else:
      assert got == expected and type(got) is type(expected)
  assert jax.tree.leaves(found) == leaves
  doubled = jax.tree.map(lambda x: 2 * x, device)
  assert doubled.g_on == 2 * device.g_on
  assert all(getattr(doubled, f) == getattr(device, f) for f in _STATIC)


def test_all_fields_make_the_round_trip_through_files(file):
  """Lists of the file are the tuples that they were."""
  # Together they would be refused.
  silent = ("telegraph_noise", "read_noise", "white_noise", "dac_noise")
  together = {**_OTHERS, **dict.fromkeys(silent, 0.0)}
  alone = ("mapping", "subtraction", *crossbar.BY_INPUT)
  devices = [_with(**{name: _OTHERS[name]}) for name in alone]
  together |= {name: getattr(_IDEAL, name) for name in alone}
  devices.append(crossbar.Device(**together))
  for device in (*crossbar.PRESETS.values(), *devices):
    found = _read(file(dataclasses.asdict(device)))
    assert found == device
    assert type(found.tile_shape) is type(found.write_sigma) is tuple


def test_devices_pass_through_jit():
  """Traced where they are numbers; a change of them compiles nothing anew."""
  compiled = []

  @jax.jit
  def same(device):
    compiled.append(device)
    return device

  device = _with(**_OTHERS)
  for changed in (device, dataclasses.replace(device, stuck_on=0.0123)):
    found = same(changed)
    for field in _FIELDS:
      got, expected = getattr(found, field), getattr(changed, field)
      if field in _STATIC:
        assert got == expected
      else:
        np.testing.assert_array_equal(got, np.float32(expected), field)
  assert len(compiled) == 1
  (traced,) = compiled
  assert all(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(traced))
  # Static fields and what is present are structure.
  assert same(dataclasses.replace(device, stuck_on=0)).stuck_on is None
  assert same(dataclasses.replace(device, tile_shape=(3, 4))) is not None
  assert len(compiled) == 3


def test_devices_without_effects():
  device = _with(**_OTHERS)
  silent = crossbar.without_defects(device)
  ideal = crossbar.without_effects(device)
  kept = {*crossbar.WIRES, "nonlinearity", "adc_bits"}
  assert set(crossbar.EFFECTS) - set(crossbar.DEFECTS) == kept
  for field, expected in _OTHERS.items():
    absent = 0.0 if field in crossbar.DEFECTS else expected
    assert getattr(silent, field) == absent, field
    absent = 0.0 if field in crossbar.EFFECTS else expected
    assert getattr(ideal, field) == absent, field


def test_effects_are_fields_whose_default_is_0():
  """Severities: other fields of 0 are words or constants of formulas."""
  assert len(set(crossbar.EFFECTS)) == len(crossbar.EFFECTS)
  for field in crossbar.EFFECTS:
    assert _FIELDS[field].default == 0 and field not in _STATIC
  tuples = {n for n, f in _FIELDS.items() if isinstance(f.default, tuple)}
  assert set(crossbar.SCENARIO_FIELDS) == set(_FIELDS) - tuples
  for field, other in _OTHERS.items():
    noise = ("read_noise", "telegraph_noise", "white_noise", "dac_noise")
    tiled = field in ("adc_bits", *noise, *crossbar.CONVERTER_ERRORS)
    assert crossbar.needs_tiles(_with(**{field: other})) == tiled


def test_a_stack_is_one_array_a_leaf():
  devices = [
    _with(stuck_on=0.1, variation=0, g_on=1e-3, adc_bits=4, write_error=None),
    _with(variation=0.5, read_noise=None, write_sigma=(0.25,)),
    _with(stuck_on=0.2, variation=0.25, temperature=350, drift_time=0),
  ]
  stacked = crossbar.stack(devices)
  for field, expected in (
    ("stuck_on", [0.1, 0, 0.2]),
    ("variation", [0, 0.5, 0.25]),
    ("adc_bits", [4, 0, 0]),
    ("g_on", [1e-3, 3.33e-4, 3.33e-4]),
    ("temperature", [300, 300, 350]),
  ):
    got = getattr(stacked, field)
    assert got.dtype == np.float32 and got.shape == (3,)
    np.testing.assert_array_equal(got, np.float32(expected), field)
  np.testing.assert_array_equal(stacked.write_sigma, [[0, 0.25, 0]])
  np.testing.assert_allclose(
    stacked.telegraph, [[1.662e-7] * 3, [0.0015] * 3], rtol=1e-6
  )
  absent = set(crossbar.EFFECTS) - {"stuck_on", "variation", "adc_bits"}
  assert all(getattr(stacked, field) is None for field in absent)
  assert all(x.shape == (3,) for x in jax.tree.leaves(stacked))
  for field in _STATIC:  # of one value, or refused
    other, default = _OTHERS[field], _FIELDS[field].default
    assert getattr(stacked, field) == default
    got = ", ".join(sorted(map(str, (other, default))))
    message = f"{field} of chips scored together: got {got}, allowed is one"
    device = _with(**{field: other})
    _complains(message, crossbar.stack, [_IDEAL, device, _IDEAL])
    assert getattr(crossbar.stack([device] * 2), field) == other


@pytest.mark.exact
def test_chips_of_a_stack_are_those_of_its_devices(rng):
  """vmapped, with effects of the others at severity 0."""
  weights = rng.choice(np.float32([-1, 1]), (60, 20))
  memories = [crossbar.PRESETS[name] for name in ("reram_wan2022", "pcm")]
  devices = [_with(stuck_off=0.3), _with(dead_rows=0.2, stuck_on=0.1), _IDEAL]
  devices = memories + devices
  keys = jax.random.split(jax.random.key(rng.integers(99)), len(devices))
  effective = jax.jit(crossbar.effective_weights)
  together = jax.jit(
    jax.vmap(crossbar.effective_weights, in_axes=(0, None, 0))
  )(keys, weights, crossbar.stack(devices))
  together = np.asarray(together)
  for key, device, got in zip(keys, devices, together, strict=True):
    alone = effective(key, weights, device)
    if device in memories:  # programs of other effects round in their own way
      np.testing.assert_allclose(got, alone, rtol=0, atol=1e-6)
    else:
      np.testing.assert_array_equal(got, alone)
  np.testing.assert_array_equal(together[-1], weights)


def _config(**fields):
  config = settings.default()
  config.train.nets = ("baseline_1x",)
  config.device.update(fields)
  return config


def test_configured_presets_lose_their_random_effects():
  for name, device in crossbar.PRESETS.items():
    expected = crossbar.without_defects(device)
    assert settings.device(_config(preset=name)) == expected
    assert not any(getattr(expected, field) for field in crossbar.DEFECTS)


def test_configured_fields_go_before_the_preset():
  mnsim = settings.device(_config(preset="mnsim"))
  assert mnsim.wire_resistance == 2.82 and mnsim.adc_bits == 6
  fields = set(_config().device) - {"preset"}
  assert fields <= set(_FIELDS) - set(crossbar.DEFECTS)
  for field in fields:
    change = {field: _OTHERS[field]}
    expected = dataclasses.replace(mnsim, **change)
    assert settings.device(_config(preset="mnsim", **change)) == expected
  # 0 is a value, None is none.
  config = _config(preset="mnsim", adc_bits=0, wire_resistance=None)
  assert settings.device(config) == dataclasses.replace(mnsim, adc_bits=0)
  message = "config.device.adc_bits: got 17, allow"
  _complains(message, settings.validate, _config(adc_bits=17))
  message = "config.device.g_off, g_on: got 1, 0.00"
  _complains(message, settings.validate, _config(g_off=1.0))


def test_configured_file(file):
  fields = {"preset": "pcm", "stuck_on": 0.1, "tile_shape": [32, 8]}
  config = _config(preset=str(file(fields)))
  expected = dataclasses.replace(
    crossbar.without_defects(crossbar.PRESETS["pcm"]), tile_shape=(32, 8)
  )
  assert settings.device(config) == expected
  config.device.tile_shape = (16, 4)
  expected = dataclasses.replace(expected, tile_shape=(16, 4))
  assert settings.device(config) == expected
  file({"stuck_on": 2.0})
  message = "device.json.stuck_on: got 2.0, allowed"
  _complains(message, settings.device, config)
  for preset in ("hawis", "", "no/such.json", "/"):
    message = f"config.device.preset: got {preset!r}, allowed is a file, or one"
    config = _config(preset=preset)
    for check in (settings.device, settings.validate):
      _complains(f"{message} of hawis_published, reram_", check, config)


_OWN = dict(stuck_off=0.1, variation=0.3, read_noise=1.0, tile_shape=(32, 8))


def test_a_device_has_its_effects_where_a_scenario_says_so(file):
  """In the default sweep and mix; shares of them, and single ones left out."""
  config = _config(preset=str(file(_OWN)))
  config.device.wire_resistance = 2.0
  settings.validate(config)
  own = dataclasses.replace(_IDEAL, **_OWN)
  (severity,) = settings.sweeps(config)[-1].severities
  assert severity.is_random and severity.value == 1
  assert severity.device == dataclasses.replace(own, wire_resistance=2.0)
  assert settings.search_devices(config)[0] == own
  config.robustness.scenarios = (
    {"device": (0.0, 0.5), "variation": 0.0, "stuck_on": 0.01},
  )
  for share, severity in zip(
    (0.0, 0.5), settings.sweeps(config)[0].severities, strict=True
  ):
    assert severity.value == share
    assert severity.device == dataclasses.replace(
      own,
      wire_resistance=2.0,
      stuck_on=0.01,
      variation=0.0,
      stuck_off=share * 0.1,
      read_noise=share,
    )
  for share in (-1.0, "1", True, None):
    config.robustness.scenarios = ({"variation": 0.1, "device": share},)
    _complains(
      f"scenarios[0].device: got {share!r}, allowed is a share",
      *(settings.sweeps, config),
    )


@pytest.mark.parametrize(
  "preset", [n for n in crossbar.PRESETS if n != "hawis_published"]
)
def test_no_effect_of_a_preset_is_left_out_without_a_word(preset):
  config = _config(preset=preset)
  config.train.nets = ("found",)
  effects = settings.own_effects(config)
  assert effects or preset == "isaac"
  settings.validate(config)  # the defaults have all
  for section in ("search", "robustness"):
    for left in effects:
      others = {name: 0.0 for name in effects if name != left}
      config[section].scenarios = (dict(dead_rows=0.1, **others),)
      _complains(
        f"config.{section}.scenarios: got none with {left}, which the device "
        f"{preset!r} has, needed is {{'device': 1.0}}",
        *(settings.validate, config),
      )
      config[section].scenarios[0][left] = 0.0  # named: left out on purpose
      settings.validate(config)


def test_the_default_device_is_in_the_default_mix():
  """Its fault rates are the published ones; a device without any has none."""
  first, second, ideal = settings.search_devices(_config())
  assert first == crossbar.PRESETS["hawis_published"]
  assert second == dataclasses.replace(ideal, variation=0.5)
  assert settings.search_devices(_config(preset="isaac")) == [
    dataclasses.replace(crossbar.PRESETS["isaac"], variation=0.5),
    dataclasses.replace(crossbar.PRESETS["isaac"], adc_bits=0),
  ]


def test_search_devices_are_the_scenarios_and_the_ideal():
  """Without wires: a candidate's masked cells would load them."""
  config = _config(wire_resistance=2.0, adc_bits=6)
  config.search.scenarios = (
    dict(stuck_off=0.1, stuck_on=0.02),
    dict(variation=0.5, adc_bits=4),
  )
  base = crossbar.without_defects(crossbar.PRESETS["hawis_published"])
  assert settings.search_devices(config) == [
    dataclasses.replace(base, stuck_off=0.1, stuck_on=0.02, adc_bits=6),
    dataclasses.replace(base, variation=0.5, adc_bits=4),
    base,
  ]


@pytest.mark.parametrize(
  "scenarios, message",
  [
    ((), ": got (), allowed is a tuple of one or more dicts"),
    ((dict(), None), ": got ({}, None), allowed is a tuple of one or more d"),
    ((dict(stuck_of=0.1),), "[0]: got 'stuck_of', allowed are "),
    ((dict(tile_shape=(8, 8)),), "[0]: got 'tile_shape', allowed are"),
    ((dict(name="a", stuck_on=0.1),), "[0]: got 'name', allowed are"),
    (({}, dict(stuck_on=1.1)), "[1].stuck_on: got 1.1, allowed is a share"),
    ((dict(stuck_on=(0.0, 0.1)),), "[0].stuck_on: got (0.0, 0.1), allowed is"),
    ((dict(wire_resistance=1.0),), "[0]: got 'wire_resistance', allowed are"),
    (
      (dict(cell_bits=2),),
      ": cell_bits of chips scored together: got 0, 2, al",
    ),
  ],
)
def test_bad_search_scenarios(scenarios, message):
  config = _config()
  config.search.scenarios = scenarios
  for check in (settings.search_devices, settings.validate):
    _complains(f"config.search.scenarios{message}", check, config)


def test_no_search_has_sense_amplifiers_or_calibrates_converters():
  """But a net of known widths may have calibrated ones."""
  config = _config(adc_bits=5, adc_range="calibrated")
  search_devices = settings.search_devices
  assert search_devices(config)[-1].adc_range == "calibrated"
  config.train.nets = ("found",)
  _complains(
    "config.search.scenarios[0], adc_range: got 'calibrated', allowed is "
    "full_scale",
    *(search_devices, config),
  )
  config.device.adc_bits = 0
  assert search_devices(config)[-1].adc_range == "calibrated"
  config.device.adc_range = "full_scale"
  config.search.scenarios = (dict(adc_bits=1),)
  message = "scenarios[0], adc_bits: got 1, allowed is 0 or 2 to 16"
  _complains(message, search_devices, config)


def test_settled_devices_are_written_out(file, tmp_path):
  """A file of a device that has changed is another configuration."""
  config = _config(preset=str(file({"tile_shape": [32, 8]})))
  workdir = tmp_path / "run"
  results.settle(config, workdir)
  written = json.loads((workdir / "config.json").read_text())
  device = settings.device(config)
  saved = written["device.resolved"]
  assert _read(file(saved)) == device
  results.settle(config, workdir)  # the same device in other words
  (workdir / "train").mkdir()
  (workdir / "train" / "begun").write_text("")
  results.settle(config, workdir)
  file({"tile_shape": [32, 16]})
  message = "config.device.resolved was"
  _complains(message, results.settle, config, workdir)
  file({"tile_shape": [32, 8], "stuck_on": 0.1})  # as in a scenario
  message = "config.search.effects was {'stuck_on': None}, is {'stuck_on': 0.1}"
  _complains(message, results.settle, config, workdir)
