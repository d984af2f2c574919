"""Float and 8-bit ResNets: an independent reference, exact integers, ranges."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import counterparts
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax import quantization
from hawis_jax import variables
from hawis_jax.quant_layers import QuantConv

_R20 = (16,) * 7 + (32,) * 6 + (64,) * 6
_CIFAR = (4, 6, 4, 6, 12, 10, 14)  # equal, wider (padded), wider


def _random(module, image_shape):
  """Random parameters and statistics, activations of order 1."""
  rng = np.random.default_rng()
  draw = {"scale": (0.5, 1.5), "mean": (-0.5, 0.5), "var": (0.5, 2.0)}
  draw |= {"bias": (-0.5, 0.5), "max_abs": (0, 0)}
  flat = traverse_util.flatten_dict(variables.shapes(module, image_shape))
  for path, leaf in flat.items():
    if path[-1] == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      value = rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
    else:
      value = rng.uniform(*draw[path[-1]], leaf.shape)
    flat[path] = jnp.asarray(value, leaf.dtype)
  return traverse_util.unflatten_dict(flat)


def _images(*shape):
  return np.random.default_rng().integers(0, 256, shape, np.uint8)


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
    (counterparts.cifar_counterpart(8, _CIFAR, 10), 15, False),
    (counterparts.cifar_counterpart(8, (9, 8, 5, 4, 8, 9, 6), 10), 8, False),
    (
      counterparts.ResNet(
        (6, 6, 6, 7, 5, 7, 7, 8, 4, 9, 9),
        10,
        (1, 2, 1, 1),
        True,
        *counterparts.IMAGENET_NORM,
      ),
      65,
      True,
    ),
    (
      counterparts.ResNet(
        (6, 4, 4, 16, 4, 5, 16, 5, 6, 20, 6, 6, 12),
        10,
        (2, 1, 1),
        True,
        *counterparts.IMAGENET_NORM,
      ),
      64,
      True,
    ),
  ],
)
def test_float_network_against_an_independent_one(module, size, imagenet):
  net = _random(module, (size, size, 3))
  x = module.encode(jnp.asarray(_images(3, size, size, 3)))
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
    (counterparts.cifar_counterpart(20, None, 10), 269722),
    (counterparts.imagenet_counterpart(18), 11689512),
    (counterparts.imagenet_counterpart(34), 21797672),
    (counterparts.imagenet_counterpart(50), 25557032),
    (counterparts.imagenet_counterpart(101), 44549160),
    (counterparts.imagenet_counterpart(152), 60192808),
  ],
)
def test_published_sizes(module, parameters):
  params = variables.shapes(module, (32, 32, 3))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_8_bit_and_float_net_have_the_same_parameters():
  for bits in (4, 8):
    for float_net, net in (
      (
        counterparts.cifar_counterpart(20, _R20, 10),
        counterparts.cifar_counterpart(20, _R20, 10, bits=bits),
      ),
      (
        counterparts.imagenet_counterpart(18),
        counterparts.imagenet_counterpart(18, bits=bits),
      ),
    ):
      assert net.weight_bits == bits and float_net.weight_bits is None
      a, b = (variables.shapes(m, (32, 32, 3)) for m in (float_net, net))
      assert a["params"] == b["params"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_values(bits):
  """Nearest integers, the maximum exactly L; clipped without gradient."""
  rng = np.random.default_rng()
  top = 2 ** (bits - 1) - 1
  x = jnp.asarray(rng.normal(size=1000) * 10 ** rng.uniform(-3, 3), jnp.float32)
  max_abs = float(jnp.abs(x).max())
  step = quantization.scale(max_abs, bits)
  q = np.asarray(quantization.quantize(x, step, bits))
  np.testing.assert_array_equal(q, np.round(q))
  assert abs(q).max() == top == quantization.largest(bits)
  assert np.abs(q * step - x).max() <= step * 0.5001
  step = quantization.scale(max_abs / 3, bits)  # a third is clipped
  grad = jax.grad(lambda x: quantization.quantize(x, step, bits).sum())(x)
  inside = np.abs(np.round(np.asarray(x) / np.float32(step))) <= top
  assert 0 < inside.sum() < x.size
  np.testing.assert_allclose(grad * step, inside, rtol=1e-6)
  assert abs(quantization.quantize(x, step, bits)).max() == top
  assert np.isnan(quantization.quantize(jnp.float32(np.nan), step, bits))
  np.testing.assert_array_equal(
    quantization.quantize(jnp.zeros(3), quantization.scale(0.0, bits), bits), 0
  )


@pytest.mark.parametrize(
  "size, strides", [(3, 1), (3, 2), (1, 2), (7, 2), (0, 1)]
)
def test_8_bit_layer_multiplies_integers_exactly(size, strides):
  rng = np.random.default_rng()
  shape = (4, 9, 9, 8) if size else (4, 60)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  layer = QuantConv(12, size, strides, bits=8)
  init = jax.jit(functools.partial(layer.init, train=False))
  net = init(jax.random.key(rng.integers(2**31)), x)
  got = layer.apply(net, x, train=True)
  kernel = np.asarray(net["params"]["kernel"], np.float64)
  steps = [np.abs(a).max() / 127 for a in (np.asarray(x, np.float64), kernel)]
  q_x, q_w = (np.round(a / s) for a, s in zip((x, kernel), steps, strict=True))
  if size:
    sums = _conv(
      q_x.transpose(0, 3, 1, 2), q_w.transpose(3, 2, 0, 1), strides
    ).transpose(0, 2, 3, 1)
  else:
    sums = q_x @ q_w
  integers = np.asarray(got) / (steps[0] * steps[1])
  np.testing.assert_allclose(integers, sums, atol=0.05)
  # A chip's weights take the place of the integers, at the same step.
  chip = {**net, "crossbar": {"weight": jnp.full(kernel.shape, 2.0)}}
  ones = {**net, "crossbar": {"weight": jnp.full(kernel.shape, 1.0)}}
  np.testing.assert_array_equal(
    layer.apply(chip, x, train=True), 2 * layer.apply(ones, x, train=True)
  )


def test_gradients_are_straight_through():
  """Those of the float layer at the quantised operands, clipped ones apart."""
  rng = np.random.default_rng()
  x = jnp.asarray(rng.normal(size=(4, 7, 7, 5)), jnp.float32)
  layer, plain = QuantConv(6, bits=8), QuantConv(6)
  net = layer.init(jax.random.key(rng.integers(2**31)), x, train=False)
  net = {**net, "batch_stats": {"max_abs": jnp.float32(1.0)}}
  target = jnp.asarray(rng.normal(size=(4, 7, 7, 6)), jnp.float32)

  def loss(layer, kernel, x):
    held = {**net, "params": {"kernel": kernel}}
    return (layer.apply(held, x, train=False) * target).sum()

  kernel = net["params"]["kernel"]
  of_kernel, of_x = jax.grad(functools.partial(loss, layer), (0, 1))(kernel, x)

  def rounded(array, max_abs):
    step = quantization.scale(max_abs, 8)
    return quantization.quantize(array, step, 8) * step

  expected = jax.grad(functools.partial(loss, plain), (0, 1))(
    rounded(kernel, jnp.abs(kernel).max()), rounded(x, 1.0)
  )
  np.testing.assert_allclose(of_kernel, expected[0], rtol=1e-4, atol=1e-4)
  inside = jnp.abs(x) < 1
  assert not inside.all()
  clear = np.abs(np.abs(x) - 1) > 0.01  # half a step beyond still rounds to L
  np.testing.assert_allclose(
    np.where(clear, of_x, 0),
    np.where(clear & inside, expected[1], 0),
    rtol=1e-4,
    atol=1e-4,
  )


def test_range_is_a_running_average_that_the_first_batch_starts():
  rng = np.random.default_rng()
  batches = jnp.asarray(rng.normal(size=(3, 8, 5)), jnp.float32)
  layer = QuantConv(4, size=0, bits=8, momentum=0.75)
  net = layer.init(jax.random.key(0), batches[0], train=False)
  assert net["batch_stats"]["max_abs"] == 0
  apply = functools.partial(layer.apply, train=True, mutable=["batch_stats"])
  average = None
  for batch in batches:
    out, updated = apply(net, batch)
    np.testing.assert_array_equal(out, layer.apply(net, batch, train=True))
    net = {**net, **updated}
    top = np.abs(batch).max()
    average = top if average is None else 0.75 * average + 0.25 * top
    np.testing.assert_allclose(net["batch_stats"]["max_abs"], average, 1e-6)
  # Evaluation uses the average, and leaves it alone.
  large = 10 * batches[0]
  out, updated = layer.apply(net, large, train=False, mutable=["batch_stats"])
  assert updated["batch_stats"] == net["batch_stats"]
  clipped = layer.apply(net, jnp.clip(large, -average, average), train=False)
  np.testing.assert_allclose(out, clipped, rtol=1e-6)
  # Before any batch: that of the batch at hand.
  fresh = {**net, "batch_stats": {"max_abs": jnp.zeros(())}}
  np.testing.assert_array_equal(
    layer.apply(fresh, large, train=False),
    layer.apply(fresh, large, train=True),
  )


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(module, net, images):
  return module.apply(net, module.encode(images), train=False)


def test_post_training_quantisation_is_close_and_better_with_more_bits():
  float_module = counterparts.cifar_counterpart(8, (24,) * 7, 10)
  net = _random(float_module, (16, 16, 3))
  images = jnp.asarray(_images(4, 8, 16, 16, 3))
  reference = _evaluate(float_module, net, images[0])
  distances = []
  for bits in (3, 8):
    module = counterparts.cifar_counterpart(8, (24,) * 7, 10, bits=bits)
    quantise = jax.jit(counterparts.quantize, static_argnums=0)
    quantised = quantise(module, net, images)
    logits = _evaluate(module, quantised, images[0])
    distances.append(float(jnp.abs(logits - reference).max()))
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
    maxima = jnp.abs(jax.vmap(module.encode)(images)).max((1, 2, 3, 4))
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
  assert distances[1] < 0.1 * float(jnp.abs(reference).max())


def test_recalibration_pools_the_ranges():
  """On a chip, `variables.recalibrate` measures ranges with the moments."""
  module = counterparts.cifar_counterpart(8, _CIFAR, 10, bits=8)
  net = _random(module, (8, 8, 3))
  inputs = jax.vmap(module.encode)(jnp.asarray(_images(3, 4, 8, 8, 3)))
  recalibrate = jax.jit(variables.recalibrate, static_argnums=0)
  stats = recalibrate(module, net, inputs)
  np.testing.assert_allclose(
    stats["stem"]["max_abs"],
    jnp.abs(inputs).max((1, 2, 3, 4)).mean(),
    rtol=1e-6,
  )
  assert jax.tree.structure(stats) == jax.tree.structure(net["batch_stats"])


def test_quantisation_aware_training_learns():
  """Some steps of gradient descent at 8 bits halve the loss of one batch."""
  module = counterparts.cifar_counterpart(8, (8,) * 7, 10, bits=8)
  rng = np.random.default_rng()
  init = jax.jit(variables.init, static_argnums=(0, 2))
  net = init(module, jax.random.key(rng.integers(2**31)), (8, 8, 1))
  x = module.encode(jnp.asarray(_images(32, 8, 8, 1)))
  labels = jnp.asarray(rng.integers(0, 10, 32))

  def loss(params, stats):
    logits, updated = module.apply(
      {"params": params, "batch_stats": stats},
      x,
      train=True,
      mutable=["batch_stats"],
    )
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(logits), labels[:, None], -1
    )
    return -picked.mean(), updated["batch_stats"]

  @jax.jit
  def step(net, _=None):
    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
      net["params"], net["batch_stats"]
    )
    params = jax.tree.map(lambda p, g: p - 0.1 * g, net["params"], grads)
    return {"params": params, "batch_stats": stats}, value

  losses = []
  for _ in range(60):
    net, value = step(net)
    losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]
  assert float(net["batch_stats"]["head"]["max_abs"]) > 0


def test_images_are_normalised():
  images = _images(2, 4, 4, 3)
  for module, (mean, std) in (
    (counterparts.cifar_counterpart(20, None, 10), counterparts.CIFAR_NORM),
    (counterparts.imagenet_counterpart(18), counterparts.IMAGENET_NORM),
  ):
    expected = (images / 255 - np.array(mean)) / np.array(std)
    got = module.encode(jnp.asarray(images))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    real = module.encode(jnp.asarray(images / 255, jnp.float32))
    np.testing.assert_allclose(real, got, rtol=1e-4, atol=1e-6)
    grey = module.encode(jnp.asarray(images[..., :1]))
    np.testing.assert_allclose(grey, images[..., :1] / 127.5 - 1, atol=1e-6)


def test_widths_are_fixed():
  module = counterparts.cifar_counterpart(8, _CIFAR, 10)
  with pytest.raises(errors.InputError, match="widths: got .*allowed is None"):
    jax.eval_shape(
      lambda: module.init(
        jax.random.key(0), jnp.zeros((1, 8, 8, 3)), _CIFAR, train=False
      )
    )


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: counterparts.cifar_counterpart(9, None, 10), "depth: got 9, allo"),
    (lambda: counterparts.imagenet_counterpart(20), "depth: got 20, allowed"),
    (
      lambda: counterparts.cifar_counterpart(8, (4,) * 6, 10),
      "width vector: got .*needed are 7 widths",
    ),
    (
      lambda: counterparts.imagenet_counterpart(18, 10, (4,) * 16 + (0,)),
      "width vector: got .*needed are 17 widths of at least 1",
    ),
    (
      lambda: counterparts.imagenet_counterpart(50, 10, (4,) * 17),
      "width vector: got .*needed are 49 widths",
    ),
    (
      lambda: counterparts.cifar_counterpart(8, (4,) * 7, 10, bits=1),
      "bits: got 1, allowed are 2 to 8",
    ),
    (
      lambda: counterparts.imagenet_counterpart(18, bits=16),
      "bits: got 16, allowed are 2 to 8",
    ),
  ],
)
def test_bad_networks_are_named(build, message):
  with pytest.raises(errors.InputError, match=message):
    build()
