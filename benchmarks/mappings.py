"""Which mapping of 1-bit weights onto cells keeps most accuracy, and for what.

python benchmarks/mappings.py --workdir runs/digits [--nets found uniform ...]
  [--chips 64]
python benchmarks/mappings.py --workdir runs/mappings --equal-arrays 40
  [--seeds 3] [--chips 8]

Measures a run's binary nets in every `Device.mapping` on chips with stuck cells
and with variation, with the statistics that they were trained with, and writes
results/mappings.json. Differences are from the differential pair of the same
net, on the same images; chips are others, since cells are. Intervals are 95 %,
Student's over chips (Welch's of differences), and hold no other training.
Arrays are single ones: a pair counts as two.

With `--equal-arrays` it trains for every mapping and seed the widest uniform
digits net that so many arrays hold, measures it in that mapping alone, and adds
`equal_arrays` to the file. Intervals and differences from the differential pair
are over trainings and test images, crossed (`statistics.crossed_mean`); chips
are other ones in each training, and in its mean.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import measure
import numpy as np
from scipy import stats

from hawis_jax import crossbar
from hawis_jax.crossbar import cells
from hawis_jax.networks import net_variables
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import results
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import statistics

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

# Codes of both currents, subtracted: another circuit with converters alone.
_WAYS = [{"mapping": mapping} for mapping in crossbar.MAPPINGS]
_WAYS += [
  {"mapping": mapping, "subtraction": "digital"}
  for mapping in ("differential", "single", "interleaved")
]
_EQUAL = {
  name: _SCENARIOS[name]
  for name in ("10 % stuck off", "2 % stuck on", "variation, gamma 0.5")
}
_EQUAL |= {
  "wires, 0.78 ohm a cell": dict(wire_resistance=0.78),
  "4-bit converters": dict(adc_bits=4),
  "5-bit converters": dict(adc_bits=5),
  "6-bit converters": dict(adc_bits=6),
}
_FIELDS = {
  "train.nets": ("baseline_1x",),
  "train.loss": "labels",
  "train.steps": 1000,
}


def widest(most: int, device: crossbar.Device) -> tuple[int, ...]:
  """Returns the largest base widths, uniformly scaled, that the arrays hold."""
  found = None
  for eighth in range(1, 200):
    base = tuple(width * eighth // 8 for width in (8, 16, 32))
    net = measure.prepare(
      network__base_widths=base, train__nets=("baseline_1x",)
    )
    module = nets.module("baseline_1x", net)
    shapes = net_variables.shapes(module, net.splits.image_shape)
    if arrays(shapes, device) > most:
      return found
    found = base
  raise ValueError(f"{most} arrays hold more than 25 times the 1x widths")


def equal_arrays(workdir: pathlib.Path, most: int, seeds: int, chips: int):
  """Yields rows of nets that take at most as many arrays, in their mapping."""
  trained = {}
  base = crossbar.PRESETS["hawis_published"]
  base = crossbar.without_effects(base)
  for mapping in crossbar.MAPPINGS:
    device = dataclasses.replace(base, mapping=mapping)
    widths = widest(most, device)
    for seed in range(seeds):
      folder = workdir / f"{'_'.join(map(str, widths))}_{seed}"
      command = [sys.executable, "-m", "hawis_jax.main", f"--workdir={folder}"]
      command += [f"--config={measure.DIGITS}", f"--config.seed={seed}"]
      command += ["--stages=train", f"--config.network.base_widths={widths}"]
      command += [f"--config.{name}={v}" for name, v in _FIELDS.items()]
      subprocess.run(command, cwd=measure.ROOT, check=True)
      trained[mapping, seed] = results.load_net_of_run(folder, "baseline_1x")
    trained[mapping] = widths
  for scenario, fields in {"no defects": {}, **_EQUAL}.items():
    pair = None
    for way in _WAYS:
      mapping = way["mapping"]
      converters = "adc_bits" in fields
      if mapping == "offset" if converters else "subtraction" in way:
        continue  # refused; as without converters
      device = dataclasses.replace(base, **way, **fields)
      is_random = any(
        crossbar.is_present(getattr(device, name)) for name in crossbar.DEFECTS
      )
      table = []
      for seed in range(seeds):
        run = results.open_run(
          workdir / f"{'_'.join(map(str, trained[mapping]))}_{seed}"
        )
        net = trained[mapping, seed]
        chunks = monte_carlo.classify(
          run.key("robustness"),
          monte_carlo.Setting(*net, device),
          *run.unpadded(run.splits.test),
          range(chips if is_random else 1),
        )
        table.append(np.concatenate(list(chunks)).mean(0))
      table = np.array(table)
      pair = table if pair is None else pair
      row = {
        "scenario": scenario,
        **way,
        "base_widths": trained[mapping],
        "arrays": arrays(trained[mapping, 0].variables, device),
        "chips": chips if is_random else 1,
        **statistics.crossed_mean(table),
      }
      del row["p"]  # of an accuracy of 0
      row["seeds"] = row.pop("rows")
      row["low"], row["high"] = max(row["low"], 0.0), min(row["high"], 1.0)
      if way != _WAYS[0]:
        row["difference"] = statistics.crossed_mean(table - pair)
      yield row


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
  parser.add_argument("--equal-arrays", type=int, default=0)
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  path = measure.ROOT / "results" / "mappings.json"
  if args.equal_arrays:
    content = json.loads(path.read_text()) if path.exists() else {}
    content["equal_arrays"] = {
      "command": " ".join(sys.argv),
      "revision": measure.revision(),
      "machine": measure.machine(),
      "rows": [],
    }
    workdir = pathlib.Path(args.workdir).absolute()
    for row in equal_arrays(workdir, args.equal_arrays, args.seeds, args.chips):
      print(json.dumps(row), flush=True)
      content["equal_arrays"]["rows"].append(row)
      path.write_text(json.dumps(content, indent=1) + "\n")
    return
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
  path.parent.mkdir(exist_ok=True)
  content = json.loads(path.read_text()) if path.exists() else {}
  content |= {
    "command": " ".join(sys.argv),
    "revision": measure.revision(),
    "machine": measure.machine(),
    "rows": rows,
  }
  path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
  main()
