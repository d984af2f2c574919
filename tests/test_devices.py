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

from hawis_jax import config as config_lib
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.crossbar import presets

_IDEAL = crossbar.Device()
_FIELDS = {field.name: field for field in dataclasses.fields(_IDEAL)}
_STATIC = tuple(n for n, f in _FIELDS.items() if f.metadata.get("static"))
# (field, low, high), both allowed, just outside is not.
_RANGES = (
  ("read_voltage", 1e-6, 1e3),
  ("stuck_on", 0, 1),
  ("stuck_off", 0, 1),
  ("dead_rows", 0, 1),
  ("dead_columns", 0, 1),
  ("variation", 0, 10),
  ("gaussian_variation", 0, 10),
  ("write_error", 0, 1e3),
  ("drift_time", 0, 1e12),
  ("drift_start", 1e-12, 1e12),
  ("read_noise", 0, 1e6),
  ("bandwidth", 0, 1e15),
  ("temperature", 0, 1e4),
  ("telegraph_noise", 0, 1e3),
  ("legacy_noise", 0, 1e3),
  ("wire_resistance", 0, 1e9),
  ("load_resistance", 0, 1e9),
  ("adc_bits", 0, 16),
  ("adc_percentile", 50, 100),
)
_NUMBERS = ("g_on", "g_off", *(field for field, *_ in _RANGES))
_TUPLES = {"write_sigma": None, "drift_mean": 4, "drift_std": 4}
_TUPLES.update(write_range=2, telegraph=2)


def _refused(device, *parts):
  """One line of `validate` that has all parts."""
  with pytest.raises(errors.InputError) as caught:
    crossbar.validate(device, "x")
  text = str(caught.value)
  assert "\n" not in text
  for part in parts:
    assert part in text, text


def _with(**changes):
  if changes.get("write_error"):  # needs a polynomial
    changes = {"write_sigma": (1.0,), **changes}
  return dataclasses.replace(_IDEAL, **changes)


def _other(field):
  """An allowed value of a field that is not its default."""
  rng = np.random.default_rng()
  words = {
    "tile_shape": (int(rng.integers(1, 300)), int(rng.integers(1, 300))),
    "cell_bits": int(rng.integers(1, 3)),
    "adc_bits": int(rng.integers(1, 17)),
    "adc_range": "calibrated",
    "adc_percentile": 97.5,
    "write_sigma": tuple(rng.normal(size=rng.integers(1, 5)).tolist()),
    "write_range": (0.0, 0.5),
    "drift_mean": (*rng.normal(size=2).tolist(), 0.0, 0.3),
    "drift_std": (*rng.normal(size=2).tolist(), -0.1, 0.1),
    "telegraph": tuple(rng.uniform(0, 1e-3, 2).tolist()),
  }
  if field in words:
    return words[field]
  default = _FIELDS[field].default
  if type(default) is bool:
    return not default
  return float((default or 0.3) * rng.uniform(0.5, 0.9))


def _names(field, value):
  """That a bad value is named as it is."""
  _refused(_with(**{field: value}), f"x.{field}: got {value!r}, allowed is ")


@pytest.mark.parametrize("field", _FIELDS)
def test_every_field_has_other_values(field):
  device = _with(**{field: _other(field)})
  assert getattr(device, field) != _FIELDS[field].default
  assert crossbar.validate(device) is device


def test_every_field_is_checked():
  """None is left out here: a new field needs its check, and tests of it."""
  flags = {f for f, field in _FIELDS.items() if type(field.default) is bool}
  rest = {"tile_shape", "cell_bits", "adc_range"}
  tested = {*_NUMBERS, *_TUPLES, *flags, *rest}
  assert tested == set(_FIELDS)


@pytest.mark.parametrize("field, low, high", _RANGES)
def test_ranges(field, low, high):
  for value in (low, high):
    device = _with(**{field: value})
    assert crossbar.validate(device) is device
  for value in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf)):
    _names(field, value)


