"""Whether scores of a super-net rank width vectors as training them does.

python benchmarks/rank_correlation.py --workdir runs/rank_correlation
    [--variants ...] [--scorings ...] [--seeds 4]  # scorings: of the default

Truth is the table of benchmarks/table.py: nets of its space that were trained
on chips alone, twice, and calibrated on every chip. A seed pre-trains a
super-net of each variant; it scores the nets on other chips than the table's,
16 a scenario and all validation images, as the search scores its candidates, or
fewer of either. Statistics, of which a scoring has the name, are the search's.

Printed, and written to results/rank_correlation.json: Kendall's tau-b of the
robust score, and of accuracy without defects, with the mean of the table's two
trainings; over all nets within the search's range of the budget (20 %), over
those of its upper 5 %, and, of the default super-net, over as many of all
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
from hawis_jax.search import reward

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
# name: (statistics, chips a scenario, images)
_SCORINGS = {
  **{name: (name, 16, 256) for name in _STATISTICS},
  **{
    f"fixed, {chips} x {images}": ("fixed", chips, images)
    for chips, images in ((2, 256), (4, 128), (8, 64), (16, 32))
  },
}
_AT_ONCE = 8  # vectors
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


def score(changes, seed, vectors, scoring, problem, folder):
  """Returns {"clean", "robust": `[N]`} of a super-net, trained or read.

  Its `revisions` are those that the scores were computed at.
  """
  statistics, chips, images = _SCORINGS[scoring]
  config = pipeline_regret.get_config(problem, seed)
  config.update_from_flattened_dict(changes)
  config.search.selection = 1.0 if statistics == "design" else 0.0
  config.search.batch_norm = "fixed"
  storage.make_directory(folder)
  results.settle(config, folder)
  path = folder / f"{scoring}.json"
  found = {"vectors": [], "clean": [], "robust": [], "revisions": []}
  if path.exists():
    found = storage.read_json(path)
  new = [vector for vector in vectors if vector not in found["vectors"]]
  if new:
    with Metrics(folder) as metrics:
      pretrain.run(prepare(config), folder, metrics)
    params = results.load_supernet(prepare(config), folder)
    config.search.batch_norm, config.search.images = statistics, images
    accuracy = _accuracies(prepare(config), params, chips, new)
    robust = reward.robust_score(
      accuracy[:-1], len(config.search.scenarios), config.search.cvar_weight
    )
    found["vectors"] += new
    found["clean"] += accuracy[-1].tolist()
    found["robust"] += robust.tolist()
    found["revisions"] = sorted({*found["revisions"], measure.revision()})
    storage.write_json(path, found)
  places = [found["vectors"].index(vector) for vector in vectors]
  of_vectors = {n: np.array(found[n])[places] for n in ("clean", "robust")}
  return {**of_vectors, "revisions": found["revisions"]}


def _accuracies(experiment, params, chips, vectors):
  """Of a super-net on chips of all scenarios, and without defects, last."""
  root = experiment.key("candidates")
  scenarios = len(experiment.config.search.scenarios)
  keys = [*reward.chip_keys(root, chips, scenarios), root[None]]
  program = candidates.make_score(experiment)
  scorer = candidates.make_scorer(experiment, params)
  padded = np.array(vectors + vectors[-1:] * (-len(vectors) % _AT_ONCE))
  parts = [
    np.asarray(program(scorer, part.astype(np.int32), keys).accuracy)
    for part in padded.reshape(-1, _AT_ONCE, padded.shape[-1])
  ]
  return np.concatenate(parts, axis=1)[:, : len(vectors)]


def tau(first, second) -> float:
  """Returns Kendall's tau-b; what differs by rounding errors is tied."""
  first, second = (np.round(x, 9) for x in (first, second))
  return float(stats.kendalltau(first, second).statistic)


def main() -> None:
  """Makes the super-nets, and writes the rows."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", default="runs/rank_correlation")
  parser.add_argument("--variants", nargs="*", default=list(_VARIANTS))
  parser.add_argument("--scorings", nargs="*", default=list(_SCORINGS))
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--results", default=measure.ROOT / "results")
  options = parser.parse_args()
  whole, problem = table.load(), table.Problem()
  numbers = sets(whole, problem)
  truth = {"clean": whole["clean"], "robust": table.robust_scores(whole)}
  truth = {name: values[: len(table.SEEDS)] for name, values in truth.items()}
  path = pathlib.Path(options.results) / "rank_correlation.json"
  names = "net", "statistics", "quantity", "setting"
  rows = {}
  if path.exists():  # those of other variants and scorings stay
    stored = json.loads(path.read_text())
    rows = {tuple(row[name] for name in names): row for row in stored}

  def add(net, statistics, taus, revisions):
    """A row of each set, of taus of {quantity: {set: one a seed}}."""
    for quantity, of_sets in taus.items():
      for name, values in of_sets.items():
        mean, half = np.mean(values), np.nan
        if len(values) > 1:
          mean, half = measure.interval(values)
        place = net, statistics, quantity, name
        rows[place] = dict(zip(names, place, strict=True)) | {
          "nets": len(numbers[name]),
          "mean": float(mean),
          "low": float(mean - half) if len(values) > 1 else None,
          "high": float(mean + half) if len(values) > 1 else None,
          "seeds": len(values),
          "of_seeds": np.round(values, 4).tolist(),
          "revision": ", ".join(sorted(revisions)),
        }
        print(
          f"{net:18} {statistics or '':7} {quantity:7} {name:10} tau "
          f"{mean:.3f} +- {half:.3f}, {len(values)} seeds",
          flush=True,
        )

  def against_truth(scores, every):
    """{quantity: {set: taus}} of scores {quantity: `[N]`} a seed of `every`."""
    return {
      quantity: {
        name: [
          tau(one[quantity][np.searchsorted(every, part)], mean[part])
          for one in scores
        ]
        for name, part in numbers.items()
        if np.isin(part, every).all()
      }
      for quantity, mean in ((k, v.mean(0)) for k, v in truth.items())
    }

  trainings = {
    quantity: {n: [tau(*values[:, part])] for n, part in numbers.items()}
    for quantity, values in truth.items()
  }
  add("one training", None, trainings, {measure.revision()})
  for kind in ("arrays", "macs"):
    costs = dict.fromkeys(truth, whole[kind])
    taus = against_truth([costs], np.arange(len(whole[kind])))
    add(kind, None, taus, {measure.revision()})
  workdir = pathlib.Path(options.workdir).absolute()
  for net in options.variants:
    for scoring in options.scorings if net == "default" else ["fixed"]:
      every = numbers["budget"]
      if net == "default" and scoring in _STATISTICS:
        every = np.unique(np.concatenate(list(numbers.values())))
      vectors = whole["widths"][every].tolist()
      scores = [
        score(
          _VARIANTS[net],
          seed,
          vectors,
          scoring,
          problem,
          workdir / f"{net}_{seed}".replace(" ", "_"),
        )
        for seed in range(options.seeds)
      ]
      revisions = {name for one in scores for name in one["revisions"]}
      add(net, scoring, against_truth(scores, every), revisions)
      path.write_text(json.dumps([*rows.values()], indent=1) + "\n")


if __name__ == "__main__":
  main()
