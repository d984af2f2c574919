"""Accuracy on chips: against the programmed net, and candidates together."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import tiny_net

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.crossbar import cells
from hawis_jax.networks import layers
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.pipeline import tally
from hawis_jax.pipeline.tally import Tally
from hawis_jax.robustness import calibration
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import statistics

_DEVICE = crossbar.Device(stuck_off=0.1, stuck_on=0.02, variation=0.3)
_STUCK = crossbar.Device(stuck_off=0.1, stuck_on=0.02)
_CANDIDATES = np.array([tiny_net.WIDTHS, tiny_net.NARROWER, (1,) * 7])


@pytest.fixture(scope="module")
def net(tiny):
  """(module, variables, uint8 images, labels)."""
  return tiny.module, tiny.variables, tiny.images[:40], tiny.labels[:40]


def _batches(images, labels, batch_size):
  """Padded batches; the padding is garbage that must not count."""
  pad = -len(images) % batch_size
  image = np.concatenate([images, 255 - images[:pad]])
  label = np.concatenate([labels, labels[:pad]])
  mask = np.arange(len(image)) < len(images)
  return monte_carlo.Batches(
    *(x.reshape(-1, batch_size, *x.shape[1:]) for x in (image, label, mask))
  )


def _evaluate(net, **kwargs):
  module, variables, images, labels = net
  return evaluation.evaluate_chips(
    jax.random.key(7),
    module,
    variables,
    images,
    labels,
    _DEVICE,
    6,
    **kwargs,
  )


def test_accuracy_is_that_of_the_programmed_net(net):
  """Against a plain loop: program one chip, run the net, count."""
  module, variables, images, labels = net
  got = _evaluate(net)
  program = jax.jit(crossbar.program)
  for chip in range(6):
    key = jax.random.fold_in(jax.random.key(7), chip)
    programmed = program(key, variables, _DEVICE)
    logits = tiny_net.apply(module, False, programmed, images)
    correct = np.asarray(logits).argmax(-1) == labels
    np.testing.assert_allclose(got[chip], correct.mean(), atol=1e-6)
  assert len(set(got)) > 1


def test_ideal_chips_have_the_clean_accuracy(net):
  module, variables, images, labels = net
  logits = tiny_net.apply(module, False, variables, images)
  clean = (np.asarray(logits).argmax(-1) == labels).mean()
  stacked = _batches(images, labels, 16)
  batches = (jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(3))
  got = evaluation.ideal_accuracy(module, variables, batches)
  np.testing.assert_allclose(got, clean, atol=1e-6)


@functools.cache
def _scorer(module):
  return jax.jit(functools.partial(monte_carlo.score_chips, module))


def _score(net, device, widths=_CANDIDATES):
  """Scores of some width vectors, all with the net's own statistics."""
  module, variables, images, labels = net
  norms = jax.tree.map(lambda x: np.stack([x] * 3), variables["batch_stats"])
  keys = jax.random.split(jax.random.key(1), 3)
  score = _scorer(module)
  batches = _batches(images, labels, 16)
  return jax.device_get(score(variables, widths, norms, batches, keys, device))


