"""Chips: tiling, defect statistics against theory, common random numbers."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import binary
from hawis_jax import counterparts
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import quantization
from hawis_jax import resnet
from hawis_jax import variables
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import tiles
from hawis_jax.crossbar import wires

_IDEAL = crossbar.Device()
_effective = jax.jit(crossbar.effective_weights, static_argnames="bits")
_conductances = jax.jit(crossbar.conductances, static_argnames="bits")


def _key():
  return jax.random.key(np.random.default_rng().integers(2**31))


def _numbers(array):
  """Of an array, or of keys."""
  if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
    array = jax.random.key_data(array)
  return np.asarray(array)


def _signs(shape):
  return jnp.asarray(np.random.default_rng().choice([-1.0, 1.0], shape))


@given(
  st.sampled_from([(3, 3, 5, 7), (1, 1, 8, 9), (7, 7, 3, 2), (11, 6)]),
  st.sampled_from([(64, 64), (16, 8), (5, 3)]),
)
@settings(max_examples=12)
def test_tiles_hold_the_matrix(shape, tile_shape):
  kernel = np.random.default_rng().normal(size=shape).astype(np.float32)
  matrix = tiles.kernel_to_matrix(jnp.asarray(kernel))
  # Row order (c_in, kh, kw), written out.
  *taps, c_in, c_out = shape
  height, width = taps or (1, 1)
  by_hand = kernel.reshape(height, width, c_in, c_out)
  for row in np.random.default_rng().integers(matrix.shape[0], size=5):
    c, tap = divmod(int(row), height * width)
    i, j = divmod(tap, width)
    np.testing.assert_array_equal(matrix[row], by_hand[i, j, c])
  cut = tiles.split(matrix, tile_shape)
  grid = -(-np.array(matrix.shape) // tile_shape)
  assert cut.shape == (*grid, *tile_shape)
  np.testing.assert_array_equal(tiles.join(cut, matrix.shape), matrix)
  np.testing.assert_array_equal(tiles.matrix_to_kernel(matrix, shape), kernel)


def test_ideal_chip_multiplies_by_exact_signs():
  weights = jnp.asarray(np.random.default_rng().normal(size=(3, 3, 9, 70)))
  weights = weights.astype(jnp.float32)
  # An exact 0 is 0, as the network takes it.
  weights = weights.at[1, 2, 3, :40].set(0)
  expected = binary.binarize_weights(weights, zero=0)
  assert set(np.unique(expected)) == {-1, 0, 1}
  np.testing.assert_array_equal(_effective(_key(), weights, _IDEAL), expected)


def test_padding_cells_are_off():
  weights = _signs((3, 3, 8, 10))  # 72 x 10: two row tiles, one column tile
  g_pos, g_neg = _conductances(_key(), weights, _IDEAL)
  assert g_pos.shape == g_neg.shape == (2, 1, 64, 64)
  for g in (g_pos, g_neg):
    np.testing.assert_array_equal(g[1, 0, 8:], np.float32(_IDEAL.g_off))
    np.testing.assert_array_equal(g[:, :, :, 10:], np.float32(_IDEAL.g_off))
  np.testing.assert_array_equal(
    np.asarray(g_pos[0, 0, :, :10]) > 1e-4,
    np.asarray(tiles.kernel_to_matrix(weights))[:64] > 0,
  )


def test_padding_cells_count_in_ir_drop():
  """A tile that is partly used loses what the whole array loses."""
  device = crossbar.Device(
    g_off=1e-4, wire_resistance=2.0, load_resistance=5.0, tile_shape=(32, 24)
  )
  weights = _signs((20, 10))
  got = np.asarray(_effective(_key(), weights, device))
  unit = device.g_on - device.g_off
  whole, used = 0, 0
  for sign in (1, -1):
    g = np.where(sign * np.asarray(weights) > 0, device.g_on, device.g_off)
    array = np.full((32, 24), device.g_off)
    array[:20, :10] = g
    whole += sign * np.asarray(wires.transfer(jnp.asarray(array), 2.0, 5.0))
    used += sign * np.asarray(wires.transfer(jnp.asarray(g), 2.0, 5.0))
  np.testing.assert_allclose(got, whole[:20, :10] / unit, atol=1e-5)
  assert np.abs(got - used / unit).max() > 0.01
  assert (np.abs(got) < 0.99).all()


@pytest.mark.parametrize(
  "p_on, p_off", [(0.0175, 0.0904), (0.2, 0.5), (0, 0.1)]
)
def test_fault_counts_are_binomial(p_on, p_off):
  """Cells at g_on / g_off, per polarity, and their joint rates on weights."""
  device = crossbar.Device(stuck_on=p_on, stuck_off=p_off)
  weights = _signs((1024, 512))
  g_pos, g_neg = _conductances(_key(), weights, device)
  g_pos, g_neg = (
    np.asarray(tiles.join(g, weights.shape)) > 1e-4 for g in (g_pos, g_neg)
  )
  positive = np.asarray(weights) > 0
  for is_on, target_on in ((g_pos, positive), (g_neg, ~positive)):
    flipped_off = (~is_on & target_on).sum()
    flipped_on = (is_on & ~target_on).sum()
    for count, total, p in (
      (flipped_off, target_on.sum(), p_off),
      (flipped_on, (~target_on).sum(), p_on),
    ):
      if p:
        assert stats.binomtest(int(count), int(total), p).pvalue > 1e-6
      else:
        assert count == 0
  # The two arrays fail independently: +1 -> 0, and a flip needs both cells.
  w = np.asarray(_effective(_key(), weights, device)) * np.asarray(weights)
  assert set(np.unique(w)) <= {-1.0, 0.0, 1.0}
  zeros = p_off * (1 - p_on) + p_on * (1 - p_off)
  for value, p in ((0, zeros), (-1, p_on * p_off)):
    count = int((w == value).sum())
    if p:
      assert stats.binomtest(count, w.size, p).pvalue > 1e-6
    else:
      assert count == 0


def test_default_rates_give_the_closed_forms():
  """10.5 % zeros and 0.17 % flips at the published rates."""
  device = crossbar.PRESETS["hawis_published"]
  on, off = device.stuck_on, device.stuck_off
  assert round(100 * (off * (1 - on) + on * (1 - off)), 1) == 10.5
  weights = _signs((2048, 512))
  w = np.asarray(_effective(_key(), weights, device)) * np.asarray(weights)
  assert abs((w == 0).mean() - 0.1047) < 0.002
  assert abs((w == -1).mean() - on * off) < 0.0004


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.1])
def test_variation_is_lognormal_and_independent(gamma):
  device = crossbar.Device(variation=gamma)
  weights = _signs((512, 256))
  g_pos, g_neg = _conductances(_key(), weights, device)
  positive = np.asarray(weights).reshape(8, 64, 4, 64).transpose(0, 2, 1, 3) > 0
  thetas = []
  for g, on in ((g_pos, positive), (g_neg, ~positive)):
    target = np.where(on, device.g_on, device.g_off)
    theta = -np.log(np.asarray(g, np.float64) / target)
    assert stats.kstest(theta.ravel() / gamma, "norm").pvalue > 1e-6
    thetas.append(theta.ravel())
  correlation = stats.pearsonr(*thetas)
  assert correlation.pvalue > 1e-6


def test_stuck_cells_do_not_vary():
  device = crossbar.Device(stuck_on=0.3, stuck_off=0.3, variation=1.0)
  g = np.concatenate(
    [np.ravel(x) for x in _conductances(_key(), _signs((256, 256)), device)]
  )
  for level in (device.g_on, device.g_off):
    share = (g == np.float32(level)).mean()
    assert abs(share - 0.3) < 0.01


def test_chips_and_layers_are_independent():
  device = crossbar.Device(stuck_off=0.5)
  weights = _signs((512, 256))
  keys = jax.random.split(_key(), 2)
  a, b = (np.asarray(_effective(k, weights, device)) == 0 for k in keys)
  table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
  assert stats.chi2_contingency(table).pvalue > 1e-6
  assert a.any() and (a != b).any()


def _net(widths):
  module = resnet.cifar_resnet(8, widths, 10, levels=8)
  init = jax.jit(variables.init, static_argnums=(0, 2))
  return init(module, jax.random.key(0), (8, 8, 1))


def test_nets_share_the_defects_of_the_cells_they_share():
  """A physical cell's draw does not depend on the net programmed into it."""
  wide = (12, 12, 16, 80, 20, 24, 96)
  narrow = (5, 12, 3, 70, 20, 2, 90)
  device = crossbar.Device(stuck_off=0.3, stuck_on=0.2, variation=0.4)
  key = _key()
  program = jax.jit(crossbar.program)

  def chip(widths):
    net = _net(widths)
    # The same weight everywhere, so that only the cells differ.
    net["params"] = jax.tree.map(jnp.ones_like, net["params"])
    return program(key, net, device)["crossbar"]

  large, small = chip(wide), chip(narrow)

  def compare(path, weights):
    other = large
    for name in path:
      other = other[name.key]
    *_, c_in, c_out = weights.shape
    np.testing.assert_array_equal(
      weights, other[..., :c_in, :c_out], err_msg=str(path)
    )
    assert len(np.unique(weights)) > 2

  jax.tree_util.tree_map_with_path(compare, small)


