"""Search methods against each other, at equal numbers of evaluations.

python benchmarks/search.py --seeds 32   # on the stored table of 1,024 nets
python benchmarks/search.py --runs runs/search_benchmark   # of searches made
python benchmarks/search.py --rates 0.01 0.1 1 10 --seeds 3   # of policies

On the table (see table.py) every net's robust accuracy is known from its own
training, and so is regret: the best net's score less that of the net a method
would hand over after n evaluations, that is, the best on 16 chips of its 4
candidates, of which up to half may be what it expects to be best. (The best of
noisy scores is too good by a constant, the same for all methods.) Scores that a
search sees are of 4 chips a scenario, drawn anew an update from those 16;
the truth is of 16 others. Mean over seeds with its 95 % interval, and the
two-sided Mann-Whitney p against random search.

Of searches (configs/search_benchmark.py, one work directory a seed) it prints
what they found: robust score of each method's best vector, on chips that did
not choose it, and the hypervolume of its best of all budgets in robust score
and budgeted energy. Seeds are pairs: the difference from random search has a
paired interval; Mann-Whitney's p ignores pairs, and none is corrected for the
number of methods.

Of policies on the table it prints, for each learning rate and seed, the
furthest that an update moves one: why the limit of `kl` is 10 nat
(hawis_jax/search/policy_gradient.py). And the regret.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import measure
import numpy as np
from scipy import stats
import table

from hawis_jax.pipeline import results
from hawis_jax.search import method
from hawis_jax.search import registry
from hawis_jax.search import reward
from hawis_jax.search import selection

_CANDIDATES = 4
_BASELINE = "random"
_CHIPS, _REFERENCES = 4, 4  # of a scenario and update; of an update
_CVAR_WEIGHT = 0.5


def _settings(options, **fields):
  most = max(options.evaluations)
  population = min(method.Settings.population, most // 4)
  return method.Settings(
    updates=-(-most // options.proposals),
    proposals=options.proposals,
    population=population,
    tournament=max(2, population // 4),
    **fields,
  )


def _search(problem, built, updates):
  """Returns a compiled (key, accuracy) -> what all updates of a method leave.

  It is (choices, advantages, states, metrics), all with the axis of updates.
  """
  context = problem.context

  @jax.jit
  def run(key, accuracy):
    key, init_key, reference_key = jax.random.split(key, 3)
    keys = jax.random.split(reference_key, _REFERENCES)
    references = jax.vmap(context.feasible.sample)(keys)

    def update(state, step):
      propose, learn, chip_key = jax.random.split(
        jax.random.fold_in(key, step), 3
      )
      choices, notes = built.propose(propose, state, context, step)
      drawn = jax.random.choice(chip_key, table.SEEN, (_CHIPS,), replace=False)
      seen = accuracy[:, drawn]

      def score(vectors):
        values = seen[:, :, problem.place(vectors)]
        flat = values.reshape(len(accuracy) * _CHIPS, -1)
        mixed = reward.robust_score(flat, len(accuracy), _CVAR_WEIGHT)
        return mixed.reshape(vectors.shape[:-1])

      advantages = score(choices) - score(references).mean()
      state, said = built.learn(
        learn, state, context, step, notes, choices, advantages, advantages
      )
      return state, (choices[0], advantages[0], state, said)

    state = built.init(init_key, context)
    return jax.lax.scan(update, state, jnp.arange(updates))[1]

  return run


def _regret(problem, built, outcome, updates):
  """Regret of what a method hands over after some updates."""
  choices, advantages, states, _ = outcome
  choices = np.asarray(choices[:updates])
  choices = choices.reshape(-1, choices.shape[-1])
  advantages = np.asarray(advantages[:updates]).reshape(-1)
  state = jax.tree.map(lambda x: x[updates - 1], states)
  estimate = None
  if built.estimate:
    estimate = functools.partial(built.estimate, state, problem.context, 0)
  best = selection.best_vectors(choices, advantages, _CANDIDATES, estimate)
  if built.suggest:
    best = selection.with_suggested(best, built.suggest(state)[0])
  places = [int(problem.place(vector)) for vector, _ in best]
  handed_over = max(places, key=lambda place: problem.known[place])
  return problem.truth[problem.inside].max() - problem.truth[handed_over]


def _regrets(problem, name, options, **fields):
  """(Regrets `[evaluations, seeds]`, metrics of every seed) of a method."""
  chosen = _settings(options, **fields)
  built = registry.build(name, chosen)
  run, accuracy = (
    _search(problem, built, chosen.updates),
    jnp.asarray(problem.accuracy),
  )
  outcomes = [run(jax.random.key(n), accuracy) for n in range(options.seeds)]
  counts = [n // options.proposals for n in options.evaluations]
  regrets = [
    [_regret(problem, built, outcome, count) for outcome in outcomes]
    for count in counts
  ]
  return np.array(regrets), [outcome[-1] for outcome in outcomes]


def on_table(problem, options) -> None:
  """Prints regret after numbers of evaluations."""
  truth = problem.truth[problem.inside]
  print(
    f"{problem.inside.sum()} of {len(problem.inside)} nets within the budget; "
    f"robust score {truth.min():.4f} to {truth.max():.4f}, median "
    f"{np.median(truth):.4f}; {options.seeds} seeds, {options.proposals} "
    f"proposals an update, {_CHIPS} chips a scenario"
  )
  regrets = {
    name: _regrets(problem, name, options)[0] for name in options.methods
  }
  head = "".join(f"{n:>22}" for n in options.evaluations)
  print(f"regret, points of accuracy, after evaluations\n{'':12}{head}")
  for name, values in regrets.items():
    cells = ""
    for row, baseline in zip(
      values, regrets.get(_BASELINE, values), strict=True
    ):
      mean, half = measure.interval(100 * row)
      cells += f"{mean:7.2f} +- {half:4.2f} p {_p_value(row, baseline):5.3f}"
    print(f"{name:12}{cells}")


def _p_value(values, baseline):
  if np.array_equal(values, baseline):
    return 1.0
  return stats.mannwhitneyu(values, baseline).pvalue


def of_rates(problem, options) -> None:
  """Prints how far an update moves policies, by learning rate."""
  print("method     rate   greatest kl [nat] of each seed     regret [points]")
  for name in ("ppo", "reinforce"):
    for rate in options.rates:
      regrets, said = _regrets(problem, name, options, learning_rate=rate)
      furthest = " ".join(f"{float(each['kl'].max()):6.2f}" for each in said)
      last = " ".join(f"{100 * regret:5.2f}" for regret in regrets[-1])
      print(f"{name:9} {rate:5}   {furthest}   {last}", flush=True)


def of_runs(folder: pathlib.Path) -> None:
  """Prints what finished searches found, one folder a seed."""
  found = sorted(folder.rglob("search/result.json"))
  runs = [results.load_search(path.parents[1]) for path in found]
  main = runs[0]["main_budget"]
  print(
    f"{len(runs)} seeds, {runs[0]['evaluations']} evaluations a method and "
    f"budget; budgets of {runs[0]['cost']}, {runs[0]['technology']}"
  )
  print(
    f"{'':12}{'best robust score, %':>24}{'- random':>18}{'p':>7}"
    f"{'hypervolume, %':>20}{'p':>7}"
  )

  def measured(name):
    """Best scores and hypervolumes of a method, `[seeds]` each."""
    best = [run["best"][name][main] for run in runs]
    scores = [entry["score"] if entry else np.nan for entry in best]
    return np.array([scores, [_hypervolume(run, name) for run in runs]])

  baseline = measured(_BASELINE)
  for name in runs[0]["candidates"]:
    values = measured(name)
    rows = 100 * values[0], 100 * (values - baseline)[0], 100 * values[1]
    score, gap, volume = map(measure.interval, rows)
    p, p_volume = map(_p_value, values, baseline)
    print(
      f"{name:12}{score[0]:15.2f} +- {score[1]:4.2f}"
      f"{gap[0]:+11.2f} +- {gap[1]:4.2f}{p:7.3f}"
      f"{volume[0]:12.2f} +- {volume[1]:4.2f}{p_volume:7.3f}"
    )


def _hypervolume(result, name):
  """Of a method's best vectors, on fresh chips; 0 where a budget has none."""
  best = [entry["score"] if entry else 0 for entry in result["best"][name]]
  return float(selection.hypervolume(result["budgets"], np.array(best)))


def main() -> None:
  parser = measure.parser(__doc__)
  add = parser.add_argument
  add("--seeds", type=int, default=32)
  add("--proposals", type=int, default=10)
  add("--evaluations", type=int, nargs="+", default=[50, 100, 200])
  methods = list(dict.fromkeys([_BASELINE, *registry.NAMES]))
  add("--methods", nargs="+", default=methods)
  add("--runs", type=pathlib.Path)
  add("--rates", type=float, nargs="+", help="of learning")
  options = parser.parse_args()
  if options.runs:
    of_runs(options.runs)
    return
  problem = table.Problem()
  if options.rates:
    of_rates(problem, options)
  else:
    on_table(problem, options)


if __name__ == "__main__":
  main()
