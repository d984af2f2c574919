"""Whether scores of a super-net rank width vectors as training them does.

python benchmarks/rank_correlation.py --workdir runs/rank_correlation
    [--variants ...] [--statistics fixed design chip] [--seeds 4]

Truth is the table of benchmarks/table.py: nets of its space that were trained
on chips alone, twice, and calibrated on every chip. A seed pre-trains a
super-net of each variant; it scores the nets as the search scores its
candidates, with other chips than the table's, with every kind of statistics.

Printed, and written to results/rank_correlation.json: Kendall's tau-b of the
robust score, and of accuracy without defects, with the mean of the table's two
trainings; over all nets within the search's range of the budget (20 %), over
those of its upper 5 %, and, as far as the table has them, over as many of all
costs. Mean over seeds with its 95 % interval over them, which holds
what super-nets and chips differ by; nets and images are the same. Beside them
tau of the cost alone, which a score must beat to be worth its training, and tau
between the table's trainings, which says how sure the truth is. What is in the
work directory is not computed again.
"""

import json
import pathlib

import measure
import numpy as np
import pipeline_regret
from scipy import stats
import table

from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics

# name: what differs from the super-net of benchmarks/pipeline_regret.py
_VARIANTS = {
  "default": {},
  "without chips": {"pretrain.faulty_widths": 0},
  "no distillation": {"pretrain.distill": False},
  "6 random vectors": {"pretrain.random_widths": 6},
  "3 times the steps": {
    "pretrain.steps": 4500,
    "pretrain.warmup_steps": 900,
  },
}
_STATISTICS = ("fixed", "design", "chip")
_BAND = 0.05  # share of the budget
_OTHERS = 300  # nets of all costs


def sets(whole: dict, problem: table.Problem) -> dict[str, np.ndarray]:
  """Returns {name: numbers of nets}, of those that are trained twice."""
  trained = np.isfinite(whole["clean"][: len(table.SEEDS)]).all(0)
  within = np.flatnonzero(problem.inside & trained)
  in_band = whole["macs"][within] >= (1 - _BAND) * problem.budget
  found = {"budget": within, "band": within[in_band]}
  if trained.all():
    found["all costs"] = np.random.RandomState(1).permutation(len(trained))[
      :_OTHERS
    ]
  return found


def score(changes, seed, vectors, statistics, problem, folder):
  """Returns {"clean", "robust": `[N]`} of a super-net, trained or read."""
  config = pipeline_regret.get_config(problem, seed)
  config.update_from_flattened_dict(changes)
  config.search.selection = 1.0 if statistics == "design" else 0.0
  config.search.batch_norm = "fixed"
  storage.make_directory(folder)
  results.settle(config, folder)
  path = folder / f"{statistics}.json"
  if path.exists():
    found = storage.read_json(path)
    if found["vectors"] == vectors:
      return found
  with Metrics(folder) as metrics:
    pretrain.run(prepare(config), folder, metrics)
    params = results.load_supernet(prepare(config), folder)
    config.search.batch_norm = statistics
    experiment = prepare(config)
    scored = candidates.score_vectors(
      experiment,
      candidates.make_scorer(experiment, params),
      [tuple(vector) for vector in vectors],
      experiment.key("candidates"),
      metrics,
      folder / f"{statistics}_parts.json",
    )
    scored = list(scored)
  found = {
    "vectors": vectors,
    "clean": [entry["clean"] for entry in scored],
    "robust": [entry["score"] for entry in scored],
  }
  storage.write_json(path, found)
  return found


def tau(first, second) -> float:
  """Returns Kendall's tau-b; what differs by rounding errors is tied."""
  first, second = (np.round(x, 9) for x in (first, second))
  return float(stats.kendalltau(first, second).statistic)


def main() -> None:
  """Makes the super-nets, and writes the rows."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", default="runs/rank_correlation")
  parser.add_argument("--variants", nargs="*", default=list(_VARIANTS))
  parser.add_argument("--statistics", nargs="*", default=list(_STATISTICS))
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--results", default=measure.ROOT / "results")
  options = parser.parse_args()
  whole, problem = table.load(), table.Problem()
  numbers = sets(whole, problem)
  every = np.unique(np.concatenate(list(numbers.values())))
  truth = {"clean": whole["clean"], "robust": table.robust_scores(whole)}
  truth = {name: values[: len(table.SEEDS)] for name, values in truth.items()}
  vectors, revision = whole["widths"][every].tolist(), measure.revision()
  rows = []

  def add(net, statistics, taus):
    """A row of each set, of taus of {quantity: {set: one a seed}}."""
    for quantity, of_sets in taus.items():
      for name, values in of_sets.items():
        mean, half = np.mean(values), np.nan
        if len(values) > 1:
          mean, half = measure.interval(values)
        row = {
          "net": net,
          "statistics": statistics,
          "quantity": quantity,
          "setting": name,
          "nets": len(numbers[name]),
          "mean": float(mean),
          "low": float(mean - half) if len(values) > 1 else None,
          "high": float(mean + half) if len(values) > 1 else None,
          "seeds": len(values),
          "revision": revision,
        }
        rows.append(row)
        print(
          f"{net:18} {statistics or '':7} {quantity:7} {name:10} tau "
          f"{mean:.3f} +- {half:.3f}, {len(values)} seeds",
          flush=True,
        )

  def against_truth(scores):
    """{quantity: {set: taus}} of scores {quantity: `[N]`} a seed."""
    return {
      quantity: {
        name: [
          tau(np.array(s[quantity])[np.searchsorted(every, part)], mean[part])
          for s in scores
        ]
        for name, part in numbers.items()
      }
      for quantity, mean in ((k, v.mean(0)) for k, v in truth.items())
    }

  trainings = {
    quantity: {n: [tau(*values[:, part])] for n, part in numbers.items()}
    for quantity, values in truth.items()
  }
  add("one training", None, trainings)
  for kind in ("arrays", "macs"):
    costs = whole[kind][every]
    add(kind, None, against_truth([{"clean": costs, "robust": costs}]))
  workdir = pathlib.Path(options.workdir).absolute()
  for net in options.variants:
    for statistics in options.statistics:
      scores = [
        score(
          _VARIANTS[net],
          seed,
          vectors,
          statistics,
          problem,
          workdir / f"{net}_{seed}".replace(" ", "_"),
        )
        for seed in range(options.seeds)
      ]
      add(net, statistics, against_truth(scores))
      path = pathlib.Path(options.results) / "rank_correlation.json"
      path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
  main()
