"""How leaves of a training state are split."""

import math

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import pytest

from hawis_jax.runtime import sharding


def _mesh(devices):
  """As of `training_mesh`, without the devices."""
  factors = sharding._prime_factors(devices)
  names = tuple(f"data{index}" for index in range(len(factors)))
  return jax.sharding.AbstractMesh((1, *factors), (sharding.SAMPLE, *names))


def _parts(shape, devices):
  """Into how many parts a leaf is split, and how its axes are."""
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  where = sharding.split(leaf, _mesh(devices))
  own = where.shard_shape(shape)
  parts = [a // b for a, b in zip(shape, own, strict=True)]
  return math.prod(parts), parts


@given(
  st.tuples(*[st.sampled_from([1, 3, 7])] * 2, *[st.integers(1100, 1800)] * 2),
  st.sampled_from([1, 2, 3, 6, 8, 12]),
  st.sampled_from([1, 2, 8, 9]),
)
def test_more_devices_never_hold_more(shape, devices, times):
  few, _ = _parts(shape, devices)
  many, parts = _parts(shape, devices * times)
  assert many % few == 0
  assert (devices * times) % many == 0
  assert all(n % part == 0 for n, part in zip(shape, parts, strict=True))


@pytest.mark.parametrize(
  "shape, devices, parts",
  [
    # All devices on the longest axis that they divide.
    ((3, 3, 1064, 560), 8, [1, 1, 8, 1]),
    ((3, 3, 504, 1152), 8, [1, 1, 1, 8]),
    # 1788 and 1780 are four times odd numbers: 16 parts on any more devices.
    ((3, 3, 1788, 1780), 8, [1, 1, 4, 2]),
    ((3, 3, 1788, 1780), 256, [1, 1, 4, 4]),
    ((3, 3, 1792, 1788), 256, [1, 1, 256, 1]),
    ((3, 3, 1065, 1065), 256, [1, 1, 1, 1]),
    # Each prime on the axis that it divides.
    ((3, 3, 1066, 1065), 6, [1, 1, 2, 3]),
    ((8, 8), 8, [1, 1]),  # small
  ],
)
def test_splits(shape, devices, parts):
  assert _parts(shape, devices)[1] == parts
