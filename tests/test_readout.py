"""Tile-by-tile read-out: equal to the fold where ideal, and its converters."""

import functools

from flax import traverse_util
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
from hawis_jax import layers
from hawis_jax import montecarlo
from hawis_jax import resnet
from hawis_jax import robustness
from hawis_jax import variables as variables_lib
from hawis_jax.crossbar import converters
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import readout
from hawis_jax.crossbar import tiles

_WIDTHS = (12, 9, 16, 40, 20, 24, 28)
_program = jax.jit(crossbar.program, static_argnames="bits")


def _key():
  return jax.random.key(np.random.default_rng().integers(2**31))


def _layer(shape, device, bits=1, key=None):
  """(kernel, what a chip makes of it) of a net of one layer."""
  kernel = np.random.default_rng().normal(size=shape).astype(np.float32)
  params = {"layer": {"kernel": jnp.asarray(kernel)}}
  key = _key() if key is None else key
  chip = _program(key, {"params": params}, device, bits=bits)
  return params["layer"]["kernel"], chip


def _product(kernel, strides=1):
  if kernel.ndim == 2:
    return binary.multiply
  return functools.partial(
    binary.convolve, strides=strides, padding=kernel.shape[0] // 2
  )


def _bits(shape):
  rng = np.random.default_rng()
  return jnp.asarray(rng.integers(0, 2, shape), jnp.float32)


@settings(max_examples=8)
@given(
  st.sampled_from([1, 3, 7, 0]),
  st.integers(1, 40),
  st.integers(1, 20),
  st.sampled_from([(64, 64), (16, 8), (5, 3), (128, 32), (1, 1)]),
  st.sampled_from([1, 2]),
)
def test_reads_of_all_tiles_add_up_to_the_convolution(
  size, c_in, c_out, tile_shape, strides
):
  """For any kernel and tile, faults included: integers, so to the bit."""
  device = crossbar.Device(
    stuck_on=0.1, stuck_off=0.2, tile_shape=tile_shape, adc_bits=16
  )
  shape = (size, size, c_in, c_out) if size else (c_in, c_out)
  x = _bits((2, 9, 8, c_in) if size else (3, c_in))
  key = _key()
  kernel, chip = _layer(shape, device, key=key)
  layer = chip["crossbar"]["layer"]
  del layer["converter"]
  product = _product(kernel, strides)
  got = readout.read(product, x, layer)
  linear = crossbar.Device(stuck_on=0.1, stuck_off=0.2, tile_shape=tile_shape)
  folded = crossbar.effective_weights(
    jax.random.fold_in(key, 0), kernel, linear
  )
  np.testing.assert_array_equal(got, product(x, folded))
  assert np.unique(folded).size > 1 or kernel.size < 20
  # Every read is of one tile's rows: no more channels than they can span.
  taps = size**2 or 1
  assert layer["kernels"].shape[-2] <= min(
    c_in, (tile_shape[0] - 2) // taps + 2
  )


def _nets():
  binary_net = resnet.cifar_resnet(8, _WIDTHS, 10, levels=8)
  eight = counterparts.cifar_counterpart(8, _WIDTHS, 10, bits=8)
  return {1: binary_net, 8: eight}


@pytest.fixture(scope="module", params=[1, 8])
def net(request):
  """(module, variables, input) of a random net of 1- or 8-bit weights."""
  rng = np.random.default_rng()
  module = _nets()[request.param]
  init = jax.jit(variables_lib.init, static_argnums=(0, 2))
  variables = init(module, _key(), (8, 8, 3))
  images = jnp.asarray(rng.integers(0, 256, (12, 8, 8, 3)), jnp.uint8)
  if request.param == 8:
    variables = counterparts.quantize(module, variables, images[None])
  return module, variables, images


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, images):
  return module.apply(variables, module.encode(images), train=False)


def _logits(net, device, key=None):
  module, variables, images = net
  key = jax.random.key(5) if key is None else key
  chip = _program(key, variables, device, bits=module.weight_bits)
  chip = crossbar.for_images(chip, jnp.arange(len(images)))
  return np.asarray(_apply(module, chip, images))


