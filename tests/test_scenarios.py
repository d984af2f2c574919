"""Scenarios: what is swept, what a sweep is called, and bad ones by name."""

import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline.experiment import with_splits
from hawis_jax.robustness import scenarios

_BASE = crossbar.Device(wire_resistance=1.0, adc_bits=6)


def _parse(scenario, base=_BASE):
  return scenarios.parse(scenario, base, "here")


def _refused(scenario, message):
  with pytest.raises(errors.InputError) as caught:
    _parse(scenario)
  text = str(caught.value)
  assert text.startswith("here") and "\n" not in text
  assert message in text, text


@pytest.mark.parametrize(
  "scenario, key",
  [
    ({"stuck_off": [0.0, 0.1]}, "stuck_off"),
    ({"variation": (0.3,), "name": "a b"}, "a b: variation"),
    ({"name": "", "variation": (0.3,)}, "variation"),
    ({"name": None, "variation": 0.3}, "variation"),
    ({"name": 7, "variation": (0.3,)}, "7: variation"),
    ({"name": "x", "adc_bits": (4,), "stuck_on": 0.1}, "x: adc_bits"),
    ({"stuck_off": (0.1,), "stuck_on": (0.2,)}, "stuck_on: stuck_off"),
    ({"stuck_on": (0.1,), "stuck_off": (0.2,)}, "stuck_off: stuck_on"),
    # What is swept sets the severities, wherever it stands.
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
  ],
)
def test_keys(scenario, key):
  assert _parse(scenario).key == key


_LEVELS = st.lists(st.floats(0, 0.5), min_size=1, max_size=5, unique=True)


@given(_LEVELS, st.sampled_from([tuple, list]), st.floats(0, 1))
def test_severities_are_zipped_in_their_order_and_the_rest_is_fixed(
  severities, kind, fixed
):
  others = tuple(1 - x for x in severities)
  found = _parse(
    {
      "dead_rows": fixed,
      "stuck_off": kind(severities),
      "name": "any",
      "variation": kind(others),
      "adc_bits": kind([4] * len(severities)),  # these may repeat
      "adc_range": "calibrated",
    }
  )
  assert found.key == "any: stuck_off"
  assert len(found.severities) == len(severities)
  for severity, value, other in zip(
    found.severities, severities, others, strict=True
  ):
    assert severity.value == value
    assert severity.device == dataclasses.replace(
      _BASE,
      stuck_off=value,
      variation=other,
      dead_rows=fixed,
      adc_bits=4,
      adc_range="calibrated",
    )


def test_a_number_is_one_severity():
  (severity,) = _parse({"variation": 0.3, "stuck_on": 0.1}).severities
  assert severity.value == 0.3
  assert severity.device == dataclasses.replace(
    _BASE, variation=0.3, stuck_on=0.1
  )
  # Of words and numbers, a number is it.
  (severity,) = _parse({"adc_range": "calibrated", "adc_bits": 4}).severities
  assert severity.value == 4


_DISPERSIONS = ("chip_dispersion", "tile_dispersion")


@pytest.mark.parametrize(
  "effect", [x for x in crossbar.EFFECTS if x not in _DISPERSIONS]
)
def test_chips_differ_where_anything_is_random(effect):
  ideal = crossbar.Device(
    write_sigma=(1.0,),
    relaxation_growth=(1.0,),
    flicker=(0.0, 0.0, 0.0, 1.0),
    disturb=1e-6,
    activation=(0.0, 0.1),
    drift_std=(0.0, *[0.1] * 3),
  )
  if effect in crossbar.CONVERTER_ERRORS:
    ideal = dataclasses.replace(ideal, adc_bits=6)
  if effect == "nonlinearity":
    ideal = dataclasses.replace(ideal, wire_resistance=1.0)
  most = 0.1 if effect == "adc_mismatch" else 1
  first, second = _parse({effect: (0, most)}, ideal).severities
  random = effect in {*crossbar.DEFECTS} - {*crossbar.NOT_RANDOM}
  assert (first.is_random, second.is_random) == (False, random)
  # Of the base, or beside the swept field.
  base = dataclasses.replace(ideal, **{effect: most})
  swept = {"g_off": (3e-7,)}
  for scenario, device, expected in (
    (swept, base, random),
    ({**swept, effect: most}, ideal, random),
    ({**swept, effect: 0}, base, False),
  ):
    (severity,) = _parse(scenario, device).severities
    assert severity.is_random == expected


