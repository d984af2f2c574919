"""Scenarios: what is swept, what a sweep is called, and bad ones by name."""

import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from hawis_jax import config as config_lib
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import scenarios

_BASE = crossbar.Device(wire_resistance=1.0, adc_bits=6)


def _parse(scenario, base=_BASE):
  return scenarios.parse(scenario, base, "here")


def _refused(scenario, *parts):
  with pytest.raises(errors.InputError) as caught:
    _parse(scenario)
  text = str(caught.value)
  assert text.startswith("here") and "\n" not in text
  for part in parts:
    assert part in text, text


@pytest.mark.parametrize(
  "scenario, key",
  [
    ({"stuck_off": (0.0, 0.1)}, "stuck_off"),
    ({"stuck_off": [0.0, 0.1]}, "stuck_off"),
    ({"variation": 0.3}, "variation"),
    ({"name": "a b", "variation": (0.3,)}, "a b: variation"),
    ({"variation": (0.3,), "name": "a b"}, "a b: variation"),
    ({"name": "", "variation": (0.3,)}, "variation"),
    ({"name": None, "variation": (0.3,)}, "variation"),
    ({"name": 7, "variation": (0.3,)}, "7: variation"),
    ({"stuck_off": (0.1,), "stuck_on": (0.2,)}, "stuck_on: stuck_off"),
    ({"stuck_on": (0.1,), "stuck_off": (0.2,)}, "stuck_off: stuck_on"),
    (
      {"wire_resistance": (0.78, 1.6), "load_resistance": 4.0},
      "load_resistance = 4.0: wire_resistance",
    ),
    # What is swept sets the levels, wherever it stands.
    (
      {"load_resistance": 4.0, "wire_resistance": (0.78, 1.6)},
      "load_resistance = 4.0: wire_resistance",
    ),
    (
      {"load_resistance": 4.0, "variation": 0.1},
      "variation = 0.1: load_resistance",
    ),
    (
      {"adc_range": "calibrated", "adc_bits": (4, 6), "stuck_on": (0.1, 0.2)},
      "adc_range = calibrated, stuck_on: adc_bits",
    ),
    (
      {"stuck_cells_vary": True, "adc_range": "calibrated", "variation": 1},
      "stuck_cells_vary = True, adc_range = calibrated: variation",
    ),
    ({"name": "x", "adc_bits": (4,), "stuck_on": 0.1}, "x: adc_bits"),
  ],
)
def test_keys(scenario, key):
  assert _parse(scenario).key == key


_LEVELS = st.lists(st.floats(0, 0.5), min_size=1, max_size=5, unique=True).map(
  tuple
)


@given(_LEVELS, st.sampled_from([tuple, list]), st.floats(0, 1))
def test_levels_are_zipped_and_the_rest_is_fixed(levels, kind, fixed):
  others = tuple(1 - x for x in levels)
  found = _parse(
    {
      "dead_rows": fixed,
      "stuck_off": kind(levels),
      "name": "any",
      "variation": kind(others),
      "adc_range": "calibrated",
    }
  )
  assert found.key == "any: stuck_off"
  assert len(found.levels) == len(levels)
  for level, value, other in zip(found.levels, levels, others, strict=True):
    assert level.value == value
    assert level.device == dataclasses.replace(
      _BASE,
      stuck_off=value,
      variation=other,
      dead_rows=fixed,
      adc_range="calibrated",
    )


def test_a_number_is_one_level():
  (level,) = _parse({"variation": 0.3, "stuck_on": 0.1}).levels
  assert level.value == 0.3
  assert level.device == dataclasses.replace(_BASE, variation=0.3, stuck_on=0.1)
  # Of words and numbers, a number is it.
  (level,) = _parse({"adc_range": "calibrated", "adc_bits": 4}).levels
  assert level.value == 4


def test_levels_keep_their_order():
  found = _parse({"adc_bits": (8, 4, 6, 0)})
  assert [level.value for level in found.levels] == [8, 4, 6, 0]
  assert [level.device.adc_bits for level in found.levels] == [8, 4, 6, 0]


@pytest.mark.parametrize("effect", crossbar.EFFECTS)
def test_chips_differ_where_anything_is_random(effect):
  ideal = crossbar.Device(write_sigma=(1.0,))
  first, second = _parse({effect: (0, 1)}, ideal).levels
  random = effect in crossbar.DEFECTS
  assert (first.is_random, second.is_random) == (False, random)
  # Of the base, or beside the swept field.
  base = dataclasses.replace(ideal, **{effect: 1})
  (level,) = _parse({"bandwidth": (1e6,)}, base).levels
  assert level.is_random == random
  (level,) = _parse({"temperature": (280,), effect: 1}, ideal).levels
  assert level.is_random == random
  (level,) = _parse({"temperature": (280,), effect: 0}, base).levels
  assert not level.is_random


