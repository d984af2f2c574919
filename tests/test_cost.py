"""Cost model against the published networks and hand counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax import resnet
from hawis_jax import variables
from hawis_jax import widths


@pytest.mark.parametrize(
  "vector, weights, macs, arrays",
  [
    (widths.PRESETS["resnet20_1x"], 0.282e6, 0.054e9, 111),
    (widths.PRESETS["resnet20_hawis_a"], 3.32e6, 0.710e9, 1020),
    (widths.PRESETS["resnet20_hawis_b"], 5.74e6, 1.146e9, 1600),
    (widths.PRESETS["resnet20_4x"], 4.33e6, 0.698e9, 1062),
  ],
)
def test_published_networks(vector, weights, macs, arrays):
  geometry = cost.cifar_geometry(20, (32, 32, 3), 32, 10, (64, 64))
  got = cost.network_cost(np.array(vector, np.int64), geometry)
  assert got.arrays == arrays
  np.testing.assert_allclose(got.macs, macs, rtol=0.005)
  np.testing.assert_allclose(got.weights, weights, rtol=0.005)


@pytest.mark.parametrize(
  "preset, stem, weights, macs, arrays",
  [
    # The reference says 27.9 G: it counts the stem's 1x1 product after its
    # pooling, which the network does before.
    ("hawis_a", "7x7", 165e6, 28.1e9, 40.7e3),
    ("hawis_b", "3x3", 250e6, 34.9e9, 61.8e3),
  ],
)
def test_published_imagenet_networks(preset, stem, weights, macs, arrays):
  vector = np.array(widths.PRESETS[f"resnet18_{preset}"], np.int64)
  geometry = cost.imagenet_geometry(stem, 224, 32, 1000, (64, 64))
  got = cost.network_cost(vector, geometry)
  np.testing.assert_allclose(got[:3], (arrays, macs, weights), rtol=0.002)


def test_a_budget_needs_a_chain():
  geometry = cost.imagenet_geometry("7x7", 224, 32, 1000, (64, 64))
  assert not cost.is_chain(geometry)
  with pytest.raises(errors.InputError, match="projection shortcuts"):
    cost.pair_costs(np.full((17, 2), 8), geometry, "arrays")


@pytest.mark.parametrize("stem", ["7x7", "3x3"])
def test_stored_weights_are_those_of_the_network(stem):
  """Counted from the kernels' shapes and from the geometry."""
  vector = tuple(int(w) for w in np.random.default_rng().integers(1, 99, 17))
  module = resnet.imagenet_resnet18(vector, 7, stem, image_size=96, levels=4)
  params = variables.shapes(module, (96, 96, 3))["params"]
  geometry = cost.imagenet_geometry(stem, 96, 4, 7, (16, 24))
  expected = cost.network_cost(np.array(vector), geometry)
  got = cost.stored_weights(params, (16, 24))
  assert got == {"arrays": expected.arrays, "weights": expected.weights}


def test_hand_count_of_a_small_net():
  """Depth 8 on 8x8x1, 2 levels; tiles 16 rows x 8 columns."""
  geometry = cost.cifar_geometry(8, (8, 8, 1), 2, 10, (16, 8))
  vector = np.array([4, 4, 4, 9, 9, 17, 17])
  rows = np.array([2, 4, 4, 4, 9, 9, 17]) * 9
  positions = np.array([64, 64, 64, 16, 16, 4, 4])
  got = cost.network_cost(vector, geometry)
  # ceil(rows / 16) x ceil(columns / 8): 18 36 36 36 81 81 153 rows; head 17.
  assert got.arrays == 2 + 3 + 3 + 3 * 2 + 6 * 2 + 6 * 3 + 10 * 3 + 2 * 2
  assert got.weights == (rows * vector).sum() + 170
  assert got.macs == (rows * vector * positions).sum() + 170


def test_pair_costs_add_up_and_jit_agrees():
  rng = np.random.default_rng()
  space = widths.width_space(((8, 16, 24), (16, 40), (32, 64, 80)), 7)
  geometry = cost.cifar_geometry(8, (9, 9, 3), 8, 10, (64, 64))
  index = np.array([rng.integers(len(c)) for c in space.choices])
  vector = space.table[np.arange(7), index]
  total = cost.network_cost(vector, geometry)
  for kind in ("arrays", "macs"):
    pairs = cost.pair_costs(space.table, geometry, kind)
    chain = pairs[0, 0, index[0]] + sum(
      pairs[layer, index[layer - 1], index[layer]] for layer in range(1, 7)
    )
    assert chain == getattr(total, kind)
  jitted = jax.jit(lambda w: cost.network_cost(w, geometry))(
    jnp.asarray(vector, jnp.int32)
  )
  assert int(jitted.arrays) == total.arrays
  np.testing.assert_allclose(jitted.macs, total.macs, rtol=1e-5)


def test_jitted_macs_do_not_overflow():
  geometry = cost.cifar_geometry(20, (224, 224, 3), 32, 10, (64, 64))
  vector = np.array(widths.PRESETS["resnet20_hawis_b"], np.int64)
  exact = cost.network_cost(vector, geometry).macs
  assert exact > 2**31
  jitted = jax.jit(lambda w: cost.network_cost(w, geometry))(
    jnp.asarray(vector, jnp.int32)
  )
  np.testing.assert_allclose(jitted.macs, exact, rtol=1e-5)