_ABSENT = "whose constant it is: needed is a severity of one, or device: 1.0"


@pytest.mark.parametrize(
  "preset, scenario, effects",
  [
    ("hfox_cmo", {"retention_time": (1.0, 1e4)}, "relaxation or flicker_noise"),
    ("pcm", {"retention_time": 1e6}, "relaxation or flicker_noise"),
    (
      "reram_wan2022",
      {"device": (0.0, 1.0), "retention_time": 1e6},
      "relaxation or flicker_noise",
    ),
    ("pcm", {"device": 1.0, "drift_start": (1.0, 20.0)}, "drift_time"),
    ("hfox_cmo", {"relaxation_start": (1.0, 2.0)}, "relaxation"),
    ("hfox_cmo", {"relaxation": 1.0, "flicker_read": 1e-6}, "flicker_noise"),
    ("pcm", {"bandwidth": (1e6, 1e8)}, "read_noise or legacy_noise"),
    (
      "pcm",
      {"temperature": (280, 350)},
      "read_noise or legacy_noise or temperature_rise",
    ),
    (
      "pcm",
      {"read_voltage": (0.1, 0.2)},
      "read_noise or legacy_noise or nonlinearity",
    ),
    ("pcm", {"nonlinearity": (1.0, 4.0)}, " or ".join(crossbar.WIRES)),
    ("pcm", {"white_noise_law": "inverse", "device": 1.0}, "white_noise"),
    ("pcm", {"adc_range": "calibrated", "device": 1.0}, "adc_bits"),
    ("pcm", {"adc_percentile": (99, 100)}, "adc_bits"),
    ("pcm", {"fault_cluster": (1, 3)}, "stuck_on or stuck_off"),
    ("pcm", {"chip_dispersion": (0.0, 0.5)}, "stuck_on or stuck_off"),
    ("pcm", {"tile_dispersion": 0.5}, "stuck_on or stuck_off"),
  ],
)
def test_constants_of_absent_effects_are_refused(preset, scenario, effects):
  """They would measure an ideal device under a name of their own."""
  field = next(x for x in scenario if x not in ("device", "relaxation"))
  own = scenarios.of_preset({"preset": preset}, crossbar.Device(), {}, "")
  got = f"here.{field}: got {scenario[field]!r} without {effects}, {_ABSENT}"
  with pytest.raises(errors.InputError) as caught:
    scenarios.parse(scenario, own[0], "here", own[1])
  assert str(caught.value).startswith(got), caught.value
  with pytest.raises(errors.InputError) as caught:
    _parse({"preset": preset} | scenario, crossbar.Device())
  assert str(caught.value).startswith(got), caught.value


@pytest.mark.parametrize(
  "scenario, preset",
  [
    ({"device": 1.0, "retention_time": (1.0, 1e4)}, "hfox_cmo"),
    ({"device": (0.0, 1.0), "retention_time": 1e4}, "reram_wan2022_relaxed"),
    ({"drift_time": (0.0, 1e4), "drift_start": 10.0}, "pcm"),
    ({"read_noise": 1.0, "temperature": (280, 350)}, "pcm"),
    ({"chip_dispersion": (0.0, 0.5), "stuck_off": 0.1}, "pcm"),
    ({"tile_dispersion": 0.1, "stuck_on": (0.0, 0.1)}, "pcm"),
  ],
)
def test_constants_of_effects_are_swept(scenario, preset):
  found = _parse({"preset": preset} | scenario, crossbar.Device()).severities
  assert len(found) == 2 and found[0].device != found[1].device


def test_measured_faults(tmp_path):
  """A severity of its own, or those of what is swept on the measured chip."""
  path = tmp_path / "chip7.npz"
  path.write_bytes(b"")
  measured = {"fault_map": str(path)}
  found = _parse(measured)
  assert found.key == "chip7.npz: fault_map"
  assert found.severities == (scenarios.Severity(0.0, _BASE, False, str(path)),)
  found = _parse({**measured, "variation": (0.0, 0.3), "adc_bits": 4})
  assert found.key == "adc_bits = 4, chip7.npz: variation"
  assert [severity.value for severity in found.severities] == [0.0, 0.3]
  assert [severity.is_random for severity in found.severities] == [False, True]
  assert all(severity.fault_map == str(path) for severity in found.severities)
  assert _parse({**measured, "name": "chip 7"}).key == "chip 7: fault_map"
  # None is named where there is none.
  assert _parse({"variation": 0.3, "fault_map": ""}).key == "variation"
  for other in (str(tmp_path / "no.npz"), str(tmp_path), 7, ("a.npz", "b")):
    message = f"here.fault_map: got {other!r}, needed is a file"
    _refused({"variation": 0.3, "fault_map": other}, message)


