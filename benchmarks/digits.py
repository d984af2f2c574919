"""What configs/digits.py shows, over seeds: accuracy, robustness, search.

python benchmarks/digits.py --workdir runs/digits_seeds

Runs the main job with seeds 0 to 4 (the last two only as far as the search),
resuming what is there, and prints three tables with 95 % t-intervals over
seeds: clean test accuracy; paired robust accuracy of the found net minus its
reference nets; the method's best vector against random search's. All seeds
share one split of the data, so the intervals hold none of its variance.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np
from scipy import stats

from hawis_jax.runtime import storage

_FULL, _SEARCHES = 3, 5
_LEVELS = (("stuck_off", 0.1), ("stuck_on", 0.02), ("variation", 0.5))
_ROOT = pathlib.Path(__file__).parents[1]


def _run(seed: int, workdir: pathlib.Path) -> None:
  stages = "all" if seed < _FULL else "pretrain,search"
  subprocess.run(
    [
      *(sys.executable, "-m", "hawis_jax.main"),
      f"--config={_ROOT / 'configs' / 'digits.py'}",
      f"--config.seed={seed}",
      f"--workdir={workdir}",
      f"--stages={stages}",
    ],
    cwd=_ROOT,
    check=True,
  )


def _interval(values, unit: str = "%") -> str:
  values = 100 * np.asarray(values)
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  each = ", ".join(f"{v:.2f}" for v in values)
  return f"{values.mean():6.2f} +- {half:.2f} {unit}   ({each})"


def _accuracy(net: dict, scenario: str, level: float) -> np.ndarray:
  (entry,) = (e for e in net["sweeps"][scenario] if e["severity"] == level)
  return np.array(entry["accuracy"])


def main() -> None:
  """Runs every seed and prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/digits_seeds")
  workdir = pathlib.Path(parser.parse_args().workdir).absolute()
  for seed in range(_SEARCHES):
    _run(seed, workdir / str(seed))
  runs = [
    storage.read_json(workdir / str(seed) / "robustness" / "result.json")[
      "nets"
    ]
    for seed in range(_FULL)
  ]
  print(f"\nclean test accuracy, {_FULL} seeds: mean +- 95 % (each)")
  for net in runs[0]:
    print(f"  {net:12} {_interval([run[net]['clean'] for run in runs])}")
  for scenario, level in _LEVELS:
    chips = len(_accuracy(runs[0]["found"], scenario, level))
    print(f"\n{scenario} = {level}, {chips} chips a seed: mean over seeds")
    for net in runs[0]:
      means = [_accuracy(run[net], scenario, level).mean() for run in runs]
      print(f"  {net:24} {_interval(means)}")
    for net in ("baseline_1x", "uniform"):
      gains = [
        _accuracy(run["found"], scenario, level)
        - _accuracy(run[net], scenario, level)
        for run in runs
      ]
      print(
        f"  found - {net:16} {_interval([g.mean() for g in gains], 'points')}"
      )
      for seed, gain in enumerate(gains):
        half = stats.t.ppf(0.975, chips - 1) * stats.sem(gain)
        print(
          f"    seed {seed}, paired over chips  "
          f"{100 * gain.mean():6.2f} +- {100 * half:.2f} points"
        )
  results = [
    storage.read_json(workdir / str(seed) / "search" / "result.json")
    for seed in range(_SEARCHES)
  ]
  print(
    f"\nsearch, {_SEARCHES} seeds, {results[0]['evaluations']} evaluations a "
    "method: best candidate's robust score on fresh chips"
  )
  found_by = results[0]["method"]
  best = {
    method: [r["candidates"][method][0]["score"] for r in results]
    for method in (found_by, "random", "uniform")
  }
  for method, scores in best.items():
    print(f"  {method:16} {_interval(scores)}")
  gain = np.subtract(best[found_by], best["random"])
  test = stats.ttest_rel(best[found_by], best["random"])
  print(
    f"  {found_by + ' - random':16} {_interval(gain, 'points')}  "
    f"paired t-test p = {test.pvalue:.2g}"
  )


if __name__ == "__main__":
  main()
