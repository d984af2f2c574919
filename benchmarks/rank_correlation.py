"""Whether scores of the super-net rank width vectors as training them does.

python benchmarks/rank_correlation.py --workdir runs/rank_correlation

Space and budget are those of configs/digits.py. Two sets of width vectors are
drawn: uniform in cost, and uniform within the search's range of the budget (5
%). Truth: each is trained alone, with several seeds, and meets chips of
`search.scenarios`; accuracy on the test images and on the validation images,
averaged over seeds. Scores: those of the search's candidates, on the validation
images and other chips, from super-nets of several variants. "robust" is the
search's robust score in both.

Printed, and written to --data: Kendall's tau-b of each variant, averaged over
super-nets of several seeds, with its 95 % interval (percentile bootstrap over
width vectors); differences to the first variant on the same resamples; tau
between the seeds of the stand-alone nets, which says how sure the truth is; and
tau of the cost alone, which a score must beat to be worth its training. What is
in the work directory is not computed again.

Axes: N width vectors, S chips of all scenarios, L layers, R resamples.
"""

import ast
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import measure
import numpy as np
import standalone

from hawis_jax import cost
from hawis_jax.config import settings
from hawis_jax.networks import width_vectors
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import results
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import reward
from hawis_jax.training import supernet

_RESAMPLES = 2000
# name: (what differs from configs/digits.py, super-nets of so many seeds)
_VARIANTS = {
  "default": ({}, 2),
  "fault-aware, 1 of 2": ({"pretrain__faulty_widths": 1}, 2),
  "fault-aware, 2 of 2": ({"pretrain__faulty_widths": 2}, 1),
  "no distillation": ({"pretrain__distill": False}, 1),
  "6 random vectors": ({"pretrain__random_widths": 6}, 1),
  "calibrated on 1024 images": ({"search__calibration_images": 1024}, 2),
  "3 times the steps": (
    {"pretrain__steps": 3000, "pretrain__warmup_steps": 600},
    1,
  ),
}
_COSTS = ("arrays", "macs")
_TRUTHS = {"test": ("test",), "validation + test": ("validation", "test")}


def tau(x, y, counts):
  """Kendall's tau-b, `[R]`, of vectors that occur `counts` `[R, N]` times.

  Pairs of a vector with itself, which resampling makes, do not count.
  """
  x, y = (np.sign(np.subtract.outer(v, v)) for v in (x, y))

  def pairs(signs):
    return np.einsum("ri,ij,rj->r", counts, signs, counts)

  return pairs(x * y) / np.sqrt(pairs(x * x) * pairs(y * y))


def _summary(taus):
  """{tau, ci95} of the sample's value, the first, and those of resamples."""
  low, high = np.nanquantile(taus[1:], (0.025, 0.975))
  return {"tau": float(taus[0]), "ci95": [float(low), float(high)]}


def correlations(truth, scores, rows) -> dict:
  """Taus of one set of vectors, averaged over super-nets.

  Args:
    truth: {"clean", "robust": `[seeds, N]`}.
    scores: {variant: [a super-net's scores {quantity: `[N]`}]}.
    rows: slice of the set's vectors.

  Returns:
    {variant or "seeds of the truth": {quantity: tau, ci95, and of all variants
    but the first `difference` to it, with the same}}.
  """
  num = rows.stop - rows.start
  resampled = np.random.default_rng(0).multinomial(
    num, np.full(num, 1 / num), _RESAMPLES
  )
  counts = np.concatenate([np.ones((1, num)), resampled])
  found, first = {"seeds of the truth": {}}, None
  for quantity, values in truth.items():
    if len(values) > 1:
      taus = tau(values[0, rows], values[1, rows], counts)
      found["seeds of the truth"][quantity] = _summary(taus)
  # What differs by rounding errors alone is tied.
  means = {
    name: values.mean(0).round(9)[rows] for name, values in truth.items()
  }
  for variant, nets in scores.items():
    taus = {
      quantity: np.mean(
        [tau(np.array(net[quantity])[rows], mean, counts) for net in nets], 0
      )
      for quantity, mean in means.items()
    }
    found[variant] = {name: _summary(values) for name, values in taus.items()}
    first = first or taus
    if first is not taus:
      for name, summary in found[variant].items():
        summary["difference"] = _summary(taus[name] - first[name])
  return found