def test_measured_faults(tmp_path):
  """A level of its own, or those of what is swept on the measured chip."""
  path = tmp_path / "chip7.npz"
  path.write_bytes(b"")
  measured = {"fault_map": str(path)}
  found = _parse(measured)
  assert found.key == "chip7.npz: fault_map"
  assert found.levels == (scenarios.Level(0.0, _BASE, False, str(path)),)
  found = _parse({**measured, "variation": (0.0, 0.3), "adc_bits": 4})
  assert found.key == "adc_bits = 4, chip7.npz: variation"
  assert [level.value for level in found.levels] == [0.0, 0.3]
  assert [level.is_random for level in found.levels] == [False, True]
  assert all(level.fault_map == str(path) for level in found.levels)
  assert _parse({**measured, "name": "chip 7"}).key == "chip 7: fault_map"
  # None is named where there is none.
  assert _parse({"variation": 0.3, "fault_map": ""}).key == "variation"
  for other in (str(tmp_path / "no.npz"), str(tmp_path)):
    _refused(
      {"variation": 0.3, "fault_map": other},
      f"here.fault_map: got {other!r}, needed is a file",
    )


@pytest.mark.parametrize("value", [7, ("a.npz", "b.npz")])
def test_measured_faults_that_are_no_path(value):
  _refused({"fault_map": value}, f"here.fault_map: got {value!r}")


@pytest.mark.parametrize(
  "scenario", [0.1, None, "stuck_off", ("stuck_off",), [("stuck_off", 0.1)]]
)
def test_no_mapping(scenario):
  _refused(scenario, f"here: got {scenario!r}, allowed is a dict of device")


@pytest.mark.parametrize(
  "scenario",
  [
    {},
    {"name": "only"},
    {"adc_range": "calibrated"},
    {"stuck_cells_vary": True, "name": "flag"},
    {"stuck_off": None},
    {"stuck_off": "0.1"},
  ],
)
def test_no_level(scenario):
  _refused(
    scenario, f"here: got {scenario!r}, needed is an effect with a level"
  )


@pytest.mark.parametrize(
  "scenario, counts",
  [
    (
      {"stuck_off": (0.0, 0.1), "stuck_on": (0.1,)},
      "got 2 and 1 levels of stuck_off, stuck_on, needed is one number of them",
    ),
    (
      {"stuck_off": (0.1,), "variation": [0.1, 0.2, 0.3], "adc_bits": 4},
      "got 1 and 3 levels of stuck_off, variation, needed is one number",
    ),
    ({"stuck_off": ()}, "got 0 levels of stuck_off, needed is one number of"),
    (
      {"stuck_off": [], "variation": []},
      "got 0 and 0 levels of stuck_off, var",
    ),
    ({"stuck_off": (), "variation": (1,)}, "got 0 and 1 levels of stuck_off, "),
  ],
)
def test_numbers_of_levels(scenario, counts):
  _refused(scenario, f"here: {counts}", "at least 1")


@pytest.mark.parametrize(
  "scenario",
  [
    {"stuck_off": (0.1, 0.2, 0.1)},
    {"stuck_off": (0, 0.0)},
    {"adc_bits": [4, 4], "stuck_on": (0.1, 0.2)},
  ],
)
def test_levels_are_distinct(scenario):
  effect, levels = next(iter(scenario.items()))
  got = tuple(levels)
  _refused(scenario, f"here.{effect}: got {got!r}, needed are distinct levels")


@pytest.mark.parametrize(
  "scenario",
  [
    {"adc_range": ("full_scale", "calibrated"), "adc_bits": 4},
    {"stuck_off": (None, 0.1)},
    {"spare_level": (False, True)},
  ],
)
def test_swept_levels_are_numbers(scenario):
  _refused(scenario, f"here.{next(iter(scenario))}: got ")


def test_fields_beside_the_swept_one_may_repeat():
  found = _parse({"stuck_on": (0.1, 0.2), "adc_bits": (4, 4)})
  assert [level.device.adc_bits for level in found.levels] == [4, 4]


