"""Width spaces, uniform scaling, presets."""

import re

import numpy as np
import pytest

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.networks import width_vectors


def test_uniform_net_is_the_widest_within_the_budget():
  space = width_vectors.width_space(
    ((8, 16, 24, 32), (16, 32, 48, 64), (32, 64, 96, 128)), 7
  )
  geometry = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
  base = (8, 8, 8, 16, 16, 32, 32)

  def arrays(vector):
    return int(cost.network_cost(np.array(vector), geometry).arrays)

  for factor in (1, 2, 3, 4):
    scaled = tuple(factor * w for w in base)
    got = width_vectors.uniform_widths(space, base, arrays, arrays(scaled))
    assert arrays(got) <= arrays(scaled)
    assert all(g >= s for g, s in zip(got, scaled, strict=True))
  assert width_vectors.uniform_widths(space, base, arrays, 1) is None

  def limited(vector):
    return np.inf if max(vector) > 64 else arrays(vector)

  got = width_vectors.uniform_widths(space, base, limited, 1e9, slack=1.0)
  assert got == (16, 16, 16, 32, 32, 64, 64)


def test_choices_of_widths_are_their_indices(rng):
  space = width_vectors.WidthSpace(((8, 16, 24), (5, 7), (32,)))
  choices = rng.integers((3, 2, 1), size=(9, 3))
  vectors = space.table[np.arange(3), choices]
  np.testing.assert_array_equal(space.choices_of(vectors), choices)
  np.testing.assert_array_equal(
    width_vectors.take(space.table, choices), vectors
  )


@pytest.mark.parametrize(
  "choices, message",
  [
    (((8,), (16,)), "got 2 tuples"),
    (((8,), (16,), ()), "layer 5: got ()"),
    (((16, 8), (16,), (32,)), "layer 0"),
    (((0, 8), (16,), (32,)), "layer 0"),
    (((8.0,), (16,), (32,)), "layer 0"),
  ],
)
def test_bad_choices_are_named(choices, message):
  with pytest.raises(errors.InputError, match=re.escape(message)):
    width_vectors.width_space(choices, 7, name="config.space.choices")


def test_vectors_outside_the_choices_are_named():
  space = width_vectors.WidthSpace(((8, 16), (8, 16)))
  with pytest.raises(errors.InputError, match=r"found\[1\]: got 12, allowed"):
    space.check((8, 12), "found")
  with pytest.raises(errors.InputError, match="got 3 widths, needed are 2"):
    space.check((8, 8, 8))
