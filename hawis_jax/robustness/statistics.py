"""Statistics of chips and images: how sure each figure is.

A sweep draws chips at random and tests them all on the same images. Intervals
of `summarize` are over chips: other chips, the same images. Those of
`total_interval` and `paired_difference` are over chips and images, which are
crossed random factors of a table of what is correct. Coverage is simulated in
tests/test_intervals.py.

Axes: S chips, N images, R resamples.
"""

from collections.abc import Sequence
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported when they are first used

from hawis_jax import errors

CVAR_SHARE = 0.25
_LEVEL = 0.95
_TAILS = (0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2)
_RESAMPLES = 1000
FEWEST = 16  # chips of a bootstrap interval, and of a verdict
_MOST = 10_000
# Chips before an adaptive stop: of few, the rare bad ones may all be missing.
FEWEST_TO_STOP = 128


def cvar(values: chex.Array, axis: int = 0) -> chex.Array:
  """Mean of the worst quarter (at least one) of `values` along `axis`."""
  count = math.ceil(CVAR_SHARE * values.shape[axis])
  # Slices of a sort, not a quantile: the worst quarter is so many whole chips.
  worst = jnp.sort(values, axis=axis)
  return jax.lax.slice_in_dim(worst, 0, count, axis=axis).mean(axis)


