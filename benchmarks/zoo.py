"""Trained nets of a finished run, and their cards, into hawis_jax/zoo.

python benchmarks/zoo.py runs/digits --name digits --revision 53edc57
    --nets found_chips uniform_chips baseline_1x_chips baseline_1x_int8_chips

Weights of 1-bit nets are packed. A card holds what docs/zoo.md says of a net;
its intervals on chips are over chips and images, of one training.
"""

import hashlib
import json
import pathlib

from flax import traverse_util
import measure
import numpy as np

from hawis_jax import interop
from hawis_jax.interop import array_files
from hawis_jax.networks import net_names
from hawis_jax.pipeline import results
from hawis_jax.runtime import storage

_ZOO = measure.ROOT / "hawis_jax" / "zoo"
_OF_ROWS = ("statistics", "scenario", "severity", "chips", "mean", "ci95_total")
_OF_NETS = ("test_images", "clean", "clean_ci95", "arrays", "energy_joule")


def publish(workdir: pathlib.Path, name: str, net: str, revision: str) -> None:
  """Writes a trained net and its card."""
  experiment = results.open_run(workdir)
  content = storage.read_record(workdir / "report" / "report.json")
  module, variables = results.load_net(net, experiment, workdir)
  parsed, found = net_names.parse(net), content["nets"][net]
  is_binary = parsed.kind == net_names.BINARY
  short = f"{name}_{parsed.widths}" + (f"_{parsed.kind}" * (not is_binary))
  path, config = _ZOO / f"{short}.npz", experiment.config
  if is_binary:
    interop.export_packed(path, module, variables)
  else:
    flat = traverse_util.flatten_dict(variables, sep="/")
    array_files.write(path, {k: np.asarray(leaf) for k, leaf in flat.items()})
  rows = [row for row in content["accuracy"] if row["net"] == net]
  card = {
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    "network": {
      "depth": config.network.depth,
      "widths": found["widths"],
      "num_classes": experiment.splits.num_classes,
      "weight_bits": found["weight_bits"],
      "levels": config.data.levels,
      "scales": config.train.int8_scales,
    },
    "data": f"{experiment.splits.name} {experiment.splits.version}",
    "image_shape": list(experiment.splits.image_shape),
    "net": net,
    "revision": revision,
    "machine": measure.machine(),
    "command": content["command"],
    **{key: found[key] for key in _OF_NETS},
    "on_chips": [{key: row[key] for key in _OF_ROWS} for row in rows],
  }
  path = _ZOO / "cards.json"
  known = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({**known, short: card}, indent=1) + "\n")


def main() -> None:
  """Publishes nets of a run."""
  parser = measure.parser(__doc__)
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--name", required=True, help="of the data, in names")
  parser.add_argument("--nets", nargs="+", required=True)
  parser.add_argument("--revision", help="that made the run; else this one")
  given = parser.parse_args()
  for net in given.nets:
    revision = given.revision or measure.revision()
    publish(given.workdir, given.name, net, revision)


if __name__ == "__main__":
  main()