def test_a_scenario_of_another_memory():
  """The preset's cells and effects, in the configured tiles and converters."""
  base = crossbar.Device(
    tile_shape=(32, 16), wire_resistance=1.0, adc_bits=6, temperature=350.0
  )
  preset = crossbar.PRESETS["reram_wan2022"]
  found = scenarios.parse(
    {"preset": "reram_wan2022", "write_error": (0.0, 0.5)},
    base,
    "here",
    {"stuck_off": 0.1},  # the configured device's own
  )
  assert found.key == "reram_wan2022: write_error"
  for severity, value in zip(found.severities, (0.0, 0.5), strict=True):
    assert severity.device == dataclasses.replace(
      preset,
      tile_shape=(32, 16),
      wire_resistance=1.0,
      adc_bits=6,
      temperature=350.0,
      write_error=value,
    )
    assert severity.is_random == (value > 0)
  (whole,) = _parse({"preset": "reram_wan2022", "device": 1.0}).severities
  assert whole.device.write_error == preset.write_error
  assert whole.device.stuck_off == 0 and whole.device.adc_bits == 6


def test_another_memory_keeps_the_configured_converters():
  """Their errors, bandwidth and temperature; a share scales errors alike."""
  base = crossbar.Device(adc_bits=6, bandwidth=5e9, temperature=350.0)
  own = {"adc_offset": 2.0, "adc_gain": 0.1, "adc_noise": 1.0, "stuck_off": 0.1}
  own |= {"adc_mismatch": 0.02, "dac_noise": 0.01}
  scenario = {"preset": "reram_wan2022", "device": (0.5, 1.0)}
  found = scenarios.parse(scenario, base, "here", own).severities
  preset = crossbar.PRESETS["reram_wan2022"]
  for one in found:
    share = one.value
    assert one.device == dataclasses.replace(
      preset,
      adc_bits=6,
      bandwidth=5e9,
      temperature=350.0,
      write_error=share,
      **{k: share * own[k] for k in crossbar.CIRCUIT_ERRORS},
    )


def test_memories_of_several_presets_are_searched_and_trained_on():
  """Chips of one batch, whose polynomials are not of one length."""
  config = settings.default()
  config.train.nets = ("baseline_1x", "baseline_1x_chips")
  mix = (
    {"preset": "reram_wan2022", "device": 1.0},
    {"preset": "pcm", "write_error": 0.5, "drift_time": 1e4},
    {"stuck_off": 0.1},
  )
  config.search.scenarios = config.hardware_aware.scenarios = mix
  config.robustness.scenarios = mix
  settings.validate(config)
  for devices in (
    settings.search_devices(config),
    settings.train_devices(config),
  ):
    stacked = crossbar.stack(devices)
    on = [device.g_on for device in devices]
    np.testing.assert_allclose(stacked.g_on, on, rtol=1e-6)
    assert on[:3] == [39.26e-6, 25e-6, 3.33e-4]
    sigma = np.transpose(stacked.write_sigma)
    assert sigma.shape == (len(devices), 4)
    for device, row in zip(devices, sigma, strict=True):
      padded = np.pad(device.write_sigma, (0, 4 - len(device.write_sigma)))
      np.testing.assert_allclose(row, padded, rtol=1e-6)
    np.testing.assert_array_equal(stacked.write_error[:3], [1, 0.5, 0])
  config.search.scenarios = ({"preset": "pcm", "retention_time": 1e6},)
  with pytest.raises(errors.InputError, match=r"\[0\].*retention_time: got"):
    settings.validate(config)
  config.search.scenarios = mix
  # Another memory's effects are not the device's: one is left out.
  config.device.preset = "pcm"
  config.robustness.scenarios = ({"preset": "reram_wan2022", "device": 1.0},)
  message = "config.robustness.scenarios: got none with write_error"
  with pytest.raises(errors.InputError, match=message):
    settings.validate(config)


