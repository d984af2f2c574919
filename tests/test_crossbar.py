"""Chips: tiling, defect statistics against theory, common random numbers."""

import dataclasses
import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.arithmetic import integer
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import readout
from hawis_jax.crossbar import tiles
from hawis_jax.crossbar import wires
from hawis_jax.interop import chips
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet

_IDEAL = crossbar.Device()
_effective = jax.jit(crossbar.effective_weights, static_argnames="bits")
_conductances = jax.jit(crossbar.conductances, static_argnames="bits")
_program = jax.jit(
  functools.partial(crossbar.program, scales="channel"), static_argnames="bits"
)


def _key(rng):
  return jax.random.key(rng.integers(2**31))


def _signs(rng, shape):
  return rng.choice(np.float32([-1, 1]), shape)


def _integers(rng, shape, bits=8):
  """Random integer weights, the largest one in every column, as a kernel."""
  top = integer.largest(bits)
  weights = rng.integers(-top, top + 1, shape).astype(np.float32)
  weights.reshape(-1, shape[-1])[0] = top
  return weights


def _faulty(p_on, p_off):
  """Of rates that are arrays: one program for all of them."""
  return crossbar.Device(stuck_on=np.float32(p_on), stuck_off=np.float32(p_off))


def _is_binomial(events, p):
  events = np.asarray(events)
  if p == 0:
    return not events.any()
  return stats.binomtest(int(events.sum()), events.size, p).pvalue > 1e-6


