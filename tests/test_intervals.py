"""Intervals over chips, and over chips and images: coverage by simulation."""

import functools
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from hawis_jax import errors
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
  assert statistics.chips_needed(np.full(128, 0.7), 1e-6, 200) == 128
  # Of fewer, nothing stops: the rare bad ones may all be missing.
  assert statistics.chips_needed(np.full(32, 0.7), 1e-6, 200) == 128
  assert statistics.chips_needed(values, 0.5, 100) == 100


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
    assert None in ends or 0 <= ends[0] <= ends[1]
  assert (got["ci95"] is None) == (len(values) == 1)
  assert got == statistics.summarize(values)


@pytest.mark.parametrize(
  "values, got",
  [
    ([95.0, 96.0, 94.0], "95.0, allowed are finite ones from 0.0 to 1.0"),
    ([0.5, -0.1], "-0.1,"),
    ([0.5, np.nan], "nan,"),
    ([0.5, np.inf], "inf,"),
    ([], "shape (0,), needed is [S]"),
    (0.5, "shape (),"),
    ([[0.5, 0.6]], "shape (1, 2),"),
  ],
)
def test_a_summary_of_impossible_values_is_refused(values, got):
  with pytest.raises(errors.InputError, match=re.escape(f"values: got {got}")):
    statistics.summarize(values)


def test_a_summary_is_in_the_unit_of_its_values():
  percent = statistics.summarize([95.0, 96.0, 94.0], high=100.0)
  share = statistics.summarize([0.95, 0.96, 0.94])
  np.testing.assert_allclose(percent["ci95"], 100 * np.array(share["ci95"]))
  with pytest.raises(errors.InputError, match="got -inf"):
    statistics.summarize([-np.inf], -np.inf, np.inf)


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
  flat = statistics.summarize(np.full(chips, common))
  np.testing.assert_allclose(flat["ci95"], common)


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


def _two_nets(rng, images, own, *, chips=32, luck=0.2, ours=0.1, shift=0.0):
  """Correct of two nets, bool `[S, N]` each, of equal population accuracy.

  An image is classified correctly where its margin, of both nets and of each,
  the chip's luck, of both and of each, and noise are above 0 together.

  Args:
    rng: of the draws.
    images: N.
    own: standard deviation of a net's own margins: where nets disagree.
    chips: S.
    luck: standard deviation of what chips do to both nets.
    ours: standard deviation of what they do to each.
    shift: of the first net's margins: it is really better.
  """
  common = rng.normal(1.5, 1, images) + rng.normal(0, luck, (chips, 1))
  return [
    common
    + rng.normal(better, own, images)
    + rng.normal(0, ours, (chips, 1))
    + 0.1 * rng.standard_normal((chips, images), np.float32)
    > 0
    for better in (shift, 0)
  ]


def _population(own, *, luck=0.2, ours=0.1, shift=0.0):
  """Accuracy of a net of `_two_nets`: its margins and noise are normal."""
  deviation = np.sqrt(1 + own**2 + luck**2 + ours**2 + 0.1**2)
  return stats.norm.cdf((1.5 + shift) / deviation)


@pytest.mark.parametrize(
  "images, disagree, nets",
  [
    (360, 0.05, dict(own=0.3, ours=0.02)),
    (360, 0.1, dict(own=0.62, ours=0.02)),
    (360, 0.1, dict(own=0.62, ours=0.1)),
    (360, 0.1, dict(own=0.3, luck=0.5, ours=0.45)),
    pytest.param(
      10_000, 0.05, dict(own=0.3, ours=0.02), marks=pytest.mark.slow
    ),
    pytest.param(
      10_000, 0.1, dict(own=0.62, ours=0.02), marks=pytest.mark.slow
    ),
  ],
)
def test_equal_nets_get_a_verdict_in_5_percent_at_most(
  images, disagree, nets, rng
):
  """32 chips; over chips alone it is up to 79 % of the trials."""
  runs, decided, of_chips, differ = 400, 0, 0, []
  for _ in range(runs):
    first, second = _two_nets(rng, images, **nets)
    differ.append((first != second).mean())
    row = statistics.paired_difference(first, second)
    low, high = row["ci95"]
    assert (row["p"] < 0.05) == (not low <= 0 <= high)
    decided += row["p"] < 0.05
    low, high = statistics.mean_interval(first.mean(1) - second.mean(1))
    of_chips += not low <= 0 <= high
  assert np.mean(differ) == pytest.approx(disagree, rel=0.1)
  share = decided / runs
  assert share <= 0.05 or stats.binomtest(decided, runs, 0.05).pvalue > 1e-4
  if nets["ours"] < 0.4:  # hardly anything but the images
    assert of_chips > 0.25 * runs


