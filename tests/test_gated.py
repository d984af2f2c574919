"""Gated cells against the nodal systems of their circuits, and ngspice."""

import dataclasses
import functools
import itertools
import re
import shutil
import subprocess

from flax import linen as nn
import jax
from jax import test_util
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import readout
from hawis_jax.crossbar import wires
from hawis_jax.interop import netlist
from hawis_jax.networks import any_flax
from hawis_jax.networks import reference_resnet

_SIDES = tuple(itertools.product(crossbar.SIDES, repeat=2))
_DEVICE = crossbar.Device(
  gated=True,
  tile_shape=(16, 8),
  wire_resistance=20.0,
  load_resistance=4.0,
  source_wire_resistance=7.0,
  sense_wire_resistance=40.0,
  source_load_resistance=100.0,
  sense_load_resistance=30.0,
)
_FAULTY = dict(stuck_on=0.1, stuck_off=0.2, variation=0.4, dead_rows=0.05)


def _conductances(rng, shape):
  g = np.exp(rng.uniform(np.log(3.33e-7), np.log(3.33e-4), shape))
  return np.where(rng.random(shape) < 0.1, 0, g)  # some open cells


def _nodal(g, gates, device):
  """Columns' currents per volt: all nodes of each column, in float64."""
  (source_wire, sense_wire), (driver, sensor) = wires.resistances(device)
  rows = len(g)
  driven = 0 if device.source_side == "first" else rows - 1
  read = 0 if device.sense_side == "first" else rows - 1
  currents = []
  for column in g.T:
    # Source line: 0 to R - 1; bit line: R to 2 R - 1.
    pairs = [(i, rows + i, c) for i, c in enumerate(column) if gates[i]]
    for start, wire in ((0, source_wire), (rows, sense_wire)):
      pairs += [(start + i, start + i + 1, 1 / wire) for i in range(rows - 1)]
    matrix, right = np.zeros((2 * rows, 2 * rows)), np.zeros(2 * rows)
    for a, b, conductance in pairs:
      matrix[[a, b], [a, b]] += conductance
      matrix[[a, b], [b, a]] -= conductance
    matrix[driven, driven] += 1 / driver
    matrix[rows + read, rows + read] += 1 / sensor
    right[driven] = 1 / driver
    currents.append(np.linalg.solve(matrix, right)[rows + read] / sensor)
  return np.array(currents)


_currents = jax.jit(wires.gated_currents)
_transfer = jax.jit(wires.transfer)


def _solve(gates, g, device):
  ladder = wires.gated_ladder(device)
  rows = [gates, g]
  if device.sense_side == "first":
    rows = [gates[..., ::-1], g[::-1]]
  return _currents(*rows, ladder)


@pytest.mark.parametrize("sides", _SIDES)
def test_matches_the_nodal_system(rng, sides):
  device = dataclasses.replace(
    _DEVICE, **dict(zip(("source_side", "sense_side"), sides, strict=True))
  )
  g = _conductances(rng, (9, 5))
  gates = rng.integers(0, 2, (6, 9))
  gates[:2] = [0] * 9, [1] * 9
  expected = [_nodal(g, row, device) for row in gates]
  solve = jax.jit(lambda gates, g: _solve(gates, g, device))
  single = solve(gates.astype(np.float32), g.astype(np.float32))
  np.testing.assert_allclose(single, expected, rtol=1e-5)
  with jax.enable_x64(True):
    double = np.asarray(solve(gates.astype(np.float64), g))
  np.testing.assert_allclose(double, expected, rtol=1e-10)
  assert not double[0].any()
  # Lines matter, and currents are no longer linear in the input.
  one_by_one = solve(np.eye(9, dtype=np.float32), g.astype(np.float32))
  linear = gates @ np.asarray(one_by_one)
  assert np.abs(linear - double).max() > 0.01 * double.max()


