"""The table of all 1,024 nets of a small space: the truth for searches.

python benchmarks/table.py  # prints what it holds
python benchmarks/table.py --make runs/table  # makes it anew
python benchmarks/table.py --retrain 0 1023  # rows of it, beside those stored

ResNet-8 on the embedded digits; five layers of four widths each and two fixed
ones. Each net is trained on chips on its own, from scratch, and scored as the
search scores its candidates (all validation images, never test ones; BN
recalibrated on each chip, on training images) on a defect-free chip and on the
chips of two scenarios, which all nets share. Those within the budget of the
searches come first.

One program trains every net: the masked net of the greatest widths computes
what the narrower net does. Its kernels are He normal of the narrower net's own
fan-out. Nets of a seed see the same batches and start from kernels of their
own, which follow from the seed and the net's number alone: a row does not
depend on what else is computed. It does depend on how the machine rounds, so it
comes back to the bit only with the jax and the CPU that the table names.
Making it takes one core, which `taskset` says, and goes on where it was cut
off.

Axes: N nets (in the order of `vectors`), K seeds, D scenarios, S chips,
L layers.
"""

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

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import measure
import ml_collections
import numpy as np
from scipy import stats

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.networks import width_vectors
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import nets
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.search import method
from hawis_jax.search import reward
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization

PATH = pathlib.Path(__file__).parent / "data" / "digits_1024.npz"
SEEN = 16  # chips a scenario that searches draw theirs from
QUANTILE = 0.6  # of all nets' MACs: the budget of a search
SLACK = 0.2  # share of the budget that the budget range of a search spans
SEEDS = (0, 1)  # of all nets
# Of the best nets within the budget by those: the best of many means are so by
# luck as well, and fresh trainings know nothing of it.
FRESH_SEEDS = (2, 3, 4, 5)
_BEST = 60
_PART = 32  # nets of a file of partial results
# What a row depends on, beside its seed.
_FIELDS = (
  *("data.name", "data.validation_images", "data.levels", "data.augment"),
  *("network.depth", "space.choices", "device.preset"),
  *("train.steps", "train.batch_size", "train.loss", "train.margin"),
  *("train.optimizer.name", "train.optimizer.learning_rate"),
  "train.optimizer.schedule",
  *("search.scenarios", "search.cvar_weight", "search.chips"),
  *("search.images", "search.calibration_images", "search.batch_size"),
  *("search.batch_norm", "hardware_aware.chips", "hardware_aware.ramp"),
  *("hardware_aware.most_severity", "hardware_aware.worst"),
)


def get_config(seed: int = 0) -> ml_collections.ConfigDict:
  """The digits' configuration with narrower nets and a shorter training."""
  c = settings.default()
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
  c.train.steps = 1200
  c.train.batch_size = 32
  c.train.optimizer.name = "adam"
  c.train.optimizer.learning_rate = 1e-2
  c.train.optimizer.schedule = "cosine"
  c.train.loss = "margin"
  # What chips do where widths matter most, as in configs/digits.py.
  c.search.scenarios = (dict(device=1.0), dict(variation=0.7))
  c.search.batch_norm = "chip"
  c.search.selection = 1.0
  c.hardware_aware.most_severity = 1.5
  c.search.images = c.data.validation_images
  c.search.batch_size = 128
  c.search.chips = 32
  settings.validate(c)
  return c


def vectors(config: ml_collections.ConfigDict) -> np.ndarray:
  """All width vectors, int `[N, L]`; the last layer's width changes fastest."""
  return np.array(list(itertools.product(*config.space.choices)))


def load() -> dict[str, Any]:
  """Returns the table.

  widths int `[N, L]`, arrays and macs int `[N]`, seeds int `[K]`, clean
  float64 `[K, N]`, chips float64 `[K, N, D, S]` (accuracies), settings and
  environment: dicts.
  """
  with np.load(PATH) as file:
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
      reward.robust_score(chips.reshape(len(chips), -1).T, scenarios, weight)
      for chips in table["chips"]
    ]
  )


