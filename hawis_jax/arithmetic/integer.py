"""Symmetric integer arithmetic of the 8-bit reference nets.

q = clip(round(x / s), -L, L) with s = max|x| / L and L = 2^(bits - 1) - 1: 127
at 8 bits. Products of such integers are exact in float32 while partial sums
stay below 2^24, so at 8 bits for any operands in up to 1040 rows (L^2 each) and
in practice far beyond, since sums of real layers do not come near L^2 a row.
"""

import chex
import jax
import jax.numpy as jnp


def largest(bits: int) -> int:
  """Returns L, the largest integer: 127 at 8 bits, 1 at 2 bits and at 1."""
  return max(2 ** (bits - 1) - 1, 1)


def scale(max_abs: chex.Array, bits: int) -> chex.Array:
  """Returns s, the value of one integer step; 1 / L where `max_abs` is 0."""
  # A product: some compilers turn a division by a constant into one, and all
  # programs should find the same integers.
  return jnp.where(max_abs > 0, max_abs, 1) * (1 / largest(bits))


def quantize(x: chex.Array, step: chex.Array, bits: int) -> chex.Array:
  """Returns integers of `x`, of 2 to 8 bits, in its own type; NaN stays NaN.

  The gradient is that of x / step where the clip changes nothing, else 0; the
  scalar `step`, from `scale`, gets none.
  """
  limit = largest(bits)
  scaled = x / jax.lax.stop_gradient(step)
  rounded = jnp.round(scaled)
  passed = jnp.where(jnp.abs(rounded) <= limit, scaled, 0)
  integers = jax.lax.stop_gradient(jnp.clip(rounded, -limit, limit))
  return integers + (passed - jax.lax.stop_gradient(passed))
