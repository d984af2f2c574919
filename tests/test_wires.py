"""IR drop against the full nodal system, ngspice and stored currents."""

import dataclasses
import itertools
import re
import shutil
import subprocess

import hypothesis
from hypothesis import strategies as st
import jax
from jax import test_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.crossbar import wires

_G_ON, _G_OFF = 3.33e-4, 3.33e-7

# (wire, load) [ohm]. The second is the published test's default, 1 / 0.0357 and
# 1 / 0.25 S; the fourth has wires of a third of a cell.
_WIRES = (
  (1.6, 4.0),
  (28.011, 4.0),
  (28.011, 1000.0),
  (1000.0, 4.0),
  (2.0, 0.1),
)

_SIGNS = ("pos", "neg")

_transfer = jax.jit(wires.transfer, static_argnames="batch_size")


def _nodal(g, wire, load, source="first", sense="last"):
  """The transfer matrix by a direct solve of all 2 R C nodes, in float64.

  A resistance is that of both lines, or (word line, bit line).
  """
  rows, columns = g.shape
  word_wire, bit_wire = np.ones(2) * wire
  loads = np.repeat(np.ones(2) * load, [rows, columns])
  word = np.arange(g.size).reshape(g.shape)
  bit = word + g.size
  driven = word[:, 0 if source == "first" else -1]
  read = bit[0 if sense == "first" else -1]
  ports = np.concatenate([driven, read])
  resistors = [  # (nodes, other nodes, conductances)
    (word, bit, g),
    (word[:, :-1], word[:, 1:], np.full((rows, columns - 1), 1 / word_wire)),
    (bit[:-1], bit[1:], np.full((rows - 1, columns), 1 / bit_wire)),
  ]
  entries = [(ports, ports, 1 / loads)]
  for a, b, conductance in resistors:
    entries += [(a, a, conductance), (b, b, conductance)]
    entries += [(a, b, -conductance), (b, a, -conductance)]
  i, j, values = (
    np.concatenate([x.ravel() for x in column])
    for column in zip(*entries, strict=True)
  )
  matrix = scipy.sparse.csc_array((values, (i, j)))  # sums duplicates
  volts = np.zeros((2 * g.size, rows))
  volts[driven, np.arange(rows)] = 1 / loads[0]
  solver = scipy.sparse.linalg.splu(
    matrix, "MMD_AT_PLUS_A", 0.0, options=dict(SymmetricMode=True)
  )
  return solver.solve(volts)[read].T / loads[-1]


def _draw(rng, shape, kind="binary"):
  if kind == "binary":
    return np.where(rng.random(shape) < 0.5, _G_ON, _G_OFF)
  g = np.exp(rng.uniform(np.log(_G_OFF), np.log(_G_ON), shape))
  return np.where(rng.random(shape) < 0.1, 0, g)  # some open cells


def _double(g, wire, load, **options):
  with jax.enable_x64(True):
    return np.asarray(_transfer(g, wire, load, **options))


def _single(g, wire, load):
  return np.asarray(_transfer(g.astype(np.float32), wire, load))


def _assert_close(got, reference, share):
  np.testing.assert_allclose(
    got, reference, rtol=0, atol=share * np.abs(reference).max()
  )


# Few shapes, as each compiles: a line, and odd halves. Other tests have more
# rows than columns.
@pytest.mark.parametrize("shape", [(1, 5), (41, 67)])
def test_matches_the_nodal_system(shape):
  rng = np.random.default_rng(shape)
  for wire, load in _WIRES:
    for kind in ("binary", "log-uniform"):
      g = _draw(rng, shape, kind)
      reference = _nodal(g, wire, load)
      double = _double(g, wire, load)
      # Relative, at every input and output: no current is lost in a larger one.
      np.testing.assert_allclose(double, reference, rtol=1e-9, atol=1e-20)
      _assert_close(_single(g, wire, load), reference, 1e-5)


def test_matches_the_nodal_system_at_128():
  g = _draw(np.random.default_rng(0), (128, 128))
  reference = _nodal(g, 28.011, 4.0)
  np.testing.assert_allclose(_double(g, 28.011, 4.0), reference, rtol=1e-9)
  _assert_close(_single(g, 28.011, 4.0), reference, 1e-5)