def test_of_an_ideal_source_line_it_is_the_recursion_of_cim_explorer(rng):
  """As in its `cpp/src/xbar/parasitics.cpp`: a wire after every row."""
  device = crossbar.Device(
    gated=True, sense_wire_resistance=25.0, sense_load_resistance=25.0
  )
  g = _conductances(rng, (12, 4))
  gates = rng.integers(0, 2, 12)
  column = np.zeros(4)
  for gate, row in zip(gates, g, strict=True):
    column = 1 / (1 / np.maximum(column + gate * row, 1e-300) + 25)
  with jax.enable_x64(True):
    got = _solve(jnp.asarray(gates, float), jnp.asarray(g), device)
  np.testing.assert_allclose(got, column, rtol=1e-10)


def test_without_resistance_it_is_the_product(rng):
  g = _conductances(rng, (9, 5))
  gates = rng.integers(0, 2, (3, 9)).astype(float)
  with jax.enable_x64(True):
    got = _solve(jnp.asarray(gates), jnp.asarray(g), crossbar.Device())
  np.testing.assert_allclose(got, gates @ g, rtol=1e-13)


def test_gradients_of_currents(rng):
  """In units of g_on and 100 ohm; of gates, as if they opened by shares."""
  g = jnp.asarray(_conductances(rng, (5, 3)) / 3.33e-4)
  gates = jnp.asarray(rng.integers(0, 2, (2, 5)), float)

  def currents(gates, g, ladder):
    return wires.gated_currents(gates, g * 3.33e-4, ladder * 100) / 3.33e-4

  with jax.enable_x64(True):
    arguments = map(jnp.asarray, (gates, g, np.array([0.2, 0.3, 1.0, 0.5])))
    test_util.check_grads(
      currents, tuple(x.astype(float) for x in arguments), 1, modes=("rev",)
    )


def _program(key, kernel, device, bits=1, **options):
  return crossbar.program(
    key, {"params": {"a": {"kernel": kernel}}}, device, bits, **options
  )


@functools.partial(jax.jit, static_argnames=("bits", "strides"))
def _read(key, kernel, x, device, bits=1, strides=1):
  chip = _program(key, kernel, device, bits, scales="channel")
  chip = crossbar.for_images(chip, jnp.arange(len(x)))
  product = binary.multiply
  if kernel.ndim > 2:
    product = functools.partial(binary.convolve, strides=strides, padding=1)
  return readout.read(product, x, chip["crossbar"]["a"])


def _circuit(key, kernel, x, device, bits=1):
  """What a layer `[C_in, C_out]` reads: array by array, column by column."""
  net = {"params": {"a": {"kernel": kernel}}}
  found = cells.chip_cells(key, net, device, bits, scales="channel")["a"]
  g = np.asarray(found.conductances, np.float64)
  rows = g.shape[-2]
  padded = np.pad(x, ((0, 0), (0, -x.shape[1] % rows)))
  outputs = []
  for inputs in padded.reshape(len(x), -1, rows).astype(int):
    total = 0
    for cell_slice, row_tile in np.ndindex(*g.shape[:2]):
      columns = []
      for tile in g[cell_slice, row_tile]:
        for plane, value in enumerate(readout.planes(bits)):
          gates = (inputs[row_tile] >> plane) & 1
          arrays = [_nodal(array, gates, device) for array in tile]
          if device.mapping == "single":
            current = 2 * (arrays[0][:-1] - arrays[0][-1])
          else:
            current = arrays[0] - arrays[1]
          columns.append(current * (value if bits > 1 else 1))
      planes = bits if bits > 1 else 1
      sums = np.reshape(columns, (-1, planes, device.tile_shape[1])).sum(1)
      total = total + (found.steps + 1) ** cell_slice * np.ravel(sums)
    unit = found.steps / (device.g_on - device.g_off)
    outputs.append(total[: kernel.shape[-1]] * unit)
  return np.array(outputs)


