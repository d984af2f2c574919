"""1-bit arithmetic against vectors of the published code, and its exactness."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import binary
from hawis_jax import errors


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def golden(shared):
  return lambda name: np.load(shared / "golden" / f"{name}.npz")


@pytest.mark.parametrize("levels", [8, 16, 32])
def test_thermometer_code_is_the_published_one(golden, levels):
  g1 = golden("g1_thermometer")
  bits = binary.thermometer_code(jnp.asarray(g1["rgb_uint8_nhwc"]), levels)
  planes = np.unpackbits(g1[f"planes_L{levels}_packed"], axis=-1)
  np.testing.assert_array_equal(bits.transpose(0, 3, 1, 2), planes)
  assert binary.thermometer_thresholds(levels) == tuple(
    g1[f"thresholds_L{levels}"]
  )


@given(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]), st.integers(1, 3))
@settings(max_examples=10)
def test_thermometer_code_of_all_grey_levels(levels, channels):
  """Level-major planes; floats give the same bits as integers."""
  image = np.arange(256 * channels).reshape(1, 16, 16, channels) % 256
  image = image.astype(np.uint8)
  bits = np.asarray(binary.thermometer_code(jnp.asarray(image), levels))
  step = 256 // levels
  for plane in range(levels * channels):
    level, channel = divmod(plane, channels)
    expected = image[..., channel] > step * level + step // 2
    np.testing.assert_array_equal(bits[..., plane], expected)
  floats = binary.thermometer_code(jnp.asarray(image) / 255, levels)
  np.testing.assert_array_equal(floats, bits)


@pytest.mark.parametrize("levels", [0, 3, 256, -1])
def test_thermometer_levels_are_checked(levels):
  with pytest.raises(errors.InputError, match=f"got {levels}, allowed"):
    binary.thermometer_thresholds(levels)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_activation_binariser_is_the_published_one(golden, x64, dtype):
  g2 = golden("g2_binarisers")
  x, upstream = g2[f"act_{dtype}_x"], g2[f"act_{dtype}_upstream"]
  y, pullback = jax.vjp(binary.binarize_activations, jnp.asarray(x))
  np.testing.assert_array_equal(y, g2[f"act_{dtype}_y"])
  (grad,) = pullback(jnp.asarray(upstream))
  np.testing.assert_array_equal(grad, g2[f"act_{dtype}_grad_x"])


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_weight_binariser_is_the_published_one(golden, x64, dtype):
  g2 = golden("g2_binarisers")
  w = jnp.asarray(g2[f"w_{dtype}_x"]).transpose(2, 3, 1, 0)
  alpha = binary.weight_scale(w, jnp.ones(w.shape[2]), jnp.ones(w.shape[3]))
  tolerance = 1e-15 if dtype == "f64" else 1e-6
  np.testing.assert_allclose(alpha, g2[f"w_{dtype}_scale"], rtol=tolerance)
  signs, pullback = jax.vjp(binary.binarize_weights, w)
  expected = g2[f"w_{dtype}_y"].transpose(2, 3, 1, 0)
  # sign(0): published 0, ours +1.
  nonzero = np.asarray(w) != 0
  np.testing.assert_allclose(
    (signs * alpha)[nonzero], expected[nonzero], rtol=tolerance
  )
  assert (np.asarray(signs)[~nonzero] == 1).all()
  upstream = jnp.asarray(g2[f"w_{dtype}_upstream"]).transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(
    pullback(upstream)[0], g2[f"w_{dtype}_grad_x"].transpose(2, 3, 1, 0)
  )


def _layer(x, w, strides, padding):
  """A whole published layer, input binariser included."""
  ones = jnp.ones(w.shape[-2]), jnp.ones(w.shape[-1])
  alpha = binary.weight_scale(w, *ones)
  if w.ndim == 2:
    product = jnp.matmul
  else:

    def product(x, w):
      return binary.convolve(x, w, strides, padding)

  weights = binary.binarize_weights(w)
  # The one difference by design: the vectors' one zero weight is published as
  # sign(0) = 0; ours is +1, since a cell can't store 0.
  weights -= jax.lax.stop_gradient(w == 0)
  return binary.scaled_product(product, x, weights, alpha)


_LAYERS = {
  "conv3s1": (1, 1),
  "conv3s2": (2, 1),
  "conv3s2odd": (2, 1),
  "conv1s1": (1, 0),
  "conv1s2": (2, 0),
  "conv7s2": (2, 3),
  "first3s1": (1, 1),
  "first7s2": (2, 3),
  "linear": (1, 0),
}


@pytest.mark.parametrize("small_map", [0, 10**6])
@pytest.mark.parametrize("name", _LAYERS)
def test_layers_are_the_published_ones(
  golden, x64, monkeypatch, name, small_map
):
  """Both convolution paths, forward and backward."""
  monkeypatch.setattr(binary, "_SMALL_MAP", small_map)
  g3 = {k: v for k, v in golden("g3_layers").items() if f"{name}_f64" in k}
  x, w, y, upstream, grad_w, grad_x = (
    g3[f"{name}_f64_{part}"]
    for part in ("x", "w", "y", "upstream", "grad_w", "grad_x")
  )

  def channel_last(value):
    return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value

  def kernel(value):
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T

  def layer(x, w):
    bits = x if name.startswith("first") else binary.binarize_activations(x)
    return _layer(bits, w, *_LAYERS[name])

  out, pullback = jax.vjp(
    layer, jnp.asarray(channel_last(x)), jnp.asarray(kernel(w))
  )
  np.testing.assert_allclose(out, channel_last(y), rtol=1e-12, atol=1e-12)
  got_x, got_w = pullback(jnp.asarray(channel_last(upstream)))
  np.testing.assert_allclose(got_w, kernel(grad_w), rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(
    got_x, channel_last(grad_x), rtol=1e-10, atol=1e-12
  )


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=10)
def test_binary_products_are_exact_integers(seed, c_in, c_out):
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, 2, (2, 5, 5, c_in))
  signs = rng.choice([-1, 1], (3, 3, c_in, c_out))
  out = binary.convolve(
    jnp.asarray(bits, jnp.float32), jnp.asarray(signs, jnp.float32), 2, 1
  )
  padded = np.pad(bits, ((0, 0), (1, 1), (1, 1), (0, 0)))
  expected = sum(
    padded[:, i : i + 5 : 2, j : j + 5 : 2] @ signs[i, j]
    for i in range(3)
    for j in range(3)
  )
  np.testing.assert_array_equal(out, expected)


def test_alpha_counts_active_weights_only():
  w = np.random.default_rng().normal(size=(3, 3, 7, 9)).astype(np.float32)
  alpha = binary.weight_scale(
    jnp.asarray(w), jnp.arange(7) < 4, jnp.arange(9) < 5
  )
  np.testing.assert_allclose(alpha, np.abs(w[:, :, :4, :5]).mean(), rtol=1e-5)


def test_nan_weights_are_not_hidden():
  w = jnp.array([1.0, jnp.nan, -2.0])
  np.testing.assert_array_equal(binary.binarize_weights(w), [1, jnp.nan, -1])
