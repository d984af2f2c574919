"""Statistics over chips: how sure each figure is.

A sweep draws chips at random and tests them all on the same images. Intervals
here are over chips; `standard_errors` tells what the choice of test images
adds. Coverage is simulated in tests/test_intervals.py.

Axes: S chips, N images, R resamples.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

CVAR_SHARE = 0.25
_LEVEL = 0.95
_TAILS = (0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2)
_RESAMPLES = 1000
FEWEST = 16  # chips of a bootstrap interval
_MOST = 10_000


def cvar(values: chex.Array, axis: int = 0) -> chex.Array:
  """Mean of the worst quarter (at least one) of `values` along `axis`."""
  count = math.ceil(CVAR_SHARE * values.shape[axis])
  # Slices of a sort, not a quantile: the worst quarter is so many whole chips.
  worst = jnp.sort(values, axis=axis)
  return jax.lax.slice_in_dim(worst, 0, count, axis=axis).mean(axis)


def summarize(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> dict:
  """Returns a summary of one number a chip, e.g. its accuracy, in its unit.

  >>> import hawis_jax as hx
  >>> summary = hx.summarize([0.9, 0.8, 0.7, 0.2])
  >>> round(summary["mean"], 3), summary["cvar"], summary["worst"]
  (0.65, 0.2, 0.2)

  Args:
    values: `[S]`.
    low: least possible value: intervals end there.
    high: greatest possible value.

  Returns:
    chips S, mean, std (n - 1), median, p5 (5th percentile), cvar (mean of the
    worst quarter), worst, best; ci95, the 95 % interval of the mean (low,
    high) over chips; and `intervals` of std, median, p5 and cvar. Those of
    mean, std and cvar are studentised bootstraps (Efron & Tibshirani, 1993);
    below 16 chips, or where most chips are alike, the mean's is Student's and
    the others' are None. Those of median and p5 are ranks, with None where the
    chips are too few for a bound.
  """
  values = np.asarray(values, np.float64)
  count = len(values)
  spread = float(values.std(ddof=1)) if count > 1 else 0.0
  return {
    "chips": count,
    "mean": float(values.mean()),
    "std": spread,
    "median": float(np.median(values)),
    "p5": float(np.percentile(values, 5)),
    "cvar": float(_cvar(values)),
    "worst": float(values.min()),
    "best": float(values.max()),
    "ci95": mean_interval(values, low, high),
    "intervals": {
      "std": std_interval(values),
      "median": quantile_interval(values, 0.5),
      "p5": quantile_interval(values, 0.05),
      "cvar": cvar_interval(values, low, high),
    },
  }


def mean_interval(
  values: np.ndarray, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
  """95 % interval of the mean, see `summarize`."""
  values = np.asarray(values, np.float64)
  ends = _bootstrap(values, _mean)
  if ends is None:
    mean, error = _mean(values)
    half = error * stats.t.ppf(_TAILS[1], max(len(values) - 1, 1))
    ends = mean - half, mean + half
  return _within(ends, low, high)


def std_interval(values: np.ndarray) -> tuple[float, float] | None:
  """95 % interval of the standard deviation; None: see `summarize`."""
  # Logarithms: so no bound is below 0, and the quotient is less skewed.
  ends = _bootstrap(np.asarray(values, np.float64), _log_std)
  return None if ends is None else tuple(math.exp(end) for end in ends)


def cvar_interval(
  values: np.ndarray, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float] | None:
  """95 % interval of CVaR, within limits; None: see `summarize`."""
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
    return found + error * stats.norm.ppf(_TAILS[0]) * np.array([1, -1])
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
  """95 % interval of a quantile: two of the values; None: beyond them all."""
  # Distribution-free, by ranks (Conover, 1999).
  if len(values) < 2:
    return None, None
  test = stats.quantile_test(values, p=share)
  ends = test.confidence_interval(_LEVEL)
  return tuple(float(end) if math.isfinite(end) else None for end in ends)


def paired_difference(first: list[float], second: list[float]) -> dict:
  """Returns first - second over the chips that both were measured on.

  Chips 0, 1, ... are in order; a longer list's last ones are left out. There
  are `chips`, the mean `difference`, its `ci95` (see `summarize`), `narrowing`
  (how many times wider Welch's interval of unpaired chips would be than the
  paired Student's; None: no spread) and a `verdict`: "ahead", "behind", or
  "undecided" where 0 is inside the interval.
  """
  chips = min(len(first), len(second))
  first, second = (np.asarray(x[:chips], np.float64) for x in (first, second))
  low, high = mean_interval(first - second, -1, 1)
  paired = float(_mean(first - second)[1])
  narrowing = None
  if paired:
    squares = np.square([_mean(first)[1], _mean(second)[1]])
    freedom = (chips - 1) * squares.sum() ** 2 / np.square(squares).sum()
    unpaired = math.sqrt(squares.sum()) * stats.t.ppf(_TAILS[1], freedom)
    narrowing = float(unpaired / (paired * stats.t.ppf(_TAILS[1], chips - 1)))
  verdict = "ahead" if low > 0 else "behind"
  if chips < 2 or low <= 0 <= high:
    verdict = "undecided"
  return {
    "chips": chips,
    "difference": float((first - second).mean()),
    "ci95": [low, high],
    "narrowing": narrowing,
    "verdict": verdict,
  }


def standard_errors(by_chip: np.ndarray, by_image: np.ndarray) -> dict:
  """Returns standard errors of the mean accuracy: of chips, images, both.

  Chips and images are crossed random factors of a table of correct (two-way
  analysis of variance without replicates; Searle, Casella & McCulloch 1992):
  a chip's own error is what other chips would change on the same images, the
  images' what other test images would change on the same chips.

  The table is given by its sums: images that each chip classifies correctly,
  int `[S]`, and chips that classify each image correctly, int `[N]`. Returned
  are chips, images and total; chips and total are None of one chip.
  """
  chips, images = len(by_chip), len(by_image)
  mean = float(np.sum(by_chip)) / (chips * images)
  by_image = np.asarray(by_image, np.float64) / chips
  if chips < 2:
    # All of the images' spread, as of one binomial share.
    error = math.sqrt(mean * (1 - mean) / max(images - 1, 1))
    return {"chips": None, "images": error, "total": None}
  by_chip = np.asarray(by_chip, np.float64) / images
  squares_chip = images * np.square(by_chip - mean).sum()
  squares_image = chips * np.square(by_image - mean).sum()
  rest = chips * images * mean * (1 - mean) - squares_chip - squares_image
  mean_chip = squares_chip / (chips - 1)
  mean_image = squares_image / max(images - 1, 1)
  mean_rest = max(rest, 0.0) / max((chips - 1) * (images - 1), 1)
  cells = chips * images
  # No less than either alone: the estimate of the rest may be too large.
  total = max(mean_chip + mean_image - mean_rest, mean_chip, mean_image)
  return {
    "chips": math.sqrt(mean_chip / cells),
    "images": math.sqrt(mean_image / cells),
    "total": math.sqrt(total / cells),
  }


def chips_needed(values: np.ndarray, target: float, most: int) -> int:
  """Returns how many chips a 95 % interval of half-width `target` takes.

  These are S if the values `[S]`, S >= 2, do already or `most` is reached.
  """
  low, high = mean_interval(values)
  half, count = (high - low) / 2, len(values)
  if half <= target:
    return count
  # By the interval's width, and a little more: its estimate varies.
  return min(most, math.ceil(1.1 * count * (half / target) ** 2))
