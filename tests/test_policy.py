"""The policy: feasibility, the uniform start, a planted optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import budgets
from hawis_jax import cost
from hawis_jax import policy as policy_lib
from hawis_jax import widths

_SPACE = widths.width_space(((8, 24, 40), (16, 32, 72), (32, 64, 130)), 7)
_GEOMETRY = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
_COSTS = cost.tables(_SPACE.table, _GEOMETRY, "arrays")
_WINDOWS = ((40, 46), (60, 70))


@pytest.fixture(scope="module")
def setup():
  """(policy, params far from uniform, context)."""
  feasible = budgets.feasible_set(_SPACE, _COSTS, _WINDOWS)
  context = policy_lib.make_context(
    _SPACE,
    feasible,
    _COSTS,
    _GEOMETRY.positions,
    [high for _, high in _WINDOWS],
  )
  policy = policy_lib.Policy(3, 64)
  params = jax.jit(policy_lib.init, static_argnums=1)(
    jax.random.key(0), policy, context
  )
  return policy, params, context


def _arrays(context, choices):
  vectors = np.asarray(widths.take(context.widths, choices), np.int64)
  return cost.network_cost(vectors, _GEOMETRY).arrays


def _scrambled(params, scale):
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(
    jax.random.key(np.random.default_rng().integers(2**31)), len(leaves)
  )
  return tree.unflatten(
    [
      x + scale * jax.random.normal(k, x.shape)
      for k, x in zip(keys, leaves, strict=True)
    ]
  )


_propose = jax.jit(policy_lib.propose, static_argnums=1)


def test_every_proposal_is_within_its_budget(setup):
  """Whatever the parameters, even absurd ones."""
  policy, params, context = setup
  for scale in (0, 1, 30):
    proposals = _propose(
      jax.random.key(scale),
      policy,
      _scrambled(params, scale),
      context,
      jnp.repeat(jnp.arange(2), 128),
    )
    arrays = _arrays(context, proposals.choices).reshape(2, 128)
    for found, (low, high) in zip(arrays, _WINDOWS, strict=True):
      assert found.min() >= low and found.max() <= high
    assert np.isfinite(proposals.log_probs).all()
    assert np.isfinite(proposals.entropies).all()


def test_a_fresh_policy_is_the_uniform_sampler(setup):
  policy, params, context = setup
  windows = jnp.repeat(jnp.arange(2), 256)
  proposals = _propose(jax.random.key(5), policy, params, context, windows)
  total = np.asarray(proposals.log_probs).sum(1).reshape(2, 256)
  for window in range(2):
    counts = context.feasible.log_counts(window, context.feasible.start())
    first = np.exp(np.asarray(counts, np.float64))
    np.testing.assert_allclose(total[window], -np.log(first.sum()), rtol=1e-4)


def test_it_sees_the_budget(setup):
  """The same beginning, another budget: other logits."""
  policy, params, context = setup
  params = _scrambled(params, 0.5)
  # All choices of the first layer are possible in both windows.
  first = [
    policy_lib.evaluate(
      policy,
      params,
      context,
      jnp.array([window]),
      jax.vmap(context.feasible.sample, (0, None))(
        jax.random.split(jax.random.key(0), 1), window
      )
      .at[:, 0]
      .set(1),
    ).log_probs[0, 0]
    for window in (0, 1)
  ]
  assert abs(first[0] - first[1]) > 1e-3


def test_log_probabilities_are_those_of_the_draws(setup):
  """`evaluate` repeats `propose`; frequencies follow the probabilities."""
  policy, params, context = setup
  params = _scrambled(params, 0.5)
  windows = jnp.zeros(4096, jnp.int32)
  proposals = _propose(jax.random.key(6), policy, params, context, windows)
  again = jax.jit(policy_lib.evaluate, static_argnums=0)(
    policy, params, context, windows, proposals.choices
  )
  np.testing.assert_allclose(again.log_probs, proposals.log_probs, atol=1e-4)
  first = np.asarray(proposals.choices)[:, 0]
  expected = {
    int(c): float(np.exp(proposals.log_probs[first == c, 0][0]))
    for c in np.unique(first)
  }
  assert abs(sum(expected.values()) - 1) < 1e-3
  for choice, p in expected.items():
    count = int((first == choice).sum())
    assert stats.binomtest(count, 4096, min(p, 1.0)).pvalue > 1e-6


def test_rank_advantages():
  got = policy_lib.rank_advantages(jnp.array([0.1, 0.9, 0.5, 0.5, -7.0]))
  ranks = stats.rankdata([0.1, 0.9, 0.5, 0.5, -7.0])
  expected = (ranks - ranks.mean()) / ranks.std()
  np.testing.assert_allclose(got, expected, atol=1e-6)
  equal = policy_lib.rank_advantages(jnp.ones(8))
  np.testing.assert_array_equal(equal, jnp.zeros(8))