@given(
  st.integers(0, 2**31),
  st.sampled_from([(3, 3, 5, 7), (1, 1, 8, 9), (7, 7, 3, 2), (11, 6)]),
  st.sampled_from([(64, 64), (16, 8), (5, 3)]),
)
@settings(max_examples=8)
def test_tiles_hold_the_matrix(seed, shape, tile_shape):
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=shape).astype(np.float32)

  @jax.jit
  def there_and_back(kernel):
    matrix = tiles.kernel_to_matrix(kernel)
    cut = tiles.split(matrix, tile_shape)
    joined = tiles.join(cut, matrix.shape)
    return matrix, cut, joined, tiles.matrix_to_kernel(joined, shape)

  matrix, cut, joined, back = jax.device_get(there_and_back(kernel))
  # Row order (c_in, kh, kw), written out.
  *taps, c_in, c_out = shape
  height, width = taps or (1, 1)
  by_hand = kernel.reshape(height, width, c_in, c_out)
  for row in rng.integers(matrix.shape[0], size=5):
    c, tap = divmod(int(row), height * width)
    i, j = divmod(tap, width)
    np.testing.assert_array_equal(matrix[row], by_hand[i, j, c])
  grid = -(-np.array(matrix.shape) // tile_shape)
  assert cut.shape == (*grid, *tile_shape)
  np.testing.assert_array_equal(joined, matrix)
  np.testing.assert_array_equal(back, kernel)


def test_padding_cells_are_off(rng):
  weights = _signs(rng, (3, 3, 8, 10))  # 72 x 10: two row tiles, one column's
  pair = _conductances(_key(rng), weights, _IDEAL)
  g_pos, g_neg = jax.device_get(pair)
  assert g_pos.shape == g_neg.shape == (2, 1, 64, 64)
  for g in (g_pos, g_neg):
    np.testing.assert_array_equal(g[1, 0, 8:], np.float32(_IDEAL.g_off))
    np.testing.assert_array_equal(g[:, :, :, 10:], np.float32(_IDEAL.g_off))
  matrix = np.moveaxis(weights, 2, 0).reshape(72, 10)
  np.testing.assert_array_equal(g_pos[0, 0, :, :10] > 1e-4, matrix[:64] > 0)


def test_padding_cells_count_in_ir_drop(rng):
  """A tile that is partly used loses what the whole array loses."""
  device = crossbar.Device(
    g_off=1e-4, wire_resistance=2.0, load_resistance=5.0, tile_shape=(32, 24)
  )
  weights = _signs(rng, (20, 10))
  got = np.asarray(_effective(_key(rng), weights, device))
  transfer = jax.jit(lambda g: wires.transfer(g, 2.0, 5.0))
  unit = device.g_on - device.g_off
  whole, used = 0, 0
  for sign in (1, -1):
    g = np.where(sign * weights > 0, device.g_on, device.g_off)
    g = g.astype(np.float32)
    array = np.full((32, 24), device.g_off, np.float32)
    array[:20, :10] = g
    whole += sign * np.asarray(transfer(array))
    used += sign * np.asarray(transfer(g))
  np.testing.assert_allclose(got, whole[:20, :10] / unit, atol=1e-5)
  assert np.abs(got - used / unit).max() > 0.01
  assert (np.abs(got) < 0.99).all()


def test_fault_counts_are_binomial(rng):
  """Cells at g_on / g_off, per polarity, and their joint rates on weights."""
  for p_on, p_off in ((0.0175, 0.0904), (0.2, 0.5), (0, 0.1)):
    device, key = _faulty(p_on, p_off), _key(rng)
    weights = _signs(rng, (1024, 512))
    positive = weights.reshape(16, 64, 8, 64).transpose(0, 2, 1, 3) > 0
    pair = jax.device_get(_conductances(key, weights, device))
    for g, target_on in zip(pair, (positive, ~positive), strict=True):
      is_on = g > 1e-4
      assert _is_binomial(~is_on[target_on], p_off)
      assert _is_binomial(is_on[~target_on], p_on)
    # The two arrays fail independently: +1 -> 0, and a flip needs both cells.
    w = np.asarray(_effective(key, weights, device)) * weights
    assert set(np.unique(w)) <= {-1.0, 0.0, 1.0}
    assert _is_binomial(w == 0, p_off * (1 - p_on) + p_on * (1 - p_off))
    assert _is_binomial(w == -1, p_on * p_off)


def test_chips_and_layers_are_independent(rng):
  weights = _signs(rng, (512, 256))
  keys = jax.random.split(_key(rng), 2)
  a, b = (
    np.asarray(_effective(k, weights, _faulty(0, 0.5))) == 0 for k in keys
  )
  table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
  assert stats.chi2_contingency(table).pvalue > 1e-6
  assert a.any() and (a != b).any()


def _net(rng):
  """Of 3 layers, and 30 tiles of 16 x 16."""
  shapes = {"a": (3, 3, 9, 40), "b": (30, 30), "c": (1, 1, 20, 50)}
  params = {
    name: {"kernel": rng.normal(size=shape).astype(np.float32)}
    for name, shape in shapes.items()
  }
  return {"params": params, "batch_stats": {}}


def _device(**effects):
  return crossbar.Device(tile_shape=(16, 16), **effects)


@pytest.mark.exact
def test_program_is_effective_weights_layer_by_layer(rng):
  """One flat draw for the net equals a draw a layer."""
  net, key = _net(rng), _key(rng)
  device = _device(stuck_off=0.2, variation=0.3)

  @jax.jit
  def by_layer(key, params):
    return {
      name: crossbar.effective_weights(
        jax.random.fold_in(key, place), params[name]["kernel"], device
      )
      for place, name in enumerate(sorted(params))
    }

  chip = jax.device_get(_program(key, net, device))
  assert chip["params"] is not None and "batch_stats" in chip
  for name, expected in by_layer(key, net["params"]).items():
    np.testing.assert_array_equal(chip["crossbar"][name]["weight"], expected)


@pytest.mark.parametrize(
  ("device", "form"),
  [
    (_device(stuck_off=0.2, variation=0.3), "float32"),
    (_device(stuck_on=0.1, wire_resistance=2.0), "float32"),
    (_device(adc_bits=6, read_noise=1.0, variation=0.1), "float32"),
    (_device(stuck_off=0.1, stuck_on=0.1), "planes"),
  ],
  ids=["fold", "wires", "tiled", "planes"],
)
@pytest.mark.exact
def test_blocks_of_tiles_change_nothing(rng, device, form, monkeypatch):
  """Measured faults, which have tiles too, included."""
  net, key = _net(rng), _key(rng)
  faults = {"c": rng.integers(-1, 2, (1, 2, 4, 2, 16, 16))}

  def programmed():
    @jax.jit
    def program(key, net):
      chip = crossbar.program(key, net, device, faults=faults, form=form)
      return {  # keys as numbers
        jax.tree_util.keystr(path): jax.random.key_data(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x
        for path, x in jax.tree_util.tree_leaves_with_path(chip["crossbar"])
      }

    return jax.device_get(program(key, net))

  whole = programmed()
  sizes = []
  name = "ternary_weights" if form == "planes" else "program_tiles"
  real = getattr(cells, name)

  def seen(keys, integers, *others):
    sizes.append(len(integers))
    return real(keys, integers, *others)

  monkeypatch.setattr(cells, name, seen)
  for most in (1, 4):  # of 30 tiles: the last 4 have 2 to spare
    monkeypatch.setattr(cells, "_CELLS", most * 2 * 16 * 16)
    for path, got in programmed().items():
      # A sum over rows, which compilers order.
      rtol = 1e-6 if "thermal" in path else 0
      np.testing.assert_allclose(got, whole[path], rtol=rtol, atol=0)
  assert sizes == [1, 4]


@pytest.mark.exact
def test_blocks_of_tiles_pass_the_gradient(rng, monkeypatch):
  kernel, slope = rng.normal(size=(2, 3, 3, 20, 70)).astype(np.float32)
  device, key = crossbar.Device(stuck_off=0.2, variation=0.3), _key(rng)

  def gradient():
    loss = lambda w: (  # noqa: E731
      crossbar.effective_weights(key, w, device) * slope
    ).sum()
    return np.asarray(jax.jit(jax.grad(loss))(kernel))

  whole = gradient()
  monkeypatch.setattr(cells, "_CELLS", 2 * 64 * 64)
  np.testing.assert_array_equal(gradient(), whole)
  assert (whole != 0).mean() > 0.3


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.exact
def test_ideal_chip_changes_no_logit(rng, bits):
  widths = (6, 5, 6, 8, 10, 12, 12)
  module = resnet.cifar_resnet(8, widths, 10, levels=8)
  if bits == 8:
    module = reference_resnet.cifar_reference(8, widths, 10, bits=8)
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  net = init(module, _key(rng), (8, 8, 3))
  images = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)

  @jax.jit
  def logits(variables):
    return module.apply(variables, module.encode(images), train=False)

  # One program: a chip without faults has rates of 0, as arrays.
  ideal, faulty = (
    logits(_program(_key(rng), net, _faulty(0, p), bits=module.weight_bits))
    for p in (0, 0.3)
  )
  expected = np.asarray(logits(net))
  np.testing.assert_array_equal(ideal, expected)
  assert (np.asarray(faulty) != expected).any()


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.exact
def test_ideal_cells_hold_exact_integers(rng, bits):
  """Whatever the kernel's scale and the conductances; 0 too."""
  weights = _integers(rng, (3, 3, 9, 70), max(bits, 2))  # of 1 bit: signs
  for g_off in (3.33e-7, 1e-5, 2e-4):
    device = crossbar.Device(g_off=g_off)
    kernel = weights * np.float32(rng.uniform(0.1, 10))
    got = _effective(_key(rng), kernel, device, bits=bits)
    np.testing.assert_array_equal(got, weights, err_msg=f"{g_off}")


def test_integers_are_evenly_spaced_conductances(rng):
  """G+ = g_off + max(q, 0) / 127 (g_on - g_off), and G- of -q."""
  weights = _integers(rng, (64, 64))
  g = _conductances(_key(rng), weights, _IDEAL, bits=8)
  for array, sign in zip(jax.device_get(g), (1, -1), strict=True):
    array = array[0, 0].astype(np.float64)
    share = np.maximum(sign * weights, 0) / 127
    expected = _IDEAL.g_off + share * (_IDEAL.g_on - _IDEAL.g_off)
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert (array[share == 0] == np.float32(_IDEAL.g_off)).all()
    assert (array[share == 1] == np.float32(_IDEAL.g_on)).all()


def test_faults_change_8_bit_weights_as_in_theory(rng):
  """The cells of a pair fail independently: five outcomes of a weight."""
  for p_on, p_off in ((0.0175, 0.0904), (0.2, 0.5), (0, 0.1), (0.3, 0)):
    q = _integers(rng, (512, 512))
    got = _effective(_key(rng), q, _faulty(p_on, p_off), bits=8)
    got = np.asarray(got, np.float64)
    np.testing.assert_allclose(got, np.round(got), atol=1e-4)
    chosen = (q != 0) & (abs(q) < 127)
    sign, size = np.sign(q[chosen]), abs(q[chosen])
    outcome = np.round(got[chosen]) * sign
    healthy = 1 - p_on - p_off
    # Of the cell that holds |q|, and of the other one, which holds 0.
    theory = (
      (size, healthy * (1 - p_on)),
      (size - 127, healthy * p_on),
      (0, p_off * (1 - p_on) + p_on**2),
      (127, p_on * (1 - p_on)),
      (-127, p_off * p_on),
    )
    assert sum(p for _, p in theory) == pytest.approx(1)
    for value, p in theory:
      assert _is_binomial(outcome == value, p), (value, p)


@pytest.mark.exact
def test_8_bit_net_shares_the_defects_of_a_binary_one(rng):
  """A stuck cell is stuck whatever is programmed into it."""
  device = dataclasses.replace(_faulty(0.2, 0.3), tile_shape=(16, 16))
  key, net = _key(rng), _net(rng)["params"]

  def chip(bits, weight):
    params = jax.tree.map(lambda x: np.full_like(x, weight), net)
    programmed = _program(key, {"params": params}, device, bits=bits)
    return jax.device_get(jax.tree.leaves(programmed["crossbar"]))

  for weight in (-0.5, 0.5):
    for one, eight in zip(chip(1, weight), chip(8, weight), strict=True):
      np.testing.assert_array_equal(127 * one, eight)
      assert len(np.unique(one)) == 3


@pytest.mark.parametrize("bits", [None, -1, 9])
def test_weights_that_no_cell_holds(bits):
  net = {"params": {"kernel": jnp.ones((3, 3))}}
  with pytest.raises(errors.InputError, match=f"got {bits}, allowed are 1 to"):
    crossbar.program(jax.random.key(0), net, _IDEAL, bits)


@pytest.mark.parametrize(
  "bits, message",
  [
    (1, "bits: got 1, needed are the net's own weight_bits, 2 to 8"),
    (8, "scales: got None with bits = 8, needed are the net's own weight_scal"),
    (0, "scales: got None with bits = 0, needed are the net's own weight_scal"),
  ],
)
def test_integers_are_those_of_the_net(tmp_path, bits, message):
  """Its variables tell what is wrong, or do not tell what is needed."""
  net = {
    "params": {"head": {"kernel": jnp.ones((3, 3))}},
    "batch_stats": {"head": {"max_abs": 1.0}},
  }
  arguments = jax.random.key(0), net, _IDEAL, bits
  with pytest.raises(errors.InputError, match=message):
    crossbar.program(*arguments)
  with pytest.raises(errors.InputError, match=message):
    interop.export_chip(tmp_path / "chip.npz", *arguments)


def test_faults_are_stuck_on_stuck_off_or_none():
  net = {"params": {"head": {"kernel": jnp.ones((3, 3))}}}
  faults = {"head": np.zeros((1, 1, 1, 2, 64, 64), np.int8)}
  faults["head"][0, 0, 0, 1, 2, 3] = 7
  with pytest.raises(errors.InputError, match="faults of head: got 7, allowed"):
    crossbar.program(jax.random.key(0), net, _IDEAL, faults=faults)


def _currents(g, bits, device, convert=None):
  """Returns what a tile's digital side makes of cells `[A, R, C]`, by hand.

  With `convert` of two currents each, in units of a weight of 1.
  """
  arrays, rows, columns = g.shape
  current = np.zeros((arrays, columns))
  driven = 0
  for row in range(rows):
    voltage = device.read_voltage
    if device.mapping == "complementary":
      voltage *= bits[row // 2] * (-1) ** row
    else:
      voltage *= bits[row]
      driven += bits[row]
    for array, column in np.ndindex(arrays, columns):
      current[array, column] += voltage * g[array, row, column]
  unit = device.read_voltage * (device.g_on - device.g_off)
  if device.mapping == "complementary":
    return current[0] / unit
  sides = {
    "differential": lambda: current,
    "interleaved": lambda: (current[0, ::2], current[0, 1::2]),
    "single": lambda: (2 * current[0, :-1], 2 * current[0, -1:]),
  }
  if device.mapping in sides:
    added, taken = sides[device.mapping]()
    if convert:
      return convert(added / unit) - convert(taken / unit)
    return (added - taken) / unit
  leak = driven * device.read_voltage * device.g_off
  return 2 * (current[0] - leak) / unit - driven


@pytest.mark.slow
@pytest.mark.parametrize("mapping", crossbar.MAPPINGS)
def test_mappings_are_their_circuits(rng, mapping):
  """Cell by cell; and exact on ideal chips, through converters too."""
  ideal = crossbar.Device(tile_shape=(16, 8), mapping=mapping, g_off=1e-5)
  faulty = dataclasses.replace(
    ideal, stuck_on=0.1, stuck_off=0.1, dead_rows=0.05, variation=0.4
  )
  w = rng.choice(np.float32([-1, 1]), (37, 19))
  w[5, 3] = 0
  bits = rng.integers(0, 2, len(w))
  net, key = {"params": {"a": {"kernel": w}}}, jax.random.key(rng.integers(99))

  def weight(device):
    return np.asarray(
      crossbar.program(key, net, device)["crossbar"]["a"]["weight"]
    )

  np.testing.assert_array_equal(weight(ideal), w)
  g = np.asarray(cells.chip_cells(key, net, faulty)["a"].conductances[0])
  rows, columns = cells.weight_shape(faulty)
  padded = np.pad(bits, (0, -len(bits) % rows)).reshape(-1, rows)
  for wire in (0.0, 5.0):
    device = dataclasses.replace(faulty, wire_resistance=wire)
    there = np.asarray(crossbar.wire_transfer(g, device)) if wire else g
    sums = np.zeros(g.shape[1] * columns)
    for row, column in np.ndindex(g.shape[:2]):
      tile = there[row, column].astype(np.float64)
      part = _currents(tile, padded[row], device)
      sums[column * columns : (column + 1) * columns] += part
    found = bits @ weight(device)
    np.testing.assert_allclose(found, sums[: w.shape[1]], atol=1e-3)
    assert np.abs(found - bits @ w).max() > 1
  if mapping == "offset":
    return
  read = dataclasses.replace(ideal, adc_bits=12)
  layer = crossbar.program(key, net, read)["crossbar"]["a"]
  got = readout.read(jnp.matmul, np.float32(bits)[None], layer)
  np.testing.assert_array_equal(got[0], bits @ w)


@pytest.mark.parametrize("mapping", ["differential", "single", "interleaved"])
@pytest.mark.parametrize("adc_bits", [5, 8])
def test_both_currents_have_converters(rng, mapping, adc_bits):
  """Cell by cell, their codes subtracted; of ideal chips and 8 bits exact."""
  ideal = crossbar.Device(
    tile_shape=(16, 8),
    mapping=mapping,
    subtraction="digital",
    adc_bits=adc_bits,
    g_off=2e-6,  # of 16 rows less than half a code
  )
  faulty = dataclasses.replace(
    ideal, stuck_on=0.1, stuck_off=0.1, dead_rows=0.05, variation=0.4
  )
  w = rng.choice(np.float32([-1, 1]), (37, 19))
  bits = rng.integers(0, 2, (6, len(w))).astype(np.float32)
  net, key = {"params": {"a": {"kernel": w}}}, jax.random.key(rng.integers(99))

  def read(device):
    layer = jax.jit(crossbar.program)(key, net, device)["crossbar"]["a"]
    return np.asarray(readout.read(jnp.matmul, bits, layer), np.float64)

  if adc_bits == 8:
    np.testing.assert_array_equal(read(ideal), bits @ w)
  g = np.asarray(cells.chip_cells(key, net, faulty)["a"].conductances[0])
  rows, columns = cells.weight_shape(faulty)
  factor = 2 if mapping == "single" else 1
  most = factor * 16 * ideal.g_on / (ideal.g_on - ideal.g_off)
  step = max(most / (2**adc_bits - 1), 1)

  def convert(current):
    return step * np.clip(np.round(current / step), 0, 2**adc_bits - 1)

  got, analog = read(faulty), dataclasses.replace(faulty, subtraction="analog")
  expected = np.zeros_like(got)
  for image, row, column in np.ndindex(len(bits), *g.shape[:2]):
    padded = np.pad(bits[image], (0, -len(w) % rows)).reshape(-1, rows)
    tile = g[row, column].astype(np.float64)
    part = _currents(tile, padded[row], faulty, convert)
    place = slice(column * columns, min((column + 1) * columns, w.shape[1]))
    expected[image, place] += part[: place.stop - place.start]
  # A current that is between two codes may round to either.
  assert (abs(got - expected) > 1e-3).mean() < 0.01
  assert (abs(read(analog) - got) > 0.4).any()


def test_a_bias_column_has_one_converter_for_all(rng):
  """Its noise and offset are in all columns of its tile, and no others."""
  device = crossbar.Device(
    tile_shape=(16, 8),
    mapping="single",
    subtraction="digital",
    adc_bits=12,
    adc_noise=2.0,
    adc_offset=0.5,
  )
  w = np.float32(rng.permuted(np.tile([[-1], [1]], (8, 16)), axis=0))
  net = {"params": {"a": {"kernel": w}}}
  chip = crossbar.program(jax.random.key(3), net, device)
  chip = crossbar.for_images(chip, np.arange(2000))
  layer = chip["crossbar"]["a"]
  assert layer["kernels"].shape[-1] == layer["offsets"].shape[-1] == 18
  # All rows on: currents of 16 are 8 deviations above 0, where codes end.
  sums = readout.read(jnp.matmul, np.ones((2000, 16), np.float32), layer)
  sums = np.asarray(sums, np.float64)
  offsets = np.asarray(layer["offsets"][0], np.float64)
  expected = offsets[:16] - np.repeat(offsets[16:], 8)
  np.testing.assert_allclose(sums.mean(0), expected, atol=0.35)
  tile = np.kron(np.eye(2), np.ones((8, 8)))
  # Of independent noises, and one that is shared: half the variance.
  between = np.where(np.eye(16), 1, tile / 2)
  assert abs(np.corrcoef(sums.T) - between).max() < 0.12


@pytest.mark.parametrize(
  "fields, bits, allowed",
  [
    (dict(mapping="single", read_noise=1.0), 1, "with read_noise"),
    (dict(mapping="single", telegraph_noise=1.0), 1, "with telegraph_noise"),
    (dict(mapping="single", white_noise=0.1), 1, "with white_noise"),
    (
      dict(mapping="single", subtraction="digital", read_noise=1.0),
      1,
      "with read_noise",
    ),
    (dict(mapping="offset", dac_noise=0.1), 1, "with dac_noise"),
    (dict(mapping="complementary", dac_noise=0.1), 1, "with dac_noise"),
    (dict(mapping="offset", adc_bits=4), 1, "with adc_bits"),
    (dict(mapping="offset", adc_bits=jnp.float32(4)), 1, "with adc_bits"),
    (dict(mapping="complementary", tile_shape=(15, 8)), 1, "an even number"),
    (dict(mapping="offset"), 8, "'differential': the others are of 1 bit"),
  ],
)
def test_what_mappings_do_not_model_is_refused(fields, bits, allowed):
  net = {"params": {"a": {"kernel": jnp.ones((4, 4))}}}
  with pytest.raises(errors.InputError, match=allowed):
    crossbar.program(
      jax.random.key(0), net, crossbar.Device(**fields), bits, scales="channel"
    )


def test_mappings_refuse_what_is_of_pairs(tmp_path):
  net = {"params": {"a": {"kernel": jnp.ones((4, 4))}}}
  device, key = crossbar.Device(mapping="single"), jax.random.key(0)
  for call in (
    lambda: chips.export_chip(tmp_path / "chip.npz", key, net, device),
    lambda: crossbar.conductances(key, net["params"]["a"]["kernel"], device),
    lambda: crossbar.place(key, net, device, crossbar.Placing(("polarity",))),
  ):
    with pytest.raises(errors.InputError, match="allowed is (none|.different)"):
      call()
