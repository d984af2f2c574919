"""What training on chips and calibration bring, over seeds.

python benchmarks/robust_training.py --workdir runs/robust_training
    [--seeds 8] [--config.<field>=...]
python benchmarks/robust_training.py --config configs/cifar10_small.py
    --workdir runs/cifar10_small --seeds 1 [--measured runs/a runs/b ...]

Runs the whole way with every seed (searching, training and measuring a run of
its own, that is resumed) and writes results/robust_training.json and the figure
docs/figures/robust_training.svg; of another configuration, with nets and
scenarios of its own, results/<name>/result.json and docs/figures/<name>.svg.
All seeds share one test set, but neither chips nor trainings: intervals are
over seeds and images, crossed, and chips are in those of the seeds. Those of a
single seed are over chips and images, and hold no other training. With
--measured nothing is run: its folders are runs of the configuration, that may
have some of the nets each.

Compared, named before the run, at variation 0.7 and 1.1, at 1.75 % stuck on
with 9.04 % stuck off, and at twice these: the found net trained on chips
against the plain one with either statistics; its statistics of each chip
against fixed ones; and the found net against all others, trained on chips, with
statistics of each chip, and, as the paper has them, all plain with fixed ones.

Axes: R seeds, or chips of a single one, N test images.
"""

from collections.abc import Iterable
import dataclasses
import json
import pathlib
import subprocess
import sys

from matplotlib import figure
from matplotlib import lines
import measure
import numpy as np

from hawis_jax.pipeline import results
from hawis_jax.pipeline import tally
from hawis_jax.robustness import statistics
from hawis_jax.runtime import storage

_WIDTHS = (
  "found",
  "uniform",
  "baseline_1x",
  "baseline_1x_int8",
  "baseline_1x_float",
)
_NETS = tuple(f"{n}{how}" for n in _WIDTHS for how in ("", "_chips"))
_CHIPS = 16  # a seed: most of what differs are trainings
_STATISTICS = ("fixed", "design", "chip")
_STUCK = dict(stuck_on=0.0175, stuck_off=0.0904)
_SHARES = (1.0, 2.0)  # of those
_SCENARIOS = (
  dict(variation=(0.0, 0.3, 0.5, 0.7, 1.1)),
  {
    "name": "stuck",
    **{k: tuple(s * v for s in _SHARES) for k, v in _STUCK.items()},
  },
  dict(stuck_off=(0.1,)),
  dict(stuck_on=(0.02,)),
  dict(name="wires", wire_resistance=(1.0,)),
  # Writing and a day of relaxation, as published (NeuRRAM).
  dict(name="a day", preset="reram_wan2022_relaxed", device=1.0),
)
_FIELDS = {
  "train.nets": _NETS,
  "train.loss": "margin",
  "train.reference_optimizer.name": "adam",
  "train.reference_optimizer.learning_rate": 3e-3,
  "pretrain.faulty_widths": 2,
  "search.scenarios": (_STUCK, dict(variation=0.7)),
  "hardware_aware.most_severity": 1.5,
  "robustness.batch_norm": _STATISTICS,
  "robustness.chips": _CHIPS,
  "robustness.float_nets": True,
  "robustness.scenarios": _SCENARIOS,
}
_PLACES = (
  ("variation", 0.7),
  ("variation", 1.1),
  ("stuck", 0.0175),
  ("stuck", 0.035),
)
_COLOURS = ("#d55e00", "#111111", "#0072b2")  # of Okabe and Ito


@dataclasses.dataclass(frozen=True)
class Place:
  """What one table of `[R, N]` is of."""

  net: str
  training: str
  statistics: str
  scenario: str
  severity: float


def tables(folders: dict[pathlib.Path, int]) -> dict[Place, np.ndarray]:
  """Returns the share of chips that classify an image correctly, `[R, N]`.

  Folders have their seeds; of a single one it has a row a chip.
  """
  rows, several = {}, len(set(folders.values())) > 1
  for folder in folders:
    measured = results.load_robustness(folder)["nets"]
    for net, result in measured.items():
      name = net.removesuffix("_chips")
      training = "plain" if name == net else "chips"
      for kind, sweeps in result["sweeps"].items():
        for key, entries in sweeps.items():
          for entry in entries:
            place = Place(
              name, training, kind, key.split(":")[0], entry["severity"]
            )
            correct = tally.load_correct(
              folder / "robustness", entry, result["test_images"]
            )
            rows.setdefault(place, []).extend(
              correct.mean(0, keepdims=True) if several else correct
            )
  return {place: np.array(table, float) for place, table in rows.items()}


def widths(folders: Iterable[pathlib.Path]) -> dict[str, list[list[int]]]:
  """Returns {net: its widths of every seed}."""
  found = {}
  for folder in folders:
    for name in results.load_robustness(folder)["nets"]:
      module, _ = results.load_net_of_run(folder, name)
      found.setdefault(name, []).append(list(map(int, module.max_widths)))
  return found