def test_program_is_effective_weights_layer_by_layer():
  """One flat draw for the net equals a draw a layer."""
  net = _net((12, 9, 16, 20, 70, 24, 28))
  device = crossbar.Device(stuck_off=0.2, variation=0.3)
  key = _key()
  chip = jax.jit(crossbar.program)(key, net, device)
  assert chip["params"] is not None and "batch_stats" in chip
  kernels = jax.tree_util.tree_leaves_with_path(net["params"])
  kernels = [(p, k) for p, k in kernels if p[-1].key == "kernel"]
  assert len(kernels) == 8
  for layer, (path, kernel) in enumerate(kernels):
    got = chip["crossbar"]
    for name in path[:-1]:
      got = got[name.key]
    expected = _effective(jax.random.fold_in(key, layer), kernel, device)
    np.testing.assert_array_equal(got["weight"], expected)


@pytest.mark.parametrize(
  ("device", "form"),
  [
    (crossbar.Device(stuck_off=0.2, variation=0.3), "float32"),
    (crossbar.Device(stuck_on=0.1, wire_resistance=2.0), "float32"),
    (crossbar.Device(adc_bits=6, read_noise=1.0, variation=0.1), "float32"),
    (crossbar.Device(stuck_off=0.1, stuck_on=0.1), "planes"),
  ],
  ids=["fold", "wires", "tiled", "planes"],
)
def test_blocks_of_tiles_change_nothing(device, form, monkeypatch):
  """Measured faults, which have tiles too, included."""
  net = _net((12, 9, 16, 20, 70, 24, 28))
  faults = {
    "stage3_block0/conv1": np.random.default_rng().integers(
      -1, 2, (1, 10, 1, 2, 64, 64)
    )
  }
  key = _key()

  def programmed():
    program = jax.jit(
      lambda: crossbar.program(key, net, device, faults=faults, form=form)
    )
    return jax.tree.map(_numbers, program()["crossbar"])

  def same(path, got, expected):
    # A sum over rows, which compilers order.
    rtol = 1e-6 if "thermal" in jax.tree_util.keystr(path) else 0
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=0)

  whole = programmed()
  sizes = []
  name = "ternary_weights" if form == "planes" else "program_tiles"
  real = getattr(cells, name)

  def seen(keys, integers, *others):
    sizes.append(len(integers))
    return real(keys, integers, *others)

  monkeypatch.setattr(cells, name, seen)
  for most in (1, 4):  # of 30 tiles: the last 4 have 2 to spare
    monkeypatch.setattr(cells, "_CELLS", most * 2 * 64 * 64)
    jax.tree_util.tree_map_with_path(same, programmed(), whole)
  assert sizes == [1, 4]


