"""Rank correlation and stand-alone training of benchmarks/."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization

_FOLDER = str(pathlib.Path(__file__).parents[1] / "benchmarks")


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
  sys.path.insert(0, _FOLDER)
  yield
  sys.path.remove(_FOLDER)


def test_tau_is_scipys_and_ignores_a_vector_drawn_twice(rng):
  import rank_correlation

  x, y = rng.integers(0, 6, (2, 20))
  # Distinct vectors twice each: the same signs four times, the same tau.
  counts = np.stack(
    [np.ones(20), np.full(20, 2), np.r_[np.ones(9), np.zeros(11)]]
  )
  whole, twice, part = rank_correlation.tau(x, y, counts)
  assert whole == pytest.approx(stats.kendalltau(x, y).statistic)
  assert twice == pytest.approx(whole)
  assert part == pytest.approx(stats.kendalltau(x[:9], y[:9]).statistic)


def test_a_net_at_its_widths_trains_as_the_narrower_one(rng):
  """From the same weights, which have the narrower net's own variance."""
  import standalone

  widest, vector = (32, 32, 32, 48, 48, 64, 64), (16, 32, 8, 20, 33, 24, 64)
  wide, narrow = (
    resnet.cifar_resnet(8, w, 10, levels=4) for w in (widest, vector)
  )
  # Not Adam, which turns gradients of a rounding error into whole steps.
  optimizer = optax.sgd(0.1)
  key, shape = jax.random.key(rng.integers(2**31)), (8, 8, 1)
  start = jax.jit(optimization.init_state, static_argnums=(0, 2, 3))
  masked = start(wide, key, shape, optimizer)
  fresh = standalone.narrowed(masked.params, wide, jnp.array(vector))
  # Fresh shifts of 0 put dead channels exactly on the edge of the gradient.
  shifted = jax.tree.map(
    lambda x: x + rng.uniform(0.1, 0.4) if x.ndim == 1 else x, fresh
  )
  masked = masked.replace(params=shifted)
  example = net_variables.shapes(narrow, shape)
  cut = {
    name: jax.tree.map(
      lambda x, like: x[tuple(slice(n) for n in like.shape)],
      getattr(masked, name),
      example[name],
    )
    for name in ("params", "batch_stats")
  }
  sliced = optimization.TrainState(
    **cut, opt_state=optimizer.init(cut["params"])
  )
  kernel = cut["params"]["stage3_block0"]["conv1"]["kernel"]
  assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * 24)), rel=0.1)
  steps = [
    jax.jit(
      functools.partial(
        fixed_net.train_step,
        module=module,
        optimizer=optimizer,
        recipe=fixed_net.Recipe(),
      )
    )
    for module in (standalone.AtWidths(wide, jnp.array(vector)), narrow)
  ]
  for _ in range(2):
    batch = {
      "image": jnp.asarray(rng.integers(0, 256, (16, *shape)), jnp.uint8),
      "label": jnp.asarray(rng.integers(0, 10, 16)),
    }
    masked, first = steps[0](masked, batch)
    sliced, second = steps[1](sliced, batch)
    assert first["loss"] == pytest.approx(float(second["loss"]), rel=1e-2)
