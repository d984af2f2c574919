"""Counts, tables and shapes of cost: published networks, hand counts.

What a component costs: test_cost_technology.py.
"""

from flax import traverse_util
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.networks import width_vectors

_CIFAR = cost.cifar_geometry(20, (32, 32, 3), 32, 10, (64, 64))
_IMAGENET = {
  stem: cost.imagenet_geometry(stem, 224, 32, 1000, (64, 64))
  for stem in ("7x7", "3x3")
}


@pytest.mark.parametrize(
  "name, geometry, weights, macs, arrays, rtol",
  [
    ("resnet20_1x", _CIFAR, 0.282e6, 0.054e9, 111, 0.005),
    ("resnet20_hawis_a", _CIFAR, 3.32e6, 0.710e9, 1020, 0.005),
    ("resnet20_hawis_b", _CIFAR, 5.74e6, 1.146e9, 1600, 0.005),
    ("resnet20_4x", _CIFAR, 4.33e6, 0.698e9, 1062, 0.005),
    # The reference says 27.9 G: it counts the stem's 1x1 product after its
    # pooling, which the network does before.
    ("resnet18_hawis_a", _IMAGENET["7x7"], 165e6, 28.11e9, 40.7e3, 0.001),
    ("resnet18_hawis_b", _IMAGENET["3x3"], 250e6, 34.9e9, 61.8e3, 0.001),
  ],
)
def test_published_networks(name, geometry, weights, macs, arrays, rtol):
  got = cost.network_cost(
    np.array(width_vectors.PRESETS[name], np.int64), geometry
  )
  exact = geometry is _CIFAR
  np.testing.assert_allclose(got.arrays, arrays, 0 if exact else rtol)
  np.testing.assert_allclose((got.macs, got.weights), (macs, weights), rtol)


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


def _random_hardware(rng, layers):
  copies = tuple(int(n) for n in rng.integers(1, 9, layers))
  return cost.Hardware(
    tile_shape=(int(rng.integers(4, 200)), int(rng.integers(4, 200))),
    g_on=1e-4,
    g_off=float(rng.uniform(1e-7, 9e-5)),
    read_voltage=0.2,
    adc_bits=int(rng.choice([0, 0, 1, 6])),
    technology=list(cost.TECHNOLOGIES.values())[rng.integers(2)],
    duplication=copies if rng.integers(2) else copies[0],
    activity=float(rng.uniform(0, 1)),
  )


def _random_geometry(rng, family=None):
  """Of a family: 0, a chain; 1 and 2, with shortcuts that skip layers."""
  family = rng.integers(3) if family is None else family
  if family == 0:
    hardware = _random_hardware(rng, 13)
    return cost.cifar_geometry(14, (9, 8, 2), 5, 10, hardware)
  hardware = _random_hardware(rng, 17)
  stem = ("7x7", "3x3")[family - 1]
  return cost.imagenet_geometry(stem, 96, 4, 7, hardware)


@given(st.integers(0, 2**31 - 1), st.sampled_from(list(cost.KINDS)))
@settings(max_examples=30)
def test_tables_combine_to_the_cost_of_vectors(seed, kind):
  rng = np.random.default_rng(seed)
  geometry = _random_geometry(rng)
  layers = len(geometry.positions)
  choices = rng.integers(1, 200, (layers, 4))
  tables = cost.tables(choices, geometry, kind)
  chain = layers == 13
  assert tables.shape == (layers, 1 if chain else 4, 4, 4)
  assert tables.dtype == (np.int64 if kind in cost.COUNTS else np.float64)
  index = rng.integers(0, 4, (layers, 5))
  vectors = np.take_along_axis(choices, index, 1).T
  # Layers before the first take choice 0, which must not matter.
  index = np.concatenate([np.zeros((2, 5), np.int64), index])
  entries = np.array(
    [
      tables[
        layer, 0 if chain else index[layer], index[layer + 1], index[layer + 2]
      ]
      for layer in range(layers)
    ]
  )
  combined = entries.sum(0) if cost.KINDS[kind].additive else entries.max(0)
  expected = cost.KINDS[kind].of(cost.network_cost(vectors, geometry))
  if kind in cost.COUNTS:
    np.testing.assert_array_equal(combined, expected)
  else:
    np.testing.assert_allclose(combined, expected, rtol=1e-12)
  assert (tables[0] == tables[0, :1, :1]).all()
  assert (tables[1] == tables[1, :1]).all()


