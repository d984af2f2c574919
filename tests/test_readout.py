"""Tile-by-tile read-out: equal to the fold where ideal, and its converters."""

import dataclasses
import functools
import itertools

from hypothesis import example
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
from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import converters
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import mapping
from hawis_jax.crossbar import readout
from hawis_jax.networks import layers
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet
from hawis_jax.robustness import calibration
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo

# An array: in the program, though a converter of 0 bits is ideal.
_NO_BITS = np.float32(0)
_BOLTZMANN, _CHARGE = 1.380649e-23, 1.602176634e-19

_convert = jax.jit(converters.convert)
_conductances = jax.jit(crossbar.conductances, static_argnames="bits")
_program = jax.jit(
  functools.partial(crossbar.program, scales="channel"), static_argnames="bits"
)


def _key(rng):
  return jax.random.key(rng.integers(2**31))


def _kernel(rng, shape):
  return rng.normal(size=shape).astype(np.float32)


def _bits(rng, shape):
  return rng.integers(0, 2, shape).astype(np.float32)


def _product(kernel, strides=1):
  if kernel.ndim == 2:
    return binary.multiply
  return functools.partial(
    binary.convolve, strides=strides, padding=kernel.shape[0] // 2
  )


def _chip(key, kernel, device, bits=1):
  """What a chip makes of a net of one layer."""
  params = {"layer": {"kernel": kernel}}
  net = {"params": params}
  return crossbar.program(key, net, device, bits, scales="channel")


@functools.partial(jax.jit, static_argnames=("bits", "strides"))
def _read(key, kernel, x, device, bits=1, strides=1):
  """The output of a layer, of images 0, 1, ..."""
  chip = _chip(key, kernel, device, bits)
  chip = crossbar.for_images(chip, jnp.arange(len(x)))
  return readout.read(_product(kernel, strides), x, chip["crossbar"]["layer"])


def _are_normal(z):
  return stats.kstest(np.ravel(z), "norm").pvalue > 1e-6


@settings(max_examples=5)
@given(
  st.integers(0, 2**31),
  st.sampled_from([1, 3, 7, 0]),
  st.integers(1, 40),
  st.integers(1, 20),
  st.sampled_from([(64, 64), (16, 8), (5, 3), (128, 32), (1, 1)]),
  st.sampled_from([1, 2]),
)
def test_reads_of_all_tiles_add_up_to_the_convolution(
  seed, size, c_in, c_out, tile_shape, strides
):
  """For any kernel and tile, faults included: integers, so to the bit."""
  rng = np.random.default_rng(seed)
  kernel = _kernel(rng, (size, size, c_in, c_out) if size else (c_in, c_out))
  x = _bits(rng, (2, 9, 8, c_in) if size else (3, c_in))
  device = crossbar.Device(
    stuck_on=0.1, stuck_off=0.2, tile_shape=tile_shape, adc_bits=_NO_BITS
  )
  linear = dataclasses.replace(device, adc_bits=0)

  @jax.jit
  def both_ways(key, kernel, x):
    layer = _chip(key, kernel, device)["crossbar"]["layer"]
    product = _product(kernel, strides)
    layer_key = jax.random.fold_in(key, 0)
    folded = crossbar.effective_weights(layer_key, kernel, linear)
    # Every read is of one tile's rows: no more channels than they can span.
    most = (tile_shape[0] - 2) // (size**2 or 1) + 2
    assert layer["kernels"].shape[-2] <= min(c_in, most)
    return readout.read(product, x, layer), product(x, folded), folded

  got, expected, folded = jax.device_get(both_ways(_key(rng), kernel, x))
  np.testing.assert_array_equal(got, expected)
  assert np.unique(folded).size > 1 or kernel.size < 20


@pytest.mark.parametrize("cell_bits", [0, 1, 2])
@pytest.mark.exact
def test_bit_serial_inputs_and_sliced_weights_are_the_integer_product(
  rng, cell_bits
):
  """8-bit integers, plane by plane and slice by slice: exact."""
  device = crossbar.Device(
    cell_bits=cell_bits, adc_bits=_NO_BITS, tile_shape=(20, 7)
  )
  kernel = _kernel(rng, (3, 3, 11, 9))

  @jax.jit
  def all_ways(key, kernel, q, x):
    layer = _chip(key, kernel, device, bits=8)["crossbar"]["layer"]
    assert layer["kernels"].shape[0] == {0: 1, 1: 7, 2: 4}[cell_bits] * 5
    analog = {k: v for k, v in layer.items() if k != "planes"}
    product = _product(kernel)
    ways = (readout.read(product, x, way) for way in (layer, analog))
    return product(x, q), *ways

  q = np.round(kernel / (np.abs(kernel).max((0, 1, 2)) / 127))
  x = rng.integers(-127, 128, (2, 6, 6, 11)).astype(np.float32)
  expected, serial, analog = all_ways(_key(rng), kernel, q, x)
  np.testing.assert_array_equal(serial, expected)
  np.testing.assert_array_equal(analog, expected)


