"""Non-linear cells against SciPy's roots of their circuits, and ngspice."""

import dataclasses
import functools
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import readout
from hawis_jax.crossbar import wires
from hawis_jax.interop import netlist
from hawis_jax.networks import any_flax

_DEVICE = crossbar.Device(
  tile_shape=(6, 4),
  nonlinearity=20.0,
  read_voltage=0.3,
  wire_resistance=20.0,
  load_resistance=4.0,
  source_wire_resistance=70.0,
  sense_load_resistance=200.0,
)
_FAULTY = dict(stuck_on=0.1, stuck_off=0.2, variation=0.4, dead_rows=0.05)
_SIDES = (("first", "last"), ("last", "first"))


def _sided(sides):
  fields = dict(zip(("source_side", "sense_side"), sides, strict=True))
  return dataclasses.replace(_DEVICE, **fields)


def _conductances(rng, shape):
  g = np.exp(rng.uniform(np.log(3.33e-7), np.log(3.33e-4), shape))
  return np.where(rng.random(shape) < 0.1, 0, g)  # some open cells


def _circuit(g, inputs, device):
  """Columns' currents per volt: Kirchhoff's law at all nodes, in float64."""
  rows, columns = g.shape
  (word_wire, bit_wire), (driver, sensor) = wires.resistances(device)
  driven = 0 if device.source_side == "first" else columns - 1
  read = 0 if device.sense_side == "first" else rows - 1
  volts = device.read_voltage

  def leaving(nodes):
    word, bit = nodes.reshape(2, rows, columns)
    curve = np.sinh(device.nonlinearity * (word - bit))
    cell = g * volts * curve / np.sinh(device.nonlinearity * volts)
    at_word, at_bit = cell.copy(), -cell
    along = np.diff(word, axis=1) / word_wire
    at_word[:, :-1] -= along
    at_word[:, 1:] += along
    down = np.diff(bit, axis=0) / bit_wire
    at_bit[:-1] -= down
    at_bit[1:] += down
    at_word[:, driven] += (word[:, driven] - volts * inputs) / driver
    at_bit[read] += bit[read] / sensor
    return 1e4 * np.concatenate([at_word.ravel(), at_bit.ravel()])

  start = np.zeros((2, rows, columns))
  start[0] = volts * inputs[:, None]
  found = optimize.root(leaving, start.ravel(), tol=1e-13)
  assert np.abs(leaving(found.x)).max() < 1e-11
  return found.x.reshape(start.shape)[1, read] / (sensor * volts)


@jax.jit
def _solve(inputs, g, device):
  curve = device.nonlinearity * device.read_voltage
  lines = wires.line_resistances(device)
  return wires.nonlinear_currents(inputs, g[None], lines, curve)[..., 0, :]


@pytest.mark.parametrize(
  "sides", [pytest.param(_SIDES[0], marks=pytest.mark.slow), _SIDES[1]]
)
def test_matches_the_roots_of_the_circuit(rng, sides):
  device = _sided(sides)
  g = _conductances(rng, device.tile_shape)
  inputs = rng.integers(0, 2, (3, 6)).astype(float)
  inputs[0] = 0
  expected = np.array([_circuit(g, row, device) for row in inputs])
  largest = expected.max()
  single = _solve(inputs.astype(np.float32), g.astype(np.float32), device)
  np.testing.assert_allclose(single, expected, atol=2e-5 * largest)
  with jax.enable_x64(True):
    double = np.asarray(_solve(inputs, g, device))
  np.testing.assert_allclose(double, expected, atol=1e-9 * largest)
  # Lines matter, and curves do.
  ohmic = dataclasses.replace(device, nonlinearity=0.0)
  others = inputs @ g, inputs @ np.asarray(crossbar.wire_transfer(g, ohmic))
  assert all(
    np.abs(other - expected).max() > 0.05 * largest for other in others
  )


@pytest.mark.slow
@pytest.mark.parametrize("sides", _SIDES)
def test_nearly_ohmic_cells_are_those_of_the_transfer_matrix(rng, sides):
  """A larger array, whose lines leave less than half of the currents."""
  sided = _sided(sides)
  device = dataclasses.replace(sided, tile_shape=(48, 20), nonlinearity=1e-3)
  g = _conductances(rng, device.tile_shape)
  inputs = rng.integers(0, 2, (3, 48)).astype(float)
  ohmic = dataclasses.replace(device, nonlinearity=0.0)
  with jax.enable_x64(True):
    expected = inputs @ np.asarray(crossbar.wire_transfer(g, ohmic))
    got = _solve(inputs, g, device)
  assert expected.max() < 0.5 * (inputs @ g).max()
  np.testing.assert_allclose(got, expected, atol=1e-7 * expected.max())


