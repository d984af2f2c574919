"""What placing weights on chips with known faults brings (docs/robust_nets.md).

python benchmarks/placing.py [--workdir runs/digits] [--nets found uniform ...]
  [--stuck-off 0.0904] [--stuck-on 0.0175] [--tile 64 64] [--chips 32]
  [--retrain 4]

The mean error of random binary weights in full tiles of 64 columns; and, with a
run's folder, the accuracy of its nets on the same chips and all test images:
gains over weights as they come, paired, with 95 % intervals over chips and
images, and arrays more than without. With --retrain of so many of the chips:
each net with statistics of the chip, and retrained for it by 40 steps.
"""

import dataclasses

import jax
import measure
import numpy as np

from hawis_jax import crossbar
from hawis_jax.crossbar import mapping
from hawis_jax.pipeline import results
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import statistics
from hawis_jax.training import hardware_aware

_BOTH = crossbar.Placing(mapping.RULES)
_WAYS = {
  "polarity": crossbar.Placing(("polarity",)),
  "permutation": crossbar.Placing(("permutation",)),
  "both": _BOTH,
  "4 spare columns": crossbar.Placing(spare_columns=4),
  "both, 4 spare columns": dataclasses.replace(_BOTH, spare_columns=4),
  "2 copies": crossbar.Placing(copies=2),
  "3 copies": crossbar.Placing(copies=3),
}


def weight_errors(device, rows, num_tiles=64, columns=64):
  """Returns {way: mean error of a weight over that as they come}."""
  rng = np.random.default_rng(0)
  integers = rng.choice(np.float32([-1, 1]), (num_tiles, rows, columns))
  net = mapping.Tiles(integers, np.ones_like(integers))
  shares = device.stuck_off, 1 - device.stuck_off - device.stuck_on
  states = np.searchsorted(
    np.cumsum(shares), rng.uniform(size=(num_tiles, 2, rows, columns))
  )
  states = (states - 1).astype(np.int8)
  costs = {
    sign: mapping.expected_errors(net, states[:, ::sign], 1) for sign in (1, -1)
  }
  places = np.arange(columns)
  found = {}
  for name in ("polarity", "permutation", "both"):
    placed = mapping.match(net, states, _WAYS[name], device)
    error = sum(
      np.take_along_axis(cost, placed.columns[..., None], 2)[..., 0]
      * (placed.signs == sign)
      for sign, cost in costs.items()
    )
    found[name] = error.sum() / costs[1][:, places, places].sum()
  return found


def retrained(run, net, device, test, chips, learning_rate):
  """Correct of a net that is retrained for each chip, bool `[S, N]`."""
  images, key, rows = run.unpadded(run.splits.train), run.key("robustness"), []
  train = run.config.train  # a net keeps the loss that it was trained by
  for chip in range(chips):
    variables = hardware_aware.retrain_for_chip(
      jax.random.fold_in(key, chip),
      *net,
      *images,
      device,
      steps=40,
      learning_rate=learning_rate,
      margin=train.margin if train.loss == "margin" else 0.0,
    )
    setting = monte_carlo.Setting(net.module, variables, device)
    rows += monte_carlo.classify(key, setting, *test, range(chip, chip + 1))
  return np.concatenate(rows)


def main() -> None:
  """Prints the tables."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir")
  parser.add_argument("--nets", nargs="+")
  parser.add_argument("--stuck-off", type=float, default=0.0904)
  parser.add_argument("--stuck-on", type=float, default=0.0175)
  parser.add_argument("--tile", type=int, nargs=2, default=(64, 64))
  parser.add_argument("--chips", type=int, default=32)
  parser.add_argument("--retrain", type=int, default=0)
  args = parser.parse_args()
  faults = dict(stuck_off=args.stuck_off, stuck_on=args.stuck_on)
  for rows in (27, 64, 128, 256):
    device = crossbar.Device(tile_shape=(rows, 64), **faults)
    errors = weight_errors(device, rows)
    less = (f"{name} {100 * (1 - x):.0f} %" for name, x in errors.items())
    print(f"{rows:4} rows, error less by: {', '.join(less)}")
  if not args.workdir:
    return
  run = results.open_run(args.workdir)
  test = run.unpadded(run.splits.test)
  print(f"{measure.machine()}; seed {run.config.seed}, {args.chips} chips")
  for name in args.nets or run.config.train.nets:
    net = results.load_net_of_run(args.workdir, name)
    ideal = dataclasses.replace(run.device, tile_shape=tuple(args.tile))
    device = dataclasses.replace(ideal, **faults)

    def correct(device, placing=None, chips=args.chips, net=net):
      setting = monte_carlo.Setting(*net, device, placing=placing)
      key = run.key("robustness")
      chunks = monte_carlo.classify(key, setting, *test, range(chips))
      return np.concatenate(list(chunks))

    reference = correct(device)
    print(
      f"{name}: ideal {100 * correct(ideal, chips=1).mean():.1f} %, as they "
      f"come {100 * reference.mean():.1f} %"
    )
    for way, placing in _WAYS.items():
      gain = statistics.paired_difference(correct(device, placing), reference)
      low, high = (100 * end for end in gain["ci95"])
      more = crossbar.overhead(net.variables, device, placing).arrays
      mean = 100 * (reference.mean() + gain["difference"])
      print(
        f"  {way:22} {mean:5.1f} %  {100 * gain['difference']:+.1f} "
        f"[{low:+.1f}, {high:+.1f}]  +{more} arrays",
        flush=True,
      )
    for way, rate in (("its statistics", 0.0), ("retrained", 3e-3)):
      if args.retrain:
        table = retrained(run, net, device, test, args.retrain, rate)
        gain = statistics.paired_difference(table, reference)
        low, high = (100 * end for end in gain["ci95"])
        print(
          f"  {way:22} {100 * table.mean():5.1f} %  "
          f"{100 * gain['difference']:+.1f} [{low:+.1f}, {high:+.1f}], "
          f"{gain['chips']} chips",
          flush=True,
        )


if __name__ == "__main__":
  main()
