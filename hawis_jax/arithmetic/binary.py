"""1-bit arithmetic: thermometer code, binarisers, convolution.

Values are exact: activations {0, 1} times weights {-1, +1} sum to integers that
float32 holds exactly, so masked channels and zero padding contribute exactly 0.
Rules and gradients: those of HAWIS (ASP-DAC 2022), as in its published code.

Axes: B images, H rows, W columns, C channels.
"""

from collections.abc import Callable
import functools

import chex
import jax
import jax.numpy as jnp

from hawis_jax import errors


def thermometer_thresholds(levels: int = 32) -> tuple[int, ...]:
  """Returns the grey levels (of 255) above which each level's bit is 1.

  Raises:
    InputError: `levels` does not divide 128: the thresholds are integers.
  """
  if levels < 1 or 128 % levels:
    raise errors.InputError(
      f"thermometer levels: got {levels}, allowed are 1, 2, 4, ..., 128"
    )
  step = 256 // levels
  return tuple(step * i + step // 2 for i in range(levels))


def thermometer_code(images: chex.Array, levels: int = 32) -> chex.Array:
  """Codes grey levels as bit planes: bit = pixel > threshold (strict).

  Returns float32 bits `[B, H, W, levels * C]`, level-major: plane = C * level +
  c, of images `[B, H, W, C]`, uint8, or floating point in [0, 1]. As in HAWIS
  (ASP-DAC 2022).

  >>> import hawis_jax as hx, jax.numpy as jnp
  >>> pixel = jnp.full((1, 1, 1, 1), 100, jnp.uint8)
  >>> hx.thermometer_code(pixel, 4).ravel().tolist()  # thresholds 32, 96, ...
  [1.0, 1.0, 0.0, 0.0]
  """
  chex.assert_rank(images, 4)
  thresholds = jnp.asarray(thermometer_thresholds(levels))
  # Integers are compared as such: their division by 255 would be rounded.
  if jnp.issubdtype(images.dtype, jnp.integer):
    thresholds = thresholds.astype(jnp.int32)
    images = images.astype(jnp.int32)
  else:
    thresholds = thresholds.astype(images.dtype) / 255
  bits = images[..., None, :] > thresholds[:, None].reshape(1, 1, 1, levels, 1)
  return bits.reshape(*images.shape[:3], -1).astype(jnp.float32)


def binarize_activations(x: chex.Array) -> chex.Array:
  """Returns bits {0, 1}: x > 0.5; the gradient passes where 0 <= x <= 1.

  NaN stays NaN: as a bit of 0 it would be a chip's output.
  """
  bits = jnp.where(jnp.isnan(x), x, (x > 0.5).astype(x.dtype))
  inside = (x >= 0) & (x <= 1)
  straight_through = jnp.where(inside, x - jax.lax.stop_gradient(x), 0)
  return jax.lax.stop_gradient(bits) + straight_through


def binarize_weights(w: chex.Array, zero: int = 1) -> chex.Array:
  """Returns signs {-1, +1}; identity gradient. NaN stays NaN.

  `zero` is the sign of an exact 0; the published code takes 0.
  """
  # Not jnp.sign, which keeps 0; the last term carries NaN, as w - w is NaN.
  sign = jnp.where(w == 0, zero, jnp.where(w > 0, 1, -1)).astype(w.dtype)
  return jax.lax.stop_gradient(sign) + (w - jax.lax.stop_gradient(w))


def weight_scale(
  w: chex.Array,
  in_mask: chex.Array | None = None,
  out_mask: chex.Array | None = None,
  per_channel: bool = False,
) -> chex.Array:
  """Returns alpha, the mean |w| over a layer's active weights; no gradient.

  Args:
    w: latent kernel `[k, k, C_in, C_out]` or `[C_in, C_out]`.
    in_mask: `[C_in]`, 1 where the input channel is active; None: all are.
    out_mask: `[C_out]`, 1 where the output channel is active; None: all are.
    per_channel: one alpha an output channel, as in XNOR-Net (Rastegari et al.,
      ECCV 2016), instead of one a layer.

  Returns:
    alpha, scalar or `[C_out]`; 1 where all active weights are 0.
  """
  magnitude = jax.lax.stop_gradient(jnp.abs(w))
  magnitude = magnitude.reshape(-1, *w.shape[-2:])
  taps = magnitude.shape[0]
  if in_mask is None:
    by_column = magnitude.mean((0, 1))
  else:
    in_mask = in_mask.astype(w.dtype)
    by_column = in_mask @ magnitude.sum(0) / (taps * in_mask.sum())
  if per_channel:
    alpha = by_column
  elif out_mask is None:
    alpha = by_column.mean()
  else:
    out_mask = out_mask.astype(w.dtype)
    alpha = by_column @ out_mask / out_mask.sum()
  return jnp.where(alpha == 0, 1, alpha)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_product(
  product: Callable[[chex.Array, chex.Array], chex.Array],
  bits: chex.Array,
  weights: chex.Array,
  alpha: chex.Array,
) -> chex.Array:
  """Returns product(bits, weights) * alpha with the published gradients.

  Scaling after the product keeps its sums exact integers, and leaves the
  weights without a batch axis when alpha is vmapped over width vectors. The
  gradients are those of product(bits, alpha * weights) with alpha a part of the
  weight binariser: dL/dbits holds alpha, dL/dweights does not; alpha, a scalar
  or one an output channel, gets none. `product` is bilinear, e.g. a
  convolution; its last axis is the output channel.
  """
  return scale(product(bits, weights), alpha)


def scale(x: chex.Array, alpha: chex.Array) -> chex.Array:
  """Returns `x` `[..., C]` times alpha, a scalar or `[C]`."""
  if alpha.ndim:
    alpha = alpha.reshape((1,) * (x.ndim - 1) + (-1,))
  return x * alpha


def _scaled_product_forward(product, bits, weights, alpha):
  return scaled_product(product, bits, weights, alpha), (bits, weights, alpha)


def _scaled_product_backward(product, saved, g):
  bits, weights, alpha = saved
  _, pull_back = jax.vjp(product, bits, weights)
  return pull_back(scale(g, alpha))[0], pull_back(g)[1], jnp.zeros_like(alpha)


scaled_product.defvjp(_scaled_product_forward, _scaled_product_backward)


@jax.custom_gradient
def divide_gradient(x: chex.Array, factor: chex.Array) -> chex.Array:
  """Returns `x`, whose gradient is divided by `factor` (no gradient itself)."""
  return x, lambda g: (g / factor, jnp.zeros_like(factor))


def in_bfloat16(
  product: Callable[[chex.Array, chex.Array], chex.Array],
) -> Callable[[chex.Array, chex.Array], chex.Array]:
  """Returns `product` with bfloat16 operands and float32 sums.

  `product` is `convolve` or `multiply`, the former with its strides and
  padding. Bits and signs are exact in bfloat16 and the sums are accumulated in
  float32, so a binary product is the same exact integer. Gradients are products
  of bfloat16 operands too, and so are rounded.
  """

  def to_bfloat16(x):
    return x.astype(jnp.bfloat16)

  @jax.custom_vjp
  def mixed(left, right):
    return product(to_bfloat16(left), to_bfloat16(right))

  def forward(left, right):
    return mixed(left, right), (left, right)

  def backward(saved, g):
    # One type throughout, or the transposes would multiply float32 by
    # bfloat16, which no hardware does.
    rounded = functools.partial(product, sums=jnp.bfloat16)
    _, pull_back = jax.vjp(rounded, *map(to_bfloat16, saved))
    return tuple(
      grad.astype(x.dtype)
      for grad, x in zip(pull_back(to_bfloat16(g)), saved, strict=True)
    )

  mixed.defvjp(forward, backward)
  return mixed


def multiply(
  bits: chex.Array, weights: chex.Array, sums: chex.ArrayDType | None = None
) -> chex.Array:
  """Returns `[..., C_out]` of `[..., C_in]` x `[C_in, C_out]`."""
  return jnp.matmul(
    bits, weights, preferred_element_type=sums or _sum_type(bits, weights)
  )


def convolve(
  bits: chex.Array,
  weights: chex.Array,
  strides: int,
  padding: int,
  sums: chex.ArrayDType | None = None,
  by_patches: bool = False,
) -> chex.Array:
  """Returns the cross-correlation with zero padding, `[B, H', W', C_out]`.

  It is an exact integer for binary operands.

  Args:
    bits: `[B, H, W, C_in]`.
    weights: `[k, k, C_in, C_out]`: signs, or a chip's effective weights.
    strides: of both axes.
    padding: zeros on every side.
    sums: type of the result; None: that of the operands, at least float32.
    by_patches: as a matrix product, as small maps are in any case.
  """
  size = weights.shape[0]
  height, width = (
    (n + 2 * padding - size) // strides + 1 for n in bits.shape[1:3]
  )
  if by_patches or height * width <= _SMALL_MAP:
    columns = patches(bits, size, strides, padding, (height, width))
    return multiply(columns, weights.reshape(-1, weights.shape[-1]), sums)
  return jax.lax.conv_general_dilated(
    bits,
    weights,
    window_strides=(strides, strides),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=sums or _sum_type(bits, weights),
  )


def _sum_type(*operands):
  return jnp.promote_types(jnp.result_type(*operands), jnp.float32)


# XLA's CPU convolution is slow on maps of up to 2x2: a matrix product of their
# patches makes a whole digits net about 2x faster (benchmarks/train_step.py).
_SMALL_MAP = 4


def patches(
  x: chex.Array,
  size: int,
  strides: int,
  padding: int,
  out: tuple[int, int],
) -> chex.Array:
  """Returns `[..., *out, size * size * C]`, ordered (kh, kw, c).

  Of `x` `[..., H, W, C]`, zero-padded, and a kernel of `size` x `size`.
  """
  pad = [(0, 0)] * (x.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
  x = jnp.pad(x, pad)
  rows, columns = (strides * (n - 1) + 1 for n in out)
  return jnp.concatenate(
    [
      x[..., i : i + rows : strides, j : j + columns : strides, :]
      for i in range(size)
      for j in range(size)
    ],
    axis=-1,
  )