def test_a_table_of_another_kind_is_refused():
  geometry = cost.cifar_geometry(8, (8, 8, 1), 2, 10, (16, 8))
  with pytest.raises(errors.InputError, match="got 'power', allowed"):
    cost.tables(np.full((7, 2), 8), geometry, "power")


@pytest.mark.parametrize(
  "widths, message",
  [
    ((-4, 4, 4, 6, 6, 8, 8), "widths: got -4 to 8, allowed are 1 to 65536 ch"),
    ((0, 4, 4, 6, 6, 8, 8), "widths: got 0 to 8, allowed"),
    ((4, 4, 4, 6, 6, 8, 2**40), "widths: got 4 to 1099511627776, allowed"),
    ((4.7, 4, 4, 6, 6, 8, 8), "widths: got float64 of shape .*7.*, needed a"),
    ((4, 4, 4, 6, 6, 8), r"widths: got int64 of shape .*6.*, needed .*, 7\]"),
  ],
)
def test_widths_are_whole_numbers_of_channels(widths, message):
  geometry = cost.cifar_geometry(8, (8, 8, 1), 2, 10, (16, 8))
  for function in (cost.network_cost, cost.components, cost.utilisation):
    with pytest.raises(errors.InputError, match=message):
      function(widths, geometry)
  with pytest.raises(errors.InputError, match=message):
    cost.tables(np.array([widths] * 2).T, geometry, "energy")


def test_a_network_has_products_of_whole_numbers():
  for make, message in (
    (lambda: cost.cifar_geometry(9, (8, 8, 1), 2, 10), "depth: got 9, allowed"),
    (lambda: cost.cifar_geometry(8, (8, 8, 1), 0, 10), "product stem: got 0,"),
    (lambda: cost.cifar_geometry(8, (8, 8, 1), 2, -1), "product head: got -1,"),
    (lambda: cost.imagenet_geometry("5x5", 64, 2, 9), "stem: got '5x5', allow"),
  ):
    with pytest.raises(errors.InputError, match=message):
      make()


def test_a_product_reaches_back_two_layers_at_most():
  products = (cost.Product(cost.Layer(0), cost.Layer(3), 9, 4, "far"),)
  geometry = cost.Geometry(products, (4,) * 4, (64, 64))
  with pytest.raises(errors.InputError, match="product far: got inputs of"):
    cost.tables(np.full((4, 2), 8), geometry, "arrays")


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=60)
def test_no_cost_falls_with_a_width(seed):
  """Exactly, which budgets rely on; one width grows by one or by more."""
  rng = np.random.default_rng(seed)
  geometry = _random_geometry(rng)
  layers = len(geometry.positions)
  vectors = rng.integers(1, rng.choice([8, 40, 300]), (50, layers))
  wider = vectors.copy()
  wider[np.arange(50), rng.integers(0, layers, 50)] += rng.choice(
    [1, 1, 30], 50
  )
  narrow, wide = (cost.network_cost(v, geometry) for v in (vectors, wider))
  for field, a, b in zip(cost.Cost._fields, narrow, wide, strict=True):
    assert (a <= b).all(), field