def test_a_better_net_is_found(rng):
  """3 points at 360 images of which 18 tell the nets apart."""
  gaps, found, covered = [], 0, 0
  truth = _population(0.3, shift=0.25) - _population(0.3)
  for _ in range(100):
    row = statistics.paired_difference(*_two_nets(rng, 360, 0.3, shift=0.25))
    gaps.append(row["difference"])
    found += row["p"] < 0.05 and row["difference"] > 0
    covered += row["ci95"][0] <= truth <= row["ci95"][1]
  assert 0.02 < np.mean(gaps) < 0.04
  assert found >= 80 and covered >= 88


def test_a_difference_of_one_chip_is_as_by_mcnemar(rng):
  """Exactly his test's p-value, within what is rounded to whole images."""
  for only_first, only_second in ((18, 6), (12, 12), (5, 0), (1, 0), (0, 0)):
    first, second = np.zeros((2, 1, 360), bool)
    first[0, :only_first] = second[0, 340 : 340 + only_second] = True
    row = statistics.paired_difference(first, second)
    apart = only_first + only_second
    exact = stats.binomtest(only_first, apart).pvalue if apart else 1
    middle = exact - stats.binom.pmf(only_first, apart, 0.5)
    assert row["over"] == "images" and middle - 0.02 < row["p"] < exact + 0.02
    assert row["difference"] == (only_first - only_second) / 360
    low, high = row["ci95"]
    assert low < row["difference"] < high


def test_nothing_decides_between_nets_of_one_image():
  row = statistics.paired_difference(np.ones((9, 1)), np.zeros((9, 1)))
  assert row["difference"] == 1 and row["p"] > 0.05


def test_pairing_narrows_where_nets_meet_the_same_luck(rng):
  first, second = _two_nets(rng, 360, 0.1, luck=0.5, ours=0.02)
  row = statistics.paired_difference(first, second)
  longer = np.concatenate([second, second[:3]])
  assert row == statistics.paired_difference(first, longer)
  others = rng.permutation(rng.permutation(second), axis=1)
  unpaired = statistics.paired_difference(first, others)
  assert np.ptp(unpaired["ci95"]) > 3 * np.ptp(row["ci95"])


def test_verdicts_are_those_of_holm():
  """By hand: 0.01 x 4, 0.012 x 3, 0.03 x 2, 0.04 x 1, never descending."""
  rows = [
    dict(p=p, difference=d, chips=16)
    for p, d in ((0.03, 0.1), (0.01, -0.1), (0.04, 0.1), (0.012, 0.1))
  ]
  got = statistics.verdicts(rows)
  np.testing.assert_allclose(
    [row["p_holm"] for row in got], [0.06, 0.04, 0.06, 0.04]
  )
  words = ["undecided", "behind", "undecided", "ahead"]
  assert [row["verdict"] for row in got] == words
  reasons = ["correction", None, "correction", None]
  assert [row["reason"] for row in got] == reasons
  assert statistics.verdicts([]) == []