class Problem:
  """The table as a search problem.

  Attributes:
    space: of the nets, in whose order of choices N nets are.
    budget: of MACs.
    context: of the methods, one budget.
    accuracy: float32 `[D, S, N]`, of the first training seed.
    inside: bool `[N]`, nets within the budget.
    truth: robust scores `[N]` on the chips that searches never see.
    known: on those they do.
  """

  def __init__(self):
    table = load()
    self.space = width_vectors.WidthSpace(get_config().space.choices)
    self.accuracy = np.moveaxis(table["chips"][0], 0, -1).astype(np.float32)
    geometry = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
    costs = cost.tables(self.space.table, geometry, "macs")
    every = self.space.choices_of(table["widths"])
    macs = cost.vector_cost(costs, every)
    self.budget = float(np.quantile(macs, QUANTILE))
    budget_range = (1 - SLACK) * self.budget, self.budget
    feasible = cost.feasible_set(self.space, costs, [budget_range])
    self.context = method.make_context(
      self.space, feasible, costs, geometry.positions, [self.budget]
    )
    self.inside = np.asarray(feasible.contains(0, jnp.asarray(every)))
    self.truth = self._scores(self.accuracy[:, SEEN:])
    self.known = self._scores(self.accuracy[:, :SEEN])

  def place(self, choices):
    """Number of the nets of choices `[..., L]`."""
    sizes = [len(layer) for layer in self.space.choices]
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1]
    return (choices * strides.astype(np.int32)).sum(-1)

  def _scores(self, accuracy):
    flat = jnp.asarray(accuracy.reshape(-1, accuracy.shape[-1]))
    return np.asarray(reward.robust_score(flat, len(accuracy), 0.5))


def summarize() -> None:
  """Prints what the table holds."""
  table = load()
  robust = robust_scores(table)
  measures = {"clean": table["clean"], "robust score": robust}
  for index, scenario in enumerate(table["settings"]["search.scenarios"]):
    name = ", ".join(f"{k} {v:g}" for k, v in scenario.items())
    measures[name] = table["chips"].mean(-1)[:, :, index]
  print(json.dumps(table["settings"]))
  print(json.dumps(table["environment"]))
  trained = np.isfinite(table["clean"])
  for seed, count in zip(table["seeds"], trained.sum(1), strict=True):
    print(f"seed {seed}: {count} of {len(table['widths'])} nets")
  shares, here = (0, 5, 25, 50, 75, 95, 100), trained[0]
  print(f"\nquantiles over nets, seed {table['seeds'][0]} [%]; tau with cost")
  head = [*(f"{share} %" for share in shares), "arrays", "MACs"]
  print(f"{'':34}" + "".join(f"{name:>9}" for name in head))
  for name, values in measures.items():
    cells = [f"{q:9.2f}" for q in 100 * np.percentile(values[0, here], shares)]
    for kind in ("arrays", "macs"):
      tau = stats.kendalltau(values[0, here], table[kind][here]).statistic
      cells.append(f"{tau:9.3f}")
    print(f"{name:34}" + "".join(cells))
  twice = trained[: len(SEEDS)].all(0)
  print(f"\ntwo seeds of {twice.sum()} nets: standard deviations [points]")
  head = ("one net", "all nets", "reliable", "of both", "tau", "ceiling")
  print(f"{'':34}" + "".join(f"{name:>9}" for name in head))
  for name, values in measures.items():
    print(f"{name:34}" + _noise(*values[: len(SEEDS), twice]))
  print(
    "one net: of its trainings (chips and images are the same); all nets: of "
    "their means\nover trainings; reliable: those means' share of the variance "
    "over nets; of both: the same\nof the mean of the seeds; tau: between the "
    "seeds; ceiling: tau of one seed with the\nmeans over trainings, were all "
    "normal: 2 / pi asin sqrt(reliable)"
  )


def _noise(first, second):
  """One line on what two seeds `[N]` say of their noise."""
  within = np.square(first - second).mean() / 2
  total = (first.var(ddof=1) + second.var(ddof=1)) / 2
  between = max(total - within, 0)
  reliable = between / total
  tau = stats.kendalltau(first, second).statistic
  return (
    f"{100 * within**0.5:9.2f}{100 * between**0.5:9.2f}{reliable:9.3f}"
    f"{2 * reliable / (1 + reliable):9.3f}{tau:9.3f}"
    f"{2 / np.pi * np.arcsin(reliable**0.5):9.3f}"
  )


def _on_one_core():
  """Neither another backend nor the number of cores must change a row.

  It is the first that the process may use: XLA parts its loops by their number.
  """
  jax.config.update("jax_platforms", "cpu")
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  given = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_multi_thread_eigen=false"


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


