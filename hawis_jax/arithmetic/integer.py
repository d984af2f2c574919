"""Symmetric integer arithmetic of the 8-bit reference nets.

q = clip(round(x / s), -L, L) with s = a / L, a range a of |x|, and L = 2^(bits
- 1) - 1: 127 at 8 bits. Products of such integers are exact in float32 while
partial sums stay below 2^24, so at 8 bits for any operands in up to 1040 rows
(L^2 each) and in practice far beyond: sums of real layers are far from L^2 a
row.

Ranges are of two kinds, `SCALES`. "channel": of weights one an output channel,
its largest magnitude; of activations the 99.99th percentile of the magnitude.
"tensor", the published mapping: of weights one a layer, and of activations too
the largest magnitude.
"""

import chex
import jax
import jax.numpy as jnp

from hawis_jax import errors

SCALES = ("channel", "tensor")
# Share of activations that may be clipped. At 8 bits the mean square of errors,
# s^2 / 12 of rounding and (|x| - a)^2 of clipping, is least at a of 3.92
# standard deviations of a normal x, 99.991 % of |x|, and at 9.88 scales of a
# Laplace one, 99.995 %. A share of 1e-4 is within 5 % of the least, one of 1e-3
# at 2.1 and 3.7 times it, and the maximum of a million values at 1.4 and 1.6.
CLIPPED = 1e-4
# Of the search for that range, which ends within 2^-12 of the maximum: far less
# than a step of 1/127.
_HALVINGS = 12


def largest(bits: int) -> int:
  """Returns L, the largest integer: 127 at 8 bits, 1 at 2 bits and below."""
  return max(2 ** (bits - 1) - 1, 1)


def scale(max_abs: chex.Array, bits: int) -> chex.Array:
  """Returns s, the value of one integer step; 1 / L where `max_abs` is 0."""
  # A product: some compilers turn a division by a constant into one, and all
  # programs should find the same integers.
  return jnp.where(max_abs > 0, max_abs, 1) * (1 / largest(bits))


def weight_step(kernel: chex.Array, bits: int, scales: str) -> chex.Array:
  """Returns the steps of a kernel `[..., C_out]`, from its own magnitudes.

  They are `[1, ..., 1, C_out]` where `scales` is "channel", else a scalar. They
  multiply the sums of a channel's products: digital, whatever multiplies.

  Raises:
    InputError: other scales.
  """
  if scales not in SCALES:
    raise errors.InputError(
      f"scales of quantised weights: got {scales!r}, allowed are "
      f"{', '.join(SCALES)}"
    )
  if scales == "channel":
    most = jnp.abs(kernel).max(range(kernel.ndim - 1), keepdims=True)
  else:
    most = jnp.abs(kernel).max()
  return scale(jax.lax.stop_gradient(most), bits)


def activation_range(x: chex.Array, scales: str) -> chex.Array:
  """Returns the range of activations, of any shape: a scalar without gradient.

  Where `scales` is "channel" at most the share `CLIPPED` of |x| exceeds it, and
  nothing does of fewer than 1 / `CLIPPED` values.
  """
  magnitudes = jax.lax.stop_gradient(jnp.abs(x))
  most = magnitudes.max()
  if scales != "channel":
    return most

  # A bisection: it needs no sort, and its counts are integers, the same on any
  # number of accelerators.
  def halve(_, bounds):
    low, high = bounds
    middle = 0.5 * (low + high)
    enough = (magnitudes > middle).sum() <= int(CLIPPED * x.size)
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  bounds = jnp.zeros_like(most), most
  return jax.lax.fori_loop(0, _HALVINGS, halve, bounds)[1]


def quantize(x: chex.Array, step: chex.Array, bits: int) -> chex.Array:
  """Returns integers of `x`, of 2 to 8 bits, in its own type; NaN stays NaN.

  The gradient is that of x / step where the clip changes nothing, else 0; the
  `step`, a scalar or as `weight_step` returns it, gets none.
  """
  limit = largest(bits)
  scaled = x / jax.lax.stop_gradient(step)
  rounded = jnp.round(scaled)
  passed = jnp.where(jnp.abs(rounded) <= limit, scaled, 0)
  integers = jax.lax.stop_gradient(jnp.clip(rounded, -limit, limit))
  return integers + (passed - jax.lax.stop_gradient(passed))