@pytest.mark.parametrize(
  "changes, bits",
  [
    ({}, 1),
    (dict(source_side="last", sense_side="first"), 1),
    pytest.param(
      *(dict(mapping="single", sense_side="first"), 1), marks=pytest.mark.slow
    ),
    pytest.param(
      *(dict(cell_bits=2, source_side="last"), 3), marks=pytest.mark.slow
    ),
  ],
  ids=["pair", "upward", "single", "slices"],
)
def test_layers_are_their_circuits(rng, changes, bits):
  """Tiles, column tiles, slices and bit planes of faulty chips."""
  device = dataclasses.replace(_DEVICE, **_FAULTY, **changes)
  kernel = rng.normal(size=(37, 11)).astype(np.float32)
  x = rng.integers(0, 2 ** max(bits - 1, 1), (3, 37)).astype(np.float32)
  key = jax.random.key(rng.integers(99))
  got = _read(key, kernel, x, device, bits)
  expected = _circuit(key, kernel, x, device, bits)
  largest = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, atol=1e-5 * largest)
  # Not what cells that are not gated give.
  other = dataclasses.replace(device, gated=False, adc_bits=np.float32(0))
  assert np.abs(_read(key, kernel, x, other, bits) - got).max() > 0.01 * largest


def test_convolutions_are_their_patches(rng):
  """Strides, padding, and tiles that begin within a channel's taps."""
  device = dataclasses.replace(_DEVICE, **_FAULTY)
  kernel = rng.normal(size=(3, 3, 5, 9)).astype(np.float32)
  x = rng.integers(0, 2, (2, 6, 6, 5)).astype(np.float32)
  key = jax.random.key(rng.integers(99))
  got = _read(key, kernel, x, device, strides=2)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  patches = np.stack(
    [
      padded[:, i : i + 3, j : j + 3].transpose(0, 3, 1, 2).reshape(2, -1)
      for i in (0, 2, 4)
      for j in (0, 2, 4)
    ],
    1,
  )
  matrix = np.moveaxis(kernel, -2, 0).reshape(-1, 9)
  flat = _read(key, matrix, patches.reshape(18, -1), device)
  np.testing.assert_allclose(got, np.reshape(flat, got.shape), atol=1e-5)


@pytest.mark.exact
def test_gates_cost_nothing_without_resistance(rng):
  """The same weights, to the bit, and the same form of the chip."""
  key, kernel = jax.random.key(3), rng.normal(size=(40, 9)).astype(np.float32)
  device = crossbar.Device(tile_shape=(16, 8), **_FAULTY)
  chips = [
    jax.jit(functools.partial(_program, device=one))(key, kernel)["crossbar"]
    for one in (device, dataclasses.replace(device, gated=True))
  ]
  assert chips[0]["a"].keys() == chips[1]["a"].keys() == {"weight"}
  np.testing.assert_array_equal(*(chip["a"]["weight"] for chip in chips))


@pytest.mark.exact
def test_a_narrowed_net_reads_as_the_wide_one_masked(rng):
  """Rows that are off load no wire, and columns share none."""
  device = dataclasses.replace(_DEVICE, **_FAULTY)
  kernel = rng.normal(size=(3, 3, 6, 12)).astype(np.float32)
  x = rng.integers(0, 2, (2, 5, 5, 6)).astype(np.float32)
  key = jax.random.key(rng.integers(99))
  masked = _read(key, kernel, x * (np.arange(6) < 4), device)
  sliced = _read(key, kernel[:, :, :4, :7], x[..., :4], device)
  np.testing.assert_array_equal(masked[..., :7], sliced)


def test_converters_and_noise_read_what_arrives(rng):
  device = dataclasses.replace(_DEVICE, tile_shape=(40, 8), adc_bits=4)
  kernel = rng.normal(size=(40, 5)).astype(np.float32)
  x = np.repeat(rng.integers(0, 2, (1, 40)), 4000, 0).astype(np.float32)
  key = jax.random.key(rng.integers(99))
  silent = dataclasses.replace(device, adc_bits=0)
  (sums,) = _circuit(key, kernel, x[:1], silent)
  lsb = 40 / 7
  got = _read(key, kernel, x[:1], device)[0]
  np.testing.assert_allclose(got, np.round(sums / lsb) * lsb, rtol=1e-5)
  # Shot noise is of the currents of both arrays.
  noisy = dataclasses.replace(silent, read_noise=300.0)
  noise = np.asarray(_read(key, kernel, x, noisy)) - sums
  net = {"params": {"a": {"kernel": kernel}}}
  g = np.asarray(cells.chip_cells(key, net, device)["a"].conductances)
  total = sum(_nodal(a, x[0], device) for a in g[0, 0, 0].astype(float))[:5]
  variances = sum(defects.read_noise_variances(total, device))
  expected = 300 / (device.g_on - device.g_off) * np.sqrt(variances)
  np.testing.assert_allclose(noise.std(0), expected, rtol=0.06)
  assert (np.abs(noise.mean(0)) < 5 * expected / np.sqrt(4000)).all()


