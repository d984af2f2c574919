"""Is a net that is searched for better than the uniform one of equal cost?

python benchmarks/search_proof.py --workdir runs/search_proof
    [--seeds 12] [--config.<field>=...]

docs/search.md has the protocol, written before the first run. Every seed
searches, selects by training, trains found and uniform net on chips and
measures both on chips; a seed is a run of its own, that is resumed. After each
seed results/search_proof.json is written anew, of the seeds so far, in their
order: any beginning of them is a result.
"""

import json
import pathlib
import subprocess
import sys

import measure
import numpy as np
from scipy import stats

from hawis_jax.pipeline import results
from hawis_jax.search import reward

_FIRST_SEED = 1000  # none has been looked at
_NETS = ("found", "uniform")
_SEVERITIES = (0.7, 1.1)
_CVAR_WEIGHT = 0.5
_FIELDS = {
  "train.nets": tuple(f"{net}_chips" for net in _NETS),
  "train.loss": "margin",
  "train.steps": 1200,
  "pretrain.faulty_widths": 2,
  "search.methods": ("policy",),
  "search.scenarios": (
    dict(stuck_on=0.0175, stuck_off=0.0904),
    dict(variation=0.7),
  ),
  "search.limits": (("energy", 3.07e-5),),  # of the uniform net 3.061e-5 J
  "search.batch_norm": "chip",
  "search.selection": 1.5,
  "hardware_aware.most_severity": 1.5,
  "robustness.batch_norm": ("chip",),
  "robustness.chips": 64,
  "robustness.scenarios": (dict(variation=_SEVERITIES),),
}


def scores(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns each net's robust score at every severity, and their mean."""
  nets = json.loads(results.robustness_path(folder).read_text())["nets"]
  found = {}
  for net in _NETS:
    (sweep,) = nets[f"{net}_chips"]["sweeps"]["chip"].values()
    by_severity = {entry["severity"]: entry["accuracy"] for entry in sweep}
    each = [
      float(
        reward.robust_score(np.array(by_severity[x])[:, None], 1, _CVAR_WEIGHT)[
          0
        ]
      )
      for x in _SEVERITIES
    ]
    found[net] = np.array([*each, np.mean(each)])
  return found


def rows(folders: list[pathlib.Path]) -> list[dict]:
  """Returns the comparisons; the primary one is the first."""
  every = [scores(folder) for folder in folders]
  table = {net: np.array([one[net] for one in every]) for net in _NETS}
  gaps = 100 * (table["found"] - table["uniform"])
  names = [*map(str, _SEVERITIES), " and ".join(map(str, _SEVERITIES))]
  content = []
  for place in (2, 0, 1):
    gap = gaps[:, place]
    test = stats.ttest_1samp(gap, 0)
    low, high = map(float, test.confidence_interval())
    content.append(
      {
        "primary": place == 2,
        "comparison": "found - uniform",
        "scenario": "variation",
        "severity": names[place],
        "mean": float(gap.mean()),
        "low": low,
        "high": high,
        "p": float(test.pvalue),
        "p_wilcoxon": float(stats.wilcoxon(gap).pvalue) if gap.any() else 1.0,
        "seeds": len(gap),
        "of_seeds": gap.tolist(),
        **{net: float(100 * table[net][:, place].mean()) for net in _NETS},
      }
    )
  return content


def main() -> None:
  """Runs the seeds, and writes the rows of those that are done."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", default="runs/search_proof")
  parser.add_argument("--seeds", type=int, default=12)
  parser.add_argument("--results", default=measure.ROOT / "results")
  options, fields = parser.parse_known_args()
  path = pathlib.Path(options.results) / "search_proof.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  revision, folders = measure.revision(), []
  for seed in range(_FIRST_SEED, _FIRST_SEED + options.seeds):
    folder = pathlib.Path(options.workdir).absolute() / str(seed)
    command = [sys.executable, "-m", "hawis_jax.main", f"--workdir={folder}"]
    command += [f"--config={measure.DIGITS}", f"--config.seed={seed}"]
    command += ["--stages=pretrain,search,train,robustness"]
    command += [f"--config.{name}={v}" for name, v in _FIELDS.items()]
    subprocess.run([*command, *fields], cwd=measure.ROOT, check=True)
    folders.append(folder)
    if len(folders) < 2:  # of which no interval is
      continue
    found = [{**row, "revision": revision} for row in rows(folders)]
    path.write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
      print(
        f"{row['seeds']} seeds, variation {row['severity']}: found - uniform "
        f"{row['mean']:+.2f} ({row['low']:.2f} to {row['high']:.2f}) points, "
        f"p {row['p']:.3f}, Wilcoxon {row['p_wilcoxon']:.3f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
