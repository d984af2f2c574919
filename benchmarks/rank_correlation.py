"""Whether scores of the super-net rank width vectors as training them does.

python benchmarks/rank_correlation.py --workdir runs/rank_correlation

Space and budget are those of configs/digits.py. Two sets of width vectors are
drawn: uniform in cost, and uniform within the search's budget range of the
  budget (5
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

Axes: N width vectors, S chips of all scenarios, L layers.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import time

from hawis_jax import backend
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import results as pipeline_results
from hawis_jax.robustness import monte_carlo
from hawis_jax.search import reward
from hawis_jax.training import supernet

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import kendall
import numpy as np
import standalone

from hawis_jax import cost
from hawis_jax.config import settings
from hawis_jax.networks import width_vectors
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics

_ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = 8  # vectors a call of the scorer
# name: (what differs from configs/digits.py, super-nets of so many seeds)
_VARIANTS = {
  "default": ({}, 2),
  "fault-aware, 1 of 2": ({"pretrain.faulty_widths": 1}, 2),
  "fault-aware, 2 of 2": ({"pretrain.faulty_widths": 2}, 1),
  "no distillation": ({"pretrain.distill": False}, 1),
  "6 random vectors": ({"pretrain.random_widths": 6}, 1),
  "calibrated on 1024 images": ({"search.calibration_images": 1024}, 2),
  "3 times the steps": (
    {"pretrain.steps": 3000, "pretrain.warmup_steps": 600},
    1,
  ),
}
_COSTS = ("arrays", "macs")
_SPLITS = ("validation", "test")


def _experiment(changes, seed=0):
  spec = importlib.util.spec_from_file_location(
    "digits", _ROOT / "configs" / "digits.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.seed = seed
  config.update_from_flattened_dict(changes)
  settings.validate(config)
  return prepare(config)


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

  @functools.partial(jax.jit, static_argnums=0)
  def correct(module, variables, widths, batches):
    norms = jax.tree.map(lambda x: x[None], variables["batch_stats"])
    found = [
      monte_carlo.score_chips(
        module, variables, widths[None], norms, batches, chip_keys, device
      ).correct[:, 0]
      for device, chip_keys in zip(devices, keys, strict=True)
    ]
    return jnp.concatenate(found)

  batches = {
    split: experiment.evaluation(
      getattr(experiment.splits, split), config.batch_size
    )
    for split in _SPLITS
  }

  def test(variables, widths):
    widths = jnp.asarray(widths, jnp.int32)
    return {
      split: np.asarray(
        correct(experiment.supernet, variables, widths, images)
      ).tolist()
      for split, images in batches.items()
    }

  return test


def train_alone(experiment, vectors, seeds, chips, folder) -> list[list[dict]]:
  """Results of every vector and seed, trained or read: `[N][seeds]`."""
  fit = standalone.make_fit(experiment, experiment.config.train.steps)
  test = make_test(experiment, chips, jax.random.key(2**20))
  results, start = [], time.perf_counter()
  for place, vector in enumerate(vectors):
    results.append([])
    for seed in range(seeds):
      name = "-".join(map(str, vector))
      path = folder / "train" / f"{name}_{seed}.json"
      if not path.exists():
        variables, accuracy = fit(vector, seed)
        result = {"train": accuracy, **test(variables, vector)}
        storage.write_json(path, result)
        seconds = time.perf_counter() - start
        print(
          f"net {place + 1} of {len(vectors)}, seed {seed}: {name}, training "
          f"accuracy {accuracy:.3f}, {seconds:.0f} s",
          flush=True,
        )
      results[-1].append(storage.read_json(path))
  return results


def accuracies(results, experiment, splits) -> dict[str, np.ndarray]:
  """Clean and robust accuracy of each seed, `[seeds, N]`, pooled over splits.

  Args:
    results: from `train_alone`.
    experiment: of the nets.
    splits: names.
  """
  config = experiment.config.search
  scenarios = len(config.scenarios)
  correct = np.array(
    [[sum(np.array(r[s]) for s in splits) for r in net] for net in results]
  )
  images = sum(len(getattr(experiment.splits, s)) for s in splits)
  share = (correct / images).transpose(1, 2, 0)  # seeds, S, N
  robust = [
    np.asarray(reward.robust_score(one[:-1], scenarios, config.cvar_weight))
    for one in share
  ]
  return {"clean": share[:, -1], "robust": np.array(robust)}


def supernet_scores(experiment, vectors, folder) -> dict[str, list[float]]:
  """Scores of all vectors by one super-net, trained or read: `[N]` each."""
  config = experiment.config.search
  with Metrics(folder) as metrics:
    params = pretrain.run(experiment, folder, metrics)
  scorer = candidates.make_scorer(experiment, params)
  images = experiment.evaluation(
    experiment.splits.validation, config.batch_size
  )
  scorer = scorer.replace(images=images)
  devices = settings.search_devices(experiment.config)
  key, scenarios = experiment.key("candidates"), len(config.scenarios)
  keys = reward.chip_keys(key, config.candidate_chips, scenarios)
  keys.append(key[None])  # of the ideal device
  score = jax.jit(reward.make_score(experiment, devices))
  count, length = vectors.shape
  padded = np.resize(vectors, (-count // _BLOCK * -_BLOCK, length))
  parts = [
    jax.device_get(score(scorer, jnp.asarray(block, jnp.int32), keys))
    for block in padded.reshape(-1, _BLOCK, length)
  ]
  found = {}
  for suffix, values in (
    ("", [part.accuracy for part in parts]),
    (" by cross-entropy", [-part.cross_entropy for part in parts]),
  ):
    values = np.concatenate(values, axis=1)[:, :count]
    robust = reward.robust_score(values[:-1], scenarios, config.cvar_weight)
    found["clean" + suffix] = values[-1].tolist()
    found["robust" + suffix] = np.asarray(robust).tolist()
  return found


def score_variant(name, seed, vectors, workdir):
  """`supernet_scores` of a variant's super-net, or what is stored of them."""
  changes = _VARIANTS[name][0]
  experiment = _experiment(changes, seed)
  own = [f"{k}={v}" for k, v in changes.items() if k.startswith("pretrain.")]
  folder = workdir / "_".join([*own, f"seed={seed}"])
  path = workdir / "scores" / f"{name}_{seed}.json"
  if path.exists():
    return storage.read_json(path)
  storage.make_directory(folder)
  start = time.perf_counter()
  pipeline_results.settle(experiment.config, folder)
  scores = supernet_scores(experiment, vectors, folder)
  storage.write_json(path, scores)
  seconds = time.perf_counter() - start
  print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)
  return scores


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/rank_correlation")
  parser.add_argument("--nets", type=int, default=24, help="of each set")
  parser.add_argument("--seeds", type=int, default=2, help="of each net")
  parser.add_argument("--steps", type=int, default=400, help="of each net")
  parser.add_argument("--chips", type=int, default=32, help="of a scenario")
  parser.add_argument("--variants", nargs="*", default=list(_VARIANTS))
  parser.add_argument(
    "--data", default=_ROOT / "benchmarks" / "data" / "rank_correlation.json"
  )
  options = parser.parse_args()
  workdir = pathlib.Path(options.workdir).absolute()
  experiment = _experiment(
    {"train.steps": options.steps, "robustness.chips": options.chips}
  )
  sets = draw_vectors(experiment, options.nets, jax.random.key(2**21))
  vectors = np.concatenate(list(sets.values()))
  for folder in ("alone/train", "scores"):
    storage.make_directory(workdir / folder)
  pipeline_results.settle(experiment.config, workdir / "alone")
  results = train_alone(
    experiment, vectors, options.seeds, options.chips, workdir / "alone"
  )
  scores = {
    name: [
      score_variant(name, seed, vectors, workdir)
      for seed in range(_VARIANTS[name][1])
    ]
    for name in options.variants
  }
  costs = [experiment.cost(tuple(int(w) for w in v)) for v in vectors]
  kinds = {kind: [getattr(c, kind) for c in costs] for kind in _COSTS}
  by_cost = {
    f"{kind} alone": [{"clean": values, "robust": values}]
    for kind, values in kinds.items()
  }
  found, truths = {}, {}
  for name, splits in (("test", ["test"]), ("validation + test", _SPLITS)):
    truths[name] = accuracies(results, experiment, splits)
    found[name], start = {}, 0
    for group, members in sets.items():
      rows = slice(start, start + len(members))
      found[name][group] = kendall.correlations(
        truths[name], scores | by_cost, rows
      )
      start = rows.stop
  kendall.report(found)
  content = {
    "steps": options.steps,
    "chips": options.chips,
    "tau": found,
    "nets": [
      {
        "widths": vector.tolist(),
        **{kind: int(values[i]) for kind, values in kinds.items()},
        "truth": {
          split: {k: v[:, i].round(5).tolist() for k, v in truth.items()}
          for split, truth in truths.items()
        },
        "scores": {
          name: {
            quantity: [round(net[quantity][i], 5) for net in nets]
            for quantity in nets[0]
          }
          for name, nets in scores.items()
        },
      }
      for i, vector in enumerate(vectors)
    ],
  }
  storage.make_directory(pathlib.Path(options.data).parent)
  pathlib.Path(options.data).write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
  main()