@pytest.mark.parametrize(
  "effects",
  [
    {},
    dict(stuck_on=0.05, stuck_off=0.1),
    dict(wire_resistance=1.0, load_resistance=2.0, variation=0.2),
  ],
)
@pytest.mark.parametrize("tile_shape", [(64, 64), (24, 16)])
def test_ideal_converters_give_the_fold(net, effects, tile_shape):
  """Whole nets; of fault-only chips to the bit, else to rounding."""
  device = crossbar.Device(tile_shape=tile_shape, **effects)
  folded = _logits(net, device)
  module, variables, images = net
  converted = crossbar.Device(tile_shape=tile_shape, adc_bits=8, **effects)
  chip = _program(
    jax.random.key(5), variables, converted, bits=module.weight_bits
  )
  flat = traverse_util.flatten_dict(chip["crossbar"])
  flat = {path: x for path, x in flat.items() if path[-1] != "converter"}
  chip = {**chip, "crossbar": traverse_util.unflatten_dict(flat)}
  tiled = np.asarray(_apply(module, chip, images))
  if module.weight_bits == 1 and "wire_resistance" not in effects:
    np.testing.assert_array_equal(tiled, folded)
  else:  # a float that crosses a threshold moves a logit by a step
    assert np.median(abs(tiled - folded)) < 1e-3 * np.abs(folded).max()
  assert np.ptp(folded) > 0


@pytest.mark.parametrize("cell_bits", [0, 1, 2])
def test_bit_serial_inputs_and_sliced_weights_are_the_integer_product(
  cell_bits,
):
  """8-bit integers, plane by plane and slice by slice: exact."""
  rng = np.random.default_rng()
  device = crossbar.Device(cell_bits=cell_bits, adc_bits=16, tile_shape=(20, 7))
  kernel, chip = _layer((3, 3, 11, 9), device, bits=8)
  layer = chip["crossbar"]["layer"]
  assert layer["kernels"].shape[0] == {0: 1, 1: 7, 2: 4}[cell_bits] * 5
  del layer["converter"]
  x = jnp.asarray(rng.integers(-127, 128, (2, 6, 6, 11)), jnp.float32)
  q = np.round(kernel / (np.abs(kernel).max() / 127))
  expected = _product(kernel)(x, jnp.asarray(q))
  np.testing.assert_array_equal(
    readout.read(_product(kernel), x, layer), expected
  )
  analog = {k: v for k, v in layer.items() if k != "planes"}
  np.testing.assert_array_equal(
    readout.read(_product(kernel), x, analog), expected
  )


def test_sliced_cells_hold_the_digits_of_the_integers():
  """|q| = sum of digits times powers of the base; sign by polarity."""
  device = crossbar.Device(cell_bits=2)
  rng = np.random.default_rng()
  q = rng.integers(-127, 128, (50, 60))
  q.flat[0] = 127
  g_pos, g_neg = crossbar.conductances(
    _key(), jnp.asarray(q, jnp.float32), device, bits=8
  )
  assert g_pos.shape == (4, 1, 1, 64, 64)
  step = (device.g_on - device.g_off) / 3
  total = 0
  for place, pair in enumerate(zip(g_pos, g_neg, strict=True)):
    pos, neg = (np.asarray(g[0, 0, :50, :60], np.float64) for g in pair)
    digits = [(g - device.g_off) / step for g in (pos, neg)]
    np.testing.assert_allclose(digits, np.round(digits), atol=1e-4)
    assert (np.round(digits[0]) * np.round(digits[1]) == 0).all()
    total = total + 4**place * np.round(digits[0] - digits[1])
  np.testing.assert_array_equal(total, q)
  # Every slice has defects of its own; the first those of an unsliced cell.
  faulty = crossbar.Device(cell_bits=2, stuck_off=0.5)
  g = crossbar.conductances(jax.random.key(1), jnp.ones((64, 64)), faulty, 8)[0]
  dead = np.asarray(g[:, 0, 0]) == np.float32(device.g_off)
  whole = crossbar.Device(stuck_off=0.5)
  alone = crossbar.conductances(jax.random.key(1), jnp.ones((64, 64)), whole)[0]
  np.testing.assert_array_equal(
    dead[0], np.asarray(alone[0, 0]) == np.float32(device.g_off)
  )
  for other in dead[1:3]:
    table = [
      [(a & b).sum() for b in (other, ~other)] for a in (dead[0], ~dead[0])
    ]
    assert stats.chi2_contingency(table).pvalue > 1e-6