def _program(key, kernel, device, bits=1, **options):
  net = {"params": {"a": {"kernel": kernel}}}
  return crossbar.program(key, net, device, bits, **options)


@functools.partial(jax.jit, static_argnames=("bits",))
def _read(key, kernel, x, device, bits=1):
  chip = _program(key, kernel, device, bits, scales="channel")
  product = binary.multiply
  if kernel.ndim > 2:
    product = functools.partial(binary.convolve, strides=2, padding=1)
  return readout.read(product, x, chip["crossbar"]["a"])


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes, bits", [({}, 1), (dict(cell_bits=2), 3)], ids=["pair", "slices"]
)
def test_layers_are_their_circuits(rng, changes, bits):
  """Tiles, column tiles, slices and bit planes of faulty chips."""
  device = dataclasses.replace(_DEVICE, **_FAULTY, **changes)
  kernel = rng.normal(size=(8, 5)).astype(np.float32)
  x = rng.integers(0, 2 ** max(bits - 1, 1), (2, 8)).astype(np.float32)
  key = jax.random.key(rng.integers(99))
  net = {"params": {"a": {"kernel": kernel}}}
  found = cells.chip_cells(key, net, device, bits, scales="channel")["a"]
  g = np.asarray(found.conductances, np.float64)
  padded = np.pad(x, ((0, 0), (0, 4))).reshape(2, 2, 6).astype(int)
  planes = readout.planes(bits) if bits > 1 else [1]
  expected = np.zeros((2, 8))
  for image, row_tile in np.ndindex(2, 2):
    for cell_slice, tile in np.ndindex(len(g), 2):
      for plane, value in enumerate(planes):
        inputs = (padded[image, row_tile] >> plane) & 1
        pair = (
          _circuit(a, inputs, device) for a in g[cell_slice, row_tile, tile]
        )
        place = value * (found.steps + 1) ** cell_slice
        expected[image, 4 * tile : 4 * tile + 4] += place * np.subtract(*pair)
  expected *= found.steps / (device.g_on - device.g_off)
  got = _read(key, kernel, x, device, bits)
  largest = np.abs(expected).max()
  np.testing.assert_allclose(got, expected[:, :5], atol=3e-5 * largest)


def test_converters_read_what_arrives(rng):
  kernel = rng.normal(size=(6, 4)).astype(np.float32)
  x = rng.integers(0, 2, (9, 6)).astype(np.float32)
  sums, got = (
    _read(
      jax.random.key(3), kernel, x, dataclasses.replace(_DEVICE, adc_bits=n)
    )
    for n in (0, 3)
  )
  lsb = 6 / 3
  np.testing.assert_allclose(got, np.round(sums / lsb) * lsb, rtol=1e-5)
  assert np.asarray(got).any()


@pytest.mark.slow
def test_convolutions_of_nearly_ohmic_cells_are_the_fold(rng):
  """Strides, padding, and tiles that begin within a channel's taps."""
  device = dataclasses.replace(_DEVICE, tile_shape=(16, 8), **_FAULTY)
  kernel = rng.normal(size=(3, 3, 5, 9)).astype(np.float32)
  x = rng.integers(0, 2, (2, 6, 6, 5)).astype(np.float32)
  key = jax.random.key(rng.integers(99))
  got, ohmic = (
    _read(
      key, kernel, x, dataclasses.replace(device, nonlinearity=a, adc_bits=b)
    )
    for a, b in ((1e-3, 0), (0.0, np.float32(0)))
  )
  np.testing.assert_allclose(got, ohmic, atol=2e-5 * np.abs(ohmic).max())


@pytest.mark.exact
def test_curves_cost_nothing_without_resistance(rng):
  """The same weights, to the bit, and the same forms of the chip."""
  key, kernel = jax.random.key(3), rng.normal(size=(40, 9)).astype(np.float32)
  device = crossbar.Device(tile_shape=(16, 8), stuck_on=0.1, read_voltage=0.3)
  for form, names in (
    ("float32", {"weight"}),
    ("planes", {"used", "negative"}),
  ):
    chips = [
      _program(key, kernel, one, form=form)["crossbar"]["a"]
      for one in (device, dataclasses.replace(device, nonlinearity=20.0))
    ]
    assert chips[0].keys() == chips[1].keys() == names
    jax.tree.map(np.testing.assert_array_equal, *chips)


