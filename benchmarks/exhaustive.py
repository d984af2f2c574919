"""Every net of a small space, trained and scored: the truth for searches.

python benchmarks/exhaustive.py --workdir runs/exhaustive  # makes the table
python benchmarks/exhaustive.py --summary  # what is in it
python benchmarks/exhaustive.py --retrain 0 1023  # rows of it, made anew

ResNet-8 on the embedded digits; five layers of four widths each and two fixed
ones: 1,024 width vectors. Each net is trained on its own, from scratch, and
scored as the search scores its candidates (BN recalibrated on training images,
all validation images, never test ones) on a defect-free chip and on the chips
of the default scenarios, which all nets share. What searches look for is thus
known: regret, and rank correlation with a super-net, can be measured against
benchmarks/data/digits_1024.npz (see `load`).

One program trains every net: the masked net of the greatest widths computes
what the narrower net does. Its kernels are He normal of the narrower net's own
fan-out. Nets of a seed see the same batches and start from kernels of their
own, which follow from the seed and the net's number alone: a row does not
depend on what else is computed. It does depend on how the machine rounds, so it
comes back to the bit only with the jax and the CPU that the table names.

It runs on one core and goes on where it was cut off.

Axes: N nets (in the order of `vectors`), K seeds, D scenarios, S chips,
L layers.
"""

import argparse
from collections.abc import Iterator, Sequence
import functools
import itertools
import json
import os
import pathlib
import platform
import time
from typing import Any
from unittest import mock

from hawis_jax import backend

# Neither another backend nor the number of cores must change the result.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
).strip()
backend.configure()

# ruff: noqa: E402
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import stats

from hawis_jax import binary
from hawis_jax import config as config_lib
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import optimize
from hawis_jax import pretrain
from hawis_jax import scoring
from hawis_jax import variables as variables_lib

TABLE = pathlib.Path(__file__).parent / "data" / "digits_1024.npz"
_SEEDS = (0, 1)
_PART = 32  # nets of a file of partial results
# What a row depends on, beside its seed.
_FIELDS = (
  *("data.name", "data.validation_images", "data.levels", "data.augment"),
  *("network.depth", "space.choices", "device.preset"),
  *("train.steps", "train.batch_size"),
  *("train.optimizer.name", "train.optimizer.learning_rate"),
  "train.optimizer.schedule",
  *("search.scenarios", "search.cvar_weight", "search.chips"),
  *("search.images", "search.calibration_images", "search.batch_size"),
)


def get_config(seed: int = 0) -> ml_collections.ConfigDict:
  """The digits' configuration with narrower nets and a shorter training."""
  c = config_lib.default()
  c.seed = seed
  c.data.name = "digits"
  c.data.levels = 8
  c.network.depth = 8
  c.network.base_widths = (3, 6, 12)
  c.space.choices = (
    (3, 6, 9, 12),
    (8,),
    (3, 6, 9, 12),
    (16,),
    (6, 12, 18, 24),
    (12, 24, 36, 48),
    (12, 24, 36, 48),
  )
  c.train.steps = 400
  c.train.batch_size = 32
  c.train.optimizer.name = "adam"
  c.train.optimizer.learning_rate = 1e-2
  c.train.optimizer.schedule = "cosine"
  c.search.images = c.data.validation_images
  c.search.batch_size = 128
  c.search.chips = 32
  config_lib.validate(c)
  return c


def vectors(config: ml_collections.ConfigDict) -> np.ndarray:
  """All width vectors, int `[N, L]`; the last layer's width changes fastest."""
  return np.array(list(itertools.product(*config.space.choices)))


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What the table's rows depend on, beside their seeds."""
  flat = config_lib.flatten(config)
  return json.loads(json.dumps({name: flat[name] for name in _FIELDS}))


def environment() -> dict[str, str]:
  """What a row depends on to the bit: jax's version and the CPU."""
  found = {"jax": jax.__version__, "cpu": platform.machine(), "vectors": ""}
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    lines = (line.split(":", 1) for line in info.read_text().splitlines())
    facts = {line[0].strip(): line[1].strip() for line in lines if line[1:]}
    found["cpu"] = facts.get("model name", found["cpu"])
    flags = facts.get("flags", "").split()
    # Virtual machines may hide the model, but not these.
    found["vectors"] = " ".join(
      flag for flag in flags if flag.startswith(("avx", "fma", "amx"))
    )
  return found


