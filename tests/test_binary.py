"""1-bit arithmetic against vectors of the published code.

That its products are exact: test_bitplanes.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import errors
from hawis_jax.arithmetic import binary


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def golden(shared):
  return lambda name: dict(np.load(shared / "golden" / f"{name}.npz"))


def _gradient(function):
  """(operands, upstream) -> (value, gradients), compiled as one program."""

  @jax.jit
  def both(operands, upstream):
    value, pullback = jax.vjp(function, *operands)
    return value, pullback(upstream)

  return both


@pytest.mark.parametrize("levels", [8, 16, 32])
def test_thermometer_code_is_the_published_one(golden, levels):
  g1 = golden("g1_thermometer")
  code = jax.jit(binary.thermometer_code, static_argnums=1)
  bits = np.asarray(code(g1["rgb_uint8_nhwc"], levels))
  planes = np.unpackbits(g1[f"planes_L{levels}_packed"], axis=-1)
  np.testing.assert_array_equal(bits.transpose(0, 3, 1, 2), planes)
  assert binary.thermometer_thresholds(levels) == tuple(
    g1[f"thresholds_L{levels}"]
  )


@pytest.mark.parametrize("levels", [1, 2, 8, 64, 128])
def test_thermometer_code_of_all_grey_levels(levels):
  """Level-major planes; floats give the same bits as integers."""
  image = np.arange(512).reshape(1, 16, 16, 2) // 2
  image[..., 1] = 255 - image[..., 1]
  code = jax.jit(binary.thermometer_code, static_argnums=1)
  bits = np.asarray(code(image.astype(np.uint8), levels))
  step = 256 // levels
  for plane in range(2 * levels):
    level, channel = divmod(plane, 2)
    expected = image[..., channel] > step * level + step // 2
    np.testing.assert_array_equal(bits[..., plane], expected)
  floats = image.astype(np.float32) / np.float32(255)
  np.testing.assert_array_equal(code(floats, levels), bits)


@pytest.mark.parametrize("levels", [0, 3, 256, -1])
def test_thermometer_levels_are_checked(levels):
  with pytest.raises(errors.InputError, match=f"got {levels}, allowed"):
    binary.thermometer_thresholds(levels)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_binarisers_are_the_published_ones(golden, x64, dtype):
  g2 = golden("g2_binarisers")
  y, (grad,) = _gradient(binary.binarize_activations)(
    (g2[f"act_{dtype}_x"],), g2[f"act_{dtype}_upstream"]
  )
  np.testing.assert_array_equal(y, g2[f"act_{dtype}_y"])
  np.testing.assert_array_equal(grad, g2[f"act_{dtype}_grad_x"])

  w, expected, upstream, grad_w = (
    g2[f"w_{dtype}_{part}"].transpose(2, 3, 1, 0)
    for part in ("x", "y", "upstream", "grad_x")
  )
  ones = np.ones(w.shape[2], w.dtype), np.ones(w.shape[3], w.dtype)
  alpha = np.asarray(jax.jit(binary.weight_scale)(w, *ones))
  tolerance = 1e-15 if dtype == "f64" else 1e-6
  np.testing.assert_allclose(alpha, g2[f"w_{dtype}_scale"], rtol=tolerance)
  signs, (grad,) = _gradient(binary.binarize_weights)((w,), upstream)
  signs = np.asarray(signs)
  # sign(0): published 0, ours +1.
  np.testing.assert_allclose(
    (signs * alpha)[w != 0], expected[w != 0], rtol=tolerance
  )
  assert (signs[w == 0] == 1).all()
  np.testing.assert_array_equal(grad, grad_w)


_LAYERS = {  # strides and padding
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


def _layer(name, x, w):
  """A whole published layer, input binariser included."""
  bits = x if name.startswith("first") else binary.binarize_activations(x)
  alpha = binary.weight_scale(w, jnp.ones(w.shape[-2]), jnp.ones(w.shape[-1]))
  weights = binary.binarize_weights(w)
  # The one difference by design: the vectors' one zero weight is published as
  # sign(0) = 0; ours is +1, since a cell can't store 0.
  weights -= jax.lax.stop_gradient(w == 0)

  def product(x, w):
    if w.ndim == 2:
      return jnp.matmul(x, w)
    return binary.convolve(x, w, *_LAYERS[name])

  return binary.scaled_product(product, bits, weights, alpha)


@pytest.mark.parametrize("small_map", [0, 10**6])
def test_layers_are_the_published_ones(golden, x64, monkeypatch, small_map):
  """Both convolution paths, forward and backward."""
  monkeypatch.setattr(binary, "_SMALL_MAP", small_map)
  g3 = golden("g3_layers")

  def channel_last(name):
    value = g3[name]
    return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value

  def kernel(name):
    value = g3[name]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T

  def layers(xs, ws):
    return {name: _layer(name, xs[name], ws[name]) for name in _LAYERS}

  xs, upstreams = (
    {name: channel_last(f"{name}_f64_{part}") for name in _LAYERS}
    for part in ("x", "upstream")
  )
  ws = {name: kernel(f"{name}_f64_w") for name in _LAYERS}
  out, (grad_x, grad_w) = _gradient(layers)((xs, ws), upstreams)
  for name in _LAYERS:
    for got, want, rtol in (
      (out, channel_last(f"{name}_f64_y"), 1e-12),
      (grad_w, kernel(f"{name}_f64_grad_w"), 1e-10),
      (grad_x, channel_last(f"{name}_f64_grad_x"), 1e-10),
    ):
      np.testing.assert_allclose(got[name], want, rtol, 1e-12, err_msg=name)


def test_alpha_counts_active_weights_only(rng):
  w = rng.normal(size=(3, 3, 7, 9)).astype(np.float32)
  scale = jax.jit(binary.weight_scale)
  alpha = scale(w, np.arange(7) < 4, np.arange(9) < 5)
  np.testing.assert_allclose(alpha, np.abs(w[:, :, :4, :5]).mean(), rtol=1e-5)


def test_nan_weights_are_not_hidden():
  w = np.array([1.0, np.nan, -2.0], np.float32)
  signs = jax.jit(binary.binarize_weights)(w)
  np.testing.assert_array_equal(signs, [1, np.nan, -1])


def test_activations_that_are_no_numbers_are_not_hidden():
  """An array that is not solved would else be a chip that reads 0."""
  x = np.array([0.4, np.nan, 0.6, np.inf], np.float32)
  bits = jax.jit(binary.binarize_activations)(x)
  np.testing.assert_array_equal(bits, [0, np.nan, 1, 1])
