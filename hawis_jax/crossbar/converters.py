"""Analog-to-digital converters of a tile's columns.

A converter sees the difference of the positive and the negative array's current
of one column, here in units of one weight of 1 at one input of 1. Its numbers
are data, not structure, so that a sweep over bits compiles once.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Converter(NamedTuple):
  """A converter: code = clip(round(sum / step - middle), low, high).

  Its value is (code + middle) step.

  Attributes:
    step: LSB, in the units of the sums; 0: ideal, the value is the sum.
    low: least code.
    high: greatest code.
    middle: 1/2 of a sense amplifier, whose values are -+ step / 2; else 0.
  """

  step: chex.Numeric
  low: chex.Numeric
  high: chex.Numeric
  middle: chex.Numeric


def full_scale(bits: chex.Numeric, most: chex.Numeric) -> Converter:
  """Returns two's complement over [-most, most): step 2 most / 2^b.

  Lossless on integers where 2^b exceeds 2 most, the greatest sum that rows and
  weights allow. `bits` of 1: a sense amplifier; of 0: ideal.
  """
  half = 2.0 ** (jnp.asarray(bits) - 1)
  return _converter(bits, most / half, -half, half - 1)


def calibrated(bits: chex.Numeric, most: chex.Numeric) -> Converter:
  """Returns symmetric codes whose ends are -most and most; bits as above.

  Greater sums than `most` clip. The step is at least 1: ideal sums are
  integers.
  """
  half = 2.0 ** (jnp.asarray(bits) - 1)
  ends = jnp.maximum(half - 1, 1)
  return _converter(bits, jnp.maximum(most / ends, 1), -ends, ends)


def _converter(bits, step, low, high):
  bits = jnp.asarray(bits)
  return Converter(
    step=jnp.where(bits == 0, 0, step),
    low=jnp.where(bits == 1, -1, low),
    high=jnp.where(bits == 1, 0, high),
    middle=jnp.where(bits == 1, 0.5, 0.0),
  )


def convert(sums: chex.Array, converter: Converter) -> chex.Array:
  """Returns what one converter makes of partial sums of any shape.

  Ties round to even codes. The gradient passes where the code does not clip.
  """
  step, low, high, middle = (jnp.asarray(x, sums.dtype) for x in converter)
  # An ideal converter's step is 0: dividing by it would make gradients NaN.
  code = jnp.round(sums / jnp.where(step == 0, 1, step) - middle)
  clipped = jnp.clip(code, low, high)
  passed = jnp.where(clipped == code, sums, 0)
  value = jax.lax.stop_gradient((clipped + middle) * step)
  value = value + (passed - jax.lax.stop_gradient(passed))
  return jnp.where(step == 0, sums, value)
