"""1-bit arithmetic: thermometer code, binarisers, convolution.

Values are exact: activations {0, 1} times weights {-1, +1} sum to integers that
float32 holds exactly, so masked channels and zero padding contribute exactly 0.
Rules and gradients: those of HAWIS (ASP-DAC 2022), as in its published code,
but sign(0) = +1, since a cell pair cannot store 0.

Axes: B images, H rows, W columns, C channels.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from hawis_jax import errors


def thermometer_thresholds(levels: int = 32) -> tuple[int, ...]:
  """Returns the grey levels (of 255) above which each level's bit is 1.

  Args:
    levels: number of levels; divides 128 (the thresholds are integers).

  Raises:
    InputError: `levels` does not divide 128.
  """
  if levels < 1 or 128 % levels:
    raise errors.InputError(
      f"thermometer levels: got {levels}, allowed are 1, 2, 4, ..., 128"
    )
  step = 256 // levels
  return tuple(step * i + step // 2 for i in range(levels))


def thermometer_code(images: chex.Array, levels: int = 32) -> chex.Array:
  """Codes grey levels as bit planes: bit = pixel > threshold (strict).

  Args:
    images: `[B, H, W, C]`, uint8, or floating point in [0, 1].
    levels: number of thresholds a channel.

  Returns:
    float32 bits `[B, H, W, levels * C]`, level-major: plane = C * level + c.
  """
  chex.assert_rank(images, 4)
  thresholds = jnp.asarray(thermometer_thresholds(levels))
  if jnp.issubdtype(images.dtype, jnp.integer):
    thresholds = thresholds.astype(jnp.int32)
    images = images.astype(jnp.int32)
  else:
    thresholds = thresholds.astype(images.dtype) / 255
  bits = images[..., None, :] > thresholds[:, None].reshape(1, 1, 1, levels, 1)
  return bits.reshape(*images.shape[:3], -1).astype(jnp.float32)


def binarize_activations(x: chex.Array) -> chex.Array:
  """Returns bits {0, 1}: x > 0.5; the gradient passes where 0 <= x <= 1."""
  bits = (x > 0.5).astype(x.dtype)
  inside = (x >= 0) & (x <= 1)
  straight_through = jnp.where(inside, x - jax.lax.stop_gradient(x), 0)
  return jax.lax.stop_gradient(bits) + straight_through


def binarize_weights(w: chex.Array) -> chex.Array:
  """Returns signs {-1, +1}, +1 for 0; identity gradient. NaN stays NaN."""
  sign = jnp.where(w >= 0, 1, -1).astype(w.dtype)
  return jax.lax.stop_gradient(sign) + (w - jax.lax.stop_gradient(w))


def weight_scale(
  w: chex.Array, in_mask: chex.Array, out_mask: chex.Array
) -> chex.Array:
  """Returns alpha, the mean |w| over a layer's active weights; no gradient.

  Args:
    w: latent kernel `[k, k, C_in, C_out]` or `[C_in, C_out]`.
    in_mask: `[C_in]`, 1 where the input channel is active.
    out_mask: `[C_out]`, 1 where the output channel is active.

  Returns:
    alpha, scalar; 1 where all active weights are 0.
  """
  magnitude = jax.lax.stop_gradient(jnp.abs(w))
  taps = w.size // (w.shape[-1] * w.shape[-2])
  per_pair = magnitude.reshape(taps, *w.shape[-2:]).sum(0)
  in_mask, out_mask = in_mask.astype(w.dtype), out_mask.astype(w.dtype)
  alpha = (in_mask @ per_pair @ out_mask) / (
    taps * in_mask.sum() * out_mask.sum()
  )
  return jnp.where(alpha == 0, 1, alpha)


def scaled_product(
  product: Callable[[chex.Array, chex.Array], chex.Array],
  bits: chex.Array,
  weights: chex.Array,
  alpha: chex.Array,
) -> chex.Array:
  """Returns product(bits, weights) * alpha with the published gradients.

  Scaling after the product keeps its sums exact integers, and leaves the
  weights without a batch axis when alpha is vmapped over width vectors. The
  gradients are those of product(bits, alpha * weights) with alpha a part of
  the weight binariser: dL/dbits holds alpha, dL/dweights does not.

  Args:
    product: bilinear, e.g. a convolution.
    bits: left operand.
    weights: right operand.
    alpha: scalar; gets no gradient.
  """
  return _scale_forward(product(_scale_backward(bits, alpha), weights), alpha)


@jax.custom_vjp
def _scale_forward(x, alpha):
  return x * alpha


_scale_forward.defvjp(
  lambda x, alpha: (x * alpha, alpha), lambda alpha, g: (g, 0 * alpha)
)


@jax.custom_vjp
def _scale_backward(x, alpha):
  del alpha
  return x


_scale_backward.defvjp(
  lambda x, alpha: (x, alpha), lambda alpha, g: (g * alpha, 0 * alpha)
)


def convolve(
  bits: chex.Array, weights: chex.Array, strides: int, padding: int
) -> chex.Array:
  """Cross-correlation with zero padding; an exact integer for binary operands.

  Args:
    bits: `[B, H, W, C_in]`.
    weights: `[k, k, C_in, C_out]`: signs, or a chip's effective weights.
    strides: of both axes.
    padding: zeros on every side.

  Returns:
    `[B, H', W', C_out]`.
  """
  size = weights.shape[0]
  height, width = (
    (n + 2 * padding - size) // strides + 1 for n in bits.shape[1:3]
  )
  if height * width <= _SMALL_MAP:
    columns = _patches(bits, size, strides, padding, (height, width))
    return columns @ weights.reshape(-1, weights.shape[-1])
  return jax.lax.conv_general_dilated(
    bits,
    weights,
    window_strides=(strides, strides),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


# XLA's CPU convolution is slow on maps of up to 2x2: a matrix product of their
# patches makes a whole digits net about 2x faster (benchmarks/small_maps.py).
_SMALL_MAP = 4


def _patches(x, size, strides, padding, out):
  """`[B, H, W, C]` -> `[B, *out, size * size * C]`, ordered (kh, kw, c)."""
  pad = (padding, padding)
  x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
  rows, columns = (strides * (n - 1) + 1 for n in out)
  return jnp.concatenate(
    [
      x[:, i : i + rows : strides, j : j + columns : strides]
      for i in range(size)
      for j in range(size)
    ],
    axis=-1,
  )
