"""Regret through the whole pipeline: super-net, search, selection by training.

python benchmarks/pipeline_regret.py --workdir runs/pipeline_regret
    [--first 3] [--seeds 17]

In the space of benchmarks/table.py, whose nets within the budget were all
trained on chips, alone. A seed pre-trains a super-net on chips, searches with
every method at equal evaluations on the same chips, and selects by training
among each method's best; of the net that is found the table knows the score.

Regret, in points of robust score: the best of all nets within the budget, less
the found one. It is the sum of three: the best of all less the best that a
method had scored or named (proposal), that less the best that went to selection
(ranking), that less the found one (selection). Scores are means of trainings of
the table, of the best nets of those that did not choose them. Of many nets the
best mean is too good by what trainings differ, so that a search that knew all
would have a regret as well. `crossed` is the regret without that, or a little
too small: each training in turn scores the net that is best by all others.

results/pipeline_regret.json is written after each seed. Intervals of 95 % are
over seeds, of super-net, search and selection; the table is one. `less_random`
is the difference from random search of the same seeds, by the paired t-test and
by Wilcoxon's signed-rank test: regrets are few values, and some are far out.
Seeds 0 to 2 chose how selection decides, and are left out.
"""

import json
import pathlib

import jax
import measure
import numpy as np
from scipy import stats
import table

from hawis_jax.config import settings
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import halving
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import results
from hawis_jax.pipeline import search
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import registry

_PARTS = ("proposal", "ranking", "selection")


def get_config(problem: table.Problem, seed: int):
  """Returns the configuration of a seed."""
  c = table.get_config(seed)
  c.space.cost = "macs"
  c.pretrain.steps = 1500
  c.pretrain.warmup_steps = 300
  c.pretrain.batch_size = 64
  c.pretrain.faulty_widths = 2
  c.search.budget = problem.budget
  c.search.budget_slack = table.SLACK
  c.search.methods = registry.NAMES
  c.search.updates = 10
  c.search.proposals = 16
  c.search.images = 128
  c.search.chips = 4
  c.search.vectors_per_step = 32
  c.search.batch_size = 64
  c.search.candidates = 8
  c.search.selection = 1.5  # trainings; of every method here
  settings.validate(c)
  return c


class Truth:
  """What the table knows of the nets within the budget."""

  def __init__(self, problem: table.Problem):
    self._problem = problem
    scores = 100 * table.robust_scores(table.load())
    self._scores = np.where(problem.inside, scores, np.nan)
    chosen_by = len(table.SEEDS)
    self._fresh = range(chosen_by, len(scores))
    fresh = self._scores[chosen_by:].mean(0)
    first = self._scores[:chosen_by].mean(0)
    self.mean = np.where(np.isfinite(fresh), fresh, first)

  def of(self, vectors) -> np.ndarray:
    """Mean scores of width vectors `[N, L]`, in percent."""
    return self.mean[self._places(vectors)]

  def crossed(self) -> float:
    """The best by all trainings but one, scored by that; mean over them."""
    again = np.isfinite(self._scores).all(0)
    scores = np.where(again, self._scores, -np.inf)
    best = [
      scores[one, np.delete(scores, one, axis=0).mean(0).argmax()]
      for one in self._fresh
    ]
    return float(np.mean(best))

  def _places(self, vectors):
    choices = self._problem.space.choices_of(np.array(vectors))
    return self._problem.place(choices)


def parts(truth: Truth, scored, chosen, found) -> dict[str, float]:
  """Returns the regret of one search, and what it is the sum of."""
  steps = [
    np.nanmax(truth.mean),
    truth.of(np.concatenate([scored, chosen])).max(),
    truth.of(chosen).max(),
    truth.of([found])[0],
  ]
  gaps = -np.diff(steps)
  return {
    "mean": float(gaps.sum()),
    **dict(zip(_PARTS, map(float, gaps), strict=True)),
    "crossed": truth.crossed() - float(steps[-1]),
    "found": float(steps[-1]),
  }