def test_sliced_cells_hold_the_digits_of_the_integers(rng):
  """|q| = sum of digits times powers of the base; sign by polarity."""
  device = crossbar.Device(cell_bits=2, stuck_off=np.float32(0))
  q = rng.integers(-127, 128, (50, 60)).astype(np.float32)
  q[0] = 127
  pair = _conductances(_key(rng), q, device, bits=8)
  pair = np.stack(pair).astype(np.float64)
  assert pair.shape == (2, 4, 1, 1, 64, 64)
  digits = pair[:, :, 0, 0, :50, :60] - device.g_off
  digits *= 3 / (device.g_on - device.g_off)
  np.testing.assert_allclose(digits, np.round(digits), atol=1e-4)
  positive, negative = np.round(digits)
  assert (positive * negative == 0).all()
  place = 4.0 ** np.arange(4)
  total = np.einsum("s,sij->ij", place, positive - negative)
  np.testing.assert_array_equal(total, q)
  # Every slice has defects of its own; the first those of an unsliced cell.
  key, ones = _key(rng), np.ones((50, 60), np.float32)
  faulty = dataclasses.replace(device, stuck_off=np.float32(0.5))
  whole = dataclasses.replace(faulty, cell_bits=0)
  sliced, alone = (
    np.asarray(_conductances(key, ones, d, bits=8)[0])[..., :50, :60]
    == np.float32(device.g_off)
    for d in (faulty, whole)
  )
  np.testing.assert_array_equal(sliced[0], alone)
  for a, b in itertools.combinations(sliced, 2):
    table = [[(x & y).sum() for y in (b, ~b)] for x in (a, ~a)]
    assert stats.chi2_contingency(table).pvalue > 1e-6


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 200))
def test_converters_are_the_formula(seed, bits, most):
  """At most 2^b values, an LSB apart, and the nearest of them."""
  rng = np.random.default_rng(seed)
  sums = rng.normal(0, most, 200).astype(np.float32)
  half = 2 ** (bits - 1)
  lsb = 1 if 2**bits > 2 * most else 2 * most / (2**bits - 2)
  for converter, step, low, high in (
    (converters.symmetric(bits, most), lsb, 1 - half, half - 1),
    (converters.granular(bits), 1, -half, half - 1),
  ):
    values = np.arange(low, high + 1) * step
    assert len(values) <= 2**bits
    got = np.asarray(_convert(sums, converter), np.float64)
    nearest = np.abs(sums[:, None] - values).min(1)
    np.testing.assert_allclose(abs(got - sums), nearest, atol=1e-4 * most)
    distance = np.abs(got[:, None] - values).min(1)
    np.testing.assert_allclose(distance, 0, atol=1e-4 * most)


@given(st.sampled_from([0, *range(2, 17)]), st.integers(1, 1500))
@example(8, 64)
@example(8, 100)
@example(7, 64)
@example(4, 15)
@example(2, 5)
def test_ranges_of_all_rows_are_exact_or_within_half_an_lsb(bits, most):
  """Of all whole sums: from end to end, monotone, and odd: 0 at 0."""
  sums = np.arange(-1500, 1501).astype(np.float32)  # of any `most`: one shape
  got = np.asarray(_convert(sums, converters.symmetric(bits, most)))
  sums, got = (x[1500 - most : 1501 + most] for x in (sums, got))
  if bits == 0 or 2**bits >= 2 * most + 1:
    np.testing.assert_array_equal(got, sums)
    return
  step = 2 * most / (2**bits - 2)
  assert (abs(got - sums) <= step / 2 + 1e-6 * most).all()
  np.testing.assert_allclose(got[[0, -1]], sums[[0, -1]], rtol=1e-6)
  assert (np.diff(got) >= 0).all()
  np.testing.assert_array_equal(got, -got[::-1])
  assert len(np.unique(got)) <= 2**bits - 1


def test_converters_of_8_bit_nets_have_no_bias(rng):
  """Bit planes' sums are mostly 0, that of the sign plane always."""
  device = crossbar.Device(adc_bits=8)
  kernel = _kernel(rng, (256, 64))
  x = rng.integers(0, 128, (50, 256)).astype(np.float32)  # after a ReLU
  q = np.round(kernel / (np.abs(kernel).max(0) / 127))
  error = _read(_key(rng), kernel, x, device, bits=8) - x @ q
  # 4 tiles of 8 planes of 8-bit values, an LSB of 64: 4 * 21845 * 64^2 / 12.
  # Columns share no weights: of 3200 errors the mean is within 5 sigma.
  variance = 4 * (4**8 - 1) / 3 * 64**2 / 12
  assert error.var() < 1.5 * variance
  assert abs(error.mean()) < 5 * np.sqrt(variance / error.size)


def test_granular_saturates_at_its_codes():
  sums = np.arange(-200, 201).astype(np.float32)
  got = _convert(sums, converters.granular(8))
  np.testing.assert_array_equal(got, np.clip(sums, -128, 127))


def test_sense_amplifiers_compare_with_a_threshold_a_column(rng):
  sums = rng.normal(0, 20, (50, 3)).astype(np.float32)
  threshold = np.float32([-7.5, 0.5, 30.5])
  converter = converters.sense_amplifier(64, threshold)
  expected = np.where(sums > threshold, 64, -64)
  np.testing.assert_array_equal(_convert(sums, converter), expected)


def test_ideal_cells_of_isaac_lose_nothing(rng):
  """8-bit weights in 576 rows, which a range of all rows reads badly."""
  device = crossbar.PRESETS["isaac"]
  kernel = _kernel(rng, (576, 16))
  x = rng.integers(-127, 128, (4, 576)).astype(np.float32)
  q = np.round(kernel / (np.abs(kernel).max(0) / 127))
  got = _read(_key(rng), kernel, x, device, bits=8)
  np.testing.assert_array_equal(got, x @ q)
  full = dataclasses.replace(device, adc_range="full_scale")
  lossy = _read(_key(rng), kernel, x, full, bits=8)
  assert np.std(lossy - x @ q) > 0.1 * np.std(x @ q)


def test_gradient_passes_where_codes_do_not_clip():
  converter = converters.symmetric(4, 8.0)
  slope = jax.jit(jax.grad(lambda x: _convert(x, converter).sum()))
  sums = np.float32([-20.0, -8.0, 0.3, 6.9, 7.2, 9.0])
  np.testing.assert_array_equal(slope(sums), [0, 1, 1, 1, 1, 0])