@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  wire=st.floats(0.5, 1e5),
  load=st.floats(1e-2, 1e4),
  share_on=st.floats(0, 1),
)
@hypothesis.settings(max_examples=20)
def test_matches_for_any_resistances(seed, wire, load, share_on):
  rng = np.random.default_rng(seed)
  g = np.where(rng.random((24, 40)) < share_on, _G_ON, _G_OFF)
  reference = _nodal(g, wire, load)
  _assert_close(_double(g, wire, load), reference, 1e-9)
  # Wires as resistive as cells cost float32 digits: 1.3e-4 at 95 kohm.
  _assert_close(_single(g, wire, load), reference, 1e-4 if wire < 1e4 else 1e-3)


def test_without_resistance_it_is_the_conductances():
  g = _draw(np.random.default_rng(0), (24, 40), "log-uniform")
  np.testing.assert_allclose(_double(g, 0.0, 0.0), g, rtol=1e-13)
  np.testing.assert_allclose(_single(g, 0.0, 0.0), g, rtol=1e-6)


def test_small_resistances_lose_no_digits():
  """What they take, about 1e-9 of a current, has all digits itself."""
  g = _draw(np.random.default_rng(0), (24, 40))
  small, smaller = (g - _double(g, r, r) for r in (1e-7, 0.5e-7))
  _assert_close(small / 2, smaller, 1e-5)
  np.testing.assert_allclose(_single(g, 1e-7, 1e-7), g, rtol=1e-6)


def test_either_resistance_may_be_zero():
  g = _draw(np.random.default_rng(0), (24, 40), "log-uniform")
  for wire, load in ((28.0, 0.0), (0.0, 4.0)):
    # The nodal system cannot take 0: extrapolate to it.
    near, nearer = (
      _nodal(g, max(wire, least), max(load, least)) for least in (1e-3, 5e-4)
    )
    _assert_close(_double(g, wire, load), 2 * nearer - near, 1e-6)
  # Only loads: a voltage divider for a single cell.
  cell = np.array([[_G_ON]])
  expected = 1 / (1 / _G_ON + 2 * 50.0)
  np.testing.assert_allclose(_double(cell, 7.0, 50.0), [[expected]], rtol=1e-14)


def test_open_lines_carry_nothing():
  g = _draw(np.random.default_rng(0), (24, 40), "log-uniform")
  g[3] = 0
  g[:, 5] = 0
  result = _double(g, 28.0, 4.0)
  assert (result[3] == 0).all() and (result[:, 5] == 0).all()
  _assert_close(result, _nodal(g, 28.0, 4.0), 1e-9)
  assert (_double(np.zeros((24, 40)), 28.0, 4.0) == 0).all()


def test_batches():
  """Leading axes, vmap and any batch size give the same."""
  g = _draw(np.random.default_rng(0), (3, 2, 10, 8))
  each = np.stack([_nodal(x, 28.0, 4.0) for x in g.reshape(6, 10, 8)])
  each = each.reshape(g.shape)
  for options in ({}, {"batch_size": 4}):
    np.testing.assert_allclose(
      _double(g, 28.0, 4.0, **options), each, rtol=1e-9
    )
  with jax.enable_x64(True):
    of_arrays = jax.vmap(_transfer, (0, None, None))
    mapped = jax.vmap(of_arrays, (0, None, None))(g, 28.0, 4.0)
    of_wires = jax.vmap(_transfer, (None, 0, None))
    swept = of_wires(g[0, 0], np.array([28.0, 1e4]), 4.0)
  np.testing.assert_allclose(mapped, each, rtol=1e-9)
  np.testing.assert_allclose(swept[0], each[0, 0], rtol=1e-9)
  _assert_close(swept[1], _nodal(g[0, 0], 1e4, 4.0), 1e-9)


def test_gradients():
  """In units of g_on and 100 ohm, so that differences are well scaled."""
  g = _draw(np.random.default_rng(0), (6, 5), "log-uniform") / _G_ON
  weights = np.random.default_rng(1).normal(size=g.shape)

  @jax.jit
  def loss(g, wire, load):
    result = wires.transfer(g * _G_ON, wire * 100, load * 100)
    return jnp.sum(result / _G_ON * weights)

  with jax.enable_x64(True):
    for wire, load in ((0.28, 0.04), (0.0, 0.0), (0.0, 0.04)):
      test_util.check_grads(
        loss, (jnp.asarray(g), wire, load), 1, modes=("fwd", "rev"), eps=1e-5
      )


