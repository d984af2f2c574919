"""How far an update moves a policy, by learning rate: why the limit is 10 nat.

python benchmarks/policy_limit.py [--seeds 3] [--updates 60]

Scores are a stand-in, a concave function of the widths of three layers with
noise of 2 points: cheap, and enough to learn from. For each method and learning
rate it prints the greatest `kl` of a run (see `methods/gradient.py`) and the
mean score of its last five updates, of every seed.
"""

import argparse

from hawis_jax import backend
from hawis_jax.robustness import monte_carlo
from hawis_jax.search import update

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.config import settings
from hawis_jax.pipeline import search
from hawis_jax.pipeline.experiment import prepare

_NOISE = 0.02
_RATES = (0.01, 0.1, 1.0, 10.0)


def main() -> None:
  """Prints a line for each method and learning rate."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--updates", type=int, default=60)
  arguments = parser.parse_args()
  print("method     rate   greatest kl [nat]     last scores")
  for method in ("ppo", "reinforce"):
    for rate in _RATES:
      runs = [
        _run(method, rate, seed, arguments.updates)
        for seed in range(arguments.seeds)
      ]
      furthest = " ".join(f"{kl.max():6.2f}" for kl, _ in runs)
      last = " ".join(f"{score[-5:].mean():.3f}" for _, score in runs)
      print(f"{method:9} {rate:5}   {furthest}   {last}", flush=True)


def _run(method, rate, seed, updates):
  """(kl, mean score) of every update."""
  config = settings.default()
  config.seed = seed
  config.space.choices = ((4, 8, 12, 16), (4, 8, 12, 16), (8, 16, 24, 32))
  config.network.depth = 8
  config.network.base_widths = (4, 8, 16)
  config.space.cost = "macs"
  config.search.update(
    methods=(method,),
    updates=updates,
    updates_per_call=1,
    proposals=16,
    learning_rate=rate,
  )
  experiment = prepare(config)
  built = search.build_methods(experiment)
  context = search.make_context(experiment)
  widest = jnp.asarray(experiment.space.max_widths)

  def score(scorer, vectors, keys):
    advantage = 0.5 * jnp.log(1 + (vectors / widest[None]).mean(-1))
    shape = sum(map(len, keys)), len(vectors)
    noise = jax.random.normal(jax.random.fold_in(keys[0][0], 3), shape)
    accuracy = advantage[None] + _NOISE * noise
    return monte_carlo.Scores(accuracy, accuracy, -accuracy)

  step_function = update.make_step(config.search, built, score)

  @jax.jit
  def every(state, key):
    return jax.lax.scan(
      lambda state, step: step_function(state, step, None, context, key),
      state,
      jnp.arange(updates),
    )

  state = search.init(experiment, built, context)
  _, values = every(state, experiment.key("search"))
  return np.asarray(values[f"{method}_kl"]), np.asarray(values[method])


if __name__ == "__main__":
  main()