def load() -> dict[str, Any]:
  """Returns the table.

  widths int `[N, L]`, arrays and macs int `[N]`, seeds int `[K]`, clean
  float64 `[K, N]`, chips float64 `[K, N, D, S]` (accuracies), settings and
  environment: dicts.
  """
  with np.load(TABLE) as file:
    table = dict(file)
  for name in ("clean", "chips"):
    table[name] = table[name].astype(np.float64)
  for name in ("settings", "environment"):
    table[name] = json.loads(str(table[name]))
  return table


def robust_scores(table: dict[str, Any]) -> np.ndarray:
  """The search's reward of every seed and net, `[K, N]`."""
  weight = table["settings"]["search.cvar_weight"]
  scenarios = table["chips"].shape[2]
  return np.stack(
    [
      scoring.robust_score(chips.reshape(len(chips), -1).T, scenarios, weight)
      for chips in table["chips"]
    ]
  )


class Rows:
  """Makes rows of one seed."""

  def __init__(self, seed: int):
    config = get_config(seed)
    self._experiment = experiment = experiment_lib.prepare(config)
    self._vectors = vectors(config)
    batches = experiment.train_batches(
      experiment.splits.train, config.train.batch_size, 0
    )
    batches = list(itertools.islice(batches, config.train.steps))
    self._batches = jax.tree.map(lambda *x: np.stack(x), *batches)
    self._scorer = scoring.make_scorer(experiment, None)
    self._run = jax.jit(functools.partial(_train_and_score, experiment))

  def __call__(self, net: int) -> tuple[np.ndarray, np.ndarray]:
    """(clean accuracy, accuracies `[D, S]`) of net number `net`."""
    key = jax.random.fold_in(self._experiment.key("train_init"), net)
    # XLA's convolution on one thread is 4 to 7 times slower on these maps than
    # the product of patches that smaller ones take; both are exact.
    with mock.patch.object(binary, "_SMALL_MAP", 64):
      hits = self._run(key, self._vectors[net], self._batches, self._scorer)
    accuracy = np.asarray(hits) / len(self._experiment.splits.validation)
    scenarios = len(self._experiment.config.search.scenarios)
    return accuracy[-1], accuracy[:-1].reshape(scenarios, -1)


def _train_and_score(experiment, key, vector, batches, scorer):
  """Hits `[D S + 1]` of a net on all chips; the last has no defects."""
  config, module = experiment.config, experiment.supernet
  optimizer = optimize.make_optimizer(
    config.train.optimizer, config.train.steps
  )
  fresh = variables_lib.init(module, key, experiment.splits.image_shape)
  params = _narrow_init(fresh["params"], vector, module.max_widths)
  state = optimize.TrainState(params, (), optimizer.init(params))

  def step(state, batch):
    return pretrain.sandwich_step(
      state,
      vector[None],
      batch,
      module=module,
      optimizer=optimizer,
      distill=False,
    )

  state, _ = jax.lax.scan(step, state, batches)
  devices = config_lib.search_devices(config)
  # The same chips whatever the training's seed.
  root = jax.random.key(0)
  keys = scoring.chip_keys(root, config.search.chips, len(devices) - 1)
  score = scoring.make_score(experiment, devices)
  scorer = scorer.replace(params=state.params)
  return score(scorer, vector[None], [*keys, root[None]]).hits[:, 0]


def _narrow_init(params, vector, max_widths):
  """Kernels of the greatest net scaled to the fan-out of a narrower one."""
  flat = traverse_util.flatten_dict(params)
  for path in flat:
    if path[-1] == "kernel" and path[0] != "head":
      layer = 0
      if path[0] != "stem":  # stage<s>_block0
        layer = 2 * int(path[0][5]) - (path[1] == "conv1")
      ratio = max_widths[layer] / vector[layer].astype(jnp.float32)
      flat[path] *= jnp.sqrt(ratio)
  return traverse_util.unflatten_dict(flat)


