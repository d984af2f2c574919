"""What verdicts and intervals over chips hold, simulated (docs/monte_carlo.md).

python benchmarks/verdicts.py [--trials 4000] [--seed 0]

The models are those of tests/test_intervals.py, which repeats them with fewer
trials; of 10,000 images and of more than 64 chips there are a fifth of them.
"""

import pathlib
import sys

import measure
import numpy as np

from hawis_jax.robustness import statistics

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

# ruff: noqa: E402
import test_intervals as models

# (images, what nets of `_two_nets` are).
_EQUAL = (
  (360, dict(own=0.3, ours=0.02)),
  (360, dict(own=0.62, ours=0.02)),
  (360, dict(own=0.3, ours=0.1)),
  (360, dict(own=0.62, ours=0.1)),
  (360, dict(own=0.3, luck=0.5, ours=0.45)),
  (10_000, dict(own=0.3, ours=0.02)),
  (10_000, dict(own=0.62, ours=0.02)),
  (10_000, dict(own=0.3, luck=0.5, ours=0.45)),
)
# (chips, images, share of catastrophic ones; None: very unequal effects).
_UNEQUAL = (
  (32, 1000, 0.02),
  (64, 1000, 0.02),
  (128, 5000, 0.01),
  *((chips, 1000, None) for chips in (4, 8, 16, 32, 64)),
)
_RARE = (
  *((0.01, chips) for chips in (64, 128, 256, 512)),
  *((0.02, chips) for chips in (64, 128, 256)),
  *((0.05, chips) for chips in (64, 128)),
)


def _false(nets):
  """(verdict, verdict over chips alone) of two nets of equal accuracy."""
  first, second = nets
  low, high = statistics.mean_interval(first.mean(1) - second.mean(1))
  p = statistics.paired_difference(first, second)["p"]
  return p < 0.05, not low <= 0 <= high


def _stop(rng, share, first, target=0.01, most=4096):
  """(error of the mean, whether it is covered) after an adaptive stop."""
  pool, count = models._catastrophic(rng, share, most), first
  while (wanted := statistics.chips_needed(pool[:count], target, most)) > count:
    count = wanted
  truth, (low, high) = 0.9 - 0.7 * share, statistics.mean_interval(pool[:count])
  return pool[:count].mean() - truth, low <= truth <= high


def main() -> None:
  """Prints the tables; shares in percent, with standard errors."""
  parser = measure.parser(__doc__)
  parser.add_argument("--trials", type=int, default=4000)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  rng = np.random.default_rng(args.seed)

  def shares(draw, is_large=False):
    trials = args.trials // 5 if is_large else args.trials
    table = np.array([draw() for _ in range(trials)], float)
    error = table.std(0) / np.sqrt(trials)
    pairs = zip(table.mean(0), error, strict=True)
    return "  ".join(f"{100 * a:6.2f} +- {100 * b:.2f}" for a, b in pairs)

  print("false verdicts, equal nets, 32 chips: crossed, over chips alone")
  for images, nets in _EQUAL:
    draw = lambda n=images, k=nets: _false(models._two_nets(rng, n, **k))  # noqa: E731
    print(f"{images:6} {nets}  {shares(draw, images > 1000)}", flush=True)
  better = lambda: _false(models._two_nets(rng, 360, 0.3, shift=0.25))  # noqa: E731
  print(f"found where the first is better by 2.9 points  {shares(better)}")
  print("false verdicts, unequal chips")
  for case in _UNEQUAL:
    draw = lambda case=case: _false(models._unequal_chips(rng, *case))  # noqa: E731
    print(f"{case}  {shares(draw, case[0] > 64)}", flush=True)
  print("rare catastrophic chips: coverage of the mean, of the failed share")
  for share, chips in _RARE:

    def covered(share=share, chips=chips):
      values = models._catastrophic(rng, share, chips)
      one = statistics.summarize(values, failed_below=0.5)
      pairs = (one["ci95"], 0.9 - 0.7 * share), (one["failed"]["ci95"], share)
      return [low <= truth <= high for (low, high), truth in pairs]

    print(f"{share} {chips:4}  {shares(covered, True)}", flush=True)
  print("an adaptive stop at 1 point: error of the mean in points, coverage")
  for share in (0.01, 0.02):
    draw = lambda share=share: _stop(rng, share, 128)  # noqa: E731
    print(f"{share}  {shares(draw, True)}", flush=True)


if __name__ == "__main__":
  main()
