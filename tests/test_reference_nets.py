"""Float and 8-bit ResNets: an independent reference, exact integers, ranges."""

import functools

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_net

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.arithmetic import integer
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.networks.reference_resnet import QuantConv
from hawis_jax.robustness import calibration
from hawis_jax.training import optimization

_CIFAR = (4, 6, 4, 6, 12, 10, 14)  # equal, wider (padded), wider


def _random(module, image_shape, rng):
  """(random variables, images)."""
  images = rng.integers(0, 256, (3, *image_shape), np.uint8)
  return tiny_net.random_variables(module, image_shape, rng), images


# An independent network: NumPy, NCHW, PyTorch's names and layouts, float64.


def _conv(x, weight, stride):
  """Cross-correlation by k // 2 zeros on every side."""
  pad = weight.shape[-1] // 2
  x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  windows = np.lib.stride_tricks.sliding_window_view(
    x, weight.shape[2:], axis=(2, 3)
  )[:, :, ::stride, ::stride]
  return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)


def _norm(x, state, name):
  field = {
    key: state[f"{name}.{key}"].reshape(1, -1, 1, 1)
    for key in ("weight", "bias", "running_mean", "running_var")
  }
  x = (x - field["running_mean"]) / np.sqrt(field["running_var"] + 1e-5)
  return x * field["weight"] + field["bias"]