def make(workdir: pathlib.Path, again: int) -> None:
  """Makes the table, or what is left of it, and prints its progress.

  Args:
    workdir: of partial results.
    again: nets trained with the second seed too, chosen at random.

  Raises:
    InputError: `workdir` holds rows of other settings, or of another machine.
  """
  config = get_config()
  nets = vectors(config)
  # The beginning of this order, of any length, is a random sample.
  order = np.random.RandomState(0).permutation(len(nets))
  with files.locked(workdir):
    made_with = {"settings": settings(config), "environment": environment()}
    path = workdir / "settings.json"
    if path.exists() and files.read_json(path) != made_with:
      raise errors.InputError(
        f"{workdir} holds rows of other settings; take another --workdir"
      )
    files.write_json(path, made_with)
    for seed, count in zip(_SEEDS, (len(nets), again), strict=True):
      _make_parts(workdir, seed, order[:count])
    _write_table(workdir, config, nets, order, made_with)


def _make_parts(workdir, seed, order):
  """Makes the rows of one seed that are not there yet, part by part."""
  rows, started, count = None, time.monotonic(), 0
  for start in range(0, len(order), _PART):
    path = _part(workdir, seed, start)
    if path.exists():
      continue
    rows = rows or Rows(seed)
    made = [rows(int(net)) for net in order[start : start + _PART]]
    clean, chips = (np.stack(x) for x in zip(*made, strict=True))
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
      np.savez(file, clean=clean, chips=chips)
    partial.replace(path)
    count += len(made)
    pace = (time.monotonic() - started) / count
    print(
      f"seed {seed}: {start + len(made)} of {len(order)} nets, {pace:.2f} s "
      f"a net, clean {clean.mean():.3f}",
      flush=True,
    )


def _part(workdir, seed, start):
  return workdir / f"seed{seed}_{start:04d}.npz"


def _write_table(workdir, config, nets, order, made_with):
  """Gathers all parts; NaN where a net was not trained with a seed."""
  scenarios, chips = len(config.search.scenarios), config.search.chips
  shape = len(_SEEDS), len(nets)
  # Halves hold the multiples of 1 / 256 exactly.
  table = {
    "clean": np.full(shape, np.nan, np.float16),
    "chips": np.full((*shape, scenarios, chips), np.nan, np.float16),
  }
  for row, seed in enumerate(_SEEDS):
    for start in range(0, len(nets), _PART):
      path = _part(workdir, seed, start)
      if path.exists():
        with np.load(path) as part:
          where = order[start : start + len(part["clean"])]
          for name, values in table.items():
            values[row, where] = part[name]
  experiment = experiment_lib.prepare(config)
  costs = [experiment.cost(tuple(int(w) for w in net)) for net in nets]
  TABLE.parent.mkdir(exist_ok=True)
  np.savez_compressed(
    TABLE,
    widths=nets.astype(np.int16),
    arrays=np.array([c.arrays for c in costs], np.int32),
    macs=np.array([c.macs for c in costs], np.int32),
    seeds=np.array(_SEEDS, np.int32),
    **table,
    **{name: np.array(json.dumps(value)) for name, value in made_with.items()},
  )
  print(f"{TABLE}: {TABLE.stat().st_size} bytes")


def retrain(nets: Sequence[int]) -> Iterator[dict[str, Any]]:
  """Makes rows of the first seed anew; yields them beside the stored ones."""
  table = load()
  rows = Rows(int(table["seeds"][0]))
  for net in nets:
    clean, chips = rows(net)
    yield {
      "net": net,
      "widths": table["widths"][net].tolist(),
      "clean": clean,
      "clean_stored": table["clean"][0, net],
      "greatest_difference_of_chips": np.abs(
        chips - table["chips"][0, net]
      ).max(),
      "same_environment": table["environment"] == environment(),
    }


_SHARES = (0, 5, 25, 50, 75, 95, 100)