def test_gradients_pass_through_gated_cells(rng):
  """To bits and latent weights, as finite differences have them."""
  device = dataclasses.replace(_DEVICE, variation=0.4)
  kernel = rng.uniform(-1, 1, (20, 4))
  x, g = rng.integers(0, 2, (2, 20)).astype(float), rng.normal(size=(2, 4))

  def loss(kernel, x):
    kernel = kernel.at[0, 0].set(1.5)  # the scale has no gradient
    net = _program(jax.random.key(5), kernel, device, 0, scales="tensor")
    return (readout.read(binary.multiply, x, net["crossbar"]["a"]) * g).sum()

  with jax.enable_x64(True):
    arguments = jnp.asarray(kernel), jnp.asarray(x)
    test_util.check_grads(
      jax.jit(loss), arguments, 1, modes=("rev",), eps=1e-6, rtol=1e-3
    )


@pytest.mark.slow
def test_placed_columns_read_as_they_are(rng):
  """Columns that move, and pairs that are swapped, change healthy cells not."""
  device = dataclasses.replace(_DEVICE, stuck_off=0.1)
  key = jax.random.key(rng.integers(99))
  kernel = rng.normal(size=(30, 7)).astype(np.float32)
  net = {"params": {"a": {"kernel": kernel}}}
  placing = crossbar.Placing(("polarity", "permutation"))
  placement = crossbar.place(key, net, device, placing)
  assert (placement.signs < 0).any()
  healthy = dataclasses.replace(device, stuck_off=0.0)
  x = rng.integers(0, 2, (4, 30)).astype(np.float32)
  read = [
    readout.read(
      binary.multiply,
      x,
      _program(key, kernel, healthy, placement=one)["crossbar"]["a"],
    )
    for one in (None, placement)
  ]
  np.testing.assert_allclose(*read, rtol=1e-4, atol=1e-4)


def test_what_gated_cells_refuse():
  weights = jnp.ones((4, 4))
  with pytest.raises(errors.InputError, match="gated cells without resistanc"):
    crossbar.effective_weights(jax.random.key(0), weights, _DEVICE)
  with pytest.raises(errors.InputError, match="gated: got True with resistive"):
    crossbar.wire_transfer(weights, _DEVICE)
  assert crossbar.tile_effects(_DEVICE) == ["gated"]


def _solve_netlist(text):
  """Currents into the read-outs, by nodal analysis of a netlist's elements."""
  volts, resistors, switches = {"0": 0.0}, [], []
  for line in text.splitlines():
    words = line.split()
    if line.startswith("V"):
      volts[words[1]] = float(words[4])
    elif line.startswith("R"):
      resistors.append((*words[1:3], 1 / float(words[3])))
    elif line.startswith("S"):
      switches.append(words[1:4])
  half = max(volts.values()) / 2
  resistors += [(a, b, 1e7) for a, b, gate in switches if volts[gate] > half]
  names = sorted({x for pair in resistors for x in pair[:2]} | set(volts))
  place = {name: i for i, name in enumerate(names)}
  matrix = 1e-15 * np.eye(len(names))
  for a, b, conductance in resistors:
    i, j = place[a], place[b]
    matrix[[i, j], [i, j]] += conductance
    matrix[[i, j], [j, i]] -= conductance
  known = [place[name] for name in volts]
  right = np.zeros(len(names))
  solved = matrix.copy()
  solved[known] = np.eye(len(names))[known]
  right[known] = list(volts.values())
  currents = matrix @ np.linalg.solve(solved, right)
  outs = sorted(
    (x for x in volts if x.startswith("out_")), key=lambda x: int(x[4:])
  )
  return -currents[[place[x] for x in outs]]


