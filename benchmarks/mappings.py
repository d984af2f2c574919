"""Which mapping of 1-bit weights onto cells keeps most accuracy, and for what.

python benchmarks/mappings.py --workdir runs/digits [--nets found uniform ...]
  [--chips 64]

Measures a run's binary nets in every `Device.mapping` on chips with stuck cells
and with variation, with the statistics that they were trained with, and writes
results/mappings.json. Differences are from the differential pair of the same
net, on the same images; chips are others, since cells are. Intervals are 95 %,
Student's over chips (Welch's of differences), and hold no other training.
Arrays are single ones: a pair counts as two. Compare nets at equal arrays.
"""

import dataclasses
import json
import pathlib

import measure
import numpy as np
from scipy import stats

from hawis_jax import crossbar
from hawis_jax.crossbar import cells
from hawis_jax.pipeline import results
from hawis_jax.robustness import monte_carlo

_SCENARIOS = {
  "no defects": {},
  "4 % stuck off": dict(stuck_off=0.04),
  "10 % stuck off": dict(stuck_off=0.1),
  "0.5 % stuck on": dict(stuck_on=0.005),
  "2 % stuck on": dict(stuck_on=0.02),
  "9.04 % off, 1.75 % on": dict(stuck_off=0.0904, stuck_on=0.0175),
  "variation, gamma 0.3": dict(variation=0.3),
  "variation, gamma 0.5": dict(variation=0.5),
}


def arrays(variables: dict, device: crossbar.Device) -> int:
  """Returns how many single arrays a net takes."""
  rows, columns = cells.weight_shape(device)
  each, _, _ = cells.cell_shape(device)
  kernels = cells.kernels_of(variables["params"]).values()
  shapes = ((x.size // x.shape[-1], x.shape[-1]) for x in kernels)
  return each * sum(-(-r // rows) * -(-c // columns) for r, c in shapes)


def main() -> None:
  """Prints the table and writes results/mappings.json."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--nets", nargs="+", default=("found",))
  parser.add_argument("--chips", type=int, default=64)
  args = parser.parse_args()
  run = results.open_run(args.workdir)
  test = run.unpadded(run.splits.test)
  rows = []
  for name in args.nets:
    net = results.load_net_of_run(args.workdir, name)
    for scenario, fields in _SCENARIOS.items():
      pair = None
      for mapping in crossbar.MAPPINGS:
        device = dataclasses.replace(run.device, mapping=mapping, **fields)
        setting = monte_carlo.Setting(*net, device)
        chips = range(args.chips if fields else 1)
        chunks = monte_carlo.classify(
          run.key("robustness"), setting, *test, chips
        )
        accuracy = np.concatenate(list(chunks)).mean(1)
        row = {
          "net": name,
          "scenario": scenario,
          "mapping": mapping,
          "arrays": arrays(net.variables, device),
          "chips": len(chips),
          "images": len(test[1]),
          "mean": float(accuracy.mean()),
        }
        if fields:
          pair = accuracy if pair is None else pair
          own = stats.ttest_1samp(accuracy, 0).confidence_interval()
          other = stats.ttest_ind(accuracy, pair, equal_var=False)
          row["ci95"] = list(map(float, own))
          row["cvar"] = float(np.sort(accuracy)[: -(-len(chips) // 4)].mean())
          row["difference"] = float(accuracy.mean() - pair.mean())
          ends = other.confidence_interval()
          row["difference_ci95"] = list(map(float, ends))
        rows.append(row)
        print(json.dumps(row), flush=True)
  path = pathlib.Path("results") / "mappings.json"
  path.parent.mkdir(exist_ok=True)
  path.write_text(
    json.dumps({"machine": measure.machine(), "rows": rows}, indent=1) + "\n"
  )


if __name__ == "__main__":
  main()