@given(st.integers(2, 9), st.floats(1, 200))
def test_converters_are_the_formula(bits, most):
  rng = np.random.default_rng()
  sums = rng.normal(0, most, 200).astype(np.float32)
  half = 2 ** (bits - 1)
  for make, step, low in (
    (converters.full_scale, most / half, -half),
    (converters.calibrated, max(most / (half - 1), 1), 1 - half),
  ):
    got = np.asarray(converters.convert(jnp.asarray(sums), make(bits, most)))
    codes = got / step
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert (np.round(codes) >= low).all() and (np.round(codes) < half).all()
    inside = (sums > low * step) & (sums < (half - 1) * step)
    assert (abs(got - sums)[inside] <= step * 0.5001).all()
    assert (got[sums > half * step] == got.max()).all()


def test_lossless_where_codes_cover_the_integers():
  """8 bits read 64 rows without loss; 7 bits all but the very end."""
  sums = jnp.arange(-64.0, 65.0)
  eight = converters.convert(sums, converters.full_scale(8, 64))
  np.testing.assert_array_equal(eight[:-1], sums[:-1])
  seven = converters.convert(sums, converters.full_scale(7, 64))
  np.testing.assert_array_equal(seven[:-1], sums[:-1])
  assert seven[-1] == 63
  np.testing.assert_array_equal(
    converters.convert(sums, converters.full_scale(0, 64)), sums
  )


def test_a_sense_amplifier_tells_the_sign():
  sums = jnp.array([-70.0, -3.0, -0.5, 0.5, 8.0, 90.0])
  got = converters.convert(sums, converters.full_scale(1, 64))
  np.testing.assert_array_equal(got, 32 * np.sign(sums))


def test_gradient_passes_where_codes_do_not_clip():
  converter = converters.full_scale(4, 8.0)
  slope = jax.vmap(jax.grad(lambda x: converters.convert(x, converter)))
  np.testing.assert_array_equal(
    slope(jnp.array([-20.0, -8.0, 0.3, 6.9, 7.2, 9.0])), [0, 1, 1, 1, 1, 0]
  )


def test_fewer_bits_lose_more(net):
  """Mean squared error of the logits falls with bits; to nothing at the end."""
  ideal = _logits(net, crossbar.Device(tile_shape=(32, 32)))
  lost = [
    np.square(
      _logits(net, crossbar.Device(tile_shape=(32, 32), adc_bits=b)) - ideal
    ).mean()
    for b in (4, 16)
  ]
  assert lost[1] < 0.1 * lost[0]


def test_calibrated_range_is_the_percentile_of_the_partial_sums(net):
  """Of the stem, whose input is the images', recomputed by NumPy."""
  module, variables, images = net
  device = crossbar.Device(tile_shape=(30, 64), adc_percentile=97.0)
  calibrated = robustness.calibrate_converters(
    module, variables, images, device
  )
  if module.weight_bits == 1:
    kernel = np.sign(np.asarray(variables["params"]["stem"]["kernel"]))
    x = np.asarray(module.encode(images), np.float64)
    matrix = np.asarray(tiles.kernel_to_matrix(jnp.asarray(kernel)))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.stack(
      [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], -1
    ).reshape(len(x), 64, -1)
    most = max(
      np.percentile(abs(patches[..., r : r + 30] @ matrix[r : r + 30]), 97)
      for r in range(0, len(matrix), 30)
    )
    got = calibrated["converters"]["stem"]["range"]
    np.testing.assert_allclose(got, most, rtol=1e-5)
  # A range that data need is finer than one that they might.
  ideal = _logits(net, device)
  lost = {}
  for kind in crossbar.devices.ADC_RANGES:
    coarse = crossbar.Device(
      tile_shape=(30, 64), adc_bits=5, adc_range=kind, adc_percentile=97.0
    )
    found = _logits((module, calibrated, images), coarse)
    lost[kind] = np.square(found - ideal).mean()
  if module.weight_bits == 8:  # full scale is far from what sums reach
    assert lost["calibrated"] < lost["full_scale"]