def summarize() -> None:
  """Prints what the table holds."""
  table = load()
  robust = robust_scores(table)
  by_chips = table["chips"].mean(-1)
  measures = {"clean": table["clean"]}
  for index, scenario in enumerate(table["settings"]["search.scenarios"]):
    name = ", ".join(f"{k} {v:g}" for k, v in scenario.items())
    measures[name] = by_chips[:, :, index]
  measures["robust score"] = robust
  print(json.dumps(table["settings"]))
  print(json.dumps(table["environment"]))
  trained = np.isfinite(table["clean"])
  for seed, count in zip(table["seeds"], trained.sum(1), strict=True):
    print(f"seed {seed}: {count} of {len(table['widths'])} nets")

  print(f"\nquantiles over nets, seed {table['seeds'][0]} [%]")
  print(f"{'':34}" + "".join(f"{share:>7} %" for share in _SHARES))
  for name, values in measures.items():
    quantiles = 100 * np.percentile(values[0], _SHARES)
    print(f"{name:34}" + "".join(f"{q:9.2f}" for q in quantiles))

  print("\nKendall's tau with cost, of the first seed; cost from .. to")
  for kind in ("arrays", "macs"):
    costs = table[kind]
    taus = {name: _tau(v[0], costs) for name, v in measures.items()}
    print(f"{kind} ({costs.min()} .. {costs.max()})")
    for name, tau in taus.items():
      print(f"  {name:32}{tau:9.3f}")

  twice = trained.all(0)
  first, second = robust[:, twice]
  print("\nrobust score [%] of the best net of each seed, with seeds 0 and 1")
  for values in (first, second):
    best = values.argmax()
    print(
      f"  {table['widths'][twice][best].tolist()}: {100 * first[best]:.2f}, "
      f"{100 * second[best]:.2f}"
    )
  print(f"\ntwo seeds of {twice.sum()} nets: standard deviations [points]")
  head = ("one net", "all nets", "reliable", "of both", "tau", "ceiling")
  print(f"{'':34}" + "".join(f"{name:>9}" for name in head))
  for name, values in measures.items():
    print(f"{name:34}" + _noise(*values[:, twice]))
  for kind in ("arrays", "macs"):
    print(f"robust score, by quarters of {kind}")
    for low, high, inside in _quarters(table[kind], twice):
      label = f"  {low} .. {high}: {inside.sum()} nets"
      print(f"{label:34}" + _noise(*robust[:, inside]))
  print(
    "one net: of its trainings (chips and images are the same); all nets: of "
    "their means\nover trainings; reliable: those means' share of the variance "
    "over nets; of both: the same\nof the mean of the seeds; tau: between the "
    "seeds; ceiling: tau of one seed with the\nmeans over trainings, were all "
    "normal: 2 / pi asin sqrt(reliable)"
  )


def _tau(first, second):
  return stats.kendalltau(first, second).statistic


def _noise(first, second):
  """One line on what two seeds `[N]` say of their noise."""
  within = np.square(first - second).mean() / 2
  total = (first.var(ddof=1) + second.var(ddof=1)) / 2
  between = max(total - within, 0)
  reliable = between / total
  return (
    f"{100 * within**0.5:9.2f}{100 * between**0.5:9.2f}{reliable:9.3f}"
    f"{2 * reliable / (1 + reliable):9.3f}{_tau(first, second):9.3f}"
    f"{2 / np.pi * np.arcsin(reliable**0.5):9.3f}"
  )


def _quarters(costs, among):
  """Yields (least, greatest cost, bool `[N]`) of quarters by cost."""
  edges = np.percentile(costs[among], (0, 25, 50, 75, 100))
  for number, (low, high) in enumerate(itertools.pairwise(edges)):
    inside = among & (costs <= high)
    inside &= costs >= low if number == 0 else costs > low
    yield costs[inside].min(), costs[inside].max(), inside


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/exhaustive")
  parser.add_argument("--again", type=int, default=1024, metavar="NETS")
  parser.add_argument("--summary", action="store_true")
  parser.add_argument("--retrain", type=int, nargs="+", metavar="NET")
  options = parser.parse_args()
  if options.summary:
    summarize()
  elif options.retrain:
    for row in retrain(options.retrain):
      print(json.dumps(row), flush=True)
  else:
    make(pathlib.Path(options.workdir), options.again)


if __name__ == "__main__":
  main()
