"""Intervals over chips: coverage by simulation, pairing, crossed errors."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from hawis_jax.robustness import statistics

_RUNS = 800


def _skewed(rng, *shape):
  """Accuracies near a ceiling, with a tail of bad chips."""
  return rng.beta(12, 1.5, shape)


def _normal(rng, *shape):
  return rng.normal(0.7, 0.03, shape)


def _interval(chips, statistic):
  """That of `summarize`, alone."""
  if statistic == "mean":
    return statistics.mean_interval(chips)
  if statistic in ("median", "p5"):
    return statistics.quantile_interval(chips, _SHARES[statistic])
  return getattr(statistics, f"{statistic}_interval")(chips)


_SHARES = {"median": 0.5, "p5": 0.05}


@functools.cache
def _truth(draw):
  """Of chips without number."""
  many = np.sort(draw(np.random.default_rng(1), 2_000_000))
  return {
    "mean": many.mean(),
    "std": many.std(),
    "cvar": many[: many.size // 4].mean(),
    "median": np.median(many),
    "p5": np.percentile(many, 5),
  }


@pytest.mark.parametrize("draw", [_normal, _skewed])
@pytest.mark.parametrize("statistic", ["mean", "std", "cvar", "median", "p5"])
def test_intervals_cover_the_truth(draw, statistic, rng):
  """Nominal 95 % intervals of 96 chips cover 93 to 97 % of the time."""
  covered, truth = 0, _truth(draw)[statistic]
  for chips in draw(rng, _RUNS, 96):
    low, high = _interval(chips, statistic)
    covered += low <= truth <= high
  # Ranks can't be in between: theirs are a little too wide.
  most = 0.99 if statistic in ("median", "p5") else 0.97
  if not 0.93 <= covered / _RUNS <= most:  # then it must be the draw's luck
    edge = 0.93 if covered / _RUNS < 0.93 else most
    assert stats.binomtest(covered, _RUNS, edge).pvalue > 1e-4


def test_interval_after_an_adaptive_stop_covers_the_truth(rng):
  target, covered, counts = 0.012, 0, []
  for _ in range(_RUNS):
    pool = _skewed(rng, 4096)
    count = 32
    while True:
      wanted = statistics.chips_needed(pool[:count], target, 4096)
      if wanted == count:
        break
      assert wanted > count
      count = wanted
    low, high = statistics.mean_interval(pool[:count])
    assert (high - low) / 2 <= target
    counts.append(count)
    covered += low <= 12 / 13.5 <= high
  share = covered / _RUNS
  assert share >= 0.93 or stats.binomtest(covered, _RUNS, 0.93).pvalue > 1e-4
  # By theory: (1.96 sigma / target)^2 chips.
  sigma = stats.beta(12, 1.5).std()
  assert np.median(counts) == pytest.approx(
    (1.96 * sigma / target) ** 2, rel=0.3
  )


def test_adaptive_stop_ends_at_the_most(rng):
  values = rng.uniform(0, 1, 32)
  assert statistics.chips_needed(values, 1e-6, 100) == 100
  assert statistics.chips_needed(values, 0.5, 100) == 32
  assert statistics.chips_needed(np.full(32, 0.7), 1e-6, 100) == 32


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_summary_is_consistent(values):
  got = statistics.summarize(values)
  array = np.array(values)
  assert got["chips"] == len(values)
  np.testing.assert_allclose(got["mean"], array.mean())
  np.testing.assert_allclose(got["median"], np.median(array))
  np.testing.assert_allclose(got["p5"], np.percentile(array, 5))
  assert (got["worst"], got["best"]) == (min(values), max(values))
  worst = sorted(values)[: int(np.ceil(len(values) / 4))]
  np.testing.assert_allclose(got["cvar"], np.mean(worst))
  for name in ("std", "cvar"):
    ends = _interval(array, name)
    assert (got["intervals"][name] is None) == (ends is None)
  for ends in filter(None, (got["ci95"], *got["intervals"].values())):
    assert None in ends or ends[0] <= ends[1]
  assert 0 <= got["ci95"][0] <= got["ci95"][1] <= 1
  assert got == statistics.summarize(values)


@pytest.mark.parametrize("common", [0.1, 0.8312, 1 / 3])
@pytest.mark.parametrize("chips, others", [(64, 1), (96, 3), (64, 6)])
def test_chips_that_are_almost_all_alike(common, chips, others, rng):
  """Resamples of equal chips have no spread, but for rounding."""
  values = np.full(chips, common)
  values[:others] = rng.uniform(0, 1, others)
  got = statistics.summarize(values)
  low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  width = high - low
  assert low - 8 * width < got["ci95"][0] <= got["mean"] <= got["ci95"][1]
  assert got["ci95"][1] < high + 8 * width
  again = statistics.paired_difference(values, np.full(chips, common))
  assert abs(again["ci95"][0]) < 9 * width + abs(got["mean"] - common)
  flat = statistics.summarize(np.full(chips, common))
  np.testing.assert_allclose(flat["ci95"], common)


def test_one_pair_decides_nothing():
  assert statistics.paired_difference([0.9], [0.8])["verdict"] == "undecided"


@pytest.mark.parametrize("chips, rtol", [(15, 1e-7), (20_000, 1e-6)])
def test_few_chips_have_students_interval_and_many_the_normal_one(
  chips, rtol, rng
):
  values = rng.beta(12, 1.5, chips)
  reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  got = statistics.summarize(values)["ci95"]
  np.testing.assert_allclose(got, reference, rtol)


@pytest.mark.parametrize("chips, bounded", [(64, False), (80, True)])
def test_few_chips_cannot_bound_their_5th_percentile(chips, bounded, rng):
  """The least of 64 chips is above it with a chance of 0.95^64 = 3.8 %."""
  got = statistics.summarize(rng.normal(0.7, 0.01, chips))
  assert (got["intervals"]["p5"][0] is not None) == bounded


def test_paired_interval_is_narrower_where_chips_matter(rng):
  chip = rng.normal(0, 0.05, 64)
  first = 0.8 + chip + rng.normal(0, 0.01, 64)
  second = 0.79 + chip + rng.normal(0, 0.01, 64)
  row = statistics.paired_difference(first, second)
  # sqrt(2 (0.05^2 + 0.01^2)) / sqrt(2 0.01^2) = 5.1
  assert 3 < row["narrowing"] < 8
  independent = statistics.paired_difference(first, rng.permutation(second))
  assert independent["narrowing"] < 1.5


@pytest.mark.parametrize("spread", [(0.0, 1.0), (0.8, 0.0), (0.5, 1.0)])
def test_errors_of_chips_and_images_are_told_apart(spread, rng):
  """Against drawing chips, or images, or both anew many times."""
  chips, images, runs = 24, 120, 1000

  def effects():
    of_chips = rng.normal(1, spread[0], (chips, 1))
    return of_chips, rng.normal(0, spread[1], images)

  fixed = effects()

  def table(chip, image):
    chance = stats.norm.cdf(chip + image)
    return rng.uniform(size=chance.shape) < chance

  found, means = [], {"chips": [], "images": [], "total": []}
  for _ in range(runs):
    fresh = effects()
    correct = table(*fresh)
    found.append(statistics.standard_errors(correct.sum(1), correct.sum(0)))
    means["total"].append(correct.mean())
    means["chips"].append(table(fresh[0], fixed[1]).mean())
    means["images"].append(table(fixed[0], fresh[1]).mean())
  squared = {name: np.mean([f[name] ** 2 for f in found]) for name in found[0]}
  # A factor's own error holds its share of the rest, as a fixed other factor
  # leaves it; the total holds the rest once.
  assert np.sqrt(squared["total"]) == pytest.approx(
    np.std(means["total"]), rel=0.12
  )
  for name in ("chips", "images"):
    assert np.sqrt(squared[name]) == pytest.approx(
      np.std(means[name]), rel=0.35
    )


def test_one_chip_has_the_binomial_error(rng):
  correct = rng.uniform(size=400) < 0.9
  got = statistics.standard_errors([correct.sum()], correct.astype(int))
  assert got["chips"] is None and got["total"] is None
  share = correct.mean()
  assert got["images"] == pytest.approx(np.sqrt(share * (1 - share) / 399))