def _show(summary, number=".2f"):
  low, high = summary["ci95"]
  text = f"{summary['tau']:{number}} ({low:{number}} to {high:{number}})"
  if "difference" in summary:
    text += "  " + _show(summary["difference"], "+.2f")
  return text


def report(found) -> None:
  """Prints {truth: {set of vectors: what `correlations` returns}}."""
  for truth, sets in found.items():
    for name, rows in sets.items():
      print(f"\ntruth: {truth} images; width vectors: {name}")
      print(f"{'':28}{'clean':48}robust")
      for variant, summaries in rows.items():
        cells = (f"{_show(summary):48}" for summary in summaries.values())
        print(f"{variant:28}" + "".join(cells).rstrip())


def draw_vectors(experiment, num: int, key) -> dict[str, np.ndarray]:
  """Distinct width vectors, int `[N, L]` each: of all costs, and of a band."""
  space, costs = experiment.space, experiment.costs
  keys = jax.random.split(key)
  bands = cost.cost_bands(space, costs, experiment.config.pretrain.cost_bins)
  feasible = experiment.feasible
  inside = jax.vmap(feasible.sample)(jax.random.split(keys[1], 2 * num))
  drawn = {
    "all costs": supernet.sample_widths(keys[0], bands, space, 2 * num)[2:],
    "5 % band": width_vectors.take(space.table, inside),
  }
  distinct = {}
  for name, vectors in drawn.items():
    vectors = np.asarray(vectors)
    _, first = np.unique(vectors, axis=0, return_index=True)
    distinct[name] = vectors[np.sort(first)[:num]]
  return distinct


def make_test(experiment, chips: int, key):
  """Returns (variables, widths) -> {split: correct}; the ideal chip is last."""
  config = experiment.config.search
  devices = settings.search_devices(experiment.config)
  keys = [*reward.chip_keys(key, chips, len(config.scenarios)), key[None]]

  @jax.jit
  def correct(variables, widths, batches):
    norms = jax.tree.map(lambda x: x[None], variables["batch_stats"])
    net = experiment.supernet, variables, widths[None], norms, batches
    found = [
      monte_carlo.score_chips(*net, chip_keys, device).correct[:, 0]
      for device, chip_keys in zip(devices, keys, strict=True)
    ]
    return jnp.concatenate(found)

  batches = {
    split: experiment.evaluation(
      getattr(experiment.splits, split), config.batch_size
    )
    for split in ("validation", "test")
  }

  def test(variables, widths):
    widths = jnp.asarray(widths, jnp.int32)
    return {
      split: np.asarray(correct(variables, widths, images)).tolist()
      for split, images in batches.items()
    }

  return test


def train_alone(experiment, vectors, seeds, chips, folder) -> list[list[dict]]:
  """Results of every vector and seed, trained or read: `[N][seeds]`."""
  fit = standalone.make_fit(experiment, experiment.config.train.steps)
  test = make_test(experiment, chips, jax.random.key(2**20))
  found, start = [], time.perf_counter()
  for place, vector in enumerate(vectors):
    found.append([])
    for seed in range(seeds):
      name = "-".join(map(str, vector))
      path = folder / "train" / f"{name}_{seed}.json"
      if not path.exists():
        variables, accuracy = fit(vector, seed)
        storage.write_json(path, {"train": accuracy, **test(variables, vector)})
        print(
          f"net {place + 1} of {len(vectors)}, seed {seed}: {name}, training "
          f"accuracy {accuracy:.3f}, {time.perf_counter() - start:.0f} s",
          flush=True,
        )
      found[-1].append(storage.read_json(path))
  return found


def accuracies(found, experiment, splits) -> dict[str, np.ndarray]:
  """Clean and robust accuracy of each seed, `[seeds, N]`, pooled over splits.

  Args:
    found: from `train_alone`.
    experiment: of the nets.
    splits: names.
  """
  config = experiment.config.search
  scenarios = len(config.scenarios)
  correct = np.array(
    [[sum(np.array(r[s]) for s in splits) for r in net] for net in found]
  )
  images = sum(len(getattr(experiment.splits, s)) for s in splits)
  share = (correct / images).transpose(1, 2, 0)  # seeds, S, N
  robust = [
    np.asarray(reward.robust_score(one[:-1], scenarios, config.cvar_weight))
    for one in share
  ]
  return {"clean": share[:, -1], "robust": np.array(robust)}