@pytest.mark.slow
def test_copies_are_read_as_one_is(rng):
  """Arrays of their own, alike without random effects."""
  kernel = rng.normal(size=(8, 5)).astype(np.float32)
  x = rng.integers(0, 2, (3, 8)).astype(np.float32)
  key, net = jax.random.key(3), {"params": {"a": {"kernel": kernel}}}
  placement = crossbar.place(key, net, _DEVICE, crossbar.Placing(copies=2))
  one, copied = (
    _program(key, kernel, _DEVICE, placement=placed)["crossbar"]["a"]
    for placed in (None, placement)
  )
  assert len(copied["cells"]) == 2 * len(one["cells"])
  read = [readout.read(binary.multiply, x, layer) for layer in (one, copied)]
  np.testing.assert_allclose(*read, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_ideal_wires(rng):
  device = dataclasses.replace(_DEVICE, variation=0.4)
  ideal = dataclasses.replace(device, **dict.fromkeys(crossbar.WIRES, 0.0))
  kernel = rng.uniform(-1, 1, (8, 4)).astype(np.float32)
  x = rng.integers(0, 2, (2, 8)).astype(np.float32)
  g = rng.normal(size=(2, 4)).astype(np.float32)

  def loss(kernel, x):
    return (_read(jax.random.key(5), kernel, x, device) * g).sum()

  def ideal_loss(kernel, x):
    net = _program(jax.random.key(5), kernel, ideal)
    return (binary.multiply(x, net["crossbar"]["a"]["weight"]) * g).sum()

  found = [jax.jit(jax.grad(f, (0, 1)))(kernel, x) for f in (loss, ideal_loss)]
  for got, expected in zip(*found, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_what_has_not_converged_is_no_number(monkeypatch):
  monkeypatch.setattr(wires, "_STEPS", 1)
  g = np.full(_DEVICE.tile_shape, 3e-4, np.float32)
  inputs = np.stack([np.ones(6), np.zeros(6)]).astype(np.float32)
  currents = _solve.__wrapped__(inputs, g, _DEVICE)
  assert np.isnan(currents[0]).all() and not currents[1].any()


def test_what_nonlinear_cells_refuse():
  weights = jnp.ones((4, 4))
  with pytest.raises(
    errors.InputError, match="resistances, as non-linear ones"
  ):
    crossbar.effective_weights(jax.random.key(0), weights, _DEVICE)
  with pytest.raises(
    errors.InputError, match="nonlinearity: got 20.0 with res"
  ):
    crossbar.wire_transfer(weights, _DEVICE)
  placing = crossbar.Placing(("permutation",))
  with pytest.raises(errors.InputError, match="placing: got one with nonlinea"):
    crossbar.check_placing(placing, _DEVICE)
  ohmic = dataclasses.replace(_DEVICE, nonlinearity=0.0)
  curved = dataclasses.replace(
    _DEVICE, **dict.fromkeys(crossbar.WIRES, 0.0), subtraction="digital"
  )
  for one, changes, message in (
    (_DEVICE, dict(read_noise=1.0), "got it with read_noise of oth"),
    (_DEVICE, dict(dac_noise=1.0), "got it with dac_noise of oth"),
    (
      curved,
      dict(subtraction="digital", adc_bits=6),
      "got it with digital subtraction of oth",
    ),
  ):
    with pytest.raises(errors.InputError, match=message):
      crossbar.stack([one, dataclasses.replace(ohmic, **changes)])
  ideal = crossbar.Device(nonlinearity=4.0)  # of wires
  with pytest.raises(errors.InputError, match="got one with nonlinearity, al"):
    any_flax.check_device(ideal)
  assert not crossbar.needs_tiles(ideal)
  assert crossbar.tile_effects(_DEVICE) == ["nonlinearity"]


@pytest.mark.parametrize("wired", [True, False])
def test_analog_weights_have_no_cells_that_are_not_linear(wired):
  """Their inputs are no bits: a fold would be that of ohmic cells."""
  no_wires = dict.fromkeys(crossbar.WIRES, 0.0)
  device = _DEVICE if wired else dataclasses.replace(_DEVICE, **no_wires)
  kernel, refused = jnp.ones((4, 4)), "nonlinearity: got 20.0 with analog"
  with pytest.raises(errors.InputError, match=refused):
    _program(jax.random.key(0), kernel, device, 0, scales="channel")
  if not wired:
    with pytest.raises(errors.InputError, match=refused):
      crossbar.effective_weights(jax.random.key(0), kernel, device, 0)


_DIGITAL = dict(subtraction="digital", adc_bits=6)
_GATED = dict(gated=True, nonlinearity=0.0)


@pytest.mark.parametrize(
  "fields, traced, message",
  [
    (_DIGITAL, ("nonlinearity",), "nonlinearity: got it with digital"),
    (_DIGITAL, ("wire_resistance",), "nonlinearity: got it with digital"),
    (
      dict(mapping="single", **_DIGITAL),
      ("nonlinearity",),
      "mapping: got 'single' with nonlinearity",
    ),
    (dict(read_noise=1.0), ("nonlinearity", "read_noise"), "with read_noise"),
    (dict(gated=True), ("nonlinearity",), "nonlinearity: got a traced one wi"),
    (
      dict(analog_inputs=True),
      ("nonlinearity",),
      "nonlinearity: got a traced one with analog_inputs",
    ),
    (_GATED | _DIGITAL, ("wire_resistance",), "gated: got it with digital"),
    (
      _GATED | dict(white_noise=0.1),
      ("wire_resistance", "white_noise"),
      "gated: got it with white_noise",
    ),
    (
      _GATED | dict(dac_noise=0.1),
      ("dac_noise",),
      "dac_noise: got a traced one with gated",
    ),
  ],
)
def test_what_is_swept_is_refused_as_what_is_known(fields, traced, message):
  """Read-out would drop it, or convert differences as if they had no sign."""
  others = (
    {w: 0.0 for w in crossbar.WIRES} if traced[0] in crossbar.WIRES else {}
  )
  device = dataclasses.replace(_DEVICE, **others, **fields)

  def swept(values):
    crossbar.validate(
      dataclasses.replace(device, **dict(zip(traced, values, strict=True)))
    )

  with pytest.raises(errors.InputError, match=message):
    jax.eval_shape(swept, [np.float32(1)] * len(traced))


def test_gated_chips_are_not_stacked_with_noise_that_they_leave_out():
  """Each is good alone; solved together, the other's noise would be dropped."""
  gated = dataclasses.replace(_DEVICE, **_GATED)
  noisy = crossbar.without_effects(gated)
  for noise in ("white_noise", "telegraph_noise"):
    one = dataclasses.replace(noisy, **{noise: 0.1})
    with pytest.raises(
      errors.InputError, match=f"gated of.*with {noise} of ot"
    ):
      crossbar.stack([gated, one])
  crossbar.stack([gated, dataclasses.replace(noisy, read_noise=1.0)])


def _netlist(g, volts, device, **options):
  wire, load = wires.resistances(device)
  return interop.spice_netlist(
    g,
    volts,
    wire_resistance=wire,
    load_resistance=load,
    source_side=device.source_side,
    sense_side=device.sense_side,
    nonlinearity=device.nonlinearity,
    read_voltage=device.read_voltage,
    **options,
  )


@pytest.mark.parametrize("dialect", netlist.DIALECTS)
def test_cells_of_netlists_conduct_g_at_the_read_voltage(dialect):
  g = np.array([[1e-4, 0.0], [3e-5, 2e-4]])
  text = _netlist(g, [0.3, 0.0], _DEVICE, dialect=dialect)
  found = re.findall(
    r"^[BG]cell_(\d)_(\d) .*=\W?(.*)\*sinh\((.*)\*v", text, re.M
  )
  assert len(found) == 3 and "Rcell" not in text
  for i, j, share, a in found:
    current = float(share) * np.sinh(float(a) * 0.3)
    np.testing.assert_allclose(current, 0.3 * g[int(i), int(j)], rtol=1e-12)


@pytest.mark.skipif(
  shutil.which("ngspice") is None, reason="needs ngspice on the PATH"
)
@pytest.mark.parametrize("sides", _SIDES)
def test_ngspice(rng, tmp_path, sides):
  device = _sided(sides)
  g = _conductances(rng, device.tile_shape)
  inputs = rng.permutation([0, 1, 1, 0, 1, 1]).astype(float)
  path = tmp_path / "array.cir"
  path.write_text(_netlist(g, device.read_voltage * inputs, device))
  command = ["ngspice", "-b", str(path)]
  done = subprocess.run(
    command, capture_output=True, text=True, check=True, timeout=60
  )
  found = re.findall(r"^i\(vout_\d+\) = (\S+)", done.stdout, re.MULTILINE)
  with jax.enable_x64(True):
    currents = device.read_voltage * np.asarray(_solve(inputs, g, device))
  np.testing.assert_allclose(
    np.array(found, float), currents, atol=1e-7 * currents.max()
  )


def test_netlists_of_nonlinear_cells_refuse():
  for changes, message in (
    (dict(nonlinearity=-1.0), "nonlinearity: got -1.0, needed is"),
    (dict(read_voltage=0.0), "read_voltage: got 0.0 with nonlinear cells, nee"),
    (dict(gated=True), "nonlinearity: got 20 with gated cells, allowed is 0"),
  ):
    with pytest.raises(errors.InputError, match=message):
      arguments = dict(nonlinearity=20.0, read_voltage=0.3) | changes
      interop.spice_netlist(
        [[1e-4]], [0.3], wire_resistance=1.0, load_resistance=1.0, **arguments
      )