def differences(found: dict[Place, np.ndarray]) -> list[dict]:
  """Returns the comparisons that were named before the run."""
  rows = []
  for scenario, severity in _PLACES:
    at = lambda *what, where=(scenario, severity): Place(*what, *where)  # noqa: E731
    best = at("found", "chips", "chip")
    pairs = [
      (at("found", "chips", kind), at("found", "plain", kind))
      for kind in ("fixed", "chip")
    ]
    pairs += [(best, at("found", "chips", "fixed"))]
    pairs += [(best, at("found", "plain", "fixed"))]
    pairs += [(best, at(net, "chips", "chip")) for net in _WIDTHS[1:]]
    plain = at("found", "plain", "fixed")
    pairs += [(plain, at(net, "plain", "fixed")) for net in _WIDTHS[1:]]
    for first, second in pairs:
      if not {first, second} <= found.keys():
        continue
      row = statistics.crossed_mean(found[first] - found[second])
      label = lambda x: f"{x.net} {x.training} {x.statistics}"  # noqa: E731
      rows.append(
        {
          "comparison": f"{label(first)} - {label(second)}",
          "scenario": scenario,
          "severity": severity,
          **row,
        }
      )
  return rows


def draw(rows: list[dict], path: pathlib.Path) -> None:
  """Draws accuracy over severities: robust nets, and plain ones."""
  picture = figure.Figure((7.2, 3.1), layout="constrained")
  axes = picture.subplots(1, 2, sharey=True)
  names = {
    "found": "found, 1-bit",
    "baseline_1x": "1x widths, 1-bit",
    "baseline_1x_int8": "1x widths, 8-bit",
  }
  ways = {
    ("chips", "chip"): ("-", "trained on chips, calibrated"),
    ("plain", "fixed"): (":", "plain"),
  }
  panels = {"variation": 1.0, "stuck": sum(_STUCK.values()) / 0.0175 * 100}
  for panel, (scenario, unit) in zip(axes, panels.items(), strict=True):
    for colour, net in zip(_COLOURS, names, strict=True):
      for way, (dash, _) in ways.items():
        points = [
          row
          for row in rows
          if row["net"] == net
          and (row["training"], row["statistics"]) == way
          and (row["scenario"] == scenario or not row["severity"])
        ]
        points.sort(key=lambda row: row["severity"])
        x = [unit * row["severity"] for row in points]
        mean, low, high = (
          100 * np.array([row[k] for row in points])
          for k in ("mean", "low", "high")
        )
        panel.plot(x, mean, dash, c=colour)
        panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    panel.set_ylim(0, 100)
    panel.spines[["top", "right"]].set_visible(False)
  axes[0].set_xlabel("variation of conductance, lognormal sigma")
  axes[1].set_xlabel("stuck cells, 5 of 6 of them off [%]")
  axes[0].set_ylabel("accuracy on chips [%]")
  keys = [
    lines.Line2D([], [], c=colour, label=words)
    for colour, words in zip(_COLOURS, names.values(), strict=True)
  ]
  keys += [
    lines.Line2D([], [], ls=dash, c="#777777", label=how)
    for dash, how in ways.values()
  ]
  picture.legend(
    handles=keys,
    loc="outside lower center",
    ncols=len(keys),
    frameon=False,
    fontsize=8,
    handlelength=1.6,
    columnspacing=1.2,
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  picture.savefig(path, metadata={"Date": None})


def main() -> None:
  """Runs every seed, prints the rows and writes them."""
  parser = measure.parser(__doc__)
  parser.add_argument("--config", type=pathlib.Path, default=measure.DIGITS)
  parser.add_argument("--workdir", default="runs/robust_training")
  parser.add_argument("--seeds", type=int, default=8)
  parser.add_argument("--results", default=measure.ROOT / "results")
  parser.add_argument("--figures", default=measure.ROOT / "docs" / "figures")
  parser.add_argument("--measured", type=pathlib.Path, nargs="+", default=[])
  options, fields = parser.parse_known_args()
  workdir = pathlib.Path(options.workdir).absolute()
  config, is_digits = options.config.resolve(), options.config == measure.DIGITS
  folders = {
    folder: storage.read_record(folder / "config.json")["seed"]
    for folder in options.measured
  }
  for seed in range(0 if folders else options.seeds):
    folders[folder := workdir / str(seed)] = seed
    command = [sys.executable, "-m", "hawis_jax.main", f"--workdir={folder}"]
    command += [f"--config={config}", f"--config.seed={seed}"]
    command += ["--stages=pretrain,search,train,robustness"]
    if is_digits:
      command += [f"--config.{name}={v}" for name, v in _FIELDS.items()]
    subprocess.run([*command, *fields], cwd=measure.ROOT, check=True)
  found, rows = tables(folders), []
  for place, table in found.items():
    row = statistics.crossed_mean(table)
    del row["p"]  # of an accuracy of 0
    row["low"], row["high"] = np.clip((row["low"], row["high"]), 0, 1).tolist()
    rows.append({**dataclasses.asdict(place), **row})
  content = {
    "command": " ".join(sys.argv),
    "revision": measure.revision(),
    "machine": f"{measure.machine()}, 2 cores",
    "chips": _CHIPS,
    "images": next(iter(found.values())).shape[1],
    "widths": widths(folders),
    "rows": rows,
    "differences": differences(found),
  }
  for row in content["rows"] + content["differences"]:
    row["seeds"] = min(row.pop("rows"), len(set(folders.values())))
    words = " ".join(str(v) for v in row.values() if not isinstance(v, float))
    spread = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
    print(f"{100 * row['mean']:6.1f} ({spread})  {row['severity']:6} {words}")
  name = "robust_training" if is_digits else config.stem
  path = pathlib.Path(options.results)
  path /= f"{name}.json" if is_digits else f"{name}/result.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=1) + "\n")
  draw(rows, pathlib.Path(options.figures) / f"{name}.svg")


if __name__ == "__main__":
  main()
