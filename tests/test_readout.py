"""Tile-by-tile read-out: equal to the fold where ideal, and its converters."""

import dataclasses
import functools
import itertools

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
_program = jax.jit(crossbar.program, static_argnames="bits")


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
  return crossbar.program(key, {"params": params}, device, bits)


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

  q = np.round(kernel / (np.abs(kernel).max() / 127))
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


@given(st.integers(0, 2**31), st.integers(2, 9), st.floats(1, 200))
def test_converters_are_the_formula(seed, bits, most):
  rng = np.random.default_rng(seed)
  sums = rng.normal(0, most, 200).astype(np.float32)
  half = 2 ** (bits - 1)
  for make, step, low in (
    (converters.full_scale, most / half, -half),
    (converters.calibrated, max(most / (half - 1), 1), 1 - half),
  ):
    got = np.asarray(_convert(sums, jax.jit(make)(bits, most)))
    codes = got / step
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert (np.round(codes) >= low).all() and (np.round(codes) < half).all()
    inside = (sums > low * step) & (sums < (half - 1) * step)
    assert (abs(got - sums)[inside] <= step * 0.5001).all()
    assert (got[sums > half * step] == got.max()).all()


def test_codes_that_cover_the_integers_lose_nothing():
  """8 bits read 64 rows without loss; 7 bits all but the very end."""
  sums = np.arange(-64, 65).astype(np.float32)

  def full_scale(bits):
    return np.asarray(_convert(sums, converters.full_scale(bits, 64)))

  np.testing.assert_array_equal(full_scale(0), sums)
  for bits in (7, 8):
    np.testing.assert_array_equal(full_scale(bits)[:-1], sums[:-1])
  assert full_scale(7)[-1] == 63
  # A sense amplifier tells the sign.
  expected, told = 32 * np.sign(sums), sums != 0
  np.testing.assert_array_equal(full_scale(1)[told], expected[told])


def test_gradient_passes_where_codes_do_not_clip():
  converter = converters.full_scale(4, 8.0)
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
    tiled, four, sixteen = (
      _logits(net, dataclasses.replace(linear, adc_bits=np.float32(bits)))
      for bits in (0, 4, 16)
    )
    if module.weight_bits == 1 and "wire_resistance" not in effects:
      np.testing.assert_array_equal(tiled, folded)
    else:  # a float that crosses a threshold moves a logit by a step
      assert np.median(abs(tiled - folded)) < 1e-3 * np.abs(folded).max()
    errors_of = [np.square(x - tiled).mean() for x in (four, sixteen)]
    assert errors_of[1] < 0.1 * errors_of[0]


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


def test_bad_readouts_are_refused(net):
  module, variables, images = net

  def program(device):
    jax.eval_shape(
      lambda: crossbar.program(
        jax.random.key(0), variables, device, module.weight_bits
      )
    )

  calibrated = crossbar.Device(adc_bits=4, adc_range="calibrated")
  with pytest.raises(errors.InputError, match="head has no range"):
    program(calibrated)
  sense = crossbar.Device(adc_bits=1)
  refused = "has 72 rows" if module.weight_bits == 1 else "bit planes don't"
  with pytest.raises(errors.InputError, match=refused):
    program(sense)
  labels = np.zeros(12, int)
  with pytest.raises(errors.InputError, match="a sense amplifier"):
    evaluation.evaluate_chips(
      jax.random.key(0), module, variables, images, labels, sense, 2
    )
  with pytest.raises(errors.InputError, match="allowed for 8-bit weights"):
    crossbar.check_readout({}, sense, bits=8)
  for device in (crossbar.Device(adc_bits=4), crossbar.Device(read_noise=1.0)):
    with pytest.raises(errors.InputError, match="no linear map"):
      crossbar.effective_weights(
        jax.random.key(0), np.ones((3, 3), np.float32), device
      )


def test_read_noise_is_that_of_the_currents(rng):
  """Variance of a column's sum: active rows' G df (4kT + 2qV), both arrays."""
  device = crossbar.Device(read_noise=300.0, bandwidth=1e8, read_voltage=0.2)
  kernel, x, images = _kernel(rng, (70, 30)), _bits(rng, (1, 70)), 4000
  got = _read(_key(rng), kernel, np.tile(x, (images, 1)), device)
  # A pair is one cell on, one off; shot noise is that of driven rows, thermal
  # noise that of all rows, those without weights included.
  pair = device.g_on + device.g_off
  rest = 2 * device.g_off * (128 - 70)
  variance = 4 * _BOLTZMANN * 300 * (70 * pair + rest)
  variance += 2 * _CHARGE * 0.2 * float(x.sum()) * pair
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
    device = crossbar.Device(variation=0.3, **dict(effects))
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
