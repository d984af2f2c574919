"""Search methods against each other, at equal numbers of evaluations.

python benchmarks/search.py --seeds 32   # on the stored table of 1,024 nets
python benchmarks/search.py --runs runs/search_benchmark   # of searches made
python benchmarks/search.py --faulty 0 1 2 --seeds 8   # of super-nets

On the table (see digits_1024.py) every net's robust accuracy is known from its
own training, and so is regret: the best net's score less that of the net a
method would hand over after n evaluations, that is, the best on 16 chips of its
4 candidates. (The best of noisy scores is too good by a constant, the same for
all methods.) Scores that a search sees are of 4 chips a scenario, drawn anew
for every update from those 16; the truth is of 16 others. Mean over seeds with
the 95 % t-interval, and the two-sided Mann-Whitney p against random search.

Of searches (configs/search_benchmark.py, one work directory a seed) it prints
what they found: robust score of each method's best vector, on chips that did
not choose it, and the hypervolume of its best of all budgets in robust score
and budgeted energy. Seeds are pairs: the difference from random search has a
paired t-interval; Mann-Whitney's p ignores pairs, and none is corrected for the
number of methods.

Of super-nets whose random width vectors were so many trained on defective chips
(`pretrain.faulty_widths`) it makes searches, a folder of --workdir each, of the
settings of configs/digits.py in the table's space and the budget above, and
prints what the found nets score trained alone: means of all chips and both
training seeds. Searches of one seed are pairs.
"""

import argparse
import functools
import pathlib

from hawis_jax import backend
from hawis_jax.pipeline import results
from hawis_jax.search import reward
from hawis_jax.search import selection

backend.configure()

# ruff: noqa: E402
import digits_1024
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from hawis_jax.config import settings
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import search
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import registry

_CANDIDATES = 4
_BASELINE = "random"