def test_bad_arguments_are_refused(net):
  module, variables, images, labels = net

  def refused(message, chips=2, **changes):
    names = "module", "variables", "images", "labels"
    fields = dict(zip(names, net, strict=True), device=_DEVICE) | changes
    with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
      evaluation.evaluate_chips(jax.random.key(0), num_chips=chips, **fields)
    assert "\n" not in str(caught.value)

  limits = monte_carlo.Limits
  refused("num_chips: got 0, allowed is a whole number of at", chips=0)
  refused("num_chips: got 2.0, allowed", chips=2.0)
  refused("device.stuck_off: got 9.04", device=crossbar.Device(stuck_off=9.04))
  refused("device: got a str, needed is a Device", device="pcm")
  refused("images: got float32 of shape (40, ", images=np.float32(images))
  refused("images: got uint8 of shape (40, 8, 8),", images=images[..., 0])
  refused("labels: got int32 of shape (39,), needed", labels=labels[1:])
  refused("labels: got float64 of shape (40,)", labels=labels / 1)
  refused("labels: got 0 to 10, allowed are 0 to 9", labels=np.arange(40) % 11)
  refused("limits.chips: got -1, allowed", limits=limits(chips=-1))
  refused("limits.images: got 0, allowed", limits=limits(images=0))
  refused("limits.memory: got 'all', allowed", limits=limits(memory="all"))
  refused("calibration: got shape (40, 8, 8, 1), needed", calibration=images)
  refused("variables: got none of batch_stats", variables={"params": {}})
  wide = np.repeat(images, 3, -1)
  refused("variables, images: got what doesn't fit the net: ", images=wide)


def test_chips_that_are_not_finite_have_no_score(net):
  scores = _score(net, dataclasses.replace(_DEVICE, variation=np.nan))
  assert (
    np.isnan(scores.accuracy).all() and np.isnan(scores.cross_entropy).all()
  )
  assert (scores.correct == -1).all()


@pytest.mark.parametrize("device", [_DEVICE, _STUCK], ids=["float", "planes"])
def test_scores_are_of_32_bits_in_any_case(net, device, monkeypatch):
  monkeypatch.setattr(jax, "device_get", lambda x: x)
  with jax.enable_x64(True):
    shapes = jax.eval_shape(lambda: _score(net, device))
  assert [x.dtype for x in shapes] == [np.int32, np.float32, np.float32]


def test_a_net_that_is_not_finite_has_no_accuracy(net):
  module, variables, images, labels = net
  batch = jax.tree.map(lambda x: x[0], _batches(images, labels, 16))
  head = {"kernel": variables["params"]["head"]["kernel"] * np.nan}
  bad = {**variables, "params": {**variables["params"], "head": head}}
  with pytest.raises(errors.InputError, match="logits are not finite"):
    evaluation.ideal_accuracy(module, bad, [batch])


@pytest.mark.exact
@pytest.mark.parametrize("device", [_DEVICE, _STUCK], ids=["float", "planes"])
def test_candidates_of_a_supernet_share_the_chip(net, device):
  """Scores of several width vectors equal those of each without the others."""
  together = _score(net, device)
  assert together.accuracy.shape == (3, 3)
  assert len(np.unique(together.cross_entropy)) > 3
  for index, widths in enumerate(_CANDIDATES):
    alone = _score(net, device, np.stack([widths] * 3))
    for column in range(3):
      np.testing.assert_array_equal(
        together.accuracy[:, index], alone.accuracy[:, column]
      )
      np.testing.assert_allclose(
        together.cross_entropy[:, index],
        alone.cross_entropy[:, column],
        rtol=1e-5,
      )