@pytest.mark.parametrize("field", _NUMBERS)
@pytest.mark.parametrize(
  "value", [math.nan, math.inf, -math.inf, "1", True, [0.1], (0.1,), {}]
)
def test_numbers_are_finite_numbers(field, value):
  _names(field, value)


@pytest.mark.parametrize("field", _NUMBERS)
def test_only_a_level_may_be_none(field):
  if field in crossbar.EFFECTS:
    device = _with(**{field: None})
    assert crossbar.validate(device) is device
  else:
    _names(field, None)


@pytest.mark.parametrize("field", _TUPLES)
def test_tuples(field):
  for value in (
    None,
    1.0,
    "ab",
    [0.0] * 4,
    {},
    ("a",),
    (0.0, math.nan),
    (1, True),
  ):
    _refused(
      _with(**{field: value}), f"x.{field}: got {value!r}", "finite numbers"
    )
  length = _TUPLES[field]
  for wrong in (0, length - 1, length + 1) if length else (0,):
    allowed = f"a tuple of {length or 'one or more'} numbers"
    value = (0.0,) * wrong
    _refused(_with(**{field: value}), f"x.{field}: got {value}, ", allowed)


@pytest.mark.parametrize(
  "field, values, allowed",
  [
    (
      "tile_shape",
      [(64,), (0, 64), (64, -1), (2.0, 2), (True, 8), [64, 64], 64, (1, 1, 1)],
      "needed are (rows, columns) >= 1",
    ),
    ("cell_bits", [-1, 3, 8, 1.0, True, None, "2"], "0 (one analog cell"),
    (
      "adc_range",
      ["full", "", None, 1, ("full_scale",)],
      "one of full_scale, c",
    ),
    ("adc_bits", [2.5, 0.5], "an integer from 0 (ideal) to 16"),
    ("stuck_cells_vary", [0, 1, None, "no"], "True or False"),
    ("spare_level", [0, 1, None, "no"], "True or False"),
    ("analog_inputs", [0, 1, None, "no"], "True or False"),
    (
      "drift_mean",
      [(0.0, 0.1, 0.2, 0.1)],
      "(a, b, low, high) with low <= high",
    ),
    ("drift_std", [(0.0, 0.1, 0.2, 0.1)], "(a, b, low, high) with low <= high"),
  ],
)
def test_words_and_shapes(field, values, allowed):
  for value in values:
    _refused(_with(**{field: value}), f"x.{field}: got {value!r}, ", allowed)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(stuck_on=-0.1), "x.stuck_on: got -0.1, allowed"),
    (dict(stuck_off=1.5), "x.stuck_off: got 1.5, allowed"),
    (dict(stuck_on=0.6, stuck_off=0.5), "got 0.6 + 0.5, allowed is a sum"),
    (dict(variation=-1.0), "x.variation: got -1"),
    (dict(g_on=1e-7), "got 3.33e-07, 1e-07 S, needed is 0 < g_off < g_on"),
    (dict(g_on=3.33e-7), "needed is 0 < g_off < g_on"),
    (dict(g_off=0.0), "needed is 0 < g_off < g_on"),
    (dict(g_off=-1.0), "x.g_off: got -1.0, allowed is a conductance [S]"),
    (
      dict(telegraph_noise=1.0, wire_resistance=2.0),
      "x.telegraph_noise: got 1 with resistive wires, allowed is 0",
    ),
    (
      dict(telegraph_noise=0.5, load_resistance=2.0),
      "x.telegraph_noise: got 0.5 with resistive wires, allowed is 0",
    ),
    (
      dict(analog_inputs=True, read_noise=1.0),
      "x.analog_inputs: got True with noise a read, allowed is False",
    ),
    (
      dict(analog_inputs=True, telegraph_noise=1.0),
      "x.analog_inputs: got True with noise a read, allowed is False",
    ),
    (
      dict(write_error=1.0, write_range=(1e-6, 1e-3)),
      "x.write_range: got g_off, g_on = 3.33e-07, 0.000333 S, allowed with "
      "write_error are targets from 1e-06 to 0.001 S",
    ),
    (
      dict(write_error=2.0, write_sigma=(0.0, 0.0)),
      "x.write_error: got 2, allowed is 0 without a measured write_sigma",
    ),
    (
      dict(write_error=1.0, write_range=(0.0, 3e-4)),
      "allowed with write_error are targets from 0 to 0.0003 S",
    ),
  ],
)
def test_combinations(change, message):
  _refused(_with(**change), message)
  # All of it is needed to be wrong.
  if len(change) > 1:
    for field in change:
      device = _with(**{k: v for k, v in change.items() if k != field})
      assert crossbar.validate(device) is device