def summarize(
  values: np.ndarray,
  low: float = 0.0,
  high: float = 1.0,
  failed_below: float | None = None,
) -> dict:
  """Returns a summary of one number a chip, e.g. its accuracy, in its unit.

  >>> import hawis_jax as hx
  >>> summary = hx.summarize([0.9, 0.8, 0.7, 0.2], failed_below=0.5)
  >>> round(summary["mean"], 3), summary["cvar"], summary["worst"]
  (0.65, 0.2, 0.2)
  >>> summary["failed"]["chips"], summary["failed"]["share"]
  (1, 0.25)

  Every interval is over chips alone: what other chips would give on the same
  images. What other images would change is not in it (see `total_interval`).

  Args:
    values: `[S]`.
    low: least possible value; intervals end there.
    high: greatest possible value.
    failed_below: value below which a chip has failed; None: none has.

  Returns:
    chips S, mean, std (n - 1), median, p5 (5th percentile), cvar (mean of the
    worst quarter), worst, best; ci95, the 95 % interval of the mean (low,
    high) over chips, None of one chip; `intervals` of std, median, p5 and cvar;
    and `failed`, see `failed_chips`, where `failed_below` is given. Intervals
    of mean, std and cvar are studentised bootstraps (Efron & Tibshirani, 1993);
    below 16 chips, or where most chips are alike, the mean's is Student's and
    the others' are None. Those of median and p5 are ranks, with None where the
    chips are too few for a bound. The mean's holds where chips are not very
    skewed: docs/monte_carlo.md has its coverage with catastrophic ones.

  Raises:
    InputError: there is no value, or one that is not finite or not possible.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise errors.InputError(
      f"values: got shape {values.shape}, needed is [S], one a chip"
    )
  possible = np.isfinite(values) & (values >= low) & (values <= high)
  if not possible.all():
    raise errors.InputError(
      f"values: got {values[~possible][0]}, allowed are finite ones from "
      f"{low} to {high}"
    )
  count = len(values)
  spread = float(values.std(ddof=1)) if count > 1 else 0.0
  summary = {
    "chips": count,
    "mean": float(values.mean()),
    "std": spread,
    "median": float(np.median(values)),
    "p5": float(np.percentile(values, 5)),
    "cvar": float(_cvar(values)),
    "worst": float(values.min()),
    "best": float(values.max()),
    "ci95": mean_interval(values, low, high) if count > 1 else None,
    "intervals": {
      "std": std_interval(values),
      "median": quantile_interval(values, 0.5),
      "p5": quantile_interval(values, 0.05),
      "cvar": cvar_interval(values, low, high),
    },
  }
  if failed_below is not None:
    summary["failed"] = failed_chips(values, failed_below)
  return summary


def mean_interval(
  values: np.ndarray, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
  """95 % interval of the mean over chips, see `summarize`."""
  values = np.asarray(values, np.float64)
  ends = _bootstrap(values, _mean)
  if ends is None:
    mean, error = _mean(values)
    half = error * scipy.stats.t.ppf(_TAILS[1], max(len(values) - 1, 1))
    ends = mean - half, mean + half
  return _within(ends, low, high)


def std_interval(values: np.ndarray) -> tuple[float, float] | None:
  """95 % interval over chips of their deviation; None: see `summarize`."""
  # Logarithms: so no bound is below 0, and the quotient is less skewed.
  ends = _bootstrap(np.asarray(values, np.float64), _log_std)
  return None if ends is None else tuple(math.exp(end) for end in ends)


def cvar_interval(
  values: np.ndarray, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float] | None:
  """95 % interval of CVaR over chips; None: see `summarize`."""
  ends = _bootstrap(np.asarray(values, np.float64), _cvar_estimate)
  return None if ends is None else _within(ends, low, high)


def _within(ends, low, high):
  return tuple(float(min(max(end, low), high)) for end in ends)


def _bootstrap(values, estimate):
  """Studentised bootstrap interval of `[S]`; None: too few, or too alike.

  An estimate is `[..., S]` -> (estimates, their standard errors), `[...]` each.
  """
  # scipy.stats.bootstrap has no studentised interval, and others cover less.
  count = len(values)
  if count < FEWEST or np.ptp(values) < 1e-12:
    return None
  found, error = estimate(values)
  if error == 0:
    return None
  if count > _MOST:  # the normal limit
    return found + error * scipy.stats.norm.ppf(_TAILS[0]) * np.array([1, -1])
  # Always the same draws: the same chips have the same interval.
  rows = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
  resampled, errors = estimate(values[rows])
  usable = errors > 0  # resamples of one chip alone say nothing
  if usable.mean() < 0.99:
    return None
  quotient = (resampled[usable] - found) / errors[usable]
  least, most = np.quantile(quotient, _TAILS)
  return found - most * error, found - least * error


_ALIKE = 1e-9  # standard deviations below are those of equal values, rounded


def _mean(values):
  count = values.shape[-1]
  spread = values.std(-1, ddof=1) if count > 1 else np.zeros(values.shape[:-1])
  spread = np.where(spread > _ALIKE, spread, 0)
  return values.mean(-1), spread / math.sqrt(count)


def _log_std(values):
  """Logarithm of the standard deviation; its error by the kurtosis."""
  count = values.shape[-1]
  variance = values.var(-1)
  centred = values - values.mean(-1, keepdims=True)
  there = variance > _ALIKE**2
  safe = np.where(there, variance, 1)
  kurtosis = (centred**4).mean(-1) / safe**2
  excess = np.maximum(kurtosis - 1, 0) + 2 / (count - 1)
  error = np.sqrt(excess / (4 * count))
  scale = math.sqrt(count / (count - 1))
  return np.log(np.sqrt(safe) * scale), np.where(there, error, 0)


def _cvar(values):
  count = math.ceil(CVAR_SHARE * values.shape[-1])
  return np.sort(values, -1)[..., :count].mean(-1)


def _cvar_estimate(values):
  """CVaR; its error by its influence function, min(x - quantile, 0) / share."""
  count = math.ceil(CVAR_SHARE * values.shape[-1])
  quantile = np.sort(values, -1)[..., count - 1 : count]
  influence = np.minimum(values - quantile, 0) / CVAR_SHARE
  return _cvar(values), _mean(influence)[1]


def quantile_interval(
  values: np.ndarray, share: float
) -> tuple[float | None, float | None]:
  """95 % interval over chips of a quantile: two values; None: beyond all."""
  # Distribution-free, by ranks (Conover, 1999).
  if len(values) < 2:
    return None, None
  test = scipy.stats.quantile_test(values, p=share)
  ends = test.confidence_interval(_LEVEL)
  return tuple(float(end) if math.isfinite(end) else None for end in ends)


def failed_chips(values: np.ndarray, below: float) -> dict:
  """Returns how many chips have failed: those below a value.

  There are `below`, the number of `chips` that have, their `share`, and its
  `ci95` over chips, which is exact (Clopper & Pearson, 1934): it holds however
  rare and however bad they are, and its upper end where none was met.
  """
  failed = int(np.count_nonzero(np.asarray(values) < below))
  test = scipy.stats.binomtest(failed, len(values))
  return {
    "below": below,
    "chips": failed,
    "share": failed / len(values),
    "ci95": [float(x) for x in test.proportion_ci(_LEVEL, method="exact")],
  }


def paired_difference(first: np.ndarray, second: np.ndarray) -> dict:
  """Returns the accuracy of one net minus that of another, over both factors.

  Both nets meet the same chips and images, so the difference is taken cell by
  cell. Its mean's variance is that of chips and images crossed (see
  `standard_errors`); interval and p-value are Student's with Satterthwaite's
  (1946) degrees of freedom. Two images are added for them, one that only the
  first net classifies correctly and one that only the second does (Bonett &
  Price, 2012): nets that disagree on few images prove little.

  Args:
    first: correct, bool `[S, N]`; of one chip, where none is drawn, the
      interval is over images alone, as of McNemar's test.
    second: the same; the last chips of a longer one are left out.

  Returns:
    chips S, images N, `over` ("chips and images" or "images"), the mean
    `difference`, its `ci95` by itself, and `p` of no difference.
  """
  chips = min(len(first), len(second))
  first, second = (np.asarray(x[:chips], bool) for x in (first, second))
  gap = first.astype(np.int8) - second
  added = np.broadcast_to(np.array([1, -1], np.int8), (chips, 2))
  table = np.concatenate([gap, added], 1)
  _, error, freedom = _crossed(table)
  half = error * scipy.stats.t.ppf(_TAILS[1], freedom)
  ends = table.mean() - half, table.mean() + half
  return {
    "chips": chips,
    "images": gap.shape[1],
    "over": "chips and images" if chips > 1 else "images",
    "difference": float(gap.mean()),
    "ci95": list(_within(ends, -1, 1)),
    "p": float(2 * scipy.stats.t.sf(abs(table.mean()) / error, freedom)),
  }


def verdicts(differences: Sequence[dict]) -> list[dict]:
  """Returns a `verdict` on every difference, its `p_holm`, and a `reason`.

  A verdict is "ahead", "behind" or "undecided" (first against second). The
  p-values of `paired_difference` are multiplied by Holm's (1979) steps, so any
  verdict of the table is false with a chance of 5 % at most, whatever depends
  on what, if each p-value holds. These take the mean effects of chips and of
  images for normal: they fail where failures are so rare that the chips may
  hold none, or few chips have very skewed effects (rates:
  docs/monte_carlo.md). Fewer than 16 chips that are drawn are therefore
  "undecided". An interval may leave out 0 where the verdict is that: the reason
  says why it is withheld. It is "interval" where that holds 0; else "chips",
  fewer than 16 are drawn, or "correction", for the number of differences; None
  beside a verdict.
  """
  p = np.array([one["p"] for one in differences])
  order = np.argsort(p)
  steps = np.arange(len(p), 0, -1)
  p[order] = np.minimum(np.maximum.accumulate(steps * p[order]), 1)
  words = {True: "ahead", False: "behind"}
  decided = []
  for one, adjusted in zip(differences, p, strict=True):
    reason = _withheld(one, adjusted)
    word = "undecided" if reason else words[one["difference"] > 0]
    decided.append(
      {"p_holm": float(adjusted), "verdict": word, "reason": reason}
    )
  return decided


def _withheld(difference, adjusted):
  """Why a difference has no verdict; None: it has one."""
  if difference["p"] >= 1 - _LEVEL:
    return "interval"
  if 1 < difference["chips"] < FEWEST:
    return "chips"
  return "correction" if adjusted >= 1 - _LEVEL else None


def standard_errors(correct: np.ndarray) -> dict:
  """Returns standard errors of the mean accuracy: of chips, images, both.

  Chips and images are crossed random factors of a table of correct (two-way
  analysis of variance without replicates; Searle, Casella & McCulloch 1992):
  a chip's own error is what other chips would change on the same images, the
  images' what other test images would change on the same chips.

  Args:
    correct: bool `[S, N]`.

  Returns:
    chips, images and total; chips and total are None of one chip.
  """
  parts, error, _ = _crossed(np.asarray(correct, bool))
  if len(correct) < 2:
    return {"chips": None, "images": error, "total": None}
  return {**parts, "total": error}


def total_interval(correct: np.ndarray) -> tuple[float, float]:
  """Returns the mean accuracy's 95 % interval over chips and images.

  It is Wilson's of as many independent images as have the total standard error
  (Franco et al., 2019), with Student's quantile of Satterthwaite's degrees of
  freedom. Of one chip it is over images alone: Wilson's own.

  Args:
    correct: bool `[S, N]`.
  """
  correct = np.asarray(correct, bool)
  if len(correct) == 1:
    test = scipy.stats.binomtest(int(correct.sum()), correct.size)
    return tuple(map(float, test.proportion_ci(_LEVEL, method="wilson")))
  mean, (_, error, freedom) = float(correct.mean()), _crossed(correct)
  spread = mean * (1 - mean)
  # All alike: as of the images alone.
  count = spread / error**2 if error and spread else correct.shape[1]
  square = scipy.stats.t.ppf(_TAILS[1], freedom) ** 2 / count
  middle = (mean + square / 2) / (1 + square)
  half = math.sqrt(square * (spread + square / 4)) / (1 + square)
  return _within((middle - half, middle + half), 0, 1)


def crossed_mean(table: np.ndarray) -> dict:
  """Returns the mean over two crossed random factors, e.g. seeds and images.

  Its interval and the p-value of a mean of 0 are Student's, as of
  `paired_difference`; what is drawn anew in every row, as chips of a seed are,
  is in them.

  Args:
    table: `[R, N]`, of any values, such as shares of a seed's chips that
      classify an image correctly, or differences of them.

  Returns:
    rows R, the `mean`, `low` and `high` of its 95 % interval, and `p`.
  """
  table = np.asarray(table, np.float64)
  mean, (_, error, freedom) = float(table.mean()), _crossed(table)
  half = float(error * scipy.stats.t.ppf(_TAILS[1], freedom))
  p = float(mean == 0)
  if error:
    p = float(2 * scipy.stats.t.sf(abs(mean) / error, freedom))
  return {
    "rows": len(table),
    "mean": mean,
    "low": mean - half,
    "high": mean + half,
    "p": p,
  }


def _crossed(table):
  """({chips, images: standard error}, that of both, its degrees of freedom).

  The table `[S, N]` has chips and images crossed.
  """
  chips, images = table.shape
  mean, cells = float(table.mean()), table.size
  squares = [
    images * np.square(table.mean(1) - mean).sum(),
    chips * np.square(table.mean(0) - mean).sum(),
  ]
  # Of truth values and their differences it is a count, which is exact.
  is_count = table.dtype.kind in "bi"
  square = np.count_nonzero(table) if is_count else np.square(table).sum()
  rest = square - cells * mean**2 - sum(squares)
  freedom = np.array([chips - 1, images - 1, (chips - 1) * (images - 1)])
  freedom = np.maximum(freedom, 1)
  of = np.array([*squares, max(rest, 0.0)]) / freedom
  # No less than either alone: the estimate of the rest may be too large.
  total = max(of[0] + of[1] - of[2], of[0], of[1])
  if total:
    total_freedom = float(total**2 / (of**2 / freedom).sum())
  else:
    total_freedom = float(freedom[1])
  parts = np.sqrt(of / cells).tolist()
  errors = {"chips": parts[0], "images": parts[1]}
  return errors, math.sqrt(total / cells), total_freedom


def chips_needed(values: np.ndarray, target: float, most: int) -> int:
  """Returns how many chips a 95 % interval of half-width `target` takes.

  The interval is the mean's over chips. These are S if the values `[S]`,
  S >= 2, do already, being at least 128, or `most` is reached.
  """
  low, high = mean_interval(values)
  half, count = (high - low) / 2, len(values)
  least = min(most, max(count, FEWEST_TO_STOP))
  if half <= target:
    return least
  # By the interval's width, and a little more: its estimate varies.
  return max(least, min(most, math.ceil(1.1 * count * (half / target) ** 2)))