@pytest.fixture(scope="module", params=[1, 8])
def net(request):
  """(module, variables, input) of a random net of 1- or 8-bit weights."""
  rng = np.random.default_rng(request.param)
  widths, module = (6, 5, 6, 8, 10, 12, 12), None
  if request.param == 1:
    module = resnet.cifar_resnet(8, widths, 10, levels=8)
  else:
    module = reference_resnet.cifar_reference(8, widths, 10, bits=8)
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  variables = init(module, _key(rng), (8, 8, 3))
  images = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
  if request.param == 8:
    quantize = jax.jit(reference_resnet.quantize, static_argnums=0)
    variables = quantize(module, variables, images[None])
  return module, jax.device_get(variables), images


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, images):
  return module.apply(variables, module.encode(images), train=False)


def _logits(net, device, variables=None):
  module, its_own, images = net
  variables = its_own if variables is None else variables
  key, bits = jax.random.key(5), module.weight_bits
  chip = _program(key, variables, device, bits=bits)
  return np.asarray(_apply(module, chip, images))


@pytest.mark.parametrize(
  "net", [1, pytest.param(8, marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.exact
def test_fewer_bits_lose_more_down_to_the_fold(net):
  """Ideal converters: fault-only chips to the bit, others to rounding."""
  module, *_ = net
  for effects in (
    dict(stuck_on=0.05, stuck_off=0.1),
    dict(wire_resistance=1.0, load_resistance=2.0, variation=0.2),
  ):
    linear = crossbar.Device(tile_shape=(24, 8), **effects)
    folded = _logits(net, linear)
    assert np.ptp(folded) > 0
    tiled, three, sixteen = (
      _logits(net, dataclasses.replace(linear, adc_bits=np.float32(bits)))
      for bits in (0, 3, 16)
    )
    if module.weight_bits == 1 and "wire_resistance" not in effects:
      np.testing.assert_array_equal(tiled, folded)
    else:  # a float that crosses a threshold moves a logit by a step
      assert np.median(abs(tiled - folded)) < 1e-3 * np.abs(folded).max()
    errors_of = [np.square(x - tiled).mean() for x in (three, sixteen)]
    # Of wired sums, which are not whole, 16 bits of one unit lose some too.
    assert errors_of[1] < 0.5 * errors_of[0]


def test_calibrated_range_is_the_percentile_of_the_partial_sums(net):
  """Of the stem, whose input is the images', recomputed by NumPy."""
  module, variables, images = net
  device = crossbar.Device(tile_shape=(30, 64), adc_percentile=97.0)
  calibrated = calibration.calibrate_converters(
    module, variables, images, device
  )
  if module.weight_bits == 1:
    kernel = np.sign(variables["params"]["stem"]["kernel"])
    encode = jax.jit(module.encode)
    x = np.asarray(encode(images), np.float64)
    matrix = np.moveaxis(kernel, -2, 0).reshape(-1, kernel.shape[-1])
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
    return
  # A range that data need is finer than one that they might: full scale is far
  # from what sums of 8-bit weights reach.
  coarse = dataclasses.replace(device, adc_bits=np.float32(5))
  ideal = dataclasses.replace(device, adc_bits=_NO_BITS)
  finer = dataclasses.replace(coarse, adc_range="calibrated")
  ideal, coarse, finer = (
    _logits(net, x, calibrated) for x in (ideal, coarse, finer)
  )
  assert np.square(finer - ideal).mean() < np.square(coarse - ideal).mean()


_FOLDED = ("*/conv1",)  # layers whose sums are only normalised and binarised


@pytest.mark.parametrize("net", [1], indirect=True)
def test_ideal_sense_amplifiers_change_no_bit(net, rng):
  """Whatever the signs of normalisations, and where a sum is at a tie."""
  module, variables, images = net
  params = dict(variables["params"])
  stats = dict(variables["batch_stats"])
  device = crossbar.Device(tile_shape=(128, 16), adc_bits=1)
  for block in [name for name in params if "block" in name]:
    size = params[block]["bn1"]["scale"].shape
    scale, bias = rng.normal(size=(2, *size)).astype(np.float32)
    mean = rng.normal(0, 0.3, size).astype(np.float32)
    scale[0], bias[0], mean[0] = -1, 0.5, 0  # a sum of 0 is at the threshold
    scale[1], bias[1] = 0, 1  # always 1
    bn1 = {"scale": scale, "bias": bias}
    params[block] = {**params[block], "bn1": bn1}
    bn1 = {**stats[block]["bn1"], "mean": mean}
    stats[block] = {**stats[block], "bn1": bn1}
  variables = {**variables, "params": params, "batch_stats": stats}
  expected = np.asarray(_apply(module, variables, images))

  @jax.jit
  def program(net):
    return crossbar.program(jax.random.key(0), net, device, layers=_FOLDED)

  def logits(net):
    return np.asarray(_apply(module, program(net), images))

  folded = calibration.calibrate_converters(module, variables, None, device)
  np.testing.assert_array_equal(logits(folded), expected)
  # They are what stands in `converters`: not signs.
  signs = jax.tree.map(np.zeros_like, folded["converters"])
  assert (logits({**folded, "converters": signs}) != expected).any()
  for message, refused in (
    ("calibration: got images with ad", {"calibration": images[None]}),
    ("compensated: got True with ad", {"compensated": True}),
  ):
    with pytest.raises(errors.InputError, match=message):
      evaluation.evaluate_chips(
        *(jax.random.key(0), module, folded, images, np.zeros(12, int), device),
        layers=_FOLDED,
        **refused,
      )


def test_a_threshold_folds_scale_normalisation_and_rprelu(rng):
  """Whole sums' bits by NumPy; a PReLU that falls has no one threshold."""
  options = layers.Options(channel_scale=True, rprelu=True)
  module = resnet.cifar_resnet(8, (2,) * 7, 10, options=options)
  vectors = rng.normal(size=(7, 2)).astype(np.float32)
  mean, var, scale, bias, shift, slope, offset = vectors
  scale = np.float32([1, -0.5])
  kernel = _kernel(rng, (3, 3, 2, 2))
  var, slope = abs(var), abs(slope)
  device = crossbar.Device(tile_shape=(20, 4), adc_bits=1)

  def calibrated(slope):
    activation = {"shift": shift, "slope": slope, "offset": offset}
    block = {
      "conv1": {"kernel": kernel},
      "bn1": {"scale": scale, "bias": bias},
      "act1": activation,
    }
    stats = {"block": {"bn1": {"mean": mean, "var": var}}}
    net = {"params": {"block": block}, "batch_stats": stats}
    return calibration.calibrate_converters(module, net, None, device)

  found = calibrated(slope)["converters"]["block"]["conv1"]["threshold"]
  sums = np.arange(-20, 21)[:, None]
  y = sums * abs(kernel).mean((0, 1, 2))
  y = (y - mean) / np.sqrt(var + 1e-5) * scale + bias - shift
  bits = np.where(y > 0, y, slope * y) + offset > 0.5
  # Sums on the same side of the threshold have the same bit.
  for column in range(2):
    above = sums[:, 0] > found[column]
    assert len(np.unique(bits[above, column])) <= 1
    assert len(np.unique(bits[~above, column])) <= 1
  assert (bits.min(0) != bits.max(0)).any()
  offset = np.zeros(2, np.float32)
  with pytest.raises(errors.InputError, match="block/conv1 an RPReLU has a sl"):
    calibrated(np.float32([0.25, -1]))


def test_bad_readouts_are_refused(net):
  module, variables, images = net

  def program(device):
    jax.eval_shape(
      lambda: crossbar.program(
        *(jax.random.key(0), variables, device, module.weight_bits),
        scales="channel",
      )
    )

  calibrated = crossbar.Device(adc_bits=4, adc_range="calibrated")
  with pytest.raises(errors.InputError, match="head has no range"):
    program(calibrated)
  sense = crossbar.Device(adc_bits=1)
  refused = "head has no thresh" if module.weight_bits == 1 else "bit planes"
  with pytest.raises(errors.InputError, match=refused):
    program(sense)
  labels = np.zeros(12, int)
  with pytest.raises(errors.InputError, match="a sense amplifier"):
    evaluation.evaluate_chips(
      jax.random.key(0), module, variables, images, labels, sense, 2
    )
  with pytest.raises(errors.InputError, match="allowed for 8-bit weights"):
    crossbar.check_readout({"params": {}}, sense, bits=8)
  kernel = np.zeros((65, 2))
  with pytest.raises(errors.InputError, match="layer x has 65 rows; allowed"):
    crossbar.check_readout({"params": {"x": {"kernel": kernel}}}, sense)
  for device in (crossbar.Device(adc_bits=4), crossbar.Device(read_noise=1.0)):
    with pytest.raises(errors.InputError, match="no linear map"):
      crossbar.effective_weights(
        jax.random.key(0), np.ones((3, 3), np.float32), device
      )


def test_read_noise_is_that_of_the_currents(rng):
  """Variance of a column's sum: G df times that of its row, both arrays."""
  device = crossbar.Device(read_noise=300.0, bandwidth=1e8, read_voltage=0.2)
  kernel, x, images = _kernel(rng, (70, 30)), _bits(rng, (1, 70)), 4000
  got = _read(_key(rng), kernel, np.tile(x, (images, 1)), device)
  # A pair is one cell on, one off; rows without weights have no driver.
  pair, driven = device.g_on + device.g_off, float(x.sum())
  coth = 1 / np.tanh(_CHARGE * 0.2 / (2 * _BOLTZMANN * 300))
  variance = pair * 4 * _BOLTZMANN * 300 * (70 - driven)
  variance += pair * 2 * _CHARGE * 0.2 * coth * driven
  std = 300 * np.sqrt(variance * 1e8) / 0.2 / (device.g_on - device.g_off)
  z = (np.asarray(got, np.float64) - x @ np.sign(kernel)) / std
  assert _are_normal(z)
  # New at every read, and independent between columns and images.
  assert abs(np.corrcoef(z.T)[np.triu_indices(30, 1)]).max() < 0.1
  assert abs(np.corrcoef(z[:-1, 0], z[1:, 0])[0, 1]) < 0.08


def test_undriven_rows_have_thermal_noise_alone(rng):
  device = crossbar.Device(read_noise=1.0, read_voltage=0.1, adc_bits=_NO_BITS)
  x = np.zeros((500, 64), np.float32)
  got = _read(_key(rng), _kernel(rng, (64, 64)), x, device)
  pairs = 64 * (device.g_on + device.g_off)
  std = np.sqrt(4 * _BOLTZMANN * 300 * pairs * device.bandwidth) / 0.1
  z = np.asarray(got, np.float64) * (device.g_on - device.g_off) / std
  assert _are_normal(z)


@pytest.mark.parametrize(
  "effects", [dict(read_noise=4e3), dict(read_noise=4e3, adc_bits=4)]
)
def test_masked_channels_are_not_there(rng, effects):
  """Masked == sliced: absent rows, and tiles, of a wide net are silent."""
  fields = dict(g_off=50e-6, read_voltage=0.1, tile_shape=(24, 8))
  device = crossbar.Device(**fields, **effects)
  key, kernel = _key(rng), _kernel(rng, (3, 3, 20, 8))
  x = np.zeros((4, 5, 5, 20), np.float32)
  x[..., :4] = _bits(rng, (4, 5, 5, 4))

  @jax.jit
  def read(kernel, x, mask):
    chip = crossbar.for_images(_chip(key, kernel, device), jnp.arange(4))
    net = {"params": {"kernel": kernel}, "crossbar": chip["crossbar"]["layer"]}
    return layers.BinaryConv(8).apply(net, x, mask, None)

  sliced = np.asarray(read(kernel[:, :, :4], x[..., :4], None))
  masked = np.asarray(read(kernel, x, np.arange(20) < 4))
  assert sliced.std() > 5  # without noise 2.8
  np.testing.assert_allclose(masked, sliced, rtol=1e-4, atol=1e-4)


def test_both_ways_have_the_same_gradients(rng):
  """Of inputs and latent weights, also where all inputs are 0."""
  layer = layers.BinaryConv(8)
  x = _bits(rng, (2, 6, 6, 9))
  x[0, :4, :4] = 0
  key = _key(rng)
  params = jax.jit(layer.init)(key, x, None, None)["params"]

  @functools.partial(jax.jit, static_argnames="effects")
  @functools.partial(jax.grad, argnums=(0, 1))
  def slopes(params, x, effects):
    # Whole sums, which converters of an LSB of one unit read exactly.
    device = crossbar.Device(stuck_off=0.2, **dict(effects))
    chip = crossbar.program(key, {"params": {"layer": params}}, device)
    chip = crossbar.for_images(chip, jnp.arange(2))["crossbar"]["layer"]
    variables = {"params": params, "crossbar": chip}
    return jnp.sin(layer.apply(variables, x, None, None)).sum()

  fold = jax.device_get(slopes(params, x, ()))
  converter = ("adc_bits", 16)
  for effects in (
    (converter,),
    (converter, ("read_noise", 1.0)),
    (converter, ("telegraph_noise", 1.0)),
  ):
    tiled = jax.device_get(slopes(params, x, effects))
    for one, other in zip(
      jax.tree.leaves(fold), jax.tree.leaves(tiled), strict=True
    ):
      assert np.isfinite(other).all() and np.abs(one).max() > 0
      np.testing.assert_allclose(other, one, atol=0.02 * np.abs(one).max())


def test_bit_serial_inputs_have_the_gradient_of_the_product(rng):
  device = crossbar.Device(adc_bits=16)
  kernel, key = _kernel(rng, (30, 7)), _key(rng)
  x = rng.integers(-127, 128, (5, 30)).astype(np.float32)
  slope = jax.jit(
    jax.grad(lambda x: _read(key, kernel, x, device, bits=8).sum())
  )
  q = np.round(kernel / (np.abs(kernel).max(0) / 127))
  np.testing.assert_allclose(slope(x), np.tile(q.sum(1), (5, 1)), rtol=1e-4)


def test_telegraph_noise_is_that_of_cells_that_switch(rng):
  """Against cells that are drawn one by one."""
  still = crossbar.Device(variation=0.5, tile_shape=(128, 8))
  device = dataclasses.replace(still, telegraph_noise=40.0)
  key, kernel, images = _key(rng), _kernel(rng, (100, 8)), 3000
  x = np.tile(_bits(rng, (1, 100)), (images, 1))
  got = np.asarray(_read(key, kernel, x, device))

  @jax.jit
  def cells(key):
    g = crossbar.conductances(jax.random.fold_in(key, 0), kernel, still)
    return g, tuple(defects.telegraph_step(x, device) for x in g)

  drawn = np.zeros((images, 8))
  for sign, *pair in zip((1, -1), *jax.device_get(cells(key)), strict=True):
    g, found = (np.asarray(x[0, 0, :100], np.float64) for x in pair)
    a, b = device.telegraph
    step = np.where(g > 2 * a, g * (b * g + a) / (g - b * g - a), 0)
    np.testing.assert_allclose(found, step, rtol=1e-4)
    states = rng.random((images, 100, 8)) < 0.5
    drawn += sign * np.einsum("ir,irc->ic", x, g + 40 * step * states)
  drawn /= device.g_on - device.g_off
  for column in range(8):
    assert stats.ks_2samp(got[:, column], drawn[:, column]).pvalue > 1e-6
  assert got.std(0).min() > 0.01


_BUILT = dict(adc_offset=0.8, adc_gain=0.1)


@pytest.mark.slow
def test_converters_as_built_read_by_formula(rng):
  """Each column of each tile has an offset and a gain; every image the same."""
  device = crossbar.Device(
    stuck_off=0.2, tile_shape=(16, 8), adc_bits=4, **_BUILT
  )
  key, kernel, x = _key(rng), _kernel(rng, (70, 30)), _bits(rng, (40, 70))
  layer = jax.jit(_chip)(key, kernel, device)["crossbar"]["layer"]
  offsets, gains = (np.asarray(layer[n]) for n in ("offsets", "gains"))
  assert offsets.shape == gains.shape == (5, 30)
  silent = dict.fromkeys(("adc_bits", *crossbar.CONVERTER_ERRORS), 0)
  linear = dataclasses.replace(device, **silent)
  layer_key = jax.random.fold_in(key, 0)
  weights = np.asarray(crossbar.effective_weights(layer_key, kernel, linear))
  expected, step = 0.0, 16 / 7  # 15 values from -16 to 16
  for tile in range(5):
    rows = slice(16 * tile, 16 * tile + 16)
    sums = x[:, rows] @ weights[rows]
    seen = sums * (1 + gains[tile]) + offsets[tile]
    expected = expected + step * np.clip(np.round(seen / step), -7, 7)
  got = np.asarray(_read(key, kernel, x, device))
  # A sum at a tie of codes may round to either side.
  assert (abs(got - expected) > 1e-4).mean() < 1e-3
  plain = np.asarray(
    _read(
      key,
      kernel,
      x,
      dataclasses.replace(
        device, **{name: 0.0 for name in crossbar.CONVERTER_ERRORS}
      ),
    )
  )
  assert (abs(got - plain) > 1).mean() > 0.3
  # Beside others, an ideal converter has no errors.
  ideal = dataclasses.replace(device, adc_bits=_NO_BITS, adc_noise=2.0)
  np.testing.assert_allclose(
    _read(key, kernel, x, ideal), x @ weights, atol=1e-4
  )


@pytest.mark.parametrize("bits", [1, 8])
def test_conversions_that_clip_are_counted(rng, bits):
  """Of every image, in all tiles and bit planes; and sums are the same."""
  device = crossbar.Device(
    tile_shape=(16, 8), adc_bits=3, adc_range="granular", adc_gain=0.1
  )
  key, kernel = _key(rng), _kernel(rng, (40, 12))
  x = rng.integers(0, 2 ** (bits - 1) + (bits == 1), (6, 40))
  x = x.astype(np.float32)

  @jax.jit
  def both(key, kernel, x):
    layer = _chip(key, kernel, device, bits)["crossbar"]["layer"]
    read = functools.partial(readout.read, _product(kernel), x, layer)
    return read(), *read(counted=True), layer["gains"]

  plain, sums, counts, gains = jax.device_get(both(key, kernel, x))
  np.testing.assert_array_equal(sums, plain)
  weights = np.sign(kernel)
  if bits == 8:
    weights = np.round(kernel / (np.abs(kernel).max(0) / 127))
  expected = np.zeros(6, int)
  for plane, tile in np.ndindex(bits, 3):
    rows = slice(16 * tile, 16 * tile + 16)
    driven = x.astype(int)[:, rows] >> plane & 1
    seen = driven @ weights[rows] * (1 + gains[tile])
    expected += ((np.round(seen) > 3) | (np.round(seen) < -4)).sum(1)
  np.testing.assert_array_equal(counts[:, 0], expected)
  np.testing.assert_array_equal(counts[:, 1], 3 * bits * 12)
  assert 0 < expected.min() and expected.max() < 3 * bits * 12


@pytest.mark.slow
def test_errors_of_converters_are_normal_and_each_ones_own(rng):
  device = crossbar.Device(tile_shape=(16, 8), adc_bits=6, **_BUILT)
  kernel = _kernel(rng, (40, 20))

  @jax.jit
  @jax.vmap
  def chips(key):
    layer = _chip(key, kernel, device)["crossbar"]["layer"]
    return layer["offsets"], layer["gains"]

  offsets, gains = map(np.asarray, chips(jax.random.split(_key(rng), 200)))
  assert offsets.shape == (200, 3, 20)
  assert _are_normal(offsets / 0.8) and _are_normal(gains / 0.1)
  table = np.concatenate([offsets, gains], 1).reshape(200, -1)
  between = np.corrcoef(table.T)[np.triu_indices(120, 1)]
  assert abs(between).max() < 5 / np.sqrt(200)
  # A narrower net has those of the columns that it has.
  narrow = _chip(jax.random.key(3), kernel[:, :7], device)["crossbar"]["layer"]
  wide = _chip(jax.random.key(3), kernel, device)["crossbar"]["layer"]
  np.testing.assert_array_equal(wide["offsets"][:, :7], narrow["offsets"])


def test_noise_of_converters_is_new_at_every_read(rng):
  """Whole codes of a sum with normal noise, undriven columns too."""
  device = crossbar.Device(adc_bits=12, adc_noise=2.0)  # an LSB is 1
  kernel, x = _kernel(rng, (60, 20)), _bits(rng, (1, 60))
  for inputs in (x, 0 * x):
    inputs = np.tile(inputs, (2000, 1))
    got = np.asarray(_read(_key(rng), kernel, inputs, device))
    code = got - inputs[0] @ np.sign(kernel)
    ends = (stats.norm.cdf((code + half) / 2) for half in (-0.5, 0.5))
    assert stats.kstest(rng.uniform(*ends).ravel(), "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(code.T)[np.triu_indices(20, 1)]).max() < 0.12


def _levels(bits, granular, table):
  """Levels at which codes change [LSB], and the least code, by definition."""
  least = -(2 ** (bits - 1)) + (not granular)
  above = np.arange(1, 2**bits - (not granular))
  ends = np.linspace(0, 1, len(table)), np.linspace(0, 1, len(above))
  return least + above - 0.5 + np.interp(ends[1], ends[0], table), least


@given(st.integers(0, 2**31), st.sampled_from([2, 6]), st.booleans())
def test_levels_of_codes_deviate_as_a_table_says(seed, bits, granular):
  """Codes are the number of levels that are reached; of 0, as without it."""
  rng = np.random.default_rng(seed)
  make = converters.granular if granular else converters.symmetric
  converter = make(bits) if granular else make(bits, 200)
  step = float(converter.step)
  sums = np.append(rng.normal(0, 2**bits / 3, 300) * step, range(-100, 101))
  sums = sums.astype(np.float32)
  plain = np.asarray(_convert(sums, converter))
  for table in (rng.uniform(-0.4, 0.4, 2**bits - 1 - (not granular)), [0.3]):
    levels, least = _levels(bits, granular, table)
    expected = least + (sums[:, None] / step >= levels).sum(1)
    got = np.asarray(_convert(sums, converter, inl=np.float32(table))) / step
    near = abs(sums[:, None] / step - levels).min(1) < 1e-4
    np.testing.assert_allclose(got[~near], expected[~near], atol=1e-4)
    assert near.mean() < 0.1 and (got != plain / step).any()
  # A table of fewer entries is interpolated.
  coarse = np.float32([0.4, -0.3, 0.2])
  levels, _ = _levels(bits, granular, coarse)
  fine = np.float32(levels - _levels(bits, granular, [0.0])[0])
  ways = [_convert(sums, converter, inl=table) for table in (coarse, fine)]
  assert (np.asarray(ways[0]) != ways[1]).mean() < 0.02
  silent = {
    "inl": np.zeros(3, np.float32),
    "capacitors": np.zeros((16, 1), np.float32),
  }
  same = _convert(sums[:, None], converter, **silent)
  np.testing.assert_array_equal(np.ravel(same), plain)


def test_capacitors_of_converters_err_as_in_theory(rng):
  """Levels are those of the divider; INL and DNL have the known deviations."""
  bits, sigma, count = 6, 0.03, 20000
  normal = rng.normal(size=(17, count))
  device = crossbar.Device(adc_bits=bits, adc_mismatch=sigma)
  errors = np.asarray(defects.capacitor_errors(np.float32(normal), device))
  assert errors.shape == (16, count) and not errors[bits:].any()
  units = 2.0 ** np.arange(bits)
  capacitors = units[:, None] + sigma * np.sqrt(units)[:, None] * normal[1:7]
  total = capacitors.sum(0) + 1 + sigma * normal[0]
  codes = np.arange(2**bits)
  digits = codes[:, None] >> np.arange(bits) & 1
  inl = 2**bits * (digits @ capacitors) / total - codes[:, None]
  np.testing.assert_allclose(digits @ errors[:bits], inl, atol=1e-4)
  # Of 20,000 a deviation is known to 0.5 %; 6 of those, and terms of s^2.
  std = sigma * np.sqrt(codes * (1 - codes / 2**bits))
  np.testing.assert_allclose(inl.std(1), std, rtol=0.04)
  assert std.max() == sigma * np.sqrt(2 ** (bits - 2))
  step = np.diff(inl, axis=0).std(1)
  assert step.argmax() == 2 ** (bits - 1) - 1  # into the middle
  most = sigma * np.sqrt(2**bits - 1)
  np.testing.assert_allclose(step.max(), most, rtol=0.04)


@pytest.mark.slow
def test_converters_of_unequal_capacitors_approximate(rng):
  """Bit by bit, each column of each tile with capacitors of its own."""
  device = crossbar.Device(tile_shape=(16, 8), adc_bits=5, adc_mismatch=0.1)
  key, kernel, x = _key(rng), _kernel(rng, (40, 20)), _bits(rng, (50, 40))
  layer = jax.jit(_chip)(key, kernel, device)["crossbar"]["layer"]
  errors = np.asarray(layer["capacitors"], np.float64)
  assert errors.shape == (3, 16, 20)
  expected, w = np.zeros((50, 20)), np.sign(kernel)
  for image, column, tile in np.ndindex(50, 20, 3):
    rows = slice(16 * tile, 16 * tile + 16)
    # An LSB is 16 / 15, and the least code -15.
    level = x[image, rows] @ w[rows, column] / (16 / 15) + 15.5
    code, wrong = 0, 0.0
    for bit in reversed(range(5)):
      error = wrong + errors[tile, bit, column]
      if code + 2**bit <= 30 and level >= code + 2**bit + error:
        code, wrong = code + 2**bit, error
    expected[image, column] += (code - 15) * 16 / 15
  got = np.asarray(_read(key, kernel, x, device))
  # A sum that is at a level may round to either side.
  assert (abs(got - expected) > 1e-4).mean() < 5e-3
  plain = dataclasses.replace(device, adc_mismatch=0.0)
  assert (abs(got - np.asarray(_read(key, kernel, x, plain))) > 1).mean() > 0.05
  # Each one's own, and those of a narrower net.
  table = errors[:, :5].transpose(1, 0, 2).reshape(5, -1)
  assert len(np.unique(table[4])) == 60
  narrow = jax.jit(_chip)(key, kernel[:, :7], device)["crossbar"]["layer"]
  np.testing.assert_array_equal(
    layer["capacitors"][..., :7], narrow["capacitors"]
  )


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 8])
def test_noise_of_word_lines_is_that_of_rows_drawn_one_by_one(rng, bits):
  """Its covariance of columns too, of one row's voltage for all of them."""
  device = crossbar.Device(
    tile_shape=(16, 8), g_off=1e-4, dac_noise=0.05, variation=0.3
  )
  key, kernel = _key(rng), _kernel(rng, (40, 12))
  linear = dataclasses.replace(device, dac_noise=0.0)
  layer_key = jax.random.fold_in(key, 0)
  weights = crossbar.effective_weights(layer_key, kernel, linear, bits)
  weights = np.asarray(weights, np.float64)
  x = rng.integers(0, 2 ** (bits - 1) + (bits == 1), (1, 40))
  inputs = np.tile(x, (4000, 1)).astype(np.float32)
  got = np.asarray(_read(key, kernel, inputs, device, bits=bits), np.float64)
  # Of bit planes, each read with voltages of its own.
  planes = x[0][:, None] >> np.arange(bits) & 1
  driven = planes @ 4.0 ** np.arange(bits)
  covariance = 0.05**2 * weights.T @ (driven[:, None] * weights)
  noise = got - x @ weights
  white = noise @ np.linalg.inv(np.linalg.cholesky(covariance)).T
  assert _are_normal(white)
  between = np.corrcoef(white.T)[np.triu_indices(12, 1)]
  assert abs(between).max() < 0.09
  assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.09
  silent = _read(key, kernel, 0 * inputs[:5], device, bits=bits)
  np.testing.assert_array_equal(silent, 0)


def test_positions_of_a_convolution_have_voltages_of_their_own(rng):
  """Rows and taps in order: a row's noise is in the sums that it drives."""
  device = crossbar.Device(tile_shape=(20, 8), dac_noise=0.1, g_off=1e-5)
  key, kernel = _key(rng), _kernel(rng, (3, 3, 3, 6))
  x = np.tile(_bits(rng, (1, 4, 4, 3)), (2000, 1, 1, 1))
  got = np.asarray(_read(key, kernel, x, device, strides=2), np.float64)
  product = _product(kernel, 2)
  noise = got - np.asarray(product(x[:1], np.sign(kernel)))
  # Weights of +-1: as much of every driven row.
  rows = np.asarray(product(x[:1], np.ones_like(kernel)))
  assert noise.shape == (2000, 2, 2, 6)
  z = noise / (0.1 * np.sqrt(rows))
  assert _are_normal(z)
  at = z[..., 0].reshape(2000, -1)
  assert abs(np.corrcoef(at.T)[np.triu_indices(4, 1)]).max() < 0.12


def test_a_column_that_is_held_negated_has_its_own_converter(rng):
  """The switch is ahead of it: what it adds is not turned."""
  placement = crossbar.Placement(
    np.int32([[1, 0]]), np.int8([[-1, 1]]), crossbar.Placing(("polarity",))
  )
  found = {
    "weights": jnp.float32([[[1, 2], [3, 4]]]),
    "offsets": jnp.float32([[[5, 6]]]),
    "gains": jnp.float32([[[7, 8]]]),
  }
  got = mapping.back(found, placement)
  np.testing.assert_array_equal(got["weights"], [[[-2, 1], [-4, 3]]])
  np.testing.assert_array_equal(got["offsets"], [[[6, 5]]])
  np.testing.assert_array_equal(got["gains"], [[[8, 7]]])


@pytest.mark.parametrize("errors_of", ["inl", "capacitors", None])
def test_what_is_no_number_has_no_code(errors_of):
  """Of an array that is not solved; infinite sums are beyond the ends."""
  known = dict(inl=np.float32([0.3]), capacitors=np.zeros((16, 1), np.float32))
  chosen = {errors_of: known[errors_of]} if errors_of else {}
  sums = np.float32([[np.nan], [np.inf], [-np.inf], [2]])
  got = _convert(sums, converters.symmetric(4, 7), **chosen)
  np.testing.assert_array_equal(got, [[np.nan], [7], [-7], [2]])


@pytest.mark.parametrize("law", ["independent", "proportional", "inverse"])
def test_white_noise_is_that_of_cells_drawn_one_by_one(rng, law):
  """Of driven cells alone, in every mapping and as the state says."""
  ends = dict(g_on=1e-4, g_off=3e-5, tile_shape=(64, 16))
  x = np.tile(_bits(rng, (1, 50)), (3000, 1))
  signs = rng.choice([-1.0, 1.0], (50, 12))
  for kind, cells, unit in (
    ("differential", (1, -1), 1),
    ("complementary", (1, -1), 1),
    ("offset", (1,), 2),
  ):
    device = crossbar.Device(
      white_noise=0.05, white_noise_law=law, mapping=kind, **ends
    )
    variance = 0.0
    for sign in cells:
      g = np.where(sign * signs > 0, 1e-4, 3e-5)
      std = {
        "independent": np.full_like(g, 1e-4),
        "proportional": g,
        "inverse": 1e-8 / g,
      }[law]
      variance += x[0] @ (0.05 * unit * std / 7e-5) ** 2
    got = np.asarray(_read(_key(rng), np.float32(signs), x, device), np.float64)
    z = (got - x[0] @ signs) / np.sqrt(variance)
    assert _are_normal(z), kind
    assert abs(np.corrcoef(z[:-1, 0], z[1:, 0])[0, 1]) < 0.1
  silent = np.asarray(_read(_key(rng), np.float32(signs), 0 * x[:9], device))
  np.testing.assert_allclose(silent, 0, atol=1e-4)


@pytest.mark.parametrize(
  "net", [1, pytest.param(8, marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.exact
def test_noise_follows_the_image_and_the_chip_not_the_batch(net):
  module, variables, images = net
  device = crossbar.Device(read_noise=20.0, read_voltage=0.05, variation=0.1)
  chip = _program(jax.random.key(5), variables, device, bits=module.weight_bits)

  def logits(first, last, number=0):
    numbers = np.arange(first, last) + number
    part = crossbar.for_images(chip, numbers)
    return np.asarray(_apply(module, part, images[first:last]))

  whole = logits(0, 12)
  for first, last in ((0, 6), (6, 12)):
    part = logits(first, last)
    np.testing.assert_allclose(part, whole[first:last], atol=1e-4)
  # Another number of the same image is another read.
  assert (logits(0, 12, number=100) != whole).any()
  if module.weight_bits == 8:
    return  # the same scoring
  labels = np.arange(12) % 10

  def evaluate(**limits):
    limits = monte_carlo.Limits(**limits)
    return evaluation.evaluate_chips(
      jax.random.key(3),
      module,
      variables,
      images,
      labels,
      device,
      3,
      limits=limits,
    )

  # Nor do chips follow each other, where several are read at once.
  whole = evaluate(images=12)
  np.testing.assert_array_equal(whole, evaluate(images=4, chips=3))


def test_memory_holds_one_tile_at_a_time():
  """Temporary memory does not grow with the number of row tiles."""

  def temporary(c_in):
    shape = jax.ShapeDtypeStruct((3, 3, c_in, 64), np.float32)
    device = crossbar.Device(adc_bits=6)
    key = jax.random.key(0)
    chip = jax.eval_shape(lambda kernel: _chip(key, kernel, device), shape)
    x = jax.ShapeDtypeStruct((8, 32, 32, c_in), np.float32)
    read = jax.jit(functools.partial(readout.read, _product(shape)))
    compiled = read.lower(x, chip["crossbar"]["layer"]).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  partial_sums = 8 * 32 * 32 * 64 * 4
  assert temporary(128) < temporary(32) + partial_sums