def score_variant(changes, seed, vectors, workdir) -> dict[str, list[float]]:
  """Scores of all vectors by one super-net, trained or read: `[N]` each."""
  experiment = measure.prepare(seed=seed, **changes)
  own = [f"{k}={v}" for k, v in changes.items() if k.startswith("pretrain")]
  folder = workdir / "_".join([*own, f"seed={seed}"])
  storage.make_directory(folder)
  results.settle(experiment.config, folder)
  with Metrics(folder) as metrics:
    pretrain.run(experiment, folder, metrics)
    params = results.load_supernet(experiment, folder)
    scores = candidates.score_vectors(
      experiment,
      candidates.make_scorer(experiment, params),
      [tuple(vector.tolist()) for vector in vectors],
      experiment.key("candidates"),
      metrics,
      folder / "scores.json",
    )
    scores = list(scores)
  return {
    "clean": [entry["clean"] for entry in scores],
    "robust": [entry["score"] for entry in scores],
  }


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument("--workdir", default="runs/rank_correlation")
  parser.add_argument("--nets", type=int, default=24, help="of each set")
  parser.add_argument("--seeds", type=int, default=2, help="of each net")
  parser.add_argument("--steps", type=int, default=400, help="of each net")
  parser.add_argument("--chips", type=int, default=32, help="of a scenario")
  parser.add_argument("--variants", nargs="*", default=list(_VARIANTS))
  parser.add_argument(
    "--changes", type=ast.literal_eval, default={}, help="of all variants"
  )
  data = measure.ROOT / "benchmarks" / "data" / "rank_correlation.json"
  parser.add_argument("--data", default=data)
  options = parser.parse_args()
  workdir = pathlib.Path(options.workdir).absolute()
  experiment = measure.prepare(
    train__steps=options.steps, robustness__chips=options.chips
  )
  sets = draw_vectors(experiment, options.nets, jax.random.key(2**21))
  vectors = np.concatenate(list(sets.values()))
  storage.make_directory(workdir / "alone" / "train")
  results.settle(experiment.config, workdir / "alone")
  alone = train_alone(
    experiment, vectors, options.seeds, options.chips, workdir / "alone"
  )
  scores = {}
  for name in options.variants:
    changes, seeds = _VARIANTS[name]
    score = functools.partial(score_variant, {**options.changes, **changes})
    scores[name] = [score(seed, vectors, workdir) for seed in range(seeds)]
  costs = experiment.cost(vectors)
  kinds = {kind: np.asarray(getattr(costs, kind)) for kind in _COSTS}
  by_cost = {
    f"{kind} alone": [{"clean": values, "robust": values}]
    for kind, values in kinds.items()
  }
  truths = {
    name: accuracies(alone, experiment, splits)
    for name, splits in _TRUTHS.items()
  }
  found = {name: {} for name in truths}
  for name, truth in truths.items():
    start = 0
    for group, members in sets.items():
      rows = slice(start, start + len(members))
      found[name][group] = correlations(truth, scores | by_cost, rows)
      start = rows.stop
  report(found)
  content = {"steps": options.steps, "chips": options.chips, "tau": found}
  content["nets"] = [
    {
      "widths": vector.tolist(),
      **{kind: int(values[i]) for kind, values in kinds.items()},
      "truth": {
        split: {k: v[:, i].round(5).tolist() for k, v in truth.items()}
        for split, truth in truths.items()
      },
      "scores": {
        name: {k: [round(net[k][i], 5) for net in nets] for k in nets[0]}
        for name, nets in scores.items()
      },
    }
    for i, vector in enumerate(vectors)
  ]
  # Of very few vectors some taus are NaN, which this allows.
  text = json.dumps(content) + "\n"
  storage.write_bytes(options.data, text.encode())


if __name__ == "__main__":
  main()