def test_placing():
  """Of every chip for its faults; a sweep's name has what differs."""
  found = _parse({"stuck_off": (0.0, 0.1), "placing": ["polarity"]})
  assert found.key == "polarity: stuck_off"
  placing = crossbar.Placing(("polarity",))
  assert [severity.placing for severity in found.severities] == [placing] * 2
  both = {"placing": ("polarity", "permutation"), "spare_columns": 4}
  found = _parse({"stuck_off": 0.1, **both, "copies": 2, "copied": ["head"]})
  assert found.severities[0].placing == crossbar.Placing(
    both["placing"], 4, 2, ("head",)
  )
  assert found.key == (
    "polarity and permutation, spare_columns = 4, copies = 2, copied head: "
    "stuck_off"
  )
  found = _parse({"stuck_off": 0.1, "placing": ()})
  assert found == _parse({"stuck_off": 0.1})
  for wrong, message in (
    ({"placing": ("turn",)}, "here.placing, rules: got ('turn',), allowed"),
    ({"placing": None}, "here.placing, rules: got None"),
    ({"spare_columns": 64}, "here.placing, spare_columns: got 64, allowed"),
    ({"copies": (1, 2)}, "here.placing, copies: got (1, 2), allowed"),
    ({"copies": 2, "adc_bits": 1}, "here.placing, copies: got 2 with adc_bits"),
  ):
    _refused({"stuck_off": 0.1, **wrong}, message)


@pytest.mark.parametrize(
  "scenario, message",
  [
    *(
      (no_mapping, f"got {no_mapping!r}, allowed is a dict of device")
      for no_mapping in (0.1, None, "stuck_off", [("stuck_off", 0.1)])
    ),
    *(
      (no_severity, f"got {no_severity!r}, needed is an effect with a severity")
      for no_severity in (
        {},
        {"name": "only"},
        {"stuck_cells_vary": True, "adc_range": "calibrated"},
        {"stuck_off": None},
        {"stuck_off": "0.1"},
      )
    ),
    (
      {"stuck_off": (0.1,), "variation": [0.1, 0.2, 0.3], "adc_bits": 4},
      "got 1 and 3 severities of stuck_off, variation, needed is one number of "
      "them, at least 1",
    ),
    (
      {"stuck_off": ()},
      "got 0 severities of stuck_off, needed is one number of",
    ),
    (
      {"stuck_off": [], "variation": []},
      "got 0 and 0 severities of stuck_off, v",
    ),
    ({"stuck_off": (0, 0.0)}, ".stuck_off: got (0, 0.0), needed are distinct"),
    (
      {"adc_bits": [4, 4], "stuck_on": (0.1, 0.2)},
      ".adc_bits: got (4, 4), needed are distinct severities",
    ),
    (
      {"adc_range": ("full_scale", "calibrated"), "adc_bits": 4},
      ".adc_range: got 'full_scale' for a severity, needed are numbers",
    ),
    ({"stuck_off": (None, 0.1)}, ".stuck_off: got None for a severity, needed"),
    ({"spare_level": (False, True)}, ".spare_level: got False for a severity"),
    ({"stuck_of": 0.1}, "; did you mean 'stuck_off'?"),
    ({"stuck_of": (0.1, 0.2)}, ": got 'stuck_of', allowed are g_on, "),
    ({"preset": "pmc", "variation": 1}, ".preset: got 'pmc', allowed are hawi"),
    ({"preset": ("pcm",), "variation": 1}, ".preset: got ('pcm',), allowed"),
    ({"tile_shape": (32, 64)}, ": got 'tile_shape', allowed are g_on"),
    (
      {"flicker_noise": (0.5, 1.0)},
      ".flicker_noise: got 0.5, allowed is 0 without a measured flicker",
    ),
    ({"stuck_off": (0.1, 1.5)}, ".stuck_off: got 1.5, allowed is a share"),
    ({"stuck_off": ([0.1],)}, ".stuck_off: got [0.1], allowed is a share"),
    ({"variation": 0.1, "adc_bits": 17}, ".adc_bits: got 17, allowed is"),
    ({"adc_bits": 4, "adc_range": "no"}, ".adc_range: got 'no', allowed"),
    (
      {"stuck_off": (0.1, 0.6), "stuck_on": (0.1, 0.5)},
      ".stuck_on + stuck_off: got 0.5 + 0.6, allowed is a sum of at most",
    ),
    (
      {"telegraph_noise": (0, 1)},
      ".telegraph_noise: got 1 with resistive wires, allowed is 0",
    ),
  ],
)
def test_bad_scenarios_name_what_is_wrong(scenario, message):
  _refused(scenario, message)