@pytest.mark.parametrize(
  "chips, p, word, reason",
  [
    (1, 1e-9, "ahead", None),  # none is drawn
    (2, 1e-9, "undecided", "chips"),
    (15, 1e-9, "undecided", "chips"),
    (15, 0.04, "undecided", "chips"),  # more chips are needed in any case
    (16, 1e-9, "ahead", None),
    (16, 0.04, "undecided", "correction"),
    (4, 0.06, "undecided", "interval"),
    (16, 0.06, "undecided", "interval"),
  ],
)
def test_a_verdict_that_is_withheld_has_its_reason(chips, p, word, reason):
  others = [dict(p=1.0, difference=0.0, chips=16)] * 3
  first, *_ = statistics.verdicts(
    [dict(p=p, difference=0.1, chips=chips)] + others
  )
  assert (first["verdict"], first["reason"]) == (word, reason)


def test_a_table_of_equal_nets_has_no_verdict(rng):
  """Of 10 comparisons, by chance one were often decided."""
  runs, single, wrong = 100, 0, 0
  for _ in range(runs):
    nets = [_two_nets(rng, 360, 0.4, chips=16) for _ in range(10)]
    rows = [statistics.paired_difference(*pair) for pair in nets]
    single += any(row["p"] < 0.05 for row in rows)
    wrong += any(
      row["verdict"] != "undecided" for row in statistics.verdicts(rows)
    )
  assert stats.binomtest(wrong, runs, 0.05).pvalue > 1e-4 or wrong < 5
  assert single > 5


def _unequal_chips(rng, chips, images, rare):
  """Correct of two nets of 90 %, of which the first has the worse chips.

  A share of its chips, `rare`, has 20 % and the others more; or, of None, the
  effects of its chips are 20 times those of the second net's.
  """
  if rare:
    bad = rng.uniform(size=(chips, 1)) < rare
    usual = (0.9 - 0.2 * rare) / (1 - rare)
    bars = stats.norm.ppf(np.where(bad, 0.2, usual)), stats.norm.ppf(0.9)
    common, own, noise = np.sqrt(0.864), np.sqrt(0.096), 0.2
  else:
    common, own, noise = np.sqrt(0.99), 0.1, 0.1
    bars = [
      stats.norm.ppf(0.9) * np.sqrt(1.01 + of_chips**2)
      + rng.normal(0, of_chips, (chips, 1))
      for of_chips in (1, 0.05)
    ]
  shared = rng.normal(0, common, images)
  return [
    shared
    + rng.normal(0, own, images)
    + noise * rng.standard_normal((chips, images), np.float32)
    < bar
    for bar in bars
  ]


@pytest.mark.parametrize(
  "chips, images, rare, least, most",
  [
    (32, 1000, 0.02, 0.25, 0.52),
    (16, 1000, None, 0.03, 0.25),
    pytest.param(64, 1000, 0.02, 0.1, 0.36, marks=pytest.mark.slow),
    pytest.param(128, 5000, 0.01, 0.14, 0.44, marks=pytest.mark.slow),
  ],
)
def test_chips_that_verdicts_do_not_hold_for(
  chips, images, rare, least, most, rng
):
  """More than 5 % are false, as docs/monte_carlo.md says."""
  runs, decided, accuracies = 100, 0, []
  for _ in range(runs):
    nets = _unequal_chips(rng, chips, images, rare)
    accuracies.append([net.mean() for net in nets])
    decided += statistics.paired_difference(*nets)["p"] < 0.05
  np.testing.assert_allclose(np.mean(accuracies, 0), 0.9, atol=0.025)
  assert least <= decided / runs <= most


@pytest.mark.parametrize(
  "chips, images, luck", [(32, 360, 0.2), (32, 60, 0.5), (1, 100, 0.0)]
)
def test_total_interval_covers_the_population(chips, images, luck, rng):
  """Other chips and other images, near the ceiling of accuracies."""
  runs, covered = 400, 0
  truth = _population(0.3, luck=luck)
  for _ in range(runs):
    table, _ = _two_nets(rng, images, 0.3, chips=chips, luck=luck)
    low, high = statistics.total_interval(table)
    assert 0 <= low < table.mean() <= high <= 1
    covered += low <= truth <= high
  share = covered / runs
  assert 0.92 <= share <= 0.985 or (
    stats.binomtest(covered, runs, 0.95).pvalue > 1e-4
  )


