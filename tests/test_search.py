"""The reward, the chips behind it, and the choice of finalists."""

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import finalists
from hawis_jax import scoring


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9))
def test_robust_score_is_the_formula(seed, scenarios, chips):
  """Mean over scenarios of (1 - b) mean + b mean of the worst quarter."""
  rng = np.random.default_rng(seed)
  values = rng.uniform(size=(scenarios, chips, 5)).astype(np.float32)
  weight = float(rng.uniform())
  expected = np.zeros(5)
  for scenario in values.astype(np.float64):
    worst = np.sort(scenario, axis=0)[: int(np.ceil(chips / 4))]
    expected += (1 - weight) * scenario.mean(0) + weight * worst.mean(0)
  got = scoring.robust_score(
    jnp.asarray(values.reshape(-1, 5)), scenarios, weight
  )
  np.testing.assert_allclose(got, expected / scenarios, atol=1e-5)


def test_chips_are_shared_by_scenarios():
  keys = scoring.chip_keys(jax.random.key(3), 4, 3)
  keys = np.stack([jax.random.key_data(k) for k in keys])
  np.testing.assert_array_equal(keys[0], keys[1])
  np.testing.assert_array_equal(keys[0], keys[2])
  assert len(np.unique(keys[0], axis=0)) == 4


def test_finalists_are_distinct_and_one_lucky_score_counts_half():
  choices = np.array([[0, 1], [2, 2], [0, 1], [0, 1], [1, 0], [2, 2]])
  gains = np.array([0.03, -0.01, 0.02, 0.04, 0.044, 0.01])
  best = finalists.best_vectors(choices, gains, 2)
  # (0 1), scored thrice: 0.09 / 4; (1 0), once: 0.044 / 2.
  assert [tuple(vector.tolist()) for vector, _ in best] == [(0, 1), (1, 0)]
  np.testing.assert_allclose([gain for _, gain in best], [0.0225, 0.022])
  everything = finalists.best_vectors(choices, gains, 10)
  assert len(everything) == 3
  np.testing.assert_allclose(everything[-1][1], 0, atol=1e-9)


@pytest.mark.parametrize("num", [1, 3])
def test_finalists_are_the_best_ones(num):
  rng = np.random.default_rng()
  choices = np.arange(20)[:, None]
  gains = rng.permutation(20) / 100
  best = finalists.best_vectors(choices, gains, num)
  expected = np.argsort(-gains)[:num]
  assert [int(vector[0]) for vector, _ in best] == list(expected)


def test_finalists_are_chosen_by_what_a_method_believes():
  choices = np.arange(20)[:, None]
  gains = np.random.default_rng().permutation(20) / 100
  best = finalists.best_vectors(
    choices, gains, 2, lambda c: -abs(c[:, 0] - 7.1)
  )
  assert [int(vector[0]) for vector, _ in best] == [7, 8]


def test_the_front_is_what_no_other_dominates():
  rng = np.random.default_rng()
  points = rng.integers(0, 8, (30, 2))
  entries = [
    {
      "budget": 0,
      "widths": [int(i)],
      "score": float(score),
      "cost": {"energy_joule": float(energy)},
    }
    for i, (score, energy) in enumerate(points)
  ]
  got = finalists.front({"a": entries[:15], "b": entries[15:]})
  expected = {
    (float(score), float(energy))
    for score, energy in points
    if not any(
      s >= score and e <= energy and (s, e) != (score, energy)
      for s, e in points
    )
  }
  assert {(p["score"], p["energy_joule"]) for p in got} == expected
  assert len(got) == len(expected)
  assert [p["energy_joule"] for p in got] == sorted(
    p["energy_joule"] for p in got
  )