def _sweeps(*found):
  config = settings.default()
  config.train.nets = ("baseline_1x",)
  config.robustness.scenarios = found
  return config


@pytest.mark.parametrize(
  "value, message",
  [
    ((), ": got (), allowed is a tuple of one or more dicts of device"),
    (
      ({"stuck_on": 0.1}, {}),
      "[1]: got {}, needed is an effect with a severity",
    ),
    (
      ({"stuck_on": 0.1}, {"stuck_off": (0.1, 1.5)}),
      "[1].stuck_off: got 1.5, allowed is a share of cells",
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
  match = re.escape(f"config.robustness.scenarios{message}")
  for check in (settings.sweeps, settings.validate):
    with pytest.raises(errors.InputError, match=f"^{match}"):
      check(_sweeps(*value))


def test_sweeps_start_from_the_configured_device():
  config = _sweeps(
    {"stuck_on": (0.0, 0.1)},
    {"name": "a", "stuck_on": 0.1},
    {"stuck_on": 0.1, "adc_bits": 4},
  )
  config.device.update(preset="mnsim", adc_bits=8)
  found = settings.sweeps(config)
  keys = ["stuck_on", "a: stuck_on", "adc_bits = 4: stuck_on"]
  assert [s.key for s in found] == keys
  # Without the preset's own random effects, with its wires.
  base = settings.device(config)
  assert base.wire_resistance and not base.gaussian_variation
  ideal, faulty = found[0].severities
  assert ideal.device == base and not ideal.is_random
  assert faulty.device == dataclasses.replace(base, stuck_on=0.1)
  assert found[2].severities[0].device.adc_bits == 4


def test_default_sweeps_are_the_published_ranges():
  found = settings.sweeps(settings.default())
  values = {s.key: [severity.value for severity in s.severities] for s in found}
  assert values == {
    "stuck_off": [0, 0.02, 0.04, 0.06, 0.08, 0.1],
    "stuck_on": [0, 0.005, 0.01, 0.015, 0.02],
    "variation": [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1],
    "device": [1],
  }
  for scenario in found:
    for severity in scenario.severities:
      assert severity.is_random == (severity.value > 0)


def test_nets_are_measured_with_all_statistics_float_ones_with_none():
  config = settings.default()
  config.train.nets = ("found", "found_float")
  config.robustness.batch_norm = ("chip", "fixed")
  config.robustness.scenarios = ({"stuck_off": 0.1},)
  steps = robustness.measurements(config)
  assert [step[:2] for step in steps] == [
    ("found", None),
    ("found", "chip"),
    ("found", "fixed"),
    ("found_float", None),
  ]
  config.robustness.float_nets = True
  config.robustness.scenarios = (
    {"stuck_off": (0.1, 0.2)},
    {"adc_bits": 4},
    {"cell_bits": 2, "stuck_on": 0.1},
    {"mapping": "single", "dead_rows": 0.1},
  )
  steps = [x for x in robustness.measurements(config) if x.net != "found"]
  assert [(x.statistics, x.scenario) for x in steps] == [
    (None, None),
    *[("chip", "stuck_off")] * 2,
    *[("fixed", "stuck_off")] * 2,
  ]


def test_a_run_checks_its_sense_amplifiers_first(tmp_path):
  config = settings.default()
  config.network.depth = 8
  config.train.nets = ("baseline_1x",)
  config.robustness.batch_norm = ("fixed",)
  splits = data.Splits("digits", "", None, None, None, (8, 8, 1), 10)

  def check(rows=1024, **scenario):
    config.device.tile_shape = (rows, 64)
    config.robustness.scenarios = ({"adc_bits": (1,), **scenario},)
    experiment = with_splits(config, splits)
    robustness.check_chips(experiment, tmp_path)

  check(layers=("*/conv1",))
  with pytest.raises(errors.InputError, match="net baseline_1x: adc_bits: got"):
    check(rows=128, layers=("*/conv1",))
  with pytest.raises(errors.InputError, match="layer head has no threshold"):
    check()
  config.robustness.batch_norm = ("fixed", "chip")
  with pytest.raises(errors.InputError, match=r"allowed are \('fixed',\) and"):
    check(layers=("*/conv1",))
  config.robustness.batch_norm = ("fixed",)
  config.robustness.compensation = "global"
  with pytest.raises(errors.InputError, match="compensation = 'global', allow"):
    check(layers=("*/conv1",))