def run(seed: int, problem: table.Problem, folder: pathlib.Path) -> dict:
  """Returns {"methods": {name: {"scored", "chosen", "found"}}, "revision"}."""
  path = folder / "found.json"
  config = get_config(problem, seed)
  storage.make_directory(folder)
  results.settle(config, folder)
  if path.exists():
    return storage.read_json(path)
  experiment = prepare(config)
  searching = config.copy_and_resolve_references()
  searching.search.selection = 0.0
  with Metrics(folder) as metrics:
    pretrain.run(experiment, folder, metrics)
    result = search.run(prepare(searching), folder, metrics)
    scorer = candidates.make_scorer(
      experiment, results.load_supernet(experiment, folder)
    )
    with np.load(results.evaluations_path(folder)) as file:
      names, widths = file["methods"], file["widths"].swapaxes(0, 1)
      widths = dict(zip(names.tolist(), widths, strict=True))
    found = {}
    for name in registry.NAMES:
      selected = halving.select(
        experiment,
        scorer,
        {
          tuple(entry["widths"]): entry["score"]
          for source in (name, candidates.UNIFORM)
          for entry in result["candidates"][source]
        },
        experiment.uniforms[experiment.main_budget],
        metrics,
        folder / "selection" / name,
      )
      scored = widths[name].reshape(-1, widths[name].shape[-1])
      found[name] = {
        "scored": np.unique(scored, axis=0).tolist(),
        "chosen": [e["widths"] for e in selected["rounds"][0]],
        "found": selected["found"],
      }
  found = {"methods": found, "revision": measure.revision()}
  storage.write_json(path, found)
  return found


def rows(runs: list[dict], truth: Truth) -> list[dict]:
  """Returns a row for each method, of the seeds so far."""
  content, found = [], [of_seed["methods"] for of_seed in runs]
  revision = ", ".join(sorted({of_seed["revision"] for of_seed in runs}))
  for name in registry.NAMES:
    each = [parts(truth, **of_seed[name]) for of_seed in found]
    values = {k: np.array([one[k] for one in each]) for k in each[0]}
    baseline = [parts(truth, **of_seed["random"])["mean"] for of_seed in found]
    less, gaps = None, values["mean"] - baseline
    if gaps.any():  # else it is that search
      test = stats.ttest_1samp(gaps, 0)
      low, high = map(float, test.confidence_interval())
      less = {"mean": float(gaps.mean()), "low": low, "high": high}
      less["p"] = float(test.pvalue)
      less["p_wilcoxon"] = float(stats.wilcoxon(gaps).pvalue)
    mean, half = measure.interval(values["mean"])
    content.append(
      {
        "method": name,
        "mean": float(mean),
        "low": float(mean - half),
        "high": float(mean + half),
        "seeds": len(found),
        "less_random": less,
        **{k: float(values[k].mean()) for k in (*_PARTS, "crossed", "found")},
        "of_seeds": values["mean"].round(3).tolist(),
        "revision": revision,
      }
    )
  return content


def main() -> None:
  """Runs the seeds, and writes the rows of those that are done."""
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", default="runs/pipeline_regret")
  parser.add_argument("--first", type=int, default=3, help="seed")
  parser.add_argument("--seeds", type=int, default=17)
  parser.add_argument("--results", default=measure.ROOT / "results")
  options = parser.parse_args()
  problem = table.Problem()
  truth, found = Truth(problem), []
  within = truth.mean[problem.inside]
  print(
    f"{len(within)} nets within the budget: robust score {within.mean():.2f} % "
    f"on average, {within.max():.2f} at best, {truth.crossed():.2f} crossed; "
    f"{jax.devices()[0].device_kind}"
  )
  path = pathlib.Path(options.results) / "pipeline_regret.json"
  for seed in range(options.first, options.first + options.seeds):
    folder = pathlib.Path(options.workdir).absolute() / str(seed)
    found.append(run(seed, problem, folder))
    if len(found) < 2:  # of one no interval is
      continue
    content = rows(found, truth)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(found)} seeds: regret [points] of which {', '.join(_PARTS)}")
    for row in content:
      print(
        f"{row['method']:10} {row['mean']:6.2f} ({row['low']:.2f} to "
        f"{row['high']:.2f}) "
        + "".join(f"{row[part]:7.2f}" for part in _PARTS)
        + f"; crossed {row['crossed']:.2f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
