"""What configs/digits.py shows, over seeds: accuracy and robustness.

python benchmarks/digits.py --workdir runs/digits_seeds [--config.<field>=...]

Runs the main job with some seeds, resuming what is there, and prints tables
with 95 % intervals over seeds (of so few, Student's): clean test accuracy; and
paired robust accuracy of the found net minus others. All seeds share one split
of the data, so the intervals hold none of its variance. What the searches found
is told by search.py --runs.
"""

import pathlib
import subprocess
import sys

import measure
import numpy as np

from hawis_jax.pipeline import results

_SEVERITIES = (("stuck_off", 0.1), ("stuck_on", 0.02), ("variation", 0.5))


def _percent(values, unit="%"):
  """Mean, half-width of its interval, and each value."""
  values = 100 * np.asarray(values)
  mean, half = measure.interval(values)
  each = ", ".join(f"{v:.2f}" for v in values)
  return f"{mean:6.2f} +- {half:.2f} {unit}   ({each})"


def _accuracy(net, scenario, severity):
  """Of every chip, `[S]`; None: it was not measured."""
  entries = net["sweeps"].get(scenario, [])
  found = [e["accuracy"] for e in entries if e["severity"] == severity]
  return np.array(found[0]) if found else None


def robustness(runs: list[dict]) -> None:
  """Prints accuracies: runs are {net: result of the robustness stage}."""
  print(f"\nclean test accuracy, {len(runs)} seeds: mean +- 95 % (each)")
  for net in runs[0]:
    print(f"  {net:12} {_percent([run[net]['clean'] for run in runs])}")
  for place in _SEVERITIES:
    chips = [{net: _accuracy(run[net], *place) for net in run} for run in runs]
    if chips[0]["found"] is None:
      continue
    scenario, severity = place
    count = len(chips[0]["found"])
    print(f"\n{scenario} = {severity}, {count} chips a seed: mean over seeds")
    for net in runs[0]:
      print(f"  {net:24} {_percent([of[net].mean() for of in chips])}")
    for net in [n for n in ("baseline_1x", "uniform") if n in runs[0]]:
      gaps = [of["found"] - of[net] for of in chips]
      means = _percent([gap.mean() for gap in gaps], "points")
      print(f"  found - {net:16} {means}")
      for seed, gap in enumerate(gaps):
        mean, half = measure.interval(100 * gap)
        gap = f"{mean:6.2f} +- {half:.2f} points"
        print(f"    seed {seed}, paired over chips  {gap}")


def main() -> None:
  """Runs every seed and prints the tables."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", default="runs/digits_seeds")
  parser.add_argument("--seeds", type=int, default=3)
  options, fields = parser.parse_known_args()
  workdir = pathlib.Path(options.workdir).absolute()
  folders = [workdir / str(seed) for seed in range(options.seeds)]
  for seed, folder in enumerate(folders):
    command = [sys.executable, "-m", "hawis_jax.main", f"--workdir={folder}"]
    command += [f"--config={measure.DIGITS}", f"--config.seed={seed}", *fields]
    subprocess.run(command, cwd=measure.ROOT, check=True)
  robustness([results.load_robustness(folder)["nets"] for folder in folders])


if __name__ == "__main__":
  main()