def test_combinations_that_make_sense():
  for change in (
    dict(stuck_on=0.4, stuck_off=0.6),
    dict(telegraph_noise=1.0, wire_resistance=0.0, load_resistance=None),
    dict(read_noise=1.0, wire_resistance=1.0, load_resistance=1.0),
    dict(analog_inputs=True, read_noise=0.0, telegraph_noise=None),
    dict(write_error=1.0, write_range=(3.33e-7, 3.33e-4)),
  ):
    device = _with(**change)
    assert crossbar.validate(device) is device


def test_presets_are_valid():
  for name, device in crossbar.PRESETS.items():
    assert crossbar.validate(device, name) is device
    assert crossbar.preset(name) is device


def test_presets_have_the_published_numbers():
  """The formulas as their sources write them, in uS."""
  rng = np.random.default_rng()
  published = {
    "reram_wan2022": lambda g: (
      1.536e-4 * g**3 - 1.167e-2 * g**2 + 0.2374 * g + 1.053
    ),
    "reram_milo2021": lambda g: -0.009107 * g + 4.782321,
    "hfox_cmo": lambda g: 0.00106879 * g + 0.00081107,
    "hfox_cmo_2percent": lambda g: 0.01129027418 * g + 0.0112185391,
    "pcm": lambda g: -1.1731 * (g / 25) ** 2 + 1.9650 * (g / 25) + 0.26348,
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


@pytest.mark.parametrize("name", ["hawis", "", None, 3])
def test_a_preset_that_is_not_there(name):
  match = f"y: got {name!r}, allowed are hawis_published, reram_wan2022, "
  with pytest.raises(errors.InputError, match=match):
    crossbar.preset(name, "y")


def _write(path, content):
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


@pytest.fixture
def file(tmp_path):
  """Writes a device file."""
  return lambda content: _write(tmp_path / "device.json", content)


def test_files_hold_all_fields(file):
  """Lists of the file are the tuples that they were."""
  for device in crossbar.PRESETS.values():
    assert crossbar.from_json(file(dataclasses.asdict(device))) == device
  every = {field: _other(field) for field in _FIELDS}
  # Together they would be refused.
  every.update(telegraph_noise=0.0, read_noise=0.0, stuck_on=0.2, stuck_off=0.1)
  device = crossbar.Device(**every)
  found = crossbar.from_json(file(dataclasses.asdict(device)))
  assert found == device
  assert type(found.tile_shape) is tuple and type(found.write_sigma) is tuple
  assert crossbar.from_json(file({})) == _IDEAL


def test_files_start_from_a_preset(file):
  found = crossbar.from_json(file({"tile_shape": [8, 16], "preset": "pcm"}))
  pcm = crossbar.PRESETS["pcm"]
  assert found == dataclasses.replace(pcm, tile_shape=(8, 16))
  # A field of the file goes before the preset's, in whatever order.
  found = crossbar.from_json(file({"write_error": None, "preset": "pcm"}))
  assert found == dataclasses.replace(pcm, write_error=0.0)


@pytest.mark.parametrize(
  "content, message",
  [
    ({"stuck_of": 0.1}, "got 'stuck_of', allowed are g_on, g_off, "),
    ({"stuck_of": 0.1}, "; did you mean 'stuck_off'?"),
    ({"gon": 0.1}, "; did you mean 'g_on'?"),
    ({"preset": "hawiss"}, ": preset: got 'hawiss', allowed are hawis_publish"),
    ({"preset": None}, ": preset: got None, allowed are hawis_published"),
    ({"stuck_off": 1.5}, ".stuck_off: got 1.5, allowed is a share of cells"),
    ({"stuck_off": [0.1, 0.2]}, ".stuck_off: got (0.1, 0.2), allowed is a sh"),
    ({"tile_shape": [8, [8]]}, ".tile_shape: got (8, [8]), needed are (rows, "),
    ({"write_sigma": [[1.0]]}, ".write_sigma: got ([1.0],), allowed is a tup"),
    (
      {"preset": "pcm", "g_on": 1e-3},
      ".write_range: got g_off, g_on = 2.5e-07",
    ),
    ('{"g_on": NaN}', ".g_on: got nan, allowed is a conductance"),
    ("[1]", ": got a list, needed is an object of fields"),
    ('"pcm"', ": got a str, needed is an object of fields"),
    ("null", ": got a NoneType, needed is an object of fields"),
    ("", ": can't be read: Expecting value"),
    ('{"g_on": 1', ": can't be read: Expecting ',' delimiter"),
  ],
)
def test_bad_files(file, content, message):
  path = file(content)
  with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
    crossbar.from_json(path)
  assert str(caught.value).startswith(str(path))


def test_nothing_close_gets_no_hint(file):
  with pytest.raises(errors.InputError, match="got 'zzz', allowed") as caught:
    crossbar.from_json(file({"zzz": 1}))
  assert "did you mean" not in str(caught.value)


def test_files_that_are_not_there_or_no_text(tmp_path):
  for path, reason in (
    (tmp_path / "no.json", "No such file"),
    (tmp_path, "Is a directory"),
  ):
    with pytest.raises(errors.InputError, match=f"can't be read: {reason}"):
      crossbar.from_json(path)
  path = tmp_path / "binary.json"
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(errors.InputError, match="can't be read: .*decode"):
    crossbar.from_json(str(path))


@pytest.mark.parametrize("preset", [["pcm"], {"name": "pcm"}])
def test_a_preset_of_a_file_that_is_no_name(file, preset):
  with pytest.raises(errors.InputError, match="preset: got "):
    crossbar.from_json(file({"preset": preset}))


def test_an_integer_beyond_all_floats(file):
  with pytest.raises(errors.InputError, match=".g_on: got 1000"):
    crossbar.from_json(file({"g_on": 10**400}))


def test_a_write_range_has_ascending_ends():
  device = _with(write_range=(1e-3, 1e-4))
  try:
    crossbar.validate(device)
  except errors.InputError as error:
    assert "write_range" in str(error)
  else:
    raise AssertionError("not refused")


def test_fields_are_replaced_and_checked():
  device = crossbar.with_fields(_IDEAL, {"variation": 0.2, "adc_bits": 4}, "y")
  assert device == _with(variation=0.2, adc_bits=4)
  with pytest.raises(errors.InputError, match="y.variation: got -1, allowed"):
    crossbar.with_fields(_IDEAL, {"variation": -1}, "y")
  match = r"y: got 'g_on', allowed are variation, adc_bits$"
  with pytest.raises(errors.InputError, match=match):
    crossbar.with_fields(_IDEAL, {"g_on": 1}, "y", ("variation", "adc_bits"))
  with pytest.raises(errors.InputError, match="y: got 7, allowed are g_on"):
    crossbar.with_fields(_IDEAL, {7: 1}, "y")


def test_absent_is_known_to_be_0():
  for level in (0, 0.0, -0.0, None, False):
    assert not crossbar.is_present(level)
  # Of numbers that are not Python's, it is not known.
  for level in (0.1, 1, jnp.float32(0), np.float32(0), jnp.zeros(3)):
    assert crossbar.is_present(level)


def test_leaves_are_what_is_present_and_its_constants():
  constants = {
    name for name in _FIELDS if name not in (*_STATIC, *crossbar.EFFECTS)
  }
  count = sum(
    len(value) if isinstance(value, tuple) else 1
    for value in (getattr(_IDEAL, name) for name in constants)
  )
  assert len(jax.tree.leaves(_IDEAL)) == count
  for field in crossbar.EFFECTS:
    device = _with(**{field: 0.5})
    assert len(jax.tree.leaves(device)) == count + 1
    # A level of 0 that is an array stays.
    device = _with(**{field: jnp.float32(0)})
    assert len(jax.tree.leaves(device)) == count + 1


@given(st.sets(st.sampled_from(sorted(_FIELDS))))
def test_tree_round_trip(fields):
  device = _with(**{field: _other(field) for field in fields})
  leaves, structure = jax.tree.flatten(device)
  found = jax.tree.unflatten(structure, leaves)
  assert hash(structure) == hash(jax.tree.structure(found))
  for field in _FIELDS:
    got, expected = getattr(found, field), getattr(device, field)
    # An absent level is None then.
    if field in crossbar.EFFECTS and not expected:
      assert got is None
    else:
      assert got == expected and type(got) is type(expected)
  again = jax.tree.unflatten(structure, leaves)
  assert jax.tree.leaves(again) == leaves
  doubled = jax.tree.map(lambda x: 2 * x, device)
  assert doubled.g_on == 2 * device.g_on
  assert all(getattr(doubled, f) == getattr(device, f) for f in _STATIC)


def test_devices_pass_through_jit():
  """Traced where they are numbers; a change of them compiles nothing anew."""
  compiled = []

  @jax.jit
  def same(device):
    compiled.append(device)
    return device

  device = _with(**{field: _other(field) for field in _FIELDS})
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
  device = _with(**{field: _other(field) for field in _FIELDS})
  silent, ideal = (
    crossbar.without_defects(device),
    crossbar.without_effects(device),
  )
  kept = {"wire_resistance", "load_resistance", "adc_bits"}
  assert set(crossbar.EFFECTS) - set(crossbar.DEFECTS) == kept
  for field in _FIELDS:
    expected = getattr(device, field)
    assert expected != _FIELDS[field].default
    absent = 0.0 if field in crossbar.DEFECTS else expected
    assert getattr(silent, field) == absent, field
    absent = 0.0 if field in crossbar.EFFECTS else expected
    assert getattr(ideal, field) == absent, field


def test_effects_are_fields_whose_default_is_0():
  """Levels: other fields of 0 are words or constants of formulas."""
  assert len(set(crossbar.EFFECTS)) == len(crossbar.EFFECTS)
  for field in crossbar.EFFECTS:
    assert _FIELDS[field].default == 0 and field not in _STATIC
  tuples = {n for n, f in _FIELDS.items() if isinstance(f.default, tuple)}
  assert set(crossbar.SCENARIO_FIELDS) == set(_FIELDS) - tuples
  for field in _FIELDS:
    tiled = field in ("adc_bits", "read_noise", "telegraph_noise")
    assert crossbar.needs_tiles(_with(**{field: _other(field)})) == tiled


def test_stack_is_one_array_a_leaf():
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
    assert got.dtype == jnp.float32 and got.shape == (3,)
    np.testing.assert_array_equal(got, np.float32(expected), field)
  np.testing.assert_array_equal(stacked.write_sigma, [[0, 0.25, 0]])
  np.testing.assert_allclose(
    stacked.telegraph, [[1.662e-7] * 3, [0.0015] * 3], rtol=1e-6
  )
  absent = set(crossbar.EFFECTS) - {"stuck_on", "variation", "adc_bits"}
  assert all(getattr(stacked, field) is None for field in absent)
  for field in _STATIC:
    assert getattr(stacked, field) == _FIELDS[field].default
  assert all(x.shape == (3,) for x in jax.tree.leaves(stacked))


def test_chips_of_a_stack_are_those_of_its_devices():
  """vmapped, with effects of the others at level 0."""
  weights = jnp.asarray(np.random.default_rng().choice([-1.0, 1.0], (60, 20)))
  weights = weights.astype(jnp.float32)
  devices = [_with(stuck_off=0.3), _with(dead_rows=0.2, stuck_on=0.1), _IDEAL]
  keys = jax.random.split(
    jax.random.key(np.random.default_rng().integers(99)), 3
  )
  effective = jax.jit(crossbar.effective_weights)
  together = jax.jit(
    jax.vmap(crossbar.effective_weights, in_axes=(0, None, 0))
  )(keys, weights, crossbar.stack(devices))
  for key, device, got in zip(keys, devices, together, strict=True):
    np.testing.assert_array_equal(got, effective(key, weights, device))
  np.testing.assert_array_equal(together[2], weights)


@pytest.mark.parametrize("field", _STATIC)
def test_static_fields_of_a_stack_are_one(field):
  other = _other(field)
  got = ", ".join(sorted(map(str, (other, _FIELDS[field].default))))
  match = f"{field} of chips scored together: got {got}, allowed is one"
  with pytest.raises(errors.InputError, match=re.escape(match)):
    crossbar.stack([_IDEAL, _with(**{field: other}), _IDEAL])
  same = crossbar.stack([_with(**{field: other})] * 2)
  assert getattr(same, field) == other


def _config(**fields):
  config = config_lib.default()
  config.train.nets = ("baseline_1x",)
  for field, value in fields.items():
    config[field] = value
  return config


def _complains(check, config, message):
  with pytest.raises(errors.InputError, match=re.escape(message)):
    check(config)


@pytest.mark.parametrize("name", crossbar.PRESETS)
def test_configured_presets_lose_their_random_effects(name):
  config = _config()
  config.device.preset = name
  expected = crossbar.without_defects(crossbar.PRESETS[name])
  assert config_lib.device(config) == expected
  assert not any(getattr(expected, field) for field in crossbar.DEFECTS)


def test_configured_fields_go_before_the_preset():
  config = _config()
  config.device.preset = "mnsim"
  mnsim = config_lib.device(config)
  assert mnsim.wire_resistance == 2.82 and mnsim.adc_bits == 6
  changes = {name: _other(name) for name in config.device if name != "preset"}
  assert set(changes) <= set(_FIELDS) - set(crossbar.DEFECTS)
  for field, value in changes.items():
    config = _config()
    config.device.preset = "mnsim"
    config.device[field] = value
    expected = dataclasses.replace(mnsim, **{field: value})
    assert config_lib.device(config) == expected
  # 0 is a value, None is none.
  config = _config()
  config.device.update(preset="mnsim", adc_bits=0, wire_resistance=None)
  assert config_lib.device(config) == dataclasses.replace(mnsim, adc_bits=0)


def test_configured_file(file):
  fields = {"preset": "pcm", "stuck_on": 0.1, "tile_shape": [32, 8]}
  config = _config()
  config.device.preset = str(file(fields))
  expected = dataclasses.replace(
    crossbar.PRESETS["pcm"], tile_shape=(32, 8), write_error=0.0
  )
  assert config_lib.device(config) == expected
  config.device.tile_shape = (16, 4)
  expected = dataclasses.replace(expected, tile_shape=(16, 4))
  assert config_lib.device(config) == expected
  file({"stuck_on": 2.0})
  _complains(
    config_lib.device, config, "device.json.stuck_on: got 2.0, allowed"
  )


@pytest.mark.parametrize("preset", ["hawis", "", "no/such.json", "/"])
def test_bad_configured_presets_are_named(preset):
  config = _config()
  config.device.preset = preset
  message = f"config.device.preset: got {preset!r}, allowed is a file, or one "
  _complains(config_lib.device, config, message + "of hawis_published, reram_")
  _complains(config_lib.validate, config, message)


def test_bad_configured_fields_are_named():
  config = _config()
  config.device.adc_bits = 17
  _complains(
    config_lib.validate, config, "config.device.adc_bits: got 17, allow"
  )
  config = _config()
  config.device.g_off = 1.0
  _complains(
    config_lib.validate, config, "config.device.g_off, g_on: got 1, 0.00"
  )


def test_search_devices_are_the_scenarios_and_the_ideal():
  """Without wires: a candidate's masked cells would load them."""
  config = _config()
  config.device.wire_resistance = 2.0
  config.device.adc_bits = 6
  config.search.scenarios = (
    dict(stuck_off=0.1, stuck_on=0.02),
    dict(variation=0.5, adc_bits=4),
  )
  base = crossbar.without_defects(crossbar.PRESETS["hawis_published"])
  assert config_lib.search_devices(config) == [
    dataclasses.replace(base, stuck_off=0.1, stuck_on=0.02, adc_bits=6),
    dataclasses.replace(base, variation=0.5, adc_bits=4),
    base,
  ]


def test_no_search_with_wires_or_sense_amplifiers():
  config = _config()
  config.train.nets = ("found",)
  for scenario, message in (
    (dict(wire_resistance=1.0), "[0]: got 'wire_resistance', allowed are"),
    (dict(adc_bits=1), "[0], adc_bits: got 1, allowed is 0 or 2 to 16"),
  ):
    config.search.scenarios = (scenario,)
    message = f"config.search.scenarios{message}"
    _complains(config_lib.search_devices, config, message)


@pytest.mark.parametrize(
  "scenarios, message",
  [
    ((), ": got (), allowed is a tuple of one or more dicts"),
    ((0.1,), ": got (0.1,), allowed is a tuple of one or more dicts"),
    ((dict(), None), ": got ({}, None), allowed is a tuple of one or more d"),
    ((dict(stuck_of=0.1),), "[0]: got 'stuck_of', allowed are "),
    ((dict(tile_shape=(8, 8)),), "[0]: got 'tile_shape', allowed are"),
    ((dict(name="a", stuck_on=0.1),), "[0]: got 'name', allowed are"),
    (({}, dict(stuck_on=1.1)), "[1].stuck_on: got 1.1, allowed is a share"),
    ((dict(stuck_on=(0.0, 0.1)),), "[0].stuck_on: got (0.0, 0.1), allowed is"),
    (
      (dict(cell_bits=2),),
      ": cell_bits of chips scored together: got 0, 2, al",
    ),
  ],
)
def test_bad_search_scenarios(scenarios, message):
  config = _config()
  config.search.scenarios = scenarios
  message = f"config.search.scenarios{message}"
  _complains(config_lib.search_devices, config, message)
  _complains(config_lib.validate, config, message)


def test_no_search_calibrates_converters():
  """But a net of known widths may have them."""
  config = _config()
  config.device.update(adc_bits=5, adc_range="calibrated")
  assert config_lib.search_devices(config)[-1].adc_range == "calibrated"
  config.train.nets = ("found",)
  message = (
    "config.search.scenarios[0], adc_range: got 'calibrated', allowed is "
    "full_scale"
  )
  _complains(config_lib.search_devices, config, message)
  config.device.adc_bits = 0
  assert config_lib.search_devices(config)[-1].adc_range == "calibrated"


def test_settled_devices_are_written_out(file, tmp_path):
  """A file of a device that has changed is another configuration."""
  config = _config()
  config.device.preset = str(file({"tile_shape": [32, 8]}))
  workdir = tmp_path / "run"
  config_lib.settle(config, workdir)
  written = json.loads((workdir / "config.json").read_text())
  device = config_lib.device(config)
  saved = written["device.resolved"]
  assert crossbar.from_json(file(saved)) == device
  config_lib.settle(config, workdir)  # the same device in other words
  (workdir / "train").mkdir()
  (workdir / "train" / "begun").write_text("")
  config_lib.settle(config, workdir)
  file({"tile_shape": [32, 16]})
  _complains(
    lambda c: config_lib.settle(c, workdir),
    config,
    "config.device.resolved was",
  )