def test_gradient_in_float32_is_finite():
  g = _draw(np.random.default_rng(0), (2, 9, 14), "log-uniform")
  gradient = jax.jit(jax.grad(lambda *x: wires.transfer(*x).sum(), (0, 1, 2)))
  for resistances in ((0.0, 0.0), (28.0, 4.0), (1e4, 1e4)):
    gradients = gradient(g.astype(np.float32), *resistances)
    assert all(np.isfinite(x).all() for x in gradients)


def test_resistances_of_a_device():
  device = crossbar.Device(wire_resistance=28.0, load_resistance=4.0)
  g = _draw(np.random.default_rng(0), (24, 40)).astype(np.float32)
  result = jax.jit(lambda g: wires.wire_transfer(g, device))(g)
  _assert_close(result, _single(g, 28.0, 4.0), 1e-6)


@pytest.mark.parametrize(
  "shape", [pytest.param((9, 6), marks=pytest.mark.slow), (6, 9)]
)
def test_lines_of_their_own_resistances_and_sides(shape):
  g = _draw(np.random.default_rng(shape), shape, "log-uniform")
  device = crossbar.Device(
    wire_resistance=20.0,
    load_resistance=4.0,
    source_wire_resistance=7.0,
    sense_wire_resistance=40.0,
    source_load_resistance=300.0,
    sense_load_resistance=50.0,
  )
  resistances = np.array([27.0, 60.0]), np.array([304.0, 54.0])
  found = []
  for sides in itertools.product(("first", "last"), repeat=2):
    one = dataclasses.replace(
      device, **dict(zip(("source_side", "sense_side"), sides, strict=True))
    )
    with jax.enable_x64(True):
      got = jax.jit(lambda g, one=one: wires.wire_transfer(g, one))(g)
    reference = _nodal(g, *resistances, *sides)
    np.testing.assert_allclose(got, reference, rtol=1e-9, atol=1e-20)
    found.append(reference)
  # It matters which end, and which line has which.
  found += [
    _nodal(g, resistances[0][::-1], resistances[1]),
    _nodal(g, resistances[0], resistances[1][::-1]),
  ]
  for one, other in itertools.combinations(found, 2):
    assert np.abs(one - other).max() > 1e-4 * np.abs(one).max()


def test_one_line_alone_may_be_resistive():
  """Without resistance along bit lines, word lines are apart: ladders."""
  g = _draw(np.random.default_rng(0), (7, 5), "log-uniform")
  device = crossbar.Device(
    source_wire_resistance=30.0, source_load_resistance=9.0
  )
  with jax.enable_x64(True):
    got = jax.jit(lambda g: wires.wire_transfer(g, device))(g)
  for row, currents in zip(g, got, strict=True):
    beyond, seen = 0.0, []
    for cell in row[::-1]:
      beyond = cell + beyond / (1 + 30 * beyond)
      seen.append(beyond)
    volts = 1.0
    for cell, admittance, wire, current in zip(
      row, seen[::-1], [9, 30, 30, 30, 30], currents, strict=True
    ):
      volts /= 1 + wire * admittance
      np.testing.assert_allclose(current, cell * volts, rtol=1e-12)


def _golden(shared, file):
  golden = np.load(shared / "golden" / file)
  return golden, sorted({n.split("/")[0] for n in golden.files if "/" in n})


def test_golden_arrays(shared):
  """Stored nodal solutions, and ngspice to the digits it was run with."""
  golden, names = _golden(shared, "g6_irdrop.npz")
  for name in names:
    g, volts, *conductances = (
      golden[f"{name}/{entry}"] for entry in ("G", "V", "gwire", "gload")
    )
    wire, load = (1 / float(x) for x in conductances)
    currents = _double(g, wire, load).T @ volts
    for key, share in (("i_nodal", 1e-9), ("i_ngspice", 1e-5)):
      _assert_close(currents, golden[f"{name}/{key}"], share)
  assert len(names) > 30