def test_blocks_of_tiles_pass_the_gradient(monkeypatch):
  kernel = jnp.asarray(np.random.default_rng().normal(size=(3, 3, 20, 70)))
  device, key = crossbar.Device(stuck_off=0.2, variation=0.3), _key()
  slope = jnp.asarray(np.random.default_rng().normal(size=kernel.shape))

  def gradient():
    return jax.jit(
      jax.grad(
        lambda w: (crossbar.effective_weights(key, w, device) * slope).sum()
      )
    )(kernel)

  whole = gradient()
  monkeypatch.setattr(cells, "_CELLS", 2 * 64 * 64)
  np.testing.assert_array_equal(gradient(), whole)
  assert (np.asarray(whole) != 0).mean() > 0.3


def test_ideal_chip_changes_no_logit():
  widths = (12, 9, 16, 20, 20, 24, 28)
  net = _net(widths)
  module = resnet.cifar_resnet(8, widths, 10, levels=8)
  bits = jnp.asarray(np.random.default_rng().integers(0, 2, (4, 8, 8, 8)))
  apply = jax.jit(lambda v, b: module.apply(v, b, train=False))
  chip = jax.jit(crossbar.program)(_key(), net, _IDEAL)
  np.testing.assert_array_equal(
    apply(chip, bits.astype(jnp.float32)), apply(net, bits.astype(jnp.float32))
  )


def _integers(shape, bits=8):
  """Random integer weights, the largest one among them, as a kernel."""
  top = quantization.largest(bits)
  weights = np.random.default_rng().integers(-top, top + 1, shape)
  weights.flat[0] = top
  return weights, jnp.asarray(weights, jnp.float32)