@pytest.mark.parametrize(
  "scenario, parts",
  [
    ({"stuck_of": 0.1}, ["here: got 'stuck_of'", "did you mean 'stuck_off'?"]),
    ({"stuck_of": (0.1, 0.2)}, ["here: got 'stuck_of', allowed are g_on, "]),
    ({"stuck_off": 0.1, "nam": "a"}, ["here: got 'nam', allowed are g_on, "]),
    ({"preset": "pcm", "variation": 1}, ["here: got 'preset', allowed are"]),
    ({"tile_shape": (32, 64)}, ["here: got 'tile_shape', allowed are g_on"]),
    ({"stuck_off": (0.1, 1.5)}, ["here.stuck_off: got 1.5, allowed is a sha"]),
    (
      {"stuck_off": (0.1, "x")},
      ["here.stuck_off: got 'x' for a level, needed"],
    ),
    ({"stuck_off": ([0.1],)}, ["here.stuck_off: got [0.1], allowed is a sha"]),
    ({"stuck_off": (0.1, float("nan"))}, ["here.stuck_off: got nan, allowed"]),
    ({"stuck_off": (True,)}, ["here.stuck_off: got True for a level, needed"]),
    ({"adc_bits": (4, 4.5)}, ["here.adc_bits: got 4.5, allowed is an integer"]),
    ({"variation": 0.1, "adc_bits": 17}, ["here.adc_bits: got 17, allowed is"]),
    ({"adc_bits": 4, "adc_range": "no"}, ["here.adc_range: got 'no', allowed"]),
    (
      {"stuck_off": (0.1, 0.6), "stuck_on": (0.1, 0.5)},
      ["here.stuck_on + stuck_off: got 0.5 + 0.6, allowed is a sum of at most"],
    ),
    (
      {"telegraph_noise": (0, 1)},
      ["here.telegraph_noise: got 1 with resistive wires, allowed is 0"],
    ),
  ],
)
def test_bad_fields_and_levels(scenario, parts):
  _refused(scenario, *parts)


def _sweeps(value):
  config = config_lib.default()
  config.train.nets = ("baseline_1x",)
  config.robustness.scenarios = value
  return config


@pytest.mark.parametrize(
  "value, message",
  [
    ((), ": got (), allowed is a tuple of one or more dicts of device"),
    ((0.1,), "[0]: got 0.1, allowed is a dict of device parameters"),
    (({"stuck_on": 0.1}, {}), "[1]: got {}, needed is an effect with a level"),
    (
      ({"stuck_on": 0.1}, {"stuck_off": (0.1, 1.5)}),
      "[1].stuck_off: got 1.5, allowed is a share of cells",
    ),
    (
      ({"stuck_of": (0.1,)},),
      "[0]: got 'stuck_of', allowed are g_on, ",
    ),
    (
      ({"stuck_on": 0.1}, {"variation": 0.1}, {"stuck_on": (0.2, 0.3)}),
      ": got 'stuck_on, variation, stuck_on', allowed is scenarios of distinct",
    ),
    (
      ({"name": "a", "stuck_on": 0.1}, {"name": "a", "stuck_on": 0.2}),
      ": got 'a: stuck_on, a: stuck_on', allowed is scenarios of distinct",
    ),
  ],
)
def test_bad_sweeps_name_their_field(value, message):
  config = _sweeps(value)
  match = re.escape(f"config.robustness.scenarios{message}")
  for check in (config_lib.sweeps, config_lib.validate):
    with pytest.raises(errors.InputError, match=f"^{match}"):
      check(config)


def test_sweeps_start_from_the_configured_device():
  config = _sweeps(
    (
      {"stuck_on": (0.0, 0.1)},
      {"name": "a", "stuck_on": 0.1},
      {"stuck_on": 0.1, "adc_bits": 4},
    )
  )
  config.device.update(preset="mnsim", adc_bits=8)
  found = config_lib.sweeps(config)
  assert [s.key for s in found] == [
    "stuck_on",
    "a: stuck_on",
    "adc_bits = 4: stuck_on",
  ]
  # Without the preset's own random effects, with its wires.
  base = config_lib.device(config)
  assert base.wire_resistance and not base.gaussian_variation
  ideal, faulty = found[0].levels
  assert ideal.device == base and not ideal.is_random
  assert faulty.device == dataclasses.replace(base, stuck_on=0.1)
  assert found[2].levels[0].device.adc_bits == 4


def test_default_sweeps_are_the_published_ranges():
  found = config_lib.sweeps(config_lib.default())
  values = {s.key: [level.value for level in s.levels] for s in found}
  assert values == {
    "stuck_off": [0, 0.02, 0.04, 0.06, 0.08, 0.1],
    "stuck_on": [0, 0.005, 0.01, 0.015, 0.02],
    "variation": [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1],
  }
  for scenario in found:
    assert [level.is_random for level in scenario.levels] == [
      level.value > 0 for level in scenario.levels
    ]