def test_total_interval_of_one_chip_is_wilsons():
  for right in (90, 100, 0):
    table = np.arange(100)[None] < right
    expected = stats.binomtest(right, 100).proportion_ci(method="wilson")
    got = statistics.total_interval(table)
    np.testing.assert_allclose(got, expected)


def _catastrophic(rng, share, *shape):
  """Accuracies around 90 %, of a share of the chips around 20 %."""
  bad = rng.uniform(size=shape) < share
  values = np.where(
    bad, rng.normal(0.2, 0.05, shape), rng.normal(0.9, 0.01, shape)
  )
  return np.maximum(values, 0)


@pytest.mark.parametrize(
  "share, chips, least, most",
  [
    (0.01, 64, 0.35, 0.6),
    (0.02, 64, 0.6, 0.83),
    (0.05, 128, 0.93, 1),
    pytest.param(0.01, 128, 0.6, 0.83, marks=pytest.mark.slow),
    pytest.param(0.02, 256, 0.9, 1, marks=pytest.mark.slow),
  ],
)
def test_catastrophic_chips_and_what_covers_them(
  share, chips, least, most, rng
):
  """The mean's interval fails, as docs/monte_carlo.md says; the share's not."""
  runs, of_mean, of_share = 200, 0, 0
  for values in _catastrophic(rng, share, runs, chips):
    summary = statistics.summarize(values, failed_below=0.5)
    low, high = summary["ci95"]
    of_mean += low <= 0.9 - 0.7 * share <= high
    low, high = summary["failed"]["ci95"]
    of_share += low <= share <= high
  assert least <= of_mean / runs <= most
  assert of_share / runs >= 0.93


def test_share_of_failed_chips_is_exact():
  """No chip of 64: 1 - 0.025^(1/64); of Clopper and Pearson's table."""
  values = np.linspace(0.6, 0.9, 64)
  got = statistics.failed_chips(values, 0.6)  # at the bar is not below
  assert (got["chips"], got["share"], got["below"]) == (0, 0, 0.6)
  np.testing.assert_allclose(got["ci95"], (0, 1 - 0.025 ** (1 / 64)))
  got = statistics.failed_chips([0.1] * 3 + [0.9] * 7, 0.5)
  np.testing.assert_allclose(got["ci95"], (0.0667, 0.6525), atol=1e-4)


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
    found.append(statistics.standard_errors(correct))
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
  got = statistics.standard_errors(correct[None])
  assert got["chips"] is None and got["total"] is None
  share = correct.mean()
  assert got["images"] == pytest.approx(np.sqrt(share * (1 - share) / 399))


@pytest.mark.parametrize("seeds, images", [(8, 360), (12, 50)])
def test_crossed_mean_covers_the_truth_over_seeds_and_images(
  seeds, images, rng
):
  covered, false = [], []
  for _ in range(_RUNS):
    table = 0.8 + rng.normal(0, 0.02, (seeds, 1))
    table = table + rng.normal(0, 0.2, images)
    table = table + rng.normal(0, 0.1, (seeds, images))
    row = statistics.crossed_mean(table)
    covered.append(row["low"] <= 0.8 <= row["high"])
    false.append(statistics.crossed_mean(table - 0.8)["p"] < 0.05)
    np.testing.assert_allclose(row["mean"], table.mean())
  assert np.sum(false) + np.sum(covered) == _RUNS
  assert 0.93 <= np.mean(covered) <= 0.98, np.mean(covered)


def test_crossed_mean_agrees_with_that_of_truth_values(rng):
  first, second = _two_nets(rng, 360, 0.3)
  gap = first.astype(np.int8) - second
  one, same = (statistics.crossed_mean(x) for x in (gap, gap.astype(float)))
  assert one == same
  assert statistics.crossed_mean(np.ones((4, 9)))["low"] == 1