@pytest.mark.parametrize("family", [0, 2])
def test_jax_agrees_with_numpy(family, rng):
  geometry = _random_geometry(rng, family)
  vectors = rng.integers(1, 300, (2, 3, len(geometry.positions)))
  exact = cost.network_cost(vectors, geometry)
  assert all(x.shape == (2, 3) for x in exact)
  one = cost.network_cost(vectors[1, 2], geometry)
  assert all(a[1, 2] == b for a, b in zip(exact, one, strict=True))

  def of_one(w):
    return cost.network_cost(w, geometry)

  for function in (of_one, jax.vmap(jax.vmap(of_one))):
    got = jax.jit(function)(vectors.astype(np.int32))
    np.testing.assert_array_equal(got.arrays, exact.arrays)
    np.testing.assert_array_equal(got.weights, exact.weights)
    for a, b in zip(got, exact, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("family", range(3))
def test_layers_and_components_sum_to_the_network(family, rng):
  geometry = _random_geometry(rng, family)
  vectors = rng.integers(1, 300, (4, len(geometry.positions)))
  total = cost.network_cost(vectors, geometry)
  layers = cost.layer_costs(vectors, geometry)
  assert layers.arrays.shape == (4, len(geometry.names))
  for field in cost.Cost._fields:
    parts = getattr(layers, field)
    whole = parts.max(-1) if field == "interval_second" else parts.sum(-1)
    np.testing.assert_allclose(whole, getattr(total, field), rtol=1e-12)
  parts = cost.components(vectors, geometry)
  assert tuple(parts) == cost.COMPONENTS
  for field in cost.Amount._fields:
    whole = sum(getattr(amount, field) for amount in parts.values())
    np.testing.assert_allclose(whole, getattr(total, field), rtol=1e-12)


@pytest.mark.parametrize("family", ["cifar", "7x7", "3x3"])
def test_products_are_the_kernels_of_the_network(family, rng):
  """By name, and by the weights of each; and the arrays that hold them."""
  tile = 16, 24
  if family == "cifar":
    vector, shape = tuple(rng.integers(1, 99, 13).tolist()), (8, 8, 3)
    module = resnet.cifar_resnet(14, vector, 7, levels=4)
    geometry = cost.cifar_geometry(14, shape, 4, 7, tile)
  else:
    vector, shape = tuple(rng.integers(1, 99, 17).tolist()), (96, 96, 3)
    module = resnet.imagenet_resnet18(
      vector, 7, family, image_size=96, levels=4
    )
    geometry = cost.imagenet_geometry(family, 96, 4, 7, tile)
  params = net_variables.shapes(module, shape)["params"]
  kernels = {
    "/".join(path[:-1]): int(np.prod(leaf.shape))
    for path, leaf in traverse_util.flatten_dict(params).items()
    if path[-1] == "kernel"
  }
  weights = cost.layer_costs(np.array(vector), geometry).weights
  assert dict(zip(geometry.names, weights.tolist(), strict=True)) == kernels
  expected = cost.network_cost(np.array(vector), geometry)
  got = cost.stored_weights(params, tile)
  assert got == {"arrays": expected.arrays, "weights": expected.weights}


def test_utilisation_of_a_small_net():
  geometry = cost.cifar_geometry(8, (8, 8, 1), 2, 10, (16, 8))
  used = cost.utilisation(np.array([4, 4, 4, 9, 9, 17, 17]), geometry)
  rows = np.array(
    [18 / 32] + [36 / 48] * 3 + [81 / 96] * 2 + [153 / 160, 17 / 32]
  )
  columns = [4 / 8] * 3 + [9 / 16] * 2 + [17 / 24] * 2 + [10 / 16]
  np.testing.assert_allclose(used.rows, rows)
  np.testing.assert_allclose(used.columns, columns)
  np.testing.assert_allclose(used.cells, np.multiply(rows, columns))


def test_jitted_macs_do_not_overflow():
  geometry = cost.cifar_geometry(20, (224, 224, 3), 32, 10, (64, 64))
  vector = np.array(width_vectors.PRESETS["resnet20_hawis_b"], np.int64)
  exact = cost.network_cost(vector, geometry).macs
  assert exact > 2**31
  jitted = jax.jit(lambda w: cost.network_cost(w, geometry).macs)
  got = jitted(vector.astype(np.int32))
  np.testing.assert_allclose(got, exact, rtol=1e-5)