def _block(x, state, name, stride):
  count = 3 if f"{name}.conv3.weight" in state else 2
  strides = (1, stride, 1) if count == 3 else (stride, 1)
  y = x
  for i in range(count):
    y = _conv(y, state[f"{name}.conv{i + 1}.weight"], strides[i])
    y = _norm(y, state, f"{name}.bn{i + 1}")
    if i < count - 1:
      y = np.maximum(y, 0)
  if f"{name}.downsample.0.weight" in state:
    x = _conv(x, state[f"{name}.downsample.0.weight"], stride)
    x = _norm(x, state, f"{name}.downsample.1")
  elif x.shape != y.shape:
    x, more = x[:, : y.shape[1], ::stride, ::stride], y.shape[1] - x.shape[1]
    more = max(more, 0)
    x = np.pad(x, ((0, 0), (more // 2, more - more // 2), (0, 0), (0, 0)))
  return np.maximum(x + y, 0)


def _reference(state, x, imagenet):
  """Logits of NCHW inputs."""
  y = _conv(x, state["conv1.weight"], 2 if imagenet else 1)
  y = np.maximum(_norm(y, state, "bn1"), 0)
  if imagenet:
    y = np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.lib.stride_tricks.sliding_window_view(y, (3, 3), axis=(2, 3))
    y = y[:, :, ::2, ::2].max((-1, -2))
  names = sorted({k.rsplit(".", 2)[0] for k in state if ".conv" in k})
  for name in names:
    first_of_later = name.endswith(".0") and not name.startswith("layer1")
    y = _block(y, state, name, 2 if first_of_later else 1)
  head = "fc" if "fc.bias" in state else "linear"
  return y.mean((2, 3)) @ state[f"{head}.weight"].T + state[f"{head}.bias"]


@pytest.mark.parametrize(
  "module, size, imagenet",
  [
    (reference_resnet.cifar_reference(8, _CIFAR, 10), 15, False),
    (
      reference_resnet.cifar_reference(8, (9, 8, 5, 4, 8, 9, 6), 10),
      8,
      False,
    ),
    (
      reference_resnet.ResNet(
        (6, 6, 6, 7, 5, 7, 7, 8, 4, 9, 9),
        10,
        (1, 2, 1, 1),
        True,
        *reference_resnet.IMAGENET_NORM,
      ),
      65,
      True,
    ),
    (
      reference_resnet.ResNet(
        (6, 4, 4, 16, 4, 5, 16, 5, 6, 20, 6, 6, 12),
        10,
        (2, 1, 1),
        True,
        *reference_resnet.IMAGENET_NORM,
      ),
      64,
      True,
    ),
  ],
)
def test_float_network_against_an_independent_one(module, size, imagenet, rng):
  net, images = _random(module, (size, size, 3), rng)
  x = np.asarray(jax.jit(module.encode)(images))
  got = jax.jit(functools.partial(module.apply, train=False))(net, x)
  state = interop.to_torch_state_dict(net)
  state = {name: value.astype(np.float64) for name, value in state.items()}
  expected = _reference(
    state, np.asarray(x, np.float64).transpose(0, 3, 1, 2), imagenet
  )
  np.testing.assert_allclose(
    got, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


@pytest.mark.parametrize(
  "module, parameters",
  [
    (reference_resnet.cifar_reference(20, None, 10), 269722),
    (reference_resnet.imagenet_reference(18), 11689512),
    (reference_resnet.imagenet_reference(34), 21797672),
    (reference_resnet.imagenet_reference(50), 25557032),
    (reference_resnet.imagenet_reference(101), 44549160),
    (reference_resnet.imagenet_reference(152), 60192808),
  ],
)
def test_published_sizes(module, parameters):
  params = net_variables.shapes(module, (32, 32, 3))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_8_bit_and_float_net_have_the_same_parameters():
  for float_net, net in (
    (
      reference_resnet.cifar_reference(8, _CIFAR, 10),
      reference_resnet.cifar_reference(8, _CIFAR, 10, bits=8),
    ),
    (
      reference_resnet.imagenet_reference(18),
      reference_resnet.imagenet_reference(18, bits=4),
    ),
  ):
    assert net.weight_bits in (4, 8) and float_net.weight_bits is None
    a, b = (net_variables.shapes(m, (32, 32, 3)) for m in (float_net, net))
    assert a["params"] == b["params"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_values(bits, rng):
  """Nearest integers, the maximum exactly L; clipped without gradient."""
  top = 2 ** (bits - 1) - 1
  assert top == integer.largest(bits)

  @jax.jit
  def quantize(x, max_abs):
    """(step, integers, gradient of their sum)."""
    step = integer.scale(max_abs, bits)
    value, pull_back = jax.vjp(lambda x: integer.quantize(x, step, bits), x)
    return step, value, pull_back(jnp.ones_like(value))[0]

  x = (rng.normal(size=1000) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
  max_abs = np.abs(x).max()
  step, q, _ = jax.device_get(quantize(x, max_abs))
  np.testing.assert_array_equal(q, np.round(q))
  assert abs(q).max() == top
  assert np.abs(q * step - x).max() <= step * 0.5001
  # A third is clipped.
  step, q, grad = jax.device_get(quantize(x, np.float32(max_abs / 3)))
  inside = np.abs(np.round(x / step)) <= top
  assert 0 < inside.sum() < x.size
  np.testing.assert_allclose(grad * step, inside, rtol=1e-6)
  assert abs(q).max() == top
  holed = np.where(x > 0, x, np.nan)
  np.testing.assert_array_equal(np.isnan(quantize(holed, max_abs)[1]), x <= 0)
  np.testing.assert_array_equal(quantize(0 * x, np.float32(0))[1], 0)


def _kernel(rng, shape):
  """Of channels that differ by up to 2^11."""
  channels = 2.0 ** -np.arange(shape[-1])
  return (rng.normal(size=shape) * channels).astype(np.float32)


def _greatest(kernel, scales):
  axes = tuple(range(kernel.ndim - 1)) if scales == "channel" else None
  return np.abs(kernel).max(axes)


def test_a_scale_a_channel_keeps_small_channels(rng):
  """Errors of a step of its own, of each channel; of one step, of the rest."""
  kernel = _kernel(rng, (3, 3, 20, 10))

  @functools.partial(jax.jit, static_argnums=1)
  def rounded(kernel, scales):
    step = integer.weight_step(kernel, 8, scales)
    return step, integer.quantize(kernel, step, 8) * step

  def error_of(scales):
    step, got = jax.device_get(rounded(kernel, scales))
    expected = _greatest(kernel, scales) / 127
    np.testing.assert_allclose(np.squeeze(step), expected, rtol=1e-6)
    return np.square(got - kernel).mean((0, 1, 2))

  of_channel, of_tensor = error_of("channel"), error_of("tensor")
  assert (of_channel <= of_tensor).all()
  assert (of_channel[3:] < 0.1 * of_tensor[3:]).all()


def test_range_of_activations_clips_at_the_percentile(rng):
  """At most the share of the values; of fewer than its inverse none."""
  ranges = jax.jit(integer.activation_range, static_argnums=1)
  x = rng.laplace(size=(4, 100, 100)).astype(np.float32)
  size, most = np.abs(x), np.abs(x).max()
  assert ranges(x, "tensor") == most
  got = np.asarray(ranges(x, "channel"))
  assert (size > got).sum() <= integer.CLIPPED * x.size == 4
  assert (size > got - most / 2**12).sum() > 4
  np.testing.assert_allclose(got, np.percentile(size, 99.99), rtol=0.02)
  assert ranges(0 * x, "channel") == 0
  x = x[0, :99]
  assert ranges(x, "channel") == np.abs(x).max()


def test_an_outlier_takes_no_steps_of_the_others(rng):
  x = rng.normal(size=(200, 60)).astype(np.float32)
  x[0, 0] = 1000
  kernel = _kernel(rng, (60, 4))
  params = {"params": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}

  @functools.partial(jax.jit, static_argnums=1)
  def apply(x, scales):
    layer = QuantConv(4, 0, bits=8, scales=scales)
    return layer.apply(params, x, train=True)

  expected = (x.astype(np.float64) @ kernel)[1:]
  mean = {
    scales: np.square(apply(x, scales)[1:] - expected).mean(0)
    for scales in integer.SCALES
  }
  assert (mean["channel"] < 1e-3 * mean["tensor"]).all()


@pytest.mark.parametrize(
  "size, strides, scales",
  [
    (3, 1, "channel"),
    (3, 2, "tensor"),
    (1, 2, "channel"),
    (7, 2, "channel"),
    (0, 1, "channel"),
    (0, 1, "tensor"),
  ],
)
def test_8_bit_layer_multiplies_integers_exactly(size, strides, scales, rng):
  shape = (4, 9, 9, 8) if size else (4, 60)
  x = rng.normal(size=shape).astype(np.float32)
  layer = QuantConv(12, size, strides, bits=8, scales=scales)
  taps = (size, size) if size else ()
  kernel = _kernel(rng, (*taps, shape[-1], 12))
  params = {"kernel": kernel}
  if not size:
    params["bias"] = np.zeros(12, np.float32)

  @jax.jit
  def apply(x, kernel, *chips):
    net = {"params": {**params, "kernel": kernel}}
    ideal = crossbar.program(
      jax.random.key(0), net, crossbar.Device(), 8, scales=scales
    )
    nets = [net, *({**net, "crossbar": {"weight": w}} for w in chips), ideal]
    return [layer.apply(n, x, train=True) for n in nets]

  # A chip's weights take the place of the integers, at the same steps, and
  # those of an ideal one are the integers.
  ones = np.ones_like(kernel)
  got, of_ones, of_twos, on_chip = map(
    np.asarray, apply(x, kernel, ones, 2 * ones)
  )
  np.testing.assert_array_equal(of_twos, 2 * of_ones)
  np.testing.assert_array_equal(on_chip, got)
  kernel, x = kernel.astype(np.float64), x.astype(np.float64)
  steps = np.abs(x).max() / 127, _greatest(kernel, scales) / 127
  q_x, q_w = (np.round(a / s) for a, s in zip((x, kernel), steps, strict=True))
  if size:
    sums = _conv(
      q_x.transpose(0, 3, 1, 2), q_w.transpose(3, 2, 0, 1), strides
    ).transpose(0, 2, 3, 1)
  else:
    sums = q_x @ q_w
  np.testing.assert_allclose(got / (steps[0] * steps[1]), sums, atol=0.05)


def test_gradients_are_straight_through(rng):
  """Those of the float layer at the quantised operands, clipped ones apart."""
  x = rng.normal(size=(4, 7, 7, 5)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 5, 6)).astype(np.float32) / 5
  target = rng.normal(size=(4, 7, 7, 6)).astype(np.float32)

  def gradients(layer, kernel, x):
    def loss(kernel, x):
      held = {"params": {"kernel": kernel}}
      held["batch_stats"] = {"max_abs": jnp.float32(1)}
      return (layer.apply(held, x, train=False) * target).sum()

    return jax.grad(loss, (0, 1))(kernel, x)

  def rounded(array, max_abs):
    step = integer.scale(max_abs, 8)
    return integer.quantize(array, step, 8) * step

  @jax.jit
  def both(kernel, x):
    most = jnp.abs(kernel).max((0, 1, 2), keepdims=True)
    plain = rounded(kernel, most), rounded(x, 1.0)
    return (
      gradients(QuantConv(6, bits=8), kernel, x),
      gradients(QuantConv(6), *plain),
    )

  (of_kernel, of_x), expected = jax.device_get(both(kernel, x))
  np.testing.assert_allclose(of_kernel, expected[0], rtol=1e-4, atol=1e-4)
  inside = np.abs(x) < 1
  assert not inside.all()
  clear = np.abs(np.abs(x) - 1) > 0.01  # half a step beyond still rounds to L
  np.testing.assert_allclose(
    np.where(clear, of_x, 0),
    np.where(clear & inside, expected[1], 0),
    rtol=1e-4,
    atol=1e-4,
  )


def test_range_is_a_running_average_that_the_first_batch_starts(rng):
  batches = rng.normal(size=(3, 8, 5)).astype(np.float32)
  layer = QuantConv(4, size=0, bits=8, momentum=0.75)
  init = jax.jit(functools.partial(layer.init, train=False))
  net = jax.device_get(init(jax.random.key(0), batches[0]))
  assert net["batch_stats"]["max_abs"] == 0

  @functools.partial(jax.jit, static_argnums=2)
  def apply(net, batch, train):
    """(output, where `batch_stats` may change, what it becomes)."""
    alone = layer.apply(net, batch, train=train)
    return alone, *layer.apply(net, batch, train=train, mutable=["batch_stats"])

  average = None
  for batch in batches:
    alone, out, updated = jax.device_get(apply(net, batch, True))
    np.testing.assert_array_equal(out, alone)
    net = {**net, **updated}
    top = np.abs(batch).max()
    average = top if average is None else 0.75 * average + 0.25 * top
    np.testing.assert_allclose(net["batch_stats"]["max_abs"], average, 1e-6)
  # Evaluation uses the average, and leaves it alone.
  large = 10 * batches[0]
  _, out, updated = apply(net, large, False)
  assert updated["batch_stats"] == net["batch_stats"]
  clipped, _, _ = apply(net, np.clip(large, -average, average), False)
  np.testing.assert_allclose(out, clipped, rtol=1e-6)
  # Before any batch: that of the batch at hand.
  fresh = {**net, "batch_stats": {"max_abs": np.float32(0)}}
  np.testing.assert_array_equal(
    apply(fresh, large, False)[0], apply(fresh, large, True)[0]
  )


def test_post_training_quantisation_is_close_and_better_with_more_bits(rng):
  float_module = reference_resnet.cifar_reference(8, (24,) * 7, 10)
  net, _ = _random(float_module, (16, 16, 3), rng)
  images = rng.integers(0, 256, (4, 8, 16, 16, 3), np.uint8)
  reference = tiny_net.apply(float_module, False, net, images[0])
  quantise = jax.jit(reference_resnet.quantize, static_argnums=0)
  encoded = np.asarray(jax.jit(jax.vmap(float_module.encode))(images))
  maxima = np.abs(encoded).max((1, 2, 3, 4))
  distances = []
  for bits in (3, 8):
    module = reference_resnet.cifar_reference(8, (24,) * 7, 10, bits=bits)
    quantised = jax.device_get(quantise(module, net, images))
    logits = tiny_net.apply(module, False, quantised, images[0])
    distances.append(np.abs(np.subtract(logits, reference)).max())
    # All that is new is a range a layer: of the first, the images' own.
    jax.tree.map(
      np.testing.assert_array_equal, quantised["params"], net["params"]
    )
    flat = traverse_util.flatten_dict(quantised["batch_stats"])
    ranges = {p: x for p, x in flat.items() if p[-1] == "max_abs"}
    old = traverse_util.flatten_dict(net["batch_stats"])
    assert len(ranges) == 8 and flat.keys() == old.keys() | ranges.keys()
    for path, leaf in old.items():
      np.testing.assert_array_equal(flat[path], leaf)
    assert min(ranges.values()) > 0
    np.testing.assert_allclose(
      ranges["stem", "max_abs"], maxima.mean(), rtol=1e-6
    )
  # Again gives the same, from a net that is quantised already.
  again = quantise(module, quantised, images)
  np.testing.assert_array_equal(
    again["batch_stats"]["head"]["max_abs"], ranges["head", "max_abs"]
  )
  assert distances[0] > 4 * distances[1]
  assert distances[1] < 0.1 * np.abs(reference).max()


def test_recalibration_pools_the_ranges(rng):
  """On a chip, `net_variables.recalibrate` measures ranges with the moments."""
  module = reference_resnet.cifar_reference(8, _CIFAR, 10, bits=8)
  net, _ = _random(module, (8, 8, 3), rng)
  images = rng.integers(0, 256, (3, 4, 8, 8, 3)).astype(np.uint8)
  recalibrate = jax.jit(net_variables.recalibrate, static_argnums=0)
  stats = recalibrate(module, net, images)
  inputs = np.stack([module.encode(batch) for batch in images])
  np.testing.assert_allclose(
    stats["stem"]["max_abs"],
    np.abs(inputs).max((1, 2, 3, 4)).mean(),
    rtol=1e-6,
  )
  assert jax.tree.structure(stats) == jax.tree.structure(net["batch_stats"])


class _OneLayer(nn.Module):
  """A linear layer of images whose pixels are integers already."""

  scales: str
  weight_bits = 8

  @property
  def weight_scales(self):
    return self.scales

  def encode(self, images):
    return images.reshape(len(images), -1).astype(jnp.float32)

  @nn.compact
  def __call__(self, x, train):
    return QuantConv(5, 0, bits=8, scales=self.scales, name="head")(x, train)


@pytest.mark.parametrize("scales", integer.SCALES)
def test_converters_see_the_integers_of_the_net(scales, rng):
  """Their range is that of sums of the integers that its scales make."""
  images = rng.integers(0, 128, (6, 4, 4, 1), np.uint8)
  images[0, 0, 0] = 127
  kernel = _kernel(rng, (16, 5))
  params = {"head": {"kernel": kernel, "bias": np.zeros(5, np.float32)}}
  net = {"params": params, "batch_stats": {"head": {"max_abs": 127.0}}}
  device = crossbar.Device(
    analog_inputs=True, adc_range="calibrated", adc_percentile=100.0
  )
  net = calibration.calibrate_converters(_OneLayer(scales), net, images, device)
  integers = np.round(kernel * (127 / _greatest(kernel, scales)))
  sums = images.reshape(6, -1).astype(np.float64) @ integers
  got = net["converters"]["head"]["range"]
  np.testing.assert_allclose(got, np.abs(sums).max(), rtol=1e-6)


def test_quantisation_aware_training_learns(tiny, rng):
  """Some steps of gradient descent at 8 bits halve the loss of one batch."""
  module = reference_resnet.cifar_reference(8, (8,) * 7, 10, bits=8)
  optimizer = optax.sgd(0.1)
  key = jax.random.key(rng.integers(2**31))
  state = optimization.init_state(module, key, tiny_net.SHAPE, optimizer)
  step, losses = tiny_net.step(module, optimizer), []
  for _ in range(60):
    state, values = step(state, tiny.batch(32))
    losses.append(float(values["loss"]))
  assert losses[-1] < 0.5 * losses[0]
  assert float(state.batch_stats["head"]["max_abs"]) > 0


def test_images_are_normalised(rng):
  images = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
  for module, (mean, std) in (
    (
      reference_resnet.cifar_reference(20, None, 10),
      reference_resnet.CIFAR_NORM,
    ),
    (reference_resnet.imagenet_reference(18), reference_resnet.IMAGENET_NORM),
  ):
    expected = (images / 255 - np.array(mean)) / np.array(std)
    encode = jax.jit(module.encode)
    got = encode(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    real = encode((images / 255).astype(np.float32))
    np.testing.assert_allclose(real, got, rtol=1e-4, atol=1e-6)
    grey = encode(images[..., :1])
    np.testing.assert_allclose(grey, images[..., :1] / 127.5 - 1, atol=1e-6)


def _cifar(depth, widths=None, bits=None, apply_at=None, scales="channel"):
  module = reference_resnet.cifar_reference(depth, widths, 10, bits, scales)
  apply = functools.partial(module.init, train=False)
  images = jnp.zeros((1, *tiny_net.SHAPE))
  jax.eval_shape(lambda: apply(jax.random.key(0), images, apply_at))


def _imagenet(depth, widths=None):
  reference_resnet.imagenet_reference(depth, 10, widths)


@pytest.mark.parametrize(
  "build, arguments, message",
  [
    (_cifar, (8, _CIFAR, None, _CIFAR), "widths: got .*allowed is None"),
    (_cifar, (9,), "depth: got 9, allowed"),
    (_cifar, (8, (4,) * 6), "width vector: got .*needed are 7 widths"),
    (_cifar, (8, _CIFAR, 1), "bits: got 1, allowed are 2 to 8"),
    (_cifar, (8, _CIFAR, 8, None, "row"), "scales .*'row', allowed are chan"),
    (_imagenet, (20,), "depth: got 20, allowed"),
    (_imagenet, (18, (4,) * 16 + (0,)), "needed are 17 widths of at least 1"),
    (_imagenet, (50, (4,) * 17), "width vector: got .*needed are 49 widths"),
  ],
)
def test_bad_networks_are_named(build, arguments, message):
  with pytest.raises(errors.InputError, match=message):
    build(*arguments)