def _config(options):
  config = settings.default().search
  config.proposals = options.proposals
  config.updates = -(-max(options.evaluations) // options.proposals)
  config.population = min(config.population, max(options.evaluations) // 4)
  config.tournament = max(2, config.population // 4)
  return config


def _search(problem, name, config):
  """Returns a compiled key -> (choices, advantages, states), of all updates."""
  method = registry.build(name, config, 3)
  context, chips = problem.context, config.chips

  @jax.jit
  def run(key, accuracy):
    key, init_key, reference_key = jax.random.split(key, 3)
    keys = jax.random.split(reference_key, config.references)
    references = jax.vmap(context.feasible.sample)(keys)

    def update(state, step):
      propose, learn, chip_key = jax.random.split(
        jax.random.fold_in(key, step), 3
      )
      choices, notes = method.propose(propose, state, context, step)
      drawn = jax.random.choice(
        chip_key, digits_1024.SEEN, (chips,), replace=False
      )
      seen = accuracy[:, drawn]

      def score(vectors):
        values = seen[:, :, problem.place(vectors)]
        flat = values.reshape(len(accuracy) * chips, -1)
        mixed = reward.robust_score(flat, len(accuracy), config.cvar_weight)
        return mixed.reshape(vectors.shape[:-1])

      advantages = score(choices) - score(references).mean()
      state, _ = method.learn(
        learn, state, context, step, notes, choices, advantages, advantages
      )
      return state, (choices[0], advantages[0], state)

    state = method.init(init_key, context)
    return jax.lax.scan(update, state, jnp.arange(config.updates))[1]

  return method, run


def _regret(problem, method, outcome, updates):
  """Regret of what a method hands over after some updates."""
  choices, advantages, states = outcome
  choices = np.asarray(choices[:updates])
  choices = choices.reshape(-1, choices.shape[-1])
  advantages = np.asarray(advantages[:updates]).reshape(-1)
  estimate = None
  if method.estimate:
    state = jax.tree.map(lambda x: x[updates - 1], states)
    estimate = functools.partial(method.estimate, state, problem.context, 0)

  best = selection.best_vectors(choices, advantages, _CANDIDATES, estimate)
  places = [int(problem.place(vector)) for vector, _ in best]
  handed_over = max(places, key=lambda place: problem.known[place])
  return problem.truth[problem.inside].max() - problem.truth[handed_over]


def on_table(options):
  """Prints regret after numbers of evaluations."""
  problem, config = digits_1024.Problem(options.quantile), _config(options)
  truth = problem.truth[problem.inside]
  print(
    f"{problem.inside.sum()} of {len(problem.inside)} nets within the budget; "
    f"robust score {truth.min():.4f} to {truth.max():.4f}, median "
    f"{np.median(truth):.4f}; {options.seeds} seeds, {config.proposals} "
    f"proposals an update, {config.chips} chips a scenario"
  )
  regrets = {}
  for name in options.methods:
    method, run = _search(problem, name, config)
    regrets[name] = np.empty((len(options.evaluations), options.seeds))
    for seed in range(options.seeds):
      outcome = run(jax.random.key(seed), jnp.asarray(problem.accuracy))
      for row, evaluations in enumerate(options.evaluations):
        updates = evaluations // config.proposals
        regrets[name][row, seed] = _regret(problem, method, outcome, updates)
  head = "".join(f"{n:>22}" for n in options.evaluations)
  print(f"regret, points of accuracy, after evaluations\n{'':12}{head}")
  for name, values in regrets.items():
    cells = ""
    for row in range(len(options.evaluations)):
      mean, half = _interval(100 * values[row])
      p = _p_value(values[row], regrets.get(_BASELINE, [values[row]])[row])
      cells += f"{mean:7.2f} +- {half:4.2f} p {p:5.3f}"
    print(f"{name:12}{cells}")


def _interval(values):
  """(mean, half-width of its 95 % t-interval)."""
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return values.mean(), half


def _p_value(values, baseline):
  if np.array_equal(values, baseline):
    return 1.0
  return stats.mannwhitneyu(values, baseline).pvalue


def of_runs(folders):
  """Prints what finished searches found, one folder a seed."""
  results = [storage.read_json(f / "search" / "result.json") for f in folders]
  names = list(results[0]["candidates"])
  main = results[0]["main_budget"]
  best = {
    name: np.array([_score(r["best"][name][main]) for r in results])
    for name in names
  }
  volume = {
    name: np.array([_hypervolume(r, name) for r in results]) for name in names
  }
  print(
    f"{len(results)} seeds, {results[0]['evaluations']} evaluations a method "
    f"and budget; budgets of {results[0]['cost']}, {results[0]['technology']}"
  )
  print(
    f"{'':12}{'best robust score, %':>24}{'- random':>18}{'p':>7}"
    f"{'hypervolume, %':>20}{'p':>7}"
  )
  for name in names:
    mean, half = _interval(100 * best[name])
    advantage, half_width = _interval(100 * (best[name] - best[_BASELINE]))
    space, space_half = _interval(100 * volume[name])
    print(
      f"{name:12}{mean:15.2f} +- {half:4.2f}"
      f"{advantage:+11.2f} +- {half_width:4.2f}"
      f"{_p_value(best[name], best[_BASELINE]):7.3f}"
      f"{space:12.2f} +- {space_half:4.2f}"
      f"{_p_value(volume[name], volume[_BASELINE]):7.3f}"
    )


def _score(entry):
  return entry["score"] if entry else np.nan


def _hypervolume(result, name):
  """Share of scores and energies that a method's best vectors dominate.

  Each is taken to cost its budget, the greatest of which is the reference: what
  a vector leaves of its budget is no merit of the method.
  """
  area, score = 0.0, 0.0
  for budget, entry in zip(
    result["budgets"], result["best"][name], strict=True
  ):
    if entry and entry["score"] > score:
      area += (1 - budget / max(result["budgets"])) * (entry["score"] - score)
      score = entry["score"]
  return area


def of_supernets(options):
  """Searches with super-nets and prints what the found nets score trained."""
  problem, workdir = (
    digits_1024.Problem(options.quantile),
    pathlib.Path(options.workdir),
  )
  found = np.array(
    [
      [
        _found(problem, faulty, seed, workdir / f"{faulty}_{seed}")
        for faulty in options.faulty
      ]
      for seed in range(options.seeds)
    ]
  ).swapaxes(0, 1)
  places = problem.place(problem.space.choices_of(found))
  print(f"{options.seeds} seeds; {problem.inside.sum()} nets within the budget")
  for quantity, trained in problem.trained.items():
    within, values = 100 * trained[problem.inside], 100 * trained[places]
    print(
      f"{quantity} accuracy of nets trained alone, %: of all within the budget "
      f"{within.mean():.2f} on average, {within.max():.2f} at best"
    )
    for faulty, mine in zip(options.faulty, values, strict=True):
      mean, half = _interval(mine)
      advantage, half_width = _interval(mine - values[0])
      print(
        f"  found with {faulty} faulty: {mean:.2f} +- {half:.2f}, less those "
        f"with {options.faulty[0]}: {advantage:+.2f} +- {half_width:.2f}"
      )
  for faulty, vectors in zip(options.faulty, found, strict=True):
    print(f"{len(np.unique(vectors, axis=0))} nets found with {faulty} faulty")


def _found(problem, faulty, seed, folder):
  """Width vector `[L]` that the search finds, or what is stored of it."""
  path = folder / "search" / "result.json"
  if not path.exists():
    config = _supernet_config(problem, faulty, seed)
    storage.make_directory(folder)
    results.settle(config, folder)
    experiment = prepare(config)
    with Metrics(folder) as metrics:
      pretrain.run(experiment, folder, metrics)
      search.run(experiment, folder, metrics)
  return storage.read_json(path)["found"]


def _supernet_config(problem, faulty, seed):
  c = digits_1024.get_config(seed)
  c.space.cost = "macs"
  c.pretrain.steps = 1000
  c.pretrain.warmup_steps = 200
  c.pretrain.batch_size = 64
  c.pretrain.faulty_widths = faulty
  c.search.budget = problem.budget
  c.search.budget_slack = digits_1024.SLACK
  c.search.methods = ("predictor",)
  c.search.updates = 30
  c.search.images = 128
  c.search.proposals = 16
  c.search.chips = 4
  c.search.vectors_per_step = 32
  c.search.batch_size = 64
  c.search.candidates = 8
  settings.validate(c)
  return c


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--seeds", type=int, default=32)
  parser.add_argument("--proposals", type=int, default=10)
  parser.add_argument("--quantile", type=float, default=0.6)
  parser.add_argument(
    "--evaluations", type=int, nargs="+", default=[50, 100, 200]
  )
  parser.add_argument(
    "--methods", nargs="+", default=["random", *registry.NAMES]
  )
  parser.add_argument("--runs", type=pathlib.Path)
  parser.add_argument("--faulty", type=int, nargs="+")
  parser.add_argument("--workdir", default="runs/faulty_widths")
  options = parser.parse_args()
  options.methods = list(dict.fromkeys(options.methods))
  if options.faulty:
    of_supernets(options)
  elif options.runs:
    of_runs(
      sorted(
        p.parent.parent
        for p in options.runs.rglob("result.json")
        if p.parent.name == "search"
      )
    )
  else:
    on_table(options)


if __name__ == "__main__":
  main()