def _netlists(rng, dialect):
  """Netlists of both kinds of cells, and the currents that we say."""
  for gated, sides in itertools.product((True, False), _SIDES):
    for zero in ("", "source_wire", "sense_wire", "source_load", "sense_load"):
      device = crossbar.Device(
        gated=gated,
        **dict(zip(("source_side", "sense_side"), sides, strict=True)),
        **{
          f"{name}_resistance": 0.0 if name == zero else resistance
          for name, resistance in (
            ("source_wire", 12.0),
            ("sense_wire", 30.0),
            ("source_load", 4.0),
            ("sense_load", 60.0),
          )
        },
      )
      g = _conductances(rng, (5, 4))
      volts = 0.2 * rng.permutation([0, 1, 1, 0, 1])
      wire, load = wires.resistances(device)
      text = interop.spice_netlist(
        g,
        volts,
        wire_resistance=wire,
        load_resistance=load,
        dialect=dialect,
        source_side=device.source_side,
        sense_side=device.sense_side,
        gated=gated,
      )
      if gated:
        currents = 0.2 * _solve(jnp.asarray(volts > 0, float), g, device)
      else:
        # Driven, or read, at the other end: mirrored.
        axes = [
          axis
          for axis, is_mirrored in (
            (0, sides[1] == "first"),
            (1, sides[0] == "last"),
          )
          if is_mirrored
        ]
        mirrored = _transfer(np.flip(g, axes), wire, load)
        currents = volts @ np.flip(mirrored, axes)
      yield text, np.asarray(currents)


@pytest.mark.parametrize("dialect", netlist.DIALECTS)
def test_netlists_are_the_networks(rng, dialect):
  with jax.enable_x64(True):
    for text, currents in _netlists(rng, dialect):
      assert ("Scell" in text) == (".model gate sw" in text)
      np.testing.assert_allclose(_solve_netlist(text), currents, rtol=1e-6)


@pytest.mark.skipif(
  shutil.which("ngspice") is None, reason="needs ngspice on the PATH"
)
def test_ngspice_with_switches(rng, tmp_path):
  with jax.enable_x64(True):
    for text, currents in _netlists(rng, "ngspice"):
      path = tmp_path / "array.cir"
      path.write_text(text)
      command = ["ngspice", "-b", str(path)]
      done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
      )
      found = re.findall(r"^i\(vout_\d+\) = (\S+)", done.stdout, re.MULTILINE)
      np.testing.assert_allclose(
        np.array(found, float), currents, rtol=1e-5, atol=1e-5 * currents.max()
      )


def test_netlists_of_gated_cells_refuse():
  arguments = dict(
    g=[[1e-4]] * 2,
    voltages=[0.1, 0.2],
    wire_resistance=1.0,
    load_resistance=1.0,
  )
  for changes, message in (
    (dict(gated=True), r"voltages: got \[0.1, 0.2\] with gated cells, allowed"),
    (
      dict(source_side="left"),
      "source_side: got 'left', allowed are first, la",
    ),
    (
      dict(wire_resistance=(1.0,)),
      r"wire_resistance: got \(1.0,\), needed is a",
    ),
  ):
    with pytest.raises(errors.InputError, match=message):
      interop.spice_netlist(**arguments | changes)


def test_nets_whose_inputs_are_no_bits_refuse_gated_chips():
  """They have no kernel of the chip, and would compute with their own."""
  device = crossbar.Device(gated=True, wire_resistance=50.0)
  mlp, x = nn.Dense(3), np.ones((2, 5), np.float32)
  own = any_flax.any_flax(mlp, "int8")
  variables = mlp.init(jax.random.key(0), x)
  own.apply(variables, x)
  kernels = {"params": own.on_chips(variables["params"])}
  chip = crossbar.program(
    jax.random.key(1), kernels, device, 8, scales="channel"
  )["crossbar"]
  with pytest.raises(errors.InputError, match="is read tile by tile"):
    own.apply({**variables, "crossbar": chip}, x)
  layer = reference_resnet.QuantConv(3, 0, bits=None)
  variables = layer.init(jax.random.key(0), x, train=False)
  chip = crossbar.program(
    jax.random.key(1), variables, device, 0, scales="channel"
  )
  with pytest.raises(errors.InputError, match="tile by tile and a float net"):
    layer.apply(chip, x, train=False)