@pytest.mark.parametrize("bits", [2, 8])
def test_ideal_cells_hold_exact_integers(bits):
  """Whatever the kernel's scale and the conductances."""
  weights, kernel = _integers((3, 3, 9, 70), bits)
  for g_off in (3.33e-7, 1e-5, 2e-4):
    device = crossbar.Device(g_off=g_off)
    kernel = kernel * np.float32(np.random.default_rng().uniform(0.1, 10))
    got = _effective(_key(), kernel, device, bits=bits)
    np.testing.assert_array_equal(got, weights, err_msg=f"{g_off}")


def test_integers_are_evenly_spaced_conductances():
  """G+ = g_off + max(q, 0) / 127 (g_on - g_off), and G- of -q."""
  weights, kernel = _integers((64, 64))
  g = _conductances(_key(), kernel, _IDEAL, bits=8)
  for array, sign in zip(g, (1, -1), strict=True):
    array = np.asarray(array[0, 0], np.float64)
    share = np.maximum(sign * weights, 0) / 127
    expected = _IDEAL.g_off + share * (_IDEAL.g_on - _IDEAL.g_off)
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert (array[share == 0] == np.float32(_IDEAL.g_off)).all()
    assert (array[share == 1] == np.float32(_IDEAL.g_on)).all()


@pytest.mark.parametrize(
  "p_on, p_off", [(0.0175, 0.0904), (0.2, 0.5), (0, 0.1), (0.3, 0)]
)
def test_faults_change_8_bit_weights_as_in_theory(p_on, p_off):
  """The cells of a pair fail independently: five outcomes of a weight."""
  device = crossbar.Device(stuck_on=p_on, stuck_off=p_off)
  q, kernel = _integers((512, 512))
  got = np.asarray(_effective(_key(), kernel, device, bits=8), np.float64)
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
    count = int((outcome == value).sum())
    assert stats.binomtest(count, size.size, p).pvalue > 1e-6, (value, p)


def test_variation_multiplies_every_level():
  gamma = 0.3
  device = crossbar.Device(variation=gamma)
  _, kernel = _integers((256, 256))
  arrays = _conductances(_key(), kernel, device, bits=8)
  targets = _conductances(_key(), kernel, _IDEAL, bits=8)
  for g, target in zip(arrays, targets, strict=True):
    theta = -np.log(np.asarray(g, np.float64) / np.asarray(target))
    assert stats.kstest(theta.ravel() / gamma, "norm").pvalue > 1e-6


def test_8_bit_net_shares_the_defects_of_a_binary_one():
  """A stuck cell is stuck whatever is programmed into it."""
  widths = (12, 12, 16, 70, 20, 24, 28)
  device = crossbar.Device(stuck_off=0.3, stuck_on=0.2)
  key = _key()
  net = _net(widths)["params"]
  program = jax.jit(crossbar.program, static_argnames="bits")

  def chip(bits, weight):
    params = jax.tree.map(lambda x: jnp.full_like(x, weight), net)
    programmed = program(key, {"params": params}, device, bits=bits)
    return jax.tree.leaves(programmed["crossbar"])

  for weight in (-0.5, 0.5):
    for one, eight in zip(chip(1, weight), chip(8, weight), strict=True):
      np.testing.assert_array_equal(127 * one, eight)
      assert len(np.unique(one)) == 3


def test_ideal_chip_changes_no_logit_of_an_8_bit_net():
  module = counterparts.cifar_counterpart(
    8, (12, 9, 16, 20, 20, 24, 28), 10, bits=8
  )
  init = jax.jit(variables.init, static_argnums=(0, 2))
  net = init(module, _key(), (8, 8, 3))
  images = np.random.default_rng().integers(0, 256, (4, 8, 8, 3), np.uint8)
  x = module.encode(jnp.asarray(images))
  apply = jax.jit(lambda v, x: module.apply(v, x, train=False))
  program = jax.jit(crossbar.program, static_argnames="bits")
  chip = program(_key(), net, _IDEAL, bits=module.weight_bits)
  np.testing.assert_array_equal(apply(chip, x), apply(net, x))
  device = crossbar.Device(stuck_off=0.3)
  faulty = program(_key(), net, device, bits=module.weight_bits)
  assert (apply(faulty, x) != apply(net, x)).any()


@pytest.mark.parametrize("bits", [None, 0, 9])
def test_weights_that_no_cell_holds(bits):
  with pytest.raises(errors.InputError, match=f"got {bits}, allowed are 1 to"):
    crossbar.program(
      _key(), {"params": {"kernel": jnp.ones((3, 3))}}, _IDEAL, bits
    )