def test_golden_layers(shared):
  """Currents of the tiles of whole layers."""
  golden, names = _golden(shared, "g6b_irdrop_layers.npz")
  load = 1 / float(golden["gload"])
  for name in names:
    wire = 1 / float(re.search(r"gw([\d.]+)_", name)[1])
    # Stored [col_tiles, row_tiles, C, R].
    pair = [golden[f"{name}/G_{sign}"].swapaxes(-1, -2) for sign in _SIGNS]
    folded = _double(np.stack(pair), wire, load)
    volts = golden[f"{name}/input_crxb_volts"]  # [B, 1, row_tiles, R, n]
    currents = np.einsum("xyij,bkyin->bxyjn", folded[0] - folded[1], volts)
    _assert_close(currents, golden[f"{name}/out_crxb_amps"], 1e-9)


_needs_ngspice = pytest.mark.skipif(
  shutil.which("ngspice") is None, reason="needs ngspice on the PATH"
)


def _ngspice(netlist, tmp_path):
  path = tmp_path / "array.cir"
  path.write_text(netlist)
  done = subprocess.run(
    ["ngspice", "-b", str(path)],
    capture_output=True,
    text=True,
    check=True,
    timeout=60,
  )
  found = re.findall(r"^i\(vout_(\d+)\) = (\S+)", done.stdout, re.MULTILINE)
  assert found, done.stdout + done.stderr
  assert [int(j) for j, _ in found] == list(range(len(found)))
  return np.array([float(current) for _, current in found])


@_needs_ngspice
def test_ngspice_on_our_netlist(tmp_path):
  rng = np.random.default_rng(0)
  for shape, wire, load in (
    ((32, 32), 28.0, 4.0),
    ((5, 3), 28.0, 4.0),
    ((5, 3), 0.0, 4.0),
    ((5, 3), 28.0, 0.0),
    ((5, 3), 0.0, 0.0),
    ((1, 1), 2.0, 3.0),
  ):
    g = _draw(rng, shape, "log-uniform")
    volts = rng.uniform(0, 0.3, shape[0])
    netlist = interop.spice_netlist(
      g, volts, wire_resistance=wire, load_resistance=load
    )
    currents = _ngspice(netlist, tmp_path)
    # ngspice adds 1e-12 S from every node to ground.
    _assert_close(_double(g, wire, load).T @ volts, currents, 1e-6)


def test_netlist_leaves_out_what_carries_nothing():
  g = np.array([[1e-4, 0.0], [2e-4, 3e-4]])
  netlist = interop.spice_netlist(
    g, [0.2, 0.1], wire_resistance=0, load_resistance=0, dialect="hspice"
  )
  resistors = [x for x in netlist.splitlines() if x.startswith("R")]
  assert resistors == [
    "Rcell_0_0 in_0 out_0 10000.0",
    "Rcell_1_0 in_1 out_0 5000.0",
    "Rcell_1_1 in_1 out_1 3333.3333333333335",
  ]
  assert ".print dc i(vout_1)" in netlist and netlist.endswith(".end\n")


@pytest.mark.parametrize(
  "changed, message",
  [
    (dict(dialect="pspice"), "dialect: got 'pspice', allowed are ngspice, hsp"),
    (
      dict(g=np.ones(3)),
      "g: got shape \\(3,\\) of float64, needed are numbers",
    ),
    (dict(g=np.ones((0, 3))), "g: got shape \\(0, 3\\)"),
    (dict(g=[[1.0, -1e-6]]), r"g\[0, 1\]: got -1e-06, needed is a finite"),
    (dict(g=[[np.nan, 1.0]]), r"g\[0, 0\]: got nan, needed is a finite"),
    (dict(voltages=[0.1, 0.1]), r"voltages: got shape \(2,\) .* shape \(1,\)"),
    (dict(voltages=[np.inf]), "voltages: got inf, needed are finite"),
    (dict(wire_resistance=-1.0), "wire_resistance: got -1.0, needed is a fin"),
    (dict(load_resistance=np.nan), "load_resistance: got nan, needed is a fin"),
  ],
)
def test_netlist_refuses(changed, message):
  arguments = dict(
    g=[[1e-4, 1e-4]], voltages=[0.1], wire_resistance=1.0, load_resistance=1.0
  )
  with pytest.raises(errors.InputError, match=message):
    interop.spice_netlist(**(arguments | changed))