class Rows:
  """Makes rows of one seed."""

  def __init__(self, seed: int):
    config = get_config(seed)
    self._experiment = experiment = prepare(config)
    self._vectors = vectors(config)
    batches = experiment.train_batches(
      experiment.splits.train, config.train.batch_size, 0
    )
    batches = list(itertools.islice(batches, config.train.steps))
    self._batches = jax.tree.map(lambda *x: np.stack(x), *batches)
    self._scorer = candidates.make_scorer(experiment, None)
    self._run = jax.jit(functools.partial(_train_and_score, experiment))

  def __call__(self, net: int) -> tuple[np.ndarray, np.ndarray]:
    """(clean accuracy, accuracies `[D, S]`) of net number `net`."""
    key = jax.random.fold_in(self._experiment.key("train_init"), net)
    # XLA's convolution on one thread is 4 to 7 times slower on these maps than
    # the product of patches that smaller ones take; both are exact.
    with mock.patch.object(binary, "_SMALL_MAP", 64):
      correct = self._run(key, self._vectors[net], self._batches, self._scorer)
    accuracy = np.asarray(correct) / len(self._experiment.splits.validation)
    scenarios = len(self._experiment.config.search.scenarios)
    return accuracy[-1], accuracy[:-1].reshape(scenarios, -1)


def narrowed(params: dict, module: nn.Module, widths: chex.Array) -> dict:
  """Fresh weights of the super-net as those of a net of some widths.

  They are He normal of their fan-out, which is smaller in a narrower net.

  Args:
    params: from `variables.init`.
    module: the super-net.
    widths: int `[L]`.
  """
  flat = traverse_util.flatten_dict(params)
  kernels = [path for path in sorted(flat) if path[-1] == "kernel"]
  blocks = [path for path in kernels if path[0].startswith("stage")]
  layers = [("stem", "kernel"), *blocks]
  for index, path in enumerate(layers):
    widest = module.max_widths[index]
    flat[path] *= jnp.sqrt(widest / widths[index]).astype(jnp.float32)
  return traverse_util.unflatten_dict(flat)


def _train_and_score(experiment, key, vector, batches, scorer):
  """Correct `[D S + 1]` of a net on all chips; the last has no defects."""
  config, module = experiment.config, experiment.supernet
  optimizer = optimization.make_optimizer(
    nets.optimizer_settings(config.train.optimizer), config.train.steps
  )
  fresh = net_variables.init(module, key, experiment.splits.image_shape)
  params = narrowed(fresh["params"], module, vector)
  state = optimization.TrainState(
    params, fresh["batch_stats"], optimizer.init(params)
  )
  chip_key = jax.random.fold_in(key, 1)
  recipe = fixed_net.Recipe(
    margin=config.train.margin,
    chips=nets.chips(settings.selection_devices(config), config),
  )

  def step(state, inputs):
    return fixed_net.train_step(
      state,
      inputs[1],
      key=jax.random.fold_in(chip_key, inputs[0]),
      progress=1.0,
      module=module,
      optimizer=optimizer,
      recipe=recipe,
      widths=vector,
    )

  steps = jnp.arange(config.train.steps)
  state, _ = jax.lax.scan(step, state, (steps, batches))
  devices = settings.search_devices(config)
  # The same chips whatever the training's seed.
  root = jax.random.key(0)
  keys = reward.chip_keys(root, config.search.chips, len(devices) - 1)
  score = reward.make_score(
    module, devices, 1, batch_norm=config.search.batch_norm
  )
  scorer = scorer.replace(params=state.params)
  return score(scorer, vector[None], [*keys, root[None]]).correct[:, 0]