def test_chip_mode_recalibrates_on_the_programmed_chip(net):
  module, variables, images, labels = net
  got = _evaluate(net, calibration=images[None])

  @jax.jit
  def by_hand(key):
    bits = module.encode(images)
    programmed = crossbar.program(key, variables, _DEVICE)
    stats = net_variables.recalibrate(module, programmed, images[None])
    programmed = {**programmed, "batch_stats": stats}
    return module.apply(programmed, bits, train=False)

  for chip in range(3):
    logits = by_hand(jax.random.fold_in(jax.random.key(7), chip))
    correct = np.asarray(logits).argmax(-1) == labels
    np.testing.assert_allclose(got[chip], correct.mean(), atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def _chip(setting, key, variables, device):
  """What a chip has of its own; of `setting` the module counts."""
  setting = dataclasses.replace(setting, variables=variables, device=device)
  return monte_carlo._chip(key, setting, "float32")


def test_chip_mode_measures_what_the_chips_own_read_out_gives(net):
  """First layer: moments of sums that are read with noise and converters."""
  module, variables, images, _ = net
  device = crossbar.Device(
    stuck_off=0.1, adc_bits=5, read_noise=2e3, tile_shape=(24, 16)
  )
  key, setting = jax.random.key(3), monte_carlo.Setting(module, None, None)
  chips = jax.tree.map(
    lambda x: x[None], _chip(setting, key, variables, device)
  )
  known = images.reshape(5, 8, 8, 8, 1)
  own, finite = monte_carlo._calibrate(module, variables, chips, known)
  assert all(jax.tree.leaves(finite))

  @jax.jit
  def read(device):
    chip = crossbar.program(key, variables, device)
    # Calibration images have noise of their own: their numbers are below 0.
    chip = crossbar.for_images(chip, -1 - np.arange(len(images)))
    stem = {name: chip[name]["stem"] for name in ("params", "crossbar")}
    product = layers.BinaryConv(module.max_widths[0])
    return product.apply(stem, module.encode(images), None, None)

  sums = np.asarray(read(device), np.float64)
  found = jax.tree.map(lambda x: x[0], own["batch_stats"]["bn_stem"])
  np.testing.assert_allclose(found["mean"], sums.mean((0, 1, 2)), atol=1e-5)
  np.testing.assert_allclose(found["var"], sums.var((0, 1, 2)), rtol=1e-4)
  for silent in ({"read_noise": 0.0}, {"adc_bits": 0}):
    sums = np.asarray(read(dataclasses.replace(device, **silent)), np.float64)
    assert (np.abs(found["var"] / sums.var((0, 1, 2)) - 1) > 0.01).any()


@pytest.mark.slow
def test_float_nets_are_measured_on_analog_cells(rng):
  """Weights are differences of conductances, in steps of the channel's most."""
  module = reference_resnet.cifar_reference(8, tiny_net.WIDTHS, 10, None)
  variables = net_variables.init(module, jax.random.key(2), (8, 8, 1))
  device = crossbar.Device(
    stuck_off=0.1, stuck_on=0.05, variation=0.3, tile_shape=(24, 16)
  )
  key, setting = jax.random.key(3), monte_carlo.Setting(module, None, None)
  got = _chip(setting, key, variables, device)["crossbar"]
  held = cells.chip_cells(key, variables, device, 0)
  for name, layer in held.items():
    *scopes, last = name.split("/")
    kernel, weight = variables["params"], got
    for scope in (*scopes, last):
      kernel, weight = kernel[scope], weight[scope]
    kernel = np.asarray(kernel["kernel"], np.float64)
    g = np.asarray(layer.conductances[0], np.float64)  # tiles, 2, R, C
    pair = (g[:, :, 0] - g[:, :, 1]) / (device.g_on - device.g_off)
    rows = pair.transpose(0, 2, 1, 3).reshape(pair.shape[0] * pair.shape[2], -1)
    # Rows are ordered (channel, tap).
    matrix = np.moveaxis(kernel, -2, 0).reshape(-1, kernel.shape[-1])
    shares = rows[: len(matrix), : matrix.shape[1]]
    expected = shares * abs(matrix).max(0)
    found = np.moveaxis(np.asarray(weight["weight"]), -2, 0)
    found = found.reshape(matrix.shape)
    np.testing.assert_allclose(found, expected, atol=2e-5 * abs(matrix).max())
    assert (abs(found - matrix) > 0.1 * abs(matrix).max()).mean() > 0.01
  # An ideal chip is the net.
  images = rng.integers(0, 256, (20, 8, 8, 1), np.uint8)
  logits = jax.jit(module.apply, static_argnames="train")(
    variables, module.encode(images), train=False
  )
  labels = np.asarray(logits.argmax(-1))
  for ideal in (crossbar.Device(), crossbar.Device(wire_resistance=1e-3)):
    found = evaluation.evaluate_chips(
      key, module, variables, images, labels, ideal, 1
    )
    assert found.mean() >= 0.95
  with pytest.raises(errors.InputError, match="a float net, allowed is one w"):
    evaluation.evaluate_chips(
      *(key, module, variables, images, labels),
      crossbar.Device(adc_bits=6),
      1,
    )


@pytest.fixture(scope="module")
def two_layers():
  """Parameters of a convolution and of a linear layer."""
  rng = np.random.default_rng(1)
  shapes = {"conv1": (3, 3, 12, 16), "head": (40, 10)}
  kernels = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  return {name: {"kernel": np.float32(x)} for name, x in kernels.items()}


@functools.partial(jax.jit, static_argnames=("bits", "compensated"))
def _layers_on_chip(key, params, device, bits, compensated):
  net = {"params": params}
  chip = crossbar.program(key, net, device, bits, scales="channel")
  if compensated:
    chip = calibration.compensate(chip, bits)
  return chip["crossbar"]


def _weights(params, device, compensated, bits=1, key=1):
  """Layers' weights, of tiled ones times the factors of their reads."""
  key = jax.random.key(key)
  chip = _layers_on_chip(key, params, device, bits, compensated)
  return {
    name: np.asarray(layer["weight"])
    if "weight" in layer
    else (np.asarray(layer["kernels"]).T * np.asarray(layer["factors"])).T
    for name, layer in chip.items()
  }


# All cells lose the same share of their conductance, or shares that differ.
_DRIFTED = crossbar.Device(
  drift_time=1e6, drift_start=20.0, drift_mean=(0.0, *[0.1] * 3)
)
_SPREAD = dataclasses.replace(_DRIFTED, drift_std=(0.0, *[0.02] * 3))


@pytest.mark.parametrize(
  ("bits", "fields"),
  [(1, {}), (1, {"read_noise": 1e-9}), (8, {"read_noise": 1e-9})],
  ids=["folded", "tiled", "8-bit"],
)
def test_compensation_undoes_what_all_cells_have_in_common(
  two_layers, bits, fields
):
  device = dataclasses.replace(_DRIFTED, **fields)
  new = dataclasses.replace(device, drift_time=20.0)
  drifted = _weights(two_layers, device, False, bits)
  repaired = _weights(two_layers, device, True, bits)
  for name, weight in _weights(two_layers, new, False, bits).items():
    share = (1e6 / 20) ** -0.1
    np.testing.assert_allclose(
      drifted[name], share * weight, rtol=1e-5, atol=1e-3
    )
    np.testing.assert_allclose(repaired[name], weight, rtol=1e-5, atol=1e-3)


def test_compensation_of_ideal_and_of_lost_layers_changes_nothing(two_layers):
  for device in (crossbar.Device(), crossbar.Device(stuck_off=1.0)):
    plain = _weights(two_layers, device, False)
    repaired = _weights(two_layers, device, True)
    jax.tree.map(np.testing.assert_array_equal, plain, repaired)


def test_compensation_leaves_what_cells_do_not_have_in_common(two_layers):
  """Of drift that spreads: the rest is that of the best factor."""
  ideal = _weights(two_layers, crossbar.Device(), False)
  drifted = _weights(two_layers, _SPREAD, False)
  repaired = _weights(two_layers, _SPREAD, True)
  for name, weight in ideal.items():
    error, rest = (
      np.square(chip[name] - weight).mean() for chip in (drifted, repaired)
    )
    best = (drifted[name] * weight).sum() / np.square(drifted[name]).sum()
    least = np.square(best * drifted[name] - weight).mean()
    assert least < rest < 1.2 * least and 0.03 < rest < 0.2 * error


def test_compensation_is_measured_by_the_chips_read_out(two_layers):
  """A coarse converter's gain is another one, and noise adds no bias."""
  device = dataclasses.replace(_DRIFTED, tile_shape=(24, 16), read_noise=1e3)
  chip = _layers_on_chip(jax.random.key(0), two_layers, device, 1, False)
  factor = {
    bits: _layers_on_chip(
      jax.random.key(0),
      two_layers,
      dataclasses.replace(device, adc_bits=bits, adc_range="granular"),
      1,
      True,
    )["conv1"]["factors"]
    for bits in (0, 2)
  }
  assert (chip["conv1"]["factors"] == 1).all()
  np.testing.assert_allclose(factor[0], (1e6 / 20) ** 0.1, rtol=0.02)
  # Saturated sums of -2 to 1 are less than drifted ones.
  assert (factor[2] > 1.2 * factor[0].max()).all()


def _tally(folder, key="both: stuck", severity=0.1, images=13):
  return Tally(folder / "partial.json", ["found", key, severity], [7], images)


def test_what_is_correct_is_kept_bit_by_bit(rng, tmp_path):
  """Also over an interruption; 13 images are no whole bytes."""
  correct = rng.uniform(size=(5, 13)) < 0.8
  clipped = {"stem": rng.uniform(size=5), "block/conv1": np.zeros(5)}
  whole, begun = _tally(tmp_path / "whole"), _tally(tmp_path)
  whole.add(correct, clipped)
  begun.add(correct[:2], clipped)
  begun.save()
  assert Tally.saved_chips(tmp_path / "partial.json", ["found"]) == 2
  resumed = _tally(tmp_path)
  resumed.add(correct[2:], {name: x[2:] for name, x in clipped.items()})
  entry = resumed.finish()
  assert entry["clipped"] == {"stem": clipped["stem"].mean(), "block/conv1": 0}
  assert entry == whole.finish()
  np.testing.assert_array_equal(resumed.correct, correct)
  np.testing.assert_array_equal(
    tally.load_correct(tmp_path, entry, 13), correct
  )
  np.testing.assert_array_equal(entry["accuracy"], correct.mean(1))
  assert entry["ci95_total"] == statistics.total_interval(correct)
  assert entry["standard_errors"] == statistics.standard_errors(correct)
  # Another severity, or other images, begin anew.
  for other in (_tally(tmp_path, severity=0.2), _tally(tmp_path, images=12)):
    assert other.count == 0


def test_tables_of_any_scenario_have_files_of_their_own(tmp_path):
  keys = ["../a/b", "a b", "a.b", "a_b", "é" * 300, "\n", "A_B", ""]
  entries = []
  for place, key in enumerate(keys):
    one = _tally(tmp_path, key)
    one.add(np.arange(13)[None] == place)
    entries.append(one.finish())
  files = [path.name for path in (tmp_path / "correct").iterdir()]
  assert len({name.lower() for name in files}) == len(keys)
  assert max(map(len, files)) < 80
  for place, entry in enumerate(entries):
    (row,) = tally.load_correct(tmp_path, entry, 13)
    assert row.nonzero()[0] == [place]


@pytest.mark.parametrize("harm", ["changed", "swapped", "cut", "missing"])
def test_a_damaged_table_is_noticed(rng, tmp_path, harm):
  first, second = _tally(tmp_path), _tally(tmp_path, severity=0.2)
  for one in (first, second):
    one.add(rng.uniform(size=(3, 13)) < 0.5)
  entry, other = first.finish(), second.finish()
  path = tmp_path / entry["correct"]["file"]
  content = path.read_bytes()
  path.write_bytes(
    {
      "changed": content[:-1] + bytes([content[-1] ^ 128]),
      "swapped": (tmp_path / other["correct"]["file"]).read_bytes(),
      "cut": content[:-1],
      "missing": b"",
    }[harm]
  )
  if harm == "missing":
    path.unlink()
  with pytest.raises(errors.InputError, match="missing, or got another cont"):
    tally.load_correct(tmp_path, entry, 13)
