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

MOST_BITS = 16


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


def unsigned(bits: chex.Numeric, most: chex.Numeric) -> Converter:
  """Returns 2^b codes from 0 to `most`, of currents that have no sign.

  The LSB is at least one unit: 1 as `most` is `granular`. `bits` are as above.
  """
  ends = 2.0 ** jnp.asarray(bits) - 1
  return _converter(bits, jnp.maximum(most / jnp.maximum(ends, 1), 1), 0, ends)


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
  capacitors: chex.Array | None = None,
  inl: chex.Array | None = None,
) -> chex.Array:
  """Returns what one converter makes of partial sums `[..., C]`.

  Ties of whole codes round to the even one. The gradient passes where the code
  does not clip.

  Args:
    sums: in units of one weight of 1 at one input of 1.
    converter: its codes.
    gains: each column's relative error of what it converts, `[C]`.
    offsets: that are added to it, in the units of sums, `[C]`.
    capacitors: each column's errors of what its bits add to the level that sums
      are compared with [LSB], `[16, C]`, see `defects.capacitor_errors`.
    inl: deviations [LSB] of the levels at which codes change, see
      `Device.adc_inl`.
  """
  ideal = sums
  sums, x, code, clipped = _codes(sums, converter, gains, offsets)
  step, low, high, middle, _ = (jnp.asarray(y, sums.dtype) for y in converter)
  passed = jnp.where(clipped == code, sums, 0)
  if capacitors is not None or inl is not None:
    found = _approximated(x, low, high, middle, capacitors, inl)
    # A sum that is no number reaches no level, and would be the least code.
    clipped = jnp.where(jnp.isnan(x), x, found)
  value = jax.lax.stop_gradient(clipped * step)
  value = value + (passed - jax.lax.stop_gradient(passed))
  return jnp.where(step == 0, ideal, value)


def clips(
  sums: chex.Array,
  converter: Converter,
  gains: chex.Array | None = None,
  offsets: chex.Array | None = None,
) -> chex.Array:
  """Returns which sums `[..., C]` are beyond the codes' ends, bool `[..., C]`.

  Arguments are those of `convert`.
  """
  _, _, code, clipped = _codes(sums, converter, gains, offsets)
  return (clipped != code) & (jnp.asarray(converter.step) != 0)


def _codes(sums, converter, gains, offsets):
  """Returns what is converted, it in LSB, its ideal code, and that clipped."""
  columns = (1,) * (sums.ndim - 1) + (-1,)
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
  return sums, x, code, jnp.clip(code, low, high)


def _approximated(x, low, high, middle, capacitors, inl):
  """Returns the codes that successive approximation finds for x [LSB].

  It adds bits from the greatest on, and keeps those up to whose level x
  reaches: of levels that rise as codes do, the greatest code that x reaches.
  """
  columns = (1,) * (x.ndim - 1) + (-1,)
  most, above, error = high - low, jnp.zeros_like(x), jnp.zeros_like(x)
  for bit in reversed(range(MOST_BITS)):
    trial, wrong = above + 2.0**bit, error
    if capacitors is not None:
      wrong = error + capacitors[bit].reshape(columns)
    level = low + trial - 0.5 + wrong
    if inl is not None:
      place = (trial - 1) / jnp.maximum(most - 1, 1) * (len(inl) - 1)
      first = jnp.clip(jnp.floor(place), 0, max(len(inl) - 2, 0)).astype(int)
      rest = jnp.clip(place - first, 0, 1)
      level += (1 - rest) * inl[first] + rest * inl[first + 1]
    # A tie goes to the even code, and a sense amplifier's to the upper one.
    even = (low + trial) % 2 == middle
    reached = (trial <= most) & ((x > level) | (even & (x == level)))
    above = jnp.where(reached, trial, above)
    error = jnp.where(reached, wrong, error)
  return low + above
