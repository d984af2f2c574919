"""What is known of all 1,024 nets of a small space: the truth for searches.

python benchmarks/digits_1024.py  # prints what the table holds

ResNet-8 on the embedded digits; five layers of four widths each and two fixed
ones. exhaustive.py trained each net on its own, from scratch, and scored it as
the search scores its candidates (BN recalibrated on training images, all
validation images, never test ones) on a defect-free chip and on the chips of
the default scenarios, which all nets share.

Axes: N nets (in the order of `vectors`), K seeds, D scenarios, S chips,
L layers.
"""

import itertools
import json
import pathlib
from typing import Any

from hawis_jax import backend
from hawis_jax.search import method
from hawis_jax.search import reward

backend.configure()

# ruff: noqa: E402
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import stats

from hawis_jax import cost
from hawis_jax.config import settings
from hawis_jax.networks import width_vectors

PATH = pathlib.Path(__file__).parent / "data" / "digits_1024.npz"
SEEN = 16  # chips a scenario that searches draw theirs from
SLACK = 0.2  # share of the budget that the budget range of a search spans
# What a row depends on, beside its seed.
_FIELDS = (
  *("data.name", "data.validation_images", "data.severities", "data.augment"),
  *("network.depth", "space.choices", "device.preset"),
  *("train.steps", "train.batch_size"),
  *("train.optimizer.name", "train.optimizer.learning_rate"),
  "train.optimizer.schedule",
  *("search.scenarios", "search.cvar_weight", "search.chips"),
  *("search.images", "search.calibration_images", "search.batch_size"),
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
  c.train.steps = 400
  c.train.batch_size = 32
  c.train.optimizer.name = "adam"
  c.train.optimizer.learning_rate = 1e-2
  c.train.optimizer.schedule = "cosine"
  c.search.images = c.data.validation_images
  c.search.batch_size = 128
  c.search.chips = 32
  settings.validate(c)
  return c


def vectors(config: ml_collections.ConfigDict) -> np.ndarray:
  """All width vectors, int `[N, L]`; the last layer's width changes fastest."""
  return np.array(list(itertools.product(*config.space.choices)))


def table_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What the table's rows depend on, beside their seeds."""
  flat = settings.flatten(config)
  return json.loads(json.dumps({name: flat[name] for name in _FIELDS}))


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
    accuracy: float32 `[scenarios, chips, N]`, of the first training seed.
    inside: bool `[N]`, nets within the budget.
    trained: {"robust", "clean": float64 `[N]`}, means over training seeds.
  """

  def __init__(self, quantile: float):
    config = get_config()
    table = load()
    self.space = width_vectors.WidthSpace(config.space.choices)
    self.accuracy = np.moveaxis(table["chips"][0], 0, -1).astype(np.float32)
    geometry = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
    costs = cost.tables(self.space.table, geometry, "macs")
    every = self.space.choices_of(table["widths"])
    macs = cost.vector_cost(costs, every)
    self.budget = float(np.quantile(macs, quantile))
    budget_range = (1 - SLACK) * self.budget, self.budget
    feasible = cost.feasible_set(self.space, costs, [budget_range])
    self.context = method.make_context(
      self.space, feasible, costs, geometry.positions, [self.budget]
    )
    self.inside = np.asarray(feasible.contains(0, jnp.asarray(every)))
    self.truth = self.scores(self.accuracy[:, SEEN:])
    self.known = self.scores(self.accuracy[:, :SEEN])
    self.trained = {
      "robust": robust_scores(table).mean(0),
      "clean": table["clean"].mean(0),
    }

  def place(self, choices):
    """Number of the nets of choices `[..., L]`."""
    sizes = [len(layer) for layer in self.space.choices]
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1]
    return (choices * strides.astype(np.int32)).sum(-1)

  def scores(self, accuracy):
    """Robust scores `[N]` of some chips."""
    flat = jnp.asarray(accuracy.reshape(-1, accuracy.shape[-1]))
    return np.asarray(reward.robust_score(flat, len(accuracy), 0.5))


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


if __name__ == "__main__":
  summarize()