def test_bad_readouts_are_refused(net):
  module, variables, images = net
  calibrated = crossbar.Device(adc_bits=4, adc_range="calibrated")
  with pytest.raises(errors.InputError, match="head has no range"):
    crossbar.program(_key(), variables, calibrated, module.weight_bits)
  sense = crossbar.Device(adc_bits=1)
  refused = "has 108 rows" if module.weight_bits == 1 else "bit planes don't"
  with pytest.raises(errors.InputError, match=refused):
    crossbar.program(_key(), variables, sense, module.weight_bits)
  batches = robustness.Batches(
    images[None], jnp.zeros((1, 12), int), jnp.ones((1, 12), bool)
  )
  with pytest.raises(errors.InputError, match="a sense amplifier"):
    robustness.evaluate_chips(_key(), module, variables, batches, sense, 2)
  with pytest.raises(errors.InputError, match="allowed for 8-bit weights"):
    crossbar.check_readout({}, sense, bits=8)
  for device in (crossbar.Device(adc_bits=4), crossbar.Device(read_noise=1.0)):
    with pytest.raises(errors.InputError, match="no linear map"):
      crossbar.effective_weights(_key(), jnp.ones((3, 3)), device)


def test_read_noise_is_that_of_the_currents():
  """Variance of a column's sum: active rows' G df (4kT + 2qV), both arrays."""
  device = crossbar.Device(read_noise=300.0, bandwidth=1e8, read_voltage=0.2)
  kernel, chip = _layer((70, 30), device)
  x = _bits((1, 70))
  images = 4000
  noisy = crossbar.for_images(chip, jnp.arange(images))["crossbar"]["layer"]
  got = np.asarray(
    readout.read(binary.multiply, jnp.tile(x, (images, 1)), noisy), np.float64
  )
  ideal = np.asarray(x) @ np.sign(kernel)
  # A pair is one cell on, one off; shot noise is that of driven rows, thermal
  # noise that of all rows, those without weights included.
  k, q, volts = 1.380649e-23, 1.602176634e-19, 0.2
  pair = device.g_on + device.g_off
  rest = 2 * device.g_off * (128 - 70)
  variance = 4 * k * 300 * (70 * pair + rest) + 2 * q * volts * x.sum() * pair
  std = 300 * np.sqrt(float(variance) * 1e8) / volts
  std /= device.g_on - device.g_off
  z = (got - ideal) / std
  assert stats.kstest(z.ravel(), "norm").pvalue > 1e-6
  # New at every read, and independent between columns and images.
  assert abs(np.corrcoef(z.T)[np.triu_indices(30, 1)]).max() < 0.1
  assert abs(np.corrcoef(z[:-1, 0], z[1:, 0])[0, 1]) < 0.08


def test_undriven_rows_have_thermal_noise_alone():
  device = crossbar.Device(read_noise=1.0, read_voltage=0.1, adc_bits=16)
  kernel, chip = _layer((64, 64), device)
  images = 500
  chip = crossbar.for_images(chip, jnp.arange(images))["crossbar"]["layer"]
  del chip["converter"]
  got = readout.read(binary.multiply, jnp.zeros((images, 64)), chip)
  pairs = 64 * (device.g_on + device.g_off)
  std = np.sqrt(4 * 1.380649e-23 * 300 * pairs * device.bandwidth) / 0.1
  z = np.asarray(got, np.float64) * (device.g_on - device.g_off) / std
  assert stats.kstest(z.ravel(), "norm").pvalue > 1e-6


@pytest.mark.parametrize(
  "effects", [{}, dict(read_noise=1.0), dict(telegraph_noise=1.0)]
)
def test_both_ways_have_the_same_gradients(effects):
  """Of inputs and latent weights, also where all inputs are 0."""
  layer = layers.BinaryConv(8)
  x = _bits((2, 6, 6, 9)).at[0, :4, :4].set(0)
  params = layer.init(_key(), x, None, None)["params"]
  key = _key()

  @functools.partial(jax.jit, static_argnames="effects")
  @functools.partial(jax.grad, argnums=(0, 1))
  def slopes(params, x, effects):
    device = crossbar.Device(variation=0.3, **dict(effects))
    chip = crossbar.program(key, {"params": {"layer": params}}, device)
    chip = crossbar.for_images(chip, jnp.arange(2))["crossbar"]["layer"]
    variables = {"params": params, "crossbar": chip}
    return jnp.sin(layer.apply(variables, x, None, None)).sum()

  fold = slopes(params, x, ())
  tiled = slopes(params, x, tuple({"adc_bits": 16, **effects}.items()))
  for one, other in zip(
    jax.tree.leaves(fold), jax.tree.leaves(tiled), strict=True
  ):
    assert np.isfinite(other).all() and np.abs(one).max() > 0
    np.testing.assert_allclose(other, one, atol=0.02 * np.abs(one).max())


