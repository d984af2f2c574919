"""Analog-to-digital converters of a tile's columns.

A converter sees the difference of the positive and the negative array's current
of one column, here in units of one weight of 1 at one input of 1. Its numbers
are data, not structure, so that a sweep over bits compiles once.
docs/crossbar.md has the transfer functions of all ranges.

Axes: C columns.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Converter(NamedTuple):
  """A converter: the value is LSB times one of evenly spaced codes.

  Codes are whole numbers (mid-tread), or -1/2 and 1/2 of a sense amplifier. Of
  x = (sum - threshold) / step they are clip(round(x), low, high), or
  clip(floor(x) + 1/2, low, high).

  Attributes:
    step: LSB, in the units of the sums; 0: ideal, the value is the sum.
    low: least code.
    high: greatest code.
    middle: 1/2 where codes are halfway between whole numbers; else 0.
    threshold: that a sense amplifier compares with, `[C]`; else 0.
  """

  step: chex.Numeric
  low: chex.Numeric
  high: chex.Numeric
  middle: chex.Numeric
  threshold: chex.Numeric


def symmetric(bits: chex.Numeric, most: chex.Numeric) -> Converter:
  """Returns 2^b - 1 codes, 0 in their middle, whose ends are -most and most.

  The LSB is at least one unit, since ideal sums are whole numbers: where codes
  suffice for that, the ends are beyond -most and most. Greater sums clip.

  `bits` are 2 to 16, or 0: ideal. 0 must be a value: most sums of a bit plane
  are 0, and whatever they read as adds up over tiles and planes.
  """
  ends = jnp.maximum(2.0 ** (jnp.asarray(bits) - 1) - 1, 1)
  step = jnp.maximum(most / ends, 1)
  return _converter(bits, step, -ends, ends)


def granular(bits: chex.Numeric) -> Converter:
  """Returns two's complement of an LSB of one unit, that saturates.

  Whole sums from -2^(b-1) to 2^(b-1) - 1 are exact. `bits` are as above.
  """
  half = 2.0 ** (jnp.asarray(bits) - 1)
  return _converter(bits, 1.0, -half, half - 1)


def sense_amplifier(most: chex.Numeric, threshold: chex.Array) -> Converter:
  """Returns a comparator with one threshold a column, `[C]`.

  Its values are `most` above the threshold and -most below it: ends that what
  follows makes the bits of all sums on that side of.
  """
  return _converter(1, 2.0 * most, -0.5, 0.5, 0.5, threshold)


def _converter(bits, step, low, high, middle=0.0, threshold=0.0):
  step = jnp.where(jnp.asarray(bits) == 0, 0, step)
  return Converter(*map(jnp.asarray, (step, low, high, middle, threshold)))


def convert(
  sums: chex.Array,
  converter: Converter,
  gains: chex.Array | None = None,
  offsets: chex.Array | None = None,
) -> chex.Array:
  """Returns what one converter makes of partial sums `[..., C]`.

  Ties of whole codes round to the even one. The gradient passes where the code
  does not clip. Each column's own, `[C]`: relative `gains` errors, of what it
  converts, and `offsets`, that are added to it, in the units of sums.
  """
  ideal, columns = sums, (1,) * (sums.ndim - 1) + (-1,)
  if gains is not None:
    sums = sums + sums * gains.reshape(columns)
  if offsets is not None:
    sums = sums + offsets.reshape(columns)
  step, low, high, middle, threshold = (
    jnp.asarray(x, sums.dtype) for x in converter
  )
  if threshold.ndim:
    threshold = threshold.reshape(columns)
  # An ideal converter's step is 0: dividing by it would make gradients NaN.
  x = (sums - threshold) / jnp.where(step == 0, 1, step)
  code = jnp.where(middle == 0, jnp.round(x), jnp.floor(x) + middle)
  clipped = jnp.clip(code, low, high)
  passed = jnp.where(clipped == code, sums, 0)
  value = jax.lax.stop_gradient(clipped * step)
  value = value + (passed - jax.lax.stop_gradient(passed))
  return jnp.where(step == 0, ideal, value)