def make(workdir: pathlib.Path, count: int, seeds: Sequence[int]) -> None:
  """Makes the table, or what is left of it, and prints its progress.

  Args:
    workdir: of partial results.
    count: nets trained with the first two seeds; those within the budget first.
    seeds: to be made; of others what there is.

  Raises:
    InputError: `workdir` holds rows of other settings, or of another machine.
  """
  config = get_config()
  widths, flat = vectors(config), settings.flatten(config)
  costs = prepare(config).cost(widths)
  order, within = _order(np.asarray(costs.macs))
  chosen = json.loads(json.dumps({name: flat[name] for name in _FIELDS}))
  made_with = {"settings": chosen, "environment": environment()}
  with storage.locked(workdir):
    path = workdir / "settings.json"
    if path.exists() and storage.read_json(path) != made_with:
      raise errors.InputError(
        f"{workdir} holds rows of other settings; take another --make"
      )
    storage.write_json(path, made_with)
    # Halves hold the multiples of 1 / 256 exactly; NaN: not trained.
    every = SEEDS + FRESH_SEEDS
    shape = len(every), len(widths)
    tests = len(config.search.scenarios), config.search.chips
    table = {
      "clean": np.full(shape, np.nan, np.float16),
      "chips": np.full((*shape, *tests), np.nan, np.float16),
    }
    for place, seed in enumerate(every):
      numbers = order[:count]
      if seed in FRESH_SEEDS:
        chips = table["chips"][: len(SEEDS)].astype(np.float64)
        scores = robust_scores({"chips": chips, "settings": flat}).mean(0)
        if not np.isfinite(scores[within]).all():
          if seed not in seeds:
            continue
          raise errors.InputError(
            f"--seeds: got {seed}, needed before is that seeds {SEEDS} have "
            "all nets within the budget"
          )
        scores = np.where(within, np.nan_to_num(scores), 0)
        numbers = np.argsort(-scores, kind="stable")[:_BEST]
      for where, part in _parts(workdir, seed, numbers, seed in seeds):
        for name, values in table.items():
          values[place, where] = part[name]
    storage.write_npz(
      workdir / PATH.name,
      {
        "widths": widths.astype(np.int16),
        "arrays": np.asarray(costs.arrays, np.int32),
        "macs": np.asarray(costs.macs, np.int32),
        "seeds": np.array(every, np.int32),
        **table,
        **{name: np.array(json.dumps(v)) for name, v in made_with.items()},
      },
    )
  print(f"{workdir / PATH.name}: copy it to {PATH}")


def _order(macs):
  """Numbers of all nets, those within the budget first; and which are that."""
  order = np.random.RandomState(0).permutation(len(macs))
  budget = np.quantile(macs, QUANTILE)
  within = ((1 - SLACK) * budget <= macs) & (macs <= budget)
  return order[np.argsort(~within[order], kind="stable")], within


def _parts(workdir, seed, order, is_made):
  """Yields (numbers of nets, their rows) of one seed, read or, if so, made."""
  rows, started, count = None, time.monotonic(), 0
  for start in range(0, len(order), _PART):
    where = order[start : start + _PART]
    path = workdir / f"seed{seed}_{start:04d}.npz"
    is_there = path.exists() and np.array_equal(np.load(path)["numbers"], where)
    if not is_there and not is_made:
      return
    if not is_there:
      rows = rows or Rows(seed)
      made = [rows(int(net)) for net in where]
      clean, chips = (np.stack(x) for x in zip(*made, strict=True))
      storage.write_npz(
        path, {"numbers": where, "clean": clean, "chips": chips}
      )
      count += len(made)
      pace = (time.monotonic() - started) / count
      print(
        f"seed {seed}: {start + len(made)} of {len(order)} nets, {pace:.2f} s "
        f"a net, clean {clean.mean():.3f}",
        flush=True,
      )
    with np.load(path) as part:
      yield where[: len(part["clean"])], dict(part)


def retrain(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
  """Makes rows of the first seed anew; yields them beside the stored ones."""
  table = load()
  rows = Rows(int(table["seeds"][0]))
  for net in numbers:
    clean, chips = rows(net)
    gaps = np.abs(chips - table["chips"][0, net])
    yield {
      "net": net,
      "widths": table["widths"][net].tolist(),
      "clean": clean,
      "clean_stored": table["clean"][0, net],
      "greatest_difference_of_chips": gaps.max(),
      "same_environment": table["environment"] == environment(),
    }


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument("--make", type=pathlib.Path, metavar="FOLDER")
  parser.add_argument("--nets", type=int, default=1024)
  every = SEEDS + FRESH_SEEDS
  parser.add_argument("--seeds", type=int, nargs="+", default=every)
  parser.add_argument("--retrain", type=int, nargs="+", metavar="NET")
  options = parser.parse_args()
  if options.retrain or options.make:
    _on_one_core()
  if options.retrain:
    for row in retrain(options.retrain):
      print(json.dumps(row), flush=True)
  elif options.make:
    make(options.make, options.nets, options.seeds)
  else:
    summarize()


if __name__ == "__main__":
  main()
