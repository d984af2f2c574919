"""Accuracy on chips against the images that each is calibrated with.

python benchmarks/calibration.py --workdir runs/digits [--net found]
  [--effect variation --severity 0.7] [--preset pcm] [--images 16 64 ...]
  [--batch 64] [--chips 128] [--draws 4]

For a trained net of a run, on the same chips and all test images: mean accuracy
with the statistics of ideal weights ("fixed"), with one factor a layer
("global"), and with statistics measured on each chip with N training images
("chip"), drawn anew for every share of the chips (so many --draws). Gains are
over "fixed", paired, with 95 % intervals over chips and images; the last column
has the means of the draws.
"""

import dataclasses

import measure
import numpy as np

from hawis_jax import crossbar
from hawis_jax.pipeline import results
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import statistics

_IMAGES = (16, 64, 256, 1024)


def _batches(images, number, batch, rng):
  """Calibration images uint8 `[M, B, H, W, C]`."""
  drawn = images[rng.permutation(len(images))[:number]]
  return drawn.reshape(-1, min(batch, number), *images.shape[1:])


def main() -> None:
  """Prints the table."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--net", default="found")
  parser.add_argument("--effect", default="variation")
  parser.add_argument("--severity", type=float, default=0.7)
  parser.add_argument("--preset")
  parser.add_argument("--images", type=int, nargs="+", default=_IMAGES)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--chips", type=int, default=128)
  parser.add_argument("--draws", type=int, default=4)
  args = parser.parse_args()
  run = results.open_run(args.workdir)
  net = results.load_net_of_run(args.workdir, args.net)
  device = crossbar.preset(args.preset) if args.preset else run.device
  device = dataclasses.replace(device, **{args.effect: args.severity})
  test = run.unpadded(run.splits.test)
  train, _ = run.unpadded(run.splits.train)
  fixed = monte_carlo.Setting(*net, device)
  share = args.chips // args.draws

  def correct(name):
    way, number = name
    tables = []
    for draw in range(args.draws):
      setting = dataclasses.replace(fixed, compensated=way == "global")
      if way == "chip":
        rng = np.random.default_rng(draw)
        batches = _batches(train, number, args.batch, rng)
        setting = dataclasses.replace(fixed, calibration=batches)
      chips = range(draw * share, (draw + 1) * share)
      chunks = monte_carlo.classify(
        run.key("robustness"), setting, *test, chips
      )
      tables.append(np.concatenate(list(chunks)))
    return np.stack(tables)

  print(
    f"{measure.machine()}; {args.net} net of seed {run.config.seed}, "
    f"{args.effect} = {args.severity:g}, {share * args.draws} chips, "
    f"{len(test[1])} test images"
  )
  reference = None
  for name in [
    ("fixed", 0),
    ("global", 0),
    *(("chip", n) for n in args.images),
  ]:
    tables = correct(name)
    table = np.concatenate(tables)
    reference = table if reference is None else reference
    gain = statistics.paired_difference(table, reference)
    low, high = (100 * end for end in gain["ci95"])
    each = ", ".join(f"{100 * one.mean():.1f}" for one in tables)
    print(
      f"{name[0]:6} {name[1]:5}  {100 * table.mean():5.1f} %  "
      f"{100 * gain['difference']:+5.1f} [{low:+.1f}, {high:+.1f}]  ({each})",
      flush=True,
    )


if __name__ == "__main__":
  main()