def test_bit_serial_inputs_have_the_gradient_of_the_product():
  device = crossbar.Device(adc_bits=16)
  kernel, chip = _layer((30, 7), device, bits=8)
  chip = chip["crossbar"]["layer"]
  x = jnp.asarray(np.random.default_rng().integers(-127, 128, (5, 30)), float)
  slope = jax.grad(lambda x: readout.read(binary.multiply, x, chip).sum())(x)
  q = np.round(kernel / (np.abs(kernel).max() / 127))
  np.testing.assert_allclose(slope, np.tile(q.sum(1), (5, 1)), rtol=1e-4)


def test_telegraph_noise_is_that_of_cells_that_switch():
  """Against cells that are drawn one by one."""
  rng = np.random.default_rng()
  device = crossbar.Device(
    telegraph_noise=40.0, variation=0.5, tile_shape=(128, 8)
  )
  key = _key()
  kernel, chip = _layer((100, 8), device, key=key)
  images = 3000
  x = jnp.tile(_bits((1, 100)), (images, 1))
  noisy = crossbar.for_images(chip, jnp.arange(images))["crossbar"]["layer"]
  got = np.asarray(readout.read(binary.multiply, x, noisy))
  still = crossbar.Device(variation=0.5, tile_shape=(128, 8))
  pair = crossbar.conductances(jax.random.fold_in(key, 0), kernel, still)
  drawn = np.zeros((images, 8))
  for sign, g in zip((1, -1), pair, strict=True):
    g = np.asarray(g[0, 0, :100], np.float64)
    a, b = device.telegraph
    step = np.where(g > 2 * a, g * (b * g + a) / (g - b * g - a), 0)
    np.testing.assert_allclose(
      defects.telegraph_step(jnp.asarray(g, jnp.float32), device),
      step,
      rtol=1e-4,
    )
    states = rng.random((images, 100, 8)) < 0.5
    noisy_g = g + 40 * step * states
    drawn += sign * np.einsum("ir,irc->ic", np.asarray(x), noisy_g)
  drawn /= device.g_on - device.g_off
  for column in range(8):
    assert stats.ks_2samp(got[:, column], drawn[:, column]).pvalue > 1e-6
  assert got.std(0).min() > 0.01


@pytest.mark.parametrize(
  "net", [1, pytest.param(8, marks=pytest.mark.slow)], indirect=True
)
def test_noise_follows_the_image_and_the_chip_not_the_batch(net):
  module, variables, images = net
  device = crossbar.Device(read_noise=20.0, read_voltage=0.05, variation=0.1)
  whole = _logits(net, device)
  chip = _program(jax.random.key(5), variables, device, bits=module.weight_bits)
  for start, end in ((0, 6), (6, 12)):
    part = crossbar.for_images(chip, jnp.arange(start, end))
    np.testing.assert_allclose(
      _apply(module, part, images[start:end]), whole[start:end], atol=1e-4
    )
  # Another number of the same image is another read.
  again = crossbar.for_images(chip, jnp.arange(100, 112))
  assert (np.asarray(_apply(module, again, images)) != whole).any()
  if module.weight_bits == 8:
    return  # the same scoring
  labels = jnp.asarray(np.random.default_rng().integers(0, 10, 12))

  def evaluate(batch, **kwargs):
    batches = robustness.Batches(
      images.reshape(-1, batch, 8, 8, 3),
      labels.reshape(-1, batch),
      jnp.ones((12 // batch, batch), bool),
    )
    return robustness.evaluate_chips(
      jax.random.key(3), module, variables, batches, device, 3, **kwargs
    )

  # Nor do chips follow each other, where several are read at once.
  several = montecarlo.Limits(chips=3)
  np.testing.assert_array_equal(evaluate(12), evaluate(4, limits=several))


def test_memory_holds_one_tile_at_a_time():
  """Temporary memory does not grow with the number of row tiles."""

  def temporary(c_in):
    device = crossbar.Device(adc_bits=6)
    kernel, chip = _layer((3, 3, c_in, 64), device)
    layer = chip["crossbar"]["layer"]
    x = jnp.zeros((8, 32, 32, c_in))
    compiled = (
      jax.jit(functools.partial(readout.read, _product(kernel)))
      .lower(x, layer)
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  partial_sums = 8 * 32 * 32 * 64 * 4
  assert temporary(128) < temporary(32) + partial_sums
